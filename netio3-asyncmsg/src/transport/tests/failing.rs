//! Calls that the system refuses.

use std::cell::{Cell, RefCell};
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use netio3_core::{
    ConnectionParametersRecv, EndPointAddress, Endpoint, EventLoop, Handlers, NetioStatus, NetworkBackend, NetworkConfig, SourceId, engine,
};
use netio3_evloop::EpollEventLoop;

use crate::net::SystemOpener;
use crate::transport::*;

/// A network whose sockets fail when they are told to.
struct Failing;

/// What fails: where it is not zero, with that error.
#[derive(Default)]
struct Faults {
    write: AtomicI32,
    watch: AtomicI32,
    /// Whether the socket is watched now.
    watched: AtomicBool,
}

struct FailingOpener(Arc<Faults>);

struct FailingStream(TcpStream, Arc<Faults>);

fn fail(with: &AtomicI32) -> io::Result<()> {
    match with.load(Ordering::Relaxed) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

impl Net for Failing {
    type Stream = FailingStream;
    type Listener = NoListener;
    type Opener = FailingOpener;
}

impl Opener for FailingOpener {
    type Dialing = Dialing<FailingStream>;
    type Listening = NoListener;

    fn dial(&self, address: &EndPointAddress, params: &ConnectionParameters) -> io::Result<Self::Dialing> {
        let Dialing { stream, refused } = SystemOpener.dial(address, params)?;
        Ok(Dialing { stream: FailingStream(stream, self.0.clone()), refused })
    }

    fn listen(&self, _: &EndPointAddress, _: &ConnectionParametersRecv) -> io::Result<(NoListener, EndPointAddress)> {
        unreachable!("nobody listens")
    }
}

impl Stream for FailingStream {
    fn read(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Stream::read(&self.0, slices)
    }

    fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        fail(&self.1.write)?;
        Stream::write(&self.0, slices)
    }

    fn is_connected(&self) -> io::Result<bool> {
        self.0.is_connected()
    }

    fn local_address(&self) -> io::Result<EndPointAddress> {
        self.0.local_address()
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.0.shutdown_write()
    }

    fn reset_on_close(&self) {
        self.0.reset_on_close();
    }

    fn set_low_water(&self, bytes: usize) -> io::Result<()> {
        self.0.set_low_water(bytes)
    }

    fn watch(&self, ev: &dyn EventLoop, source: SourceId, token: usize) -> io::Result<WatchId> {
        fail(&self.1.watch)?;
        self.1.watched.store(true, Ordering::Relaxed);
        self.0.watch(ev, source, token)
    }

    fn unwatch(&self, ev: &dyn EventLoop, watch: WatchId) {
        self.1.watched.store(false, Ordering::Relaxed);
        self.0.unwatch(ev, watch);
    }
}

/// There is none.
enum NoListener {}

impl Listen for NoListener {
    type Stream = FailingStream;

    fn accept(&self, _: &ConnectionParameters) -> io::Result<(FailingStream, EndPointAddress)> {
        match *self {}
    }

    fn watch(&self, _: &dyn EventLoop, _: SourceId, _: usize) -> io::Result<WatchId> {
        match *self {}
    }

    fn unwatch(&self, _: &dyn EventLoop, _: WatchId) {
        match *self {}
    }
}

/// A client whose writes fail when they are to, and a peer that speaks for itself.
struct Failed {
    ev: EpollEventLoop,
    client: Box<dyn NetworkBackend>,
    to: Endpoint,
    peer: TcpStream,
    faults: Arc<Faults>,
    received: Rc<Cell<usize>>,
    closed: Rc<RefCell<Option<Ended>>>,
}

/// With the keys of what is pending.
type Ended = (Vec<u64>, ClosedReason);

