//! The synchronized kind under the hands of many threads, over loopback.
//!
//! What it promises like every backend is the conformance suite's affair; here is what only threads can break.

use std::collections::HashMap;
use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netio3_core::{
    Buffers, Callbacks, ClosedReason, Completion, CompletionKind, ConnectionInfo, ConnectionParameters, EndPointAddress, Endpoint,
    EventLoop, Handlers, MemoryRegion, Message, NetioStatus, NetworkBackend, NetworkConfig, OpenListenError, OpenSendError, RawSlice,
    RefusedReason, Remote, SendError, loopback,
};
use netio3_evloop::EpollEventLoop;

const WAIT: Duration = Duration::from_secs(30);

type Shared = Arc<dyn NetworkBackend + Send + Sync>;

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
    fn new(config: NetworkConfig) -> Self {
        let ev = EpollEventLoop::new().unwrap();
        let book = Book::default();
        let listener: Shared = loopback::create(config.clone(), Box::new(Handlers::new()), &ev).unwrap().into();
        let dialer: Shared = loopback::create(config, Box::new(book.clone()), &ev).unwrap().into();
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

/// Numbers that look random, from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
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

/// Whatever threads call in whatever order: each open has one outcome, each accepted message comes back once and
/// in its thread's order, *writable* comes at most once for each refusal, and all memory is released.
#[test]
fn the_books_balance_whatever_threads_call() {
    for seed in 0..4 {
        let pair = Pair::new(no_heartbeats());
        let alive = Arc::new(AtomicUsize::new(0));
        let caller = Caller { backend: pair.dialer.clone(), address: pair.address, book: pair.book.clone(), alive: alive.clone() };
        let sent = alongside(&pair.ev, move || {
            thread::scope(|scope| {
                let threads = [0, 1, 2].map(|i| {
                    scope.spawn({
                        let caller = &caller;
                        move || caller.call_at_random(seed * 3 + i)
                    })
                });
                threads.map(|thread| thread.join().unwrap())
            })
        });
        pair.dialer.shutdown(Duration::from_secs(2));
        pair.until("all have ended", || pair.dialer.connections().is_empty());

        let mut stories = pair.book.stories.lock().unwrap();
        for (endpoint, story) in &*stories {
            assert!(story.opened, "{endpoint} was never opened");
            assert_eq!((story.refused + story.established, story.closed), (1, story.established), "{endpoint}: {story:?}");
        }
        let mut refusals: HashMap<Endpoint, usize> = HashMap::new();
        for sent in &sent {
            sent.refused.iter().for_each(|endpoint| *refusals.entry(*endpoint).or_default() += 1);
        }
        for (endpoint, story) in &*stories {
            assert!(story.writable <= refusals.get(endpoint).copied().unwrap_or(0), "{endpoint}: writable without a refusal");
        }
        for (endpoint, story) in &mut *stories {
            let accepted = [0, 1, 2].map(|i: usize| sent[i].accepted.get(endpoint).cloned().unwrap_or_default());
            assert_eq!(story.returned.len(), accepted.iter().map(Vec::len).sum::<usize>(), "{endpoint}");
            let mut next = [0; 3];
            // A buffer's key is told again each time the buffer is sent, so it does not name the message.
            story.returned.retain(|returned| returned.kind != CompletionKind::Buffer);
            let accepted = accepted.map(|keys| keys.into_iter().filter(|key| key.kind != CompletionKind::Buffer).collect::<Vec<_>>());
            for returned in &story.returned {
                let from = (0..3).find(|i| accepted[*i].get(next[*i]) == Some(returned));
                next[from.unwrap_or_else(|| panic!("{endpoint}: {returned:?} is out of order"))] += 1;
            }
        }
        drop(stories);
        assert_eq!(alive.load(Ordering::SeqCst), 0, "memory is still held");
        assert_eq!(pair.dialer.totals().connections.get(), 0);
        let totals = pair.dialer.totals().snapshot();
        assert_eq!(totals.messages_accepted, totals.messages_sent + totals.messages_pending_at_close);
    }
}

/// A thread that calls.
struct Caller {
    backend: Shared,
    address: EndPointAddress,
    book: Book,
    alive: Arc<AtomicUsize>,
}

/// What a thread knows of its sends.
#[derive(Default)]
struct Sent {
    accepted: HashMap<Endpoint, Vec<Completion>>,
    refused: Vec<Endpoint>,
}

/// Raw memory for everyone; it is never written.
static RAW: [u8; 5_000] = [9; 5_000];

impl Caller {
    fn call_at_random(&self, seed: u64) -> Sent {
        let mut random = Random(seed.wrapping_mul(77_777) + 1);
        let mut sent = Sent::default();
        let region = MemoryRegion::new(100_000).unwrap();
        let shared = region.bytes().unwrap();
        for number in 0..3_000 {
            let copy = Completion { key: (seed << 32) | number, kind: CompletionKind::Copy };
            let zero_copy = Completion { kind: CompletionKind::ZeroCopy, ..copy };
            // The connections of all threads.
            let connections = self.backend.connections();
            let Some(to) = connections.get(random.below(connections.len().max(1))).map(|connection| connection.endpoint) else {
                self.open(&mut random);
                continue;
            };
            match random.below(100) {
                0..4 => self.open(&mut random),
                4 => drop(self.backend.close(to)),
                5 => drop(self.backend.abort(to)),
                6..9 => _ = self.backend.pause(to),
                9..14 => _ = self.backend.resume(to),
                14..17 => _ = self.backend.flush(to),
                17 => {
                    self.backend.listeners();
                    _ = (self.backend.limits(to), self.backend.stats(to), self.backend.available_buffers(to));
                }
                18 => {
                    let id = self.backend.register(&region).unwrap();
                    self.send(to, zero_copy, &mut sent, |key| self.backend.send(to, &shared.slice(..2_000), b"region", key));
                    while self.backend.deregister(id).is_err() {
                        thread::sleep(Duration::from_millis(1));
                        // Nobody else might move it on.
                        self.backend.connections().iter().for_each(|connection| _ = self.backend.resume(connection.endpoint));
                    }
                }
                19..30 => self.send_buffer(to, &mut sent),
                30..55 => {
                    let bytes = counted(random.below(3_000), &self.alive);
                    self.send(to, zero_copy, &mut sent, |key| self.backend.send_iov(to, &[bytes.clone(), bytes.clone()], b"shared", key));
                }
                55..60 => {
                    let len = random.below(RAW.len());
                    let raw = RawSlice::new(RAW.as_ptr(), len);
                    // SAFETY: a static array is readable for ever.
                    self.send(to, zero_copy, &mut sent, |key| unsafe { self.backend.send_raw_iov(to, &[raw, raw], b"raw", key) });
                }
                60 => {
                    let long = vec![1; 300_000];
                    self.send(to, copy, &mut sent, |key| self.backend.send_copy(to, &long, b"long", key));
                }
                _ => {
                    let pieces = [IoSlice::new(&RAW[..random.below(200)]), IoSlice::new(b"end")];
                    self.send(to, copy, &mut sent, |key| self.backend.send_copy_iov(to, &pieces, b"", key));
                }
            }
        }
        sent
    }

    fn open(&self, random: &mut Random) {
        let buffers = (random.below(2) == 0).then_some(Buffers { size: 1_000, count: 4 });
        let params = ConnectionParameters { queue_messages: 1 + random.below(40), queue_bytes: 500_000, buffers, ..Default::default() };
        let opened = match random.below(8) {
            0 => self.backend.connect(&EndPointAddress::localhost(1), &params),
            1..4 => self.backend.open_send_endpoint(&self.address, &params),
            _ if self.backend.connections().len() < 20 => self.backend.connect(&self.address, &params),
            _ => return,
        };
        match opened {
            Ok(endpoint) => self.book.stories.lock().unwrap().entry(endpoint).or_default().opened = true,
            Err(error) => assert!(matches!(error, OpenSendError::SendEndpointAlreadyExists { .. }), "{error}"),
        }
    }

    fn send(&self, to: Endpoint, message: Completion, sent: &mut Sent, send: impl FnOnce(u64) -> Result<NetioStatus, SendError>) {
        match send(message.key) {
            Ok(NetioStatus::Ok) => sent.accepted.entry(to).or_default().push(message),
            Ok(NetioStatus::NoResources) => sent.refused.push(to),
            Ok(NetioStatus::NotConnected) | Err(_) => {}
            other => panic!("{other:?}"),
        }
    }

    fn send_buffer(&self, to: Endpoint, sent: &mut Sent) {
        match self.backend.take_buffer(to) {
            Ok(Some(mut buffer)) => {
                buffer.extend_from_slice(&RAW[..500]).unwrap();
                let key = buffer.id();
                let outcome = self.backend.send_taken(to, buffer).map(|()| Ok(NetioStatus::Ok)).unwrap_or_else(|unsent| unsent.outcome);
                self.send(to, Completion { key, kind: CompletionKind::Buffer }, sent, |_| outcome);
            }
            Ok(None) => sent.refused.push(to),
            Err(_) => {}
        }
    }
}

/// Dropping on another thread while the loop is busy with the backend: once it returns no callback comes, and raw
/// memory may go away.
#[test]
fn a_drop_elsewhere_ends_all_use_of_memory() {
    for round in 0..30 {
        let pair = Pair::new(no_heartbeats());
        let to = pair.connect(&ConnectionParameters::default());
        let Pair { listener, dialer, book, ev, .. } = pair;
        let alive = Arc::new(AtomicUsize::new(0));
        let (memory, over) = (alive.clone(), book.over.clone());
        alongside(&ev, move || {
            let raw = Page::new();
            for key in 0..500 {
                let bytes = counted(2_000 + key, &memory);
                assert_eq!(dialer.send(to, &bytes, b"", 0).unwrap(), NetioStatus::Ok);
                // SAFETY: the page is unmapped only after the backend was dropped.
                assert_eq!(unsafe { dialer.send_raw_iov(to, &[raw.slice()], b"", 1) }.unwrap(), NetioStatus::Ok);
            }
            thread::sleep(Duration::from_micros(round * 50));
            drop(dialer);
            over.store(true, Ordering::SeqCst);
            drop(raw);
        });
        assert!(ev.run_until(&mut || listener.connections().is_empty(), WAIT).unwrap(), "the peer sees the loss");
        assert_eq!(alive.load(Ordering::SeqCst), 0, "memory is still held");
    }
}

/// A page of memory that faults when it is read after its drop.
struct Page(*mut libc::c_void);

const PAGE: usize = 4_096;

impl Page {
    fn new() -> Self {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping touches no existing memory.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, protection, flags, -1, 0) };
        assert_ne!(page, libc::MAP_FAILED);
        Self(page)
    }

    fn slice(&self) -> RawSlice {
        RawSlice::new(self.0.cast(), PAGE)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the page is a mapping of this size. Leaving it mapped without access keeps its address unused.
        assert_eq!(unsafe { libc::mprotect(self.0, PAGE, libc::PROT_NONE) }, 0);
    }
}

