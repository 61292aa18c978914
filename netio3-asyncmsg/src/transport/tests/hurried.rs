//! What another thread does while the loop carries out what was left for it.

use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use netio3_core::{
    ConnectionParametersRecv, EndPointAddress, Endpoint, EventLoop, Handlers, NetworkBackend, NetworkConfig, SourceId, engine,
};
use netio3_evloop::EpollEventLoop;

use crate::net::SystemOpener;
use crate::transport::*;

/// The system's network, on which something happens while a listener is closed.
struct Hurried;

type Happens = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

struct HurriedOpener(Happens);

struct HurriedListener(TcpListener, Happens);

impl Net for Hurried {
    type Stream = TcpStream;
    type Listener = HurriedListener;
    type Opener = HurriedOpener;
}

impl Opener for HurriedOpener {
    type Dialing = Dialing<TcpStream>;
    type Listening = HurriedListener;

    fn dial(&self, address: &EndPointAddress, params: &ConnectionParameters) -> io::Result<Self::Dialing> {
        SystemOpener.dial(address, params)
    }

    fn listen(&self, address: &EndPointAddress, params: &ConnectionParametersRecv) -> io::Result<(HurriedListener, EndPointAddress)> {
        let (listener, bound) = SystemOpener.listen(address, params)?;
        Ok((HurriedListener(listener, self.0.clone()), bound))
    }
}

impl Listen for HurriedListener {
    type Stream = TcpStream;

    fn accept(&self, params: &ConnectionParameters) -> io::Result<(TcpStream, EndPointAddress)> {
        Listen::accept(&self.0, params)
    }

    fn watch(&self, ev: &dyn EventLoop, source: SourceId, token: usize) -> io::Result<WatchId> {
        Listen::watch(&self.0, ev, source, token)
    }

    fn unwatch(&self, ev: &dyn EventLoop, watch: WatchId) {
        Listen::unwatch(&self.0, ev, watch);
        let happens = self.1.lock().expect("nobody panicked").take();
        happens.into_iter().for_each(|happens| happens());
    }
}

/// The loop learns of the pause before it has taken the connection on.
#[test]
fn a_connection_that_was_paused_at_once_by_another_thread_is_paused() {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    // It sends as soon as it can.
    let server = Handlers::new().on_connection_established(|backend, connection| {
        backend.send_copy(connection.endpoint, b"early", b"", 1).expect("it is there").to_string();
    });
    let server = crate::create_local(NetworkConfig::default(), Box::new(server), &ev).expect("the configuration is valid");
    let address =
        server.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default()).expect("a port is left");

    let (paused, arrived): (Arc<Mutex<Option<Endpoint>>>, Arc<Mutex<usize>>) = Default::default();
    let count = arrived.clone();
    let callbacks = Handlers::new().on_data(move |_, _, _, _| *count.lock().expect("nobody panicked") += 1);
    let happens = Happens::default();
    let opener = HurriedOpener(happens.clone());
    let client = engine::create(Tcp::<Hurried>::new(), opener, NetworkConfig::default(), Box::new(callbacks), &ev);
    let client: Arc<dyn NetworkBackend + Send + Sync> = client.expect("the configuration is valid").into();
    let listener =
        client.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default()).expect("a port is left");
    ev.run_for(Duration::from_millis(10)).expect("the loop can wait");

    // While the loop closes the listener, a thread connects and pauses.
    let (other, note) = (client.clone(), paused.clone());
    let connect = move || {
        let connect = move || {
            let endpoint = other.connect(&address, &ConnectionParameters::default()).expect("it is started");
            other.pause(endpoint).expect("it is there");
            note.lock().expect("nobody panicked").replace(endpoint);
        };
        thread::spawn(connect).join().expect("it does not panic");
    };
    happens.lock().expect("nobody panicked").replace(Box::new(connect));
    let other = client.clone();
    thread::spawn(move || other.close_listen_endpoint(&listener).expect("it listens")).join().expect("it does not panic");
    let has_sent = || server.totals().messages_sent.get() == 1;
    assert!(ev.run_until(&mut || has_sent(), Duration::from_secs(30)).expect("the loop can wait"));
    ev.run_for(Duration::from_millis(100)).expect("the loop can wait");
    let endpoint = paused.lock().expect("nobody panicked").expect("it was connected");
    assert_eq!(*arrived.lock().expect("nobody panicked"), 0, "it is paused");
    client.resume(endpoint).expect("it is there");
    let has_come = || *arrived.lock().expect("nobody panicked") == 1;
    assert!(ev.run_until(&mut || has_come(), Duration::from_secs(30)).expect("the loop can wait"));
}
