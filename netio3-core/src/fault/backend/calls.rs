//! The calls, on their way to the backend behind.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::FaultBackend;
use super::message::{Held, Offered};
use crate::address::EndPointAddress;
use crate::backend::{ConnectionState, ListenerState, NetworkBackend, Unsent};
use crate::config::{ConnectionParameters, ConnectionParametersRecv, Limits};
use crate::endpoint::Endpoint;
use crate::error::{
    BufferError, CloseListenError, CloseSendError, DeregisterError, OpenListenError, OpenSendError, RegisterError, SendError,
};
use crate::memory::{MemoryRegion, NetworkBuffer, RawSlice, RegionId};
use crate::stats::{BackendCounters, ConnectionCounters};
use crate::status::NetioStatus;

/// What happens to a message.
enum Admission {
    /// The backend behind decides.
    SendOn,
    Hold(Instant),
    Refuse,
}

impl FaultBackend {
    /// Draws what befalls a connection as a whole when a message passes, either way.
    pub(super) fn draw_trouble(&self, endpoint: Endpoint) {
        let core = &self.core;
        let config = core.config.get();
        let Some(inner) = core.inner() else { return };
        if !core.with(endpoint, |connection| connection.is_open()) {
            return;
        }
        if core.chance(config.reset) {
            core.with(endpoint, |connection| connection.doom());
            core.schedule();
        }
        if !core.with(endpoint, |connection| connection.is_stalled()) && core.chance(config.stall) {
            let until = core.clock.now() + core.time_up_to(config.longest_stall);
            core.count(|counts| counts.stalls += 1);
            core.with(endpoint, |connection| connection.stall(until));
            core.add_event(until);
            // It is known, since it is open; should it be ending behind, there is nothing to stop.
            let _ = inner.pause(endpoint);
        }
    }

    /// Decides about a message that will be accepted if there is room, or, unless `may_hold`, perhaps not.
    fn admit(&self, to: Endpoint, header_len: usize, len: usize, may_hold: bool) -> Admission {
        let core = &self.core;
        let config = core.config.get();
        self.draw_trouble(to);
        if !core.with(to, |connection| connection.is_open() && !connection.is_too_big(header_len, len)) {
            return Admission::SendOn;
        }
        let is_idle = core.with(to, |connection| connection.is_idle());
        if !is_idle && core.chance(config.would_block) {
            core.count(|counts| counts.would_blocks += 1);
            return Admission::Refuse;
        }
        if !may_hold {
            // The backend behind has to decide now, so what is before it must go there first.
            self.send_all(to);
            return if core.with(to, |connection| connection.has_held()) { Admission::Refuse } else { Admission::SendOn };
        }
        let held_until = core.with(to, |connection| connection.held_until());
        let delayed = core.chance(config.delay);
        if !delayed && held_until.is_none() {
            return Admission::SendOn;
        }
        if !core.with(to, |connection| connection.fits(len)) {
            return Admission::Refuse;
        }
        let now = core.clock.now();
        let delay = if delayed { core.time_up_to(config.longest_delay) } else { Duration::ZERO };
        core.count(|counts| counts.delays += u64::from(delayed));
        Admission::Hold((now + delay).max(held_until.unwrap_or(now)))
    }

    fn offer(&self, to: Endpoint, offered: &Offered<'_>) -> Result<NetioStatus, SendError> {
        let len = offered.len();
        let admission = match self.core.is_registered(offered.ranges()) {
            Some(false) => Admission::SendOn,
            registered => self.admit(to, offered.header_len(), len, registered.is_some()),
        };
        match admission {
            Admission::SendOn => {
                let outcome = match self.core.inner() {
                    Some(inner) => offered.send(&*inner, to),
                    None => Err(unknown(to)),
                };
                self.note_registered(offered.ranges(), &outcome);
                self.note_outcome(to, len, &outcome);
                outcome
            }
            Admission::Hold(due) => {
                self.hold(to, offered.hold(due));
                Ok(NetioStatus::Ok)
            }
            Admission::Refuse => {
                self.refuse(to, len);
                Ok(NetioStatus::NoResources)
            }
        }
    }

    fn hold(&self, to: Endpoint, held: Held) {
        self.core.add_event(held.due);
        self.core.with(to, |connection| connection.push_held(held));
    }

    fn refuse(&self, to: Endpoint, len: usize) {
        self.core.with(to, |connection| connection.refuse(len));
        self.core.schedule();
    }

    fn note_registered(&self, ranges: impl IntoIterator<Item = (usize, usize)>, outcome: &Result<NetioStatus, SendError>) {
        if let Ok(status @ (NetioStatus::Ok | NetioStatus::NotRegistered)) = outcome {
            self.core.note_registered(ranges, *status == NetioStatus::Ok);
        }
    }

