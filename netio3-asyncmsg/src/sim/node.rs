//! A backend whose user does something at random, in callbacks and outside.

use std::cell::RefCell;
use std::io::IoSlice;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use netio3_core::engine::create_local;
use netio3_core::{
    Buffers, Callbacks, ClosedReason, Completion, CompletionKind, ConnectionInfo, ConnectionParameters, ConnectionParametersRecv,
    EndPointAddress, Endpoint, Message, NetioStatus, NetworkBackend, NetworkConfig, RefusedReason,
};

use super::book::{Book, Id, PATTERN, PATTERN_LEN, Sent};
use super::event_loop::SimLoop;
use super::kernel::Kernel;
use super::net::{SimNet, SimOpener};
use super::random::Random;
use crate::transport::Tcp;

/// One of the two programs of a schedule.
pub(super) struct Node {
    pub(super) ev: SimLoop,
    pub(super) user: User,
}

/// What the program's own code and its callbacks share.
#[derive(Clone)]
pub(super) struct User {
    number: usize,
    shared: Rc<RefCell<Shared>>,
    backend: Rc<RefCell<Option<Box<dyn NetworkBackend>>>>,
}

/// What both programs share.
pub(super) struct Shared {
    pub(super) book: Book,
    pub(super) random: Random,
    /// Messages taken over and not dropped yet.
    held: Vec<Bytes>,
    /// Where each node listens.
    pub(super) listening: [Option<EndPointAddress>; 2],
    /// Callbacks do something.
    pub(super) busy: bool,
    /// The longest message.
    pub(super) longest: usize,
    /// The deadline of orderly closes.
    pub(super) close_deadline: Duration,
    next_key: u64,
    opens: usize,
}

/// How many connections a schedule opens at most.
const MOST_OPENS: usize = 12;

impl Shared {
    pub(super) fn new(seed: u64, gentle: bool, longest: usize) -> Self {
        let mut book = Book::default();
        book.gentle = gentle;
        let close_deadline = if gentle { Duration::from_secs(36_000) } else { Duration::from_millis(200) };
        Self {
            book,
            random: Random::new(seed),
            held: Vec::new(),
            listening: [None; 2],
            busy: true,
            longest,
            close_deadline,
            next_key: 0,
            opens: 0,
        }
    }

    fn params(&mut self) -> ConnectionParameters {
        let close_deadline = self.close_deadline;
        let random = &mut self.random;
        ConnectionParameters {
            queue_messages: random.choose(&[1, 3, 50, 65_536]).unwrap_or(1),
            queue_bytes: random.choose(&[0, 1_000, 64 << 10, 16 << 20]).unwrap_or(1),
            buffers: random.percent(70).then(|| Buffers { size: 1 + random.skewed(32 << 10), count: 1 + random.up_to(5) }),
            copy_below: random.choose(&[0, 100, 1_024, 1 << 20]).unwrap_or(1),
            flush_at: random.choose(&[1, 2_000, ConnectionParameters::DEFAULT_FLUSH_AT]).unwrap_or(1),
            flush_messages: random.choose(&[None, Some(0), Some(7)]).flatten(),
            connect_deadline: Duration::from_secs(36_000),
            close_deadline,
            ..Default::default()
        }
    }
}

impl Node {
    pub(super) fn new(number: usize, kernel: &Kernel, shared: &Rc<RefCell<Shared>>, seed: u64) -> Self {
        let ev = SimLoop::new(kernel, seed);
        let user = User { number, shared: shared.clone(), backend: Rc::default() };
        let config = {
            let random = &mut shared.borrow_mut().random;
            NetworkConfig {
                heartbeat_interval: random.choose(&[0, 0, 0, 100]).map(Duration::from_millis).unwrap_or_default(),
                hello_deadline: Duration::from_secs(36_000),
                max_message_len: random.choose(&[10_000, 200 << 10, 1 << 20]).unwrap_or(1),
                owned_messages: random.choose(&[1, 4, 65_536]).unwrap_or(1),
                owned_bytes: random.choose(&[10_000, 1 << 20, 1 << 28]).unwrap_or(1),
                max_handshakes: random.choose(&[1, 1_024, 1_024]).unwrap_or(1),
                ..Default::default()
            }
        };
        let transport = Tcp::<SimNet>::new();
        let backend = create_local(transport, SimOpener(kernel.clone()), config, Box::new(user.clone()), ev.as_dyn());
        *user.backend.borrow_mut() = Some(backend.expect("the configuration is fine"));
        Self { ev, user }
    }
}

impl User {
    /// Calls the backend, if it is still there.
    pub(super) fn with(&self, call: impl FnOnce(&dyn NetworkBackend)) {
        if let Some(backend) = &*self.backend.borrow() {
            call(&**backend);
        }
    }

    pub(super) fn drop_backend(&self) {
        let backend = self.backend.take();
        if backend.is_some() {
            drop(backend);
            self.shared.borrow_mut().book.dropped(self.number);
            self.shared.borrow_mut().listening[self.number] = None;
        }
    }

