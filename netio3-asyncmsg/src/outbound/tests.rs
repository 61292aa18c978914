//! Whatever is pushed and however it is written, the bytes are those of a list that is simply appended to.

use std::cell::Cell;

use bytes::Bytes;
use netio3_core::{Buffers, ConnectionParameters, EndPointAddress, Handlers, MemoryRegion, NetworkConfig, loopback};
use netio3_evloop::EpollEventLoop;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Control,
    Copied {
        header: usize,
        pieces: Vec<usize>,
    },
    Shared {
        header: usize,
        pieces: Vec<usize>,
        copy_below: usize,
    },
    Buffer {
        len: usize,
        of_connection: bool,
    },
    Run {
        len: usize,
    },
    /// Offers that much, and that many thousandths of it are taken.
    Write {
        max_slices: usize,
        max_bytes: usize,
        taken: usize,
    },
    Retire,
    Trim,
}

const MOST_SLICES: usize = 20;

fn step() -> impl Strategy<Value = Step> {
    let len = || prop_oneof![4 => 0_usize..20, 3 => 200_usize..300, 2 => 0_usize..5_000];
    let pieces = || prop::collection::vec(len(), 0..5);
    prop_oneof![
        1 => Just(Step::Control),
        4 => (0_usize..40, pieces()).prop_map(|(header, pieces)| Step::Copied { header, pieces }),
        5 => (0_usize..40, pieces(), prop_oneof![Just(0_usize), Just(1_024), Just(usize::MAX)])
            .prop_map(|(header, pieces, copy_below)| Step::Shared { header, pieces, copy_below }),
        4 => (len(), any::<bool>()).prop_map(|(len, of_connection)| Step::Buffer { len: len.min(4_096), of_connection }),
        2 => (1_usize..9_000).prop_map(|len| Step::Run { len }),
        6 => (1..=MOST_SLICES, prop_oneof![Just(1_usize), Just(2_000), Just(1 << 20)], prop_oneof![0_usize..=1_000, Just(1_000)])
            .prop_map(|(max_slices, max_bytes, taken)| Step::Write { max_slices, max_bytes, taken }),
        2 => Just(Step::Retire),
        1 => Just(Step::Trim),
    ]
}

/// What names a piece of user memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Shared(*const u8, usize),
    Buffer(u64),
}

/// The simple list.
#[derive(Default)]
struct Model {
    stream: Vec<u8>,
    written: usize,
    /// User memory that is held and not retired yet, and where it ends in the stream.
    held: Vec<(usize, Name)>,
    next: u8,
}

impl Model {
    /// Bytes like no others nearby.
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        self.next = self.next.wrapping_add(1);
        (0..len).map(|i| self.next.wrapping_add((i % 251) as u8)).collect()
    }
}

fn run(steps: Vec<Step>, hello: bool) {
    let mut pool = MemoryRegion::new(64 * 4_096).expect("there is memory").cut(4_096).expect("it is free");
    // Those of a connection have room for a head; any backend's do.
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let backend = loopback::create_local(NetworkConfig::default(), Box::new(Handlers::new()), &ev).expect("the configuration is valid");
    let params = ConnectionParameters { buffers: Some(Buffers { size: 4_096, count: 64 }), ..Default::default() };
    let connection = backend.connect(&EndPointAddress::localhost(1), &params).expect("it is started");
    let mut outbound = Outbound::default();
    let mut model = Model::default();
    let mut hello_left = 0;
    if hello {
        hello_left = 72;
        let bytes = model.bytes(72);
        outbound.push_hello(&bytes);
        model.stream.extend(bytes);
    }
    for step in steps {
        match step {
            Step::Control => {
                outbound.push_control(Frame::Heartbeat);
                model.stream.extend(Frame::Heartbeat.head());
            }
            Step::Copied { header, pieces } => {
                let header = model.bytes(header);
                let pieces: Vec<Vec<u8>> = pieces.into_iter().map(|len| model.bytes(len)).collect();
                let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
                let message = [&header[..], &pieces.concat()].concat();
                outbound.push(Outgoing { header: &header, payload: Payload::Copied(&slices), len: message.len() }, 1_024);
                model.stream.extend(Frame::Data(message.len()).head());
                model.stream.extend(message);
            }
            Step::Shared { header, pieces, copy_below } => {
                let header = model.bytes(header);
                let pieces: Vec<Bytes> = pieces.into_iter().map(|len| Bytes::from(model.bytes(len))).collect();
                let len = header.len() + pieces.iter().map(Bytes::len).sum::<usize>();
                outbound.push(Outgoing { header: &header, payload: Payload::Shared(&pieces), len }, copy_below);
                model.stream.extend(Frame::Data(len).head());
                model.stream.extend(header);
                for piece in pieces {
                    model.stream.extend_from_slice(&piece);
                    if len > copy_below && piece.len() >= MIN_GATHERED {
                        model.held.push((model.stream.len(), Name::Shared(piece.as_ptr(), piece.len())));
                    } else {
                        assert!(piece.is_empty() || piece.is_unique(), "what was copied is not held");
                    }
                }
            }
            Step::Buffer { len, of_connection } => {
                let taken = if of_connection { backend.take_buffer(connection).expect("it has buffers") } else { pool.take() };
                let Some(mut buffer) = taken else { continue };
                let bytes = model.bytes(len);
                buffer.extend_from_slice(&bytes).expect("it fits");
                let name = Name::Buffer(buffer.id());
                outbound.push(Outgoing { header: &[], payload: Payload::Buffer(&Cell::new(Some(buffer))), len }, 1_024);
                model.stream.extend(Frame::Data(len).head());
                model.stream.extend(bytes);
                model.held.push((model.stream.len(), name));
            }
            Step::Run { len } => {
                let (bytes, mut memory) = (model.bytes(len), Copies::default());
                memory.push(&bytes, || None);
                outbound.gather(Memory::Run(memory));
                model.stream.extend(bytes);
            }
            Step::Write { max_slices, max_bytes, taken } => {
                let taken_already = MOST_SLICES - max_slices;
                let mut slices: ArrayVec<_, MOST_SLICES> = std::iter::repeat_n(IoSlice::new(&[]), taken_already).collect();
                let offered = outbound.slices(&mut slices, max_bytes);
                let bytes = slices[taken_already..].iter().map(|slice| &slice[..]).collect::<Vec<_>>().concat();
                assert_eq!(bytes.len(), offered);
                assert!(offered <= max_bytes);
                assert!(bytes == model.stream[model.written..][..offered], "other bytes are offered");
                assert_eq!(offered == 0, model.written == model.stream.len(), "something is offered as long as there is something");
                drop(slices);
                let n = offered * taken / 1_000;
                let of_hello = n.min(hello_left);
                hello_left -= of_hello;
                assert_eq!(outbound.written(n), n - of_hello);
                outbound.compact();
                model.written += n;
            }
            Step::Retire => expect_retired(&mut outbound, &mut model),
            Step::Trim => {
                outbound.trim();
                if outbound.is_empty() && outbound.retired.is_empty() {
                    assert_eq!((outbound.copied.capacity(), outbound.segments.capacity()), (0, 0));
                }
            }
        }
        assert_eq!(outbound.len(), model.stream.len() - model.written);
        assert_eq!(outbound.is_empty(), model.written == model.stream.len());
        let waiting = outbound.copied.len() - outbound.copied_start;
        assert!(outbound.copied_start <= waiting, "{} bytes are lost before {waiting}", outbound.copied_start);
    }
    expect_retired(&mut outbound, &mut model);
    outbound.abandon();
    assert!(outbound.is_empty());
    model.written = model.stream.len();
    expect_retired(&mut outbound, &mut model);
    assert!(model.held.is_empty());
}

