//! What a run is going to do, worked out from the arguments.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use netio3::EndPointAddress;

use crate::args::{Backend, Common, Mode, PingArgs, SendArgs};
use crate::control::{Purpose, Start, VERSION};
use crate::failure::Failure;
use crate::pattern::Layout;
use crate::report::show;

/// What a sending process is going to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How messages are handed over.
    pub layout: Layout,
    /// How many are handed over in one call.
    pub batch: usize,
    /// How many connections, idle ones included.
    pub connections: u32,
    /// How many of them send nothing; they are the last ones.
    pub idle: u32,
    /// How long, if not until a number of messages.
    pub duration: Option<Duration>,
    purpose: Purpose,
    mode: Mode,
    messages: Option<u64>,
    /// Whether every byte is checked.
    pub verify: bool,
    session: u64,
}

impl Plan {
    /// The plan of `send`.
    pub fn new(common: &Common, args: &SendArgs, mode: Mode) -> Result<Self, Failure> {
        if let Some(header) = args.header.filter(|header| *header > args.size) {
            return Err(Failure::NoConnection(format!("a header of {header} bytes does not fit in messages of {}", args.size)));
        }
        let is_bare = matches!(common.backend(), Backend::Raw | Backend::RawFabric);
        if args.threads && is_bare {
            return Err(Failure::NoConnection("--threads is for netio3's backends; the baselines send from one thread".into()));
        }
        let layout = Layout { size: args.size, header: args.header, pieces: args.iov as usize };
        if args.batch > 1 {
            check_batch(args, is_bare, mode, &layout)?;
        }
        Ok(Self {
            layout,
            batch: args.batch as usize,
            connections: args.connections + args.idle,
            idle: args.idle,
            duration: args.amount.duration,
            purpose: Purpose::Stream,
            mode,
            messages: args.amount.messages,
            verify: common.verify,
            session: session(),
        })
    }

    /// The plan of `ping`.
    ///
    /// # Errors
    /// There cannot be so many connections.
    pub fn of_ping(common: &Common, args: &PingArgs, mode: Mode) -> Result<Self, Failure> {
        let beside = u32::from(args.beside.is_some());
        if args.reconnect && args.count > u64::from(u16::MAX) {
            return Err(Failure::NoConnection(format!("--reconnect makes {} connections at most, one for each of --count", u16::MAX)));
        }
        Ok(Self {
            layout: Layout { size: args.size, header: None, pieces: 1 },
            batch: 1,
            connections: if args.reconnect { args.count as u32 } else { 1 + beside },
            // It has a plan of its own.
            idle: beside,
            duration: None,
            purpose: Purpose::RoundTrips,
            mode,
            messages: Some(args.count),
            verify: common.verify,
            session: session(),
        })
    }

    /// The same with messages sent in another mode.
    #[cfg(feature = "rdma")]
    pub fn in_mode(&self, mode: Mode) -> Self {
        Self { mode, ..self.clone() }
    }

    /// How many connections send.
    pub fn busy(&self) -> u32 {
        self.connections - self.idle
    }

    /// Whether a certain connection sends nothing.
    pub fn is_idle(&self, stream: usize) -> bool {
        stream as u64 >= u64::from(self.busy())
    }

    /// The plan of the connection beside that of the round trips: as many messages of this size as time allows.
    pub fn beside(&self, size: usize) -> Self {
        Self { layout: Layout { size, ..self.layout }, messages: None, idle: 0, ..self.clone() }
    }

    /// How many of the messages go over a certain connection, if that is known.
    pub fn count(&self, stream: usize) -> Option<u64> {
        if self.is_idle(stream) {
            return Some(0);
        }
        let connections = u64::from(self.busy());
        self.messages.map(|messages| messages / connections + u64::from((stream as u64) < messages % connections))
    }

    /// The announcement on a certain connection.
    pub fn start(&self, stream: usize) -> Start {
        Start {
            version: VERSION,
            purpose: self.purpose,
            session: self.session,
            connections: self.connections,
            stream: stream as u16,
            size: self.layout.size,
            count: self.count(stream),
            mode: Some(self.mode),
            verify: self.verify,
        }
    }
}

/// What is not handed over in batches.
fn check_batch(args: &SendArgs, is_bare: bool, mode: Mode, layout: &Layout) -> Result<(), Failure> {
    let why = match () {
        () if is_bare => "--batch is for netio3's backends; the baselines put messages together by themselves",
        () if mode != Mode::Copy => "--batch needs --mode copy: only copied messages are handed over together",
        () if args.iov > 1 => "messages of a --batch have one piece; leave --iov out",
        () if !layout.has_tag_in_header() => "the header of messages of a --batch has room for their number; leave --header out",
        () => return Ok(()),
    };
    Err(Failure::NoConnection(why.into()))
}

