//! The calls, on whichever thread.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::slice::from_ref;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::address::EndPointAddress;
use crate::backend::{ConnectionState, CopiedMessage, ListenerState, NetworkBackend, Unsent, send_each};
use crate::config::{ConnectionParameters, ConnectionParametersRecv, Limits};
use crate::endpoint::Endpoint;
use crate::engine::local::{LONGEST_SHUTDOWN, too_many};
use crate::engine::submit::len_of;
use crate::engine::sync::SyncBackend;
use crate::engine::sync::inbox::{Adoption, Command};
use crate::engine::sync::loop_side::here;
use crate::engine::sync::mailbox::{End, Mail, Offer};
use crate::engine::sync::shared::{FindRegions, Life};
use crate::engine::sync::slots::Locked;
use crate::engine::{Opener, Outgoing, Payload, RawPieces, Transport};
use crate::error::{
    BufferError, CloseListenError, CloseSendError, DeregisterError, OpenListenError, OpenSendError, RegisterError, SendError,
};
use crate::memory::{BufferPool, MemoryRegion, NetworkBuffer, RawSlice, RegionId};
use crate::stats::{BackendCounters, ConnectionCounters};
use crate::status::{CompletionKind, NetioStatus};

impl<T: Transport> SyncBackend<T> {
    fn open(&self, address: &EndPointAddress, params: &ConnectionParameters, owns: bool) -> Result<Endpoint, OpenSendError> {
        let shared = &*self.shared;
        let address = *address;
        let failed = |source: io::Error| OpenSendError::FailedOpenSendEndpoint { address, source: source.into() };
        address.check_dialable().map_err(|why| OpenSendError::InvalidEndpointAddress { address, why })?;
        {
            let mut directory = shared.directory.write();
            if owns && directory.by_address.contains_key(&address) {
                return Err(OpenSendError::SendEndpointAlreadyExists { address });
            }
            directory.check_room(shared.config.max_connections).map_err(failed)?;
            directory.connections += 1;
            shared.totals.connections.rise(1);
            if owns {
                directory.by_address.insert(address, None);
            }
        }
        let started = shared.ids.allocate(crate::MAX_ENDPOINTS).ok_or_else(|| too_many(crate::MAX_ENDPOINTS)).and_then(|endpoint| {
            let started = self.dial(endpoint, address, params, owns);
            started.inspect_err(|_| shared.ids.release(endpoint)).map(|()| endpoint)
        });
        if started.is_err() {
            let mut directory = shared.directory.write();
            directory.connections = directory.connections.saturating_sub(1);
            if owns {
                directory.by_address.remove(&address);
            }
            // Who ends the backend counts none any more.
            if directory.life != Life::Gone {
                shared.totals.connections.fall(1);
            }
        }
        started.map_err(failed)
    }

    /// Starts a connection and passes it on to the loop.
    fn dial(&self, endpoint: Endpoint, address: EndPointAddress, params: &ConnectionParameters, owns: bool) -> io::Result<()> {
        let shared = &*self.shared;
        params.check()?;
        let pool = BufferPool::of_connection(endpoint, params.buffers, &shared.inbox.remote)?;
        let dialing = shared.opener.dial(&address, params)?;
        let counters: Arc<ConnectionCounters> = Arc::default();
        let mail = Mail::new::<T>(endpoint, address, params, &shared.config, counters.clone());
        let mail = Mail { owns_address: owns, pool, ..mail };
        // The pool is in the mailbox.
        let params = Arc::new(ConnectionParameters { buffers: None, ..params.clone() });
        let command = Command::Adopt(Adoption { endpoint, address, params, counters, dialing });
        {
            // The command under the lock, so that none follows that of a shutdown.
            let mut directory = shared.directory.write();
            directory.check()?;
            shared.put(mail);
            if owns {
                directory.by_address.insert(address, Some(endpoint));
            }
            shared.inbox.command(command);
        }
        shared.inbox.wake();
        Ok(())
    }

