//! Which sources there are, what they wait for, and what is due to them. Calls nobody.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Bound;
use std::os::fd::RawFd;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use netio3_core::{Ready, Source};

use crate::arena::{self, Arena, Key};

/// The books of a loop.
#[derive(Default)]
pub(crate) struct Registry {
    sources: Arena<Entry>,
    tokens: Arena<Token>,
    deadlines: BTreeSet<(Instant, Key)>,
    /// Sources to which a token is due, in the order in which they became so; and behind them those that left something
    /// over when they were called last.
    ready: VecDeque<Key>,
    late: VecDeque<Key>,
    /// Sources that are asked before sleeping and polled while spinning, ascending.
    hooked: Vec<Key>,
}

struct Entry {
    /// `None` while it runs.
    source: Option<Box<dyn Source>>,
    deadline: Option<Instant>,
    /// Every token of this source, found by its number.
    tokens: BTreeSet<(usize, Key)>,
    /// Tokens to be delivered; those removed since are skipped. And behind them those of which something was left over
    /// when they were delivered last: who has much does not keep others waiting.
    due: VecDeque<Key>,
    late: VecDeque<Key>,
    listed: Listed,
}

/// In which list a source is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listed {
    No,
    Late,
    Ready,
}

/// What is to be delivered to a source in this turn, of each kind.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    due: usize,
    late: usize,
}

impl Left {
    pub(crate) fn is_nothing(self) -> bool {
        self.due + self.late == 0
    }
}

/// A token of a source: a watched descriptor, or one that only waits to be redelivered.
struct Token {
    source: Key,
    number: usize,
    watched: Option<RawFd>,
    /// What the kernel reported: lost when the watch ends.
    fetched: Ready,
    /// What the source asked for: outlives the watch.
    asked: Option<Ready>,
    /// Whether it is in [`Entry::due`] or [`Entry::late`].
    queued: bool,
}

impl arena::Entry for Entry {
    fn serials() -> &'static AtomicU64 {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        &SERIAL
    }
}

impl arena::Entry for Token {
    fn serials() -> &'static AtomicU64 {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        &SERIAL
    }
}

/// A delivery to be made.
#[derive(Clone, Copy)]
pub(crate) struct Due {
    key: Key,
    pub(crate) number: usize,
    pub(crate) ready: Ready,
    /// Something was left over of it when it was delivered last.
    pub(crate) late: bool,
}

/// What is left of a removed source.
pub(crate) struct Removed {
    /// `None` when it is running.
    pub(crate) source: Option<Box<dyn Source>>,
    /// The descriptors it still watched.
    pub(crate) fds: Vec<RawFd>,
}

// Sources.
impl Registry {
    /// Adds a source; only a hooked one is asked before sleeping.
    pub(crate) fn add(&mut self, hooked: bool, make: impl FnOnce(Key) -> Box<dyn Source>) -> Key {
        let key = self.sources.insert_with(|key| Entry {
            source: Some(make(key)),
            deadline: None,
            tokens: BTreeSet::new(),
            due: VecDeque::new(),
            late: VecDeque::new(),
            listed: Listed::No,
        });
        if hooked {
            self.hooked.push(key);
        }
        key
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<Removed> {
        let entry = self.sources.remove(key)?;
        if let Some(at) = entry.deadline {
            self.deadlines.remove(&(at, key));
        }
        self.hooked.retain(|other| *other != key);
        let fds = entry.tokens.iter().filter_map(|(_, token)| self.tokens.remove(*token)?.watched).collect();
        Some(Removed { source: entry.source, fds })
    }

    /// Takes a source out to run it.
    pub(crate) fn take(&mut self, key: Key) -> Option<Box<dyn Source>> {
        self.sources.get_mut(key)?.source.take()
    }

    /// Puts a source back that ran; gives it to the caller if it was removed meanwhile.
    pub(crate) fn put_back(&mut self, key: Key, source: Box<dyn Source>) -> Option<Box<dyn Source>> {
        match self.sources.get_mut(key) {
            Some(entry) => entry.source.replace(source),
            None => Some(source),
        }
    }

    /// The hooked source that was added last.
    pub(crate) fn last_hooked(&self) -> Option<Key> {
        self.hooked.last().copied()
    }

    /// The hooked source that was added next after this one; without one, the first.
    pub(crate) fn next_hooked(&self, after: Option<Key>) -> Option<Key> {
        let place = self.hooked.partition_point(|key| Some(*key) <= after);
        self.hooked.get(place).copied()
    }

    /// Every source, for dropping them all.
    pub(crate) fn into_sources(self) -> Vec<Box<dyn Source>> {
        self.sources.into_values().filter_map(|entry| entry.source).collect()
    }
}

// Tokens.
impl Registry {
    /// Notes a watch; `None` if there is no such source.
    pub(crate) fn watch(&mut self, source: Key, number: usize, fd: RawFd) -> Option<Key> {
        let entry = self.sources.get(source)?;
        let unwatched = entry.tokens.range(tokens_of(number)).find(|(_, key)| self.tokens.get(*key).is_some_and(|t| t.watched.is_none()));
        // What was asked for under this number goes to the new watch.
        let asked = unwatched.copied().and_then(|(_, key)| self.drop_token(key)).and_then(|token| token.asked);
        let key = self.insert(source, number, Some(fd));
        if let Some(ready) = asked {
            self.ask(key, ready, false);
        }
        Some(key)
    }

