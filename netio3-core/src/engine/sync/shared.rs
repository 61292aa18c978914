//! What the calling threads and the loop share.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, ThreadId};

use parking_lot::{Mutex, RwLock};

use crate::address::EndPointAddress;
use crate::backend::CopiedMessage;
use crate::config::NetworkConfig;
use crate::endpoint::{Endpoint, EndpointIds};
use crate::engine::core::drop_each;
use crate::engine::local::too_many;
use crate::engine::sync::inbox::{Command, Inbox};
use crate::engine::sync::mailbox::{Mail, Offer};
use crate::engine::sync::quota::Quota;
use crate::engine::sync::slots::{Locked, Slot, Slots};
use crate::engine::{Opener, Outgoing, Transport};
use crate::error::SendError;
use crate::event_loop::Remote;
use crate::memory::{HeldRegions, RegionTable};
use crate::message::OwnedCaps;
use crate::stats::{BackendCounters, ListenerCounters};
use crate::status::{CompletionKind, NetioStatus};

/// The state of a synchronized backend.
///
/// Locks are taken in this order: the gate, `listening`, the directory, a mailbox, then the regions, the inbox or those that
/// leave. But for the first two none of them is held while a callback runs, user memory is dropped, the transport is called
/// or the loop woken.
pub(super) struct Shared<O: Opener> {
    /// Names it in the table of the loop's thread.
    pub(super) id: u64,
    /// The loop's.
    pub(super) thread: ThreadId,
    pub(super) opener: Arc<O>,
    pub(super) config: NetworkConfig,
    pub(super) ids: EndpointIds,
    pub(super) totals: Arc<BackendCounters>,
    pub(super) slots: Slots,
    pub(super) directory: RwLock<Directory>,
    pub(super) inbox: Inbox<O>,
    pub(super) quota: Quota,
    pub(super) regions: Mutex<RegionTable>,
    /// Whether zero-copy sends have to be looked up in the table of regions.
    pub(super) look_up_regions: AtomicBool,
    /// Held while the loop runs the backend, so that who drops it elsewhere can wait for that to end.
    pub(super) gate: Mutex<()>,
    /// Held while a listener is bound, so that two of one address do not pass each other.
    pub(super) listening: Mutex<()>,
    /// Mailboxes of connections that are over and whose place was taken before that was told.
    leaving: Mutex<HashMap<Endpoint, Box<Mail>>>,
    gone: AtomicBool,
    caps: Arc<OwnedCaps>,
}

/// Connections by address, and listeners.
#[derive(Default)]
pub(super) struct Directory {
    /// `None` while the connection is being started.
    pub(super) by_address: HashMap<EndPointAddress, Option<Endpoint>>,
    pub(super) listeners: Vec<(EndPointAddress, Arc<ListenerCounters>)>,
    /// Connections that the user knows of, or is just opening.
    pub(super) connections: usize,
    pub(super) life: Life,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Life {
    #[default]
    Running,
    ShuttingDown,
    Gone,
}

/// Finds the regions of a zero-copy message, if it may be sent.
pub(super) type FindRegions<'a> = &'a dyn Fn(&RegionTable) -> Option<HeldRegions>;

/// What an ended backend leaves, to be dropped with no lock held.
pub(super) struct Remains<O: Opener> {
    #[allow(clippy::vec_box, reason = "they are moved as they lie in their places")]
    mailboxes: Vec<Box<Mail>>,
    _commands: Vec<Command<O>>,
}

impl<O: Opener> Drop for Remains<O> {
    fn drop(&mut self) {
        drop_each(&mut self.mailboxes, drop);
    }
}

impl<O: Opener> Shared<O> {
    pub(super) fn new(
        opener: Arc<O>,
        config: NetworkConfig,
        ids: EndpointIds,
        totals: Arc<BackendCounters>,
        caps: Arc<OwnedCaps>,
        remote: Arc<dyn Remote>,
    ) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        Self {
            // Relaxed: the number only has to be unique.
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            thread: thread::current().id(),
            opener,
            ids,
            totals,
            slots: Slots::new(),
            directory: RwLock::default(),
            inbox: Inbox::new(remote),
            quota: Quota::new(&config),
            regions: Mutex::new(RegionTable::new(config.max_regions, config.strict_regions)),
            look_up_regions: AtomicBool::new(config.strict_regions),
            gate: Mutex::new(()),
            listening: Mutex::new(()),
            leaving: Mutex::default(),
            gone: AtomicBool::new(false),
            caps,
            config,
        }
    }

