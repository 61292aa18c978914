//! Helpers of the tests.
#![allow(dead_code, reason = "every test file uses some of it")]

use std::cell::{Cell, RefCell};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use netio3_core::{Budget, EventLoop, Interest, Next, Polled, Ready, Source};
use netio3_evloop::{EpollEventLoop, Handle};

/// Long enough for a machine that is busy otherwise; reached only by failing tests.
pub const LIMIT: Duration = Duration::from_secs(30);

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub fn us(n: u64) -> Duration {
    Duration::from_micros(n)
}

pub fn event_loop() -> EpollEventLoop {
    EpollEventLoop::new().expect("a loop")
}

#[track_caller]
pub fn run_until(event_loop: &EpollEventLoop, mut condition: impl FnMut() -> bool) {
    assert!(event_loop.run_until(&mut condition, LIMIT).expect("runs"), "the condition does not come true");
}

/// Two connected sockets that do not block.
pub fn pair() -> (UnixStream, UnixStream) {
    let (a, b) = UnixStream::pair().expect("a pair");
    a.set_nonblocking(true).expect("non-blocking");
    b.set_nonblocking(true).expect("non-blocking");
    (a, b)
}

/// Reads until it would block; how many bytes.
pub fn drain(mut socket: &UnixStream) -> usize {
    let mut all = 0;
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = socket.read(&mut buffer) {
        all += n;
    }
    all
}

/// Has the loop read a socket; counts the bytes.
pub fn count_bytes(event_loop: &EpollEventLoop, socket: UnixStream) -> Count {
    let bytes = Count::default();
    let count = bytes.clone();
    let read = move |_: &Handle, socket: &mut UnixStream, _: Ready| {
        (0..drain(socket)).for_each(|_| count.add());
        Next::Wait
    };
    event_loop.add_fd(socket, Interest::Readable, read).unwrap();
    bytes
}

/// A log that closures share.
#[derive(Clone, Default)]
pub struct Log(Rc<RefCell<Vec<String>>>);

impl Log {
    pub fn add(&self, entry: impl ToString) {
        self.0.borrow_mut().push(entry.to_string());
    }

    pub fn take(&self) -> Vec<String> {
        self.0.take()
    }

    pub fn len(&self) -> usize {
        self.0.borrow().len()
    }
}

/// A number that closures share.
#[derive(Clone, Default)]
pub struct Count(Rc<Cell<usize>>);

impl Count {
    pub fn add(&self) {
        self.next();
    }

    pub fn next(&self) -> usize {
        self.0.set(self.0.get() + 1);
        self.0.get()
    }

    pub fn get(&self) -> usize {
        self.0.get()
    }
}

/// Counts drops.
pub struct Dropped(pub Count);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.add();
    }
}

type OnReady = Box<dyn FnMut(&dyn EventLoop, usize, Ready, &mut Budget) -> Next>;
type OnTimeout = Box<dyn FnMut(&dyn EventLoop)>;
type OnTurn = Box<dyn FnMut(&dyn EventLoop, &mut Budget) -> Next>;
type OnPoll = Box<dyn FnMut(&dyn EventLoop, &mut Budget) -> Polled>;

/// A source made of closures.
pub struct Probe {
    pub ready: OnReady,
    pub delivered: Box<dyn FnMut()>,
    pub timeout: OnTimeout,
    pub before_sleep: OnTurn,
    pub poll: OnPoll,
    pub may_sleep: Box<dyn FnMut() -> bool>,
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            ready: Box::new(|_, _, _, _| Next::Wait),
            delivered: Box::new(|| {}),
            timeout: Box::new(|_| {}),
            before_sleep: Box::new(|_, _| Next::Wait),
            poll: Box::new(|_, _| Polled::NoDevice),
            may_sleep: Box::new(|| true),
        }
    }
}

impl Probe {
    pub fn ready(call: impl FnMut(&dyn EventLoop, usize, Ready, &mut Budget) -> Next + 'static) -> Box<Self> {
        Box::new(Self { ready: Box::new(call), ..Self::default() })
    }

    pub fn timeout(call: impl FnMut(&dyn EventLoop) + 'static) -> Box<Self> {
        Box::new(Self { timeout: Box::new(call), ..Self::default() })
    }

    pub fn before_sleep(call: impl FnMut(&dyn EventLoop, &mut Budget) -> Next + 'static) -> Box<Self> {
        Box::new(Self { before_sleep: Box::new(call), ..Self::default() })
    }
}

impl Source for Probe {
    fn ready(&mut self, ev: &dyn EventLoop, token: usize, ready: Ready, budget: &mut Budget) -> Next {
        (self.ready)(ev, token, ready, budget)
    }

    fn delivered(&mut self, _: &dyn EventLoop, _: &mut Budget) {
        (self.delivered)();
    }

    fn timeout(&mut self, ev: &dyn EventLoop) {
        (self.timeout)(ev);
    }

    fn before_sleep(&mut self, ev: &dyn EventLoop, budget: &mut Budget) -> Next {
        (self.before_sleep)(ev, budget)
    }

    fn poll(&mut self, ev: &dyn EventLoop, budget: &mut Budget) -> Polled {
        (self.poll)(ev, budget)
    }

    fn may_sleep(&mut self, _: &dyn EventLoop) -> bool {
        (self.may_sleep)()
    }
}

/// Uses the processor for that long.
pub fn burn(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {}
}
