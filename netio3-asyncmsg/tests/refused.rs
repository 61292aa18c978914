//! What our side is told when it cannot connect or listen: by listeners of other kinds, and by the system.

mod util;

use std::net::TcpListener;
use std::time::Duration;

use netio3_core::{
    AcceptFilter, AddressError, ConnectionParameters, ConnectionParametersRecv, EndPointAddress, OpenListenError, RefusedReason,
};
use netio3_evloop::EpollEventLoop;
use util::{Bare, hello, until};

/// A listener that is no netio3, and its address.
fn bare_listener() -> (TcpListener, EndPointAddress) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound").into();
    (listener, address)
}

/// A client and a bare listener that it dials; tells what becomes of it when it is answered like this.
fn refused_when_answered(answer: &[u8]) -> RefusedReason {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let node = util::node(&ev);
    let (listener, address) = bare_listener();
    let endpoint = node.backend.open_send_endpoint(&address, &ConnectionParameters::default()).expect("a connection is started");
    let (socket, _) = listener.accept().expect("it dials");
    let mut bare = Bare::new(socket);
    until(&ev, "its hello arrives", || {
        bare.read();
        bare.arrived.len() == 72
    });
    bare.write(answer);
    drop(bare);
    until(&ev, "it is refused", || node.refused(endpoint).is_some());
    assert_eq!(node.told().len(), 1, "and nothing else is told");
    node.refused(endpoint).expect("it was awaited")
}

#[test]
fn strange_listeners_are_refusals_with_a_reason() {
    let with = |at: usize, bytes: &[u8]| {
        let mut hello = hello();
        hello[at..at + bytes.len()].copy_from_slice(bytes);
        hello
    };
    assert_eq!(refused_when_answered(b"SSH-2.0-OpenSSH\r\n"), RefusedReason::Protocol);
    assert_eq!(refused_when_answered(b""), RefusedReason::NoListener, "it hangs up");
    assert_eq!(refused_when_answered(&hello()[..50]), RefusedReason::NoListener, "it hangs up in the middle");
    assert_eq!(refused_when_answered(&with(10, &[7, 7])), RefusedReason::Version);
    assert_eq!(refused_when_answered(&with(12, &[1])), RefusedReason::Version);
    assert_eq!(refused_when_answered(&with(12, &[2])), RefusedReason::Filter);
    assert_eq!(refused_when_answered(&with(12, &[3])), RefusedReason::Limit);
    assert_eq!(refused_when_answered(&with(12, &[4])), RefusedReason::Shutdown);
    assert_eq!(refused_when_answered(&with(16, &[0; 8])), RefusedReason::Protocol);
}

#[test]
fn a_listener_that_says_nothing_is_a_timeout() {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let node = util::node(&ev);
    let (_listener, address) = bare_listener();
    let params = ConnectionParameters { connect_deadline: Duration::from_millis(100), ..Default::default() };
    let endpoint = node.backend.open_send_endpoint(&address, &params).expect("a connection is started");
    until(&ev, "it is refused", || node.refused(endpoint).is_some());
    assert_eq!(node.refused(endpoint), Some(RefusedReason::Timeout));
}

#[test]
fn who_is_filtered_is_told_so() {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let (server, client) = (util::node(&ev), util::node(&ev));
    let params = ConnectionParametersRecv { accept: AcceptFilter::new(|_| false), ..Default::default() };
    let address = server.backend.open_listen_endpoint(&EndPointAddress::localhost(0), &params).expect("a port is free");
    let endpoint = client.backend.connect(&address, &ConnectionParameters::default()).expect("a connection is started");
    until(&ev, "it is refused", || client.refused(endpoint).is_some());
    assert_eq!(client.refused(endpoint), Some(RefusedReason::Filter));
    assert_eq!((server.listener().refused_filter, server.told().len()), (1, 0));
}

#[test]
fn an_address_in_use_is_said_to_be() {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let node = util::node(&ev);
    let (_other, taken) = bare_listener();
    match node.backend.open_listen_endpoint(&taken, &ConnectionParametersRecv::default()) {
        Err(OpenListenError::FailedOpenListenEndpoint { address, source }) => {
            assert_eq!(address, taken);
            assert_eq!(source.kind(), std::io::ErrorKind::AddrInUse);
            assert!(source.to_string().contains("in use"), "{source}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_name_is_not_an_address() {
    for text in ["localhost:1234", "example.org", "1.2.3.4", ""] {
        assert_eq!(text.parse::<EndPointAddress>(), Err(AddressError::NotAnAddress { text: text.to_owned() }));
    }
}
