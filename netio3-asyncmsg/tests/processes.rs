//! Tests that change what holds for a whole process, each in a process of its own.

mod util;

use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

use netio3_asyncmsg::Frame;
use netio3_core::{ConnectionParameters, ConnectionParametersRecv, EndPointAddress, RefusedReason};
use netio3_evloop::EpollEventLoop;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use util::{Bare, Server, hello, until};

/// Names the role of this process, when a test started it.
const ROLE: &str = "NETIO3_TEST_ROLE";

fn is(role: &str) -> bool {
    std::env::var(ROLE).is_ok_and(|value| value == role)
}

/// A command that runs one test of this file in a process of its own.
fn this_test(name: &str, before: &[&str]) -> Command {
    let this = std::env::current_exe().expect("this program has a path");
    let words = before.iter().map(std::ffi::OsString::from).chain([this.into_os_string()]).collect::<Vec<_>>();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).args([name, "--exact", "--nocapture", "--test-threads=1"]).env(ROLE, name);
    command
}

#[test]
fn a_host_without_a_route_is_unreachable() {
    const NAME: &str = "a_host_without_a_route_is_unreachable";
    if !is(NAME) {
        // A network of its own has no routes.
        let output = this_test(NAME, &["unshare", "--map-root-user", "--net"]).output();
        match output {
            Ok(output) if String::from_utf8_lossy(&output.stdout).contains("unreachable as expected") => assert!(output.status.success()),
            Ok(output) if output.stdout.is_empty() => println!("skipped: {}", String::from_utf8_lossy(&output.stderr).trim()),
            Ok(output) => panic!("{output:?}"),
            Err(error) => println!("skipped: cannot run unshare: {error}"),
        }
        return;
    }
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let node = util::node(&ev);
    let address: EndPointAddress = "192.0.2.1:7".parse().expect("it is an address");
    let endpoint = node.backend.open_send_endpoint(&address, &ConnectionParameters::default()).expect("told by the loop");
    until(&ev, "it is refused", || node.refused(endpoint).is_some());
    assert_eq!(node.refused(endpoint), Some(RefusedReason::Unreachable));
    println!("unreachable as expected");
}

/// A port is taken by those that connect to the same peer, not by all of the local address.
#[test]
fn connections_from_one_address_to_several_peers_share_ports() {
    const NAME: &str = "connections_from_one_address_to_several_peers_share_ports";
    const PORTS: &str = "40000 40001";
    if !is(NAME) {
        // A network of its own has ports of its own.
        let ready = format!("ip link set lo up && echo {PORTS} > /proc/sys/net/ipv4/ip_local_port_range && exec \"$@\"");
        let output = this_test(NAME, &["unshare", "--map-root-user", "--net", "sh", "-c", &ready, "sh"]).output();
        match output {
            Ok(output) if String::from_utf8_lossy(&output.stdout).contains("connected as expected") => assert!(output.status.success()),
            Ok(output) if output.stdout.is_empty() => println!("skipped: {}", String::from_utf8_lossy(&output.stderr).trim()),
            Ok(output) => panic!("{output:?}"),
            Err(error) => println!("skipped: cannot run unshare: {error}"),
        }
        return;
    }
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let node = util::node(&ev);
    let params = ConnectionParameters { local_address: Some(Ipv4Addr::LOCALHOST.into()), ..Default::default() };
    for port in [7_001, 7_002] {
        let address = EndPointAddress::localhost(port);
        let address = node.backend.open_listen_endpoint(&address, &ConnectionParametersRecv::default()).expect("nobody else is here");
        for _ in 0..2 {
            let endpoint = node.backend.connect(&address, &params).expect("a port is left");
            until(&ev, "it is established", || node.established().contains(&endpoint));
        }
    }
    let error = node.backend.connect(&EndPointAddress::localhost(7_001), &params).expect_err("all ports are taken");
    assert!(error.to_string().contains("ip_local_port_range"), "{error}");
    println!("connected as expected");
}

