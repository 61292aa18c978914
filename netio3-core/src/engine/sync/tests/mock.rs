//! A loop that is turned by hand, and a transport that goes nowhere.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::address::EndPointAddress;
use crate::config::{ConnectionParameters, ConnectionParametersRecv};
use crate::engine::{
    Connection, Copies, Engine, Freed, Listener, Opener, Outgoing, Payload, Release, Run, State, Transport, Upcalls, UserMemory,
};
use crate::error::{RegisterError, RunError};
use crate::event_loop::{Budget, EventLoop, Interest, Next, Ready, Remote, Source, SourceId, WatchId};
use crate::memory::{MemoryRegion, RegionId};
use crate::message::Message;
use crate::stats::LoopCounters;

/// A loop with one source. Nothing happens unless a method of this is called.
#[derive(Clone)]
pub(super) struct MockLoop(Rc<Inner>);

struct Inner {
    source: RefCell<Option<Box<dyn Source>>>,
    removed: Cell<bool>,
    scheduled: Cell<bool>,
    now: Cell<Instant>,
    remote: Arc<MockRemote>,
}

#[derive(Default)]
struct MockRemote {
    wakes: AtomicUsize,
}

impl MockLoop {
    pub(super) fn new() -> Self {
        let inner = Inner {
            source: RefCell::default(),
            removed: Cell::new(false),
            scheduled: Cell::new(false),
            now: Cell::new(Instant::now()),
            remote: Arc::default(),
        };
        Self(Rc::new(inner))
    }

    /// The end of a turn.
    pub(super) fn turn(&self) -> Next {
        self.turn_within(Budget::DEFAULT)
    }

    pub(super) fn turn_within(&self, mut budget: Budget) -> Next {
        self.0.scheduled.set(false);
        self.run(|source| source.before_sleep(self, &mut budget)).unwrap_or(Next::Wait)
    }

    /// The connection in a place is readable.
    pub(super) fn readable(&self, place: usize) {
        self.run(|source| source.ready(self, place, Ready::READABLE, &mut Budget::default()));
    }

    /// Deadlines have passed.
    pub(super) fn timeout(&self) {
        self.run(|source| source.timeout(self));
    }

    /// How often the loop was woken since the last call.
    pub(super) fn wakes(&self) -> usize {
        self.0.remote.wakes.swap(0, Ordering::SeqCst)
    }

    pub(super) fn is_scheduled(&self) -> bool {
        self.0.scheduled.get()
    }

    pub(super) fn pass(&self, time: Duration) {
        self.0.now.set(self.0.now.get() + time);
    }

    pub(super) fn has_source(&self) -> bool {
        self.0.source.borrow().is_some()
    }

    fn run<R>(&self, run: impl FnOnce(&mut dyn Source) -> R) -> Option<R> {
        let mut source = self.0.source.take()?;
        let result = run(&mut *source);
        if !self.0.removed.get() {
            self.0.source.replace(Some(source));
        }
        Some(result)
    }
}

impl EventLoop for MockLoop {
    fn handle(&self) -> Rc<dyn EventLoop> {
        Rc::new(self.clone())
    }

    fn remote(&self) -> Arc<dyn Remote> {
        self.0.remote.clone()
    }

    fn add_source(&self, source: Box<dyn Source>) -> SourceId {
        self.0.source.replace(Some(source));
        SourceId(0)
    }

    fn remove_source(&self, _: SourceId) {
        self.0.removed.set(true);
        drop(self.0.source.take());
    }

    fn watch(&self, _: SourceId, _: BorrowedFd<'_>, _: usize, _: Interest) -> io::Result<WatchId> {
        unreachable!()
    }

    fn unwatch(&self, _: WatchId, _: BorrowedFd<'_>) {
        unreachable!()
    }

    fn redeliver(&self, _: SourceId, _: usize, _: Ready) {}

    fn set_deadline(&self, _: SourceId, _: Option<Instant>) {}

    fn schedule(&self) {
        self.0.scheduled.set(true);
    }

    fn now(&self) -> Instant {
        self.0.now.get()
    }

    fn is_running(&self) -> bool {
        false
    }

    fn counters(&self) -> Arc<LoopCounters> {
        unreachable!()
    }

