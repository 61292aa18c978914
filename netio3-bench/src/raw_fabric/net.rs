//! The fabric of a run: its queues, and waiting for them.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netio3_libfabric::fabric::{
    CmEvent, Completion, CompletionError, CompletionQueue, CqError, Direction, Domain, Endpoint, EventQueue, Fabric, FabricError, Hints,
    Info, Library, MemoryRegion, PassiveEndpoint,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::args::Common;
use crate::failure::Failure;
use crate::pattern::Content;
use crate::raw_fabric::link::Link;
use crate::raw_fabric::packet::RECEIVES;
use crate::report::set_provider;

/// The time without any progress after which the other side counts as gone.
pub const STALL_DEADLINE: Duration = Duration::from_secs(30);
/// The time for a connection to come about, and for the other side to answer.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Told in the private data of a connection, so that other programs are noticed.
pub const GREETING: &[u8] = b"netio3-bench raw-fabric 1";

/// Providers that carry message endpoints, the preferred first.
const PROVIDERS: [&str; 2] = ["verbs", "tcp"];

/// Sends on their way at most, of a connection.
pub const DEPTH: usize = 32;
/// Connections that share a completion queue, which has room for all that they can have on their way.
const LINKS_PER_QUEUE: usize = 64;
/// How often the event queue is read while completions keep coming.
const TURNS_PER_EVENT: u32 = 64;

/// Names the listener in events.
pub const LISTENER: usize = usize::MAX >> 1;

/// An opened fabric.
pub struct Net {
    fabric: Arc<Fabric>,
    events: Arc<EventQueue>,
    devices: Vec<Device>,
    queues: Vec<Arc<CompletionQueue>>,
    spin: Duration,
    idle_since: Option<Instant>,
    turns: u32,
    look_at_events: bool,
}

struct Device {
    name: String,
    domain: Arc<Domain>,
    /// Endpoints that share the last of its queues.
    used: usize,
    queue: Arc<CompletionQueue>,
    bodies: Option<Arc<MemoryRegion>>,
}

/// What waiting brought.
pub struct Batch {
    entries: [Completion; 64],
    count: usize,
    pub failed: Option<CompletionError>,
    pub event: Option<CmEvent>,
}

impl Batch {
    pub fn new() -> Self {
        Self { entries: [Completion::default(); 64], count: 0, failed: None, event: None }
    }

    /// The operations that completed.
    #[inline]
    pub fn completions(&self) -> &[Completion] {
        &self.entries[..self.count]
    }
}

/// The provider's way to an address, or a listener's place.
pub fn find(common: &Common, address: SocketAddr, passive: bool) -> Result<(Arc<Library>, Info), Failure> {
    let library = Library::open().map_err(|error| Failure::NoConnection(error.to_string()))?;
    let hints = Hints { provider: common.provider.clone(), node: Some(address), passive, source: None };
    let verb = if passive { "listen on" } else { "connect to" };
    let failed = |why: String| Failure::NoConnection(format!("cannot {verb} {address}: {why}"));
    let infos = library.infos(&hints).map_err(|error| failed(error.to_string()))?;
    let rank = |info: &Info| PROVIDERS.iter().position(|name| info.provider() == *name);
    let usable = infos.into_iter().filter(|info| common.provider.is_some() || rank(info).is_some());
    let which = common.provider.as_deref().unwrap_or("verbs or tcp");
    let info = usable.min_by_key(|info| rank(info)).ok_or_else(|| failed(format!("no libfabric provider ({which}) reaches it")))?;
    Ok((library, info))
}

impl Net {
    /// Opens the fabric of an info.
    pub fn open(common: &Common, library: &Arc<Library>, info: &Info) -> Result<Self, String> {
        let text = |error: FabricError| error.to_string();
        set_provider(info.provider());
        let fabric = Fabric::open(library, info).map_err(text)?;
        let events = EventQueue::open(&fabric).map_err(text)?;
        let (devices, queues) = Default::default();
        Ok(Self { fabric, events, devices, queues, spin: common.spin(), idle_since: None, turns: 0, look_at_events: true })
    }

    /// Listens; the address that was bound.
    pub fn listen(&self, info: &Info) -> Result<(PassiveEndpoint, SocketAddr), FabricError> {
        let listener = PassiveEndpoint::open(&self.fabric, info, LISTENER)?;
        listener.bind(&self.events)?;
        listener.listen()?;
        let address = listener.local_address()?;
        Ok((listener, address))
    }

