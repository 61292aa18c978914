//! The fabrics and devices that a backend uses, opened when they are first needed.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use netio3_core::{MemoryRegion, RdmaParameters, RegionId, RegisterError};
use parking_lot::Mutex;

use crate::UNSAFE_PROVIDER;
use crate::fabric::{self, Access, CompletionQueue, Desc, Domain, EventQueue, Fabric, FabricError, Hints, Info, Library};
use crate::link::{self, SharedEndpoint};
use crate::slab::{Layout, Slab, Slots};
use crate::wire::CONTROL_RECEIVES;

/// Everything of libfabric that a backend has open.
///
/// Locks are taken in this order: `nets`, the devices of a net, `regions`. The loop takes `regions`, so that nothing is pinned
/// or opened under it; under the others it may be.
pub(crate) struct Devices {
    libfabric: Arc<Library>,
    params: RdmaParameters,
    nets: Mutex<Vec<Arc<Net>>>,
    regions: Mutex<Vec<Region>>,
    /// Changes with every change of `regions`.
    pub(crate) regions_version: AtomicUsize,
    devices_opened: AtomicUsize,
    pinned: Arc<AtomicU64>,
}

/// A fabric with its event queue.
pub(crate) struct Net {
    name: String,
    pub(crate) fabric: Arc<Fabric>,
    pub(crate) events: Arc<EventQueue>,
    devices: Mutex<Vec<Arc<Device>>>,
}

/// A domain with the completion queue of its endpoints.
pub(crate) struct Device {
    pub(crate) number: usize,
    name: String,
    provider: String,
    pub(crate) net: Arc<Net>,
    pub(crate) domain: Arc<Domain>,
    queues: Mutex<Vec<Arc<Queue>>>,
    spare: Mutex<Vec<Arc<Slab>>>,
    pinned: Arc<AtomicU64>,
    /// The endpoints of this device, to be closed when the backend ends on another thread than its loop's.
    endpoints: Mutex<Vec<Weak<Mutex<Option<fabric::Endpoint>>>>>,
    /// Receive and send buffers that connections may still be given.
    left: Mutex<(usize, usize)>,
}

/// A completion queue, for as many endpoints as it has room for.
pub(crate) struct Queue {
    pub(crate) device: Arc<Device>,
    pub(crate) completions: Arc<CompletionQueue>,
    /// Completions that endpoints may still ask room for.
    room: Mutex<usize>,
}

/// Memory of the user's that is registered.
struct Region {
    id: RegionId,
    memory: MemoryRegion,
    /// By the number of the device. Who posts from it holds it, too, until the packet has left.
    registrations: Vec<(usize, Arc<Registered>)>,
}

/// Memory that a device knows.
pub(crate) struct Registered {
    // Closed before the memory goes.
    registration: fabric::MemoryRegion,
    pub(crate) memory: MemoryRegion,
}

/// A stretch of the user's memory that a device knows, for as long as it is registered.
pub(crate) struct Known {
    stretch: Stretch,
    registered: Weak<Registered>,
}

/// A stretch of memory, and what a device wants to be told of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch {
    start: usize,
    end: usize,
    desc: Desc,
}

/// Completions that a queue holds.
const COMPLETIONS: usize = 8_192;

/// Providers that carry message endpoints, the preferred first.
const PROVIDERS: [&str; 2] = ["verbs", "tcp"];

/// Ports that hardly anybody uses: below those that Linux gives away.
const UNLIKELY_PORTS: [u16; 3] = [30_011, 30_517, 31_233];

impl Devices {
    pub(crate) fn new(library: Arc<Library>, params: RdmaParameters) -> Self {
        Self {
            libfabric: library,
            params,
            nets: Mutex::default(),
            regions: Mutex::default(),
            regions_version: AtomicUsize::new(0),
            devices_opened: AtomicUsize::new(0),
            pinned: Arc::default(),
        }
    }

    /// Bytes of connections' buffers that devices have pinned.
    pub(crate) fn pinned(&self) -> u64 {
        self.pinned.load(Ordering::Relaxed)
    }

    pub(crate) fn params(&self) -> &RdmaParameters {
        &self.params
    }

