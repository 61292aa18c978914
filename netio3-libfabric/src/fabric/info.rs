//! What libfabric found: a provider, a device, an address and limits.

use std::fmt;
use std::net::SocketAddr;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use libfabric_sys as sys;
use parking_lot::Mutex;

use super::address::RawAddress;
use super::library::string;
use super::passive_endpoint::Request;
use super::{FabricError, Library, address};

/// One `fi_info`, owned, with nothing behind it in its list and all its attributes there.
#[derive(Debug)]
pub(super) struct InfoBox {
    raw: NonNull<sys::fi_info>,
    libfabric: Arc<Library>,
}

// SAFETY: it owns a tree of plain memory and nothing of it is bound to a thread.
unsafe impl Send for InfoBox {}
// SAFETY: through a shared reference it is only read; calls that take a pointer to write get a copy.
unsafe impl Sync for InfoBox {}

impl InfoBox {
    /// An empty one, for hints.
    pub(super) fn empty(library: &Arc<Library>) -> Option<Self> {
        // SAFETY: null asks for an empty one.
        let raw = unsafe { (library.symbols.fi_dupinfo)(ptr::null()) };
        // SAFETY: it is null or a new one.
        unsafe { Self::split(library.clone(), raw) }.map(|(info, _)| info)
    }

    /// Takes the first of a list; entries that lack attributes are freed. None at the end of the list.
    ///
    /// # Safety
    /// `list` must be null or a list of libfabric's making that is the caller's.
    pub(super) unsafe fn split(library: Arc<Library>, list: *mut sys::fi_info) -> Option<(Self, *mut sys::fi_info)> {
        let mut list = list;
        loop {
            let mut raw = NonNull::new(list)?;
            // SAFETY: it is libfabric's, hence readable as far as it is declared, and the caller's alone.
            let info = unsafe { raw.as_mut() };
            let rest = std::mem::replace(&mut info.next, ptr::null_mut());
            let complete = !info.tx_attr.is_null()
                && !info.rx_attr.is_null()
                && !info.ep_attr.is_null()
                && !info.domain_attr.is_null()
                && !info.fabric_attr.is_null();
            if complete {
                return Some((Self { raw, libfabric: library }, rest));
            }
            // SAFETY: it is the caller's and no longer in a list.
            unsafe { (library.symbols.fi_freeinfo)(raw.as_ptr()) };
            list = rest;
        }
    }

    /// A copy that a call may write to.
    fn duplicate(&self) -> Option<Self> {
        // SAFETY: it is one of libfabric's.
        let raw = unsafe { (self.libfabric.symbols.fi_dupinfo)(self.raw.as_ptr()) };
        // SAFETY: it is null or a new one.
        unsafe { Self::split(self.libfabric.clone(), raw) }.map(|(info, _)| info)
    }

    pub(super) fn as_ptr(&self) -> *mut sys::fi_info {
        self.raw.as_ptr()
    }

    pub(super) fn info(&self) -> &sys::fi_info {
        // SAFETY: it is ours, and readable as far as it is declared.
        unsafe { self.raw.as_ref() }
    }

    pub(super) fn info_mut(&mut self) -> &mut sys::fi_info {
        // SAFETY: it is ours, and readable as far as it is declared.
        unsafe { self.raw.as_mut() }
    }

    fn tx(&self) -> &sys::fi_tx_attr {
        // SAFETY: `split` saw that it is there; it belongs to the info.
        unsafe { &*self.info().tx_attr }
    }

    fn tx_mut(&mut self) -> &mut sys::fi_tx_attr {
        // SAFETY: as above.
        unsafe { &mut *self.info().tx_attr }
    }

    fn rx(&self) -> &sys::fi_rx_attr {
        // SAFETY: as above.
        unsafe { &*self.info().rx_attr }
    }

    fn rx_mut(&mut self) -> &mut sys::fi_rx_attr {
        // SAFETY: as above.
        unsafe { &mut *self.info().rx_attr }
    }

    fn ep(&self) -> &sys::fi_ep_attr {
        // SAFETY: as above.
        unsafe { &*self.info().ep_attr }
    }

    pub(super) fn ep_mut(&mut self) -> &mut sys::fi_ep_attr {
        // SAFETY: as above.
        unsafe { &mut *self.info().ep_attr }
    }

    fn domain(&self) -> &sys::fi_domain_attr {
        // SAFETY: as above.
        unsafe { &*self.info().domain_attr }
    }

    pub(super) fn domain_mut(&mut self) -> &mut sys::fi_domain_attr {
        // SAFETY: as above.
        unsafe { &mut *self.info().domain_attr }
    }

