//! The network of this process: who listens where.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::address::EndPointAddress;
use crate::loopback::line::{End, Waker};

/// Everybody who listens or calls. The lock is held for moments, and no other one is taken meanwhile.
static NETWORK: Mutex<Network> =
    Mutex::new(Network { listeners: BTreeMap::new(), callers: BTreeSet::new(), last_port: FIRST_PORT, last_caller: FIRST_PORT });

struct Network {
    /// Several under one address only if all of them want to share it.
    listeners: BTreeMap<EndPointAddress, Vec<Arc<Porch>>>,
    /// Addresses from which connections are made.
    callers: BTreeSet<EndPointAddress>,
    last_port: u16,
    last_caller: u16,
}

/// A bound listener; dropping it gives its address back and turns away who waits there.
pub(super) struct Bound(Arc<Porch>);

/// The address from which a connection is made, which no other one is made from; dropping it gives it back.
pub(super) struct Caller(EndPointAddress);

/// An attempt to connect.
pub(super) struct Call {
    /// The listening side's end.
    pub(super) end: End,
    /// The address it comes from.
    pub(super) from: EndPointAddress,
    /// The address that was called.
    pub(super) to: EndPointAddress,
}

/// Where calls wait for the loop of a listener.
struct Porch {
    address: EndPointAddress,
    shared: bool,
    calls: Mutex<Calls>,
    waker: OnceLock<Waker>,
}

#[derive(Default)]
struct Calls {
    waiting: VecDeque<Call>,
    closed: bool,
    /// The number of waiting calls at which those that were given up are looked for.
    sweep_at: usize,
}

/// Binds a listener; port 0 picks one. With `shared` others may share the address that want it too.
///
/// # Errors
/// `AddrInUse`.
pub(super) fn bind(address: EndPointAddress, shared: bool) -> io::Result<Bound> {
    let mut network = NETWORK.lock();
    let address = match address.port() {
        0 => network.free_port(address).ok_or(io::ErrorKind::AddrInUse)?,
        _ if network.is_taken(&address, shared) => return Err(io::ErrorKind::AddrInUse.into()),
        _ => address,
    };
    let porch = Arc::new(Porch { address, shared, calls: Mutex::default(), waker: OnceLock::new() });
    network.listeners.entry(address).or_default().push(porch.clone());
    Ok(Bound(porch))
}

/// Takes a call to whoever listens at its address. If nobody does, the caller finds the line dead.
pub(super) fn call(call: Call) {
    let porch = NETWORK.lock().find(&call);
    if let Some(porch) = porch {
        porch.receive(call);
    }
}

/// An address from which to connect.
///
/// # Errors
/// `AddrNotAvailable`: all ports of this IP address are in use.
pub(super) fn caller(ip: IpAddr) -> io::Result<Caller> {
    let mut network = NETWORK.lock();
    let address = network.free_caller(ip).ok_or(io::ErrorKind::AddrNotAvailable)?;
    network.callers.insert(address);
    Ok(Caller(address))
}

impl Caller {
    pub(super) fn address(&self) -> EndPointAddress {
        self.0
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        NETWORK.lock().callers.remove(&self.0);
    }
}

impl Bound {
    /// The bound address.
    pub(super) fn address(&self) -> EndPointAddress {
        self.0.address
    }

    /// Says whom to wake for calls, and wakes him for those that came before.
    pub(super) fn attach(&self, waker: Waker) {
        // A listener is attached once, by the loop that adopts it.
        let _ = self.0.waker.set(waker);
        self.0.waker.get().inspect(|waker| waker.wake());
    }

    /// The call that waits longest.
    pub(super) fn next_call(&self) -> Option<Call> {
        self.0.calls.lock().waiting.pop_front()
    }

    /// Stops listening.
    pub(super) fn close(&self) {
        {
            let mut network = NETWORK.lock();
            if let Some(sharing) = network.listeners.get_mut(&self.0.address) {
                sharing.retain(|porch| !Arc::ptr_eq(porch, &self.0));
                if sharing.is_empty() {
                    network.listeners.remove(&self.0.address);
                }
            }
        }
        let turned_away = {
            let mut calls = self.0.calls.lock();
            calls.closed = true;
            std::mem::take(&mut calls.waiting)
        };
        drop(turned_away);
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.close();
    }
}

