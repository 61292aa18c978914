//! Every call from inside every callback.

use std::cell::RefCell;
use std::io::IoSlice;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::node::Node;
use super::pair::{Pair, Setup, all_arrived, connected};
use super::plan::Plan;
use super::recorder::{Call, Kind};
use super::world::World;
use crate::address::EndPointAddress;
use crate::backend::{CopiedMessage, NetworkBackend};
use crate::config::{ConnectionParameters, ConnectionParametersRecv};
use crate::endpoint::Endpoint;
use crate::error::{BufferError, CloseSendError, RunError, SendError, Target};
use crate::memory::MemoryRegion;
use crate::status::NetioStatus;

/// Asserts that every call by handle answers `UnknownSendEndpoint`; `send_taken` needs a buffer and is
/// tried elsewhere.
#[track_caller]
pub(super) fn assert_unknown(backend: &dyn NetworkBackend, endpoint: Endpoint) {
    let target = Target::from(endpoint);
    let unknown = SendError::UnknownSendEndpoint(target);
    let bytes = Bytes::from_static(b"x");
    let slices = [IoSlice::new(b"x")];
    assert_eq!(backend.send(endpoint, &bytes, b"", 1), Err(unknown));
    assert_eq!(backend.send_iov(endpoint, &[bytes.clone(), bytes], b"", 1), Err(unknown));
    assert_eq!(backend.send_copy(endpoint, b"x", b"", 1), Err(unknown));
    assert_eq!(backend.send_copy_iov(endpoint, &slices, b"", 1), Err(unknown));
    assert_eq!(backend.send_copy_batch(endpoint, &[CopiedMessage::default(); 2]), Err(unknown));
    assert_eq!(backend.pause(endpoint), Err(unknown));
    assert_eq!(backend.resume(endpoint), Err(unknown));
    assert_eq!(backend.flush(endpoint), Err(unknown));
    assert_eq!(backend.limits(endpoint), Err(unknown));
    assert_eq!(backend.stats(endpoint).expect_err("unknown"), unknown);
    assert_eq!(backend.take_buffer(endpoint).expect_err("unknown"), BufferError::UnknownSendEndpoint(target));
    assert_eq!(backend.available_buffers(endpoint), Err(BufferError::UnknownSendEndpoint(target)));
    for closed in [backend.close(endpoint), backend.abort(endpoint)] {
        assert!(matches!(closed, Err(CloseSendError::UnknownSendEndpoint(named)) if named == target), "{closed:?}");
    }
    assert!(backend.connections().iter().all(|connection| connection.endpoint != endpoint));
}

/// What an action may use besides the callback's own arguments.
struct Scene {
    /// The connection that the callback is about is still known to the backend.
    known: bool,
    /// It owns its address.
    owner: bool,
    listen_address: EndPointAddress,
    nobody_listens: EndPointAddress,
    /// A listener of the actor's that accepted nothing.
    own_listener: EndPointAddress,
}

/// What is left of the actor after an action.
#[derive(Clone, Copy, PartialEq)]
enum After {
    /// It goes on, and so does the connection.
    Same,
    /// The connection ends, the backend goes on.
    Closes,
    /// It shuts down.
    ShutsDown,
    /// It is gone.
    Gone,
}

/// Which side of the connection acts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Role {
    Dialer,
    Acceptor,
}

type Act = fn(&Call<'_, '_>, &Scene);

