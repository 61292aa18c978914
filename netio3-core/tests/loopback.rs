//! The loopback backend as a program uses it.

use std::cell::{Cell, RefCell};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netio3_core::{
    Budget, Callbacks, ClosedReason, Completion, ConnectionInfo, ConnectionParameters, ConnectionParametersRecv, EndPointAddress, Endpoint,
    EventLoop, Handlers, Interest, Message, NetioStatus, NetworkBackend, NetworkConfig, Next, Ready, RefusedReason, Source, loopback,
};
use netio3_evloop::{EpollEventLoop, Handle};

const WAIT: Duration = Duration::from_secs(20);

/// What happened, in the order of the callbacks.
#[derive(Clone, Debug, PartialEq)]
enum Event {
    Established(Endpoint),
    Refused(Endpoint, RefusedReason),
    Closed(Endpoint, Vec<u64>, ClosedReason),
    Data(Endpoint, Vec<u8>),
    Completed(Endpoint, Vec<u64>),
    Writable(Endpoint),
}

/// Callbacks that write a log, and answer every message if they are told to.
#[derive(Clone, Default)]
struct Log {
    events: Rc<RefCell<Vec<Event>>>,
    echo: bool,
}

impl Log {
    fn push(&self, event: Event) {
        self.events.borrow_mut().push(event);
    }

    fn has(&self, wanted: impl Fn(&Event) -> bool) -> bool {
        self.events.borrow().iter().any(wanted)
    }

    fn established(&self) -> Option<Endpoint> {
        self.events.borrow().iter().find_map(|event| if let Event::Established(endpoint) = event { Some(*endpoint) } else { None })
    }

    fn closed(&self) -> Option<ClosedReason> {
        self.events.borrow().iter().find_map(|event| if let Event::Closed(_, _, reason) = event { Some(*reason) } else { None })
    }

    fn data(&self) -> Vec<Vec<u8>> {
        self.events.borrow().iter().filter_map(|event| if let Event::Data(_, data) = event { Some(data.clone()) } else { None }).collect()
    }

    fn completed(&self) -> Vec<u64> {
        let keys = |event: &Event| if let Event::Completed(_, keys) = event { keys.clone() } else { Vec::new() };
        self.events.borrow().iter().flat_map(keys).collect()
    }
}

impl Callbacks for Log {
    fn on_connection_established(&mut self, _: &dyn NetworkBackend, connection: &ConnectionInfo) {
        self.push(Event::Established(connection.endpoint));
    }

    fn on_connection_refused(&mut self, _: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress, reason: RefusedReason) {
        self.push(Event::Refused(endpoint, reason));
    }

    fn on_connection_closed(
        &mut self,
        _: &dyn NetworkBackend,
        endpoint: Endpoint,
        _: &EndPointAddress,
        pending: &[Completion],
        reason: ClosedReason,
    ) {
        self.push(Event::Closed(endpoint, pending.iter().map(|completion| completion.key).collect(), reason));
    }

    fn on_data(&mut self, backend: &dyn NetworkBackend, from: Endpoint, _: &EndPointAddress, message: Message<'_>) {
        if self.echo {
            assert_eq!(backend.send_copy(from, &message, b"", 0).unwrap(), NetioStatus::Ok);
        }
        self.push(Event::Data(from, message.to_vec()));
    }

    fn on_send_completed(&mut self, _: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress, completions: &[Completion]) {
        self.push(Event::Completed(endpoint, completions.iter().map(|completion| completion.key).collect()));
    }

    fn on_writable(&mut self, _: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress) {
        self.push(Event::Writable(endpoint));
    }
}

/// A backend that listens and one that is connected to it, on one loop.
struct Pair {
    ev: EpollEventLoop,
    near: Box<dyn NetworkBackend>,
    far: Box<dyn NetworkBackend>,
    near_log: Log,
    far_log: Log,
    /// The connection, as `near` calls it.
    to_far: Endpoint,
    /// The connection, as `far` calls it.
    to_near: Endpoint,
}

fn until(ev: &EpollEventLoop, what: &str, mut condition: impl FnMut() -> bool) {
    assert!(ev.run_until(&mut condition, WAIT).unwrap(), "not within {WAIT:?}: {what}");
}

