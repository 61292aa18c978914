//! What real sockets do only by chance.

mod failing;

use std::cell::Cell;
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use netio3_core::{
    ConnectionParametersRecv, EndPointAddress, Endpoint, EventLoop, Handlers, NetworkBackend, NetworkConfig, SourceId, engine,
};
use netio3_evloop::EpollEventLoop;
use socket2::{Domain, SockRef, Socket, Type};

use crate::net::SystemOpener;

use super::*;

/// A network on which a connection meets itself.
struct Mirror;

/// Has the socket that is to be dialled with, bound to the address that is to be dialled.
struct MirrorOpener(Mutex<Option<Socket>>);

impl Net for Mirror {
    type Stream = TcpStream;
    type Listener = TcpListener;
    type Opener = MirrorOpener;
}

impl Opener for MirrorOpener {
    type Dialing = Dialing<TcpStream>;
    type Listening = TcpListener;

    fn dial(&self, address: &EndPointAddress, _: &ConnectionParameters) -> io::Result<Self::Dialing> {
        let socket = self.0.lock().expect("nobody panicked").take().expect("dialled once");
        socket.connect(&address.socket_addr().into())?;
        socket.set_nonblocking(true)?;
        Ok(Dialing { stream: socket.into(), refused: None })
    }

    fn listen(&self, _: &EndPointAddress, _: &ConnectionParametersRecv) -> io::Result<(TcpListener, EndPointAddress)> {
        unreachable!("nobody listens")
    }
}

#[test]
fn a_socket_that_connected_to_itself_is_refused() {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("descriptors are left");
    socket.bind(&EndPointAddress::localhost(0).socket_addr().into()).expect("a port is free");
    let bound = socket.local_addr().expect("it is bound").as_socket().expect("it is of IPv4");
    let refused: Rc<Cell<Option<RefusedReason>>> = Rc::default();
    let reason_told = refused.clone();
    let callbacks = Handlers::new()
        .on_connection_established(|_, _| panic!("there is no peer"))
        .on_connection_refused(move |_, _, _, reason| assert_eq!(reason_told.replace(Some(reason)), None, "told once"));
    let opener = MirrorOpener(Mutex::new(Some(socket)));
    let backend = engine::create_local(Tcp::<Mirror>::new(), opener, NetworkConfig::default(), Box::new(callbacks), &ev);
    let backend = backend.expect("the configuration is valid");
    backend.open_send_endpoint(&bound.into(), &ConnectionParameters::default()).expect("it is started");
    assert!(ev.run_until(&mut || refused.get().is_some(), Duration::from_secs(30)).expect("the loop can wait"));
    assert_eq!(refused.get(), Some(RefusedReason::NoListener));
    assert!(backend.connections().is_empty());
}

/// The system's network, of whose listener others have a descriptor.
struct Shared;

/// Leaves the other descriptor there.
struct SharedOpener(Arc<Mutex<Option<TcpListener>>>);

impl Net for Shared {
    type Stream = TcpStream;
    type Listener = TcpListener;
    type Opener = SharedOpener;
}

impl Opener for SharedOpener {
    type Dialing = Dialing<TcpStream>;
    type Listening = TcpListener;

    fn dial(&self, _: &EndPointAddress, _: &ConnectionParameters) -> io::Result<Self::Dialing> {
        unreachable!("nobody dials")
    }

    fn listen(&self, address: &EndPointAddress, params: &ConnectionParametersRecv) -> io::Result<(TcpListener, EndPointAddress)> {
        let (listener, bound) = SystemOpener.listen(address, params)?;
        self.0.lock().expect("nobody panicked").replace(listener.try_clone()?);
        Ok((listener, bound))
    }
}

