//! The owner of a loop.

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use crate::delegate::delegate_event_loop;
use crate::handle::Handle;
use crate::inner::Inner;

/// An event loop on epoll, by way of mio.
///
/// It belongs to the thread that made it: it is neither `Send` nor `Sync`, and all its callbacks run there,
/// inside [`run`](netio3_core::EventLoop::run) and its siblings or inside [`process`](Handle::process). What can be
/// put on it is documented at [`Handle`], to which it dereferences, and at
/// [`EventLoop`](netio3_core::EventLoop), which both implement.
///
/// Dropping it drops everything on it at once, without any callback. Inside a callback, the source that is running goes when
/// it returns: a backend hands out what it has read before. Handles and remotes stay
/// valid and do nothing from then on, so closures may own handles without keeping anything alive.
///
/// It uses four file descriptors.
///
/// # In another event loop
/// Its descriptor is readable while there is something to do: an event, a deadline that has passed, a wake-up from
/// another thread, or work that was left over. The foreign loop watches it for reading, by level or by
/// edge, and calls [`process`](Handle::process) whenever it is readable. The loop keeps the descriptor so
/// from the first [`as_fd`](AsFd::as_fd), [`as_raw_fd`](AsRawFd::as_raw_fd) or `process` on; before, it
/// spares the system calls.
#[derive(Debug)]
pub struct EpollEventLoop {
    handle: Handle,
    /// A second name of the epoll descriptor, to be lent out.
    registry: mio::Registry,
}

impl EpollEventLoop {
    /// Makes a loop for this thread.
    ///
    /// # Errors
    /// The kernel refuses a descriptor; the text says which and why.
    pub fn new() -> io::Result<Self> {
        let (inner, registry) = Inner::new()?;
        Ok(Self { handle: Handle { inner }, registry })
    }

    fn tell_of_work(&self) {
        if !self.handle.inner.nested.replace(true) {
            self.handle.inner.work_came();
        }
    }
}

impl Drop for EpollEventLoop {
    fn drop(&mut self) {
        self.handle.inner.close();
    }
}

impl Deref for EpollEventLoop {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

impl AsFd for EpollEventLoop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tell_of_work();
        self.registry.as_fd()
    }
}

impl AsRawFd for EpollEventLoop {
    fn as_raw_fd(&self) -> RawFd {
        self.tell_of_work();
        self.registry.as_raw_fd()
    }
}

delegate_event_loop!(EpollEventLoop, self => self.handle.inner);
