//! `send` through netio3.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use netio3::{
    Callbacks, ClosedReason, Completion, ConnectionInfo, EndPointAddress, Endpoint, Message, NetioStatus, NetworkBackend, RefusedReason,
};

use crate::args::{Backend, Common, Mode, SendArgs};
use crate::begin::begin;
use crate::control::{Control, Purpose, Tally};
use crate::failure::Failure;
use crate::library::outgoing::{Filled, Messages, Outgoing};
use crate::library::recv::Receiver;
use crate::library::serve::other_side;
use crate::library::table::Table;
use crate::library::threads;
use crate::library::{CONNECT_DEADLINE, Ground, STALL_DEADLINE, calls, chain, not_answered};
use crate::plan::Plan;
use crate::report::Report;

/// Sends.
pub fn send(common: &Common, backend: Backend, args: &SendArgs) -> Result<Report, Failure> {
    let mode = args.mode.unwrap_or(Mode::ZeroCopy);
    let plan = Plan::new(common, args, mode)?;
    let ground = Ground::new(common, backend)?;
    let (addresses, own) = other_side(&ground, backend, Purpose::Stream, args.connect.as_deref(), Receiver::new)?;
    if args.threads {
        return threads::send(&ground, backend, &plan, mode, &addresses);
    }
    let connections = plan.connections;
    let sender = Sender::new(plan, mode, addresses.clone());
    let (ready, done) = (sender.ready.clone(), sender.done.clone());
    let sender = Rc::new(RefCell::new(sender));
    let network = ground.backend(SenderCallbacks(sender.clone()))?;
    sender.borrow_mut().open(&*network);
    let mut welcomed = 0;
    while !ground.run_until(&ready, CONNECT_DEADLINE)? {
        let before = std::mem::replace(&mut welcomed, sender.borrow().welcomed);
        if welcomed == before {
            let what = format!("what listens on {} does not answer as `netio3-bench recv` does", addresses[0]);
            let how_often = if welcomed > 0 { format!(", but on {welcomed} of {connections} connections") } else { String::new() };
            return Err(Failure::NoConnection(what + &how_often));
        }
    }
    if let Some(why) = ground.run_while_busy(&done, &*network, args.size)? {
        sender.borrow_mut().break_off(why);
    } else if let Some((_, done)) = &own
        && !ground.run_until(done, STALL_DEADLINE)?
    {
        sender.borrow_mut().break_off("the receiver in this process does not end".into());
    }
    let sender = sender.borrow();
    match &sender.no_connection {
        Some(why) => Err(Failure::NoConnection(why.clone())),
        None => Ok(Report { calls: calls(&*network), ..sender.report(backend) }),
    }
}

/// How many connections are being made at once: a listener holds a limited number of those it has not accepted.
const OPENING: u32 = 256;

/// The sending side.
struct Sender {
    plan: Plan,
    mode: Mode,
    messages: Messages,
    /// Where to connect to, in the order of trying.
    addresses: Vec<SocketAddr>,
    connections: Table<Connection>,
    opened: u32,
    established: u32,
    welcomed: u32,
    /// How many of those that send were acknowledged, and the least messages of one.
    acknowledged: u32,
    least: u64,
    closed: u32,
    began: Instant,
    ended: Instant,
    deadline: Option<Instant>,
    total: Tally,
    refused_sends: u64,
    /// Why a connection broke in the middle.
    broken: Option<String>,
    no_connection: Option<String>,
    /// All connections are welcome, or there is no hope.
    ready: Rc<Cell<bool>>,
    /// All connections are closed, or there is no hope.
    done: Rc<Cell<bool>>,
}

struct Connection {
    stream: usize,
    phase: Phase,
    outgoing: Outgoing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not established, or waiting for the others to be.
    Opening,
    /// `Start` was sent.
    Asked,
    /// `Welcome` came; messages are sent when all connections have come that far.
    Sending,
    /// `Done` was sent.
    Finished,
    /// The receiver's count came.
    Acknowledged,
}

