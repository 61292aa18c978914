//! The memory of one connection that the device reads from and writes to.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use netio3_core::MemoryRegion;

use crate::fabric::{self, Access, Desc, Domain, FabricError};

/// How the memory of a connection is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes of the longest packet, received or sent.
    pub(crate) packet_len: usize,
    /// Slots to receive into.
    pub(crate) receives: u16,
    /// Slots to build long packets in.
    pub(crate) sends: u16,
    /// Slots for the short beginnings of packets.
    pub(crate) heads: u16,
}

/// Bytes of a slot for the beginning of a packet.
pub(crate) const HEAD_SLOT_LEN: usize = 512;

/// Memory in one piece, registered once, and divided into slots.
pub(crate) struct Slab {
    // Closed before the memory goes.
    registration: Option<fabric::MemoryRegion>,
    memory: MemoryRegion,
    layout: Layout,
    /// Counts what all slabs of a backend have pinned.
    pinned: Arc<AtomicU64>,
}

/// One slot. Whoever holds it is the only one with access to its memory, except the device while it is posted.
///
/// It does not know its slab: whoever asks a slab for the memory of a slot sees to it that it was cut from that one
/// ([`Receiving::memory_of`](crate::receiving::Receiving::memory_of)). All `unsafe` here relies on that.
#[derive(Debug)]
pub(crate) struct Slot {
    index: u16,
    area: u8,
    offset: usize,
    capacity: usize,
}

/// The slots of a slab, when it is new.
pub(crate) struct Slots {
    pub(crate) receives: Vec<Slot>,
    pub(crate) sends: Vec<Slot>,
    pub(crate) heads: Vec<Slot>,
}

impl Layout {
    /// Bytes of the memory.
    pub(crate) fn bytes(&self) -> usize {
        (usize::from(self.receives) + usize::from(self.sends)) * self.packet_len + usize::from(self.heads) * HEAD_SLOT_LEN
    }
}

impl Slab {
    /// New memory, registered where the device asks for that. This may block.
    ///
    /// # Errors
    /// No such memory, or the device cannot use it.
    pub(crate) fn new(domain: &Arc<Domain>, layout: Layout, pinned: &Arc<AtomicU64>) -> Result<(Self, Slots), FabricError> {
        let bytes = layout.bytes();
        let memory = MemoryRegion::new(bytes)
            .map_err(|error| FabricError::refused("mmap", error.raw_os_error().unwrap_or(12), error.to_string()))?;
        let registration = match domain.needs_registration() {
            // SAFETY: the memory is mapped for as long as `memory` lives, which is dropped after the registration.
            true => Some(unsafe { fabric::MemoryRegion::register(domain, memory.address() as *const u8, bytes, Access::SendReceive)? }),
            false => None,
        };
        let slab = Self { registration, memory, layout, pinned: pinned.clone() };
        pinned.fetch_add(slab.pinned_bytes(), Ordering::Relaxed);
        let slots = slab.cut();
        Ok((slab, slots))
    }

    /// Memory that no device knows.
    #[cfg(test)]
    pub(crate) fn unregistered(layout: Layout) -> Self {
        let memory = MemoryRegion::new(layout.bytes()).expect("so much memory");
        Self { registration: None, memory, layout, pinned: Arc::default() }
    }

    /// Divides the memory anew. The caller has seen to it that all earlier slots are gone and nothing is posted any more:
    /// two slots of the same memory would be two exclusive borrows of it.
    pub(crate) fn cut(&self) -> Slots {
        let mut offset = 0;
        let mut cut = |count: u16, capacity: usize| {
            let slot = |index| {
                offset += capacity;
                Slot { index, area: 0, offset: offset - capacity, capacity }
            };
            (0..count).map(slot).collect()
        };
        let Layout { packet_len, receives, sends, heads } = self.layout;
        Slots { receives: cut(receives, packet_len), sends: cut(sends, packet_len), heads: cut(heads, HEAD_SLOT_LEN) }
    }

    /// Divides memory that is all for receiving: the slots lie behind each other, and are numbered from `first` on.
    pub(crate) fn cut_area(&self, area: u8, first: u16) -> Vec<Slot> {
        let capacity = self.layout.packet_len;
        (0..self.layout.receives).map(|n| Slot { index: first + n, area, offset: usize::from(n) * capacity, capacity }).collect()
    }

    fn pinned_bytes(&self) -> u64 {
        if self.registration.is_some() { self.memory.len() as u64 } else { 0 }
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// What the device wants to be told with addresses of this memory.
    pub(crate) fn desc(&self) -> Desc {
        self.registration.as_ref().map_or(Desc::NONE, fabric::MemoryRegion::desc)
    }

    /// Where a slot begins.
    pub(crate) fn start(&self, slot: &Slot) -> *mut u8 {
        debug_assert!(slot.offset + slot.capacity <= self.memory.len());
        (self.memory.address() + slot.offset) as *mut u8
    }

    /// The first bytes of a slot that is not posted.
    pub(crate) fn filled(&self, slot: &Slot, len: usize) -> &[u8] {
        // SAFETY: the slot was cut from this mapping, whose bytes are initialized by the kernel. Nobody writes: the
        // device does only while the slot is posted, when nobody holds it, and others would need the slot.
        unsafe { std::slice::from_raw_parts(self.start(slot), len.min(slot.capacity)) }
    }

    /// So many bytes of slots that lie behind each other, none of which is posted: all but the first `skipped`.
    pub(crate) fn span(&self, slots: &[Slot], skipped: usize, len: usize) -> &[u8] {
        let Some(first) = slots.first() else { return &[] };
        debug_assert!(slots.windows(2).all(|pair| pair[0].is_before(&pair[1])));
        assert!(skipped + len <= slots.len() * first.capacity);
        // SAFETY: as in `filled`, for each of the slots; `Assembly` has seen that they lie behind each other.
        unsafe { std::slice::from_raw_parts(self.start(first).wrapping_add(skipped), len) }
    }

    /// The memory of a slot that is not posted.
    #[allow(clippy::mut_from_ref, reason = "the slot is borrowed exclusively, and slots do not overlap")]
    pub(crate) fn room<'a>(&'a self, slot: &'a mut Slot) -> &'a mut [u8] {
        // SAFETY: as in `filled`, and the slot is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start(slot), slot.capacity) }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        self.pinned.fetch_sub(self.pinned_bytes(), Ordering::Relaxed);
    }
}

impl Slot {
    /// Its place among those of its kind.
    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    /// The area it is in; 0 is the slab of its connection.
    pub(crate) fn area(&self) -> u8 {
        self.area
    }

    /// Whether the other one lies directly behind it.
    pub(crate) fn is_before(&self, other: &Self) -> bool {
        self.area == other.area && self.offset + self.capacity == other.offset
    }

    /// Its length in bytes.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }
}
