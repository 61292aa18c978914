//! The front before a transport that goes nowhere, turn by turn.

mod accounts;
mod bad_memory;
mod ends;
mod mock;
mod runs;
mod staging;
mod stuck;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use bytes::Bytes;

use self::mock::{MockLoop, MockOpener, MockTransport};
use crate::address::EndPointAddress;
use crate::backend::{CopiedMessage, NetworkBackend, Phase};
use crate::callbacks::{Callbacks, ConnectionInfo};
use crate::config::{ConnectionParameters, ConnectionParametersRecv, NetworkConfig};
use crate::endpoint::Endpoint;
use crate::engine::sync::SyncBackend;
use crate::engine::sync::inbox::{Adoption, Command};
use crate::engine::sync::loop_side::{self, LoopSide};
use crate::engine::sync::mailbox::Mail;
use crate::error::OpenListenError;
use crate::event_loop::{Budget, Next};
use crate::memory::MemoryRegion;
use crate::message::Message;
use crate::stats::ConnectionCounters;
use crate::status::{ClosedReason, Completion, NetioStatus, RefusedReason};

/// Callbacks that send what they are told.
struct Tell(Sender<Told>);

#[derive(Debug, PartialEq)]
enum Told {
    Established,
    Refused(RefusedReason),
    Closed(Vec<u64>, ClosedReason),
    Data,
    Completed(Vec<u64>),
    Writable,
}

fn keys(completions: &[Completion]) -> Vec<u64> {
    completions.iter().map(|completion| completion.key).collect()
}

impl Callbacks for Tell {
    fn on_connection_established(&mut self, _: &dyn NetworkBackend, _: &ConnectionInfo) {
        self.0.send(Told::Established).unwrap();
    }

    fn on_connection_refused(&mut self, backend: &dyn NetworkBackend, at: Endpoint, address: &EndPointAddress, reason: RefusedReason) {
        assert!(backend.limits(at).is_err() && backend.endpoint(address).is_none());
        assert!(backend.totals().connections.get() > 0, "it counts until this was told");
        self.0.send(Told::Refused(reason)).unwrap();
    }

    fn on_connection_closed(
        &mut self,
        backend: &dyn NetworkBackend,
        at: Endpoint,
        address: &EndPointAddress,
        pending: &[Completion],
        reason: ClosedReason,
    ) {
        assert!(backend.limits(at).is_err() && backend.endpoint(address).is_none());
        assert!(backend.totals().connections.get() > 0, "it counts until this was told");
        self.0.send(Told::Closed(keys(pending), reason)).unwrap();
    }

    fn on_data(&mut self, backend: &dyn NetworkBackend, from: Endpoint, _: &EndPointAddress, _: Message<'_>) {
        self.0.send(Told::Data).unwrap();
        backend.pause(from).unwrap();
    }

    fn on_send_completed(&mut self, _: &dyn NetworkBackend, _: Endpoint, _: &EndPointAddress, completions: &[Completion]) {
        self.0.send(Told::Completed(keys(completions))).unwrap();
    }

    fn on_writable(&mut self, _: &dyn NetworkBackend, _: Endpoint, _: &EndPointAddress) {
        self.0.send(Told::Writable).unwrap();
    }
}

struct Scene {
    backend: SyncBackend<MockTransport>,
    wire: MockTransport,
    told: Receiver<Told>,
    ev: MockLoop,
}

const ADDRESS: u16 = 5;

impl Scene {
    fn new() -> Self {
        let (ev, wire) = (MockLoop::new(), MockTransport::default());
        let (tell, told) = mpsc::channel();
        let backend = SyncBackend::start(wire.clone(), MockOpener::default(), NetworkConfig::default(), Box::new(Tell(tell)), &ev);
        Self { backend, wire, told, ev }
    }

