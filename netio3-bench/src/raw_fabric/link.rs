//! A connection.

use std::collections::VecDeque;
use std::sync::Arc;

use netio3_libfabric::fabric::{Domain, Endpoint};
use nix::libc::iovec;

use crate::raw_fabric::memory::Block;
use crate::raw_fabric::outbox::Outbox;
use crate::raw_fabric::packet::{HEAD_LEN, Head, Kind};
use crate::raw_fabric::receives::{Came, Packet, Receives};
use crate::raw_fabric::sends::Sends;

/// The longest message that is not a measured one.
const CONTROL_LEN: usize = 1 << 10;
/// How many of them a side sends at most.
const CONTROLS: usize = 4;

/// A connection. Its memory goes after its endpoint.
pub struct Link {
    pub endpoint: Endpoint,
    pub sends: Sends,
    pub receives: Receives,
    pub outbox: Option<Outbox>,
    pub domain: Arc<Domain>,
    /// Whether packets may be sent.
    pub connected: bool,
    /// What is to be said, with the messages that are not measured ones; and how many were.
    controls: VecDeque<Vec<u8>>,
    said: usize,
    memory: Block,
}

/// What a completion is of.
pub const RECEIVE: usize = 0;
pub const SEND: usize = 1;

impl Link {
    /// A connection's state, with its receives posted.
    pub fn new(endpoint: Endpoint, domain: &Arc<Domain>, index: usize, depth: usize) -> Result<Self, String> {
        if endpoint.inject_size() < crate::raw_fabric::packet::CREDIT_LEN {
            return Err("the provider sends no short packets by copy (fi_inject), which returned credits need".into());
        }
        let mut link = Self {
            endpoint,
            sends: Sends::new(index << 1 | SEND, depth),
            receives: Receives::new(domain, index << 1 | RECEIVE)?,
            outbox: None,
            domain: domain.clone(),
            connected: false,
            controls: VecDeque::new(),
            said: 0,
            memory: Block::new(domain, CONTROLS * (HEAD_LEN + CONTROL_LEN))?,
        };
        link.receives.post(&link.endpoint)?;
        Ok(link)
    }

    /// Says something, as soon as there is room.
    pub fn say(&mut self, message: Vec<u8>) {
        debug_assert!(message.len() <= CONTROL_LEN && self.said + self.controls.len() < CONTROLS);
        self.controls.push_back(message);
    }

    /// A receive completed: takes it, and posts again what is free. `hold`: the caller releases.
    #[inline]
    pub fn take(&mut self, len: usize, hold: bool, hand_out: impl FnMut(Came<'_>)) -> Result<Packet, String> {
        let packet = self.receives.take(len, hand_out)?;
        self.sends.credits += packet.credits;
        if !hold {
            self.receives.release_all();
            self.receives.post(&self.endpoint)?;
        }
        Ok(packet)
    }

    /// Sends what is to be said, then measured messages, while there is room; then returns credits.
    #[inline]
    pub fn pump(&mut self) -> Result<(), String> {
        self.sends.again = false;
        if !self.connected {
            return Ok(());
        }
        if !self.controls.is_empty() {
            self.say_now()?;
        } else if let Some(outbox) = &mut self.outbox {
            outbox.pump(&self.endpoint, &mut self.sends, &mut self.receives)?;
        }
        if !self.receives.return_credits(&self.endpoint)? {
            self.sends.again = true;
        }
        Ok(())
    }

    #[allow(unsafe_code)]
    fn say_now(&mut self) -> Result<(), String> {
        while let Some(message) = self.controls.front().filter(|_| self.sends.room()) {
            let head = Head { kind: Kind::Control, credits: self.receives.owed(), total: message.len() as u32 };
            let packet = [&head.encode()[..], message].concat();
            let start = self.memory.at(self.said % CONTROLS * (HEAD_LEN + CONTROL_LEN));
            // SAFETY: each part of the block is used once, and is long enough for what is said.
            unsafe { start.copy_from_nonoverlapping(packet.as_ptr(), packet.len().min(HEAD_LEN + CONTROL_LEN)) };
            let pieces = [iovec { iov_base: start.cast(), iov_len: packet.len() }];
            // SAFETY: as above; the block goes after the endpoint.
            if !unsafe { self.sends.post(&self.endpoint, &pieces, self.memory.descs(), true)? } {
                break;
            }
            self.receives.grant(head.credits);
            self.said += 1;
            self.controls.pop_front();
        }
        Ok(())
    }
}