    pub(super) fn listen(&self, backend: &dyn NetworkBackend) {
        let shared = &mut *self.shared.borrow_mut();
        if shared.listening[self.number].is_some() {
            return;
        }
        let params = ConnectionParametersRecv { connection: shared.params(), ..Default::default() };
        shared.listening[self.number] = backend.open_listen_endpoint(&EndPointAddress::localhost(0), &params).ok();
    }

    pub(super) fn close_listener(&self, backend: &dyn NetworkBackend) {
        let Some(address) = self.shared.borrow_mut().listening[self.number].take() else { return };
        let accepted: Vec<_> = backend.connections().into_iter().filter(|state| state.listener == Some(address)).collect();
        backend.close_listen_endpoint(&address).expect("it listens there");
        let book = &mut self.shared.borrow_mut().book;
        for state in accepted {
            book.closing((self.number, state.endpoint));
        }
    }

    pub(super) fn open(&self, backend: &dyn NetworkBackend) {
        let shared = &mut *self.shared.borrow_mut();
        if shared.opens == MOST_OPENS {
            return;
        }
        shared.opens += 1;
        let nobody = EndPointAddress::localhost(9);
        let address = if shared.random.percent(8) { nobody } else { shared.listening[1 - self.number].unwrap_or(nobody) };
        let params = shared.params();
        let opened =
            if shared.random.percent(50) { backend.connect(&address, &params) } else { backend.open_send_endpoint(&address, &params) };
        if let Ok(endpoint) = opened {
            shared.book.opened((self.number, endpoint), address);
        }
    }

    /// Sends a few messages.
    pub(super) fn send(&self, backend: &dyn NetworkBackend, to: Endpoint) {
        let shared = &mut *self.shared.borrow_mut();
        let count = 1 + shared.random.skewed(30);
        for _ in 0..count {
            if !self.send_one(shared, backend, (self.number, to)) {
                return;
            }
        }
    }

    fn send_one(&self, shared: &mut Shared, backend: &dyn NetworkBackend, id: Id) -> bool {
        let random = &mut shared.random;
        let len = random.skewed(shared.longest);
        let from = random.up_to(PATTERN_LEN - len);
        let content = PATTERN.slice(from..from + len);
        let header_len = random.up_to(len.min(40));
        let (header, payload) = content.split_at(header_len);
        let cut = random.up_to(payload.len());
        shared.next_key += 1;
        let key = shared.next_key;
        let to = id.1;
        let mut sent = Sent { key, kind: CompletionKind::Copy, from, len, memory: None };
        let status = match random.up_to(4) {
            0 => backend.send_copy(to, payload, header, key),
            1 => backend.send_copy_iov(to, &[IoSlice::new(&payload[..cut]), IoSlice::new(&payload[cut..])], header, key),
            family @ 2..=3 => {
                let memory = Bytes::from(payload.to_vec());
                sent.kind = CompletionKind::ZeroCopy;
                // An empty one owns nothing.
                sent.memory = Some(memory.clone()).filter(|memory| !memory.is_empty());
                match family {
                    2 => backend.send(to, &memory, header, key),
                    _ => backend.send_iov(to, &[memory.slice(..cut), memory.slice(cut..)], header, key),
                }
            }
            _ => return self.send_buffer(shared, backend, id, sent),
        };
        let status = status.expect("the connection is known until it is closed");
        if status == NetioStatus::Ok {
            shared.book.accepted(id, sent);
        } else {
            drop(sent);
            self.not_accepted(shared, id, status, len);
        }
        status == NetioStatus::Ok
    }

    fn send_buffer(&self, shared: &mut Shared, backend: &dyn NetworkBackend, id: Id, mut sent: Sent) -> bool {
        let Ok(buffer) = backend.take_buffer(id.1) else { return true };
        let Some(mut buffer) = buffer else {
            shared.book.refused_send(id);
            return false;
        };
        sent.len = sent.len.min(buffer.capacity());
        buffer.extend_from_slice(&PATTERN[sent.from..][..sent.len]).expect("it fits");
        (sent.key, sent.kind) = (buffer.id(), CompletionKind::Buffer);
        if shared.random.percent(5) {
            // Goes back unsent.
            return true;
        }
        let len = sent.len;
        match backend.send_taken(id.1, buffer) {
            Ok(()) => {
                shared.book.accepted(id, sent);
                true
            }
            Err(unsent) => {
                self.not_accepted(shared, id, unsent.outcome.expect("the connection is known until it is closed"), len);
                false
            }
        }
    }

    fn not_accepted(&self, shared: &mut Shared, id: Id, status: NetioStatus, len: usize) {
        match status {
            NetioStatus::NoResources => {
                assert!(!shared.book.has_empty_queue(id), "{id:?}: an empty queue takes any message");
                shared.book.refused_send(id);
            }
            NetioStatus::TooBig => assert!(len > shared.book.life(id).max_len, "{id:?}: {len} bytes are not too big"),
            NetioStatus::NotConnected => {}
            status => panic!("{id:?}: {status:?}"),
        }
    }

