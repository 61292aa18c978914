//! What the handles of a backend, its callbacks and its source share.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connection::Connection;
use crate::backend::NetworkBackend;
use crate::callbacks::Callbacks;
use crate::endpoint::Endpoint;
use crate::event_loop::{EventLoop, Remote, SourceId};
use crate::fault::rng::Rng;
use crate::fault::{Clock, FaultConfig, FaultCounts};
use crate::memory::{MemoryRegion, RegionId};
use crate::stats::BackendCounters;

/// No borrow is held while the backend behind is called, a callback runs or user memory is dropped.
pub(super) struct Core {
    pub(super) config: Cell<FaultConfig>,
    pub(super) counts: Cell<FaultCounts>,
    pub(super) clock: Clock,
    /// The user's. Borrowed only while one of them runs, or to drop them.
    pub(super) callbacks: RefCell<Option<Box<dyn Callbacks>>>,
    /// The backend behind; `None` before it is made and after the end.
    inner: RefCell<Option<Rc<dyn NetworkBackend>>>,
    totals: RefCell<Arc<BackendCounters>>,
    /// In an order that does not depend on the run.
    connections: RefCell<BTreeMap<Endpoint, Connection>>,
    /// Addresses and lengths of the registered regions.
    regions: RefCell<HashMap<RegionId, (usize, usize)>>,
    /// Whether the backend behind has strict regions, once it has shown.
    strict_regions: Cell<Option<bool>>,
    rng: RefCell<Rng>,
    /// The source has something to do in the next turn.
    has_work: Cell<bool>,
    ev: Rc<dyn EventLoop>,
    remote: Arc<dyn Remote>,
    source: Cell<Option<SourceId>>,
}

impl Core {
    pub(super) fn new(config: FaultConfig, seed: u64, clock: &Clock, ev: &dyn EventLoop, callbacks: Box<dyn Callbacks>) -> Self {
        Self {
            config: Cell::new(config),
            counts: Cell::default(),
            clock: clock.clone(),
            callbacks: RefCell::new(Some(callbacks)),
            inner: RefCell::default(),
            totals: RefCell::default(),
            connections: RefCell::default(),
            regions: RefCell::default(),
            strict_regions: Cell::default(),
            rng: RefCell::new(Rng::new(seed)),
            has_work: Cell::default(),
            ev: ev.handle(),
            remote: ev.remote(),
            source: Cell::default(),
        }
    }

    /// From here on it is a backend.
    pub(super) fn begin(&self, inner: Box<dyn NetworkBackend>) {
        self.totals.replace(inner.totals());
        self.inner.replace(Some(inner.into()));
        self.clock.add_loop(self.remote.clone());
    }

    pub(super) fn set_source(&self, source: SourceId) {
        self.source.set(Some(source));
    }

    /// Ends it at once, without a callback; again and again, if need be.
    pub(super) fn end(&self) {
        let inner = self.inner.take();
        let connections = self.connections.take();
        // Those that are running stay until they return.
        let callbacks = self.callbacks.try_borrow_mut().ok().and_then(|mut callbacks| callbacks.take());
        if inner.is_some() {
            self.clock.remove_loop(&self.remote);
        }
        if let Some(source) = self.source.take() {
            self.ev.remove_source(source);
        }
        // Only now user code may run, and panic: nobody can touch the memory of messages once `inner` is gone.
        drop(inner);
        drop(connections);
        drop(callbacks);
    }

    pub(super) fn inner(&self) -> Option<Rc<dyn NetworkBackend>> {
        self.inner.borrow().clone()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.inner.borrow().is_none()
    }

    pub(super) fn totals(&self) -> Arc<BackendCounters> {
        self.totals.borrow().clone()
    }

    /// Runs a callback of the user's, unless the backend has ended.
    pub(super) fn call(&self, callback: impl FnOnce(&mut dyn Callbacks)) {
        if self.has_ended() {
            return;
        }
        if let Some(callbacks) = &mut *self.callbacks.borrow_mut() {
            callback(&mut **callbacks);
        }
    }

