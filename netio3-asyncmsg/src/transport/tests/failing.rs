//! Calls that the system refuses.

use std::cell::{Cell, RefCell};
use std::io::{IoSlice, IoSliceMut};
use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use netio3_core::{ConnectionParametersRecv, EndPointAddress, EventLoop, Handlers, NetioStatus, NetworkConfig, SourceId, engine};
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

/// The system refuses a write for reasons of its own, as for memory that it cannot read or that it has not, while the
/// stream goes on: what has come is still delivered, and then the connection ends, with nobody to wait for.
#[test]
fn a_write_that_fails_on_a_living_stream_ends_the_connection() {
    const ENOMEM: i32 = 12;
    const EFAULT: i32 = 14;
    const ENOBUFS: i32 = 105;
    const EPIPE: i32 = 32;
    for (errno, told) in
        [(ENOMEM, ClosedReason::Limit), (EFAULT, ClosedReason::Limit), (ENOBUFS, ClosedReason::Limit), (EPIPE, ClosedReason::PeerLost)]
    {
        let ev = EpollEventLoop::new().expect("descriptors are left");
        let config = || NetworkConfig { heartbeat_interval: Duration::ZERO, ..NetworkConfig::default() };
        let until = |what: &str, condition: &dyn Fn() -> bool| {
            let met = ev.run_until(&mut || condition(), Duration::from_secs(10)).expect("the loop can wait");
            assert!(met, "errno {errno}: {what}");
        };
        let greeting = Handlers::new().on_connection_established(|backend, connection| {
            assert_eq!(backend.send_copy(connection.endpoint, b"hello", b"", 1), Ok(NetioStatus::Ok));
        });
        let server = crate::create_local(config(), Box::new(greeting), &ev).expect("the configuration is valid");
        let address =
            server.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default()).expect("a port is left");

        let faults = Arc::<Faults>::default();
        let (received, closed) = (Rc::new(Cell::new(0)), Rc::new(RefCell::new(None)));
        let (count, end, fails) = (received.clone(), closed.clone(), faults.clone());
        let callbacks = Handlers::new()
            .on_connection_established(move |backend, connection| {
                fails.write.store(errno, Ordering::Relaxed);
                assert_eq!(backend.send_copy(connection.endpoint, b"hello", b"", 7), Ok(NetioStatus::Ok));
            })
            .on_data(move |_, _, _, _| count.set(count.get() + 1))
            .on_connection_closed(move |_, _, _, pending, reason| {
                let keys: Vec<_> = pending.iter().map(|completion| completion.key).collect();
                assert!(end.replace(Some((keys, reason))).is_none(), "closed once");
            });
        let client = engine::create_local(Tcp::<Failing>::new(), FailingOpener(faults), config(), Box::new(callbacks), &ev);
        let client = client.expect("the configuration is valid");
        client.open_send_endpoint(&address, &ConnectionParameters::default()).expect("it is started");
        until("the connection ends", &|| closed.borrow().is_some());
        assert_eq!(*closed.borrow(), Some((vec![7], told)), "errno {errno}");
        assert!(received.get() <= 1);
        until("the other side learns of it", &|| server.connections().is_empty());
    }
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