    /// Forgets a watch and what was fetched for it; `false` if it had ended already.
    pub(crate) fn unwatch(&mut self, key: Key) -> bool {
        let Some(token) = self.tokens.get_mut(key) else { return false };
        let was_watched = token.watched.take().is_some();
        token.fetched = Ready::NONE;
        if token.asked.is_none() {
            self.drop_token(key);
        }
        was_watched
    }

    /// Whether there may be a watch.
    pub(crate) fn has_watches(&self) -> bool {
        !self.tokens.is_empty()
    }

    /// Notes what the kernel reported for a watch.
    pub(crate) fn fetched(&mut self, key: Key, ready: Ready) {
        // Otherwise the watch ended after the kernel's report.
        if let Some(token) = self.tokens.get_mut(key).filter(|token| token.watched.is_some()) {
            token.fetched |= ready;
            self.enqueue(key, false);
        }
    }

    /// Notes what a source asked for.
    pub(crate) fn redeliver(&mut self, source: Key, number: usize, ready: Ready) {
        if let Some(key) = self.token(source, number) {
            self.ask(key, ready, false);
        }
    }

    /// Notes that a source did not use a delivery up.
    pub(crate) fn again(&mut self, source: Key, due: Due) {
        if let Some(token) = self.tokens.get_mut(due.key).filter(|token| token.watched.is_some()) {
            token.fetched |= due.ready;
            self.enqueue(due.key, true);
        } else if let Some(key) = self.token(source, due.number) {
            self.ask(key, due.ready, true);
        }
    }

    /// The token of this number, made if there is none.
    fn token(&mut self, source: Key, number: usize) -> Option<Key> {
        let known = self.sources.get(source)?.tokens.range(tokens_of(number)).next_back().map(|(_, key)| *key);
        Some(known.unwrap_or_else(|| self.insert(source, number, None)))
    }

    pub(crate) fn ready_sources(&self) -> usize {
        self.ready.len() + self.late.len()
    }

    /// Puts the late sources behind the others, for a turn; gives how many there are together. What is listed from now
    /// on comes behind them.
    pub(crate) fn line_up(&mut self) -> usize {
        for key in self.late.drain(..) {
            if let Some(entry) = self.sources.get_mut(key) {
                entry.listed = Listed::Ready;
                self.ready.push_back(key);
            }
        }
        self.ready.len()
    }

    /// The next of the sources that were lined up, and how many tokens are due to it at this moment.
    pub(crate) fn pop_ready(&mut self) -> Option<(Key, Left)> {
        while let Some(key) = self.ready.pop_front() {
            if let Some(entry) = self.sources.get_mut(key) {
                entry.listed = Listed::No;
                return Some((key, Left { due: entry.due.len(), late: entry.late.len() }));
            }
        }
        None
    }

