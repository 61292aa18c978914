//! The callbacks that the backend behind is given.

use super::FaultBackend;
use crate::address::EndPointAddress;
use crate::backend::NetworkBackend;
use crate::callbacks::{Callbacks, ConnectionInfo};
use crate::endpoint::Endpoint;
use crate::message::Message;
use crate::status::{ClosedReason, Completion, RefusedReason};

/// Hands everything on to the user's callbacks, keeping count. Dropping it ends the backend in front.
pub(super) struct Interposer {
    view: FaultBackend,
}

impl Interposer {
    pub(super) fn new(view: FaultBackend) -> Self {
        Self { view }
    }
}

impl Callbacks for Interposer {
    fn on_connection_established(&mut self, _: &dyn NetworkBackend, connection: &ConnectionInfo) {
        let core = &self.view.core;
        core.insert(connection.endpoint);
        core.with(connection.endpoint, |known| known.establish(connection));
        core.call(|callbacks| callbacks.on_connection_established(&self.view, connection));
    }

    fn on_connection_refused(&mut self, _: &dyn NetworkBackend, endpoint: Endpoint, address: &EndPointAddress, reason: RefusedReason) {
        drop(self.view.core.remove(endpoint));
        self.view.core.call(|callbacks| callbacks.on_connection_refused(&self.view, endpoint, address, reason));
    }

    fn on_connection_closed(
        &mut self,
        _: &dyn NetworkBackend,
        endpoint: Endpoint,
        address: &EndPointAddress,
        pending: &[Completion],
        reason: ClosedReason,
    ) {
        let connection = self.view.core.remove(endpoint).unwrap_or_default();
        let was_reset = connection.was_reset() && reason == ClosedReason::Local;
        let reason = if was_reset { ClosedReason::PeerLost } else { reason };
        let pending: Vec<Completion> = pending.iter().copied().chain(connection.held_completions()).collect();
        // The memory is the user's again before he is told.
        drop(connection.into_held());
        self.view.core.call(|callbacks| callbacks.on_connection_closed(&self.view, endpoint, address, &pending, reason));
    }

    fn on_data(&mut self, _: &dyn NetworkBackend, from: Endpoint, address: &EndPointAddress, message: Message<'_>) {
        self.view.core.call(|callbacks| callbacks.on_data(&self.view, from, address, message));
        self.view.draw_trouble(from);
    }

    fn on_send_completed(&mut self, _: &dyn NetworkBackend, endpoint: Endpoint, address: &EndPointAddress, completions: &[Completion]) {
        let core = &self.view.core;
        let owed = core.with(endpoint, |connection| {
            connection.complete(completions.len());
            connection.is_writable_owed()
        });
        if owed {
            core.schedule();
        }
        core.call(|callbacks| callbacks.on_send_completed(&self.view, endpoint, address, completions));
    }

    fn on_writable(&mut self, _: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress) {
        self.view.core.with(endpoint, |connection| connection.writable_by_inner());
        self.view.send_due(endpoint);
        self.view.tell_writable(endpoint);
    }
}

impl Drop for Interposer {
    fn drop(&mut self) {
        self.view.core.end();
    }
}
