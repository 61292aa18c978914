//! What arrived on a connection and is not handled yet, and the credits that the peer holds.

use std::collections::VecDeque;

use crate::slab::{Slab, Slot};
use crate::wire::{CONTROL_RECEIVES, HEAD_LEN, Head, Kind, LEN_LEN};

/// The receiving side of one connection.
pub(crate) struct Receiving {
    /// The posted slots, by their index.
    posted: Vec<Option<Slot>>,
    /// Packets to be handled, in order.
    packets: VecDeque<Packet>,
    /// Slots whose packets were handled, to be posted again.
    free: Vec<Slot>,
    /// How many data packets the peer may still send.
    granted: u16,
    granted_control: u8,
    /// Receives that are posted again and not told to the peer.
    owed: u16,
    owed_control: u8,
    /// Credits given to the peer at the beginning.
    credits: u16,
    pub(crate) assembly: Assembly,
}

/// A packet that lies in its slot.
pub(crate) struct Packet {
    pub(crate) slot: Slot,
    pub(crate) cursor: Cursor,
}

/// How far a packet was handled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    pub(crate) kind: Kind,
    pub(crate) len: usize,
    at: usize,
    done: bool,
}

/// A message that comes in several packets.
#[derive(Default)]
pub(crate) struct Assembly {
    pub(crate) memory: Vec<u8>,
    /// Its length; 0 when none is under way.
    pub(crate) expected: usize,
}

/// What a peer must not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// A packet is shorter than its head, or its head is none of this protocol.
    Head,
    /// More packets than there were credits.
    Credits,
    /// A length inside a packet is beyond its end, or beyond what may be sent to this side.
    Length,
    /// A part of no message, or a beginning inside one.
    Part,
}

/// What a packet holds next.
pub(crate) enum Found<'a> {
    Message(&'a [u8]),
    /// A message in the assembly memory is complete.
    Assembled,
    Goodbye,
    Farewell,
    /// Nothing more in this packet.
    End,
}

impl Receiving {
    /// Of a connection whose peer was given so many credits.
    pub(crate) fn new(slots: Vec<Slot>, credits: u16) -> Self {
        Self {
            posted: slots.iter().map(|_| None).collect(),
            packets: VecDeque::new(),
            free: slots,
            granted: credits,
            granted_control: CONTROL_RECEIVES,
            owed: 0,
            owed_control: 0,
            credits,
            assembly: Assembly::default(),
        }
    }

    /// A slot to be posted.
    pub(crate) fn next_free(&mut self) -> Option<Slot> {
        self.free.pop()
    }

    /// The slot was posted.
    pub(crate) fn posted(&mut self, slot: Slot) {
        let index = usize::from(slot.index());
        self.posted[index] = Some(slot);
    }

    /// Takes a slot back that could not be posted.
    pub(crate) fn not_posted(&mut self, slot: Slot) {
        self.free.push(slot);
    }

    /// The device filled a slot: takes the packet in and gives its head, with the credits in it.
    pub(crate) fn arrived(&mut self, index: u16, len: usize, slab: &Slab) -> Result<Head, Broken> {
        let slot = self.posted.get_mut(usize::from(index)).and_then(Option::take).ok_or(Broken::Credits)?;
        let head = slab.filled(&slot, len).first_chunk::<HEAD_LEN>().copied().and_then(Head::decode).ok_or(Broken::Head)?;
        if head.kind.is_control() {
            self.granted_control = self.granted_control.checked_sub(1).ok_or(Broken::Credits)?;
        } else {
            self.granted = self.granted.checked_sub(1).ok_or(Broken::Credits)?;
        }
        match head.kind {
            Kind::Credits | Kind::Heartbeat => {
                self.free.push(slot);
                self.owed_control += 1;
            }
            kind => self.packets.push_back(Packet { slot, cursor: Cursor { kind, len, at: HEAD_LEN, done: false } }),
        }
        Ok(head)
    }

    pub(crate) fn has_packets(&self) -> bool {
        !self.packets.is_empty()
    }

    /// Takes the first packet out, to be handled.
    pub(crate) fn take_packet(&mut self) -> Option<Packet> {
        self.packets.pop_front()
    }

