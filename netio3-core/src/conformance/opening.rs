//! Opening connections: who owns an address, what fails at once, what is refused later.

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::pair::{Pair, Setup};
use super::plan::Plan;
use super::recorder::Kind;
use super::world::{World, config};
use crate::address::EndPointAddress;
use crate::backend::Phase;
use crate::config::{Buffers, ConnectionParameters, ConnectionParametersRecv, NetworkConfig};
use crate::error::{OpenListenError, OpenSendError, SendError, Target};
use crate::status::{ClosedReason, Direction, NetioStatus, RefusedReason};

/// An opened connection is reported *established* once on each side, and described truthfully.
pub(super) fn opening_ends_in_established_on_both_sides(world: &World) {
    let pair = Pair::new(world);
    let out = pair.dialer.tally(pair.out).established.expect("it is established");
    let back = pair.listener.tally(pair.back).established.expect("it is established");
    assert_eq!((out.endpoint, out.direction, out.address, out.listener), (pair.out, Direction::Outgoing, pair.address, None));
    assert_eq!((back.endpoint, back.direction, back.listener), (pair.back, Direction::Incoming, Some(pair.address)));
    assert_eq!(back.address, out.local_address, "the listener sees the address that the dialer has");
    assert_eq!(back.local_address, pair.address);
    assert_eq!(pair.dialer.backend().limits(pair.out), Ok(out.limits));
    assert_eq!(pair.listener.backend().limits(pair.back), Ok(back.limits));
    assert_eq!(pair.listener.backend().endpoint(&back.address), None, "accepted peers own no address");
    pair.prove_alive(world);
}

/// Port 0, the unspecified, multicast and broadcast addresses are `InvalidEndpointAddress`.
pub(super) fn an_address_that_names_no_peer_is_invalid(world: &World) {
    let node = world.node("dialer", config());
    let params = ConnectionParameters::default();
    let here = world.harness.listen_address().with_port(0).to_string();
    for text in [&here, "0.0.0.0:7", "[::]:7", "224.0.0.1:7", "[ff02::1]:7", "255.255.255.255:7"] {
        let address: EndPointAddress = text.parse().expect("an address");
        for opened in [node.backend().open_send_endpoint(&address, &params), node.backend().connect(&address, &params)] {
            assert!(
                matches!(&opened, Err(OpenSendError::InvalidEndpointAddress { address: named, .. }) if *named == address),
                "{opened:?}"
            );
        }
    }
    world.watch();
    assert!(node.backend().connections().is_empty());
}

/// A second `open_send_endpoint` of an address is `SendEndpointAlreadyExists`, before *established* and after.
pub(super) fn an_address_has_one_owner(world: &World) {
    let listener = world.node("listener", config());
    let dialer = world.node("dialer", config());
    let address = listener.listen(world.harness.listen_address(), &ConnectionParametersRecv::default());
    let params = ConnectionParameters::default();
    let owner = dialer.open(address, &params);
    for when in ["opening", "established"] {
        let second = dialer.backend().open_send_endpoint(&address, &params);
        let exists = matches!(&second, Err(OpenSendError::SendEndpointAlreadyExists { address: named }) if *named == address);
        assert!(exists, "{when}: {second:?}");
        assert_eq!(dialer.backend().endpoint(&address), Some(owner), "{when}");
        world.until("established", || dialer.is_established(owner));
    }
    dialer.close(owner);
    let early = dialer.backend().open_send_endpoint(&address, &params);
    assert!(matches!(early, Err(OpenSendError::SendEndpointAlreadyExists { .. })), "it is free inside *closed*, not before: {early:?}");
    world.until("closed", || dialer.closing(owner).is_some());
    let again = dialer.open(address, &params);
    world.until("established", || dialer.is_established(again));
    let other = world.node("other dialer", config());
    let too = other.open(address, &params);
    world.until("another backend owns the address as well", || other.is_established(too));
}

