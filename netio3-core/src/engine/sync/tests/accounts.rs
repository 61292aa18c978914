//! The single-threaded backend, which stages messages, against a model: what it accepts, and what its counters say at any moment.

use std::io::IoSlice;
use std::sync::mpsc::Receiver;

use bytes::Bytes;
use proptest::prelude::*;

use super::mock::{MockLoop, MockTransport};
use super::staging::{Scene, connected};
use super::{Told, runs};
use crate::address::EndPointAddress;
use crate::backend::{CopiedMessage, NetworkBackend};
use crate::config::ConnectionParameters;
use crate::endpoint::Endpoint;
use crate::event_loop::{Budget, Next};
use crate::status::NetioStatus;

#[derive(Clone, Debug)]
enum Step {
    /// The same message several times.
    Send {
        on: usize,
        how: How,
        header: usize,
        len: usize,
        times: usize,
    },
    /// Copied ones in one call.
    Batch {
        on: usize,
        lens: Vec<(usize, usize)>,
    },
    Turn {
        messages: usize,
    },
    /// Nothing leaves from now on, or everything does.
    Block(bool),
    Flush(usize),
    /// So much memory is lent from now on, if any.
    Lend(Option<usize>),
    /// Looks at the counters of a connection.
    Stats(usize),
    /// Looks at those of both together.
    Totals,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Copied,
    Shared,
    CopiedInPieces,
    SharedInPieces,
}

const LONGEST: usize = 20_000;
/// What either connection sends.
static DATA: [[u8; LONGEST]; 2] = [[0; LONGEST], [1; LONGEST]];

fn step() -> impl Strategy<Value = Step> {
    let on = || prop_oneof![4 => Just(0_usize), 1 => Just(1)];
    let len = || prop_oneof![5 => 0_usize..100, 1 => 200_usize..1_500, 1 => Just(LONGEST)];
    let header = || prop_oneof![4 => Just(0_usize), 1 => 1_usize..40];
    let how = prop::sample::select(vec![How::Copied, How::Shared, How::CopiedInPieces, How::SharedInPieces]);
    prop_oneof![
        20 => (on(), how, header(), len(), 1_usize..20)
            .prop_map(|(on, how, header, len, times)| Step::Send { on, how, header, len, times }),
        4 => (on(), prop::collection::vec((header(), len()), 0..40)).prop_map(|(on, lens)| Step::Batch { on, lens }),
        5 => prop_oneof![1_usize..20, Just(8_192)].prop_map(|messages| Step::Turn { messages }),
        1 => any::<bool>().prop_map(Step::Block),
        4 => on().prop_map(Step::Flush),
        1 => prop_oneof![Just(None), Just(Some(0)), Just(Some(200)), Just(Some(200_000))].prop_map(Step::Lend),
        1 => on().prop_map(Step::Stats),
        1 => Just(Step::Totals),
    ]
}

fn params() -> impl Strategy<Value = ConnectionParameters> {
    let queue_messages = prop_oneof![Just(0_usize), Just(3), Just(50), Just(300), Just(usize::MAX)];
    let queue_bytes = prop_oneof![Just(0_usize), Just(3_000), Just(10_000), Just(usize::MAX)];
    (runs::params(), queue_messages, queue_bytes).prop_map(|(params, queue_messages, queue_bytes)| ConnectionParameters {
        queue_messages,
        queue_bytes,
        ..params
    })
}

/// What a connection has accepted and refused.
#[derive(Default)]
struct Account {
    /// The accepted messages, header and payload together.
    lens: Vec<usize>,
    /// How many of them were told to be completed.
    told: usize,
    refused: u64,
}

impl Account {
    /// Enters what became of a message, which its limits alone decide.
    fn enter(&mut self, params: &ConnectionParameters, len: usize, accepted: bool) {
        let untold = &self.lens[self.told..];
        let room = params.queue_bytes.saturating_sub(untold.iter().sum());
        let fits = untold.len() < params.queue_messages && len <= room;
        assert_eq!(accepted, fits || untold.is_empty(), "whether {len} bytes are accepted behind {}", untold.len());
        if accepted {
            self.lens.push(len);
        } else {
            self.refused += 1;
        }
    }
}

/// A backend with two connections. The keys of the one are even, those of the other are odd.
struct Pair<'a> {
    params: &'a ConnectionParameters,
    backend: Box<dyn NetworkBackend>,
    wire: MockTransport,
    ev: MockLoop,
    told: Receiver<Told>,
    ends: [Endpoint; 2],
    accounts: [Account; 2],
}

