//! What the loopback backend keeps for each connection.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use bytes::Bytes;

use crate::address::EndPointAddress;
use crate::loopback::line::End;
use crate::loopback::outbox::Outbox;
use crate::loopback::pipe::{Frame, Spent, Taken};
use crate::message::{Meter, Take};

/// One end of a connection, with what is on its way in and out.
pub(super) struct Link {
    pub(super) end: End,
    pub(super) local_address: EndPointAddress,
    pub(super) stage: Cell<Stage>,
    pub(super) outbox: RefCell<Outbox>,
    /// The pipe had no room for the first message of the outbox; it will wake this side.
    pub(super) blocked: Cell<bool>,
    pub(super) goodbye: Goodbye,
    /// Frames taken from the pipe and not handled yet.
    arrived: RefCell<VecDeque<Frame>>,
    spent: RefCell<Spent>,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Said hello, waits for the answer.
    AwaitsWelcome,
    /// Accepted, waits for the hello.
    AwaitsHello,
    /// Messages go both ways.
    Open,
}

/// How far an orderly close has come.
#[derive(Default)]
pub(super) struct Goodbye {
    /// To be said when the outbox is empty.
    pub(super) due: Cell<bool>,
    pub(super) said: Cell<bool>,
    pub(super) heard: Cell<bool>,
}

impl Link {
    pub(super) fn new(end: End, local_address: EndPointAddress, stage: Stage) -> Self {
        Self {
            end,
            local_address,
            stage: Cell::new(stage),
            outbox: RefCell::default(),
            blocked: Cell::new(false),
            goodbye: Goodbye::default(),
            arrived: RefCell::default(),
            spent: RefCell::default(),
        }
    }

    /// Whether the next frame is a message; `None` when nothing has been taken from the pipe.
    pub(super) fn is_message_next(&self) -> Option<bool> {
        self.arrived.borrow().front().map(|frame| matches!(frame, Frame::Message(_)))
    }

    pub(super) fn next_frame(&self) -> Option<Frame> {
        self.arrived.borrow_mut().pop_front()
    }

    /// Takes what came since; call it when nothing taken before is left.
    pub(super) fn take(&self) -> Taken {
        self.end.take(&mut self.arrived.borrow_mut())
    }

    /// A message was handled; `memory` is what is left of it.
    pub(super) fn consume(&self, len: usize, memory: Vec<u8>) {
        let mut spent = self.spent.borrow_mut();
        if spent.add(len, memory) {
            self.end.consumed(&mut spent);
        }
    }

    /// Makes room in the pipe for what was handled.
    pub(super) fn report(&self) {
        let mut spent = self.spent.borrow_mut();
        if !spent.is_empty() {
            self.end.consumed(&mut spent);
        }
    }

    /// Hangs up; returns how many messages arrived that nobody will see.
    pub(super) fn hang_up(&self) -> u64 {
        let lost = [self.arrived.take(), self.end.hang_up()];
        lost.iter().flatten().filter(|frame| matches!(frame, Frame::Message(_))).count() as u64
    }

    /// Gives memory back that an idle connection does not need.
    pub(super) fn trim(&self) {
        self.outbox.borrow_mut().trim();
        self.end.trim();
        let mut arrived = self.arrived.borrow_mut();
        if arrived.is_empty() {
            *arrived = VecDeque::new();
        }
    }
}

/// A message in memory of its own, which its receiver may keep.
pub(super) struct Whole<'a> {
    pub(super) memory: Vec<u8>,
    pub(super) meter: &'a Meter,
}

impl Take for Whole<'_> {
    fn as_slice(&self) -> &[u8] {
        &self.memory
    }

    fn take(&mut self) -> Bytes {
        self.meter.own(std::mem::take(&mut self.memory))
    }
}
