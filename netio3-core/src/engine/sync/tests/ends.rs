//! However a connection ends, and whatever is sent before and after, what was accepted comes back once and in order.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::mock::MockTransport;
use super::{Scene, Told, runs};
use crate::backend::{CopiedMessage, NetworkBackend};
use crate::config::{Buffers, ConnectionParameters};
use crate::endpoint::Endpoint;
use crate::engine::sync::SyncBackend;
use crate::engine::sync::quota::Granted;
use crate::error::SendError;
use crate::event_loop::{Budget, Next};
use crate::memory::{MemoryRegion, RawSlice, RegionId};
use crate::stats::ConnectionCounters;
use crate::status::NetioStatus;

#[derive(Clone, Debug)]
enum Step {
    Send {
        how: How,
        header: usize,
        len: usize,
    },
    /// Copied ones in one call.
    Batch(Vec<(usize, usize)>),
    Turn {
        messages: usize,
        bytes: usize,
    },
    /// Nothing leaves from now on, or everything does.
    Block(bool),
    Flush,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Copied,
    Shared,
    Registered,
    InPieces,
    Raw,
    Taken,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Close,
    Abort,
    CloseElsewhere,
    AbortElsewhere,
    Shutdown,
    /// One that the mailbox does not know of.
    ByPeer,
}

fn step() -> impl Strategy<Value = Step> {
    let len = || prop_oneof![3 => 0_usize..100, 1 => 200_usize..4_000, 1 => Just(20_000_usize), 1 => Just(LONGEST)];
    let header = || prop_oneof![3 => Just(0_usize), 1 => 1_usize..30];
    let how = prop::sample::select(vec![How::Copied, How::Shared, How::Registered, How::InPieces, How::Raw, How::Taken]);
    prop_oneof![
        20 => (how, header(), len()).prop_map(|(how, header, len)| Step::Send { how, header, len }),
        2 => prop::collection::vec((header(), 0_usize..300), 0..40).prop_map(Step::Batch),
        3 => (prop_oneof![1_usize..20, Just(8_192)], prop_oneof![1_usize..5_000, Just(1 << 20)])
            .prop_map(|(messages, bytes)| Step::Turn { messages, bytes }),
        1 => any::<bool>().prop_map(Step::Block),
        1 => Just(Step::Flush),
    ]
}

fn end() -> impl Strategy<Value = End> {
    prop::sample::select(vec![End::Close, End::Abort, End::CloseElsewhere, End::AbortElsewhere, End::Shutdown, End::ByPeer])
}

fn params() -> impl Strategy<Value = ConnectionParameters> {
    let queue_messages = prop_oneof![Just(0_usize), Just(3), Just(300), Just(usize::MAX)];
    let queue_bytes = prop_oneof![Just(0_usize), Just(10_000), Just(usize::MAX)];
    (runs::params(), queue_messages, queue_bytes).prop_map(|(params, queue_messages, queue_bytes)| ConnectionParameters {
        queue_messages,
        queue_bytes,
        buffers: Some(Buffers { count: 8, size: 256 }),
        ..params
    })
}

const LONGEST: usize = 300_000;
static DATA: [u8; LONGEST] = [7; LONGEST];
/// The registered memory, in bytes.
const REGION: usize = 64 << 10;

/// A connection, what it has accepted and what was told of it.
struct Connection {
    scene: Scene,
    to: Endpoint,
    stats: Arc<ConnectionCounters>,
    region: RegionId,
    registered: Bytes,
    /// Those of accepted messages.
    keys: Rc<RefCell<Vec<u64>>>,
    /// Those of messages that came back.
    returned: Vec<u64>,
    /// How many of them the end of the connection returned.
    pending: Option<usize>,
}