/// Every call of the trait, as done from inside a callback. (`send_raw_iov` is tried in `raw`.)
const ACTIONS: &[(&str, After, Act)] = &[
    ("open_send_endpoint", After::Same, |call, scene| {
        call.node.open_through(call.backend, scene.nobody_listens, &ConnectionParameters::default()).expect("the address is free");
    }),
    ("connect", After::Same, |call, scene| {
        call.backend.connect(&scene.nobody_listens, &ConnectionParameters::default()).expect("it can be started");
    }),
    ("open_listen_endpoint", After::Same, |call, scene| {
        let bound = call.backend.open_listen_endpoint(&scene.listen_address, &ConnectionParametersRecv::default()).expect("a free port");
        assert!(call.backend.listeners().iter().any(|listener| listener.address == bound));
    }),
    ("close_listen_endpoint", After::Same, |call, scene| {
        call.backend.close_listen_endpoint(&scene.own_listener).expect("it listens");
    }),
    ("send", After::Same, |call, scene| send(call, scene, Plan::zero_copy(5_000))),
    ("send_iov", After::Same, |call, scene| send(call, scene, Plan::zero_copy(50_000).pieces(9).header(9))),
    ("send_copy", After::Same, |call, scene| send(call, scene, Plan::copy(70))),
    ("send_copy_iov", After::Same, |call, scene| send(call, scene, Plan::copy(7_000).pieces(5))),
    ("send_copy_batch", After::Same, |call, scene| {
        let sent = call.node.send_batch(call.backend, call.endpoint, &[(2, 30), (0, 0)]);
        let unknown = SendError::UnknownSendEndpoint(call.endpoint.into());
        assert_eq!(sent, if scene.known { Ok((2, NetioStatus::Ok)) } else { Err(unknown) });
    }),
    ("take_buffer and send_taken", After::Same, |call, scene| send(call, scene, Plan::buffer(100))),
    ("by address", After::Same, |call, scene| match scene.owner {
        true => send(call, scene, Plan::copy(60).by_address(call.address)),
        false => assert_eq!(call.backend.endpoint(&call.address), None),
    }),
    ("take_buffer and drop", After::Same, |call, scene| {
        assert_eq!(call.backend.take_buffer(call.endpoint).is_ok(), scene.known);
        assert_eq!(call.backend.available_buffers(call.endpoint).is_ok(), scene.known);
    }),
    ("register and deregister", After::Same, |call, _| {
        let region = MemoryRegion::new(4_096).expect("memory");
        let id = call.backend.register(&region).expect("there is room");
        call.backend.deregister(id).expect("nothing holds it");
    }),
    ("pause and resume", After::Same, |call, scene| {
        assert_eq!(call.backend.pause(call.endpoint).is_ok(), scene.known);
        assert_eq!(call.backend.resume(call.endpoint).is_ok(), scene.known);
    }),
    ("flush", After::Same, |call, scene| {
        assert_eq!(call.backend.flush(call.endpoint).is_ok(), scene.known);
        send(call, scene, Plan::copy(10));
        assert_eq!(call.backend.flush(call.endpoint).is_ok(), scene.known);
    }),
    ("limits, stats, totals and lists", After::Same, |call, scene| {
        assert_eq!(call.backend.limits(call.endpoint).is_ok(), scene.known);
        assert_eq!(call.backend.stats(call.endpoint).is_ok(), scene.known);
        call.backend.totals().snapshot();
        assert_eq!(call.backend.connections().iter().any(|connection| connection.endpoint == call.endpoint), scene.known);
        assert!(call.backend.listeners().iter().any(|listener| listener.address == scene.own_listener));
    }),
    ("close", After::Closes, |call, scene| {
        assert_eq!(call.backend.close(call.endpoint).is_ok(), scene.known);
        assert_eq!(call.backend.send_copy(call.endpoint, b"x", b"", 0).ok(), scene.known.then_some(NetioStatus::NotConnected));
    }),
    ("close_send_endpoint", After::Closes, |call, scene| {
        assert_eq!(call.backend.close_send_endpoint(&call.address).is_ok(), scene.owner);
        // Accepted connections own no address.
        assert_eq!(call.backend.close(call.endpoint).is_ok(), scene.known, "closing twice is no error");
    }),
    ("abort", After::Closes, |call, scene| {
        assert_eq!(call.backend.abort(call.endpoint).is_ok(), scene.known);
        assert_eq!(call.backend.send_copy(call.endpoint, b"x", b"", 0).ok(), scene.known.then_some(NetioStatus::NotConnected));
    }),
    ("shutdown", After::ShutsDown, |call, _| call.backend.shutdown(Duration::from_secs(5))),
    ("drop", After::Gone, |call, _| call.node.drop_backend()),
];

fn send(call: &Call<'_, '_>, scene: &Scene, plan: Plan) {
    match scene.known {
        true => assert_eq!(call.send(call.endpoint, plan), NetioStatus::Ok),
        false => {
            assert_eq!(call.node.send_through(call.backend, call.endpoint, plan), Err(SendError::UnknownSendEndpoint(call.endpoint.into())))
        }
    }
}

/// Bytes of the message that provokes the callback.
const SMALL: usize = 40;
const LARGE: usize = 3 << 20;

