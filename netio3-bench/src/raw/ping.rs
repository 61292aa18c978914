//! `ping` over bare sockets.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use nix::poll::PollFlags;

use crate::args::{Backend, Common, Mode, PingArgs};
use crate::begin::begin;
use crate::check::StreamCheck;
use crate::control::{Control, Tally};
use crate::failure::Failure;
use crate::pattern::Content;
use crate::plan::{Plan, dial, first_that_answers, only_with_netio3};
use crate::raw::frame::{Inbox, head};
use crate::raw::socket::{Waiting, await_welcome, connect, explain, receive_one, send_one, silent, wait};
use crate::report::{Report, RttHistogram};

/// Measures round trips.
pub fn ping(common: &Common, args: &PingArgs) -> Result<Report, Failure> {
    only_with_netio3(Backend::Raw, args)?;
    if common.epoll && (args.window > 1 || args.reconnect) {
        return Err(Failure::NoConnection("--epoll is for one message in flight on one connection: no --window, no --reconnect".into()));
    }
    let plan = Plan::of_ping(common, args, Mode::Copy)?;
    if args.reconnect {
        return reconnect(common, args, &plan);
    }
    // Before anybody waits for it.
    let mut run = Run::new(common, args, &plan);
    let (socket, address) = first_that_answers(&dial(args.connect.as_deref())?, connect)?;
    let mut inbox = Inbox::new();
    send_one(&socket, &Control::Start(plan.start(0)).encode(args.size)).map_err(|_| silent(address, "echo"))?;
    await_welcome(&socket, &mut inbox, address, "echo")?;

    let began = begin();
    let result = if run.sent_at.len() == 1 {
        run.one_at_a_time(common, &socket, &mut inbox)
    } else {
        run.many_at_a_time(common, &socket, &mut inbox)
    };
    let result = result.and_then(|()| {
        socket.set_nonblocking(false)?;
        send_one(&socket, &Control::Done { sent: run.next }.encode(args.size))?;
        receive_one(&mut &socket, &mut inbox)
    });
    let (reply, error) = match result {
        Ok(reply) => (Control::decode(&reply), None),
        Err(error) => (None, Some(error)),
    };
    let mut total = run.check.tally(Some(run.next));
    if let Some(Control::Tally(tally)) = reply {
        total.add_faults(&tally);
    }
    let mut report = Report::new("ping", Backend::Raw, &total, began.elapsed());
    report.mode = Some(Mode::Copy);
    report.size = args.size;
    report.rtt_us = run.times.summary();
    report.error = error.map(|cause| format!("{}: {} messages were not answered", explain(&cause), total.lost));
    Ok(report)
}

/// A connection for each round trip.
fn reconnect(common: &Common, args: &PingArgs, plan: &Plan) -> Result<Report, Failure> {
    let addresses = dial(args.connect.as_deref())?;
    let (mut run, mut inbox) = (Run::new(common, args, plan), Inbox::new());
    let (mut total, mut times, mut error) = (Tally::default(), RttHistogram::new(), None);
    let content = run.content.clone();
    let began = begin();
    for stream in 0..plan.connections as u16 {
        run.content = content.of_stream(stream);
        run.check = StreamCheck::new(args.size, stream, common.verify);
        (run.next, run.answered, run.count) = (0, 0, 1);
        let opened = Instant::now();
        let (socket, address) = match first_that_answers(&addresses, connect) {
            Ok(connected) => connected,
            Err(failure) if stream == 0 => return Err(failure),
            Err(failure) => {
                error = Some(failure.to_string());
                break;
            }
        };
        inbox.begin_with(&[]);
        match run.once(&socket, &mut inbox, &Control::Start(plan.start(stream.into()))) {
            Ok(tally) => total.add_faults(&tally),
            Err(_) if stream == 0 => return Err(silent(address, "echo")),
            Err(cause) => {
                error = Some(format!("{}: {} round trips were not made", explain(&cause), args.count - u64::from(stream)));
                break;
            }
        }
        drop(socket);
        times.record(opened.elapsed());
        total.add(&run.check.tally(Some(1)));
    }
    let mut report = Report::new("ping", Backend::Raw, &total, began.elapsed());
    report.mode = Some(Mode::Copy);
    report.size = args.size;
    report.connections = plan.connections;
    report.rtt_us = times.summary();
    report.error = error;
    Ok(report)
}

/// Bytes of requests written at once.
const BATCH_LEN: usize = 64 << 10;