impl Sender {
    fn new(plan: Plan, mode: Mode, addresses: Vec<SocketAddr>) -> Self {
        Self {
            messages: Messages::new(&plan, mode),
            plan,
            mode,
            addresses,
            connections: Table::new(),
            opened: 0,
            established: 0,
            welcomed: 0,
            acknowledged: 0,
            least: u64::MAX,
            closed: 0,
            began: Instant::now(),
            ended: Instant::now(),
            deadline: None,
            total: Tally::default(),
            refused_sends: 0,
            broken: None,
            no_connection: None,
            ready: Rc::default(),
            done: Rc::default(),
        }
    }

    /// Opens one more connection.
    fn open(&mut self, backend: &dyn NetworkBackend) {
        match backend.connect(&self.addresses[0].into(), &self.messages.parameters()) {
            Ok(endpoint) => {
                let stream = self.opened as usize;
                let outgoing = Outgoing::new(&self.messages, stream as u16, self.plan.count(stream).unwrap_or(u64::MAX));
                self.connections.insert(endpoint, Connection { stream, phase: Phase::Opening, outgoing });
                self.opened += 1;
            }
            Err(error) => self.give_up(chain(&error)),
        }
    }

    /// Nothing was sent and nothing will be.
    fn give_up(&mut self, why: String) {
        self.no_connection.get_or_insert(why);
        self.ready.set(true);
        self.done.set(true);
    }

    fn on_established(&mut self, backend: &dyn NetworkBackend, endpoint: Endpoint) {
        if let Some(connection) = self.connections.get_mut(endpoint) {
            let start = Control::Start(self.plan.start(connection.stream));
            connection.phase = Phase::Asked;
            if !say(backend, endpoint, &start, self.plan.layout.size) {
                self.give_up("the connection takes no message".into());
            }
        }
        // The first connection shows that the address is right.
        self.established += 1;
        while self.opened < self.plan.connections.min(self.established + OPENING) && !self.done.get() {
            self.open(backend);
        }
    }

    fn on_refused(&mut self, backend: &dyn NetworkBackend, address: &EndPointAddress, reason: RefusedReason) {
        if self.opened == 1 && self.addresses.len() > 1 {
            self.addresses.remove(0);
            self.opened = 0;
            return self.open(backend);
        }
        self.give_up(format!("cannot connect to {address}: {reason}"));
    }

    fn on_control(&mut self, backend: &dyn NetworkBackend, from: Endpoint, address: &EndPointAddress, control: Option<Control>) {
        let Some(connection) = self.connections.get_mut(from) else { return };
        match (control, connection.phase) {
            (Some(Control::Welcome), Phase::Asked) => {
                connection.phase = Phase::Sending;
                self.welcomed += 1;
                if self.welcomed == self.plan.connections {
                    self.begin(backend);
                }
            }
            (Some(Control::Refused { why }), _) => self.give_up(format!("{address} refused: {why}")),
            (Some(Control::Tally(tally)), Phase::Finished) => {
                connection.phase = Phase::Acknowledged;
                self.total.add(&tally);
                let _ = backend.close(from);
                if !self.plan.is_idle(connection.stream) {
                    self.acknowledged += 1;
                    self.least = self.least.min(tally.messages);
                    self.ended = Instant::now();
                    if self.acknowledged == self.plan.busy() {
                        self.go_on_with_all(backend);
                    }
                }
            }
            _ => {
                let _ = backend.abort(from);
                self.broken.get_or_insert("the receiver answered out of turn".into());
            }
        }
    }

    fn begin(&mut self, backend: &dyn NetworkBackend) {
        self.ready.set(true);
        self.began = begin();
        self.deadline = self.plan.duration.map(|duration| self.began + duration);
        self.go_on_with_all(backend);
    }

    fn go_on_with_all(&mut self, backend: &dyn NetworkBackend) {
        let idle_too = self.acknowledged == self.plan.busy();
        for (endpoint, connection) in self.connections.iter_mut().filter(|(_, it)| idle_too || !self.plan.is_idle(it.stream)) {
            connection.go_on(backend, endpoint, self.plan.layout.size, self.deadline, &mut self.broken);
        }
    }

    /// There is room, or room has been made.
    fn go_on(&mut self, backend: &dyn NetworkBackend, endpoint: Endpoint, room: bool) {
        if self.welcomed < self.plan.connections {
            return;
        }
        let idle_too = self.acknowledged == self.plan.busy();
        if let Some(connection) = self.connections.get_mut(endpoint) {
            if room {
                connection.outgoing.unblock();
            }
            if idle_too || !self.plan.is_idle(connection.stream) {
                connection.go_on(backend, endpoint, self.plan.layout.size, self.deadline, &mut self.broken);
            }
        }
    }