fn pair(far_log: Log, params: &ConnectionParameters) -> Pair {
    let ev = EpollEventLoop::new().unwrap();
    let near_log = Log::default();
    let near = loopback::create_local(NetworkConfig::default(), Box::new(near_log.clone()), &*ev).unwrap();
    let far = loopback::create_local(NetworkConfig::default(), Box::new(far_log.clone()), &*ev).unwrap();
    let address = far.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default()).unwrap();
    let to_far = near.open_send_endpoint(&address, params).unwrap();
    until(&ev, "established", || near_log.established().is_some() && far_log.established().is_some());
    let to_near = far_log.established().unwrap();
    Pair { ev, near, far, near_log, far_log, to_far, to_near }
}

#[test]
fn an_echo_comes_back() {
    let pair = pair(Log { echo: true, ..Log::default() }, &ConnectionParameters::default());
    let payload = Bytes::from(vec![3; 5_000]);
    assert_eq!(pair.near.send(pair.to_far, &payload, b"head", 7).unwrap(), NetioStatus::Ok);
    assert_eq!(pair.near.send_copy(pair.to_far, b"second", b"", 8).unwrap(), NetioStatus::Ok);
    until(&pair.ev, "the echo", || pair.near_log.data().len() == 2 && pair.near_log.completed().len() == 2);
    assert_eq!(pair.near_log.completed(), [7, 8]);
    assert_eq!(pair.near_log.data(), [[&b"head"[..], &[3; 5_000]].concat(), b"second".to_vec()]);
    assert!(payload.is_unique(), "its memory is the user's again");
}

#[test]
fn nobody_listens() {
    let ev = EpollEventLoop::new().unwrap();
    let log = Log::default();
    let backend = loopback::create_local(NetworkConfig::default(), Box::new(log.clone()), &*ev).unwrap();
    let endpoint = backend.open_send_endpoint(&EndPointAddress::localhost(1), &ConnectionParameters::default()).unwrap();
    until(&ev, "refused", || log.has(|event| *event == Event::Refused(endpoint, RefusedReason::NoListener)));
}

#[test]
fn reopening_in_vain_does_not_keep_the_loop() {
    struct Stubborn(Rc<Cell<usize>>);
    impl Callbacks for Stubborn {
        fn on_connection_refused(&mut self, backend: &dyn NetworkBackend, _: Endpoint, address: &EndPointAddress, _: RefusedReason) {
            self.0.set(self.0.get() + 1);
            let endpoint = backend.open_send_endpoint(address, &ConnectionParameters::default()).unwrap();
            backend.close(endpoint).unwrap();
        }
    }
    let ev = EpollEventLoop::new().unwrap();
    let refusals = Rc::new(Cell::new(0));
    let backend = loopback::create_local(NetworkConfig::default(), Box::new(Stubborn(refusals.clone())), &*ev).unwrap();
    let endpoint = backend.open_send_endpoint(&EndPointAddress::localhost(1), &ConnectionParameters::default()).unwrap();
    backend.close(endpoint).unwrap();
    until(&ev, "ten refusals", || refusals.get() >= 10);
}

#[test]
fn as_many_connections_as_there_are_ports_come_from_one_address() {
    const PORTS: usize = 65_536 - 1_024;
    let ev = EpollEventLoop::new().unwrap();
    let config = NetworkConfig { max_connections: 2 * PORTS, ..NetworkConfig::default() };
    let address = "10.9.0.1:1".parse().unwrap();
    for _ in 0..2 {
        // All are given back by those that end.
        let backend = loopback::create_local(config.clone(), Box::new(Log::default()), &*ev).unwrap();
        let connect = || backend.connect(&address, &ConnectionParameters::default());
        assert_eq!((0..2 * PORTS).take_while(|_| connect().is_ok()).count(), PORTS);
        assert!(connect().unwrap_err().to_string().contains("10.9.0.1:1"));
    }
}

#[test]
fn closing_delivers_what_was_accepted() {
    for near_closes in [true, false] {
        let pair = pair(Log::default(), &ConnectionParameters::default());
        for key in 0..100 {
            assert_eq!(pair.near.send_copy(pair.to_far, &[1; 30_000], b"", key).unwrap(), NetioStatus::Ok);
            assert_eq!(pair.far.send_copy(pair.to_near, &[2; 30_000], b"", key).unwrap(), NetioStatus::Ok);
        }
        match near_closes {
            true => pair.near.close(pair.to_far).unwrap(),
            false => pair.far.close(pair.to_near).unwrap(),
        }
        until(&pair.ev, "closed", || pair.near_log.closed().is_some() && pair.far_log.closed().is_some());
        let (here, there) = if near_closes { (&pair.near_log, &pair.far_log) } else { (&pair.far_log, &pair.near_log) };
        assert_eq!((here.closed(), there.closed()), (Some(ClosedReason::Local), Some(ClosedReason::PeerClosed)));
        for log in [here, there] {
            assert_eq!((log.data().len(), log.completed().len()), (100, 100));
        }
    }
}

