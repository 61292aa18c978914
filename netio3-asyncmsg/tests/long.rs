//! Long messages: much of one is awaited before it is read, and nobody waits for what may not come.

mod util;

use std::time::{Duration, Instant};

use netio3_asyncmsg::Frame;
use netio3_core::{ClosedReason, ConnectionParameters, EventLoop};
use util::{Bare, Server, config, hello, message};

const LEN: usize = 4 << 20;

/// Writes everything, with a turn of the loop after each piece.
fn write_in_pieces(server: &Server, bare: &mut Bare, mut bytes: &[u8], piece: usize) {
    while !bytes.is_empty() {
        let n = bare.socket_write(&bytes[..piece.min(bytes.len())]);
        bytes = &bytes[n..];
        server.ev.run_once(Some(Duration::ZERO)).expect("the loop can wait");
    }
}

#[test]
fn a_long_message_is_read_in_long_stretches() {
    // With a buffer of the kernel's that the user has made small, less is awaited.
    for (receive_buffer, most) in [(None, 20), (Some(64 << 10), 200)] {
        let server = Server::with(config(), ConnectionParameters { receive_buffer, ..Default::default() });
        let (mut bare, endpoint) = server.greeted();
        let long = vec![7; LEN];
        // The first one makes the memory grow.
        write_in_pieces(&server, &mut bare, &message(&long), 8 << 10);
        server.until("it arrives", || server.node.received(endpoint).len() == 1);
        let reads = server.node.backend.totals().reads.get();
        write_in_pieces(&server, &mut bare, &message(&long), 8 << 10);
        server.until("so does the second one", || server.node.received(endpoint).len() == 2);
        let reads = server.node.backend.totals().reads.get() - reads;
        assert!(reads <= most, "{reads} reads of {} pieces, with {receive_buffer:?}", LEN / (8 << 10));
        // A short one is told of as before.
        bare.write(&message(b"short"));
        server.until("the short one arrives", || server.node.received(endpoint).len() == 3);
        assert!(server.node.received(endpoint)[..2].iter().all(|received| *received == long));
        drop(bare);
        server.until_closed(endpoint);
        server.check();
    }
}

#[test]
fn who_writes_a_long_message_slowly_is_alive() {
    const INTERVAL: Duration = Duration::from_millis(20);
    let server = Server::new();
    let mut bare = Bare::connect(server.address);
    let mut hello = hello();
    hello[24..28].copy_from_slice(&(INTERVAL.as_millis() as u32).to_le_bytes());
    bare.write(&[&hello[..], &Frame::Data(LEN).head()].concat());
    server.until("it is established", || server.node.established().len() == 2);
    let endpoint = server.node.established()[1];
    // Far beyond the intervals after which a silent one is dead.
    let end = Instant::now() + 30 * INTERVAL;
    while Instant::now() < end {
        bare.write(&[7; 100]);
        server.ev.run_for(INTERVAL / 4).expect("the loop can wait");
    }
    assert_eq!(server.node.closed(endpoint), None);
    // And silent it is dead.
    assert_eq!(server.until_closed(endpoint), (0, ClosedReason::HeartbeatTimeout));
    server.check();
}

#[test]
fn the_end_of_a_stream_is_told_although_more_is_awaited() {
    let server = Server::new();
    let (mut bare, endpoint) = server.greeted();
    write_in_pieces(&server, &mut bare, &message(&vec![7; LEN])[..300 << 10], 8 << 10);
    drop(bare);
    assert_eq!(server.until_closed(endpoint), (0, ClosedReason::PeerLost));
    assert_eq!(server.node.backend.totals().messages_discarded.get(), 1);
    server.check();
}

/// A connection that is paused within a long message, and goes on, comes to the end of it, and so does one that is closed.
#[test]
fn a_long_message_is_read_to_its_end_whatever_is_done_meanwhile() {
    let server = Server::new();
    let (mut bare, endpoint) = server.greeted();
    let long = message(&vec![7; LEN]);
    write_in_pieces(&server, &mut bare, &long[..1 << 20], 8 << 10);
    server.node.backend.pause(endpoint).expect("it is there");
    server.ev.run_once(Some(Duration::ZERO)).expect("the loop can wait");
    server.node.backend.resume(endpoint).expect("it is there");
    write_in_pieces(&server, &mut bare, &long[1 << 20..], 8 << 10);
    server.until("it arrives", || server.node.received(endpoint).len() == 1);
    write_in_pieces(&server, &mut bare, &long[..1 << 20], 8 << 10);
    server.node.backend.close(endpoint).expect("it is there");
    write_in_pieces(&server, &mut bare, &long[1 << 20..], 8 << 10);
    bare.write(&Frame::Goodbye.head());
    assert_eq!(server.until_closed(endpoint), (0, ClosedReason::Local));
    server.check();
}
