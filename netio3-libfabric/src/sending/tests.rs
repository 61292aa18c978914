//! What goes in on one side comes out on the other, however it is cut.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::io::IoSlice;
use std::sync::Arc;

use bytes::Bytes;
use netio3_core::MemoryRegion;
use netio3_core::engine::{Outgoing, Payload, UserMemory};
use proptest::prelude::*;

use super::*;
use crate::receiving::{Broken, Found, Receiving};
use crate::slab::Layout;
use crate::wire::Head;

/// A message to be sent: header, pieces, and how.
#[derive(Clone, Debug)]
struct Plan {
    header: usize,
    pieces: Vec<usize>,
    how: How,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Copied,
    Shared,
    Buffer,
}

impl Plan {
    fn bytes(&self, number: usize, len: usize, salt: usize) -> Vec<u8> {
        (0..len).map(|index| (index * 7 + number * 31 + salt) as u8).collect()
    }

    fn header(&self, number: usize) -> Vec<u8> {
        self.bytes(number, if matches!(self.how, How::Buffer) { 0 } else { self.header }, 1)
    }

    fn pieces(&self, number: usize) -> Vec<Vec<u8>> {
        self.pieces.iter().enumerate().map(|(index, len)| self.bytes(number, *len, index + 2)).collect()
    }

    fn whole(&self, number: usize) -> Vec<u8> {
        [self.header(number), self.pieces(number).concat()].concat()
    }
}

/// A side that sends, and what the wire carried.
struct Side {
    slab: Slab,
    sending: Sending,
    packets: Vec<Vec<u8>>,
    iov_limit: usize,
    /// Whether the device wants to know memory, of which it then knows every other piece.
    picky: bool,
}

impl Side {
    fn new(packet_len: usize, iov_limit: usize, picky: bool) -> Self {
        let slab = Slab::unregistered(Layout { packet_len, receives: 0, sends: 2, heads: 4 });
        let slots = slab.cut();
        let sending = Sending::new(slots.sends, slots.heads, packet_len);
        Self { slab, sending, packets: Vec::new(), iov_limit, picky }
    }

    fn send(&mut self, plan: &Plan, number: usize, copy_below: usize) {
        let (header, pieces) = (plan.header(number), plan.pieces(number));
        let len = header.len() + pieces.iter().map(Vec::len).sum::<usize>();
        match plan.how {
            How::Copied => {
                let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
                if self.sending.fits(len) {
                    self.sending.push(Outgoing { header: &header, payload: Payload::Copied(&slices), len }, copy_below, &self.slab);
                    return;
                }
                let mut long = Long::new(&header, &slices, len);
                while !long.is_done() {
                    self.sending.push_part(&mut long, &self.slab);
                }
            }
            How::Shared => {
                let shared: Vec<Bytes> = pieces.into_iter().map(Bytes::from).collect();
                self.sending.push(Outgoing { header: &header, payload: Payload::Shared(&shared), len }, copy_below, &self.slab);
            }
            How::Buffer => {
                let region = MemoryRegion::new(len.max(1)).unwrap();
                let mut buffer = region.cut(len.max(1)).unwrap().take().unwrap();
                pieces.iter().for_each(|piece| buffer.extend_from_slice(piece).unwrap());
                let message = Outgoing { header: &[], payload: Payload::Buffer(&Cell::new(Some(buffer))), len };
                self.sending.push(message, copy_below, &self.slab);
            }
        }
    }

    /// Posts what can be posted; gives how many packets.
    fn post(&mut self, at_most: usize) -> usize {
        let find = |bytes: &[u8]| (bytes.as_ptr().addr() / 16).is_multiple_of(2).then_some((Desc::NONE, None));
        let abilities = Abilities { iov_limit: self.iov_limit, find: if self.picky { Some(&find) } else { None } };
        for count in 0..at_most {
            let Some(built) = self.sending.build(&self.slab, &abilities) else { return count };
            built.write_head(&self.slab, 3, 1);
            assert!(built.pieces().len() <= self.iov_limit);
            // SAFETY: the pieces are memory that the packet holds.
            let piece = |(start, len, _): &(usize, usize, Desc)| unsafe { std::slice::from_raw_parts(*start as *const u8, *len) };
            let packet: Vec<u8> = built.pieces().iter().flat_map(|it| piece(it).iter().copied()).collect();
            assert_eq!(packet.len(), built.len);
            self.packets.push(packet);
            self.sending.posted();
        }
        at_most
    }
}

