//! netio3: an `EpollEventLoop` on the main thread and nothing set but the length of the sender's queue. Messages below
//! 1 KiB are copied, longer ones sent from shared memory, with a call for each.

use std::cell::RefCell;
use std::rc::Rc;

use netio3::bytes::Bytes;
use netio3::{
    Callbacks, ClosedReason, Completion, ConnectionInfo, ConnectionParameters, ConnectionParametersRecv, EndPointAddress, Endpoint,
    EpollEventLoop, EventLoop, Message, NetioStatus, NetworkBackend, NetworkConfig, NetworkType, RefusedReason, SendError, create_local,
};

use super::STALL_LIMIT;
use crate::Outcome;
use crate::job::{Arrived, HEAD_LEN, Incoming, Job, Measured, QUESTION, RoundTrips, Task, Transfer};
use crate::process::announce;

/// Messages of this many bytes and more are not copied.
const ZERO_COPY_FROM: usize = 1_024;
/// Bytes that may wait for the kernel: a few writes' worth, so that they stay in the processor's cache.
const QUEUE_BYTES: usize = 1 << 20;
/// Messages and bytes given to the connection before the loop has its turn.
const TURN_MESSAGES: usize = 8_192;
const TURN_BYTES: usize = 1 << 20;

/// How a side ended, once it has.
type Ended<T> = Rc<RefCell<Option<Result<T, String>>>>;

/// Runs until the side has ended.
fn run<T>(ev: &EpollEventLoop, ended: &Ended<T>, job: &Job) -> Outcome<T> {
    ev.run_until(&mut || ended.borrow().is_some(), job.time + STALL_LIMIT)?;
    Ok(ended.take().unwrap_or_else(|| Err("the other side says nothing".into()))?)
}

/// Receives, or sends back.
pub fn serve(job: &Job) -> Outcome {
    let ev = EpollEventLoop::new()?;
    let ended = Ended::default();
    let receiver = Receiver { task: job.task, incoming: Incoming::new(job), ended: ended.clone() };
    let backend = create_local(NetworkType::Tcp, NetworkConfig::default(), Box::new(receiver), &ev)?;
    let address = backend.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default())?;
    announce(&address.to_string());
    run(&ev, &ended, job)
}

struct Receiver {
    task: Task,
    incoming: Incoming,
    ended: Ended<()>,
}

impl Callbacks for Receiver {
    fn on_data(&mut self, backend: &dyn NetworkBackend, from: Endpoint, _: &EndPointAddress, message: Message<'_>) {
        let answered = match self.incoming.observe(&message) {
            Ok(Arrived::Message) if self.task == Task::Transfer => return,
            Ok(Arrived::Message) => accepted(backend.send_copy(from, &message, &[], 0)),
            Ok(Arrived::Question(answer)) => accepted(backend.send_copy(from, &answer, &[], 0)),
            Err(why) => Err(why),
        };
        if let Err(why) = answered {
            self.ended.borrow_mut().get_or_insert(Err(why));
        }
    }

    fn on_connection_closed(&mut self, _: &dyn NetworkBackend, _: Endpoint, _: &EndPointAddress, _: &[Completion], reason: ClosedReason) {
        let ended = if reason == ClosedReason::PeerClosed { Ok(()) } else { Err(reason.to_string()) };
        self.ended.borrow_mut().get_or_insert(ended);
    }
}

/// Sends, or waits for what comes back.
pub fn drive(job: &Job, address: &str) -> Outcome<Measured> {
    let ev = EpollEventLoop::new()?;
    let ended = Ended::default();
    let payload = Bytes::from(vec![0x5a; job.size - HEAD_LEN]);
    let driver = Driver { job: *job, payload, work: Work::begin(job), ended: ended.clone() };
    let backend = create_local(NetworkType::Tcp, NetworkConfig::default(), Box::new(driver), &ev)?;
    let params = ConnectionParameters { queue_bytes: QUEUE_BYTES.max(4 * job.size), ..Default::default() };
    backend.open_send_endpoint(&address.parse()?, &params)?;
    let measured = run(&ev, &ended, job)?;
    backend.shutdown(STALL_LIMIT);
    ev.run_until(&mut || backend.connections().is_empty(), STALL_LIMIT)?;
    Ok(measured)
}

struct Driver {
    job: Job,
    /// What follows the sequence number, in all messages.
    payload: Bytes,
    work: Work,
    ended: Ended<Measured>,
}

