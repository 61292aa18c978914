//! What waits to be sent on a connection, cut into packets, and what the device still holds of it.
//!
//! Nothing here posts: [`Sending::build`] says what the next packet consists of, [`Sending::posted`] and
//! [`Sending::left`] are told what became of it.

mod built;
mod long;

use std::collections::VecDeque;
use std::sync::Arc;
use std::{mem, ptr};

use netio3_core::MemoryRegion;
use netio3_core::engine::{Outgoing, Payload, Retired, UserMemory};

use self::built::{Built, Memory};
pub(crate) use self::long::Long;
use crate::fabric::Desc;
use crate::slab::{HEAD_SLOT_LEN, Slab, Slot};
use crate::wire::{HEAD_LEN, Kind, LEN_LEN};

/// Pieces of one post, at most; providers take fewer.
pub(crate) const MAX_PIECES: usize = 16;
/// Pieces up to so many bytes are rather copied than posted, where the number of pieces is short.
const COPIED_PIECE: usize = 256;

/// So many packets may wait whose memory is hardly used.
const FEW_ITEMS: usize = 64;

/// The queue of one connection.
pub(crate) struct Sending {
    items: VecDeque<Item>,
    /// Small messages being packed; they come after all items.
    open: Option<Packed>,
    /// The pieces of all messages that were not packed, those of posted packets first.
    pieces: VecDeque<UserMemory>,
    /// So many of them belong to posted packets.
    flying_pieces: usize,
    /// The headers of the messages that were not packed.
    headers: VecDeque<u8>,
    /// How far the first item was sent.
    cursor: Cursor,
    /// The next packet, if it is ready.
    built: Built,
    flights: VecDeque<Flight>,
    next_tag: u16,
    sends: Vec<Slot>,
    heads: Vec<Slot>,
    spare: Vec<Box<[u8]>>,
    packet_len: usize,
    /// Bytes that wait to be posted.
    waiting: usize,
    /// Something of a message has left.
    moved: bool,
    retired: Retired,
    /// Registrations of the user's memory that packets lie in, each with the tag of the last one.
    used: Vec<(Held, u16)>,
    /// The memory of a pool that the device does not know yet, and of those that were told of.
    unknown: Option<MemoryRegion>,
    told: Vec<usize>,
}

enum Item {
    Packed(Packed),
    Message { header: usize, pieces: usize, len: usize },
}

/// A packet in memory of its own: whole messages one after the other, or a part of a long one, with room for the head
/// before them if there is one.
struct Packed {
    memory: Memory,
    kind: Option<Kind>,
    len: usize,
    /// Those that end with it.
    messages: u32,
    /// So many pieces are held back until the packet has left: buffers, which return to their pools then.
    held: usize,
}

/// Of the first item, when it is a message: the pieces and bytes that are sent.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    pieces: usize,
    offset: usize,
    bytes: usize,
    started: bool,
}

/// Finds what the device wants to be told of some memory, and what is to be held until it is done with that.
pub(crate) type Find<'a> = dyn Fn(&[u8]) -> Option<(Desc, Option<Held>)> + 'a;

/// A registration, whatever it is.
pub(crate) type Held = Arc<dyn Send + Sync>;

/// What the device can do.
pub(crate) struct Abilities<'a> {
    /// Pieces of one post.
    pub(crate) iov_limit: usize,
    /// Where memory must be known to the device, what it wants to be told of some, or `None` for memory that it
    /// does not know; otherwise `None`.
    pub(crate) find: Option<&'a Find<'a>>,
}

/// A posted packet.
struct Flight {
    tag: u16,
    memory: Option<Memory>,
    messages: u32,
    pieces: usize,
    is_control: bool,
}

