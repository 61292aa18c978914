//! Structures that the library makes, and their tables of functions.

use core::ffi::{c_char, c_int, c_uint, c_void};

use crate::plain::fi_msg;
use crate::roomy::{fi_cq_attr, fi_cq_err_entry, fi_eq_attr, fi_eq_err_entry};

/// A function that these bindings never call.
pub type Unused = Option<unsafe extern "C" fn()>;

structures! {
    /// The head of every object.
    struct fid {
        fclass: usize,
        context: *mut c_void,
        ops: *mut fi_ops,
    }

    /// The functions of every object.
    struct fi_ops {
        size: usize,
        close: Option<unsafe extern "C" fn(*mut fid) -> c_int>,
        bind: Option<unsafe extern "C" fn(*mut fid, *mut fid, u64) -> c_int>,
        control: Option<unsafe extern "C" fn(*mut fid, c_int, *mut c_void) -> c_int>,
        ops_open: Unused,
        tostr: Unused,
        ops_set: Unused,
    }

    /// Transmit attributes; see `fi_endpoint(3)`.
    struct fi_tx_attr {
        caps: u64,
        mode: u64,
        op_flags: u64,
        msg_order: u64,
        comp_order: u64,
        inject_size: usize,
        size: usize,
        iov_limit: usize,
        rma_iov_limit: usize,
        tclass: u32,
    }

    /// Receive attributes; see `fi_endpoint(3)`.
    struct fi_rx_attr {
        caps: u64,
        mode: u64,
        op_flags: u64,
        msg_order: u64,
        comp_order: u64,
        total_buffered_recv: usize,
        size: usize,
        iov_limit: usize,
    }

    /// Endpoint attributes; see `fi_endpoint(3)`.
    struct fi_ep_attr {
        r#type: c_uint,
        protocol: u32,
        protocol_version: u32,
        max_msg_size: usize,
        msg_prefix_size: usize,
        max_order_raw_size: usize,
        max_order_war_size: usize,
        max_order_waw_size: usize,
        mem_tag_format: u64,
        tx_ctx_cnt: usize,
        rx_ctx_cnt: usize,
        auth_key_size: usize,
        auth_key: *mut u8,
    }

    /// Domain attributes; see `fi_domain(3)`. Longer in newer versions.
    struct fi_domain_attr {
        domain: *mut fid_domain,
        name: *mut c_char,
        threading: c_uint,
        control_progress: c_uint,
        data_progress: c_uint,
        resource_mgmt: c_uint,
        av_type: c_uint,
        mr_mode: c_int,
        mr_key_size: usize,
        cq_data_size: usize,
        cq_cnt: usize,
        ep_cnt: usize,
        tx_ctx_cnt: usize,
        rx_ctx_cnt: usize,
        max_ep_tx_ctx: usize,
        max_ep_rx_ctx: usize,
        max_ep_stx_ctx: usize,
        max_ep_srx_ctx: usize,
        cntr_cnt: usize,
        mr_iov_limit: usize,
        caps: u64,
        mode: u64,
        auth_key: *mut u8,
        auth_key_size: usize,
        max_err_data: usize,
        mr_cnt: usize,
        tclass: u32,
    }

    /// Fabric attributes; see `fi_fabric(3)`.
    struct fi_fabric_attr {
        fabric: *mut fid_fabric,
        name: *mut c_char,
        prov_name: *mut c_char,
        prov_version: u32,
        api_version: u32,
    }

    /// What `fi_getinfo` found, or what is asked of it; see `fi_getinfo(3)`.
    struct fi_info {
        next: *mut fi_info,
        caps: u64,
        mode: u64,
        addr_format: u32,
        src_addrlen: usize,
        dest_addrlen: usize,
        src_addr: *mut c_void,
        dest_addr: *mut c_void,
        handle: *mut fid,
        tx_attr: *mut fi_tx_attr,
        rx_attr: *mut fi_rx_attr,
        ep_attr: *mut fi_ep_attr,
        domain_attr: *mut fi_domain_attr,
        fabric_attr: *mut fi_fabric_attr,
        nic: *mut fid_nic,
    }

    /// A device's names; see `fi_nic(3)`.
    struct fi_device_attr {
        name: *mut c_char,
        device_id: *mut c_char,
        device_version: *mut c_char,
        vendor_id: *mut c_char,
        driver: *mut c_char,
        firmware: *mut c_char,
    }

    /// A link; see `fi_nic(3)`.
    struct fi_link_attr {
        address: *mut c_char,
        mtu: usize,
        speed: usize,
        state: c_uint,
        network_type: *mut c_char,
    }

    /// A network device; see `fi_nic(3)`.
    struct fid_nic {
        fid: fid,
        device_attr: *mut fi_device_attr,
        bus_attr: *mut c_void,
        link_attr: *mut fi_link_attr,
        prov_attr: *mut c_void,
    }

    /// The functions of a fabric; see `fi_fabric(3)`. Longer in newer versions.
    struct fi_ops_fabric {
        size: usize,
        domain: Option<unsafe extern "C" fn(*mut fid_fabric, *mut fi_info, *mut *mut fid_domain, *mut c_void) -> c_int>,
        passive_ep: Option<unsafe extern "C" fn(*mut fid_fabric, *mut fi_info, *mut *mut fid_pep, *mut c_void) -> c_int>,
        eq_open: Option<unsafe extern "C" fn(*mut fid_fabric, *mut fi_eq_attr, *mut *mut fid_eq, *mut c_void) -> c_int>,
        wait_open: Unused,
        trywait: Option<unsafe extern "C" fn(*mut fid_fabric, *mut *mut fid, c_int) -> c_int>,
    }

    /// A fabric.
    struct fid_fabric {
        fid: fid,
        ops: *mut fi_ops_fabric,
        api_version: u32,
    }

    /// The functions of a domain; see `fi_domain(3)`. Longer in newer versions.
    struct fi_ops_domain {
        size: usize,
        av_open: Unused,
        cq_open: Option<unsafe extern "C" fn(*mut fid_domain, *mut fi_cq_attr, *mut *mut fid_cq, *mut c_void) -> c_int>,
        endpoint: Option<unsafe extern "C" fn(*mut fid_domain, *mut fi_info, *mut *mut fid_ep, *mut c_void) -> c_int>,
        scalable_ep: Unused,
        cntr_open: Unused,
        poll_open: Unused,
        stx_ctx: Unused,
        srx_ctx: Unused,
        query_atomic: Unused,
        query_collective: Unused,
    }

    /// A domain's functions for memory; see `fi_mr(3)`.
    struct fi_ops_mr {
        size: usize,
        reg: Option<
            unsafe extern "C" fn(*mut fid, *const c_void, usize, u64, u64, u64, u64, *mut *mut fid_mr, *mut c_void) -> c_int,
        >,
        regv: Unused,
        regattr: Unused,
    }

    /// A domain.
    struct fid_domain {
        fid: fid,
        ops: *mut fi_ops_domain,
        mr: *mut fi_ops_mr,
    }

    /// A memory region.
    struct fid_mr {
        fid: fid,
        mem_desc: *mut c_void,
        key: u64,
    }

    /// The functions of an event queue; see `fi_eq(3)`.
    struct fi_ops_eq {
        size: usize,
        read: Option<unsafe extern "C" fn(*mut fid_eq, *mut u32, *mut c_void, usize, u64) -> isize>,
        readerr: Option<unsafe extern "C" fn(*mut fid_eq, *mut fi_eq_err_entry, u64) -> isize>,
        write: Unused,
        sread: Unused,
        strerror: Option<unsafe extern "C" fn(*mut fid_eq, c_int, *const c_void, *mut c_char, usize) -> *const c_char>,
    }

    /// An event queue.
    struct fid_eq {
        fid: fid,
        ops: *mut fi_ops_eq,
    }

    /// The functions of a completion queue; see `fi_cq(3)`.
    struct fi_ops_cq {
        size: usize,
        read: Option<unsafe extern "C" fn(*mut fid_cq, *mut c_void, usize) -> isize>,
        readfrom: Unused,
        readerr: Option<unsafe extern "C" fn(*mut fid_cq, *mut fi_cq_err_entry, u64) -> isize>,
        sread: Unused,
        sreadfrom: Unused,
        signal: Unused,
        strerror: Option<unsafe extern "C" fn(*mut fid_cq, c_int, *const c_void, *mut c_char, usize) -> *const c_char>,
    }

    /// A completion queue.
    struct fid_cq {
        fid: fid,
        ops: *mut fi_ops_cq,
    }

    /// The functions of an endpoint; see `fi_endpoint(3)`.
    struct fi_ops_ep {
        size: usize,
        cancel: Unused,
        getopt: Option<unsafe extern "C" fn(*mut fid, c_int, c_int, *mut c_void, *mut usize) -> c_int>,
        setopt: Unused,
        tx_ctx: Unused,
        rx_ctx: Unused,
        rx_size_left: Unused,
        tx_size_left: Unused,
    }

    /// An endpoint's functions for connections; see `fi_cm(3)`.
    struct fi_ops_cm {
        size: usize,
        setname: Unused,
        getname: Option<unsafe extern "C" fn(*mut fid, *mut c_void, *mut usize) -> c_int>,
        getpeer: Option<unsafe extern "C" fn(*mut fid_ep, *mut c_void, *mut usize) -> c_int>,
        connect: Option<unsafe extern "C" fn(*mut fid_ep, *const c_void, *const c_void, usize) -> c_int>,
        listen: Option<unsafe extern "C" fn(*mut fid_pep) -> c_int>,
        accept: Option<unsafe extern "C" fn(*mut fid_ep, *const c_void, usize) -> c_int>,
        reject: Option<unsafe extern "C" fn(*mut fid_pep, *mut fid, *const c_void, usize) -> c_int>,
        shutdown: Option<unsafe extern "C" fn(*mut fid_ep, u64) -> c_int>,
        join: Unused,
    }

    /// An endpoint's functions for messages; see `fi_msg(3)`.
    struct fi_ops_msg {
        size: usize,
        recv: Option<unsafe extern "C" fn(*mut fid_ep, *mut c_void, usize, *mut c_void, u64, *mut c_void) -> isize>,
        recvv: Unused,
        recvmsg: Unused,
        send: Unused,
        sendv: Unused,
        sendmsg: Option<unsafe extern "C" fn(*mut fid_ep, *const fi_msg, u64) -> isize>,
        inject: Option<unsafe extern "C" fn(*mut fid_ep, *const c_void, usize, u64) -> isize>,
        senddata: Unused,
        injectdata: Unused,
    }

    /// An endpoint.
    struct fid_ep {
        fid: fid,
        ops: *mut fi_ops_ep,
        cm: *mut fi_ops_cm,
        msg: *mut fi_ops_msg,
        rma: *mut c_void,
        tagged: *mut c_void,
        atomic: *mut c_void,
        collective: *mut c_void,
    }

    /// A passive endpoint.
    struct fid_pep {
        fid: fid,
        ops: *mut fi_ops_ep,
        cm: *mut fi_ops_cm,
    }
}