struct Run {
    content: Content,
    check: StreamCheck,
    times: RttHistogram,
    /// When the messages in flight were sent, by sequence number modulo the window.
    sent_at: Vec<Instant>,
    /// Frames to be written.
    requests: Vec<u8>,
    next: u64,
    answered: u64,
    count: u64,
    size: usize,
}

impl Run {
    fn new(common: &Common, args: &PingArgs, plan: &Plan) -> Self {
        Self {
            content: Content::new(&plan.layout),
            check: StreamCheck::new(args.size, 0, common.verify),
            times: RttHistogram::new(),
            sent_at: vec![Instant::now(); args.window.min(args.count) as usize],
            requests: Vec::new(),
            next: 0,
            answered: 0,
            count: args.count,
            size: args.size,
        }
    }

    /// All that a connection is for, when that is one round trip: gives what the other side received.
    fn once(&mut self, mut socket: &TcpStream, inbox: &mut Inbox, start: &Control) -> io::Result<Tally> {
        send_one(socket, &start.encode(self.size))?;
        if Control::decode(&receive_one(&mut socket, inbox)?) != Some(Control::Welcome) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.round_trip(&mut socket, inbox)?;
        send_one(socket, &Control::Done { sent: 1 }.encode(self.size))?;
        match Control::decode(&receive_one(&mut socket, inbox)?) {
            Some(Control::Tally(tally)) => Ok(tally),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Appends the next message to `requests`.
    fn request(&mut self) {
        let window = self.sent_at.len() as u64;
        self.sent_at[(self.next % window) as usize] = Instant::now();
        self.requests.extend_from_slice(&head(self.size));
        let at = self.requests.len();
        self.requests.resize(at + self.content.head_len(), 0);
        self.content.write_head(self.next, &mut self.requests[at..]);
        self.content.pieces(self.next).iter().for_each(|piece| self.requests.extend_from_slice(piece));
        self.next += 1;
    }

    /// Counts the answers that have come.
    fn collect(&mut self, inbox: &mut Inbox) -> io::Result<()> {
        while let Some(message) = inbox.next()? {
            if message.len() != self.size {
                return Err(io::Error::other(self.check.count_mutilated(message.len())));
            }
            if self.answered == self.next {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.check.observe(message);
            let window = self.sent_at.len() as u64;
            self.times.record(self.sent_at[(self.answered % window) as usize].elapsed());
            self.answered += 1;
        }
        Ok(())
    }

    /// Sends the next message, and waits for its answer.
    fn round_trip(&mut self, socket: &mut (impl Read + Write), inbox: &mut Inbox) -> io::Result<()> {
        self.requests.clear();
        self.request();
        socket.write_all(&self.requests)?;
        while self.answered < self.next {
            if inbox.read(socket)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.collect(inbox)?;
        }
        Ok(())
    }

    /// One message in flight.
    fn one_at_a_time(&mut self, common: &Common, socket: &TcpStream, inbox: &mut Inbox) -> io::Result<()> {
        let mut socket = Waiting::new(socket.try_clone()?, common)?;
        while self.answered < self.count {
            self.round_trip(&mut socket, inbox)?;
        }
        Ok(())
    }

    /// Writes and reads as either is possible, so that neither side waits for the other to read.
    fn many_at_a_time(&mut self, common: &Common, mut socket: &TcpStream, inbox: &mut Inbox) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        let mut written = 0;
        let mut idle_since = None;
        while self.answered < self.count {
            if written == self.requests.len() {
                self.requests.clear();
                written = 0;
                let window = self.sent_at.len() as u64;
                while self.next < self.count && self.next - self.answered < window && self.requests.len() < BATCH_LEN {
                    self.request();
                }
            }
            let mut progress = false;
            if written < self.requests.len()
                && let Some(n) = unless_blocked(socket.write(&self.requests[written..]))?
            {
                written += n;
                progress = true;
            }
            match unless_blocked(inbox.read(&mut socket))? {
                Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(_) => {
                    self.collect(inbox)?;
                    progress = true;
                }
                None => {}
            }
            if progress {
                idle_since = None;
            } else if idle_since.get_or_insert_with(Instant::now).elapsed() >= common.spin() {
                let write = if written < self.requests.len() { PollFlags::POLLOUT } else { PollFlags::empty() };
                wait(socket, PollFlags::POLLIN | write)?;
            }
        }
        Ok(())
    }
}

fn unless_blocked(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(n) => Ok(Some(n)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}