/// What the baselines do not do.
pub fn only_with_netio3(backend: Backend, args: &PingArgs) -> Result<(), Failure> {
    let why = match (args.beside, args.reconnect) {
        (Some(_), _) => "--beside is for netio3's backends; the baselines have no loop that connections share",
        (None, true) if backend == Backend::RawFabric => "--reconnect is for netio3's backends and bare sockets",
        (None, _) => return Ok(()),
    };
    Err(Failure::NoConnection(why.into()))
}

/// A number that no other sender has.
fn session() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    now << 22 ^ u64::from(std::process::id())
}

/// The addresses that a `--connect` means; host names are looked up.
pub fn dial(connect: Option<&str>) -> Result<Vec<SocketAddr>, Failure> {
    let text = connect.ok_or_else(|| Failure::NoConnection("--connect ADDR is missing".into()))?;
    let found = netio3::lookup(text).map_err(|error| Failure::NoConnection(format!("{error}")))?;
    let check = |address: &EndPointAddress| {
        address.check_dialable().map_err(|why| Failure::NoConnection(format!("cannot connect to {address}: {why}")))
    };
    found.iter().try_for_each(check)?;
    Ok(found.into_iter().map(SocketAddr::from).collect())
}

/// Connects to the first of several addresses that answers, which is told besides; the failure is that of the last.
pub fn first_that_answers<T>(
    addresses: &[SocketAddr],
    mut connect: impl FnMut(SocketAddr) -> Result<T, Failure>,
) -> Result<(T, SocketAddr), Failure> {
    let mut outcome = Err(Failure::NoConnection("no address to connect to".into()));
    for address in addresses {
        outcome = connect(*address).map(|connected| (connected, *address));
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// The address that a `--listen` means.
pub fn parse_listen(text: &str) -> Result<EndPointAddress, Failure> {
    let found = netio3::lookup(text).map_err(|error| Failure::NoConnection(format!("{error}")))?;
    let address = *found.first().ok_or_else(|| Failure::NoConnection(format!("{text} has no address")))?;
    address.check_listenable().map_err(|why| Failure::NoConnection(format!("cannot listen on {address}: {why}")))?;
    Ok(address)
}

/// Tells where this process listens, by an address that can be dialled.
pub fn announce(bound: SocketAddr) {
    show(&format!("listening on {}\n", dialable(bound)));
}

/// A wildcard address says nothing about where to connect to: names the address of the default route instead.
fn dialable(bound: SocketAddr) -> SocketAddr {
    if !bound.ip().is_unspecified() {
        return bound;
    }
    let v4 = bound.is_ipv4();
    let own = |target: IpAddr, any: IpAddr| {
        // Connecting a datagram socket sends nothing; it only asks for the route.
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((target, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
    };
    let ip = if v4 {
        // Addresses reserved for documentation: never a neighbour.
        own(Ipv4Addr::new(192, 0, 2, 1).into(), Ipv4Addr::UNSPECIFIED.into()).unwrap_or(Ipv4Addr::LOCALHOST.into())
    } else {
        own(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(), Ipv6Addr::UNSPECIFIED.into()).unwrap_or(Ipv6Addr::LOCALHOST.into())
    };
    SocketAddr::new(ip, bound.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_shared_out_and_none_is_lost() {
        let plan = Plan { messages: Some(10), connections: 6, idle: 2, ..example() };
        assert_eq!((0..6).map(|stream| plan.count(stream).unwrap()).collect::<Vec<_>>(), [3, 3, 2, 2, 0, 0]);
    }

    #[test]
    fn what_listens_everywhere_is_told_with_an_address() {
        let told = dialable("0.0.0.0:7".parse().unwrap());
        assert!(!told.ip().is_unspecified() && told.port() == 7);
        assert!(!dialable("[::]:7".parse().unwrap()).ip().is_unspecified());
        assert_eq!(dialable("127.0.0.1:7".parse().unwrap()).to_string(), "127.0.0.1:7");
    }

    #[test]
    fn addresses_are_checked() {
        for text in ["127.0.0.1:0", "0.0.0.0:5", "nonsense", "224.0.0.1:1"] {
            assert!(dial(Some(text)).is_err(), "{text}");
        }
        assert!(dial(None).is_err());
        assert!(parse_listen("0.0.0.0:0").is_ok());
        assert!(parse_listen("224.0.0.1:0").is_err());
    }

    fn example() -> Plan {
        Plan {
            layout: Layout { size: 1, header: None, pieces: 1 },
            batch: 1,
            connections: 1,
            idle: 0,
            duration: None,
            purpose: Purpose::Stream,
            mode: Mode::Copy,
            messages: None,
            verify: false,
            session: 1,
        }
    }
}
