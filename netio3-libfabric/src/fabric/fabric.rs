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

    /// Asks whether the descriptors of these queues may be waited for. If not (`false`), read the queues
    /// again: there may be something in them that no descriptor shows.
    ///
    /// # Errors
    /// libfabric's; or a queue is of another fabric.
    pub fn trywait(self: &Arc<Self>, queues: &[&dyn Waitable]) -> Result<bool, FabricError> {
        const CALL: &str = "fi_trywait";
        for queue in queues {
            if !Arc::ptr_eq(queue.fabric(), self) {
                return Err(FabricError::refused(CALL, sys::FI_EINVAL, "a queue is of another fabric"));
            }
            if queue.holds_back() {
                return Ok(false);
            }
            // libfabric looks at one queue after the other too.
            let mut object = queue.object();
            // SAFETY: the queue is open as long as it is borrowed, and of this fabric.
            let code = unsafe { sys::fi_trywait(self.raw.as_ptr(), &raw mut object, 1) };
            match -code {
                0 => {}
                sys::FI_EAGAIN => return Ok(false),
                _ => return Err(self.error(CALL, code)),
            }
        }
        Ok(true)
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

/// A queue whose descriptor can be waited for: an event queue or a completion queue.
pub trait Waitable: sealed::Queue {}

pub(super) mod sealed {
    use super::*;

    /// What `trywait` needs of a queue.
    pub trait Queue {
        /// The object.
        fn object(&self) -> *mut sys::fid;
        /// The fabric it is of.
        fn fabric(&self) -> &Arc<Fabric>;
        /// Whether it holds something that was read of the object before, or cannot be read just now.
        fn holds_back(&self) -> bool;
    }
}
