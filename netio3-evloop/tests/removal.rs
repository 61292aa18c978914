//! Removing acts at once: events already fetched are discarded.

mod util;

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::os::fd::AsFd;
use std::rc::Rc;

use netio3_core::{EventLoop, Interest, Next, Ready, SourceId};

use util::{Count, Dropped, Log, Probe, event_loop, ms, pair, run_until};

#[test]
fn events_fetched_for_an_unwatched_descriptor_are_discarded() {
    let event_loop = event_loop();
    let (first, mut first_peer) = pair();
    let (second, mut second_peer) = pair();
    let sockets = Rc::new([first, second]);
    let watches = Rc::new(RefCell::new(Vec::new()));
    let log = Log::default();
    let (entries, theirs, all) = (log.clone(), watches.clone(), sockets.clone());
    let source = event_loop.add_source(Probe::ready(move |ev, token, _, _| {
        entries.add(token);
        // Both were fetched in one go; whichever comes first ends the other.
        let other = 1 - token;
        ev.unwatch(theirs.borrow()[other], all[other].as_fd());
        Next::Wait
    }));
    for (token, socket) in sockets.iter().enumerate() {
        watches.borrow_mut().push(event_loop.watch(source, socket.as_fd(), token, Interest::Readable).unwrap());
    }
    first_peer.write_all(b"x").unwrap();
    second_peer.write_all(b"x").unwrap();
    event_loop.run_for(ms(5)).unwrap();
    assert_eq!(log.take().len(), 1);
}

#[test]
fn a_reused_descriptor_number_gets_nothing_of_its_predecessor() {
    let event_loop = event_loop();
    let log = Log::default();
    let entries = log.clone();
    let source = event_loop.add_source(Probe::ready(move |_, token, _, _| {
        entries.add(token);
        Next::Wait
    }));
    let (old, mut old_peer) = pair();
    let old_watch = event_loop.watch(source, old.as_fd(), 1, Interest::Readable).unwrap();
    old_peer.write_all(b"x").unwrap();
    event_loop.unwatch(old_watch, old.as_fd());
    drop(old);
    let (new, _new_peer) = pair();
    let new_watch = event_loop.watch(source, new.as_fd(), 2, Interest::Readable).unwrap();
    assert_ne!(old_watch, new_watch);
    // The old name does nothing to the new watch.
    event_loop.unwatch(old_watch, new.as_fd());
    event_loop.run_for(ms(2)).unwrap();
    assert_eq!(log.take(), [""; 0]);
    (&_new_peer).write_all(b"x").unwrap();
    run_until(&event_loop, || log.len() == 1);
    assert_eq!(log.take(), ["2"]);
}

#[test]
fn what_a_source_asked_for_outlives_its_watch() {
    let event_loop = event_loop();
    let (a, mut b) = pair();
    let log = Log::default();
    let entries = log.clone();
    let source = event_loop.add_source(Probe::ready(move |_, token, ready, _| {
        entries.add(format!("{token} {}", ready == Ready::ERROR));
        Next::Wait
    }));
    let watch = event_loop.watch(source, a.as_fd(), 3, Interest::Readable).unwrap();
    b.write_all(b"x").unwrap();
    event_loop.redeliver(source, 3, Ready::ERROR);
    event_loop.unwatch(watch, a.as_fd());
    event_loop.run_once(None).unwrap();
    assert_eq!(log.take(), ["3 true"]);
}

#[test]
fn a_removed_source_gets_nothing_and_is_dropped_at_once() {
    let event_loop = event_loop();
    let dropped = Count::default();
    let guard = Dropped(dropped.clone());
    let source = event_loop.add_source(Probe::ready(move |_, _, _, _| {
        let _guard = &guard;
        panic!("it was removed")
    }));
    let (a, mut b) = pair();
    event_loop.watch(source, a.as_fd(), 0, Interest::Readable).unwrap();
    b.write_all(b"x").unwrap();
    event_loop.redeliver(source, 5, Ready::READABLE);
    event_loop.set_deadline(source, Some(event_loop.now()));
    event_loop.remove_source(source);
    assert_eq!(dropped.get(), 1);
    event_loop.remove_source(source);
    event_loop.redeliver(source, 5, Ready::READABLE);
    event_loop.run_for(ms(2)).unwrap();
    // Its descriptor, still open, is no longer watched.
    let other = event_loop.add_source(Box::<Probe>::default());
    event_loop.watch(other, a.as_fd(), 0, Interest::Readable).unwrap();
}

#[test]
fn a_source_that_removes_itself_is_dropped_when_it_returns() {
    let event_loop = event_loop();
    let dropped = Count::default();
    let (guard, seen) = (Dropped(dropped.clone()), dropped.clone());
    let own = Rc::new(Cell::new(None::<SourceId>));
    let id = own.clone();
    let source = event_loop.add_source(Probe::ready(move |ev, _, _, _| {
        let _guard = &guard;
        ev.remove_source(id.get().unwrap());
        ev.redeliver(id.get().unwrap(), 9, Ready::READABLE);
        assert_eq!(seen.get(), 0);
        Next::Again
    }));
    own.set(Some(source));
    event_loop.redeliver(source, 1, Ready::READABLE);
    event_loop.redeliver(source, 2, Ready::READABLE);
    event_loop.run_once(None).unwrap();
    assert_eq!(dropped.get(), 1);
    event_loop.run_for(ms(2)).unwrap();
}

#[test]
fn a_source_whose_drop_calls_the_loop_finds_it_usable() {
    let event_loop = event_loop();
    struct Talker(netio3_evloop::Handle, Count);
    impl Drop for Talker {
        fn drop(&mut self) {
            let said = self.1.clone();
            self.0.post(move |_| said.add());
            let inner = self.0.add_source(Box::<Probe>::default());
            self.0.remove_source(inner);
        }
    }
    let said = Count::default();
    let talker = Talker(event_loop.local(), said.clone());
    let source = event_loop.add_source(Probe::ready(move |_, _, _, _| {
        let _talker = &talker;
        Next::Wait
    }));
    event_loop.remove_source(source);
    event_loop.run_once(None).unwrap();
    assert_eq!(said.get(), 1);
}

#[test]
fn callbacks_add_and_remove_sources() {
    let event_loop = event_loop();
    let log = Log::default();
    let entries = log.clone();
    let victim_log = log.clone();
    let victim = event_loop.add_source(Probe::ready(move |_, _, _, _| {
        victim_log.add("victim");
        Next::Wait
    }));
    let killer = event_loop.add_source(Probe::ready(move |ev, _, _, _| {
        ev.remove_source(victim);
        let entries = entries.clone();
        let new = ev.add_source(Probe::ready(move |_, _, _, _| {
            entries.add("new");
            Next::Wait
        }));
        ev.redeliver(new, 0, Ready::READABLE);
        Next::Wait
    }));
    event_loop.redeliver(killer, 0, Ready::READABLE);
    event_loop.redeliver(victim, 0, Ready::READABLE);
    run_until(&event_loop, || log.len() > 0);
    event_loop.run_for(ms(1)).unwrap();
    assert_eq!(log.take(), ["new"]);
}
