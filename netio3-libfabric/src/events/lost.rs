//! Connections whose peer is gone.

use netio3_core::engine::{Engine, Reception, Release, State, Upcalls};
use netio3_core::{ClosedReason, RefusedReason};

use crate::link;
use crate::sending::Sending;
use crate::transport::{Conn, Rdma};

impl Rdma {
    /// Handles the connections whose peer is gone, the queues being empty.
    pub(super) fn handle_lost(&self, up: &mut Upcalls<'_, Self>) {
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
}