#[test]
fn closing_from_both_sides_at_once_is_local_on_both() {
    let pair = pair(Log::default(), &ConnectionParameters::default());
    pair.near.close(pair.to_far).unwrap();
    pair.far.close(pair.to_near).unwrap();
    until(&pair.ev, "closed", || pair.near_log.closed().is_some() && pair.far_log.closed().is_some());
    assert_eq!((pair.near_log.closed(), pair.far_log.closed()), (Some(ClosedReason::Local), Some(ClosedReason::Local)));
}

#[test]
fn what_lies_in_the_pipe_is_delivered_before_the_loss() {
    let pair = pair(Log::default(), &ConnectionParameters::default());
    assert_eq!(pair.near.send_copy(pair.to_far, b"last words", b"", 1).unwrap(), NetioStatus::Ok);
    pair.near.flush(pair.to_far).unwrap();
    drop(pair.near);
    until(&pair.ev, "lost", || pair.far_log.closed().is_some());
    assert_eq!(pair.far_log.closed(), Some(ClosedReason::PeerLost));
    assert_eq!(pair.far_log.data(), [b"last words"]);
}

#[test]
fn a_peer_that_is_paused_fills_the_queue_and_writable_follows() {
    let params = ConnectionParameters { queue_messages: 100, ..Default::default() };
    let pair = pair(Log::default(), &params);
    pair.far.pause(pair.to_near).unwrap();
    let sent = Cell::new(0);
    let mut full = false;
    while !full {
        full = true;
        while pair.near.send_copy(pair.to_far, b"message", b"", sent.get()).unwrap() == NetioStatus::Ok {
            sent.set(sent.get() + 1);
            full = false;
        }
        (0..3).for_each(|_| pair.ev.run_once(Some(Duration::ZERO)).unwrap());
    }
    assert!(sent.get() > 1_000, "{} messages", sent.get());
    assert!(pair.far_log.data().is_empty());
    let writables = |log: &Log| log.events.borrow().iter().filter(|event| matches!(event, Event::Writable(_))).count();
    let before = writables(&pair.near_log);
    pair.far.resume(pair.to_near).unwrap();
    until(&pair.ev, "all of it", || pair.far_log.data().len() as u64 == sent.get() && pair.near_log.completed().len() as u64 == sent.get());
    assert_eq!(writables(&pair.near_log), before + 1);
    assert!(pair.near_log.completed().iter().copied().eq(0..sent.get()));
}

#[test]
fn what_an_abort_leaves_in_the_pipe_is_counted_as_discarded() {
    let pair = pair(Log::default(), &ConnectionParameters::default());
    pair.far.pause(pair.to_near).unwrap();
    (0..10).for_each(|key| assert_eq!(pair.near.send_copy(pair.to_far, b"message", b"", key).unwrap(), NetioStatus::Ok));
    until(&pair.ev, "they are in the pipe", || pair.near_log.completed().len() == 10);
    let stats = pair.far.stats(pair.to_near).unwrap();
    pair.far.abort(pair.to_near).unwrap();
    until(&pair.ev, "closed", || pair.far_log.closed().is_some() && pair.near_log.closed().is_some());
    assert_eq!((pair.far_log.data().len(), pair.near_log.closed()), (0, Some(ClosedReason::PeerLost)));
    assert_eq!((stats.messages_discarded.get(), pair.far.totals().messages_discarded.get()), (10, 10));
}

#[test]
fn closing_a_paused_connection_discards_what_waits() {
    let pair = pair(Log::default(), &ConnectionParameters::default());
    pair.far.pause(pair.to_near).unwrap();
    // More than the pipe holds, so that the peer's goodbye has to wait for room.
    for key in 0..100 {
        assert_eq!(pair.near.send_copy(pair.to_far, &[1; 30_000], b"", key).unwrap(), NetioStatus::Ok);
    }
    (0..3).for_each(|_| pair.ev.run_once(Some(Duration::ZERO)).unwrap());
    let stats = pair.far.stats(pair.to_near).unwrap();
    let began = Instant::now();
    pair.far.close(pair.to_near).unwrap();
    until(&pair.ev, "closed", || pair.near_log.closed().is_some() && pair.far_log.closed().is_some());
    assert!(began.elapsed() < ConnectionParameters::default().close_deadline / 2, "it did not come to the deadline");
    assert_eq!((pair.far_log.closed(), pair.near_log.closed()), (Some(ClosedReason::Local), Some(ClosedReason::PeerClosed)));
    assert_eq!((stats.messages_discarded.get(), pair.far_log.data().len(), pair.near_log.completed().len()), (100, 0, 100));
}