impl Failed {
    /// Each message takes the client so long.
    fn new(each: Duration) -> Self {
        let ev = EpollEventLoop::new().expect("descriptors are left");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is left");
        let address = EndPointAddress::from(listener.local_addr().expect("it is bound"));
        let faults = Arc::<Faults>::default();
        let (received, closed, established) = (Rc::new(Cell::new(0)), Rc::new(RefCell::new(None)), Rc::new(Cell::new(false)));
        let (count, end, known) = (received.clone(), closed.clone(), established.clone());
        let callbacks = Handlers::new()
            .on_connection_established(move |_, _| known.set(true))
            .on_data(move |_, _, _, _| {
                thread::sleep(each);
                count.set(count.get() + 1);
            })
            .on_connection_closed(move |_, _, _, pending, reason| {
                let keys: Vec<_> = pending.iter().map(|completion| completion.key).collect();
                assert!(end.replace(Some((keys, reason))).is_none(), "closed once");
            });
        let config = NetworkConfig { heartbeat_interval: Duration::ZERO, ..NetworkConfig::default() };
        let client = engine::create_local(Tcp::<Failing>::new(), FailingOpener(faults.clone()), config, Box::new(callbacks), &ev);
        let client = client.expect("the configuration is valid");
        let to = client.open_send_endpoint(&address, &ConnectionParameters::default()).expect("it is started");
        let (mut peer, _) = listener.accept().expect("it connects");
        // Its own hello, which accepts it as well.
        let mut hello = [0; 72];
        peer.set_nonblocking(true).expect("it is a socket");
        let mut got = 0;
        let mut has_read = || {
            got += Read::read(&mut peer, &mut hello[got..]).unwrap_or(0);
            got == hello.len()
        };
        assert!(ev.run_until(&mut has_read, WAIT).expect("the loop can wait"), "the client says hello");
        peer.set_nonblocking(false).expect("it is a socket");
        peer.write_all(&hello).expect("it is taken");
        assert!(ev.run_until(&mut || established.get(), WAIT).expect("the loop can wait"), "it is established");
        Self { ev, client, to, peer, faults, received, closed }
    }

    /// The peer says so many messages.
    fn hear(&mut self, messages: usize) {
        self.peer.write_all(&message(&[1; 5_000]).repeat(messages)).expect("they are taken");
    }

    /// A write fails.
    fn fail(&self, errno: i32) {
        self.faults.write.store(errno, Ordering::Relaxed);
        assert_eq!(self.client.send_copy(self.to, b"hello", b"", 7), Ok(NetioStatus::Ok));
        self.client.flush(self.to).expect("it is connected");
    }

    /// Waits until the connection has ended, for that reason.
    fn expect_end(&self, reason: ClosedReason) {
        assert!(self.ev.run_until(&mut || self.closed.borrow().is_some(), WAIT).expect("the loop can wait"), "it never ends");
        assert_eq!(*self.closed.borrow(), Some((vec![7], reason)));
    }
}

const WAIT: Duration = Duration::from_secs(30);
const ENOMEM: i32 = 12;

fn message(data: &[u8]) -> Vec<u8> {
    [&Frame::Data(data.len()).head(), data].concat()
}

/// The system refuses a write for reasons of its own, as for memory that it cannot read or that it has not, while the
/// stream goes on: what has come is still delivered, and then the connection ends, with nobody to wait for.
#[test]
fn a_write_that_fails_on_a_living_stream_ends_the_connection() {
    const EFAULT: i32 = 14;
    const ENOBUFS: i32 = 105;
    const EPIPE: i32 = 32;
    for (errno, told) in
        [(ENOMEM, ClosedReason::Limit), (EFAULT, ClosedReason::Limit), (ENOBUFS, ClosedReason::Limit), (EPIPE, ClosedReason::PeerLost)]
    {
        let mut failed = Failed::new(Duration::ZERO);
        failed.hear(100);
        failed.fail(errno);
        failed.expect_end(told);
        assert_eq!(failed.received.get(), 100, "errno {errno}");
        // Its end arrives there, too.
        failed.peer.set_read_timeout(Some(WAIT)).expect("it is a socket");
        let end = Read::read(&mut failed.peer, &mut [0; 16]).map_err(|error| error.kind());
        assert!(matches!(end, Ok(0) | Err(io::ErrorKind::ConnectionReset)), "errno {errno}: {end:?}");
    }
}

