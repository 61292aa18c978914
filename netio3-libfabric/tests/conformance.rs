//! The conformance suite over libfabric, single-threaded and synchronized. `NETIO3_PROVIDER` names the provider
//! (default `tcp`), `NETIO3_ADDRESS` an address that it can listen on (default 127.0.0.1), `NETIO3_CONNECTIONS` how
//! many connections there may be at once (default 256; fewer where the device is emulated and slow).

use std::env;
use std::net::{IpAddr, Ipv4Addr};

use netio3_core::conformance::Harness;
use netio3_core::{Callbacks, EndPointAddress, EventLoop, NetworkBackend, NetworkConfig, RdmaParameters};
use netio3_evloop::EpollEventLoop;

struct Fabric {
    synchronized: bool,
}

impl Fabric {
    fn config(&self, config: NetworkConfig) -> NetworkConfig {
        let provider = env::var("NETIO3_PROVIDER").unwrap_or_else(|_| "tcp".into());
        NetworkConfig { rdma: RdmaParameters { provider: Some(provider), ..config.rdma }, ..config }
    }
}

impl Harness for Fabric {
    fn event_loop(&self) -> Box<dyn EventLoop> {
        Box::new(EpollEventLoop::new().expect("descriptors are left"))
    }

    fn local(&self, config: NetworkConfig, callbacks: Box<dyn Callbacks + Send>, ev: &dyn EventLoop) -> Box<dyn NetworkBackend> {
        netio3_libfabric::create_local(self.config(config), callbacks, ev).expect("libfabric is there")
    }

    fn synchronized(
        &self,
        config: NetworkConfig,
        callbacks: Box<dyn Callbacks + Send>,
        ev: &dyn EventLoop,
    ) -> Box<dyn NetworkBackend + Send + Sync> {
        netio3_libfabric::create(self.config(config), callbacks, ev).expect("libfabric is there")
    }

    fn is_synchronized(&self) -> bool {
        self.synchronized
    }

    fn listen_address(&self) -> EndPointAddress {
        let ip = env::var("NETIO3_ADDRESS")
            .map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |text| text.parse().expect("NETIO3_ADDRESS is an IP address"));
        EndPointAddress::new(ip, 0)
    }

    fn connections(&self) -> usize {
        env::var("NETIO3_CONNECTIONS").map_or(256, |text| text.parse().expect("NETIO3_CONNECTIONS is a number"))
    }

    fn skip(&self, case: &str) -> Option<&'static str> {
        if case == "an_ipv6_listener_takes_ipv6_only" {
            return Some("the tcp provider binds IPv6 wildcards for IPv4 too, so that the IPv4 port is not free beside one");
        }
        let required = env::var_os("NETIO3_REQUIRE_LIBFABRIC").is_some_and(|value| value == "1");
        let missing = !required && netio3_libfabric::availability().is_err();
        missing.then_some("this machine has no libfabric")
    }
}

mod local {
    netio3_core::conformance_suite!(super::Fabric { synchronized: false });
}

mod synchronized {
    netio3_core::conformance_suite!(super::Fabric { synchronized: true });
}
