//! The wrappers over the provider `tcp` on 127.0.0.1. Skipped, saying so, where libfabric is absent;
//! `NETIO3_REQUIRE_LIBFABRIC=1` makes that a failure.

use std::collections::VecDeque;
use std::env;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use netio3_libfabric::fabric::*;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often each test does what it does.
const ROUNDS: usize = 50;

const LISTENER: usize = 1;
const CLIENT: usize = 2;
const SERVER: usize = 3;

/// One at a time: descriptors of the whole process are counted.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn library() -> Option<(Arc<Library>, MutexGuard<'static, ()>)> {
    match Library::open() {
        Ok(library) => Some((library, ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))),
        Err(error) => {
            assert!(env::var("NETIO3_REQUIRE_LIBFABRIC").as_deref() != Ok("1"), "NETIO3_REQUIRE_LIBFABRIC=1, but {error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// What `tcp` has for this address.
fn info(library: &Arc<Library>, node: SocketAddr, passive: bool) -> Info {
    let hints = Hints { provider: Some("tcp".into()), node: Some(node), passive, source: None };
    library.infos(&hints).unwrap().into_iter().next().expect("tcp is everywhere")
}

fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// One side: queues and what came out of them.
struct Side {
    fabric: Arc<Fabric>,
    domain: Arc<Domain>,
    events: Arc<EventQueue>,
    completions: Arc<CompletionQueue>,
    seen: VecDeque<CmEvent>,
    done: VecDeque<Completion>,
    failed: VecDeque<CompletionError>,
}

impl Side {
    fn new(library: &Arc<Library>, info: &Info) -> Self {
        let fabric = Fabric::open(library, info).unwrap();
        let domain = Domain::open(&fabric, info).unwrap();
        let events = EventQueue::open(&fabric).unwrap();
        let completions = CompletionQueue::open(&domain, 64).unwrap();
        let (seen, done, failed) = Default::default();
        Self { fabric, domain, events, completions, seen, done, failed }
    }

    fn endpoint(&self, info: &Info, token: usize) -> Endpoint {
        let mut endpoint = Endpoint::open(&self.domain, info, token).unwrap();
        endpoint.bind_events(&self.events).unwrap();
        endpoint.bind_completions(&self.completions, Direction::Both, true).unwrap();
        endpoint.enable().unwrap();
        endpoint
    }

    /// Reads both queues: whether anything came.
    fn turn(&mut self) -> bool {
        let before = self.seen.len() + self.done.len() + self.failed.len();
        while let Some(event) = self.events.read().unwrap() {
            self.seen.push_back(event);
        }
        let mut room = [Completion::default(); 8];
        loop {
            match self.completions.read(&mut room) {
                Ok(0) => break,
                Ok(count) => self.done.extend(&room[..count]),
                Err(CqError::Operation(error)) => self.failed.push_back(error),
                Err(CqError::Queue(error)) => panic!("{error}"),
            }
        }
        self.seen.len() + self.done.len() + self.failed.len() > before
    }

    fn may_sleep(&self) -> bool {
        self.events.trywait().unwrap() && self.completions.trywait().unwrap()
    }
}

/// Drives sides until `ready` has something, sleeping on all their descriptors.
fn drive<T>(sides: &mut [&mut Side], mut ready: impl FnMut(&mut [&mut Side]) -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        let mut moved = false;
        for side in sides.iter_mut() {
            moved |= side.turn();
        }
        if let Some(value) = ready(sides) {
            return value;
        }
        let left = end.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "it took too long");
        if !moved && sides.iter().all(|side| side.may_sleep()) {
            let mut descriptors: Vec<PollFd<'_>> = sides
                .iter()
                .flat_map(|side| [side.events.as_fd(), side.completions.as_fd()])
                .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
                .collect();
            poll(&mut descriptors, PollTimeout::try_from(left).unwrap()).unwrap();
        }
    }
}

/// Drives sides until the first one has an event, which it takes.
fn event(sides: &mut [&mut Side]) -> CmEvent {
    drive(sides, |sides| sides[0].seen.pop_front())
}

/// A listener of one side.
fn listen(library: &Arc<Library>, side: &Side) -> PassiveEndpoint {
    let listener = PassiveEndpoint::open(&side.fabric, &info(library, anywhere(), true), LISTENER).unwrap();
    listener.bind(&side.events).unwrap();
    listener.listen().unwrap();
    listener
}

