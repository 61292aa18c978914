//! The conformance suite over TCP: IPv4 and IPv6, single-threaded and synchronized, and with a loop that spins.

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::time::Duration;

use netio3_core::conformance::Harness;
use netio3_core::{Callbacks, EndPointAddress, EventLoop, NetworkBackend, NetworkConfig};
use netio3_evloop::EpollEventLoop;

struct Tcp {
    synchronized: bool,
    ipv6: bool,
    spin: Duration,
}

impl Harness for Tcp {
    fn event_loop(&self) -> Box<dyn EventLoop> {
        let ev = EpollEventLoop::new().expect("descriptors are left");
        ev.set_spin(self.spin);
        Box::new(ev)
    }

    fn local(&self, config: NetworkConfig, callbacks: Box<dyn Callbacks + Send>, ev: &dyn EventLoop) -> Box<dyn NetworkBackend> {
        netio3_asyncmsg::create_local(config, callbacks, ev).expect("the configuration is valid")
    }

    fn synchronized(
        &self,
        config: NetworkConfig,
        callbacks: Box<dyn Callbacks + Send>,
        ev: &dyn EventLoop,
    ) -> Box<dyn NetworkBackend + Send + Sync> {
        netio3_asyncmsg::create(config, callbacks, ev).expect("the configuration is valid")
    }

    fn is_synchronized(&self) -> bool {
        self.synchronized
    }

    fn listen_address(&self) -> EndPointAddress {
        let ip = if self.ipv6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
        EndPointAddress::new(ip, 0)
    }

    fn skip(&self, _case: &str) -> Option<&'static str> {
        let missing = self.ipv6 && TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err();
        missing.then_some("this machine has no IPv6")
    }
}

mod ipv4 {
    netio3_core::conformance_suite!(super::Tcp { synchronized: false, ipv6: false, spin: std::time::Duration::ZERO });
}

mod ipv4_synchronized {
    netio3_core::conformance_suite!(super::Tcp { synchronized: true, ipv6: false, spin: std::time::Duration::ZERO });
}

mod ipv6 {
    netio3_core::conformance_suite!(super::Tcp { synchronized: false, ipv6: true, spin: std::time::Duration::ZERO });
}

mod ipv6_synchronized {
    netio3_core::conformance_suite!(super::Tcp { synchronized: true, ipv6: true, spin: std::time::Duration::ZERO });
}

mod spinning {
    netio3_core::conformance_suite!(super::Tcp { synchronized: false, ipv6: false, spin: std::time::Duration::from_micros(200) });
}