    fn fabric(&self) -> &sys::fi_fabric_attr {
        // SAFETY: as above.
        unsafe { &*self.info().fabric_attr }
    }

    pub(super) fn fabric_mut(&mut self) -> &mut sys::fi_fabric_attr {
        // SAFETY: as above.
        unsafe { &mut *self.info().fabric_attr }
    }
}

impl Drop for InfoBox {
    fn drop(&mut self) {
        // SAFETY: it is ours and in no list.
        unsafe { (self.libfabric.symbols.fi_freeinfo)(self.raw.as_ptr()) };
    }
}

/// What can be used: a provider, a device, addresses and limits. Also what a request for a connection brings.
///
/// If it came with such a request and is dropped before an endpoint was opened with it, the request is
/// rejected.
pub struct Info {
    raw: InfoBox,
    /// Whether it came with a request.
    requested: bool,
    /// The request, until it is answered or an endpoint takes it over.
    request: Mutex<Option<Request>>,
}

/// A network device, as far as the provider tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// The device's name.
    pub device: Option<String>,
    /// The state of its link.
    pub link: LinkState,
    /// The link's speed in bits per second; 0 if unknown.
    pub speed: usize,
    /// The link's largest packet in bytes; 0 if unknown.
    pub mtu: usize,
}

/// The state of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// The provider does not say.
    Unknown,
    /// Nothing can be sent.
    Down,
    /// It works.
    Up,
}

impl Info {
    /// One that `fi_getinfo` found.
    pub(super) fn found(raw: InfoBox) -> Self {
        let mut info = Self { raw, requested: false, request: Mutex::new(None) };
        info.forget_open_objects();
        info
    }

    /// One that came with a request for a connection.
    pub(super) fn requested(raw: InfoBox, request: Request) -> Self {
        let mut info = Self { raw, requested: true, request: Mutex::new(Some(request)) };
        info.forget_open_objects();
        info
    }

    /// Providers name the fabric and domain that are open at the time and may be closed when this is used; and
    /// the handle of a request is kept apart, so that it is used once.
    fn forget_open_objects(&mut self) {
        self.raw.info_mut().handle = ptr::null_mut();
        self.raw.fabric_mut().fabric = ptr::null_mut();
        self.raw.domain_mut().domain = ptr::null_mut();
    }

    /// A copy for a call to read or write.
    pub(super) fn for_call(&self, call: &'static str) -> Result<InfoBox, FabricError> {
        self.raw.duplicate().ok_or_else(|| self.raw.libfabric.error(call, -sys::FI_ENOMEM, None))
    }

    /// The request that came with it, for the one who answers it: none if there was none.
    ///
    /// # Errors
    /// It was taken before.
    pub(super) fn take_request(&self, call: &'static str) -> Result<Option<Request>, FabricError> {
        let request = self.request.lock().take();
        if self.requested && request.is_none() {
            return Err(FabricError::refused(call, sys::FI_EINVAL, "the request was answered before"));
        }
        Ok(request)
    }

    /// Gives a request back that could not be used.
    pub(super) fn return_request(&self, request: Request) {
        *self.request.lock() = Some(request);
    }

    /// A copy, without the request that may have come with this one.
    ///
    /// # Errors
    /// There is no memory.
    pub fn duplicate(&self) -> Result<Self, FabricError> {
        Ok(Self { raw: self.for_call("fi_dupinfo")?, requested: false, request: Mutex::new(None) })
    }

    pub(super) fn is_thread_safe(&self) -> bool {
        self.raw.domain().threading == sys::FI_THREAD_SAFE
    }

    /// The provider's name.
    pub fn provider(&self) -> String {
        // SAFETY: it is null or a C string that belongs to the info.
        unsafe { string(self.raw.fabric().prov_name) }.unwrap_or_default()
    }

    /// The fabric's name: what it connects.
    pub fn fabric_name(&self) -> String {
        // SAFETY: as above.
        unsafe { string(self.raw.fabric().name) }.unwrap_or_default()
    }

    /// The domain's name: usually the device's.
    pub fn domain_name(&self) -> String {
        // SAFETY: as above.
        unsafe { string(self.raw.domain().name) }.unwrap_or_default()
    }

    /// This side's address.
    pub fn src_addr(&self) -> Option<SocketAddr> {
        let info = self.raw.info();
        // SAFETY: the info has an address of that length, or null.
        unsafe { self.address(info.src_addr, info.src_addrlen) }
    }