/// `connect` opens any number of connections to one address, none of which owns it.
pub(super) fn connect_opens_many_to_one_address(world: &World) {
    let listener = world.node("listener", config());
    let dialer = world.node("dialer", config());
    let address = listener.listen(world.harness.listen_address(), &ConnectionParametersRecv::default());
    let params = ConnectionParameters::default();
    let handles: Vec<_> = (0..5).map(|_| dialer.connect(address, &params)).collect();
    world.until("all established", || handles.iter().all(|out| dialer.is_established(*out)));
    assert_eq!(handles.iter().collect::<HashSet<_>>().len(), 5);
    assert_eq!(dialer.backend().endpoint(&address), None);
    let owner = dialer.open(address, &params);
    world.until("the owner too", || dialer.is_established(owner) && listener.accepted_peers().len() == 6);
    assert_eq!(dialer.backend().endpoint(&address), Some(owner));
    for (i, out) in handles.iter().chain([&owner]).enumerate() {
        (0..=i).for_each(|_| dialer.sent(*out, Plan::copy(64)));
    }
    let counts = || {
        let mut counts: Vec<_> = listener.accepted_peers().iter().map(|peer| listener.received(peer.endpoint)).collect();
        counts.sort_unstable();
        counts
    };
    world.until("each peer receives its own", || counts() == [1, 2, 3, 4, 5, 6]);
}

/// Every by-address call reaches the connection that owns the address, and no other one.
pub(super) fn by_address_calls_reach_the_owner(world: &World) {
    let pair = Pair::with(world, Setup::buffers(1_024, 2));
    let (_, bystander) = pair.another(world);
    let (dialer, out, address) = (&pair.dialer, pair.out, pair.address);
    assert_eq!(dialer.backend().resolve(&address), Ok(out));
    for plan in [Plan::zero_copy(50), Plan::zero_copy(5_000).pieces(5), Plan::copy(51), Plan::copy(5_001).pieces(4), Plan::buffer(52)] {
        dialer.sent(out, plan.by_address(address));
    }
    assert_eq!(dialer.backend().get_num_available_buffers(&address).ok(), Some(1));
    pair.deliver(world);
    assert_eq!(pair.listener.received(bystander), 0);
    dialer.backend().close_send_endpoint(&address).expect("somebody owns it");
    pair.until_closed(world);
    assert_eq!(pair.listener.closing(bystander), None);
}

/// By-address calls are `UnknownSendEndpoint` while nobody owns the address, whoever is connected to it.
pub(super) fn by_address_calls_without_an_owner_are_unknown(world: &World) {
    let pair = Pair::new(world);
    pair.another(world);
    pair.dialer.close(pair.out);
    pair.until_closed(world);
    let (backend, address) = (pair.dialer.backend(), pair.address);
    let unknown = Err(SendError::UnknownSendEndpoint(Target::Address(address)));
    assert_eq!(backend.send_data(&address, &bytes::Bytes::new(), b"", 1), unknown);
    assert_eq!(backend.send_data_iov(&address, &[], b"", 1), unknown);
    assert_eq!(backend.send_data_copy(&address, b"", b"", 1), unknown);
    assert_eq!(backend.send_data_copy_iov(&address, &[], b"", 1), unknown);
    assert!(backend.get_buffer(&address).is_err());
    let mut pool = crate::MemoryRegion::new(64).expect("memory").cut(64).expect("it is cut once");
    let unsent = backend.send_buffer(&address, pool.take().expect("there is one")).expect_err("nobody owns the address");
    assert_eq!(unsent.outcome.map(|_| ()), unknown.map(|_| ()));
    assert!(backend.get_num_available_buffers(&address).is_err());
    assert!(backend.close_send_endpoint(&address).is_err());
    assert_eq!(backend.endpoint(&address), None);
}

/// Where nobody listens, the connection is *refused* with `NoListener`, once.
pub(super) fn where_nobody_listens_is_refused(world: &World) {
    let node = world.node("dialer", config());
    let out = node.open(world.harness.nobody_listens(), &ConnectionParameters::default());
    world.until("refused", || node.refusal(out).is_some());
    assert_eq!(node.refusal(out), Some(RefusedReason::NoListener));
    world.watch();
    assert_eq!(node.callbacks(), 1);
    assert_eq!(node.backend().totals().refused.get(), 1);
}

