//! Dropping the backend while peers are there.

use super::*;

/// Memory of the user's, which counts itself.
struct Tracked(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Tracked {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("it is there").count()
}

/// A backend that listens, one that asks, and peers made by hand of both.
struct Stage {
    ev: EpollEventLoop,
    node: Node,
    address: EndPointAddress,
    alive: Arc<AtomicUsize>,
    peers: Vec<Peer>,
}

impl Stage {
    fn send(&self, to: Endpoint, count: u64) {
        for key in 0..count {
            self.alive.fetch_add(1, Ordering::SeqCst);
            let data = Bytes::from_owner(Tracked(vec![5; 7_000], self.alive.clone()));
            assert_eq!(self.node.backend.send(to, &data, &[], key), Ok(NetioStatus::Ok));
        }
    }

    #[track_caller]
    fn until(&self, what: &str, condition: impl FnMut() -> bool) {
        until(&self.ev, &self.peers.iter().collect::<Vec<_>>(), what, condition);
    }

    #[track_caller]
    fn greeted(&mut self) -> Endpoint {
        let (peer, endpoint) = Peer::greeted(&self.ev, &self.node, self.address, &hello());
        self.peers.push(peer);
        endpoint
    }

    /// Asks a listener made by hand.
    #[track_caller]
    fn ask(&mut self) -> Endpoint {
        let (peer, address) = Peer::listen();
        self.peers.push(peer);
        self.node.backend.connect(&address, &ConnectionParameters::default()).expect("a connection is started")
    }
}

#[test]
fn a_drop_at_any_moment_leaves_nothing_behind() {
    let _alone = DESCRIPTORS.write().unwrap_or_else(PoisonError::into_inner);
    if !is_here() {
        return;
    }
    type Prepare = fn(&mut Stage);
    // Not among them: a peer whose socket is connected and whose request has not come. Provider `tcp` forgets its socket
    // when the listener closes.
    let moments: [(&str, Prepare); 16] = [
        ("nothing but a listener", |_| ()),
        ("a connection that is just asked for", |stage| _ = stage.ask()),
        ("a request that nobody reads", |stage| {
            stage.ask();
            until(&stage.ev, &[], "it is under way", || stage.ev.counters().turns.get() > 20);
        }),
        ("a request that nobody answers", |stage| {
            stage.ask();
            stage.until("it arrives", || stage.peers[0].request().is_some());
        }),
        ("a request that is just accepted", |stage| {
            stage.ask();
            stage.until("it arrives", || stage.peers[0].request().is_some());
            stage.peers[0].accept(&hello());
        }),
        ("a connection that was refused", |stage| {
            let endpoint = stage.ask();
            stage.until("it arrives", || stage.peers[0].request().is_some());
            stage.peers[0].reject(&hello_with(6, &[2]));
            stage.until("it is refused", || stage.node.refused(endpoint).is_some());
        }),
        ("a stranger that is just heard", |stage| {
            stage.peers.push(Peer::connect(stage.address, &hello()));
            stage.until("it is accepted", || stage.node.listener().accepted == 1);
        }),
        ("a stranger that talks nonsense", |stage| {
            stage.peers.push(Peer::connect(stage.address, b"nonsense"));
            stage.until("it is refused", || stage.node.listener().failed_hello == 1);
        }),
        ("an idle connection", |stage| _ = stage.greeted()),
        ("sends that were just accepted", |stage| {
            let endpoint = stage.greeted();
            stage.send(endpoint, 100);
        }),
        ("sends that were just posted", |stage| {
            let endpoint = stage.greeted();
            stage.send(endpoint, 100);
            stage.ev.run_once(Some(Duration::ZERO)).expect("the loop can wait");
        }),
        ("sends that wait for credits", |stage| {
            let endpoint = stage.greeted();
            stage.send(endpoint, 100);
            stage.until("the credits are used up", || stage.peers[0].data_packets() == 16);
        }),
        ("half a message", |stage| {
            stage.greeted();
            stage.peers[0].send(&Packet::first(100_000, &[7; 8_000]));
            stage.until("it begins", || stage.node.backend.totals().assembly_bytes.get() > 0);
        }),
        ("messages for a paused connection", |stage| {
            let endpoint = stage.greeted();
            stage.node.backend.pause(endpoint).expect("it is there");
            (0..5).for_each(|_| _ = stage.peers[0].send(&Packet::messages(&[b"held"])));
            stage.until("they arrive", || stage.node.backend.totals().reads.get() == 5);
        }),
        ("a close that waits for credits", |stage| {
            let endpoint = stage.greeted();
            stage.send(endpoint, 100);
            stage.node.backend.close(endpoint).expect("it is there");
            stage.until("the credits are used up", || stage.peers[0].data_packets() == 16);
        }),
        ("a connection that is just being ended", |stage| {
            let endpoint = stage.greeted();
            stage.send(endpoint, 100);
            stage.node.backend.abort(endpoint).expect("it is there");
        }),
    ];
    for (what, prepare) in moments {
        let mut before = 0;
        for round in 0..4 {
            until_helpers(0);
            let ev = EpollEventLoop::new().expect("descriptors are left");
            let node = util::node(&ev);
            until_helpers(1);
            let address = node.listen();
            let mut stage = Stage { ev, node, address, alive: Arc::default(), peers: Vec::new() };
            prepare(&mut stage);
            let Stage { ev, node, alive, peers, .. } = stage;
            drop(node);
            assert_eq!(alive.load(Ordering::SeqCst), 0, "{what}: memory is held");
            // The helper thread has ended, and closed what it was just opening: nothing is closed later, perhaps beside
            // the end of the process.
            drop((ev, peers));
            // The first one pays for what the process opens once.
            if round == 0 {
                before = open_descriptors();
            }
            assert_eq!(open_descriptors(), before, "{what}, round {round}");
        }
    }
}

/// Waits until there are so many threads of backends.
#[track_caller]
fn until_helpers(count: usize) {
    let end = Instant::now() + util::LIMIT;
    while util::helpers() != count {
        assert!(Instant::now() < end, "not {count} threads of backends");
        std::thread::sleep(Duration::from_millis(1));
    }
}
