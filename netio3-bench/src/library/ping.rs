//! `ping` through netio3.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use netio3::{
    Budget, Callbacks, ClosedReason, Completion, ConnectionInfo, EndPointAddress, Endpoint, Message, NetworkBackend, RefusedReason,
};

use crate::args::{Backend, Common, Mode, PingArgs};
use crate::begin::begin;
use crate::check::StreamCheck;
use crate::control::{Control, Purpose, Tally};
use crate::failure::Failure;
use crate::library::echo::Echo;
use crate::library::outgoing::{Messages, Outgoing};
use crate::library::send::say;
use crate::library::serve::other_side;
use crate::library::{CONNECT_DEADLINE, Ground, STALL_DEADLINE, chain, not_answered};
use crate::plan::Plan;
use crate::report::{Report, RttHistogram};

/// Measures round trips.
pub fn ping(common: &Common, backend: Backend, args: &PingArgs) -> Result<Report, Failure> {
    let plan = Plan::of_ping(common, args, Mode::ZeroCopy)?;
    let ground = Ground::new(common, backend)?;
    let (addresses, own) = other_side(&ground, backend, Purpose::RoundTrips, args.connect.as_deref(), Echo::new)?;
    let start = |stream: usize, plan: Plan, args: &PingArgs| {
        let client = Rc::new(RefCell::new(Client::new(stream, plan, common, args, addresses.clone())));
        let network = ground.backend(ClientCallbacks(client.clone()))?;
        client.borrow_mut().open(&*network);
        let ready = client.borrow().ready.clone();
        if !ground.run_until(&ready, CONNECT_DEADLINE)? {
            let text = format!("what listens on {} does not answer as `netio3-bench echo` does", addresses[0]);
            return Err(Failure::NoConnection(text));
        }
        match client.borrow().no_connection.clone() {
            Some(why) => Err(Failure::NoConnection(why)),
            None => Ok((client.clone(), network)),
        }
    };
    let beside = args.beside.map(|size| {
        let window = (BESIDE_BYTES / size.max(1) as u64).clamp(2, 4_096);
        start(1, plan.beside(size), &PingArgs { size, count: u64::MAX, window, ..args.clone() })
    });
    let beside = beside.transpose()?;
    let bulk = || beside.as_ref().map_or(0, |(client, _)| client.borrow().answered * client.borrow().plan.layout.size as u64);
    let (before, began) = (bulk(), Instant::now());
    let (client, network) = start(0, plan, args)?;
    let finish = |client: &RefCell<Client>, network: &dyn NetworkBackend| -> Result<(), Failure> {
        let (done, size) = (client.borrow().done.clone(), client.borrow().plan.layout.size);
        if let Some(why) = ground.run_while_busy(&done, network, size)? {
            client.borrow_mut().fail(why);
        }
        Ok(())
    };
    finish(&client, &*network)?;
    // A turn in which nothing but bulk is read ends with its budget.
    let turn = began.elapsed().as_secs_f64() * 1e6 * Budget::DEFAULT.bytes as f64 / (bulk() - before).max(1) as f64;
    let mut report = if let Some((bulk, network)) = &beside {
        bulk.borrow_mut().stop(&**network);
        finish(bulk, &**network)?;
        Report { turn_us: Some(turn), ..client.borrow().report(backend, Some(&bulk.borrow())) }
    } else {
        client.borrow().report(backend, None)
    };
    if let Some((_, done)) = own.as_ref().filter(|_| report.error.is_none())
        && !ground.run_until(done, STALL_DEADLINE)?
    {
        report.error = Some("the echo in this process does not end".into());
    }
    Ok(report)
}

/// Bytes that are under way on a busy connection.
const BESIDE_BYTES: u64 = 1 << 20;

/// The side that asks.
struct Client {
    stream: usize,
    plan: Plan,
    messages: Messages,
    addresses: Vec<SocketAddr>,
    outgoing: Outgoing,
    check: StreamCheck,
    times: RttHistogram,
    /// When the messages in flight were sent, by sequence number modulo the window.
    sent_at: Vec<Instant>,
    answered: u64,
    count: u64,
    /// There is a connection for each round trip.
    reconnects: bool,
    opened: Instant,
    /// What went over the connections before this one.
    earlier: Tally,
    /// What the other side received, once it said so.
    tally: Option<Tally>,
    began: Instant,
    ended: Instant,
    broken: Option<String>,
    endpoint: Option<Endpoint>,
    no_connection: Option<String>,
    /// The connection is welcome, or there is no hope.
    ready: Rc<Cell<bool>>,
    /// The connection is closed, or there is no hope.
    done: Rc<Cell<bool>>,
}

