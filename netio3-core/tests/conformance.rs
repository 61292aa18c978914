//! The conformance suite over the loopback backend, of either kind.
#![cfg(feature = "conformance")]

use netio3_core::conformance::Harness;
use netio3_core::{Callbacks, EndPointAddress, EventLoop, NetworkBackend, NetworkConfig, loopback};
use netio3_evloop::EpollEventLoop;

struct Loopback {
    synchronized: bool,
}

impl Harness for Loopback {
    fn event_loop(&self) -> Box<dyn EventLoop> {
        Box::new(EpollEventLoop::new().expect("descriptors are left"))
    }

    fn local(&self, config: NetworkConfig, callbacks: Box<dyn Callbacks + Send>, ev: &dyn EventLoop) -> Box<dyn NetworkBackend> {
        loopback::create_local(config, callbacks, ev).expect("the configuration is valid")
    }

    fn synchronized(
        &self,
        config: NetworkConfig,
        callbacks: Box<dyn Callbacks + Send>,
        ev: &dyn EventLoop,
    ) -> Box<dyn NetworkBackend + Send + Sync> {
        loopback::create(config, callbacks, ev).expect("the configuration is valid")
    }

    fn is_synchronized(&self) -> bool {
        self.synchronized
    }

    fn listen_address(&self) -> EndPointAddress {
        EndPointAddress::localhost(0)
    }

    fn skip(&self, case: &str) -> Option<&'static str> {
        (case == "a_foreign_local_address_cannot_be_used").then_some("in a process of its own every address is this machine's")
    }
}

mod single_threaded {
    netio3_core::conformance_suite!(super::Loopback { synchronized: false });
}

mod synchronized {
    netio3_core::conformance_suite!(super::Loopback { synchronized: true });
}