impl Porch {
    fn receive(&self, call: Call) {
        let mut given_up = Vec::new();
        let mut calls = self.calls.lock();
        if calls.closed {
            drop(calls);
            return;
        }
        // Those that nobody waits for any more would add up if the listener's loop did not run.
        if calls.waiting.len() >= calls.sweep_at {
            let (gone, waiting) = calls.waiting.drain(..).partition::<Vec<_>, _>(|call| call.end.is_other_gone());
            given_up = gone;
            calls.waiting = waiting.into();
            calls.sweep_at = 2 * calls.waiting.len().max(32);
        }
        let first = calls.waiting.is_empty();
        calls.waiting.push_back(call);
        drop(calls);
        drop(given_up);
        if first {
            self.waker.get().inspect(|waker| waker.wake());
        }
    }
}

impl Network {
    /// The listener that a call reaches: one bound to the very address, or else to the wildcard.
    fn find(&self, call: &Call) -> Option<Arc<Porch>> {
        let to = call.to;
        let sharing = self.listeners.get(&to).or_else(|| self.listeners.get(&wildcard(to)))?;
        Some(sharing[usize::from(call.from.port()) % sharing.len()].clone())
    }

    fn is_taken(&self, address: &EndPointAddress, shared: bool) -> bool {
        let overlaps = |other: &EndPointAddress| {
            let same_kind = other.port() == address.port() && other.ip().is_ipv4() == address.ip().is_ipv4();
            same_kind && (other == address || other.ip().is_unspecified() || address.ip().is_unspecified())
        };
        self.listeners.values().flatten().any(|porch| overlaps(&porch.address) && !(shared && porch.shared))
    }

    fn free_port(&mut self, address: EndPointAddress) -> Option<EndPointAddress> {
        for _ in FIRST_PORT..=u16::MAX {
            // Goes round, so that a port is not used again soon. The callers do so likewise.
            self.last_port = self.last_port.checked_add(1).unwrap_or(FIRST_PORT);
            let candidate = address.with_port(self.last_port);
            if !self.is_taken(&candidate, false) && !self.callers.contains(&candidate) {
                return Some(candidate);
            }
        }
        None
    }

    fn free_caller(&mut self, ip: IpAddr) -> Option<EndPointAddress> {
        for _ in FIRST_CALLER..=u16::MAX {
            self.last_caller = self.last_caller.checked_add(1).unwrap_or(FIRST_CALLER);
            let candidate = EndPointAddress::new(ip, self.last_caller);
            let listened_on = [candidate, wildcard(candidate)].iter().any(|address| self.listeners.contains_key(address));
            if !listened_on && !self.callers.contains(&candidate) {
                return Some(candidate);
            }
        }
        None
    }
}

fn wildcard(address: EndPointAddress) -> EndPointAddress {
    let ip = match address.ip() {
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0; 16]),
    };
    EndPointAddress::new(ip, address.port())
}

