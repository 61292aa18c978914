//! The same work through netio3: one event loop per process, on the main thread.

mod echo;
mod outgoing;
mod ping;
mod recv;
mod send;
mod serve;
mod table;
mod threads;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use netio3::{
    Callbacks, ClosedReason, ConnectionParametersRecv, EndPointAddress, EpollEventLoop, EventLoop, NetworkBackend, NetworkConfig,
    NetworkType, RdmaParameters, create, create_local,
};

use crate::args::{Backend, Common, MAX_SIZE};
use crate::failure::Failure;
use crate::report::Calls;

pub use echo::echo;
pub use ping::ping;
pub use recv::recv;
pub use send::send;

/// The time for a connection to come about, and for the other side to answer.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// The time without any progress after which the other side counts as gone.
const STALL_DEADLINE: Duration = Duration::from_secs(30);
/// The least that is taken for progress, in bytes per microsecond: of a long message nothing is told until it is complete.
const LEAST_RATE: u64 = 1;
/// Longer than any run.
const FOR_EVER: Duration = Duration::from_secs(1 << 30);

/// How often it is looked for progress before there is none. A process that was stopped meanwhile looks once.
const LOOKS: u32 = 10;

/// A backend's kind and the loop that it runs on.
struct Ground {
    kind: NetworkType,
    common: Common,
    ev: EpollEventLoop,
}

impl Ground {
    fn new(common: &Common, backend: Backend) -> Result<Self, Failure> {
        let kind = backend.network().expect("baselines use no library");
        let ev = EpollEventLoop::new().map_err(|cause| Failure::connecting("cannot make an event loop", &cause))?;
        ev.set_spin(common.spin());
        Ok(Self { kind, common: common.clone(), ev })
    }

    fn backend(&self, callbacks: impl Callbacks + 'static) -> Result<Box<dyn NetworkBackend>, Failure> {
        create_local(self.kind, self.config(), Box::new(callbacks), &self.ev).map_err(|error| Failure::NoConnection(chain(&error)))
    }

    /// A backend that every thread may call.
    fn synchronized(&self, callbacks: impl Callbacks + Send + 'static) -> Result<Box<dyn NetworkBackend + Send + Sync>, Failure> {
        create(self.kind, self.config(), Box::new(callbacks), &self.ev).map_err(|error| Failure::NoConnection(chain(&error)))
    }

    fn config(&self) -> NetworkConfig {
        let rdma = RdmaParameters { provider: self.common.provider.clone(), ..Default::default() };
        NetworkConfig { max_message_len: MAX_SIZE, rdma, ..Default::default() }
    }

    /// Notes for the report through what an address is reached, or listened on.
    fn note(&self, address: SocketAddr, passive: bool) {
        #[cfg(feature = "rdma")]
        if self.kind == NetworkType::Rdma {
            crate::raw_fabric::note_provider(&self.common, address, passive);
        }
        let _ = (address, passive);
    }

    fn run_until(&self, done: &Rc<Cell<bool>>, limit: Duration) -> Result<bool, Failure> {
        self.ev.run_until(&mut || done.get(), limit).map_err(|error| Failure::NotDelivered(chain(&error)))
    }

    /// Runs a side that talks to another one in messages of `size` bytes. `Some` says that it is not done, and nothing was
    /// heard or got rid of for long: heartbeats keep a connection up, whatever became of a message.
    fn run_while_busy(&self, done: &Rc<Cell<bool>>, backend: &dyn NetworkBackend, size: usize) -> Result<Option<String>, Failure> {
        let limit = STALL_DEADLINE + Duration::from_micros(size as u64 / LEAST_RATE);
        let progress = || {
            let totals = backend.totals().snapshot();
            (totals.messages_sent, totals.messages_received, totals.closed)
        };
        let (mut before, mut idle) = (progress(), 0);
        while !self.run_until(done, limit / LOOKS)? {
            let now = progress();
            idle = if now == before { idle + 1 } else { 0 };
            before = now;
            if idle == LOOKS {
                return Ok(Some(format!("no progress for {} s", limit.as_secs())));
            }
        }
        Ok(None)
    }
}

/// Listens; gives the address that was bound.
fn listen(backend: &dyn NetworkBackend, address: &EndPointAddress) -> Result<SocketAddr, Failure> {
    let mut params = ConnectionParametersRecv::default();
    params.connection.stall_timeout = Some(STALL_DEADLINE);
    let bound = backend.open_listen_endpoint(address, &params);
    bound.map(Into::into).map_err(|error| Failure::NoConnection(chain(&error)))
}

/// Why there is no answer to the first message on a connection that has ended for this reason.
fn not_answered(address: &EndPointAddress, reason: ClosedReason, role: &str) -> String {
    match reason {
        // For what it said.
        ClosedReason::Local => format!("what listens on {address} does not answer as `netio3-bench {role}` does"),
        reason => format!("{address} hung up: {reason}; is it `netio3-bench {role}`?"),
    }
}

/// What a backend did for a run.
fn calls(backend: &dyn NetworkBackend) -> Option<Calls> {
    let totals = backend.totals().snapshot();
    Some(Calls { writes: totals.writes, signalled: totals.signalled, reads: totals.reads })
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}
