//! How messages are accepted or refused, on the loop's thread.

use std::io::IoSlice;
use std::ops::{Deref, Range};
use std::rc::Rc;
use std::slice::from_ref;

use bytes::Bytes;

use crate::backend::CopiedMessage;
use crate::endpoint::Endpoint;
use crate::engine::core::look_up;
use crate::engine::room::Amount;
use crate::engine::transport::{run_head, run_head_len};
use crate::engine::{Connection, Copies, Engine, Ledger, LocalBackend, Outgoing, Payload, Run, State, Transport};
use crate::error::SendError;
use crate::memory::{HeldRegions, Piece};
use crate::status::{Completion, CompletionKind, NetioStatus};

impl<T: Transport> LocalBackend<T> {
    /// Accepts or refuses a message, without looking at its bytes. It is asked for where it is needed, so that it is
    /// not built in memory on the way. `regions` says which regions it lies in, if it may lie in some.
    #[inline(always)]
    pub(super) fn submit<'a>(
        &self,
        to: Endpoint,
        key: u64,
        kind: CompletionKind,
        regions: Option<impl FnOnce(&Engine<T>) -> Option<HeldRegions>>,
        message: impl Fn() -> Outgoing<'a>,
    ) -> Result<NetioStatus, SendError> {
        let engine: &Engine<T> = self.engine();
        let (len, header_len) = (message().len, message().header.len());
        let table = engine.table.borrow();
        let Some(connection) = look_up(&table, to) else { return Err(SendError::UnknownSendEndpoint(to.into())) };
        // Empty while its messages are staged, which this one is not: the rest is then granted anew, and staged only if it
        // is like this one and this one can be.
        let mut ledger = connection.own_ledger.borrow_mut();
        if header_len > connection.limits.get().max_header_len || !ledger.room.is_granted(len) {
            drop(ledger);
            let connection = connection.clone();
            drop(table);
            return Ok(self.submit_ungranted(&connection, key, kind, regions, message()));
        }
        if let Some(find) = regions
            && engine.look_up_regions.get()
        {
            let Some(held) = find(engine) else { return Ok(NetioStatus::NotRegistered) };
            engine.hold(held, &mut ledger);
        }
        ledger.push(key, kind, len);
        drop(ledger);
        engine.transport.enqueue(engine, connection, message());
        Ok(NetioStatus::Ok)
    }

    /// The same for the first message since the last flush, one that goes beyond what was granted then, or one that is
    /// not accepted.
    #[inline(never)]
    fn submit_ungranted(
        &self,
        connection: &Rc<Connection<T::Link>>,
        key: u64,
        kind: CompletionKind,
        regions: Option<impl FnOnce(&Engine<T>) -> Option<HeldRegions>>,
        message: Outgoing<'_>,
    ) -> NetioStatus {
        let engine: &Engine<T> = self.engine();
        if connection.state() != State::Established {
            return NetioStatus::NotConnected;
        }
        let limits = connection.limits.get();
        let len = message.len;
        if message.header.len() > limits.max_header_len || len > limits.max_message_len {
            return NetioStatus::TooBig;
        }
        let regions = regions.filter(|_| engine.look_up_regions.get());
        let Some(held) = regions.map_or(Some(HeldRegions::default()), |find| find(engine)) else { return NetioStatus::NotRegistered };
        engine.end_grant(connection);
        let mut ledger = engine.ledger(connection);
        if !ledger.room.fits(len) || (!ledger.room.is_empty() && !engine.has_room(len)) {
            ledger.room.refuse(len);
            drop(ledger);
            engine.count_queue(connection);
            engine.note_refusal(connection);
            return NetioStatus::NoResources;
        }
        let was_empty = ledger.messages() == 0;
        let staged = engine.is_stageable(connection, &message).then_some(len);
        engine.hold(held, &mut ledger);
        ledger.push(key, kind, len);
        drop(ledger);
        engine.queued.set(engine.queued.get() + Amount { messages: 1, bytes: len as u64 });
        let unsent = engine.transport.enqueue(engine, connection, message);
        if was_empty {
            engine.begin_queue(connection);
        }
        match engine.until_flush(connection, unsent) {
            // Many have come, so that more are to be expected of this connection than of the one that is staging.
            None => {
                let unsent = engine.flush_full(connection);
                if staged.is_some()
                    && let Some(rest) = engine.until_flush(connection, unsent).filter(|rest| rest.messages > 1)
                {
                    engine.settle();
                    engine.grant(connection, rest, staged);
                }
            }
            // After one message there may be no other; after two there are many.
            Some(rest) if connection.listed.unflushed.get() => engine.grant(connection, rest, staged),
            Some(_) => engine.flush_later(connection),
        }
        NetioStatus::Ok
    }

    #[inline(always)]
    fn submit_shared(&self, to: Endpoint, data: &[Bytes], header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        self.submit_gathered(to, data, header, key, CompletionKind::ZeroCopy)
    }

    #[inline(never)]
    pub(super) fn stage_or_submit_shared(&self, to: Endpoint, data: &[Bytes], header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        if self.stage(to, data, header, key, CompletionKind::ZeroCopy) {
            return Ok(NetioStatus::Ok);
        }
        self.submit_shared(to, data, header, key)
    }

    /// Accepts or refuses a message of shared memory, as one of this kind.
    pub(super) fn submit_gathered(
        &self,
        to: Endpoint,
        data: &[Bytes],
        header: &[u8],
        key: u64,
        kind: CompletionKind,
    ) -> Result<NetioStatus, SendError> {
        let len = header.len() + len_of(data);
        let message = || Outgoing { header, payload: Payload::Shared(data), len };
        self.submit(to, key, kind, Some(|engine: &Engine<T>| engine.find_regions(data)), message)
    }

    /// Accepts or refuses a message of one piece that [`stage_one`](Self::stage_one) did not accept.
    #[inline(never)]
    pub(super) fn send_one_shared(&self, to: Endpoint, data: &Bytes, header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        let data = from_ref(data);
        match T::RUN_HEAD {
            Some(_) => self.stage_or_submit_shared(to, data, header, key),
            None => self.submit_shared(to, data, header, key),
        }
    }

    /// The same for a copied one.
    #[inline(never)]
    pub(super) fn send_one_copied(&self, to: Endpoint, data: &[u8], header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        let data = &[IoSlice::new(data)];
        match T::RUN_HEAD {
            Some(_) => self.stage_or_submit_copied(to, data, header, key),
            None => self.submit_copied(to, data, header, key),
        }
    }

    #[inline(never)]
    pub(super) fn stage_or_submit_copied(
        &self,
        to: Endpoint,
        data: &[IoSlice<'_>],
        header: &[u8],
        key: u64,
    ) -> Result<NetioStatus, SendError> {
        if self.stage(to, data, header, key, CompletionKind::Copy) {
            return Ok(NetioStatus::Ok);
        }
        self.submit_copied(to, data, header, key)
    }

    /// Accepts a message if it can be staged; tells whether it can.
    #[inline(always)]
    fn stage<P: Deref<Target = [u8]>>(&self, to: Endpoint, pieces: &[P], header: &[u8], key: u64, kind: CompletionKind) -> bool {
        T::RUN_HEAD.is_some_and(|head| self.engine().staging.borrow_mut().push(to, key, kind, header, pieces, head))
    }

    /// The same for one piece, as most messages are, with no panic for a borrow on the way. It says no where a longer way may say yes.
    #[inline(always)]
    pub(super) fn stage_one(&self, to: Endpoint, piece: &[u8], header: &[u8], key: u64, kind: CompletionKind) -> bool {
        match (T::RUN_HEAD, self.engine().staging.try_borrow_mut()) {
            (Some(head), Ok(mut staging)) => staging.push_one(to, key, kind, header, piece, head),
            _ => false,
        }
    }

    #[inline(always)]
    fn submit_copied(&self, to: Endpoint, data: &[IoSlice<'_>], header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        let len = header.len() + len_of(data);
        let message = || Outgoing { header, payload: Payload::Copied(data), len };
        self.submit(to, key, CompletionKind::Copy, None::<fn(&Engine<T>) -> Option<HeldRegions>>, message)
    }

    /// Accepts those of copied messages, from the first on, that can be staged; gives how many.
    #[inline]
    pub(super) fn stage_all(&self, to: Endpoint, messages: &[CopiedMessage<'_>]) -> usize {
        if T::RUN_HEAD.is_none() {
            return 0;
        }
        self.engine().staging.borrow_mut().push_all(to, messages, run_head::<T>)
    }

    /// Takes messages that lie at `place` among copied bytes, each after its head, and were accepted
    /// within the limits that hold here; `false` when the connection is ending.
    pub(super) fn submit_run(&self, to: Endpoint, messages: &[Completion], copies: &mut Copies, place: Range<usize>) -> bool {
        let engine: &Engine<T> = self.engine();
        let Some(connection) = engine.get(to).filter(|connection| connection.state() == State::Established) else { return false };
        engine.end_grant(&connection);
        let head = run_head_len::<T>();
        let bytes = place.len() - head * messages.len();
        let was_empty = engine.ledger(&connection).messages() == 0;
        engine.ledger(&connection).push_run(messages, bytes);
        engine.queued.set(engine.queued.get() + Amount { messages: messages.len() as u64, bytes: bytes as u64 });
        let unsent = engine.transport.enqueue_run(engine, &connection, Run { messages, copies, place, head });
        if was_empty {
            engine.begin_queue(&connection);
        }
        match engine.until_flush(&connection, unsent) {
            None => _ = engine.flush_full(&connection),
            Some(_) => engine.flush_later(&connection),
        }
        true
    }
}

impl<T: Transport> Engine<T> {
    /// Keeps the regions of the message that is accepted next.
    #[inline(never)]
    fn hold(&self, held: HeldRegions, ledger: &mut Ledger) {
        self.regions.borrow_mut().hold(held);
        ledger.hold(held);
    }

    /// The regions of a zero-copy message.
    #[inline]
    pub(super) fn find_regions<P: Piece>(&self, pieces: &[P]) -> Option<HeldRegions> {
        self.regions.borrow().find(pieces)
    }
}

/// The bytes of pieces, of which there is mostly one.
#[inline(always)]
pub(super) fn len_of<P: Deref<Target = [u8]>>(pieces: &[P]) -> usize {
    match pieces {
        [piece] => piece.len(),
        pieces => pieces.iter().map(|piece| piece.len()).sum(),
    }
}
