//! What happened in a schedule, and the rules it has to follow.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use netio3_core::{
    ClosedReason, Completion, CompletionKind, ConnectionCounters, ConnectionInfo, Direction, EndPointAddress, Endpoint, RefusedReason,
};

use super::random::Random;

/// A connection as one of the nodes sees it.
pub(super) type Id = (usize, Endpoint);

/// Everything that messages are made of; a message is a piece of it.
pub(super) static PATTERN: LazyLock<Bytes> = LazyLock::new(|| {
    let mut random = Random::new(7);
    (0..PATTERN_LEN / 8).flat_map(|_| random.next().to_le_bytes()).collect()
});

pub(super) const PATTERN_LEN: usize = 1 << 20;

/// The record of all connections of a schedule.
#[derive(Default)]
pub(super) struct Book {
    pub(super) lives: BTreeMap<Id, Life>,
    /// Both sides of each connection, by the dialling side's port: the dialling one first.
    links: BTreeMap<u16, [Option<Id>; 2]>,
    /// No side aborts, no connection is reset and deadlines are far away: nothing may be lost.
    pub(super) gentle: bool,
    pub(super) verbose: bool,
}

/// One connection, from open or *established* to its end.
#[derive(Default)]
pub(super) struct Life {
    pub(super) phase: Phase,
    pub(super) address: Option<EndPointAddress>,
    pub(super) max_len: usize,
    port: u16,
    sent: Vec<Sent>,
    /// The first so many of them have come back.
    completed: usize,
    pending: usize,
    received: usize,
    /// Refusals since the last *writable*.
    pub(super) refusals: usize,
    pub(super) paused: bool,
    /// Closed by this side, whose messages may be discarded from then on if it is paused.
    pub(super) closing: bool,
    may_discard: bool,
    counters: Option<Arc<ConnectionCounters>>,
    closed: Option<ClosedReason>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    #[default]
    Opening,
    Established,
    Ended,
    /// Its backend was dropped.
    Gone,
}

/// An accepted message.
pub(super) struct Sent {
    pub(super) key: u64,
    pub(super) kind: CompletionKind,
    /// Where in the pattern.
    pub(super) from: usize,
    pub(super) len: usize,
    /// A second handle to the memory it was sent from, which must be the only one once the key came back.
    pub(super) memory: Option<Bytes>,
}

impl Book {
    pub(super) fn log(&self, line: impl FnOnce() -> String) {
        if self.verbose {
            println!("{}", line());
        }
    }

    pub(super) fn life(&mut self, id: Id) -> &mut Life {
        self.lives.get_mut(&id).unwrap_or_else(|| panic!("{id:?} was never opened"))
    }

    pub(super) fn opened(&mut self, id: Id, address: EndPointAddress) {
        self.log(|| format!("{id:?} opens {address}"));
        assert!(self.lives.insert(id, Life { address: Some(address), ..Life::default() }).is_none(), "handles are never reused");
    }

    pub(super) fn established(&mut self, node: usize, info: &ConnectionInfo, counters: Arc<ConnectionCounters>) {
        let id = (node, info.endpoint);
        self.log(|| format!("{id:?} established, {:?}", info.direction));
        let port = match info.direction {
            Direction::Outgoing => info.local_address.port(),
            Direction::Incoming => {
                assert!(self.lives.insert(id, Life::default()).is_none(), "established once");
                info.address.port()
            }
        };
        self.links.entry(port).or_default()[usize::from(info.direction == Direction::Incoming)] = Some(id);
        let life = self.life(id);
        assert_eq!(life.phase, Phase::Opening, "{id:?}: established once");
        assert_eq!(*life.address.get_or_insert(info.address), info.address);
        life.phase = Phase::Established;
        life.port = port;
        life.max_len = info.limits.max_message_len;
        life.counters = Some(counters);
    }

    /// The other side's record.
    fn peer(&self, id: Id) -> Option<&Life> {
        let both = self.links.get(&self.lives[&id].port)?;
        let other = if both[0] == Some(id) { both[1] } else { both[0] };
        self.lives.get(&other?)
    }