    fn run(&self) -> Result<(), RunError> {
        unreachable!()
    }

    fn run_for(&self, _: Duration) -> Result<(), RunError> {
        unreachable!()
    }

    fn run_until(&self, _: &mut dyn FnMut() -> bool, _: Duration) -> Result<bool, RunError> {
        unreachable!()
    }

    fn run_once(&self, _: Option<Duration>) -> Result<(), RunError> {
        unreachable!()
    }

    fn stop(&self) {
        unreachable!()
    }
}

impl Remote for MockRemote {
    fn wake(&self) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
    }

    fn post(&self, _: Box<dyn FnOnce(&dyn EventLoop) + Send>) -> bool {
        unreachable!()
    }

    fn stop(&self) {
        unreachable!()
    }

    fn is_loop_thread(&self) -> bool {
        unreachable!()
    }
}

/// A transport whose connections are established when they are first readable, and bring a message each
/// time after.
#[derive(Clone, Default)]
pub(super) struct MockTransport(Rc<Wire>);

#[derive(Default)]
pub(super) struct Wire {
    /// What was given to the transport, in order.
    pub(super) enqueued: RefCell<Vec<Vec<u8>>>,
    /// Shared memory is copied.
    pub(super) copies: Cell<bool>,
    /// Nothing leaves.
    pub(super) blocked: Cell<bool>,
    /// The loop cannot take anything on.
    pub(super) full: Cell<bool>,
    /// How often an idle connection's memory was to be given back.
    pub(super) trims: Cell<usize>,
    /// How often memory was to be lent.
    pub(super) asked: Cell<usize>,
    /// How much of it is lent, if any, in bytes.
    pub(super) lends: Cell<Option<usize>>,
    /// The longest message that peers take, if not 1 MiB.
    pub(super) max_message_len: Cell<Option<usize>>,
    /// What others do while a run is handed over.
    pub(super) meanwhile: RefCell<Option<Box<dyn Fn()>>>,
}

impl std::ops::Deref for MockTransport {
    type Target = Wire;

    fn deref(&self) -> &Wire {
        &self.0
    }
}

#[derive(Default)]
pub(super) struct MockLink {
    unsent: Cell<usize>,
    held: RefCell<Vec<Bytes>>,
}

#[derive(Default)]
pub(super) struct MockOpener {
    /// What making memory known to a device waits for.
    pub(super) pinning: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Opener for MockOpener {
    type Dialing = ();
    type Listening = ();

    fn dial(&self, _: &EndPointAddress, _: &ConnectionParameters) -> io::Result<()> {
        Ok(())
    }

    fn listen(&self, address: &EndPointAddress, _: &ConnectionParametersRecv) -> io::Result<((), EndPointAddress)> {
        Ok(((), *address))
    }

    fn register(&self, _: RegionId, _: &MemoryRegion) -> Result<(), RegisterError> {
        let pinning = self.pinning.lock().unwrap().take();
        pinning.into_iter().for_each(|pin| pin());
        Ok(())
    }
}

impl Transport for MockTransport {
    const NAME: &'static str = "mock";
    type Opener = MockOpener;
    type Link = MockLink;
    type Listener = ();

    fn adopt(&self, _: &Engine<Self>, _: usize, (): ()) -> io::Result<MockLink> {
        if self.full.get() { Err(io::Error::other("full")) } else { Ok(MockLink::default()) }
    }

    fn adopt_listener(&self, _: &Engine<Self>, _: usize, (): ()) -> io::Result<()> {
        if self.full.get() { Err(io::Error::other("full")) } else { Ok(()) }
    }

    fn ready(&self, up: &mut Upcalls<'_, Self>, connection: &Rc<Connection<MockLink>>, _: Ready, _: &mut Budget) -> Next {
        if connection.state() == State::Opening {
            up.established(connection, EndPointAddress::localhost(1), self.max_message_len.get().unwrap_or(1 << 20), Duration::ZERO);
        } else if up.engine().is_receiving(connection) {
            let _ = up.data(connection, Message::borrowed(b"data", &connection.meter));
            up.engine().count_read(connection);
            up.engine().trim_later(connection);
        }
        Next::Wait
    }

    fn listener_ready(&self, _: &Rc<Engine<Self>>, _: &Rc<Listener<()>>, _: &mut Budget) -> Next {
        unreachable!()
    }

