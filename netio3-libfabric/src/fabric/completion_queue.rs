//! A queue of completions.

use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use libfabric_sys as sys;
use libfabric_sys::Roomy;

use super::library::string;
use super::{Domain, Fabric, FabricError, close};

/// An operation is over. Of the layout of `fi_cq_msg_entry`, so that the provider writes it in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Completion {
    /// The number the operation was posted with.
    pub context: usize,
    /// What it was: flags of `fi_cq(3)`.
    pub flags: u64,
    /// How many bytes were received; of no meaning for a send.
    pub len: usize,
}

const _: () = {
    assert!(size_of::<Completion>() == size_of::<sys::fi_cq_msg_entry>());
    assert!(align_of::<Completion>() == align_of::<sys::fi_cq_msg_entry>());
};

impl Completion {
    /// Whether something was received, rather than sent.
    pub fn is_recv(&self) -> bool {
        self.flags & sys::FI_RECV != 0
    }
}

/// An operation failed, or was given up when its connection ended (`ECANCELED`).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct CompletionError {
    /// The number the operation was posted with.
    pub context: usize,
    /// What it was: flags of `fi_cq(3)`. Some providers leave them out: `verbs` knows no direction then.
    pub flags: u64,
    /// The error.
    pub error: FabricError,
}

impl CompletionError {
    /// Whether a receive failed, rather than a send, as far as the provider tells.
    pub fn is_recv(&self) -> bool {
        self.flags & sys::FI_RECV != 0
    }
}

/// What reading a completion queue brings instead of completions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CqError {
    /// One operation failed. There may be more to read.
    #[error(transparent)]
    Operation(CompletionError),
    /// The queue itself failed, for example because it was overrun.
    #[error(transparent)]
    Queue(FabricError),
}

/// A queue of completions, opened.
#[derive(Debug)]
pub struct CompletionQueue {
    pub(super) raw: NonNull<sys::fid_cq>,
    descriptor: RawFd,
    pub(super) domain: Arc<Domain>,
}

// SAFETY: the provider promised FI_THREAD_SAFE: any thread may use any object at any time.
unsafe impl Send for CompletionQueue {}
// SAFETY: as above.
unsafe impl Sync for CompletionQueue {}

impl CompletionQueue {
    /// Opens a queue for `size` completions. More must never be under way: the queue would be overrun.
    ///
    /// # Errors
    /// libfabric's.
    pub fn open(domain: &Arc<Domain>, size: usize) -> Result<Arc<Self>, FabricError> {
        let mut attributes = Roomy::new(sys::fi_cq_attr {
            size,
            flags: 0,
            format: sys::FI_CQ_FORMAT_MSG,
            wait_obj: sys::FI_WAIT_FD,
            signaling_vector: 0,
            wait_cond: 0,
            wait_set: ptr::null_mut(),
        });
        let attributes: *mut Roomy<_> = &raw mut attributes;
        let mut raw = ptr::null_mut();
        // SAFETY: the domain is open, the attributes live until after the call.
        let code = unsafe { sys::fi_cq_open(domain.raw.as_ptr(), attributes.cast(), &raw mut raw, ptr::null_mut()) };
        let Some(raw) = NonNull::new(raw).filter(|_| code == 0) else {
            return Err(domain.fabric.error("fi_cq_open", code));
        };
        let mut queue = Self { raw, descriptor: -1, domain: domain.clone() };
        // SAFETY: the queue was opened just now, with a descriptor to wait for.
        queue.descriptor = unsafe { wait_descriptor(raw.as_ptr().cast(), &domain.fabric) }?;
        Ok(Arc::new(queue))
    }

    /// The domain it is in.
    pub fn domain(&self) -> &Arc<Domain> {
        &self.domain
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
        // SAFETY: the queue is open, and of the fabric of its domain.
        unsafe { self.domain.fabric.trywait(self.raw.as_ptr().cast()) }
    }