/// Closing or aborting before *established* ends in *refused(Local)*, once, and never in *closed*.
pub(super) fn closing_before_established_is_refused_locally(world: &World) {
    let listener = world.node("listener", config());
    let dialer = world.node("dialer", config());
    let address = listener.listen(world.harness.listen_address(), &ConnectionParametersRecv::default());
    let params = ConnectionParameters::default();
    let closed = dialer.open(address, &params);
    let aborted = dialer.connect(address, &params);
    dialer.close(closed);
    dialer.abort(aborted);
    world.until("both refused", || dialer.refusal(closed).is_some() && dialer.refusal(aborted).is_some());
    assert_eq!(dialer.refusal(closed), Some(RefusedReason::Local));
    assert_eq!(dialer.refusal(aborted), Some(RefusedReason::Local));
    world.watch();
    assert_eq!(dialer.callbacks(), 2);
    let again = dialer.open(address, &params);
    world.until("the address can be opened again", || dialer.is_established(again));
}

/// Inside *refused* the handle is unknown and the address free: it can be opened again there and then.
pub(super) fn a_refused_address_is_free_inside_refused(world: &World) {
    let node = world.node("dialer", config());
    let address = world.harness.nobody_listens();
    let attempts = Rc::new(RefCell::new(vec![node.open(address, &ConnectionParameters::default())]));
    let seen = attempts.clone();
    node.on(Kind::Refused, move |call| {
        assert_eq!(call.backend.send_copy(call.endpoint, b"x", b"", 0), Err(SendError::UnknownSendEndpoint(call.endpoint.into())));
        assert!(call.backend.connections().is_empty());
        if seen.borrow().len() < 5 {
            let again = call.node.open_through(call.backend, address, &ConnectionParameters::default()).expect("the address is free");
            seen.borrow_mut().push(again);
        }
    });
    world.until("five attempts are refused", || {
        attempts.borrow().len() == 5 && attempts.borrow().iter().all(|out| node.refusal(*out).is_some())
    });
    assert_eq!(attempts.borrow().iter().collect::<HashSet<_>>().len(), 5, "handles are never reused");
}

/// A handle is unknown once its connection is gone, and never means a later one.
pub(super) fn a_handle_is_never_reused(world: &World) {
    let pair = Pair::new(world);
    let mut gone = vec![pair.out];
    pair.dialer.close(pair.out);
    pair.until_closed(world);
    for _ in 0..20 {
        let (out, back) = pair.another(world);
        assert!(!gone.contains(&out));
        for old in &gone {
            assert!(pair.dialer.backend().send_copy(*old, b"x", b"", 0).is_err());
            assert!(pair.dialer.backend().close(*old).is_err());
        }
        pair.dialer.abort(out);
        world.until("it ends", || pair.dialer.closing(out).is_some() && pair.listener.closing(back).is_some());
        gone.push(out);
    }
}

/// A local address that is not of this machine is `FailedOpenSendEndpoint`; *refused(LocalResource)* where only the loop finds it.
pub(super) fn a_foreign_local_address_cannot_be_used(world: &World) {
    let listener = world.node("listener", config());
    let dialer = world.node("dialer", config());
    let address = listener.listen(world.harness.listen_address(), &ConnectionParametersRecv::default());
    // 192.0.2.0/24 is set aside for documentation: no machine has such an address.
    let params = ConnectionParameters { local_address: Some([192, 0, 2, 1].into()), ..Default::default() };
    fails_or_is_refused(world, &dialer, address, &params, &[RefusedReason::LocalResource, RefusedReason::Unreachable]);
}

/// An open beyond `max_connections` is `FailedOpenSendEndpoint`; *refused(Limit)* where only the loop finds it.
pub(super) fn an_open_beyond_max_connections_fails(world: &World) {
    let listener = world.node("listener", config());
    let dialer = world.node("dialer", NetworkConfig { max_connections: 1, ..config() });
    let address = listener.listen(world.harness.listen_address(), &ConnectionParametersRecv::default());
    let params = ConnectionParameters::default();
    let first = dialer.open(address, &params);
    let other = address.with_port(address.port() ^ 1);
    fails_or_is_refused(world, &dialer, other, &params, &[RefusedReason::Limit, RefusedReason::LocalResource]);
    world.until("the first is established", || dialer.is_established(first));
    dialer.close(first);
    world.until("the first is closed", || dialer.closing(first) == Some(ClosedReason::Local));
    let next = dialer.open(address, &params);
    world.until("its place is free", || dialer.is_established(next));
}