    /// The way to an address, or the place of a listener.
    ///
    /// # Errors
    /// No provider reaches it; the text says what is there.
    pub(crate) fn info(&self, address: SocketAddr, passive: bool, source: Option<IpAddr>) -> io::Result<Info> {
        let hints = Hints { provider: self.params.provider.clone(), node: Some(address), passive, source };
        let mut infos = self.libfabric.infos(&hints).map_err(io::Error::from)?;
        let rank = |info: &Info| PROVIDERS.iter().position(|name| info.provider() == *name);
        // A name may stand for several providers: `^net` for all but that one.
        infos.retain(|info| info.provider() != UNSAFE_PROVIDER);
        let best = (0..infos.len()).filter(|index| rank(&infos[*index]).is_some() || self.params.provider.is_some());
        let best = best.min_by_key(|index| rank(&infos[*index]).unwrap_or(PROVIDERS.len()));
        match best {
            Some(best) => Ok(infos.swap_remove(best)),
            None => Err(no_way(address, self.params.provider.as_deref())),
        }
    }

    /// The place of a listener.
    ///
    /// # Errors
    /// As of [`Devices::info`].
    pub(crate) fn place(&self, address: SocketAddr) -> io::Result<Info> {
        if address.ip().is_unspecified() && address.port() == 0 {
            // Without a port the provider `verbs` understands one device alone, and turns away who comes to another. It
            // binds the port meanwhile, so that one in use does not do.
            for port in UNLIKELY_PORTS {
                let found = self.info(SocketAddr::new(address.ip(), port), true, None).ok();
                if let Some(mut info) = found.filter(|info| info.provider() == "verbs") {
                    info.set_src_port(0);
                    return Ok(info);
                }
            }
        }
        self.info(address, true, None)
    }

    /// The fabric of an info, opened if it is not.
    pub(crate) fn net(&self, info: &Info) -> Result<Arc<Net>, FabricError> {
        let mut nets = self.nets.lock();
        let name = info.fabric_name();
        if let Some(net) = nets.iter().find(|net| net.name == name) {
            return Ok(net.clone());
        }
        let fabric = Fabric::open(&self.libfabric, info)?;
        let events = EventQueue::open(&fabric)?;
        let net = Arc::new(Net { name, fabric, events, devices: Mutex::default() });
        nets.push(net.clone());
        Ok(net)
    }

    /// The domain of an info, opened if it is not, with all regions made known to it.
    pub(crate) fn device(&self, net: &Arc<Net>, info: &Info) -> Result<Arc<Device>, FabricError> {
        let mut devices = net.devices.lock();
        let name = info.domain_name();
        if let Some(device) = devices.iter().find(|device| device.name == name) {
            return Ok(device.clone());
        }
        let domain = Domain::open(&net.fabric, info)?;
        let device = Arc::new(Device {
            number: self.devices_opened.fetch_add(1, Ordering::Relaxed),
            name,
            provider: info.provider(),
            net: net.clone(),
            domain,
            queues: Mutex::default(),
            spare: Mutex::default(),
            pinned: self.pinned.clone(),
            endpoints: Mutex::default(),
            left: Mutex::new((self.params.shared_receives.unwrap_or(usize::MAX), self.params.shared_sends.unwrap_or(usize::MAX))),
        });
        if device.provider != "verbs" {
            tracing::warn!(
                provider = %device.provider,
                "libfabric runs over a provider that is no RDMA hardware; use netio3's own TCP backend where there is none"
            );
        }
        let wanted: Vec<_> = self.regions.lock().iter().map(|region| (region.id, region.memory.clone())).collect();
        let mut registered = Vec::with_capacity(wanted.len());
        for (id, memory) in wanted {
            registered.extend(device.register(&memory)?.map(|memory| (id, memory)));
        }
        let mut regions = self.regions.lock();
        // Those that are gone meanwhile are left over, and closed with no lock of the loop's held.
        for region in regions.iter_mut() {
            let own = registered.extract_if(.., |(id, _)| *id == region.id);
            region.registrations.extend(own.map(|(_, memory)| (device.number, Arc::new(memory))));
        }
        self.regions_version.fetch_add(1, Ordering::Release);
        drop(regions);
        devices.push(device.clone());
        Ok(device)
    }

    /// Makes memory of the user's known to all devices that are open.
    pub(crate) fn register(&self, id: RegionId, memory: &MemoryRegion) -> Result<(), RegisterError> {
        // No device is opened meanwhile that would not know of it.
        let nets = self.nets.lock();
        let devices: Vec<_> = nets.iter().map(|net| net.devices.lock()).collect();
        let mut registrations = Vec::new();
        for device in devices.iter().flat_map(|devices| devices.iter()) {
            let registered = device.register(memory).map_err(|error| cannot_register(memory.len(), error))?;
            registrations.extend(registered.map(|memory| (device.number, Arc::new(memory))));
        }
        self.regions.lock().push(Region { id, memory: memory.clone(), registrations });
        self.regions_version.fetch_add(1, Ordering::Release);
        Ok(())
    }

