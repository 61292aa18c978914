//! The simulated kernel: sockets, listeners, and what their watchers are to be told.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use netio3_core::fault::{Clock, FaultConfig, FaultStream, PipeEnd, pipe};
use netio3_core::{EndPointAddress, Ready, WatchId};

use super::random::Random;

/// One network for all backends of a schedule.
#[derive(Clone)]
pub(super) struct Kernel(Arc<Mutex<State>>);

/// A kind of network.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    pub(super) faults: FaultConfig,
    /// Bytes a connection holds each way.
    pub(super) capacity: usize,
    /// The longest time from connecting to connected.
    pub(super) longest_connect: Duration,
    /// How often accepting fails, in percent.
    pub(super) bad_accepts: u64,
}

pub(super) struct State {
    pub(super) clock: Clock,
    random: Random,
    weather: Weather,
    /// What `weather` was at first: faults may still be under way when they have stopped.
    had_faults: bool,
    sockets: BTreeMap<u64, Socket>,
    listeners: BTreeMap<u64, Port>,
    next_id: u64,
    next_port: u16,
}

/// Who is told of a socket's or a listener's readiness.
#[derive(Clone, Copy, Debug)]
struct Watch {
    id: WatchId,
    source: u64,
    token: usize,
}

/// Readiness for one watch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    pub(super) watch: WatchId,
    pub(super) token: usize,
    pub(super) ready: Ready,
}

struct Socket {
    stream: FaultStream<PipeEnd>,
    peer: u64,
    local: EndPointAddress,
    /// Until then, connecting.
    connected_at: Instant,
    refused: bool,
    watch: Option<Watch>,
    /// Something happened that the watcher was not told yet.
    event: bool,
    /// The last read, or the last write, did less than it was asked to: an edge follows when it can do more.
    read_short: bool,
    write_short: bool,
    looked_at: Instant,
    peer_ended: bool,
    reset: bool,
    reset_on_close: bool,
    /// The bytes from which on they are told of.
    low_water: usize,
}

struct Port {
    address: EndPointAddress,
    /// Connections that wait to be accepted, from when on.
    queue: VecDeque<(Instant, u64, EndPointAddress)>,
    watch: Option<Watch>,
    event: bool,
    looked_at: Instant,
}

impl Kernel {
    pub(super) fn new(seed: u64, weather: Weather) -> Self {
        Self(Arc::new(Mutex::new(State {
            clock: Clock::new(),
            random: Random::new(seed),
            had_faults: weather.faults != FaultConfig::none(),
            weather,
            sockets: BTreeMap::new(),
            listeners: BTreeMap::new(),
            next_id: 1,
            next_port: 10_000,
        })))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A poisoned lock belongs to a schedule that failed already.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn clock(&self) -> Clock {
        self.state().clock.clone()
    }

    /// No faults from now on.
    pub(super) fn calm(&self) {
        let mut state = self.state();
        state.weather.faults = FaultConfig::none();
        state.weather.bad_accepts = 0;
        state.sockets.values_mut().for_each(|socket| socket.stream.set_config(FaultConfig::none()));
    }

    /// How many sockets and listeners there are.
    pub(super) fn open_files(&self) -> usize {
        let state = self.state();
        state.sockets.len() + state.listeners.len()
    }
}

impl State {
    pub(super) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn new_port(&mut self) -> u16 {
        self.next_port += 1;
        self.next_port
    }

