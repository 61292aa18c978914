//! The way of packets to the user.

use std::rc::Rc;
use std::sync::Arc;

use netio3_core::engine::{Assembled, Brought, Engine, Reception, Release, Upcalls};
use netio3_core::{Budget, ClosedReason, Message, Next, RefusedReason};

use crate::helper::{self, Job};
use crate::link::{Body, Stage};
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
            let held = self.handle_packet(up, &engine, connection, &mut packet, budget);
            if engine.is_gone() || connection.is_over() {
                return Next::Wait;
            }
            let mut body = link.body.borrow_mut();
            let Some(open) = &mut *body else { return Next::Wait };
            if let Some(next) = held {
                open.receiving.put_back(packet);
                if next == Next::Again {
                    drop(body);
                    engine.read_again(connection);
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
                let reposted = helper::post_receives(link.id, open);
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
                Some(open) => helper::post_receives(connection.link.id, open),
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

    /// Handles a packet; gives what to wait for when it was not handled to its end.
    fn handle_packet(
        &self,
        up: &mut Upcalls<'_, Self>,
        engine: &Rc<Engine<Self>>,
        connection: &Conn,
        packet: &mut Packet,
        budget: &mut Budget,
    ) -> Option<Next> {
        let link = &connection.link;
        // Kept apart while callbacks run: the body may be borrowed by what they call.
        let take = |body: &mut Body| {
            let memory = packet.slot.as_ref().map_or(&body.slab, |slot| body.receiving.memory_of(slot, &body.slab)).clone();
            (memory, std::mem::take(&mut body.receiving.assembly))
        };
        let (slab, mut assembly) = link.body.borrow_mut().as_mut().map(take)?;
        let bytes = packet.slot.as_ref().map(|slot| slab.filled(slot, packet.cursor.len)).unwrap_or_default();
        let max_len = engine.config.max_message_len;
        let mut brought = Brought::default();
        let mut held = None;
        let mut mode = engine.reception(connection);
        loop {
            match mode {
                Reception::Deliver | Reception::Discard => {}
                Reception::Hold => {
                    held = Some(Next::Wait);
                    break;
                }
                Reception::Stop => break,
            }
            if budget.is_spent() {
                held = Some(Next::Again);
                break;
            }
            let found = match packet.cursor.next(bytes, max_len) {
                Ok(Found::Message(_)) if assembly.is_under_way() => Err(Broken::Part),
                Ok(Found::First(len, part)) => {
                    let place = packet.slot.as_ref().and_then(|slot| self.landing(connection, slot, len));
                    assembly.begin(len, part, &mut packet.slot, place.as_ref()).map(|complete| (Found::End, complete))
                }
                Ok(Found::Part(part)) => assembly.go_on(part, &mut packet.slot).map(|complete| (Found::End, complete)),
                found => found.map(|found| (found, false)),
            };
            match found {
                Ok((_, true)) => {
                    let len = assembly.expected();
                    if assembly.wants_area() {
                        self.ask_for_area(engine, connection, len, slab.layout().packet_len);
                    }
                    budget.spend(1, len);
                    if brought.take(mode, len) {
                        let goes_on = match assembly.landed() {
                            Some(message) => up.data(connection, Message::borrowed(message, &connection.meter)),
                            None => {
                                let mut message = Assembled { memory: assembly.memory(), len, meter: &connection.meter };
                                up.data(connection, Message::whole(&mut message))
                            }
                        };
                        if !goes_on {
                            mode = engine.reception(connection);
                        }
                    }
                    assembly.end();
                }
                Ok((Found::Message(message), _)) => {
                    budget.spend(1, message.len());
                    if brought.take(mode, message.len()) && !up.data(connection, Message::borrowed(message, &connection.meter)) {
                        mode = engine.reception(connection);
                    }
                }
                Ok((Found::Goodbye, _)) => {
                    link.goodbye.heard.set(true);
                    engine.start_closing(connection, ClosedReason::PeerClosed);
                    engine.flush_later(connection);
                }
                Ok((Found::Farewell, _)) => {
                    link.goodbye.farewell_heard.set(true);
                    engine.flush_later(connection);
                }
                Ok((Found::End | Found::First(..) | Found::Part(_), _)) => break,
                Err(broken) => {
                    self.broken(engine, connection, broken);
                    break;
                }
            }
            if engine.is_gone() {
                break;
            }
        }
        engine.count_brought(connection, brought);
        let memory = assembly.held();
        if let Some(body) = &mut *link.body.borrow_mut() {
            body.receiving.assembly = assembly;
        }
        if !connection.is_over() && !engine.count_assembly(connection, memory) {
            engine.finish(connection, ClosedReason::Limit, Release::Reset);
        }
        held
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

    /// The peer broke the protocol.
    pub(crate) fn broken(&self, engine: &Engine<Self>, connection: &Conn, broken: Broken) {
        tracing::warn!(endpoint = %connection.endpoint, peer = %connection.address, ?broken, "the peer broke the protocol");
        self.end(engine, connection, RefusedReason::Protocol, ClosedReason::Protocol);
    }
}
