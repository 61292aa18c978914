//! The way of packets to the user.

use std::rc::Rc;
use std::sync::Arc;

use netio3_core::engine::{Assembled, Brought, Engine, Reception, Release, Upcalls};
use netio3_core::{Budget, ClosedReason, Message, Next, RefusedReason};

use crate::helper::Job;
use crate::link::{Body, Stage};
use crate::posting::post_receives;
use crate::receiving::{Broken, Found, Packet};
use crate::slab::{Layout, Slab, Slot};
use crate::transport::{Conn, Rdma};
use crate::wire::Kind;

impl Rdma {
    /// Hands out what waits in packets, as far as the user takes it and the budget goes.
    pub(crate) fn handle_packets(&self, up: &mut Upcalls<'_, Self>, connection: &Conn, budget: &mut Budget) -> Next {
        let engine = up.engine().clone();
        let link = &connection.link;
        while link.stage.get() == Stage::Open {
            let packet = link.body.borrow_mut().as_mut().and_then(|body| body.receiving.take_packet());
            let Some(mut packet) = packet else { break };
            let handled = match packet.cursor.kind {
                None | Some(Kind::First(_)) => self.handle_part(up, &engine, connection, &mut packet, budget),
                Some(_) => self.handle_messages(up, &engine, connection, &mut packet, budget),
            };
            if engine.is_gone() || connection.is_over() {
                return Next::Wait;
            }
            let mut body = link.body.borrow_mut();
            let Some(open) = &mut *body else { return Next::Wait };
            if let Err(next) = handled {
                open.receiving.put_back(packet);
                drop(body);
                if next == Next::Again {
                    engine.read_again(connection);
                } else if link.gone.get() && connection.is_paused() {
                    // It may have been paused after what waited to leave was given up.
                    self.lose(&engine, connection);
                }
                return Next::Wait;
            }
            let may_be_answered = packet.cursor.kind == Some(Kind::Messages);
            open.receiving.handled(packet);
            if may_be_answered && !open.receiving.has_packets() {
                // The answer goes first.
                drop(body);
                self.post_receives_later(connection);
            } else {
                let reposted = post_receives(link.id, open);
                drop(body);
                if reposted.is_err() {
                    self.lose(&engine, connection);
                }
            }
        }
        if link.gone.get() {
            self.lose(&engine, connection);
        }
        self.tell_credits(&engine, connection);
        Next::Wait
    }

    /// Has receives posted behind what is flushed next, which they would delay.
    fn post_receives_later(&self, connection: &Conn) {
        if !connection.link.listed_unposted.replace(true) {
            self.unposted.borrow_mut().push(connection.clone());
            self.active.set(true);
        }
    }

    /// Posts the receives that were put off.
    pub(crate) fn post_unposted(&self, engine: &Engine<Self>) {
        for connection in self.unposted.borrow_mut().drain(..) {
            connection.link.listed_unposted.set(false);
            let posted = match &mut *connection.link.body.borrow_mut() {
                Some(open) => post_receives(connection.link.id, open),
                None => continue,
            };
            match posted {
                Ok(()) => self.tell_credits(engine, &connection),
                Err(error) => {
                    tracing::debug!(endpoint = %connection.endpoint, %error, "cannot post a receive");
                    self.lose(engine, &connection);
                }
            }
        }
    }

    /// Handles a packet of whole messages, or one that says something of the connection; gives what to wait for when
    /// it was not handled to its end.
    fn handle_messages(
        &self,
        up: &mut Upcalls<'_, Self>,
        engine: &Rc<Engine<Self>>,
        connection: &Conn,
        packet: &mut Packet,
        budget: &mut Budget,
    ) -> Result<(), Next> {
        let link = &connection.link;
        // Kept while callbacks run, in which the connection may end.
        let Some(slab) = link.body.borrow().as_ref().map(|body| memory_of(packet, body)) else { return Err(Next::Wait) };
        let bytes = bytes_of(packet, &slab);
        let max_len = engine.config.max_message_len;
        let mut brought = Brought::default();
        let mut mode = engine.reception(connection);
        let mut handled = Ok(());
        while !engine.is_gone() {
            handled = may_be_handled(mode, budget);
            if handled.is_err() {
                break;
            }
            match packet.cursor.next(bytes, max_len) {
                Ok(Found::Message(message)) => {
                    budget.spend(1, message.len());
                    if brought.take(mode, message.len()) && !up.data(connection, Message::borrowed(message, &connection.meter)) {
                        mode = engine.reception(connection);
                    }
                }
                Ok(Found::Goodbye) => {
                    link.goodbye.heard.set(true);
                    engine.start_closing(connection, ClosedReason::PeerClosed);
                    engine.flush_later(connection);
                }
                Ok(Found::Farewell) => {
                    link.goodbye.farewell_heard.set(true);
                    engine.flush_later(connection);
                }
                Ok(Found::End | Found::First(..) | Found::Part(_)) => break,
                Err(broken) => {
                    self.broken(engine, connection, broken);
                    break;
                }
            }
        }
        if connection.is_over() {
            while let Ok(Found::Message(_)) = packet.cursor.next(bytes, max_len) {
                brought.discarded += 1;
            }
        }
        engine.count_brought(connection, brought);
        handled
    }

