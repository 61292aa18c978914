//! nng: PAIR for everything. Its threads, two for each processor of the machine and one that polls, share the one
//! processor with the main thread. Nothing is dropped: with the buffers full a send waits.

use nng::options::{Options, RecvBufferSize, RecvMaxSize, RecvTimeout, SendBufferSize, SendTimeout, transport::tcp::BoundPort};
use nng::{Error, Listener, Message, Protocol, Socket};

use super::STALL_LIMIT;
use crate::Outcome;
use crate::job::{Arrived, HEAD_LEN, Incoming, Job, Measured, QUESTION, RoundTrips, Task, Transfer};
use crate::process::announce;

/// The messages in each buffer: 4,096, and from 4 KiB on what is 16 MiB together.
fn buffered(size: usize) -> i32 {
    ((16 << 20) / size).clamp(4, 4_096) as i32
}

/// A socket that waits for a bounded time.
fn socket(job: &Job) -> Outcome<Socket> {
    let socket = Socket::new(Protocol::Pair0)?;
    socket.set_opt::<SendBufferSize>(buffered(job.size))?;
    socket.set_opt::<RecvBufferSize>(buffered(job.size))?;
    // Any length.
    socket.set_opt::<RecvMaxSize>(0)?;
    socket.set_opt::<SendTimeout>(Some(STALL_LIMIT))?;
    socket.set_opt::<RecvTimeout>(Some(STALL_LIMIT))?;
    Ok(socket)
}

fn send(socket: &Socket, message: impl Into<Message>) -> Outcome {
    socket.send(message).map_err(|(_, error)| stalled(error).into())
}

fn receive(socket: &Socket) -> Outcome<Message> {
    Ok(socket.recv().map_err(stalled)?)
}

/// Receives, or sends back.
pub fn serve(job: &Job) -> Outcome {
    let socket = socket(job)?;
    let listener = Listener::new(&socket, "tcp://127.0.0.1:0").map_err(|error| format!("cannot listen: {error}"))?;
    announce(&format!("tcp://127.0.0.1:{}", listener.get_opt::<BoundPort>()?));
    let mut incoming = Incoming::new(job);
    loop {
        let message = receive(&socket)?;
        match incoming.observe(&message)? {
            Arrived::Question(answer) => send(&socket, answer.as_slice())?,
            Arrived::Message if job.task == Task::RoundTrips => send(&socket, message)?,
            Arrived::Message => {}
        }
    }
}

/// Sends, or waits for what comes back.
pub fn drive(job: &Job, address: &str) -> Outcome<Measured> {
    let socket = socket(job)?;
    socket.dial(address).map_err(|error| format!("cannot connect to {address}: {error}"))?;
    let mut message = vec![0x5a; job.size];
    if job.task == Task::RoundTrips {
        let mut round_trips = RoundTrips::begin(job);
        while let Some(head) = round_trips.next() {
            message[..HEAD_LEN].copy_from_slice(&head);
            send(&socket, message.as_slice())?;
            round_trips.came_back(&receive(&socket)?)?;
        }
        return Ok(round_trips.end());
    }
    // The answer shows that the connection is there.
    send(&socket, QUESTION.as_slice())?;
    receive(&socket)?;
    let mut transfer = Transfer::begin(job);
    while let Some(head) = transfer.next() {
        message[..HEAD_LEN].copy_from_slice(&head);
        send(&socket, message.as_slice())?;
        transfer.accepted();
    }
    send(&socket, QUESTION.as_slice())?;
    let answer = receive(&socket)?;
    Ok(transfer.end(&answer)?)
}

/// A wait that ended without anything.
fn stalled(error: Error) -> String {
    match error {
        Error::TimedOut => "the other side says nothing".into(),
        other => other.to_string(),
    }
}
