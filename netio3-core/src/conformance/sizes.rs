//! Sizes: from nothing to the maximum, in any number of pieces.

use bytes::Bytes;

use super::pair::{Pair, Setup};
use super::pattern::Random;
use super::plan::Plan;
use super::world::{World, config};
use crate::config::{ConnectionParameters, NetworkConfig};
use crate::status::NetioStatus;

/// Messages of no byte, of one byte and of a header alone are messages like any other.
pub(super) fn empty_and_tiny_messages_are_messages(world: &World) {
    let pair = Pair::new(world);
    for _ in 0..3 {
        for plan in [Plan::copy(0), Plan::zero_copy(0), Plan::copy(1), Plan::zero_copy(1), Plan::zero_copy(5).header(5)] {
            pair.dialer.sent(pair.out, plan);
            pair.dialer.sent(pair.out, plan.pieces(4));
            pair.listener.sent(pair.back, plan);
        }
    }
    pair.deliver(world);
}

/// Sizes around every power of two that an implementation may care about arrive whole, by either family.
pub(super) fn sizes_around_internal_limits_arrive_whole(world: &World) {
    let pair = Pair::with(world, Setup::both(ConnectionParameters { queue_bytes: 64 << 20, ..Default::default() }));
    let around = |middle: usize, by: usize| middle.saturating_sub(by)..=middle + by;
    let sizes = [8, 16, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384, 32_768].into_iter().flat_map(|middle| around(middle, 2));
    let sizes = sizes.chain(around(65_532, 6)).chain(around(131_072, 9)).chain(around(262_140, 6)).chain(around(1 << 20, 1));
    for len in sizes {
        for plan in [Plan::zero_copy(len), Plan::copy(len), Plan::zero_copy(len).header(5).pieces(3)] {
            while pair.dialer.send(pair.out, plan) != NetioStatus::Ok {
                let before = pair.dialer.writables(pair.out);
                world.until("writable", || pair.dialer.writables(pair.out) > before);
            }
        }
    }
    pair.deliver(world);
}

/// A message may come in 1, 29, 64 or 1,100 pieces, empty ones among them.
pub(super) fn a_message_may_have_any_number_of_pieces(world: &World) {
    let pair = Pair::new(world);
    for pieces in [1, 2, 29, 64, 1_100] {
        for len in [pieces / 2, pieces * 3, 5_000, 300_000] {
            for plan in [Plan::zero_copy(len), Plan::copy(len)] {
                pair.dialer.sent(pair.out, plan.pieces(pieces));
                pair.listener.sent(pair.back, plan.pieces(pieces).header(len.min(20)));
            }
            pair.deliver(world);
        }
    }
}

/// 64 MiB, the default maximum, arrives whole; one byte more is `TooBig`.
pub(super) fn the_default_maximum_is_64_mib(world: &World) {
    const MAX: usize = 64 << 20;
    let pair = Pair::new(world);
    for plan in [Plan::zero_copy(MAX), Plan::copy(MAX).header(256)] {
        pair.dialer.sent(pair.out, plan);
        pair.deliver(world);
    }
    let (backend, bytes) = (pair.dialer.backend(), Bytes::from(vec![0; MAX + 1]));
    assert_eq!(backend.send(pair.out, &bytes, b"", 1), Ok(NetioStatus::TooBig));
    assert_eq!(backend.send(pair.out, &bytes.slice(1..), b"h", 1), Ok(NetioStatus::TooBig));
    assert_eq!(backend.send_iov(pair.out, &[bytes.slice(9..), bytes.slice(..10)], b"", 1), Ok(NetioStatus::TooBig));
    assert_eq!(backend.send_copy(pair.out, &bytes, b"", 1), Ok(NetioStatus::TooBig));
    drop(backend);
    pair.prove_alive(world);
}

/// Random sizes and families in both directions at once arrive in order and whole.
pub(super) fn a_mixed_stream_arrives_in_order(world: &World) {
    let pair = Pair::with(world, Setup::buffers(2_000, 32));
    let mut random = Random::new(1);
    let mut left = [1_500, 1_500];
    while left != [0, 0] {
        let way = if left[0] == 0 { 1 } else { random.below(2).min(if left[1] == 0 { 0 } else { 1 }) };
        let (sender, to, ..) = pair.directions()[way];
        let len = match random.below(10) {
            0 => random.below(300_000),
            1..4 => random.below(20_000),
            _ => random.below(300),
        };
        let plan = match random.below(3) {
            0 => Plan::copy(len).header(random.below(len.min(200) + 1)),
            1 if len <= 2_000 => Plan::buffer(len),
            _ => Plan::zero_copy(len).pieces(1 + random.below(5)),
        };
        match sender.send(to, plan) {
            NetioStatus::Ok => left[way] -= 1,
            _ => world.turn(),
        }
        if random.below(50) == 0 {
            world.turn();
        }
    }
    pair.deliver(world);
}

/// A message over the smaller of both sides' maxima is `TooBig`, on both sides; at the maximum it arrives.
pub(super) fn too_big_is_by_the_smaller_maximum(world: &World) {
    let setup = Setup { listener: NetworkConfig { max_message_len: 10_000, ..config() }, ..Default::default() };
    let pair = Pair::with(world, setup);
    for (sender, to, ..) in pair.directions() {
        for plan in [Plan::zero_copy(10_001), Plan::copy(10_001).header(100), Plan::zero_copy(10_001).pieces(4).header(1)] {
            assert_eq!(sender.send(to, plan), NetioStatus::TooBig, "{plan:?}");
        }
        sender.sent(to, Plan::zero_copy(10_000));
        sender.sent(to, Plan::copy(10_000).header(200));
    }
    pair.deliver(world);
    assert_eq!(pair.dialer.writables(pair.out), 0, "too big is not a refusal for want of resources");
}

/// Headers go up to their limit, 256 bytes or what was asked for; beyond it they are `TooBig`.
pub(super) fn headers_go_up_to_their_limit(world: &World) {
    let setup = Setup { dial: ConnectionParameters { max_header_len: 5_000, ..Default::default() }, ..Default::default() };
    let pair = Pair::with(world, setup);
    for (sender, to, ..) in pair.directions() {
        let limit = sender.backend().limits(to).expect("it is there").max_header_len;
        assert!(limit >= 256);
        for header in [1, 255, 256, limit] {
            for plan in [Plan::copy(header), Plan::copy(header + 9), Plan::zero_copy(header + 9_000), Plan::zero_copy(header)] {
                sender.sent(to, plan.header(header));
            }
        }
        for plan in [Plan::copy(limit + 1), Plan::zero_copy(limit + 500)] {
            assert_eq!(sender.send(to, plan.header(limit + 1)), NetioStatus::TooBig);
        }
    }
    assert!(pair.dialer.backend().limits(pair.out).expect("it is there").max_header_len >= 5_000);
    pair.deliver(world);
}
