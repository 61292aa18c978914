//! `send --threads`: each connection is a thread's, which calls the backend from there; the main one runs the loop.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use netio3::{
    Callbacks, ClosedReason, Completion, ConnectionInfo, EndPointAddress, Endpoint, EventLoop, Message, NetworkBackend, RefusedReason,
};

use crate::args::{Backend, Mode};
use crate::begin::begin;
use crate::control::{Control, Tally};
use crate::failure::Failure;
use crate::library::outgoing::{Filled, Messages, Outgoing};
use crate::library::send::say;
use crate::library::{CONNECT_DEADLINE, FOR_EVER, Ground, STALL_DEADLINE, calls, chain};
use crate::plan::{Plan, first_that_answers};
use crate::report::Report;

/// Sends from threads, each of which connects to the first of the addresses that answers.
pub fn send(ground: &Ground, backend: Backend, plan: &Plan, mode: Mode, addresses: &[SocketAddr]) -> Result<Report, Failure> {
    let wires = Wires::default();
    let network = ground.synchronized(Notices(wires.clone()))?;
    let messages = Messages::of_threads(plan, mode);
    let threads = plan.connections as usize;
    let (gate, left, remote) = (Gate::default(), AtomicUsize::new(threads), ground.ev.remote());
    let outcomes = thread::scope(|scope| {
        let (network, messages, wires, gate, left) = (&*network, &messages, &wires, &gate, &left);
        let run = |stream: usize| {
            let remote = remote.clone();
            move || {
                let open = |address: SocketAddr| Line::open(network, messages, wires, address.into()).map_err(Failure::NoConnection);
                let opened = first_that_answers(addresses, open);
                let outcome = opened
                    .and_then(|(line, _)| line.greet(plan, stream).map_err(Failure::NoConnection))
                    .inspect_err(|_| gate.shut())
                    .map(|line| gate.pass(threads).then(|| line.run(plan, messages, stream)));
                left.fetch_sub(1, Ordering::AcqRel);
                remote.wake();
                outcome
            }
        };
        let (mut started, mut outcomes) = (Vec::with_capacity(threads), Vec::with_capacity(threads));
        for stream in 0..threads {
            match thread::Builder::new().spawn_scoped(scope, run(stream)) {
                Ok(thread) => started.push(thread),
                Err(cause) => {
                    gate.shut();
                    left.fetch_sub(threads - stream, Ordering::AcqRel);
                    outcomes.push(Err(no_thread(stream, threads, &cause)));
                    break;
                }
            }
        }
        let ran = ground.ev.run_until(&mut || left.load(Ordering::Acquire) == 0, FOR_EVER);
        outcomes.extend(started.into_iter().map(|thread| thread.join().expect("a thread ends by itself")));
        ran.map_err(|error| Failure::NotDelivered(chain(&error))).map(|_| outcomes)
    })?;
    // What has failed is told before what did not run for that.
    let done: Vec<Sent> = outcomes.into_iter().collect::<Result<Vec<_>, Failure>>()?.into_iter().flatten().collect();
    let (Some(began), Some(ended)) = (done.iter().map(|sent| sent.began).min(), done.iter().map(|sent| sent.ended).max()) else {
        unreachable!("there is one connection at least");
    };
    let mut total = Tally::default();
    done.iter().for_each(|sent| total.add(&sent.tally));
    let mut report = Report::new("send", backend, &total, ended - began);
    report.mode = Some(mode);
    report.size = plan.layout.size;
    report.connections = plan.connections;
    report.calls = calls(&*network);
    report.refused_sends = done.iter().map(|sent| sent.refused).sum();
    report.broken_by(done.iter().find_map(|sent| sent.broken.as_ref()));
    Ok(report)
}

fn no_thread(started: usize, threads: usize, cause: &io::Error) -> Failure {
    let many = format!("cannot start more than {started} of {threads} threads");
    Failure::NoConnection(format!("{many}: {cause}; ask for fewer --connections, or raise the limit, `ulimit -u`"))
}

/// Where threads wait for each other: all of them go on, or none.
#[derive(Default)]
struct Gate {
    state: Mutex<(usize, bool)>,
    change: Condvar,
}

impl Gate {
    /// Waits until so many have come; tells whether they have.
    fn pass(&self, all: usize) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 += 1;
        self.change.notify_all();
        let waited = self.change.wait_while(state, |(here, shut)| *here < all && !*shut);
        !waited.unwrap_or_else(PoisonError::into_inner).1
    }

    /// One of them will not come.
    fn shut(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.change.notify_all();
    }
}

