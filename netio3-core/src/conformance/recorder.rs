//! The callbacks of a node: they write the journal and run the case's hooks.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use bytes::Bytes;

use super::journal::{SharedJournal, What};
use super::node::{Hook, Node};
use super::pattern::digest;
use super::plan::Plan;
use super::world::is_running;
use crate::address::EndPointAddress;
use crate::backend::NetworkBackend;
use crate::callbacks::{Callbacks, ConnectionInfo};
use crate::endpoint::Endpoint;
use crate::message::Message;
use crate::status::{ClosedReason, Completion, NetioStatus, RefusedReason};

/// The kinds of callbacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Established,
    Refused,
    Closed,
    Data,
    Completed,
    Writable,
}

impl Kind {
    pub(super) const ALL: [Self; 6] = [Self::Established, Self::Refused, Self::Closed, Self::Data, Self::Completed, Self::Writable];
}

/// What a hook sees of the callback it runs in.
pub(super) struct Call<'a, 'm> {
    pub(super) node: &'a Node,
    pub(super) backend: &'a dyn NetworkBackend,
    pub(super) endpoint: Endpoint,
    pub(super) address: EndPointAddress,
    pub(super) what: &'a What,
    message: Cell<Option<Message<'m>>>,
}

impl Call<'_, '_> {
    /// The message of `on_data`, borrowed.
    pub(super) fn with_message<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        let message = self.message.take().expect("a message is there until taken");
        let result = look(&message);
        self.message.set(Some(message));
        result
    }

    /// The message of `on_data`, taken over.
    pub(super) fn take_over(&self) -> Bytes {
        self.message.take().expect("a message is there until taken").into_bytes()
    }

    pub(super) fn send(&self, to: Endpoint, plan: Plan) -> NetioStatus {
        self.node.send_through(self.backend, to, plan).expect("the connection is there")
    }
}

thread_local! {
    /// The nodes of this thread, found by the number that their callbacks carry (callbacks must be `Send`).
    static NODES: RefCell<HashMap<usize, Node>> = RefCell::default();
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// The callbacks of a node.
pub(super) struct Recorder {
    number: usize,
    journal: SharedJournal,
}

impl Recorder {
    pub(super) fn of(node: &Node, number: usize, journal: &SharedJournal) -> Self {
        NODES.with_borrow_mut(|nodes| nodes.insert(number, node.clone()));
        Self { number, journal: journal.clone() }
    }

    fn tell(
        &self,
        kind: Kind,
        backend: &dyn NetworkBackend,
        endpoint: Endpoint,
        address: EndPointAddress,
        what: What,
        message: Option<Message<'_>>,
    ) {
        let node = NODES.with_borrow(|nodes| nodes.get(&self.number).cloned());
        self.look_for_violations(kind, node.is_some());
        self.journal.lock().record(self.number, Some(endpoint), Some(address), what.clone());
        let Some(node) = node else { return };
        let _inside = Inside::enter();
        let hooks: Vec<Hook> = node.hooks(kind);
        let call = Call { node: &node, backend, endpoint, address, what: &what, message: Cell::new(message) };
        for hook in hooks {
            (hook.borrow_mut())(&call);
        }
    }

    fn look_for_violations(&self, kind: Kind, on_its_thread: bool) {
        let mut journal = self.journal.lock();
        let name = journal.nodes[self.number].name;
        let mut broken = |rule: &str| journal.violation(format!("{name} {kind:?}: {rule}"));
        if !on_its_thread {
            broken("a callback on a thread that is not the loop's");
        } else if !is_running() {
            broken("a callback while the loop does not run");
        }
        if INSIDE.get() {
            broken("a callback inside a callback");
        }
        if journal.nodes[self.number].gone {
            journal.violation(format!("{name} {kind:?}: a callback although the backend is gone"));
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = NODES.try_with(|nodes| nodes.borrow_mut().remove(&self.number));
    }
}

/// While one exists, a callback runs on this thread.
struct Inside(bool);

impl Inside {
    fn enter() -> Self {
        Self(INSIDE.replace(true))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(self.0);
    }
}

impl Callbacks for Recorder {
    fn on_connection_established(&mut self, backend: &dyn NetworkBackend, connection: &ConnectionInfo) {
        self.tell(Kind::Established, backend, connection.endpoint, connection.address, What::Established(connection.clone()), None);
    }

    fn on_connection_refused(
        &mut self,
        backend: &dyn NetworkBackend,
        endpoint: Endpoint,
        address: &EndPointAddress,
        reason: RefusedReason,
    ) {
        self.tell(Kind::Refused, backend, endpoint, *address, What::Refused(reason), None);
    }

    fn on_connection_closed(
        &mut self,
        backend: &dyn NetworkBackend,
        endpoint: Endpoint,
        address: &EndPointAddress,
        pending: &[Completion],
        reason: ClosedReason,
    ) {
        self.tell(Kind::Closed, backend, endpoint, *address, What::Closed(pending.to_vec(), reason), None);
    }

    fn on_data(&mut self, backend: &dyn NetworkBackend, from: Endpoint, address: &EndPointAddress, message: Message<'_>) {
        let what = What::Data(digest(&message));
        self.tell(Kind::Data, backend, from, *address, what, Some(message));
    }

    fn on_send_completed(
        &mut self,
        backend: &dyn NetworkBackend,
        endpoint: Endpoint,
        address: &EndPointAddress,
        completions: &[Completion],
    ) {
        self.tell(Kind::Completed, backend, endpoint, *address, What::Completed(completions.to_vec()), None);
    }

    fn on_writable(&mut self, backend: &dyn NetworkBackend, endpoint: Endpoint, address: &EndPointAddress) {
        self.tell(Kind::Writable, backend, endpoint, *address, What::Writable, None);
    }
}
