//! Random calls, and the account of what came of them.

use std::collections::HashMap;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netio3::{
    Buffers, Completion, CompletionKind, ConnectionParameters, CopiedMessage, EndPointAddress, Endpoint, MemoryRegion, NetioStatus,
    NetworkType, OpenSendError, RawSlice, SendError,
};

use super::{Book, Pair, Shared, WAIT, alongside, counted, kinds, no_heartbeats};

/// Numbers that look random, from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// Whatever threads call in whatever order: each open has one outcome, each accepted message comes back once and
/// in its thread's order, *writable* comes at most once for each refusal, and all memory is released.
#[test]
fn the_books_balance_whatever_threads_call() {
    for kind in kinds() {
        (0..4).for_each(|seed| balance(kind, seed));
    }
}

fn balance(kind: NetworkType, seed: u64) {
    let pair = Pair::new(kind, no_heartbeats());
    let alive = Arc::new(AtomicUsize::new(0));
    let caller = Caller { backend: pair.dialer.clone(), address: pair.address, book: pair.book.clone(), alive: alive.clone() };
    let sent = alongside(&pair.ev, move || {
        thread::scope(|scope| {
            let threads = [0, 1, 2].map(|i| {
                scope.spawn({
                    let caller = &caller;
                    move || caller.call_at_random(seed * 3 + i)
                })
            });
            threads.map(|thread| thread.join().unwrap())
        })
    });
    pair.dialer.shutdown(Duration::from_secs(2));
    pair.until("all have ended", || pair.dialer.connections().is_empty());

    let mut stories = pair.book.stories.lock().unwrap();
    for (endpoint, story) in &*stories {
        assert!(story.opened, "{endpoint} was never opened");
        assert_eq!((story.refused + story.established, story.closed), (1, story.established), "{endpoint}: {story:?}");
    }
    let mut refusals: HashMap<Endpoint, usize> = HashMap::new();
    for sent in &sent {
        sent.refused.iter().for_each(|endpoint| *refusals.entry(*endpoint).or_default() += 1);
    }
    for (endpoint, story) in &*stories {
        assert!(story.writable <= refusals.get(endpoint).copied().unwrap_or(0), "{endpoint}: writable without a refusal");
    }
    for (endpoint, story) in &mut *stories {
        let accepted = [0, 1, 2].map(|i: usize| sent[i].accepted.get(endpoint).cloned().unwrap_or_default());
        assert_eq!(story.returned.len(), accepted.iter().map(Vec::len).sum::<usize>(), "{endpoint}");
        let mut next = [0; 3];
        // A buffer's key is told again each time the buffer is sent, so it does not name the message.
        story.returned.retain(|returned| returned.kind != CompletionKind::Buffer);
        let accepted = accepted.map(|keys| keys.into_iter().filter(|key| key.kind != CompletionKind::Buffer).collect::<Vec<_>>());
        for returned in &story.returned {
            let from = (0..3).find(|i| accepted[*i].get(next[*i]) == Some(returned));
            next[from.unwrap_or_else(|| panic!("{endpoint}: {returned:?} is out of order"))] += 1;
        }
    }
    drop(stories);
    assert_eq!(alive.load(Ordering::SeqCst), 0, "memory is still held");
    assert_eq!(pair.dialer.totals().connections.get(), 0);
    let totals = pair.dialer.totals().snapshot();
    assert_eq!(totals.messages_accepted, totals.messages_sent + totals.messages_pending_at_close);
}

/// A thread that calls.
struct Caller {
    backend: Shared,
    address: EndPointAddress,
    book: Book,
    alive: Arc<AtomicUsize>,
}

/// What a thread knows of its sends.
#[derive(Default)]
struct Sent {
    accepted: HashMap<Endpoint, Vec<Completion>>,
    refused: Vec<Endpoint>,
}

/// Raw memory for everyone; it is never written.
static RAW: [u8; 5_000] = [9; 5_000];

