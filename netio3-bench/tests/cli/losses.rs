//! What goes wrong in the middle of a run: it ends, and says what is missing.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use netio3::{
    Callbacks, ConnectionInfo, ConnectionParameters, ConnectionParametersRecv, EndPointAddress, Endpoint, EpollEventLoop, EventLoop,
    Message, NetioStatus, NetworkBackend, NetworkConfig, NetworkType, create_local,
};

use crate::util::{backends, run, start, start_within};

/// A listener that speaks the conversation by hand: welcomes whoever connects, and does with all further messages as it
/// is told.
struct Peer {
    address: String,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Does something with a message; given how many came before it.
type Deed = fn(u64, &dyn NetworkBackend, Endpoint, &[u8]);

struct ByHand {
    deed: Deed,
    came: u64,
}

impl Callbacks for ByHand {
    fn on_data(&mut self, backend: &dyn NetworkBackend, from: Endpoint, _: &EndPointAddress, message: Message<'_>) {
        if message.starts_with(b"{\"Start") {
            return say(backend, from, b"\"Welcome\"");
        }
        (self.deed)(self.came, backend, from, &message);
        self.came += 1;
    }
}

fn say(backend: &dyn NetworkBackend, to: Endpoint, message: &[u8]) {
    let status = backend.send_copy(to, message, &[], 0);
    assert_eq!(status.expect("the connection is up"), NetioStatus::Ok);
}

impl Peer {
    fn new(deed: Deed) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (tell, told) = mpsc::channel();
        let until = over.clone();
        let thread = std::thread::spawn(move || {
            let ev = EpollEventLoop::new().expect("there is a loop");
            let callbacks = Box::new(ByHand { deed, came: 0 });
            let backend = create_local(NetworkType::Tcp, NetworkConfig::default(), callbacks, &ev).expect("there is TCP");
            let any = EndPointAddress::localhost(0);
            let bound = backend.open_listen_endpoint(&any, &ConnectionParametersRecv::default()).expect("it listens");
            tell.send(bound.to_string()).expect("somebody waits for it");
            while !until.load(Ordering::Relaxed) {
                ev.run_for(Duration::from_millis(20)).expect("the loop runs");
            }
        });
        Self { address: told.recv().expect("it tells where"), over, thread: Some(thread) }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Heartbeats keep the connections up meanwhile.
#[test]
fn a_message_that_is_lost_ends_the_run_that_waits_for_it() {
    let echo_but_one = Peer::new(|came, backend, from, message| {
        if came != 500 {
            say(backend, from, message);
        }
    });
    let no_answer = Peer::new(|_, _, _, _| {});
    // It has no count for what goes beside.
    let echo_and_count = Peer::new(|_, backend, from, message| match message {
        br#"{"Done":{"sent":100}}"# => {
            say(backend, from, br#"{"Tally":{"messages":100,"bytes":6400,"lost":0,"duplicated":0,"reordered":0,"corrupted":0}}"#)
        }
        message if message.starts_with(b"{\"Done") => {}
        message => say(backend, from, message),
    });
    let beside = start(&format!("ping --connect {} --size 64 --count 100 --beside 200 --json", echo_and_count.address));
    let ping = start(&format!("ping --connect {} --size 64 --count 1000 --json", echo_but_one.address));
    let send = start(&format!("send --connect {} --size 64 --messages 1000 --json", no_answer.address));
    let (beside, ping, send) = (beside.end(), ping.end(), send.end());
    beside.failed(1, "no progress for 30 s: the other side's count never came");
    ping.failed(1, "no progress for 30 s: ");
    send.failed(1, "no progress for 30 s: 1000 messages were not acknowledged");
    assert_eq!((&ping.json()["messages"], &send.json()["lost"]), (&500.into(), &1_000.into()));
}

#[test]
fn a_sender_too_many_is_refused_and_ends_nobody() {
    for backend in backends() {
        let mut receiver = start(&format!("recv --listen 127.0.0.1:0 --backend {backend} --json"));
        let address = receiver.address();
        let send = format!("send --connect {address} --backend {backend} --size 64 --json --messages");
        let first = start(&format!("{send} 1000 --connections 2 --held"));
        first.until_held();
        run(&format!("{send} 10")).failed(2, "refused: what listens there is `recv`, started for 1 `send` only");
        first.go_on();
        first.end().delivered();
        assert_eq!(receiver.end().delivered()["messages"], 1_000, "{backend}");
        // Bare sockets have their clients one after the other.
        if backend == "raw" {
            continue;
        }
        let mut echo = start(&format!("echo --listen 127.0.0.1:0 --backend {backend} --json"));
        let address = echo.address();
        let ping = format!("ping --connect {address} --backend {backend} --size 64 --json --count");
        let first = start(&format!("{ping} 100 --held"));
        first.until_held();
        run(&format!("{ping} 10")).failed(2, "refused: what listens there is `echo`, started for 1 `ping` only");
        first.go_on();
        first.end().delivered();
        assert_eq!(echo.end().delivered()["messages"], 100, "{backend}");
    }
}

/// Of all threads or of none: the receiver is not left with a part of them.
#[test]
fn threads_that_cannot_all_connect_do_not_send() {
    let mut receiver = start("recv --listen 127.0.0.1:0 --json");
    let send = format!("send --threads --connect {} --size 64 --connections 30 --duration 100", receiver.address());
    start_within("-n 20", &send).end().failed(2, "raise the limit of open files");
    let received = receiver.end();
    received.failed(1, "ended without a goodbye");
    assert_eq!(received.json()["messages"], 0, "{received:?}");
}

#[test]
fn threads_that_cannot_all_start_do_not_send() {
    let mut receiver = start("recv --listen 127.0.0.1:0 --json");
    // There is room for three of them.
    let limit = "-v 4000000 && export RUST_MIN_STACK=1073741824";
    let send = format!("send --threads --connect {} --size 64 --connections 10 --duration 100", receiver.address());
    start_within(limit, &send).end().failed(2, " of 10 threads: ");
}

/// Announces messages of 64 bytes.
fn announcement(purpose: &str, connections: u32) -> Vec<u8> {
    let about = format!(r#""purpose":"{purpose}","session":1,"connections":{connections},"stream":0"#);
    format!(r#"{{"Start":{{"version":1,{about},"size":64,"count":1,"mode":null,"verify":false}}}}"#).into()
}

/// Says the next of these with each answer, then closes the connection.
struct Client(std::vec::IntoIter<Vec<u8>>);

impl Client {
    fn go_on(&mut self, backend: &dyn NetworkBackend, to: Endpoint) {
        match self.0.next() {
            Some(message) => say(backend, to, &message),
            None => backend.close(to).expect("it is open"),
        }
    }
}

impl Callbacks for Client {
    fn on_connection_established(&mut self, backend: &dyn NetworkBackend, connection: &ConnectionInfo) {
        self.go_on(backend, connection.endpoint);
    }

    fn on_data(&mut self, backend: &dyn NetworkBackend, from: Endpoint, _: &EndPointAddress, _: Message<'_>) {
        self.go_on(backend, from);
    }
}

/// Says these to what listens there, one with each answer, until it has said all or the other side hung up.
fn converse(backend: &str, address: &str, messages: &[&[u8]]) {
    if backend == "raw" {
        let mut socket = TcpStream::connect(address).expect("it listens");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("it is a time");
        for message in messages {
            socket.write_all(&[&(message.len() as u32).to_le_bytes(), &b"raw0"[..], message].concat()).expect("the connection is up");
            let mut head = [0; 8];
            let Ok(()) = socket.read_exact(&mut head) else { return };
            let len = u32::from_le_bytes(*head.first_chunk().expect("it is as long")) as usize;
            socket.read_exact(&mut vec![0; len]).expect("it says all of it");
        }
        return;
    }
    let ev = EpollEventLoop::new().expect("there is a loop");
    let messages: Vec<_> = messages.iter().map(|message| message.to_vec()).collect();
    let client = Box::new(Client(messages.into_iter()));
    let backend = create_local(NetworkType::Tcp, NetworkConfig::default(), client, &ev).expect("there is TCP");
    let address = address.parse::<SocketAddr>().expect("it is an address").into();
    let _: Endpoint = backend.connect(&address, &ConnectionParameters::default()).expect("it is on its way");
    let is_over = ev.run_until(&mut || backend.totals().snapshot().closed == 1, Duration::from_secs(10));
    assert!(is_over.expect("the loop runs"));
}

#[test]
fn a_client_that_does_not_come_back_ends_the_echo() {
    let echoes = ["raw", "tcp"].map(|backend| {
        let mut echo = start(&format!("echo --listen 127.0.0.1:0 --backend {backend}"));
        converse(backend, &echo.address(), &[&announcement("RoundTrips", 2), br#"{"Done":{"sent":0}}"#]);
        echo
    });
    for echo in echoes {
        echo.end().failed(1, "1 connection that had been announced never came");
    }
}

#[test]
fn a_message_of_another_length_is_named() {
    for backend in ["raw", "tcp"] {
        for (role, purpose) in [("recv", "Stream"), ("echo", "RoundTrips")] {
            for connections in [1, 2] {
                let mut listener = start(&format!("{role} --listen 127.0.0.1:0 --backend {backend} --json"));
                converse(backend, &listener.address(), &[&announcement(purpose, connections), &[0; 63]]);
                let ended = listener.end();
                ended.failed(1, "without a goodbye: a message of 63 bytes came where 64 were announced");
                assert_eq!((&ended.json()["corrupted"], &ended.json()["lost"]), (&1.into(), &0.into()), "{ended:?}");
            }
        }
    }
    let cuts_off = Peer::new(|_, backend, from, message| say(backend, from, &message[..message.len() - 1]));
    let ping = run(&format!("ping --connect {} --size 64 --count 5 --json", cuts_off.address));
    ping.failed(1, "a message of 63 bytes came where 64 were announced");
    assert_eq!(ping.json()["corrupted"], 1, "{ping:?}");
}
