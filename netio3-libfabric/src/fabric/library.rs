//! The shared library.

use std::ffi::{CStr, c_char};
use std::sync::Arc;

use libfabric_sys as sys;
use libfabric_sys::{OpenError, Symbols};
use parking_lot::Mutex;

use super::signals::Handlers;
use super::{FabricError, memory_monitor};

/// The oldest version that is served.
const NEEDED: (u32, u32) = (sys::fi_major(sys::API_VERSION), sys::fi_minor(sys::API_VERSION));

static OPENED: Mutex<Option<Arc<Library>>> = Mutex::new(None);

/// libfabric, opened. It is opened once per process and stays open.
#[derive(Debug)]
pub struct Library {
    pub(super) symbols: Symbols,
}

/// Why libfabric cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// There is none, or the dynamic linker does not open it.
    #[error("libfabric is not installed ({text}); install it: {REMEDY}")]
    NotInstalled {
        /// The names that were tried.
        tried: Vec<&'static str>,
        /// The dynamic linker's words.
        text: String,
    },
    /// It is older than 1.14.
    #[error("libfabric {}.{} is too old, {}.{} is needed; install a newer one: {REMEDY}", found.0, found.1, needed.0, needed.1)]
    TooOld {
        /// The version that is installed.
        found: (u32, u32),
        /// The oldest version that is served.
        needed: (u32, u32),
    },
    /// It lacks a function that every libfabric has.
    #[error("{library} lacks {name} ({text}), so it is not a usable libfabric; install one: {REMEDY}", library = sys::SONAME)]
    MissingSymbol {
        /// The function.
        name: &'static str,
        /// The dynamic linker's words.
        text: String,
    },
}

const REMEDY: &str = "`apt-get install libfabric1` (Debian, Ubuntu) or `dnf install libfabric` (RHEL, AlmaLinux)";

impl Library {
    /// Opens libfabric, or hands out what was opened before.
    ///
    /// # Errors
    /// It is missing, too old or broken; the text names the remedy.
    pub fn open() -> Result<Arc<Self>, LoadError> {
        let mut opened = OPENED.lock();
        if let Some(library) = &*opened {
            return Ok(library.clone());
        }
        let handlers = Handlers::current();
        let library = Self::load();
        handlers.restore();
        Ok(opened.insert(Arc::new(library?)).clone())
    }

    fn load() -> Result<Self, LoadError> {
        // SAFETY: the name is libfabric's, whose interface is what the bindings declare. Once something was
        // made with it, it stays open: `OPENED` is never dropped.
        let symbols = unsafe { Symbols::open() }.map_err(|error| match error {
            OpenError::NotOpened(error) => LoadError::NotInstalled { tried: vec![sys::SONAME], text: error.to_string() },
            OpenError::MissingSymbol { name, error } => LoadError::MissingSymbol { name, text: error.to_string() },
        })?;
        let library = Self { symbols };
        let found = library.version();
        if found < NEEDED {
            return Err(LoadError::TooOld { found, needed: NEEDED });
        }
        if let Err(code) = memory_monitor::turn_off(&library.symbols) {
            tracing::debug!(code, "libfabric's cache of registered memory stays on");
        }
        Ok(library)
    }

    /// Its version: major, minor.
    pub fn version(&self) -> (u32, u32) {
        // SAFETY: it has no arguments.
        let version = unsafe { (self.symbols.fi_version)() };
        (sys::fi_major(version), sys::fi_minor(version))
    }

    /// libfabric's text for a positive code.
    pub(super) fn text(&self, code: i32) -> String {
        // SAFETY: any number is allowed.
        let text = unsafe { (self.symbols.fi_strerror)(code) };
        // SAFETY: it is a C string, which only another thread's unknown code can overwrite.
        unsafe { string(text) }.unwrap_or_else(|| format!("error {code}"))
    }

    /// The error of a call that returned `code`, which is negative, in a provider where one is known.
    pub(super) fn error(&self, call: &'static str, code: impl Into<i64>, provider: Option<&str>) -> FabricError {
        let code = i32::try_from(code.into().unsigned_abs()).unwrap_or(sys::FI_EOTHER);
        let mut text = self.text(code);
        if let Some(provider) = provider {
            text.push_str(&format!(" (provider {provider})"));
        }
        FabricError { call, code, text }
    }

    /// The error that a queue reported: a positive code, and the provider's own text for it.
    pub(super) fn reported(&self, call: &'static str, code: i32, provider: &str, own: Option<String>) -> FabricError {
        let code = code.saturating_abs();
        let mut text = self.text(code);
        match own.filter(|own| *own != text && !own.is_empty()) {
            Some(own) => text.push_str(&format!(" (provider {provider}: {own})")),
            None => text.push_str(&format!(" (provider {provider})")),
        }
        FabricError { call, code, text }
    }
}

/// A copy of a C string; none of null.
///
/// # Safety
/// It must be null or a C string that stays as it is during the call.
pub(super) unsafe fn string(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller vouches for it.
    let text = unsafe { CStr::from_ptr(text) };
    Some(text.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_remedy() {
        let errors = [
            LoadError::NotInstalled { tried: vec![sys::SONAME], text: "no such file".into() },
            LoadError::TooOld { found: (1, 9), needed: NEEDED },
            LoadError::MissingSymbol { name: "fi_getinfo", text: "undefined symbol".into() },
        ];
        for error in errors {
            let text = error.to_string();
            assert!(text.contains("apt-get install libfabric1") && text.contains("dnf install libfabric"), "{text}");
        }
    }
}
