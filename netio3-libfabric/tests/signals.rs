//! Signals stay the program's.

mod util;

use std::fs;

use netio3_evloop::EpollEventLoop;

use crate::util::{is_here, node, until};

/// The signals that this process has handlers for, as the kernel tells.
fn handled() -> String {
    let status = fs::read_to_string("/proc/self/status").expect("the kernel tells of this process");
    let line = status.lines().find(|line| line.starts_with("SigCgt:"));
    line.expect("it tells of signals").to_owned()
}

/// Some libraries of providers set handlers for interrupt and termination when they are loaded.
#[test]
fn libfabric_leaves_no_signal_handlers() {
    let before = handled();
    if !is_here() {
        return;
    }
    assert_eq!(handled(), before, "once libfabric was asked for providers");
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let [server, client] = [(); 2].map(|()| node(&ev));
    let to = client.backend.connect(&server.listen(), &Default::default()).expect("a connection is started");
    until(&ev, &[], "it is established", || client.established() == [to]);
    assert_eq!(handled(), before, "once a device is open");
}
