//! Memory: that of a queue, of messages that land, and the user's.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::thread;

use netio3_core::{Handlers, NetworkBackend};

use super::util::LIMIT;
use super::*;

/// MiB of data that this process has mapped.
fn mapped() -> usize {
    let text = fs::read_to_string("/proc/self/status").expect("there is /proc");
    let kib = text.lines().find_map(|line| line.strip_prefix("VmData:")?.strip_suffix("kB"));
    kib.expect("it tells of memory").trim().parse::<usize>().expect("a number") >> 10
}

/// Packed messages between others take no memory of a whole packet each.
#[test]
fn a_queue_takes_little_more_memory_than_its_limit() {
    let Some(_beside) = beside_others() else { return };
    let params = ConnectionParameters { copy_below: 64, ..Default::default() };
    let server = Server::with(config(), params);
    // It returns no credits.
    let mut hello = hello_with(20, &[1, 0]);
    hello[16..20].copy_from_slice(&(PACKET as u32).to_le_bytes());
    let (peer, endpoint) = server.greeted_by(&hello);
    let (data, before) = (Bytes::from(vec![5; 100]), mapped());
    let gathered = |key| server.node.backend.send(endpoint, &data, &[], key) == Ok(NetioStatus::Ok);
    let packed = |key| server.node.backend.send_copy(endpoint, b"0123456789", &[], key) == Ok(NetioStatus::Ok);
    let accepted = (0..).step_by(2).take_while(|key| gathered(*key) && packed(key + 1)).count();
    // Of the other tests the most that they may have taken meanwhile.
    let more = mapped().saturating_sub(before);
    assert!(accepted > 30_000 && more < 500, "{accepted} of each, {more} MiB");
    drop(peer);
}

/// How long a packet is here.
const PACKET: usize = 66_048;

/// Sends a message of this length in parts, as credits go.
fn send_long(server: &Server, peer: &Peer, (credits, seen): &mut (i32, usize), len: usize) {
    let mut send = |packet: &Packet| {
        while *credits == 0 {
            let before = *seen;
            server.until(&[peer], "credits come", || peer.arrived().len() > before || peer.end().is_some());
            if peer.end().is_some() {
                return;
            }
            *credits += peer.arrived()[*seen..].iter().map(|packet| i32::from(packet.credits)).sum::<i32>();
            *seen = peer.arrived().len();
        }
        *credits -= 1;
        peer.send(packet);
    };
    send(&Packet::first(len as u32, &[7; PACKET - 8]));
    let mut sent = PACKET - 8;
    while sent < len {
        let n = PACKET.min(len - sent);
        send(&Packet::next(&vec![7; n]));
        sent += n;
    }
}

/// All memory for putting messages together has one limit, that in which they land included.
#[test]
fn memory_to_land_in_counts() {
    let Some(_beside) = beside_others() else { return };
    const LEN: usize = 1 << 20;
    let limit = 16 << 20;
    let server =
        Server::with(NetworkConfig { total_assembly_bytes: limit, max_message_len: LEN, ..config() }, ConnectionParameters::default());
    let held = || server.node.backend.totals().assembly_bytes.get() as usize;
    let mut landed = 0;
    let mut peers = Vec::new();
    for _ in 0..6 {
        let (peer, endpoint) = server.greeted_by(&hello_with(16, &(PACKET as u32).to_le_bytes()));
        send_long(&server, &peer, &mut (16, 0), LEN);
        let before = held();
        server.until(&[&peer], "it arrives", || server.node.received(endpoint).len() == 1);
        server.node.forget();
        let until = Instant::now() + Duration::from_millis(300);
        server.until(&[&peer], "memory is made", || held() > before + LEN || Instant::now() > until);
        // More than it has been put together in.
        landed += usize::from(held() > before + LEN);
        assert!(held() <= limit, "{} bytes", held());
        peers.push(peer);
    }
    assert!(landed > 0, "the first one has memory to land in");
}

/// Memory whose drop panics.
struct Bad([u8; 20_000]);

