//! Which backend to use.

use std::fmt;
use std::str::FromStr;

use netio3_core::CreateError;
use thiserror::Error;

/// The backends, chosen at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NetworkType {
    /// Messages over TCP, on any Linux machine; the original's `ASYNCMSG`. Feature `tcp`.
    Tcp,
    /// Messages over RDMA, where there is libfabric; the original's `LIBFABRIC`. Feature `rdma`.
    Rdma,
    /// Messages within one process, for tests and for programs that talk to themselves. Always there.
    Loopback,
}

impl NetworkType {
    /// All of them, whether they can be used here or not.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Rdma, Self::Loopback];

    /// The name, as [`FromStr`] takes it and [`Display`](fmt::Display) gives it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Rdma => "rdma",
            Self::Loopback => "loopback",
        }
    }

    /// Whether this program contains the backend.
    pub const fn is_compiled_in(self) -> bool {
        match self {
            Self::Tcp => cfg!(feature = "tcp"),
            Self::Rdma => cfg!(feature = "rdma"),
            Self::Loopback => true,
        }
    }

    /// Whether the backend can be used in this program on this machine.
    ///
    /// # Errors
    /// [`CreateError::NotCompiledIn`] names the feature to build with; [`CreateError::NotAvailable`] says
    /// what is missing on this machine and how to get it.
    pub fn availability(self) -> Result<(), CreateError> {
        #[cfg(feature = "rdma")]
        if self == Self::Rdma {
            return netio3_libfabric::availability();
        }
        if self.is_compiled_in() {
            return Ok(());
        }
        // The features are named like the backends they bring.
        Err(CreateError::NotCompiledIn { backend: self.name(), feature: self.name() })
    }
}

impl fmt::Display for NetworkType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A text names no backend.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("there is no backend {text:?}; there are tcp, rdma and loopback")]
pub struct UnknownNetworkType {
    /// The text.
    pub text: String,
}

impl FromStr for NetworkType {
    type Err = UnknownNetworkType;

    /// Takes the names in any case, and the original's `ASYNCMSG` and `LIBFABRIC`.
    fn from_str(text: &str) -> Result<Self, UnknownNetworkType> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" | "asyncmsg" => Ok(Self::Tcp),
            "rdma" | "libfabric" => Ok(Self::Rdma),
            "loopback" => Ok(Self::Loopback),
            _ => Err(UnknownNetworkType { text: text.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_understood_again() {
        for kind in NetworkType::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert_eq!("ASYNCMSG".parse(), Ok(NetworkType::Tcp));
        assert_eq!("Libfabric".parse(), Ok(NetworkType::Rdma));
        let error = "carrier-pigeon".parse::<NetworkType>().unwrap_err();
        assert!(error.to_string().contains("carrier-pigeon"));
    }

    #[test]
    fn what_is_not_compiled_in_names_its_feature() {
        for kind in NetworkType::ALL {
            match kind.availability() {
                Ok(()) => assert!(kind.is_compiled_in()),
                Err(CreateError::NotCompiledIn { feature, .. }) => assert_eq!((feature, kind.is_compiled_in()), (kind.name(), false)),
                Err(other) => assert!(kind.is_compiled_in(), "{other}"),
            }
        }
        assert!(NetworkType::Loopback.availability().is_ok());
    }
}