/// What a side makes of packets; in memory where long messages land, if it has that.
fn receive(packets: &[Vec<u8>], packet_len: usize, area: u16) -> Vec<Vec<u8>> {
    let slab = Arc::new(Slab::unregistered(Layout { packet_len, receives: 3, sends: 0, heads: 0 }));
    let mut receiving = Receiving::new(slab.cut().receives, 1);
    if area > 0 {
        receiving.add_area(Arc::new(Slab::unregistered(Layout { packet_len, receives: area, sends: 0, heads: 0 })), 2 * packet_len);
    }
    let mut messages = Vec::new();
    for packet in packets {
        assert!(packet.len() <= packet_len);
        let slot = arrive(&mut receiving, packet, &slab);
        // That the one before was handled.
        receiving.take_owed();
        let head = receiving.arrived(slot, packet.len(), &slab).expect("a good head");
        assert!(matches!((head.credits, head.control), (3, 1) | (0, 0)));
        let mut packet = receiving.take_packet().expect("data");
        let slot = packet.slot.as_ref().expect("not kept yet");
        let memory = receiving.memory_of(slot, &slab).clone();
        let bytes = memory.filled(slot, packet.cursor.len);
        let mut assembly = std::mem::take(&mut receiving.assembly);
        loop {
            let complete = match packet.cursor.next(bytes, usize::MAX).expect("a good packet") {
                Found::Message(message) => {
                    assert!(!assembly.is_under_way());
                    messages.push(message.to_vec());
                    false
                }
                Found::First(len, part) => {
                    let place = packet.slot.as_ref().and_then(|slot| receiving.landing(slot, len)).cloned();
                    assembly.begin(len, part, &mut packet.slot, place.as_ref()).expect("none is under way")
                }
                Found::Part(part) => assembly.go_on(part, &mut packet.slot).expect("one is under way"),
                Found::End => break,
                Found::Goodbye | Found::Farewell => panic!("nobody said that"),
            };
            if complete {
                let message = assembly.landed().map(<[u8]>::to_vec);
                messages.push(message.unwrap_or_else(|| assembly.memory().clone()));
                assembly.end();
            }
        }
        receiving.assembly = assembly;
        receiving.handled(packet);
    }
    assert!(!receiving.assembly.is_under_way());
    messages
}

/// Puts a packet where the device would; gives the index.
fn arrive(receiving: &mut Receiving, packet: &[u8], slab: &Arc<Slab>) -> u16 {
    let mut slot = receiving.next_free().expect("all are handled");
    receiving.memory_of(&slot, slab).room(&mut slot)[..packet.len()].copy_from_slice(packet);
    let index = slot.index();
    receiving.posted(slot);
    index
}

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let piece = prop_oneof![Just(0_usize), 1..40_usize, 200..400_usize, 900..5_000_usize];
    let how = prop_oneof![Just(How::Copied), Just(How::Shared), Just(How::Buffer)];
    let header = prop_oneof![Just(0_usize), 1..20_usize, 300..2_000_usize];
    let plan = (header, proptest::collection::vec(piece, 0..12), how).prop_map(|(header, pieces, how)| Plan { header, pieces, how });
    proptest::collection::vec(plan, 1..40)
}

