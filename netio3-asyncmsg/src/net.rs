//! The sockets below the protocol: the system's, or a simulation's.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use netio3_core::engine::Opener;
use netio3_core::{ConnectionParameters, ConnectionParametersRecv, EndPointAddress, EventLoop, Interest, SourceId, WatchId};
use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{IpBindAddressNoPort, SetUsize};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Where the sockets come from.
pub(crate) trait Net: 'static {
    type Stream: Stream;
    type Listener: Listen<Stream = Self::Stream> + Send;
    type Opener: Opener<Dialing = Dialing<Self::Stream>, Listening = Self::Listener>;
}

/// A non-blocking byte stream.
pub(crate) trait Stream: Sized + Send + 'static {
    fn read(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize>;
    fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;
    /// Whether connecting has succeeded, or an error when it failed.
    fn is_connected(&self) -> io::Result<bool>;
    fn local_address(&self) -> io::Result<EndPointAddress>;
    fn shutdown_write(&self) -> io::Result<()>;
    /// Closing is to reset the connection, whatever the system still holds.
    fn reset_on_close(&self);
    /// The system is to tell of bytes that came once so many are here, or as many as it can hold; of an end it tells at once.
    fn set_low_water(&self, bytes: usize) -> io::Result<()>;
    fn watch(&self, ev: &dyn EventLoop, source: SourceId, token: usize) -> io::Result<WatchId>;
    fn unwatch(&self, ev: &dyn EventLoop, watch: WatchId);
}

/// A non-blocking listener.
pub(crate) trait Listen: 'static {
    type Stream: Stream;
    fn accept(&self, params: &ConnectionParameters) -> io::Result<(Self::Stream, EndPointAddress)>;
    fn watch(&self, ev: &dyn EventLoop, source: SourceId, token: usize) -> io::Result<WatchId>;
    fn unwatch(&self, ev: &dyn EventLoop, watch: WatchId);
}

/// A connection that was started.
pub(crate) struct Dialing<S> {
    pub(crate) stream: S,
    /// The peer or the network refused at once; told by the loop like a later refusal.
    pub(crate) refused: Option<io::Error>,
}

/// The system's TCP sockets.
pub(crate) struct SystemNet;

/// Starts connections and listeners of the system.
pub(crate) struct SystemOpener;

impl Net for SystemNet {
    type Stream = TcpStream;
    type Listener = TcpListener;
    type Opener = SystemOpener;
}

impl Opener for SystemOpener {
    type Dialing = Dialing<TcpStream>;
    type Listening = TcpListener;

    fn dial(&self, address: &EndPointAddress, params: &ConnectionParameters) -> io::Result<Self::Dialing> {
        let socket = socket_for(address)?;
        configure(&socket, address, params)?;
        bind_device(&socket, params)?;
        if let Some(local) = params.local_address {
            if local.is_ipv4() != address.ip().is_ipv4() {
                let what = format!("the local address {local} is not of the family of {address}");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
            }
            // Else the port would be taken from all connections of that address, not only from those to this peer.
            _ = setsockopt(&socket, IpBindAddressNoPort, &true);
            socket.bind(&SocketAddr::new(local, 0).into()).map_err(|error| naming(format_args!("the local address {local}"), &error))?;
        }
        let refused = match socket.connect(&address.socket_addr().into()) {
            Ok(()) => None,
            Err(error) if error.raw_os_error() == Some(EINPROGRESS) => None,
            Err(error) if crate::refusal::is_refusal(&error) => Some(error),
            Err(error) => return Err(error),
        };
        Ok(Dialing { stream: socket.into(), refused })
    }

