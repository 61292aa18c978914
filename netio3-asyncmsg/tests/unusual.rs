//! What comes in an unusual order, or with unusual values.

mod util;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use netio3_asyncmsg::Frame;
use netio3_core::{
    Budget, ClosedReason, ConnectionParameters, ConnectionParametersRecv, EndPointAddress, Endpoint, EventLoop, Handlers, NetioStatus,
    NetworkBackend, NetworkConfig,
};
use netio3_evloop::EpollEventLoop;

use crate::util::{Bare, config, hello, message, until};

/// A backend that listens, and what it was told.
struct Scene {
    ev: EpollEventLoop,
    backend: Box<dyn NetworkBackend>,
    address: EndPointAddress,
    told: Rc<Told>,
}

#[derive(Default)]
struct Told {
    established: RefCell<Vec<Endpoint>>,
    taken_over: RefCell<Vec<Bytes>>,
    writable: RefCell<Vec<Endpoint>>,
    /// Pending messages, and the reason.
    closed: Cell<Option<(usize, ClosedReason)>>,
}

impl Scene {
    fn new(config: NetworkConfig, connection: ConnectionParameters) -> Self {
        let ev = EpollEventLoop::new().expect("descriptors are left");
        let told = Rc::new(Told::default());
        let [established, data, writable, closed] = std::array::from_fn(|_| told.clone());
        let handlers = Handlers::new()
            .on_connection_established(move |_, connection| established.established.borrow_mut().push(connection.endpoint))
            .on_data(move |_, _, _, message| data.taken_over.borrow_mut().push(message.into_bytes()))
            .on_writable(move |_, endpoint, _| writable.writable.borrow_mut().push(endpoint))
            .on_connection_closed(move |_, _, _, pending, reason| closed.closed.set(Some((pending.len(), reason))));
        let backend = netio3_asyncmsg::create_local(config, Box::new(handlers), &ev).expect("the configuration is valid");
        let params = ConnectionParametersRecv { connection, ..Default::default() };
        let address = backend.open_listen_endpoint(&EndPointAddress::localhost(0), &params).expect("a port is left");
        Self { ev, backend, address, told }
    }

    /// A peer that has said hello, and its endpoint here.
    #[track_caller]
    fn greeted(&self) -> (Bare, Endpoint) {
        let mut bare = Bare::connect(self.address);
        bare.write(&hello());
        let before = self.told.established.borrow().len();
        self.until("the hello is answered", || {
            bare.read();
            bare.arrived.len() == 72 && self.told.established.borrow().len() > before
        });
        bare.arrived.clear();
        (bare, self.told.established.borrow()[before])
    }

    #[track_caller]
    fn until(&self, what: &str, condition: impl FnMut() -> bool) {
        until(&self.ev, what, condition);
    }
}

/// A message is refused for room that was granted to another connection: once that has sent what it has, and given
/// the rest back, *writable* comes, although nothing else happens.
#[test]
fn room_that_a_flush_gives_back_is_told_of() {
    const TOTAL: usize = 64 << 20;
    let params = ConnectionParameters { queue_bytes: 1 << 30, ..Default::default() };
    let scene = Scene::new(NetworkConfig { total_queue_bytes: TOTAL, ..config() }, params);
    let (_peers, [one, other]) = {
        let ((a, one), (b, other)) = (scene.greeted(), scene.greeted());
        ([a, b], [one, other])
    };
    // The sockets of both are full.
    let long = Bytes::from(vec![1; 8 << 20]);
    for to in [one, other] {
        assert_eq!(scene.backend.send(to, &long, b"", 1), Ok(NetioStatus::Ok));
    }
    let queued = || scene.backend.totals().queued_bytes.get() as usize;
    let mut before = 0;
    while before != queued() {
        before = queued();
        scene.ev.run_for(Duration::from_millis(20)).expect("the loop can wait");
    }
    for key in 0..3 {
        assert_eq!(scene.backend.send_copy(other, b"12345678", b"", key), Ok(NetioStatus::Ok));
    }
    let rest = TOTAL - before - 3 * 8 - 1_000;
    let filling = Bytes::from(vec![2; rest]);
    assert_eq!(scene.backend.send(one, &filling, b"", 2), Ok(NetioStatus::NoResources), "the other one has been granted more");
    scene.until("there is room", || *scene.told.writable.borrow() == [one]);
    assert_eq!(scene.backend.send(one, &filling, b"", 2), Ok(NetioStatus::Ok));
}

