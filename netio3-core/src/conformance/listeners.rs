//! Listeners: addresses, filters, limits, closing.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::pair::{Pair, connected};
use super::plan::Plan;
use super::recorder::Kind;
use super::world::{World, config};
use crate::address::EndPointAddress;
use crate::config::{AcceptFilter, ConnectionParameters, ConnectionParametersRecv, NetworkConfig};
use crate::error::{CloseListenError, OpenListenError};
use crate::status::{ClosedReason, NetioStatus, RefusedReason};

/// Port 0 picks a port, each time another one, and the bound address is returned.
pub(super) fn port_zero_picks_a_port(world: &World) {
    let node = world.node("listener", config());
    let wanted = world.harness.listen_address();
    let bound: HashSet<_> = (0..4).map(|_| node.listen(wanted, &ConnectionParametersRecv::default())).collect();
    assert_eq!(bound.len(), 4);
    assert!(bound.iter().all(|address| address.port() != 0 && address.ip() == wanted.ip()), "{bound:?}");
}

/// A wildcard listen returns the wildcard with its port, and every address of the machine reaches it.
pub(super) fn a_wildcard_listener_returns_the_wildcard(world: &World) {
    let listener = world.node("listener", config());
    let dialer = world.node("dialer", config());
    let here = world.harness.listen_address();
    let any: IpAddr = if here.ip().is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let bound = listener.listen(EndPointAddress::new(any, 0), &ConnectionParametersRecv::default());
    assert_eq!(bound.ip(), any);
    assert_ne!(bound.port(), 0);
    let dialled = here.with_port(bound.port());
    let (out, back) = connected(world, &dialer, &listener, || dialer.open(dialled, &ConnectionParameters::default()));
    let info = listener.tally(back).established.expect("it is established");
    assert_eq!(info.listener, Some(bound));
    dialer.sent(out, Plan::copy(10));
    world.until("it arrives", || listener.received(back) == 1);
    listener.backend().close_listen_endpoint(&bound).expect("it listens under the address it was given");
}

/// A multicast or broadcast address is `InvalidEndpointAddress`.
pub(super) fn an_address_that_nobody_can_have_is_invalid(world: &World) {
    let node = world.node("listener", config());
    for text in ["224.0.0.1:0", "[ff02::1]:0", "255.255.255.255:0"] {
        let address: EndPointAddress = text.parse().expect("an address");
        let opened = node.backend().open_listen_endpoint(&address, &ConnectionParametersRecv::default());
        assert!(matches!(&opened, Err(OpenListenError::InvalidEndpointAddress { address: named, .. }) if *named == address), "{opened:?}");
    }
    assert!(node.backend().listeners().is_empty());
}

/// Listening twice on an address is `ListenEndpointAlreadyExists`; where somebody else listens, `FailedOpenListenEndpoint`.
pub(super) fn an_address_has_one_listener(world: &World) {
    let node = world.node("listener", config());
    let params = ConnectionParametersRecv::default();
    let address = node.listen(world.harness.listen_address(), &params);
    let second = node.backend().open_listen_endpoint(&address, &params);
    assert!(matches!(&second, Err(OpenListenError::ListenEndpointAlreadyExists { address: named }) if *named == address), "{second:?}");
    let other = world.node("other", config());
    let taken = other.backend().open_listen_endpoint(&address, &params);
    assert!(matches!(&taken, Err(OpenListenError::FailedOpenListenEndpoint { address: named, .. }) if *named == address), "{taken:?}");
}

/// Closing a listener that is not there is `UnknownListenEndpoint`.
pub(super) fn closing_an_unknown_listener_is_an_error(world: &World) {
    let pair = Pair::new(world);
    let unknown = |closed| matches!(closed, Err(CloseListenError::UnknownListenEndpoint { address }) if address == pair.address);
    assert!(unknown(pair.dialer.backend().close_listen_endpoint(&pair.address)), "another backend listens there");
    pair.listener.backend().close_listen_endpoint(&pair.address).expect("it listens");
    assert!(unknown(pair.listener.backend().close_listen_endpoint(&pair.address)), "it listens no longer");
}

