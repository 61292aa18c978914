//! An endpoint that listens.

use std::ffi::c_void;
use std::net::SocketAddr;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use libfabric_sys as sys;
use parking_lot::Mutex;

use super::{EventQueue, Fabric, FabricError, Info, address, close};

/// An endpoint that listens, opened. Dropping it rejects the requests that were not read; those that were read
/// keep it listening until they are answered or dropped.
///
/// A known fault of the `tcp` provider (1.17, 2.0): a peer that has connected its socket but not yet sent its
/// request when the listener closes leaves that socket behind, and the provider uses freed memory if the
/// request comes after all.
#[derive(Debug)]
pub struct PassiveEndpoint {
    listener: Arc<Listener>,
}

/// What a passive endpoint and the requests it received share.
#[derive(Debug)]
pub(super) struct Listener {
    raw: NonNull<sys::fid_pep>,
    fabric: Arc<Fabric>,
    token: usize,
    cm_data_size: usize,
    /// The queue it is bound to. The lock is held during calls: providers keep its state without one.
    events: Mutex<Option<Arc<EventQueue>>>,
}

// SAFETY: the provider promised FI_THREAD_SAFE: any thread may use any object at any time.
unsafe impl Send for Listener {}
// SAFETY: as above.
unsafe impl Sync for Listener {}

impl PassiveEndpoint {
    /// Opens one for this side's address in `info`. Its events carry `token`.
    ///
    /// # Errors
    /// libfabric's, for example that the address is in use; or `info` is of another provider.
    pub fn open(fabric: &Arc<Fabric>, info: &Info, token: usize) -> Result<Self, FabricError> {
        const CALL: &str = "fi_passive_ep";
        fabric.check_provider(info, CALL)?;
        if info.src_addr().is_none() {
            return Err(FabricError::refused(CALL, sys::FI_EINVAL, "the info has no address of this side"));
        }
        let copy = info.for_call(CALL)?;
        let mut raw = ptr::null_mut();
        let context = ptr::without_provenance_mut(token);
        // SAFETY: the fabric is open, the info lives until after the call; the context is not followed.
        let code = unsafe { sys::fi_passive_ep(fabric.raw.as_ptr(), copy.as_ptr(), &raw mut raw, context) };
        let Some(raw) = NonNull::new(raw).filter(|_| code == 0) else {
            return Err(fabric.error(CALL, code));
        };
        let cm_data_size = cm_data_size(|value, len| {
            // SAFETY: it was opened just now; the option's value is written into memory of the length told.
            unsafe { sys::fi_pep_getopt(raw.as_ptr(), sys::FI_OPT_ENDPOINT, sys::FI_OPT_CM_DATA_SIZE, value, len) }
        });
        let events = Mutex::new(None);
        Ok(Self { listener: Arc::new(Listener { raw, fabric: fabric.clone(), token, cm_data_size, events }) })
    }

    /// The number its events carry.
    pub fn token(&self) -> usize {
        self.listener.token
    }

    /// Binds it to the queue that will hold its events.
    ///
    /// # Errors
    /// libfabric's; or it is bound already; or the queue is of another fabric.
    pub fn bind(&self, events: &Arc<EventQueue>) -> Result<(), FabricError> {
        const CALL: &str = "fi_pep_bind";
        let listener = &self.listener;
        if !Arc::ptr_eq(&events.fabric, &listener.fabric) {
            return Err(FabricError::refused(CALL, sys::FI_EINVAL, "the event queue is of another fabric"));
        }
        let mut bound = listener.events.lock();
        if bound.is_some() {
            return Err(FabricError::refused(CALL, sys::FI_EINVAL, "it is bound to an event queue already"));
        }
        // SAFETY: both are open and of one fabric.
        let code = unsafe { sys::fi_pep_bind(listener.raw.as_ptr(), events.raw.as_ptr().cast(), 0) };
        if code != 0 {
            return Err(listener.fabric.error(CALL, code));
        }
        events.add_listener(listener.raw, listener.token, Arc::downgrade(listener));
        *bound = Some(events.clone());
        Ok(())
    }

