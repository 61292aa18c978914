//! `send_raw_iov`: the original's contract.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU8, Ordering};

use super::node::Node;
use super::pair::{Pair, Setup, fill_by};
use super::recorder::Kind;
use super::world::{World, config};
use crate::backend::NetworkBackend;
use crate::config::{ConnectionParameters, NetworkConfig};
use crate::endpoint::Endpoint;
use crate::error::SendError;
use crate::memory::RawSlice;
use crate::status::{CompletionKind, NetioStatus};

const LEN: usize = 100_000;

/// Stands for the memory of a device: it lives for ever, and its owner rewrites it between sends.
#[derive(Clone, Copy)]
struct Device(&'static [AtomicU8]);

impl Device {
    fn new() -> Self {
        Self(Vec::leak((0..LEN).map(|_| AtomicU8::new(0)).collect()))
    }

    fn rewrite(self, round: usize) {
        self.0.iter().enumerate().for_each(|(i, byte)| byte.store((i * 7 / 3 + round * 13) as u8, Ordering::SeqCst));
    }

    fn slice(self, range: std::ops::Range<usize>) -> RawSlice {
        RawSlice::new(self.0[range.clone()].as_ptr().cast(), range.len())
    }

    fn read(self, range: std::ops::Range<usize>) -> Vec<u8> {
        self.0[range].iter().map(|byte| byte.load(Ordering::SeqCst)).collect()
    }
}

/// Sends raw slices of memory that is never freed, as the cases' own devices.
fn send(backend: &dyn NetworkBackend, to: Endpoint, data: &[RawSlice], header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
    // SAFETY: the slices come from `Device`, which is never freed, and is rewritten only when no key is out.
    unsafe { backend.send_raw_iov(to, data, header, key) }
}

/// Raw memory is sent from, and may be rewritten as soon as the key came back.
pub(super) fn raw_memory_is_sent_and_rewritten(world: &World) {
    let pair = Pair::new(world);
    let device = Device::new();
    for round in 0..20 {
        device.rewrite(round);
        let cuts = [0..LEN / 2, 5..5, 10..20, LEN / 2..LEN];
        let pieces = cuts.clone().map(|cut| device.slice(cut));
        assert_eq!(send(&*pair.dialer.backend(), pair.out, &pieces, b"head", 77), Ok(NetioStatus::Ok));
        let bytes = [b"head".to_vec(), cuts.map(|cut| device.read(cut)).concat()].concat();
        pair.dialer.accepted(pair.out, 77, CompletionKind::ZeroCopy, &bytes);
        world.until("the key comes back", || pair.dialer.completed(pair.out) == round + 1);
    }
    pair.deliver(world);
}

/// A raw send has the statuses and errors of every other send.
pub(super) fn raw_sends_are_refused_like_others(world: &World) {
    let setup = Setup {
        dial: ConnectionParameters { queue_messages: 1, ..Default::default() },
        dialer: NetworkConfig { strict_regions: true, ..config() },
        listener: NetworkConfig { max_message_len: 1_000, ..config() },
        ..Default::default()
    };
    let pair = Pair::with(world, setup);
    let device = Device::new();
    let backend = pair.dialer.backend();
    assert_eq!(send(&*backend, pair.out, &[device.slice(0..1_000)], b"h", 1), Ok(NetioStatus::TooBig));
    assert_eq!(send(&*backend, pair.out, &[], &[1; 900], 1), Ok(NetioStatus::TooBig));
    assert_eq!(send(&*backend, pair.out, &[device.slice(0..10)], b"h", 1), Ok(NetioStatus::NotRegistered));
    assert_eq!(send(&*backend, pair.out, &[device.slice(3..3)], b"head", 5), Ok(NetioStatus::Ok), "empty pieces lie nowhere");
    pair.dialer.accepted(pair.out, 5, CompletionKind::ZeroCopy, b"head");
    assert_eq!(send(&*backend, pair.out, &[], b"head", 6), Ok(NetioStatus::NoResources));
    pair.dialer.refused(pair.out);
    world.until("writable", || pair.dialer.writables(pair.out) == 1);
    pair.dialer.close(pair.out);
    assert_eq!(send(&*backend, pair.out, &[], b"head", 7), Ok(NetioStatus::NotConnected));
    drop(backend);
    pair.until_closed(world);
    assert_eq!(send(&*pair.dialer.backend(), pair.out, &[], b"", 8), Err(SendError::UnknownSendEndpoint(pair.out.into())));
}

/// Raw sends that never completed come back in the pending list.
pub(super) fn raw_sends_are_pending_at_the_end(world: &World) {
    let pair = Pair::with(world, Setup::tight());
    let device = Device::new();
    device.rewrite(1);
    pair.listener.backend().pause(pair.back).expect("it is there");
    fill_by(world, &pair.dialer, pair.out, || {
        let status = send(&*pair.dialer.backend(), pair.out, &[device.slice(0..20_000)], b"", 3).expect("it is there");
        match status {
            NetioStatus::Ok => {
                pair.dialer.accepted(pair.out, 3, CompletionKind::ZeroCopy, &device.read(0..20_000));
            }
            _ => pair.dialer.refused(pair.out),
        }
        status
    });
    pair.dialer.abort(pair.out);
    world.until("closed", || pair.dialer.closing(pair.out).is_some());
    let tally = pair.dialer.tally(pair.out);
    assert!(tally.pending() > 0 && tally.pending() + tally.completed == tally.accepted);
    device.rewrite(2);
    world.watch();
}

/// Raw sends are allowed inside every callback.
pub(super) fn raw_sends_are_allowed_inside_callbacks(world: &World) {
    let pair = Pair::new(world);
    [&pair.dialer, &pair.listener].into_iter().for_each(Node::counts_itself);
    let device = Device::new();
    device.rewrite(3);
    let sent = std::rc::Rc::new(std::cell::Cell::new(0));
    for kind in [Kind::Data, Kind::Completed] {
        let count = sent.clone();
        pair.dialer.once(kind, move |call| {
            assert_eq!(send(call.backend, call.endpoint, &[device.slice(9..99)], b"", 3), Ok(NetioStatus::Ok));
            count.set(count.get() + 1);
        });
    }
    for (sender, to) in [(&pair.dialer, pair.out), (&pair.listener, pair.back)] {
        assert_eq!(sender.backend().send_copy(to, b"go", b"", 1), Ok(NetioStatus::Ok));
    }
    world.until("both callbacks ran and their messages arrive", || sent.get() == 2 && pair.listener.received(pair.back) == 3);
    pair.dialer.once(Kind::Closed, move |call| {
        assert_eq!(send(call.backend, call.endpoint, &[], b"", 4), Err(SendError::UnknownSendEndpoint(call.endpoint.into())));
    });
    pair.dialer.close(pair.out);
    pair.until_closed(world);
}
