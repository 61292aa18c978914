//! A domain: usually a device.

use std::ptr::{self, NonNull};
use std::sync::Arc;

use libfabric_sys as sys;

use super::{Fabric, FabricError, Info, close, memory_monitor};

/// A domain of a fabric, opened.
#[derive(Debug)]
pub struct Domain {
    pub(super) raw: NonNull<sys::fid_domain>,
    pub(super) fabric: Arc<Fabric>,
    name: String,
    needs_registration: bool,
}

// SAFETY: the provider promised FI_THREAD_SAFE: any thread may use any object at any time.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

impl Domain {
    /// Opens the domain that `info` names. A provider may take its time: `verbs` opens a device.
    ///
    /// # Errors
    /// libfabric's; or `info` is of another provider than `fabric`.
    pub fn open(fabric: &Arc<Fabric>, info: &Info) -> Result<Arc<Self>, FabricError> {
        const CALL: &str = "fi_domain";
        fabric.check_provider(info, CALL)?;
        let copy = info.for_call(CALL)?;
        let mut raw = ptr::null_mut();
        let _opening = fabric.opening.write();
        memory_monitor::turn_off_in_module();
        // SAFETY: the fabric is open, the info lives until after the call.
        let code = unsafe { sys::fi_domain(fabric.raw.as_ptr(), copy.as_ptr(), &raw mut raw, ptr::null_mut()) };
        match NonNull::new(raw) {
            Some(raw) if code == 0 => {
                Ok(Arc::new(Self { raw, fabric: fabric.clone(), name: info.domain_name(), needs_registration: info.needs_local_mr() }))
            }
            _ => Err(fabric.error(CALL, code)),
        }
    }

    /// The fabric it is in.
    pub fn fabric(&self) -> &Arc<Fabric> {
        &self.fabric
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether memory must be registered before it is sent from or received into.
    pub fn needs_registration(&self) -> bool {
        self.needs_registration
    }
}

impl Fabric {
    /// That an info is of this fabric's provider, which would take another's for its own.
    pub(super) fn check_provider(&self, info: &Info, call: &'static str) -> Result<(), FabricError> {
        let provider = info.provider();
        if provider == self.provider {
            return Ok(());
        }
        let text = format!("the info is of provider {provider}, the fabric of {}", self.provider);
        Err(FabricError::refused(call, sys::FI_EINVAL, text))
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: all that was opened in it holds an `Arc` of it, hence is closed.
        unsafe { close(self.raw.as_ptr().cast(), "domain") };
    }
}
