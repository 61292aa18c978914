//! No source starves another, nor timers and posts.

mod util;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use netio3_core::{Budget, EventLoop, Next, Ready};

use util::{Count, Log, Probe, event_loop, ms, run_until, us};

/// A source with that many tokens, all of them always ready; each call costs one message.
fn flood(event_loop: &dyn EventLoop, tokens: usize, mut each: impl FnMut(usize) + 'static) {
    let source = event_loop.add_source(Probe::ready(move |_, token, _, budget| {
        budget.spend(1, 0);
        each(token);
        Next::Again
    }));
    for token in 0..tokens {
        event_loop.redeliver(source, token, Ready::READABLE);
    }
}

#[test]
fn a_flood_delays_a_timer_by_two_budgets_at_most() {
    let event_loop = event_loop();
    event_loop.set_budget(Budget { messages: 10, bytes: usize::MAX });
    let due = Instant::now() + ms(1);
    let late = Count::default();
    let count = late.clone();
    flood(&*event_loop, 64, move |_| {
        util::burn(us(10));
        if Instant::now() >= due {
            count.add();
        }
    });
    let fired = Count::default();
    let count = fired.clone();
    let timer = event_loop.add_source(Probe::timeout(move |_| count.add()));
    event_loop.set_deadline(timer, Some(due));
    run_until(&event_loop, || fired.get() == 1);
    // The rest of the turn in which it came due, and the deliveries of the next.
    assert!(late.get() <= 20, "{} messages went before the timer", late.get());
    assert!(event_loop.counters().snapshot().budget_hits > 0);
}

#[test]
fn the_tokens_of_a_source_take_turns() {
    let event_loop = event_loop();
    event_loop.set_budget(Budget { messages: 7, bytes: usize::MAX });
    let counts: Vec<Count> = (0..16).map(|_| Count::default()).collect();
    let all = counts.clone();
    flood(&*event_loop, 16, move |token| all[token].add());
    for _ in 0..100 {
        event_loop.run_once(None).unwrap();
        let numbers = || counts.iter().map(Count::get);
        assert!(numbers().max().unwrap() - numbers().min().unwrap() <= 1);
    }
    assert_eq!(counts.iter().map(Count::get).sum::<usize>(), 700);
}

#[test]
fn two_floods_share() {
    let event_loop = event_loop();
    event_loop.set_budget(Budget { messages: 5, bytes: usize::MAX });
    let (few, many) = (Count::default(), Count::default());
    let (a, b) = (few.clone(), many.clone());
    flood(&*event_loop, 5, move |_| a.add());
    flood(&*event_loop, 500, move |_| b.add());
    for turn in 1..=50 {
        event_loop.run_once(None).unwrap();
        assert_eq!((few.get(), many.get()), (5 * turn, 5 * turn));
    }
}

/// A source that notes what is delivered to it. Token 0 has always more; every call costs as much as is told for it.
fn noting(name: &'static str, log: &Log, cost: impl Fn(usize) -> usize + 'static) -> Box<Probe> {
    let (delivered, sent) = (log.clone(), log.clone());
    Box::new(Probe {
        ready: Box::new(move |_, token, _, budget| {
            delivered.add(format!("{name}{token}"));
            budget.spend(cost(token), 0);
            if token == 0 { Next::Again } else { Next::Wait }
        }),
        delivered: Box::new(move || sent.add(format!("{name} sends"))),
        ..Probe::default()
    })
}

#[test]
fn who_has_much_keeps_nobody_waiting() {
    let event_loop = event_loop();
    event_loop.set_budget(Budget { messages: 2, bytes: usize::MAX });
    let log = Log::default();
    let a = event_loop.add_source(noting("a", &log, |_| 2));
    let b = event_loop.add_source(noting("b", &log, |token| 2 - token));
    event_loop.redeliver(a, 0, Ready::READABLE);
    event_loop.redeliver(b, 0, Ready::READABLE);
    event_loop.run_once(None).unwrap();
    assert_eq!(log.take(), ["a0", "a sends", "b0", "b sends"]);
    // What comes now is delivered, and the answers are sent, before what was left over: in the same source and in others.
    event_loop.redeliver(b, 1, Ready::READABLE);
    event_loop.run_once(None).unwrap();
    assert_eq!(log.take(), ["b1", "b sends", "b0", "b sends", "a0", "a sends"]);
}