    /// With a connection in the first place.
    fn connected(params: &ConnectionParameters) -> (Self, Endpoint) {
        let scene = Self::new();
        let endpoint = scene.elsewhere(|backend| backend.open_send_endpoint(&EndPointAddress::localhost(ADDRESS), params).unwrap());
        scene.ev.turn();
        scene.ev.readable(0);
        assert_eq!(scene.told(), [Told::Established]);
        scene.ev.wakes();
        (scene, endpoint)
    }

    /// Opens a further connection, in the second place.
    fn connect_another(&self) -> Endpoint {
        let address = EndPointAddress::localhost(6);
        let endpoint = self.elsewhere(|backend| backend.open_send_endpoint(&address, &Default::default()).unwrap());
        self.ev.turn();
        self.ev.readable(1);
        endpoint
    }

    /// What belongs to the loop's thread.
    fn loop_side(&self) -> Rc<LoopSide<MockTransport>> {
        loop_side::here(&self.backend.shared).unwrap()
    }

    /// Calls on another thread.
    fn elsewhere<R: Send>(&self, call: impl FnOnce(&dyn NetworkBackend) -> R + Send) -> R {
        let backend = &self.backend;
        thread::scope(|scope| scope.spawn(|| call(backend)).join().unwrap())
    }

    fn told(&self) -> Vec<Told> {
        self.told.try_iter().collect()
    }

    fn send(&self, to: Endpoint, keys: std::ops::Range<u64>) {
        self.elsewhere(|backend| {
            keys.for_each(|key| assert_eq!(backend.send_copy(to, &key.to_le_bytes(), b"", key), Ok(NetioStatus::Ok)));
        });
    }

    fn enqueued(&self) -> Vec<u64> {
        let bytes = self.wire.enqueued.borrow();
        bytes.iter().map(|bytes| u64::from_le_bytes(bytes[..8].try_into().unwrap())).collect()
    }
}

#[test]
fn the_loop_is_woken_once_for_many_messages() {
    let (scene, to) = Scene::connected(&ConnectionParameters::default());
    scene.send(to, 0..100);
    assert_eq!((scene.ev.wakes(), scene.enqueued().len()), (1, 0));
    assert_eq!(scene.ev.turn(), Next::Wait);
    assert_eq!(scene.told(), [Told::Completed((0..100).collect())]);
    scene.send(to, 100..101);
    assert_eq!(scene.ev.wakes(), 1);
    assert_eq!(scene.ev.turn(), Next::Wait);
    assert!(!scene.ev.is_scheduled());
}

#[test]
fn what_the_loop_cannot_adopt_is_refused() {
    let scene = Scene::new();
    scene.wire.full.set(true);
    let endpoint =
        scene.elsewhere(|backend| backend.open_send_endpoint(&EndPointAddress::localhost(ADDRESS), &Default::default()).unwrap());
    assert_eq!(scene.backend.connections()[0].phase, Phase::Opening);
    assert_eq!(scene.ev.turn(), Next::Wait);
    assert_eq!(scene.told(), [Told::Refused(RefusedReason::LocalResource)]);
    assert!(scene.backend.connections().is_empty());
    let totals = scene.backend.totals().snapshot();
    assert_eq!((totals.opened, totals.refused, totals.connections), (1, 1, 0));
    scene.wire.full.set(false);
    let again = scene.backend.open_send_endpoint(&EndPointAddress::localhost(ADDRESS), &Default::default()).unwrap();
    assert_eq!((again.slot(), again == endpoint), (endpoint.slot(), false));
}

#[test]
fn a_listener_that_cannot_be_adopted_is_not_listed() {
    let scene = Scene::new();
    scene.wire.full.set(true);
    let address = EndPointAddress::localhost(ADDRESS);
    let here = scene.backend.open_listen_endpoint(&address, &ConnectionParametersRecv::default());
    assert!(matches!(here, Err(OpenListenError::FailedOpenListenEndpoint { .. })), "found at once on the loop's thread");
    scene.elsewhere(|backend| backend.open_listen_endpoint(&address, &ConnectionParametersRecv::default()).unwrap());
    assert_eq!(scene.backend.listeners().len(), 1);
    scene.ev.turn();
    assert!(scene.backend.listeners().is_empty());
}

