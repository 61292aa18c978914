//! The loop's end of a synchronized backend.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::address::EndPointAddress;
use crate::backend::NetworkBackend;
use crate::callbacks::Callbacks;
use crate::config::NetworkConfig;
use crate::endpoint::Endpoint;
use crate::engine::core::{Front, drop_each};
use crate::engine::local::too_many;
use crate::engine::room::Amount;
use crate::engine::sync::batch::{Batch, Progress};
use crate::engine::sync::inbox::{Adoption, Command};
use crate::engine::sync::mailbox::{End, Mail};
use crate::engine::sync::shared::Shared;
use crate::engine::sync::{SyncBackend, mailbox::Writable};
use crate::engine::{Engine, LocalBackend, Transport};
use crate::event_loop::Budget;
use crate::status::{Completion, RefusedReason};

/// What belongs to the loop's thread: the single-threaded backend, the callbacks, and what is under way from
/// the mailboxes to it. No borrow but that of `user` is held while the backend or the user is called.
pub(super) struct LoopSide<T: Transport> {
    pub(super) shared: Arc<Shared<T::Opener>>,
    /// The single-threaded backend.
    pub(super) inner: LocalBackend<T>,
    /// Borrowed while a callback runs, which is never nested.
    pub(super) user: RefCell<Box<dyn Callbacks + Send>>,
    /// What callbacks get as their backend.
    pub(super) view: SyncBackend<T>,
    /// Commands that were taken out of the inbox and not carried out yet.
    commands: RefCell<VecDeque<Command<T::Opener>>>,
    /// Opened connections that could not be taken on, to be told.
    refused: RefCell<VecDeque<(Endpoint, EndPointAddress)>>,
    /// Mailboxes to be looked at in the next turn, the longest waiting first.
    later: RefCell<Vec<Endpoint>>,
    /// Mailboxes that wait for *writable*.
    waiting: RefCell<Vec<Endpoint>>,
    /// Mailboxes that have used memory that is to be given back when they are idle.
    untrimmed: RefCell<Vec<Endpoint>>,
    trimmed_at: Cell<Instant>,
    spare: Spare,
}

/// Memory used again and again.
#[derive(Default)]
struct Spare {
    batch: Cell<Option<Batch>>,
    mailboxes: Cell<Vec<Endpoint>>,
    shared: Cell<Vec<Bytes>>,
}

thread_local! {
    /// The backends whose loops run on this thread.
    static HERE: RefCell<Vec<(u64, Rc<dyn Any>)>> = const { RefCell::new(Vec::new()) };
}

/// The state of a backend, if the calling thread is its loop's.
pub(super) fn here<T: Transport>(shared: &Shared<T::Opener>) -> Option<Rc<LoopSide<T>>> {
    let find =
        |list: &RefCell<Vec<(u64, Rc<dyn Any>)>>| list.borrow().iter().find(|(id, _)| *id == shared.id).map(|(_, side)| side.clone());
    HERE.try_with(find).ok().flatten()?.downcast().ok()
}

impl<T: Transport> LoopSide<T> {
    pub(super) fn new(shared: Arc<Shared<T::Opener>>, engine: Rc<Engine<T>>, user: Box<dyn Callbacks + Send>) -> Rc<Self> {
        let side = Rc::new(Self {
            trimmed_at: Cell::new(engine.event_loop().now()),
            inner: LocalBackend::view(engine),
            user: RefCell::new(user),
            view: SyncBackend::view(shared.clone()),
            commands: RefCell::default(),
            refused: RefCell::default(),
            later: RefCell::default(),
            waiting: RefCell::default(),
            untrimmed: RefCell::default(),
            spare: Spare::default(),
            shared,
        });
        HERE.with_borrow_mut(|list| list.push((side.shared.id, side.clone())));
        let front: Rc<dyn Front> = side.clone();
        _ = side.engine().front.set(Rc::downgrade(&front));
        side
    }

    pub(super) fn engine(&self) -> &Rc<Engine<T>> {
        self.inner.engine()
    }

    // ----- the end -----

    /// Ends the backend at once, on the loop's thread.
    pub(super) fn tear_down(&self) {
        let id = self.shared.id;
        let unlist = |list: &RefCell<Vec<(u64, Rc<dyn Any>)>>| {
            let mut list = list.borrow_mut();
            list.iter().position(|(listed, _)| *listed == id).map(|i| list.swap_remove(i))
        };
        let listed = HERE.try_with(unlist);
        let remains = self.shared.end();
        self.engine().tear_down();
        drop((listed, remains));
    }

