//! Which providers are taken. Skipped, saying so, where libfabric is absent; `NETIO3_REQUIRE_LIBFABRIC=1` makes that a
//! failure.

mod util;

use netio3_core::{Callbacks, CreateError, NetworkConfig, RdmaParameters};
use netio3_evloop::EpollEventLoop;
use util::is_here;

struct Nothing;

impl Callbacks for Nothing {}

/// A peer over another provider would end the process. libfabric takes its name in any case.
#[test]
fn the_provider_sockets_is_refused_however_it_is_spelled() {
    if !is_here() {
        return;
    }
    let ev = EpollEventLoop::new().expect("descriptors are left");
    for provider in ["sockets", "Sockets", "SOCKETS"] {
        let rdma = RdmaParameters { provider: Some(provider.into()), ..Default::default() };
        let created = netio3_libfabric::create_local(NetworkConfig { rdma, ..Default::default() }, Box::new(Nothing), &ev);
        match created.err() {
            Some(CreateError::NotAvailable { why, .. }) => assert!(why.contains("take `tcp`"), "{why}"),
            other => panic!("{provider}: {other:?}"),
        }
    }
}
