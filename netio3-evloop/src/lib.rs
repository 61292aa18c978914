//! The event loop of netio3.
//!
//! An [`EpollEventLoop`] drives the backends of netio3 and the descriptors, timers, signals, posted closures
//! and pollers of the program, all in callbacks on the thread that made it. Its callbacks hold it by a
//! [`Handle`]; other threads reach it by its [`Remote`](netio3_core::Remote) or by a [`Signal`].
//!
//! ```
//! use std::time::Duration;
//!
//! use netio3_core::EventLoop;
//! use netio3_evloop::EpollEventLoop;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let event_loop = EpollEventLoop::new()?;
//! let mut beats = 0;
//! event_loop.add_interval(Duration::from_millis(1), move |event_loop| {
//!     beats += 1;
//!     if beats == 3 {
//!         event_loop.stop();
//!     }
//! });
//! let signal = event_loop.add_signal(|_| println!("another thread says hello"));
//! let greeter = std::thread::spawn(move || signal.fire());
//! event_loop.run()?;
//! # greeter.join().unwrap();
//! # Ok(())
//! # }
//! ```
//!
//! # A turn
//! The loop runs in turns. Each fetches what is ready, sleeping first if there is nothing to do; then
//! delivers readiness, runs posted closures, and calls whose time has come; then asks every source
//! to finish its work, and whether it forbids sleeping. Sources take turns within a turn: each has a
//! [`Budget`](netio3_core::Budget), and what is beyond it waits while the others have theirs; what was left over once is
//! delivered after what has just come, so that who has much keeps nobody waiting.
//!
//! # Threads
//! The loop starts none. A wake-up from another thread makes a system call only when the loop sleeps or is
//! about to.
#![forbid(unsafe_code)]

mod arena;
mod delegate;
mod event_loop;
mod fd;
mod handle;
mod inner;
mod kernel;
mod poller;
mod registry;
mod remote;
mod signal;
mod timer;
mod turn;

pub use event_loop::EpollEventLoop;
pub use handle::Handle;
pub use signal::Signal;
pub use timer::TimerId;