#[test]
fn a_full_table_of_descriptors_is_survived() {
    const NAME: &str = "a_full_table_of_descriptors_is_survived";
    const PEERS: usize = 60;
    if is(NAME) {
        return serve_with_few_descriptors(PEERS);
    }
    let mut child = this_test(NAME, &[]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("this program can be run");
    let mut output = child.stdout.take().expect("it is piped");
    let mut text = String::new();
    let address = loop {
        let mut byte = [0];
        assert_eq!(output.read(&mut byte).expect("it can be read"), 1, "it ended: {text}");
        text.push(char::from(byte[0]));
        let line = text.lines().find_map(|line| line.split_once("listening on ")?.1.strip_suffix(';'));
        if let Some(address) = line {
            break address.parse::<EndPointAddress>().expect("it prints its address");
        }
    };
    // More than it can take; the kernel holds those that it cannot.
    let mut waiting: Vec<_> = (0..PEERS)
        .map(|_| {
            let mut bare = Bare::connect(address);
            bare.write(&hello());
            bare
        })
        .collect();
    // Who is served leaves, so that descriptors become free for the others.
    let deadline = std::time::Instant::now() + util::LIMIT;
    let mut served = 0;
    while served < PEERS {
        assert!(std::time::Instant::now() < deadline, "only {served} of {PEERS} were served");
        for bare in &mut waiting {
            bare.read();
            assert!(bare.end.is_none(), "an honest peer was turned away: {:?}", bare.end);
        }
        let before = waiting.len();
        waiting.retain(|bare| bare.arrived.len() < 72);
        served += before - waiting.len();
        std::thread::yield_now();
    }
    let rest = std::io::read_to_string(&mut output).expect("it can be read");
    assert!(child.wait().expect("it runs").success(), "{text}{rest}");
}

/// The other process of the test above.
fn serve_with_few_descriptors(peers: usize) {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(32), ..limit }).expect("a limit can be lowered");
    let mut server = Server::new();
    println!("listening on {};", server.address);
    server.until("all were served", || server.node.established().len() == peers + 1);
    assert!(server.node.listener().accept_failures > 0, "the table was never full");
    assert!(server.node.backend.totals().accept_failures.get() > 0);
    assert_eq!(server.node.listener().silent, 0, "nobody had to go");
    server.witness.testify(&server.ev, &server.node);
    server.check();
}

#[test]
fn the_silent_make_room_when_the_table_of_descriptors_is_full() {
    const NAME: &str = "the_silent_make_room_when_the_table_of_descriptors_is_full";
    if !is(NAME) {
        let output = this_test(NAME, &[]).output().expect("this program can be run");
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let server = Server::new();
    let mut silent: Vec<_> = (0..5).map(|_| Bare::connect(server.address)).collect();
    server.until("they are accepted", || server.node.listener().accepted == 6);
    let newcomer = TcpStream::connect(server.address.socket_addr()).expect("it listens");
    // No descriptor is left for accepting it.
    let limit = getrlimit(Resource::Nofile);
    let first_free = std::fs::File::open("/dev/null").expect("it can be opened").as_raw_fd();
    setrlimit(Resource::Nofile, Rlimit { current: Some(first_free as u64), ..limit }).expect("a limit can be lowered");
    let mut bare = Bare::new(newcomer);
    bare.write(&hello());
    server.until("the newcomer is established", || server.node.established().len() == 2);
    setrlimit(Resource::Nofile, limit).expect("a limit can be raised again");
    _ = silent[0].until_end(&server.ev);
    assert!(server.node.listener().accept_failures > 0);
    // The system does not tell whether somebody waits when the table is full: one more may have to go.
    assert!((1..=2).contains(&server.node.listener().silent));
    silent[2].read();
    assert_eq!(silent[2].end, None, "the others stay");
    bare.write(&Frame::Goodbye.head());
    server.until_closed(server.node.established()[1]);
    server.check();
}