    fn listen(&self, address: EndPointAddress, params: &ConnectionParametersRecv) -> Result<EndPointAddress, OpenListenError> {
        let shared = &*self.shared;
        let failed = |source: io::Error| OpenListenError::FailedOpenListenEndpoint { address, source: source.into() };
        address.check_listenable().map_err(|why| OpenListenError::InvalidEndpointAddress { address, why })?;
        let side = here::<T>(shared);
        side.iter().for_each(|side| side.carry_out());
        let _one_at_a_time = shared.listening.lock();
        {
            let directory = shared.directory.read();
            if address.port() != 0 && directory.listeners.iter().any(|(listed, _)| *listed == address) {
                return Err(OpenListenError::ListenEndpointAlreadyExists { address });
            }
            directory.check().map_err(failed)?;
        }
        params.connection.check().map_err(failed)?;
        let (listening, bound) = shared.opener.listen(&address, params).map_err(failed)?;
        let (params, counters) = (params.clone(), Arc::default());
        let command = match &side {
            // On the loop's thread a failure is found at once.
            Some(side) => {
                side.engine().adopt_listener(bound, params, Arc::clone(&counters), listening).map_err(failed)?;
                None
            }
            None => Some(Command::Listen { address: bound, params: Box::new(params), counters: Arc::clone(&counters), listening }),
        };
        {
            let mut directory = shared.directory.write();
            directory.check().map_err(failed)?;
            directory.listeners.push((bound, counters));
            if let Some(command) = command {
                shared.inbox.command(command);
            }
        }
        shared.inbox.wake();
        Ok(bound)
    }

    /// Accepts or refuses a message of shared memory, under its mailbox's lock.
    #[inline(never)]
    fn submit_shared(&self, place: Locked<'_>, to: Endpoint, data: &[Bytes], header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        let len = header.len() + len_of(data);
        let offer = Offer { header_len: header.len(), len, key, kind: CompletionKind::ZeroCopy };
        let message = Outgoing { header, payload: Payload::Shared(data), len };
        self.shared.submit::<T>(place, to, &offer, Some(&|regions| regions.find(data)), message)
    }

    /// The same for one that is copied; a long one is copied with no lock held, and handed on without another copy.
    #[inline(never)]
    fn submit_copied(
        &self,
        mut place: Locked<'_>,
        to: Endpoint,
        data: &[IoSlice<'_>],
        header: &[u8],
        key: u64,
    ) -> Result<NetioStatus, SendError> {
        let len = header.len() + len_of(data);
        let offer = Offer { header_len: header.len(), len, key, kind: CompletionKind::Copy };
        let would_accept = |mail: &mut Mail| mail.objection(&offer).is_none() && mail.has_room(len, &self.shared.quota);
        if len < COPIED_APART || !place.as_deref_mut().is_some_and(would_accept) {
            return self.shared.submit::<T>(place, to, &offer, None, Outgoing { header, payload: Payload::Copied(data), len });
        }
        drop(place);
        let mut copy = Vec::with_capacity(len - header.len());
        data.iter().for_each(|piece| copy.extend_from_slice(piece));
        let copy = [Bytes::from(copy)];
        let message = Outgoing { header, payload: Payload::Shared(&copy), len };
        self.shared.submit::<T>(self.shared.lock(to)?, to, &offer, None, message)
    }

    /// Leaves a request in a mailbox; on the loop's thread it is carried out at once.
    fn request(&self, endpoint: Endpoint, leave: impl FnOnce(&mut Mail)) -> Result<(), SendError> {
        let tell = self.shared.known(endpoint, |mail| {
            leave(mail);
            mail.mark()
        })?;
        match here::<T>(&self.shared) {
            Some(side) => side.settle(endpoint),
            None if tell => self.shared.inbox.tell(endpoint),
            None => {}
        }
        Ok(())
    }

    fn end(&self, endpoint: Endpoint, how: End) -> Result<(), CloseSendError> {
        let ended = self.request(endpoint, |mail| {
            mail.stop();
            mail.end = mail.end.max(Some(how));
        });
        ended.map_err(|SendError::UnknownSendEndpoint(target)| CloseSendError::UnknownSendEndpoint(target))
    }

    /// The loop has a command; on its own thread it is carried out at once.
    fn commanded(&self) {
        if let Some(side) = here::<T>(&self.shared) {
            side.carry_out();
        }
        // Here, too: other threads may have left something meanwhile, and relied on the command's waking the loop.
        self.shared.inbox.wake();
    }

    fn with_pool<R>(&self, to: Endpoint, f: impl FnOnce(&mut BufferPool) -> R) -> Result<R, BufferError> {
        self.shared.known(to, |mail| mail.pool.as_mut().map(f))?.ok_or(BufferError::NoBuffersAllocated(to.into()))
    }
}

impl<T: Transport> NetworkBackend for SyncBackend<T> {
    fn open_send_endpoint(&self, address: &EndPointAddress, params: &ConnectionParameters) -> Result<Endpoint, OpenSendError> {
        self.open(address, params, true)
    }

    fn connect(&self, address: &EndPointAddress, params: &ConnectionParameters) -> Result<Endpoint, OpenSendError> {
        self.open(address, params, false)
    }

    fn open_listen_endpoint(
        &self,
        address: &EndPointAddress,
        params: &ConnectionParametersRecv,
    ) -> Result<EndPointAddress, OpenListenError> {
        self.listen(*address, params)
    }

