//! `send` over bare sockets.

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::time::Instant;

use mio::{Events, Interest, Poll, Token};

use crate::args::{Backend, Common, Mode, SendArgs};
use crate::begin::begin;
use crate::control::{Control, Tally};
use crate::failure::Failure;
use crate::pattern::Content;
use crate::plan::{Plan, dial, first_that_answers};
use crate::raw::frame::Inbox;
use crate::raw::outbox::{COPY_UP_TO, Outbox, Written};
use crate::raw::socket::{STALL_DEADLINE, await_welcome, connect, explain, poll_all, receive_one, send_one};
use crate::report::Report;

/// Sends, and prints the report.
pub fn send(common: &Common, args: &SendArgs) -> Result<Report, Failure> {
    let addresses = dial(args.connect.as_deref())?;
    let mode = args.mode.unwrap_or(if args.size <= COPY_UP_TO { Mode::Copy } else { Mode::ZeroCopy });
    let plan = Plan::new(common, args, mode)?;

    // Before anybody waits for it.
    let content = Content::new(&plan.layout);
    let (first, address) = first_that_answers(&addresses, connect)?;
    let more = (1..plan.connections).map(|_| connect(address));
    let sockets = std::iter::once(Ok(first)).chain(more).collect::<Result<Vec<_>, _>>()?;
    let mut connections: Vec<(TcpStream, Inbox)> = sockets.into_iter().map(|socket| (socket, Inbox::small())).collect();
    for (stream, (socket, _)) in connections.iter().enumerate() {
        let start = Control::Start(plan.start(stream)).encode(args.size);
        send_one(socket, &start).map_err(|cause| Failure::connecting(format_args!("cannot talk to {address}"), &cause))?;
    }
    for (socket, inbox) in &mut connections {
        await_welcome(socket, inbox, address, "recv")?;
    }

    let outbox = |stream: usize| {
        let limit = plan.count(stream).unwrap_or(u64::MAX);
        Outbox::new(content.of_stream(stream as u16), limit, mode == Mode::ZeroCopy)
    };
    let mut outboxes: Vec<Outbox> = (0..connections.len()).map(outbox).collect();
    let began = begin();
    let deadline = args.amount.duration.map(|duration| began + duration);
    let (sockets, inboxes): (Vec<TcpStream>, Vec<Inbox>) = connections.into_iter().unzip();
    let result = match (&sockets[..], &mut outboxes[..]) {
        ([socket], [outbox]) => send_one_after_the_other(socket, outbox, deadline),
        (sockets, outboxes) => send_in_turns(sockets, outboxes, deadline),
    };

    let mut total = Tally::default();
    let mut error = result.err();
    if error.is_none() {
        for (socket, outbox) in sockets.iter().zip(&outboxes) {
            let done = Control::Done { sent: outbox.sent() }.encode(args.size);
            error = error.or(send_one(socket, &done).err());
        }
    }
    for ((socket, mut inbox), outbox) in sockets.iter().zip(inboxes).zip(&outboxes) {
        let reply = match &error {
            None => receive_one(&mut &*socket, &mut inbox).map(|reply| Control::decode(&reply)),
            Some(_) => Ok(None),
        };
        match reply {
            Ok(Some(Control::Tally(tally))) => total.add(&tally),
            Ok(_) => total.lost += outbox.sent(),
            Err(cause) => {
                total.lost += outbox.sent();
                error = error.or(Some(cause));
            }
        }
    }
    let mut report = Report::new("send", Backend::Raw, &total, began.elapsed());
    report.mode = Some(mode);
    report.size = args.size;
    report.connections = plan.connections;
    report.broken_by(error.as_ref().map(explain));
    Ok(report)
}

/// One connection: a blocking socket.
fn send_one_after_the_other(mut socket: &TcpStream, outbox: &mut Outbox, deadline: Option<Instant>) -> io::Result<()> {
    while !outbox.is_finished() {
        outbox.fill();
        if outbox.write(&mut socket)? == Written::Blocked {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            outbox.stop();
        }
    }
    Ok(())
}

/// Many connections: one batch after the other to each that takes it.
fn send_in_turns(sockets: &[TcpStream], outboxes: &mut [Outbox], deadline: Option<Instant>) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut streams = Vec::new();
    for (index, socket) in sockets.iter().enumerate() {
        socket.set_nonblocking(true)?;
        let mut stream = mio::net::TcpStream::from_std(socket.try_clone()?);
        poll.registry().register(&mut stream, Token(index), Interest::WRITABLE)?;
        streams.push(stream);
    }
    let mut events = Events::with_capacity(1_024);
    let mut queue: VecDeque<usize> = (0..sockets.len()).collect();
    // Whether the batch of a connection is gone, so that the next one can be filled.
    let mut empty = vec![true; sockets.len()];
    let mut finished = vec![false; sockets.len()];
    let mut left = sockets.len();
    while left > 0 {
        if queue.is_empty() {
            poll_all(&mut poll, &mut events, Some(STALL_DEADLINE))?;
            if events.is_empty() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            queue.extend(events.iter().map(|event| event.token().0).filter(|index| !finished[*index]));
        }
        let over = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        for _ in 0..queue.len() {
            let index = queue.pop_front().expect("the queue is as long as that");
            let outbox = &mut outboxes[index];
            if over {
                outbox.stop();
            }
            if empty[index] && !outbox.is_finished() {
                outbox.fill();
                empty[index] = false;
            }
            if !empty[index] {
                empty[index] = outbox.write(&mut streams[index])? == Written::All;
            }
            if empty[index] && outbox.is_finished() {
                finished[index] = true;
                left -= 1;
            } else if empty[index] {
                queue.push_back(index);
            }
        }
    }
    drop(streams);
    sockets.iter().try_for_each(|socket| socket.set_nonblocking(false))
}
