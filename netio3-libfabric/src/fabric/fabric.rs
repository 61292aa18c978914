//! A fabric: what one provider connects.

use std::ptr::{self, NonNull};
use std::sync::Arc;

use libfabric_sys as sys;
use parking_lot::RwLock;

use super::{FabricError, Info, Library, close};

/// A fabric of a provider, opened.
#[derive(Debug)]
pub struct Fabric {
    pub(super) raw: NonNull<sys::fid_fabric>,
    pub(super) libfabric: Arc<Library>,
    pub(super) provider: String,
    /// Written to while a domain is opened, read while an event queue is. `verbs` of libfabric 2.2 to 2.5 looks at the
    /// device of every domain of the fabric when an event queue is read, and a domain that is being opened has none yet.
    pub(super) opening: RwLock<()>,
}

// SAFETY: the provider promised FI_THREAD_SAFE: any thread may use any object at any time.
unsafe impl Send for Fabric {}
// SAFETY: as above.
unsafe impl Sync for Fabric {}

impl Fabric {
    /// Opens the fabric that `info` names.
    ///
    /// # Errors
    /// libfabric's.
    pub fn open(library: &Arc<Library>, info: &Info) -> Result<Arc<Self>, FabricError> {
        const CALL: &str = "fi_fabric";
        let provider = info.provider();
        let copy = info.for_call(CALL)?;
        let mut raw = ptr::null_mut();
        // SAFETY: the attributes live until after the call.
        let code = unsafe { (library.symbols.fi_fabric)(copy.info().fabric_attr, &raw mut raw, ptr::null_mut()) };
        match NonNull::new(raw) {
            Some(raw) if code == 0 => Ok(Arc::new(Self { raw, libfabric: library.clone(), provider, opening: RwLock::new(()) })),
            _ => Err(library.error(CALL, code, Some(&provider))),
        }
    }

    /// The library it was opened with.
    pub fn library(&self) -> &Arc<Library> {
        &self.libfabric
    }

    /// The provider's name.
    pub fn provider(&self) -> &str {
        &self.provider
    }

    /// Asks whether the descriptor of a queue may be waited for. If not (`false`), the queue is to be read again: there may
    /// be something in it that no descriptor shows.
    ///
    /// # Safety
    /// The queue must be open, and of this fabric.
    pub(super) unsafe fn trywait(&self, queue: *mut sys::fid) -> Result<bool, FabricError> {
        let mut queue = queue;
        // SAFETY: the caller vouches for the queue, and the list of one lives until after the call.
        let code = unsafe { sys::fi_trywait(self.raw.as_ptr(), &raw mut queue, 1) };
        match -code {
            0 => Ok(true),
            sys::FI_EAGAIN => Ok(false),
            _ => Err(self.error("fi_trywait", code)),
        }
    }

    pub(super) fn error(&self, call: &'static str, code: impl Into<i64>) -> FabricError {
        self.libfabric.error(call, code, Some(&self.provider))
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        // SAFETY: all that was opened in it holds an `Arc` of it, hence is closed.
        unsafe { close(self.raw.as_ptr().cast(), "fabric") };
    }
}
