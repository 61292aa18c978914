//! The rules of order and of exactly-once, checked on every journal at the end of its case.

use std::collections::HashMap;

use super::journal::{Journal, What};
use super::pattern::Digest;
use crate::address::EndPointAddress;
use crate::config::Limits;
use crate::endpoint::Endpoint;
use crate::status::{ClosedReason, Completion, Direction};

/// A rule that the journal breaks, and the connections it is about.
pub(super) struct Broken {
    pub(super) rule: String,
    pub(super) about: Vec<Endpoint>,
}

/// Every rule the journal breaks.
pub(super) fn broken_rules(journal: &Journal) -> Vec<Broken> {
    let mut broken: Vec<_> = journal.violations.iter().map(|rule| Broken { rule: rule.clone(), about: Vec::new() }).collect();
    let mut lives: HashMap<Endpoint, Life> = HashMap::new();
    for entry in &journal.entries {
        let Some(endpoint) = entry.endpoint else { continue };
        let life = lives.entry(endpoint).or_insert_with(|| Life::new(entry.node));
        let counts_itself = journal.nodes[entry.node].counts_itself;
        if let Err(rule) = life.follow(entry.address, &entry.what, counts_itself) {
            let rule = format!("{} {entry}: {rule}", journal.nodes[entry.node].name);
            broken.push(Broken { rule, about: vec![endpoint] });
        }
    }
    streams_arrive_as_sent(journal, &lives, &mut broken);
    broken
}

/// What the rules have to remember of one connection.
struct Life {
    node: usize,
    address: Option<EndPointAddress>,
    /// As told at *established*.
    ends: Option<Ends>,
    phase: Phase,
    /// Accepted messages in send order; the first `returned` of them came back.
    accepted: Vec<Completion>,
    returned: usize,
    /// Refusals since the last *writable*, and the longest message among them.
    refusals: usize,
    refused: Option<usize>,
    limits: Option<Limits>,
    sent: Vec<Digest>,
    received: Vec<Digest>,
    closed: Option<ClosedReason>,
}

/// Between which addresses a connection goes, and which of its ends this one is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Ends {
    dialing: EndPointAddress,
    accepting: EndPointAddress,
    incoming: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    New,
    Opening,
    Established,
    Ended,
}

impl Life {
    fn new(node: usize) -> Self {
        Self {
            node,
            address: None,
            ends: None,
            phase: Phase::New,
            accepted: Vec::new(),
            returned: 0,
            refusals: 0,
            refused: None,
            limits: None,
            sent: Vec::new(),
            received: Vec::new(),
            closed: None,
        }
    }

    fn follow(&mut self, address: Option<EndPointAddress>, what: &What, counts_itself: bool) -> Result<(), String> {
        if let Some(address) = address {
            let known = *self.address.get_or_insert(address);
            ensure(known == address, || format!("the connection's address was {known}, now it is {address}"))?;
        }
        match what {
            What::Opened => {
                self.step(&[Phase::New], Phase::Opening)?;
            }
            What::Established(info) => {
                ensure(Some(info.address) == address, || format!("described with another address, {}", info.address))?;
                let incoming = info.direction == Direction::Incoming;
                let (near, far) = (info.local_address, info.address);
                let (dialing, accepting) = if incoming { (far, near) } else { (near, far) };
                self.limits = Some(info.limits);
                self.ends = Some(Ends { dialing, accepting, incoming });
                self.step(&[Phase::New, Phase::Opening], Phase::Established)?;
            }
            What::Refused(_) => self.step(&[Phase::New, Phase::Opening], Phase::Ended)?,
            What::Closed(pending, reason) => {
                self.step(&[Phase::Established], Phase::Ended)?;
                self.closed = Some(*reason);
                let due = &self.accepted[self.returned.min(self.accepted.len())..];
                ensure(counts_itself || due == pending.as_slice(), || {
                    format!(
                        "{} keys are due in the pending list, which has {}: {:?}",
                        due.len(),
                        pending.len(),
                        first_difference(due, pending)
                    )
                })?;
                self.returned = self.accepted.len();
            }
            What::Data(digest) => {
                self.step(&[Phase::Established], Phase::Established)?;
                self.received.push(*digest);
            }
            What::Completed(completions) => {
                self.step(&[Phase::Established], Phase::Established)?;
                ensure(!completions.is_empty(), || "no completion in the slice".to_owned())?;
                self.complete(completions, counts_itself)?;
            }
            What::Writable => {
                self.step(&[Phase::Established], Phase::Established)?;
                ensure(counts_itself || self.refusals > 0, || "writable without a refusal since the last".to_owned())?;
                self.refusals = 0;
                let refused = self.refused.take().filter(|_| !counts_itself);
                ensure(refused.is_none_or(|len| self.has_room(len)), || format!("writable although {refused:?} bytes do not fit"))?;
            }
            What::Accepted(completion, digest) => {
                ensure(self.phase == Phase::Established, || format!("accepted although {:?}", self.phase))?;
                self.accepted.push(*completion);
                self.sent.push(*digest);
            }
            What::Full(len) => {
                self.refusals += 1;
                self.refused = self.refused.max(*len);
            }
            What::Did(_) | What::Gone | What::Note(_) => {}
        }
        Ok(())
    }

