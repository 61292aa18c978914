//! A backend under test with callbacks that write the journal and run the case's hooks.

use std::cell::RefCell;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use super::journal::{SharedJournal, Tally, What};
use super::pattern::digest;
use super::recorder::{Call, Kind, Recorder};
use crate::address::EndPointAddress;
use crate::backend::NetworkBackend;
use crate::callbacks::{Callbacks, ConnectionInfo};
use crate::config::{ConnectionParameters, ConnectionParametersRecv};
use crate::endpoint::Endpoint;
use crate::error::OpenSendError;
use crate::status::{ClosedReason, Completion, CompletionKind, Direction, RefusedReason};

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

pub(super) type Hook = Rc<RefCell<dyn FnMut(&Call<'_, '_>)>>;

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
        let backend = create(Box::new(Recorder::of(&node, number, journal)));
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

    pub(super) fn hooks(&self, kind: Kind) -> Vec<Hook> {
        self.0.hooks.borrow().iter().filter(|(on, _)| *on == kind).map(|(_, hook)| hook.clone()).collect()
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
        self.did(endpoint, "close");
        self.backend().close(endpoint).expect("the connection is there");
    }

    pub(super) fn abort(&self, endpoint: Endpoint) {
        self.did(endpoint, "abort");
        self.backend().abort(endpoint).expect("the connection is there");
    }

    /// Journals a message that was accepted.
    pub(super) fn accepted(&self, to: Endpoint, key: u64, kind: CompletionKind, bytes: &[u8]) {
        let completion = Completion { key, kind, len: bytes.len() as u32 };
        self.record(Some(to), What::Accepted(completion, digest(bytes)));
    }

    /// Journals a refusal for want of resources.
    pub(super) fn refused(&self, to: Endpoint) {
        self.record(Some(to), What::Full(None));
    }

    /// Journals that a message of this length was refused for want of resources.
    pub(super) fn refused_message(&self, to: Endpoint, len: usize) {
        self.record(Some(to), What::Full(Some(len)));
    }

    /// Journals another call about a connection.
    pub(super) fn did(&self, endpoint: Endpoint, call: &'static str) {
        self.record(Some(endpoint), What::Did(call));
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

    /// The connections established so far, accepted ones or not, in order.
    pub(super) fn established_ends(&self) -> Vec<Endpoint> {
        let journal = self.0.journal.lock();
        let ends = journal.entries.iter().filter(|entry| entry.node == self.0.number && matches!(entry.what, What::Established(_)));
        ends.filter_map(|entry| entry.endpoint).collect()
    }

    /// How many callbacks of any kind this node had.
    pub(super) fn callbacks(&self) -> usize {
        let journal = self.0.journal.lock();
        journal.entries.iter().filter(|entry| entry.node == self.0.number && entry.what.is_callback()).count()
    }
}