    fn enqueue(&self, _engine: &Engine<Self>, connection: &Rc<Connection<MockLink>>, message: Outgoing<'_>) -> usize {
        let mut bytes = message.header.to_vec();
        match message.payload {
            Payload::Shared(pieces) => {
                pieces.iter().for_each(|piece| bytes.extend_from_slice(piece));
                if !self.copies.get() {
                    connection.link.held.borrow_mut().extend_from_slice(pieces);
                }
            }
            Payload::Copied(pieces) => pieces.iter().for_each(|piece| bytes.extend_from_slice(piece)),
            Payload::Raw(pieces) => pieces.held().for_each(|piece| bytes.extend_from_slice(piece.as_slice())),
            Payload::Buffer(buffer) => bytes.extend_from_slice(Payload::take(buffer).as_slice()),
        }
        assert_eq!(bytes.len(), message.len);
        self.enqueued.borrow_mut().push(bytes);
        connection.link.unsent.set(connection.link.unsent.get() + 1);
        0
    }

    const RUN_HEAD: Option<fn(usize) -> [u8; 8]> = Some(|len| (len as u64).to_le_bytes());

    fn enqueue_run(&self, _engine: &Engine<Self>, connection: &Rc<Connection<MockLink>>, run: Run<'_>) -> usize {
        let messages: Vec<Vec<u8>> = run.messages().map(<[u8]>::to_vec).collect();
        let framed = messages.iter().flat_map(|message| [&(message.len() as u64).to_le_bytes(), &message[..]].concat());
        let bytes = run.bytes().to_vec();
        assert!(framed.eq(bytes.iter().copied()));
        let spare = || {
            let mut spare = Copies::default();
            spare.push(&[9; 64], || None);
            spare.clear();
            Some(spare)
        };
        if let Ok(taken) = run.take(16, spare) {
            assert!(taken.as_slice() == bytes);
        }
        connection.link.unsent.set(connection.link.unsent.get() + messages.len());
        self.enqueued.borrow_mut().extend(messages);
        self.meanwhile.borrow().iter().for_each(|meanwhile| meanwhile());
        0
    }

    fn lend(&self, _: &Connection<MockLink>) -> Option<Copies> {
        self.asked.set(self.asked.get() + 1);
        let mut copies = Copies::default();
        copies.push(&vec![9; self.lends.get()?], || None);
        copies.clear();
        Some(copies)
    }

    fn give_back(&self, connection: &Connection<MockLink>, copies: Copies) {
        let mut rest = copies.as_slice();
        while let Some((head, behind)) = rest.split_first_chunk() {
            let (message, behind) = behind.split_at(u64::from_le_bytes(*head) as usize);
            self.enqueued.borrow_mut().push(message.to_vec());
            connection.link.unsent.set(connection.link.unsent.get() + 1);
            rest = behind;
        }
        assert!(rest.is_empty());
    }

    fn flush(&self, engine: &Engine<Self>, connection: &Rc<Connection<MockLink>>) {
        if !self.blocked.get() {
            engine.left_messages(connection, connection.link.unsent.take());
            if let State::Closing(reason) = connection.state() {
                engine.finish(connection, reason, Release::Orderly);
            }
        }
    }

    fn retire(&self, connection: &Connection<MockLink>, retired: &mut Vec<UserMemory>) {
        if connection.link.unsent.get() == 0 || connection.is_over() {
            retired.extend(connection.link.held.take().into_iter().map(UserMemory::Shared));
        }
    }

    fn close(&self, _: &Engine<Self>, connection: &Rc<Connection<MockLink>>) {
        assert!(matches!(connection.state(), State::Closing(_)));
    }

    fn heartbeat(&self, _: &Engine<Self>, _: &Rc<Connection<MockLink>>) {}

    fn trim(&self, _: &Engine<Self>, _: &Connection<MockLink>) {
        self.trims.set(self.trims.get() + 1);
    }

    fn release(&self, _: &Engine<Self>, _: &Rc<Connection<MockLink>>, _: Release) -> Freed {
        Freed::AtOnce
    }

    fn release_listener(&self, _: &Engine<Self>, _: &Listener<()>) {}
}
