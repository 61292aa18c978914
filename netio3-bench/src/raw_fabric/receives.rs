//! The receives of a connection: where they lie, which are posted, and the messages that came in them.

use std::sync::Arc;

use netio3_libfabric::fabric::{Desc, Domain, Endpoint, Posted};

use crate::raw_fabric::memory::Block;
use crate::raw_fabric::packet::{CONTROL_RECEIVES, CREDIT_LEN, CREDITS, HEAD_LEN, Head, Kind, LEN_LEN, RECEIVE_LEN, RECEIVES, parts};

/// Slots that are kept beyond those posted, for packets that are being sent back.
const BACKLOG: usize = 16;

/// The receives of a connection. Packets fill slots in the order of posting, so that the parts of a message lie behind
/// each other.
pub struct Receives {
    /// The slots that the first receives are posted in.
    first: Block,
    /// The slots for all from a certain one on, once it is known how long messages are.
    later: Option<Later>,
    context: usize,
    /// Counts of receives since the beginning.
    posted: u64,
    received: u64,
    /// Whose memory may be posted again.
    released: u64,
    /// Packets that returned credits; they need none themselves.
    uncharged: u64,
    /// Credits the peer was given.
    granted: u64,
    /// Credits owed at which they are returned by themselves.
    threshold: u64,
    message: Option<Partial>,
    /// Where a message is put together whose parts do not lie behind each other.
    scratch: Vec<u8>,
}

struct Later {
    block: Block,
    slots: u64,
    /// The number of the first receive there.
    from: u64,
    /// The number of the receive that a message begins in.
    base: u64,
}

/// A message of which parts have come.
#[derive(Clone, Copy)]
struct Partial {
    first: u64,
    total: usize,
    got: usize,
    in_place: bool,
}

/// What a packet brought.
pub enum Came<'a> {
    /// A measured message.
    Message(&'a [u8]),
    /// Another one.
    Control(&'a [u8]),
}

/// A packet that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its number, from 0.
    pub number: u64,
    pub len: usize,
    /// Credits it returned.
    pub credits: u64,
    pub place: Place,
}

/// What a packet is to the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It has no part of a measured message.
    Other,
    /// A message begins in it.
    Begin,
    /// A message goes on in it.
    Middle,
}

impl Receives {
    pub fn new(domain: &Arc<Domain>, context: usize) -> Result<Self, String> {
        Ok(Self {
            first: Block::new(domain, RECEIVES * RECEIVE_LEN)?,
            later: None,
            context,
            posted: 0,
            received: 0,
            released: 0,
            uncharged: 0,
            granted: CREDITS as u64,
            threshold: CREDITS as u64 / 2,
            message: None,
            scratch: Vec::new(),
        })
    }

    /// The other side will send messages of this size, beginning with the next packet. `echo`: packets are sent back
    /// from where they lie; `returned`: with messages that carry credits.
    pub fn expect(&mut self, domain: &Arc<Domain>, size: usize, echo: bool, returned: bool) -> Result<(), String> {
        let parts = parts(size);
        if returned && parts <= CREDITS {
            self.threshold = CREDITS as u64;
        }
        if parts > 1 || echo {
            let slots = (RECEIVES + BACKLOG + parts).next_multiple_of(parts);
            let block = Block::new(domain, slots * RECEIVE_LEN)?;
            self.later = Some(Later { block, slots: slots as u64, from: self.posted, base: self.received });
        }
        Ok(())
    }

    /// The memory of a receive.
    #[inline]
    fn slot(&self, number: u64) -> *mut u8 {
        match &self.later {
            Some(later) if number >= later.from => later.block.at(((number - later.base) % later.slots) as usize * RECEIVE_LEN),
            _ => self.first.at((number % RECEIVES as u64) as usize * RECEIVE_LEN),
        }
    }

    /// The block that it lies in.
    #[inline]
    fn block(&self, number: u64) -> &Block {
        match &self.later {
            Some(later) if number >= later.from => &later.block,
            _ => &self.first,
        }
    }

    fn slots(&self) -> u64 {
        self.later.as_ref().map_or(RECEIVES as u64, |later| later.slots)
    }