    /// A connection's endpoint, with receives posted, which neither connects nor accepts yet.
    pub fn link(&mut self, info: &Info, index: usize, depth: impl FnOnce(usize) -> usize) -> Result<Link, String> {
        let text = |error: FabricError| error.to_string();
        let device = self.device(info)?;
        let domain = device.domain.clone();
        if device.used == LINKS_PER_QUEUE {
            device.queue = CompletionQueue::open(&domain, QUEUE_LEN).map_err(text)?;
            device.used = 0;
            let queue = device.queue.clone();
            self.queues.push(queue);
        }
        let device = self.device(info)?;
        device.used += 1;
        let mut endpoint = Endpoint::open(&domain, info, index).map_err(text)?;
        let queue = device.queue.clone();
        endpoint.bind_events(&self.events).map_err(text)?;
        endpoint.bind_completions(&queue, Direction::Transmit, true).map_err(text)?;
        endpoint.bind_completions(&queue, Direction::Receive, false).map_err(text)?;
        endpoint.enable().map_err(text)?;
        Link::new(endpoint, &domain, index, depth(info.tx_size().min(DEPTH)))
    }

    fn device(&mut self, info: &Info) -> Result<&mut Device, String> {
        let name = info.domain_name();
        if let Some(known) = self.devices.iter().position(|device| device.name == name) {
            return Ok(&mut self.devices[known]);
        }
        let text = |error: FabricError| error.to_string();
        let domain = Domain::open(&self.fabric, info).map_err(text)?;
        let queue = CompletionQueue::open(&domain, QUEUE_LEN).map_err(text)?;
        self.queues.push(queue.clone());
        self.devices.push(Device { name, domain, used: 0, queue, bodies: None });
        Ok(self.devices.last_mut().expect("it was pushed just now"))
    }

    /// Makes the memory of messages known to the device of an info, if that needs it.
    #[allow(unsafe_code)]
    pub fn register(&mut self, info: &Info, content: &Content) -> Result<Option<Arc<MemoryRegion>>, String> {
        let device = self.device(info)?;
        if device.domain.needs_registration() && device.bodies.is_none() {
            let memory = content.memory();
            // SAFETY: the memory is never freed.
            let region =
                unsafe { MemoryRegion::register(&device.domain, memory.as_ptr(), memory.len(), netio3_libfabric::fabric::Access::Send) };
            device.bodies = Some(Arc::new(region.map_err(|error| error.to_string())?));
        }
        Ok(device.bodies.clone())
    }

    /// Fills the batch with what comes next. Gives up after `patience`, with `false`; without waiting if `busy`.
    #[inline]
    pub fn next(&mut self, batch: &mut Batch, busy: bool, patience: Option<Duration>) -> Result<bool, String> {
        batch.count = 0;
        loop {
            self.turns = self.turns.wrapping_add(1);
            if self.look_at_events || self.turns.is_multiple_of(TURNS_PER_EVENT) {
                batch.event = self.events.read().map_err(|error| error.to_string())?;
                self.look_at_events = batch.event.is_some();
            }
            for queue in &self.queues {
                match queue.read(&mut batch.entries[batch.count..]) {
                    Ok(count) => batch.count += count,
                    Err(CqError::Operation(error)) => {
                        batch.failed = Some(error);
                        break;
                    }
                    Err(CqError::Queue(error)) => return Err(error.to_string()),
                }
                if batch.count == batch.entries.len() {
                    break;
                }
            }
            if batch.count > 0 || batch.event.is_some() || batch.failed.is_some() {
                self.idle_since = None;
                return Ok(true);
            }
            if busy {
                return Ok(true);
            }
            if !self.spin.is_zero() && self.idle_since.get_or_insert_with(Instant::now).elapsed() < self.spin {
                continue;
            }
            self.idle_since = None;
            if !self.sleep(patience)? {
                return Ok(false);
            }
        }
    }

    /// Sleeps until a queue has something; `false` if none had.
    fn sleep(&mut self, patience: Option<Duration>) -> Result<bool, String> {
        for may_sleep in std::iter::once(self.events.trywait()).chain(self.queues.iter().map(|queue| queue.trywait())) {
            if !may_sleep.map_err(|error| error.to_string())? {
                self.look_at_events = true;
                return Ok(true);
            }
        }
        let all = std::iter::once(self.events.as_fd()).chain(self.queues.iter().map(|queue| queue.as_fd()));
        let mut descriptors: Vec<PollFd<'_>> = all.map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN)).collect();
        let timeout = patience.map_or(PollTimeout::NONE, |time| PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX));
        let outcome = poll(&mut descriptors, timeout);
        self.look_at_events = descriptors[0].any().unwrap_or(true);
        match outcome {
            Ok(0) => {
                self.look_at_events = true;
                Ok(false)
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(true),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Completions that a queue holds: all that its connections can have on their way.
const QUEUE_LEN: usize = LINKS_PER_QUEUE * (RECEIVES + DEPTH);

/// Whether private data are those of this program; providers may add zeros.
pub fn is_ours(data: &[u8]) -> bool {
    data.starts_with(GREETING)
}

/// What the failure of an operation means.
pub fn explain(error: &CompletionError) -> String {
    use libfabric_sys::FI_ECANCELED;
    if error.error.code == FI_ECANCELED { "the peer hung up".into() } else { error.to_string() }
}