/// Where picked ports begin.
const FIRST_PORT: u16 = 49_152;
/// Where those of callers do, of whom there may be more.
const FIRST_CALLER: u16 = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> EndPointAddress {
        text.parse().unwrap()
    }

    /// Calls an address; the caller's end tells whether somebody got the call.
    fn dial(to: &str) -> End {
        let (near, far) = End::pair();
        call(Call { end: far, from: caller([127, 0, 0, 1].into()).unwrap().address(), to: address(to) });
        near
    }

    #[test]
    fn a_call_reaches_the_listener_of_its_address() {
        let bound = bind(address("10.1.0.1:700"), false).unwrap();
        let near = dial("10.1.0.1:700");
        assert!(!near.is_other_gone());
        let call = bound.next_call().unwrap();
        assert_eq!(call.to, bound.address());
        assert!(bound.next_call().is_none());
        drop(call);
        assert!(near.is_other_gone());
        assert!(dial("10.1.0.1:701").is_other_gone());
        assert!(dial("10.1.0.2:700").is_other_gone());
    }

    #[test]
    fn closing_turns_away_who_waits_and_frees_the_address() {
        let bound = bind(address("10.2.0.1:700"), false).unwrap();
        assert_eq!(bind(address("10.2.0.1:700"), true).err().map(|error| error.kind()), Some(io::ErrorKind::AddrInUse));
        let near = dial("10.2.0.1:700");
        drop(bound);
        assert!(near.is_other_gone());
        assert!(dial("10.2.0.1:700").is_other_gone());
        assert!(bind(address("10.2.0.1:700"), false).is_ok());
    }

    #[test]
    fn port_zero_picks_a_free_one() {
        let one = bind(address("10.3.0.1:0"), false).unwrap().address();
        let two = bind(address("10.3.0.1:0"), false).unwrap().address();
        assert_ne!(one, two, "not the same one at once, although it is free again");
        assert!(one.port() >= FIRST_PORT && one.ip() == two.ip());
    }

    #[test]
    fn a_wildcard_answers_for_every_address_of_its_family() {
        let four = bind(address("0.0.0.0:801"), false).unwrap();
        let six = bind(address("[::]:801"), false).unwrap();
        let calls = [dial("10.4.0.1:801"), dial("10.4.0.2:801"), dial("[fd00::1]:801")];
        assert_eq!(std::iter::from_fn(|| four.next_call()).map(|call| call.to.ip().is_ipv4()).collect::<Vec<_>>(), [true, true]);
        assert_eq!(six.next_call().map(|call| call.to), Some(address("[fd00::1]:801")));
        assert!(bind(address("10.4.0.1:801"), false).is_err());
        drop(calls);
    }

    #[test]
    fn listeners_share_an_address_if_all_want_it() {
        let listeners = [(); 2].map(|()| bind(address("10.5.0.1:700"), true).unwrap());
        assert!(bind(address("10.5.0.1:700"), false).is_err());
        let (near, far): (Vec<_>, Vec<_>) = (0..4).map(|_| End::pair()).unzip();
        for (port, end) in (1..).zip(far) {
            call(Call { end, from: EndPointAddress::localhost(port), to: address("10.5.0.1:700") });
        }
        for listener in &listeners {
            assert_eq!(std::iter::from_fn(|| listener.next_call()).count(), 2);
        }
        drop(near);
    }

    #[test]
    fn callers_have_ports_of_their_own() {
        let bound = [bind(address("10.7.0.1:50000"), false).unwrap(), bind(address("0.0.0.0:50001"), false).unwrap()];
        let mut callers: Vec<_> = (0..70_000).map_while(|_| caller([10, 7, 0, 1].into()).ok()).collect();
        let mut addresses: BTreeSet<_> = callers.iter().map(Caller::address).collect();
        assert_eq!(addresses.len(), callers.len(), "none twice");
        assert_eq!(callers.len(), usize::from(u16::MAX - FIRST_CALLER) + 1 - bound.len(), "all but those that are listened on");
        assert!(!addresses.contains(&bound[0].address()) && !addresses.contains(&address("10.7.0.1:50001")));
        assert_eq!(bind(address("10.7.0.1:0"), false).err().map(|error| error.kind()), Some(io::ErrorKind::AddrInUse));
        addresses.remove(&callers.pop().unwrap().address());
        assert!(!addresses.contains(&caller([10, 7, 0, 1].into()).unwrap().address()), "what was given back");
    }

    #[test]
    fn a_callers_port_is_in_use_until_both_ends_are_gone() {
        let caller = caller([10, 8, 0, 1].into()).unwrap();
        let address = caller.address();
        let is_in_use = || NETWORK.lock().callers.contains(&address);
        let (near, far) = End::pair();
        near.keep(caller);
        drop(near);
        assert!(is_in_use());
        drop(far);
        assert!(!is_in_use());
    }

    #[test]
    fn calls_that_were_given_up_do_not_add_up() {
        let bound = bind(address("10.6.0.1:700"), false).unwrap();
        (0..1_000).for_each(|_| drop(dial("10.6.0.1:700")));
        let near = dial("10.6.0.1:700");
        assert!(bound.0.calls.lock().waiting.len() <= 64);
        assert_eq!(std::iter::from_fn(|| bound.next_call()).filter(|call| !call.end.is_other_gone()).count(), 1);
        drop(near);
    }
}
