//! Bare sockets, set up as well as a careful user would.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Token};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SetUsize;
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};

use crate::args::Common;
use crate::control::Control;
use crate::failure::{Failure, with_remedy};
use crate::ledger::Answer;
use crate::raw::frame::{Inbox, frame};

/// The time for a connection to come about.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// The time for an accepted peer to announce itself.
pub const START_DEADLINE: Duration = Duration::from_secs(2);
/// The time for the other side to answer; long enough for it to be rid of a few silent strangers before.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// The time after which the kernel gives up a peer that acknowledges nothing, or takes nothing.
const DEAD_AFTER: Duration = Duration::from_secs(10);
/// The time without any progress after which the other side counts as gone.
pub const STALL_DEADLINE: Duration = Duration::from_secs(30);

/// Listens; port 0 picks one.
pub fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    let open = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(1_024)?;
        Ok(socket)
    };
    open().map(Into::into).map_err(|cause| Failure::connecting(format_args!("cannot listen on {address}"), &cause))
}

/// Connects.
pub fn connect(address: SocketAddr) -> Result<TcpStream, Failure> {
    let failed = |cause| Failure::connecting(format_args!("cannot connect to {address}"), &cause);
    let socket = TcpStream::connect_timeout(&address, CONNECT_DEADLINE).map_err(failed)?;
    prepare(&socket).map_err(failed)?;
    Ok(socket)
}

/// Accepts a connection, whatever has become of others meanwhile.
pub fn accept_one<S>(mut accept: impl FnMut() -> io::Result<(S, SocketAddr)>) -> io::Result<S> {
    loop {
        match accept() {
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            accepted => return accepted.map(|(socket, _)| socket),
        }
    }
}

/// Sets the options that every connection has: no delay, and a dead peer is noticed.
pub fn prepare(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(STALL_DEADLINE))?;
    socket.set_write_timeout(Some(STALL_DEADLINE))?;
    socket.set_tcp_user_timeout(Some(DEAD_AFTER))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_secs(2)).with_interval(Duration::from_secs(2)).with_retries(4))
}

/// Sends one message that is not a measured one, on a blocking socket.
pub fn send_one(mut socket: &TcpStream, message: &[u8]) -> io::Result<()> {
    socket.write_all(&frame(message))
}