    fn note_outcome(&self, to: Endpoint, len: usize, outcome: &Result<NetioStatus, SendError>) {
        match outcome {
            Ok(NetioStatus::Ok) => self.core.with(to, |connection| connection.push_sent_on(len)),
            Ok(NetioStatus::NoResources) => self.core.with(to, |connection| connection.refused_by_inner(len)),
            _ => {}
        }
    }

    /// Sends on a message that was held; `false` when it is still held.
    pub(super) fn send_on(&self, to: Endpoint, held: Held) -> bool {
        let len = held.len();
        let Some(inner) = self.core.inner() else { return false };
        let Some((held, outcome)) = held.send(&*inner, to) else {
            self.core.with(to, |connection| connection.sent_on(len));
            return true;
        };
        if self.core.with(to, |connection| connection.put_back(held, outcome)) {
            self.core.schedule();
        }
        false
    }

    /// What precedes an orderly close: nothing is held back any more.
    fn prepare_close(&self, endpoint: Endpoint) {
        self.send_all(endpoint);
        self.leave_open(endpoint);
    }

    /// The user ends the connection, so no fault befalls it any more.
    fn leave_open(&self, endpoint: Endpoint) {
        if self.core.with(endpoint, |connection| connection.close())
            && let Some(inner) = self.core.inner()
        {
            // Should it have ended, there is nothing to resume.
            let _ = inner.resume(endpoint);
        }
    }
}

impl NetworkBackend for FaultBackend {
    fn open_send_endpoint(&self, address: &EndPointAddress, params: &ConnectionParameters) -> Result<Endpoint, OpenSendError> {
        let inner = self.core.inner().ok_or_else(|| OpenSendError::FailedOpenSendEndpoint { address: *address, source: ended() })?;
        inner.open_send_endpoint(address, params).inspect(|endpoint| self.core.insert(*endpoint))
    }

    fn connect(&self, address: &EndPointAddress, params: &ConnectionParameters) -> Result<Endpoint, OpenSendError> {
        let inner = self.core.inner().ok_or_else(|| OpenSendError::FailedOpenSendEndpoint { address: *address, source: ended() })?;
        inner.connect(address, params).inspect(|endpoint| self.core.insert(*endpoint))
    }

    fn open_listen_endpoint(
        &self,
        address: &EndPointAddress,
        params: &ConnectionParametersRecv,
    ) -> Result<EndPointAddress, OpenListenError> {
        let inner = self.core.inner().ok_or_else(|| OpenListenError::FailedOpenListenEndpoint { address: *address, source: ended() })?;
        inner.open_listen_endpoint(address, params)
    }

    fn close(&self, endpoint: Endpoint) -> Result<(), CloseSendError> {
        let inner = self.core.inner().ok_or(CloseSendError::UnknownSendEndpoint(endpoint.into()))?;
        self.prepare_close(endpoint);
        inner.close(endpoint)
    }

    fn abort(&self, endpoint: Endpoint) -> Result<(), CloseSendError> {
        let inner = self.core.inner().ok_or(CloseSendError::UnknownSendEndpoint(endpoint.into()))?;
        self.leave_open(endpoint);
        inner.abort(endpoint)
    }

    fn close_listen_endpoint(&self, address: &EndPointAddress) -> Result<(), CloseListenError> {
        let inner = self.core.inner().ok_or(CloseListenError::UnknownListenEndpoint { address: *address })?;
        for endpoint in self.core.endpoints_where(|connection| connection.is_accepted_by(address)) {
            self.prepare_close(endpoint);
        }
        inner.close_listen_endpoint(address)
    }

    fn endpoint(&self, address: &EndPointAddress) -> Option<Endpoint> {
        self.core.inner()?.endpoint(address)
    }

    fn send_iov(&self, to: Endpoint, data: &[Bytes], header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        self.offer(to, &Offered::shared(data, header, key))
    }

