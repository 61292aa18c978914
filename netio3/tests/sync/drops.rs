//! Dropping the backend on another thread than the loop's.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use netio3::bytes::Bytes;
use netio3::{
    AcceptFilter, ConnectionParameters, ConnectionParametersRecv, EndPointAddress, EpollEventLoop, EventLoop, Handlers, NetioStatus,
    NetworkType, RawSlice,
};

use super::{Book, Pair, Shared, WAIT, alongside, counted, kinds, no_heartbeats};

/// Dropping on another thread while the loop is busy with the backend: once it returns no callback comes, and raw
/// memory may go away.
#[test]
fn a_drop_elsewhere_ends_all_use_of_memory() {
    kinds().for_each(drop_in_the_middle);
}

fn drop_in_the_middle(kind: NetworkType) {
    for round in 0..30 {
        let pair = Pair::new(kind, no_heartbeats());
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
    kinds().for_each(drop_beside_a_callback);
}

fn drop_beside_a_callback(kind: NetworkType) {
    let ev = EpollEventLoop::new().unwrap();
    let (entered, wait) = mpsc::channel();
    let left = Arc::new(AtomicBool::new(false));
    let leaving = left.clone();
    let callbacks = Handlers::new().on_connection_refused(move |_, _, _, _| {
        entered.send(()).unwrap();
        thread::sleep(Duration::from_millis(30));
        leaving.store(true, Ordering::SeqCst);
    });
    let backend = netio3::create(kind, no_heartbeats(), Box::new(callbacks), &ev).unwrap();
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
    kinds().for_each(drop_without_the_loop);
}

fn drop_without_the_loop(kind: NetworkType) {
    for run in [false, true] {
        let pair = Pair::new(kind, no_heartbeats());
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
    kinds().for_each(drop_after_the_loop);
}

fn drop_after_the_loop(kind: NetworkType) {
    let (give, take) = mpsc::channel::<Shared>();
    let thread = thread::spawn(move || {
        let ev = EpollEventLoop::new().unwrap();
        give.send(netio3::create(kind, no_heartbeats(), Box::new(Handlers::new()), &ev).unwrap().into()).unwrap();
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

/// A shutdown is over when no connection is counted any more, and not before: who drops the backend then misses nothing.
#[test]
fn no_connection_is_counted_when_its_end_was_told() {
    kinds().for_each(drop_after_a_shutdown);
}

fn drop_after_a_shutdown(kind: NetworkType) {
    for round in 0..20 {
        let pair = Pair::new(kind, no_heartbeats());
        pair.connect(&ConnectionParameters::default());
        let Pair { listener: _listener, dialer, address, book, ev } = pair;
        alongside(&ev, move || {
            let totals = dialer.totals();
            if round % 2 == 0 {
                dialer.connect(&address, &Default::default()).unwrap();
                assert_eq!(totals.connections.get(), 2, "the loop need not know of it");
            }
            dialer.shutdown(WAIT);
            while totals.connections.get() > 0 {
                thread::yield_now();
            }
            drop(dialer);
            let ends = book.count(|story| story.refused + story.closed == 1);
            assert_eq!(ends, 2 - round % 2, "an end was never told");
        });
    }
}

/// Nor is it over before the loop knows of it: a peer that it is just accepting becomes a connection still.
#[test]
fn a_shutdown_counts_until_the_loop_knows_of_it() {
    kinds().for_each(peer_in_a_shutdown);
}

fn peer_in_a_shutdown(kind: NetworkType) {
    let ev = EpollEventLoop::new().unwrap();
    let (book, dialers) = (Book::default(), Handlers::new());
    let listener: Shared = netio3::create(kind, no_heartbeats(), Box::new(book.clone()), &ev).unwrap().into();
    let dialer = netio3::create_local(kind, no_heartbeats(), Box::new(dialers), &ev).unwrap();
    let (ask, asked) = mpsc::channel();
    let (decide, decided) = mpsc::channel();
    let decided = Mutex::new(decided);
    let accept = AcceptFilter::new(move |_| {
        ask.send(()).unwrap();
        decided.lock().unwrap().recv_timeout(WAIT).is_ok()
    });
    let address = listener.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv { accept, ..Default::default() });
    dialer.connect(&address.unwrap(), &Default::default()).unwrap();
    alongside(&ev, move || {
        asked.recv_timeout(WAIT).unwrap();
        listener.shutdown(WAIT);
        let totals = listener.totals();
        assert_eq!(totals.connections.get(), 1, "over {kind}: the loop is still accepting");
        decide.send(()).unwrap();
        while totals.connections.get() > 0 {
            thread::yield_now();
        }
        drop(listener);
        let established = book.count(|story| story.established == 1);
        assert_eq!(established, book.count(|story| story.closed == 1), "over {kind}: an end was never told");
    });
}

/// Memory whose drop panics, but during another panic.
struct Bad([u8; 100]);

impl AsRef<[u8]> for Bad {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Bad {
    fn drop(&mut self) {
        assert!(thread::panicking(), "on purpose, while dropping");
    }
}

/// In a callback a call drops such memory, which ends the backend; then the callback drops it, as the panic goes through it or
/// having caught that.
#[test]
fn a_backend_that_has_ended_may_be_dropped_in_a_callback() {
    for catches in [true, false] {
        let (tell, told) = mpsc::channel();
        // It may hang.
        thread::spawn(move || {
            let ev = EpollEventLoop::new().unwrap();
            let listener = netio3::create_local(NetworkType::Tcp, no_heartbeats(), Box::new(Handlers::new()), &ev).unwrap();
            let address = listener.open_listen_endpoint(&EndPointAddress::localhost(0), &Default::default()).unwrap();
            let owned: Arc<Mutex<Option<Shared>>> = Arc::default();
            let own = owned.clone();
            let callbacks = Handlers::new().on_connection_established(move |_, connection| {
                let backend = own.lock().unwrap().take().unwrap();
                // The short piece is copied, and its last share dropped, when the message is handed over.
                let pieces = [Bytes::from(vec![1; 5_000]), Bytes::from_owner(Bad([2; 100]))];
                assert_eq!(backend.send_iov(connection.endpoint, &pieces, b"", 1), Ok(NetioStatus::Ok));
                drop(pieces);
                let flush = || backend.flush(connection.endpoint);
                if catches {
                    assert!(catch_unwind(AssertUnwindSafe(flush)).is_err(), "it panics");
                } else {
                    _ = flush();
                }
                drop(backend);
            });
            let backend: Shared = netio3::create(NetworkType::Tcp, no_heartbeats(), Box::new(callbacks), &ev).unwrap().into();
            *owned.lock().unwrap() = Some(backend.clone());
            backend.connect(&address, &Default::default()).unwrap();
            drop(backend);
            let ran = catch_unwind(AssertUnwindSafe(|| ev.run_until(&mut || owned.lock().unwrap().is_none(), WAIT).unwrap()));
            _ = tell.send(ran.ok());
        });
        let ran = told.recv_timeout(2 * WAIT).expect("the loop does not wait for itself");
        assert_eq!(ran, catches.then_some(true));
    }
}
