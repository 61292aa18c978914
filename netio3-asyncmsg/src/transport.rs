//! The TCP backend as the engine drives it.

use std::cell::{Cell, RefCell, RefMut};
use std::io;
use std::marker::PhantomData;
use std::rc::Rc;
use std::time::Instant;

use arrayvec::ArrayVec;
use netio3_core::engine::{
    Connection, Copies, Engine, Freed, Listener, Opener, Outgoing, Payload, Release, Run, State, Transport, Upcalls, UserMemory,
};
use netio3_core::{Budget, ClosedReason, ConnectionParameters, Next, Polled, Ready, RefusedReason, WatchId};

use crate::frame::{Frame, HEAD_LEN};
use crate::hello::Hello;
use crate::link::{Link, Unwritable};
use crate::net::{Dialing, Listen, Net, Stream};
use crate::outbound::{Outbound, Spares};
use crate::reading::{Cut, ReadBuffer};
use crate::refusal;
use crate::session::{Session, Stage};

/// Framed messages over the byte streams of `N`.
pub(crate) struct Tcp<N: Net> {
    pub(crate) read_buffer: RefCell<ReadBuffer>,
    /// What stays in there.
    pub(crate) cut: RefCell<Option<Cut<N>>>,
    /// The connection that brought something last.
    pub(crate) latest: RefCell<Option<Conn<N>>>,
    /// The only connection, while its socket is polled and not watched.
    unwatched: RefCell<Option<Conn<N>>>,
    /// The loop has polled since the last turn, which began then.
    pub(crate) polled: Cell<bool>,
    turn: Cell<Option<Instant>>,
    spares: Rc<Spares>,
    net: PhantomData<N>,
}

/// A listener and its watch.
pub(crate) struct Listening<L> {
    listener: L,
    watch: WatchId,
}

pub(crate) type Conn<N> = Rc<Connection<Link<<N as Net>::Stream>>>;

/// The most pieces in one gathered write: as many as the kernel takes.
const MAX_SLICES: usize = 1_024;
/// Writes of more bytes are a multiple of this: those that go on a little beyond what the kernel hands to the network at once
/// take up to twice as long for each byte.
const WRITE_LEN: usize = ConnectionParameters::DEFAULT_FLUSH_AT;
/// The most bytes in one write, in units of [`WRITE_LEN`].
const LONGEST_WRITE: usize = 8;
/// With more connections it is faster to ask the kernel which of them have something.
const POLLED_CONNECTIONS: u64 = 4;
/// What is read at most after writing has failed: more than the system holds of what came before that, with buffers of its own
/// choice.
const MOST_UNREAD: usize = 64 << 20;
/// Peers accepted in one go, before other descriptors get their turn.
const ACCEPT_BATCH: usize = 128;

impl<N: Net> Tcp<N> {
    pub(crate) fn new() -> Self {
        Self {
            read_buffer: RefCell::default(),
            cut: RefCell::new(None),
            latest: RefCell::new(None),
            unwatched: RefCell::new(None),
            polled: Cell::new(false),
            turn: Cell::new(None),
            spares: Rc::default(),
            net: PhantomData,
        }
    }