    /// Takes the backend out of its loop.
    pub(super) fn remove(&self) {
        if let Some(source) = self.engine().source.get() {
            self.engine().event_loop().remove_source(source);
        }
    }

    // ----- from the mailboxes to the backend -----

    /// Carries out what calls have left, within the budget.
    pub(super) fn drain(&self, budget: &mut Budget) {
        let mut list = self.spare.mailboxes.take();
        list.append(&mut self.later.borrow_mut());
        // Before the commands, among which are then those that begin the connections that are told of here.
        self.shared.inbox.take_dirty(&mut list);
        self.run_commands();
        list.append(&mut self.later.borrow_mut());
        let mut cut = None;
        for endpoint in list.drain(..) {
            if budget.is_spent() {
                self.later.borrow_mut().push(endpoint);
            } else if self.hand_over(endpoint, budget) == Progress::OutOfBudget {
                cut = Some(endpoint);
            }
        }
        // The others go first next time.
        self.later.borrow_mut().extend(cut);
        self.spare.mailboxes.set(list);
    }

    /// Carries out at once what calls have left for one connection.
    pub(super) fn settle(&self, endpoint: Endpoint) {
        self.in_a_call(|| {
            self.run_commands();
            // Not what other threads add meanwhile.
            let messages = self.shared.with(endpoint, |mail| mail.room.untold().messages as usize).unwrap_or(0);
            if self.hand_over(endpoint, &mut Budget { messages, ..UNLIMITED }) == Progress::OutOfBudget {
                self.look_later(endpoint);
            }
        });
    }

    /// Carries out at once what calls have left as commands.
    pub(super) fn carry_out(&self) {
        self.in_a_call(|| self.run_commands());
    }