impl Sending {
    pub(crate) fn new(sends: Vec<Slot>, heads: Vec<Slot>, packet_len: usize) -> Self {
        Self {
            items: VecDeque::new(),
            open: None,
            pieces: VecDeque::new(),
            flying_pieces: 0,
            headers: VecDeque::new(),
            cursor: Cursor::default(),
            built: Built::default(),
            flights: VecDeque::new(),
            next_tag: 0,
            sends,
            heads,
            spare: Vec::new(),
            packet_len,
            waiting: 0,
            moved: false,
            retired: Retired::default(),
            used: Vec::new(),
            unknown: None,
            told: Vec::new(),
        }
    }

    /// Bytes that wait to be posted.
    #[inline]
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether nothing waits to be posted.
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty() && self.open.is_none() && !self.built.is_ready
    }

    /// The memory of a pool that the device should be told of. It is named once.
    pub(crate) fn take_unknown(&mut self) -> Option<MemoryRegion> {
        self.unknown.take()
    }

    /// Whether something comes behind the built packet: it waits, or is about to be copied, since the packet ends no
    /// message.
    pub(crate) fn has_more(&self) -> bool {
        !self.items.is_empty() || self.open.is_some() || self.built.messages == 0
    }

    /// Whether the next packet may have to wait for one on its way to leave its slot.
    pub(crate) fn is_short_of_slots(&self) -> bool {
        self.sends.is_empty() || self.heads.is_empty()
    }

    /// Posted packets that have not left.
    pub(crate) fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Whether some of them end messages.
    pub(crate) fn has_messages_in_flight(&self) -> bool {
        self.flights.iter().any(|flight| flight.messages > 0)
    }

    /// The peer takes no longer packets than this.
    pub(crate) fn limit_packets(&mut self, packet_len: usize) {
        self.packet_len = self.packet_len.min(packet_len);
    }

    /// Takes a message in; one that is to be copied must [fit](Self::fits) into a packet, since longer ones come
    /// [part by part](Self::push_part). Tells whether it was a zero-copy one that was copied for being small.
    #[inline]
    pub(crate) fn push(&mut self, message: Outgoing<'_>, copy_below: usize, slab: &Slab) -> bool {
        let small = message.len <= copy_below && self.fits(message.len);
        self.waiting += LEN_LEN + message.len;
        match message.payload {
            Payload::Copied(pieces) => {
                self.pack(message.len, slab, |room| fill(room, message.header, pieces.iter().map(|piece| &**piece)));
                false
            }
            Payload::Shared(pieces) if small => {
                self.pack(message.len, slab, |room| fill(room, message.header, pieces.iter().map(|piece| &**piece)));
                true
            }
            Payload::Raw(pieces) if small => {
                self.pack(message.len, slab, |room| fill(room, message.header, pieces.held()));
                true
            }
            Payload::Buffer(buffer) if small => {
                let buffer = Payload::take(buffer);
                self.pack(message.len, slab, |room| room.copy_from_slice(buffer.as_slice()));
                self.pieces.push_back(UserMemory::Buffer(buffer));
                self.open.iter_mut().for_each(|open| open.held += 1);
                false
            }
            Payload::Shared(pieces) => {
                let pieces = pieces.iter().filter(|piece| !piece.is_empty()).cloned().map(UserMemory::Shared);
                self.push_pieces(message.header, message.len, pieces);
                false
            }
            Payload::Raw(pieces) => {
                self.push_pieces(message.header, message.len, pieces.held().map(UserMemory::Raw));
                false
            }
            Payload::Buffer(buffer) => {
                self.push_pieces(message.header, message.len, std::iter::once(UserMemory::Buffer(Payload::take(buffer))));
                false
            }
        }
    }

    /// Whether a message of this length goes into one packet.
    #[inline]
    pub(crate) fn fits(&self, len: usize) -> bool {
        len <= self.packet_len - HEAD_LEN - LEN_LEN
    }

    /// Copies the next part of a long message, as much as goes into a packet.
    pub(crate) fn push_part(&mut self, long: &mut Long<'_>, slab: &Slab) {
        self.close_open();
        let mut memory = self.chunk();
        let kind = (long.rest == long.len).then_some(Kind::First(long.len as u32));
        // Further parts have no head, so that they can lie behind each other where they arrive.
        let (start, end) = match kind {
            Some(_) => (HEAD_LEN, self.packet_len),
            None => (0, self.longest_part(long.rest)),
        };
        let copied = long.copy_to(&mut memory.bytes_mut(slab)[start..end]);
        // What a whole one would count beside its bytes.
        self.waiting += copied + if kind.is_some() { LEN_LEN } else { 0 };
        let messages = u32::from(long.is_done());
        self.items.push_back(Item::Packed(Packed { memory, kind, len: start + copied, messages, held: 0 }));
    }

    /// How long a further part of a message may be of which so much is left: one of just the length of a head would be
    /// taken for one.
    fn longest_part(&self, rest: usize) -> usize {
        if rest == HEAD_LEN { HEAD_LEN / 2 } else { self.packet_len }
    }

    /// Takes a message in that is gathered from the user's memory.
    fn push_pieces(&mut self, header: &[u8], len: usize, pieces: impl Iterator<Item = UserMemory>) {
        self.close_open();
        let before = self.pieces.len();
        self.pieces.extend(pieces);
        self.headers.extend(header);
        self.items.push_back(Item::Message { header: header.len(), pieces: self.pieces.len() - before, len });
    }

    #[inline]
    fn pack(&mut self, len: usize, slab: &Slab, fill: impl FnOnce(&mut [u8])) {
        let packet_len = self.packet_len;
        if self.open.as_ref().is_none_or(|open| open.len + LEN_LEN + len > packet_len) {
            self.close_open();
            self.open = Some(Packed { memory: self.chunk(), kind: Some(Kind::Messages), len: HEAD_LEN, messages: 0, held: 0 });
        }
        let Some(open) = &mut self.open else { return };
        let room = &mut open.memory.bytes_mut(slab)[open.len..open.len + LEN_LEN + len];
        let (head, body) = room.split_at_mut(LEN_LEN);
        head.copy_from_slice(&(len as u32).to_le_bytes());
        fill(body);
        open.len += LEN_LEN + len;
        open.messages += 1;
    }

    /// Memory for packing: the device's if some is free. The last of it is left to what goes first, which would
    /// otherwise wait for what comes after it.
    #[cold]
    fn chunk(&mut self) -> Memory {
        let slot = if self.sends.len() > 1 { self.sends.pop() } else { None };
        slot.map_or_else(|| self.heap(), Memory::Send)
    }

    /// Memory for a packet that no device knows.
    fn heap(&mut self) -> Memory {
        Memory::Heap(self.spare.pop().unwrap_or_else(|| vec![0; self.packet_len].into()))
    }

    fn close_open(&mut self) {
        if let Some(mut open) = self.open.take() {
            // Of many that wait none keeps much more memory than it has messages.
            if self.items.len() >= FEW_ITEMS
                && let Memory::Heap(memory) = &mut open.memory
                && open.len <= memory.len() / 2
            {
                let short = memory[..open.len].into();
                self.spare.push(mem::replace(memory, short));
            }
            self.items.push_back(Item::Packed(open));
        }
    }

    /// Prepares the next packet, unless one is prepared. `None` when nothing waits, or memory that the device
    /// knows must become free first.
    pub(crate) fn build(&mut self, slab: &Slab, abilities: &Abilities<'_>) -> Option<&mut Built> {
        if !self.built.is_ready {
            match self.items.pop_front() {
                Some(Item::Packed(packed)) => self.build_packed(packed, slab, abilities),
                Some(Item::Message { header, pieces, len }) => self.build_part(header, pieces, len, slab, abilities),
                None => {
                    let packed = self.open.take()?;
                    self.build_packed(packed, slab, abilities);
                }
            }
        }
        self.built.is_ready.then_some(&mut self.built)
    }

    fn build_packed(&mut self, mut packed: Packed, slab: &Slab, abilities: &Abilities<'_>) {
        if abilities.find.is_some() && matches!(packed.memory, Memory::Heap(_)) {
            let Some(mut slot) = self.sends.pop() else {
                self.items.push_front(Item::Packed(packed));
                return;
            };
            slab.room(&mut slot)[..packed.len].copy_from_slice(&packed.memory.bytes(slab, packed.len)[..packed.len]);
            let before = mem::replace(&mut packed.memory, Memory::Send(slot));
            self.give_back(before);
        }
        self.built.begin(packed.kind, Some(packed.memory), packed.messages, packed.held);
        self.built.add_memory(slab, 0, packed.len);
    }

    /// Builds the packet with the next part of a message, or all of it.
    fn build_part(&mut self, header: usize, pieces: usize, len: usize, slab: &Slab, abilities: &Abilities<'_>) {
        let whole = len + HEAD_LEN + LEN_LEN <= self.packet_len;
        let limit = abilities.iov_limit.min(MAX_PIECES);
        let kind = match (whole, self.cursor.started) {
            (true, _) => Some(Kind::Messages),
            (false, false) => Some(Kind::First(len as u32)),
            (false, true) => None,
        };
        // Further parts have no head, so that they can lie behind each other where they arrive.
        let head_len = if kind.is_some() { HEAD_LEN } else { 0 };
        // Nothing but a head or a short header must be copied, if that.
        let rest = self.pieces.range(self.flying_pieces + self.cursor.pieces..).take(pieces - self.cursor.pieces);
        // Looked up once and held from here on: another thread may take a region off the list meanwhile.
        let first = self.cursor.pieces;
        let mut found: [Option<(Desc, Option<Held>)>; MAX_PIECES] = [const { None }; MAX_PIECES];
        let known = |(at, piece): (usize, &UserMemory)| {
            let bytes = &piece.as_slice()[if at == 0 { self.cursor.offset } else { 0 }..];
            abilities.find.is_none_or(|find| {
                found[at] = find(bytes);
                found[at].is_some()
            })
        };
        let has_own = head_len + header > 0;
        let entries_needed = pieces - self.cursor.pieces + usize::from(has_own);
        let short = HEAD_LEN + LEN_LEN + header <= HEAD_SLOT_LEN && entries_needed <= limit && rest.enumerate().all(known);
        let mut memory = None;
        if has_own || !short {
            memory = if short { self.heads.pop().map(Memory::Head) } else { self.sends.pop().map(Memory::Send) };
            memory = memory.or_else(|| abilities.find.is_none().then(|| self.heap()));
            if memory.is_none() {
                self.items.push_front(Item::Message { header, pieces, len });
                return;
            }
        }

        let mut copied = 0;
        let room = memory.as_mut().map_or(&mut [][..], |memory| memory.bytes_mut(slab));
        let mut filled = head_len;
        let packet_len = if kind.is_none() { self.longest_part(len - self.cursor.bytes) } else { self.packet_len };
        if whole {
            room[filled..filled + LEN_LEN].copy_from_slice(&(len as u32).to_le_bytes());
            filled += LEN_LEN;
        }
        let header_part = header.min(packet_len.min(room.len()) - filled);
        for (to, from) in room[filled..].iter_mut().zip(self.headers.drain(..header_part)) {
            *to = from;
        }
        filled += header_part;
        let header = header - header_part;
        self.cursor.bytes += header_part;
        self.cursor.started = true;
        // What the packet consists of: stretches of its own memory, and pieces of the user's between them.
        let mut spans: [(usize, usize); MAX_PIECES] = [(0, 0); MAX_PIECES];
        let mut entries: [Option<(usize, usize, Desc)>; MAX_PIECES] = [None; MAX_PIECES];
        spans[0] = (0, filled);
        let mut count = usize::from(filled > 0);
        let mut total = filled;
        while self.cursor.pieces < pieces && total < packet_len && header == 0 {
            let piece = &self.pieces[self.flying_pieces + self.cursor.pieces];
            let bytes = &piece.as_slice()[self.cursor.offset..];
            if bytes.is_empty() {
                self.cursor.pieces += 1;
                continue;
            }
            let n = bytes.len().min(packet_len - total);
            let (desc, registered) = match abilities.find {
                Some(_) if short => found[self.cursor.pieces - first].take().unzip(),
                Some(find) => find(bytes).unzip(),
                None => (Some(Desc::NONE), None),
            };
            let own_last = count > 0 && entries[count - 1].is_none();
            // The last entry is kept for what has to be copied, unless this is the last piece.
            let last = self.cursor.pieces + 1 == pieces;
            let gathered = desc.filter(|_| count < limit && (last || count + 1 < limit) && (n > COPIED_PIECE || short));
            let taken = match gathered {
                Some(desc) => {
                    entries[count] = Some((bytes.as_ptr().addr(), n, desc));
                    count += 1;
                    self.built.used.extend(registered.flatten());
                    n
                }
                None => {
                    let n = n.min(room.len() - filled);
                    if n == 0 || (!own_last && count == limit) {
                        break;
                    }
                    room[filled..filled + n].copy_from_slice(&bytes[..n]);
                    if own_last {
                        spans[count - 1].1 += n;
                    } else {
                        spans[count] = (filled, n);
                        count += 1;
                    }
                    filled += n;
                    match piece {
                        UserMemory::Shared(_) | UserMemory::Raw(_) if desc.is_none() => copied += n,
                        // A pool is registered when it is first used; until then its buffers are copied.
                        UserMemory::Buffer(buffer) if desc.is_none() && !self.told.contains(&buffer.region().address()) => {
                            self.told.push(buffer.region().address());
                            self.unknown = Some(buffer.region().clone());
                        }
                        _ => {}
                    }
                    n
                }
            };
            total += taken;
            self.cursor.bytes += taken;
            self.cursor.offset += taken;
            if self.cursor.offset == piece.as_slice().len() {
                self.cursor.offset = 0;
                self.cursor.pieces += 1;
            }
        }
        let done = self.cursor.bytes == len;
        // A message that is not whole keeps all of its pieces until its last packet has left.
        let built = &mut self.built;
        built.begin(kind, memory, u32::from(done), if done { pieces } else { 0 });
        for index in 0..count {
            match entries[index] {
                Some((start, n, desc)) => built.add(start, n, desc),
                None => built.add_memory(slab, spans[index].0, spans[index].1),
            }
        }
        debug_assert!(kind.is_some() || built.len != HEAD_LEN && built.len > 0);
        built.copied = copied;
        if done {
            self.cursor = Cursor::default();
        } else {
            self.items.push_front(Item::Message { header, pieces, len });
        }
    }

    /// The built packet was posted; gives nothing back until it has left. The tag names it.
    pub(crate) fn posted(&mut self) {
        let built = &mut self.built;
        if !mem::take(&mut built.is_ready) {
            return;
        }
        let flight = Flight {
            tag: self.next_tag,
            memory: built.memory.take(),
            messages: built.messages,
            pieces: built.user_pieces,
            is_control: false,
        };
        for registered in built.used.drain(..) {
            match self.used.iter_mut().find(|(known, _)| ptr::addr_eq(Arc::as_ptr(known), Arc::as_ptr(&registered))) {
                Some((_, last)) => *last = flight.tag,
                None => self.used.push((registered, flight.tag)),
            }
        }
        self.waiting = self.waiting.saturating_sub(built.waited());
        if self.is_empty() {
            self.waiting = 0;
        }
        self.flying_pieces += flight.pieces;
        self.flights.push_back(flight);
        self.next_tag = self.next_tag.wrapping_add(1);
    }

    /// A control packet was posted from a slot.
    pub(crate) fn posted_control(&mut self, slot: Slot) {
        self.flights.push_back(Flight { tag: self.next_tag, memory: Some(Memory::Head(slot)), messages: 0, pieces: 0, is_control: true });
        self.next_tag = self.next_tag.wrapping_add(1);
    }

    /// The tag of the next packet to be posted.
    pub(crate) fn next_tag(&self) -> u16 {
        self.next_tag
    }

    /// A slot for a control packet.
    pub(crate) fn take_head(&mut self) -> Option<Slot> {
        self.heads.pop()
    }

    /// Takes the slot of a control packet back that was not posted.
    pub(crate) fn return_head(&mut self, slot: Slot) {
        self.heads.push(slot);
    }

    /// The packet with this tag has left, and so have those before it. Gives the number of messages that left with
    /// them.
    pub(crate) fn left(&mut self, tag: u16) -> usize {
        // A tag that is not in flight is ahead of all by more than there are.
        let Some(first) = self.flights.front() else { return 0 };
        let count = usize::from(tag.wrapping_sub(first.tag)) + 1;
        if count > self.flights.len() {
            return 0;
        }
        let mut messages = 0;
        for _ in 0..count {
            let Some(flight) = self.flights.pop_front() else { break };
            messages += flight.messages as usize;
            self.moved |= !flight.is_control;
            flight.memory.into_iter().for_each(|memory| self.give_back(memory));
            self.flying_pieces -= flight.pieces;
            self.pieces.drain(..flight.pieces).for_each(|memory| self.retired.push(memory));
        }
        // Those whose last packet has left.
        let (first, flying) = (self.flights.front().map_or(self.next_tag, |flight| flight.tag), self.flights.len());
        self.used.retain(|(_, last)| usize::from(last.wrapping_sub(first)) < flying);
        messages
    }

    /// Whether something of a message has left since this was asked last, be it only a part.
    pub(crate) fn take_moved(&mut self) -> bool {
        mem::take(&mut self.moved)
    }

    /// Everything that was posted has left: gives the number of messages.
    pub(crate) fn all_left(&mut self) -> usize {
        self.flights.back().map(|last| last.tag).map_or(0, |tag| self.left(tag))
    }

    /// Moves user memory that is no longer needed into `retired`.
    pub(crate) fn retire(&mut self, retired: &mut Vec<UserMemory>) {
        self.retired.take(retired);
    }

    /// Gives everything up of a connection that goes on, the device being done with it. Buffers are kept until it ends.
    pub(crate) fn give_up(&mut self) {
        self.retired.give_up(self.pieces.drain(..));
        self.forget();
    }

    /// The same of one that has ended.
    pub(crate) fn abandon(&mut self) {
        self.retired.end(self.pieces.drain(..));
        self.forget();
    }

    fn forget(&mut self) {
        let retired = mem::take(&mut self.retired);
        *self = Self { retired, ..Self::new(Vec::new(), Vec::new(), self.packet_len) };
    }

    /// Gives memory back that an idle connection does not need.
    pub(crate) fn trim(&mut self) {
        self.spare = Vec::new();
        if self.is_empty() && self.flights.is_empty() {
            (self.items, self.pieces, self.headers, self.flights) = Default::default();
        }
    }

    fn give_back(&mut self, memory: Memory) {
        match memory {
            Memory::Send(slot) => self.sends.push(slot),
            Memory::Head(slot) => self.heads.push(slot),
            Memory::Heap(memory) if memory.len() >= self.packet_len => self.spare.push(memory),
            Memory::Heap(_) => {}
        }
    }
}

fn fill(room: &mut [u8], header: &[u8], pieces: impl Iterator<Item: AsRef<[u8]>>) {
    let (to, mut room) = room.split_at_mut(header.len());
    to.copy_from_slice(header);
    for piece in pieces {
        let piece = piece.as_ref();
        let (to, rest) = room.split_at_mut(piece.len());
        to.copy_from_slice(piece);
        room = rest;
    }
}

#[cfg(test)]
mod tests;
