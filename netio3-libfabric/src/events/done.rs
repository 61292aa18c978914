//! What the helper thread has done.

use std::io;

use netio3_core::engine::{Engine, Release, Upcalls};
use netio3_core::{Budget, ClosedReason, Direction, EndPointAddress, RefusedReason};

use crate::helper::{Done, Job};
use crate::link::{Body, Stage};
use crate::transport::{Conn, Rdma};

impl Rdma {
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
    pub(super) fn not_connected(
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
}