    /// Whether a message of this length fits beside those that have not come back.
    fn has_room(&self, len: usize) -> bool {
        let queued = self.accepted.get(self.returned..).unwrap_or_default();
        let bytes = queued.iter().map(|completion| completion.len as usize).sum::<usize>();
        let fits = |limits: Limits| queued.len() < limits.queue_messages && bytes + len <= limits.queue_bytes;
        queued.is_empty() || self.limits.is_some_and(fits)
    }

    fn step(&mut self, from: &[Phase], to: Phase) -> Result<(), String> {
        let present = std::mem::replace(&mut self.phase, to);
        ensure(from.contains(&present), || format!("comes in the phase {present:?}"))
    }

    fn complete(&mut self, completions: &[Completion], counts_itself: bool) -> Result<(), String> {
        if counts_itself {
            return Ok(());
        }
        let due = self.accepted.get(self.returned..self.returned + completions.len());
        self.returned += completions.len();
        ensure(due == Some(completions), || format!("not the next keys in send order, which are {:?}", due.unwrap_or_default()))
    }
}

/// Each receiver's messages are the first ones that its other end sent, in order and whole; all of them, when that one
/// said goodbye.
fn streams_arrive_as_sent(journal: &Journal, lives: &HashMap<Endpoint, Life>, broken: &mut Vec<Broken>) {
    let mut ends: HashMap<Ends, Vec<(&Endpoint, &Life)>> = HashMap::new();
    for end in lives {
        if let Some(of) = end.1.ends {
            ends.entry(of).or_default().push(end);
        }
    }
    for (endpoint, receiver) in lives {
        let node = &journal.nodes[receiver.node];
        let Some(of) = receiver.ends.filter(|_| !node.counts_itself) else { continue };
        let received = receiver.received.len();
        let common = |sender: &Life| receiver.received.iter().zip(&sender.sent).take_while(|(got, sent)| got == sent).count();
        // A later connection may have the addresses of one that has ended: of several, the one that arrived whole.
        let likeness = |sender: &Life| (common(sender), sender.sent.len() == received);
        let candidates = ends.get(&Ends { incoming: !of.incoming, ..of }).into_iter().flatten();
        let Some((from, sender)) = candidates.max_by_key(|(_, sender)| likeness(sender)) else {
            // Its other end is none of the suite's, or ended before it was established.
            if let Some(first) = receiver.received.first() {
                let rule = format!("{} {endpoint}: nobody is at the other end who sent the first message, {first:?}", node.name);
                broken.push(Broken { rule, about: vec![*endpoint] });
            }
            continue;
        };
        let mut report = |rule| broken.push(Broken { rule, about: vec![**from, *endpoint] });
        let matching = common(sender);
        if matching < received {
            let (got, sent) = (receiver.received[matching], sender.sent.get(matching));
            report(format!("{} {endpoint}: message {matching} of {received} is {got:?}; {from} sent {sent:?}", node.name));
        } else if receiver.closed == Some(ClosedReason::PeerClosed) && received < sender.sent.len() {
            let sent = sender.sent.len();
            report(format!("{} {endpoint}: PeerClosed after {received} of the {sent} messages of {from}", node.name));
        }
    }
}

fn first_difference(due: &[Completion], got: &[Completion]) -> Option<(Option<Completion>, Option<Completion>)> {
    let at = due.iter().zip(got).take_while(|(a, b)| a == b).count();
    (due.get(at) != got.get(at)).then(|| (due.get(at).copied(), got.get(at).copied()))
}

fn ensure(holds: bool, rule: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(rule()) }
}
