//! ZeroMQ: PUSH and PULL for transfers, with a second pair for the answers, and PAIR for round trips. Its one input and
//! output thread shares the processor with the main thread. Nothing is dropped: at the high-water mark a PUSH waits.

use zmq::{Context, Socket, SocketType};

use super::STALL_LIMIT;
use crate::Outcome;
use crate::job::{Arrived, HEAD_LEN, Incoming, Job, Measured, QUESTION, RoundTrips, Task, Transfer};
use crate::process::announce;

/// The high-water mark on both sides: 100,000 messages, and from 1 KiB on what is 16 MiB together.
fn high_water(size: usize) -> i32 {
    if size < 1_024 { 100_000 } else { ((16 << 20) / size).max(4) as i32 }
}

/// A socket that waits for a bounded time.
fn socket(context: &Context, kind: SocketType, job: &Job) -> Outcome<Socket> {
    let socket = context.socket(kind)?;
    socket.set_sndhwm(high_water(job.size))?;
    socket.set_rcvhwm(high_water(job.size))?;
    socket.set_sndtimeo(STALL_LIMIT.as_millis() as i32)?;
    socket.set_rcvtimeo(STALL_LIMIT.as_millis() as i32)?;
    socket.set_linger(0)?;
    Ok(socket)
}

/// A socket that listens on a port of the system's choice, and its address.
fn bound(context: &Context, kind: SocketType, job: &Job) -> Outcome<(Socket, String)> {
    let socket = socket(context, kind, job)?;
    socket.bind("tcp://127.0.0.1:*").map_err(|error| format!("cannot listen: {error}"))?;
    let address = socket.get_last_endpoint()?.map_err(|_| "the address is not text")?;
    Ok((socket, address))
}

fn connected(context: &Context, kind: SocketType, job: &Job, address: &str) -> Outcome<Socket> {
    let socket = socket(context, kind, job)?;
    socket.connect(address).map_err(|error| format!("cannot connect to {address}: {error}"))?;
    Ok(socket)
}

/// Receives, or sends back. The address has a second part for transfers, where answers come from.
pub fn serve(job: &Job) -> Outcome {
    let context = Context::new();
    let mut incoming = Incoming::new(job);
    let mut message = zmq::Message::new();
    if job.task == Task::RoundTrips {
        let (pair, address) = bound(&context, SocketType::PAIR, job)?;
        announce(&address);
        loop {
            pair.recv(&mut message, 0).map_err(stalled)?;
            incoming.observe(&message)?;
            pair.send(std::mem::replace(&mut message, zmq::Message::new()), 0).map_err(stalled)?;
        }
    }
    let (pull, address) = bound(&context, SocketType::PULL, job)?;
    let (answers, answers_address) = bound(&context, SocketType::PUSH, job)?;
    announce(&format!("{address} {answers_address}"));
    loop {
        pull.recv(&mut message, 0).map_err(stalled)?;
        if let Arrived::Question(answer) = incoming.observe(&message)? {
            answers.send(answer.as_slice(), 0).map_err(stalled)?;
        }
    }
}

/// Sends, or waits for what comes back.
pub fn drive(job: &Job, address: &str) -> Outcome<Measured> {
    let context = Context::new();
    let mut message = vec![0x5a; job.size];
    let mut back = zmq::Message::new();
    if job.task == Task::RoundTrips {
        let pair = connected(&context, SocketType::PAIR, job, address)?;
        let mut round_trips = RoundTrips::begin(job);
        while let Some(head) = round_trips.next() {
            message[..HEAD_LEN].copy_from_slice(&head);
            pair.send(&message, 0).map_err(stalled)?;
            pair.recv(&mut back, 0).map_err(stalled)?;
            round_trips.came_back(&back)?;
        }
        return Ok(round_trips.end());
    }
    let (address, answers_address) = address.split_once(' ').ok_or("the address has no second part")?;
    let push = connected(&context, SocketType::PUSH, job, address)?;
    let answers = connected(&context, SocketType::PULL, job, answers_address)?;
    // Connections come about in the background: an answer shows that both are there.
    push.send(QUESTION.as_slice(), 0).map_err(stalled)?;
    answers.recv(&mut back, 0).map_err(stalled)?;
    let mut transfer = Transfer::begin(job);
    while let Some(head) = transfer.next() {
        message[..HEAD_LEN].copy_from_slice(&head);
        push.send(&message, 0).map_err(stalled)?;
        transfer.accepted();
    }
    push.send(QUESTION.as_slice(), 0).map_err(stalled)?;
    answers.recv(&mut back, 0).map_err(stalled)?;
    Ok(transfer.end(&back)?)
}

/// A wait that ended without anything.
fn stalled(error: zmq::Error) -> String {
    match error {
        zmq::Error::EAGAIN => "the other side says nothing".into(),
        other => other.to_string(),
    }
}
