//! Errors of libfabric's calls.

use std::io;

use libfabric_sys as sys;

/// A call of libfabric failed, or an event reported the failure of what it had started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {text}")]
pub struct FabricError {
    /// The call, by libfabric's name.
    pub call: &'static str,
    /// The positive code: an errno, or from 256 on one of libfabric's own (`fi_errno(3)`).
    pub code: i32,
    /// libfabric's text for the code, and the provider's name and text where they are known.
    pub text: String,
}

impl FabricError {
    /// A refusal by these wrappers, of what providers would not notice.
    pub(crate) fn refused(call: &'static str, code: i32, text: impl Into<String>) -> Self {
        Self { call, code, text: text.into() }
    }

    /// The kind that the standard library gives the code.
    pub fn kind(&self) -> io::ErrorKind {
        match self.code {
            sys::FI_ETOOSMALL | sys::FI_EOPBADSTATE | sys::FI_EBADFLAGS | sys::FI_ENOEQ | sys::FI_EDOMAIN | sys::FI_ENOCQ => {
                io::ErrorKind::InvalidInput
            }
            sys::FI_ECRC | sys::FI_ETRUNC => io::ErrorKind::InvalidData,
            code if code >= sys::FI_EOTHER => io::ErrorKind::Other,
            code => io::Error::from_raw_os_error(code).kind(),
        }
    }
}

impl From<FabricError> for io::Error {
    /// The error's text and type stay inside; the kind is [`FabricError::kind`].
    fn from(error: FabricError) -> Self {
        Self::new(error.kind(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converts_with_kind_and_text() {
        let error = FabricError { call: "fi_connect", code: 111, text: "Connection refused (provider tcp)".into() };
        let io = io::Error::from(error.clone());
        assert_eq!(io.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(io.to_string(), "fi_connect: Connection refused (provider tcp)");
        assert_eq!(io.get_ref().and_then(|inner| inner.downcast_ref()), Some(&error));
    }

    #[test]
    fn own_codes_have_kinds() {
        let kind = |code| FabricError { call: "fi_cq_read", code, text: String::new() }.kind();
        assert_eq!(kind(sys::FI_ETRUNC), io::ErrorKind::InvalidData);
        assert_eq!(kind(sys::FI_ENOEQ), io::ErrorKind::InvalidInput);
        assert_eq!(kind(sys::FI_EOVERRUN), io::ErrorKind::Other);
        assert_eq!(kind(sys::FI_ETIMEDOUT), io::ErrorKind::TimedOut);
    }
}
