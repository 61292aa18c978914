// cargo run --release --example many_to_one [SECONDS] [--backend NAME]
//! A read-out in one process: 32 senders fill buffers as fast as one receiver takes them.
//!
//! Once a second the rates are printed, taken from the statistics. In the end everything is closed in an orderly way, and the counts
//! of both sides show that nothing was lost.

mod common;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use netio3::{
    Buffers, Callbacks, ClosedReason, Completion, ConnectionInfo, ConnectionParameters, ConnectionParametersRecv, EndPointAddress,
    Endpoint, EpollEventLoop, EventLoop, Handlers, NetioStatus, NetworkBackend, NetworkConfig, NetworkType, RefusedReason, create_local,
};

use common::Outcome;

const SENDERS: usize = 32;
const MESSAGE_LEN: usize = 8 << 10;
const BUFFERS: Buffers = Buffers { size: MESSAGE_LEN, count: 64 };
const SECOND: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    common::run(|kind, args| match *args {
        [] => read_out(kind, Duration::from_secs(3)),
        [seconds] => read_out(kind, Duration::try_from_secs_f64(seconds.parse()?)?),
        _ => Err("usage: many_to_one [SECONDS] [--backend NAME]".into()),
    })
}

fn read_out(kind: NetworkType, time: Duration) -> Outcome {
    let ev = EpollEventLoop::new()?;
    let faults = Rc::new(Faults::default());

    // Every sender numbers its messages from 0 on.
    let expected = Rc::new(RefCell::new(HashMap::<Endpoint, u64>::new()));
    let found = faults.clone();
    let receiver = Handlers::new().on_data(move |_, from, address, message| {
        let mut expected = expected.borrow_mut();
        let expected = expected.entry(from).or_default();
        if message.first_chunk() != Some(&expected.to_le_bytes()) || message.len() != MESSAGE_LEN {
            found.add(format!("{address} did not send number {expected} now"));
        }
        *expected += 1;
    });
    let receiver = create_local(kind, NetworkConfig::default(), Box::new(receiver), &ev)?;
    let address = receiver.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default())?;

    let senders = Senders { next: HashMap::new(), faults: faults.clone() };
    let senders = create_local(kind, NetworkConfig::default(), Box::new(senders), &ev)?;
    let params = ConnectionParameters { buffers: Some(BUFFERS), ..Default::default() };
    for _ in 0..SENDERS {
        senders.connect(&address, &params)?;
    }

    let (sent, received) = (senders.totals(), receiver.totals());
    let counters = received.clone();
    let mut before = counters.snapshot();
    ev.add_interval(SECOND, move |_| {
        let now = counters.snapshot();
        let messages = now.messages_received - before.messages_received;
        let bytes = now.bytes_received - before.bytes_received;
        println!("{:4} connections, {messages:9} messages/s, {:7.3} GB/s", now.connections, bytes as f64 / 1e9);
        before = now;
    });

    ev.run_for(time)?;
    senders.shutdown(Duration::from_secs(5));
    let ended = ev.run_until(&mut || senders.connections().is_empty() && receiver.connections().is_empty(), 10 * SECOND)?;
    let (sent, received) = (sent.snapshot(), received.snapshot());
    println!(
        "{} connections: {} messages accepted, {} sent, {} received",
        sent.established, sent.messages_accepted, sent.messages_sent, received.messages_received
    );
    if faults.count.get() > 0 || !ended {
        return Err(format!("{} faults, {} connections still open", faults.count.get(), senders.connections().len()).into());
    }
    if sent.established != SENDERS as u64
        || sent.messages_accepted != received.messages_received
        || sent.bytes_sent != received.bytes_received
    {
        return Err("something was lost".into());
    }
    println!("nothing was lost");
    Ok(())
}

/// What should not happen, counted.
#[derive(Default)]
struct Faults {
    count: Cell<u64>,
}

impl Faults {
    fn add(&self, what: String) {
        if self.count.replace(self.count.get() + 1) < 10 {
            eprintln!("{what}");
        }
    }
}

struct Senders {
    /// The number of each connection's next message.
    next: HashMap<Endpoint, u64>,
    faults: Rc<Faults>,
}

impl Senders {
    /// Sends all free buffers of a connection.
    fn pump(&mut self, backend: &dyn NetworkBackend, to: Endpoint) -> Outcome {
        let next = self.next.entry(to).or_default();
        // `None`, or a full queue, brings *writable*.
        while let Some(mut buffer) = backend.take_buffer(to)? {
            buffer.extend_from_slice(&next.to_le_bytes())?;
            // A detector would write its data here.
            let data_len = buffer.spare_mut().len();
            buffer.advance(data_len);
            match backend.send_taken(to, buffer) {
                Ok(()) => *next += 1,
                // The buffer goes back to the pool. The connection is being closed, in the second case.
                Err(unsent) => match unsent.outcome? {
                    NetioStatus::NoResources | NetioStatus::NotConnected => break,
                    status => return Err(format!("cannot send on {to}: {status}").into()),
                },
            }
        }
        Ok(())
    }
}

impl Callbacks for Senders {
    fn on_connection_established(&mut self, backend: &dyn NetworkBackend, connection: &ConnectionInfo) {
        self.on_writable(backend, connection.endpoint, &connection.address);
    }

    fn on_writable(&mut self, backend: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress) {
        if let Err(error) = self.pump(backend, endpoint) {
            self.faults.add(error.to_string());
        }
    }

    fn on_connection_refused(&mut self, _: &dyn NetworkBackend, _: Endpoint, address: &EndPointAddress, reason: RefusedReason) {
        self.faults.add(format!("no connection to {address}: {reason}"));
    }

    fn on_connection_closed(
        &mut self,
        _: &dyn NetworkBackend,
        endpoint: Endpoint,
        _: &EndPointAddress,
        pending: &[Completion],
        reason: ClosedReason,
    ) {
        if !pending.is_empty() || reason != ClosedReason::Shutdown {
            self.faults.add(format!("connection {endpoint}: {reason}, {} messages pending", pending.len()));
        }
    }
}