    /// What waits to be written on a connection.
    pub(crate) fn outbound<'a>(&self, engine: &Engine<Self>, connection: &'a Connection<Link<N::Stream>>) -> RefMut<'a, Outbound> {
        engine.settle_of(connection);
        connection.link.own_outbound.borrow_mut()
    }

    /// Has the socket that is polled watched again, if there is one; tells whether all are watched.
    #[inline]
    fn rewatch(&self, engine: &Engine<Self>) -> bool {
        self.unwatched.borrow().is_none() || self.rewatch_polled(engine)
    }

    #[cold]
    fn rewatch_polled(&self, engine: &Engine<Self>) -> bool {
        let mut unwatched = self.unwatched.borrow_mut();
        let Some(connection) = &*unwatched else { return true };
        match connection.link.watch(engine.event_loop(), engine.source(), connection.token()) {
            Ok(()) => {
                *unwatched = None;
                true
            }
            Err(error) => {
                engine.cannot_watch(&error);
                // Nobody tells of either.
                engine.event_loop().redeliver(engine.source(), connection.token(), Ready::READABLE | Ready::WRITABLE);
                false
            }
        }
    }

    /// What this side says of itself.
    pub(crate) fn hello(&self, engine: &Engine<Self>) -> Hello {
        Hello::new(engine.config.max_message_len, engine.config.heartbeat_interval)
    }

    /// The system may have connected: says hello, or tells the refusal.
    fn connected(&self, engine: &Engine<Self>, connection: &Conn<N>) {
        let link = &connection.link;
        let Some(socket) = link.socket() else { return };
        match link.refused.take().map_or_else(|| socket.is_connected(), Err) {
            Ok(false) => {}
            // Dialling a port of this machine that is just being given to the dialling socket itself, the kernel
            // connects it to itself.
            Ok(true) if socket.local_address().is_ok_and(|local| local == connection.address) => {
                engine.refuse(connection, RefusedReason::NoListener);
            }
            Ok(true) => {
                link.with_session(|session| session.stage = Stage::Greeting);
                self.outbound(engine, connection).push_hello(&self.hello(engine).encode());
                self.flush(engine, connection);
            }
            Err(error) => {
                tracing::debug!(peer = %connection.address, %error, "cannot connect");
                engine.refuse(connection, refusal::reason_of(&error));
            }
        }
    }

    /// Writing failed. What the peer sent before is still delivered; its end is then found by reading, or that there is nothing
    /// more to read, or the peer goes on for so long that it must have come since.
    fn write_failed(&self, engine: &Engine<Self>, connection: &Conn<N>, error: &io::Error) {
        let (endpoint, peer) = (connection.endpoint, connection.address);
        let reason = refusal::reason_of(error);
        if reason == RefusedReason::LocalResource {
            tracing::warn!(%endpoint, %peer, %error, "cannot write, for a reason on this side: the connection ends");
        } else {
            tracing::debug!(%endpoint, %peer, %error, "cannot write");
        }
        // Of a buffer whose size is asked for the kernel makes twice that.
        let unread = MOST_UNREAD.max(connection.params.receive_buffer.unwrap_or(0).saturating_mul(2));
        connection.link.unwritable.set(Some(Unwritable { reason, unread }));
        connection.link.read_closed.set(true);
        // At a cap the reading goes on when there is room. After the peer's goodbye there is nothing to read.
        if connection.link.session.get().has_heard_goodbye() {
            self.unanswered(engine, connection, reason);
        } else if connection.is_paused() {
            self.lost_for(engine, connection, reason);
        } else {
            self.give_up_writing(engine, connection);
            engine.read_again(connection);
        }
    }

    /// Gives the memory back of what waits to leave a connection that cannot be written to, which may be just what the user has
    /// taken over and keeps the reading at a cap. The messages are pending when it ends.
    fn give_up_writing(&self, engine: &Engine<Self>, connection: &Conn<N>) {
        let mut outbound = self.outbound(engine, connection);
        if !outbound.is_empty() {
            outbound.give_up();
            drop(outbound);
            engine.retire_soon(connection);
        }
    }

    /// Our goodbye will never be written, and nothing comes behind the peer's. That one has closed, as far as it is concerned,
    /// unless messages of ours did not leave.
    pub(crate) fn unanswered(&self, engine: &Engine<Self>, connection: &Conn<N>, reason: RefusedReason) {
        if engine.has_unsent(connection) {
            self.lost_for(engine, connection, reason);
        } else {
            engine.finish(connection, ClosedReason::PeerClosed, Release::Orderly);
        }
    }

    /// The stream ended by an error.
    pub(crate) fn lost(&self, engine: &Engine<Self>, connection: &Conn<N>, error: &io::Error) {
        self.lost_for(engine, connection, refusal::reason_of(error));
    }

    /// The stream ended, or cannot be used any more, for that reason.
    pub(crate) fn lost_for(&self, engine: &Engine<Self>, connection: &Conn<N>, refused: RefusedReason) {
        let closed = if refused == RefusedReason::LocalResource { ClosedReason::Limit } else { ClosedReason::PeerLost };
        self.end(engine, connection, refused, closed);
    }

    /// Ends a connection for what its peer did.
    pub(crate) fn end(&self, engine: &Engine<Self>, connection: &Conn<N>, refused: RefusedReason, closed: ClosedReason) {
        match connection.state() {
            State::Opening if connection.is_incoming() => {
                connection.listener_counters().inspect(|counters| counters.failed_hello.add(1));
                engine.totals.failed_hello.add(1);
                engine.drop_stranger(connection);
            }
            State::Opening => engine.refuse(connection, refused),
            _ => engine.finish(connection, closed, Release::Reset),
        }
    }

    /// Writes, as far as the socket takes it, as long as at least so many bytes wait.
    fn write_out(&self, engine: &Engine<Self>, connection: &Conn<N>, least: usize) {
        let link = &connection.link;
        let Some(socket) = link.socket() else { return };
        if link.unwritable.get().is_some() {
            return self.give_up_writing(engine, connection);
        }
        if link.blocked.get() || link.session.get().stage == Stage::Connecting {
            return;
        }
        let mut left = 0;
        let failure = loop {
            let mut outbound = self.outbound(engine, connection);
            if outbound.len() < least {
                break None;
            }
            let mut slices = ArrayVec::<_, MAX_SLICES>::new();
            let mut offered = outbound.slices(&mut slices, (outbound.len() / WRITE_LEN).clamp(1, LONGEST_WRITE) * WRITE_LEN);
            if offered > WRITE_LEN && !offered.is_multiple_of(WRITE_LEN) {
                // These are as many pieces as one write takes.
                slices.clear();
                offered = outbound.slices(&mut slices, offered - offered % WRITE_LEN);
            }
            let written = socket.write(&slices);
            drop(slices);
            match written {
                Ok(0) => break Some(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    engine.count_write(connection);
                    left += outbound.written(n);
                    if n < offered {
                        // The socket is full; asking again would only say so.
                        link.blocked.set(true);
                        break None;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    link.blocked.set(true);
                    break None;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Some(error),
            }
        };
        self.outbound(engine, connection).compact();
        if left > 0 {
            engine.left_bytes(connection, left, HEAD_LEN);
        }
        if let Some(error) = failure {
            return self.write_failed(engine, connection, &error);
        }
        if link.blocked.get() {
            self.rewatch(engine);
        }
        let session = link.session.get();
        if session.has_said_goodbye() && self.outbound(engine, connection).is_empty() {
            // Where it fails the stream has ended already, which reading tells.
            _ = socket.shutdown_write();
            if session.is_agreed() {
                engine.finish(connection, ClosedReason::Local, Release::Orderly);
            }
        }
    }
}

impl<N: Net> Transport for Tcp<N> {
    const NAME: &'static str = "tcp";
    type Opener = N::Opener;
    type Link = Link<N::Stream>;
    type Listener = Listening<N::Listener>;

    fn adopt(&self, engine: &Engine<Self>, token: usize, dialing: Dialing<N::Stream>) -> io::Result<Link<N::Stream>> {
        let Dialing { stream, refused } = dialing;
        let watch = stream.watch(engine.event_loop(), engine.source(), token)?;
        if refused.is_some() {
            engine.event_loop().redeliver(engine.source(), token, Ready::ERROR);
        }
        let link = Link::new(stream, watch, Session::dialing(), engine.config.max_message_len, &self.spares);
        link.refused.set(refused);
        Ok(link)
    }

    fn adopt_listener(
        &self,
        engine: &Engine<Self>,
        token: usize,
        listening: <N::Opener as Opener>::Listening,
    ) -> io::Result<Listening<N::Listener>> {
        let watch = listening.watch(engine.event_loop(), engine.source(), token)?;
        Ok(Listening { listener: listening, watch })
    }

    fn ready(&self, up: &mut Upcalls<'_, Self>, connection: &Conn<N>, ready: Ready, budget: &mut Budget) -> Next {
        let engine = up.engine().clone();
        let link = &connection.link;
        if ready.contains(Ready::READ_CLOSED) || ready.contains(Ready::ERROR) {
            link.read_closed.set(true);
        }
        if link.session.get().stage == Stage::Connecting {
            self.connected(&engine, connection);
            if link.session.get().stage == Stage::Connecting {
                return Next::Wait;
            }
        }
        if ready.contains(Ready::WRITABLE) && link.blocked.replace(false) {
            self.flush(&engine, connection);
        }
        if connection.is_over() || ready.without(Ready::WRITABLE).is_none() {
            return Next::Wait;
        }
        self.read(up, &engine, connection, budget)
    }

    fn listener_ready(&self, engine: &Rc<Engine<Self>>, listener: &Rc<Listener<Self::Listener>>, budget: &mut Budget) -> Next {
        for _ in 0..ACCEPT_BATCH {
            if engine.is_gone() {
                return Next::Wait;
            }
            if engine.awaits_hellos() {
                return Next::Again;
            }
            match listener.link.listener.accept(&listener.params.connection) {
                Ok((stream, peer)) => {
                    budget.spend(1, 0);
                    let max_len = engine.config.max_message_len;
                    _ = engine.stranger(listener, peer, |token| {
                        let watch = stream.watch(engine.event_loop(), engine.source(), token)?;
                        Ok(Link::new(stream, watch, Session::accepted(), max_len, &self.spares))
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Next::Wait,
                // The peer gave up before it was accepted, or a signal came: the next one may be fine.
                Err(error) if refusal::is_of_one_peer(&error) => {
                    tracing::debug!(listener = %listener.address, %error, "a peer was gone before it was accepted");
                }
                // Anything else may last, as when the listener was shut down from outside: trying again at once would spin.
                Err(error) => {
                    engine.accept_failed(listener, &error);
                    if !refusal::is_shortage(&error) || !engine.evict_stranger() {
                        engine.accept_later(listener);
                        return Next::Wait;
                    }
                }
            }
        }
        Next::Again
    }

    // Inlined, so that a message is never built in memory: each call of the library has one kind of payload.
    #[inline(always)]
    fn enqueue(&self, engine: &Engine<Self>, connection: &Conn<N>, message: Outgoing<'_>) -> usize {
        let copy_below = connection.params.copy_below;
        if message.len <= copy_below && matches!(message.payload, Payload::Shared(_) | Payload::Raw(_)) {
            connection.counters.copied_messages.add(1);
        }
        let mut outbound = self.outbound(engine, connection);
        outbound.push(message, copy_below);
        // A blocked socket is flushed when it is writable, not for more bytes.
        if connection.link.blocked.get() {
            0
        } else if connection.params.flush_at < WRITE_LEN {
            outbound.len()
        } else {
            outbound.weight(LONGEST_WRITE)
        }
    }

    // As many messages of 64 bytes as one write takes. What is kept of each message until it completes, 16 bytes, would
    // otherwise push the bytes of the first ones out of the second-level cache before they are written.
    const FLUSH_MESSAGES: usize = 1_739;
    const RUN_HEAD: Option<fn(usize) -> [u8; HEAD_LEN]> = Some(|len| Frame::Data(len).head());

    fn enqueue_run(&self, engine: &Engine<Self>, connection: &Conn<N>, run: Run<'_>) -> usize {
        let mut outbound = self.outbound(engine, connection);
        outbound.push_run(run);
        // Though its memory may lie among what was not copied, a run was: it counts full.
        if connection.link.blocked.get() { 0 } else { outbound.len() }
    }

    fn lend(&self, connection: &Connection<Self::Link>) -> Option<Copies> {
        Some(connection.link.own_outbound.borrow_mut().lend())
    }

    fn give_back(&self, connection: &Connection<Self::Link>, copies: Copies) {
        connection.link.own_outbound.borrow_mut().give_back(copies);
    }

    fn flush(&self, engine: &Engine<Self>, connection: &Conn<N>) {
        self.write_out(engine, connection, 1);
    }

    fn flush_full(&self, engine: &Engine<Self>, connection: &Conn<N>) -> usize {
        let waiting = self.outbound(engine, connection).len();
        // Who sets limits of his own wants what reaches them to leave at once.
        let fills_writes = waiting >= WRITE_LEN && connection.params.flush_at >= WRITE_LEN && connection.params.flush_messages.is_none();
        self.write_out(engine, connection, if fills_writes { WRITE_LEN } else { 1 });
        if connection.link.blocked.get() { 0 } else { self.outbound(engine, connection).len() }
    }

    fn retire(&self, connection: &Connection<Self::Link>, retired: &mut Vec<UserMemory>) {
        connection.link.own_outbound.borrow_mut().retire(retired);
    }

    fn close(&self, engine: &Engine<Self>, connection: &Conn<N>) {
        if connection.link.with_session(Session::say_goodbye) {
            engine.push_control(connection);
            self.outbound(engine, connection).push_control(Frame::Goodbye);
        }
    }

    fn heartbeat(&self, engine: &Engine<Self>, connection: &Conn<N>) {
        let link = &connection.link;
        // Bytes that wait to be written tell the peer as much. Where none can be, each would stay in the ledger until the end.
        if link.unwritable.get().is_some() || link.session.get().has_said_goodbye() || !self.outbound(engine, connection).is_empty() {
            return;
        }
        engine.push_control(connection);
        connection.counters.heartbeats_sent.add(1);
        self.outbound(engine, connection).push_control(Frame::Heartbeat);
        self.flush(engine, connection);
    }

    fn release(&self, engine: &Engine<Self>, connection: &Conn<N>, how: Release) -> Freed {
        let link = &connection.link;
        self.latest.borrow_mut().take_if(|latest| Rc::ptr_eq(latest, connection));
        self.unwatched.borrow_mut().take_if(|unwatched| Rc::ptr_eq(unwatched, connection));
        if let Some((socket, watch)) = link.take_socket() {
            watch.into_iter().for_each(|watch| socket.unwatch(engine.event_loop(), watch));
            if how == Release::Reset {
                socket.reset_on_close();
            }
        }
        self.outbound(engine, connection).abandon();
        if engine.connections() <= 1 {
            self.spares.clear();
        }
        self.count_undelivered(engine, connection);
        link.stash.take();
        self.count_memory(engine, connection, 0);
        Freed::AtOnce
    }

    fn poll(&self, up: &mut Upcalls<'_, Self>, budget: &mut Budget) -> Polled {
        let engine = up.engine().clone();
        let connections = engine.connections();
        let latest = self.latest.borrow().clone();
        // A stranger is not counted, and may be the latest.
        let is_polled = |unwatched: &Conn<N>| latest.as_ref().is_some_and(|latest| Rc::ptr_eq(latest, unwatched));
        if connections > 1 || !self.unwatched.borrow().as_ref().is_none_or(is_polled) {
            self.rewatch(&engine);
        }
        if connections > POLLED_CONNECTIONS {
            return Polled::NoDevice;
        }
        let Some(connection) = latest else { return Polled::NoDevice };
        self.polled.set(true);
        let reads = connection.counters.reads.get();
        if self.read(up, &engine, &connection, budget) == Next::Again {
            engine.read_again(&connection);
        }
        if connection.counters.reads.get() == reads {
            return Polled::Nothing;
        }
        // The kernel need not tell of what polling finds. A stranger may be the second one.
        if connections == 1
            && connection.state() == State::Established
            && !connection.link.blocked.get()
            && self.unwatched.borrow().is_none()
        {
            connection.link.unwatch(engine.event_loop());
            self.unwatched.replace(Some(connection));
        }
        Polled::Something
    }

    fn before_sleep(&self, up: &mut Upcalls<'_, Self>, _budget: &mut Budget) -> Next {
        let now = up.engine().event_loop().now();
        if self.turn.replace(Some(now)) != Some(now) && !self.polled.take() {
            // The loop has something else to do.
            self.rewatch(up.engine());
        }
        Next::Wait
    }

    fn may_sleep(&self, engine: &Engine<Self>) -> bool {
        self.rewatch(engine)
    }

    fn release_listener(&self, engine: &Engine<Self>, listener: &Listener<Self::Listener>) {
        listener.link.listener.unwatch(engine.event_loop(), listener.link.watch);
    }

    fn trim(&self, engine: &Engine<Self>, connection: &Connection<Self::Link>) {
        let mut inbound = connection.link.inbound.borrow_mut();
        inbound.trim();
        self.count_memory(engine, connection, inbound.held());
        self.outbound(engine, connection).trim();
        self.spares.clear();
    }
}

#[cfg(test)]
mod tests;
