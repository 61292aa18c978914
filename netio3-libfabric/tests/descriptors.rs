//! A process short of descriptors. Skipped, saying so, where libfabric is absent.

mod util;

use std::fs::File;
use std::net::TcpStream;
use std::time::Duration;

use netio3_core::EventLoop;
use netio3_evloop::EpollEventLoop;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::util::{is_here, node, until};

/// The provider cannot take a peer that waits, whom the loop would be told of again and again.
#[test]
fn a_listener_short_of_descriptors_says_so_and_lets_the_loop_sleep() {
    if !is_here() {
        return;
    }
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let [server, client] = [(); 2].map(|()| node(&ev));
    let address = server.listen();
    let to = client.backend.connect(&address, &Default::default()).expect("a connection is started");
    until(&ev, &[], "it is established", || client.established() == [to]);

    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(200), ..limit }).expect("less is always allowed");
    let mut taken: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    drop(taken.pop());
    let _waiting = TcpStream::connect(address.socket_addr()).expect("the kernel takes it");
    let failures = || server.backend.totals().accept_failures.get();
    until(&ev, &[], "the listener cannot accept", || failures() > 0);
    let (turns, before) = (ev.counters().snapshot().turns, failures());
    ev.run_for(Duration::from_millis(500)).expect("the loop can wait");
    let turns = ev.counters().snapshot().turns - turns;
    assert!(turns < 200, "{turns} turns for {} looks", failures() - before);
    assert_eq!(server.listener().accept_failures, failures());
    // Those who are connected have lost nothing by it.
    client.send(to, b"meanwhile", 1);
    let from = server.established()[0];
    until(&ev, &[], "it arrives", || server.received(from) == [b"meanwhile"]);

    drop(taken);
    setrlimit(Resource::Nofile, limit).expect("so it was before");
    let next = client.backend.connect(&address, &Default::default()).expect("a connection is started");
    until(&ev, &[], "it is established", || client.established() == [to, next]);
}