#[test]
fn a_large_message_passes_whole() {
    let pair = pair(Log { echo: true, ..Log::default() }, &ConnectionParameters { queue_bytes: 1_000, ..Default::default() });
    let data: Vec<u8> = (0..20_000_000_u32).map(|i| (i % 251) as u8).collect();
    assert_eq!(pair.near.send(pair.to_far, &Bytes::from(data.clone()), b"", 1).unwrap(), NetioStatus::Ok);
    until(&pair.ev, "the echo", || !pair.near_log.data().is_empty());
    assert!(pair.near_log.data() == [data]);
}

#[test]
fn backends_on_two_threads() {
    const COUNT: u64 = 20_000;
    let (tell_address, address) = mpsc::channel();
    let received = Arc::new(AtomicUsize::new(0));
    let counted = received.clone();
    let far = thread::spawn(move || {
        struct Echo(Arc<AtomicUsize>, Rc<Cell<bool>>);
        impl Callbacks for Echo {
            fn on_data(&mut self, backend: &dyn NetworkBackend, from: Endpoint, _: &EndPointAddress, message: Message<'_>) {
                self.0.fetch_add(1, Ordering::Relaxed);
                assert_eq!(backend.send_copy(from, &message, b"", 0).unwrap(), NetioStatus::Ok);
            }

            fn on_connection_closed(
                &mut self,
                _: &dyn NetworkBackend,
                _: Endpoint,
                _: &EndPointAddress,
                pending: &[Completion],
                reason: ClosedReason,
            ) {
                assert_eq!((pending, reason), (&[][..], ClosedReason::PeerClosed));
                self.1.set(true);
            }
        }
        let ev = EpollEventLoop::new().unwrap();
        let closed = Rc::new(Cell::new(false));
        let backend = loopback::create_local(NetworkConfig::default(), Box::new(Echo(counted, closed.clone())), &*ev).unwrap();
        let bound = backend.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default()).unwrap();
        tell_address.send(bound).unwrap();
        until(&ev, "closed", || closed.get());
    });
    let ev = EpollEventLoop::new().unwrap();
    let log = Log::default();
    let near = loopback::create_local(NetworkConfig::default(), Box::new(log.clone()), &*ev).unwrap();
    let to = near.open_send_endpoint(&address.recv().unwrap(), &ConnectionParameters::default()).unwrap();
    until(&ev, "established", || log.established().is_some());
    let mut next = 0_u64;
    until(&ev, "all echoes", || {
        while next < COUNT && near.send_copy(to, &next.to_le_bytes(), b"", next).unwrap() == NetioStatus::Ok {
            next += 1;
        }
        log.events.borrow().iter().filter(|event| matches!(event, Event::Data(..))).count() as u64 == COUNT
    });
    near.close(to).unwrap();
    until(&ev, "closed", || log.closed().is_some());
    far.join().unwrap();
    assert_eq!(received.load(Ordering::Relaxed) as u64, COUNT);
    assert!(log.data().iter().map(|data| u64::from_le_bytes(data[..].try_into().unwrap())).eq(0..COUNT));
    assert_eq!(log.closed(), Some(ClosedReason::Local));
}

/// Two backends on a loop each, connected; the second loop runs only when it is told to.
fn apart(near_config: NetworkConfig, far_config: NetworkConfig) -> (EpollEventLoop, Box<dyn NetworkBackend>, Log, Endpoint, impl Sized) {
    let (ev, far_ev) = (EpollEventLoop::new().unwrap(), EpollEventLoop::new().unwrap());
    let (log, far_log) = (Log::default(), Log::default());
    let near = loopback::create_local(near_config, Box::new(log.clone()), &*ev).unwrap();
    let far = loopback::create_local(far_config, Box::new(far_log.clone()), &*far_ev).unwrap();
    let address = far.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default()).unwrap();
    let endpoint = near.open_send_endpoint(&address, &ConnectionParameters::default()).unwrap();
    until(&ev, "established", || {
        far_ev.run_once(Some(Duration::ZERO)).unwrap();
        log.established().is_some() && far_log.established().is_some()
    });
    (ev, near, log, endpoint, (far, far_ev))
}

