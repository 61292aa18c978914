//! What was read of a connection when it stopped receiving: kept, counted, bounded, and named when it is lost.

mod util;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use netio3_asyncmsg::Frame;
use netio3_core::{
    ClosedReason, ConnectionParameters, ConnectionParametersRecv, EndPointAddress, Endpoint, EventLoop, Handlers, Message, NetioStatus,
    NetworkBackend, NetworkConfig,
};
use netio3_evloop::EpollEventLoop;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use util::{Bare, config, hello, message, until};

/// A server that pauses, or does something else, for each message.
struct Server {
    ev: EpollEventLoop,
    backend: Rc<dyn NetworkBackend>,
    address: EndPointAddress,
    established: Rc<RefCell<Vec<Endpoint>>>,
    closed: Rc<RefCell<Vec<(Endpoint, ClosedReason)>>>,
}

impl Server {
    fn new(config: NetworkConfig, on_data: impl FnMut(&dyn NetworkBackend, Endpoint, &EndPointAddress, Message<'_>) + 'static) -> Self {
        let ev = EpollEventLoop::new().expect("descriptors are left");
        let (established, closed): (Rc<RefCell<Vec<_>>>, Rc<RefCell<Vec<_>>>) = Default::default();
        let (came, went) = (established.clone(), closed.clone());
        let callbacks = Handlers::new()
            .on_data(on_data)
            .on_connection_established(move |_, connection| came.borrow_mut().push(connection.endpoint))
            .on_connection_closed(move |_, endpoint, _, _, reason| went.borrow_mut().push((endpoint, reason)));
        let backend: Rc<dyn NetworkBackend> =
            netio3_asyncmsg::create_local(config, Box::new(callbacks), &ev).expect("the configuration is valid").into();
        let address = backend.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default());
        Self { ev, backend, address: address.expect("a port is free"), established, closed }
    }

    #[track_caller]
    fn until(&self, what: &str, condition: impl FnMut() -> bool) {
        until(&self.ev, what, condition);
    }

    /// A peer that has exchanged hellos, and its endpoint here.
    #[track_caller]
    fn greeted(&self) -> (Bare, Endpoint) {
        let before = self.established.borrow().len();
        let mut bare = Bare::connect(self.address);
        bare.write(&hello());
        self.until("it is established", || {
            bare.read();
            bare.arrived.len() >= 72 && self.established.borrow().len() > before
        });
        (bare, self.established.borrow()[before])
    }

    fn turns(&self, count: usize) {
        (0..count).for_each(|_| self.ev.run_once(Some(Duration::ZERO)).expect("the loop can wait"));
    }

    fn closed(&self, endpoint: Endpoint) -> Option<ClosedReason> {
        self.closed.borrow().iter().find(|(of, _)| *of == endpoint).map(|(_, reason)| *reason)
    }

    fn assembly_bytes(&self) -> u64 {
        self.backend.totals().assembly_bytes.get()
    }
}

/// So many messages of a few bytes, each with its number, on the wire.
fn numbered(count: u32) -> Vec<u8> {
    (0..count).flat_map(|number| message(&number.to_le_bytes())).collect()
}

/// As many of these as are read at once and a bit: more than 516 KiB.
const CHUNK: u32 = 45_000;
/// Such a message on the wire.
const FRAME: usize = 12;

#[test]
fn pausing_after_every_message_keeps_the_order_and_copies_the_rest_once() {
    let seen: Rc<RefCell<Vec<(u32, usize)>>> = Rc::default();
    let notes = seen.clone();
    let server = Server::new(config(), move |backend, from, _, message| {
        let number = u32::from_le_bytes(message[..].try_into().expect("four bytes"));
        notes.borrow_mut().push((number, message.as_ptr().addr()));
        backend.pause(from).expect("it is there");
    });
    let (mut bare, endpoint) = server.greeted();
    bare.write(&numbered(CHUNK));
    server.until("all arrive, one by one", || {
        server.backend.resume(endpoint).expect("it is there");
        assert!(server.assembly_bytes() <= 516 << 10);
        seen.borrow().len() == CHUNK as usize
    });
    let seen = seen.borrow();
    assert!(seen.iter().map(|(number, _)| *number).eq(0..CHUNK), "in order");
    // What lies behind the message before it was not moved meanwhile. Each read is moved once at most, and the
    // kernel may have given the chunk in pieces.
    let moved = seen.windows(2).filter(|pair| pair[1].1 != pair[0].1 + FRAME).count() as u64;
    let reads = server.backend.totals().reads.get();
    assert!(moved <= 2 * reads, "{moved} moves in {reads} reads");
    server.until("the memory is given back", || server.assembly_bytes() == 0);
}