    fn on_closed(&mut self, endpoint: Endpoint, address: &EndPointAddress, reason: ClosedReason) {
        let Some(connection) = self.connections.remove(endpoint) else { return };
        if self.welcomed < self.plan.connections {
            return self.give_up(not_answered(address, reason, "recv"));
        }
        self.refused_sends += connection.outgoing.refused();
        if connection.phase != Phase::Acknowledged {
            self.total.lost += connection.outgoing.sent();
            self.ended = Instant::now();
            self.broken.get_or_insert(reason.to_string());
        }
        self.closed += 1;
        self.done.set(self.closed == self.plan.connections);
    }

    /// Nothing happens any more.
    fn break_off(&mut self, why: String) {
        let silent = self.connections.iter_mut().filter(|(_, connection)| connection.phase != Phase::Acknowledged);
        self.total.lost += silent.map(|(_, connection)| connection.outgoing.sent()).sum::<u64>();
        self.ended = Instant::now();
        self.broken.get_or_insert(why);
    }

    fn report(&self, backend: Backend) -> Report {
        let mut report = Report::new("send", backend, &self.total, self.ended.saturating_duration_since(self.began));
        report.mode = Some(self.mode);
        report.size = self.plan.layout.size;
        report.connections = self.plan.connections;
        report.refused_sends = self.refused_sends;
        let mean = self.total.messages as f64 / f64::from(self.plan.busy());
        let told = self.plan.busy() > 1 && self.plan.duration.is_some() && self.acknowledged == self.plan.busy();
        report.slowest = (told && mean > 0.0).then(|| self.least as f64 / mean);
        report.broken_by(self.broken.as_ref());
        report
    }
}

impl Connection {
    fn go_on(
        &mut self,
        backend: &dyn NetworkBackend,
        endpoint: Endpoint,
        size: usize,
        deadline: Option<Instant>,
        broken: &mut Option<String>,
    ) {
        if self.phase != Phase::Sending {
            return;
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.outgoing.stop();
        }
        match self.outgoing.fill(backend, endpoint) {
            Ok(Filled::NotYet) => {}
            // If there is no room for this either, *writable* leads here again.
            Ok(Filled::Finished) => {
                if say(backend, endpoint, &Control::Done { sent: self.outgoing.sent() }, size) {
                    self.phase = Phase::Finished;
                }
            }
            Err(why) => {
                broken.get_or_insert(why);
                let _ = backend.abort(endpoint);
            }
        }
    }
}

/// Sends a message about the run; tells whether it was accepted.
pub fn say(backend: &dyn NetworkBackend, to: Endpoint, control: &Control, size: usize) -> bool {
    backend.send_copy(to, &control.encode(size), &[], u64::MAX) == Ok(NetioStatus::Ok)
}

struct SenderCallbacks(Rc<RefCell<Sender>>);

impl Callbacks for SenderCallbacks {
    fn on_connection_established(&mut self, backend: &dyn NetworkBackend, connection: &ConnectionInfo) {
        self.0.borrow_mut().on_established(backend, connection.endpoint);
    }

    fn on_connection_refused(&mut self, backend: &dyn NetworkBackend, _: Endpoint, address: &EndPointAddress, reason: RefusedReason) {
        self.0.borrow_mut().on_refused(backend, address, reason);
    }

    fn on_connection_closed(
        &mut self,
        _: &dyn NetworkBackend,
        endpoint: Endpoint,
        address: &EndPointAddress,
        _: &[Completion],
        reason: ClosedReason,
    ) {
        self.0.borrow_mut().on_closed(endpoint, address, reason);
    }

    fn on_data(&mut self, backend: &dyn NetworkBackend, from: Endpoint, address: &EndPointAddress, message: Message<'_>) {
        self.0.borrow_mut().on_control(backend, from, address, Control::decode(&message));
    }

    fn on_send_completed(&mut self, backend: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress, _: &[Completion]) {
        self.0.borrow_mut().go_on(backend, endpoint, false);
    }

    fn on_writable(&mut self, backend: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress) {
        self.0.borrow_mut().go_on(backend, endpoint, true);
    }
}