#[test]
fn who_has_much_has_its_turn_however_much_comes() {
    let event_loop = event_loop();
    event_loop.set_budget(Budget { messages: 2, bytes: usize::MAX });
    let log = Log::default();
    let source = event_loop.add_source(noting("", &log, |token| if token == 0 { 2 } else { 1 }));
    event_loop.redeliver(source, 0, Ready::READABLE);
    for _ in 0..40 {
        (1..4).for_each(|token| event_loop.redeliver(source, token, Ready::READABLE));
        event_loop.run_once(None).unwrap();
    }
    let log = log.take();
    let count = |name: &str| log.iter().filter(|entry| *entry == name).count();
    let counts = ["0", "1", "2", "3"].map(count);
    assert!(counts.iter().all(|count| *count >= 15), "{counts:?}");
}

/// Whoever asks to be called again, instead of saying that something was left over, is called once in a turn, too.
#[test]
fn who_asks_to_be_called_again_keeps_nobody_from_his_turn() {
    let event_loop = event_loop();
    event_loop.set_budget(Budget { messages: 2, bytes: usize::MAX });
    let asking = Count::default();
    let calls = asking.clone();
    let own = Rc::new(Cell::new(None));
    let name = own.clone();
    let source = event_loop.add_source(Probe::ready(move |ev, token, ready, budget| {
        calls.add();
        budget.spend(2, 0);
        ev.redeliver(name.get().expect("it was added"), token, ready);
        Next::Wait
    }));
    own.set(Some(source));
    let left_over = Count::default();
    let count = left_over.clone();
    flood(&*event_loop, 1, move |_| count.add());
    event_loop.redeliver(source, 0, Ready::READABLE);
    for turn in 1..=20 {
        event_loop.run_once(None).unwrap();
        assert_eq!(asking.get(), turn);
    }
    assert!(left_over.get() >= 20, "{} calls", left_over.get());
}

#[test]
fn bytes_count_as_well() {
    let event_loop = event_loop();
    event_loop.set_budget(Budget { messages: usize::MAX, bytes: 1000 });
    let calls = Count::default();
    let count = calls.clone();
    let source = event_loop.add_source(Probe::ready(move |_, _, _, budget| {
        budget.spend(1, 400);
        count.add();
        Next::Again
    }));
    for token in 0..10 {
        event_loop.redeliver(source, token, Ready::READABLE);
    }
    event_loop.run_once(None).unwrap();
    assert_eq!(calls.get(), 3);
    assert_eq!(event_loop.counters().snapshot().budget_hits, 1);
}

#[test]
fn a_source_that_spent_its_budget_on_reading_may_still_send() {
    let event_loop = event_loop();
    let asked = Count::default();
    let count = asked.clone();
    let source = event_loop.add_source(Box::new(Probe {
        ready: Box::new(|_, _, _, budget| {
            budget.spend(usize::MAX, usize::MAX);
            Next::Again
        }),
        before_sleep: Box::new(move |_, budget| {
            assert!(!budget.is_spent());
            count.add();
            Next::Wait
        }),
        ..Probe::default()
    }));
    event_loop.redeliver(source, 0, Ready::READABLE);
    for _ in 0..10 {
        event_loop.run_once(None).unwrap();
    }
    assert!(asked.get() >= 10);
}

#[test]
fn posts_that_post_leave_room_for_others() {
    let event_loop = event_loop();
    fn forever(ev: &netio3_evloop::Handle) {
        ev.post(forever);
    }
    event_loop.post(forever);
    let fired = Count::default();
    let count = fired.clone();
    event_loop.add_timer(ms(1), move |_| count.add());
    run_until(&event_loop, || fired.get() == 1);
}
