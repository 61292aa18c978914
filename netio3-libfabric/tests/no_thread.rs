//! A connection that is closed while no thread can be started. Skipped, saying so, where libfabric is absent;
//! `NETIO3_REQUIRE_LIBFABRIC=1` makes that a failure.

mod util;

use std::time::Duration;

use netio3_core::{ConnectionParameters, EventLoop};
use netio3_evloop::EpollEventLoop;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Uid, setresuid};
use util::{helpers, is_here, node, until};

/// The helper thread ends when it has nothing to do; what is left to it when there can be no other is done by the loop.
#[test]
fn closed_is_told_although_no_thread_can_be_started() {
    if !is_here() {
        return;
    }
    // For root there is no limit.
    if Uid::effective().is_root() {
        let nobody = Uid::from_raw(54_321);
        setresuid(nobody, nobody, nobody).expect("root may be anybody");
    }
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let [server, client] = [(); 2].map(|()| node(&ev));
    let to = client.backend.connect(&server.listen(), &ConnectionParameters::default()).expect("a connection is started");
    until(&ev, &[], "it is established", || client.established() == [to] && server.established().len() == 1);
    until(&ev, &[], "the helper threads have ended", || helpers() == 0);
    client.send(to, b"hello", 1);
    let (_, most) = getrlimit(Resource::RLIMIT_NPROC).expect("it can be asked for");
    setrlimit(Resource::RLIMIT_NPROC, 1, most).expect("it can be lowered");
    client.backend.close(to).expect("it is connected");
    client.backend.shutdown(Duration::from_millis(300));
    server.backend.shutdown(Duration::from_millis(300));
    let back = server.established()[0];
    until(&ev, &[], "both sides are closed", || client.closed(to).is_some() && server.closed(back).is_some());
    ev.run_for(Duration::from_millis(1)).expect("the loop can wait");
}
