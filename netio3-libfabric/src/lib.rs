//! The RDMA backend of netio3: messages over libfabric's message endpoints (`FI_EP_MSG`).
//!
//! libfabric is opened when a backend is created, so that building needs neither libfabric nor its headers, and a
//! program starts where there is none. The provider `verbs` drives RDMA hardware; `tcp` carries the same over
//! sockets, for machines without. [`fabric`] wraps libfabric in types that own what they stand for.
//!
//! Each backend has one thread of its own, `netio3-fabric`, for the calls that may block: opening devices, resolving
//! addresses, connecting, accepting and closing. Everything else is done by the loop.
#![deny(unsafe_code)]

#[allow(unsafe_code, reason = "it is what makes libfabric safe to use")]
pub mod fabric;

mod assembly;
mod devices;
mod events;
mod helper;
mod link;
mod opener;
mod packets;
mod posting;
mod receiving;
mod sending;
mod slab;
mod transport;
mod wire;

use std::sync::Arc;

use netio3_core::{Callbacks, CreateError, EventLoop, NetworkBackend, NetworkConfig, engine};

use crate::devices::Devices;
use crate::fabric::{Hints, Info, Library};
use crate::helper::Helper;
use crate::opener::FabricOpener;
use crate::transport::Rdma;

const NAME: &str = "rdma";

/// An RDMA backend for the loop's thread alone. Dropping it waits for calls of libfabric that are under way, at most 5 s.
///
/// # Errors
/// `NotAvailable`: there is no libfabric, or one that is too old; the text says what to install. `Config`: the
/// configuration is refused. `Io`: the helper thread cannot be started.
pub fn create_local(
    config: NetworkConfig,
    callbacks: Box<dyn Callbacks>,
    ev: &dyn EventLoop,
) -> Result<Box<dyn NetworkBackend>, CreateError> {
    let (transport, opener) = parts(&config, ev)?;
    engine::create_local(transport, opener, config, callbacks, ev)
}

/// An RDMA backend that any thread may call. Where it is dropped on another thread than the loop's, the loop takes it
/// down, and should have ended before the process does, since that takes libfabric away.
///
/// # Errors
/// As [`create_local`].
pub fn create(
    config: NetworkConfig,
    callbacks: Box<dyn Callbacks + Send>,
    ev: &dyn EventLoop,
) -> Result<Box<dyn NetworkBackend + Send + Sync>, CreateError> {
    let (transport, opener) = parts(&config, ev)?;
    engine::create(transport, opener, config, callbacks, ev)
}

/// Whether libfabric is there.
///
/// # Errors
/// `NotAvailable`, with what to install.
pub fn availability() -> Result<(), CreateError> {
    library().map(|_| ())
}

fn library() -> Result<Arc<Library>, CreateError> {
    Library::open().map_err(|error| CreateError::NotAvailable { backend: NAME, why: error.to_string() })
}

/// A provider whose listener ends the process (in libfabric 1.17) when a peer comes over another one.
pub(crate) const UNSAFE_PROVIDER: &str = "sockets";

/// Whether a provider is there at all, and can be used.
fn check_provider(library: &Arc<Library>, provider: &str) -> Result<(), CreateError> {
    // As libfabric compares names.
    if provider.eq_ignore_ascii_case(UNSAFE_PROVIDER) {
        let why = format!("libfabric's provider {provider:?} cannot be used: a peer over another one would end the process; take `tcp`");
        return Err(CreateError::NotAvailable { backend: NAME, why });
    }
    let found = |provider: Option<String>| library.infos(&Hints { provider, ..Hints::default() });
    match found(Some(provider.to_owned())) {
        Ok(infos) if infos.iter().any(|info| info.provider() != UNSAFE_PROVIDER) => Ok(()),
        outcome => {
            let mut there: Vec<String> = found(None).unwrap_or_default().iter().map(Info::provider).collect();
            there.sort();
            there.dedup();
            there.retain(|name| name != UNSAFE_PROVIDER);
            let (major, minor) = library.version();
            let why = outcome.err().map(|error| format!(" ({error})")).unwrap_or_default();
            let why = format!(
                "libfabric {major}.{minor} has no provider {provider:?} with message endpoints on this machine{why}; it has: {}",
                there.join(", ")
            );
            Err(CreateError::NotAvailable { backend: NAME, why })
        }
    }
}

fn parts(config: &NetworkConfig, ev: &dyn EventLoop) -> Result<(Rdma, FabricOpener), CreateError> {
    config.check()?;
    let library = library()?;
    if let Some(provider) = &config.rdma.provider {
        check_provider(&library, provider)?;
    }
    let devices = Arc::new(Devices::new(library, config.rdma.clone()));
    let started = Helper::start(devices.clone(), ev.remote());
    let (helper, done) = started.map_err(|error| CreateError::Io { backend: NAME, source: Arc::new(error) })?;
    Ok((Rdma::new(devices.clone(), helper, done), FabricOpener::new(devices)))
}
