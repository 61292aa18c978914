//! What the system's errors say.

use std::io;

use netio3_core::RefusedReason;

/// Whether the error comes from the peer or the network rather than from this machine.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    RefusedReason::of_error(error) != RefusedReason::LocalResource
}

/// Whether accepting failed for want of something that may come back.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    const ENOMEM: i32 = 12;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    const ENOBUFS: i32 = 105;
    matches!(error.raw_os_error(), Some(ENOMEM | ENFILE | EMFILE | ENOBUFS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_network_are_refusals_and_those_of_this_machine_are_not() {
        let reason_of = |errno| RefusedReason::of_error(&io::Error::from_raw_os_error(errno));
        assert_eq!(reason_of(111), RefusedReason::NoListener);
        assert_eq!(reason_of(113), RefusedReason::Unreachable);
        assert_eq!(reason_of(101), RefusedReason::Unreachable);
        assert_eq!(reason_of(110), RefusedReason::Timeout);
        assert_eq!(reason_of(99), RefusedReason::LocalResource);
        assert!(is_shortage(&io::Error::from_raw_os_error(24)));
        assert!(!is_shortage(&io::Error::from_raw_os_error(103)));
    }
}
