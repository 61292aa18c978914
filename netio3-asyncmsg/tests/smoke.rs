//! One message from one connection to another.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use netio3_core::{ConnectionParameters, ConnectionParametersRecv, EndPointAddress, EventLoop, Handlers, NetworkConfig};
use netio3_evloop::EpollEventLoop;

#[test]
fn an_echo_comes_back() {
    let ev = EpollEventLoop::new().unwrap();
    let server = Handlers::new().on_data(|backend, from, _, message| {
        assert!(backend.send_copy(from, &message, &[], 7).is_ok());
    });
    let server = netio3_asyncmsg::create_local(NetworkConfig::default(), Box::new(server), &ev).unwrap();
    let address = server.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default()).unwrap();
    let got = Rc::new(RefCell::new(Vec::new()));
    let seen = got.clone();
    let client = Handlers::new()
        .on_connection_established(|backend, connection| {
            assert!(backend.send_copy(connection.endpoint, b"payload", b"header ", 1).is_ok());
        })
        .on_data(move |_, _, _, message| seen.borrow_mut().extend_from_slice(&message));
    let client = netio3_asyncmsg::create_local(NetworkConfig::default(), Box::new(client), &ev).unwrap();
    client.open_send_endpoint(&address, &ConnectionParameters::default()).unwrap();
    ev.run_until(&mut || !got.borrow().is_empty(), Duration::from_secs(10)).unwrap();
    assert_eq!(*got.borrow(), b"header payload");
}