/// A listening and a connecting side.
fn sides(library: &Arc<Library>) -> (Side, PassiveEndpoint, Side, Endpoint) {
    let here = info(library, anywhere(), true);
    let server = Side::new(library, &here);
    let listener = listen(library, &server);
    let there = info(library, listener.local_address().unwrap(), false);
    let client = Side::new(library, &there);
    let endpoint = client.endpoint(&there, CLIENT);
    (server, listener, client, endpoint)
}

struct Pair {
    server: Side,
    accepted: Endpoint,
    client: Side,
    connected: Endpoint,
    listener: PassiveEndpoint,
}

/// A connection, with private data both ways.
fn connect(library: &Arc<Library>) -> Pair {
    let (mut server, listener, mut client, connected) = sides(library);
    let to = listener.local_address().unwrap();
    let question: Vec<u8> = (1..=48).collect();
    connected.connect(to, &question).unwrap();
    let CmEvent::ConnectRequest { listener: token, info, data } = event(&mut [&mut server, &mut client]) else { panic!("a request first") };
    assert_eq!((token, &*data), (LISTENER, &*question));
    assert_eq!(info.dest_addr(), Some(connected.local_address().unwrap()));

    let accepted = server.endpoint(&info, SERVER);
    accepted.accept(b"welcome").unwrap();
    match event(&mut [&mut server, &mut client]) {
        CmEvent::Connected { endpoint: SERVER, data } => assert!(data.is_empty()),
        other => panic!("{other:?}"),
    }
    match event(&mut [&mut client, &mut server]) {
        CmEvent::Connected { endpoint: CLIENT, data } => assert_eq!(data, b"welcome"),
        other => panic!("{other:?}"),
    }
    assert_eq!(connected.peer_address().unwrap(), to);
    assert_eq!(accepted.peer_address().unwrap(), connected.local_address().unwrap());
    Pair { server, accepted, client, connected, listener }
}

/// Buffers that outlive every endpoint: none can be written to after its time.
fn buffer(len: usize) -> &'static mut [u8] {
    Box::leak(vec![0; len].into_boxed_slice())
}

