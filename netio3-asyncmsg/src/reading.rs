//! The way of arriving bytes from a socket to the user's callback.

use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::rc::Rc;

use netio3_core::engine::{Assembled, Brought, Connection, Engine, Reception, Release, State, Upcalls};
use netio3_core::{Budget, ClosedReason, Message, Next, RefusedReason};

use crate::hello::{Hello, VERSIONS};
use crate::inbound::{Broken, Incoming};
use crate::link::{Link, Unwritable};
use crate::net::{Net, Stream};
use crate::session::{Session, Stage};
use crate::stash::Stash;
use crate::transport::{Conn, Tcp};

/// The memory that all connections of a backend read into, one after the other.
#[derive(Default)]
pub(crate) struct ReadBuffer(Box<[u8]>);

impl ReadBuffer {
    /// Makes sure of the memory; `false` if the system has none.
    fn is_there(&mut self) -> bool {
        if self.0.is_empty() {
            let mut memory = Vec::new();
            if memory.try_reserve_exact(PREFIX_LEN + READ_LEN).is_err() {
                return false;
            }
            memory.resize(PREFIX_LEN + READ_LEN, 0);
            self.0 = memory.into_boxed_slice();
        }
        true
    }
}

/// The beginning of a message that stays in that memory until its connection is read again, or another one is.
pub(crate) struct Cut<N: Net> {
    connection: Conn<N>,
    place: Range<usize>,
}

/// What feeding bytes has left of them.
enum Rest {
    /// So many at the end may not be handled yet.
    Held(usize),
    /// So many at the end are the beginning of something, or nothing.
    Cut(usize),
}

/// Bytes read at once, at most: more than a sender writes at once, so that a receiver that is behind catches up, and a
/// little more than long messages of a power of two take.
const READ_LEN: usize = (512 << 10) + (4 << 10);
/// The rest of a frame is awaited as a whole if it has so many bytes: less comes with a segment or two anyway.
const LEAST_AWAITED: usize = 16 << 10;
/// The most of it that is awaited before it is read. Of 4 MiB the beginning would have left the caches (docs/performance.md).
const MOST_AWAITED: usize = 512 << 10;
/// Room in front for the beginning of a head or hello that an earlier read brought; hellos are shorter.
const PREFIX_LEN: usize = 1 << 10;

impl<N: Net> Tcp<N> {
    /// Reads until the socket is empty, the budget spent, or the connection does not receive.
    pub(crate) fn read(&self, up: &mut Upcalls<'_, Self>, engine: &Engine<Self>, connection: &Conn<N>, budget: &mut Budget) -> Next {
        let link = &connection.link;
        if !link.stash.borrow().is_empty() {
            self.feed_stash(up, engine, connection, budget);
        }
        let mut buffer = self.read_buffer.take();
        if !buffer.is_there() {
            tracing::warn!(endpoint = %connection.endpoint, peer = %connection.address, "no memory to read into: the connection ends");
            self.end(engine, connection, RefusedReason::LocalResource, ClosedReason::Limit);
            return Next::Wait;
        }
        let next = loop {
            if let Some(Unwritable { reason, unread }) = link.unwritable.get()
                && (unread == 0 || connection.is_paused())
            {
                self.lost_for(engine, connection, reason);
                break Next::Wait;
            }
            if matches!(engine.reception(connection), Reception::Hold | Reception::Stop) || link.session.get().has_heard_goodbye() {
                break Next::Wait;
            }
            if budget.is_spent() {
                break Next::Again;
            }
            match self.read_once(up, engine, connection, &mut buffer, budget) {
                Ok(true) => {}
                Ok(false) => {
                    self.await_rest(connection, &buffer);
                    break Next::Wait;
                }
                Err(error) => {
                    self.lost(engine, connection, &error);
                    break Next::Wait;
                }
            }
        };
        self.read_buffer.replace(buffer);
        next
    }

