//! Descriptors of the user.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use netio3_core::{Budget, EventLoop, Interest, Next, Ready, Source, SourceId};

use crate::handle::Handle;

impl Handle {
    /// Watches a descriptor, which the loop owns from now on and closes when the watch is removed with
    /// [`remove_source`](EventLoop::remove_source).
    ///
    /// The closure gets the descriptor, which should not block, and what it is ready for. Readiness comes by edge:
    /// the closure is called when it changes, so it must read or write until that would block, or return
    /// [`Next::Again`] to be called again with the same in the next turn. It may be called when nothing is ready. It must not put
    /// another descriptor in its place.
    ///
    /// # Errors
    /// The kernel cannot watch this descriptor, such as that of a file, or it is on this loop already, or the
    /// loop is gone. The descriptor is closed then.
    pub fn add_fd<F: AsFd + 'static>(
        &self,
        fd: F,
        interest: Interest,
        call: impl FnMut(&Self, &mut F, Ready) -> Next + 'static,
    ) -> io::Result<SourceId> {
        let raw = fd.as_fd().as_raw_fd();
        let handle = self.clone();
        let key = self.inner.add(false, |_| Box::new(Fd { handle, fd, call }));
        let watched = self.inner.watch_raw(key, raw, 0, interest);
        if let Err(error) = watched {
            self.inner.remove(key);
            return Err(error);
        }
        Ok(SourceId(key.0))
    }
}

struct Fd<F, C> {
    handle: Handle,
    fd: F,
    call: C,
}

impl<F, C: FnMut(&Handle, &mut F, Ready) -> Next> Source for Fd<F, C> {
    fn ready(&mut self, _: &dyn EventLoop, _: usize, ready: Ready, _: &mut Budget) -> Next {
        (self.call)(&self.handle, &mut self.fd, ready)
    }
}
