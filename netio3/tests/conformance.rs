//! The conformance suite through the facade: the backend is picked by name at run time, as a program does. The other backends
//! are picked by the tests in `facade.rs`; they pass the suite in their own crates.

use netio3::{Callbacks, EndPointAddress, EpollEventLoop, EventLoop, NetworkBackend, NetworkConfig, NetworkType};
use netio3_core::conformance::Harness;

struct Picked {
    name: &'static str,
    synchronized: bool,
}

impl Picked {
    fn kind(&self) -> NetworkType {
        self.name.parse().expect("the name of a backend")
    }
}

impl Harness for Picked {
    fn event_loop(&self) -> Box<dyn EventLoop> {
        Box::new(EpollEventLoop::new().expect("descriptors are left"))
    }

    fn local(&self, config: NetworkConfig, callbacks: Box<dyn Callbacks + Send>, ev: &dyn EventLoop) -> Box<dyn NetworkBackend> {
        netio3::create_local(self.kind(), config, callbacks, ev).expect("the backend is compiled in")
    }

    fn synchronized(
        &self,
        config: NetworkConfig,
        callbacks: Box<dyn Callbacks + Send>,
        ev: &dyn EventLoop,
    ) -> Box<dyn NetworkBackend + Send + Sync> {
        netio3::create(self.kind(), config, callbacks, ev).expect("the backend is compiled in")
    }

    fn is_synchronized(&self) -> bool {
        self.synchronized
    }

    fn listen_address(&self) -> EndPointAddress {
        EndPointAddress::localhost(0)
    }
}

mod tcp {
    netio3_core::conformance_suite!(super::Picked { name: "tcp", synchronized: false });
}

mod tcp_synchronized {
    netio3_core::conformance_suite!(super::Picked { name: "tcp", synchronized: true });
}