proptest! {
    #[test]
    fn what_is_sent_arrives_however_it_is_cut(
        plans in plans(),
        packet_len in 600..2_000_usize,
        iov_limit in 2..6_usize,
        picky: bool,
        copy_below in prop_oneof![Just(0_usize), Just(300), Just(100_000)],
        rhythm in proptest::collection::vec(0..4_usize, 1..20),
        area in prop_oneof![Just(0_u16), 4..60_u16],
    ) {
        let mut side = Side::new(packet_len, iov_limit, picky);
        let mut retired: Vec<UserMemory> = Vec::new();
        let mut left = 0;
        let mut first_tag = 0_u16;
        let mut rhythm = rhythm.into_iter().cycle();
        for (number, plan) in plans.iter().enumerate() {
            side.send(plan, number, copy_below);
            let posted = side.post(rhythm.next().unwrap());
            if side.sending.in_flight() > 3 {
                // The first two leave.
                left += side.sending.left(first_tag.wrapping_add(1));
                first_tag = first_tag.wrapping_add(2);
            }
            let _ = posted;
        }
        for _ in 0..10_000 {
            side.post(2);
            left += side.sending.all_left();
            if side.sending.is_empty() {
                break;
            }
        }
        prop_assert!(side.sending.is_empty() && side.sending.waiting() == 0);
        prop_assert_eq!(left, plans.len());
        side.sending.retire(&mut retired);
        let held = plans.iter().filter(|plan| matches!(plan.how, How::Buffer)).count();
        prop_assert_eq!(retired.iter().filter(|it| matches!(it, UserMemory::Buffer(_))).count(), held);
        let arrived = receive(&side.packets, packet_len, area);
        let sent: Vec<Vec<u8>> = plans.iter().enumerate().map(|(number, plan)| plan.whole(number)).collect();
        prop_assert_eq!(arrived, sent);
    }

    #[test]
    fn strange_packets_are_refused_and_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0xC0..0xC9_u8) {
        let slab = Arc::new(Slab::unregistered(Layout { packet_len: 600, receives: 3, sends: 0, heads: 0 }));
        let mut receiving = Receiving::new(slab.cut().receives, 1);
        let packet: Vec<u8> = bytes.iter().enumerate().map(|(at, byte)| if at == 0 { kind } else { *byte }).collect();
        let index = arrive(&mut receiving, &packet, &slab);
        if receiving.arrived(index, packet.len(), &slab).is_ok()
            && let Some(mut packet) = receiving.take_packet()
        {
            let slot = packet.slot.take().expect("not kept yet");
            let bytes = slab.filled(&slot, packet.cursor.len);
            for _ in 0..300 {
                match packet.cursor.next(bytes, 100) {
                    Ok(Found::End) | Err(_) => break,
                    Ok(Found::Message(message)) => prop_assert!(message.len() <= 100),
                    Ok(_) => {}
                }
            }
        }
    }
}

/// Sends packets to a fresh side with one data credit; gives what it says to each.
fn answers(packets: &[Vec<u8>]) -> Vec<Result<Head, Broken>> {
    let slab = Arc::new(Slab::unregistered(Layout { packet_len: 600, receives: 8, sends: 0, heads: 0 }));
    let mut receiving = Receiving::new(slab.cut().receives, 1);
    let arrive = |packet: &Vec<u8>| {
        let index = arrive(&mut receiving, packet, &slab);
        receiving.arrived(index, packet.len(), &slab)
    };
    packets.iter().map(arrive).collect()
}

#[test]
fn who_exceeds_his_credits_is_found_out() {
    let packet = |kind| Head { kind, credits: 0, control: 0 }.encode().to_vec();
    let data = answers(&[packet(Kind::Messages), packet(Kind::Messages)]);
    assert_eq!((data[0].is_ok(), data[1]), (true, Err(Broken::Credits)));
    let beats = answers(&[packet(Kind::Heartbeat), packet(Kind::Heartbeat), packet(Kind::Heartbeat)]);
    assert_eq!((beats[1].is_ok(), beats[2]), (true, Err(Broken::Credits)));
    assert_eq!(answers(&[b"GET / HTTP".to_vec()]), [Err(Broken::Head)]);
    assert_eq!(answers(&[vec![0xC1]]), [Err(Broken::Head)]);
}

