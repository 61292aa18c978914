// cargo run --example reconnect [--backend NAME]
//! Keeps a connection alive across the death of its server, and loses nothing.
//!
//! netio3 never reconnects by itself. A client that wants it reopens inside *closed* and *refused*, after a delay that grows while
//! nobody answers. What to send again is the client's to know: the pending list names what did not complete, some of which may
//! have arrived all the same, and what completed may have died with the server unread. So this client keeps every message until the server has acknowledged its number.

mod common;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::rc::{Rc, Weak};
use std::time::Duration;

use netio3::bytes::Bytes;
use netio3::{
    ConnectionParameters, ConnectionParametersRecv, EndPointAddress, EpollEventLoop, EventLoop, Handle, Handlers, NetioStatus,
    NetworkBackend, NetworkConfig, NetworkType, create_local,
};

use common::{Ending, Outcome};

const MESSAGES: u64 = 200;
const FIRST_DELAY: Duration = Duration::from_millis(20);
const LONGEST_DELAY: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    common::run(|kind, args| if args.is_empty() { demonstrate(kind) } else { Err("usage: reconnect [--backend NAME]".into()) })
}

/// Sends while the server is killed and started again.
fn demonstrate(kind: NetworkType) -> Outcome {
    let ev = EpollEventLoop::new()?;
    let arrived = Rc::new(RefCell::new(BTreeSet::new()));
    let (server, address) = start_server(kind, &EndPointAddress::localhost(0), &arrived, &ev)?;

    let ending = Rc::new(Ending::new(&ev));
    let client = Client::start(kind, address, &ending, &ev)?;
    let (source, mut number) = (client.clone(), 0);
    let ticks = ev.add_interval(Duration::from_millis(2), move |_| {
        if number < MESSAGES {
            number += 1;
            source.send(number, format!("message {number}").into());
        }
    });

    ev.run_until(&mut || arrived.borrow().len() >= 50, Duration::from_secs(10))?;
    println!("server dies");
    drop(server);
    ev.run_for(Duration::from_millis(150))?;
    println!("server starts again");
    let (server, _) = start_server(kind, &address, &arrived, &ev)?;
    ending.wait(&ev)?;

    ev.cancel_timer(ticks);
    println!("{} of {MESSAGES} messages arrived, over {} connections", arrived.borrow().len(), client.established.get());
    drop(server);
    if arrived.borrow().len() as u64 == MESSAGES { Ok(()) } else { Err("messages were lost".into()) }
}

/// Starts a server that acknowledges every message by its number. Those sent twice count once.
fn start_server(
    kind: NetworkType,
    address: &EndPointAddress,
    arrived: &Rc<RefCell<BTreeSet<u64>>>,
    ev: &EpollEventLoop,
) -> Outcome<(Box<dyn NetworkBackend>, EndPointAddress)> {
    let arrived = arrived.clone();
    let server = Handlers::new().on_data(move |backend, from, _, message| {
        let Some(number) = message.first_chunk() else { return };
        arrived.borrow_mut().insert(u64::from_le_bytes(*number));
        if !matches!(backend.send_copy(from, number, &[], 0), Ok(NetioStatus::Ok)) {
            // The client will come back and send again.
            let _ = backend.abort(from);
        }
    });
    let server = create_local(kind, NetworkConfig::default(), Box::new(server), ev)?;
    let address = server.open_listen_endpoint(address, &ConnectionParametersRecv::default())?;
    Ok((server, address))
}

/// A client of one server.
struct Client {
    ev: Handle,
    server: EndPointAddress,
    /// Set right after both were made.
    backend: OnceCell<Box<dyn NetworkBackend>>,
    /// What the server has not acknowledged, by number.
    kept: RefCell<BTreeMap<u64, Bytes>>,
    delay: Cell<Duration>,
    established: Cell<u32>,
    ending: Rc<Ending>,
}

impl Client {
    fn start(kind: NetworkType, server: EndPointAddress, ending: &Rc<Ending>, ev: &EpollEventLoop) -> Outcome<Rc<Self>> {
        let client = Rc::new(Self {
            ev: ev.local(),
            server,
            backend: OnceCell::new(),
            kept: RefCell::default(),
            delay: Cell::new(FIRST_DELAY),
            established: Cell::new(0),
            ending: ending.clone(),
        });
        // Weak: the client owns the backend, which owns these.
        let [up, down, refused, data] = std::array::from_fn(|_| Rc::downgrade(&client));
        let callbacks = Handlers::new()
            .on_connection_established(move |_, _| with(&up, |client| client.resend()))
            .on_connection_closed(move |_, _, _, pending, reason| {
                println!("closed, {reason}; {} messages pending", pending.len());
                with(&down, Self::reopen);
            })
            .on_connection_refused(move |_, _, _, reason| {
                println!("refused, {reason}");
                with(&refused, Self::reopen_later);
            })
            .on_data(move |_, _, _, message| with(&data, |client| client.acknowledged(&message)));
        let backend = create_local(kind, NetworkConfig::default(), Box::new(callbacks), ev)?;
        backend.open_send_endpoint(&server, &ConnectionParameters::default())?;
        // It was empty.
        let _ = client.backend.set(backend);
        Ok(client)
    }

    /// Sends a message, now or as soon as there is a connection.
    fn send(&self, number: u64, content: Bytes) {
        self.kept.borrow_mut().insert(number, content.clone());
        self.send_now(number, &content);
    }

    fn send_now(&self, number: u64, content: &Bytes) {
        let Some(backend) = self.backend.get() else { return };
        match backend.send_data(&self.server, content, &number.to_le_bytes(), number) {
            // Without a connection it stays among those kept, for the next one.
            Ok(NetioStatus::Ok | NetioStatus::NotConnected) | Err(_) => {}
            Ok(status) => self.ending.tell(Err(format!("cannot send message {number}: {status}").into())),
        }
    }

    fn resend(&self) {
        self.established.set(self.established.get() + 1);
        self.delay.set(FIRST_DELAY);
        let kept = self.kept.borrow();
        println!("established; {} messages to be sent again", kept.len());
        for (number, content) in &*kept {
            self.send_now(*number, content);
        }
    }

    fn acknowledged(&self, message: &[u8]) {
        let Some(number) = message.first_chunk().copied().map(u64::from_le_bytes) else { return };
        self.kept.borrow_mut().remove(&number);
        if number == MESSAGES {
            self.ending.tell(Ok(()));
        }
    }

    /// The address is free again inside *closed* and *refused*.
    fn reopen(self: &Rc<Self>) {
        let opened = self.backend.get().map(|backend| backend.open_send_endpoint(&self.server, &ConnectionParameters::default()));
        if let Some(Err(error)) = opened {
            println!("{error}");
            self.reopen_later();
        }
    }

    fn reopen_later(self: &Rc<Self>) {
        let client = Rc::downgrade(self);
        self.ev.add_timer(self.delay.get(), move |_| with(&client, Self::reopen));
        self.delay.set((self.delay.get() * 2).min(LONGEST_DELAY));
    }
}

fn with(client: &Weak<Client>, act: impl FnOnce(&Rc<Client>)) {
    if let Some(client) = client.upgrade() {
        act(&client);
    }
}