    /// Runs what may drop the user's memory in a call of his, out of which the panic of such a drop goes past the loop: it ends
    /// the backend here.
    fn in_a_call(&self, run: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            self.remove();
            self.tear_down();
            resume_unwind(panic);
        }
    }

    /// Starts sending what calls have left for one connection.
    pub(super) fn flush(&self, endpoint: Endpoint) {
        self.settle(endpoint);
        // It may have ended, or not begun.
        let _ = self.inner.flush(endpoint);
    }

    /// Whether something is left for the next turn.
    pub(super) fn has_work(&self) -> bool {
        !self.later.borrow().is_empty() || !self.refused.borrow().is_empty() || self.shared.inbox.is_filled()
    }

    /// How many mailboxes are to be looked at in the next turn.
    #[cfg(test)]
    pub(super) fn listed_for_later(&self) -> usize {
        self.later.borrow().len()
    }

    /// Has a mailbox looked at in the next turn, which may not be due otherwise.
    pub(super) fn look_later(&self, endpoint: Endpoint) {
        self.later.borrow_mut().push(endpoint);
        self.engine().event_loop().schedule();
    }

    /// Hands over what a mailbox has. Where the budget ends it, the caller lists it for later.
    fn hand_over(&self, endpoint: Endpoint, budget: &mut Budget) -> Progress {
        let now = self.engine().event_loop().now();
        loop {
            let Some(mut taken) = self.shared.with(endpoint, |mail| self.take_out(mail, now)) else { return Progress::Done };
            match taken.pause {
                Some(true) => drop(self.inner.pause(endpoint)),
                Some(false) => drop(self.inner.resume(endpoint)),
                None => {}
            }
            let progress = taken.batch.as_mut().map_or(Progress::Done, |batch| batch.hand_over(endpoint, &self.inner, budget));
            if let Some(mut batch) = taken.batch.take_if(|_| progress != Progress::Done) {
                let mut handed_over = self.spare.shared.take();
                batch.take_handed_over(&mut handed_over);
                // Should the mailbox be gone, the batch is dropped here, with no lock held.
                let (mut rest, mut listed, mut asked) = (Some(batch), false, false);
                self.shared.with(endpoint, |mail| {
                    if let Some(rest) = rest.take() {
                        mail.full.push_front(rest);
                        // In exchange, since none was emptied: or else the memory of other mailboxes would gather here.
                        self.spare.batch.set(mail.spare.pop());
                    }
                    // Where there was nothing more, somebody has sent and told of it since. Where there was, who asked for
                    // something meanwhile has not told of it.
                    listed = !taken.more && mail.dirty;
                    asked = mail.end != taken.end || mail.pause.is_some();
                    mail.dirty = listed || progress == Progress::OutOfBudget;
                });
                // Last, since it may call back.
                drop_each(&mut handed_over, drop);
                self.spare.shared.set(handed_over);
                drop(rest);
                if asked && progress == Progress::Stuck {
                    continue;
                }
                return if listed && progress == Progress::OutOfBudget { Progress::Done } else { progress };
            }
            match taken.end {
                Some(End::Abort) => drop(self.inner.abort(endpoint)),
                Some(End::Close) if !taken.more => drop(self.inner.close(endpoint)),
                _ => {}
            }
            if let Some(mut batch) = taken.batch {
                self.count_copied(endpoint, batch.copied());
                // Last, since it may call back.
                batch.clear();
                self.spare.batch.set(Some(batch));
            }
            if !taken.more {
                return Progress::Done;
            }
        }
    }

    /// Takes what a mailbox has for the backend; its messages in exchange for an empty batch.
    fn take_out(&self, mail: &mut Mail, now: Instant) -> Taken {
        mail.dirty = false;
        mail.count_queue();
        if mail.owes_writable() && !std::mem::replace(&mut mail.waiting, true) {
            self.waiting.borrow_mut().push(mail.endpoint);
        }
        let taken = Taken { pause: mail.pause.take(), end: mail.end, batch: None, more: false };
        if taken.end == Some(End::Abort) || !mail.is_filled() {
            // What an abort finds here is pending.
            return taken;
        }
        mail.used_at = now;
        if !std::mem::replace(&mut mail.untrimmed, true) {
            self.untrimmed.borrow_mut().push(mail.endpoint);
        }
        let batch = mail.take_batch(self.spare.batch.take());
        // The loop comes back for more without being told.
        mail.dirty = mail.is_filled();
        Taken { batch: Some(batch), more: mail.dirty, ..taken }
    }

    fn count_copied(&self, endpoint: Endpoint, copied: usize) {
        if copied > 0
            && let Some(connection) = self.engine().get(endpoint)
        {
            connection.counters.copied_messages.add(copied as u64);
        }
    }

    // ----- commands -----

    /// Carries out all commands, in order.
    fn run_commands(&self) {
        self.shared.inbox.take_commands(&mut self.commands.borrow_mut());
        loop {
            let command = self.commands.borrow_mut().pop_front();
            let Some(command) = command.filter(|_| !self.shared.is_gone()) else { return };
            match command {
                Command::Adopt(adoption) => self.adopt(adoption),
                Command::Listen { address, params, counters, listening } => {
                    let adopted = self.engine().adopt_listener(address, *params, counters, listening);
                    if let Err(error) = adopted {
                        tracing::error!(backend = T::NAME, listener = %address, %error, "the loop cannot take a listener on");
                        self.shared.directory.write().listeners.retain(|(listed, _)| *listed != address);
                    }
                }
                Command::CloseListener(address) => {
                    self.close_where(|mail| mail.listener == Some(address));
                    // It is unknown there if it could not be taken on.
                    let _ = self.inner.close_listen_endpoint(&address);
                }
                Command::Shutdown { at } => {
                    self.close_where(|_| true);
                    self.inner.shutdown(at.saturating_duration_since(self.engine().event_loop().clock()));
                    self.shared.told_end();
                }
            }
        }
    }

    fn adopt(&self, adoption: Adoption<T::Opener>) {
        let Adoption { endpoint, address, params, counters, dialing } = adoption;
        let engine = self.engine();
        let adopted = match engine.is_full() {
            true => Err(too_many(engine.config.max_connections)),
            false => engine.adopt(endpoint, address, false, params, counters, dialing),
        };
        if let Err(error) = adopted {
            tracing::warn!(backend = T::NAME, %endpoint, peer = %address, %error, "the loop cannot take a connection on");
            engine.totals.opened.add(1);
            self.refused.borrow_mut().push_back((endpoint, address));
        }
        // It may have been asked to end before the backend knew of it.
        self.look_later(endpoint);
    }

    /// Accepts no more messages on some connections, and hands over what they have.
    fn close_where(&self, wanted: impl Fn(&Mail) -> bool) {
        let mut filled = Vec::new();
        self.shared.for_each(|mail| {
            if wanted(mail) {
                mail.stop();
                filled.extend(mail.is_filled().then_some(mail.endpoint));
            }
        });
        filled.into_iter().for_each(|endpoint| _ = self.hand_over(endpoint, &mut { UNLIMITED }));
    }

    // ----- callbacks that do not come from the backend -----

    /// Tells of opened connections that could not be taken on.
    pub(super) fn tell_refused(&self) {
        loop {
            let next = self.refused.borrow_mut().pop_front();
            let Some((endpoint, address)) = next else { return };
            let Some(mail) = self.shared.remove(endpoint) else { continue };
            self.shared.ids.release(endpoint);
            self.shared.totals.refused.add(1);
            drop(mail);
            self.user.borrow_mut().on_connection_refused(&self.view, endpoint, &address, RefusedReason::LocalResource);
            self.shared.told_end();
        }
    }

    /// Tells *writable* where it is due.
    pub(super) fn tell_writable(&self) {
        if self.waiting.borrow().is_empty() {
            return;
        }
        let mut list = self.spare.mailboxes.take();
        std::mem::swap(&mut list, &mut *self.waiting.borrow_mut());
        for endpoint in list.drain(..) {
            match self.shared.with(endpoint, |mail| mail.poll_writable(&self.shared.quota)) {
                Some(Writable::Due(address)) => self.user.borrow_mut().on_writable(&self.view, endpoint, &address),
                Some(Writable::Later) => self.waiting.borrow_mut().push(endpoint),
                Some(Writable::Never) | None => {}
            }
        }
        self.spare.mailboxes.set(list);
    }

    /// The first messages of a connection left.
    pub(super) fn completed(&self, endpoint: Endpoint, completions: &[Completion]) {
        let Shared { quota, regions, .. } = &*self.shared;
        let bytes = completions.iter().map(|message| u64::from(message.len)).sum();
        let done = Amount { messages: completions.len() as u64, bytes };
        let told = self.shared.with(endpoint, |mail| {
            mail.complete(done, quota, regions);
            mail.count_queue();
            mail.address
        });
        if let Some(address) = told {
            self.user.borrow_mut().on_send_completed(&self.view, endpoint, &address, completions);
        }
    }

    // ----- memory -----

    /// Gives memory of idle mailboxes back, now and then.
    pub(super) fn trim(&self) {
        if self.untrimmed.borrow().is_empty() {
            return;
        }
        let now = self.engine().event_loop().now();
        if now.saturating_duration_since(self.trimmed_at.get()) < TRIM_AFTER {
            return;
        }
        self.trimmed_at.set(now);
        let is_used = |endpoint: &Endpoint| self.shared.with(*endpoint, |mail| !mail.trim(now, TRIM_AFTER)).unwrap_or(false);
        let mut untrimmed = self.untrimmed.borrow_mut();
        untrimmed.retain(is_used);
        if untrimmed.is_empty() {
            *untrimmed = Vec::new();
            drop(self.spare.batch.take());
            self.spare.shared.take();
        }
    }
}

impl<T: Transport> Front for LoopSide<T> {
    fn stop(&self, endpoint: Endpoint) {
        self.shared.with(endpoint, Mail::stop);
        self.hand_over(endpoint, &mut { UNLIMITED });
    }
}

/// What a mailbox had for the backend.
struct Taken {
    pause: Option<bool>,
    end: Option<End>,
    batch: Option<Batch>,
    /// There are further messages.
    more: bool,
}

/// Takes the limits off that the front keeps by itself, for all of its mailboxes and queues together.
pub(super) fn inner_config(config: &NetworkConfig) -> NetworkConfig {
    NetworkConfig { total_queue_messages: usize::MAX, total_queue_bytes: usize::MAX, strict_regions: false, ..config.clone() }
}

const UNLIMITED: Budget = Budget { messages: usize::MAX, bytes: usize::MAX };
/// How long a mailbox stays unused before it gives memory back. The backend's own check of idle connections
/// comes later than that, and is the turn in which this one happens.
const TRIM_AFTER: Duration = Duration::from_secs(1);
