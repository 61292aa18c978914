//! Makes a backend of the kind asked for; the one place that names the backends.

use netio3_core::{Callbacks, CreateError, EventLoop, NetworkBackend, NetworkConfig};

use crate::network_type::NetworkType;

/// Makes a backend for the loop's thread alone.
///
/// It is neither `Send` nor `Sync`, and its sends take no lock.
///
/// # Errors
/// `NotCompiledIn`, `NotAvailable`: the kind cannot be used; see [`NetworkType::availability`]. The first backend over RDMA,
/// and its first listener, take some tenths of a second, in which libfabric looks for devices. `Config`: a
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
/// Its callbacks still run on the thread of the loop, which is the calling one. Calls from other threads do not
/// wait for the loop, but for dropping the backend, which waits until the loop is outside it: so it is not to be dropped
/// with a lock held that a callback takes, nor by a thread that a callback waits for.
///
/// The loop may tell of what a call has led to before it returns: see [`Callbacks`].
///
/// A thread whose message was refused with `NoResources` waits for [`on_writable`](Callbacks::on_writable), which the loop's
/// thread has to pass on to it. One *writable* answers the refusals of all threads on that connection, and may be told before
/// the refused thread begins to wait: count them under a lock or in an atomic, read the count before each attempt, and
/// wait until it has changed, as the example `threads` does.
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