    fn close(&self, endpoint: Endpoint) -> Result<(), CloseSendError> {
        self.end(endpoint, End::Close)
    }

    fn abort(&self, endpoint: Endpoint) -> Result<(), CloseSendError> {
        self.end(endpoint, End::Abort)
    }

    fn close_listen_endpoint(&self, address: &EndPointAddress) -> Result<(), CloseListenError> {
        let shared = &*self.shared;
        {
            let mut directory = shared.directory.write();
            let listed = directory.listeners.iter().position(|(listed, _)| listed == address);
            let listed = listed.ok_or(CloseListenError::UnknownListenEndpoint { address: *address })?;
            directory.listeners.swap_remove(listed);
            shared.inbox.command(Command::CloseListener(*address));
        }
        shared.for_each(|mail| {
            if mail.listener == Some(*address) {
                mail.stop();
            }
        });
        self.commanded();
        Ok(())
    }

    fn endpoint(&self, address: &EndPointAddress) -> Option<Endpoint> {
        self.shared.directory.read().by_address.get(address).copied().flatten()
    }

    fn send_iov(&self, to: Endpoint, data: &[Bytes], header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        match data {
            [piece] => self.send(to, piece, header, key),
            data => self.submit_shared(self.shared.lock(to)?, to, data, header, key),
        }
    }

    fn send_copy_iov(&self, to: Endpoint, data: &[IoSlice<'_>], header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        match data {
            [piece] => self.send_copy(to, piece, header, key),
            data => self.submit_copied(self.shared.lock(to)?, to, data, header, key),
        }
    }

    // Not by way of several pieces: on the shortest way nothing of a message needs a place on the stack.
    fn send(&self, to: Endpoint, data: &Bytes, header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        // Acquire: pairs with the store in `register`.
        if self.shared.look_up_regions.load(Ordering::Acquire) {
            return self.submit_shared(self.shared.lock(to)?, to, from_ref(data), header, key);
        }
        let otherwise = |place: Locked<'_>| self.submit_shared(place, to, from_ref(data), header, key);
        self.shared.submit_one::<T>(to, key, CompletionKind::ZeroCopy, header, data, otherwise)
    }

    fn send_copy(&self, to: Endpoint, data: &[u8], header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        let otherwise = |place: Locked<'_>| self.submit_copied(place, to, &[IoSlice::new(data)], header, key);
        self.shared.submit_one::<T>(to, key, CompletionKind::Copy, header, data, otherwise)
    }

