//! Addresses of endpoints.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, ToSocketAddrs};
use std::str::FromStr;

use nix::net::if_::if_nametoindex;

use crate::error::{AddressError, LookupError};

/// An IP address and a port in canonical form, so that equal peers compare equal.
///
/// An IPv4-mapped IPv6 address becomes IPv4, the flow label is dropped, and a scope is kept only
/// for link-local addresses. Parsing accepts the scope as a number or as an interface name
/// (`[fe80::1%eth0]:7700`). Host names are not addresses: see [`lookup`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndPointAddress(SocketAddr);

impl EndPointAddress {
    /// An address from its parts.
    pub fn new(ip: IpAddr, port: u16) -> Self {
        SocketAddr::new(ip, port).into()
    }

    /// `127.0.0.1` with this port.
    pub const fn localhost(port: u16) -> Self {
        Self(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
    }

    /// The IP address.
    pub fn ip(&self) -> IpAddr {
        self.0.ip()
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// The same address with another port.
    #[must_use]
    pub fn with_port(mut self, port: u16) -> Self {
        self.0.set_port(port);
        self
    }

    /// The address in the standard library's form.
    pub fn socket_addr(&self) -> SocketAddr {
        self.0
    }

    /// Whether a connection can be opened to this address; if not, the reason why.
    ///
    /// # Errors
    /// Port 0, an unspecified address (`0.0.0.0`, `::`), a multicast or broadcast address.
    pub fn check_dialable(&self) -> Result<(), &'static str> {
        if self.port() == 0 {
            return Err("port 0 names no peer");
        }
        if self.ip().is_unspecified() {
            return Err("the unspecified address names no peer");
        }
        self.check_unicast()
    }

    /// Whether a listener can be opened on this address; if not, the reason why.
    ///
    /// # Errors
    /// A multicast or broadcast address. Port 0 and the unspecified address are fine.
    pub fn check_listenable(&self) -> Result<(), &'static str> {
        self.check_unicast()
    }

    fn check_unicast(&self) -> Result<(), &'static str> {
        if self.ip().is_multicast() {
            return Err("a multicast address is no endpoint");
        }
        if self.ip() == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return Err("the broadcast address is no endpoint");
        }
        Ok(())
    }
}

impl From<SocketAddr> for EndPointAddress {
    fn from(address: SocketAddr) -> Self {
        let ip = address.ip().to_canonical();
        Self(match (ip, address) {
            (IpAddr::V6(v6), SocketAddr::V6(full)) if v6.is_unicast_link_local() => {
                SocketAddr::V6(SocketAddrV6::new(v6, full.port(), 0, full.scope_id()))
            }
            _ => SocketAddr::new(ip, address.port()),
        })
    }
}

impl From<EndPointAddress> for SocketAddr {
    fn from(address: EndPointAddress) -> Self {
        address.0
    }
}

impl fmt::Display for EndPointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for EndPointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for EndPointAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(address.into());
        }
        parse_with_interface(text).unwrap_or_else(|| Err(AddressError::NotAnAddress { text: text.to_owned() }))
    }
}

/// Parses `[ip%interface]:port`; `None` when the text has no such form.
fn parse_with_interface(text: &str) -> Option<Result<EndPointAddress, AddressError>> {
    let (inside, port) = text.strip_prefix('[')?.rsplit_once("]:")?;
    let (ip, interface) = inside.split_once('%')?;
    let ip: Ipv6Addr = ip.parse().ok()?;
    let port: u16 = port.parse().ok()?;
    Some(match if_nametoindex(interface) {
        Ok(scope) => Ok(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope)).into()),
        Err(_) => Err(AddressError::UnknownInterface { name: interface.to_owned() }),
    })
}

/// Looks up a host name with port (`node7:7700`); plain addresses pass through.
///
/// **Blocks** for as long as the system's resolver takes, up to many seconds: never call it on a
/// loop's thread. The order is the resolver's.
///
/// # Errors
/// The name is not known, or the text is not `host:port`.
pub fn lookup(host_and_port: &str) -> Result<Vec<EndPointAddress>, LookupError> {
    if let Ok(address) = host_and_port.parse::<EndPointAddress>() {
        return Ok(vec![address]);
    }
    let found = host_and_port.to_socket_addrs().map_err(|source| LookupError { name: host_and_port.to_owned(), source: source.into() })?;
    let mut addresses: Vec<EndPointAddress> = Vec::new();
    for address in found.map(EndPointAddress::from) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_ipv4() {
        let mapped: EndPointAddress = "[::ffff:10.1.2.3]:7700".parse().unwrap();
        assert_eq!(mapped, "10.1.2.3:7700".parse().unwrap());
        assert_eq!(mapped.to_string(), "10.1.2.3:7700");
    }

    #[test]
    fn scope_is_a_number_or_an_interface() {
        let by_number: EndPointAddress = "[fe80::1%1]:7700".parse().unwrap();
        let by_name: EndPointAddress = "[fe80::1%lo]:7700".parse().unwrap();
        assert_eq!(by_number, by_name);
        assert_eq!(
            "[fe80::1%no-such-nic]:7700".parse::<EndPointAddress>(),
            Err(AddressError::UnknownInterface { name: "no-such-nic".into() })
        );
    }

    #[test]
    fn scope_of_a_global_address_is_dropped() {
        let scoped: EndPointAddress = SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 1, 7, 3)).into();
        assert_eq!(scoped, "[::1]:1".parse().unwrap());
    }

    #[test]
    fn nonsense_names_the_text() {
        for text in ["", "localhost:80", "1.2.3.4", "1.2.3.4:99999", "[::1]", ":80", "[::1%]:1", "[::1%../x]:1"] {
            assert!(text.parse::<EndPointAddress>().is_err(), "{text:?}");
        }
        let error = "node7:80".parse::<EndPointAddress>().unwrap_err();
        assert!(error.to_string().contains("node7:80"));
    }

    #[test]
    fn what_can_be_dialled() {
        let check = |text: &str| text.parse::<EndPointAddress>().unwrap().check_dialable();
        assert!(check("10.0.0.1:1").is_ok());
        for text in ["10.0.0.1:0", "0.0.0.0:1", "[::]:1", "224.0.0.1:1", "[ff02::1]:1", "255.255.255.255:1"] {
            assert!(check(text).is_err(), "{text}");
        }
    }

    #[test]
    fn lookup_passes_addresses_through_and_names_what_it_cannot_find() {
        assert_eq!(lookup("127.0.0.1:5").unwrap(), [EndPointAddress::localhost(5)]);
        assert!(lookup("no-port").unwrap_err().to_string().contains("no-port"));
    }

    #[test]
    fn interfaces_are_those_of_ones_own_network_namespace() {
        let is_loopback = |name: &str| name == "lo";
        let interfaces = nix::net::if_::if_nameindex().unwrap();
        let names: Vec<String> = interfaces.into_iter().map(|interface| interface.name().to_string_lossy().into_owned()).collect();
        let Some(name) = names.into_iter().find(|name| !is_loopback(name)) else { return println!("skipped: there is only lo") };
        let text = format!("[fe80::1%{name}]:7700");
        assert!(text.parse::<EndPointAddress>().is_ok());
        let inside = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).ok().map(|()| text.parse::<EndPointAddress>())
        });
        match inside.join().unwrap() {
            Some(parsed) => assert_eq!(parsed, Err(AddressError::UnknownInterface { name })),
            None => println!("skipped: this process may not make a network namespace"),
        }
    }
}
