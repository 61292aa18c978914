// cargo run --example echo, or in two terminals: cargo run --example echo listen 127.0.0.1:7700; cargo run --example echo 127.0.0.1:7700
//! A server that sends back whatever arrives, and a client that measures how long that takes.
//!
//! Without arguments both run in this process. `--backend NAME` chooses the backend; what follows the client's
//! address is what it sends.

mod common;

use std::collections::{HashMap, VecDeque};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Instant;

use netio3::bytes::Bytes;
use netio3::{
    Callbacks, ClosedReason, Completion, ConnectionInfo, ConnectionParameters, ConnectionParametersRecv, EndPointAddress, Endpoint,
    EpollEventLoop, EventLoop, Message, NetioStatus, NetworkBackend, NetworkConfig, NetworkType, RefusedReason, create_local,
};

use common::{Ending, Outcome};

fn main() -> ExitCode {
    common::run(|kind, args| {
        let ev = EpollEventLoop::new()?;
        match *args {
            [] => {
                let (_server, address) = start_server(kind, &EndPointAddress::localhost(0), &ev)?;
                ask(kind, &address, &["hello", "and", "goodbye"], &ev)
            }
            ["listen", address] => {
                let (_server, _) = start_server(kind, &address.parse()?, &ev)?;
                Ok(ev.run()?)
            }
            [address] => ask(kind, &address.parse()?, &["hello", "and", "goodbye"], &ev),
            [address, ref texts @ ..] => ask(kind, &address.parse()?, texts, &ev),
        }
    })
}

/// Starts a server on the loop; it runs until it is dropped.
fn start_server(kind: NetworkType, address: &EndPointAddress, ev: &EpollEventLoop) -> Outcome<(Box<dyn NetworkBackend>, EndPointAddress)> {
    let server = create_local(kind, NetworkConfig::default(), Box::new(Server::default()), ev)?;
    let address = server.open_listen_endpoint(address, &ConnectionParametersRecv::default())?;
    println!("listening on {address}");
    Ok((server, address))
}

/// Sends the texts one after the other and waits for each to come back.
fn ask(kind: NetworkType, address: &EndPointAddress, texts: &[&str], ev: &EpollEventLoop) -> Outcome {
    let texts = texts.iter().map(|text| Bytes::copy_from_slice(text.as_bytes())).collect();
    let ending = Rc::new(Ending::new(ev));
    let client = Client { texts, sent_at: Instant::now(), ending: ending.clone() };
    let client = create_local(kind, NetworkConfig::default(), Box::new(client), ev)?;
    client.open_send_endpoint(address, &ConnectionParameters::default())?;
    ending.wait(ev)
}

/// Sends everything back; of each client it holds at most one message that does not fit in the queue.
#[derive(Default)]
struct Server {
    held: HashMap<Endpoint, Bytes>,
}

impl Server {
    fn give_up(backend: &dyn NetworkBackend, client: Endpoint, address: &EndPointAddress, status: NetioStatus) {
        eprintln!("cannot answer {address}: {status}");
        // It is there: we are in one of its callbacks.
        let _ = backend.abort(client);
    }
}

impl Callbacks for Server {
    fn on_data(&mut self, backend: &dyn NetworkBackend, from: Endpoint, address: &EndPointAddress, message: Message<'_>) {
        match backend.send_copy(from, &message, &[], 0) {
            Ok(NetioStatus::Ok) => {}
            // This client sends faster than it reads: take nothing more from it until there is room.
            Ok(NetioStatus::NoResources) => {
                self.held.insert(from, message.into_bytes());
                let _ = backend.pause(from);
            }
            Ok(status) => Self::give_up(backend, from, address, status),
            Err(error) => eprintln!("{error}"),
        }
    }

    fn on_writable(&mut self, backend: &dyn NetworkBackend, client: Endpoint, address: &EndPointAddress) {
        let Some(message) = self.held.remove(&client) else { return };
        match backend.send(client, &message, &[], 0) {
            Ok(NetioStatus::Ok) => {
                let _ = backend.resume(client);
            }
            Ok(NetioStatus::NoResources) => {
                self.held.insert(client, message);
            }
            Ok(status) => Self::give_up(backend, client, address, status),
            Err(error) => eprintln!("{error}"),
        }
    }

    fn on_connection_closed(
        &mut self,
        _: &dyn NetworkBackend,
        client: Endpoint,
        _: &EndPointAddress,
        _: &[Completion],
        reason: ClosedReason,
    ) {
        self.held.remove(&client);
        println!("connection {client}: {reason}");
    }
}

struct Client {
    /// What was not answered yet; the first one is under way.
    texts: VecDeque<Bytes>,
    sent_at: Instant,
    ending: Rc<Ending>,
}

impl Client {
    fn send_next(&mut self, backend: &dyn NetworkBackend, server: Endpoint) {
        let Some(text) = self.texts.front() else {
            // The end is told in *closed*.
            let _ = backend.close(server);
            return;
        };
        self.sent_at = Instant::now();
        match backend.send(server, text, &[], 0) {
            Ok(NetioStatus::Ok) => {}
            Ok(status) => self.ending.tell(Err(format!("cannot send {} bytes: {status}", text.len()).into())),
            Err(error) => self.ending.tell(Err(error.into())),
        }
    }
}

impl Callbacks for Client {
    fn on_connection_established(&mut self, backend: &dyn NetworkBackend, connection: &ConnectionInfo) {
        self.send_next(backend, connection.endpoint);
    }

    fn on_data(&mut self, backend: &dyn NetworkBackend, from: Endpoint, _: &EndPointAddress, message: Message<'_>) {
        let round_trip = self.sent_at.elapsed();
        match self.texts.pop_front() {
            Some(text) if text == *message => println!("{:?} came back after {round_trip:?}", String::from_utf8_lossy(&message)),
            _ => return self.ending.tell(Err("something else came back".into())),
        }
        self.send_next(backend, from);
    }

    fn on_connection_refused(&mut self, _: &dyn NetworkBackend, _: Endpoint, address: &EndPointAddress, reason: RefusedReason) {
        self.ending.tell(Err(format!("no connection to {address}: {reason}").into()));
    }

    fn on_connection_closed(&mut self, _: &dyn NetworkBackend, _: Endpoint, _: &EndPointAddress, _: &[Completion], reason: ClosedReason) {
        let unanswered = self.texts.len();
        self.ending.tell(if unanswered == 0 { Ok(()) } else { Err(format!("{reason}; {unanswered} unanswered").into()) });
    }
}
