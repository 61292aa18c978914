//! What a backend gives the suite.

use crate::address::EndPointAddress;
use crate::backend::NetworkBackend;
use crate::callbacks::Callbacks;
use crate::config::NetworkConfig;
use crate::event_loop::EventLoop;

/// Makes what the cases need: loops, backends and addresses of the kind under test.
///
/// Each case makes its own; cases run side by side, on threads of their own.
pub trait Harness: Send + Sync {
    /// An event loop for the calling thread.
    fn event_loop(&self) -> Box<dyn EventLoop>;

    /// A backend of the single-threaded kind.
    fn local(&self, config: NetworkConfig, callbacks: Box<dyn Callbacks + Send>, ev: &dyn EventLoop) -> Box<dyn NetworkBackend>;

    /// A backend of the synchronized kind, also for the cases that call from several threads.
    fn synchronized(
        &self,
        config: NetworkConfig,
        callbacks: Box<dyn Callbacks + Send>,
        ev: &dyn EventLoop,
    ) -> Box<dyn NetworkBackend + Send + Sync>;

    /// Which kind is under test. On the synchronized one, errors that only the loop can find arrive as *refused*.
    fn is_synchronized(&self) -> bool;

    /// A backend of the kind under test.
    fn backend(&self, config: NetworkConfig, callbacks: Box<dyn Callbacks + Send>, ev: &dyn EventLoop) -> Box<dyn NetworkBackend> {
        if self.is_synchronized() { self.synchronized(config, callbacks, ev) } else { self.local(config, callbacks, ev) }
    }

    /// An address to listen on and to dial: an IP address of this machine with port 0.
    fn listen_address(&self) -> EndPointAddress;

    /// An address that can be dialled and is refused with `NoListener`.
    fn nobody_listens(&self) -> EndPointAddress {
        // No ephemeral port, so that nobody gets it meanwhile.
        self.listen_address().with_port(1)
    }

    /// How many connections one process can hold at once, with both of their ends. At least 8.
    fn connections(&self) -> usize {
        256
    }

    /// Why a case does not apply to this backend; the reason is printed and the case passes.
    fn skip(&self, case: &str) -> Option<&'static str> {
        let _ = case;
        None
    }
}