/// Receives one message that is not a measured one.
pub fn receive_one(socket: &mut impl Read, inbox: &mut Inbox) -> io::Result<Vec<u8>> {
    loop {
        if let Some(message) = inbox.next()? {
            return Ok(message.to_vec());
        }
        if inbox.read(socket)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Waits until the announcement made is welcome. `role`: what should listen there.
pub fn await_welcome(socket: &TcpStream, inbox: &mut Inbox, address: SocketAddr, role: &str) -> Result<(), Failure> {
    let answer = receive_first(socket, inbox, ANSWER_DEADLINE).ok();
    match answer.and_then(|answer| Control::decode(&answer)) {
        Some(Control::Welcome) => Ok(()),
        Some(Control::Refused { why }) => Err(Failure::NoConnection(format!("{address} refused: {why}"))),
        _ => Err(silent(address, role)),
    }
}

/// What listens there is something else.
pub fn silent(address: SocketAddr, role: &str) -> Failure {
    Failure::NoConnection(format!("what listens on {address} does not answer as `netio3-bench {role} --backend raw` does"))
}

/// Sends an answer; tells whether the connection goes on.
pub fn reply(socket: &mut impl Write, answer: Answer) -> io::Result<bool> {
    match answer {
        Answer::Send(message) => socket.write_all(&frame(&message)).map(|()| true),
        Answer::Refuse(message) => socket.write_all(&frame(&message)).map(|()| false),
        Answer::HangUp => Ok(false),
    }
}

/// A first message. It has a deadline of its own, as the other side may not speak our language.
pub fn receive_first(socket: &TcpStream, inbox: &mut Inbox, deadline: Duration) -> io::Result<Vec<u8>> {
    socket.set_read_timeout(Some(deadline))?;
    let answer = receive_one(&mut &*socket, inbox);
    socket.set_read_timeout(Some(STALL_DEADLINE))?;
    answer
}

/// A socket that is waited for as was asked: in the calls themselves, after polling for a while, or in epoll.
pub struct Waiting {
    socket: TcpStream,
    spin: Duration,
    epoll: Option<Epoll>,
    /// From how many bytes on the kernel tells of what came.
    low_water: usize,
}

/// The rest of a message is awaited as a whole if it has so many bytes.
const LEAST_AWAITED: usize = 16 << 10;
/// The most of it that is awaited before it is read.
const MOST_AWAITED: usize = 512 << 10;

#[derive(Clone, Copy)]
struct LowWater;

nix::setsockopt_impl!(LowWater, libc::SOL_SOCKET, libc::SO_RCVLOWAT, usize, SetUsize);

/// Waits for what can be read, edge-triggered.
struct Epoll {
    poll: mio::Poll,
    events: mio::Events,
    /// The next byte, or the end, will be told.
    is_drained: bool,
    /// The end was told.
    is_over: bool,
}

impl Waiting {
    /// Makes the socket nonblocking if its calls are not to wait.
    pub fn new(socket: TcpStream, common: &Common) -> io::Result<Self> {
        socket.set_nonblocking(common.spin > 0 || common.epoll)?;
        let epoll = common.epoll.then(|| Epoll::new(&socket)).transpose()?;
        Ok(Self { socket, spin: common.spin(), epoll, low_water: 1 })
    }

    /// Before a read, of a message that has begun and needs so many bytes: has the kernel tell of them when much is here, not
    /// of each segment.
    pub fn await_rest(&mut self, missing: usize) -> io::Result<()> {
        let awaited = if missing < LEAST_AWAITED || !self.spin.is_zero() { 1 } else { missing.min(MOST_AWAITED) };
        if awaited != self.low_water {
            setsockopt(&self.socket, LowWater, &awaited)?;
            self.low_water = awaited;
        }
        // A read that waits would copy what is here before, and then await as much again.
        if awaited > 1 && self.epoll.is_none() { wait(&self.socket, PollFlags::POLLIN) } else { Ok(()) }
    }

    fn until_done(&self, events: PollFlags, mut job: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        let calls_wait = self.spin.is_zero() && self.epoll.is_none();
        let mut since = None;
        loop {
            match job() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !calls_wait => {
                    if since.get_or_insert_with(Instant::now).elapsed() >= self.spin {
                        wait(&self.socket, events)?;
                        since = None;
                    }
                }
                result => return result,
            }
        }
    }
}

impl Read for Waiting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(epoll) = &mut self.epoll else { return self.until_done(PollFlags::POLLIN, || (&self.socket).read(buffer)) };
        loop {
            epoll.wait()?;
            match (&self.socket).read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => epoll.is_drained = true,
                read => {
                    let n = read?;
                    epoll.is_drained = n < buffer.len();
                    return Ok(n);
                }
            }
        }
    }
}

impl Write for Waiting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.until_done(PollFlags::POLLOUT, || (&self.socket).write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Epoll {
    fn new(socket: &TcpStream) -> io::Result<Self> {
        let poll = mio::Poll::new()?;
        poll.registry().register(&mut SourceFd(&socket.as_raw_fd()), Token(0), Interest::READABLE)?;
        Ok(Self { poll, events: mio::Events::with_capacity(16), is_drained: true, is_over: false })
    }

    /// Waits unless the last read has left something.
    fn wait(&mut self) -> io::Result<()> {
        if !self.is_drained || self.is_over {
            return Ok(());
        }
        poll_all(&mut self.poll, &mut self.events, Some(STALL_DEADLINE))?;
        if self.events.is_empty() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.is_over = self.events.iter().any(mio::event::Event::is_read_closed);
        Ok(())
    }
}

/// Sleeps until the socket is ready for one of the events.
pub fn wait(socket: &TcpStream, events: PollFlags) -> io::Result<()> {
    wait_for(socket, events, STALL_DEADLINE)
}

/// The same for so long.
pub fn wait_for(socket: &impl AsFd, events: PollFlags, limit: Duration) -> io::Result<()> {
    let timeout = PollTimeout::try_from(limit).expect("deadlines are within poll's range");
    match poll(&mut [PollFd::new(socket.as_fd(), events)], timeout) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        Err(nix::errno::Errno::EINTR) | Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Sleeps until one of many is ready, or for so long.
pub fn poll_all(poll: &mut mio::Poll, events: &mut mio::Events, timeout: Option<Duration>) -> io::Result<()> {
    loop {
        match poll.poll(events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// What an error in the middle of a run means.
pub fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut if error.raw_os_error().is_some() => "the peer took nothing for too long".into(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => format!("no progress for {} s", STALL_DEADLINE.as_secs()),
        io::ErrorKind::UnexpectedEof => "the peer hung up".into(),
        io::ErrorKind::InvalidData => "what came was no frame of ours".into(),
        _ => with_remedy(error),
    }
}
