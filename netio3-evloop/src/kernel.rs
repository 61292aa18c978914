//! The loop's descriptors: epoll, and a timer in it for deadlines finer than epoll's milliseconds.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Poll, Token, Waker};
use netio3_core::{Interest, Ready};
use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime};

use crate::arena::Key;

/// What a loop waits with.
pub(crate) struct Kernel {
    poll: Poll,
    events: Events,
    timer: OwnedFd,
    /// When the timer will fire; `None` also after it fired.
    armed: Option<Instant>,
}

/// What [`Kernel::fetch`] found, the events of watches apart.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fetched {
    /// Something other than the timer.
    pub(crate) any: bool,
    /// There may be more: ask again before sleeping.
    pub(crate) full: bool,
}

impl Kernel {
    /// Makes the descriptors: three, and one more for the registry's clone that the loop's owner lends out.
    pub(crate) fn new() -> io::Result<(Self, Waker, mio::Registry)> {
        let poll = Poll::new().map_err(|e| cannot("create the epoll descriptor", e))?;
        let waker = Waker::new(poll.registry(), WAKER).map_err(|e| cannot("create the wake-up descriptor", e))?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).map_err(|e| cannot("create the timer descriptor", e.into()))?;
        poll.registry()
            .register(&mut SourceFd(&timer.as_raw_fd()), TIMER, mio::Interest::READABLE)
            .map_err(|e| cannot("watch the timer descriptor", e))?;
        let registry = poll.registry().try_clone().map_err(|e| cannot("duplicate the epoll descriptor", e))?;
        Ok((Self { poll, events: Events::with_capacity(FIRST_EVENTS), timer, armed: None }, waker, registry))
    }

    pub(crate) fn register(&self, fd: RawFd, key: Key, interest: Interest) -> io::Result<()> {
        let interest = match interest {
            Interest::Readable => mio::Interest::READABLE,
            Interest::Writable => mio::Interest::WRITABLE,
            Interest::Both => mio::Interest::READABLE | mio::Interest::WRITABLE,
        };
        self.poll.registry().register(&mut SourceFd(&fd), Token(key.0 as usize), interest).map_err(|error| {
            let why = match Errno::from_io_error(&error) {
                Some(Errno::PERM) => "; files, directories and /dev/null are always ready, and cannot be watched",
                Some(Errno::EXIST) => "; it is on this loop already, and can be watched again through a clone of it",
                Some(Errno::NOSPC) => "; raise fs.epoll.max_user_watches",
                _ => "",
            };
            io::Error::new(error.kind(), format!("cannot watch descriptor {fd}: {error}{why}"))
        })
    }

    /// Ends a registration. A descriptor closed too early has ended its own.
    pub(crate) fn deregister(&self, fd: RawFd) {
        if let Err(error) = self.poll.registry().deregister(&mut SourceFd(&fd)) {
            tracing::debug!(fd, %error, "a descriptor was closed before its watch ended");
        }
    }

    /// Collects events, without waiting or until there is one.
    pub(crate) fn fetch(&mut self, wait: bool, mut each: impl FnMut(Key, Ready)) -> io::Result<Fetched> {
        let timeout = if wait { None } else { Some(Duration::ZERO) };
        loop {
            match self.poll.poll(&mut self.events, timeout) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        }
        let mut found = Fetched::default();
        let mut count = 0;
        for event in &self.events {
            count += 1;
            match event.token() {
                TIMER => self.armed = None,
                WAKER => found.any = true,
                Token(key) => {
                    found.any = true;
                    each(Key(key as u64), readiness(event));
                }
            }
        }
        if count == self.events.capacity() {
            found.full = true;
            self.events = Events::with_capacity((count * 2).min(MOST_EVENTS));
        }
        Ok(found)
    }

    /// Makes sure that waiting ends at `at`, or earlier: a timer set too early is left alone, since
    /// deadlines that move back at every message would otherwise cost a system call each.
    pub(crate) fn wake_at(&mut self, at: Option<Instant>) {
        let Some(at) = at else {
            if self.armed.take().is_some() {
                self.set_timer(Duration::ZERO);
            }
            return;
        };
        if self.armed.is_none_or(|armed| armed > at) {
            let now = Instant::now();
            // Zero would disarm it.
            let time = at.saturating_duration_since(now).clamp(Duration::from_nanos(1), LONGEST_TIMER);
            self.armed = Some(now + time);
            self.set_timer(time);
        }
    }

    fn set_timer(&self, time: Duration) {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
        let spec = Itimerspec { it_interval: zero, it_value: value };
        // Setting it also clears an expiry that nobody read, so the timer is never read.
        if let Err(error) = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec) {
            tracing::error!(%error, "cannot set the event loop's timer");
        }
    }
}

fn readiness(event: &mio::event::Event) -> Ready {
    let mut ready = Ready::NONE;
    if event.is_readable() || event.is_read_closed() {
        ready |= Ready::READABLE;
    }
    if event.is_read_closed() {
        ready |= Ready::READ_CLOSED;
    }
    if event.is_writable() || event.is_write_closed() {
        ready |= Ready::WRITABLE;
    }
    if event.is_error() {
        ready |= Ready::ERROR;
    }
    ready
}

fn cannot(what: &str, error: io::Error) -> io::Error {
    let remedy = match Errno::from_io_error(&error) {
        Some(Errno::MFILE) => "; raise the limit of open files, `ulimit -n`",
        Some(Errno::NFILE) => "; raise the system's limit of open files, fs.file-max",
        Some(Errno::NOSPC) => "; raise fs.epoll.max_user_watches",
        _ => "",
    };
    io::Error::new(error.kind(), format!("cannot {what} of an event loop: {error}{remedy}"))
}

// No key reaches these: their serial numbers are the last ones.
const WAKER: Token = Token(usize::MAX);
const TIMER: Token = Token(usize::MAX - 1);
const _: () = assert!(usize::BITS == 64, "keys of 64 bits travel in tokens");

/// Room for events fetched at once, at first and at most.
const FIRST_EVENTS: usize = 1024;
const MOST_EVENTS: usize = 1 << 16;

/// Longer waits are cut in pieces.
const LONGEST_TIMER: Duration = Duration::from_secs(60 * 60 * 24 * 365);