/// For each side and each action: a fresh pair of which one does it inside its first callback of `kind`.
fn act_inside(world: &World, kind: Kind, len: usize) {
    for role in [Role::Dialer, Role::Acceptor] {
        if kind == Kind::Refused && role == Role::Acceptor {
            continue; // nobody is refused there
        }
        for (name, after, act) in ACTIONS {
            world.note(format!("----- {role:?}: {name} inside {kind:?}"));
            act_once(world, kind, role, len, *after, *act);
        }
    }
}

fn act_once(world: &World, kind: Kind, role: Role, len: usize, after: After, act: Act) {
    let mut setup = Setup::buffers(1_000, 8);
    setup.dial.queue_messages = 4;
    setup.accept.connection.queue_messages = 4;
    let peer = world.node("peer", setup.listener.clone());
    let actor = world.node("actor", setup.dialer.clone());
    let peers_listener = peer.listen(world.harness.listen_address(), &setup.accept);
    let actors_listener = actor.listen(world.harness.listen_address(), &setup.accept);
    let known = !matches!(kind, Kind::Refused | Kind::Closed);
    let scene = Scene {
        known,
        owner: known && role == Role::Dialer,
        listen_address: world.harness.listen_address(),
        nobody_listens: world.harness.nobody_listens(),
        own_listener: actor.listen(world.harness.listen_address(), &setup.accept),
    };
    let done = Rc::new(RefCell::new(None));
    let outcome = done.clone();
    actor.once(kind, move |call| {
        act(call, &scene);
        outcome.replace(Some(call.endpoint));
    });
    let open = || match role {
        Role::Dialer => actor.open(peers_listener, &setup.dial),
        Role::Acceptor => peer.open(actors_listener, &setup.dial),
    };
    match kind {
        Kind::Refused => drop_handle(actor.connect(world.harness.nobody_listens(), &setup.dial)),
        Kind::Established => drop_handle(open()),
        _ => {
            let (mine, theirs) = match role {
                Role::Dialer => connected(world, &actor, &peer, open),
                Role::Acceptor => swap(connected(world, &peer, &actor, open)),
            };
            match kind {
                Kind::Data => peer.sent(theirs, Plan::zero_copy(len)),
                Kind::Completed => actor.sent(mine, Plan::zero_copy(len)),
                Kind::Closed => peer.close(theirs),
                _ => while actor.send(mine, Plan::zero_copy(len)) == NetioStatus::Ok {},
            }
        }
    }
    world.until("the callback comes", || done.borrow().is_some());
    let endpoint = done.borrow().expect("just seen");
    settle(world, kind, after, &actor, &peer, endpoint);
    // Whatever became of the actor, its peer and the loop serve others.
    let other = world.node("other", setup.dialer.clone());
    let (out, back) = connected(world, &other, &peer, || other.open(peers_listener, &setup.dial));
    other.sent(out, Plan::copy(90));
    world.until("others are served", || peer.received(back) == 1);
    [actor, peer, other].iter().for_each(Node::drop_if_alive);
}

/// Waits for what an action must lead to.
fn settle(world: &World, kind: Kind, after: After, actor: &Node, peer: &Node, mine: Endpoint) {
    if kind == Kind::Refused || (kind == Kind::Closed && after == After::Same) {
        return;
    }
    let theirs = || peer.established_ends().first().copied();
    match after {
        After::Same => {
            world.until("the peer is established", || theirs().is_some());
            let at = theirs().expect("just seen");
            world.until("what was sent inside arrives", || all_arrived(actor, mine, peer, at));
            actor.sent(mine, Plan::copy(10));
            world.until("the connection goes on", || all_arrived(actor, mine, peer, at));
        }
        After::Closes | After::ShutsDown => {
            world.until("closed", || actor.closing(mine).is_some());
            world.until("the peer sees the end, if it saw the beginning", || peer.backend().connections().is_empty());
        }
        After::Gone => world.until("the peer sees the end, if it saw the beginning", || peer.backend().connections().is_empty()),
    }
}

fn drop_handle(_: Endpoint) {}

fn swap((a, b): (Endpoint, Endpoint)) -> (Endpoint, Endpoint) {
    (b, a)
}

/// Every call is allowed inside *established*, closing the connection and dropping the backend included.
pub(super) fn every_call_is_allowed_inside_established(world: &World) {
    act_inside(world, Kind::Established, SMALL);
}

/// Every call is allowed inside *refused*.
pub(super) fn every_call_is_allowed_inside_refused(world: &World) {
    act_inside(world, Kind::Refused, SMALL);
}

