//! What the system's errors say.

use std::io;

use netio3_core::RefusedReason;

/// Whether the error comes from the peer or the network rather than from this machine.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    RefusedReason::of_error(error) != RefusedReason::LocalResource
}

/// Why a connection could not be made, or ended before it was. What routers and firewalls say of a peer comes as errors that
/// calls can otherwise have for a reason of this machine's: packets to it are not allowed, or it is not there.
pub(crate) fn reason_of(error: &io::Error) -> RefusedReason {
    const EACCES: i32 = 13;
    const ENONET: i32 = 64;
    const EPROTO: i32 = 71;
    const ENOPROTOOPT: i32 = 92;
    const EHOSTDOWN: i32 = 112;
    match error.raw_os_error() {
        Some(EACCES | ENONET | EPROTO | ENOPROTOOPT | EHOSTDOWN) => RefusedReason::Unreachable,
        _ => RefusedReason::of_error(error),
    }
}

/// Whether accepting failed for what became of one peer, or for a signal: the next one is as good as ever.
pub(crate) fn is_of_one_peer(error: &io::Error) -> bool {
    const EPROTO: i32 = 71;
    match error.kind() {
        io::ErrorKind::Interrupted
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown
        | io::ErrorKind::TimedOut => true,
        _ => error.raw_os_error() == Some(EPROTO),
    }
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

    #[test]
    fn what_routers_and_firewalls_say_is_not_of_this_machine() {
        let reason_of = |errno| reason_of(&io::Error::from_raw_os_error(errno));
        // Of ICMPv6 "administratively prohibited", with which firewalls reject, and of ICMP "protocol unreachable" and others.
        for errno in [13, 64, 71, 92, 112, 113] {
            assert_eq!(reason_of(errno), RefusedReason::Unreachable, "{errno}");
        }
        assert_eq!(reason_of(1), RefusedReason::LocalResource);
        assert_eq!(reason_of(24), RefusedReason::LocalResource);
    }

    #[test]
    fn only_what_becomes_of_one_peer_lets_accepting_go_on_at_once() {
        let of_one_peer = |errno| is_of_one_peer(&io::Error::from_raw_os_error(errno));
        assert!([4, 71, 100, 101, 103, 104, 110, 113].into_iter().all(of_one_peer));
        assert!(![1, 9, 12, 13, 22, 23, 24, 105].into_iter().any(of_one_peer));
    }
}