    /// Whether the backend has ended.
    pub(super) fn is_gone(&self) -> bool {
        // Acquire: who sees it also sees the mailboxes gone. A call that misses it is one that came before.
        self.gone.load(Ordering::Acquire)
    }

    /// What [`is_gone`](Self::is_gone) looks at.
    pub(super) fn gone(&self) -> &AtomicBool {
        &self.gone
    }

    /// Locks the mailbox of a connection.
    #[inline(always)]
    pub(super) fn lock(&self, to: Endpoint) -> Result<Locked<'_>, SendError> {
        let place = self.slots.get(to.slot()).map(Slot::lock);
        place
            .filter(|place| place.as_deref().is_some_and(|mail| mail.endpoint == to))
            .ok_or_else(|| SendError::UnknownSendEndpoint(to.into()))
    }

    /// Calls `f` with a mailbox, under its lock.
    #[inline]
    pub(super) fn with<R>(&self, endpoint: Endpoint, f: impl FnOnce(&mut Mail) -> R) -> Option<R> {
        self.known(endpoint, f).ok()
    }

    /// As [`with`](Self::with), where an unknown handle is an error.
    #[inline]
    pub(super) fn known<R>(&self, endpoint: Endpoint, f: impl FnOnce(&mut Mail) -> R) -> Result<R, SendError> {
        let mut place = self.lock(endpoint)?;
        place.as_deref_mut().map(f).ok_or_else(|| SendError::UnknownSendEndpoint(endpoint.into()))
    }

    /// Puts a mailbox in its place. An older one there is that of a connection whose end is just being told.
    pub(super) fn put(&self, mail: Mail) {
        let mut place = self.slots.get_or_make(mail.endpoint.slot()).lock();
        if let Some(older) = place.replace(Box::new(mail)) {
            // Under the place's lock, so that `remove` finds it in the one or the other.
            self.leaving.lock().insert(older.endpoint, older);
        }
    }

    /// Takes a mailbox out of the registry: its handle is unknown from now on and its address free.
    pub(super) fn remove(&self, endpoint: Endpoint) -> Option<Box<Mail>> {
        let found = self.slots.get(endpoint.slot()).and_then(|slot| slot.take(endpoint));
        let mut mail = found.or_else(|| self.leaving.lock().remove(&endpoint))?;
        self.quota.settle(&mut mail.granted, 0, 0);
        let mut directory = self.directory.write();
        directory.connections = directory.connections.saturating_sub(1);
        if mail.owns_address {
            directory.by_address.remove(&mail.address);
        }
        Some(mail)
    }

    /// The end of a connection was told: it counts until here, so that who sees that there is none may drop the backend. On
    /// the loop's thread, on which the end of the backend counts none any more.
    pub(super) fn told_end(&self) {
        if !self.is_gone() {
            self.totals.connections.fall(1);
        }
    }

    /// Accepts a message of one piece by the [shortest way](Mail::accept_one); what does not go that way is the other's affair,
    /// under the same lock.
    #[inline(always)]
    pub(super) fn submit_one<T: Transport>(
        &self,
        to: Endpoint,
        key: u64,
        kind: CompletionKind,
        header: &[u8],
        piece: &[u8],
        otherwise: impl FnOnce(Locked<'_>) -> Result<NetioStatus, SendError>,
    ) -> Result<NetioStatus, SendError> {
        let mut place = self.lock(to)?;
        let Some(mail) = place.as_deref_mut() else { return otherwise(place) };
        if !mail.accept_one::<T>(key, kind, header, piece) {
            return otherwise(place);
        }
        let tell = mail.mark();
        drop(place);
        if tell {
            self.inbox.tell(to);
        }
        Ok(NetioStatus::Ok)
    }

    /// Accepts or refuses a message, without looking at its bytes, under its mailbox's lock. Inlined, so that no message is
    /// built in memory.
    #[inline(always)]
    pub(super) fn submit<T: Transport>(
        &self,
        mut place: Locked<'_>,
        to: Endpoint,
        offer: &Offer,
        regions: Option<FindRegions<'_>>,
        message: Outgoing<'_>,
    ) -> Result<NetioStatus, SendError> {
        let Some(mail) = place.as_deref_mut() else { return Err(SendError::UnknownSendEndpoint(to.into())) };
        if let Some(status) = mail.objection(offer) {
            return Ok(status);
        }
        // Acquire: pairs with the store in `register`.
        let mut table = regions.filter(|_| self.look_up_regions.load(Ordering::Acquire)).map(|find| (self.regions.lock(), find));
        let held = match &table {
            Some((table, find)) => find(table),
            None => Some(HeldRegions::default()),
        };
        let Some(held) = held else { return Ok(NetioStatus::NotRegistered) };
        let has_room = mail.has_room(offer.len, &self.quota);
        let tell = if has_room {
            if let Some((table, _)) = &mut table {
                table.hold(held);
            }
            mail.accept::<T>(offer, held, message);
            mail.mark()
        } else {
            mail.room.refuse(offer.len);
            mail.counters.refused_sends.add(1);
            mail.count_queue();
            // One that waits already is looked at whenever something completes.
            !mail.waiting && mail.mark()
        };
        drop(table);
        drop(place);
        if !has_room {
            self.totals.refused_sends.rise(1);
        }
        if tell {
            self.inbox.tell(to);
        }
        Ok(if has_room { NetioStatus::Ok } else { NetioStatus::NoResources })
    }

    /// Accepts [copied messages](Mail::accept_copies), from the first on, until they come to so many bytes or one is not to be
    /// accepted there; gives how many.
    pub(super) fn submit_copies<T: Transport>(&self, to: Endpoint, messages: &[CopiedMessage<'_>], bytes: usize) -> usize {
        let accept = |mail: &mut Mail| {
            let accepted = mail.accept_copies::<T>(messages, bytes, &self.quota);
            (accepted, accepted > 0 && mail.mark())
        };
        let (accepted, tell) = self.with(to, accept).unwrap_or_default();
        if tell {
            self.inbox.tell(to);
        }
        accepted
    }

    /// Calls `f` with every mailbox, under its lock.
    pub(super) fn for_each(&self, mut f: impl FnMut(&mut Mail)) {
        self.slots.iter().for_each(|slot| _ = slot.lock().as_deref_mut().map(&mut f));
    }

    /// Ends the backend for all callers. What is left must be dropped with no lock held.
    pub(super) fn end(&self) -> Remains<O> {
        // SeqCst: before the interruption, as in `Messages::stops`.
        self.gone.store(true, Ordering::SeqCst);
        self.caps.interrupt();
        let commands = {
            let mut directory = self.directory.write();
            directory.life = Life::Gone;
            directory.by_address.clear();
            directory.listeners.clear();
            directory.connections = 0;
            self.inbox.abandon()
        };
        let mut mailboxes: Vec<_> = self.slots.iter().filter_map(|slot| slot.lock().take()).collect();
        mailboxes.extend(self.leaving.lock().drain().map(|(_, mail)| mail));
        Remains { mailboxes, _commands: commands }
    }
}

impl Directory {
    /// Whether anything may be opened now.
    pub(super) fn check(&self) -> io::Result<()> {
        match self.life {
            Life::Running => Ok(()),
            Life::ShuttingDown => Err(io::Error::other("the backend is being shut down")),
            Life::Gone => Err(io::Error::other("the backend has ended")),
        }
    }

    /// Whether a connection may be opened now.
    pub(super) fn check_room(&self, limit: usize) -> io::Result<()> {
        self.check()?;
        if self.connections < limit { Ok(()) } else { Err(too_many(limit)) }
    }
}