/// What the loop tells a connection's thread.
enum Notice {
    Established,
    Refused(RefusedReason),
    Control(Option<Control>),
    Writable,
    Closed(ClosedReason),
}

/// Where the threads of connections listen.
type Wires = Arc<Mutex<HashMap<Endpoint, Arc<Wire>>>>;

/// What a connection's thread has not heard yet. It is woken with no lock held: a channel of the standard library wakes
/// under its own, for which a thread on the same processor waits at once.
#[derive(Default)]
struct Wire {
    notices: Mutex<VecDeque<Notice>>,
    more: Condvar,
}

impl Wire {
    fn send(&self, notice: Notice) {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner).push_back(notice);
        self.more.notify_one();
    }

    fn receive(&self, limit: Duration) -> Option<Notice> {
        let notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.more.wait_timeout_while(notices, limit, |notices| notices.is_empty());
        waited.unwrap_or_else(PoisonError::into_inner).0.pop_front()
    }
}

struct Notices(Wires);

impl Notices {
    fn tell(&self, endpoint: Endpoint, notice: Notice) {
        let wire = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&endpoint).cloned();
        wire.inspect(|wire| wire.send(notice));
    }
}

impl Callbacks for Notices {
    fn on_connection_established(&mut self, _: &dyn NetworkBackend, connection: &ConnectionInfo) {
        self.tell(connection.endpoint, Notice::Established);
    }

    fn on_connection_refused(&mut self, _: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress, reason: RefusedReason) {
        self.tell(endpoint, Notice::Refused(reason));
    }

    fn on_connection_closed(
        &mut self,
        _: &dyn NetworkBackend,
        endpoint: Endpoint,
        _: &EndPointAddress,
        _: &[Completion],
        why: ClosedReason,
    ) {
        self.tell(endpoint, Notice::Closed(why));
    }

    fn on_data(&mut self, _: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress, message: Message<'_>) {
        self.tell(endpoint, Notice::Control(Control::decode(&message)));
    }

    fn on_writable(&mut self, _: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress) {
        self.tell(endpoint, Notice::Writable);
    }
}

/// How long a connection's thread waits to be told of an end that it has met.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

/// A connection as its thread sees it.
struct Line<'a> {
    network: &'a (dyn NetworkBackend + Send + Sync),
    address: EndPointAddress,
    endpoint: Endpoint,
    wire: Arc<Wire>,
}

/// What a thread has done.
struct Sent {
    tally: Tally,
    refused: u64,
    began: Instant,
    ended: Instant,
    /// Why the connection broke in the middle.
    broken: Option<String>,
}

impl<'a> Line<'a> {
    fn open(
        network: &'a (dyn NetworkBackend + Send + Sync),
        messages: &Messages,
        wires: &Wires,
        address: EndPointAddress,
    ) -> Result<Self, String> {
        let wire = Arc::new(Wire::default());
        // Nothing is told before the wire is there.
        let mut wires = wires.lock().unwrap_or_else(PoisonError::into_inner);
        let endpoint = network.connect(&address, &messages.parameters()).map_err(|error| chain(&error))?;
        wires.insert(endpoint, wire.clone());
        drop(wires);
        let line = Self { network, address, endpoint, wire };
        let why = match line.next(CONNECT_DEADLINE) {
            Ok(Notice::Established) => return Ok(line),
            Ok(other) => line.complaint(&other),
            Err(why) => why,
        };
        // It may still be on its way.
        let _ = network.abort(endpoint);
        Err(why)
    }

    /// Says what is going to be sent, and waits until that is welcome.
    fn greet(self, plan: &Plan, stream: usize) -> Result<Self, String> {
        self.say(&Control::Start(plan.start(stream)), plan.layout.size)?;
        match self.next(CONNECT_DEADLINE)? {
            Notice::Control(Some(Control::Welcome)) => Ok(self),
            other => Err(self.complaint(&other)),
        }
    }

