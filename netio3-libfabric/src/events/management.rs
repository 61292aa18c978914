//! What event queues tell of connections that are made or end.

use std::io;
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;

use netio3_core::engine::{Engine, State, Upcalls};
use netio3_core::{ClosedReason, EndPointAddress, RefusedReason};

use crate::devices::Net;
use crate::events::{BATCH, Found};
use crate::fabric::{CmEvent, EventQueue, FabricError, Info};
use crate::helper::Job;
use crate::link::{Link, Stage};
use crate::transport::{Conn, Rdma};
use crate::wire::{CONTROL_CREDITS, Hello, VERSIONS};

impl Rdma {
    /// Reads what an event queue has.
    pub(super) fn read_events(&self, up: &mut Upcalls<'_, Self>, net: &Arc<Net>, events: &EventQueue) -> Found {
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
    pub(super) fn connected(&self, up: &mut Upcalls<'_, Self>, engine: &Engine<Self>, connection: &Conn, data: &[u8]) {
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
}

/// What the answer to a hello says.
fn answered(hello: &Hello) -> Result<(), RefusedReason> {
    hello.verdict?;
    let (version, same) = hello.versions;
    if version == same && (VERSIONS.0..=VERSIONS.1).contains(&version) { Ok(()) } else { Err(RefusedReason::Version) }
}