impl Client {
    fn new(stream: usize, plan: Plan, common: &Common, args: &PingArgs, addresses: Vec<SocketAddr>) -> Self {
        let messages = Messages::new(&plan, Mode::ZeroCopy);
        let count = if args.reconnect { 1 } else { args.count };
        let now = Instant::now();
        Self {
            outgoing: Outgoing::new(&messages, stream as u16, count),
            messages,
            stream,
            plan,
            addresses,
            check: StreamCheck::new(args.size, stream as u16, common.verify),
            times: RttHistogram::new(),
            sent_at: vec![now; args.window.min(args.count) as usize],
            answered: 0,
            count,
            reconnects: args.reconnect,
            opened: now,
            earlier: Tally::default(),
            tally: None,
            began: now,
            ended: now,
            broken: None,
            endpoint: None,
            no_connection: None,
            ready: Rc::default(),
            done: Rc::default(),
        }
    }

    fn open(&mut self, backend: &dyn NetworkBackend) {
        self.opened = Instant::now();
        match backend.connect(&self.addresses[0].into(), &self.messages.parameters()) {
            Ok(endpoint) => self.endpoint = Some(endpoint),
            Err(error) => self.give_up(chain(&error)),
        }
    }

    /// Asks nothing more.
    fn stop(&mut self, backend: &dyn NetworkBackend) {
        self.count = self.outgoing.sent();
        if let Some(endpoint) = self.endpoint.filter(|_| self.answered == self.count) {
            self.go_on(backend, endpoint);
        }
    }

    fn give_up(&mut self, why: String) {
        if self.earlier.messages > 0 {
            self.fail(why);
        } else {
            self.no_connection.get_or_insert(why);
        }
        self.ready.set(true);
        self.done.set(true);
    }

    /// The connection has broken, or nothing happens any more.
    fn fail(&mut self, why: String) {
        self.ended = Instant::now();
        self.broken.get_or_insert(why);
    }

    fn break_off(&mut self, backend: &dyn NetworkBackend, endpoint: Endpoint, why: String) {
        self.broken.get_or_insert(why);
        let _ = backend.abort(endpoint);
    }

    fn on_refused(&mut self, backend: &dyn NetworkBackend, address: &EndPointAddress, reason: RefusedReason) {
        if self.addresses.len() > 1 {
            self.addresses.remove(0);
            return self.open(backend);
        }
        self.give_up(format!("cannot connect to {address}: {reason}"));
    }

    fn on_data(&mut self, backend: &dyn NetworkBackend, from: Endpoint, address: &EndPointAddress, message: &[u8]) {
        if message.len() != self.check.size() {
            return match Control::decode(message) {
                None if self.ready.get() => {
                    let why = self.check.count_mutilated(message.len());
                    self.break_off(backend, from, why);
                }
                control => self.on_control(backend, from, address, control),
            };
        }
        if self.answered == self.outgoing.sent() {
            return self.break_off(backend, from, "an answer came that nobody asked for".into());
        }
        self.check.observe(message);
        let window = self.sent_at.len() as u64;
        if !self.reconnects {
            self.times.record(self.sent_at[(self.answered % window) as usize].elapsed());
        }
        self.answered += 1;
        self.go_on(backend, from);
    }

    /// Keeps as many messages in flight as the window allows.
    fn go_on(&mut self, backend: &dyn NetworkBackend, to: Endpoint) {
        if !self.ready.get() {
            return;
        }
        let window = self.sent_at.len() as u64;
        let end = self.count.min(self.answered + window);
        while self.outgoing.sent() < end && !self.outgoing.is_blocked() {
            self.sent_at[(self.outgoing.sent() % window) as usize] = Instant::now();
            if let Err(why) = self.outgoing.send_next(backend, to) {
                return self.break_off(backend, to, why);
            }
        }
        if self.answered == self.count && !say(backend, to, &Control::Done { sent: self.count }, self.plan.layout.size) {
            self.break_off(backend, to, "the connection takes no message".into());
        }
    }

