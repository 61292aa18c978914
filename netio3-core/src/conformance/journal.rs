//! The record of everything that was done and that happened in a case.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::pattern::Digest;
use crate::address::EndPointAddress;
use crate::callbacks::ConnectionInfo;
use crate::endpoint::Endpoint;
use crate::status::{ClosedReason, Completion, RefusedReason};

/// One journal for all nodes of a case, on whichever threads they are.
pub(super) type SharedJournal = Arc<Mutex<Journal>>;

pub(super) struct Journal {
    started: Instant,
    pub(super) entries: Vec<Entry>,
    /// Indexed by the numbers of the nodes.
    pub(super) nodes: Vec<NodeEntry>,
    tallies: HashMap<Endpoint, Tally>,
    /// Rules seen broken while the case ran.
    pub(super) violations: Vec<String>,
}

pub(super) struct NodeEntry {
    pub(super) name: &'static str,
    /// Its backend was dropped, or ended by a panic: there must be no further callback.
    pub(super) gone: bool,
    /// The case counts messages itself, since several threads send.
    pub(super) counts_itself: bool,
}

pub(super) struct Entry {
    at: Duration,
    pub(super) node: usize,
    pub(super) endpoint: Option<Endpoint>,
    pub(super) address: Option<EndPointAddress>,
    pub(super) what: What,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    // What the case did.
    Opened,
    Accepted(Completion, Digest),
    /// `NoResources`, for a message of this length if that is known, or no buffer.
    Full(Option<usize>),
    Did(&'static str),
    Gone,
    Note(String),
    // What the backend told.
    Established(ConnectionInfo),
    Refused(RefusedReason),
    Closed(Vec<Completion>, ClosedReason),
    Data(Digest),
    Completed(Vec<Completion>),
    Writable,
}

/// What happened to one connection, added up.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) established: Option<ConnectionInfo>,
    pub(super) refused: Option<RefusedReason>,
    pub(super) closed: Option<(Vec<Completion>, ClosedReason)>,
    pub(super) accepted: usize,
    pub(super) completed: usize,
    pub(super) full: usize,
    pub(super) received: usize,
    pub(super) writable: usize,
}

impl Journal {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), entries: Vec::new(), nodes: Vec::new(), tallies: HashMap::new(), violations: Vec::new() }
    }

    pub(super) fn add_node(&mut self, name: &'static str) -> usize {
        self.nodes.push(NodeEntry { name, gone: false, counts_itself: false });
        self.nodes.len() - 1
    }

    pub(super) fn record(&mut self, node: usize, endpoint: Option<Endpoint>, address: Option<EndPointAddress>, what: What) {
        if let Some(endpoint) = endpoint {
            let tally = self.tallies.entry(endpoint).or_default();
            tally.add(&what);
        }
        if matches!(what, What::Gone) {
            self.nodes[node].gone = true;
        }
        self.entries.push(Entry { at: self.started.elapsed(), node, endpoint, address, what });
    }

    pub(super) fn violation(&mut self, text: String) {
        self.violations.push(format!("{:?}: {text}", self.started.elapsed()));
    }

    pub(super) fn tally(&self, endpoint: Endpoint) -> Tally {
        self.tallies.get(&endpoint).cloned().unwrap_or_default()
    }
}

impl What {
    pub(super) fn is_callback(&self) -> bool {
        !matches!(self, Self::Opened | Self::Accepted(..) | Self::Full(_) | Self::Did(_) | Self::Gone | Self::Note(_))
    }
}

impl Tally {
    fn add(&mut self, what: &What) {
        match what {
            What::Accepted(..) => self.accepted += 1,
            What::Full(_) => self.full += 1,
            What::Established(info) => self.established = Some(info.clone()),
            What::Refused(reason) => self.refused = Some(*reason),
            What::Closed(pending, reason) => self.closed = Some((pending.clone(), *reason)),
            What::Data(_) => self.received += 1,
            What::Completed(completions) => self.completed += completions.len(),
            What::Writable => self.writable += 1,
            What::Opened | What::Did(_) | What::Gone | What::Note(_) => {}
        }
    }

    pub(super) fn reason(&self) -> Option<ClosedReason> {
        self.closed.as_ref().map(|closed| closed.1)
    }

    pub(super) fn pending(&self) -> usize {
        self.closed.as_ref().map_or(0, |closed| closed.0.len())
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(endpoint) = self.endpoint {
            write!(f, "{endpoint} ")?;
        }
        match &self.what {
            What::Closed(pending, reason) => write!(f, "Closed({reason:?}) with {} pending", pending.len()),
            What::Completed(completions) => {
                let keys: Vec<u64> = completions.iter().map(|completion| completion.key).collect();
                write!(f, "Completed {} {:?}", keys.len(), &keys[..keys.len().min(8)])
            }
            What::Accepted(completion, digest) => write!(f, "Accepted key {} {:?}, {digest:?}", completion.key, completion.kind),
            What::Established(info) => write!(f, "Established {:?} {} from {}", info.direction, info.address, info.local_address),
            What::Note(text) => f.write_str(text),
            What::Did(call) => f.write_str(call),
            what => write!(f, "{what:?}"),
        }
    }
}

impl Journal {
    /// The last entries, runs of the same kind shortened; those about some connections, or all.
    pub(super) fn print(&self, about: Option<&[Endpoint]>) -> String {
        const SHOWN: usize = 400;
        let mut lines: Vec<String> = Vec::new();
        let mut run = None;
        let is_shown = |entry: &&Entry| about.is_none_or(|about| entry.endpoint.is_some_and(|endpoint| about.contains(&endpoint)));
        for entry in self.entries.iter().filter(is_shown) {
            let same = (entry.node, entry.endpoint, std::mem::discriminant(&entry.what));
            let length = match run {
                Some((key, length)) if key == same && !matches!(entry.what, What::Note(_)) => length + 1,
                _ => 0,
            };
            run = Some((same, length));
            let line = format!("{:>10.3?} {:<10} {entry}", entry.at, self.nodes[entry.node].name);
            if length > 2 {
                lines.pop();
                lines.push(format!("{line} (the last of {})", length + 1));
            } else {
                lines.push(line);
            }
        }
        let skipped = lines.len().saturating_sub(SHOWN);
        if skipped > 0 {
            lines[skipped - 1] = format!("({skipped} earlier lines)");
        }
        lines[skipped.saturating_sub(1)..].join("\n")
    }
}
