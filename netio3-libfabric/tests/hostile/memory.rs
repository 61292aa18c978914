//! Memory: that of a queue, of messages that land, and the user's.

use std::panic::{AssertUnwindSafe, catch_unwind};

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
    hello[16..20].copy_from_slice(&66_048_u32.to_le_bytes());
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

/// All memory for putting messages together has one limit, that in which they land included.
#[test]
fn memory_to_land_in_counts() {
    let Some(_beside) = beside_others() else { return };
    const LEN: usize = 1 << 20;
    const PACKET: usize = 66_048;
    let limit = 16 << 20;
    let server = Server::with(NetworkConfig { total_assembly_bytes: limit, ..config() }, ConnectionParameters::default());
    let held = || server.node.backend.totals().assembly_bytes.get() as usize;
    let mut landed = 0;
    let mut peers = Vec::new();
    for _ in 0..6 {
        let (peer, endpoint) = server.greeted_by(&hello_with(16, &(PACKET as u32).to_le_bytes()));
        let (mut credits, mut seen) = (16, 0);
        let mut send = |packet: &Packet| {
            while credits == 0 {
                server.until(&[&peer], "credits come", || peer.arrived().len() > seen);
                credits += peer.arrived()[seen..].iter().map(|packet| i32::from(packet.credits)).sum::<i32>();
                seen = peer.arrived().len();
            }
            credits -= 1;
            peer.send(packet);
        };
        send(&Packet::first(LEN as u32, &[7; PACKET - 8]));
        let mut sent = PACKET - 8;
        while sent < LEN {
            let len = PACKET.min(LEN - sent);
            send(&Packet::next(&vec![7; len]));
            sent += len;
        }
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
