//! The RDMA backend as the engine drives it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;

use netio3_core::engine::{Connection, Engine, Freed, Listener, OWN, Outgoing, Payload, Release, State, Transport, Upcalls, UserMemory};
use netio3_core::{Budget, ClosedReason, ConnectionParameters, Interest, Next, Polled, Ready, RefusedReason, WatchId};

use crate::devices::{Device, Devices, Known, Net, Queue, Registered};
use crate::events::{BATCH, has_descriptors};
use crate::fabric::{Completion, Desc, EventQueue};
use crate::helper::{Done, Helper, Job};
use crate::link::{self, Link, Listening, SharedEndpoint, Stage};
use crate::opener::{Dialing, FabricOpener};
use crate::sending::Long;
use crate::slab::Layout;
use crate::wire::{CONTROL_RECEIVES, Hello, Kind, PACKET_EXTRA, VERSIONS};

/// Messages over libfabric's message endpoints.
pub(crate) struct Rdma {
    pub(crate) devices: Arc<Devices>,
    pub(crate) helper: Helper,
    pub(crate) done: Receiver<Done>,
    /// What is open.
    pub(crate) watched: RefCell<Vec<Watched>>,
    /// The loop is told of a queue's descriptor.
    told: Cell<bool>,
    pub(crate) ids: RefCell<Ids>,
    /// Endpoints that the helper thread closes, with their connections, unless nobody waits for that.
    pub(crate) closing: RefCell<HashMap<u64, (Conn, SharedEndpoint)>>,
    /// The event queues are to be read: one's descriptor says so, or one must not be slept on.
    pub(crate) events_due: Cell<bool>,
    /// Listeners by the name that their events carry.
    pub(crate) listeners: RefCell<HashMap<u64, usize>>,
    /// Connections whose peer is gone, to be handled once the queues are empty.
    pub(crate) lost: RefCell<Vec<Conn>>,
    /// Connections to be flushed again although no completion is to come.
    retry: RefCell<Vec<Conn>>,
    /// Connections that have receives to be posted, at the latest when the turn ends.
    pub(crate) unposted: RefCell<Vec<Conn>>,
    known: RefCell<KnownMemory>,
    /// The queues may have something, so that they are looked at before the loop sleeps.
    pub(crate) active: Cell<bool>,
    /// Room for what is read of them.
    pub(crate) batch: Cell<Option<Box<[Completion; BATCH]>>>,
    /// They were looked at since a turn ended last, and had nothing.
    pub(crate) dry: Cell<bool>,
    /// How often they were looked at.
    pub(crate) pumps: Cell<u32>,
}

pub(crate) type Conn = Rc<Connection<Link>>;

/// A queue that is read. Its descriptor is watched, except while the loop spins.
pub(crate) enum Watched {
    Events { net: Arc<Net>, events: Arc<EventQueue>, watch: Option<WatchId> },
    Completions { queue: Arc<Queue>, watch: Option<WatchId> },
}

/// The connections by the numbers in their names. A name is made of a number and how often that was given before.
#[derive(Default)]
pub(crate) struct Ids {
    entries: Vec<(u64, Option<usize>)>,
    free: Vec<usize>,
}

/// What the devices know of the user's memory, as of a certain version.
#[derive(Default)]
struct KnownMemory {
    version: usize,
    /// By the number of the device.
    stretches: HashMap<usize, Vec<Known>>,
}

const NUMBER_BITS: u32 = 20;

impl Watched {
    fn is_of(&self, queue: &Arc<EventQueue>) -> bool {
        matches!(self, Self::Events { events, .. } if Arc::ptr_eq(events, queue))
    }

    /// Its descriptor.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Events { events, .. } => events.fd(),
            Self::Completions { queue, .. } => queue.completions.fd(),
        }
    }

    fn watch(&mut self, engine: &Engine<Rdma>) -> io::Result<()> {
        let (token, fd, watch) = match self {
            Self::Events { events, watch, .. } => (EVENTS, events.fd(), watch),
            Self::Completions { queue, watch } => (COMPLETIONS, queue.completions.fd(), watch),
        };
        if watch.is_none() {
            *watch = Some(engine.event_loop().watch(engine.source(), fd, token, Interest::Readable)?);
        }
        Ok(())
    }

    fn unwatch(&mut self, engine: &Engine<Rdma>) {
        let (Self::Events { watch, .. } | Self::Completions { watch, .. }) = self;
        if let Some(watch) = watch.take() {
            engine.event_loop().unwatch(watch, self.fd());
        }
    }
}

