//! The part of the backend that any thread may use.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use netio3_core::engine::Opener;
use netio3_core::{ConnectionParameters, ConnectionParametersRecv, EndPointAddress, MemoryRegion, RegionId, RegisterError};

use crate::devices::Devices;
use crate::fabric::{EventQueue, PassiveEndpoint};
use crate::link::Listening;

/// Binds listeners and registers memory. Connections are only asked for here; the helper thread makes them.
pub(crate) struct FabricOpener {
    pub(crate) devices: Arc<Devices>,
    next_listener: AtomicU64,
}

/// A connection to be made when its loop adopts it.
pub(crate) struct Dialing {
    pub(crate) address: EndPointAddress,
    pub(crate) source: Option<IpAddr>,
}

impl FabricOpener {
    pub(crate) fn new(devices: Arc<Devices>) -> Self {
        Self { devices, next_listener: AtomicU64::new(0) }
    }
}

/// Names of listeners have this bit, those of connections do not.
pub(crate) const LISTENER_ID: u64 = 1 << 46;

impl Opener for FabricOpener {
    type Dialing = Dialing;
    type Listening = Listening;

    fn dial(&self, address: &EndPointAddress, params: &ConnectionParameters) -> io::Result<Dialing> {
        if let Some(local) = params.local_address.filter(|local| local.is_ipv4() != address.ip().is_ipv4()) {
            let what = format!("the local address {local} is not of the family of {address}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        if let Some(local) = params.local_address.filter(|local| !local.is_unspecified()) {
            // Whether this machine has it, which the helper thread would find out too late to say.
            UdpSocket::bind((local, 0)).map_err(|error| io::Error::new(error.kind(), format!("{local}: {error}")))?;
        }
        no_interface(params, "set `local_address`")?;
        Ok(Dialing { address: *address, source: params.local_address.filter(|local| !local.is_unspecified()) })
    }

    fn listen(&self, address: &EndPointAddress, params: &ConnectionParametersRecv) -> io::Result<(Listening, EndPointAddress)> {
        no_interface(&params.connection, "listen on an address of its")?;
        let info = self.devices.place((*address).into())?;
        let net = self.devices.net(&info)?;
        let id = LISTENER_ID | self.next_listener.fetch_add(1, Ordering::Relaxed);
        let passive = PassiveEndpoint::open(&net.fabric, &info, id as usize)?;
        let events = EventQueue::open(&net.fabric)?;
        passive.bind(&events)?;
        passive.listen()?;
        // The provider leaves out the scope of a link-local address.
        let bound = address.with_port(passive.local_address()?.port());
        Ok((Listening { id, passive: Arc::new(passive), events, net, vain: Cell::default(), waits: Cell::default() }, bound))
    }

    fn register(&self, id: RegionId, region: &MemoryRegion) -> Result<(), RegisterError> {
        self.devices.register(id, region)
    }

    fn end(&self) {
        self.devices.end();
    }

    fn deregister(&self, id: RegionId) {
        self.devices.deregister(id);
    }
}

/// A listener must not take whom the user meant to keep out, nor a connection go where he did not mean it to.
fn no_interface(params: &ConnectionParameters, remedy: &str) -> io::Result<()> {
    let Some(interface) = &params.interface else { return Ok(()) };
    let what = format!("libfabric chooses by address, not by interface ({interface}); {remedy}");
    Err(io::Error::new(io::ErrorKind::Unsupported, what))
}
