//! The surroundings of a case: a loop, its nodes, and bounded waits.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::harness::Harness;
use super::journal::{SharedJournal, What};
use super::node::Node;
use crate::config::NetworkConfig;
use crate::event_loop::EventLoop;

/// The bound on every wait.
pub(super) fn wait() -> Duration {
    static PATIENCE: OnceLock<u32> = OnceLock::new();
    let patience = || std::env::var("NETIO3_PATIENCE").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1);
    Duration::from_secs(20) * *PATIENCE.get_or_init(patience)
}

/// How long a case watches for something that must not happen.
pub(super) const WATCH: Duration = Duration::from_millis(60);

thread_local! {
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

/// A loop on this thread, with its nodes.
pub(super) struct World {
    pub(super) harness: Arc<dyn Harness>,
    pub(super) journal: SharedJournal,
    ev: RefCell<Option<Rc<dyn EventLoop>>>,
    nodes: RefCell<Vec<Node>>,
}

impl World {
    pub(super) fn new(harness: Arc<dyn Harness>, journal: SharedJournal) -> Self {
        let ev = Rc::from(harness.event_loop());
        Self { harness, journal, ev: RefCell::new(Some(ev)), nodes: RefCell::default() }
    }

    /// One more loop on this thread, whose nodes are idle while the first one runs.
    pub(super) fn another_loop(&self) -> Self {
        Self::new(self.harness.clone(), self.journal.clone())
    }

    pub(super) fn ev(&self) -> Rc<dyn EventLoop> {
        self.ev.borrow().clone().expect("the case has not dropped the loop")
    }

    pub(super) fn drop_loop(&self) {
        let ev = self.ev.take().expect("the case has not dropped the loop");
        assert_eq!(Rc::strong_count(&ev), 1, "somebody else holds the loop");
        drop(ev);
    }

    /// A backend of the kind under test.
    pub(super) fn node(&self, name: &'static str, config: NetworkConfig) -> Node {
        let ev = self.ev();
        self.keep(Node::new(name, &self.journal, |callbacks| self.harness.backend(config, callbacks, &*ev)))
    }

    /// A backend of the synchronized kind.
    pub(super) fn synchronized(&self, name: &'static str, config: NetworkConfig) -> Node {
        let ev = self.ev();
        self.keep(Node::synchronized(name, &self.journal, |callbacks| self.harness.synchronized(config, callbacks, &*ev)))
    }

    fn keep(&self, node: Node) -> Node {
        self.nodes.borrow_mut().push(node.clone());
        node
    }

    /// Runs the loop until the condition holds; fails when it does not within [`wait`].
    #[track_caller]
    pub(super) fn until(&self, what: &str, condition: impl FnMut() -> bool) {
        assert!(self.within(wait(), condition), "not within {:?}: {what}", wait());
    }

    /// Runs the loop until the condition holds or the time is over, and tells which.
    pub(super) fn within(&self, limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
        let ev = self.ev();
        let _running = Running::mark();
        ev.run_until(&mut condition, limit).expect("the loop can wait")
    }

    /// Runs the loop for a while in which something forbidden would happen.
    pub(super) fn watch(&self) {
        self.within(WATCH, || false);
    }

    /// One turn that does not sleep.
    pub(super) fn turn(&self) {
        let ev = self.ev();
        let _running = Running::mark();
        ev.run_once(Some(Duration::ZERO)).expect("the loop can wait");
    }

    /// Runs single turns until `done`, and none after.
    #[track_caller]
    pub(super) fn until_turn(&self, what: &str, done: impl Fn() -> bool) {
        let started = Instant::now();
        while !done() {
            assert!(started.elapsed() < wait(), "not within {:?}: {what}", wait());
            self.turn();
        }
    }

    /// What the panic in a callback looks like to who runs the loop: the panic's text.
    #[track_caller]
    pub(super) fn until_panic(&self) -> String {
        let run = catch_unwind(AssertUnwindSafe(|| self.within(wait(), || false)));
        let payload = run.expect_err("a callback panicked, and so should have the loop");
        payload.downcast_ref::<&str>().map(|text| (*text).to_owned()).or(payload.downcast_ref::<String>().cloned()).unwrap_or_default()
    }

    pub(super) fn note(&self, text: impl Into<String>) {
        self.journal.lock().entries_note(text.into());
    }

    /// Drops what is left, backends first.
    pub(super) fn tear_down(&self) {
        let nodes = self.nodes.take();
        nodes.iter().for_each(Node::forget_hooks);
        for node in &nodes {
            node.drop_if_alive();
        }
        self.ev.take();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A failed case may have left anything behind; its own message matters more.
        if std::thread::panicking() {
            let _ = catch_unwind(AssertUnwindSafe(|| self.tear_down()));
        } else {
            self.tear_down();
        }
    }
}

/// While one exists, a loop of this thread runs, and callbacks may come.
struct Running(bool);

impl Running {
    fn mark() -> Self {
        Self(RUNNING.replace(true))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.set(self.0);
    }
}

pub(super) fn is_running() -> bool {
    RUNNING.get()
}

/// The configuration of most cases: no heartbeats, so that a lost wake-up is a failure, not a delay.
pub(super) fn config() -> NetworkConfig {
    NetworkConfig { heartbeat_interval: Duration::ZERO, ..NetworkConfig::default() }
}

impl super::journal::Journal {
    fn entries_note(&mut self, text: String) {
        if !self.nodes.is_empty() {
            self.record(0, None, None, What::Note(text));
        }
    }
}