impl Ids {
    /// A new name for what is watched under a token.
    pub(crate) fn add(&mut self, token: usize) -> u64 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.entries.push((0, None));
            self.entries.len() - 1
        });
        let entry = &mut self.entries[number];
        entry.0 = (entry.0 + 1) & ((1 << 24) - 1);
        entry.1 = Some(token);
        entry.0 << NUMBER_BITS | number as u64
    }

    /// The token of a name, if it is still in use.
    #[inline]
    pub(crate) fn get(&self, id: u64) -> Option<usize> {
        let number = (id & ((1 << NUMBER_BITS) - 1)) as usize;
        self.entries.get(number).filter(|(times, _)| *times == id >> NUMBER_BITS).and_then(|(_, token)| *token)
    }

    /// All tokens.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = usize> {
        self.entries.iter().filter_map(|(_, token)| *token)
    }

    pub(crate) fn remove(&mut self, id: u64) {
        let number = (id & ((1 << NUMBER_BITS) - 1)) as usize;
        if self.get(id).is_some() {
            self.entries[number].1 = None;
            self.free.push(number);
        }
    }
}

impl Rdma {
    pub(crate) fn new(devices: Arc<Devices>, helper: Helper, done: Receiver<Done>) -> Self {
        Self {
            devices,
            helper,
            done,
            watched: RefCell::default(),
            told: Cell::new(false),
            ids: RefCell::default(),
            closing: RefCell::default(),
            events_due: Cell::new(false),
            listeners: RefCell::default(),
            lost: RefCell::default(),
            retry: RefCell::default(),
            unposted: RefCell::default(),
            known: RefCell::default(),
            active: Cell::new(false),
            batch: Cell::new(None),
            dry: Cell::new(false),
            pumps: Cell::new(0),
        }
    }

    /// How the memory of connections is divided.
    pub(crate) fn layout(&self) -> Layout {
        let params = self.devices.params();
        Layout {
            packet_len: params.receive_size + PACKET_EXTRA,
            receives: params.receives + CONTROL_RECEIVES,
            sends: params.sends,
            heads: HEADS,
        }
    }

    /// What this side says of itself.
    pub(crate) fn hello(&self, engine: &Engine<Self>) -> Hello {
        Hello {
            versions: VERSIONS,
            verdict: Ok(()),
            max_message_len: u32::try_from(engine.config.max_message_len).unwrap_or(u32::MAX),
            heartbeat_interval: engine.config.heartbeat_interval,
            packet_len: u32::try_from(self.layout().packet_len).unwrap_or(u32::MAX),
            credits: self.devices.params().receives,
        }
    }

    /// Leaves a job to the helper thread.
    pub(crate) fn ask(&self, job: Job) {
        self.helper.ask(job);
    }

    /// Watches the event queue of a fabric and a completion queue, if they are not watched.
    pub(crate) fn watch(&self, engine: &Engine<Self>, queue: &Arc<Queue>) -> io::Result<()> {
        let net = &queue.device.net;
        if !self.watched.borrow().iter().any(|watched| watched.is_of(&net.events)) {
            self.watch_events(engine, net, &net.events)?;
        }
        let is_this = |watched: &Watched| matches!(watched, Watched::Completions { queue: present, .. } if Arc::ptr_eq(present, queue));
        if !self.watched.borrow().iter().any(is_this) {
            self.add(engine, Watched::Completions { queue: queue.clone(), watch: None })?;
        }
        self.look_soon(engine);
        Ok(())
    }

    /// Watches an event queue.
    fn watch_events(&self, engine: &Engine<Self>, net: &Arc<Net>, events: &Arc<EventQueue>) -> io::Result<()> {
        self.add(engine, Watched::Events { net: net.clone(), events: events.clone(), watch: None })?;
        self.events_due.set(true);
        self.look_soon(engine);
        Ok(())
    }

    fn add(&self, engine: &Engine<Self>, mut watched: Watched) -> io::Result<()> {
        watched.watch(engine)?;
        self.told.set(true);
        self.watched.borrow_mut().push(watched);
        Ok(())
    }

