//! A connection between two loops: a pipe each way, and whom to wake.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::event_loop::Remote;
use crate::loopback::network::Caller;
use crate::loopback::pipe::{Frame, Load, Pipe, Spent, Taken};
use crate::loopback::spares::Spares;

/// One of the two ends of a connection. Dropping it hangs up.
pub(super) struct End {
    line: Arc<Line>,
    side: usize,
}

#[derive(Default)]
struct Line {
    /// Each is written by the side of the same number.
    pipes: [Pipe; 2],
    wakers: [OnceLock<Waker>; 2],
    /// The calling side's address.
    caller: OnceLock<Caller>,
}

impl End {
    /// Both ends of a new connection.
    pub(super) fn pair() -> (Self, Self) {
        let line = Arc::new(Line::default());
        (Self { line: line.clone(), side: 0 }, Self { line, side: 1 })
    }

    /// Says whom to wake when the other end has done something. What it did before has to be looked for.
    pub(super) fn attach(&self, waker: Waker) {
        // An end is attached once, by whoever makes a link of it.
        let _ = self.line.wakers[self.side].set(waker);
    }

    /// Keeps the calling side's address until both ends are gone.
    pub(super) fn keep(&self, caller: Caller) {
        // A connection has one, whose end it is.
        let _ = self.line.caller.set(caller);
    }

    /// How full the way to the other end is at most, `None` when that is gone.
    pub(super) fn load(&self, spares: &mut Spares) -> Option<Load> {
        self.outgoing().load(spares)
    }

    /// Sends frames, which make up `load`. Tells whether the next message, of the length given, fits by now.
    pub(super) fn put(&self, frames: &mut Vec<Frame>, load: Load, next: Option<usize>) -> bool {
        let (wake, fits) = self.outgoing().put(frames, load, next);
        self.wake_other_if(wake);
        fits
    }

    /// Sends a frame that carries no message.
    pub(super) fn tell(&self, frame: Frame) {
        self.put(&mut vec![frame], Load::default(), None);
    }

    /// Sends a heartbeat if nothing else is there to be heard; tells whether.
    pub(super) fn beat(&self) -> bool {
        let put = self.outgoing().put_if_empty(Frame::Heartbeat);
        self.wake_other_if(put);
        put
    }

    /// Takes what came from the other end.
    pub(super) fn take(&self, arrived: &mut VecDeque<Frame>) -> Taken {
        self.incoming().take(arrived)
    }

    /// Makes room for as much as was consumed.
    pub(super) fn consumed(&self, spent: &mut Spent) {
        let wake = self.incoming().consumed(spent);
        self.wake_other_if(wake);
    }

    /// Whether the other end has hung up.
    pub(super) fn is_other_gone(&self) -> bool {
        self.outgoing().is_reader_gone()
    }

    /// Leaves. What was sent can still be received there; returns what was not taken here.
    pub(super) fn hang_up(&self) -> VecDeque<Frame> {
        self.outgoing().leave_writing();
        let lost = self.incoming().leave_reading();
        self.wake_other_if(true);
        lost
    }

    /// Gives memory back that an idle connection does not need.
    pub(super) fn trim(&self) {
        self.outgoing().trim();
    }

    fn outgoing(&self) -> &Pipe {
        &self.line.pipes[self.side]
    }

    fn incoming(&self) -> &Pipe {
        &self.line.pipes[1 - self.side]
    }

    fn wake_other_if(&self, wanted: bool) {
        if wanted {
            // One that is not attached yet looks at everything first.
            self.line.wakers[1 - self.side].get().inspect(|waker| waker.wake());
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.hang_up();
    }
}

/// How to have a loop look at one of its links or listeners.
pub(super) struct Waker {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) token: usize,
}

impl Waker {
    pub(super) fn wake(&self) {
        self.mailbox.push(self.token);
    }
}

/// The links and listeners of one backend that have to be looked at.
pub(super) struct Mailbox {
    tokens: Mutex<Vec<usize>>,
    remote: Arc<dyn Remote>,
}

impl Mailbox {
    pub(super) fn new(remote: Arc<dyn Remote>) -> Self {
        Self { tokens: Mutex::default(), remote }
    }

    /// Has `token` looked at.
    pub(super) fn push(&self, token: usize) {
        let mut tokens = self.tokens.lock();
        let first = tokens.is_empty();
        tokens.push(token);
        drop(tokens);
        if first {
            self.remote.wake();
        }
    }

    /// Calls for everything, and forgets it.
    pub(super) fn take(&self, each: impl FnMut(usize)) {
        self.tokens.lock().drain(..).for_each(each);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::event_loop::EventLoop;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Remote for Wakes {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }

        fn post(&self, _job: Box<dyn FnOnce(&dyn EventLoop) + Send>) -> bool {
            false
        }

        fn stop(&self) {}

        fn is_loop_thread(&self) -> bool {
            false
        }
    }

    #[test]
    fn a_loop_is_woken_once_for_everything_it_has_not_looked_at() {
        let wakes = Arc::new(Wakes::default());
        let mailbox = Arc::new(Mailbox::new(wakes.clone()));
        let (near, far) = End::pair();
        far.attach(Waker { mailbox: mailbox.clone(), token: 7 });
        near.tell(Frame::Goodbye);
        near.tell(Frame::Goodbye);
        drop(near);
        let mut due = Vec::new();
        mailbox.take(|token| due.push(token));
        assert_eq!(due, [7, 7], "once for the first frame, once for the end");
        assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
        mailbox.push(1);
        assert_eq!(wakes.0.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn dropping_an_end_hangs_up() {
        let (near, far) = End::pair();
        near.tell(Frame::Goodbye);
        drop(near);
        assert!(far.is_other_gone());
        assert!(!far.beat());
        let mut arrived = VecDeque::new();
        assert_eq!(far.take(&mut arrived), Taken::Frames);
        arrived.clear();
        assert_eq!(far.take(&mut arrived), Taken::End);
    }
}
