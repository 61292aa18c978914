//! What RDMA has not says so. Skipped, saying so, where libfabric is absent; `NETIO3_REQUIRE_LIBFABRIC=1` makes that a
//! failure.

mod util;

use std::error::Error;

use netio3_core::{ConnectionParameters, ConnectionParametersRecv, EndPointAddress};
use netio3_evloop::EpollEventLoop;
use util::{is_here, node};

#[test]
fn an_interface_is_refused_by_both_sides() {
    if !is_here() {
        return;
    }
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let node = node(&ev);
    let connection = ConnectionParameters { interface: Some("lo".into()), ..Default::default() };
    let cause = |error: &dyn Error| error.source().expect("it has a cause").to_string();
    let error = node.backend.connect(&EndPointAddress::localhost(1), &connection).expect_err("it cannot be kept");
    assert!(cause(&error).contains("(lo); set `local_address`"), "{}", cause(&error));
    let params = ConnectionParametersRecv { connection, ..Default::default() };
    let error = node.backend.open_listen_endpoint(&EndPointAddress::localhost(0), &params).expect_err("it cannot be kept");
    assert!(cause(&error).contains("(lo); listen on an address"), "{}", cause(&error));
}