    /// Handles what an earlier read has left, as far as the connection receives.
    #[cold]
    fn feed_stash(&self, up: &mut Upcalls<'_, Self>, engine: &Engine<Self>, connection: &Conn<N>, budget: &mut Budget) {
        let link = &connection.link;
        let mut stash = link.stash.take();
        match self.feed(up, engine, connection, stash.rest(), budget) {
            Rest::Held(rest) => stash.keep_last(rest),
            Rest::Cut(rest) => {
                stash.keep_last(rest);
                // All but gone.
                link.stash_held.set(0);
                self.keep(engine, connection, stash.rest(), budget);
                stash.keep_last(0);
            }
        }
        self.put_back(engine, connection, stash);
    }

    /// One read and what it brought; whether there may be more.
    fn read_once(
        &self,
        up: &mut Upcalls<'_, Self>,
        engine: &Engine<Self>,
        connection: &Conn<N>,
        ReadBuffer(buffer): &mut ReadBuffer,
        budget: &mut Budget,
    ) -> io::Result<bool> {
        let link = &connection.link;
        let Some(socket) = link.socket() else { return Ok(false) };
        let others = self.cut.borrow_mut().take_if(|cut| !Rc::ptr_eq(&cut.connection, connection));
        if let Some(Cut { connection: other, place }) = others {
            self.keep(engine, &other, &buffer[place], budget);
        }
        let mut inbound = link.inbound.borrow_mut();
        let held = inbound.held_with_room();
        if !self.count_memory(engine, connection, held) || !inbound.make_room() {
            drop(inbound);
            engine.finish(connection, ClosedReason::Limit, Release::Reset);
            return Ok(false);
        }
        let here = self.cut.borrow().as_ref().map_or(PREFIX_LEN - inbound.partial_len()..PREFIX_LEN, |cut| cut.place.clone());
        let read_len = inbound.read_len(buffer.len() - here.start, here.len());
        let shared = &mut buffer[here.end..][..read_len];
        let (room_len, wanted, read) = match inbound.assembly_room() {
            Some((room, true)) => {
                let (room_len, wanted) = (room.len(), room.len() + shared.len());
                (room_len, wanted, socket.read(&mut [IoSliceMut::new(room), IoSliceMut::new(shared)]))
            }
            Some((room, false)) => (room.len(), room.len(), socket.read(&mut [IoSliceMut::new(room)])),
            None => (0, shared.len(), socket.read(&mut [IoSliceMut::new(shared)])),
        };
        let n = match read {
            Ok(0) => {
                drop(inbound);
                self.end_of_stream(engine, connection);
                return Ok(false);
            }
            Ok(n) => n,
            // Where only this side cannot write the stream goes on, and nothing will tell of its end.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(link.has_read(usize::MAX)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(error) => return Err(error),
        };
        link.has_read(n);
        engine.count_read(connection);
        engine.heard(connection);
        let mut latest = self.latest.borrow_mut();
        if !latest.as_ref().is_some_and(|latest| Rc::ptr_eq(latest, connection)) {
            *latest = Some(connection.clone());
        }
        drop(latest);
        // After a short read the socket is empty, and the next byte, or what is awaited of a frame, will be told; but an end
        // of stream that was told already will not be told again.
        let more = n == wanted || link.read_closed.get();

        let assembled = n.min(room_len);
        budget.spend(0, assembled);
        let complete = if assembled > 0 { inbound.assembled(assembled) } else { None };
        inbound.take_partial(&mut buffer[here.clone()]);
        drop(inbound);
        self.cut.take();
        if let Some(len) = complete {
            self.deliver_assembled(up, engine, connection, len, budget);
        }
        let end = here.end + n - assembled;
        if end > here.end {
            match self.feed(up, engine, connection, &buffer[here.start..end], budget) {
                Rest::Held(0) | Rest::Cut(0) => {}
                Rest::Held(rest) => self.hold_back(engine, connection, &buffer[end - rest..end]),
                Rest::Cut(rest) => self.leave(engine, connection, buffer, end - rest..end, budget),
            }
        }
        Ok(more)
    }

