//! The loop inside tokio, on its current-thread runtime.

mod util;

use std::io::Write;

use netio3_core::{EventLoop, Next};
use netio3_evloop::EpollEventLoop;
use tokio::io::unix::AsyncFd;

use util::{Count, LIMIT, count_bytes, event_loop, ms, pair};

#[allow(deprecated, reason = "its replacement is unsafe; the loop owns its descriptor as long as it lives")]
fn in_tokio(event_loop: EpollEventLoop) -> AsyncFd<EpollEventLoop> {
    AsyncFd::with_interest(event_loop, tokio::io::Interest::READABLE).unwrap()
}

/// Drives the loop as a task would.
async fn drive(event_loop: &AsyncFd<EpollEventLoop>, mut condition: impl FnMut() -> bool) {
    while !condition() {
        let mut guard = event_loop.readable().await.unwrap();
        // Before processing, so that what comes after counts as new.
        guard.clear_ready();
        event_loop.get_ref().process().unwrap();
    }
}

fn block_on(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LIMIT, future).await.expect("in time") });
}

#[test]
fn tokio_drives_descriptors_timers_posts_and_signals() {
    block_on(async {
        let event_loop = in_tokio(event_loop());
        let ours = event_loop.get_ref();
        let (a, mut b) = pair();
        let bytes = count_bytes(ours, a);
        let (beats, fired) = (Count::default(), Count::default());
        let count = beats.clone();
        let interval = ours.add_interval(ms(1), move |_| count.add());
        let count = fired.clone();
        let signal = ours.add_signal(move |_| count.add());
        let thread = std::thread::spawn(move || {
            b.write_all(b"hello").unwrap();
            signal.fire();
            b
        });
        drive(&event_loop, || bytes.get() == 5 && beats.get() >= 5 && fired.get() == 1).await;
        let _open = thread.join().unwrap();
        ours.cancel_timer(interval);

        // Work left over by one turn is done in the next, without any event.
        let left = Count::default();
        let count = left.clone();
        ours.add_poller(move |_| if count.next() < 100 { Next::Again } else { Next::Wait });
        drive(&event_loop, || left.get() == 100).await;
    });
}

#[test]
fn other_tasks_of_the_runtime_call_the_loop() {
    block_on(async {
        let event_loop = in_tokio(event_loop());
        let handle = event_loop.get_ref().local();
        let done = Count::default();
        let (count, seen) = (done.clone(), done.clone());
        let caller = async move {
            for n in 0..50 {
                let count = count.clone();
                handle.post(move |_| count.add());
                while seen.get() <= n {
                    tokio::task::yield_now().await;
                }
            }
        };
        let driver = drive(&event_loop, || done.get() == 50);
        let mut caller = std::pin::pin!(caller);
        let mut driver = std::pin::pin!(driver);
        // Both are polled in turn until both are done.
        let (mut called, mut driven) = (false, false);
        std::future::poll_fn(|cx| {
            called |= !called && caller.as_mut().poll(cx).is_ready();
            driven |= !driven && driver.as_mut().poll(cx).is_ready();
            if called && driven { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
        assert!(!event_loop.get_ref().is_running());
    });
}