    fn listen(&self, address: &EndPointAddress, params: &ConnectionParametersRecv) -> io::Result<(TcpListener, EndPointAddress)> {
        let socket = socket_for(address)?;
        // So that a listener can be reopened while connections of its predecessor linger in the kernel.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(params.reuse_port)?;
        bind_device(&socket, &params.connection)?;
        // The kernel derives the window scale of accepted connections from the listener's buffer.
        if let Some(bytes) = params.connection.receive_buffer {
            socket.set_recv_buffer_size(bytes.min(LARGEST_BUFFER))?;
        }
        socket.bind(&address.socket_addr().into())?;
        socket.listen(i32::try_from(params.backlog).unwrap_or(i32::MAX))?;
        let listener = TcpListener::from(socket);
        let bound = listener.local_addr()?.into();
        Ok((listener, bound))
    }
}

/// The option of which socket2 knows nothing.
#[derive(Clone, Copy)]
struct LowWater;

nix::setsockopt_impl!(LowWater, libc::SOL_SOCKET, libc::SO_RCVLOWAT, usize, SetUsize);

/// The errno of a connection attempt that goes on.
const EINPROGRESS: i32 = 115;

fn socket_for(address: &EndPointAddress) -> io::Result<Socket> {
    let domain = Domain::for_address(address.socket_addr());
    // `Socket::new` sets close-on-exec; the type flag makes it non-blocking in the same call.
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// The size of a socket's buffer is an `int`: of more the kernel would see the lower half alone.
const LARGEST_BUFFER: usize = i32::MAX as usize;

fn bind_device(socket: &Socket, params: &ConnectionParameters) -> io::Result<()> {
    let Some(interface) = &params.interface else { return Ok(()) };
    // The kernel takes an empty name for none, and of others as much as a name can have.
    if interface.is_empty() || interface.len() >= libc::IFNAMSIZ || interface.contains('\0') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("the interface {interface:?}: no interface has such a name")));
    }
    socket.bind_device(Some(interface.as_bytes())).map_err(|error| naming(format_args!("the interface {interface:?}"), &error))
}

/// What the system has against something that the user asked for, beside the address which the error is about.
fn naming(what: fmt::Arguments<'_>, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn configure(socket: &Socket, address: &EndPointAddress, params: &ConnectionParameters) -> io::Result<()> {
    // Batching is this library's affair: the kernel is to send what it is given.
    socket.set_tcp_nodelay(true)?;
    if let Some(bytes) = params.send_buffer {
        socket.set_send_buffer_size(bytes.min(LARGEST_BUFFER))?;
    }
    if let Some(bytes) = params.receive_buffer {
        socket.set_recv_buffer_size(bytes.min(LARGEST_BUFFER))?;
    }
    match params.traffic_class {
        Some(class) if address.ip().is_ipv6() => socket.set_tclass_v6(u32::from(class)),
        Some(class) => socket.set_tos_v4(u32::from(class)),
        None => Ok(()),
    }
}

impl Stream for TcpStream {
    fn read(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut socket = self;
        match slices {
            [one] => Read::read(&mut socket, one),
            many => socket.read_vectored(many),
        }
    }

    fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut socket = self;
        match slices {
            [one] => Write::write(&mut socket, one),
            // The standard library's writes several pieces with `writev`, which raises SIGPIPE where the peer is gone: that ends
            // a program which does not ignore it, as one whose `main` is not Rust's.
            many => SockRef::from(self).send_vectored_with_flags(many, libc::MSG_NOSIGNAL),
        }
    }

    fn is_connected(&self) -> io::Result<bool> {
        if let Some(error) = self.take_error()? {
            return Err(error);
        }
        match self.peer_addr() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn local_address(&self) -> io::Result<EndPointAddress> {
        self.local_addr().map(EndPointAddress::from)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }

    fn reset_on_close(&self) {
        // Where it fails the close is merely less abrupt.
        _ = SockRef::from(self).set_linger(Some(Duration::ZERO));
    }

    fn set_low_water(&self, bytes: usize) -> io::Result<()> {
        Ok(setsockopt(self, LowWater, &bytes)?)
    }

    fn watch(&self, ev: &dyn EventLoop, source: SourceId, token: usize) -> io::Result<WatchId> {
        ev.watch(source, self.as_fd(), token, Interest::Both)
    }

    fn unwatch(&self, ev: &dyn EventLoop, watch: WatchId) {
        ev.unwatch(watch, self.as_fd());
    }
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    fn accept(&self, params: &ConnectionParameters) -> io::Result<(TcpStream, EndPointAddress)> {
        let (socket, peer) = SockRef::from(self).accept()?;
        let peer = peer.as_socket().ok_or(io::ErrorKind::InvalidInput)?.into();
        socket.set_nonblocking(true)?;
        configure(&socket, &peer, params)?;
        Ok((socket.into(), peer))
    }

    fn watch(&self, ev: &dyn EventLoop, source: SourceId, token: usize) -> io::Result<WatchId> {
        ev.watch(source, self.as_fd(), token, Interest::Readable)
    }

    fn unwatch(&self, ev: &dyn EventLoop, watch: WatchId) {
        ev.unwatch(watch, self.as_fd());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use nix::sys::signal::{SigSet, Signal};

    use super::*;

    const NOWHERE: EndPointAddress = EndPointAddress::localhost(1);

    #[test]
    fn a_buffer_larger_than_any_is_as_large_as_it_can_be() {
        let sizes = |bytes| {
            let socket = socket_for(&NOWHERE).unwrap();
            let params = ConnectionParameters { send_buffer: Some(bytes), receive_buffer: Some(bytes), ..Default::default() };
            configure(&socket, &NOWHERE, &params).unwrap();
            (socket.send_buffer_size().unwrap(), socket.recv_buffer_size().unwrap())
        };
        for bytes in [1 << 32, (1 << 32) + 5_000, usize::MAX] {
            assert_eq!(sizes(bytes), sizes(1 << 30), "{bytes}");
        }
    }

    #[test]
    fn errors_name_what_cannot_be_had() {
        let dial = |params| SystemOpener.dial(&NOWHERE, &params).err().expect("it cannot be had").to_string();
        let from = |ip: &str| ConnectionParameters { local_address: Some(ip.parse().unwrap()), ..Default::default() };
        assert!(dial(from("192.0.2.77")).contains("192.0.2.77"));
        assert!(dial(from("::1")).contains("not of the family of 127.0.0.1:1"));
        for name in ["no-such-nic", "", "lo\0x", "lo\0and-of-16-byte"] {
            let through = ConnectionParameters { interface: Some(name.into()), ..Default::default() };
            let listen = ConnectionParametersRecv { connection: through.clone(), ..Default::default() };
            let listened = SystemOpener.listen(&EndPointAddress::localhost(0), &listen).expect_err("it cannot be had").to_string();
            for error in [dial(through), listened] {
                assert!(error.contains(&format!("the interface {name:?}")), "{error}");
            }
        }
    }

    #[test]
    fn no_signal_is_raised_where_the_peer_is_gone() {
        let mut broken_pipe = SigSet::empty();
        broken_pipe.add(Signal::SIGPIPE);
        // So that it stays pending, though tests ignore it.
        broken_pipe.thread_block().expect("signals can be blocked");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is left");
        let stream = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("somebody listens");
        drop(listener.accept().expect("somebody connects"));
        for pieces in [&[IoSlice::new(b"one")][..], &[IoSlice::new(b"one"), IoSlice::new(b"two")]] {
            let began = Instant::now();
            while Stream::write(&stream, pieces).is_ok() {
                assert!(began.elapsed() < Duration::from_secs(30), "it goes on writing to nobody");
            }
            let status = std::fs::read_to_string("/proc/thread-self/status").expect("there is /proc");
            let pending = status.lines().find_map(|line| line.strip_prefix("SigPnd:")).expect("it tells of signals");
            assert_eq!(u64::from_str_radix(pending.trim(), 16), Ok(0), "{} pieces", pieces.len());
        }
    }
}