#[test]
fn a_batch_beyond_the_budget_keeps_its_order_and_its_close() {
    let (scene, to) = Scene::connected(&ConnectionParameters::default());
    let budget = Budget { messages: 10, bytes: 1_000_000 };
    scene.send(to, 0..25);
    assert_eq!(scene.ev.turn_within(budget), Next::Again);
    scene.send(to, 25..30);
    scene.elsewhere(|backend| backend.close(to).unwrap());
    assert_eq!(scene.elsewhere(|backend| backend.send_copy(to, b"late", b"", 0)), Ok(NetioStatus::NotConnected));
    while scene.ev.turn_within(budget) == Next::Again {}
    assert_eq!(scene.enqueued(), (0..30).collect::<Vec<_>>());
    let mut told = scene.told();
    assert_eq!(told.pop(), Some(Told::Closed(vec![], ClosedReason::Local)));
    let completed = told.into_iter().flat_map(|told| if let Told::Completed(keys) = told { keys } else { panic!("{told:?}") });
    assert_eq!(completed.collect::<Vec<_>>(), (0..30).collect::<Vec<_>>());
}

#[test]
fn an_end_is_noticed_by_what_could_still_be_sent_without_a_look_at_any_limit() {
    let ends: [fn(&dyn NetworkBackend, Endpoint); 3] = [
        |backend, to| backend.close(to).unwrap(),
        |backend, to| backend.abort(to).unwrap(),
        |backend, _| backend.shutdown(Duration::from_secs(1)),
    ];
    for end in ends {
        let (scene, to) = Scene::connected(&ConnectionParameters::default());
        scene.send(to, 0..5);
        scene.elsewhere(|backend| {
            end(backend, to);
            assert_eq!(backend.send_copy(to, b"late", b"", 5), Ok(NetioStatus::NotConnected));
            assert_eq!(backend.send(to, &Bytes::from_static(b"late"), b"", 5), Ok(NetioStatus::NotConnected));
            let late = [CopiedMessage { data: b"late", header: b"", key: 5 }; 2];
            assert_eq!(backend.send_copy_batch(to, &late), Ok((0, NetioStatus::NotConnected)));
        });
    }
}

#[test]
fn no_message_is_longer_than_the_peer_takes_however_it_is_sent() {
    let scene = Scene::new();
    let params = ConnectionParameters { queue_bytes: 1 << 20, ..Default::default() };
    let to = scene.backend.open_send_endpoint(&EndPointAddress::localhost(ADDRESS), &params).unwrap();
    scene.ev.turn();
    scene.wire.max_message_len.set(Some(100));
    scene.ev.readable(0);
    let (fits, longer) = ([1; 92], [1; 93]);
    let copied = |data| CopiedMessage { data, header: &[0; 8], key: 0 };
    for _ in 0..20 {
        assert_eq!(scene.backend.send_copy(to, &fits, &[0; 8], 0), Ok(NetioStatus::Ok));
        assert_eq!(scene.backend.send_copy(to, &longer, &[0; 8], 0), Ok(NetioStatus::TooBig));
        assert_eq!(scene.backend.send(to, &Bytes::from_static(&[1; 101]), b"", 0), Ok(NetioStatus::TooBig));
        let batch = [copied(&fits), copied(&fits), copied(&longer), copied(&fits)];
        assert_eq!(scene.backend.send_copy_batch(to, &batch), Ok((2, NetioStatus::TooBig)));
    }
}

