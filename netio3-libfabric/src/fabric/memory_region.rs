//! Registered memory.

use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use libfabric_sys as sys;

use super::{Domain, FabricError, close};

/// What registered memory is for. Never for a peer's direct access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Sending from it.
    Send,
    /// Receiving into it.
    Receive,
    /// Both.
    SendReceive,
}

impl Access {
    fn bits(self) -> u64 {
        match self {
            Self::Send => sys::FI_SEND,
            Self::Receive => sys::FI_RECV,
            Self::SendReceive => sys::FI_SEND | sys::FI_RECV,
        }
    }
}

/// What an operation is given to use registered memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Desc(*mut c_void);

impl Default for Desc {
    fn default() -> Self {
        Self::NONE
    }
}

// SAFETY: it is a number to this program; only the provider follows it, from any thread.
unsafe impl Send for Desc {}
// SAFETY: as above.
unsafe impl Sync for Desc {}

impl Desc {
    /// For memory that needs no registration.
    pub const NONE: Self = Self(ptr::null_mut());

    pub(super) fn as_ptr(self) -> *mut c_void {
        self.0
    }
}

/// Memory could not be registered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}; {bytes} bytes were to be registered{}", remedy(error))]
pub struct RegistrationError {
    /// How many bytes were to be registered.
    pub bytes: usize,
    /// libfabric's error.
    #[source]
    pub error: FabricError,
}

impl From<RegistrationError> for FabricError {
    /// Who hears of it hears what usually helps, too.
    fn from(error: RegistrationError) -> Self {
        let text = format!("{}; {} bytes were to be registered{}", error.error.text, error.bytes, remedy(&error.error));
        Self { text, ..error.error }
    }
}

/// What usually helps: registered memory counts as locked.
fn remedy(error: &FabricError) -> &'static str {
    match error.code {
        sys::FI_ENOMEM | sys::FI_EAGAIN | libc::EPERM => " (is the limit of locked memory too low? see `ulimit -l`)",
        _ => "",
    }
}

/// Memory, registered with a domain while this lives.
#[derive(Debug)]
pub struct MemoryRegion {
    raw: NonNull<sys::fid_mr>,
    desc: Desc,
    len: usize,
    _domain: Arc<Domain>,
}

// SAFETY: the provider promised FI_THREAD_SAFE: any thread may use any object at any time. The region does not
// read or write the memory.
unsafe impl Send for MemoryRegion {}
// SAFETY: as above.
unsafe impl Sync for MemoryRegion {}

impl MemoryRegion {
    /// Registers `len` bytes from `start`. It may take long: the kernel pins the memory.
    ///
    /// # Errors
    /// libfabric's, with the number of bytes.
    ///
    /// # Safety
    /// The memory must stay mapped as long as the region lives, and be writable if it is for receiving.
    pub unsafe fn register(domain: &Arc<Domain>, start: *const u8, len: usize, access: Access) -> Result<Self, RegistrationError> {
        // Providers that do not choose keys themselves want different ones.
        static NEXT_KEY: AtomicU64 = AtomicU64::new(1);
        let key = NEXT_KEY.fetch_add(1, Ordering::Relaxed);
        let mut raw = ptr::null_mut();
        // SAFETY: the domain is open; the caller vouches for the memory.
        let code =
            unsafe { sys::fi_mr_reg(domain.raw.as_ptr(), start.cast(), len, access.bits(), 0, key, 0, &raw mut raw, ptr::null_mut()) };
        match NonNull::new(raw) {
            Some(raw) if code == 0 => {
                // SAFETY: it was opened just now.
                let desc = Desc(unsafe { sys::fi_mr_desc(raw.as_ptr()) });
                Ok(Self { raw, desc, len, _domain: domain.clone() })
            }
            _ => Err(RegistrationError { bytes: len, error: domain.fabric.error("fi_mr_reg", code) }),
        }
    }

    /// What operations are given to use the memory.
    pub fn desc(&self) -> Desc {
        self.desc
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        // SAFETY: it is ours; who posts an operation with its descriptor vouches that the region outlives it.
        unsafe { close(self.raw.as_ptr().cast(), "memory region") };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_is_kept() {
        let error = FabricError { call: "fi_mr_reg", code: sys::FI_ENOMEM, text: "Cannot allocate memory (provider verbs)".into() };
        let error = FabricError::from(RegistrationError { bytes: 4_096, error });
        assert_eq!(error.code, sys::FI_ENOMEM);
        assert!(error.to_string().contains("4096 bytes") && error.to_string().contains("ulimit -l"), "{error}");
    }
}
