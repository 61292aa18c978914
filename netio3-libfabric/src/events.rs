//! What the queues and the helper thread tell, and the way of packets to the user.

use std::io;
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;

use netio3_core::engine::{Engine, Listener, Reception, Release, State, Upcalls, drop_each};
use netio3_core::{Budget, ClosedReason, Direction, EndPointAddress, Next, RefusedReason};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::devices::Net;
use crate::fabric::{CmEvent, Completion, CqError, EventQueue, FabricError, Info};
use crate::helper::{Done, Job};
use crate::link::{self, Body, Link, Listening, Stage};
use crate::posting::{of_context, post_receives};
use crate::receiving::Broken;
use crate::sending::Sending;
use crate::transport::{Conn, Rdma, Watched};
use crate::wire::{CONTROL_CREDITS, Hello, Kind, VERSIONS};

/// Descriptors looked at with one call.
const POLLED: usize = 8;
/// Completions taken from a queue at once.
pub(crate) const BATCH: usize = 64;
/// How often the queue of a listener may be readable without having anything: the provider works off peers that say nothing yet.
const VAIN_LOOKS: u32 = 256;
/// How often the queues are looked at for each time that event queues are read unasked: nobody may be told of what
/// came while the loop was kept awake.
const PUMPS_PER_EVENTS: u32 = 64;

/// What reading queues brought.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Found {
    Nothing,
    Something,
    /// Something, and there may be more.
    More,
}

impl Rdma {
    /// Looks at all queues once, event queues and completion queues together.
    pub(crate) fn pump(&self, up: &mut Upcalls<'_, Self>, budget: &mut Budget) -> Next {
        let pumps = self.pumps.get().wrapping_add(1);
        self.pumps.set(pumps);
        if pumps.is_multiple_of(PUMPS_PER_EVENTS) {
            self.events_due.set(true);
        }
        let mut batch = self.batch.take().unwrap_or_else(|| Box::new([Completion::default(); BATCH]));
        let mut found = Found::Nothing;
        loop {
            if self.events_due.take() {
                found = found.max(self.read_all_events(up));
            }
            if !up.engine().is_gone() {
                found = found.max(self.read_all_completions(up, &mut batch, budget));
            }
            if up.engine().is_gone() {
                return Next::Wait;
            }
            // An event queue may know why a connection is lost: it is read first.
            if found == Found::More || self.lost.borrow().is_empty() || !self.events_due.get() {
                break;
            }
        }
        self.batch.set(Some(batch));
        self.dry.set(found == Found::Nothing);
        if found == Found::More {
            return Next::Again;
        }
        if !self.lost.borrow().is_empty() {
            self.handle_lost(up);
        }
        Next::Wait
    }

    /// Reads every event queue.
    #[cold]
    fn read_all_events(&self, up: &mut Upcalls<'_, Self>) -> Found {
        let mut found = Found::Nothing;
        for index in 0.. {
            // Asked for anew whenever something was handled: what is watched may change meanwhile.
            let (net, events) = match self.watched.borrow().get(index) {
                Some(Watched::Events { net, events, .. }) => (net.clone(), events.clone()),
                Some(Watched::Completions { .. }) => continue,
                None => break,
            };
            let here = self.read_events(up, &net, &events);
            if up.engine().is_gone() {
                break;
            }
            if here == Found::More {
                self.events_due.set(true);
            }
            if here != Found::Nothing
                && let Some(listener) = self.listener_of(up.engine(), &events)
            {
                listener.link.vain.set(0);
            }
            found = found.max(here);
        }
        found
    }

    /// Whether the descriptors will wake the loop for everything.
    pub(crate) fn descriptors_tell(&self, engine: &Engine<Self>) -> bool {
        if !self.lost.borrow().is_empty() {
            return false;
        }
        let watched = self.watched.borrow();
        let tell = watched.iter().all(|watched| match watched {
            // An error is found again, and told, when the queue is read.
            Watched::Events { events, .. } => {
                let sleeps = events.trywait().unwrap_or(true);
                if !sleeps {
                    self.events_due.set(true);
                }
                sleeps
            }
            Watched::Completions { queue, .. } => queue.completions.trywait().unwrap_or(true),
        });
        tell && !self.is_readable(engine, &watched)
    }