fn piece(bytes: &'static [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Does something `ROUNDS` times and sees that no descriptor stays behind.
fn rounds(library: &Arc<Library>, mut round: impl FnMut(usize)) {
    // What providers open once for the process.
    library.infos(&Hints::default()).unwrap();
    round(0);
    let before = open_descriptors();
    for number in 1..=ROUNDS {
        round(number);
        assert_eq!(open_descriptors(), before, "descriptors after round {number}");
    }
}

#[test]
fn everything_can_change_threads() {
    fn check<T: Send + Sync>() {}
    check::<Library>();
    check::<Info>();
    check::<Fabric>();
    check::<Domain>();
    check::<EventQueue>();
    check::<CompletionQueue>();
    check::<MemoryRegion>();
    check::<PassiveEndpoint>();
    check::<Endpoint>();
    check::<CmEvent>();
}

#[test]
fn finds_tcp() {
    let Some((library, _one)) = library() else { return };
    assert!(library.version() >= (1, 14));
    let all = library.infos(&Hints::default()).unwrap();
    assert!(all.iter().any(|info| info.provider() == "tcp"));
    for info in &all {
        assert!(info.iov_limit() > 0 && info.tx_size() > 0 && info.rx_size() > 0 && info.max_msg_size() > 0, "{info:?}");
    }

    let found = info(&library, "127.0.0.1:4711".parse().unwrap(), false);
    assert_eq!(found.dest_addr(), Some("127.0.0.1:4711".parse().unwrap()));
    assert!(!found.needs_local_mr());
    let mut copy = found.duplicate().unwrap();
    copy.set_tx_size(17);
    copy.set_rx_size(18);
    assert_eq!((copy.tx_size(), copy.rx_size()), (17, 18));
    assert_ne!(found.tx_size(), 17);

    let six = info(&library, "[::1]:4712".parse().unwrap(), false);
    assert_eq!(six.dest_addr(), Some("[::1]:4712".parse().unwrap()));
}

#[test]
fn an_unknown_provider_is_nothing_found() {
    let Some((library, _one)) = library() else { return };
    let hints = Hints { provider: Some("no-such-provider".into()), node: Some(anywhere()), passive: true, source: None };
    assert!(library.infos(&hints).unwrap().is_empty());
}

#[test]
fn messages_gathered_from_pieces_go_both_ways() {
    let Some((library, _one)) = library() else { return };
    rounds(&library, |_| {
        let mut pair = connect(&library);
        for client_sends in [true, false] {
            let (sender, receiver) = match client_sends {
                true => (&pair.connected, &pair.accepted),
                false => (&pair.accepted, &pair.connected),
            };
            let memory = buffer(256);
            // SAFETY: the buffer is never freed, and read only after the completion.
            let posted = unsafe { receiver.recv(memory.as_mut_ptr(), memory.len(), Desc::NONE, 71) }.unwrap();
            assert_eq!(posted, Posted::Yes);
            let pieces = [piece(b"from "), piece(b"several "), piece(b""), piece(b"pieces")];
            // SAFETY: the pieces are constants.
            let posted = unsafe { sender.send(&pieces, &[], 72, libfabric_sys::FI_COMPLETION) }.unwrap();
            assert_eq!(posted, Posted::Yes);

            let mut both = [&mut pair.client, &mut pair.server];
            if !client_sends {
                both.reverse();
            }
            let sent = drive(&mut both, |sides| sides[0].done.pop_front());
            assert_eq!((sent.context, sent.is_recv()), (72, false));
            let received = drive(&mut both, |sides| sides[1].done.pop_front());
            assert_eq!((received.context, received.is_recv(), received.len), (71, true, 19));
            assert_eq!(&memory[..19], b"from several pieces");
        }
    });
}

#[test]
fn injected_messages_do_not_complete() {
    let Some((library, _one)) = library() else { return };
    rounds(&library, |_| {
        let mut pair = connect(&library);
        let memory = buffer(64);
        // SAFETY: the buffer is never freed, and read only after the completion.
        let posted = unsafe { pair.accepted.recv(memory.as_mut_ptr(), memory.len(), Desc::NONE, 5) }.unwrap();
        assert_eq!(posted, Posted::Yes);
        assert!(pair.connected.inject(b"small").unwrap());
        let received = drive(&mut [&mut pair.server, &mut pair.client], |sides| sides[0].done.pop_front());
        assert_eq!((received.context, received.len), (5, 5));
        assert_eq!(&memory[..5], b"small");
        assert!(pair.client.done.is_empty());

        let long = vec![0; pair.connected.inject_size() + 1];
        assert_eq!(pair.connected.inject(&long).unwrap_err().code, libfabric_sys::FI_EMSGSIZE);
    });
}

#[test]
fn a_rejection_carries_data() {
    let Some((library, _one)) = library() else { return };
    rounds(&library, |_| {
        let (mut server, listener, mut client, endpoint) = sides(&library);
        endpoint.connect(listener.local_address().unwrap(), b"let me in").unwrap();
        let CmEvent::ConnectRequest { info, .. } = event(&mut [&mut server, &mut client]) else { panic!("a request first") };
        listener.reject(info, b"no room").unwrap();
        match event(&mut [&mut client, &mut server]) {
            CmEvent::Error { endpoint: CLIENT, error, data } => {
                assert_eq!((error.call, error.code), ("fi_connect", libfabric_sys::FI_ECONNREFUSED));
                assert_eq!(std::io::Error::from(error.clone()).kind(), std::io::ErrorKind::ConnectionRefused);
                assert!(error.to_string().contains("provider tcp"), "{error}");
                assert_eq!(data, b"no room");
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_request_that_is_dropped_is_rejected() {
    let Some((library, _one)) = library() else { return };
    rounds(&library, |number| {
        let (mut server, listener, mut client, endpoint) = sides(&library);
        endpoint.connect(listener.local_address().unwrap(), b"").unwrap();
        let request = event(&mut [&mut server, &mut client]);
        match number % 3 {
            0 => drop(request),
            // An endpoint was opened, but does not accept.
            1 => {
                let CmEvent::ConnectRequest { info, .. } = request else { panic!("a request first") };
                drop(server.endpoint(&info, SERVER));
            }
            // The listener is gone before.
            _ => {
                drop(listener);
                drop(request);
            }
        }
        assert!(matches!(event(&mut [&mut client, &mut server]), CmEvent::Error { endpoint: CLIENT, .. }));
    });
}

#[test]
fn a_request_is_answered_once() {
    let Some((library, _one)) = library() else { return };
    rounds(&library, |_| {
        let (mut server, listener, mut client, endpoint) = sides(&library);
        endpoint.connect(listener.local_address().unwrap(), b"").unwrap();
        let CmEvent::ConnectRequest { info, .. } = event(&mut [&mut server, &mut client]) else { panic!("a request first") };
        let first = server.endpoint(&info, SERVER);
        assert_eq!(Endpoint::open(&server.domain, &info, 9).unwrap_err().code, libfabric_sys::FI_EINVAL);
        assert_eq!(listener.reject(info, b"").unwrap_err().code, libfabric_sys::FI_EINVAL);
        first.accept(b"").unwrap();
        assert!(first.accept(b"").is_err());
        assert!(matches!(event(&mut [&mut client, &mut server]), CmEvent::Connected { endpoint: CLIENT, .. }));
    });
}

#[test]
fn a_closing_listener_rejects_what_was_not_read() {
    let Some((library, _one)) = library() else { return };
    rounds(&library, |number| {
        let (mut server, listener, mut client, endpoint) = sides(&library);
        let other = listen(&library, &server);
        let to_other = client.endpoint(&info(&library, other.local_address().unwrap(), false), 8);
        endpoint.connect(listener.local_address().unwrap(), b"").unwrap();
        to_other.connect(other.local_address().unwrap(), b"other").unwrap();
        // The requests leave the client; the server's queue is not read before the listener closes.
        let until = Instant::now() + Duration::from_millis(5 + number as u64 % 3);
        while Instant::now() < until {
            client.turn();
        }
        drop(listener);
        match event(&mut [&mut client]) {
            CmEvent::Error { endpoint: CLIENT, error, .. } => assert_eq!(error.code, libfabric_sys::FI_ECONNREFUSED),
            other => panic!("{other:?}"),
        }
        assert!(!server.may_sleep(), "what was read meanwhile waits, and no descriptor shows it");
        match event(&mut [&mut server, &mut client]) {
            CmEvent::ConnectRequest { listener: LISTENER, data, .. } => assert_eq!(data, b"other"),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn nobody_listening_is_a_typed_error_in_time() {
    let Some((library, _one)) = library() else { return };
    rounds(&library, |_| {
        // A port that was free just now.
        let to = std::net::TcpListener::bind(anywhere()).unwrap().local_addr().unwrap();
        let there = info(&library, to, false);
        let mut client = Side::new(&library, &there);
        let endpoint = client.endpoint(&there, CLIENT);
        let started = Instant::now();
        let error = match endpoint.connect(to, b"") {
            Err(error) => error,
            Ok(()) => match event(&mut [&mut client]) {
                CmEvent::Error { endpoint: CLIENT, error, data } => {
                    assert!(data.is_empty());
                    error
                }
                other => panic!("{other:?}"),
            },
        };
        assert!(started.elapsed() < Duration::from_secs(2));
        assert_eq!((error.call, error.code), ("fi_connect", libfabric_sys::FI_ECONNREFUSED));
    });
}

#[test]
fn the_peer_sees_a_shutdown() {
    let Some((library, _one)) = library() else { return };
    rounds(&library, |number| {
        let mut pair = connect(&library);
        let memory = buffer(64);
        // SAFETY: the buffer is never freed.
        let posted = unsafe { pair.accepted.recv(memory.as_mut_ptr(), memory.len(), Desc::NONE, 6) }.unwrap();
        assert_eq!(posted, Posted::Yes);
        if number % 2 == 0 {
            pair.connected.shutdown().unwrap();
        } else {
            // The endpoint is closed without a word.
            drop(pair.connected);
        }
        let mut both = [&mut pair.server, &mut pair.client];
        assert!(matches!(event(&mut both), CmEvent::Shutdown { endpoint: SERVER }));
        let given_up = drive(&mut both, |sides| sides[0].failed.pop_front());
        assert_eq!((given_up.context, given_up.is_recv()), (6, true));
        assert_eq!(given_up.error.code, libfabric_sys::FI_ECANCELED);
    });
}

#[test]
fn closing_in_any_order_leaves_nothing_behind() {
    let Some((library, _one)) = library() else { return };
    rounds(&library, |number| {
        let Pair { server, accepted, client, connected, listener } = connect(&library);
        let memory = buffer(64);
        // SAFETY: the buffer is never freed.
        let posted = unsafe { accepted.recv(memory.as_mut_ptr(), memory.len(), Desc::NONE, 6) }.unwrap();
        assert_eq!(posted, Posted::Yes);
        let Side { fabric, domain, events, completions, .. } = server;
        let mut all: Vec<Box<dyn std::any::Any>> = vec![
            Box::new(fabric),
            Box::new(domain),
            Box::new(events),
            Box::new(completions),
            Box::new(accepted),
            Box::new(listener),
            Box::new(client.fabric),
            Box::new(client.domain),
            Box::new(client.events),
            Box::new(client.completions),
            Box::new(connected),
        ];
        // A different order each time; the number decides.
        let mut state = number as u64 + 1;
        while !all.is_empty() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let which = (state >> 33) as usize % all.len();
            drop(all.swap_remove(which));
        }
    });
}

#[test]
fn misuse_is_refused() {
    let Some((library, _one)) = library() else { return };
    let (server, listener, client, endpoint) = sides(&library);
    let there = info(&library, listener.local_address().unwrap(), false);

    let mut bare = Endpoint::open(&client.domain, &there, 4).unwrap();
    assert_eq!(bare.enable().unwrap_err().code, libfabric_sys::FI_ENOEQ);
    assert_eq!(bare.connect(anywhere(), b"").unwrap_err().code, libfabric_sys::FI_EOPBADSTATE);
    assert_eq!(bare.inject(b"").unwrap_err().code, libfabric_sys::FI_EOPBADSTATE);
    assert_eq!(bare.bind_events(&server.events).unwrap_err().code, libfabric_sys::FI_EINVAL);
    assert_eq!(bare.bind_completions(&server.completions, Direction::Both, false).unwrap_err().code, libfabric_sys::FI_EINVAL);
    bare.bind_events(&client.events).unwrap();
    assert_eq!(bare.enable().unwrap_err().code, libfabric_sys::FI_ENOCQ);
    bare.bind_completions(&client.completions, Direction::Transmit, true).unwrap();
    bare.bind_completions(&client.completions, Direction::Receive, false).unwrap();
    assert!(bare.bind_completions(&client.completions, Direction::Receive, false).is_err());
    bare.enable().unwrap();
    assert_eq!(bare.accept(b"").unwrap_err().code, libfabric_sys::FI_EOPBADSTATE);

    let deaf = PassiveEndpoint::open(&server.fabric, &info(&library, anywhere(), true), 5).unwrap();
    assert_eq!(deaf.listen().unwrap_err().code, libfabric_sys::FI_ENOEQ);
    assert_eq!(listener.reject(there, b"").unwrap_err().code, libfabric_sys::FI_EINVAL);

    let long = vec![0; endpoint.cm_data_size() + 1];
    assert_eq!(endpoint.connect(anywhere(), &long).unwrap_err().code, libfabric_sys::FI_EINVAL);
    let pieces = vec![piece(b"x"); endpoint.iov_limit() + 1];
    // SAFETY: the pieces are constants.
    assert_eq!(unsafe { endpoint.send(&pieces, &[], 1, 0) }.unwrap_err().code, libfabric_sys::FI_EINVAL);

    let taken = listener.local_address().unwrap();
    let error = PassiveEndpoint::open(&server.fabric, &info(&library, taken, true), 6).and_then(|second| {
        second.bind(&server.events)?;
        second.listen()
    });
    assert_eq!(error.unwrap_err().code, libfabric_sys::FI_EADDRINUSE);
}

#[test]
fn memory_can_be_registered() {
    let Some((library, _one)) = library() else { return };
    rounds(&library, |_| {
        let here = info(&library, anywhere(), true);
        let side = Side::new(&library, &here);
        assert!(!side.domain.needs_registration());
        let memory = buffer(4096);
        // SAFETY: the buffer is never freed.
        let region = unsafe { MemoryRegion::register(&side.domain, memory.as_ptr(), memory.len(), Access::SendReceive) };
        let region = region.unwrap();
        assert_eq!(region.len(), 4096);
        drop(side);
        let _ = region.desc();
    });
}