/// A drop on another thread waits for the callback that is running, and for no more.
#[test]
fn a_drop_elsewhere_waits_for_the_running_callback() {
    let ev = EpollEventLoop::new().unwrap();
    let (entered, wait) = mpsc::channel();
    let left = Arc::new(AtomicBool::new(false));
    let leaving = left.clone();
    let callbacks = Handlers::new().on_connection_refused(move |_, _, _, _| {
        entered.send(()).unwrap();
        thread::sleep(Duration::from_millis(30));
        leaving.store(true, Ordering::SeqCst);
    });
    let backend = loopback::create(no_heartbeats(), Box::new(callbacks), &ev).unwrap();
    for _ in 0..2 {
        backend.connect(&EndPointAddress::localhost(1), &Default::default()).unwrap();
    }
    alongside(&ev, move || {
        wait.recv().unwrap();
        drop(backend);
        assert!(left.load(Ordering::SeqCst), "the callback was still running");
        assert!(wait.try_recv().is_err(), "another callback came");
    });
}

/// A drop on another thread needs nobody to run the loop; the memory goes when the loop next runs, or is dropped.
#[test]
fn a_drop_elsewhere_does_not_need_the_loop_to_run() {
    for run in [false, true] {
        let pair = Pair::new(no_heartbeats());
        let to = pair.connect(&ConnectionParameters::default());
        let Pair { dialer, listener, book, ev, .. } = pair;
        let alive = Arc::new(AtomicUsize::new(0));
        // Some are with the backend, the others in the mailbox.
        let send = || assert_eq!(dialer.send(to, &counted(2_000_000, &alive), b"", 0).unwrap(), NetioStatus::Ok);
        (0..2).for_each(|_| send());
        ev.run_once(Some(Duration::ZERO)).unwrap();
        (0..2).for_each(|_| send());
        let over = book.over.clone();
        thread::spawn(move || {
            drop(dialer);
            over.store(true, Ordering::SeqCst);
        })
        .join()
        .unwrap();
        if run {
            assert!(ev.run_until(&mut || listener.connections().is_empty(), WAIT).unwrap());
        } else {
            drop(ev);
        }
        assert_eq!(alive.load(Ordering::SeqCst), 0, "memory is still held");
    }
}

