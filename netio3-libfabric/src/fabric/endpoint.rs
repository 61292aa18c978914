//! An endpoint of a connection.

use std::ffi::c_void;
use std::net::SocketAddr;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use libfabric_sys as sys;
use parking_lot::Mutex;

use super::address::RawAddress;
use super::passive_endpoint::{Request, check_data, cm_data_size};
use super::{CompletionQueue, Desc, Domain, EventQueue, FabricError, Info, address, close};

/// Whether an operation was posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Posted {
    /// It will complete.
    Yes,
    /// There was no room. Nothing happened; try again after completions were read.
    Again,
}

/// Which operations' completions go to a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Sends.
    Transmit,
    /// Receives.
    Receive,
    /// Both.
    Both,
}

/// An endpoint of a connection, opened.
///
/// Open, bind to an event queue and to completion queues, enable; post receives; then connect or accept.
///
/// Memory of posted operations is the provider's until they completed or the endpoint was dropped.
#[derive(Debug)]
pub struct Endpoint {
    raw: NonNull<sys::fid_ep>,
    token: usize,
    iov_limit: usize,
    inject_size: usize,
    cm_data_size: usize,
    enabled: bool,
    /// The request it was opened with and has not accepted. The lock is held during calls that manage the
    /// connection: providers keep its state without one.
    request: Mutex<Option<Request>>,
    events: Option<Arc<EventQueue>>,
    transmit: Option<Arc<CompletionQueue>>,
    receive: Option<Arc<CompletionQueue>>,
    domain: Arc<Domain>,
}

// SAFETY: the provider promised FI_THREAD_SAFE: any thread may use any object at any time. Binding and enabling,
// which must not run beside other calls, take `&mut self`.
unsafe impl Send for Endpoint {}
// SAFETY: as above.
unsafe impl Sync for Endpoint {}

impl Endpoint {
    /// Opens one, to connect or, with the info of a request, to accept. Its events carry `token`.
    ///
    /// # Errors
    /// libfabric's; or `info` is of another provider or fabric, or its request was answered before. The request
    /// stays with `info` then.
    pub fn open(domain: &Arc<Domain>, info: &Info, token: usize) -> Result<Self, FabricError> {
        const CALL: &str = "fi_endpoint";
        let fabric = &domain.fabric;
        fabric.check_provider(info, CALL)?;
        let mut copy = info.for_call(CALL)?;
        let request = info.take_request(CALL)?;
        if let Some(request) = request {
            if !Arc::ptr_eq(request.fabric(), fabric) {
                info.return_request(request);
                return Err(FabricError::refused(CALL, sys::FI_EINVAL, "the request came from another fabric"));
            }
            copy.info_mut().handle = request.handle();
            return match Self::open_raw(domain, &copy, info, token) {
                Ok(mut endpoint) => {
                    *endpoint.request.get_mut() = Some(request);
                    Ok(endpoint)
                }
                Err(error) => {
                    info.return_request(request);
                    Err(error)
                }
            };
        }
        Self::open_raw(domain, &copy, info, token)
    }

    fn open_raw(domain: &Arc<Domain>, copy: &super::info::InfoBox, info: &Info, token: usize) -> Result<Self, FabricError> {
        let mut raw = ptr::null_mut();
        let context = ptr::without_provenance_mut(token);
        // SAFETY: the domain is open, the info lives until after the call; the context is not followed.
        let code = unsafe { sys::fi_endpoint(domain.raw.as_ptr(), copy.as_ptr(), &raw mut raw, context) };
        let Some(raw) = NonNull::new(raw).filter(|_| code == 0) else {
            return Err(domain.fabric.error("fi_endpoint", code));
        };
        let cm_data_size = cm_data_size(|value, len| {
            // SAFETY: it was opened just now; the option's value is written into memory of the length told.
            unsafe { sys::fi_getopt(raw.as_ptr(), sys::FI_OPT_ENDPOINT, sys::FI_OPT_CM_DATA_SIZE, value, len) }
        });
        Ok(Self {
            raw,
            token,
            iov_limit: info.iov_limit(),
            inject_size: info.inject_size(),
            cm_data_size,
            enabled: false,
            request: Mutex::new(None),
            events: None,
            transmit: None,
            receive: None,
            domain: domain.clone(),
        })
    }

