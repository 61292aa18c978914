//! Which memory is registered.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::error::{DeregisterError, RegisterError};
use crate::memory::{MemoryRegion, RawSlice};

/// Names a registered region of one backend; never reused in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegionId(u64);

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The regions that a message holds, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HeldRegions(u64);

/// The registered regions of a backend, at most 64.
#[derive(Default)]
pub(crate) struct RegionTable {
    slots: Vec<Option<Registered>>,
    limit: usize,
    strict: bool,
    count: usize,
    /// Places that are kept for regions to be entered.
    reserved: usize,
}

struct Registered {
    id: RegionId,
    region: MemoryRegion,
    /// Accepted messages that hold it.
    messages: usize,
}

impl RegionTable {
    pub(crate) fn new(limit: usize, strict: bool) -> Self {
        debug_assert!(limit <= 64);
        Self { limit, strict, ..Default::default() }
    }

    /// Keeps a place for a region, until it is entered or given up: making it known to a device may take long.
    ///
    /// # Errors
    /// There is none left.
    pub(crate) fn reserve(&mut self) -> Result<RegionId, RegisterError> {
        if self.count + self.reserved >= self.limit {
            return Err(RegisterError::TooManyRegions { limit: self.limit });
        }
        self.reserved += 1;
        // Relaxed: the number only has to be unique, so that other backends' are unknown here.
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Ok(RegionId(NEXT_ID.fetch_add(1, Ordering::Relaxed)))
    }

    /// Gives a place up that was kept.
    pub(crate) fn give_up(&mut self) {
        self.reserved -= 1;
    }

    /// Enters a region in the place that was kept for it.
    pub(crate) fn enter(&mut self, id: RegionId, region: &MemoryRegion) {
        self.reserved -= 1;
        self.count += 1;
        let registered = Some(Registered { id, region: region.clone(), messages: 0 });
        match self.slots.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => *slot = registered,
            None => self.slots.push(registered),
        }
    }

    pub(crate) fn deregister(&mut self, id: RegionId) -> Result<MemoryRegion, DeregisterError> {
        let slot = self.slots.iter_mut().find(|slot| slot.as_ref().is_some_and(|r| r.id == id)).ok_or(DeregisterError::Unknown(id))?;
        match slot.take_if(|registered| registered.messages == 0) {
            Some(registered) => {
                self.count -= 1;
                Ok(registered.region)
            }
            None => Err(DeregisterError::Busy(id)),
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.slots.iter().flatten().map(|registered| registered.region.len() as u64).sum()
    }

    /// The regions that these pieces lie in, or `None` when one must lie in a region and does not.
    pub(crate) fn find<P: Piece>(&self, pieces: &[P]) -> Option<HeldRegions> {
        if self.count == 0 {
            let outside = self.strict && pieces.iter().any(|piece| piece.range().1 > 0);
            return (!outside).then_some(HeldRegions::default());
        }
        let mut held = 0;
        for (address, len) in pieces.iter().map(Piece::range).filter(|range| range.1 > 0) {
            match self.slot_of(address, len) {
                Some(slot) => held |= 1 << slot,
                None if self.strict => return None,
                None => {}
            }
        }
        Some(HeldRegions(held))
    }

    fn slot_of(&self, address: usize, len: usize) -> Option<usize> {
        self.slots.iter().position(|slot| {
            slot.as_ref().is_some_and(|r| address >= r.region.address() && address - r.region.address() + len <= r.region.len())
        })
    }

    pub(crate) fn hold(&mut self, held: HeldRegions) {
        self.change(held, |messages| messages + 1);
    }

    pub(crate) fn release(&mut self, held: HeldRegions) {
        self.change(held, |messages| messages - 1);
    }

    fn change(&mut self, HeldRegions(mut bits): HeldRegions, f: impl Fn(usize) -> usize) {
        while bits != 0 {
            if let Some(registered) = &mut self.slots[bits.trailing_zeros() as usize] {
                registered.messages = f(registered.messages);
            }
            bits &= bits - 1;
        }
    }
}

impl HeldRegions {
    pub(crate) fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// A piece of memory to be sent.
pub(crate) trait Piece {
    /// Address and length.
    fn range(&self) -> (usize, usize);
}

impl Piece for Bytes {
    fn range(&self) -> (usize, usize) {
        (self.as_ptr().addr(), self.len())
    }
}

/// Address and length of a buffer's filled part.
impl Piece for (usize, usize) {
    fn range(&self) -> (usize, usize) {
        *self
    }
}

impl Piece for RawSlice {
    fn range(&self) -> (usize, usize) {
        (self.address(), self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_busy_while_a_message_holds_it() {
        let mut table = RegionTable::new(2, true);
        let region = MemoryRegion::new(4_096).unwrap();
        let bytes = region.bytes().unwrap();
        let pieces = [bytes.slice(10..20), Bytes::new()];
        assert!(table.find(&pieces).is_none());
        let id = table.reserve().unwrap();
        assert!(table.find(&pieces).is_none(), "it is not entered");
        table.enter(id, &region);
        let held = table.find(&pieces).unwrap();
        table.hold(held);
        assert_eq!(table.deregister(id).unwrap_err(), DeregisterError::Busy(id));
        table.release(held);
        assert!(table.deregister(id).is_ok());
        assert_eq!(table.deregister(id).unwrap_err(), DeregisterError::Unknown(id));
        assert!(table.find(&[Bytes::from_static(b"elsewhere")]).is_none());
    }

    #[test]
    fn the_limit_is_told() {
        let mut table = RegionTable::new(1, false);
        let region = MemoryRegion::new(1).unwrap();
        table.reserve().unwrap();
        assert_eq!(table.reserve().unwrap_err().to_string(), "1 memory regions are registered, which is the limit; use fewer, larger ones");
        table.give_up();
        let id = table.reserve().unwrap();
        table.enter(id, &region);
        assert!(table.reserve().is_err());
        assert!(table.find(&[Bytes::from_static(b"elsewhere")]).unwrap().is_none());
    }
}
