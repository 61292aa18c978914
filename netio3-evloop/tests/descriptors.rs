//! Descriptors, their readiness, and its redelivery.

mod util;

use std::io::Write;
use std::os::fd::AsFd;
use std::time::Duration;

use netio3_core::{Budget, EventLoop, Interest, Next, Ready};

use util::{Count, Log, Probe, drain, event_loop, ms, pair, run_until};

#[test]
fn readiness_arrives_with_its_token() {
    let event_loop = event_loop();
    let (a, b) = pair();
    let log = Log::default();
    let entries = log.clone();
    let source = event_loop.add_source(Probe::ready(move |_, token, ready, _| {
        entries.add(format!("{token} {}", ready.contains(Ready::READABLE)));
        Next::Wait
    }));
    event_loop.watch(source, a.as_fd(), usize::MAX, Interest::Readable).unwrap();
    (&b).write_all(b"x").unwrap();
    run_until(&event_loop, || log.len() > 0);
    assert_eq!(log.take(), [format!("{} true", usize::MAX)]);
    assert!(event_loop.counters().snapshot().events >= 1);
}

#[test]
fn the_closure_of_a_descriptor_reads_and_is_removed_with_it() {
    let event_loop = event_loop();
    let (a, mut b) = pair();
    let bytes = Count::default();
    let count = bytes.clone();
    let id = event_loop
        .add_fd(a, Interest::Readable, move |_, socket, ready| {
            assert!(ready.contains(Ready::READABLE));
            for _ in 0..drain(socket) {
                count.add();
            }
            Next::Wait
        })
        .unwrap();
    b.write_all(b"hello").unwrap();
    run_until(&event_loop, || bytes.get() == 5);
    event_loop.remove_source(id);
    assert!(b.write_all(b"x").is_err(), "the loop closed its end");
}

#[test]
fn writable_interest_is_told_at_once() {
    let event_loop = event_loop();
    let (a, _b) = pair();
    let told = Count::default();
    let count = told.clone();
    event_loop
        .add_fd(a, Interest::Both, move |_, _, ready| {
            assert!(ready.contains(Ready::WRITABLE) && !ready.contains(Ready::READABLE));
            count.add();
            Next::Wait
        })
        .unwrap();
    run_until(&event_loop, || told.get() == 1);
}

#[test]
fn the_end_of_a_stream_is_told_with_its_last_bytes() {
    let event_loop = event_loop();
    let (a, mut b) = pair();
    b.write_all(b"last").unwrap();
    drop(b);
    let log = Log::default();
    let entries = log.clone();
    event_loop
        .add_fd(a, Interest::Readable, move |_, _, ready| {
            entries.add(ready.contains(Ready::READABLE | Ready::READ_CLOSED));
            Next::Wait
        })
        .unwrap();
    run_until(&event_loop, || log.len() > 0);
    assert_eq!(log.take()[0], "true");
}

#[test]
fn an_error_is_told_as_writable_and_error() {
    let event_loop = event_loop();
    let (read, write) = rustix::pipe::pipe().unwrap();
    drop(read);
    let log = Log::default();
    let entries = log.clone();
    event_loop
        .add_fd(write, Interest::Writable, move |_, _, ready| {
            entries.add(ready.contains(Ready::WRITABLE | Ready::ERROR));
            Next::Wait
        })
        .unwrap();
    run_until(&event_loop, || log.len() > 0);
    assert_eq!(log.take()[0], "true");
}

#[test]
fn again_brings_the_same_readiness_in_every_turn_without_sleeping() {
    let event_loop = event_loop();
    let (a, mut b) = pair();
    b.write_all(b"x").unwrap();
    let calls = Count::default();
    let count = calls.clone();
    event_loop
        .add_fd(a, Interest::Readable, move |_, _, ready| {
            assert!(ready.contains(Ready::READABLE));
            if count.next() == 10 { Next::Wait } else { Next::Again }
        })
        .unwrap();
    for turn in 1..=10 {
        event_loop.run_once(None).unwrap();
        assert_eq!(calls.get(), turn);
    }
    event_loop.run_for(ms(5)).unwrap();
    assert_eq!(calls.get(), 10);
}