    /// Whether a descriptor is readable already. The loop is told only when one becomes so.
    fn is_readable(&self, engine: &Engine<Self>, watched: &[Watched]) -> bool {
        // A few at a time, so that nothing is allocated.
        let mut readable = false;
        for some in watched.chunks(POLLED) {
            let mut polled: [PollFd<'_>; POLLED] =
                std::array::from_fn(|index| PollFd::from_borrowed_fd(some[index.min(some.len() - 1)].fd(), PollFlags::IN));
            if poll(&mut polled[..some.len()], Some(&Timespec::default())).is_ok_and(|count| count > 0) {
                let found = some.iter().zip(&polled).filter(|(_, polled)| !polled.revents().is_empty());
                readable |= found.map(|(watched, _)| !self.cannot_accept(engine, watched)).fold(false, |any, one| any | one);
            }
        }
        if readable {
            self.events_due.set(true);
        }
        readable
    }

    /// Whether a queue that is readable is that of a listener and has had nothing for so long that its provider is taken to be
    /// short of descriptors, which it does not say. The loop then looks again after a while, instead of all the time.
    fn cannot_accept(&self, engine: &Engine<Self>, watched: &Watched) -> bool {
        let Watched::Events { events, .. } = watched else { return false };
        let Some(listener) = self.listener_of(engine, events) else { return false };
        let Listening { vain, waits, .. } = &listener.link;
        if waits.get() {
            return true;
        }
        vain.set(vain.get().saturating_add(1));
        let is_short = vain.get() >= VAIN_LOOKS;
        if is_short && has_descriptors() {
            // They were peers that say nothing. It rests all the same: there may be another reason.
            vain.set(0);
            waits.set(true);
            engine.accept_later(&listener);
        } else if is_short {
            let why = "the provider does not take a peer that waits, mostly for want of descriptors (ulimit -n)";
            engine.accept_failed(&listener, &io::Error::other(why));
            waits.set(true);
            engine.accept_later(&listener);
        }
        is_short
    }

    /// The listener that an event queue belongs to, if it belongs to one.
    fn listener_of(&self, engine: &Engine<Self>, events: &Arc<EventQueue>) -> Option<Rc<Listener<Listening>>> {
        let listeners = self.listeners.borrow();
        listeners.values().filter_map(|token| engine.listener_at(*token)).find(|listener| Arc::ptr_eq(&listener.link.events, events))
    }

    // ----- the helper thread -----

    /// Handles what the helper thread has done.
    pub(crate) fn take_done(&self, up: &mut Upcalls<'_, Self>) {
        let engine = up.engine().clone();
        // What is left where a callback has dropped the backend is taken apart with it (see `drop` below).
        while !engine.is_gone()
            && let Ok(done) = self.done.try_recv()
        {
            match done {
                Done::Opened { id, result } => {
                    let connection = self.connection(&engine, id).filter(|connection| !connection.is_over());
                    match (connection, result) {
                        (Some(connection), Ok(body)) => {
                            self.opened(up, &engine, &connection, *body);
                            for receive in connection.link.early_receives.take() {
                                self.completed(up, &receive, &mut Budget::DEFAULT.clone());
                            }
                            let early = connection.link.early.take();
                            early.inspect(|data| self.connected(up, &engine, &connection, data));
                        }
                        (Some(connection), Err(error)) => self.not_opened(up, &engine, &connection, &error),
                        // It was ended meanwhile.
                        (None, Ok(body)) => self.ask(Job::Close { id, body }),
                        (None, Err(_)) => {}
                    }
                }
                Done::Registered { id, registered } => {
                    if let Some(connection) = self.connection(&engine, id)
                        && let Some(body) = &mut *connection.link.body.borrow_mut()
                    {
                        body.registered.push(registered);
                    }
                }
                Done::Area { id, slab, len } => {
                    if let Some(connection) = self.connection(&engine, id)
                        && let Some(body) = &mut *connection.link.body.borrow_mut()
                    {
                        // It counts with all memory that messages are put together in, and leaves half of that to others, and
                        // room for the longest message, which does not land: memory that nothing lies in ends no connection.
                        let more = slab.layout().bytes() as u64;
                        let limit = engine.config.total_assembly_bytes as u64;
                        let others = (limit / 2).max(engine.config.max_message_len as u64);
                        if engine.totals.assembly_bytes.get() + more + others <= limit {
                            body.receiving.add_area(slab, len);
                            body.area_asked = false;
                            engine.count_assembly(&connection, body.receiving.held());
                        }
                    }
                }
                Done::Closed { id, body } => {
                    let connection = self.closing.borrow_mut().remove(&id);
                    let mut retired = Vec::new();
                    body.dissolve(&mut retired);
                    if let Some((connection, _)) = connection {
                        connection.link.leftover.borrow_mut().append(&mut retired);
                        engine.freed(&connection);
                    }
                }
            }
            engine.totals.pinned_bytes.set(self.devices.pinned());
        }
    }

    fn opened(&self, up: &mut Upcalls<'_, Self>, engine: &Engine<Self>, connection: &Conn, body: Body) {
        let link = &connection.link;
        let queue = body.queue.clone();
        link.body.replace(Some(body));
        link.stage.set(Stage::Connecting);
        if let Err(error) = self.watch(engine, &queue) {
            tracing::warn!(endpoint = %connection.endpoint, %error, "cannot watch the queues of a device");
            self.not_connected(up, engine, connection, RefusedReason::LocalResource, ClosedReason::Limit);
        }
    }

    fn not_opened(&self, up: &mut Upcalls<'_, Self>, engine: &Engine<Self>, connection: &Conn, error: &io::Error) {
        tracing::warn!(endpoint = %connection.endpoint, peer = %connection.address, %error, "cannot connect over libfabric");
        let reason = RefusedReason::of_error(error);
        // Where what a peer was to be given is short here it has not vanished.
        let closed = if reason == RefusedReason::LocalResource { ClosedReason::Limit } else { ClosedReason::PeerLost };
        self.not_connected(up, engine, connection, reason, closed);
    }

    /// Ends a connection that the provider did not connect. A peer whose hello was accepted was established and closed
    /// then: nobody here asked for it, who could be refused.
    fn not_connected(
        &self,
        up: &mut Upcalls<'_, Self>,
        engine: &Engine<Self>,
        connection: &Conn,
        reason: RefusedReason,
        closed: ClosedReason,
    ) {
        let hello = match (connection.direction, connection.link.hello.get()) {
            (Direction::Incoming, Some(hello)) => hello,
            _ => return engine.refuse(connection, reason),
        };
        let unknown = EndPointAddress::localhost(0);
        up.established(connection, unknown, hello.max_message_len as usize, hello.heartbeat_interval);
        if !engine.is_gone() {
            engine.finish(connection, closed, Release::Reset);
        }
    }

    // ----- the event queue -----

    /// Reads what an event queue has.
    fn read_events(&self, up: &mut Upcalls<'_, Self>, net: &Arc<Net>, events: &EventQueue) -> Found {
        let mut found = Found::Nothing;
        for _ in 0..BATCH {
            match events.read() {
                Ok(Some(event)) => self.event(up, net, event),
                Ok(None) => return found,
                Err(error) => {
                    if ptr::eq(events, &*net.events) {
                        self.unreadable(up, &error);
                    } else {
                        tracing::error!(%error, "cannot read the event queue of a listener");
                    }
                    return found;
                }
            }
            found = Found::Something;
            if up.engine().is_gone() {
                return found;
            }
        }
        Found::More
    }

    /// An event queue cannot be read. Version 1 of the provider `verbs` says so when a device does not begin to connect,
    /// as soft-iWARP where nobody listens, and does not say which connection that was: it is known if there is only one.
    fn unreadable(&self, up: &mut Upcalls<'_, Self>, error: &FabricError) {
        self.take_done(up);
        let engine = up.engine().clone();
        let tokens: Vec<usize> = self.ids.borrow().tokens().collect();
        let is_dialing = |connection: &Conn| connection.state() == State::Opening && !connection.is_incoming();
        let mut dialing = tokens.into_iter().filter_map(|token| engine.at(token)).filter(is_dialing);
        match (dialing.next(), dialing.next()) {
            (Some(only), None) => self.failed(up, &engine, &only, error, &[]),
            _ => tracing::error!(%error, "cannot read an event queue"),
        }
    }

    fn event(&self, up: &mut Upcalls<'_, Self>, net: &Arc<Net>, event: CmEvent) {
        // What the helper thread has done comes first: an event may be about it.
        self.take_done(up);
        let engine = up.engine().clone();
        match event {
            CmEvent::ConnectRequest { listener, info, data } => self.requested(&engine, net, listener as u64, info, &data),
            CmEvent::Connected { endpoint, data } => match self.connection(&engine, endpoint as u64) {
                Some(connection) => self.connected(up, &engine, &connection, &data),
                None => tracing::debug!("a connection was made that nobody waits for any more"),
            },
            CmEvent::Shutdown { endpoint } => {
                if let Some(connection) = self.connection(&engine, endpoint as u64) {
                    self.lose(&engine, &connection);
                }
            }
            CmEvent::Error { endpoint, error, data } => {
                if let Some(connection) = self.connection(&engine, endpoint as u64) {
                    self.failed(up, &engine, &connection, &error, &data);
                } else if self.listeners.borrow().contains_key(&(endpoint as u64)) {
                    tracing::info!(%error, "a peer asked to be connected in a way that the provider cannot take, and is refused");
                }
            }
        }
    }

    /// A peer asks to be connected.
    fn requested(&self, engine: &Rc<Engine<Self>>, net: &Arc<Net>, listener: u64, info: Info, data: &[u8]) {
        let token = self.listeners.borrow().get(&listener).copied();
        let Some(listener) = token.and_then(|token| engine.listener_at(token)) else { return };
        let own = self.hello(engine);
        let refuse = |info: Info, verdict: RefusedReason| {
            let hello = Hello { verdict: Err(verdict), ..own };
            self.ask(Job::Refuse { passive: listener.link.passive.clone(), info, hello });
        };
        let hello = match Hello::decode(data).and_then(Hello::asking) {
            Ok(hello) => hello,
            Err(error) => {
                tracing::info!(listener = %listener.address, %error, "a peer did not say hello");
                listener.counters.accepted.add(1);
                listener.counters.failed_hello.add(1);
                engine.totals.failed_hello.add(1);
                return refuse(info, RefusedReason::Protocol);
            }
        };
        let address = info.dest_addr().map_or(listener.address, EndPointAddress::from);
        if address.ip().is_ipv4() != listener.address.ip().is_ipv4() {
            // The provider takes peers over IPv4 on an IPv6 wildcard, which netio3 does not. Dropped, it is refused.
            return drop(info);
        }
        let link = |token| Ok(Link::new(self.ids.borrow_mut().add(token), Stage::Making, Some(hello)));
        let Some(connection) = engine.stranger(&listener, address, link) else {
            return refuse(info, RefusedReason::LocalResource);
        };
        let verdict = match hello.common_version() {
            Some(version) => engine.admit(&connection).map(|()| version),
            None => {
                listener.counters.refused_version.add(1);
                Err(RefusedReason::Version)
            }
        };
        match verdict {
            Ok(version) => {
                let id = connection.link.id;
                let hello = Hello { versions: (version, version), ..own };
                self.ask(Job::Accept { id, net: net.clone(), info, hello, layout: self.layout() });
            }
            Err(reason) => {
                refuse(info, reason);
                engine.drop_stranger(&connection);
            }
        }
    }

    /// The provider has connected.
    fn connected(&self, up: &mut Upcalls<'_, Self>, engine: &Engine<Self>, connection: &Conn, data: &[u8]) {
        let link = &connection.link;
        if link.stage.get() == Stage::Making {
            link.early.replace(Some(data.to_vec()));
            return;
        }
        if connection.is_over() || link.stage.get() != Stage::Connecting {
            return;
        }
        if let Some(closed) = link.broken.get() {
            return self.not_connected(up, engine, connection, RefusedReason::Protocol, closed);
        }
        let hello = match link.hello.get() {
            Some(hello) => hello,
            None => match Hello::decode(data) {
                Ok(hello) => match answered(&hello) {
                    Ok(()) => hello,
                    Err(reason) => return engine.refuse(connection, reason),
                },
                Err(error) => {
                    tracing::info!(peer = %connection.address, %error, "the peer did not answer as netio3 does");
                    return engine.refuse(connection, RefusedReason::Protocol);
                }
            },
        };
        link.hello.set(Some(hello));
        let mut body = link.body.borrow_mut();
        let Some(open) = &mut *body else { return };
        open.credits = hello.credits;
        open.control = CONTROL_CREDITS;
        open.sending.limit_packets(hello.packet_len as usize);
        let unknown = EndPointAddress::localhost(0);
        let local = open.endpoint.lock().as_ref().and_then(|endpoint| endpoint.local_address().ok()).map_or(unknown, EndPointAddress::from);
        drop(body);
        link.stage.set(Stage::Open);
        up.established(connection, local, hello.max_message_len as usize, hello.heartbeat_interval);
        if !engine.is_gone() && !connection.is_over() {
            engine.read_again(connection);
            engine.flush_later(connection);
        }
    }

    /// Connecting failed, or the connection broke.
    fn failed(&self, up: &mut Upcalls<'_, Self>, engine: &Engine<Self>, connection: &Conn, error: &FabricError, data: &[u8]) {
        tracing::debug!(endpoint = %connection.endpoint, peer = %connection.address, %error, "the provider tells of an error");
        match connection.state() {
            State::Opening => {
                let told = Hello::decode(data).ok().and_then(|hello| hello.verdict.err());
                let reason = || match error.code {
                    // What does not answer as a provider does.
                    libc::ENOPROTOOPT => RefusedReason::Protocol,
                    libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS | libc::EADDRNOTAVAIL => RefusedReason::LocalResource,
                    // The provider `tcp` has no error for a listener that hung up after it had accepted (see `forget_errno`).
                    _ => match RefusedReason::of_error(&io::Error::from(error.clone())) {
                        RefusedReason::LocalResource => RefusedReason::NoListener,
                        reason => reason,
                    },
                };
                let closed = connection.link.broken.get().unwrap_or(ClosedReason::PeerLost);
                self.not_connected(up, engine, connection, told.unwrap_or_else(reason), closed);
            }
            _ => self.lose(engine, connection),
        }
    }

    /// Handles the connections whose peer is gone, the queues being empty.
    fn handle_lost(&self, up: &mut Upcalls<'_, Self>) {
        let lost = self.lost.take();
        let engine = up.engine().clone();
        for connection in lost {
            if connection.is_over() {
                continue;
            }
            let link = &connection.link;
            let reception = engine.reception(&connection);
            let has_packets = link.body.borrow().as_ref().is_some_and(|body| body.receiving.has_packets());
            // Who has paused it may wait for what he has sent, which never leaves.
            let awaits = engine.has_unsent(&connection);
            if reception == Reception::Hold && has_packets && !(awaits && connection.is_paused()) {
                // What came before its end is the user's when he receives again. At a cap what he has taken over may be just what
                // waits to leave, and never will.
                if awaits {
                    self.give_up_sending(&engine, &connection);
                }
                link.listed_lost.set(false);
                continue;
            }
            if has_packets && reception == Reception::Deliver && connection.state() != State::Opening {
                // They wait for the budget of a turn; the end comes behind them.
                engine.read_again(&connection);
                self.lost.borrow_mut().push(connection);
                continue;
            }
            let goodbye = &link.goodbye;
            // What the device has not completed has left for certain only where the peer says that it has all.
            let has_left = |sending: &Sending| goodbye.farewell_heard.get() || !sending.has_messages_in_flight();
            let sent_all = link.body.borrow().as_ref().is_none_or(|body| body.sending.is_empty() && has_left(&body.sending));
            let sent_all = sent_all && !link.gave_up.get();
            match connection.state() {
                State::Opening => {
                    let closed = link.broken.get().unwrap_or(ClosedReason::PeerLost);
                    self.not_connected(up, &engine, &connection, RefusedReason::NoListener, closed);
                }
                // It did not wait for what was left of ours, which was nothing, or for our goodbye.
                State::Closing(reason) if goodbye.heard.get() && sent_all && (goodbye.said.get() || reason == ClosedReason::PeerClosed) => {
                    let left = link.body.borrow_mut().as_mut().map_or(0, |body| body.sending.all_left());
                    if left > 0 {
                        engine.left_messages(&connection, left);
                    }
                    engine.finish(&connection, reason, Release::Orderly);
                }
                _ => engine.finish(&connection, ClosedReason::PeerLost, Release::Reset),
            }
        }
    }

    /// Gives the memory back of what waits to leave a connection whose peer is gone. The messages are pending when it ends.
    fn give_up_sending(&self, engine: &Engine<Self>, connection: &Conn) {
        if let Some(open) = &mut *connection.link.body.borrow_mut() {
            link::end(&open.endpoint);
            open.sending.give_up();
        }
        connection.link.gave_up.set(true);
        engine.retire_soon(connection);
    }

    // ----- the completion queue -----

    /// Reads every completion queue, within the budget.
    fn read_all_completions(&self, up: &mut Upcalls<'_, Self>, batch: &mut [Completion; BATCH], budget: &mut Budget) -> Found {
        let mut found = Found::Nothing;
        let mut index = 0;
        loop {
            // Asked for anew whenever something was handled: what is watched may change meanwhile.
            let read = match self.watched.borrow().get(index) {
                Some(Watched::Completions { queue, .. }) => queue.completions.read(batch),
                Some(Watched::Events { .. }) => Ok(0),
                None => return found,
            };
            match read {
                Ok(0) => index += 1,
                Ok(count) => {
                    found = found.max(Found::Something);
                    for completion in &batch[..count] {
                        self.completed(up, completion, budget);
                        if up.engine().is_gone() {
                            return found;
                        }
                    }
                    if count < BATCH {
                        index += 1;
                    } else if budget.is_spent() {
                        found = Found::More;
                        index += 1;
                    }
                }
                Err(CqError::Queue(error)) => {
                    tracing::error!(%error, "cannot read a completion queue");
                    index += 1;
                }
                Err(CqError::Operation(error)) => {
                    found = found.max(Found::Something);
                    let (id, ..) = of_context(error.context);
                    let engine = up.engine().clone();
                    if let Some(connection) = self.connection(&engine, id) {
                        tracing::debug!(endpoint = %connection.endpoint, error = %error.error, "a transfer failed");
                        if error.error.code == libfabric_sys::FI_ETRUNC {
                            // Longer than this side said that it takes.
                            self.broken(&engine, &connection, Broken::Length);
                        } else {
                            self.lose(&engine, &connection);
                        }
                    }
                }
            }
        }
    }

    fn completed(&self, up: &mut Upcalls<'_, Self>, completion: &Completion, budget: &mut Budget) {
        let (id, is_send, number) = of_context(completion.context);
        let engine = up.engine().clone();
        // What is not found was ended, and the completion is stale.
        let Some(connection) = self.connection(&engine, id) else { return };
        let link = &connection.link;
        if link.broken.get().is_some() {
            return;
        }
        let mut body = link.body.borrow_mut();
        let Some(open) = &mut *body else {
            link.early_receives.borrow_mut().push(*completion);
            return;
        };
        if is_send {
            let left = open.sending.left(number);
            let moved = open.sending.take_moved();
            let idle = open.sending.in_flight() == 0;
            let more = !open.sending.is_empty() || link.goodbye.due.get() || open.receiving.owes_much();
            drop(body);
            if moved {
                engine.left_messages(&connection, left);
            }
            if more {
                engine.flush_later(&connection);
            }
            if link.goodbye.is_complete() && idle {
                engine.finish(&connection, ClosedReason::Local, Release::Orderly);
            }
            return;
        }
        engine.count_read(&connection);
        engine.heard(&connection);
        let first = !open.receiving.has_packets();
        let arrived = open.receiving.arrived(number, completion.len, &open.slab);
        let head = match arrived {
            Ok(head) => head,
            Err(broken) => {
                drop(body);
                return self.broken(&engine, &connection, broken);
            }
        };
        let had_none = open.credits == 0 || open.control == 0;
        let most = link.hello.get().map_or(0, |hello| hello.credits);
        let (credits, control) = (open.credits.saturating_add(head.credits), open.control.saturating_add(head.control));
        if credits > most || control > CONTROL_CREDITS {
            drop(body);
            return self.broken(&engine, &connection, Broken::Credits);
        }
        (open.credits, open.control) = (credits, control);
        let waits = !open.sending.is_empty() || link.goodbye.due.get();
        if head.kind == Kind::Heartbeat {
            connection.counters.heartbeats_received.add(1);
        }
        let reposted = post_receives(link.id, open);
        drop(body);
        if let Err(error) = reposted {
            tracing::debug!(endpoint = %connection.endpoint, %error, "cannot post a receive");
            return self.lose(&engine, &connection);
        }
        if had_none && waits {
            engine.flush_later(&connection);
        }
        if first && link.stage.get() == Stage::Open {
            let _ = self.handle_packets(up, &connection, budget);
        } else {
            self.tell_credits(&engine, &connection);
        }
    }

    /// Has credits told that are due, if nothing else takes them along.
    pub(crate) fn tell_credits(&self, engine: &Engine<Self>, connection: &Conn) {
        let owes = connection.link.body.borrow().as_ref().is_some_and(|body| body.receiving.owes_much());
        if owes && !connection.is_over() {
            engine.flush_later(connection);
        }
    }
}

/// Whether this process and the system have descriptors left.
pub(crate) fn has_descriptors() -> bool {
    eventfd(0, EventfdFlags::CLOEXEC).is_ok()
}

/// What the answer to a hello says.
fn answered(hello: &Hello) -> Result<(), RefusedReason> {
    hello.verdict?;
    let (version, same) = hello.versions;
    if version == same && (VERSIONS.0..=VERSIONS.1).contains(&version) { Ok(()) } else { Err(RefusedReason::Version) }
}

impl Drop for Rdma {
    fn drop(&mut self) {
        self.helper.stop();
        // Endpoints that the helper thread is still closing use memory of the user's, who may free it from now on.
        self.closing.get_mut().values().for_each(|(_, endpoint)| link::end(endpoint));
        self.helper.join();
        // What was closed meanwhile has memory of the user's, each piece of which is dropped by itself.
        let mut retired = Vec::new();
        for done in self.done.try_iter() {
            if let Done::Closed { body, .. } = done {
                body.dissolve(&mut retired);
            }
        }
        drop_each(&mut retired, drop);
    }
}