impl<'a> Pair<'a> {
    fn new(params: &'a ConnectionParameters) -> Self {
        let Scene { backend, to, wire, ev, told } = connected(params);
        let other = backend.open_send_endpoint(&EndPointAddress::localhost(6), params).unwrap();
        ev.readable(other.slot());
        ev.turn();
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [Told::Established, Told::Established]);
        wire.lends.set(Some(200_000));
        Self { params, backend, wire, ev, told, ends: [to, other], accounts: Default::default() }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Send { on, how, header, len, times } => (0..times).for_each(|_| self.send(on, how, header, len)),
            Step::Batch { on, lens } => self.send_batch(on, &lens),
            Step::Turn { messages } => _ = self.ev.turn_within(Budget { messages, bytes: 1 << 20 }),
            Step::Block(blocked) => self.wire.blocked.set(blocked),
            Step::Flush(on) => self.backend.flush(self.ends[on]).unwrap(),
            Step::Lend(lends) => self.wire.lends.set(lends),
            Step::Stats(of) => self.check_stats(of),
            Step::Totals => self.check_totals(),
        }
        self.note_told();
    }

    fn next_key(&self, on: usize) -> u64 {
        (2 * self.accounts[on].lens.len() + on) as u64
    }

    fn send(&mut self, on: usize, how: How, header: usize, len: usize) {
        let (to, key) = (self.ends[on], self.next_key(on));
        let (header, data) = (&DATA[on][..header], &DATA[on][..len]);
        let (front, back) = data.split_at(len / 2);
        let status = match how {
            How::Copied => self.backend.send_copy(to, data, header, key),
            How::Shared => self.backend.send(to, &Bytes::from_static(data), header, key),
            How::CopiedInPieces => self.backend.send_copy_iov(to, &[IoSlice::new(front), IoSlice::new(back)], header, key),
            How::SharedInPieces => self.backend.send_iov(to, &[front, back].map(Bytes::from_static), header, key),
        };
        let accepted = status == Ok(NetioStatus::Ok);
        assert!(accepted || status == Ok(NetioStatus::NoResources), "{status:?}");
        self.accounts[on].enter(self.params, header.len() + len, accepted);
    }

    fn send_batch(&mut self, on: usize, lens: &[(usize, usize)]) {
        let message = |(&(header, len), key)| CopiedMessage { data: &DATA[on][..len], header: &DATA[on][..header], key };
        let batch: Vec<_> = lens.iter().zip((self.next_key(on)..).step_by(2)).map(message).collect();
        let (accepted, status) = self.backend.send_copy_batch(self.ends[on], &batch).unwrap();
        assert_eq!(status, if accepted == batch.len() { NetioStatus::Ok } else { NetioStatus::NoResources });
        for (place, message) in batch.iter().enumerate().take(accepted + 1) {
            self.accounts[on].enter(self.params, message.len(), place < accepted);
        }
    }

    fn note_told(&mut self) {
        for told in self.told.try_iter() {
            match told {
                Told::Completed(keys) => {
                    for key in keys {
                        let (on, number) = (key as usize % 2, key as usize / 2);
                        assert_eq!(number, self.accounts[on].told, "in order");
                        self.accounts[on].told += 1;
                    }
                }
                told => assert_eq!(told, Told::Writable),
            }
        }
    }

    fn check_stats(&self, of: usize) {
        let Account { lens, refused, .. } = &self.accounts[of];
        let stats = self.backend.stats(self.ends[of]).unwrap().snapshot();
        let (sent, unsent) = lens.split_at(stats.messages_sent as usize);
        assert_eq!((stats.messages_accepted, stats.refused_sends), (lens.len() as u64, *refused));
        assert_eq!((stats.queued_messages, stats.queued_bytes), (unsent.len() as u64, unsent.iter().sum::<usize>() as u64));
        assert_eq!(stats.bytes_sent, sent.iter().sum::<usize>() as u64);
    }

    fn check_totals(&self) {
        let totals = self.backend.totals().snapshot();
        let messages: usize = self.accounts.iter().map(|account| account.lens.len()).sum();
        let bytes: usize = self.accounts.iter().flat_map(|account| &account.lens).sum();
        assert_eq!(totals.messages_accepted, messages as u64);
        assert_eq!(
            (totals.queued_messages + totals.messages_sent, totals.queued_bytes + totals.bytes_sent),
            (messages as u64, bytes as u64)
        );
    }

    /// Has everything leave.
    fn finish(mut self) {
        self.wire.blocked.set(false);
        self.ends.iter().for_each(|end| self.backend.flush(*end).unwrap());
        while self.ev.turn() == Next::Again {}
        self.note_told();
        self.check_totals();
        assert_eq!(self.backend.totals().queued_messages.get(), 0);
        for of in [0, 1] {
            self.check_stats(of);
            let lens = &self.accounts[of].lens;
            assert_eq!(self.accounts[of].told, lens.len());
            let enqueued = self.wire.enqueued.borrow();
            // Those without a byte are nobody's.
            let handed_over = enqueued.iter().filter(|bytes| bytes.first() == Some(&(of as u8))).map(Vec::len);
            assert!(handed_over.eq(lens.iter().copied().filter(|len| *len > 0)), "other messages, or in another order");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_limits_decide_what_is_accepted_and_the_counters_say_so(
        params in params(),
        steps in prop::collection::vec(step(), 0..80),
    ) {
        let mut pair = Pair::new(&params);
        steps.into_iter().for_each(|step| pair.step(step));
        pair.finish();
    }
}