    /// Has the loop told of every queue again; tells whether it is.
    fn watch_all(&self, engine: &Engine<Self>) -> bool {
        self.told.set(true);
        let outcome = self.watched.borrow_mut().iter_mut().try_for_each(|watched| watched.watch(engine));
        outcome.inspect_err(|error| engine.cannot_watch(error)).is_ok()
    }

    /// Spares the kernel to tell the loop of queues that are polled: that takes about a microsecond of whoever sends.
    fn unwatch_all(&self, engine: &Engine<Self>) {
        if self.told.take() {
            self.watched.borrow_mut().iter_mut().for_each(|watched| watched.unwatch(engine));
        }
    }

    /// Has the queues looked at although no descriptor asks for it.
    fn look_soon(&self, engine: &Engine<Self>) {
        self.active.set(true);
        engine.event_loop().schedule();
    }

    /// The connection of a name.
    #[inline]
    pub(crate) fn connection(&self, engine: &Engine<Self>, id: u64) -> Option<Conn> {
        let token = self.ids.borrow().get(id)?;
        engine.at(token).filter(|connection| connection.link.id == id)
    }

    /// What a device wants to be told of some memory, if it knows it.
    pub(crate) fn desc_of(&self, device: &Device, bytes: &[u8]) -> Option<(Desc, Arc<Registered>)> {
        let version = self.devices.regions_version.load(Ordering::Acquire);
        let mut known = self.known.borrow_mut();
        if known.version != version {
            *known = KnownMemory { version, stretches: HashMap::new() };
        }
        let stretches = known.stretches.entry(device.number).or_insert_with(|| self.devices.known(device));
        stretches.iter().find_map(|known| known.find(bytes))
    }
}

/// What the loop is told to say of the queues' descriptors.
const COMPLETIONS: usize = OWN;
const EVENTS: usize = OWN | 1;
/// Slots for the beginnings of packets, for each connection.
const HEADS: u16 = 64;
/// How often the queues are looked at, in vain, for each time that a spinning loop asks for it: what a loop does between
/// takes about as long as looking once.
const PUMPS_PER_POLL: usize = 4;

impl Transport for Rdma {
    const NAME: &'static str = "rdma";
    type Opener = FabricOpener;
    type Link = Link;
    type Listener = Listening;

    fn adopt(&self, engine: &Engine<Self>, token: usize, dialing: Dialing) -> io::Result<Link> {
        let id = self.ids.borrow_mut().add(token);
        let hello = self.hello(engine);
        let link = Link::new(id, Stage::Making, None);
        let over = link.over.clone();
        self.ask(Job::Connect { id, over, address: dialing.address, source: dialing.source, hello, layout: self.layout() });
        Ok(link)
    }

    fn adopt_listener(&self, engine: &Engine<Self>, token: usize, listening: Listening) -> io::Result<Listening> {
        self.watch_events(engine, &listening.net, &listening.events)?;
        self.listeners.borrow_mut().insert(listening.id, token);
        Ok(listening)
    }

    fn ready(&self, up: &mut Upcalls<'_, Self>, connection: &Conn, ready: Ready, budget: &mut Budget) -> Next {
        if ready.contains(Ready::READABLE) {
            self.pump(up, budget);
            if !up.engine().is_gone() && !connection.is_over() {
                return self.handle_packets(up, connection, budget);
            }
        }
        Next::Wait
    }

    fn listener_ready(&self, engine: &Rc<Engine<Self>>, listener: &Rc<Listener<Listening>>, _budget: &mut Budget) -> Next {
        // Their events come through event queues, which are looked at anyway, but for one that could not accept before.
        listener.link.waits.set(false);
        // Where there are descriptors it was not for want of them: of peers that say nothing each look accepts one.
        if has_descriptors() {
            listener.link.vain.set(0);
        }
        self.events_due.set(true);
        self.look_soon(engine);
        Next::Wait
    }

    #[inline]
    fn enqueue(&self, engine: &Engine<Self>, connection: &Conn, message: Outgoing<'_>) -> usize {
        let mut body = connection.link.body.borrow_mut();
        let Some(open) = &mut *body else {
            // There is no endpoint for a peer that was established all the same: this is pending when that ends, which comes next.
            if let Payload::Buffer(buffer) = message.payload {
                connection.link.leftover.borrow_mut().push(UserMemory::Buffer(Payload::take(buffer)));
            }
            return 0;
        };
        if let (Payload::Copied(pieces), false) = (message.payload, open.sending.fits(message.len)) {
            drop(body);
            return self.enqueue_long(engine, connection, Long::new(message.header, pieces, message.len));
        }
        let copy_below = match connection.params.copy_below {
            ConnectionParameters::DEFAULT_COPY_BELOW => self.devices.params().pack_below,
            set => set,
        };
        if open.sending.push(message, copy_below, &open.slab) {
            connection.counters.copied_messages.add(1);
        }
        open.unsent()
    }

