//! Constants.

use core::ffi::{c_int, c_uint};

/// The version of the interface to ask for: 1.14, the oldest that is served.
pub const API_VERSION: u32 = fi_version_of(1, 14);

/// A version as `fi_getinfo` and `fi_version` write it.
pub const fn fi_version_of(major: u32, minor: u32) -> u32 {
    major << 16 | minor
}

/// The major part of a version.
pub const fn fi_major(version: u32) -> u32 {
    version >> 16
}

/// The minor part of a version.
pub const fn fi_minor(version: u32) -> u32 {
    version & 0xFFFF
}

/// Any source or destination, which is all that a connected endpoint needs.
pub const FI_ADDR_UNSPEC: u64 = u64::MAX;

constants! {
    /// A capability, operation or completion flag; see `fi_getinfo(3)`, `fi_msg(3)`, `fi_cq(3)`.
    u64 {
        FI_MSG = 1 << 1,
        FI_RECV = 1 << 10,
        FI_SEND = 1 << 11,
        FI_TRANSMIT = FI_SEND,
        FI_MORE = 1 << 18,
        FI_COMPLETION = 1 << 24,
        FI_NUMERICHOST = 1 << 55,
        FI_SOURCE = 1 << 57,
        FI_SELECTIVE_COMPLETION = 1 << 59,
    }

    /// A mode bit: what a provider asks of the program; see `fi_getinfo(3)`.
    u64 {
        FI_RX_CQ_DATA = 1 << 56,
        FI_LOCAL_MR = 1 << 55,
    }

    /// A bit of `mr_mode`: what registered memory must be; see `fi_mr(3)`.
    c_int {
        FI_MR_LOCAL = 1 << 2,
        FI_MR_VIRT_ADDR = 1 << 4,
        FI_MR_ALLOCATED = 1 << 5,
        FI_MR_PROV_KEY = 1 << 6,
    }

    /// What an object is.
    usize {
        FI_CLASS_MEM_MONITOR = 23,
    }

    /// A format of addresses; see `fi_getinfo(3)`.
    u32 {
        FI_FORMAT_UNSPEC = 0,
        FI_SOCKADDR = 1,
        FI_SOCKADDR_IN = 2,
        FI_SOCKADDR_IN6 = 3,
        FI_SOCKADDR_IB = 4,
    }

    /// A kind of endpoint; see `fi_endpoint(3)`.
    c_uint {
        FI_EP_MSG = 1,
    }

    /// Who may call from which thread; see `fi_domain(3)`.
    c_uint {
        FI_THREAD_SAFE = 1,
    }

    /// Who drives transfers on; see `fi_domain(3)`.
    c_uint {
        FI_PROGRESS_MANUAL = 2,
    }

    /// A protocol on the wire; see `fi_endpoint(3)`.
    u32 {
        FI_PROTO_UNSPEC = 0,
        FI_PROTO_RDMA_CM_IB_RC = 1,
        FI_PROTO_IWARP = 2,
        FI_PROTO_SOCK_TCP = 6,
    }

    /// What a queue is waited for with; see `fi_eq(3)`.
    c_uint {
        FI_WAIT_FD = 3,
    }

    /// A format of completions; see `fi_cq(3)`.
    c_uint {
        FI_CQ_FORMAT_MSG = 2,
    }

    /// An event; see `fi_eq(3)`.
    u32 {
        FI_CONNREQ = 1,
        FI_CONNECTED = 2,
        FI_SHUTDOWN = 3,
    }

    /// The state of a link; see `fi_nic(3)`.
    c_uint {
        FI_LINK_UNKNOWN = 0,
        FI_LINK_DOWN = 1,
        FI_LINK_UP = 2,
    }

    /// A command of `fi_control`; see `fi_control(3)`.
    c_int {
        FI_GETWAIT = 5,
        FI_ENABLE = 6,
    }

    /// A level or name of an endpoint's option; see `fi_endpoint(3)`.
    c_int {
        FI_OPT_ENDPOINT = 0,
        FI_OPT_CM_DATA_SIZE = 1,
    }

    /// A code of an error; see `fi_errno(3)`.
    c_int {
        FI_EAGAIN = 11,
        FI_ENOMEM = 12,
        FI_EINVAL = 22,
        FI_ENOSYS = 38,
        FI_ENODATA = 61,
        FI_EMSGSIZE = 90,
        FI_EADDRINUSE = 98,
        FI_ETIMEDOUT = 110,
        FI_ECONNREFUSED = 111,
        FI_ECANCELED = 125,
        FI_EOTHER = 256,
        FI_ETOOSMALL = 257,
        FI_EOPBADSTATE = 258,
        FI_EAVAIL = 259,
        FI_EBADFLAGS = 260,
        FI_ENOEQ = 261,
        FI_EDOMAIN = 262,
        FI_ENOCQ = 263,
        FI_ECRC = 264,
        FI_ETRUNC = 265,
        FI_EOVERRUN = 268,
    }
}