    /// Handles a packet with a part of a message; gives what to wait for when it was not handled.
    fn handle_part(
        &self,
        up: &mut Upcalls<'_, Self>,
        engine: &Rc<Engine<Self>>,
        connection: &Conn,
        packet: &mut Packet,
        budget: &mut Budget,
    ) -> Result<(), Next> {
        let mode = engine.reception(connection);
        may_be_handled(mode, budget)?;
        // Kept apart while callbacks run: the body may be borrowed by what they call.
        let take = |body: &mut Body| (memory_of(packet, body), std::mem::take(&mut body.receiving.assembly));
        let Some((slab, mut assembly)) = connection.link.body.borrow_mut().as_mut().map(take) else { return Err(Next::Wait) };
        let complete = match packet.cursor.next(bytes_of(packet, &slab), engine.config.max_message_len) {
            Ok(Found::First(len, part)) => {
                let place = packet.slot.as_ref().and_then(|slot| self.landing(connection, slot, len));
                assembly.begin(len, part, &mut packet.slot, place.as_ref())
            }
            Ok(Found::Part(part)) => assembly.go_on(part, &mut packet.slot),
            Ok(Found::End | Found::Message(_) | Found::Goodbye | Found::Farewell) => Ok(false),
            Err(broken) => Err(broken),
        };
        if complete == Ok(true) {
            let len = assembly.expected();
            if assembly.wants_area() {
                self.ask_for_area(engine, connection, len, slab.layout().packet_len);
            }
            budget.spend(1, len);
            let mut brought = Brought::default();
            if brought.take(mode, len) {
                match assembly.landed() {
                    Some(message) => up.data(connection, Message::borrowed(message, &connection.meter)),
                    None => {
                        let mut message = Assembled { memory: assembly.memory(), len, meter: &connection.meter };
                        up.data(connection, Message::whole(&mut message))
                    }
                };
            }
            assembly.end();
            engine.count_brought(connection, brought);
        }
        let areas = connection.link.body.borrow().as_ref().map_or(0, |body| body.receiving.area_bytes());
        let fits = engine.count_assembly(connection, assembly.held() + areas);
        let is_spare = fits && !assembly.is_under_way();
        // Memory kept for the next message must not use up the limit that others assemble within.
        if is_spare && engine.totals.assembly_bytes.get() > engine.config.total_assembly_bytes as u64 / 2 {
            assembly.trim();
            engine.count_assembly(connection, assembly.held() + areas);
        }
        let is_kept = is_spare && assembly.held() > 0;
        if let Some(body) = &mut *connection.link.body.borrow_mut() {
            body.receiving.assembly = assembly;
        }
        if connection.is_over() {
            return Ok(());
        }
        if let Err(broken) = complete {
            self.broken(engine, connection, broken);
        } else if !fits {
            engine.finish(connection, ClosedReason::Limit, Release::Reset);
        } else if is_kept {
            engine.trim_later(connection);
        }
        Ok(())
    }

    /// Where a long message may be put together that begins in this slot.
    fn landing(&self, connection: &Conn, slot: &Slot, len: usize) -> Option<Arc<Slab>> {
        connection.link.body.borrow().as_ref()?.receiving.landing(slot, len).cloned()
    }

    /// Has memory made for messages of this length to land in. One has come whole: nothing is allocated on a length's
    /// word.
    #[cold]
    fn ask_for_area(&self, engine: &Engine<Self>, connection: &Conn, len: usize, packet_len: usize) {
        let rdma = &engine.config.rdma;
        if len > rdma.land_up_to || rdma.shared_receives.is_some() {
            return;
        }
        let mut body = connection.link.body.borrow_mut();
        let Some(body) = body.as_mut().filter(|body| !body.area_asked) else { return };
        if let Some(receives) = body.receiving.wants_area(len, packet_len) {
            body.area_asked = true;
            let layout = Layout { packet_len, receives, sends: 0, heads: 0 };
            self.ask(Job::Area { id: connection.link.id, device: body.queue.device.clone(), layout, len });
        }
    }

    /// The peer broke the protocol, or sends more than there is memory for.
    pub(crate) fn broken(&self, engine: &Engine<Self>, connection: &Conn, broken: Broken) {
        if broken == Broken::Memory {
            return self.end(engine, connection, RefusedReason::LocalResource, ClosedReason::Limit);
        }
        tracing::warn!(endpoint = %connection.endpoint, peer = %connection.address, ?broken, "the peer broke the protocol");
        self.end(engine, connection, RefusedReason::Protocol, ClosedReason::Protocol);
    }
}

/// Whether what has come may be handled; if not, what to wait for.
fn may_be_handled(mode: Reception, budget: &Budget) -> Result<(), Next> {
    match mode {
        Reception::Hold | Reception::Stop => Err(Next::Wait),
        Reception::Deliver | Reception::Discard if budget.is_spent() => Err(Next::Again),
        Reception::Deliver | Reception::Discard => Ok(()),
    }
}

/// The memory that a packet lies in.
fn memory_of(packet: &Packet, body: &Body) -> Arc<Slab> {
    packet.slot.as_ref().map_or(&body.slab, |slot| body.receiving.memory_of(slot, &body.slab)).clone()
}

fn bytes_of<'a>(packet: &Packet, slab: &'a Slab) -> &'a [u8] {
    packet.slot.as_ref().map(|slot| slab.filled(slot, packet.cursor.len)).unwrap_or_default()
}
