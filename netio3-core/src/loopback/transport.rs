//! Moving messages between the backends of a process.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use crate::address::EndPointAddress;
use crate::config::{ConnectionParameters, ConnectionParametersRecv};
use crate::engine::{Brought, Connection, Engine, Freed, Listener, Opener, Outgoing, Reception, Release, Transport, Upcalls, UserMemory};
use crate::event_loop::{Budget, EventLoop, Next, Ready};
use crate::loopback::line::{End, Mailbox, Waker};
use crate::loopback::link::{Link, Stage, Whole};
use crate::loopback::network::{self, Bound, Call, Caller};
use crate::loopback::pipe::{Frame, Hello, Load, Taken};
use crate::loopback::spares::SMALL;
use crate::message::Message;
use crate::status::{ClosedReason, Direction, RefusedReason};

/// Moves messages through pipes. The other ends leave in the mailbox which of its links to look at.
pub(super) struct Loopback {
    mailbox: Arc<Mailbox>,
    /// Tokens of the links and listeners to look at, in turn.
    due: RefCell<VecDeque<usize>>,
    /// The same, each of which is there once, so that none that wakes itself keeps the others waiting.
    listed: RefCell<HashSet<usize>>,
    /// Used again and again.
    frames: RefCell<Vec<Frame>>,
}

impl Loopback {
    pub(super) fn new(ev: &dyn EventLoop) -> Self {
        Self {
            mailbox: Arc::new(Mailbox::new(ev.remote())),
            due: RefCell::default(),
            listed: RefCell::default(),
            frames: RefCell::default(),
        }
    }

    fn waker(&self, token: usize) -> Waker {
        Waker { mailbox: self.mailbox.clone(), token }
    }

    /// Has a link or a listener looked at.
    fn list(&self, token: usize) {
        if self.listed.borrow_mut().insert(token) {
            self.due.borrow_mut().push_back(token);
        }
    }

    /// Looks at a link or a listener.
    fn look_at(&self, up: &mut Upcalls<'_, Self>, token: usize, budget: &mut Budget) -> Next {
        let engine = up.engine().clone();
        if let Some(connection) = engine.at(token) {
            self.ready(up, &connection, Ready::READABLE, budget)
        } else if let Some(listener) = engine.listener_at(token) {
            self.accept(up, &listener, budget)
        } else {
            Next::Wait
        }
    }

    /// Takes the calls of a listener. Their hellos came with them, so that nobody stays a stranger.
    fn accept(&self, up: &mut Upcalls<'_, Self>, listener: &Listener<Bound>, budget: &mut Budget) -> Next {
        while !budget.is_spent() {
            let Some(Call { end, from, to }) = listener.link.next_call() else { return Next::Wait };
            budget.spend(1, 0);
            let link = |token| {
                end.attach(self.waker(token));
                Ok(Link::new(end, to, Stage::AwaitsHello))
            };
            let Some(connection) = up.engine().stranger(listener, from, link) else { continue };
            if self.read(up, &connection, budget) == Next::Again {
                self.list(connection.endpoint.slot());
            }
        }
        Next::Again
    }

    /// Handles what came through the pipe, as far as the user takes it and the budget goes.
    fn read(&self, up: &mut Upcalls<'_, Self>, connection: &Rc<Connection<Link>>, budget: &mut Budget) -> Next {
        let engine = up.engine().clone();
        let link = &connection.link;
        let next = loop {
            if connection.is_over() {
                break Next::Wait;
            }
            match link.is_message_next() {
                None => match link.take() {
                    Taken::Frames => {
                        engine.count_read(connection);
                        engine.heard(connection);
                        continue;
                    }
                    Taken::Nothing => break Next::Wait,
                    Taken::End => {
                        lost(&engine, connection);
                        break Next::Wait;
                    }
                },
                Some(true) if budget.is_spent() => break Next::Again,
                Some(true) if engine.reception(connection) == Reception::Hold => {
                    // It may have been paused after what waits was given up.
                    if connection.is_paused() && link.end.is_other_gone() && engine.has_unsent(connection) {
                        engine.finish(connection, ClosedReason::PeerLost, Release::Reset);
                    }
                    break Next::Wait;
                }
                Some(_) => {}
            }
            match link.next_frame() {
                Some(Frame::Message(memory)) => deliver(up, connection, memory, budget),
                Some(frame) => self.handle(up, connection, frame),
                None => break Next::Wait,
            }
        };
        link.report();
        next
    }