/// Memory whose sharers are counted by the second part.
struct Held([u8; 5_000], #[allow(dead_code, reason = "it is there to be dropped")] Arc<()>);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[test]
fn an_abort_returns_what_the_loop_has_and_what_it_has_not() {
    let (scene, to) = Scene::connected(&ConnectionParameters::default());
    scene.wire.blocked.set(true);
    let count = Arc::new(());
    let long = Bytes::from_owner(Held([0; 5_000], count.clone()));
    scene.send(to, 0..2);
    scene.elsewhere(|backend| assert_eq!(backend.send(to, &long, b"", 2), Ok(NetioStatus::Ok)));
    scene.ev.turn_within(Budget { messages: 2, bytes: 1_000_000 });
    scene.send(to, 3..5);
    scene.elsewhere(|backend| backend.abort(to).unwrap());
    drop(long);
    assert_eq!(Arc::strong_count(&count), 2);
    scene.ev.turn();
    assert_eq!(scene.told(), [Told::Closed(vec![0, 1, 2, 3, 4], ClosedReason::Local)]);
    assert_eq!(Arc::strong_count(&count), 1, "the memory is still held");
    let totals = scene.backend.totals().snapshot();
    assert_eq!((totals.messages_accepted, totals.messages_pending_at_close, totals.queued_messages), (5, 5, 0));
}

#[test]
fn writable_follows_a_refusal_once() {
    let (scene, to) = Scene::connected(&ConnectionParameters { queue_messages: 2, ..Default::default() });
    scene.wire.blocked.set(true);
    scene.send(to, 0..2);
    scene.elsewhere(|backend| (0..3).for_each(|_| assert_eq!(backend.send_copy(to, b"more", b"", 9), Ok(NetioStatus::NoResources))));
    scene.ev.turn();
    assert_eq!(scene.told(), []);
    scene.wire.blocked.set(false);
    scene.elsewhere(|backend| backend.flush(to).unwrap());
    scene.backend.flush(to).unwrap();
    assert_eq!(scene.told(), [], "no callback inside a call");
    scene.ev.turn();
    assert_eq!(scene.told(), [Told::Completed(vec![0, 1]), Told::Writable]);
    scene.ev.turn();
    assert_eq!((scene.told(), scene.backend.stats(to).unwrap().refused_sends.get()), (vec![], 3));
}

#[test]
fn a_pause_in_a_callback_acts_at_once() {
    let (scene, to) = Scene::connected(&ConnectionParameters::default());
    scene.ev.readable(0);
    scene.ev.readable(0);
    assert_eq!(scene.told(), [Told::Data]);
    scene.elsewhere(|backend| backend.resume(to).unwrap());
    assert_eq!(scene.ev.wakes(), 1);
    scene.ev.turn();
    scene.ev.readable(0);
    assert_eq!(scene.told(), [Told::Data]);
}

#[test]
fn a_long_copy_is_taken_whole() {
    let (scene, to) = Scene::connected(&ConnectionParameters::default());
    let mut bytes = vec![3; super::front::COPIED_APART];
    scene.elsewhere(|backend| assert_eq!(backend.send_copy(to, &bytes, b"head", 1), Ok(NetioStatus::Ok)));
    bytes.fill(4);
    scene.ev.turn();
    let sent = scene.wire.enqueued.borrow();
    assert!(sent[0].starts_with(b"head") && sent[0].len() == bytes.len() + 4 && sent[0][4..].iter().all(|byte| *byte == 3));
}

#[test]
fn a_long_copy_is_no_zero_copy_message_that_was_copied() {
    let (scene, to) = Scene::connected(&ConnectionParameters { copy_below: 1 << 20, ..Default::default() });
    assert_eq!(scene.backend.send_copy(to, &vec![1; super::front::COPIED_APART], b"", 0), Ok(NetioStatus::Ok));
    scene.ev.turn();
    assert_eq!(scene.backend.stats(to).unwrap().copied_messages.get(), 0);
    assert_eq!(scene.backend.send(to, &Bytes::from_static(b"shared"), b"", 1), Ok(NetioStatus::Ok));
    scene.ev.turn();
    assert_eq!(scene.backend.stats(to).unwrap().copied_messages.get(), 1);
}

#[test]
fn an_idle_mailbox_gives_its_memory_back() {
    let (scene, to) = Scene::connected(&ConnectionParameters::default());
    let held = || scene.backend.shared.with(to, |mail| mail.capacities().iter().sum::<usize>()).unwrap();
    for _ in 0..3 {
        scene.send(to, 0..5_000);
        scene.ev.turn();
    }
    assert!(held() > 0);
    scene.ev.pass(Duration::from_secs(2));
    scene.ev.turn();
    assert_eq!(held(), 0);
    scene.send(to, 0..1);
    scene.ev.turn();
    assert_eq!(scene.told().pop(), Some(Told::Completed(vec![0])));
}

#[test]
fn batches_are_filled_again() {
    let (scene, to) = Scene::connected(&ConnectionParameters::default());
    let budget = Budget { messages: 700, bytes: 1_000_000 };
    let message = [1; 1_000];
    for _ in 0..50 {
        // Some full ones, which the budget cuts.
        scene.elsewhere(|backend| (0..1_000).for_each(|key| assert_eq!(backend.send_copy(to, &message, b"", key), Ok(NetioStatus::Ok))));
        while scene.ev.turn_within(budget) == Next::Again {}
    }
    let capacities = scene.backend.shared.with(to, |mail| mail.capacities()).unwrap();
    assert!(capacities.len() <= 10 && capacities.iter().sum::<usize>() <= 2_500_000, "{capacities:?}");
    assert_eq!(scene.wire.enqueued.borrow().len(), 50_000);
}

/// A connection with more than a turn's worth does not keep another one from its turn.
#[test]
fn every_mailbox_gets_its_turn() {
    let (scene, busy) = Scene::connected(&ConnectionParameters::default());
    let other = scene.connect_another();
    scene.send(busy, 0..100);
    scene.send(other, 7_777..7_778);
    for _ in 0..2 {
        scene.send(busy, 0..40);
        scene.ev.turn_within(Budget { messages: 10, bytes: 1 << 20 });
    }
    assert!(scene.enqueued().contains(&7_777));
}

/// However long others go on sending, a mailbox is listed once.
#[test]
fn a_mailbox_beyond_the_budget_is_listed_once() {
    let (scene, to) = Scene::connected(&ConnectionParameters { flush_messages: Some(0), ..Default::default() });
    let view = SyncBackend::<MockTransport>::view(scene.backend.shared.clone());
    let send = move |n: u64| (0..n).for_each(|key| assert_eq!(view.send_copy(to, &key.to_le_bytes(), b"", key), Ok(NetioStatus::Ok)));
    send(25);
    scene.wire.meanwhile.replace(Some(Box::new(move || send(5))));
    for budget in [10, 70, 130, 10, 70, 130].repeat(10) {
        scene.ev.turn_within(Budget { messages: budget, bytes: 1 << 20 });
        let listed = scene.loop_side().listed_for_later();
        assert!(listed + scene.backend.shared.inbox.listed() <= 1, "listed {listed} times");
    }
    scene.wire.meanwhile.take();
}

#[test]
fn a_drop_elsewhere_is_carried_out_in_the_next_turn() {
    let (scene, to) = Scene::connected(&ConnectionParameters::default());
    scene.send(to, 0..3);
    let Scene { backend, wire, told, ev } = scene;
    thread::spawn(move || drop(backend)).join().unwrap();
    assert!(ev.has_source());
    assert_eq!(ev.turn(), Next::Wait);
    assert!(!ev.has_source());
    assert!(told.try_iter().next().is_none() && wire.enqueued.borrow().is_empty());
}

#[test]
fn a_drop_here_is_carried_out_at_once() {
    let (scene, to) = Scene::connected(&ConnectionParameters::default());
    scene.send(to, 0..3);
    let Scene { backend, told, ev, .. } = scene;
    drop(backend);
    assert!(!ev.has_source() && told.try_iter().next().is_none());
}

#[test]
fn an_end_before_the_loop_knows_the_connection_is_one_refusal() {
    for aborts in [false, true] {
        let scene = Scene::new();
        let endpoint = scene.elsewhere(|backend| {
            let endpoint = backend.open_send_endpoint(&EndPointAddress::localhost(ADDRESS), &Default::default()).unwrap();
            if aborts {
                backend.abort(endpoint).unwrap()
            } else {
                backend.close(endpoint).unwrap()
            }
            endpoint
        });
        while scene.ev.turn() == Next::Again {}
        assert_eq!(scene.told(), [Told::Refused(RefusedReason::Local)]);
        scene.ev.readable(endpoint.slot());
        scene.ev.turn();
        assert_eq!(scene.told(), [], "once");
        assert!(scene.backend.connections().is_empty());
        assert!(scene.backend.close(endpoint).is_err());
    }
}

/// Another thread may find a connection listed that is not on its way to the loop yet.
#[test]
fn an_end_that_overtakes_its_opening_is_one_refusal() {
    let scene = Scene::new();
    let shared = &scene.backend.shared;
    let (address, params) = (EndPointAddress::localhost(ADDRESS), ConnectionParameters::default());
    let endpoint = shared.ids.allocate(crate::MAX_ENDPOINTS).unwrap();
    let counters: Arc<ConnectionCounters> = Arc::default();
    shared.directory.write().connections += 1;
    shared.totals.connections.rise(1);
    shared.put(Mail::new::<MockTransport>(endpoint, address, &params, &shared.config, counters.clone()));
    scene.elsewhere(|backend| backend.close(endpoint).unwrap());
    scene.ev.turn();
    assert_eq!(scene.told(), []);
    shared.inbox.command(Command::Adopt(Adoption { endpoint, address, params: Arc::new(params), counters, dialing: () }));
    while scene.ev.turn() == Next::Again {}
    assert_eq!(scene.told(), [Told::Refused(RefusedReason::Local)]);
    scene.ev.turn();
    assert_eq!(scene.told(), [], "once");
}

/// Neither the loop nor who sends waits for memory that is being pinned.
#[test]
fn pinning_memory_keeps_nobody_waiting() {
    const PATIENCE: Duration = Duration::from_secs(20);
    let (scene, to) = Scene::connected(&ConnectionParameters::default());
    let regions = [(); 2].map(|()| MemoryRegion::new(4_096).unwrap());
    let registered = regions[0].bytes().unwrap();
    scene.backend.register(&regions[0]).unwrap();
    let (begin, begun) = mpsc::channel();
    let (release, released) = mpsc::channel();
    let pin = move || {
        begin.send(()).unwrap();
        released.recv().unwrap();
    };
    *scene.backend.shared.opener.pinning.lock().unwrap() = Some(Box::new(pin));
    let (finish, finished) = mpsc::channel();
    let in_time = thread::scope(|scope| {
        let backend = &scene.backend;
        scope.spawn(|| backend.register(&regions[1]).unwrap());
        begun.recv_timeout(PATIENCE).expect("it is being pinned");
        // Whoever waits all the same does not do so for ever.
        let watch = scope.spawn(move || {
            let in_time = finished.recv_timeout(PATIENCE).is_ok();
            release.send(()).unwrap();
            in_time
        });
        assert_eq!(backend.send(to, &registered, b"", 1), Ok(NetioStatus::Ok));
        scene.ev.turn();
        finish.send(()).unwrap();
        watch.join().unwrap()
    });
    assert!(in_time, "the memory had to be pinned first");
    assert_eq!(scene.told(), [Told::Completed(vec![1])]);
    assert_eq!(scene.backend.totals().registered_bytes.get(), 2 * 4_096);
}

/// Memory for receiving stays where something is received.
#[test]
fn only_a_connection_that_receives_nothing_gives_memory_back() {
    let (scene, to) = Scene::connected(&ConnectionParameters::default());
    for _ in 0..5 {
        scene.ev.readable(0);
        scene.backend.resume(to).unwrap();
        scene.ev.pass(Duration::from_millis(1_500));
        scene.ev.turn();
        scene.ev.timeout();
        assert_eq!(scene.wire.trims.get(), 0);
    }
    for _ in 0..3 {
        scene.ev.pass(Duration::from_secs(2));
        scene.ev.timeout();
    }
    assert_eq!((scene.wire.trims.get(), scene.told().len()), (1, 5));
}
