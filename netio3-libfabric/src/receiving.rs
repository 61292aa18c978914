//! What arrived on a connection and is not handled yet, and the credits that the peer holds.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::assembly::Assembly;
use crate::slab::{Slab, Slot};
use crate::wire::{CONTROL_CREDITS, HEAD_LEN, Head, Kind, LEN_LEN};

/// The receiving side of one connection.
pub(crate) struct Receiving {
    /// The posted slots, by their index.
    posted: Vec<Option<Slot>>,
    /// Packets to be handled, in order.
    packets: VecDeque<Packet>,
    /// Slots of the connection's slab that are not in use.
    free: Vec<Slot>,
    /// Memory for long messages, once there were some: from then on all receives are posted in the last one.
    areas: Vec<Area>,
    /// Receives that are posted, or whose packets are not handled; and how many there may be.
    in_use: u16,
    receives: u16,
    /// How many data packets the peer may still send.
    granted: u16,
    granted_control: u8,
    /// Packets that were handled and in whose place none is posted yet.
    handled: u16,
    handled_control: u8,
    /// Receives that are posted again and not told to the peer.
    owed: u16,
    owed_control: u8,
    /// Credits given to the peer at the beginning.
    credits: u16,
    /// Bytes that are to come of a message which has begun.
    coming: usize,
    pub(crate) assembly: Assembly,
}

/// Memory in which packets land behind each other.
struct Area {
    slab: Arc<Slab>,
    /// The index of the first slot.
    first: u16,
    /// Those that are not in use.
    free: Vec<Option<Slot>>,
    /// The place of the slot to be used next.
    next: usize,
}

/// A packet that lies in its slot.
pub(crate) struct Packet {
    /// Until it is kept for a message.
    pub(crate) slot: Option<Slot>,
    pub(crate) cursor: Cursor,
}

/// How far a packet was handled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    /// None of further parts of a message.
    pub(crate) kind: Option<Kind>,
    pub(crate) len: usize,
    at: usize,
    done: bool,
}

/// What ends a connection: what a peer must not do, or a limit.
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
    /// Nothing at all: the system has no memory for its message.
    Memory,
}

