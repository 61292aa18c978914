use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

struct Nothing;

impl Source for Nothing {}

#[derive(Clone, Copy, Debug)]
enum Step {
    Watch(usize),
    Unwatch(usize),
    /// The kernel reports the watch of this token.
    Fetch(usize),
    /// The kernel reports a watch that ended.
    FetchStale,
    Ask(usize),
    Deliver,
}

fn step() -> impl Strategy<Value = Step> {
    let token = 0..4usize;
    prop_oneof![
        token.clone().prop_map(Step::Watch),
        token.clone().prop_map(Step::Unwatch),
        token.clone().prop_map(Step::Fetch),
        Just(Step::FetchStale),
        token.prop_map(Step::Ask),
        Just(Step::Deliver),
    ]
}

/// Delivers everything due; what came with each token, and whether a token came twice.
fn deliver(registry: &mut Registry) -> (BTreeMap<usize, Ready>, bool) {
    let mut delivered = BTreeMap::new();
    let mut twice = false;
    registry.line_up();
    while let Some((source, mut left)) = registry.pop_ready() {
        while let Some(due) = registry.pop_due(source, &mut left) {
            twice |= delivered.insert(due.number, due.ready).is_some();
        }
    }
    (delivered, twice)
}

proptest! {
    /// What is due is delivered once, merged, and nothing of a watch that ended.
    #[test]
    fn tokens_are_delivered_like_a_plain_model_of_them(steps in prop::collection::vec(step(), 0..60)) {
        let mut registry = Registry::default();
        let source = registry.add(false, |_| Box::new(Nothing));
        let mut watches: [Option<Key>; 4] = [None; 4];
        let mut ended: Option<Key> = None;
        let (mut fetched, mut asked) = ([false; 4], [false; 4]);
        for step in steps {
            match step {
                Step::Watch(token) if watches[token].is_none() => watches[token] = registry.watch(source, token, 0),
                Step::Unwatch(token) => {
                    if let Some(watch) = watches[token].take() {
                        prop_assert!(registry.unwatch(watch));
                        prop_assert!(!registry.unwatch(watch));
                        fetched[token] = false;
                        ended = Some(watch);
                    }
                }
                Step::Fetch(token) => {
                    if let Some(watch) = watches[token] {
                        registry.fetched(watch, Ready::READABLE);
                        fetched[token] = true;
                    }
                }
                Step::FetchStale => {
                    if let Some(watch) = ended {
                        registry.fetched(watch, Ready::ERROR);
                    }
                }
                Step::Ask(token) => {
                    registry.redeliver(source, token, Ready::WRITABLE);
                    asked[token] = true;
                }
                Step::Deliver => {
                    let (delivered, twice) = deliver(&mut registry);
                    prop_assert!(!twice);
                    for token in 0..4 {
                        let mut ready = Ready::NONE;
                        if std::mem::take(&mut fetched[token]) {
                            ready |= Ready::READABLE;
                        }
                        if std::mem::take(&mut asked[token]) {
                            ready |= Ready::WRITABLE;
                        }
                        prop_assert_eq!(delivered.get(&token).copied().unwrap_or_default(), ready);
                    }
                    prop_assert_eq!(registry.ready_sources(), 0);
                }
                Step::Watch(_) => {}
            }
        }
        let removed = registry.remove(source).expect("it is there");
        prop_assert_eq!(removed.fds.len(), watches.iter().flatten().count());
        prop_assert!(deliver(&mut registry).0.is_empty());
    }
}

#[test]
fn deadlines_pass_in_order_and_only_when_set() {
    let mut registry = Registry::default();
    let start = Instant::now();
    let at = |n| start + Duration::from_millis(n);
    let [a, b, c] = std::array::from_fn(|_| registry.add(false, |_| Box::new(Nothing)));
    for (key, time) in [(a, 3), (b, 1), (c, 2), (a, 1)] {
        registry.set_deadline(key, Some(at(time)));
    }
    registry.set_deadline(c, None);
    assert_eq!(registry.nearest_deadline(), Some(at(1)));
    assert_eq!((registry.passed(at(0)), registry.pop_passed(at(0), None)), (0, None));
    assert_eq!(registry.passed(at(5)), 2);
    // Of equal ones, the older source first.
    let first = registry.pop_passed(at(5), None);
    assert_eq!((first, registry.deadline(a)), (Some((at(1), a)), None));
    // What is set anew for a time that is over is none of those behind it.
    registry.set_deadline(a, Some(at(1)));
    let second = registry.pop_passed(at(5), first);
    assert_eq!((second, registry.pop_passed(at(5), second)), (Some((at(1), b)), None));
    assert_eq!(registry.pop_passed(at(5), None), first);
    registry.set_deadline(b, Some(at(9)));
    registry.remove(b);
    assert_eq!(registry.nearest_deadline(), None);
}

/// Those must last as long as the process: once they begin anew, a later source no longer comes behind the earlier ones.
#[test]
fn what_is_redelivered_takes_no_numbers_of_sources() {
    let mut registry = Registry::default();
    let first = registry.add(true, |_| Box::new(Nothing));
    for _ in 0..100_000 {
        registry.redeliver(first, 7, Ready::READABLE);
        assert_eq!(deliver(&mut registry).0.len(), 1);
    }
    let second = registry.add(true, |_| Box::new(Nothing));
    // Other tests may run beside this.
    let taken = (second.0 - first.0) >> 24;
    assert!(taken < 50_000, "{taken} numbers");
}