#[test]
fn long_messages_are_put_together_where_they_land() {
    let packet_len = 1_000;
    let slab = Arc::new(Slab::unregistered(Layout { packet_len, receives: 4, sends: 0, heads: 0 }));
    let mut receiving = Receiving::new(slab.cut().receives, 2);
    assert_eq!(receiving.wants_area(2_500, packet_len), Some(9), "three times three parts");
    receiving.add_area(Arc::new(Slab::unregistered(Layout { packet_len, receives: 9, sends: 0, heads: 0 })), 2_500);
    assert_eq!(receiving.wants_area(2_500, packet_len), None);
    assert_eq!(receiving.wants_area(9_000, packet_len), Some(20), "twice as much at least");
    let mut in_place = |interrupted: bool| {
        let mut lens = vec![1_000, 1_000, 508];
        if interrupted {
            lens.insert(1, HEAD_LEN);
        }
        let mut landed = false;
        for len in lens {
            let mut packet = vec![7; len];
            if !receiving.assembly.is_under_way() {
                packet[..HEAD_LEN].copy_from_slice(&Head { kind: Kind::First(2_500), credits: 0, control: 0 }.encode());
            } else if len == HEAD_LEN {
                packet = Head { kind: Kind::Heartbeat, credits: 0, control: 0 }.encode().to_vec();
            }
            let index = arrive(&mut receiving, &packet, &slab);
            receiving.arrived(index, len, &slab).expect("a good packet");
            receiving.take_owed();
            let Some(mut packet) = receiving.take_packet() else { continue };
            let slot = packet.slot.as_ref().expect("not kept yet");
            let memory = receiving.memory_of(slot, &slab).clone();
            let bytes = memory.filled(slot, len);
            let mut assembly = std::mem::take(&mut receiving.assembly);
            let complete = match packet.cursor.next(bytes, 10_000) {
                Ok(Found::First(len, part)) => {
                    let place = packet.slot.as_ref().and_then(|slot| receiving.landing(slot, len)).cloned();
                    assembly.begin(len, part, &mut packet.slot, place.as_ref())
                }
                Ok(Found::Part(part)) => assembly.go_on(part, &mut packet.slot),
                _ => panic!("neither a beginning nor a part"),
            };
            if complete == Ok(true) {
                landed = assembly.landed().is_some();
                let copied = assembly.memory().clone();
                assert_eq!(assembly.landed().unwrap_or(&copied), [7; 2_500]);
                assembly.end();
            }
            receiving.assembly = assembly;
            receiving.handled(packet);
            receiving.take_owed();
        }
        landed
    };
    assert_eq!([false; 7].map(&mut in_place), [true; 7]);
    assert!(!in_place(true), "what came between took its place");
    // Out of step with the area's end until another one comes between.
    assert!([false; 9].map(&mut in_place).iter().filter(|landed| **landed).count() >= 5);
}

#[test]
fn a_credit_is_owed_when_its_receive_is_posted() {
    let slab = Arc::new(Slab::unregistered(Layout { packet_len: 600, receives: 6, sends: 0, heads: 0 }));
    let mut receiving = Receiving::new(slab.cut().receives, 2);
    for (kind, owed) in [(Kind::Messages, (1, 0)), (Kind::Goodbye, (0, 1))] {
        let index = arrive(&mut receiving, &Head { kind, credits: 0, control: 0 }.encode(), &slab);
        receiving.arrived(index, HEAD_LEN, &slab).expect("a good packet");
        let packet = receiving.take_packet().expect("it waits");
        receiving.handled(packet);
        assert_eq!(receiving.take_owed(), (0, 0), "{kind:?}");
        let slot = receiving.next_free().expect("it is free");
        receiving.posted(slot);
        assert_eq!(receiving.take_owed(), owed, "{kind:?}");
    }
}