#[test]
fn what_paused_connections_keep_is_within_the_limit_on_memory() {
    // One write is one read, as long as it is short.
    const SHORT: u32 = 1_000;
    const KEPT: usize = (SHORT as usize - 1) * FRAME;
    let calm: Rc<Cell<u32>> = Rc::default();
    let count = calm.clone();
    let config = NetworkConfig { total_assembly_bytes: 7 * KEPT / 2, ..config() };
    let server = Server::new(config, move |backend, from, _, message| match &message[..] {
        b"calm" => count.set(count.get() + 1),
        _ => backend.pause(from).expect("it is there"),
    });
    let (mut witness, calm_one) = server.greeted();
    let mut peers = Vec::new();
    for kept in 1..=3 {
        let (mut bare, endpoint) = server.greeted();
        bare.write(&numbered(SHORT));
        server.until("it is kept", || server.assembly_bytes() as usize == kept * KEPT);
        peers.push((bare, endpoint));
    }
    let (mut last, ended) = server.greeted();
    let stats = server.backend.stats(ended).expect("it is there");
    last.write(&numbered(SHORT));
    server.until("the limit is reached", || server.closed(ended).is_some());
    assert_eq!(server.closed(ended), Some(ClosedReason::Limit));
    assert_eq!((stats.messages_received.get(), stats.messages_discarded.get()), (1, u64::from(SHORT) - 1));
    assert_eq!(server.assembly_bytes() as usize, 3 * KEPT, "nothing is held of the one that ended");
    witness.write(&message(b"calm"));
    server.until("others go on", || calm.get() == 1);
    // What was kept is lost with its connection, and named.
    let discarded = server.backend.totals().messages_discarded.get();
    server.backend.abort(peers[0].1).expect("it is there");
    server.until("it is closed", || server.closed(peers[0].1).is_some());
    assert_eq!(server.assembly_bytes() as usize, 2 * KEPT);
    assert_eq!(server.backend.totals().messages_discarded.get() - discarded, u64::from(SHORT) - 1);
    assert!([calm_one, peers[1].1, peers[2].1].iter().all(|endpoint| server.closed(*endpoint).is_none()), "they live");
}

#[test]
fn messages_that_were_read_and_not_delivered_at_the_end_are_counted() {
    type End = fn(&dyn NetworkBackend, Endpoint);
    let ends: [(&str, End, u32); 3] = [
        ("aborted in the callback", |backend, from| backend.abort(from).expect("it is there"), 1),
        ("aborted later", |backend, from| backend.pause(from).expect("it is there"), 1),
        ("closed while paused", |backend, from| _ = (backend.pause(from), backend.close(from)), 1),
    ];
    for (name, end, delivered) in ends {
        for cut_off in [false, true] {
            let server = Server::new(config(), move |backend, from, _, _| end(backend, from));
            let (mut bare, endpoint) = server.greeted();
            let stats = server.backend.stats(endpoint).expect("it is there");
            let mut bytes = numbered(100);
            if cut_off {
                bytes.extend(&message(b"never whole")[..10]);
            }
            bare.write(&bytes);
            server.until("one is delivered", || stats.messages_received.get() > 0);
            if name == "aborted later" {
                server.backend.abort(endpoint).expect("it is there");
            }
            bare.reset();
            server.until("it is closed", || server.closed(endpoint).is_some());
            let expected = (u64::from(delivered), u64::from(100 - delivered) + u64::from(cut_off));
            assert_eq!((stats.messages_received.get(), stats.messages_discarded.get()), expected, "{name}, cut off: {cut_off}");
            assert_eq!(server.backend.totals().messages_discarded.get(), expected.1);
            assert_eq!(server.assembly_bytes(), 0);
        }
    }
}

#[test]
fn a_failed_write_at_the_cap_keeps_what_arrived_before() {
    let (held, seen): (Rc<RefCell<Vec<_>>>, Rc<RefCell<Vec<u8>>>) = Default::default();
    let (hold, note) = (held.clone(), seen.clone());
    let config = NetworkConfig { owned_messages: 1, ..config() };
    let server = Server::new(config, move |_, _, _, message| {
        note.borrow_mut().push(message[0]);
        hold.borrow_mut().push(message.into_bytes());
    });
    let (mut bare, endpoint) = server.greeted();
    let stats = server.backend.stats(endpoint).expect("it is there");
    bare.write(&(0..5).flat_map(|number| message(&[number])).collect::<Vec<_>>());
    server.until("the cap is reached", || held.borrow().len() == 1);
    bare.reset();
    let mut key = 0;
    server.until("writing fails", || {
        key += 1;
        let status = server.backend.send_copy(endpoint, b"into the void", b"", key);
        assert_eq!(status, Ok(NetioStatus::Ok), "it is not told before what arrived");
        // Each but the last had a turn to leave.
        key - stats.messages_sent.get() > 2
    });
    assert_eq!(server.closed(endpoint), None);
    for expected in 1..5 {
        assert_eq!(seen.borrow().len(), expected);
        held.borrow_mut().clear();
        server.until("the next one is delivered", || seen.borrow().len() > expected);
    }
    held.borrow_mut().clear();
    server.until("the loss is told", || server.closed(endpoint).is_some());
    assert_eq!((server.closed(endpoint), &seen.borrow()[..]), (Some(ClosedReason::PeerLost), &[0, 1, 2, 3, 4][..]));
    assert_eq!(stats.messages_discarded.get(), 0);
}

