//! The calls that libfabric's headers define inline: they go through the objects' tables of functions.

use core::ffi::{c_char, c_int, c_void};
use core::ptr;

use crate::constants::FI_ENABLE;
use crate::objects::{fi_info, fid, fid_cq, fid_domain, fid_ep, fid_eq, fid_fabric, fid_mr, fid_pep};
use crate::plain::fi_msg;
use crate::roomy::{fi_cq_attr, fi_cq_err_entry, fi_eq_attr, fi_eq_err_entry};

calls! {
    /// Closes an object.
    fn fi_close(object: fid) -> c_int = ops.close;
    /// Gives an object a command.
    fn fi_control(object: fid, command: c_int, argument: *mut c_void) -> c_int = ops.control;
    /// Binds one object to another.
    fn fi_bind(object: fid, to: *mut fid, flags: u64) -> c_int = ops.bind;

    /// Opens a domain.
    fn fi_domain(fabric: fid_fabric, info: *mut fi_info, domain: *mut *mut fid_domain, context: *mut c_void) -> c_int
        = ops.domain;
    /// Opens a passive endpoint.
    fn fi_passive_ep(fabric: fid_fabric, info: *mut fi_info, pep: *mut *mut fid_pep, context: *mut c_void) -> c_int
        = ops.passive_ep;
    /// Opens an event queue; the attributes must lie in a `Roomy`.
    fn fi_eq_open(fabric: fid_fabric, attributes: *mut fi_eq_attr, eq: *mut *mut fid_eq, context: *mut c_void) -> c_int
        = ops.eq_open;
    /// Asks whether the descriptors of these queues may be waited for: 0 if so.
    fn fi_trywait(fabric: fid_fabric, objects: *mut *mut fid, count: c_int) -> c_int = ops.trywait;

    /// Opens a completion queue; the attributes must lie in a `Roomy`.
    fn fi_cq_open(domain: fid_domain, attributes: *mut fi_cq_attr, cq: *mut *mut fid_cq, context: *mut c_void) -> c_int
        = ops.cq_open;
    /// Opens an endpoint.
    fn fi_endpoint(domain: fid_domain, info: *mut fi_info, ep: *mut *mut fid_ep, context: *mut c_void) -> c_int
        = ops.endpoint;
    /// Registers memory.
    fn fi_mr_reg(
        domain: fid_domain, memory: *const c_void, len: usize, access: u64, offset: u64, requested_key: u64, flags: u64,
        mr: *mut *mut fid_mr, context: *mut c_void
    ) -> c_int = mr.reg;

    /// Reads an event.
    fn fi_eq_read(eq: fid_eq, event: *mut u32, memory: *mut c_void, len: usize, flags: u64) -> isize = ops.read;
    /// Reads the error that `fi_eq_read` announced; the entry must lie in a `Roomy`.
    fn fi_eq_readerr(eq: fid_eq, entry: *mut fi_eq_err_entry, flags: u64) -> isize = ops.readerr;

    /// Reads completions.
    fn fi_cq_read(cq: fid_cq, memory: *mut c_void, count: usize) -> isize = ops.read;
    /// Reads the error that `fi_cq_read` announced; the entry must lie in a `Roomy`.
    fn fi_cq_readerr(cq: fid_cq, entry: *mut fi_cq_err_entry, flags: u64) -> isize = ops.readerr;

    /// Starts to listen.
    fn fi_listen(pep: fid_pep) -> c_int = cm.listen;
    /// Refuses a request for a connection.
    fn fi_reject(pep: fid_pep, request: *mut fid, data: *const c_void, len: usize) -> c_int = cm.reject;
    /// The address of a passive endpoint.
    fn fi_pep_getname(pep: fid_pep, address: *mut c_void, len: *mut usize) -> c_int = cm.getname;
    /// An option of a passive endpoint.
    fn fi_pep_getopt(pep: fid_pep, level: c_int, name: c_int, value: *mut c_void, len: *mut usize) -> c_int = ops.getopt;

    /// The address of an endpoint.
    fn fi_getname(ep: fid_ep, address: *mut c_void, len: *mut usize) -> c_int = cm.getname;
    /// The address of an endpoint's peer.
    fn fi_getpeer(ep: fid_ep, address: *mut c_void, len: *mut usize) -> c_int = cm.getpeer;
    /// Asks for a connection.
    fn fi_connect(ep: fid_ep, address: *const c_void, data: *const c_void, len: usize) -> c_int = cm.connect;
    /// Accepts the request that the endpoint was opened for.
    fn fi_accept(ep: fid_ep, data: *const c_void, len: usize) -> c_int = cm.accept;
    /// Ends the connection.
    fn fi_shutdown(ep: fid_ep, flags: u64) -> c_int = cm.shutdown;
    /// An option of an endpoint.
    fn fi_getopt(ep: fid_ep, level: c_int, name: c_int, value: *mut c_void, len: *mut usize) -> c_int = ops.getopt;

    /// Posts a buffer to receive into.
    fn fi_recv(ep: fid_ep, memory: *mut c_void, len: usize, desc: *mut c_void, source: u64, context: *mut c_void) -> isize
        = msg.recv;
    /// Sends a message gathered from pieces, with flags.
    fn fi_sendmsg(ep: fid_ep, message: *const fi_msg, flags: u64) -> isize = msg.sendmsg;
    /// Sends a message whose memory may be reused at once.
    fn fi_inject(ep: fid_ep, memory: *const c_void, len: usize, target: u64) -> isize = msg.inject;
}