#[test]
fn receives_go_on_behind_packets_that_wait() {
    let packet_len = 600;
    let slab = Arc::new(Slab::unregistered(Layout { packet_len, receives: 6, sends: 0, heads: 0 }));
    let mut receiving = Receiving::new(slab.cut().receives, 2);
    receiving.add_area(Arc::new(Slab::unregistered(Layout { packet_len, receives: 9, sends: 0, heads: 0 })), 1_500);
    let beat = Head { kind: Kind::Heartbeat, credits: 0, control: 0 }.encode();
    // One message waits, as behind a pause, and a long one is under way.
    let index = arrive(&mut receiving, &Head { kind: Kind::Messages, credits: 0, control: 0 }.encode(), &slab);
    receiving.arrived(index, HEAD_LEN, &slab).expect("a good packet");
    let mut first = vec![7; packet_len];
    first[..HEAD_LEN].copy_from_slice(&Head { kind: Kind::First(1_500), credits: 0, control: 0 }.encode());
    let index = arrive(&mut receiving, &first, &slab);
    receiving.arrived(index, packet_len, &slab).expect("a good packet");
    for _ in 0..50 {
        let index = arrive(&mut receiving, &beat, &slab);
        receiving.arrived(index, HEAD_LEN, &slab).expect("a good packet");
        receiving.take_owed();
    }
    let posted = std::iter::from_fn(|| receiving.next_free()).count();
    assert_eq!(posted, 4, "all but the two that wait");
}

/// What a packet was posted from stays registered until it has left, and so does what the next packet was built from.
#[test]
fn registrations_are_held_until_their_packets_have_left() {
    let mut side = Side::new(4_096, 4, true);
    let (registration, other): (Held, Held) = (Arc::new(1), Arc::new(2));
    let count = Arc::strong_count;
    let post = |side: &mut Side, registration: &Held, len: usize| {
        let message = Bytes::from(vec![7; len]);
        side.sending.push(Outgoing { header: &[], payload: Payload::Shared(&[message]), len }, 0, &side.slab);
        let find = |_: &[u8]| Some((Desc::NONE, Some(registration.clone())));
        while side.sending.build(&side.slab, &Abilities { iov_limit: 4, find: Some(&find) }).is_some() {
            assert!(count(registration) >= 2, "what is built holds it");
            side.sending.posted();
        }
    };
    post(&mut side, &registration, 9_000);
    let tags = side.sending.next_tag();
    assert!(tags > 1, "it takes several packets");
    post(&mut side, &other, 1_000);
    assert_eq!((count(&registration), count(&other)), (2, 2));
    side.sending.left(tags - 2);
    assert_eq!((count(&registration), count(&other)), (2, 2), "its last packet is on its way");
    side.sending.left(tags - 1);
    assert_eq!((count(&registration), count(&other)), (1, 2));
    side.sending.abandon();
    assert_eq!(count(&other), 1);
}

/// Another thread may take a region off the list between two looks at it (`deregister` of a synchronized backend).
#[test]
fn memory_that_is_forgotten_while_a_packet_is_built_is_sent_whole() {
    for (len, forgotten) in [(3_000_usize, 1), (3_000, 2), (9_000, 1), (9_000, 2), (9_000, 3)] {
        let mut side = Side::new(4_096, 4, true);
        let plan = Plan { header: 10, pieces: vec![len], how: How::Shared };
        side.send(&plan, 0, 0);
        let looks = Cell::new(0);
        let find = |_: &[u8]| {
            looks.set(looks.get() + 1);
            (looks.get() <= forgotten).then_some((Desc::NONE, None))
        };
        let abilities = Abilities { iov_limit: 4, find: Some(&find) };
        while let Some(built) = side.sending.build(&side.slab, &abilities) {
            built.write_head(&side.slab, 3, 1);
            // SAFETY: the pieces are memory that the packet holds.
            let piece = |(start, len, _): &(usize, usize, Desc)| unsafe { std::slice::from_raw_parts(*start as *const u8, *len) };
            side.packets.push(built.pieces().iter().flat_map(|it| piece(it).iter().copied()).collect());
            let tag = side.sending.next_tag();
            side.sending.posted();
            side.sending.left(tag);
            assert!(side.packets.len() < 100, "{len} {forgotten}");
        }
        let lens: Vec<usize> = side.packets.iter().map(Vec::len).collect();
        let got = std::panic::catch_unwind(|| receive(&side.packets, 4_096, 0)).ok();
        assert_eq!(got, Some(vec![plan.whole(0)]), "{len} {forgotten}: packets of {lens:?}");
    }
}
