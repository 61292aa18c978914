//! Structures that callers make and that have the same size in all versions.

use core::ffi::{c_int, c_void};

use crate::objects::{fi_info, fid};

structures! {
    /// A piece of memory; the C library's, see `readv(2)`.
    struct iovec {
        iov_base: *mut c_void,
        iov_len: usize,
    }

    /// A message to send or a buffer to receive into; see `fi_msg(3)`.
    struct fi_msg {
        msg_iov: *const iovec,
        desc: *mut *mut c_void,
        iov_count: usize,
        addr: u64,
        context: *mut c_void,
        data: u64,
    }

    /// The head of a connection event; the private data follow it directly. See `fi_eq(3)`.
    struct fi_eq_cm_entry {
        fid: *mut fid,
        info: *mut fi_info,
    }

    /// A completion in the format `FI_CQ_FORMAT_MSG`; see `fi_cq(3)`.
    struct fi_cq_msg_entry {
        op_context: *mut c_void,
        flags: u64,
        len: usize,
    }

    /// A memory monitor of the program's own, to be imported by an object that `fi_open` made; see `fi_mr(3)`.
    struct fid_mem_monitor {
        fid: fid,
        export_ops: *mut fi_ops_mem_monitor,
        import_ops: *mut c_void,
    }

    /// Its functions.
    struct fi_ops_mem_monitor {
        size: usize,
        start: unsafe extern "C" fn(*mut fid_mem_monitor) -> c_int,
        stop: unsafe extern "C" fn(*mut fid_mem_monitor),
        subscribe: unsafe extern "C" fn(*mut fid_mem_monitor, *const c_void, usize) -> c_int,
        unsubscribe: unsafe extern "C" fn(*mut fid_mem_monitor, *const c_void, usize),
        valid: unsafe extern "C" fn(*mut fid_mem_monitor, *const c_void, usize) -> bool,
    }
}