#[test]
fn a_connection_that_is_paused_after_a_write_has_failed_ends() {
    let failed = Failed::new(Duration::ZERO);
    failed.fail(ENOMEM);
    failed.client.pause(failed.to).expect("it is connected");
    failed.expect_end(ClosedReason::Limit);
}

/// It ends when what was here must have been read, although reading it finds ever more.
#[test]
fn a_failed_write_ends_a_connection_whose_peer_goes_on_sending() {
    let failed = Failed::new(Duration::from_millis(1));
    let mut peer = failed.peer.try_clone().expect("descriptors are left");
    let frames = message(&[1; 60_000]);
    let sender = thread::spawn(move || while peer.write_all(&frames).is_ok() {});
    assert!(failed.ev.run_until(&mut || failed.received.get() > 10, WAIT).expect("the loop can wait"));
    failed.fail(ENOMEM);
    failed.expect_end(ClosedReason::Limit);
    sender.join().expect("its writes fail at last");
}

/// Ours can never be written.
#[test]
fn a_goodbye_behind_a_failed_write_ends_the_connection() {
    let mut failed = Failed::new(Duration::ZERO);
    failed.hear(1);
    failed.peer.write_all(&Frame::Goodbye.head()).expect("it is taken");
    failed.fail(ENOMEM);
    // Waiting until `close_deadline`, it would end for the peer's sake.
    failed.expect_end(ClosedReason::Limit);
    assert_eq!(failed.received.get(), 1);
}

/// A socket that is polled fills up when the system has no room for its watch: until it has, what is queued goes on leaving.
#[test]
fn a_polled_socket_that_cannot_be_watched_again_goes_on_sending() {
    const ENOSPC: i32 = 28;
    let ev = EpollEventLoop::new().expect("descriptors are left");
    ev.set_spin(Duration::from_millis(1));
    let until = |what: &str, condition: &dyn Fn() -> bool| {
        assert!(ev.run_until(&mut || condition(), Duration::from_secs(10)).expect("the loop can wait"), "{what}");
    };
    let config = || NetworkConfig { heartbeat_interval: Duration::ZERO, ..NetworkConfig::default() };
    let arrived = Rc::new(Cell::new(0));
    let count = arrived.clone();
    let answering = Handlers::new().on_data(move |backend, from, _, message| {
        count.set(count.get() + message.len());
        assert_eq!(backend.send_copy(from, b"thanks", b"", 1), Ok(NetioStatus::Ok));
    });
    let server = crate::create_local(config(), Box::new(answering), &ev).expect("the configuration is valid");
    let address =
        server.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default()).expect("a port is left");

    let faults = Arc::<Faults>::default();
    let answers = Rc::new(Cell::new(0));
    let count = answers.clone();
    let callbacks = Handlers::new()
        .on_connection_established(|backend, connection| {
            assert_eq!(backend.send_copy(connection.endpoint, b"hello", b"", 1), Ok(NetioStatus::Ok));
        })
        .on_data(move |_, _, _, _| count.set(count.get() + 1));
    let client = engine::create_local(Tcp::<Failing>::new(), FailingOpener(faults.clone()), config(), Box::new(callbacks), &ev);
    let client = client.expect("the configuration is valid");
    let to = client.open_send_endpoint(&address, &ConnectionParameters::default()).expect("it is started");
    until("the first answer comes", &|| answers.get() == 1);
    // By the loop's polling; until then it is watched.
    for answer in 2.. {
        assert_eq!(client.send_copy(to, b"hello", b"", 1), Ok(NetioStatus::Ok));
        until("an answer comes", &|| answers.get() == answer);
        if !faults.watched.load(Ordering::Relaxed) {
            break;
        }
        assert!(answer < 1_000, "it is never polled");
    }
    faults.watch.store(ENOSPC, Ordering::Relaxed);
    let (before, len) = (arrived.get(), 16 << 20);
    assert_eq!(client.send_copy(to, &vec![1; len], b"", 2), Ok(NetioStatus::Ok));
    until("the long message arrives", &|| arrived.get() == before + len);
}