impl Connection {
    fn new(params: &ConnectionParameters) -> Self {
        let (scene, to) = Scene::connected(params);
        let stats = scene.backend.stats(to).unwrap();
        let region = MemoryRegion::new(REGION).unwrap();
        let registered = region.bytes().unwrap();
        let region = scene.backend.register(&region).unwrap();
        Self { scene, to, stats, region, registered, keys: Rc::default(), returned: Vec::new(), pending: None }
    }

    /// From now on others send while the loop hands messages over, two times out of three.
    fn send_meanwhile(&self) {
        let (to, keys, calls) = (self.to, self.keys.clone(), Cell::new(0));
        let view = SyncBackend::<MockTransport>::view(self.scene.backend.shared.clone());
        let send = move || {
            let key = next_key(&keys);
            let outcome = match calls.replace(calls.get() + 1) % 3 {
                0 => view.send(to, &Bytes::from_static(&DATA[..3_000]), b"head", key),
                1 => view.send_copy(to, b"meanwhile", b"", key),
                _ => return,
            };
            enter(&keys, key, outcome);
        };
        self.scene.wire.meanwhile.replace(Some(Box::new(send)));
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Send { how, header, len } => self.send(how, &DATA[..header], len),
            Step::Batch(lens) => self.send_batch(&lens),
            Step::Turn { messages, bytes } => _ = self.scene.ev.turn_within(Budget { messages, bytes }),
            Step::Block(blocked) => self.scene.wire.blocked.set(blocked),
            // It may be over.
            Step::Flush => _ = self.scene.backend.flush(self.to),
        }
        self.note_told();
        if let Ok(stats) = self.scene.backend.stats(self.to) {
            let accepted = self.keys.borrow().len();
            let (sent, queued) = (stats.messages_sent.get(), stats.queued_messages.get());
            assert_eq!((stats.messages_accepted.get(), sent + queued), (accepted as u64, accepted as u64));
            assert!(sent >= self.returned.len() as u64, "told of before it was counted");
        }
    }

    fn send(&self, how: How, header: &[u8], len: usize) {
        let (backend, to, key) = (&self.scene.backend, self.to, next_key(&self.keys));
        let registered = self.registered.slice(..len.min(REGION));
        let outcome = match how {
            How::Copied => backend.send_copy(to, &DATA[..len], header, key),
            How::Shared => backend.send(to, &Bytes::from_static(&DATA[..len]), header, key),
            How::Registered => backend.send(to, &registered, header, key),
            How::InPieces => backend.send_iov(to, &[Bytes::from_static(&DATA[..len / 2]), Bytes::new(), registered], header, key),
            How::Raw => {
                let pieces = [RawSlice::new(registered.as_ptr(), registered.len())];
                // SAFETY: the memory is kept until the backend is gone.
                #[allow(unsafe_code, reason = "the call whose contract the compiler cannot check")]
                unsafe {
                    backend.send_raw_iov(to, &pieces, header, key)
                }
            }
            How::Taken => return self.send_taken(),
        };
        enter(&self.keys, key, outcome);
    }

    fn send_taken(&self) {
        // There may be none, and it may be over.
        let Ok(Some(mut buffer)) = self.scene.backend.take_buffer(self.to) else { return };
        buffer.extend_from_slice(&DATA[..100]).unwrap();
        let key = buffer.id();
        let outcome = self.scene.backend.send_taken(self.to, buffer).map_or_else(|unsent| unsent.outcome, |()| Ok(NetioStatus::Ok));
        enter(&self.keys, key, outcome);
    }

    fn send_batch(&self, lens: &[(usize, usize)]) {
        let from = next_key(&self.keys);
        let message = |(&(header, len), key)| CopiedMessage { data: &DATA[..len], header: &DATA[..header], key };
        let batch: Vec<_> = lens.iter().zip(from..).map(message).collect();
        if let Ok((accepted, _)) = self.scene.backend.send_copy_batch(self.to, &batch) {
            self.keys.borrow_mut().extend((from..).take(accepted));
        }
    }

    /// Asks for an end, which may have come already.
    fn end(&self, end: End) {
        let (Scene { backend, .. }, to) = (&self.scene, self.to);
        match end {
            End::Close => _ = backend.close(to),
            End::Abort => _ = backend.abort(to),
            End::CloseElsewhere => self.scene.elsewhere(|backend| _ = backend.close(to)),
            End::AbortElsewhere => self.scene.elsewhere(|backend| _ = backend.abort(to)),
            End::Shutdown => self.scene.elsewhere(|backend| backend.shutdown(Duration::from_secs(100))),
            End::ByPeer => _ = self.scene.loop_side().inner.close(to),
        }
    }

    fn note_told(&mut self) {
        for told in self.scene.told() {
            assert_eq!(self.pending, None, "{told:?} after the end");
            match told {
                Told::Completed(keys) => self.returned.extend(keys),
                Told::Closed(keys, _) => {
                    self.pending = Some(keys.len());
                    self.returned.extend(keys);
                }
                told => assert_eq!(told, Told::Writable),
            }
        }
    }

    /// Turns until there is nothing left to do.
    fn turn(&mut self) {
        let busy = (0..10_000).take_while(|_| self.scene.ev.turn() == Next::Again).count();
        assert!(busy < 10_000, "it spins");
        self.note_told();
    }

    /// Waits for the end, which does not come by itself if nothing leaves.
    fn finish(mut self, blocked: bool) {
        self.scene.wire.meanwhile.take();
        self.scene.wire.blocked.set(blocked);
        _ = self.scene.backend.flush(self.to);
        self.turn();
        if blocked && self.pending.is_none() {
            self.end(End::AbortElsewhere);
            self.turn();
        }
        let pending = self.pending.expect("it is over") as u64;
        assert_eq!(self.returned, *self.keys.borrow());
        let (all, stats, totals) = (self.returned.len() as u64, &self.stats, self.scene.backend.totals());
        assert_eq!((stats.queued_messages.get(), stats.queued_bytes.get()), (0, 0));
        assert_eq!((totals.queued_messages.get(), totals.queued_bytes.get()), (0, 0));
        assert_eq!((stats.messages_accepted.get(), stats.messages_pending_at_close.get()), (all, pending));
        assert_eq!((totals.messages_accepted.get(), totals.messages_pending_at_close.get()), (all, pending));
        assert_eq!(stats.messages_sent.get(), all - pending);
        let shared = &self.scene.backend.shared;
        let (messages, bytes) = (shared.config.total_queue_messages, shared.config.total_queue_bytes);
        assert!(shared.quota.could_cover(Granted::default(), messages, bytes), "some of the quota is not given back");
        assert!(self.scene.backend.deregister(self.region).is_ok(), "the region is still held");
    }
}

