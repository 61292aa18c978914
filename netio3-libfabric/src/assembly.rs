//! A message that comes in several packets.

use std::sync::Arc;

use crate::receiving::Broken;
use crate::slab::{Slab, Slot};
use crate::wire::HEAD_LEN;

/// The message being put together: where its parts have landed, if they lie behind each other, and otherwise in memory
/// of its own.
#[derive(Default)]
pub(crate) struct Assembly {
    /// Its length; 0 when none is under way.
    expected: usize,
    /// Bytes that have come.
    got: usize,
    memory: Vec<u8>,
    /// The slots that its parts fill, and the memory they are in. Without it the parts are in `memory`.
    landed: Vec<Slot>,
    slab: Option<Arc<Slab>>,
    /// Its first part filled its slot, so that such messages can be put together in place.
    fills: bool,
    /// Slots that are not needed any more.
    spent: Vec<Slot>,
}

impl Assembly {
    /// A message of so many bytes begins, with a part that lies in a slot behind a head. With a slab, in which further
    /// slots lie behind it, the slot is kept. Tells whether the message is complete.
    pub(crate) fn begin(&mut self, total: usize, part: &[u8], slot: &mut Option<Slot>, slab: Option<&Arc<Slab>>) -> Result<bool, Broken> {
        if self.is_under_way() {
            return Err(Broken::Part);
        }
        (self.expected, self.got) = (total, 0);
        self.memory.clear();
        self.fills = slot.as_ref().is_some_and(|slot| HEAD_LEN + part.len() == slot.capacity());
        self.slab = slab.filter(|_| self.fills).cloned();
        self.landed.extend(slot.take_if(|_| self.slab.is_some()));
        self.add(part)
    }

    /// The next part came, which lies at the beginning of a slot. Tells whether the message is complete.
    pub(crate) fn go_on(&mut self, part: &[u8], slot: &mut Option<Slot>) -> Result<bool, Broken> {
        if let Some(last) = self.landed.last() {
            let is_last = self.got + part.len() == self.expected;
            match slot.take_if(|slot| last.is_before(slot) && (is_last || part.len() == slot.capacity())) {
                Some(slot) => self.landed.push(slot),
                None => self.move_out()?,
            }
        }
        self.add(part)
    }

    /// Memory is taken as the message arrives: nothing on its length's word.
    fn add(&mut self, part: &[u8]) -> Result<bool, Broken> {
        if part.len() > self.expected - self.got {
            return Err(Broken::Length);
        }
        if self.slab.is_none() {
            self.reserve(part.len())?;
            self.memory.extend_from_slice(part);
        }
        self.got += part.len();
        Ok(self.got == self.expected)
    }

    /// Makes room for so many bytes more of the message: twice of what there is, but no more than the message needs.
    fn reserve(&mut self, more: usize) -> Result<(), Broken> {
        let needed = self.memory.len() + more;
        if needed <= self.memory.capacity() {
            return Ok(());
        }
        let len = self.expected.min(2 * self.memory.capacity()).max(needed);
        self.memory.try_reserve_exact(len - self.memory.len()).map_err(|_| Broken::Memory)
    }

    /// Copies what has landed, since what follows does not lie behind it.
    fn move_out(&mut self) -> Result<(), Broken> {
        if self.slab.is_some() {
            self.reserve(self.got)?;
        }
        if let Some(slab) = self.slab.take() {
            self.memory.extend_from_slice(slab.span(&self.landed, HEAD_LEN, self.got));
            self.spent.append(&mut self.landed);
        }
        Ok(())
    }

    /// Its length.
    pub(crate) fn expected(&self) -> usize {
        self.expected
    }

    /// Whether a message has begun and not been handed out.
    pub(crate) fn is_under_way(&self) -> bool {
        self.expected > 0
    }

    /// The message, if it lies where it landed.
    pub(crate) fn landed(&self) -> Option<&[u8]> {
        self.slab.as_ref().map(|slab| slab.span(&self.landed, HEAD_LEN, self.expected))
    }

    /// Whether the message was copied for want of memory to land in.
    pub(crate) fn wants_area(&self) -> bool {
        self.fills && self.slab.is_none()
    }

    /// The message, if it was copied.
    pub(crate) fn memory(&mut self) -> &mut Vec<u8> {
        &mut self.memory
    }

    /// The message was handed out.
    pub(crate) fn end(&mut self) {
        (self.expected, self.got) = (0, 0);
        self.memory.clear();
        self.slab = None;
        self.spent.append(&mut self.landed);
    }

    /// A slot that is not needed any more.
    pub(crate) fn take_spent(&mut self) -> Option<Slot> {
        self.spent.pop()
    }

    /// Bytes of memory that it holds.
    pub(crate) fn held(&self) -> usize {
        self.memory.capacity()
    }

    /// Gives memory back that is not in use.
    pub(crate) fn trim(&mut self) {
        if !self.is_under_way() {
            self.memory = Vec::new();
        }
    }
}