    /// The next due token of a source, among those that are left.
    pub(crate) fn pop_due(&mut self, source: Key, left: &mut Left) -> Option<Due> {
        while !left.is_nothing() {
            let entry = self.sources.get_mut(source)?;
            let late = left.due == 0;
            let (queue, left) = if late { (&mut entry.late, &mut left.late) } else { (&mut entry.due, &mut left.due) };
            *left -= 1;
            let key = queue.pop_front()?;
            let Some(token) = self.tokens.get_mut(key) else { continue };
            token.queued = false;
            let ready = std::mem::take(&mut token.fetched) | token.asked.take().unwrap_or_default();
            let due = Due { key, number: token.number, ready, late };
            if token.watched.is_none() {
                self.drop_token(key);
            }
            return Some(due);
        }
        None
    }

    /// Puts a source back in line, if it has due tokens. Those that were left in this turn are due in the next before
    /// what comes till then.
    pub(crate) fn relist(&mut self, source: Key, left: Left) {
        let Some(entry) = self.sources.get_mut(source) else { return };
        if left.late > 0 {
            entry.due.extend(entry.late.drain(..left.late));
        }
        if entry.listed == Listed::No && !(entry.due.is_empty() && entry.late.is_empty()) {
            entry.listed = Listed::Late;
            self.late.push_back(source);
        }
    }

    fn insert(&mut self, source: Key, number: usize, watched: Option<RawFd>) -> Key {
        let token = Token { source, number, watched, fetched: Ready::NONE, asked: None, queued: false };
        let key = self.tokens.insert_with(|_| token);
        if let Some(entry) = self.sources.get_mut(source) {
            entry.tokens.insert((number, key));
        }
        key
    }

    fn drop_token(&mut self, key: Key) -> Option<Token> {
        let token = self.tokens.remove(key)?;
        if let Some(entry) = self.sources.get_mut(token.source) {
            entry.tokens.remove(&(token.number, key));
        }
        Some(token)
    }

    fn ask(&mut self, key: Key, ready: Ready, late: bool) {
        if let Some(token) = self.tokens.get_mut(key) {
            token.asked = Some(token.asked.unwrap_or_default() | ready);
            self.enqueue(key, late);
        }
    }

    fn enqueue(&mut self, key: Key, late: bool) {
        let Some(token) = self.tokens.get_mut(key) else { return };
        let source = token.source;
        if std::mem::replace(&mut token.queued, true) {
            return;
        }
        let Some(entry) = self.sources.get_mut(source) else { return };
        if late {
            // It is being called, and is listed behind that.
            return entry.late.push_back(key);
        }
        entry.due.push_back(key);
        let before = std::mem::replace(&mut entry.listed, Listed::Ready);
        if before == Listed::Late {
            self.late.retain(|listed| *listed != source);
        }
        if before != Listed::Ready {
            self.ready.push_back(source);
        }
    }
}

// Deadlines.
impl Registry {
    /// Sets a source's deadline; `false` if there is no such source any more.
    pub(crate) fn set_deadline(&mut self, key: Key, at: Option<Instant>) -> bool {
        let Some(entry) = self.sources.get_mut(key) else { return false };
        if let Some(old) = std::mem::replace(&mut entry.deadline, at) {
            self.deadlines.remove(&(old, key));
        }
        if let Some(at) = at {
            self.deadlines.insert((at, key));
        }
        true
    }

    pub(crate) fn deadline(&self, key: Key) -> Option<Instant> {
        self.sources.get(key)?.deadline
    }

    pub(crate) fn nearest_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// How many deadlines have passed.
    pub(crate) fn passed(&self, now: Instant) -> usize {
        self.deadlines.iter().take_while(|(at, _)| *at <= now).count()
    }

    /// Clears the earliest deadline that has passed, of those behind the last one cleared, and tells whose it was.
    pub(crate) fn pop_passed(&mut self, now: Instant, last: Option<(Instant, Key)>) -> Option<(Instant, Key)> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        let passed = self.deadlines.range((from, Bound::Included((now, Key::MAX)))).next().copied();
        passed.inspect(|(_, key)| _ = self.set_deadline(*key, None))
    }
}

fn tokens_of(number: usize) -> std::ops::RangeInclusive<(usize, Key)> {
    (number, Key::MIN)..=(number, Key::MAX)
}

#[cfg(test)]
mod tests;