fn fails_or_is_refused(
    world: &World,
    dialer: &super::node::Node,
    address: EndPointAddress,
    params: &ConnectionParameters,
    reasons: &[RefusedReason],
) {
    match dialer.open_through(&*dialer.backend(), address, params) {
        Err(OpenSendError::FailedOpenSendEndpoint { address: named, .. }) => assert_eq!(named, address),
        Ok(out) if world.harness.is_synchronized() => {
            world.until("refused", || dialer.refusal(out).is_some());
            assert!(reasons.contains(&dialer.refusal(out).expect("just seen")), "{:?}", dialer.refusal(out));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(dialer.backend().endpoint(&address), None);
}

/// Buffers of no bytes, or none of them, are an error of the call; nothing is opened and no address taken.
pub(super) fn buffers_of_no_bytes_are_refused(world: &World) {
    let pair = Pair::new(world);
    let (backend, nowhere) = (pair.dialer.backend(), world.harness.nobody_listens());
    // And those of more than there can be.
    for (size, count) in [(0, 4), (4, 0), (0, 0), (usize::MAX, 1), (1, usize::MAX), (1 << 40, 1 << 30)] {
        let connection = ConnectionParameters { buffers: Some(Buffers { size, count }), ..Default::default() };
        let refused = backend.open_send_endpoint(&nowhere, &connection).expect_err("buffers of no bytes");
        assert!(matches!(refused, OpenSendError::FailedOpenSendEndpoint { .. }), "{refused:?}");
        assert!(backend.connect(&nowhere, &connection).is_err());
        let recv = ConnectionParametersRecv { connection, ..Default::default() };
        let refused = backend.open_listen_endpoint(&world.harness.listen_address(), &recv).expect_err("buffers of no bytes");
        assert!(matches!(refused, OpenListenError::FailedOpenListenEndpoint { .. }), "{refused:?}");
    }
    assert_eq!((backend.connections().len(), backend.listeners().len(), backend.endpoint(&nowhere)), (1, 0, None));
    let callbacks = pair.dialer.callbacks();
    world.watch();
    assert_eq!(pair.dialer.callbacks(), callbacks, "nothing comes of them later");
}

/// A peer that does not answer within `connect_deadline` is *refused(Timeout)*, then and not before.
pub(super) fn the_connect_deadline_is_kept(world: &World) {
    let asleep = world.another_loop();
    let listener = asleep.node("sleeping listener", config());
    let address = listener.listen(world.harness.listen_address(), &ConnectionParametersRecv::default());
    let dialer = world.node("dialer", config());
    let deadline = Duration::from_millis(200);
    let started = Instant::now();
    let out = dialer.open(address, &ConnectionParameters { connect_deadline: deadline, ..Default::default() });
    world.until("refused", || dialer.refusal(out).is_some());
    assert_eq!(dialer.refusal(out), Some(RefusedReason::Timeout));
    assert!(started.elapsed() >= deadline, "after {:?}", started.elapsed());
    assert!(started.elapsed() < deadline * 10, "after {:?}", started.elapsed());
}

/// `limits` tells what can be sent: before *established* this side's parameters, then the smaller of both maxima.
pub(super) fn limits_are_the_smaller_of_both_sides(world: &World) {
    let dial = ConnectionParameters { queue_messages: 11, queue_bytes: 12_345, max_header_len: 300, ..Default::default() };
    let setup = Setup {
        dial: dial.clone(),
        dialer: NetworkConfig { max_message_len: 50_000, ..config() },
        listener: NetworkConfig { max_message_len: 40_000, ..config() },
        ..Default::default()
    };
    let listener = world.node("listener", setup.listener.clone());
    let dialer = world.node("dialer", setup.dialer.clone());
    let address = listener.listen(world.harness.listen_address(), &setup.accept);
    let out = dialer.open(address, &dial);
    let before = dialer.backend().limits(out).expect("it is there");
    assert_eq!((before.max_message_len, before.max_header_len), (50_000, 300));
    assert_eq!((before.queue_messages, before.queue_bytes), (11, 12_345));
    world.until("established", || dialer.is_established(out) && !listener.accepted_peers().is_empty());
    let after = dialer.backend().limits(out).expect("it is there");
    assert_eq!((after.max_message_len, after.max_header_len, after.queue_messages), (40_000, 300, 11));
    let back = listener.backend().limits(listener.accepted_peers()[0].endpoint).expect("it is there");
    assert_eq!(back.max_message_len, 40_000);
    assert!(back.max_header_len >= 256);
}

/// `connections` and `listeners` tell who is there, and in which phase of life.
pub(super) fn connections_and_listeners_are_listed(world: &World) {
    let listener = world.node("listener", config());
    let dialer = world.node("dialer", config());
    assert!(listener.backend().listeners().is_empty() && dialer.backend().connections().is_empty());
    let address = listener.listen(world.harness.listen_address(), &ConnectionParametersRecv::default());
    assert_eq!(listener.backend().listeners().iter().map(|l| l.address).collect::<Vec<_>>(), [address]);
    let out = dialer.open(address, &ConnectionParameters::default());
    let phase = || dialer.backend().connections().iter().find(|c| c.endpoint == out).map(|c| c.phase);
    assert_eq!(phase(), Some(Phase::Opening));
    world.until("established", || dialer.is_established(out) && listener.accepted_peers().len() == 1);
    assert_eq!(phase(), Some(Phase::Established));
    let accepted = listener.backend().connections();
    assert_eq!(accepted.len(), 1);
    assert_eq!((accepted[0].direction, accepted[0].listener), (Direction::Incoming, Some(address)));
    assert_eq!(accepted[0].address, listener.accepted_peers()[0].address);
    dialer.close(out);
    assert_eq!(phase(), Some(Phase::Closing));
    world.until("closed", || dialer.closing(out).is_some() && listener.backend().connections().is_empty());
    assert_eq!(phase(), None);
    listener.backend().close_listen_endpoint(&address).expect("it listens");
    world.until("the listener is gone", || listener.backend().listeners().is_empty());
}

/// Before *established* a send is `NotConnected` and nothing is taken.
pub(super) fn sending_before_established_is_not_connected(world: &World) {
    let setup = Setup::buffers(100, 1);
    let listener = world.node("listener", config());
    let dialer = world.node("dialer", config());
    let address = listener.listen(world.harness.listen_address(), &setup.accept);
    let out = dialer.open(address, &setup.dial);
    for plan in [Plan::zero_copy(9), Plan::zero_copy(9).pieces(3), Plan::copy(9), Plan::copy(9).pieces(3), Plan::zero_copy(0)] {
        assert_eq!(dialer.send(out, plan), NetioStatus::NotConnected, "{plan:?}");
    }
    assert_eq!(dialer.backend().flush(out), Ok(()));
    assert_eq!(dialer.backend().pause(out), Ok(()));
    assert_eq!(dialer.backend().resume(out), Ok(()));
    world.until("established", || dialer.is_established(out) && listener.accepted_peers().len() == 1);
    world.watch();
    assert_eq!((dialer.completed(out), dialer.writables(out)), (0, 0));
    assert_eq!(listener.received(listener.accepted_peers()[0].endpoint), 0);
}

/// Every call that names a connection is `UnknownSendEndpoint` for a handle of another backend or of one that is gone.
pub(super) fn unknown_handles_are_errors_of_every_call(world: &World) {
    let pair = Pair::with(world, Setup::buffers(100, 2));
    let (gone, _) = pair.another(world);
    pair.dialer.close(gone);
    world.until("closed", || pair.dialer.closing(gone).is_some());
    let buffer = || pair.dialer.backend().take_buffer(pair.out).expect("it has buffers").expect("one is free");
    for stranger in [gone, pair.back] {
        super::inside::assert_unknown(&*pair.dialer.backend(), stranger);
        let refused = pair.dialer.backend().send_taken(stranger, buffer()).expect_err("unknown");
        assert_eq!(refused.outcome, Err(SendError::UnknownSendEndpoint(stranger.into())));
    }
    pair.prove_alive(world);
}