    fn flush(&self, engine: &Engine<Self>, connection: &Conn) {
        let link = &connection.link;
        if connection.is_over() || link.stage.get() != Stage::Open {
            return;
        }
        if link.gone.get() {
            return self.lose(engine, connection);
        }
        let mut body = link.body.borrow_mut();
        let Some(open) = &mut *body else { return };
        let mut left = 0;
        let posted = self.post(engine, connection, open, &mut left).and_then(|()| self.say(engine, connection, open));
        let quiet = open.sending.in_flight() == 0;
        // Where the last posted packet asked for its completion, that one goes on.
        let retry = link.stuck.take() && (quiet || open.unsignalled > 0);
        drop(body);
        self.active.set(true);
        if retry {
            self.retry.borrow_mut().push(connection.clone());
            engine.event_loop().schedule();
        }
        if left > 0 {
            engine.left_messages(connection, left);
        }
        if let Err(error) = posted {
            tracing::debug!(endpoint = %connection.endpoint, %error, "cannot post");
            return self.lose(engine, connection);
        }
        if link.goodbye.is_complete() && quiet {
            engine.finish(connection, ClosedReason::Local, Release::Orderly);
        }
    }

    fn retire(&self, connection: &Connection<Link>, retired: &mut Vec<UserMemory>) {
        retired.append(&mut connection.link.leftover.borrow_mut());
        if let Some(body) = &mut *connection.link.body.borrow_mut() {
            body.sending.retire(retired);
        }
    }

    fn close(&self, engine: &Engine<Self>, connection: &Conn) {
        connection.link.goodbye.due.set(true);
        if connection.link.gone.get() {
            return self.lose(engine, connection);
        }
        engine.flush_later(connection);
    }

    fn heartbeat(&self, engine: &Engine<Self>, connection: &Conn) {
        let link = &connection.link;
        if link.goodbye.farewell_said.get() || link.stage.get() != Stage::Open {
            return;
        }
        let mut body = link.body.borrow_mut();
        let Some(open) = &mut *body else { return };
        let sent = self.control(engine, connection, open, Kind::Heartbeat);
        drop(body);
        match sent {
            Ok(true) => connection.counters.heartbeats_sent.add(1),
            // Other packets are on their way, or the peer has not handled the last ones.
            Ok(false) => {}
            Err(_) => self.lose(engine, connection),
        }
    }

    fn release(&self, engine: &Engine<Self>, connection: &Conn, _how: Release) -> Freed {
        let link = &connection.link;
        self.ids.borrow_mut().remove(link.id);
        let was_open = link.stage.replace(Stage::Closed) == Stage::Open;
        link.over.store(true, Ordering::Release);
        engine.count_assembly(connection, 0);
        let Some(mut body) = link.body.take() else { return Freed::AtOnce };
        let unhandled = body.receiving.count_unhandled(&body.slab, engine.config.max_message_len);
        if unhandled > 0 {
            engine.count_discarded(connection, unhandled);
        }
        if engine.is_gone() {
            body.close();
            body.sending.abandon();
            body.sending.retire(&mut link.leftover.borrow_mut());
            // Its memory goes with it, not to a connection that is just being made: the callback that has dropped the backend
            // may go on reading the message that lies there.
            return Freed::AtOnce;
        }
        if was_open {
            self.closing.borrow_mut().insert(link.id, (connection.clone(), body.endpoint.clone()));
        } else {
            body.sending.abandon();
        }
        // What has left is told before the endpoint is closed.
        body.sending.retire(&mut link.leftover.borrow_mut());
        self.ask(Job::Close { id: link.id, body: Box::new(body) });
        // Nothing of the user's was posted before it was open. Over iWARP closing may take 10 s then.
        if was_open { Freed::Later } else { Freed::AtOnce }
    }