    /// Has the system tell of the rest of a long frame when much of it is here, instead of each segment. Never of more bytes
    /// than the frame needs: who reads it afterwards must find that they come, whatever the peer does then.
    fn await_rest(&self, connection: &Conn<N>, ReadBuffer(buffer): &ReadBuffer) {
        let cut = self.cut.borrow();
        let in_place = cut.as_ref().filter(|cut| Rc::ptr_eq(&cut.connection, connection)).map_or(0..0, |cut| cut.place.clone());
        let missing = connection.link.inbound.borrow().missing(&buffer[in_place]);
        // Who polls the socket does not wait for the system to tell.
        let waits = missing >= LEAST_AWAITED && !self.polled.get();
        // So that a peer does not run out of what the system lets it send.
        let most = connection.params.receive_buffer.map_or(MOST_AWAITED, |bytes| MOST_AWAITED.min(bytes / 2));
        connection.link.set_low_water(if waits { missing.min(most).max(1) } else { 1 });
    }

    /// Leaves the beginning of something where it lies, or keeps it.
    fn leave(&self, engine: &Engine<Self>, connection: &Conn<N>, buffer: &mut [u8], mut place: Range<usize>, budget: &mut Budget) {
        let stays = connection.link.inbound.borrow_mut().stays(&buffer[place.clone()]);
        let Some(frame) = stays else { return self.keep(engine, connection, &buffer[place], budget) };
        if buffer.len() - place.start < frame {
            // The rest has no room behind it.
            let len = place.len();
            budget.spend(0, len);
            buffer.copy_within(place, PREFIX_LEN);
            place = PREFIX_LEN..PREFIX_LEN + len;
        }
        self.cut.replace(Some(Cut { connection: connection.clone(), place }));
    }

    /// Keeps the beginning of something, as far as the limit on memory allows.
    fn keep(&self, engine: &Engine<Self>, connection: &Conn<N>, bytes: &[u8], budget: &mut Budget) {
        if bytes.is_empty() || connection.is_over() {
            return;
        }
        budget.spend(0, bytes.len());
        let mut inbound = connection.link.inbound.borrow_mut();
        let kept = inbound.keep(bytes);
        let held = inbound.held();
        drop(inbound);
        if !kept {
            engine.count_discarded(connection, 1);
        }
        if !kept || !self.count_memory(engine, connection, held) {
            engine.finish(connection, ClosedReason::Limit, Release::Reset);
        }
    }

    /// Keeps bytes that may not be delivered yet, as far as the limit on memory allows.
    #[cold]
    fn hold_back(&self, engine: &Engine<Self>, connection: &Conn<N>, bytes: &[u8]) {
        let link = &connection.link;
        let held = link.inbound.borrow().held();
        link.stash_held.set(bytes.len());
        let stash = if self.count_memory(engine, connection, held) { Stash::new(bytes) } else { None };
        match stash {
            Some(stash) => self.put_back(engine, connection, stash),
            None => {
                engine.count_discarded(connection, link.inbound.borrow().count_messages(bytes));
                engine.finish(connection, ClosedReason::Limit, Release::Reset);
            }
        }
    }

    /// Keeps what is left of a stash.
    fn put_back(&self, engine: &Engine<Self>, connection: &Conn<N>, stash: Stash) {
        let link = &connection.link;
        link.stash_held.set(stash.held());
        link.stash.replace(stash);
        let held = link.inbound.borrow().held();
        self.count_memory(engine, connection, held);
    }