#[test]
fn a_peer_is_judged_again_after_a_pause() {
    let quiet = NetworkConfig { heartbeat_interval: Duration::ZERO, missed_heartbeats: 2, ..Default::default() };
    let beating = NetworkConfig { heartbeat_interval: Duration::from_millis(20), ..Default::default() };
    let (ev, near, log, endpoint, _far) = apart(quiet, beating);
    near.pause(endpoint).unwrap();
    ev.run_for(Duration::from_millis(200)).unwrap();
    assert_eq!(log.closed(), None, "who is not read from is not judged");
    near.resume(endpoint).unwrap();
    until(&ev, "the silent peer is given up", || log.closed().is_some());
    assert_eq!(log.closed(), Some(ClosedReason::HeartbeatTimeout));
}

#[test]
fn a_loop_that_comes_late_stalls_no_queue() {
    let params = ConnectionParameters { stall_timeout: Some(Duration::from_millis(30)), ..Default::default() };
    let pair = pair(Log::default(), &params);
    assert_eq!(pair.near.send_copy(pair.to_far, b"message", b"", 1).unwrap(), NetioStatus::Ok);
    thread::sleep(Duration::from_millis(60));
    until(&pair.ev, "sent", || pair.near_log.completed() == [1] || pair.near_log.closed().is_some());
    assert_eq!(pair.near_log.closed(), None);
}

#[test]
fn a_completion_from_outside_makes_a_nested_loop_readable() {
    struct Nest(Handle);
    impl Source for Nest {
        fn ready(&mut self, _: &dyn EventLoop, _: usize, _: Ready, _: &mut Budget) -> Next {
            self.0.process().unwrap();
            Next::Wait
        }
    }
    let (ev, near, log, endpoint, _far) = apart(NetworkConfig::default(), NetworkConfig::default());
    let outer = EpollEventLoop::new().unwrap();
    let nest = outer.add_source(Box::new(Nest(ev.local())));
    outer.watch(nest, ev.as_fd(), 0, Interest::Readable).unwrap();
    outer.run_for(Duration::from_millis(20)).unwrap();
    // Enough to be flushed before the call returns.
    assert_eq!(near.send_copy(endpoint, &[1; 100_000], b"", 5).unwrap(), NetioStatus::Ok);
    assert!(outer.run_until(&mut || log.completed() == [5], Duration::from_secs(1)).unwrap());
}

/// Of more messages than a turn handles, those that it does are answered in it.
#[test]
fn answers_leave_in_the_turn_however_late_in_it_they_are_sent() {
    let (ev, far) = (EpollEventLoop::new().unwrap(), EpollEventLoop::new().unwrap());
    let taken = Rc::new(Cell::new(0));
    let count = taken.clone();
    let answering = Handlers::new().on_data(move |backend, from, _, message| {
        count.set(count.get() + 1);
        assert_eq!(backend.send_copy(from, &message, &[], 1), Ok(NetioStatus::Ok));
    });
    let echo = loopback::create_local(NetworkConfig::default(), Box::new(answering), &ev).unwrap();
    let address = echo.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default()).unwrap();
    let asking = loopback::create_local(NetworkConfig::default(), Box::new(Handlers::new()), &far).unwrap();
    let ends: Vec<_> = (0..16).map(|_| asking.connect(&address, &ConnectionParameters::default()).unwrap()).collect();
    let start = Instant::now();
    while echo.totals().established.get() < 16 || asking.totals().established.get() < 16 {
        assert!(start.elapsed() < WAIT);
        ev.run_for(Duration::from_millis(1)).unwrap();
        far.run_for(Duration::from_millis(1)).unwrap();
    }
    for _ in 0..3_000 {
        ends.iter().for_each(|end| _ = asking.send_copy(*end, b"question", &[], 1).unwrap());
    }
    far.run_for(Duration::from_millis(5)).unwrap();
    for turn in 1..=4 {
        ev.run_once(Some(Duration::ZERO)).unwrap();
        assert_eq!(echo.totals().messages_sent.get(), taken.get(), "turn {turn}");
        far.run_for(Duration::from_millis(5)).unwrap();
    }
    assert!(taken.get() > 10_000, "{} were taken", taken.get());
}