    /// Handles a frame that is no message.
    fn handle(&self, up: &mut Upcalls<'_, Self>, connection: &Rc<Connection<Link>>, frame: Frame) {
        let engine = up.engine().clone();
        let link = &connection.link;
        match (link.stage.get(), frame) {
            (Stage::AwaitsHello, Frame::Hello(hello)) if !link.end.is_other_gone() => match engine.admit(connection) {
                Ok(()) => {
                    link.end.tell(Frame::Welcome(own_hello(&engine)));
                    link.stage.set(Stage::Open);
                    up.established(connection, link.local_address, hello.max_message_len, hello.heartbeat_interval);
                }
                Err(reason) => {
                    link.end.tell(Frame::Refusal(reason));
                    engine.drop_stranger(connection);
                }
            },
            (Stage::AwaitsHello, _) => fail_hello(&engine, connection),
            (Stage::AwaitsWelcome, Frame::Welcome(hello)) => {
                link.stage.set(Stage::Open);
                up.established(connection, link.local_address, hello.max_message_len, hello.heartbeat_interval);
            }
            (Stage::AwaitsWelcome, Frame::Refusal(reason)) => engine.refuse(connection, reason),
            (Stage::AwaitsWelcome, _) => engine.refuse(connection, RefusedReason::Protocol),
            (Stage::Open, Frame::Heartbeat) => connection.counters.heartbeats_received.add(1),
            (Stage::Open, Frame::Goodbye) => {
                link.goodbye.heard.set(true);
                engine.start_closing(connection, ClosedReason::PeerClosed);
                part(&engine, connection);
            }
            (Stage::Open, _) => engine.finish(connection, ClosedReason::Protocol, Release::Reset),
        }
    }
}

impl Transport for Loopback {
    const NAME: &'static str = "loopback";
    type Opener = LoopbackOpener;
    type Link = Link;
    type Listener = Bound;

    fn adopt(&self, engine: &Engine<Self>, token: usize, dialing: Dialing) -> io::Result<Link> {
        let Dialing { from: caller, to } = dialing;
        let from = caller.address();
        let (near, far) = End::pair();
        near.keep(caller);
        near.attach(self.waker(token));
        near.tell(Frame::Hello(own_hello(engine)));
        network::call(Call { end: far, from, to });
        Ok(Link::new(near, from, Stage::AwaitsWelcome))
    }

    fn adopt_listener(&self, _engine: &Engine<Self>, token: usize, listening: Bound) -> io::Result<Bound> {
        listening.attach(self.waker(token));
        Ok(listening)
    }

    fn ready(&self, up: &mut Upcalls<'_, Self>, connection: &Rc<Connection<Link>>, _ready: Ready, budget: &mut Budget) -> Next {
        if connection.link.blocked.replace(false) {
            self.flush(up.engine(), connection);
        }
        self.read(up, connection, budget)
    }

    fn listener_ready(&self, _engine: &Rc<Engine<Self>>, _listener: &Rc<Listener<Bound>>, _budget: &mut Budget) -> Next {
        // Listeners are looked at when the mailbox names them, and watch nothing.
        Next::Wait
    }

    fn enqueue(&self, _engine: &Engine<Self>, connection: &Rc<Connection<Link>>, message: Outgoing<'_>) -> usize {
        let mut outbox = connection.link.outbox.borrow_mut();
        if outbox.push(message, connection.params.copy_below) {
            connection.counters.copied_messages.add(1);
        }
        outbox.bytes()
    }