    /// Cuts bytes into frames and handles each.
    fn feed(&self, up: &mut Upcalls<'_, Self>, engine: &Engine<Self>, connection: &Conn<N>, mut bytes: &[u8], budget: &mut Budget) -> Rest {
        let link = &connection.link;
        let fed = bytes.len();
        let mut cut = 0;
        let mut brought = Brought::default();
        let mut inbound = link.inbound.borrow_mut();
        let mut mode = engine.reception(connection);
        while !bytes.is_empty() {
            if matches!(mode, Reception::Hold | Reception::Stop) {
                break;
            }
            if mode == Reception::Deliver
                && let Some(frames) = inbound.frames()
            {
                let (taken, left) = up.messages(connection, bytes, frames);
                bytes = &bytes[bytes.len() - left..];
                brought.messages += taken.messages;
                brought.bytes += taken.bytes;
                mode = engine.reception(connection);
                if taken.messages > 0 {
                    inbound.took(taken);
                    continue;
                }
                if mode != Reception::Deliver {
                    continue;
                }
            }
            match inbound.next(&mut bytes) {
                // Those that are delivered have gone together. In mode `Deliver` this is one whose backend another thread
                // has just ended: for nothing else `messages` stops that `reception` does not tell of.
                Ok(Some(Incoming::Message(_))) => brought.discarded += 1,
                Ok(Some(Incoming::Heartbeat)) => connection.counters.heartbeats_received.add(1),
                Ok(Some(Incoming::Goodbye)) => {
                    self.goodbye(engine, connection);
                    break;
                }
                Ok(Some(Incoming::Hello(hello))) => {
                    self.greeted(up, engine, connection, &hello);
                    mode = engine.reception(connection);
                }
                Ok(None) => {
                    cut = bytes.len();
                    break;
                }
                Err(broken) => {
                    self.broken(engine, connection, broken);
                    break;
                }
            }
        }
        if mode == Reception::Stop && link.session.get().stage == Stage::Open {
            brought.discarded += inbound.count_messages(bytes);
        }
        drop(inbound);
        engine.count_brought(connection, brought);
        let rest = if mode == Reception::Hold { bytes.len() } else { cut };
        budget.spend(brought.messages, fed - rest);
        if mode == Reception::Hold { Rest::Held(rest) } else { Rest::Cut(rest) }
    }

    /// Hands out the message that lies in the assembly memory.
    fn deliver_assembled(&self, up: &mut Upcalls<'_, Self>, engine: &Engine<Self>, connection: &Conn<N>, len: usize, budget: &mut Budget) {
        let mut brought = Brought::default();
        // In mode `Hold` nothing is read, so that it can only have begun with this very read: one message.
        if matches!(engine.reception(connection), Reception::Deliver | Reception::Hold) {
            let mut inbound = connection.link.inbound.borrow_mut();
            let mut message = Assembled { memory: inbound.memory(), len, meter: &connection.meter };
            up.data(connection, Message::whole(&mut message));
            brought = Brought { messages: 1, bytes: len, discarded: 0 };
        } else {
            brought.discarded = 1;
        }
        engine.count_brought(connection, brought);
        budget.spend(1, 0);
        let mut inbound = connection.link.inbound.borrow_mut();
        // Memory kept for the next message must not use up the limit that others assemble within.
        if engine.totals.assembly_bytes.get() > engine.config.total_assembly_bytes as u64 / 2 {
            inbound.trim();
        }
        let held = inbound.held();
        drop(inbound);
        self.count_memory(engine, connection, held);
        if held > 0 {
            engine.trim_later(connection);
        }
    }

