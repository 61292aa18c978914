//! Socket addresses as C has them.

use std::ffi::c_void;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// A socket address in C's form.
pub(super) enum RawAddress {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl RawAddress {
    pub(super) fn new(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(v4) => Self::V4(libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(v6) => Self::V6(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            }),
        }
    }

    /// How many bytes it has.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::V4(v4) => mem::size_of_val(v4),
            Self::V6(v6) => mem::size_of_val(v6),
        }
    }

    pub(super) fn as_ptr(&self) -> *const c_void {
        match self {
            Self::V4(v4) => std::ptr::from_ref(v4).cast(),
            Self::V6(v6) => std::ptr::from_ref(v6).cast(),
        }
    }
}

/// Reads a socket address; none if it is null, too short or not of the internet.
///
/// # Safety
/// `start` must be null or have `len` readable bytes.
pub(super) unsafe fn read(start: *const c_void, len: usize) -> Option<SocketAddr> {
    if start.is_null() || len < mem::size_of::<libc::sa_family_t>() {
        return None;
    }
    // SAFETY: the family comes first, and that many bytes are there.
    let family = unsafe { start.cast::<libc::sa_family_t>().read_unaligned() };
    match i32::from(family) {
        libc::AF_INET if len >= mem::size_of::<libc::sockaddr_in>() => {
            // SAFETY: that many bytes are there.
            let v4 = unsafe { start.cast::<libc::sockaddr_in>().read_unaligned() };
            let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 if len >= mem::size_of::<libc::sockaddr_in6>() => {
            // SAFETY: that many bytes are there.
            let v6 = unsafe { start.cast::<libc::sockaddr_in6>().read_unaligned() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), v6.sin6_flowinfo, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

/// Asks for an address with a call that fills memory and says how much: the call's negative code, or the
/// address if it is one of the internet.
pub(super) fn ask(call: impl FnOnce(*mut c_void, *mut usize) -> i32) -> Result<Option<SocketAddr>, i32> {
    let mut room = [0_u64; 16];
    let mut len = mem::size_of_val(&room);
    match call(room.as_mut_ptr().cast(), &raw mut len) {
        0 => {
            let len = len.min(mem::size_of_val(&room));
            // SAFETY: the memory is ours and that long.
            Ok(unsafe { read(room.as_ptr().cast(), len) })
        }
        code => Err(code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for (text, len) in [("192.0.2.7:4711", 16), ("[2001:db8::1]:65535", 28), ("[fe80::1%3]:1", 28)] {
            let address: SocketAddr = text.parse().unwrap();
            let raw = RawAddress::new(address);
            // SAFETY: the structures are that long.
            assert_eq!(unsafe { read(raw.as_ptr(), len) }, Some(address));
            // SAFETY: fewer bytes than there are.
            assert_eq!(unsafe { read(raw.as_ptr(), len - 1) }, None);
        }
    }
}