fn next_key(keys: &RefCell<Vec<u64>>) -> u64 {
    // Not those of buffers.
    1_000_000 + keys.borrow().len() as u64
}

fn enter(keys: &RefCell<Vec<u64>>, key: u64, outcome: Result<NetioStatus, SendError>) {
    match outcome {
        Ok(NetioStatus::Ok) => keys.borrow_mut().push(key),
        Ok(status) => assert!(matches!(status, NetioStatus::NoResources | NetioStatus::NotConnected), "{status}"),
        Err(error) => assert!(matches!(error, SendError::UnknownSendEndpoint(_)), "{error}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn whatever_was_accepted_comes_back_however_the_connection_ends(
        params in params(),
        meanwhile in any::<bool>(),
        before in prop::collection::vec(step(), 0..80),
        end in end(),
        after in prop::collection::vec(step(), 0..40),
        another in prop::option::of(end()),
        blocked in any::<bool>(),
    ) {
        let mut connection = Connection::new(&params);
        if meanwhile {
            connection.send_meanwhile();
        }
        before.into_iter().for_each(|step| connection.step(step));
        connection.end(end);
        after.into_iter().for_each(|step| connection.step(step));
        another.into_iter().for_each(|end| connection.end(end));
        connection.finish(blocked);
    }
}