    pub(crate) fn deregister(&self, id: RegionId) {
        let mut regions = self.regions.lock();
        let (gone, kept): (Vec<Region>, Vec<Region>) = regions.drain(..).partition(|region| region.id == id);
        *regions = kept;
        self.regions_version.fetch_add(1, Ordering::Release);
        drop(regions);
        drop(gone);
    }

    /// Closes all endpoints, whoever has them.
    pub(crate) fn end(&self) {
        let nets = self.nets.lock().clone();
        for net in &nets {
            let devices = net.devices.lock().clone();
            for device in &devices {
                let endpoints = std::mem::take(&mut *device.endpoints.lock());
                endpoints.iter().filter_map(Weak::upgrade).for_each(|endpoint| link::end(&endpoint));
            }
        }
    }

    /// What a device knows of the user's memory.
    pub(crate) fn known(&self, device: &Device) -> Vec<Known> {
        let of_region = |region: &Region| {
            let (_, registered) = region.registrations.iter().find(|(number, _)| *number == device.number)?;
            Some(Known { stretch: registered.stretch(), registered: Arc::downgrade(registered) })
        };
        self.regions.lock().iter().filter_map(of_region).collect()
    }
}

impl Drop for Devices {
    /// Devices and queues keep what they were opened in alive, which lists them: without the lists everything is
    /// closed with its last user.
    fn drop(&mut self) {
        for net in self.nets.get_mut().drain(..) {
            for device in std::mem::take(&mut *net.devices.lock()) {
                let lists = (std::mem::take(&mut *device.queues.lock()), std::mem::take(&mut *device.spare.lock()));
                drop(lists);
            }
        }
    }
}

impl Registered {
    /// Makes memory known to a device, for sending. This may block.
    pub(crate) fn new(device: &Device, memory: MemoryRegion) -> Result<Self, FabricError> {
        // SAFETY: the memory stays mapped for as long as `memory` lives, which goes after the registration.
        #[allow(unsafe_code)]
        let registration =
            unsafe { fabric::MemoryRegion::register(&device.domain, memory.address() as *const u8, memory.len(), Access::Send) };
        Ok(Self { registration: registration?, memory })
    }

    /// What the device knows.
    pub(crate) fn stretch(&self) -> Stretch {
        let start = self.memory.address();
        Stretch { start, end: start + self.memory.len(), desc: self.registration.desc() }
    }
}

impl Stretch {
    /// What the device wants to be told of these bytes, if they lie here.
    pub(crate) fn find(&self, bytes: &[u8]) -> Option<Desc> {
        let start = bytes.as_ptr().addr();
        (self.start <= start && start + bytes.len() <= self.end).then_some(self.desc)
    }
}

impl Known {
    /// The same, with what keeps it registered, if it still is.
    pub(crate) fn find(&self, bytes: &[u8]) -> Option<(Desc, Arc<Registered>)> {
        self.stretch.find(bytes).zip(self.registered.upgrade())
    }
}

impl Device {
    /// Makes memory of the user's known, if there is need of that.
    fn register(&self, memory: &MemoryRegion) -> Result<Option<Registered>, FabricError> {
        self.domain.needs_registration().then(|| Registered::new(self, memory.clone())).transpose()
    }

    /// Memory for a connection: that of one that ended, or new.
    pub(crate) fn slab(&self, layout: Layout) -> Result<(Arc<Slab>, Slots), FabricError> {
        let mut spare = self.spare.lock();
        if let Some(fitting) = spare.iter().position(|slab| slab.layout() == layout) {
            let slab = spare.swap_remove(fitting);
            let slots = slab.cut();
            return Ok((slab, slots));
        }
        drop(spare);
        Slab::new(&self.domain, layout, &self.pinned).map(|(slab, slots)| (Arc::new(slab), slots))
    }

    /// Notes an endpoint.
    pub(crate) fn note(&self, endpoint: &SharedEndpoint) {
        let mut endpoints = self.endpoints.lock();
        if endpoints.len() == endpoints.capacity() {
            endpoints.retain(|endpoint| endpoint.strong_count() > 0);
        }
        endpoints.push(Arc::downgrade(endpoint));
    }