    /// Reads completions into the front of `into`: how many. 0 if there are none. Drives transfers on.
    ///
    /// # Errors
    /// A failed operation comes alone. Completions before and after it are not lost.
    pub fn read(&self, into: &mut [Completion]) -> Result<usize, CqError> {
        loop {
            super::forget_errno();
            // SAFETY: the queue is open, the memory is as long as told and of the format's layout.
            let count = unsafe { sys::fi_cq_read(self.raw.as_ptr(), into.as_mut_ptr().cast(), into.len()) };
            if count >= 0 {
                return Ok(count.unsigned_abs());
            }
            match i32::try_from(-count).unwrap_or(sys::FI_EOTHER) {
                sys::FI_EAGAIN => return Ok(0),
                sys::FI_EAVAIL => {}
                _ => return Err(CqError::Queue(self.domain.fabric.error("fi_cq_read", count as i64))),
            }
            // Another thread may have read it meanwhile.
            if let Some(error) = self.read_error()? {
                return Err(CqError::Operation(error));
            }
        }
    }

    /// Reads the error that stands first; none if there is none.
    fn read_error(&self) -> Result<Option<CompletionError>, CqError> {
        // Memory for the provider's data is always given: without it `verbs` puts a number where the pointer is.
        let mut data = [0_u64; 16];
        let mut entry = Roomy::new(sys::fi_cq_err_entry {
            op_context: ptr::null_mut(),
            flags: 0,
            len: 0,
            buf: ptr::null_mut(),
            data: 0,
            tag: 0,
            olen: 0,
            err: 0,
            prov_errno: 0,
            err_data: data.as_mut_ptr().cast(),
            err_data_size: size_of_val(&data),
        });
        let whole: *mut Roomy<sys::fi_cq_err_entry> = &raw mut entry;
        // SAFETY: the queue is open; the entry, the room behind it and its data live until after the call.
        let count = unsafe { sys::fi_cq_readerr(self.raw.as_ptr(), whole.cast(), 0) };
        if count < 0 && count != -(sys::FI_EAGAIN as isize) {
            return Err(CqError::Queue(self.domain.fabric.error("fi_cq_readerr", count as i64)));
        }
        if count <= 0 {
            return Ok(None);
        }
        let entry = entry.value;
        let call = if entry.flags & sys::FI_RECV != 0 { "fi_recv" } else { "fi_sendmsg" };
        let fabric = &self.domain.fabric;
        Ok(Some(CompletionError {
            context: entry.op_context.addr(),
            flags: entry.flags,
            error: fabric.libfabric.reported(call, entry.err, &fabric.provider, self.own_text(entry.prov_errno)),
        }))
    }

    /// The provider's text for its own code.
    fn own_text(&self, code: c_int) -> Option<String> {
        if code == 0 {
            return None;
        }
        // SAFETY: the queue is open; no data are given.
        let text = unsafe { sys::fi_cq_strerror(self.raw.as_ptr(), code, ptr::null()) };
        // SAFETY: it is null or a C string.
        unsafe { string(text) }
    }
}

/// The descriptor of a queue.
///
/// # Safety
/// The queue must be open, of that fabric, and waited for with a descriptor.
pub(super) unsafe fn wait_descriptor(queue: *mut sys::fid, fabric: &Fabric) -> Result<RawFd, FabricError> {
    let mut descriptor: c_int = -1;
    let place: *mut c_void = (&raw mut descriptor).cast();
    // SAFETY: the caller vouches for the queue; for its kind of waiting the command writes one number.
    let code = unsafe { sys::fi_control(queue, sys::FI_GETWAIT, place) };
    match (code, descriptor) {
        (0, 0..) => Ok(descriptor),
        (0, _) => Err(FabricError::refused("fi_control", sys::FI_ENODATA, "the queue has no descriptor to wait for")),
        _ => Err(fabric.error("fi_control", code)),
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // SAFETY: endpoints that are bound to it hold an `Arc` of it, hence are closed.
        unsafe { close(self.raw.as_ptr().cast(), "completion queue") };
    }
}

impl AsFd for CompletionQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}
