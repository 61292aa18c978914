//! The thread that makes the calls which may block is there when it is needed, and only then. Skipped, saying so, where
//! libfabric is absent; `NETIO3_REQUIRE_LIBFABRIC=1` makes that a failure.

mod util;

use std::time::Duration;

use netio3_core::{ConnectionParameters, EventLoop};
use netio3_evloop::EpollEventLoop;
use util::{config, helpers, is_here, node_with, until};

#[test]
fn the_helper_thread_ends_when_idle_and_comes_back_for_every_job() {
    if !is_here() {
        return;
    }
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let (server, client) = (node_with(&ev, config()), node_with(&ev, config()));
    let address = server.listen();
    for round in 1..=25 {
        let out = client.backend.connect(&address, &ConnectionParameters::default()).expect("a connection is started");
        until(&ev, &[], "established", || server.established().len() == round && client.established().len() == round);
        if round % 5 == 0 {
            until(&ev, &[], "nothing is left to do", || helpers() == 0);
            client.send(out, b"without it", 1);
            let back = server.established()[round - 1];
            until(&ev, &[], "a message arrives", || server.received(back).len() == 1);
            assert_eq!(helpers(), 0, "messages do not need it");
        }
        client.backend.close(out).expect("it is there");
        until(&ev, &[], "closed", || client.closed(out).is_some());
        // Around the moment at which it gives up waiting.
        ev.run_for(Duration::from_millis(88 + round as u64)).expect("the loop can wait");
    }
    until(&ev, &[], "nothing is left to do", || helpers() == 0);
}