/// Every call is allowed inside *closed*.
pub(super) fn every_call_is_allowed_inside_closed(world: &World) {
    act_inside(world, Kind::Closed, SMALL);
}

/// Every call is allowed inside *data*.
pub(super) fn every_call_is_allowed_inside_data(world: &World) {
    act_inside(world, Kind::Data, SMALL);
}

/// Every call is allowed inside *data* of a message too large for what is read at once.
pub(super) fn every_call_is_allowed_inside_data_of_a_large_message(world: &World) {
    act_inside(world, Kind::Data, LARGE);
}

/// An abort or a drop inside *data* holds from the next message on, those read already included.
pub(super) fn nothing_read_already_follows_an_end_inside_data(world: &World) {
    for drops in [false, true] {
        let pair = Pair::new(world);
        pair.listener.on(Kind::Data, move |call| match call.node.received(call.endpoint) {
            3 if drops => call.node.drop_backend(),
            3 => call.backend.abort(call.endpoint).expect("it is there"),
            _ => {}
        });
        (0..20).for_each(|i| pair.dialer.sent(pair.out, Plan::copy(i * 10)));
        world.until("the peer sees the end", || pair.dialer.closing(pair.out).is_some());
        world.watch();
        assert_eq!(pair.listener.received(pair.back), 3);
        pair.listener.drop_if_alive();
    }
}

/// Every call is allowed inside *completed*.
pub(super) fn every_call_is_allowed_inside_completed(world: &World) {
    act_inside(world, Kind::Completed, SMALL);
}

/// Every call is allowed inside *completed* of a message too large for what is written at once.
pub(super) fn every_call_is_allowed_inside_completed_of_a_large_message(world: &World) {
    act_inside(world, Kind::Completed, LARGE);
}

/// Every call is allowed inside *writable*.
pub(super) fn every_call_is_allowed_inside_writable(world: &World) {
    act_inside(world, Kind::Writable, SMALL);
}

/// `run`, `run_for`, `run_until` and `run_once` inside any callback are `RunError::Nested`, and do no harm.
pub(super) fn running_inside_a_callback_is_nested(world: &World) {
    let pair = Pair::with(world, Setup::queue(1));
    let tried = Rc::new(RefCell::new(Vec::new()));
    for kind in Kind::ALL {
        let (ev, seen) = (world.ev().handle(), tried.clone());
        pair.dialer.once(kind, move |_| {
            assert!(matches!(ev.run(), Err(RunError::Nested)));
            assert!(matches!(ev.run_for(Duration::ZERO), Err(RunError::Nested)));
            assert!(matches!(ev.run_until(&mut || true, Duration::ZERO), Err(RunError::Nested)));
            assert!(matches!(ev.run_once(Some(Duration::ZERO)), Err(RunError::Nested)));
            assert!(ev.is_running());
            seen.borrow_mut().push(kind);
        });
    }
    pair.another(world);
    pair.dialer.sent(pair.out, Plan::copy(1));
    assert_eq!(pair.dialer.send(pair.out, Plan::copy(1)), NetioStatus::NoResources);
    pair.listener.sent(pair.back, Plan::copy(1));
    pair.dialer.connect(world.harness.nobody_listens(), &ConnectionParameters::default());
    world.until("four kinds of callbacks", || tried.borrow().len() == 5);
    pair.deliver(world);
    pair.dialer.close(pair.out);
    world.until("all kinds of callbacks", || tried.borrow().len() == 6);
}

/// A call never runs a callback before it returns, whatever it leads to.
pub(super) fn a_call_never_runs_a_callback(world: &World) {
    // The journal would show a callback outside the loop; here are the calls most likely to run one.
    let pair = Pair::with(world, Setup::queue(2));
    let before = pair.dialer.callbacks();
    let backend = pair.dialer.backend();
    pair.dialer.connect(world.harness.nobody_listens(), &ConnectionParameters::default());
    let second = pair.dialer.connect(pair.address, &pair.setup.dial);
    pair.dialer.close(second);
    while pair.dialer.send(pair.out, Plan::copy(1)) == NetioStatus::Ok {}
    backend.flush(pair.out).expect("it is there");
    backend.abort(pair.out).expect("it is there");
    backend.shutdown(Duration::ZERO);
    assert_eq!(pair.dialer.callbacks(), before);
    drop(backend);
    world.until("all end", || pair.dialer.backend().connections().is_empty());
}