    /// Deals a connection its share of the buffers: at most what it wants and half of what is left.
    ///
    /// # Errors
    /// Too few are left.
    pub(crate) fn deal(&self, wanted: Layout) -> Result<Layout, FabricError> {
        let mut left = self.left.lock();
        let share = |left: usize, wanted: u16, least: u16| {
            let share = u16::try_from((left / 2).max(usize::from(least))).unwrap_or(u16::MAX).min(wanted);
            (usize::from(share) <= left).then_some(share)
        };
        let dealt = share(left.0, wanted.receives, LEAST_RECEIVES).zip(share(left.1, wanted.sends, 1));
        let Some((receives, sends)) = dealt else {
            let text = "all shared receive or send buffers of this device are dealt; raise `rdma.shared_receives` and `rdma.shared_sends`";
            return Err(FabricError::refused("fi_endpoint", NO_BUFFERS, text));
        };
        *left = (left.0 - usize::from(receives), left.1 - usize::from(sends));
        Ok(Layout { receives, sends, ..wanted })
    }

    /// Takes back what was dealt.
    pub(crate) fn take_back(&self, dealt: Layout) {
        let mut left = self.left.lock();
        *left = (left.0 + usize::from(dealt.receives), left.1 + usize::from(dealt.sends));
    }

    /// Keeps the memory of a connection that ended for the next one.
    pub(crate) fn keep(&self, slab: Arc<Slab>) {
        let mut spare = self.spare.lock();
        if spare.len() < SPARE_SLABS {
            spare.push(slab);
        }
    }

    /// A completion queue with room for so many more completions, which is set aside.
    pub(crate) fn queue(self: &Arc<Self>, completions: usize) -> Result<Arc<Queue>, FabricError> {
        let mut queues = self.queues.lock();
        if let Some(queue) = queues.iter().find(|queue| queue.reserve(completions)) {
            return Ok(queue.clone());
        }
        let size = COMPLETIONS.max(completions);
        let completion_queue = CompletionQueue::open(&self.domain, size)?;
        let queue = Arc::new(Queue { device: self.clone(), completions: completion_queue, room: Mutex::new(size - completions) });
        queues.push(queue.clone());
        Ok(queue)
    }
}

impl Queue {
    fn reserve(&self, completions: usize) -> bool {
        let mut room = self.room.lock();
        match room.checked_sub(completions) {
            Some(left) => {
                *room = left;
                true
            }
            None => false,
        }
    }

    /// Gives room for completions back.
    pub(crate) fn unreserve(&self, completions: usize) {
        *self.room.lock() += completions;
    }
}

/// Receives of a connection, at least: one for data and those for control.
pub(crate) const LEAST_RECEIVES: u16 = 1 + CONTROL_RECEIVES;
/// ENOBUFS.
const NO_BUFFERS: i32 = 105;
/// Memory of ended connections that is kept.
const SPARE_SLABS: usize = 8;

fn no_way(address: SocketAddr, provider: Option<&str>) -> io::Error {
    let which = provider.map_or_else(|| "verbs or tcp".to_owned(), |name| format!("{name:?}"));
    let text = format!("no libfabric provider ({which}) reaches {address}; `netio3-bench info --backend rdma` lists what there is");
    io::Error::new(io::ErrorKind::Unsupported, text)
}

fn cannot_register(bytes: usize, error: FabricError) -> RegisterError {
    const ENOMEM: i32 = 12;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    match limit {
        Some(limit) if error.code == ENOMEM && (bytes as u64) > limit => RegisterError::Memlock { wanted: bytes as u64, limit },
        _ => RegisterError::CannotPin { source: Arc::new(error.into()) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_leaves_out_stands_for_the_best_of_the_others() {
        let Ok(library) = Library::open() else { return println!("skipped: no libfabric") };
        let found = |provider: &str| {
            let params = RdmaParameters { provider: Some(provider.into()), ..Default::default() };
            let devices = Devices::new(library.clone(), params);
            devices.place("127.0.0.1:0".parse().expect("an address")).map(|info| info.provider())
        };
        for provider in ["^verbs", "^net", "^shm", "tcp", "TCP"] {
            assert_eq!(found(provider).expect("it is there"), "tcp", "{provider}");
        }
        // Which may be none.
        let other = found("^tcp");
        assert!(other.as_ref().map_or(true, |provider| provider != UNSAFE_PROVIDER && provider != "tcp"), "{other:?}");
    }
}