    /// The peer's hello arrived.
    fn greeted(&self, up: &mut Upcalls<'_, Self>, engine: &Engine<Self>, connection: &Conn<N>, hello: &Hello) {
        let link = &connection.link;
        if connection.is_incoming() {
            let mut answer = self.hello(engine).answer(hello);
            match answer.verdict {
                Err(_) => _ = connection.listener_counters().inspect(|counters| counters.refused_version.add(1)),
                Ok(()) => answer.verdict = engine.admit(connection),
            }
            self.outbound(engine, connection).push_hello(&answer.encode());
            if answer.verdict.is_err() {
                use netio3_core::engine::Transport as _;
                self.flush(engine, connection);
                return engine.drop_stranger(connection);
            }
            engine.flush_later(connection);
        } else if let Err(reason) = hello.verdict {
            return engine.refuse(connection, reason);
        } else if hello.versions.0 != hello.versions.1 || !(VERSIONS.0..=VERSIONS.1).contains(&hello.versions.0) {
            return engine.refuse(connection, RefusedReason::Version);
        }
        let Some(socket) = link.socket() else { return };
        link.with_session(|session| session.stage = Stage::Open);
        let local = socket.local_address().unwrap_or(netio3_core::EndPointAddress::localhost(0));
        let max_len = usize::try_from(hello.max_message_len).unwrap_or(usize::MAX);
        up.established(connection, local, max_len, hello.heartbeat_interval);
    }

    /// The peer said goodbye.
    fn goodbye(&self, engine: &Engine<Self>, connection: &Conn<N>) {
        connection.link.with_session(Session::hear_goodbye);
        if let Some(Unwritable { reason, .. }) = connection.link.unwritable.get() {
            return self.unanswered(engine, connection, reason);
        }
        if !connection.link.session.get().is_agreed() {
            engine.start_closing(connection, ClosedReason::PeerClosed);
        } else if self.outbound(engine, connection).is_empty() {
            engine.finish(connection, ClosedReason::Local, Release::Orderly);
        }
        // Otherwise the last write ends it.
    }

    /// The stream ended in order of the system's, which is not this protocol's: no goodbye came.
    fn end_of_stream(&self, engine: &Engine<Self>, connection: &Conn<N>) {
        let has_said = connection.link.session.get().has_said_goodbye();
        // Nothing waits where it was given up, either.
        let has_left = self.outbound(engine, connection).is_empty() && !engine.has_unsent(connection);
        match connection.state() {
            State::Closing(reason) if has_said && has_left => {
                engine.finish(connection, reason, Release::Orderly);
            }
            _ => self.lost(engine, connection, &io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Counts the messages that were read and are not delivered when the connection ends, the one that the end
    /// cuts off included.
    pub(crate) fn count_undelivered(&self, engine: &Engine<Self>, connection: &Connection<Link<N::Stream>>) {
        let link = &connection.link;
        let was_cut = self.cut.borrow_mut().take_if(|cut| std::ptr::eq(&*cut.connection, connection)).is_some();
        if link.session.get().stage != Stage::Open {
            return;
        }
        // Borrowed while a callback runs in which the end came: then a whole message was the last, and who
        // called it counts the rest.
        let Ok(inbound) = link.inbound.try_borrow() else { return };
        let undelivered = inbound.count_messages(link.stash.borrow().rest()) + u64::from(was_cut || inbound.is_inside_frame());
        if undelivered > 0 {
            engine.count_discarded(connection, undelivered);
        }
    }

    /// What arrives is not this protocol.
    fn broken(&self, engine: &Engine<Self>, connection: &Conn<N>, broken: Broken) {
        let (endpoint, peer) = (connection.endpoint, connection.address);
        if connection.state() == State::Opening {
            // Who has dialled it is told by *refused*.
            tracing::info!(%peer, ?broken, "a peer did not say hello");
        } else {
            tracing::warn!(%endpoint, %peer, ?broken, "the peer broke the protocol");
        }
        self.end(engine, connection, RefusedReason::Protocol, ClosedReason::Protocol);
    }
}

impl<N: Net> Tcp<N> {
    /// Brings the backend's count of assembly memory and stashes up to date, of which the assembly memory of this
    /// connection is `held`; `false` when it grew beyond the limit.
    pub(crate) fn count_memory(&self, engine: &Engine<Self>, connection: &Connection<Link<N::Stream>>, held: usize) -> bool {
        engine.count_assembly(connection, held + connection.link.stash_held.get())
    }
}