/// Exactly what has been written to its end is retired, in order.
fn expect_retired(outbound: &mut Outbound, model: &mut Model) {
    let mut retired = Vec::new();
    outbound.retire(&mut retired);
    let names = retired.iter().map(|retired| match retired {
        UserMemory::Shared(bytes) => Name::Shared(bytes.as_ptr(), bytes.len()),
        UserMemory::Buffer(buffer) => Name::Buffer(buffer.id()),
        UserMemory::Raw(_) => unreachable!("nothing raw is sent"),
    });
    let names: Vec<_> = names.collect();
    let done = model.held.iter().take_while(|(end, _)| *end <= model.written).count();
    let expected: Vec<_> = model.held.drain(..done).map(|(_, name)| name).collect();
    assert_eq!(names, expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_bytes_are_those_of_a_simple_list(steps in prop::collection::vec(step(), 0..60), hello in any::<bool>()) {
        run(steps, hello);
    }
}

#[test]
fn copied_bytes_do_not_wander_off() {
    let mut outbound = Outbound::default();
    let message = [1; 500];
    let push = |outbound: &mut Outbound| {
        outbound.push(Outgoing { header: &[], payload: Payload::Copied(&[IoSlice::new(&message)]), len: 500 }, 1_024);
    };
    (0..10).for_each(|_| push(&mut outbound));
    for _ in 0..10_000 {
        push(&mut outbound);
        assert_eq!(outbound.written(508), 508);
        outbound.compact();
    }
    assert_eq!(outbound.len(), 10 * 508);
    assert!(outbound.copied.capacity() < 40_000, "{} bytes for 5,080", outbound.copied.capacity());
}

#[test]
fn neighbours_that_are_copied_make_one_slice() {
    let mut outbound = Outbound::default();
    for _ in 0..100 {
        outbound.push(Outgoing { header: b"h", payload: Payload::Copied(&[IoSlice::new(b"payload")]), len: 8 }, 1_024);
        outbound.push(Outgoing { header: b"h", payload: Payload::Shared(&[Bytes::from_static(&[3; 1_000])]), len: 1_001 }, 1_024);
    }
    let mut slices = ArrayVec::<_, 4>::new();
    assert_eq!(outbound.slices(&mut slices, 1 << 20), 100 * (16 + 1_009));
    assert_eq!(slices.len(), 1);
}

/// However many connections there are: what is copied for one lies where what was copied for the last one did.
#[test]
fn memory_for_copies_goes_from_one_connection_to_the_next() {
    let spares = Rc::default();
    let (mut first, mut second) = (Outbound::new(&spares), Outbound::new(&spares));
    let push = |outbound: &mut Outbound, len: usize| {
        outbound.push(Outgoing { header: &[], payload: Payload::Copied(&[IoSlice::new(&vec![1; len])]), len }, 0);
        outbound.copied.as_slice().as_ptr()
    };
    let write = |outbound: &mut Outbound| {
        outbound.written(outbound.len());
        outbound.compact();
    };
    let before = push(&mut first, SHORTEST_SPARE);
    write(&mut first);
    assert_eq!(push(&mut second, SHORTEST_SPARE), before);
    assert_ne!(push(&mut first, SHORTEST_SPARE), before, "the second one has not written it yet");
    write(&mut second);
    write(&mut first);
    spares.clear();
    // What is too long or too short stays where it is, so that it is not made anew each time.
    for len in [LONGEST_SPARE + 1, 10] {
        let mut outbound = Outbound::new(&spares);
        push(&mut outbound, len);
        write(&mut outbound);
        assert!(spares.take().is_none() && outbound.copied.capacity() >= len);
    }
}