/// As by `ss -K`, by which sockets are killed, or by a child process that has inherited it: it never accepts again.
#[test]
fn a_listener_that_was_shut_down_from_outside_says_so_and_does_not_keep_the_loop_busy() {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let other = Arc::<Mutex<Option<TcpListener>>>::default();
    let opener = SharedOpener(other.clone());
    let backend = engine::create_local(Tcp::<Shared>::new(), opener, NetworkConfig::default(), Box::new(Handlers::new()), &ev);
    let backend = backend.expect("the configuration is valid");
    backend.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default()).expect("a port is left");
    let other = other.lock().expect("nobody panicked").take().expect("it listens");
    SockRef::from(&other).shutdown(std::net::Shutdown::Both).expect("a listener can be shut down");
    let failures = || backend.totals().accept_failures.get();
    assert!(ev.run_until(&mut || failures() > 0, Duration::from_secs(30)).expect("the loop can wait"), "nothing is told of it");
    let turns = ev.counters().turns.get();
    ev.run_for(Duration::from_millis(300)).expect("the loop can wait");
    let turns = ev.counters().turns.get() - turns;
    assert!(turns < 50, "{turns} turns in 0.3 s");
}

/// The system's network, to whose listeners something happens.
struct Eventful;

#[derive(Default)]
struct Events {
    /// Accepting fails with this error, if it is not zero.
    accept: AtomicI32,
    /// Done once, when a listener is closed.
    close: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

struct EventfulOpener(Arc<Events>);

struct EventfulListener(TcpListener, Arc<Events>);

impl Net for Eventful {
    type Stream = TcpStream;
    type Listener = EventfulListener;
    type Opener = EventfulOpener;
}

impl Opener for EventfulOpener {
    type Dialing = Dialing<TcpStream>;
    type Listening = EventfulListener;

    fn dial(&self, address: &EndPointAddress, params: &ConnectionParameters) -> io::Result<Self::Dialing> {
        SystemOpener.dial(address, params)
    }

    fn listen(&self, address: &EndPointAddress, params: &ConnectionParametersRecv) -> io::Result<(EventfulListener, EndPointAddress)> {
        let (listener, bound) = SystemOpener.listen(address, params)?;
        Ok((EventfulListener(listener, self.0.clone()), bound))
    }
}

impl Listen for EventfulListener {
    type Stream = TcpStream;

    fn accept(&self, params: &ConnectionParameters) -> io::Result<(TcpStream, EndPointAddress)> {
        match self.1.accept.load(Ordering::Relaxed) {
            0 => Listen::accept(&self.0, params),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    fn watch(&self, ev: &dyn EventLoop, source: SourceId, token: usize) -> io::Result<WatchId> {
        self.0.watch(ev, source, token)
    }

    fn unwatch(&self, ev: &dyn EventLoop, watch: WatchId) {
        self.0.unwatch(ev, watch);
        let close = self.1.close.lock().expect("nobody panicked").take();
        close.into_iter().for_each(|close| close());
    }
}

/// Each who comes is told to the loop, and tried in vain; after that it is tried again once for all.
#[test]
fn a_listener_short_of_descriptors_tries_again_as_often_however_many_come() {
    const EMFILE: i32 = 24;
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let events = Arc::new(Events { accept: AtomicI32::new(EMFILE), ..Default::default() });
    let opener = EventfulOpener(events.clone());
    let backend = engine::create_local(Tcp::<Eventful>::new(), opener, NetworkConfig::default(), Box::new(Handlers::new()), &ev);
    let backend = backend.expect("the configuration is valid");
    let listener =
        backend.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default()).expect("a port is left");
    let counters = backend.listeners().remove(0).counters;
    let mut clients = Vec::new();
    for come in 1..=40 {
        clients.push(TcpStream::connect(listener.socket_addr()).expect("the backlog has room"));
        let is_tried = ev.run_until(&mut || counters.accept_failures.get() >= come, Duration::from_secs(30));
        assert!(is_tried.expect("the loop can wait"));
    }
    let failures = counters.accept_failures.get();
    ev.run_for(Duration::from_millis(500)).expect("the loop can wait");
    // Every 50 ms, at the earliest.
    let tried = counters.accept_failures.get() - failures;
    assert!((1..=11).contains(&tried), "{tried} times in half a second");
    events.accept.store(0, Ordering::Relaxed);
    let accepted = ev.run_until(&mut || counters.accepted.get() == 40, Duration::from_secs(30));
    assert!(accepted.expect("the loop can wait"), "nobody was forgotten");
}

/// What was put off for a listener that is closed is not done for one that takes its place.
#[test]
fn a_listener_opened_in_place_of_one_that_was_short_tries_again_as_often() {
    const EMFILE: i32 = 24;
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let opener = EventfulOpener(Arc::new(Events { accept: AtomicI32::new(EMFILE), ..Default::default() }));
    let backend = engine::create_local(Tcp::<Eventful>::new(), opener, NetworkConfig::default(), Box::new(Handlers::new()), &ev);
    let backend = backend.expect("the configuration is valid");
    let totals = backend.totals();
    let mut clients = Vec::new();
    for _ in 0..8 {
        let listener =
            backend.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default()).expect("a port is left");
        let before = totals.accept_failures.get();
        clients.push(TcpStream::connect(listener.socket_addr()).expect("the backlog has room"));
        let is_tried = ev.run_until(&mut || totals.accept_failures.get() > before, Duration::from_secs(30));
        assert!(is_tried.expect("the loop can wait"));
        if clients.len() < 8 {
            backend.close_listen_endpoint(&listener).expect("it listens");
        }
    }
    let failures = totals.accept_failures.get();
    ev.run_for(Duration::from_millis(500)).expect("the loop can wait");
    let tried = totals.accept_failures.get() - failures;
    assert!((1..=11).contains(&tried), "{tried} times in half a second");
}

/// The loop learns of the pause before it has taken the connection on.
#[test]
fn a_connection_that_was_paused_at_once_by_another_thread_is_paused() {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    // It sends as soon as it can.
    let server = Handlers::new().on_connection_established(|backend, connection| {
        backend.send_copy(connection.endpoint, b"early", b"", 1).expect("it is there").to_string();
    });
    let server = crate::create_local(NetworkConfig::default(), Box::new(server), &ev).expect("the configuration is valid");
    let address =
        server.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default()).expect("a port is left");

