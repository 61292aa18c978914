//! A backend under test with callbacks that write the journal and run the case's hooks.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::IoSlice;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use super::journal::{SharedJournal, Tally, What};
use super::pattern::{content, digest};
use super::world::is_running;
use crate::address::EndPointAddress;
use crate::backend::{NetworkBackend, Unsent};
use crate::callbacks::{Callbacks, ConnectionInfo};
use crate::config::{ConnectionParameters, ConnectionParametersRecv};
use crate::endpoint::Endpoint;
use crate::error::{BufferError, OpenSendError, SendError};
use crate::message::Message;
use crate::status::{ClosedReason, Completion, CompletionKind, Direction, NetioStatus, RefusedReason};

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

/// A backend with its hooks; a clone is the same node. It belongs to the thread of its loop.
#[derive(Clone)]
pub(super) struct Node(Rc<State>);

struct State {
    number: usize,
    name: &'static str,
    journal: SharedJournal,
    backend: RefCell<Option<Handle>>,
    hooks: RefCell<Vec<(Kind, Hook)>>,
}

type Hook = Rc<RefCell<dyn FnMut(&Call<'_, '_>)>>;

/// A share of a node's backend.
#[derive(Clone)]
pub(super) enum Handle {
    Own(Rc<dyn NetworkBackend>),
    Shared(Arc<dyn NetworkBackend + Send + Sync>),
}

impl Deref for Handle {
    type Target = dyn NetworkBackend;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Own(backend) => &**backend,
            Self::Shared(backend) => &**backend,
        }
    }
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

/// How to send one message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    family: Family,
    len: usize,
    header: usize,
    pieces: usize,
    by_address: Option<EndPointAddress>,
    key: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Family {
    ZeroCopy,
    Copy,
    Buffer,
}

impl Plan {
    /// `len` bytes in all, header included.
    pub(super) fn zero_copy(len: usize) -> Self {
        Self { family: Family::ZeroCopy, len, header: 0, pieces: 1, by_address: None, key: None }
    }

    pub(super) fn copy(len: usize) -> Self {
        Self { family: Family::Copy, ..Self::zero_copy(len) }
    }

    pub(super) fn buffer(len: usize) -> Self {
        Self { family: Family::Buffer, ..Self::zero_copy(len) }
    }

    /// The first `header` bytes are the header.
    pub(super) fn header(self, header: usize) -> Self {
        Self { header, ..self }
    }

    /// The rest comes in so many pieces, of which some are empty.
    pub(super) fn pieces(self, pieces: usize) -> Self {
        Self { pieces, ..self }
    }

    pub(super) fn by_address(self, address: EndPointAddress) -> Self {
        Self { by_address: Some(address), ..self }
    }

    pub(super) fn key(self, key: u64) -> Self {
        Self { key: Some(key), ..self }
    }
}

impl Node {
    pub(super) fn new(
        name: &'static str,
        journal: &SharedJournal,
        create: impl FnOnce(Box<dyn Callbacks + Send>) -> Box<dyn NetworkBackend>,
    ) -> Self {
        Self::made(name, journal, |recorder| Handle::Own(Rc::from(create(recorder))))
    }

    pub(super) fn synchronized(
        name: &'static str,
        journal: &SharedJournal,
        create: impl FnOnce(Box<dyn Callbacks + Send>) -> Box<dyn NetworkBackend + Send + Sync>,
    ) -> Self {
        Self::made(name, journal, |recorder| Handle::Shared(Arc::from(create(recorder))))
    }

    fn made(name: &'static str, journal: &SharedJournal, create: impl FnOnce(Box<dyn Callbacks + Send>) -> Handle) -> Self {
        let number = journal.lock().add_node(name);
        let state = State { number, name, journal: journal.clone(), backend: RefCell::default(), hooks: RefCell::default() };
        let node = Self(Rc::new(state));
        NODES.with_borrow_mut(|nodes| nodes.insert(number, node.clone()));
        let backend = create(Box::new(Recorder { number, journal: journal.clone() }));
        node.0.backend.replace(Some(backend));
        node
    }

    pub(super) fn backend(&self) -> Handle {
        self.0.backend.borrow().clone().expect("the case has not dropped the backend")
    }

    /// The synchronized kind's backend, for other threads.
    pub(super) fn shared(&self) -> Arc<dyn NetworkBackend + Send + Sync> {
        match self.backend() {
            Handle::Shared(backend) => backend,
            Handle::Own(_) => panic!("{} is not of the synchronized kind", self.0.name),
        }
    }

    /// Drops the backend, here and now.
    pub(super) fn drop_backend(&self) {
        let backend = self.0.backend.take().expect("the case has not dropped the backend");
        let shares = match &backend {
            Handle::Own(backend) => Rc::strong_count(backend),
            Handle::Shared(backend) => Arc::strong_count(backend),
        };
        assert_eq!(shares, 1, "somebody else holds the backend");
        self.record(None, What::Gone);
        drop(backend);
    }

    pub(super) fn drop_if_alive(&self) {
        if self.0.backend.borrow().is_some() {
            self.drop_backend();
        }
    }