/// Its reading is put off at the cap; paused there, nobody reads it any more.
#[test]
fn one_that_cannot_be_written_to_ends_when_it_is_paused_at_the_cap() {
    let held = Rc::new(RefCell::new(Vec::new()));
    let holds = held.clone();
    let config = NetworkConfig { owned_messages: 1, ..config() };
    let server = Server::new(config, move |_, _, _, message| holds.borrow_mut().push(message.into_bytes()));
    let (mut bare, endpoint) = server.greeted();
    bare.write(&message(b"held").repeat(3));
    server.until("it is at the cap", || held.borrow().len() == 1);
    bare.reset();
    assert_eq!(server.backend.send_copy(endpoint, b"never written", b"", 1), Ok(NetioStatus::Ok));
    server.backend.flush(endpoint).expect("it is there");
    server.turns(5);
    assert_eq!(server.closed(endpoint), None, "what came before is delivered first");
    server.backend.pause(endpoint).expect("it is there");
    server.turns(5);
    held.borrow_mut().clear();
    server.until("it ends", || server.closed(endpoint).is_some());
    assert_eq!(server.closed(endpoint), Some(ClosedReason::PeerLost));
}

/// What the peer has said meanwhile lies unread behind messages that were held back, whose handing out reads nothing.
#[test]
fn a_peer_is_not_blamed_for_what_was_not_read_while_messages_were_held_back() {
    for (messages, pauses_again) in [(100, true), (20_000, false)] {
        let got = Rc::new(Cell::new(0));
        let count = got.clone();
        let config = NetworkConfig { missed_heartbeats: 1, ..config() };
        let server = Server::new(config, move |backend, from, _, _| {
            count.set(count.get() + 1);
            if pauses_again || count.get() == 1 {
                backend.pause(from).expect("it is there");
            }
        });
        let mut bare = Bare::connect(server.address);
        let mut hello = hello();
        hello[24..28].copy_from_slice(&2_000_u32.to_le_bytes());
        bare.write(&hello);
        server.until("it is established", || !server.established.borrow().is_empty());
        let endpoint = server.established.borrow()[0];
        bare.write(&message(b"").repeat(messages));
        server.until("the first message pauses it", || got.get() == 1);
        bare.write(&Frame::Heartbeat.head());
        // The program is busy for longer than the peer may be silent, and resumes in the same turn.
        let backend = server.backend.clone();
        server.ev.add_timer(Duration::ZERO, move |ev| {
            thread::sleep(Duration::from_millis(2_200));
            let backend = backend.clone();
            ev.post(move |_| backend.resume(endpoint).expect("it is there"));
        });
        server.until("it is handed more", || got.get() >= if pauses_again { 2 } else { messages });
        server.turns(3);
        assert_eq!(server.closed(endpoint), None, "after {} of {messages} messages", got.get());
    }
}

/// It has said goodbye, all that it sent has arrived, and nothing of this side's was under way: only heartbeats could not be
/// written any more while its messages waited at the cap.
#[test]
fn a_peer_that_said_goodbye_and_went_while_it_was_not_read_has_closed() {
    for first_write_fails_after_the_goodbye in [false, true] {
        let (held, got) = (Rc::new(RefCell::new(Vec::new())), Rc::new(Cell::new(0)));
        let (holds, count) = (held.clone(), got.clone());
        let interval = Duration::from_millis(if first_write_fails_after_the_goodbye { 400 } else { 20 });
        let config = NetworkConfig { owned_messages: 1, heartbeat_interval: interval, ..config() };
        let server = Server::new(config, move |_, _, _, message| {
            count.set(count.get() + 1);
            holds.borrow_mut().push(message.into_bytes());
        });
        let (mut bare, endpoint) = server.greeted();
        bare.write(&[message(b"one"), message(b"two"), Frame::Goodbye.head().to_vec()].concat());
        server.until("it is at the cap", || got.get() == 1);
        bare.read();
        bare.shutdown().expect("it is connected");
        drop(bare);
        // Heartbeats go to nobody.
        server.ev.run_for(Duration::from_millis(600)).expect("the loop can wait");
        assert_eq!(server.closed(endpoint), None);
        held.borrow_mut().clear();
        server.until("the other one comes", || got.get() == 2);
        held.borrow_mut().clear();
        server.until("it ends", || server.closed(endpoint).is_some());
        assert_eq!(server.closed(endpoint), Some(ClosedReason::PeerClosed), "{first_write_fails_after_the_goodbye}");
    }
}