    /// The number its events carry.
    pub fn token(&self) -> usize {
        self.token
    }

    /// From how many pieces one send can be gathered.
    pub fn iov_limit(&self) -> usize {
        self.iov_limit
    }

    /// Up to how many bytes [`inject`](Self::inject) takes.
    pub fn inject_size(&self) -> usize {
        self.inject_size
    }

    /// How many bytes of private data connecting and accepting can carry.
    pub fn cm_data_size(&self) -> usize {
        self.cm_data_size
    }

    /// Binds it to the queue that will hold its events.
    ///
    /// # Errors
    /// libfabric's; or it is bound or enabled already; or the queue is of another fabric.
    pub fn bind_events(&mut self, events: &Arc<EventQueue>) -> Result<(), FabricError> {
        const CALL: &str = "fi_ep_bind";
        if self.enabled || self.events.is_some() {
            return Err(bound_already(CALL));
        }
        if !Arc::ptr_eq(&events.fabric, &self.domain.fabric) {
            return Err(FabricError::refused(CALL, sys::FI_EINVAL, "the event queue is of another fabric"));
        }
        // SAFETY: both are open and of one fabric.
        let code = unsafe { sys::fi_ep_bind(self.raw.as_ptr(), events.raw.as_ptr().cast(), 0) };
        if code != 0 {
            return Err(self.error(CALL, code));
        }
        events.add_endpoint(self.raw, self.token);
        self.events = Some(events.clone());
        Ok(())
    }

    /// Binds it to the queue that will hold the completions of sends, receives or both. `selective`: sends
    /// complete there only if posted with `FI_COMPLETION`. Receives always do.
    ///
    /// # Errors
    /// libfabric's; or that direction is bound or it is enabled already; or the queue is of another domain.
    pub fn bind_completions(
        &mut self,
        completions: &Arc<CompletionQueue>,
        direction: Direction,
        selective: bool,
    ) -> Result<(), FabricError> {
        const CALL: &str = "fi_ep_bind";
        let transmit = direction != Direction::Receive;
        let receive = direction != Direction::Transmit;
        if self.enabled || (transmit && self.transmit.is_some()) || (receive && self.receive.is_some()) {
            return Err(bound_already(CALL));
        }
        if !Arc::ptr_eq(&completions.domain, &self.domain) {
            return Err(FabricError::refused(CALL, sys::FI_EINVAL, "the completion queue is of another domain"));
        }
        let queue = completions.raw.as_ptr().cast();
        if transmit {
            let flags = sys::FI_TRANSMIT | if selective { sys::FI_SELECTIVE_COMPLETION } else { 0 };
            // SAFETY: both are open and of one domain.
            let code = unsafe { sys::fi_ep_bind(self.raw.as_ptr(), queue, flags) };
            if code != 0 {
                return Err(self.error(CALL, code));
            }
            self.transmit = Some(completions.clone());
        }
        if receive {
            // SAFETY: both are open and of one domain.
            let code = unsafe { sys::fi_ep_bind(self.raw.as_ptr(), queue, sys::FI_RECV) };
            if code != 0 {
                return Err(self.error(CALL, code));
            }
            self.receive = Some(completions.clone());
        }
        Ok(())
    }

    /// Makes it usable.
    ///
    /// # Errors
    /// libfabric's; or it is not bound to an event queue and, for both directions, completion queues.
    pub fn enable(&mut self) -> Result<(), FabricError> {
        const CALL: &str = "fi_enable";
        if self.events.is_none() {
            return Err(FabricError::refused(CALL, sys::FI_ENOEQ, "it is not bound to an event queue"));
        }
        if self.transmit.is_none() || self.receive.is_none() {
            return Err(FabricError::refused(CALL, sys::FI_ENOCQ, "it is not bound to completion queues for both directions"));
        }
        // SAFETY: it is open.
        match unsafe { sys::fi_enable(self.raw.as_ptr()) } {
            0 => {
                self.enabled = true;
                Ok(())
            }
            code => Err(self.error(CALL, code)),
        }
    }