/// What a packet holds next.
pub(crate) enum Found<'a> {
    Message(&'a [u8]),
    /// A message of so many bytes begins with this part.
    First(usize, &'a [u8]),
    /// Its next part.
    Part(&'a [u8]),
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
            in_use: 0,
            receives: slots.len() as u16,
            free: slots,
            areas: Vec::new(),
            granted: credits,
            granted_control: CONTROL_CREDITS,
            handled: 0,
            handled_control: 0,
            owed: 0,
            owed_control: 0,
            credits,
            coming: 0,
            assembly: Assembly::default(),
        }
    }

    /// How many slots an area needs for messages of so many bytes, if there is none that is large enough.
    pub(crate) fn wants_area(&self, len: usize, packet_len: usize) -> Option<u16> {
        let parts = parts(len, packet_len);
        let last = self.areas.last();
        if last.is_some_and(|area| area.holds(parts, self.receives)) {
            return None;
        }
        // A multiple, so that messages of this length come to their ends with the area.
        let least = (parts + usize::from(self.receives)).max(2 * last.map_or(0, |area| area.free.len()));
        let slots = u16::try_from(least.next_multiple_of(parts)).ok()?;
        let numbers = self.posted.len() + usize::from(slots);
        (numbers <= usize::from(u16::MAX) && self.areas.len() < usize::from(u8::MAX)).then_some(slots)
    }

    /// Posts all further receives in this memory, for messages of so many bytes: as long as nothing else comes, each
    /// begins in a slot whose number is a multiple of its parts, so that none is cut by the end of the area.
    pub(crate) fn add_area(&mut self, slab: Arc<Slab>, len: usize) {
        let first = self.posted.len() as u16;
        let slots = slab.cut_area(self.areas.len() as u8 + 1, first);
        let packet_len = slab.layout().packet_len;
        let parts = parts(len, packet_len);
        // The first slot is for the packet after those that are posted for; of the present message these are to come.
        let posted = usize::from(self.in_use) - self.packets.len();
        let lead = (self.coming.div_ceil(packet_len) + posted * (parts - 1)) % parts;
        let next = (slots.len() - lead) % slots.len();
        self.posted.resize_with(self.posted.len() + slots.len(), || None);
        self.areas.push(Area { slab, first, free: slots.into_iter().map(Some).collect(), next });
    }

    /// Bytes of the memory that long messages land in.
    pub(crate) fn area_bytes(&self) -> usize {
        self.areas.iter().map(|area| area.slab.layout().bytes()).sum()
    }

    /// Bytes of memory for putting messages together.
    pub(crate) fn held(&self) -> usize {
        self.assembly.held() + self.area_bytes()
    }

    /// How many data packets the peer was told that it may send.
    pub(crate) fn credits(&self) -> u16 {
        self.credits
    }

    /// Gives up all memory but the connection's slab, nothing being posted any more.
    pub(crate) fn drop_areas(&mut self) {
        self.packets.clear();
        self.assembly = Assembly::default();
        self.areas.clear();
    }

    /// The memory that a slot lies in, `slab` being the connection's.
    pub(crate) fn memory_of<'a>(&'a self, slot: &Slot, slab: &'a Arc<Slab>) -> &'a Arc<Slab> {
        self.area_of(slot).map_or(slab, |area| &self.areas[area].slab)
    }

    /// The place of the area that a slot is in, if that is not the connection's slab.
    fn area_of(&self, slot: &Slot) -> Option<usize> {
        usize::from(slot.area()).checked_sub(1)
    }

    /// Where a message of this length may be put together in place that begins in a slot.
    pub(crate) fn landing(&self, slot: &Slot, len: usize) -> Option<&Arc<Slab>> {
        let area = &self.areas[self.area_of(slot)?];
        area.holds(parts(len, slot.capacity()), self.receives).then_some(&area.slab)
    }

    /// Whether a slot is to be posted.
    #[inline]
    pub(crate) fn has_free(&self) -> bool {
        self.in_use < self.receives
    }

    /// A slot to be posted.
    pub(crate) fn next_free(&mut self) -> Option<Slot> {
        if !self.has_free() {
            return None;
        }
        let slot = match self.areas.last_mut() {
            Some(area) => area.take_next(),
            None => self.free.pop(),
        };
        self.in_use += u16::from(slot.is_some());
        slot
    }

    /// The slot was posted.
    pub(crate) fn posted(&mut self, slot: Slot) {
        let index = usize::from(slot.index());
        self.posted[index] = Some(slot);
        if self.handled_control > 0 {
            self.handled_control -= 1;
            self.owed_control += 1;
        } else if self.handled > 0 {
            self.handled -= 1;
            self.owed += 1;
        }
    }

    /// Takes a slot back that could not be posted.
    pub(crate) fn not_posted(&mut self, slot: Slot) {
        self.in_use -= 1;
        let index = slot.index();
        self.give_back(slot);
        if let Some(area) = self.areas.last_mut() {
            area.next = usize::from(index - area.first);
        }
    }

    /// A slot is not needed any more.
    fn give_back(&mut self, slot: Slot) {
        match self.area_of(&slot).map(|area| &mut self.areas[area]) {
            Some(area) => {
                let place = usize::from(slot.index() - area.first);
                area.free[place] = Some(slot);
            }
            None => self.free.push(slot),
        }
    }

    /// The device filled a slot: takes the packet in and gives its head, with the credits in it.
    pub(crate) fn arrived(&mut self, index: u16, len: usize, slab: &Arc<Slab>) -> Result<Head, Broken> {
        let slot = self.posted.get_mut(usize::from(index)).and_then(Option::take).ok_or(Broken::Credits)?;
        // Within a message everything but a head alone is a part of it.
        let is_part = self.coming > 0 && len != HEAD_LEN;
        let head = if is_part {
            self.coming = self.coming.checked_sub(len).filter(|_| len > 0).ok_or(Broken::Length)?;
            Head { kind: Kind::Messages, credits: 0, control: 0 }
        } else {
            let bytes = self.memory_of(&slot, slab).filled(&slot, len);
            bytes.first_chunk::<HEAD_LEN>().copied().and_then(Head::decode).ok_or(Broken::Head)?
        };
        if let Kind::First(total) = head.kind {
            if self.coming > 0 {
                return Err(Broken::Part);
            }
            self.coming = (total as usize).checked_sub(len - HEAD_LEN).ok_or(Broken::Length)?;
        }
        if head.kind == Kind::Credits {
            // It needs none. If it told of nothing there could be any number of them.
            if head.credits == 0 && head.control == 0 {
                return Err(Broken::Credits);
            }
        } else if head.kind.is_control() {
            self.granted_control = self.granted_control.checked_sub(1).ok_or(Broken::Credits)?;
        } else {
            self.granted = self.granted.checked_sub(1).ok_or(Broken::Credits)?;
        }
        match head.kind {
            kind @ (Kind::Credits | Kind::Heartbeat) => {
                self.in_use -= 1;
                self.give_back(slot);
                self.handled_control += u8::from(kind != Kind::Credits);
            }
            kind => {
                let (kind, at) = if is_part { (None, 0) } else { (Some(kind), HEAD_LEN) };
                self.packets.push_back(Packet { slot: Some(slot), cursor: Cursor { kind, len, at, done: false } });
            }
        }
        Ok(head)
    }

    /// Takes slots back that the message being put together does not need any more.
    fn take_spent(&mut self) {
        while let Some(slot) = self.assembly.take_spent() {
            self.give_back(slot);
        }
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
        if packet.cursor.kind.is_some_and(Kind::is_control) {
            self.handled_control += 1;
        } else {
            self.handled += 1;
        }
        self.in_use -= 1;
        packet.slot.into_iter().for_each(|slot| self.give_back(slot));
        self.take_spent();
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

    /// Whether the peer is to be told of credits even if there is nothing else to send. Only then may a packet be spent
    /// on that, so that there are not more of them than receives for them.
    pub(crate) fn owes_much(&self) -> bool {
        let owes_half = self.owed > 0 && self.owed >= self.credits.div_ceil(2);
        // All of them: the peer can send no control packet before.
        owes_half || self.owed_control >= CONTROL_CREDITS
    }

    /// Whole messages that lie unhandled, and one that is under way.
    pub(crate) fn count_unhandled(&mut self, slab: &Arc<Slab>, max_len: usize) -> u64 {
        let mut count = u64::from(self.assembly.is_under_way());
        while let Some(mut packet) = self.packets.pop_front() {
            match packet.cursor.kind {
                Some(Kind::Messages) => {
                    let bytes = packet.slot.as_ref().map(|slot| self.memory_of(slot, slab).filled(slot, packet.cursor.len));
                    let bytes = bytes.unwrap_or_default();
                    while let Ok(Found::Message(_)) = packet.cursor.next(bytes, max_len) {
                        count += 1;
                    }
                }
                Some(Kind::First(_)) if !packet.cursor.done => count += 1,
                _ => {}
            }
            self.handled(packet);
        }
        count
    }
}

impl Area {
    /// Whether messages of so many parts can be held here while receives go on.
    fn holds(&self, parts: usize, receives: u16) -> bool {
        parts + usize::from(receives) <= self.free.len()
    }

    /// The next slot that is not in use. There is one: what is kept and what is posted or not handled are fewer
    /// together; only their order is not that of the slots, when control packets come between those that wait.
    fn take_next(&mut self) -> Option<Slot> {
        let count = self.free.len();
        let place = (self.next..self.next + count).map(|place| place % count).find(|place| self.free[*place].is_some())?;
        self.next = (place + 1) % count;
        self.free[place].take()
    }
}

/// How many packets of a length a message takes that is sent in parts.
fn parts(len: usize, packet_len: usize) -> usize {
    (HEAD_LEN + len).div_ceil(packet_len)
}

impl Cursor {
    /// What the packet holds next, `bytes` being all of it.
    #[inline]
    pub(crate) fn next<'a>(&mut self, bytes: &'a [u8], max_len: usize) -> Result<Found<'a>, Broken> {
        if self.done {
            return Ok(Found::End);
        }
        let rest = bytes.get(self.at..).unwrap_or_default();
        if self.kind == Some(Kind::Messages) {
            if rest.is_empty() {
                self.done = true;
                return Ok(Found::End);
            }
            let (len, rest) = rest.split_first_chunk::<LEN_LEN>().ok_or(Broken::Length)?;
            let len = u32::from_le_bytes(*len) as usize;
            let message = rest.get(..len).filter(|_| len <= max_len).ok_or(Broken::Length)?;
            self.at += LEN_LEN + len;
            return Ok(Found::Message(message));
        }
        self.done = true;
        match self.kind {
            None => Ok(Found::Part(rest)),
            Some(Kind::First(total)) if total as usize > max_len || total == 0 => Err(Broken::Length),
            Some(Kind::First(total)) => Ok(Found::First(total as usize, rest)),
            Some(Kind::Goodbye) => Ok(Found::Goodbye),
            Some(Kind::Farewell) => Ok(Found::Farewell),
            Some(Kind::Messages | Kind::Credits | Kind::Heartbeat) => Ok(Found::End),
        }
    }
}