/// What it has taken over is what waits to be sent back, which keeps it at its cap: that is given up once it cannot be written.
#[test]
fn an_echo_at_its_cap_hears_of_the_end_of_its_peer() {
    const LEN: usize = 4 << 20;
    let taken = Rc::new(Cell::new(0));
    let count = taken.clone();
    // So that it hears of the end though it does not read.
    let config = NetworkConfig { owned_messages: 4, heartbeat_interval: Duration::from_millis(100), ..config() };
    let server = Server::new(config, move |backend, from, _, message| {
        // What the queue does not take is dropped.
        _ = backend.send(from, &message.into_bytes(), b"", count.get());
        count.set(count.get() + 1);
    });
    let client = util::node(&server.ev);
    let to = client.backend.connect(&server.address, &ConnectionParameters::default()).expect("it is started");
    server.until("it is established", || client.established() == [to] && server.established.borrow().len() == 1);
    client.backend.pause(to).expect("it is connected");
    let (endpoint, mut key, data) = (server.established.borrow()[0], 0, vec![7; LEN]);
    server.until("it is at its cap, and more has come", || {
        if client.backend.send_copy(to, &data, b"", key) == Ok(NetioStatus::Ok) {
            key += 1;
        }
        server.backend.totals().owned_messages.get() == 4 && key > taken.get() + 1
    });
    client.backend.abort(to).expect("it is connected");
    server.until("it is closed", || server.closed(endpoint).is_some());
    assert_eq!(server.closed(endpoint), Some(ClosedReason::PeerLost));
}

/// Nor does each of them take memory until the end.
#[test]
fn what_cannot_be_written_to_is_sent_no_heartbeats() {
    let held = Rc::new(RefCell::new(Vec::new()));
    let holds = held.clone();
    let config = NetworkConfig { owned_messages: 1, heartbeat_interval: Duration::from_millis(10), ..config() };
    let server = Server::new(config, move |_, _, _, message| holds.borrow_mut().push(message.into_bytes()));
    let (mut bare, endpoint) = server.greeted();
    let stats = server.backend.stats(endpoint).expect("it is there");
    bare.write(&message(b"held").repeat(2));
    server.until("it is at the cap", || held.borrow().len() == 1);
    bare.reset();
    server.ev.run_for(Duration::from_millis(200)).expect("the loop can wait");
    let (sent, writes) = (stats.heartbeats_sent.get(), stats.writes.get());
    server.ev.run_for(Duration::from_millis(400)).expect("the loop can wait");
    assert_eq!((stats.heartbeats_sent.get(), stats.writes.get()), (sent, writes));
    assert_eq!(server.closed(endpoint), None);
}

/// In a loop that nests in another one, too: its descriptor tells of it.
#[test]
fn who_pauses_outside_the_loop_at_the_cap_after_the_end_of_the_peer_is_told() {
    let held: Rc<RefCell<Vec<_>>> = Rc::default();
    let hold = held.clone();
    let config = NetworkConfig { owned_messages: 1, ..config() };
    let server = Server::new(config, move |_, _, _, message| hold.borrow_mut().push(message.into_bytes()));
    let (mut bare, endpoint) = server.greeted();
    let stats = server.backend.stats(endpoint).expect("it is there");
    bare.write(&numbered(5));
    server.until("the cap is reached", || held.borrow().len() == 1);
    bare.reset();
    let mut key = 0;
    server.until("writing fails", || {
        key += 1;
        _ = server.backend.send_copy(endpoint, b"into the void", b"", key).expect("it is there");
        key - stats.messages_sent.get() > 2
    });
    let is_due = || poll(&mut [PollFd::new(&server.ev, PollFlags::IN)], Some(&Timespec::default())).expect("it can be asked") > 0;
    server.ev.process().expect("the loop can look");
    while is_due() {
        server.ev.process().expect("the loop can look");
    }
    assert_eq!(server.closed(endpoint), None, "it is at its cap");
    server.backend.pause(endpoint).expect("it is there");
    while server.closed(endpoint).is_none() && is_due() {
        server.ev.process().expect("the loop can look");
    }
    assert_eq!(server.closed(endpoint), Some(ClosedReason::PeerLost));
}