    let (paused, arrived): (Arc<Mutex<Option<Endpoint>>>, Arc<Mutex<usize>>) = Default::default();
    let count = arrived.clone();
    let callbacks = Handlers::new().on_data(move |_, _, _, _| *count.lock().expect("nobody panicked") += 1);
    let events = Arc::<Events>::default();
    let client = engine::create(Tcp::<Eventful>::new(), EventfulOpener(events.clone()), NetworkConfig::default(), Box::new(callbacks), &ev);
    let client: Arc<dyn NetworkBackend + Send + Sync> = client.expect("the configuration is valid").into();
    let listener =
        client.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default()).expect("a port is left");
    ev.run_for(Duration::from_millis(10)).expect("the loop can wait");

    // While the loop closes the listener, a thread connects and pauses.
    let (other, note) = (client.clone(), paused.clone());
    let connect = move || {
        let connect = move || {
            let endpoint = other.connect(&address, &ConnectionParameters::default()).expect("it is started");
            other.pause(endpoint).expect("it is there");
            note.lock().expect("nobody panicked").replace(endpoint);
        };
        thread::spawn(connect).join().expect("it does not panic");
    };
    events.close.lock().expect("nobody panicked").replace(Box::new(connect));
    let other = client.clone();
    thread::spawn(move || other.close_listen_endpoint(&listener).expect("it listens")).join().expect("it does not panic");
    let has_sent = || server.totals().messages_sent.get() == 1;
    assert!(ev.run_until(&mut || has_sent(), Duration::from_secs(30)).expect("the loop can wait"));
    ev.run_for(Duration::from_millis(100)).expect("the loop can wait");
    let endpoint = paused.lock().expect("nobody panicked").expect("it was connected");
    assert_eq!(*arrived.lock().expect("nobody panicked"), 0, "it is paused");
    client.resume(endpoint).expect("it is there");
    let has_come = || *arrived.lock().expect("nobody panicked") == 1;
    assert!(ev.run_until(&mut || has_come(), Duration::from_secs(30)).expect("the loop can wait"));
}