#[test]
fn redelivered_tokens_are_merged_and_come_in_order() {
    let event_loop = event_loop();
    let log = Log::default();
    let entries = log.clone();
    let source = event_loop.add_source(Probe::ready(move |_, token, ready, _| {
        entries.add(format!("{token}:{}", ready.contains(Ready::READABLE | Ready::WRITABLE)));
        Next::Wait
    }));
    event_loop.redeliver(source, 2, Ready::READABLE);
    event_loop.redeliver(source, 1, Ready::READABLE);
    event_loop.redeliver(source, 2, Ready::WRITABLE);
    event_loop.run_once(None).unwrap();
    assert_eq!(log.take(), ["2:true", "1:false"]);
}

#[test]
fn an_event_is_merged_with_what_is_due_already() {
    let event_loop = event_loop();
    let (a, mut b) = pair();
    let log = Log::default();
    let entries = log.clone();
    let source = event_loop.add_source(Probe::ready(move |_, token, ready, _| {
        entries.add(format!("{token}:{}", ready.contains(Ready::READABLE | Ready::ERROR)));
        Next::Wait
    }));
    event_loop.watch(source, a.as_fd(), 4, Interest::Readable).unwrap();
    b.write_all(b"x").unwrap();
    event_loop.redeliver(source, 4, Ready::ERROR);
    event_loop.run_once(None).unwrap();
    assert_eq!(log.take(), ["4:true"]);
}

#[test]
fn a_token_redelivered_by_its_own_delivery_waits_for_the_next_turn() {
    let event_loop = event_loop();
    let calls = Count::default();
    let (count, id) = (calls.clone(), std::rc::Rc::new(std::cell::Cell::new(None)));
    let own = id.clone();
    let source = event_loop.add_source(Probe::ready(move |ev, token, ready, _| {
        count.add();
        ev.redeliver(own.get().unwrap(), token, ready);
        Next::Wait
    }));
    id.set(Some(source));
    event_loop.redeliver(source, 0, Ready::READABLE);
    for turn in 1..=3 {
        event_loop.run_once(None).unwrap();
        assert_eq!(calls.get(), turn);
    }
}

#[test]
fn what_was_called_before_running_is_done_before_the_first_sleep() {
    let event_loop = event_loop();
    let asked = Count::default();
    let count = asked.clone();
    event_loop.add_source(Probe::before_sleep(move |ev, budget| {
        assert_eq!(*budget, Budget::DEFAULT);
        assert!(ev.is_running());
        count.add();
        Next::Wait
    }));
    event_loop.run_once(Some(Duration::ZERO)).unwrap();
    let before = asked.get();
    assert!(before >= 1);
    event_loop.schedule();
    event_loop.run_once(None).unwrap();
    assert!(asked.get() > before);
}

#[test]
fn more_events_than_fit_at_once_arrive_all() {
    let event_loop = event_loop();
    let told = Count::default();
    let count = told.clone();
    let source = event_loop.add_source(Probe::ready(move |_, _, _, _| {
        count.add();
        Next::Wait
    }));
    // Each end of a pair is writable, so this is two events a pair.
    let pairs: Vec<_> = (0..600).map_while(|_| std::os::unix::net::UnixStream::pair().ok()).collect();
    let expected = 2 * pairs.len();
    for (token, socket) in pairs.iter().flat_map(|(a, b)| [a, b]).enumerate() {
        event_loop.watch(source, socket.as_fd(), token, Interest::Writable).unwrap();
    }
    run_until(&event_loop, || told.get() == expected);
    event_loop.run_for(ms(5)).unwrap();
    assert_eq!(told.get(), expected);
}

#[test]
fn what_cannot_be_watched_is_an_error_and_is_dropped() {
    let event_loop = event_loop();
    let dropped = Count::default();
    let guard = util::Dropped(dropped.clone());
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let result = event_loop.add_fd(file, Interest::Readable, move |_, _, _| {
        let _guard = &guard;
        Next::Wait
    });
    let error = result.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    assert!(error.to_string().contains("always ready"), "{error}");
    assert_eq!(dropped.get(), 1);
    let (a, _b) = pair();
    let stranger = netio3_core::SourceId(u64::MAX);
    assert!(event_loop.watch(stranger, a.as_fd(), 0, Interest::Both).is_err());
}