    /// Gives the backend away, to be dropped elsewhere.
    pub(super) fn give_away(&self) -> Arc<dyn NetworkBackend + Send + Sync> {
        let shared = self.shared();
        self.0.backend.take();
        shared
    }

    /// From here on there must be no callback.
    pub(super) fn expect_silence(&self) {
        self.record(None, What::Gone);
    }

    /// Several threads send, or the messages are not the suite's: the case checks them itself.
    pub(super) fn counts_itself(&self) {
        self.0.journal.lock().nodes[self.0.number].counts_itself = true;
    }

    pub(super) fn forget_hooks(&self) {
        let hooks = self.0.hooks.take();
        drop(hooks);
    }

    // ----- hooks -----

    /// Runs `hook` in every callback of a kind.
    pub(super) fn on(&self, kind: Kind, hook: impl FnMut(&Call<'_, '_>) + 'static) {
        self.0.hooks.borrow_mut().push((kind, Rc::new(RefCell::new(hook))));
    }

    /// Runs `hook` in the first callback of a kind.
    pub(super) fn once(&self, kind: Kind, hook: impl FnOnce(&Call<'_, '_>) + 'static) {
        let mut hook = Some(hook);
        self.on(kind, move |call| {
            if let Some(hook) = hook.take() {
                hook(call);
            }
        });
    }

    // ----- opening and closing, journalled -----

    pub(super) fn listen(&self, address: EndPointAddress, params: &ConnectionParametersRecv) -> EndPointAddress {
        self.backend().open_listen_endpoint(&address, params).expect("the address is free")
    }

    pub(super) fn open(&self, address: EndPointAddress, params: &ConnectionParameters) -> Endpoint {
        self.open_through(&*self.backend(), address, params).expect("the address is free")
    }

    pub(super) fn open_through(
        &self,
        backend: &dyn NetworkBackend,
        address: EndPointAddress,
        params: &ConnectionParameters,
    ) -> Result<Endpoint, OpenSendError> {
        let endpoint = backend.open_send_endpoint(&address, params)?;
        self.0.journal.lock().record(self.0.number, Some(endpoint), Some(address), What::Opened);
        Ok(endpoint)
    }

    pub(super) fn connect(&self, address: EndPointAddress, params: &ConnectionParameters) -> Endpoint {
        let endpoint = self.backend().connect(&address, params).expect("the connection can be started");
        self.0.journal.lock().record(self.0.number, Some(endpoint), Some(address), What::Opened);
        endpoint
    }

    pub(super) fn close(&self, endpoint: Endpoint) {
        self.record(Some(endpoint), What::Closing("close"));
        self.backend().close(endpoint).expect("the connection is there");
    }

    pub(super) fn abort(&self, endpoint: Endpoint) {
        self.record(Some(endpoint), What::Closing("abort"));
        self.backend().abort(endpoint).expect("the connection is there");
    }

    // ----- sending, journalled -----

    #[track_caller]
    pub(super) fn send(&self, to: Endpoint, plan: Plan) -> NetioStatus {
        self.send_through(&*self.backend(), to, plan).expect("the connection is there")
    }

    /// Sends and expects it to be accepted.
    #[track_caller]
    pub(super) fn sent(&self, to: Endpoint, plan: Plan) {
        assert_eq!(self.send(to, plan), NetioStatus::Ok, "{plan:?} on {to}");
    }

    /// Sends, whether accepted or refused for want of room.
    #[track_caller]
    pub(super) fn sent_or_refused(&self, to: Endpoint, plan: Plan) {
        let status = self.send(to, plan);
        assert!(matches!(status, NetioStatus::Ok | NetioStatus::NoResources), "{status:?}: {plan:?} on {to}");
    }

