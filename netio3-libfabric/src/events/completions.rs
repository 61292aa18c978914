//! What completion queues tell of packets.

use netio3_core::engine::{Engine, Release, Upcalls};
use netio3_core::{Budget, ClosedReason};

use crate::events::{BATCH, Found};
use crate::fabric::{Completion, CqError};
use crate::link::Stage;
use crate::posting::{of_context, post_receives};
use crate::receiving::Broken;
use crate::transport::{Conn, Rdma, Watched};
use crate::wire::{CONTROL_CREDITS, Kind};

impl Rdma {
    /// Reads every completion queue, within the budget.
    pub(super) fn read_all_completions(&self, up: &mut Upcalls<'_, Self>, batch: &mut [Completion; BATCH], budget: &mut Budget) -> Found {
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

    pub(super) fn completed(&self, up: &mut Upcalls<'_, Self>, completion: &Completion, budget: &mut Budget) {
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