/// A drop after the loop and its thread are gone.
#[test]
fn a_drop_may_come_after_the_loop() {
    let (give, take) = mpsc::channel::<Shared>();
    let thread = thread::spawn(move || {
        let ev = EpollEventLoop::new().unwrap();
        give.send(loopback::create(no_heartbeats(), Box::new(Handlers::new()), &ev).unwrap().into()).unwrap();
        ev.run_for(Duration::from_millis(5)).unwrap();
    });
    let backend = take.recv().unwrap();
    thread.join().unwrap();
    assert!(backend.connect(&EndPointAddress::localhost(1), &Default::default()).is_err());
    assert!(backend.open_listen_endpoint(&EndPointAddress::localhost(0), &Default::default()).is_err());
    assert!(backend.connections().is_empty() && backend.listeners().is_empty());
    backend.shutdown(Duration::ZERO);
    drop(backend);
}

/// Limits and addresses are claimed by one thread each, however many try at once.
#[test]
fn threads_claim_addresses_and_places_once() {
    let pair = Pair::new(NetworkConfig { max_connections: 21, ..no_heartbeats() });
    let claimed: Vec<_> = thread::scope(|scope| {
        let claim = || {
            let owned = match pair.dialer.open_send_endpoint(&pair.address, &Default::default()) {
                Ok(_) => 1,
                Err(OpenSendError::SendEndpointAlreadyExists { .. }) => 0,
                Err(error) => panic!("{error}"),
            };
            let own = EndPointAddress::localhost(4_444);
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
    const EACH: usize = 5_000;
    let pair = Pair::new(no_heartbeats());
    let (next, got) = (Arc::new(Mutex::new([0; 4])), Arc::new(AtomicUsize::new(0)));
    let (expected, count) = (next.clone(), got.clone());
    let callbacks = Handlers::new().on_data(move |_, _, _, message| {
        let number = u64::from_le_bytes(message[1..9].try_into().unwrap());
        let next = &mut expected.lock().unwrap()[message[0] as usize];
        assert_eq!(number, *next, "of thread {}", message[0]);
        *next += 1;
        count.fetch_add(1, Ordering::SeqCst);
    });
    let listener = loopback::create_local(no_heartbeats(), Box::new(callbacks), &pair.ev).unwrap();
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