/// A connection that stands at the cap on messages taken over, is closed and is paused then reads on to the goodbye.
#[test]
fn a_capped_connection_that_is_closed_and_paused_reads_on_to_the_goodbye() {
    let params = ConnectionParameters { close_deadline: Duration::from_secs(600), ..Default::default() };
    let scene = Scene::new(NetworkConfig { owned_messages: 1, ..config() }, params);
    let (mut peer, endpoint) = scene.greeted();
    peer.write(&[message(b"abc").repeat(5), Frame::Goodbye.head().to_vec()].concat());
    scene.until("the cap is reached", || scene.told.taken_over.borrow().len() == 1);
    scene.backend.close(endpoint).expect("it is there");
    scene.ev.run_once(Some(Duration::ZERO)).expect("the loop can wait");
    scene.backend.pause(endpoint).expect("it is there");
    scene.until("the connection is closed", || scene.told.closed.get().is_some());
    assert_eq!(scene.told.closed.get(), Some((0, ClosedReason::Local)));
    assert_eq!(scene.told.taken_over.borrow().len(), 1);
}

/// What was accepted before a deadline that has passed at once is written where the socket has room.
#[test]
fn what_was_accepted_is_sent_even_if_there_is_no_time_for_closing() {
    let scene = Scene::new(config(), ConnectionParameters::default());
    let (mut peer, to) = scene.greeted();
    assert_eq!(scene.backend.send_copy(to, b"hello", b"", 1), Ok(NetioStatus::Ok));
    scene.backend.shutdown(Duration::ZERO);
    scene.until("the connection is closed", || scene.told.closed.get().is_some());
    assert_eq!(scene.told.closed.get(), Some((0, ClosedReason::Shutdown)));
    scene.until("it ends", || {
        peer.read();
        peer.end.is_some()
    });
    assert!(peer.arrived.starts_with(&message(b"hello")), "{:?}", peer.arrived);
}

/// A budget of nothing would have every turn end before its first read.
#[test]
fn a_budget_of_zero_lets_something_through() {
    for budget in [Budget { messages: 0, ..Budget::DEFAULT }, Budget { bytes: 0, ..Budget::DEFAULT }] {
        let scene = Scene::new(config(), ConnectionParameters::default());
        scene.ev.set_budget(budget);
        let (mut peer, _) = scene.greeted();
        peer.write(&message(b"abc"));
        scene.until("it arrives", || scene.told.taken_over.borrow().len() == 1);
    }
}

/// Dropping a backend drops its callbacks, even if the memory of a message panics when it is dropped.
#[test]
fn callbacks_go_with_the_backend_although_memory_panics() {
    struct Panics(Vec<u8>);
    impl AsRef<[u8]> for Panics {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for Panics {
        fn drop(&mut self) {
            panic!("the user's");
        }
    }
    let scene = Scene::new(config(), ConnectionParameters::default());
    let (_peer, to) = scene.greeted();
    let memory = Bytes::from_owner(Panics(vec![1; 8 << 20]));
    assert_eq!(scene.backend.send(to, &memory, b"", 1), Ok(NetioStatus::Ok));
    drop(memory);
    let Scene { ev, backend, told, .. } = scene;
    assert!(catch_unwind(AssertUnwindSafe(|| drop(backend))).is_err(), "the panic is the user's to see");
    assert_eq!(Rc::strong_count(&told), 1);
    ev.run_once(Some(Duration::ZERO)).expect("the loop goes on");
}
