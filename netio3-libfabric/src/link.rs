//! What the backend keeps for each connection and listener.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;

use netio3_core::ClosedReason;
use netio3_core::engine::UserMemory;

use crate::devices::{Net, Queue, Registered};
use crate::fabric::{Completion, Endpoint, EventQueue, PassiveEndpoint};
use crate::receiving::Receiving;
use crate::sending::Sending;
use crate::slab::Slab;
use crate::wire::Hello;

/// A connection's endpoint, the memory it uses, and what is on its way.
pub(crate) struct Link {
    /// Names it in contexts and events; never used again.
    pub(crate) id: u64,
    pub(crate) stage: Cell<Stage>,
    /// What the peer said of itself, as far as it is known.
    pub(crate) hello: Cell<Option<Hello>>,
    /// Present from when the helper thread has made it.
    pub(crate) body: RefCell<Option<Body>>,
    /// User memory that is free since the endpoint was closed.
    pub(crate) leftover: RefCell<Vec<UserMemory>>,
    pub(crate) goodbye: Goodbye,
    /// The provider connected before the helper thread told of the endpoint: the peer's private data.
    pub(crate) early: RefCell<Option<Vec<u8>>>,
    /// Receives that completed before the helper thread told of the endpoint.
    pub(crate) early_receives: RefCell<Vec<Completion>>,
    /// The connection is over, so that the helper thread need not make it any more.
    pub(crate) over: Arc<AtomicBool>,
    /// The peer is gone; what came before is still to be handled.
    pub(crate) gone: Cell<bool>,
    /// The peer broke the protocol, or a limit, before the provider told that it is connected: nothing more of it is handled.
    pub(crate) broken: Cell<Option<ClosedReason>>,
    /// Some of what waited to leave was given up.
    pub(crate) gave_up: Cell<bool>,
    /// In the list of those whose end is to be handled.
    pub(crate) listed_lost: Cell<bool>,
    /// In the list of those that have receives to be posted.
    pub(crate) listed_unposted: Cell<bool>,
    /// The device took no more just now.
    pub(crate) stuck: Cell<bool>,
    /// The user was told once that memory outside the registered regions is copied.
    pub(crate) warned: Cell<bool>,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The helper thread makes the endpoint.
    Making,
    /// The provider connects.
    Connecting,
    /// Both hellos were accepted.
    Open,
    /// The endpoint is being closed.
    Closed,
}

/// An endpoint until it is closed. The loop uses it; the lock is for the end of a backend on another thread, which
/// closes all endpoints before it returns, so that no device reads the user's memory afterwards.
pub(crate) type SharedEndpoint = Arc<Mutex<Option<Endpoint>>>;

/// Closes an endpoint, unless it is. The lock is held meanwhile, so that nobody takes it for closed before.
pub(crate) fn end(endpoint: &SharedEndpoint) {
    let mut endpoint = endpoint.lock();
    if let Some(endpoint) = endpoint.take() {
        // It fails where the connection is over already.
        let _ = endpoint.shutdown();
    }
}

/// Where both sides are in saying goodbye.
#[derive(Debug, Default)]
pub(crate) struct Goodbye {
    pub(crate) due: Cell<bool>,
    pub(crate) said: Cell<bool>,
    pub(crate) heard: Cell<bool>,
    pub(crate) farewell_said: Cell<bool>,
    pub(crate) farewell_heard: Cell<bool>,
}

/// The parts of a connection that need the device.
pub(crate) struct Body {
    // In the order of dropping: the endpoint lets go of the memory first.
    pub(crate) endpoint: SharedEndpoint,
    pub(crate) sending: Sending,
    pub(crate) receiving: Receiving,
    pub(crate) slab: Arc<Slab>,
    pub(crate) queue: Arc<Queue>,
    /// Memory for long messages was asked for and has not come; or never will.
    pub(crate) area_asked: bool,
    /// The memory of its pool of buffers.
    pub(crate) registered: Vec<Registered>,
    /// Data packets that the peer takes.
    pub(crate) credits: u16,
    /// Control packets that the peer takes.
    pub(crate) control: u8,
    /// Posted packets since the last that asked for a completion.
    pub(crate) unsignalled: usize,
    /// Packets that may be posted and not completed.
    pub(crate) depth: usize,
    /// Pieces of one post.
    pub(crate) iov_limit: usize,
    /// Bytes that can be sent without a completion.
    pub(crate) inject_size: usize,
}

impl Body {
    /// Completions that room was set aside for.
    pub(crate) fn reserved(&self) -> usize {
        self.depth + usize::from(self.slab.layout().receives)
    }

    /// Bytes that wait for being posted and not for credits.
    pub(crate) fn unsent(&self) -> usize {
        if self.credits > 0 { self.sending.waiting() } else { 0 }
    }
}

impl Link {
    pub(crate) fn new(id: u64, stage: Stage, hello: Option<Hello>) -> Self {
        Self {
            id,
            stage: Cell::new(stage),
            hello: Cell::new(hello),
            body: RefCell::new(None),
            leftover: RefCell::default(),
            goodbye: Goodbye::default(),
            early: RefCell::new(None),
            early_receives: RefCell::default(),
            over: Arc::default(),
            gone: Cell::new(false),
            gave_up: Cell::new(false),
            broken: Cell::new(None),
            listed_lost: Cell::new(false),
            listed_unposted: Cell::new(false),
            stuck: Cell::new(false),
            warned: Cell::new(false),
        }
    }
}

impl Body {
    /// Ends the endpoint; the device touches its memory no more afterwards. This may block.
    pub(crate) fn close(&mut self) {
        end(&self.endpoint);
        self.registered.clear();
        self.receiving.drop_areas();
        self.queue.unreserve(self.reserved());
        self.queue.device.take_back(self.slab.layout());
    }

    /// Takes apart what is left of a connection whose endpoint is closed: its memory goes to the next one, and the
    /// user's memory is given back.
    pub(crate) fn dissolve(mut self, retired: &mut Vec<UserMemory>) {
        self.sending.abandon();
        self.sending.retire(retired);
        drop(self.receiving);
        self.queue.device.keep(self.slab);
    }
}

impl Goodbye {
    /// Whether both sides have said everything.
    pub(crate) fn is_complete(&self) -> bool {
        self.farewell_said.get() && self.farewell_heard.get()
    }
}

/// A bound listener.
pub(crate) struct Listening {
    pub(crate) id: u64,
    pub(crate) passive: Arc<PassiveEndpoint>,
    /// Of its own, so that what the provider has begun with peers ends together with the listener: version 1.17's
    /// tcp provider goes on with it otherwise, and reads what is freed.
    pub(crate) events: Arc<EventQueue>,
    pub(crate) net: Arc<Net>,
    /// How often the queue was readable without having had anything since.
    pub(crate) vain: Cell<u32>,
    /// It is looked at again after a while, and not before.
    pub(crate) waits: Cell<bool>,
}