    /// Asks for a connection to `to`, with private data; the answer is an event. `verbs` resolves the address
    /// meanwhile, which may take 2 s.
    ///
    /// # Errors
    /// libfabric's; or it is not enabled, or the data are too long.
    pub fn connect(&self, to: SocketAddr, data: &[u8]) -> Result<(), FabricError> {
        const CALL: &str = "fi_connect";
        check_data(CALL, data, self.cm_data_size)?;
        let _request = self.request.lock();
        let events = self.usable(CALL)?;
        events.set_call(self.raw, CALL);
        let to = RawAddress::new(to);
        // SAFETY: it is open, enabled and bound; address and data live until after the call.
        match unsafe { sys::fi_connect(self.raw.as_ptr(), to.as_ptr(), start(data), data.len()) } {
            0 => Ok(()),
            code => Err(self.error(CALL, code)),
        }
    }

    /// Accepts the request it was opened with, with private data; that the connection is there is an event.
    ///
    /// # Errors
    /// libfabric's; or it is not enabled, there is no request, or the data are too long.
    pub fn accept(&self, data: &[u8]) -> Result<(), FabricError> {
        const CALL: &str = "fi_accept";
        check_data(CALL, data, self.cm_data_size)?;
        let mut request = self.request.lock();
        let events = self.usable(CALL)?;
        if request.is_none() {
            return Err(FabricError::refused(CALL, sys::FI_EOPBADSTATE, "there is no request to accept"));
        }
        events.set_call(self.raw, CALL);
        // SAFETY: it is open, enabled and bound; the data live until after the call.
        match unsafe { sys::fi_accept(self.raw.as_ptr(), start(data), data.len()) } {
            0 => {
                request.take().expect("looked at above").accepted();
                Ok(())
            }
            code => Err(self.error(CALL, code)),
        }
    }

    /// Ends the connection, at once and in both directions. Receives that are posted are given up.
    ///
    /// # Errors
    /// libfabric's.
    pub fn shutdown(&self) -> Result<(), FabricError> {
        const CALL: &str = "fi_shutdown";
        let _request = self.request.lock();
        self.usable(CALL)?;
        // SAFETY: it is open, enabled and bound.
        match unsafe { sys::fi_shutdown(self.raw.as_ptr(), 0) } {
            0 => Ok(()),
            code => Err(self.error(CALL, code)),
        }
    }

    /// This side's address.
    ///
    /// # Errors
    /// libfabric's; or it is no address of the internet.
    pub fn local_address(&self) -> Result<SocketAddr, FabricError> {
        let _request = self.request.lock();
        let found = address::ask(|place, len| {
            // SAFETY: it is open, the memory as long as told.
            unsafe { sys::fi_getname(self.raw.as_ptr(), place, len) }
        });
        self.domain.fabric.address("fi_getname", found)
    }

    /// The peer's address.
    ///
    /// # Errors
    /// libfabric's, for example that there is no connection; or it is no address of the internet.
    pub fn peer_address(&self) -> Result<SocketAddr, FabricError> {
        let _request = self.request.lock();
        let found = address::ask(|place, len| {
            // SAFETY: it is open, the memory as long as told.
            unsafe { sys::fi_getpeer(self.raw.as_ptr(), place, len) }
        });
        self.domain.fabric.address("fi_getpeer", found)
    }

    /// Sends a message gathered from `pieces`, with `fi_sendmsg`. `desc` is empty or names the region of each
    /// piece. `flags`: `FI_COMPLETION`, `FI_MORE` and others of `fi_msg(3)`.
    ///
    /// # Errors
    /// libfabric's; or it is not enabled, there are too many pieces, or not as many `desc`.
    ///
    /// # Safety
    /// The pieces must be readable, and their regions registered, until the send completed (where it does not,
    /// until a later one did) or the endpoint was dropped.
    #[inline]
    pub unsafe fn send(&self, pieces: &[libc::iovec], desc: &[Desc], context: usize, flags: u64) -> Result<Posted, FabricError> {
        const CALL: &str = "fi_sendmsg";
        self.check_enabled(CALL)?;
        if pieces.len() > self.iov_limit || !(desc.is_empty() || desc.len() == pieces.len()) {
            let text = format!("{} pieces with {} descriptors; at most {} pieces", pieces.len(), desc.len(), self.iov_limit);
            return Err(FabricError::refused(CALL, sys::FI_EINVAL, text));
        }
        let message = sys::fi_msg {
            msg_iov: pieces.as_ptr().cast(),
            desc: if desc.is_empty() { ptr::null_mut() } else { desc.as_ptr().cast_mut().cast() },
            iov_count: pieces.len(),
            addr: sys::FI_ADDR_UNSPEC,
            context: ptr::without_provenance_mut(context),
            data: 0,
        };
        // SAFETY: it is open and enabled; the message lives until after the call, which reads it only; the
        // caller vouches for the memory.
        let code = unsafe { sys::fi_sendmsg(self.raw.as_ptr(), &raw const message, flags) };
        self.posted(CALL, code)
    }

