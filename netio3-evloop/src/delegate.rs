//! The `EventLoop` of the types that only pass it on.

/// Implements `EventLoop` by the loop found in the named field path.
macro_rules! delegate_event_loop {
    ($type:ty, $self:ident => $inner:expr) => {
        impl netio3_core::EventLoop for $type {
            fn handle(&$self) -> std::rc::Rc<dyn netio3_core::EventLoop> {
                $inner.handle()
            }
            fn remote(&$self) -> std::sync::Arc<dyn netio3_core::Remote> {
                $inner.remote()
            }
            fn add_source(&$self, source: Box<dyn netio3_core::Source>) -> netio3_core::SourceId {
                $inner.add_source(source)
            }
            fn remove_source(&$self, id: netio3_core::SourceId) {
                $inner.remove_source(id);
            }
            fn watch(
                &$self,
                id: netio3_core::SourceId,
                fd: std::os::fd::BorrowedFd<'_>,
                token: usize,
                interest: netio3_core::Interest,
            ) -> std::io::Result<netio3_core::WatchId> {
                $inner.watch(id, fd, token, interest)
            }
            fn unwatch(&$self, watch: netio3_core::WatchId, fd: std::os::fd::BorrowedFd<'_>) {
                $inner.unwatch(watch, fd);
            }
            fn redeliver(&$self, id: netio3_core::SourceId, token: usize, ready: netio3_core::Ready) {
                $inner.redeliver(id, token, ready);
            }
            fn set_deadline(&$self, id: netio3_core::SourceId, at: Option<std::time::Instant>) {
                $inner.set_deadline(id, at);
            }
            fn schedule(&$self) {
                $inner.schedule();
            }
            fn now(&$self) -> std::time::Instant {
                $inner.now()
            }
            fn clock(&$self) -> std::time::Instant {
                $inner.clock()
            }
            fn is_running(&$self) -> bool {
                $inner.is_running()
            }
            fn counters(&$self) -> std::sync::Arc<netio3_core::LoopCounters> {
                $inner.counters()
            }
            fn run(&$self) -> Result<(), netio3_core::RunError> {
                $inner.run()
            }
            fn run_for(&$self, time: std::time::Duration) -> Result<(), netio3_core::RunError> {
                $inner.run_for(time)
            }
            fn run_until(
                &$self,
                condition: &mut dyn FnMut() -> bool,
                limit: std::time::Duration,
            ) -> Result<bool, netio3_core::RunError> {
                $inner.run_until(condition, limit)
            }
            fn run_once(&$self, limit: Option<std::time::Duration>) -> Result<(), netio3_core::RunError> {
                $inner.run_once(limit)
            }
            fn stop(&$self) {
                $inner.stop();
            }
        }
    };
}

pub(crate) use delegate_event_loop;
