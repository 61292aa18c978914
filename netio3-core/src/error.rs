//! One error type per family of calls.
//!
//! Every error is cheap to clone and names what was wrong, where, and what to do about it. An
//! operating-system or provider error is kept as the source.

use std::io;
use std::sync::Arc;

use thiserror::Error;

use crate::address::EndPointAddress;
use crate::endpoint::Endpoint;
use crate::memory::RegionId;

/// A text is not an endpoint address.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum AddressError {
    /// The text has not the form `1.2.3.4:port`, `[::1]:port` or `[fe80::1%interface]:port`.
    #[error("{text:?} is not an address; write IP:PORT, or look the host name up first")]
    NotAnAddress {
        /// The text.
        text: String,
    },
    /// The scope names no interface of this machine.
    #[error("no network interface is called {name:?}; `ip link` lists them")]
    UnknownInterface {
        /// The name after the `%`.
        name: String,
    },
}

/// A host name could not be looked up.
#[derive(Clone, Debug, Error)]
#[error("cannot look up {name:?}; it must be HOST:PORT, with a host the resolver knows and a port up to 65535")]
pub struct LookupError {
    /// What was asked for.
    pub name: String,
    /// The resolver's answer.
    #[source]
    pub source: Arc<io::Error>,
}

/// `open_send_endpoint` or `connect` failed at once.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum OpenSendError {
    /// Nobody can be reached under such an address.
    #[error("cannot connect to {address}: {why}")]
    InvalidEndpointAddress {
        /// The address.
        address: EndPointAddress,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A connection already owns this address; use `connect` for a further one.
    #[error("a send endpoint for {address} is open already; `connect` opens a further one")]
    SendEndpointAlreadyExists {
        /// The address.
        address: EndPointAddress,
    },
    /// The connection could not even be started.
    #[error("cannot start a connection to {address}{}", remedy(.source, false))]
    FailedOpenSendEndpoint {
        /// The address.
        address: EndPointAddress,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
}

/// `open_listen_endpoint` failed.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum OpenListenError {
    /// Nobody can listen on such an address.
    #[error("cannot listen on {address}: {why}")]
    InvalidEndpointAddress {
        /// The address.
        address: EndPointAddress,
        /// What is wrong with it.
        why: &'static str,
    },
    /// This backend listens there already.
    #[error("this backend listens on {address} already")]
    ListenEndpointAlreadyExists {
        /// The address.
        address: EndPointAddress,
    },
    /// The address is in use, not of this machine, or not permitted.
    #[error("cannot listen on {address}{}", remedy(.source, true))]
    FailedOpenListenEndpoint {
        /// The address.
        address: EndPointAddress,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
}

/// What to do about an error of the operating system's that does not say so itself.
fn remedy(cause: &io::Error, is_listening: bool) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EADDRNOTAVAIL) if is_listening => " (no interface of this machine has that address)",
        Some(libc::EADDRNOTAVAIL) => {
            " (no local address to connect from, as where IPv6 is off, or all its ports are taken, see net.ipv4.ip_local_port_range)"
        }
        Some(libc::EADDRINUSE) if is_listening => " (take another port, or 0 for any; `ss -ltnp` tells who has it)",
        Some(libc::EACCES) if is_listening => " (ports below 1024 need CAP_NET_BIND_SERVICE)",
        _ => descriptors_remedy(cause),
    }
}

/// What to do where there are no more descriptors.
pub(crate) fn descriptors_remedy(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EMFILE) => " (raise the limit of open files, `ulimit -n`)",
        Some(libc::ENFILE) => " (raise the system's limit of open files, fs.file-max)",
        _ => "",
    }
}

/// What a call named that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// A handle.
    Endpoint(Endpoint),
    /// An address.
    Address(EndPointAddress),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Endpoint(endpoint) => endpoint.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl From<Endpoint> for Target {
    fn from(endpoint: Endpoint) -> Self {
        Self::Endpoint(endpoint)
    }
}

impl From<EndPointAddress> for Target {
    fn from(address: EndPointAddress) -> Self {
        Self::Address(address)
    }
}

/// A call named a connection that this backend does not have.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// Never opened, refused, or closed; its *closed* has been delivered.
    #[error("no connection {0}: never opened, or closed since")]
    UnknownSendEndpoint(Target),
}

/// `close_send_endpoint`, `close` or `abort` failed.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum CloseSendError {
    /// There is no such connection.
    #[error("no connection {0}: never opened, or closed since")]
    UnknownSendEndpoint(Target),
    /// The connection could not be closed in an orderly way; `abort` it.
    #[error("cannot close connection {target}; abort it")]
    FailedCloseSendEndpoint {
        /// The connection.
        target: Target,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
}

