//! A queue of connection events.

use std::collections::{HashMap, VecDeque};
use std::ffi::c_int;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::{Arc, Weak};

use libfabric_sys as sys;
use libfabric_sys::Roomy;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::completion_queue::wait_descriptor;
use super::info::InfoBox;
use super::library::string;
use super::passive_endpoint::{Listener, Request};
use super::{Fabric, FabricError, Info, close};

/// Room for a peer's private data: RDMA connections carry at most 255 bytes, `tcp` 256.
const DATA_ROOM: usize = 512;

/// How many events are read at most in search of a closing listener's requests.
const DRAIN_LIMIT: usize = 4096;

/// Something happened to a connection. Private data are what the provider gives: `verbs` may pad them with
/// zeros, so they must tell their own length.
#[derive(Debug)]
pub enum CmEvent {
    /// A peer asks for a connection: open an endpoint with `info` and accept, or reject. Dropping rejects.
    ConnectRequest {
        /// The passive endpoint's token.
        listener: usize,
        /// What to open an endpoint with.
        info: Info,
        /// The peer's private data.
        data: Vec<u8>,
    },
    /// The connection is there, on either side.
    Connected {
        /// The endpoint's token.
        endpoint: usize,
        /// The peer's private data on the side that connected, nothing on the side that accepted.
        data: Vec<u8>,
    },
    /// The connection ended, by either side. Completions may still follow.
    Shutdown {
        /// The endpoint's token.
        endpoint: usize,
    },
    /// The connection did not come about, or broke.
    Error {
        /// The endpoint's token; the listener's, if it is that that failed.
        endpoint: usize,
        /// The error. A refusal has the code `ECONNREFUSED`.
        error: FabricError,
        /// With a refusal, the peer's private data if the provider gives them.
        data: Vec<u8>,
    },
}

/// A queue of connection events, opened.
#[derive(Debug)]
pub struct EventQueue {
    pub(super) raw: NonNull<sys::fid_eq>,
    descriptor: RawFd,
    pub(super) fabric: Arc<Fabric>,
    state: Mutex<State>,
}

// SAFETY: the provider promised FI_THREAD_SAFE: any thread may use any object at any time. What was read and
// not handed out is behind a lock, and consists of things that may change threads.
unsafe impl Send for EventQueue {}
// SAFETY: as above.
unsafe impl Sync for EventQueue {}

/// Whose events come, and those that were read while looking for others. Its lock is held while the queue is
/// read, so that the provider's texts and data stay as they are and no event outlives its endpoint.
#[derive(Debug, Default)]
struct State {
    /// By the address of the object, which is not followed.
    owners: HashMap<usize, Owner>,
    stash: VecDeque<RawEvent>,
    /// Requests for listeners that are being closed.
    orphans: Vec<RawEvent>,
}

#[derive(Debug)]
enum Owner {
    Endpoint {
        token: usize,
        /// The call that an error is the outcome of.
        call: &'static str,
    },
    Listener {
        token: usize,
        listener: Weak<Listener>,
    },
}

/// An event as it was read.
#[derive(Debug)]
struct RawEvent {
    /// The address of the object it is about.
    object: usize,
    kind: RawKind,
    data: Vec<u8>,
}

#[derive(Debug)]
enum RawKind {
    Request { info: Option<InfoBox>, handle: Option<NonNull<sys::fid>> },
    Connected,
    Shutdown,
    Error { code: c_int, own_text: Option<String> },
    Other,
}

/// Where an event is read into: its head, and the private data behind it.
#[repr(C)]
struct EventRoom {
    head: sys::fi_eq_cm_entry,
    data: [u8; DATA_ROOM],
}