    fn send_copy_batch(&self, to: Endpoint, messages: &[CopiedMessage<'_>]) -> Result<(usize, NetioStatus), SendError> {
        send_each(self, to, messages, |rest| self.shared.submit_copies::<T>(to, rest, COPIED_AT_ONCE))
    }

    #[allow(unsafe_code, reason = "the trait's one call whose contract the compiler cannot check")]
    unsafe fn send_raw_iov(&self, to: Endpoint, data: &[RawSlice], header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        let len = header.len() + data.iter().map(RawSlice::len).sum::<usize>();
        let offer = Offer { header_len: header.len(), len, key, kind: CompletionKind::ZeroCopy };
        // SAFETY: the caller vouches that the pieces stay readable until the key comes back or the backend is
        // dropped; what is made of them here is dropped, or never looked at again, before either.
        let pieces = unsafe { RawPieces::new(data) };
        let message = Outgoing { header, payload: Payload::Raw(pieces), len };
        self.shared.submit::<T>(self.shared.lock(to)?, to, &offer, Some(&|regions| regions.find(data)), message)
    }

    fn take_buffer(&self, to: Endpoint) -> Result<Option<NetworkBuffer>, BufferError> {
        let (taken, tell) = self.shared.known(to, |mail| {
            let Some(pool) = &mut mail.pool else { return (Err(BufferError::NoBuffersAllocated(to.into())), false) };
            let taken = pool.take();
            if taken.is_none() {
                mail.starved = true;
            }
            // The loop asks the pool to be told of a buffer, and looks again after that.
            let tell = taken.is_none() && mail.mark();
            (Ok(taken), tell)
        })?;
        if tell {
            self.shared.inbox.tell(to);
        }
        taken
    }

    fn send_taken(&self, to: Endpoint, buffer: NetworkBuffer) -> Result<(), Unsent> {
        if buffer.pool().owner().is_some_and(|owner| owner != to) {
            let outcome = self.shared.known(to, |_| NetioStatus::Failed);
            return Err(Unsent { buffer, outcome });
        }
        let (owned, range, len) = (buffer.pool().owner().is_some(), buffer.range(), buffer.len());
        let offer = Offer { header_len: 0, len, key: buffer.id(), kind: CompletionKind::Buffer };
        let offered = Cell::new(Some(buffer));
        let message = Outgoing { header: &[], payload: Payload::Buffer(&offered), len };
        let find: FindRegions<'_> = &|regions| regions.find(&[range]);
        let submit = |place| self.shared.submit::<T>(place, to, &offer, (!owned).then_some(find), message);
        let outcome = self.shared.lock(to).and_then(submit);
        match offered.into_inner() {
            None => Ok(()),
            Some(buffer) => Err(Unsent { buffer, outcome }),
        }
    }

    fn available_buffers(&self, to: Endpoint) -> Result<usize, BufferError> {
        self.with_pool(to, BufferPool::low_water)
    }

    fn register(&self, region: &MemoryRegion) -> Result<RegionId, RegisterError> {
        let id = self.shared.regions.lock().reserve()?;
        // Not under the lock, for which the loop may wait.
        let registered = self.shared.opener.register(id, region);
        let mut regions = self.shared.regions.lock();
        let registered = registered.and(if self.shared.is_gone() { Err(RegisterError::BackendGone) } else { Ok(()) });
        if let Err(error) = registered {
            regions.give_up();
            drop(regions);
            self.shared.opener.deregister(id);
            return Err(error);
        }
        regions.enter(id, region);
        self.shared.totals.registered_bytes.set(regions.bytes());
        self.shared.look_up_regions.store(true, Ordering::Release);
        Ok(id)
    }

    fn deregister(&self, region: RegionId) -> Result<(), DeregisterError> {
        let mut regions = self.shared.regions.lock();
        let freed = regions.deregister(region)?;
        self.shared.totals.registered_bytes.set(regions.bytes());
        self.shared.look_up_regions.store(self.shared.config.strict_regions || regions.bytes() > 0, Ordering::Release);
        drop(regions);
        self.shared.opener.deregister(region);
        drop(freed);
        Ok(())
    }

    fn pause(&self, endpoint: Endpoint) -> Result<(), SendError> {
        self.request(endpoint, |mail| mail.pause = Some(true))
    }

    fn resume(&self, endpoint: Endpoint) -> Result<(), SendError> {
        self.request(endpoint, |mail| mail.pause = Some(false))
    }

    fn flush(&self, endpoint: Endpoint) -> Result<(), SendError> {
        self.shared.known(endpoint, |_| ())?;
        // From another thread there is nothing to hasten: the loop was woken for what is queued.
        if let Some(side) = here::<T>(&self.shared) {
            side.flush(endpoint);
        }
        Ok(())
    }

    fn limits(&self, endpoint: Endpoint) -> Result<Limits, SendError> {
        self.shared.known(endpoint, |mail| mail.limits)
    }

    fn stats(&self, endpoint: Endpoint) -> Result<Arc<ConnectionCounters>, SendError> {
        self.shared.known(endpoint, |mail| {
            mail.count_queue();
            mail.counters.clone()
        })
    }

    fn totals(&self) -> Arc<BackendCounters> {
        self.shared.totals.clone()
    }

    fn listeners(&self) -> Vec<ListenerState> {
        let directory = self.shared.directory.read();
        directory.listeners.iter().map(|(address, counters)| ListenerState::new(*address, counters.clone())).collect()
    }

    fn connections(&self) -> Vec<ConnectionState> {
        let mut connections = Vec::new();
        self.shared.for_each(|mail| connections.push(mail.describe()));
        connections
    }

    fn shutdown(&self, deadline: Duration) {
        let shared = &*self.shared;
        let at = Instant::now() + deadline.min(LONGEST_SHUTDOWN);
        {
            let mut directory = shared.directory.write();
            if directory.life != Life::Running {
                return;
            }
            directory.life = Life::ShuttingDown;
            directory.listeners.clear();
            // Until the loop knows of it peers may come about: it is not over before.
            shared.totals.connections.rise(1);
            shared.inbox.command(Command::Shutdown { at });
        }
        shared.for_each(Mail::stop);
        self.commanded();
    }
}

/// Messages of the copying calls from this length on are copied before the mailbox is locked.
pub(super) const COPIED_APART: usize = 256 << 10;
/// The bytes, heads included, after which a batch lets go of the lock: the loop waits for it meanwhile.
const COPIED_AT_ONCE: usize = 64 << 10;
// So that what is copied under the lock is shorter: `Mail::accept_one` ends at the flush, `Mail::accept_copies` here.
const _: () = assert!(ConnectionParameters::DEFAULT_FLUSH_AT < COPIED_APART && COPIED_AT_ONCE < COPIED_APART);