/// `close_listen_endpoint` failed.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum CloseListenError {
    /// This backend does not listen there.
    #[error("this backend does not listen on {address}")]
    UnknownListenEndpoint {
        /// The address.
        address: EndPointAddress,
    },
    /// The listener could not be closed.
    #[error("cannot stop listening on {address}")]
    FailedCloseListenEndpoint {
        /// The address.
        address: EndPointAddress,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
}

/// A call about the buffers of a connection failed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BufferError {
    /// There is no such connection.
    #[error("no connection {0}: never opened, or closed since")]
    UnknownSendEndpoint(Target),
    /// The connection was opened without buffers.
    #[error("connection {0} has no buffers; set `ConnectionParameters::buffers` when opening it")]
    NoBuffersAllocated(Target),
}

impl From<SendError> for BufferError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::UnknownSendEndpoint(target) => Self::UnknownSendEndpoint(target),
        }
    }
}

/// Memory could not be registered.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// As many regions as allowed are registered; deregister one, or use fewer and larger ones.
    #[error("{limit} memory regions are registered, which is the limit; use fewer, larger ones")]
    TooManyRegions {
        /// The limit.
        limit: usize,
    },
    /// The locked-memory limit is too small; raise it with `ulimit -l` or in limits.conf.
    #[error("cannot pin {wanted} bytes: the locked-memory limit is {limit} bytes; raise `ulimit -l`")]
    Memlock {
        /// Bytes to be pinned.
        wanted: u64,
        /// Bytes that may be locked in all.
        limit: u64,
    },
    /// The device cannot reach this memory.
    #[error("this memory cannot be pinned")]
    CannotPin {
        /// The provider's answer.
        #[source]
        source: Arc<io::Error>,
    },
    /// The backend has ended by a panic or by its loop being dropped.
    #[error("the backend has ended")]
    BackendGone,
}

/// Memory could not be deregistered.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeregisterError {
    /// There is no such region.
    #[error("memory region {0} is not registered")]
    Unknown(RegionId),
    /// Accepted sends still use it; try again after their completions.
    #[error("memory region {0} is in use by sends; try again after their completions")]
    Busy(RegionId),
}

/// A backend could not be created.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The backend is not part of this program; build it with the feature named.
    #[error("the {backend} backend is not compiled in; build with `--features {feature}`")]
    NotCompiledIn {
        /// The backend.
        backend: &'static str,
        /// The feature that brings it.
        feature: &'static str,
    },
    /// The backend cannot be used on this machine; the text says what to do.
    #[error("the {backend} backend is not available here: {why}")]
    NotAvailable {
        /// The backend.
        backend: &'static str,
        /// What is missing and how to get it.
        why: String,
    },
    /// A value of the configuration makes no sense.
    #[error("configuration: {field} {why}")]
    Config {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The operating system refused something the backend needs.
    #[error("cannot set the {backend} backend up")]
    Io {
        /// The backend.
        backend: &'static str,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
}

/// The event loop could not run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// `run*` was called from inside a callback of the same loop.
    #[error("the loop is running already: run, run_for, run_until and run_once cannot be nested")]
    Nested,
    /// Waiting for events failed.
    #[error("cannot wait for events")]
    Wait(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_what_where_and_the_remedy() {
        let error = OpenSendError::SendEndpointAlreadyExists { address: EndPointAddress::localhost(7) };
        assert_eq!(error.to_string(), "a send endpoint for 127.0.0.1:7 is open already; `connect` opens a further one");
        let error = CreateError::NotCompiledIn { backend: "rdma", feature: "rdma" };
        assert!(error.to_string().contains("--features rdma"));
        let address = EndPointAddress::localhost(7);
        let system = |errno| Arc::new(io::Error::from_raw_os_error(errno));
        let open = |errno| OpenSendError::FailedOpenSendEndpoint { address, source: system(errno) }.to_string();
        let listen = |errno| OpenListenError::FailedOpenListenEndpoint { address, source: system(errno) }.to_string();
        assert_eq!(open(libc::EMFILE), "cannot start a connection to 127.0.0.1:7 (raise the limit of open files, `ulimit -n`)");
        assert_eq!(open(libc::ENETUNREACH), "cannot start a connection to 127.0.0.1:7");
        assert!(open(libc::EADDRNOTAVAIL).contains("ip_local_port_range"));
        assert_eq!(listen(libc::EADDRNOTAVAIL), "cannot listen on 127.0.0.1:7 (no interface of this machine has that address)");
        assert!(listen(libc::EADDRINUSE).contains("another port"));
    }
}
