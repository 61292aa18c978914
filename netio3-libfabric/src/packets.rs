//! The way of packets to the user.

use std::rc::Rc;

use netio3_core::engine::{Assembled, Engine, Reception, Release, Upcalls};
use netio3_core::{Budget, ClosedReason, Message, Next, RefusedReason};

use crate::helper;
use crate::link::{Body, Stage};
use crate::receiving::{Broken, Found, Packet};
use crate::transport::{Conn, Rdma};

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
            open.receiving.handled(packet);
            let reposted = helper::post_receives(link.id, open);
            drop(body);
            if reposted.is_err() {
                self.lose(&engine, connection);
            }
        }
        if link.gone.get() {
            self.lose(&engine, connection);
        }
        self.tell_credits(&engine, connection);
        Next::Wait
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
        let take = |body: &mut Body| (body.slab.clone(), std::mem::take(&mut body.receiving.assembly));
        let (slab, mut assembly) = link.body.borrow_mut().as_mut().map(take)?;
        let bytes = slab.filled(&packet.slot, packet.cursor.len);
        let max_len = engine.config.max_message_len;
        let mut messages = 0;
        let mut received = 0;
        let mut discarded = 0;
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
            match packet.cursor.next(bytes, &mut assembly, max_len) {
                Ok(Found::Message(message)) => {
                    budget.spend(1, message.len());
                    if mode == Reception::Deliver {
                        messages += 1;
                        received += message.len();
                        if !up.data(connection, Message::borrowed(message, &connection.meter)) {
                            mode = engine.reception(connection);
                        }
                    } else {
                        discarded += 1;
                    }
                }
                Ok(Found::Assembled) => {
                    budget.spend(1, assembly.expected);
                    assembly.expected = 0;
                    if mode == Reception::Deliver {
                        messages += 1;
                        received += assembly.memory.len();
                        let len = assembly.memory.len();
                        let mut message = Assembled { memory: &mut assembly.memory, len, meter: &connection.meter };
                        if !up.data(connection, Message::whole(&mut message)) {
                            mode = engine.reception(connection);
                        }
                    } else {
                        discarded += 1;
                    }
                    assembly.memory.clear();
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
                Ok(Found::End) => break,
                Err(broken) => {
                    self.broken(engine, connection, broken);
                    break;
                }
            }
            if engine.is_gone() {
                break;
            }
        }
        engine.count_received(connection, messages, received);
        if discarded > 0 {
            engine.count_discarded(connection, discarded);
        }
        let memory = assembly.held();
        if let Some(body) = &mut *link.body.borrow_mut() {
            body.receiving.assembly = assembly;
        }
        if !connection.is_over() && !engine.count_assembly(connection, memory) {
            engine.finish(connection, ClosedReason::Limit, Release::Reset);
        }
        held
    }

    /// The peer broke the protocol.
    pub(crate) fn broken(&self, engine: &Engine<Self>, connection: &Conn, broken: Broken) {
        tracing::warn!(endpoint = %connection.endpoint, peer = %connection.address, ?broken, "the peer broke the protocol");
        self.end(engine, connection, RefusedReason::Protocol, ClosedReason::Protocol);
    }
}
