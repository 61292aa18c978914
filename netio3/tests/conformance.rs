//! The conformance suite through the facade: the backend is picked by name at run time, as a program does.

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

    fn skip(&self, case: &str) -> Option<&'static str> {
        if self.name == "rdma" {
            let required = std::env::var_os("NETIO3_REQUIRE_LIBFABRIC").is_some_and(|value| value == "1");
            if case == "an_ipv6_listener_takes_ipv6_only" {
                return Some("the tcp provider binds IPv6 wildcards for IPv4 too, so that the IPv4 port is not free beside one");
            }
            if !required && self.kind().availability().is_err() {
                return Some("this machine has no libfabric");
            }
        }
        let loopback = self.name == "loopback" && case == "a_foreign_local_address_cannot_be_used";
        loopback.then_some("in the network within a process every address is this machine's")
    }
}

mod tcp {
    netio3_core::conformance_suite!(super::Picked { name: "tcp", synchronized: false });
}

mod tcp_synchronized {
    netio3_core::conformance_suite!(super::Picked { name: "tcp", synchronized: true });
}

mod loopback {
    netio3_core::conformance_suite!(super::Picked { name: "loopback", synchronized: false });
}

#[cfg(feature = "rdma")]
mod rdma {
    netio3_core::conformance_suite!(super::Picked { name: "rdma", synchronized: false });
}