    fn flush(&self, engine: &Engine<Self>, connection: &Rc<Connection<Link>>) {
        let link = &connection.link;
        let Link { end, outbox, goodbye, .. } = link;
        if connection.is_over() || link.stage.get() != Stage::Open || link.blocked.get() {
            return;
        }
        let mut frames = self.frames.take();
        loop {
            let mut outbox = outbox.borrow_mut();
            let goodbye_due = goodbye.due.get() && !goodbye.said.get();
            if outbox.is_empty() && !goodbye_due {
                break;
            }
            let Some(mut load) = end.load(&mut outbox.spares) else {
                if !outbox.is_empty() {
                    drop(outbox);
                    give_up(engine, connection);
                }
                break;
            };
            let mut put = Load::default();
            while let Some(len) = outbox.next_len().filter(|len| load.has_room(*len)) {
                load.add(len);
                put.add(len);
                frames.extend(outbox.pop().map(Frame::Message));
            }
            if goodbye_due && outbox.is_empty() {
                frames.push(Frame::Goodbye);
                goodbye.said.set(true);
            }
            if !frames.is_empty() {
                engine.count_write(connection);
            }
            let next = outbox.next_len();
            drop(outbox);
            let fits = end.put(&mut frames, put, next);
            if put.messages > 0 {
                engine.left_messages(connection, put.messages);
            }
            if next.is_some() && !fits {
                link.blocked.set(true);
                break;
            }
        }
        self.frames.replace(frames);
        part(engine, connection);
    }

    fn retire(&self, connection: &Connection<Link>, retired: &mut Vec<UserMemory>) {
        let mut outbox = connection.link.outbox.borrow_mut();
        if connection.is_over() {
            outbox.abandon();
        }
        outbox.retire(retired);
    }

    fn close(&self, _engine: &Engine<Self>, connection: &Rc<Connection<Link>>) {
        connection.link.goodbye.due.set(true);
        // What a paused connection has not taken is thrown away from now on.
        self.list(connection.endpoint.slot());
    }

    fn heartbeat(&self, engine: &Engine<Self>, connection: &Rc<Connection<Link>>) {
        if connection.link.end.beat() {
            connection.counters.heartbeats_sent.add(1);
            engine.count_write(connection);
        }
    }

    fn release(&self, engine: &Engine<Self>, connection: &Rc<Connection<Link>>, _how: Release) -> Freed {
        let lost = connection.link.hang_up();
        if lost > 0 {
            engine.count_discarded(connection, lost);
        }
        Freed::AtOnce
    }

    fn release_listener(&self, _engine: &Engine<Self>, listener: &Listener<Bound>) {
        listener.link.close();
    }

    fn trim(&self, _engine: &Engine<Self>, connection: &Connection<Link>) {
        connection.link.trim();
    }

    fn before_sleep(&self, up: &mut Upcalls<'_, Self>, budget: &mut Budget) -> Next {
        // Completions may have used the budget up; that must not keep messages from arriving.
        let mut own = Budget { messages: budget.messages.max(LEAST.messages), bytes: budget.bytes.max(LEAST.bytes) };
        let before = own;
        self.mailbox.take(|token| self.list(token));
        let count = self.due.borrow().len();
        for _ in 0..count {
            if own.is_spent() {
                break;
            }
            let next = self.due.borrow_mut().pop_front();
            let Some(token) = next else { break };
            self.listed.borrow_mut().remove(&token);
            if self.look_at(up, token, &mut own) == Next::Again {
                self.list(token);
            }
        }
        budget.spend(before.messages - own.messages, before.bytes - own.bytes);
        if self.due.borrow().is_empty() { Next::Wait } else { Next::Again }
    }
}

/// What a turn may do, however much was done before.
const LEAST: Budget = Budget { messages: 256, bytes: 64 << 10 };

