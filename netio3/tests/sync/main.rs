//! The synchronized kind under the hands of many threads, over whatever can be used here.
//!
//! What it promises like every backend is the conformance suite's affair; here is what only threads can break.

mod books;
mod drops;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netio3::{
    Callbacks, ClosedReason, Completion, ConnectionInfo, ConnectionParameters, EndPointAddress, Endpoint, EpollEventLoop, EventLoop,
    Handlers, Message, NetioStatus, NetworkBackend, NetworkConfig, NetworkType, OpenListenError, OpenSendError, RefusedReason, Remote,
};

const WAIT: Duration = Duration::from_secs(30);

type Shared = Arc<dyn NetworkBackend + Send + Sync>;

/// The kinds of backends that can be used here, each told of, in case the test fails.
fn kinds() -> impl Iterator<Item = NetworkType> {
    NetworkType::ALL.into_iter().filter(|kind| kind.availability().is_ok()).inspect(|kind| println!("over {kind}"))
}

/// What became of a connection.
#[derive(Debug, Default)]
struct Story {
    opened: bool,
    established: usize,
    refused: usize,
    closed: usize,
    writable: usize,
    returned: Vec<Completion>,
}

/// Callbacks that write down what became of each connection.
#[derive(Clone, Default)]
struct Book {
    stories: Arc<Mutex<HashMap<Endpoint, Story>>>,
    /// The user has dropped the backend: nothing may come any more.
    over: Arc<AtomicBool>,
    received: Arc<AtomicUsize>,
}

impl Book {
    fn note(&self, endpoint: Endpoint, note: impl FnOnce(&mut Story)) {
        assert!(!self.over.load(Ordering::SeqCst), "a callback after the drop has returned");
        note(self.stories.lock().unwrap().entry(endpoint).or_default());
    }

    fn count(&self, wanted: impl Fn(&Story) -> bool) -> usize {
        self.stories.lock().unwrap().values().filter(|story| wanted(story)).count()
    }
}

impl Callbacks for Book {
    fn on_connection_established(&mut self, _: &dyn NetworkBackend, connection: &ConnectionInfo) {
        self.note(connection.endpoint, |story| story.established += 1);
    }

    fn on_connection_refused(&mut self, _: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress, _: RefusedReason) {
        self.note(endpoint, |story| story.refused += 1);
    }

    fn on_connection_closed(
        &mut self,
        _: &dyn NetworkBackend,
        endpoint: Endpoint,
        _: &EndPointAddress,
        pending: &[Completion],
        _: ClosedReason,
    ) {
        self.note(endpoint, |story| {
            story.closed += 1;
            story.returned.extend(pending);
        });
    }

    fn on_data(&mut self, _: &dyn NetworkBackend, from: Endpoint, _: &EndPointAddress, _: Message<'_>) {
        self.received.fetch_add(1, Ordering::SeqCst);
        self.note(from, |_| ());
    }

    fn on_send_completed(&mut self, _: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress, completions: &[Completion]) {
        self.note(endpoint, |story| story.returned.extend(completions));
    }

    fn on_writable(&mut self, _: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress) {
        self.note(endpoint, |story| story.writable += 1);
    }
}

/// A loop with a backend that listens and one that dials.
struct Pair {
    listener: Shared,
    address: EndPointAddress,
    dialer: Shared,
    book: Book,
    ev: EpollEventLoop,
}

impl Pair {
    fn new(kind: NetworkType, config: NetworkConfig) -> Self {
        let ev = EpollEventLoop::new().unwrap();
        let book = Book::default();
        let listener: Shared = netio3::create(kind, config.clone(), Box::new(Handlers::new()), &ev).unwrap().into();
        let dialer: Shared = netio3::create(kind, config, Box::new(book.clone()), &ev).unwrap().into();
        let address = listener.open_listen_endpoint(&EndPointAddress::localhost(0), &Default::default()).unwrap();
        Self { listener, address, dialer, book, ev }
    }

    #[track_caller]
    fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        assert!(self.ev.run_until(&mut condition, WAIT).unwrap(), "not within {WAIT:?}: {what}");
    }

    fn connect(&self, params: &ConnectionParameters) -> Endpoint {
        let endpoint = self.dialer.connect(&self.address, params).unwrap();
        self.until("established", || self.book.count(|story| story.established == 1) > 0);
        endpoint
    }
}

/// Runs something on another thread, and the loop meanwhile on this one.
fn alongside<T: Send + 'static>(ev: &EpollEventLoop, run: impl FnOnce() -> T + Send + 'static) -> T {
    struct Done(Arc<AtomicBool>, Arc<dyn Remote>);
    impl Drop for Done {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
            self.1.wake();
        }
    }
    let finished = Arc::new(AtomicBool::new(false));
    let done = Done(finished.clone(), ev.remote());
    let thread = thread::spawn(move || {
        let _done = done;
        run()
    });
    let in_time = ev.run_until(&mut || finished.load(Ordering::SeqCst), WAIT).unwrap();
    assert!(in_time, "the other thread is stuck");
    thread.join().unwrap()
}

