//! What the system's errors say.

use std::io;

use netio3_core::RefusedReason;
use nix::errno::Errno;

/// Whether the error comes from the peer or the network rather than from this machine.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    RefusedReason::of_error(error) != RefusedReason::LocalResource
}

/// Why a connection could not be made, or ended before it was. What routers and firewalls say of a peer comes as errors that
/// calls can otherwise have for a reason of this machine's: packets to it are not allowed, or it is not there.
pub(crate) fn reason_of(error: &io::Error) -> RefusedReason {
    if is_of_network(error) || errno(error) == Some(Errno::EACCES) {
        return RefusedReason::Unreachable;
    }
    RefusedReason::of_error(error)
}

/// Whether accepting failed for what became of one peer, or for a signal: the next one is as good as ever.
pub(crate) fn is_of_one_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkDown, NetworkUnreachable, TimedOut};
    let known = [ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkDown, NetworkUnreachable, TimedOut];
    is_of_network(error) || known.contains(&error.kind())
}

/// Whether accepting failed for want of something that may come back.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    matches!(errno(error), Some(Errno::ENOMEM | Errno::ENFILE | Errno::EMFILE | Errno::ENOBUFS))
}

/// Whether it is one of the network's errors for which the standard library has no kind.
fn is_of_network(error: &io::Error) -> bool {
    matches!(errno(error), Some(Errno::ENONET | Errno::EPROTO | Errno::ENOPROTOOPT | Errno::EHOSTDOWN))
}

fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
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
        assert!([4, 64, 71, 92, 100, 101, 103, 104, 110, 112, 113].into_iter().all(of_one_peer));
        assert!(![1, 9, 12, 13, 22, 23, 24, 105].into_iter().any(of_one_peer));
    }
}