    fn on_control(&mut self, backend: &dyn NetworkBackend, from: Endpoint, address: &EndPointAddress, control: Option<Control>) {
        match control {
            Some(Control::Welcome) if !self.ready.get() => {
                self.ready.set(true);
                if self.earlier.messages == 0 {
                    self.began = begin();
                }
                self.go_on(backend, from);
            }
            Some(Control::Refused { why }) => self.give_up(format!("{address} refused: {why}")),
            Some(Control::Tally(tally)) if self.answered == self.count => {
                self.tally = Some(tally);
                self.ended = Instant::now();
                let _ = backend.close(from);
            }
            _ => self.break_off(backend, from, "the other side answered out of turn".into()),
        }
    }

    fn on_closed(&mut self, backend: &dyn NetworkBackend, address: &EndPointAddress, reason: ClosedReason) {
        if !self.ready.get() {
            return self.give_up(not_answered(address, reason, "echo"));
        }
        if self.tally.is_none() {
            self.fail(reason.to_string());
        } else if self.reconnects {
            self.times.record(self.opened.elapsed());
            if self.stream + 1 < self.plan.connections as usize {
                return self.reopen(backend);
            }
        }
        self.done.set(true);
    }

    /// Goes on with the next connection.
    fn reopen(&mut self, backend: &dyn NetworkBackend) {
        self.earlier = self.total();
        self.stream += 1;
        let stream = self.stream as u16;
        self.outgoing = Outgoing::new(&self.messages, stream, self.count);
        self.check = StreamCheck::new(self.check.size(), stream, self.plan.verify);
        (self.answered, self.tally) = (0, None);
        self.ready.set(false);
        self.open(backend);
    }

    /// What went over all connections.
    fn total(&self) -> Tally {
        let mut total = self.check.tally(Some(self.outgoing.sent()));
        if let Some(tally) = &self.tally {
            total.lost = total.lost.max(tally.lost);
            total.add_faults(tally);
        }
        total.add(&self.earlier);
        total
    }

    /// The report; of what went beside only what went wrong is told.
    fn report(&self, backend: Backend, beside: Option<&Self>) -> Report {
        let (mut total, bulk) = (self.total(), beside.map_or(Tally::default(), Self::total));
        let is_verified = bulk.verified == bulk.messages;
        total.add(&Tally { messages: 0, bytes: 0, verified: 0, ..bulk });
        let mut report = Report::new("ping", backend, &total, self.ended.saturating_duration_since(self.began));
        report.verified &= is_verified;
        report.mode = Some(Mode::ZeroCopy);
        report.size = self.plan.layout.size;
        report.connections = if self.reconnects { self.plan.connections } else { 1 + u32::from(beside.is_some()) };
        report.refused_sends = self.outgoing.refused() + beside.map_or(0, |beside| beside.outgoing.refused());
        report.rtt_us = self.times.summary();
        report.error = self.error().or_else(|| beside?.error());
        report
    }

    /// Why the connection broke, and what that has lost.
    fn error(&self) -> Option<String> {
        let total = self.total();
        let missing = if self.reconnects { u64::from(self.plan.connections) - total.messages } else { total.lost };
        self.broken.as_ref().map(|why| match missing {
            0 => format!("{why}: the other side's count never came"),
            _ => format!("{why}: {missing} messages were not answered"),
        })
    }
}

struct ClientCallbacks(Rc<RefCell<Client>>);

impl Callbacks for ClientCallbacks {
    fn on_connection_established(&mut self, backend: &dyn NetworkBackend, connection: &ConnectionInfo) {
        let mut client = self.0.borrow_mut();
        if !say(backend, connection.endpoint, &Control::Start(client.plan.start(client.stream)), client.plan.layout.size) {
            client.give_up("the connection takes no message".into());
        }
    }

    fn on_connection_refused(&mut self, backend: &dyn NetworkBackend, _: Endpoint, address: &EndPointAddress, reason: RefusedReason) {
        self.0.borrow_mut().on_refused(backend, address, reason);
    }

    fn on_connection_closed(
        &mut self,
        backend: &dyn NetworkBackend,
        _: Endpoint,
        address: &EndPointAddress,
        _: &[Completion],
        reason: ClosedReason,
    ) {
        self.0.borrow_mut().on_closed(backend, address, reason);
    }

    fn on_data(&mut self, backend: &dyn NetworkBackend, from: Endpoint, address: &EndPointAddress, message: Message<'_>) {
        self.0.borrow_mut().on_data(backend, from, address, &message);
    }

    fn on_writable(&mut self, backend: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress) {
        let mut client = self.0.borrow_mut();
        client.outgoing.unblock();
        client.go_on(backend, endpoint);
    }
}
