//! What a connection may send, and what is on its way.

use std::collections::VecDeque;

use libfabric_sys::FI_COMPLETION;
use netio3_libfabric::fabric::{Desc, Endpoint, Posted};
use nix::libc::iovec;

use crate::raw_fabric::packet::CREDITS;

/// The sends of a connection.
pub struct Sends {
    context: usize,
    /// Packets the peer has room for.
    pub credits: u64,
    /// Counts since the beginning, of sends that complete.
    posted: u64,
    completed: u64,
    /// What is complete with each completion that will come.
    signalled: VecDeque<u64>,
    unsignalled: u64,
    depth: u64,
    /// The provider had no room although few sends are on their way: try again without waiting for a sign.
    pub again: bool,
}

impl Sends {
    /// At most `depth` sends at once.
    pub fn new(context: usize, depth: usize) -> Self {
        let depth = depth as u64;
        let (credits, signalled) = (CREDITS as u64, VecDeque::with_capacity(8));
        Self { context, credits, posted: 0, completed: 0, signalled, unsignalled: 0, depth, again: false }
    }

    /// Whether a packet can be sent.
    #[inline]
    pub fn room(&self) -> bool {
        self.credits > 0 && self.posted - self.completed < self.depth
    }

    /// The number of the next send: with those before it, at most `depth` are on their way.
    #[inline]
    pub fn next(&self) -> u64 {
        self.posted
    }

    /// How many may be on their way.
    pub fn depth(&self) -> u64 {
        self.depth
    }

    /// Sends before this number are over.
    pub fn completed(&self) -> u64 {
        self.completed
    }

    /// Posts a packet, for which there must be room; tells whether the provider took it. It completes with every
    /// quarter of the queue, and if it is the last one.
    ///
    /// # Safety
    /// The pieces must stay as they are, and registered, until the send is over or the endpoint was dropped.
    #[allow(unsafe_code)]
    #[inline]
    pub unsafe fn post(&mut self, endpoint: &Endpoint, pieces: &[iovec], descs: &[Desc], last: bool) -> Result<bool, String> {
        let signal = last || self.unsignalled + 1 >= self.depth.div_ceil(4);
        let flags = if signal { FI_COMPLETION } else { 0 };
        // SAFETY: the caller's promise.
        match unsafe { endpoint.send(pieces, descs, self.context, flags) } {
            Ok(Posted::Yes) => {
                self.posted += 1;
                self.credits -= 1;
                self.unsignalled += 1;
                if signal {
                    self.signalled.push_back(self.posted);
                    self.unsignalled = 0;
                }
                Ok(true)
            }
            Ok(Posted::Again) => {
                self.again = true;
                Ok(false)
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Sends a packet that is short enough to be copied by the provider.
    #[inline]
    pub fn inject(&mut self, endpoint: &Endpoint, packet: &[u8]) -> Result<bool, String> {
        let sent = endpoint.inject(packet).map_err(|error| error.to_string())?;
        if sent {
            self.credits -= 1;
        } else {
            self.again = true;
        }
        Ok(sent)
    }

    /// A completion came.
    #[inline]
    pub fn complete(&mut self) {
        if let Some(number) = self.signalled.pop_front() {
            self.completed = number;
        }
    }
}