    /// Sets the port of this side's address, if there is one.
    pub fn set_src_port(&mut self, port: u16) {
        let Some(before) = self.src_addr() else { return };
        let after = RawAddress::new(SocketAddr::new(before.ip(), port));
        let start = self.raw.info_mut().src_addr;
        // SAFETY: an address of this kind was read there just now, so that there is as much room; the info is ours.
        unsafe { start.copy_from_nonoverlapping(after.as_ptr(), after.len()) };
    }

    /// The peer's address.
    pub fn dest_addr(&self) -> Option<SocketAddr> {
        let info = self.raw.info();
        // SAFETY: the info has an address of that length, or null.
        unsafe { self.address(info.dest_addr, info.dest_addrlen) }
    }

    /// # Safety
    /// `start` must be null or have `len` readable bytes.
    unsafe fn address(&self, start: *const std::ffi::c_void, len: usize) -> Option<SocketAddr> {
        match self.raw.info().addr_format {
            // `verbs` names the format of InfiniBand in the info of a request, whose addresses may be of the internet.
            // SAFETY: the caller vouches for it; the address tells its own kind.
            sys::FI_SOCKADDR | sys::FI_SOCKADDR_IN | sys::FI_SOCKADDR_IN6 | sys::FI_SOCKADDR_IB => unsafe { address::read(start, len) },
            _ => None,
        }
    }

    /// How many sends can be under way.
    pub fn tx_size(&self) -> usize {
        self.raw.tx().size
    }

    /// Sets how many sends can be under way; opening an endpoint fails if that is too much.
    pub fn set_tx_size(&mut self, size: usize) {
        self.raw.tx_mut().size = size;
    }

    /// How many receive buffers can be posted.
    pub fn rx_size(&self) -> usize {
        self.raw.rx().size
    }

    /// Sets how many receive buffers can be posted; opening an endpoint fails if that is too much.
    pub fn set_rx_size(&mut self, size: usize) {
        self.raw.rx_mut().size = size;
    }

    /// From how many pieces one send can be gathered.
    pub fn iov_limit(&self) -> usize {
        self.raw.tx().iov_limit
    }

    /// Up to how many bytes can be sent so that their memory is free at once.
    pub fn inject_size(&self) -> usize {
        self.raw.tx().inject_size
    }

    /// The longest message in bytes.
    pub fn max_msg_size(&self) -> usize {
        self.raw.ep().max_msg_size
    }

    /// What registered memory must be: bits of `fi_mr(3)`.
    pub fn mr_mode(&self) -> i32 {
        self.raw.domain().mr_mode
    }

    /// Whether memory must be registered before it is sent from or received into.
    pub fn needs_local_mr(&self) -> bool {
        self.mr_mode() & sys::FI_MR_LOCAL != 0 || self.raw.info().mode & sys::FI_LOCAL_MR != 0
    }

    /// The number of the protocol on the wire: `FI_PROTO_*` of `fi_endpoint(3)`.
    pub fn protocol(&self) -> u32 {
        self.raw.ep().protocol
    }

    /// The name of the protocol on the wire, or its number.
    pub fn protocol_name(&self) -> String {
        match self.protocol() {
            sys::FI_PROTO_UNSPEC => "unspecified".into(),
            sys::FI_PROTO_RDMA_CM_IB_RC => "RDMA CM over InfiniBand RC".into(),
            sys::FI_PROTO_IWARP => "iWARP".into(),
            sys::FI_PROTO_SOCK_TCP => "TCP".into(),
            other => format!("protocol {other}"),
        }
    }

    /// The network device, where the provider names one.
    pub fn nic(&self) -> Option<Nic> {
        // SAFETY: it is null or belongs to the info.
        let nic = unsafe { self.raw.info().nic.as_ref() }?;
        // SAFETY: it is null or belongs to the info.
        let device = unsafe { nic.device_attr.as_ref() };
        // SAFETY: it is null or belongs to the info.
        let link = unsafe { nic.link_attr.as_ref() };
        let device = device.map(|device| device.name);
        Some(Nic {
            // SAFETY: it is null or a C string that belongs to the info.
            device: device.and_then(|name| unsafe { string(name) }),
            link: match link.map_or(sys::FI_LINK_UNKNOWN, |link| link.state) {
                sys::FI_LINK_UP => LinkState::Up,
                sys::FI_LINK_DOWN => LinkState::Down,
                _ => LinkState::Unknown,
            },
            speed: link.map_or(0, |link| link.speed),
            mtu: link.map_or(0, |link| link.mtu),
        })
    }
}

impl fmt::Debug for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Info")
            .field("provider", &self.provider())
            .field("domain", &self.domain_name())
            .field("src_addr", &self.src_addr())
            .field("dest_addr", &self.dest_addr())
            .field("requested", &self.requested)
            .finish_non_exhaustive()
    }
}