enum Work {
    /// The question is asked after the last message.
    Transfer {
        transfer: Transfer,
        asked: bool,
    },
    RoundTrips(RoundTrips),
}

impl Work {
    fn begin(job: &Job) -> Self {
        match job.task {
            Task::Transfer => Self::Transfer { transfer: Transfer::begin(job), asked: false },
            Task::RoundTrips => Self::RoundTrips(RoundTrips::begin(job)),
        }
    }
}

impl Driver {
    /// Sends what is to be sent now. In a transfer, *writable* or completions lead here again.
    fn go_on(&mut self, backend: &dyn NetworkBackend, to: Endpoint) -> Result<(), String> {
        let Self { job, payload, work, .. } = self;
        match work {
            Work::Transfer { asked: true, .. } => Ok(()),
            Work::Transfer { transfer, asked } => {
                for _ in 0..TURN_MESSAGES.min(TURN_BYTES / job.size).max(1) {
                    let Some(head) = transfer.next() else {
                        *asked = is_taken(backend.send_copy(to, &QUESTION, &[], 0))?;
                        break;
                    };
                    if !offer(backend, to, payload, &head)? {
                        break;
                    }
                    transfer.accepted();
                }
                Ok(())
            }
            Work::RoundTrips(round_trips) => match round_trips.next() {
                Some(head) if offer(backend, to, payload, &head)? => Ok(()),
                Some(_) => Err("the connection takes no message".into()),
                None => {
                    self.ended.borrow_mut().get_or_insert(Ok(round_trips.end()));
                    Ok(())
                }
            },
        }
    }

    fn arrived(&mut self, backend: &dyn NetworkBackend, from: Endpoint, message: &[u8]) -> Result<(), String> {
        match &mut self.work {
            Work::Transfer { transfer, .. } => {
                let measured = transfer.end(message)?;
                self.ended.borrow_mut().get_or_insert(Ok(measured));
                Ok(())
            }
            Work::RoundTrips(round_trips) => {
                round_trips.came_back(message)?;
                self.go_on(backend, from)
            }
        }
    }

    fn note(&self, done: Result<(), String>) {
        if let Err(why) = done {
            self.ended.borrow_mut().get_or_insert(Err(why));
        }
    }
}

impl Callbacks for Driver {
    fn on_connection_established(&mut self, backend: &dyn NetworkBackend, connection: &ConnectionInfo) {
        // Time runs from here on.
        self.work = Work::begin(&self.job);
        let done = self.go_on(backend, connection.endpoint);
        self.note(done);
    }

    fn on_connection_refused(&mut self, _: &dyn NetworkBackend, _: Endpoint, address: &EndPointAddress, reason: RefusedReason) {
        self.note(Err(format!("no connection to {address}: {reason}")));
    }

    fn on_connection_closed(&mut self, _: &dyn NetworkBackend, _: Endpoint, _: &EndPointAddress, _: &[Completion], reason: ClosedReason) {
        self.note(Err(format!("the connection ended: {reason}")));
    }

    fn on_data(&mut self, backend: &dyn NetworkBackend, from: Endpoint, _: &EndPointAddress, message: Message<'_>) {
        let done = self.arrived(backend, from, &message);
        self.note(done);
    }

    fn on_send_completed(&mut self, backend: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress, _: &[Completion]) {
        if let Work::Transfer { .. } = self.work {
            let done = self.go_on(backend, endpoint);
            self.note(done);
        }
    }

    fn on_writable(&mut self, backend: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress) {
        let done = self.go_on(backend, endpoint);
        self.note(done);
    }
}

/// Offers a message; tells whether it was taken.
#[inline]
fn offer(backend: &dyn NetworkBackend, to: Endpoint, payload: &Bytes, head: &[u8]) -> Result<bool, String> {
    is_taken(match head.len() + payload.len() {
        0..ZERO_COPY_FROM => backend.send_copy(to, payload, head, 0),
        _ => backend.send(to, payload, head, 0),
    })
}

/// Whether a message was taken; without room it is not.
#[inline]
fn is_taken(status: Result<NetioStatus, SendError>) -> Result<bool, String> {
    match status {
        Ok(NetioStatus::Ok) => Ok(true),
        Ok(NetioStatus::NoResources) => Ok(false),
        Ok(other) => Err(other.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// For messages that there has to be room for.
fn accepted(status: Result<NetioStatus, SendError>) -> Result<(), String> {
    if is_taken(status)? { Ok(()) } else { Err("the connection takes no answer".into()) }
}