    /// Posts as many receives as there should be.
    #[allow(unsafe_code)]
    #[inline]
    pub fn post(&mut self, endpoint: &Endpoint) -> Result<(), String> {
        let end = (self.received + RECEIVES as u64).min(self.released + self.slots());
        while self.posted < end {
            let desc = self.block(self.posted).desc();
            // SAFETY: the slot is nobody's until the receive completes: what was in it before is released. The block
            // goes after the endpoint.
            match unsafe { endpoint.recv(self.slot(self.posted), RECEIVE_LEN, desc, self.context) } {
                Ok(Posted::Yes) => self.posted += 1,
                Ok(Posted::Again) => break,
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    /// Credits that the peer may be told of: receives posted for it that it does not know.
    #[inline]
    pub fn owed(&self) -> u16 {
        self.posted.saturating_sub(CONTROL_RECEIVES as u64 + self.uncharged + self.granted) as u16
    }

    /// The peer is told of so many.
    #[inline]
    pub fn grant(&mut self, credits: u16) {
        self.granted += u64::from(credits);
    }

    /// Returns credits by themselves when many are owed; tells whether there was room for that.
    #[inline]
    pub fn return_credits(&mut self, endpoint: &Endpoint) -> Result<bool, String> {
        let owed = self.owed();
        if u64::from(owed) < self.threshold {
            return Ok(true);
        }
        let sent = endpoint.inject(&owed.to_le_bytes()).map_err(|error| error.to_string())?;
        if sent {
            self.grant(owed);
        }
        Ok(sent)
    }

    /// Memory of all packets before this one may be posted again.
    #[inline]
    pub fn release(&mut self, before: u64) {
        self.released = before;
    }

    /// Between two messages: all that came may be posted again. Within one, nothing, if it is put together where it lies.
    #[inline]
    pub fn release_all(&mut self) {
        self.released = match &self.message {
            Some(Partial { first, in_place: true, .. }) => *first,
            _ => self.received,
        };
    }

    /// The memory of a packet that was received and not released, and what operations are given to use it.
    pub fn packet(&self, number: u64) -> (*mut u8, &[Desc]) {
        (self.slot(number), self.block(number).descs())
    }

    /// Understands the next packet, and hands out what it completes.
    #[allow(unsafe_code)]
    #[inline]
    pub fn take(&mut self, len: usize, mut hand_out: impl FnMut(Came<'_>)) -> Result<Packet, String> {
        let number = self.received;
        self.received += 1;
        let slot = self.slot(number);
        // SAFETY: the receive has completed with that many bytes, and its slot is not posted again before its release.
        let bytes = unsafe { std::slice::from_raw_parts(slot, len.min(RECEIVE_LEN)) };
        let mut packet = Packet { number, len: bytes.len(), credits: 0, place: Place::Other };
        if let Ok(credits) = <&[u8; CREDIT_LEN]>::try_from(bytes) {
            self.uncharged += 1;
            packet.credits = u16::from_le_bytes(*credits).into();
            return Ok(packet);
        }
        if self.message.is_some() {
            packet.place = Place::Middle;
            self.go_on(bytes, hand_out)?;
            return Ok(packet);
        }
        let strange = || "what came was no packet of ours".to_owned();
        let (head, body) = bytes.split_first_chunk().ok_or_else(strange)?;
        let Head { kind, credits, total } = Head::decode(*head).ok_or_else(strange)?;
        packet.credits = credits.into();
        match kind {
            Kind::Message if total as usize == body.len() => {
                packet.place = Place::Begin;
                hand_out(Came::Message(body));
            }
            Kind::Message => {
                if (total as usize) < body.len() {
                    return Err(strange());
                }
                packet.place = Place::Begin;
                self.begin(number, total as usize, bytes);
            }
            Kind::Batch => {
                let mut rest = body;
                for _ in 0..total {
                    let (message_len, more) = rest.split_first_chunk::<LEN_LEN>().ok_or_else(strange)?;
                    let (message, more) = more.split_at_checked(u32::from_le_bytes(*message_len) as usize).ok_or_else(strange)?;
                    hand_out(Came::Message(message));
                    rest = more;
                }
            }
            Kind::Control => hand_out(Came::Control(body)),
        }
        Ok(packet)
    }

    fn begin(&mut self, number: u64, total: usize, bytes: &[u8]) {
        let parts = (HEAD_LEN + total).div_ceil(RECEIVE_LEN) as u64;
        // All in slots that lie behind each other, which all but the last fill.
        let in_place = bytes.len() == RECEIVE_LEN
            && self.later.as_ref().is_some_and(|later| number >= later.from && (number - later.base) % later.slots + parts <= later.slots);
        if !in_place {
            self.scratch.clear();
            self.scratch.extend_from_slice(bytes);
        }
        self.message = Some(Partial { first: number, total, got: bytes.len() - HEAD_LEN, in_place });
    }

    #[allow(unsafe_code)]
    fn go_on(&mut self, bytes: &[u8], mut hand_out: impl FnMut(Came<'_>)) -> Result<(), String> {
        let mut message = self.message.take().expect("the caller saw it");
        message.got += bytes.len();
        if message.got > message.total {
            return Err("a message was longer than announced".into());
        }
        // Credits between the parts, or parts that are shorter than their slots.
        let behind = self.received - 1 - message.first;
        let offset = HEAD_LEN + message.got - bytes.len();
        if message.in_place && behind as usize * RECEIVE_LEN != offset {
            // SAFETY: the slots up to here hold what came, and are not posted again before their release.
            let before = unsafe { std::slice::from_raw_parts(self.slot(message.first), offset) };
            self.scratch.clear();
            self.scratch.extend_from_slice(before);
            message.in_place = false;
        }
        if !message.in_place {
            self.scratch.extend_from_slice(bytes);
        }
        if message.got < message.total {
            self.message = Some(message);
            return Ok(());
        }
        let whole = if message.in_place {
            // SAFETY: as above, and the message is all there.
            unsafe { std::slice::from_raw_parts(self.slot(message.first), HEAD_LEN + message.total) }
        } else {
            &self.scratch[..]
        };
        hand_out(Came::Message(&whole[HEAD_LEN..]));
        Ok(())
    }

    /// Whether a message has begun and not ended.
    pub fn is_within_message(&self) -> bool {
        self.message.is_some()
    }
}