/// Binds an endpoint to a queue.
///
/// # Safety
/// Both must be open, and of the same fabric.
pub unsafe fn fi_ep_bind(ep: *mut fid_ep, to: *mut fid, flags: u64) -> c_int {
    // SAFETY: an endpoint begins with its head; the caller vouches for the rest.
    unsafe { fi_bind(ep.cast(), to, flags) }
}

/// Binds a passive endpoint to an event queue.
///
/// # Safety
/// Both must be open, and of the same fabric.
pub unsafe fn fi_pep_bind(pep: *mut fid_pep, to: *mut fid, flags: u64) -> c_int {
    // SAFETY: a passive endpoint begins with its head; the caller vouches for the rest.
    unsafe { fi_bind(pep.cast(), to, flags) }
}

/// Makes an endpoint usable.
///
/// # Safety
/// It must be open.
pub unsafe fn fi_enable(ep: *mut fid_ep) -> c_int {
    // SAFETY: an endpoint begins with its head; this command has no argument.
    unsafe { fi_control(ep.cast(), FI_ENABLE, ptr::null_mut()) }
}

/// What operations must be given to use this memory.
///
/// # Safety
/// The region must be open.
pub unsafe fn fi_mr_desc(mr: *mut fid_mr) -> *mut c_void {
    // SAFETY: an open region is readable.
    unsafe { (*mr).mem_desc }
}

/// The provider's text for its own code of an error: null or a C string that the next call may overwrite.
///
/// # Safety
/// The queue must be open; `data` null or the error's own data.
pub unsafe fn fi_eq_strerror(eq: *mut fid_eq, code: c_int, data: *const c_void) -> *const c_char {
    // SAFETY: the queue is open, so its head is readable.
    let ops = unsafe { (*eq).ops };
    // SAFETY: an open object's tables are readable.
    let function = unsafe { (*ops).strerror };
    match function {
        // SAFETY: no memory is given to write the text into; the caller vouches for the rest.
        Some(function) => unsafe { function(eq, code, data, ptr::null_mut(), 0) },
        None => ptr::null(),
    }
}

/// The provider's text for its own code of an error: null or a C string that the next call may overwrite.
///
/// # Safety
/// The queue must be open; `data` null or the error's own data.
pub unsafe fn fi_cq_strerror(cq: *mut fid_cq, code: c_int, data: *const c_void) -> *const c_char {
    // SAFETY: the queue is open, so its head is readable.
    let ops = unsafe { (*cq).ops };
    // SAFETY: an open object's tables are readable.
    let function = unsafe { (*ops).strerror };
    match function {
        // SAFETY: no memory is given to write the text into; the caller vouches for the rest.
        Some(function) => unsafe { function(cq, code, data, ptr::null_mut(), 0) },
        None => ptr::null(),
    }
}
