//! Keeps libfabric from watching the process's memory.
//!
//! For the provider `verbs` libfabric caches what programs register, and learns by a *memory monitor* when such memory
//! is given back to the system. Its default one writes a jump into the first bytes of `munmap`, `mremap` and others
//! while threads may be inside them, which ends the process now and then. netio3 registers memory once and for as long
//! as it is used, and has no use for the cache: it imports a monitor of its own, as programs may, whose start fails.
//! The provider then goes on without the cache.
//!
//! A provider that libfabric loads as a module has a copy of the monitors of its own, of which an import does not know.
//! There the default one is taken away before the first domain is opened, as that environment variable would have it.
//!
//! Where somebody else in the process uses the cache already it stays as it is, and what the user says in
//! `FI_MR_CACHE_MONITOR` holds in any case.

use std::env;
use std::ffi::{CStr, c_int, c_void};
use std::ptr;
use std::sync::Once;

use libfabric_sys as sys;
use libfabric_sys::Symbols;

/// Turns the cache off, once per process and before anything else is asked of libfabric. Otherwise gives libfabric's
/// negative code: it has no such monitors, or one is there already.
pub(super) fn turn_off(symbols: &Symbols) -> Result<(), c_int> {
    let operations = sys::fi_ops_mem_monitor { size: size_of::<sys::fi_ops_mem_monitor>(), start, stop, subscribe, unsubscribe, valid };
    let fid = sys::fid { fclass: sys::FI_CLASS_MEM_MONITOR, context: ptr::null_mut(), ops: ptr::null_mut() };
    // libfabric keeps it for good.
    let monitor =
        Box::leak(Box::new(sys::fid_mem_monitor { fid, export_ops: Box::leak(Box::new(operations)), import_ops: ptr::null_mut() }));
    let mut cache = ptr::null_mut();
    // SAFETY: the name is a C string, there are no attributes, and the object is written where there is room for it.
    let code = unsafe { (symbols.fi_open)(sys::API_VERSION, c"mr_cache".as_ptr(), ptr::null_mut(), 0, 0, &raw mut cache, ptr::null_mut()) };
    if code != 0 {
        return Err(code);
    }
    // SAFETY: the cache is open; the monitor is of the class it says, and stays for good.
    let code = unsafe { sys::fi_bind(cache, (&raw mut *monitor).cast(), 0) };
    // SAFETY: it is open, and nothing was made with it; the monitor stays imported.
    unsafe { sys::fi_close(cache) };
    if code == 0 { Ok(()) } else { Err(code) }
}

/// What the provider `verbs` comes in, where it is not in libfabric itself.
const MODULE: &CStr = c"libverbs-fi.so";

/// Turns the cache of the module off, if libfabric has loaded it, which it does when it is first asked for anything.
pub(super) fn turn_off_in_module() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if env::var_os("FI_MR_CACHE_MONITOR").is_none() {
            take_default_away();
        }
    });
}

fn take_default_away() {
    // SAFETY: nothing is loaded that is not already, so that nothing of it runs.
    let handle = unsafe { libc::dlopen(MODULE.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
    if handle.is_null() {
        return;
    }
    // SAFETY: the handle is open, the name a C string.
    let monitor: *mut *mut c_void = unsafe { libc::dlsym(handle, c"default_monitor".as_ptr()) }.cast();
    if monitor.is_null() {
        tracing::warn!(module = ?MODULE, "libfabric's cache of registered memory stays on; set FI_MR_CACHE_MONITOR=disabled");
    } else {
        // SAFETY: in every version with modules it is a pointer to a monitor, null where there is none. It is read when
        // a domain is opened, and none of this module's is yet, or it has been read for that before.
        unsafe { monitor.write(ptr::null_mut()) };
    }
    // SAFETY: it was opened above; libfabric keeps the module.
    unsafe { libc::dlclose(handle) };
}

unsafe extern "C" fn start(_: *mut sys::fid_mem_monitor) -> c_int {
    -(sys::FI_ENOSYS as c_int)
}

// A monitor that did not start is not called.
unsafe extern "C" fn stop(_: *mut sys::fid_mem_monitor) {}

unsafe extern "C" fn subscribe(_: *mut sys::fid_mem_monitor, _: *const c_void, _: usize) -> c_int {
    -(sys::FI_ENOSYS as c_int)
}

unsafe extern "C" fn unsubscribe(_: *mut sys::fid_mem_monitor, _: *const c_void, _: usize) {}

unsafe extern "C" fn valid(_: *mut sys::fid_mem_monitor, _: *const c_void, _: usize) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::super::Library;
    use super::*;

    #[test]
    fn an_opened_library_has_the_monitor() {
        let Ok(library) = Library::open() else { return println!("skipped: no libfabric") };
        assert!(turn_off(&library.symbols).is_err(), "there can be only one");
    }
}