impl Caller {
    fn call_at_random(&self, seed: u64) -> Sent {
        let mut random = Random(seed.wrapping_mul(77_777) + 1);
        let mut sent = Sent::default();
        let region = MemoryRegion::new(100_000).unwrap();
        let shared = region.bytes().unwrap();
        for number in 0..3_000 {
            let key = (seed << 32) | number;
            let copy = |len| Completion { key, kind: CompletionKind::Copy, len: len as u32 };
            let zero_copy = |len| Completion { kind: CompletionKind::ZeroCopy, ..copy(len) };
            // The connections of all threads.
            let connections = self.backend.connections();
            let Some(to) = connections.get(random.below(connections.len().max(1))).map(|connection| connection.endpoint) else {
                self.open(&mut random);
                continue;
            };
            match random.below(100) {
                0..4 => self.open(&mut random),
                4 => drop(self.backend.close(to)),
                5 => drop(self.backend.abort(to)),
                6..9 => _ = self.backend.pause(to),
                9..14 => _ = self.backend.resume(to),
                14..17 => _ = self.backend.flush(to),
                17 => {
                    self.backend.listeners();
                    _ = (self.backend.limits(to), self.backend.stats(to), self.backend.available_buffers(to));
                }
                18 => {
                    let id = self.backend.register(&region).unwrap();
                    self.send(to, zero_copy(2_006), &mut sent, |key| self.backend.send(to, &shared.slice(..2_000), b"region", key));
                    let end = Instant::now() + WAIT;
                    while self.backend.deregister(id).is_err() {
                        assert!(Instant::now() < end, "a message holds its region for good");
                        thread::sleep(Duration::from_millis(1));
                        // Nobody else might move it on.
                        self.backend.connections().iter().for_each(|connection| _ = self.backend.resume(connection.endpoint));
                    }
                }
                19..30 => self.send_buffer(to, &mut sent),
                30..55 => {
                    let bytes = counted(random.below(3_000), &self.alive);
                    let message = zero_copy(2 * bytes.len() + 6);
                    self.send(to, message, &mut sent, |key| self.backend.send_iov(to, &[bytes.clone(), bytes.clone()], b"shared", key));
                }
                55..60 => {
                    let len = random.below(RAW.len());
                    let raw = RawSlice::new(RAW.as_ptr(), len);
                    // SAFETY: a static array is readable for ever.
                    self.send(to, zero_copy(2 * len + 3), &mut sent, |key| unsafe {
                        self.backend.send_raw_iov(to, &[raw, raw], b"raw", key)
                    });
                }
                60 => {
                    let long = vec![1; 300_000];
                    self.send(to, copy(long.len() + 4), &mut sent, |key| self.backend.send_copy(to, &long, b"long", key));
                }
                61..75 => {
                    let data = &RAW[..random.below(200)];
                    self.send(to, copy(data.len() + 3), &mut sent, |key| self.backend.send_copy(to, data, b"one", key));
                }
                75..80 => self.send_batch(to, key, random.below(200), &mut sent),
                _ => {
                    let pieces = [IoSlice::new(&RAW[..random.below(200)]), IoSlice::new(b"end")];
                    self.send(to, copy(pieces[0].len() + 3), &mut sent, |key| self.backend.send_copy_iov(to, &pieces, b"", key));
                }
            }
        }
        sent
    }

    fn open(&self, random: &mut Random) {
        let buffers = (random.below(2) == 0).then_some(Buffers { size: 1_000, count: 4 });
        let params = ConnectionParameters { queue_messages: 1 + random.below(40), queue_bytes: 500_000, buffers, ..Default::default() };
        let opened = match random.below(8) {
            0 => self.backend.connect(&EndPointAddress::localhost(1), &params),
            1..4 => self.backend.open_send_endpoint(&self.address, &params),
            _ if self.backend.connections().len() < 20 => self.backend.connect(&self.address, &params),
            _ => return,
        };
        match opened {
            Ok(endpoint) => self.book.stories.lock().unwrap().entry(endpoint).or_default().opened = true,
            Err(error) => assert!(matches!(error, OpenSendError::SendEndpointAlreadyExists { .. }), "{error}"),
        }
    }

    fn send(&self, to: Endpoint, message: Completion, sent: &mut Sent, send: impl FnOnce(u64) -> Result<NetioStatus, SendError>) {
        match send(message.key) {
            Ok(NetioStatus::Ok) => sent.accepted.entry(to).or_default().push(message),
            Ok(NetioStatus::NoResources) => sent.refused.push(to),
            Ok(NetioStatus::NotConnected) | Err(_) => {}
            other => panic!("{other:?}"),
        }
    }

    /// Three at once.
    fn send_batch(&self, to: Endpoint, first: u64, len: usize, sent: &mut Sent) {
        let data = &RAW[..len];
        let messages = [0, 1, 2].map(|i| CopiedMessage { data, header: b"", key: first + (i << 16) });
        let Ok((accepted, outcome)) = self.backend.send_copy_batch(to, &messages) else { return };
        for message in &messages[..accepted] {
            self.send(to, Completion { key: message.key, kind: CompletionKind::Copy, len: len as u32 }, sent, |_| Ok(NetioStatus::Ok));
        }
        if accepted < messages.len() {
            self.send(to, Completion { key: first, kind: CompletionKind::Copy, len: 0 }, sent, |_| Ok(outcome));
        }
    }

    fn send_buffer(&self, to: Endpoint, sent: &mut Sent) {
        match self.backend.take_buffer(to) {
            Ok(Some(mut buffer)) => {
                buffer.extend_from_slice(&RAW[..500]).unwrap();
                let key = buffer.id();
                let outcome = self.backend.send_taken(to, buffer).map(|()| Ok(NetioStatus::Ok)).unwrap_or_else(|unsent| unsent.outcome);
                self.send(to, Completion { key, kind: CompletionKind::Buffer, len: 500 }, sent, |_| outcome);
            }
            Ok(None) => sent.refused.push(to),
            Err(_) => {}
        }
    }
}