/// Closing a listener closes what it accepted, in an orderly way, and nothing else; its address is free at once.
pub(super) fn closing_a_listener_closes_what_it_accepted(world: &World) {
    let pair = Pair::new(world);
    let params = ConnectionParameters::default();
    let other_address = pair.listener.listen(world.harness.listen_address(), &ConnectionParametersRecv::default());
    let (other_out, other_back) = connected(world, &pair.dialer, &pair.listener, || pair.dialer.open(other_address, &params));
    let own_address = pair.dialer.listen(world.harness.listen_address(), &ConnectionParametersRecv::default());
    let (own_out, _) = connected(world, &pair.listener, &pair.dialer, || pair.listener.open(own_address, &params));
    (0..50).for_each(|_| pair.listener.sent(pair.back, Plan::copy(1_000)));
    pair.listener.backend().close_listen_endpoint(&pair.address).expect("it listens");
    pair.until_closed(world);
    assert_eq!(pair.listener.closing(pair.back), Some(ClosedReason::Local));
    assert_eq!(pair.dialer.closing(pair.out), Some(ClosedReason::PeerClosed));
    assert_eq!(pair.dialer.received(pair.out), 50, "what was accepted before arrives");
    let refused = pair.dialer.open(pair.address, &params);
    world.until("nobody listens there now", || pair.dialer.refusal(refused) == Some(RefusedReason::NoListener));
    pair.listener.sent(own_out, Plan::copy(5));
    pair.dialer.sent(other_out, Plan::copy(5));
    world.until("the others live", || pair.listener.received(other_back) == 1);
    let again = pair.listener.listen(pair.address, &ConnectionParametersRecv::default());
    assert_eq!(again, pair.address);
    connected(world, &pair.dialer, &pair.listener, || pair.dialer.open(again, &params));
}

/// Closing a listener while a peer is opening leaves the peer with exactly one outcome.
pub(super) fn closing_a_listener_under_a_newcomer_leaves_one_outcome(world: &World) {
    let listener = world.node("listener", config());
    let dialer = world.node("dialer", config());
    for turns in 0..12 {
        let address = listener.listen(world.harness.listen_address(), &ConnectionParametersRecv::default());
        let out = dialer.open(address, &ConnectionParameters::default());
        (0..turns).for_each(|_| world.turn());
        listener.backend().close_listen_endpoint(&address).expect("it listens");
        world.until("the newcomer knows", || dialer.refusal(out).is_some() || dialer.closing(out).is_some());
    }
    world.until("nothing is left", || listener.backend().connections().is_empty() && dialer.backend().connections().is_empty());
}

/// A peer that the filter turns away is *refused(Filter)*; the listener's side counts it and has no callback.
pub(super) fn a_filtered_peer_is_refused_and_counted(world: &World) {
    let listener = world.node("listener", config());
    let dialer = world.node("dialer", config());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let accept = AcceptFilter::new(move |peer| {
        seen.lock().push(*peer);
        seen.lock().len() > 1
    });
    let address = listener.listen(world.harness.listen_address(), &ConnectionParametersRecv { accept, ..Default::default() });
    let out = dialer.open(address, &ConnectionParameters::default());
    world.until("refused", || dialer.refusal(out).is_some());
    assert_eq!(dialer.refusal(out), Some(RefusedReason::Filter));
    world.watch();
    assert_eq!(listener.callbacks(), 0);
    let counters = listener.backend().listeners()[0].counters.clone();
    assert_eq!((counters.refused_filter.get(), counters.established.get()), (1, 0));
    assert_eq!(asked.lock().len(), 1, "asked once for each peer");
    let (_, back) = connected(world, &dialer, &listener, || dialer.open(address, &ConnectionParameters::default()));
    assert_eq!(asked.lock()[1], listener.tally(back).established.expect("it is established").address);
    assert_eq!((counters.refused_filter.get(), counters.established.get()), (1, 1));
}

/// A peer beyond `max_connections` is *refused(Limit)* and counted; once one leaves, the next is taken.
pub(super) fn a_peer_beyond_the_limit_is_refused_and_counted(world: &World) {
    let listener = world.node("listener", NetworkConfig { max_connections: 2, ..config() });
    let dialer = world.node("dialer", config());
    let address = listener.listen(world.harness.listen_address(), &ConnectionParametersRecv::default());
    let params = ConnectionParameters::default();
    let (first, first_back) = connected(world, &dialer, &listener, || dialer.connect(address, &params));
    connected(world, &dialer, &listener, || dialer.connect(address, &params));
    let third = dialer.connect(address, &params);
    world.until("refused", || dialer.refusal(third).is_some());
    assert_eq!(dialer.refusal(third), Some(RefusedReason::Limit));
    world.watch();
    assert_eq!(listener.callbacks(), 2);
    assert_eq!(listener.backend().listeners()[0].counters.refused_limit.get(), 1);
    dialer.close(first);
    world.until("one leaves", || listener.closing(first_back).is_some());
    connected(world, &dialer, &listener, || dialer.connect(address, &params));
}

