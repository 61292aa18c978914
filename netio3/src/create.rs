//! Makes a backend of the kind asked for; the one place that names the backends.

use netio3_core::{Callbacks, CreateError, EventLoop, NetworkBackend, NetworkConfig};

use crate::network_type::NetworkType;

/// Makes a backend for the loop's thread alone.
///
/// It is neither `Send` nor `Sync`, and its sends take no lock.
///
/// # Errors
/// `NotCompiledIn`, `NotAvailable`: the kind cannot be used; see [`NetworkType::availability`]. `Config`: a
/// value of the configuration makes no sense. `Io`: the operating system refused something.
pub fn create_local(
    kind: NetworkType,
    config: NetworkConfig,
    callbacks: Box<dyn Callbacks>,
    ev: &dyn EventLoop,
) -> Result<Box<dyn NetworkBackend>, CreateError> {
    kind.availability()?;
    match kind {
        #[cfg(feature = "tcp")]
        NetworkType::Tcp => netio3_asyncmsg::create_local(config, callbacks, ev),
        #[cfg(feature = "rdma")]
        NetworkType::Rdma => netio3_libfabric::create_local(config, callbacks, ev),
        NetworkType::Loopback => netio3_core::loopback::create_local(config, callbacks, ev),
        #[allow(unreachable_patterns, reason = "with all features there is nothing left")]
        _ => unreachable!("availability has refused what is not compiled in"),
    }
}

/// Makes a backend that any thread may use.
///
/// Its callbacks still run on the thread of the loop, which is the calling one. Calls from other threads never
/// wait for the loop.
///
/// # Errors
/// As [`create_local`].
pub fn create(
    kind: NetworkType,
    config: NetworkConfig,
    callbacks: Box<dyn Callbacks + Send>,
    ev: &dyn EventLoop,
) -> Result<Box<dyn NetworkBackend + Send + Sync>, CreateError> {
    kind.availability()?;
    match kind {
        #[cfg(feature = "tcp")]
        NetworkType::Tcp => netio3_asyncmsg::create(config, callbacks, ev),
        #[cfg(feature = "rdma")]
        NetworkType::Rdma => netio3_libfabric::create(config, callbacks, ev),
        NetworkType::Loopback => netio3_core::loopback::create(config, callbacks, ev),
        #[allow(unreachable_patterns, reason = "with all features there is nothing left")]
        _ => unreachable!("availability has refused what is not compiled in"),
    }
}