    pub(super) fn pause(&self, backend: &dyn NetworkBackend, endpoint: Endpoint, pause: bool) {
        let book = &mut self.shared.borrow_mut().book;
        let result = if pause { backend.pause(endpoint) } else { backend.resume(endpoint) };
        result.expect("the connection is known until it is closed");
        book.paused((self.number, endpoint), pause);
    }

    pub(super) fn close(&self, backend: &dyn NetworkBackend, endpoint: Endpoint) {
        let shared = &mut *self.shared.borrow_mut();
        shared.book.closing((self.number, endpoint));
        let abort = !shared.book.gentle && shared.random.percent(50);
        let result = if abort { backend.abort(endpoint) } else { backend.close(endpoint) };
        result.expect("the connection is known until it is closed");
    }

    pub(super) fn drop_held(&self, all: bool) {
        let shared = &mut *self.shared.borrow_mut();
        let keep = if all { 0 } else { shared.random.up_to(shared.held.len()) };
        shared.held.truncate(keep);
    }

    /// Does something to a living connection, or opens one.
    pub(super) fn act(&self, backend: &dyn NetworkBackend, endpoint: Option<Endpoint>) {
        let (choice, gentle) = {
            let shared = &mut *self.shared.borrow_mut();
            (shared.random.up_to(99), shared.book.gentle)
        };
        match (choice, endpoint) {
            (0..60, Some(endpoint)) => self.send(backend, endpoint),
            (60..70, Some(endpoint)) => self.pause(backend, endpoint, true),
            (70..85, Some(endpoint)) => self.pause(backend, endpoint, false),
            (85..89, Some(endpoint)) => self.close(backend, endpoint),
            (89..92, Some(endpoint)) => backend.flush(endpoint).expect("the connection is known until it is closed"),
            (92..95, _) | (0..92, None) => self.open(backend),
            (95, _) => self.close_listener(backend),
            (96..98, _) => self.listen(backend),
            (_, _) if !gentle && choice == 99 && self.shared.borrow_mut().random.percent(5) => self.drop_backend_inside(),
            _ => self.drop_held(false),
        }
    }

    /// Drops the backend if nobody is just calling it by its owner, as inside callbacks.
    fn drop_backend_inside(&self) {
        let Ok(mut slot) = self.backend.try_borrow_mut() else { return };
        let backend = slot.take();
        drop(slot);
        if backend.is_some() {
            drop(backend);
            let shared = &mut *self.shared.borrow_mut();
            shared.book.dropped(self.number);
            shared.listening[self.number] = None;
        }
    }

    fn book<R>(&self, note: impl FnOnce(&mut Book) -> R) -> R {
        note(&mut self.shared.borrow_mut().book)
    }

    /// Now and then, does something inside a callback.
    fn react(&self, backend: &dyn NetworkBackend, endpoint: Option<Endpoint>, percent: u64) {
        let acts = {
            let shared = &mut *self.shared.borrow_mut();
            shared.busy && shared.random.percent(percent)
        };
        if acts {
            self.act(backend, endpoint);
        }
    }
}

impl Callbacks for User {
    fn on_connection_established(&mut self, backend: &dyn NetworkBackend, connection: &ConnectionInfo) {
        let counters = backend.stats(connection.endpoint).expect("it is just established");
        self.book(|book| book.established(self.number, connection, counters));
        self.react(backend, Some(connection.endpoint), 60);
    }

    fn on_connection_refused(&mut self, backend: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress, reason: RefusedReason) {
        self.book(|book| book.refused((self.number, endpoint), reason));
        self.react(backend, None, 50);
    }

    fn on_connection_closed(
        &mut self,
        backend: &dyn NetworkBackend,
        endpoint: Endpoint,
        _: &EndPointAddress,
        pending: &[Completion],
        reason: ClosedReason,
    ) {
        self.book(|book| book.closed((self.number, endpoint), pending, reason));
        assert!(backend.limits(endpoint).is_err(), "the handle is unknown inside closed");
        self.react(backend, None, 50);
    }

    fn on_data(&mut self, backend: &dyn NetworkBackend, from: Endpoint, _: &EndPointAddress, message: Message<'_>) {
        let hold = {
            let shared = &mut *self.shared.borrow_mut();
            shared.book.data((self.number, from), &message);
            shared.busy && shared.random.percent(15)
        };
        if hold {
            let content = message.to_vec();
            let bytes = message.into_bytes();
            assert!(content == bytes, "a message taken over is the same");
            self.shared.borrow_mut().held.push(bytes);
        }
        self.react(backend, Some(from), 6);
    }

    fn on_send_completed(&mut self, backend: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress, completions: &[Completion]) {
        self.book(|book| book.completed((self.number, endpoint), completions));
        self.react(backend, Some(endpoint), 8);
    }

    fn on_writable(&mut self, backend: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress) {
        self.book(|book| book.writable((self.number, endpoint)));
        self.react(backend, Some(endpoint), 40);
    }
}
