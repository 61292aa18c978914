//! Streams and listeners of the simulated kernel.

use std::io::{self, IoSlice, IoSliceMut};

use netio3_core::engine::Opener;
use netio3_core::{ConnectionParameters, ConnectionParametersRecv, EndPointAddress, EventLoop, SourceId, WatchId};

use super::kernel::Kernel;
use crate::net::{Dialing, Listen, Net, Stream};

pub(super) struct SimNet;

pub(super) struct SimOpener(pub(super) Kernel);

/// A socket; closed when dropped.
pub(super) struct SimStream {
    kernel: Kernel,
    id: u64,
}

/// A listener; closed when dropped.
pub(super) struct SimListener {
    kernel: Kernel,
    id: u64,
}

impl Net for SimNet {
    type Stream = SimStream;
    type Listener = SimListener;
    type Opener = SimOpener;
}

impl Opener for SimOpener {
    type Dialing = Dialing<SimStream>;
    type Listening = SimListener;

    fn dial(&self, address: &EndPointAddress, _params: &ConnectionParameters) -> io::Result<Dialing<SimStream>> {
        let (id, refused) = self.0.state().dial(address);
        let stream = SimStream { kernel: self.0.clone(), id };
        Ok(Dialing { stream, refused: refused.then(|| io::ErrorKind::ConnectionRefused.into()) })
    }

    fn listen(&self, address: &EndPointAddress, _params: &ConnectionParametersRecv) -> io::Result<(SimListener, EndPointAddress)> {
        let (id, bound) = self.0.state().listen(address)?;
        Ok((SimListener { kernel: self.0.clone(), id }, bound))
    }
}

impl Stream for SimStream {
    fn read(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.kernel.state().read(self.id, slices)
    }

    fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.kernel.state().write(self.id, slices)
    }

    fn is_connected(&self) -> io::Result<bool> {
        self.kernel.state().is_connected(self.id)
    }

    fn local_address(&self) -> io::Result<EndPointAddress> {
        self.kernel.state().local_address(self.id)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.kernel.state().shutdown_write(self.id)
    }

    fn reset_on_close(&self) {
        self.kernel.state().reset_on_close(self.id);
    }

    fn set_low_water(&self, bytes: usize) -> io::Result<()> {
        self.kernel.state().set_low_water(self.id, bytes);
        Ok(())
    }

    fn watch(&self, _ev: &dyn EventLoop, source: SourceId, token: usize) -> io::Result<WatchId> {
        Ok(self.kernel.state().watch_socket(self.id, source.0, token))
    }

    fn unwatch(&self, _ev: &dyn EventLoop, watch: WatchId) {
        self.kernel.state().unwatch(watch);
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.kernel.state().close(self.id);
    }
}

impl Listen for SimListener {
    type Stream = SimStream;

    fn accept(&self, _params: &ConnectionParameters) -> io::Result<(SimStream, EndPointAddress)> {
        let (id, peer) = self.kernel.state().accept(self.id)?;
        Ok((SimStream { kernel: self.kernel.clone(), id }, peer))
    }

    fn watch(&self, _ev: &dyn EventLoop, source: SourceId, token: usize) -> io::Result<WatchId> {
        Ok(self.kernel.state().watch_listener(self.id, source.0, token))
    }

    fn unwatch(&self, _ev: &dyn EventLoop, watch: WatchId) {
        self.kernel.state().unwatch(watch);
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.kernel.state().close_listener(self.id);
    }
}