    /// Sends, and waits for the receiver's count.
    fn run(self, plan: &Plan, messages: &Messages, stream: usize) -> Sent {
        let began = begin();
        let deadline = plan.duration.map(|duration| began + duration);
        let mut outgoing = Outgoing::new(messages, stream as u16, plan.count(stream).unwrap_or(u64::MAX));
        let outcome = self.send_all(&mut outgoing, deadline, plan.layout.size);
        let ended = Instant::now();
        let (tally, broken) = match outcome {
            Ok(tally) => {
                let _ = self.network.close(self.endpoint);
                // Closed, or as good as that.
                let _ = self.next(STALL_DEADLINE);
                (tally, None)
            }
            Err(why) => (Tally { lost: outgoing.sent(), ..Tally::default() }, Some(why)),
        };
        Sent { tally, refused: outgoing.refused(), began, ended, broken }
    }

    fn send_all(&self, outgoing: &mut Outgoing, deadline: Option<Instant>, size: usize) -> Result<Tally, String> {
        loop {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                outgoing.stop();
            }
            match outgoing.fill(self.network, self.endpoint).map_err(|why| self.why_closed().unwrap_or(why))? {
                Filled::Finished => break,
                Filled::NotYet if outgoing.is_blocked() => self.until_writable()?,
                Filled::NotYet => {}
            }
            if outgoing.is_blocked() {
                outgoing.unblock();
            }
        }
        self.say(&Control::Done { sent: outgoing.sent() }, size)?;
        match self.next(STALL_DEADLINE)? {
            Notice::Control(Some(Control::Tally(tally))) => Ok(tally),
            Notice::Closed(reason) => Err(reason.to_string()),
            other => Err(self.complaint(&other)),
        }
    }

    /// Sends a message about the run.
    fn say(&self, control: &Control, size: usize) -> Result<(), String> {
        while !say(self.network, self.endpoint, control, size) {
            self.until_writable()?;
        }
        Ok(())
    }

    fn until_writable(&self) -> Result<(), String> {
        match self.next(STALL_DEADLINE)? {
            Notice::Writable => Ok(()),
            Notice::Closed(reason) => Err(reason.to_string()),
            other => Err(self.complaint(&other)),
        }
    }

    fn next(&self, limit: Duration) -> Result<Notice, String> {
        self.wire.receive(limit).ok_or_else(|| format!("nothing came from {} for {} s", self.address, limit.as_secs()))
    }

    /// Why the connection has ended, if it has: a thread may meet that before it is told.
    fn why_closed(&self) -> Option<String> {
        while let Some(notice) = self.wire.receive(TOLD_WITHIN) {
            if let Notice::Closed(reason) = notice {
                return Some(reason.to_string());
            }
        }
        None
    }

    fn complaint(&self, notice: &Notice) -> String {
        let address = self.address;
        match notice {
            Notice::Refused(reason) => format!("cannot connect to {address}: {reason}"),
            Notice::Closed(reason) => format!("{address} hung up: {reason}; is it `netio3-bench recv`?"),
            Notice::Control(Some(Control::Refused { why })) => format!("{address} refused: {why}"),
            Notice::Established | Notice::Writable | Notice::Control(_) => format!("{address} answered out of turn"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};
    use crate::control::Purpose;
    use crate::library::listen;
    use crate::library::recv::Receiver;
    use crate::library::serve::Book;

    #[test]
    fn threads_try_one_address_after_the_other() {
        let line = "netio3-bench send --backend loopback --size 64 --messages 100 --threads --connections 3";
        let cli = Cli::parse_from(line.split(' '));
        let Some(Command::Send(args)) = &cli.command else { panic!("{cli:?}") };
        let ground = Ground::new(&cli.common, Backend::Loopback).unwrap();
        let receiver = ground.backend(Receiver::new(Book::new(&cli.common, Backend::Loopback, Purpose::Stream, Some(1)))).unwrap();
        let alive = listen(&*receiver, &EndPointAddress::localhost(0)).unwrap();
        // Nobody listens there.
        let dead = SocketAddr::new(Ipv4Addr::new(127, 0, 0, 9).into(), alive.port());
        let plan = Plan::new(&cli.common, args, Mode::Copy).unwrap();
        let report = send(&ground, Backend::Loopback, &plan, Mode::Copy, &[dead, alive]).unwrap();
        assert_eq!((report.messages, report.verdict().is_ok()), (100, true), "{report:?}");
        let failure = send(&ground, Backend::Loopback, &plan, Mode::Copy, &[dead]).unwrap_err();
        assert!(failure.to_string().contains(&format!("cannot connect to {dead}")), "{failure}");
    }
}