    /// Posts a buffer of `len` bytes from `memory` to receive one message into.
    ///
    /// # Errors
    /// libfabric's; or it is not enabled.
    ///
    /// # Safety
    /// The buffer must be writable, used by nobody else, and its region registered, until the receive completed
    /// or the endpoint was dropped.
    #[inline]
    pub unsafe fn recv(&self, memory: *mut u8, len: usize, desc: Desc, context: usize) -> Result<Posted, FabricError> {
        const CALL: &str = "fi_recv";
        self.check_enabled(CALL)?;
        let context = ptr::without_provenance_mut(context);
        // SAFETY: it is open and enabled; the caller vouches for the memory.
        let code = unsafe { sys::fi_recv(self.raw.as_ptr(), memory.cast(), len, desc.as_ptr(), sys::FI_ADDR_UNSPEC, context) };
        self.posted(CALL, code)
    }

    /// Sends a message of at most [`inject_size`](Self::inject_size) bytes, which are copied. It does not
    /// complete. `false`: there was no room, and nothing happened.
    ///
    /// # Errors
    /// libfabric's; or it is not enabled, or the message is too long.
    #[inline]
    pub fn inject(&self, message: &[u8]) -> Result<bool, FabricError> {
        const CALL: &str = "fi_inject";
        self.check_enabled(CALL)?;
        if message.len() > self.inject_size {
            let text = format!("{} bytes, at most {} can be injected", message.len(), self.inject_size);
            return Err(FabricError::refused(CALL, sys::FI_EMSGSIZE, text));
        }
        // SAFETY: it is open and enabled; the provider copies the message before it returns.
        let code = unsafe { sys::fi_inject(self.raw.as_ptr(), message.as_ptr().cast(), message.len(), sys::FI_ADDR_UNSPEC) };
        Ok(self.posted(CALL, code)? == Posted::Yes)
    }

    fn posted(&self, call: &'static str, code: isize) -> Result<Posted, FabricError> {
        const AGAIN: isize = -(sys::FI_EAGAIN as isize);
        match code {
            0 => Ok(Posted::Yes),
            AGAIN => Ok(Posted::Again),
            _ => Err(self.error(call, code as i64)),
        }
    }

    /// That it is enabled: providers follow pointers that are not there before.
    fn check_enabled(&self, call: &'static str) -> Result<(), FabricError> {
        if self.enabled {
            return Ok(());
        }
        Err(FabricError::refused(call, sys::FI_EOPBADSTATE, "the endpoint is not enabled"))
    }

    /// Its event queue, if it is enabled.
    fn usable(&self, call: &'static str) -> Result<&Arc<EventQueue>, FabricError> {
        self.check_enabled(call)?;
        Ok(self.events.as_ref().expect("enabling wants one"))
    }

    fn error(&self, call: &'static str, code: impl Into<i64>) -> FabricError {
        self.domain.fabric.error(call, code)
    }
}

/// Where private data start; null if there are none.
fn start(data: &[u8]) -> *const c_void {
    if data.is_empty() { ptr::null() } else { data.as_ptr().cast() }
}

fn bound_already(call: &'static str) -> FabricError {
    FabricError::refused(call, sys::FI_EOPBADSTATE, "it is bound or enabled already")
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if let Some(events) = &self.events {
            events.remove_endpoint(self.raw);
        }
        // SAFETY: it is ours; the queues and the domain are let go after this.
        unsafe { close(self.raw.as_ptr().cast(), "endpoint") };
        // Only now, since closing still looks at the request's handle. The connection went with the endpoint, so
        // that rejecting only frees the handle.
        drop(self.request.get_mut().take());
    }
}