    fn release_listener(&self, engine: &Engine<Self>, listener: &Listener<Listening>) {
        self.listeners.borrow_mut().remove(&listener.link.id);
        let mut watched = self.watched.borrow_mut();
        if let Some(index) = watched.iter().position(|watched| watched.is_of(&listener.link.events)) {
            watched.swap_remove(index).unwatch(engine);
        }
    }

    fn trim(&self, engine: &Engine<Self>, connection: &Connection<Link>) {
        let mut held = 0;
        if let Some(body) = &mut *connection.link.body.borrow_mut() {
            body.sending.trim();
            body.receiving.assembly.trim();
            held = body.receiving.held();
        }
        engine.count_assembly(connection, held);
    }

    fn tear_down(&self, engine: &Engine<Self>) {
        // Endpoints that the helper thread is still closing use memory of the user's, who may free it when a drop in a callback
        // returns: this is dropped later then.
        self.closing.borrow().values().for_each(|(_, endpoint)| link::end(endpoint));
        self.unwatch_all(engine);
        self.watched.take();
    }

    fn own_ready(&self, up: &mut Upcalls<'_, Self>, ready: usize, budget: &mut Budget) -> Next {
        if ready == EVENTS {
            self.events_due.set(true);
        }
        self.active.set(true);
        self.pump(up, budget)
    }

    fn before_sleep(&self, up: &mut Upcalls<'_, Self>, budget: &mut Budget) -> Next {
        self.take_done(up);
        if up.engine().is_gone() || !self.active.get() {
            return Next::Wait;
        }
        self.post_unposted(up.engine());
        let retry = self.retry.take();
        if self.dry.take() && retry.is_empty() {
            return Next::Wait;
        }
        self.pump(up, budget);
        let engine = up.engine();
        if engine.is_gone() || (self.dry.take() && retry.is_empty()) {
            return Next::Wait;
        }
        retry.iter().filter(|connection| !connection.is_over()).for_each(|connection| engine.flush_later(connection));
        Next::Again
    }

    fn poll(&self, up: &mut Upcalls<'_, Self>, budget: &mut Budget) -> Polled {
        if self.watched.borrow().is_empty() {
            return Polled::NoDevice;
        }
        self.active.set(true);
        for _ in 0..PUMPS_PER_POLL {
            self.pump(up, budget);
            if !self.dry.get() {
                self.unwatch_all(up.engine());
                return Polled::Something;
            }
        }
        Polled::Nothing
    }

    fn may_sleep(&self, engine: &Engine<Self>) -> bool {
        let may_sleep = !self.active.get() || (self.retry.borrow().is_empty() && self.watch_all(engine) && self.descriptors_tell(engine));
        self.active.set(!may_sleep);
        may_sleep
    }
}

impl Rdma {
    /// Takes in a message that is copied into several packets. All but the last are posted as soon as they are there,
    /// while they are in the processor's cache, and on their way while the next one is copied.
    fn enqueue_long(&self, engine: &Engine<Self>, connection: &Conn, mut long: Long<'_>) -> usize {
        let mut goes_on = true;
        loop {
            let mut body = connection.link.body.borrow_mut();
            let Some(open) = &mut *body else { return 0 };
            // What could not be posted before waits for the end of the turn.
            goes_on &= open.sending.is_empty();
            open.sending.push_part(&mut long, &open.slab);
            if long.is_done() {
                return open.unsent();
            }
            drop(body);
            if goes_on {
                self.flush(engine, connection);
            }
        }
    }

    /// A connection's peer or device is gone: to be handled when what came before has been.
    pub(crate) fn lose(&self, engine: &Engine<Self>, connection: &Conn) {
        if !connection.is_over() && !connection.link.listed_lost.replace(true) {
            connection.link.gone.set(true);
            self.lost.borrow_mut().push(connection.clone());
            self.events_due.set(true);
            self.look_soon(engine);
        }
    }

    /// Ends a connection that is over for what its peer did or for what the device says.
    pub(crate) fn end(&self, engine: &Engine<Self>, connection: &Conn, refused: RefusedReason, closed: ClosedReason) {
        match connection.state() {
            State::Opening if connection.is_incoming() => {
                let broken = &connection.link.broken;
                broken.set(broken.get().or(Some(closed)));
                self.lose(engine, connection);
            }
            State::Opening => engine.refuse(connection, refused),
            _ => engine.finish(connection, closed, Release::Reset),
        }
    }
}