    fn send_copy_iov(&self, to: Endpoint, data: &[IoSlice<'_>], header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        self.offer(to, &Offered::copied(data, header, key))
    }

    #[allow(unsafe_code, reason = "the trait's one call whose contract the compiler cannot check")]
    unsafe fn send_raw_iov(&self, to: Endpoint, data: &[RawSlice], header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        // SAFETY: the caller vouches that the pieces stay readable until the key comes back or this is dropped;
        // what is held of them is dropped before either.
        self.offer(to, &unsafe { Offered::raw(data, header, key) })
    }

    fn take_buffer(&self, to: Endpoint) -> Result<Option<NetworkBuffer>, BufferError> {
        let inner = self.core.inner().ok_or_else(|| unknown(to))?;
        let taken = inner.take_buffer(to)?;
        if taken.is_none() {
            self.core.with(to, |connection| connection.no_buffer());
            return Ok(None);
        }
        if self.core.with(to, |connection| connection.is_open() && !connection.is_idle())
            && self.core.chance(self.core.config.get().would_block)
        {
            self.core.count(|counts| counts.would_blocks += 1);
            self.refuse(to, 0);
            return Ok(None);
        }
        Ok(taken)
    }

    fn send_taken(&self, to: Endpoint, buffer: NetworkBuffer) -> Result<(), Unsent> {
        let len = buffer.len();
        let owner = buffer.pool().owner();
        // A connection's own buffers can be sent from anyway; others lie in a region of the user's.
        let range = owner.is_none().then(|| buffer.range());
        let admission = match self.core.is_registered(range) {
            Some(false) => Admission::SendOn,
            _ if owner.is_some_and(|owner| owner != to) => Admission::SendOn,
            registered => self.admit(to, 0, len, registered.is_some()),
        };
        match admission {
            Admission::SendOn => {
                let outcome = match self.core.inner() {
                    Some(inner) => inner.send_taken(to, buffer),
                    None => Err(Unsent { buffer, outcome: Err(unknown(to)) }),
                };
                let status = outcome.as_ref().map_or_else(|unsent| unsent.outcome, |()| Ok(NetioStatus::Ok));
                self.note_registered(range, &status);
                self.note_outcome(to, len, &status);
                outcome
            }
            Admission::Hold(due) => {
                self.hold(to, Held::of_buffer(buffer, due));
                Ok(())
            }
            Admission::Refuse => {
                self.refuse(to, len);
                Err(Unsent { buffer, outcome: Ok(NetioStatus::NoResources) })
            }
        }
    }

    fn available_buffers(&self, to: Endpoint) -> Result<usize, BufferError> {
        self.core.inner().ok_or_else(|| unknown(to))?.available_buffers(to)
    }

    fn register(&self, region: &MemoryRegion) -> Result<RegionId, RegisterError> {
        let inner = self.core.inner().ok_or(RegisterError::BackendGone)?;
        inner.register(region).inspect(|id| self.core.add_region(*id, region))
    }

    fn deregister(&self, region: RegionId) -> Result<(), DeregisterError> {
        if self.core.is_region_held(region) {
            return Err(DeregisterError::Busy(region));
        }
        let inner = self.core.inner().ok_or(DeregisterError::Unknown(region))?;
        inner.deregister(region).inspect(|()| self.core.remove_region(region))
    }

    fn pause(&self, endpoint: Endpoint) -> Result<(), SendError> {
        let inner = self.core.inner().ok_or_else(|| unknown(endpoint))?;
        inner.pause(endpoint)?;
        self.core.with(endpoint, |connection| connection.set_paused(true));
        Ok(())
    }

    fn resume(&self, endpoint: Endpoint) -> Result<(), SendError> {
        let inner = self.core.inner().ok_or_else(|| unknown(endpoint))?;
        let stalled = self.core.with(endpoint, |connection| {
            connection.set_paused(false);
            connection.is_stalled()
        });
        if stalled { Ok(()) } else { inner.resume(endpoint) }
    }

    fn flush(&self, endpoint: Endpoint) -> Result<(), SendError> {
        self.core.inner().ok_or_else(|| unknown(endpoint))?.flush(endpoint)
    }

    fn limits(&self, endpoint: Endpoint) -> Result<Limits, SendError> {
        self.core.inner().ok_or_else(|| unknown(endpoint))?.limits(endpoint)
    }

    fn stats(&self, endpoint: Endpoint) -> Result<Arc<ConnectionCounters>, SendError> {
        self.core.inner().ok_or_else(|| unknown(endpoint))?.stats(endpoint)
    }

    fn totals(&self) -> Arc<BackendCounters> {
        self.core.totals()
    }

    fn listeners(&self) -> Vec<ListenerState> {
        self.core.inner().map_or_else(Vec::new, |inner| inner.listeners())
    }

    fn connections(&self) -> Vec<ConnectionState> {
        self.core.inner().map_or_else(Vec::new, |inner| inner.connections())
    }

    fn shutdown(&self, deadline: Duration) {
        let Some(inner) = self.core.inner() else { return };
        for endpoint in self.core.endpoints_where(|_| true) {
            self.prepare_close(endpoint);
        }
        inner.shutdown(deadline);
    }
}

fn unknown(endpoint: Endpoint) -> SendError {
    SendError::UnknownSendEndpoint(endpoint.into())
}

fn ended() -> Arc<io::Error> {
    Arc::new(io::Error::other("the backend has ended"))
}