impl EventQueue {
    /// Opens a queue.
    ///
    /// # Errors
    /// libfabric's.
    pub fn open(fabric: &Arc<Fabric>) -> Result<Arc<Self>, FabricError> {
        let mut attributes =
            Roomy::new(sys::fi_eq_attr { size: 0, flags: 0, wait_obj: sys::FI_WAIT_FD, signaling_vector: 0, wait_set: ptr::null_mut() });
        let attributes: *mut Roomy<_> = &raw mut attributes;
        let mut raw = ptr::null_mut();
        // SAFETY: the fabric is open, the attributes live until after the call.
        let code = unsafe { sys::fi_eq_open(fabric.raw.as_ptr(), attributes.cast(), &raw mut raw, ptr::null_mut()) };
        let Some(raw) = NonNull::new(raw).filter(|_| code == 0) else {
            return Err(fabric.error("fi_eq_open", code));
        };
        let mut queue = Self { raw, descriptor: -1, fabric: fabric.clone(), state: Mutex::default() };
        // SAFETY: the queue was opened just now, with a descriptor to wait for.
        queue.descriptor = unsafe { wait_descriptor(raw.as_ptr().cast(), fabric) }?;
        Ok(Arc::new(queue))
    }

    /// The fabric it is in.
    pub fn fabric(&self) -> &Arc<Fabric> {
        &self.fabric
    }