    pub(super) fn listen(&mut self, address: &EndPointAddress) -> io::Result<(u64, EndPointAddress)> {
        let address = if address.port() == 0 { address.with_port(self.new_port()) } else { *address };
        if self.listeners.values().any(|port| port.address == address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let id = self.new_id();
        let looked_at = self.clock.now();
        self.listeners.insert(id, Port { address, queue: VecDeque::new(), watch: None, event: false, looked_at });
        Ok((id, address))
    }

    /// A connecting socket, and whether it was refused at once.
    pub(super) fn dial(&mut self, to: &EndPointAddress) -> (u64, bool) {
        let now = self.clock.now();
        let latency = Duration::from_nanos(self.random.up_to(self.weather.longest_connect.as_nanos() as usize) as u64);
        let connected_at = now + latency;
        self.clock.add_event(connected_at);
        let (near, far) = pipe(self.weather.capacity);
        let (near_id, far_id) = (self.new_id(), self.new_id());
        let local = EndPointAddress::localhost(self.new_port());
        let listener = self.listeners.iter().find(|(_, port)| port.address == *to).map(|(id, _)| *id);
        let mut near = self.socket(near, far_id, local, connected_at);
        near.refused = listener.is_none();
        if let Some(listener) = listener {
            let far = self.socket(far, near_id, *to, connected_at);
            self.sockets.insert(far_id, far);
            if let Some(port) = self.listeners.get_mut(&listener) {
                port.queue.push_back((connected_at, far_id, local));
                port.event = true;
            }
        }
        self.sockets.insert(near_id, near);
        (near_id, listener.is_none() && latency < self.weather.longest_connect / 2)
    }

    fn socket(&mut self, end: PipeEnd, peer: u64, local: EndPointAddress, connected_at: Instant) -> Socket {
        let stream = FaultStream::new(end, self.weather.faults, self.random.next(), &self.clock).on_reset(PipeEnd::abort);
        Socket {
            stream,
            peer,
            local,
            connected_at,
            refused: false,
            watch: None,
            event: false,
            read_short: false,
            write_short: true,
            looked_at: connected_at,
            peer_ended: false,
            reset: false,
            reset_on_close: false,
            low_water: 1,
        }
    }

    /// The next connection that waits.
    pub(super) fn accept(&mut self, listener: u64) -> io::Result<(u64, EndPointAddress)> {
        const FAILURES: [i32; 5] = [24, 103, 4, 1, 22];
        let now = self.clock.now();
        let failure = if self.random.percent(self.weather.bad_accepts) { self.random.choose(&FAILURES) } else { None };
        let port = self.listeners.get_mut(&listener).ok_or(io::ErrorKind::NotFound)?;
        match port.queue.front().copied() {
            Some((at, id, peer)) if at <= now => {
                if let Some(errno) = failure {
                    return Err(io::Error::from_raw_os_error(errno));
                }
                port.queue.pop_front();
                Ok((id, peer))
            }
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    pub(super) fn close_listener(&mut self, listener: u64) {
        let Some(port) = self.listeners.remove(&listener) else { return };
        for (_, id, _) in port.queue {
            self.abort(id);
            self.close(id);
        }
    }

    fn connected(&self, id: u64) -> io::Result<&Socket> {
        let socket = self.sockets.get(&id).ok_or(io::ErrorKind::NotFound)?;
        if socket.refused || socket.connected_at > self.clock.now() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        Ok(socket)
    }

    pub(super) fn is_connected(&self, id: u64) -> io::Result<bool> {
        let socket = self.sockets.get(&id).ok_or(io::ErrorKind::NotFound)?;
        match (socket.connected_at <= self.clock.now(), socket.refused) {
            (false, _) => Ok(false),
            (true, true) => Err(io::ErrorKind::ConnectionRefused.into()),
            (true, false) if socket.reset => Err(io::ErrorKind::ConnectionReset.into()),
            (true, false) => Ok(true),
        }
    }

    pub(super) fn local_address(&self, id: u64) -> io::Result<EndPointAddress> {
        self.connected(id).map(|socket| socket.local)
    }

    pub(super) fn read(&mut self, id: u64, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.connected(id)?;
        let now = self.clock.now();
        let Some(socket) = self.sockets.get_mut(&id) else { return Ok(0) };
        let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
        let resets = socket.stream.counts().resets;
        let before = socket.stream.inner().readable_len();
        let result = socket.stream.read_vectored(slices);
        socket.read_short = !matches!(result, Ok(n) if n == wanted);
        socket.looked_at = now;
        let (peer, was_reset) = (socket.peer, socket.stream.counts().resets > resets);
        let makes_room = socket.stream.inner().readable_len() < before;
        self.told_of_reset(id, peer, was_reset);
        if let Some(peer) = self.sockets.get_mut(&peer) {
            peer.event |= peer.write_short && makes_room;
        }
        result
    }

    pub(super) fn write(&mut self, id: u64, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.connected(id)?;
        let now = self.clock.now();
        let Some(socket) = self.sockets.get_mut(&id) else { return Ok(0) };
        let offered: usize = slices.iter().map(|slice| slice.len()).sum();
        let resets = socket.stream.counts().resets;
        let result = socket.stream.write_vectored(slices);
        socket.write_short = !matches!(result, Ok(n) if n == offered);
        socket.looked_at = now;
        let (peer, mut was_reset) = (socket.peer, socket.stream.counts().resets > resets);
        // Nobody reads there any more: the answer to the bytes is a reset.
        was_reset |= matches!(&result, Err(error) if error.kind() == io::ErrorKind::ConnectionReset);
        self.told_of_reset(id, peer, was_reset);
        if let Some(peer) = self.sockets.get_mut(&peer).filter(|_| result.is_ok()) {
            peer.event = true;
        }
        result
    }

    fn told_of_reset(&mut self, id: u64, peer: u64, was_reset: bool) {
        if was_reset {
            for id in [id, peer] {
                if let Some(socket) = self.sockets.get_mut(&id) {
                    (socket.reset, socket.event) = (true, true);
                }
            }
        }
    }

    pub(super) fn shutdown_write(&mut self, id: u64) -> io::Result<()> {
        let peer = self.connected(id)?.peer;
        if let Some(socket) = self.sockets.get_mut(&id) {
            socket.stream.inner_mut().shutdown();
        }
        self.end_for(peer);
        Ok(())
    }

    fn end_for(&mut self, peer: u64) {
        if let Some(peer) = self.sockets.get_mut(&peer) {
            (peer.peer_ended, peer.event) = (true, true);
        }
    }

    pub(super) fn reset_on_close(&mut self, id: u64) {
        if let Some(socket) = self.sockets.get_mut(&id) {
            socket.reset_on_close = true;
        }
    }

    pub(super) fn set_low_water(&mut self, id: u64, bytes: usize) {
        if let Some(socket) = self.sockets.get_mut(&id) {
            // As the system does, which cannot wait for more than it holds. What is here already may be enough.
            socket.low_water = bytes.min(self.weather.capacity / 2).max(1);
            socket.event = true;
        }
    }

    fn abort(&mut self, id: u64) {
        if let Some(socket) = self.sockets.get_mut(&id) {
            socket.stream.inner_mut().abort();
            let peer = socket.peer;
            self.told_of_reset(id, peer, true);
        }
    }

    pub(super) fn close(&mut self, id: u64) {
        let Some(socket) = self.sockets.get(&id) else { return };
        // Unread bytes that the faults still hold count as well, as far as they can be seen.
        if socket.reset_on_close || socket.stream.inner().readable_len() > 0 {
            self.abort(id);
        }
        if let Some(socket) = self.sockets.remove(&id) {
            self.end_for(socket.peer);
        }
    }

    // ----- readiness -----

    pub(super) fn watch_socket(&mut self, id: u64, source: u64, token: usize) -> WatchId {
        let watch = WatchId(self.new_id());
        if let Some(socket) = self.sockets.get_mut(&id) {
            socket.watch = Some(Watch { id: watch, source, token });
            socket.event = true;
        }
        watch
    }

    pub(super) fn watch_listener(&mut self, id: u64, source: u64, token: usize) -> WatchId {
        let watch = WatchId(self.new_id());
        if let Some(port) = self.listeners.get_mut(&id) {
            port.watch = Some(Watch { id: watch, source, token });
            port.event = true;
        }
        watch
    }

    pub(super) fn unwatch(&mut self, watch: WatchId) {
        let watches = self.sockets.values_mut().map(|socket| &mut socket.watch);
        for slot in watches.chain(self.listeners.values_mut().map(|port| &mut port.watch)) {
            slot.take_if(|known| known.id == watch);
        }
    }

    pub(super) fn is_watched(&self, watch: WatchId) -> bool {
        let watches = self.sockets.values().map(|socket| socket.watch).chain(self.listeners.values().map(|port| port.watch));
        watches.flatten().any(|known| known.id == watch)
    }

    /// Whether there is anything to tell these sources.
    pub(super) fn has_events(&mut self, sources: &[u64]) -> bool {
        let (now, had_faults) = (self.clock.now(), self.had_faults);
        let of_socket = self.sockets.values().any(|socket| {
            socket.watch.is_some_and(|watch| sources.contains(&watch.source)) && !socket.readiness(now, had_faults).is_none()
        });
        of_socket
            || self.listeners.values().any(|port| port.watch.is_some_and(|watch| sources.contains(&watch.source)) && port.is_ready(now))
    }

    /// What is to be told these sources; now and then something is kept back until the next time.
    pub(super) fn take_events(&mut self, sources: &[u64]) -> Vec<Event> {
        let (now, had_faults) = (self.clock.now(), self.had_faults);
        let mut events = Vec::new();
        for socket in self.sockets.values_mut() {
            let Some(watch) = socket.watch.filter(|watch| sources.contains(&watch.source)) else { continue };
            let ready = socket.readiness(now, had_faults);
            if ready.is_none() || self.random.percent(25) {
                continue;
            }
            socket.event = false;
            socket.looked_at = now;
            if ready.contains(Ready::READABLE) {
                socket.read_short = false;
            }
            if ready.contains(Ready::WRITABLE) {
                socket.write_short = false;
            }
            events.push(Event { watch: watch.id, token: watch.token, ready });
        }
        for port in self.listeners.values_mut() {
            let Some(watch) = port.watch.filter(|watch| sources.contains(&watch.source)) else { continue };
            if port.is_ready(now) {
                port.event = false;
                port.looked_at = now;
                events.push(Event { watch: watch.id, token: watch.token, ready: Ready::READABLE });
            }
        }
        if self.random.percent(50) {
            events.reverse();
        }
        events
    }
}

impl Socket {
    /// What an edge would tell now; nothing when there is no edge.
    fn readiness(&self, now: Instant, had_faults: bool) -> Ready {
        if self.connected_at > now {
            return Ready::NONE;
        }
        // Faults end with time, without any sign of the stream behind.
        let time_passed = now > self.looked_at;
        let fault_over = had_faults && time_passed && (self.read_short || self.write_short);
        if !(self.event || fault_over) {
            return Ready::NONE;
        }
        if self.refused || self.reset {
            return Ready::READABLE | Ready::WRITABLE | Ready::READ_CLOSED | Ready::ERROR;
        }
        let mut ready = Ready::NONE;
        if self.peer_ended {
            ready |= Ready::READABLE | Ready::READ_CLOSED;
        }
        if self.stream.inner().readable_len() >= self.low_water || (fault_over && self.read_short) {
            ready |= Ready::READABLE;
        }
        if self.write_short {
            ready |= Ready::WRITABLE;
        }
        ready
    }
}

impl Port {
    fn is_ready(&self, now: Instant) -> bool {
        // An edge for each connection that came since the last look.
        let arrived = self.queue.iter().any(|(at, ..)| *at <= now && *at > self.looked_at);
        (self.event || arrived) && self.queue.front().is_some_and(|(at, ..)| *at <= now)
    }
}