fn deliver(up: &mut Upcalls<'_, Loopback>, connection: &Rc<Connection<Link>>, memory: Vec<u8>, budget: &mut Budget) {
    let len = memory.len();
    budget.spend(1, len);
    if up.engine().reception(connection) == Reception::Discard {
        up.engine().count_discarded(connection, 1);
        return connection.link.consume(len, memory);
    }
    if len > up.engine().config.total_assembly_bytes.max(SMALL) {
        up.engine().count_discarded(connection, 1);
        return up.engine().finish(connection, ClosedReason::Limit, Release::Reset);
    }
    up.engine().count_brought(connection, Brought { messages: 1, bytes: len, discarded: 0 });
    let left = if len <= SMALL {
        up.data(connection, Message::borrowed(&memory, &connection.meter));
        memory
    } else {
        let mut whole = Whole { memory, meter: &connection.meter };
        up.data(connection, Message::whole(&mut whole));
        whole.memory
    };
    connection.link.consume(len, left);
}

/// Ends a connection on which both sides have said goodbye.
fn part(engine: &Engine<Loopback>, connection: &Rc<Connection<Link>>) {
    let goodbye = &connection.link.goodbye;
    if goodbye.said.get() && goodbye.heard.get() {
        engine.finish(connection, ClosedReason::PeerClosed, Release::Orderly);
    }
}

/// The other end is gone, and messages wait to leave. Reading finds its end, which gets their memory back: it may be what the
/// user has taken over, which keeps the reading at a cap. Who has paused the connection reads no more, and may wait for them.
fn give_up(engine: &Engine<Loopback>, connection: &Rc<Connection<Link>>) {
    if connection.is_paused() {
        return engine.finish(connection, ClosedReason::PeerLost, Release::Reset);
    }
    connection.link.outbox.borrow_mut().give_up();
    engine.retire_soon(connection);
}

/// The other end is gone, and everything that came from it was handled.
fn lost(engine: &Engine<Loopback>, connection: &Rc<Connection<Link>>) {
    let link = &connection.link;
    match link.stage.get() {
        Stage::AwaitsHello => fail_hello(engine, connection),
        Stage::AwaitsWelcome => engine.refuse(connection, RefusedReason::NoListener),
        // It did not wait for our goodbye, but nothing else was left to be said.
        Stage::Open if link.goodbye.heard.get() && !engine.has_unsent(connection) => {
            engine.finish(connection, ClosedReason::PeerClosed, Release::Orderly);
        }
        Stage::Open => engine.finish(connection, ClosedReason::PeerLost, Release::Reset),
    }
}

fn fail_hello(engine: &Engine<Loopback>, connection: &Rc<Connection<Link>>) {
    debug_assert_eq!(connection.direction, Direction::Incoming);
    connection.listener_counters().inspect(|counters| counters.failed_hello.add(1));
    engine.totals.failed_hello.add(1);
    engine.drop_stranger(connection);
}

fn own_hello(engine: &Engine<Loopback>) -> Hello {
    Hello { max_message_len: engine.config.max_message_len, heartbeat_interval: engine.config.heartbeat_interval }
}

/// Starts connections and binds listeners, from any thread.
pub(super) struct LoopbackOpener;

/// A connection to be made when its loop adopts it.
pub(super) struct Dialing {
    from: Caller,
    to: EndPointAddress,
}

impl Opener for LoopbackOpener {
    type Dialing = Dialing;
    type Listening = Bound;

    fn dial(&self, address: &EndPointAddress, params: &ConnectionParameters) -> io::Result<Dialing> {
        let ip = params.local_address.filter(|ip| !ip.is_unspecified()).unwrap_or(address.ip());
        if ip.is_ipv4() != address.ip().is_ipv4() {
            let what = format!("the local address {ip} is not of the family of {address}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        Ok(Dialing { from: network::caller(ip)?, to: *address })
    }

    fn listen(&self, address: &EndPointAddress, params: &ConnectionParametersRecv) -> io::Result<(Bound, EndPointAddress)> {
        let bound = network::bind(*address, params.reuse_port)?;
        let address = bound.address();
        Ok((bound, address))
    }
}
