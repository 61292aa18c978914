//! Structures that callers make and that newer versions may have made longer: to be handed over in a [`Roomy`].

use core::ffi::{c_int, c_uint, c_void};

use crate::objects::fid;

/// A structure with zeroed room behind it, for what newer versions have added at its end.
///
/// To be handed over as `ptr.cast()` of a pointer to the whole.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Roomy<T> {
    /// The structure.
    pub value: T,
    room: [u64; 16],
}

impl<T> Roomy<T> {
    /// The structure, and zeros behind it.
    pub const fn new(value: T) -> Self {
        Self { value, room: [0; 16] }
    }
}

structures! {
    /// How an event queue shall be; see `fi_eq(3)`.
    struct fi_eq_attr {
        size: usize,
        flags: u64,
        wait_obj: c_uint,
        signaling_vector: c_int,
        wait_set: *mut c_void,
    }

    /// An error of an event queue; see `fi_eq(3)`.
    struct fi_eq_err_entry {
        fid: *mut fid,
        context: *mut c_void,
        data: u64,
        err: c_int,
        prov_errno: c_int,
        err_data: *mut c_void,
        err_data_size: usize,
    }

    /// How a completion queue shall be; see `fi_cq(3)`.
    struct fi_cq_attr {
        size: usize,
        flags: u64,
        format: c_uint,
        wait_obj: c_uint,
        signaling_vector: c_int,
        wait_cond: c_uint,
        wait_set: *mut c_void,
    }

    /// An error completion; see `fi_cq(3)`. Longer in newer versions.
    struct fi_cq_err_entry {
        op_context: *mut c_void,
        flags: u64,
        len: usize,
        buf: *mut c_void,
        data: u64,
        tag: u64,
        olen: usize,
        err: c_int,
        prov_errno: c_int,
        err_data: *mut c_void,
        err_data_size: usize,
    }
}