    // ----- connections -----

    pub(super) fn insert(&self, endpoint: Endpoint) {
        self.connections.borrow_mut().entry(endpoint).or_default();
    }

    pub(super) fn remove(&self, endpoint: Endpoint) -> Option<Connection> {
        self.connections.borrow_mut().remove(&endpoint)
    }

    /// Asks or changes a connection; the default when there is none.
    pub(super) fn with<R: Default>(&self, endpoint: Endpoint, f: impl FnOnce(&mut Connection) -> R) -> R {
        self.connections.borrow_mut().get_mut(&endpoint).map(f).unwrap_or_default()
    }

    /// The first connection after this one.
    pub(super) fn next_after(&self, endpoint: Option<Endpoint>) -> Option<Endpoint> {
        let from = endpoint.map_or(Bound::Unbounded, Bound::Excluded);
        self.connections.borrow().range((from, Bound::Unbounded)).next().map(|(endpoint, _)| *endpoint)
    }

    pub(super) fn endpoints_where(&self, wanted: impl Fn(&Connection) -> bool) -> Vec<Endpoint> {
        self.connections.borrow().iter().filter(|(_, connection)| wanted(connection)).map(|(endpoint, _)| *endpoint).collect()
    }

    // ----- regions -----

    pub(super) fn add_region(&self, id: RegionId, region: &MemoryRegion) {
        self.regions.borrow_mut().insert(id, (region.address(), region.len()));
    }

    pub(super) fn remove_region(&self, id: RegionId) {
        self.regions.borrow_mut().remove(&id);
    }

    /// Whether a message that is held lies in this region.
    pub(super) fn is_region_held(&self, id: RegionId) -> bool {
        let range = self.regions.borrow().get(&id).copied();
        range.is_some_and(|range| self.connections.borrow().values().any(|connection| connection.holds(range)))
    }

    /// Whether the backend behind accepts messages that lie at these addresses, of these lengths; `None` when it has not
    /// shown yet.
    pub(super) fn is_registered(&self, ranges: impl IntoIterator<Item = (usize, usize)>) -> Option<bool> {
        if self.lie_outside(ranges) { self.strict_regions.get().map(|strict| !strict) } else { Some(true) }
    }

    /// Learns from an outcome.
    pub(super) fn note_registered(&self, ranges: impl IntoIterator<Item = (usize, usize)>, accepted: bool) {
        if self.strict_regions.get().is_none() && self.lie_outside(ranges) {
            self.strict_regions.set(Some(!accepted));
        }
    }

    fn lie_outside(&self, ranges: impl IntoIterator<Item = (usize, usize)>) -> bool {
        let regions = self.regions.borrow();
        let is_inside = |(at, len)| len == 0 || regions.values().any(|&(start, room)| at >= start && at + len <= start + room);
        !ranges.into_iter().all(is_inside)
    }

    // ----- faults and turns -----

    pub(super) fn chance(&self, probability: f64) -> bool {
        self.rng.borrow_mut().chance(probability)
    }

    pub(super) fn time_up_to(&self, longest: Duration) -> Duration {
        self.rng.borrow_mut().time_up_to(longest)
    }

    pub(super) fn count(&self, count: impl FnOnce(&mut FaultCounts)) {
        let mut counts = self.counts.get();
        count(&mut counts);
        self.counts.set(counts);
    }

    /// Puts an event on the clock. A turn follows, for a source that moves the clock and has been asked already.
    pub(super) fn add_event(&self, at: Instant) {
        self.clock.add_event(at);
        self.ev.schedule();
    }

    /// Makes the source look at the connections at the end of this turn or of the next one.
    pub(super) fn schedule(&self) {
        self.has_work.set(true);
        self.ev.schedule();
    }

    pub(super) fn take_work(&self) -> bool {
        self.has_work.take()
    }
}
