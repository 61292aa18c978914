//! What the single-threaded backend tells, on its way to the user.

use std::rc::Rc;

use crate::address::EndPointAddress;
use crate::backend::{NetworkBackend, Phase};
use crate::callbacks::{Callbacks, ConnectionInfo};
use crate::endpoint::Endpoint;
use crate::engine::Transport;
use crate::engine::sync::loop_side::LoopSide;
use crate::engine::sync::mailbox::Mail;
use crate::message::{Message, Messages};
use crate::status::{ClosedReason, Completion, Direction, RefusedReason};

/// The callbacks that the single-threaded backend has. They keep the mailboxes in step and call the user's.
pub(super) struct FrontCallbacks<T: Transport>(pub(super) Rc<LoopSide<T>>);

impl<T: Transport> FrontCallbacks<T> {
    /// Gives an accepted connection its mailbox.
    fn enter(&self, info: &ConnectionInfo) {
        let Self(side) = self;
        let Some(connection) = side.engine().get(info.endpoint) else { return };
        let mail = Mail::new::<T>(info.endpoint, info.address, &connection.params, &side.shared.config, connection.counters.clone());
        let pool = connection.pool.borrow_mut().take();
        let mail = Mail { direction: Direction::Incoming, listener: info.listener, pool, ..mail };
        let mut directory = side.shared.directory.write();
        // Whoever ends the backend has taken the mailboxes away, or will.
        if !side.shared.is_gone() {
            directory.connections += 1;
            side.shared.totals.connections.rise(1);
            side.shared.put(mail);
        }
    }
}

impl<T: Transport> Callbacks for FrontCallbacks<T> {
    fn on_connection_established(&mut self, _inner: &dyn NetworkBackend, info: &ConnectionInfo) {
        if info.direction == Direction::Incoming {
            self.enter(info);
        }
        let Self(side) = self;
        let known = side.shared.with(info.endpoint, |mail| {
            mail.limits = info.limits;
            // A close may have come in between; it is on its way.
            if mail.phase == Phase::Opening {
                mail.phase = Phase::Established;
            }
        });
        if known.is_some() {
            side.user.borrow_mut().on_connection_established(&side.view, info);
        }
    }

    fn on_connection_refused(&mut self, _inner: &dyn NetworkBackend, endpoint: Endpoint, address: &EndPointAddress, reason: RefusedReason) {
        let Self(side) = self;
        if let Some(mail) = side.shared.remove(endpoint) {
            drop(mail);
            side.user.borrow_mut().on_connection_refused(&side.view, endpoint, address, reason);
            side.shared.told_end();
        }
    }

    fn on_connection_closed(
        &mut self,
        _inner: &dyn NetworkBackend,
        endpoint: Endpoint,
        address: &EndPointAddress,
        handed_over: &[Completion],
        reason: ClosedReason,
    ) {
        let Self(side) = self;
        let Some(mut mail) = side.shared.remove(endpoint) else { return };
        let mut pending = handed_over.to_vec();
        pending.extend(mail.take_pending(&side.shared.regions));
        mail.count_queue();
        // The backend has counted those that it was given.
        let rest = (pending.len() - handed_over.len()) as u64;
        mail.counters.messages_pending_at_close.add(rest);
        side.shared.totals.messages_accepted.add(rest);
        side.shared.totals.messages_pending_at_close.add(rest);
        // The memory of messages that were not handed over is the user's again before he is told.
        drop(mail);
        if !side.shared.is_gone() {
            side.user.borrow_mut().on_connection_closed(&side.view, endpoint, address, &pending, reason);
            side.shared.told_end();
        }
    }

    fn on_data(&mut self, _inner: &dyn NetworkBackend, from: Endpoint, address: &EndPointAddress, message: Message<'_>) {
        let Self(side) = self;
        if !side.shared.is_gone() {
            side.user.borrow_mut().on_data(&side.view, from, address, message);
        }
    }

    fn on_messages(&mut self, _inner: &dyn NetworkBackend, from: Endpoint, address: &EndPointAddress, messages: &mut Messages<'_>) {
        let Self(side) = self;
        // Nobody is told of what comes after the end.
        messages.until(side.shared.gone(), |messages| side.user.borrow_mut().on_messages(&side.view, from, address, messages));
    }

    fn on_send_completed(
        &mut self,
        _inner: &dyn NetworkBackend,
        endpoint: Endpoint,
        _address: &EndPointAddress,
        completions: &[Completion],
    ) {
        self.0.completed(endpoint, completions);
    }

    fn on_writable(&mut self, _inner: &dyn NetworkBackend, endpoint: Endpoint, _address: &EndPointAddress) {
        // Not the user's: he waits for room in the mailbox.
        self.0.look_later(endpoint);
    }
}