fn no_heartbeats() -> NetworkConfig {
    NetworkConfig { heartbeat_interval: Duration::ZERO, ..Default::default() }
}

/// Memory that counts how much of it is alive.
struct Counted(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

fn counted(len: usize, alive: &Arc<AtomicUsize>) -> Bytes {
    alive.fetch_add(1, Ordering::SeqCst);
    Bytes::from_owner(Counted(vec![7; len], alive.clone()))
}

/// Limits and addresses are claimed by one thread each, however many try at once.
#[test]
fn threads_claim_addresses_and_places_once() {
    kinds().for_each(claim_once);
}

fn claim_once(kind: NetworkType) {
    let pair = Pair::new(kind, NetworkConfig { max_connections: 21, ..no_heartbeats() });
    // An address of this process alone.
    let [high, low] = (std::process::id() as u16).to_be_bytes();
    let own = EndPointAddress::from(SocketAddr::from(([127, 7, high, low], 4_444)));
    let claimed: Vec<_> = thread::scope(|scope| {
        let claim = || {
            let owned = match pair.dialer.open_send_endpoint(&pair.address, &Default::default()) {
                Ok(_) => 1,
                Err(OpenSendError::SendEndpointAlreadyExists { .. }) => 0,
                Err(error) => panic!("{error}"),
            };
            let listening = match pair.dialer.open_listen_endpoint(&own, &Default::default()) {
                Ok(_) => 1,
                Err(OpenListenError::ListenEndpointAlreadyExists { .. }) => 0,
                Err(error) => panic!("{error}"),
            };
            let connected = (0..10).filter(|_| pair.dialer.connect(&pair.address, &Default::default()).is_ok()).count();
            (owned, listening, connected)
        };
        let threads = [(); 4].map(|()| scope.spawn(claim));
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let sum = |part: fn(&(usize, usize, usize)) -> usize| claimed.iter().map(part).sum::<usize>();
    assert_eq!((sum(|all| all.0), sum(|all| all.1), sum(|all| all.2)), (1, 1, 20));
    pair.until("all are established", || pair.book.count(|story| story.established == 1) == 21);
    assert_eq!(pair.dialer.listeners().len(), 1);
}

/// Threads that flood one connection beyond its queue: nothing is lost, and whoever waits for *writable* goes on.
#[test]
fn four_threads_share_a_small_queue() {
    kinds().for_each(share_a_queue);
}

fn share_a_queue(kind: NetworkType) {
    const EACH: usize = 5_000;
    let pair = Pair::new(kind, no_heartbeats());
    let (next, got) = (Arc::new(Mutex::new([0; 4])), Arc::new(AtomicUsize::new(0)));
    let (expected, count) = (next.clone(), got.clone());
    let callbacks = Handlers::new().on_data(move |_, _, _, message| {
        let number = u64::from_le_bytes(message[1..9].try_into().unwrap());
        let next = &mut expected.lock().unwrap()[message[0] as usize];
        assert_eq!(number, *next, "of thread {}", message[0]);
        *next += 1;
        count.fetch_add(1, Ordering::SeqCst);
    });
    let listener = netio3::create_local(kind, no_heartbeats(), Box::new(callbacks), &pair.ev).unwrap();
    let address = listener.open_listen_endpoint(&EndPointAddress::localhost(0), &Default::default()).unwrap();
    let params = ConnectionParameters { queue_messages: 7, ..Default::default() };
    let to = pair.dialer.connect(&address, &params).unwrap();
    pair.until("established", || pair.book.count(|story| story.established == 1) == 1);
    let writables = move |book: &Book| book.stories.lock().unwrap()[&to].writable;
    let (backend, book) = (pair.dialer.clone(), pair.book.clone());
    alongside(&pair.ev, move || {
        thread::scope(|scope| {
            for thread in 0..4 {
                let (backend, book) = (&backend, &book);
                scope.spawn(move || {
                    for number in 0..EACH as u64 {
                        send_when_writable(&**backend, to, number, thread, || writables(book));
                    }
                });
            }
        });
    });
    pair.until("all arrive", || got.load(Ordering::SeqCst) == 4 * EACH);
    pair.until("all keys come back", || pair.book.stories.lock().unwrap()[&to].returned.len() == 4 * EACH);
}

fn send_when_writable(backend: &dyn NetworkBackend, to: Endpoint, number: u64, thread: u8, writables: impl Fn() -> usize) {
    loop {
        let told = writables();
        match backend.send_copy(to, &number.to_le_bytes(), &[thread], number).unwrap() {
            NetioStatus::Ok => return,
            NetioStatus::NoResources => {
                let since = Instant::now();
                while writables() == told {
                    assert!(since.elapsed() < WAIT, "writable did not come");
                    std::thread::yield_now();
                }
            }
            other => panic!("{other}"),
        }
    }
}