    /// Puts the first packet back, part of it being handled.
    pub(crate) fn put_back(&mut self, packet: Packet) {
        self.packets.push_front(packet);
    }

    /// A packet was handled; its slot is free.
    pub(crate) fn handled(&mut self, packet: Packet) {
        if packet.cursor.kind.is_control() {
            self.owed_control += 1;
        } else {
            self.owed += 1;
        }
        self.free.push(packet.slot);
    }

    /// The credits to be told to the peer, which count as told from now on.
    pub(crate) fn take_owed(&mut self) -> (u16, u8) {
        self.granted += self.owed;
        self.granted_control += self.owed_control;
        (std::mem::take(&mut self.owed), std::mem::take(&mut self.owed_control))
    }

    /// Takes back what was to be told and could not be sent.
    pub(crate) fn untold(&mut self, (owed, owed_control): (u16, u8)) {
        self.granted -= owed;
        self.granted_control -= owed_control;
        self.owed += owed;
        self.owed_control += owed_control;
    }

    /// Whether the peer should be told of credits soon, even if there is nothing else to send.
    pub(crate) fn owes_much(&self) -> bool {
        self.owed > 0 && self.owed >= self.credits.div_ceil(2) || self.owes_all_control()
    }

    /// Whether the peer can send no control packet before it is told of credits.
    pub(crate) fn owes_all_control(&self) -> bool {
        self.owed_control >= CONTROL_RECEIVES
    }

    /// Whole messages that lie unhandled, and one that is under way.
    pub(crate) fn count_unhandled(&mut self, slab: &Slab, max_len: usize) -> u64 {
        let mut count = u64::from(self.assembly.expected > 0);
        for Packet { slot, mut cursor } in self.packets.drain(..) {
            let bytes = slab.filled(&slot, cursor.len);
            match cursor.kind {
                Kind::Messages => {
                    while let Ok(Found::Message(_)) = cursor.next(bytes, &mut Assembly::default(), max_len) {
                        count += 1;
                    }
                }
                Kind::First(_) => count += 1,
                _ => {}
            }
            self.free.push(slot);
        }
        count
    }
}

impl Cursor {
    /// What the packet holds next, `bytes` being all of it.
    #[inline]
    pub(crate) fn next<'a>(&mut self, bytes: &'a [u8], assembly: &mut Assembly, max_len: usize) -> Result<Found<'a>, Broken> {
        if self.done {
            return Ok(Found::End);
        }
        let rest = bytes.get(self.at..).unwrap_or_default();
        if self.kind == Kind::Messages {
            if rest.is_empty() {
                self.done = true;
                return Ok(Found::End);
            }
            let (len, rest) = rest.split_first_chunk::<LEN_LEN>().ok_or(Broken::Length)?;
            let len = u32::from_le_bytes(*len) as usize;
            let message = rest.get(..len).filter(|_| len <= max_len).ok_or(Broken::Length)?;
            if assembly.expected > 0 {
                return Err(Broken::Part);
            }
            self.at += LEN_LEN + len;
            return Ok(Found::Message(message));
        }
        self.done = true;
        match self.kind {
            Kind::First(_) if assembly.expected > 0 => Err(Broken::Part),
            Kind::First(total) if total as usize > max_len || total == 0 => Err(Broken::Length),
            Kind::First(total) => {
                assembly.expected = total as usize;
                assembly.memory.clear();
                assembly.add(rest)
            }
            Kind::Next if assembly.expected == 0 => Err(Broken::Part),
            Kind::Next => assembly.add(rest),
            Kind::Goodbye => Ok(Found::Goodbye),
            Kind::Farewell => Ok(Found::Farewell),
            Kind::Messages | Kind::Credits | Kind::Heartbeat => Ok(Found::End),
        }
    }
}

impl Assembly {
    /// Memory is taken as the message arrives: nothing on its length's word.
    fn add<'a>(&mut self, part: &[u8]) -> Result<Found<'a>, Broken> {
        if part.len() > self.expected - self.memory.len() {
            return Err(Broken::Length);
        }
        self.memory.extend_from_slice(part);
        Ok(if self.memory.len() == self.expected { Found::Assembled } else { Found::End })
    }

    /// Bytes of memory that it holds.
    pub(crate) fn held(&self) -> usize {
        self.memory.capacity()
    }
}