    /// Sends the next message of the stream that leaves by `to`, and journals what came of it.
    pub(super) fn send_through(&self, backend: &dyn NetworkBackend, to: Endpoint, plan: Plan) -> Result<NetioStatus, SendError> {
        let seq = self.0.journal.lock().accepted(to) as u64;
        let bytes = content(to, seq, plan.len);
        let key = plan.key.unwrap_or(1_000 + seq);
        let (header, payload) = bytes.split_at(plan.header);
        let (key, kind, status) = match plan.family {
            Family::ZeroCopy => {
                let payload = Bytes::copy_from_slice(payload);
                let pieces: Vec<Bytes> = cuts(payload.len(), plan.pieces).map(|cut| payload.slice(cut)).collect();
                let status = match (plan.by_address, &pieces[..]) {
                    (None, [piece]) => backend.send(to, piece, header, key),
                    (None, pieces) => backend.send_iov(to, pieces, header, key),
                    (Some(address), [piece]) => backend.send_data(&address, piece, header, key),
                    (Some(address), pieces) => backend.send_data_iov(&address, pieces, header, key),
                };
                (key, CompletionKind::ZeroCopy, status?)
            }
            Family::Copy => {
                let pieces: Vec<IoSlice<'_>> = cuts(payload.len(), plan.pieces).map(|cut| IoSlice::new(&payload[cut])).collect();
                let status = match (plan.by_address, &pieces[..]) {
                    (None, [piece]) => backend.send_copy(to, piece, header, key),
                    (None, pieces) => backend.send_copy_iov(to, pieces, header, key),
                    (Some(address), [piece]) => backend.send_data_copy(&address, piece, header, key),
                    (Some(address), pieces) => backend.send_data_copy_iov(&address, pieces, header, key),
                };
                (key, CompletionKind::Copy, status?)
            }
            Family::Buffer => {
                let taken = match plan.by_address {
                    None => backend.take_buffer(to),
                    Some(address) => backend.get_buffer(&address),
                };
                let buffer = match taken {
                    Ok(buffer) => buffer,
                    Err(BufferError::UnknownSendEndpoint(target)) => return Err(SendError::UnknownSendEndpoint(target)),
                    Err(error) => panic!("{error}"),
                };
                match buffer {
                    None => (0, CompletionKind::Buffer, NetioStatus::NoResources),
                    Some(mut buffer) => {
                        buffer.extend_from_slice(&bytes).expect("the plan fits the buffers");
                        let key = buffer.id();
                        let sent = match plan.by_address {
                            None => backend.send_taken(to, buffer),
                            Some(address) => backend.send_buffer(&address, buffer),
                        };
                        match sent {
                            Ok(()) => (key, CompletionKind::Buffer, NetioStatus::Ok),
                            Err(Unsent { outcome, .. }) => (key, CompletionKind::Buffer, outcome?),
                        }
                    }
                }
            }
        };
        match status {
            NetioStatus::Ok => self.accepted(to, Completion { key, kind }, &bytes),
            NetioStatus::NoResources => self.refused(to),
            _ => {}
        }
        Ok(status)
    }

    /// Journals a message that the case sent by itself and that was accepted.
    pub(super) fn accepted(&self, to: Endpoint, completion: Completion, bytes: &[u8]) {
        self.record(Some(to), What::Accepted(completion, digest(bytes)));
    }

    /// Journals a refusal for want of resources of a send that the case made by itself.
    pub(super) fn refused(&self, to: Endpoint) {
        self.record(Some(to), What::Full);
    }

    fn record(&self, endpoint: Option<Endpoint>, what: What) {
        self.0.journal.lock().record(self.0.number, endpoint, None, what);
    }

    // ----- what happened -----

    pub(super) fn tally(&self, endpoint: Endpoint) -> Tally {
        self.0.journal.lock().tally(endpoint)
    }

    pub(super) fn is_established(&self, endpoint: Endpoint) -> bool {
        self.tally(endpoint).established.is_some()
    }

    pub(super) fn refusal(&self, endpoint: Endpoint) -> Option<RefusedReason> {
        self.tally(endpoint).refused
    }

    pub(super) fn closing(&self, endpoint: Endpoint) -> Option<ClosedReason> {
        self.tally(endpoint).reason()
    }

    pub(super) fn received(&self, endpoint: Endpoint) -> usize {
        self.tally(endpoint).received
    }

    pub(super) fn completed(&self, endpoint: Endpoint) -> usize {
        self.tally(endpoint).completed
    }

    pub(super) fn writables(&self, endpoint: Endpoint) -> usize {
        self.tally(endpoint).writable
    }

    /// The connections accepted so far, in order.
    pub(super) fn accepted_peers(&self) -> Vec<ConnectionInfo> {
        let journal = self.0.journal.lock();
        let infos = journal.entries.iter().filter(|entry| entry.node == self.0.number).filter_map(|entry| match &entry.what {
            What::Established(info) if info.direction == Direction::Incoming => Some(info.clone()),
            _ => None,
        });
        infos.collect()
    }

    /// How many callbacks of any kind this node had.
    pub(super) fn callbacks(&self) -> usize {
        let journal = self.0.journal.lock();
        journal.entries.iter().filter(|entry| entry.node == self.0.number && entry.what.is_callback()).count()
    }
}

/// Cuts `len` bytes into pieces of uneven lengths; of more than two, every third is empty.
fn cuts(len: usize, pieces: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let filled = (0..pieces).filter(move |i| pieces <= 2 || i % 3 != 1).count();
    let mut start = 0;
    let mut left = filled;
    (0..pieces).map(move |i| {
        if pieces > 2 && i % 3 == 1 {
            return start..start;
        }
        left -= 1;
        let end = if left == 0 { len } else { (start + (len - start) / (left + 1) + i % 2).min(len) };
        let cut = start..end;
        start = end;
        cut
    })
}

thread_local! {
    /// The nodes of this thread, found by the number that their callbacks carry (callbacks must be `Send`).
    static NODES: RefCell<HashMap<usize, Node>> = RefCell::default();
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// The callbacks of a node.
struct Recorder {
    number: usize,
    journal: SharedJournal,
}

impl Recorder {
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
        let hooks: Vec<Hook> = node.0.hooks.borrow().iter().filter(|(on, _)| *on == kind).map(|(_, hook)| hook.clone()).collect();
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