impl AsRef<[u8]> for Bad {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Bad {
    fn drop(&mut self) {
        panic!("on purpose, while dropping");
    }
}

/// A second panic while the first goes on would end the process.
#[test]
fn memory_that_panics_is_dropped_piece_by_piece_where_a_backend_ends_while_a_connection_is_closed() {
    let Some(_beside) = beside_others() else { return };
    let Server { ev, node, witness, address } = Server::new();
    let (peer, endpoint) = Peer::greeted(&ev, &node, address, &hello());
    for key in 0..40 {
        let data = Bytes::from_owner(Bad([5; 20_000]));
        assert_eq!(node.backend.send(endpoint, &data, &[], key), Ok(NetioStatus::Ok));
    }
    node.backend.abort(endpoint).expect("it is connected");
    assert!(catch_unwind(AssertUnwindSafe(|| drop(node))).is_err(), "the first panic goes on");
    drop((peer, witness));
}

/// Memory to land in that nothing lies in must not end the connection of a message that there is enough memory for.
#[test]
fn idle_memory_to_land_in_leaves_room_for_a_message_of_the_longest_length() {
    let Some(_beside) = beside_others() else { return };
    const MIB: usize = 1 << 20;
    let config = NetworkConfig { max_message_len: 28 * MIB, total_assembly_bytes: 32 * MIB, ..config() };
    let server = Server::with(config, ConnectionParameters::default());
    let (peer, endpoint) = server.greeted_by(&hello_with(16, &(PACKET as u32).to_le_bytes()));
    let mut credits = (16, 0);
    send_long(&server, &peer, &mut credits, 3 * MIB);
    server.until(&[&peer], "it arrives", || server.node.received(endpoint).len() == 1);
    let until = Instant::now() + Duration::from_millis(500);
    server.until(&[&peer], "memory is made", || Instant::now() > until);
    send_long(&server, &peer, &mut credits, 27 * MIB);
    server.until(&[&peer], "it arrives too, or ends it", || {
        server.node.received(endpoint).len() == 2 || server.node.closed(endpoint).is_some()
    });
    assert_eq!(server.node.closed(endpoint), None);
}

/// In one go it is told of a peer that is established, in whose callback the backend is dropped, and of another whose endpoint
/// is closed.
#[test]
fn memory_that_panics_is_dropped_piece_by_piece_where_a_callback_drops_the_backend_while_a_connection_is_closed() {
    let Some(_beside) = beside_others() else { return };
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let held: Rc<RefCell<Option<Box<dyn NetworkBackend>>>> = Rc::default();
    let established = Rc::new(RefCell::new(Vec::new()));
    let (aborted, dropped) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    let (mine, came, is_aborted, is_dropped) = (held.clone(), established.clone(), aborted.clone(), dropped.clone());
    let server = Handlers::new().on_connection_established(move |_, info| {
        came.borrow_mut().push(info.endpoint);
        if is_aborted.get() {
            drop(mine.take());
            is_dropped.set(true);
        }
    });
    let (came, is_aborted) = (established.clone(), aborted);
    let server = server.on_data(move |backend, _, _, _| {
        // Somebody was let in, for whom the helper thread makes buffers: it tells of that, and then of this.
        let admitted = backend.listeners()[0].counters.established.get() as usize;
        if admitted > came.borrow().len() && !is_aborted.replace(true) {
            let first = came.borrow()[0];
            backend.abort(first).expect("it is connected");
            thread::sleep(Duration::from_millis(300));
        }
    });
    let rdma = RdmaParameters { shared_receives: Some(16), ..config().rdma };
    let server = netio3_libfabric::create_local(NetworkConfig { rdma, ..config() }, Box::new(server), &ev).expect("libfabric is here");
    let address = server.open_listen_endpoint(&EndPointAddress::localhost(0), &Default::default()).expect("a port is left");
    held.replace(Some(server));
    // It takes one packet, so that none of what is sent to it leaves as a whole.
    let first = Peer::connect(address, &hello_with(20, &[1, 0]));
    until(&ev, &[&first], "it is established", || established.borrow().len() == 1 && first.answer().is_some());
    for key in 0..40 {
        let data = Bytes::from_owner(Bad([5; 20_000]));
        let backend = held.borrow();
        let sent = backend.as_ref().map(|backend| backend.send(established.borrow()[0], &data, &[], key));
        assert_eq!(sent, Some(Ok(NetioStatus::Ok)));
    }
    let second = Peer::connect(address, &hello());
    until(&ev, &[&first, &second], "it is established", || established.borrow().len() == 2 && second.answer().is_some());
    let (mut sent, end) = (0, Instant::now() + LIMIT);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        while !dropped.get() && Instant::now() < end {
            let before = established.borrow().len();
            let third = Peer::connect(address, &hello());
            until(&ev, &[&second, &third], "it is told of", || {
                // It has credits for one packet more with each that it hears of.
                let granted = 1 + second.arrived().iter().map(|packet| usize::from(packet.credits)).sum::<usize>();
                if sent < granted && second.end().is_none() {
                    sent += 1;
                    second.send(&Packet::messages(&[b"again"]));
                }
                established.borrow().len() > before
            });
        }
    }));
    assert!(dropped.get() && outcome.is_err(), "the first panic goes on");
}