    /// The descriptor to wait for, after `trywait`.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: it is the queue's, which lives as long as it is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.descriptor) }
    }

    /// Asks whether the descriptor may be waited for. If not (`false`), read the queue again: there may be something in it
    /// that no descriptor shows.
    ///
    /// # Errors
    /// libfabric's.
    pub fn trywait(&self) -> Result<bool, FabricError> {
        let holds_back = self.fabric.opening.is_locked_exclusive() || !self.state.lock().stash.is_empty();
        if holds_back { Ok(false) } else { self.trywait_raw() }
    }

    /// Reads the next event; none if there is none. Drives connecting and accepting on.
    ///
    /// Events of endpoints that are closed by now are left out.
    ///
    /// # Errors
    /// The queue itself failed; what happened to a connection is an event.
    pub fn read(&self) -> Result<Option<CmEvent>, FabricError> {
        let mut state = self.state.lock();
        loop {
            let raw = match state.stash.pop_front() {
                Some(raw) => raw,
                None => {
                    // While a domain is opened there seems to be nothing, and `trywait` tells to read again.
                    let Some(_not_opening) = self.fabric.opening.try_read() else { return Ok(None) };
                    match self.read_raw()? {
                        Some(raw) => raw,
                        None => return Ok(None),
                    }
                }
            };
            if let Some(event) = self.understand(&mut state, raw) {
                return Ok(Some(event));
            }
        }
    }

    /// Reads one event of the provider's. The lock must be held, and that of opening domains.
    fn read_raw(&self) -> Result<Option<RawEvent>, FabricError> {
        let mut room = EventRoom { head: sys::fi_eq_cm_entry { fid: ptr::null_mut(), info: ptr::null_mut() }, data: [0; DATA_ROOM] };
        let place: *mut EventRoom = &raw mut room;
        let mut event = 0;
        super::forget_errno();
        // SAFETY: the queue is open, the room as long as told.
        let count = unsafe { sys::fi_eq_read(self.raw.as_ptr(), &raw mut event, place.cast(), size_of::<EventRoom>(), 0) };
        if count < 0 {
            return match i32::try_from(-count).unwrap_or(sys::FI_EOTHER) {
                sys::FI_EAGAIN | libc::EINTR => Ok(None),
                sys::FI_EAVAIL => self.read_error(),
                _ => Err(self.fabric.error("fi_eq_read", count as i64)),
            };
        }
        let kind = match event {
            sys::FI_CONNREQ => self.request(room.head.info),
            sys::FI_CONNECTED => RawKind::Connected,
            sys::FI_SHUTDOWN => RawKind::Shutdown,
            _ => RawKind::Other,
        };
        let len = count.unsigned_abs().saturating_sub(size_of::<sys::fi_eq_cm_entry>()).min(DATA_ROOM);
        Ok(Some(RawEvent { object: room.head.fid.addr(), kind, data: room.data[..len].to_vec() }))
    }

    /// Takes over what a request brought.
    fn request(&self, info: *mut sys::fi_info) -> RawKind {
        // SAFETY: a request brings an info that is the reader's to free.
        let info = unsafe { InfoBox::split(self.fabric.libfabric.clone(), info) }.map(|(info, _)| info);
        let handle = info.as_ref().and_then(|info| NonNull::new(info.info().handle));
        RawKind::Request { info, handle }
    }

    /// Reads the error that was announced. The lock must be held.
    fn read_error(&self) -> Result<Option<RawEvent>, FabricError> {
        let mut data = [0_u64; DATA_ROOM / 8];
        let mut entry = Roomy::new(sys::fi_eq_err_entry {
            fid: ptr::null_mut(),
            context: ptr::null_mut(),
            data: 0,
            err: 0,
            prov_errno: 0,
            err_data: data.as_mut_ptr().cast(),
            err_data_size: size_of_val(&data),
        });
        let whole: *mut Roomy<sys::fi_eq_err_entry> = &raw mut entry;
        // SAFETY: the queue is open; the entry, the room behind it and its data live until after the call.
        let count = unsafe { sys::fi_eq_readerr(self.raw.as_ptr(), whole.cast(), 0) };
        if count < 0 && count != -(sys::FI_EAGAIN as isize) {
            return Err(self.fabric.error("fi_eq_readerr", count as i64));
        }
        if count <= 0 {
            return Ok(None);
        }
        let entry = entry.value;
        let own_text = (entry.prov_errno != 0).then(|| {
            // SAFETY: the queue is open; no data are given.
            let text = unsafe { sys::fi_eq_strerror(self.raw.as_ptr(), entry.prov_errno, ptr::null()) };
            // SAFETY: it is null or a C string; nobody else asks this queue, since the lock is held.
            unsafe { string(text) }
        });
        // A provider with data writes them into our memory; any other pointer means that there are none.
        let len = if entry.err_data == data.as_mut_ptr().cast() { entry.err_data_size.min(DATA_ROOM) } else { 0 };
        let data = data.iter().flat_map(|word| word.to_ne_bytes()).take(len).collect();
        let kind = RawKind::Error { code: entry.err, own_text: own_text.flatten() };
        Ok(Some(RawEvent { object: entry.fid.addr(), kind, data }))
    }

    /// Finds whose event it is. None for those of closed endpoints, which end here.
    fn understand(&self, state: &mut State, raw: RawEvent) -> Option<CmEvent> {
        let Some(owner) = state.owners.get_mut(&raw.object) else {
            if let RawKind::Request { .. } = raw.kind {
                tracing::warn!(provider = self.fabric.provider, "a request came for a listener that is closed; it is lost");
            }
            return None;
        };
        let data = raw.data;
        match (raw.kind, owner) {
            (RawKind::Request { info: Some(info), handle: Some(handle) }, Owner::Listener { token, listener }) => {
                let Some(listener) = listener.upgrade() else {
                    // It waits for the lock to be closed, and rejects this then.
                    let kind = RawKind::Request { info: Some(info), handle: Some(handle) };
                    state.orphans.push(RawEvent { object: raw.object, kind, data });
                    return None;
                };
                // SAFETY: the handle came with this listener's request and was given to nobody else.
                let request = unsafe { Request::new(handle, listener) };
                Some(CmEvent::ConnectRequest { listener: *token, info: Info::requested(info, request), data })
            }
            (RawKind::Connected, Owner::Endpoint { token, call }) => {
                // `tcp` 2.5 hands the accepting side its own data and what lay behind them in memory.
                let data = if *call == "fi_accept" { Vec::new() } else { data };
                *call = "connection";
                Some(CmEvent::Connected { endpoint: *token, data })
            }
            (RawKind::Shutdown, Owner::Endpoint { token, .. }) => Some(CmEvent::Shutdown { endpoint: *token }),
            (RawKind::Error { code, own_text }, owner) => {
                let (token, call) = match owner {
                    Owner::Endpoint { token, call } => (*token, *call),
                    Owner::Listener { token, .. } => (*token, "fi_listen"),
                };
                let error = self.fabric.libfabric.reported(call, code, &self.fabric.provider, own_text);
                Some(CmEvent::Error { endpoint: token, error, data })
            }
            _ => None,
        }
    }

    /// From now on events of this endpoint carry its token.
    pub(super) fn add_endpoint(&self, endpoint: NonNull<sys::fid_ep>, token: usize) {
        let owner = Owner::Endpoint { token, call: "connection" };
        self.state.lock().owners.insert(endpoint.as_ptr().addr(), owner);
    }

    /// Notes which call an error of this endpoint will be the outcome of.
    pub(super) fn set_call(&self, endpoint: NonNull<sys::fid_ep>, now: &'static str) {
        if let Some(Owner::Endpoint { call, .. }) = self.state.lock().owners.get_mut(&endpoint.as_ptr().addr()) {
            *call = now;
        }
    }

    /// From now on events of this endpoint are left out; it is about to be closed.
    pub(super) fn remove_endpoint(&self, endpoint: NonNull<sys::fid_ep>) {
        let object = endpoint.as_ptr().addr();
        let mut state = self.state.lock();
        state.owners.remove(&object);
        state.stash.retain(|event| event.object != object);
    }

    /// From now on requests for this listener are handed out.
    pub(super) fn add_listener(&self, pep: NonNull<sys::fid_pep>, token: usize, listener: Weak<Listener>) {
        self.state.lock().owners.insert(pep.as_ptr().addr(), Owner::Listener { token, listener });
    }

    /// Whether the provider has more to do or to tell. The lock must be held.
    fn has_more(&self) -> bool {
        match self.trywait_raw() {
            Ok(true) => {
                let mut descriptors = [PollFd::from_borrowed_fd(self.fd(), PollFlags::IN)];
                poll(&mut descriptors, Some(&Timespec::default())) == Ok(1)
            }
            Ok(false) => true,
            Err(_) => false,
        }
    }

    fn trywait_raw(&self) -> Result<bool, FabricError> {
        super::forget_errno();
        // SAFETY: the queue is open, and of this fabric.
        unsafe { self.fabric.trywait(self.raw.as_ptr().cast()) }
    }

    /// Rejects the requests that a listener still has in the queue, and closes it.
    ///
    /// # Safety
    /// The listener must be bound to this queue, and nobody may use it any more.
    pub(super) unsafe fn close_listener(&self, pep: NonNull<sys::fid_pep>) {
        let object = pep.as_ptr().addr();
        let mut state = self.state.lock();
        let _not_opening = self.fabric.opening.read();
        // What is still with the provider would be lost there: it neither hands such requests out nor ends them.
        for _ in 0..DRAIN_LIMIT {
            match self.read_raw() {
                Ok(Some(event)) => state.stash.push_back(event),
                // `tcp` accepts one socket per read, and reads its request only after that.
                Ok(None) if self.has_more() => {}
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%error, "while a listener closes");
                    break;
                }
            }
        }
        let State { owners, stash, orphans } = &mut *state;
        for event in stash.iter_mut().chain(orphans.iter_mut()).filter(|event| event.object == object) {
            let RawKind::Request { handle, .. } = &mut event.kind else { continue };
            if let Some(handle) = handle.take() {
                // SAFETY: the listener is open until below; the handle came with its request and is used once.
                let code = unsafe { sys::fi_reject(pep.as_ptr(), handle.as_ptr(), ptr::null(), 0) };
                tracing::debug!(code, "rejected while the listener closes");
            }
        }
        stash.retain(|event| event.object != object);
        orphans.retain(|event| event.object != object);
        owners.remove(&object);
        // SAFETY: the caller vouches that nobody uses it. The lock keeps requests from being read meanwhile.
        unsafe { close(pep.as_ptr().cast(), "passive endpoint") };
    }
}

impl Drop for EventQueue {
    fn drop(&mut self) {
        // SAFETY: endpoints and listeners that are bound to it hold an `Arc` of it, hence are closed.
        unsafe { close(self.raw.as_ptr().cast(), "event queue") };
    }
}

impl AsFd for EventQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Hints, Library};
    use super::*;

    #[test]
    fn no_event_queue_is_read_while_a_domain_is_opened_and_none_is_slept_on() {
        let Ok(library) = Library::open() else { return println!("skipped: no libfabric") };
        let node = "127.0.0.1:0".parse().ok();
        let hints = Hints { provider: Some("tcp".into()), node, passive: true, source: None };
        let info = library.infos(&hints).unwrap().into_iter().next().expect("tcp is everywhere");
        let fabric = Fabric::open(&library, &info).unwrap();
        let events = EventQueue::open(&fabric).unwrap();
        assert!(events.trywait().unwrap());
        let opening = fabric.opening.write();
        assert!(events.read().unwrap().is_none());
        assert!(!events.trywait().unwrap(), "it is to be read again");
        drop(opening);
        assert!(events.trywait().unwrap());
    }
}