/// Each accepted connection names its listener, whose counters count it.
pub(super) fn listeners_count_their_own(world: &World) {
    let listener = world.node("listener", config());
    let dialer = world.node("dialer", config());
    let addresses: Vec<_> = (0..3).map(|_| listener.listen(world.harness.listen_address(), &ConnectionParametersRecv::default())).collect();
    for (i, address) in addresses.iter().enumerate() {
        for _ in 0..=i {
            let (_, back) = connected(world, &dialer, &listener, || dialer.connect(*address, &ConnectionParameters::default()));
            assert_eq!(listener.tally(back).established.expect("it is established").listener, Some(*address));
        }
    }
    for state in listener.backend().listeners() {
        let i = addresses.iter().position(|address| *address == state.address).expect("one of the three");
        assert_eq!(state.counters.established.get(), i as u64 + 1);
        assert!(state.counters.accepted.get() > i as u64);
    }
}

/// That there is no room for connections is no reason against listening; a shutdown is.
pub(super) fn nothing_is_listened_on_after_a_shutdown_of_a_full_backend(world: &World) {
    let listener = world.node("listener", NetworkConfig { max_connections: 1, ..config() });
    let dialer = world.node("dialer", config());
    let params = ConnectionParametersRecv::default();
    let address = listener.listen(world.harness.listen_address(), &params);
    connected(world, &dialer, &listener, || dialer.connect(address, &ConnectionParameters::default()));
    let backend = listener.backend();
    let another = backend.open_listen_endpoint(&world.harness.listen_address(), &params).expect("it may listen");
    backend.close_listen_endpoint(&another).expect("it listens");
    backend.shutdown(Duration::from_secs(20));
    assert!(backend.open_listen_endpoint(&world.harness.listen_address(), &params).is_err());
    assert!(backend.listeners().is_empty());
}

/// A listener may be closed from inside a callback of a connection that it accepted, which closes with it.
pub(super) fn a_listener_may_be_closed_by_its_own_connection(world: &World) {
    for kind in [Kind::Established, Kind::Data, Kind::Completed] {
        let listener = world.node("listener", config());
        let dialer = world.node("dialer", config());
        let address = listener.listen(world.harness.listen_address(), &ConnectionParametersRecv::default());
        listener.once(kind, move |call| call.backend.close_listen_endpoint(&address).expect("it listens"));
        dialer.on(Kind::Established, |call| assert_eq!(call.send(call.endpoint, Plan::copy(10)), NetioStatus::Ok));
        if kind == Kind::Completed {
            listener.once(Kind::Data, |call| assert_eq!(call.send(call.endpoint, Plan::copy(10)), NetioStatus::Ok));
        }
        let out = dialer.open(address, &ConnectionParameters::default());
        world.until("both sides see the end", || dialer.closing(out).is_some() && listener.backend().connections().is_empty());
        assert_eq!(dialer.closing(out), Some(ClosedReason::PeerClosed));
        assert_eq!(listener.closing(listener.accepted_peers()[0].endpoint), Some(ClosedReason::Local));
        assert!(listener.backend().listeners().is_empty());
    }
}

/// An IPv6 listener takes IPv6 only, the wildcard included; the port is free for an IPv4 one.
pub(super) fn an_ipv6_listener_takes_ipv6_only(world: &World) {
    let listener = world.node("listener", config());
    let dialer = world.node("dialer", config());
    let here: EndPointAddress = "[::1]:0".parse().expect("an address");
    let any: EndPointAddress = "[::]:0".parse().expect("an address");
    if listener.backend().open_listen_endpoint(&here, &ConnectionParametersRecv::default()).is_err() {
        println!("skipped: there is no IPv6 here");
        return;
    }
    let bound = listener.listen(any, &ConnectionParametersRecv::default());
    assert_eq!(bound.ip(), any.ip());
    let params = ConnectionParameters::default();
    let (_, back) = connected(world, &dialer, &listener, || dialer.open(here.with_port(bound.port()), &params));
    assert!(listener.tally(back).established.expect("it is established").address.ip().is_ipv6());
    let by_ipv4 = dialer.open(EndPointAddress::localhost(bound.port()), &params);
    world.until("refused", || dialer.refusal(by_ipv4) == Some(RefusedReason::NoListener));
    let both = listener.listen(EndPointAddress::localhost(bound.port()), &ConnectionParametersRecv::default());
    let (_, back) = connected(world, &dialer, &listener, || dialer.open(both, &params));
    assert_eq!(listener.tally(back).established.expect("it is established").listener, Some(both));
}

/// A listener closed can be opened again at once, before the loop has run.
pub(super) fn a_closed_listeners_address_is_free_at_once(world: &World) {
    let pair = Pair::new(world);
    let backend = pair.listener.backend();
    for _ in 0..3 {
        backend.close_listen_endpoint(&pair.address).expect("it listens");
        pair.listener.listen(pair.address, &ConnectionParametersRecv::default());
    }
    drop(backend);
    pair.until_closed(world);
    connected(world, &pair.dialer, &pair.listener, || pair.dialer.open(pair.address, &ConnectionParameters::default()));
}