    pub(super) fn accepted(&mut self, id: Id, sent: Sent) {
        self.log(|| format!("{id:?} sends {} of {:?}: {} bytes", sent.key, sent.kind, sent.len));
        let life = self.life(id);
        assert_eq!(life.phase, Phase::Established, "{id:?}: accepted out of turn");
        assert!(!life.closing, "{id:?}: accepted after close");
        life.sent.push(sent);
    }

    pub(super) fn refused_send(&mut self, id: Id) {
        let life = self.life(id);
        life.refusals += 1;
    }

    /// Whether a queue is empty for sure, and so has to take a message.
    pub(super) fn has_empty_queue(&self, id: Id) -> bool {
        let life = &self.lives[&id];
        life.sent.len() == life.completed
    }

    pub(super) fn data(&mut self, id: Id, message: &[u8]) {
        let life = &self.lives[&id];
        self.log(|| format!("{id:?} receives message {} of {} bytes", life.received, message.len()));
        assert_eq!(life.phase, Phase::Established, "{id:?}: data out of turn");
        assert!(!life.paused, "{id:?}: data while paused");
        let peer = self.peer(id).unwrap_or_else(|| panic!("{id:?}: data from nobody"));
        let sent = peer.sent.get(life.received).unwrap_or_else(|| panic!("{id:?}: more messages than were sent"));
        assert_eq!(message.len(), sent.len, "{id:?}: length of message {}", life.received);
        assert!(*message == PATTERN[sent.from..][..sent.len], "{id:?}: bytes of message {}", life.received);
        self.life(id).received += 1;
    }

    pub(super) fn completed(&mut self, id: Id, completions: &[Completion]) {
        self.log(|| format!("{id:?} completes {}", completions.len()));
        assert!(!completions.is_empty());
        assert_eq!(self.life(id).phase, Phase::Established, "{id:?}: completions out of turn");
        self.come_back(id, completions);
        self.life(id).completed += completions.len();
    }

    /// The next messages in send order come back, and their memory with them.
    fn come_back(&mut self, id: Id, completions: &[Completion]) {
        let life = self.life(id);
        let from = life.completed;
        for (i, completion) in completions.iter().enumerate() {
            let sent = life.sent.get_mut(from + i).unwrap_or_else(|| panic!("{id:?}: {completion:?} was never accepted"));
            assert_eq!((sent.key, sent.kind), (completion.key, completion.kind), "{id:?}: not in send order");
            assert!(sent.memory.take().is_none_or(|memory| memory.is_unique()), "{id:?}: memory of {} is still held", sent.key);
        }
    }

    pub(super) fn writable(&mut self, id: Id) {
        self.log(|| format!("{id:?} writable"));
        let life = self.life(id);
        assert_eq!(life.phase, Phase::Established, "{id:?}: writable out of turn");
        assert!(life.refusals > 0, "{id:?}: writable without a refusal");
        life.refusals = 0;
    }

    pub(super) fn paused(&mut self, id: Id, paused: bool) {
        self.log(|| format!("{id:?} paused: {paused}"));
        let life = self.life(id);
        life.paused = paused;
        life.may_discard |= paused && life.closing;
    }

    pub(super) fn closing(&mut self, id: Id) {
        self.log(|| format!("{id:?} closes"));
        let life = self.life(id);
        life.closing = true;
        life.may_discard |= life.paused;
    }

    pub(super) fn refused(&mut self, id: Id, reason: RefusedReason) {
        self.log(|| format!("{id:?} refused: {reason:?}"));
        let gentle = self.gentle;
        let life = self.life(id);
        assert_eq!(life.phase, Phase::Opening, "{id:?}: refused out of turn");
        life.phase = Phase::Ended;
        let expected = [RefusedReason::NoListener, RefusedReason::Local, RefusedReason::Shutdown];
        assert!(!gentle || expected.contains(&reason), "{id:?}: refused({reason:?})");
    }