    /// Starts to listen.
    ///
    /// # Errors
    /// libfabric's; or it is not bound to an event queue.
    pub fn listen(&self) -> Result<(), FabricError> {
        const CALL: &str = "fi_listen";
        let bound = self.listener.events.lock();
        if bound.is_none() {
            return Err(FabricError::refused(CALL, sys::FI_ENOEQ, "it is not bound to an event queue"));
        }
        // SAFETY: it is open.
        match unsafe { sys::fi_listen(self.listener.raw.as_ptr()) } {
            0 => Ok(()),
            code => Err(self.listener.fabric.error(CALL, code)),
        }
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// libfabric's; or it is no address of the internet.
    pub fn local_address(&self) -> Result<SocketAddr, FabricError> {
        const CALL: &str = "fi_getname";
        let _bound = self.listener.events.lock();
        let found = address::ask(|place, len| {
            // SAFETY: it is open, the memory as long as told.
            unsafe { sys::fi_pep_getname(self.listener.raw.as_ptr(), place, len) }
        });
        self.listener.fabric.address(CALL, found)
    }

    /// How many bytes of private data a rejection can carry.
    pub fn cm_data_size(&self) -> usize {
        self.listener.cm_data_size
    }

    /// Rejects the request that came with `info`, with private data.
    ///
    /// # Errors
    /// libfabric's; or the data are too long, the request was answered before or is another listener's. It is
    /// over in any case: one that came with `info` and could not be rejected with data is rejected without.
    pub fn reject(&self, info: Info, data: &[u8]) -> Result<(), FabricError> {
        const CALL: &str = "fi_reject";
        let Some(request) = info.take_request(CALL)? else {
            return Err(FabricError::refused(CALL, sys::FI_EINVAL, "the info came with no request"));
        };
        if !Arc::ptr_eq(&request.listener, &self.listener) {
            return Err(FabricError::refused(CALL, sys::FI_EINVAL, "the request is another listener's"));
        }
        check_data(CALL, data, self.listener.cm_data_size)?;
        match request.reject(data) {
            0 => Ok(()),
            code => Err(self.listener.fabric.error(CALL, code)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        match self.events.get_mut().take() {
            // SAFETY: it is bound to this queue, and the last owner is going.
            Some(events) => unsafe { events.close_listener(self.raw) },
            // SAFETY: the last owner is going.
            None => unsafe { close(self.raw.as_ptr().cast(), "passive endpoint") },
        }
    }
}

/// A request for a connection that is not answered yet. Dropping it rejects it.
#[derive(Debug)]
pub(super) struct Request {
    handle: NonNull<sys::fid>,
    listener: Arc<Listener>,
    answered: bool,
}

// SAFETY: the handle is plain memory that this owns alone, of a provider that promised FI_THREAD_SAFE.
unsafe impl Send for Request {}
// SAFETY: as above; through a shared reference nothing is done with it.
unsafe impl Sync for Request {}

impl Request {
    /// # Safety
    /// The handle must have come with a request for that listener, and be the caller's alone.
    pub(super) unsafe fn new(handle: NonNull<sys::fid>, listener: Arc<Listener>) -> Self {
        Self { handle, listener, answered: false }
    }

    /// What an endpoint is opened with; it does not take it over before it accepts.
    pub(super) fn handle(&self) -> *mut sys::fid {
        self.handle.as_ptr()
    }

    /// The fabric it came from.
    pub(super) fn fabric(&self) -> &Arc<Fabric> {
        &self.listener.fabric
    }

    /// The endpoint that was opened with it has accepted, and with that freed it.
    pub(super) fn accepted(mut self) {
        self.answered = true;
    }

    /// Rejects it: the provider's code.
    fn reject(mut self, data: &[u8]) -> i32 {
        self.reject_once(data)
    }

    /// The provider frees the handle, whatever it answers.
    fn reject_once(&mut self, data: &[u8]) -> i32 {
        self.answered = true;
        let start: *const c_void = if data.is_empty() { ptr::null() } else { data.as_ptr().cast() };
        let _bound = self.listener.events.lock();
        // SAFETY: the listener is open, and the handle, which came with its request, was not used up.
        unsafe { sys::fi_reject(self.listener.raw.as_ptr(), self.handle.as_ptr(), start, data.len()) }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.answered {
            let code = self.reject_once(&[]);
            tracing::debug!(code, "a request that nobody answered was rejected");
        }
    }
}

/// How much private data fits, as the provider tells; else 48 bytes, which all have.
pub(super) fn cm_data_size(option: impl FnOnce(*mut c_void, *mut usize) -> i32) -> usize {
    const ALL_HAVE: usize = 48;
    let mut size = 0_usize;
    let mut len = size_of::<usize>();
    match option((&raw mut size).cast(), &raw mut len) {
        0 => size,
        _ => ALL_HAVE,
    }
}

/// That private data fit: `tcp` 1.17 would write beyond its memory.
pub(super) fn check_data(call: &'static str, data: &[u8], room: usize) -> Result<(), FabricError> {
    if data.len() <= room {
        return Ok(());
    }
    let text = format!("{} bytes of private data, at most {room} fit", data.len());
    Err(FabricError::refused(call, sys::FI_EINVAL, text))
}

impl Fabric {
    /// The outcome of asking for an address.
    pub(super) fn address(&self, call: &'static str, found: Result<Option<SocketAddr>, i32>) -> Result<SocketAddr, FabricError> {
        match found {
            Ok(Some(address)) => Ok(address),
            Ok(None) => Err(FabricError::refused(call, sys::FI_EINVAL, "it is no address of the internet")),
            Err(code) => Err(self.error(call, code)),
        }
    }
}