    pub(super) fn closed(&mut self, id: Id, pending: &[Completion], reason: ClosedReason) {
        self.log(|| format!("{id:?} closed: {reason:?}, {} pending", pending.len()));
        let gentle = self.gentle;
        assert_eq!(self.life(id).phase, Phase::Established, "{id:?}: closed out of turn");
        self.come_back(id, pending);
        let life = self.life(id);
        life.phase = Phase::Ended;
        life.pending = pending.len();
        life.closed = Some(reason);
        assert_eq!(life.completed + life.pending, life.sent.len(), "{id:?}: accepted messages that did not come back");
        let expected = [ClosedReason::Local, ClosedReason::PeerClosed, ClosedReason::Shutdown];
        assert!(!gentle || expected.contains(&reason), "{id:?}: closed({reason:?})");
        assert!(!gentle || pending.is_empty(), "{id:?}: {} messages never left", pending.len());
        assert!(reason != ClosedReason::Protocol && reason != ClosedReason::HeartbeatTimeout, "{id:?}: closed({reason:?})");
    }

    /// The node's backend was dropped: all its memory is free, and nothing is told any more.
    pub(super) fn dropped(&mut self, node: usize) {
        self.log(|| format!("node {node} drops its backend"));
        for (id, life) in self.lives.iter_mut().filter(|((of, _), life)| *of == node && life.phase != Phase::Ended) {
            life.phase = Phase::Gone;
            for sent in &mut life.sent {
                assert!(sent.memory.take().is_none_or(|memory| memory.is_unique()), "{id:?}: memory of {} is still held", sent.key);
            }
        }
    }

    pub(super) fn established_of(&self, node: usize) -> Vec<Id> {
        let alive = self.lives.iter().filter(|(id, life)| id.0 == node && life.phase == Phase::Established);
        alive.map(|(id, _)| *id).collect()
    }

    pub(super) fn alive_of(&self, node: usize) -> Vec<Id> {
        let alive = self.lives.iter().filter(|(id, life)| id.0 == node && matches!(life.phase, Phase::Opening | Phase::Established));
        alive.map(|(id, _)| *id).collect()
    }

    /// What has to happen still on living connections that nobody disturbs; `None` when all is quiet.
    pub(super) fn unsettled(&self) -> Option<String> {
        for (id, life) in &self.lives {
            let what = match life.phase {
                Phase::Opening => "is still opening",
                Phase::Ended | Phase::Gone => continue,
                Phase::Established if life.completed < life.sent.len() => "has messages that did not leave",
                Phase::Established if life.refusals > 0 && !life.closing => "waits for writable",
                Phase::Established if life.closing => "is still closing",
                Phase::Established => match self.peer(*id) {
                    Some(peer) if peer.phase != Phase::Established => "has lost its peer and does not know",
                    Some(peer) if life.received < peer.sent.len() => "has not received everything",
                    _ => continue,
                },
            };
            return Some(format!("{id:?} {what}"));
        }
        None
    }

    /// Everything that can be said only when all connections have ended.
    pub(super) fn check_ends(&self) {
        for (id, life) in &self.lives {
            assert!(matches!(life.phase, Phase::Ended | Phase::Gone), "{id:?} never ended");
            let (Some(peer), Some(counters)) = (self.peer(*id), &life.counters) else { continue };
            if peer.phase == Phase::Ended {
                assert!(life.received <= peer.completed, "{id:?}: received messages that never completed");
            }
            if life.closed == Some(ClosedReason::PeerClosed) {
                assert_eq!(life.received, peer.sent.len(), "{id:?}: closed by the peer before all had arrived");
            }
            if self.gentle {
                let discarded = counters.messages_discarded.get() as usize;
                assert_eq!(life.received + discarded, peer.sent.len(), "{id:?}: messages lost ({discarded} discarded)");
                assert!(discarded == 0 || life.may_discard, "{id:?}: {discarded} messages discarded");
            }
        }
    }

    /// How much happened, to see that schedules do something: messages received, connections closed.
    pub(super) fn tally(&self) -> (usize, usize) {
        (self.lives.values().map(|life| life.received).sum(), self.lives.values().filter(|life| life.closed.is_some()).count())
    }
}
