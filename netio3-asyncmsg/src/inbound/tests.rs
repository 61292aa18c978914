//! However a stream is cut, the same comes out of it.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// [`Incoming`] with a message of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owned {
    Hello(Hello),
    Message(Vec<u8>),
    Heartbeat,
    Goodbye,
}

const MAX_LEN: usize = 600_000;

fn hello() -> Hello {
    Hello::new(12_345, Duration::from_millis(7))
}

fn content(len: usize) -> Vec<u8> {
    let mut content: Vec<u8> = (0..251).cycle().take(len).collect();
    if let Some(first) = content.first_mut() {
        *first = len as u8;
    }
    content
}

fn encode(things: &[Owned]) -> Vec<u8> {
    let mut stream = Vec::new();
    for thing in things {
        match thing {
            Owned::Hello(hello) => stream.extend_from_slice(&hello.encode()),
            Owned::Message(message) => {
                stream.extend_from_slice(&Frame::Data(message.len()).head());
                stream.extend_from_slice(message);
            }
            Owned::Heartbeat => stream.extend_from_slice(&Frame::Heartbeat.head()),
            Owned::Goodbye => stream.extend_from_slice(&Frame::Goodbye.head()),
        }
    }
    stream
}

/// Feeds pieces as the reader does: first into the message being assembled, then behind what was kept. Nothing stays where
/// it lies, as when another connection is read after each piece.
fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<(Vec<Owned>, Inbound), Broken> {
    decode_with(pieces, false)
}

/// The same where what is left of a piece may stay.
fn room(inbound: &mut Inbound) -> Option<(&mut [u8], bool)> {
    assert!(inbound.make_room());
    inbound.assembly_room()
}

fn decode_with<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, in_place: bool) -> Result<(Vec<Owned>, Inbound), Broken> {
    let mut inbound = Inbound::new(MAX_LEN);
    let mut out = Vec::new();
    let mut arrived = 0;
    let mut stays: Vec<u8> = Vec::new();
    for mut piece in pieces {
        arrived += piece.len();
        while let Some((room, is_all)) = room(&mut inbound).filter(|_| !piece.is_empty()) {
            assert!(!room.is_empty() && stays.is_empty());
            let n = room.len().min(piece.len());
            room[..n].copy_from_slice(&piece[..n]);
            let was_all = is_all && n == room.len();
            piece = &piece[n..];
            let done = inbound.assembled(n);
            assert_eq!(done.is_some(), was_all);
            if let Some(len) = done {
                out.push(Owned::Message(inbound.memory()[..len].to_vec()));
            }
            assert!(inbound.held() <= FIRST_STEP.max(2 * arrived), "{} bytes held for {arrived}", inbound.held());
        }
        if !piece.is_empty() {
            let mut joined = std::mem::take(&mut stays);
            let partial = inbound.partial_len();
            assert!(partial == 0 || joined.is_empty());
            joined.resize(joined.len() + partial, 0);
            assert_eq!(inbound.take_partial(&mut joined), partial);
            assert_eq!(inbound.partial_len(), 0);
            joined.extend_from_slice(piece);
            let mut bytes = &joined[..];
            while let Some(next) = inbound.next(&mut bytes)? {
                out.push(match next {
                    Incoming::Hello(hello) => Owned::Hello(hello),
                    Incoming::Message(message) => Owned::Message(message.to_vec()),
                    Incoming::Heartbeat => Owned::Heartbeat,
                    Incoming::Goodbye => Owned::Goodbye,
                });
            }
            match inbound.stays(bytes).filter(|_| in_place) {
                Some(frame) => {
                    stays = bytes.to_vec();
                    assert_eq!(inbound.read_len(frame, stays.len()), frame - stays.len());
                }
                None => assert!(inbound.keep(bytes)),
            }
        }
        assert!(inbound.held() <= FIRST_STEP.max(2 * arrived), "{} bytes held for {arrived}", inbound.held());
    }
    assert!(inbound.keep(&stays));
    Ok((out, inbound))
}

fn expect(things: &[Owned], decoded: Result<(Vec<Owned>, Inbound), Broken>) {
    let (out, inbound) = decoded.expect("it is a stream of this protocol");
    // Not `assert_eq`, which would print megabytes.
    assert!(out == things, "something else came out");
    assert!(!inbound.is_inside_frame());
}

#[test]
fn a_stream_may_be_cut_anywhere() {
    let things = [
        Owned::Hello(hello()),
        Owned::Message(vec![]),
        Owned::Heartbeat,
        Owned::Message(content(1)),
        Owned::Message(content(30)),
        Owned::Heartbeat,
        Owned::Message(content(7)),
        Owned::Goodbye,
    ];
    let stream = encode(&things);
    for cut in 0..=stream.len() {
        expect(&things, decode([&stream[..cut], &stream[cut..]]));
    }
    expect(&things, decode(stream.chunks(1)));
    expect(&things, decode([&stream[..]]));
}

#[test]
fn assembling_takes_over_at_every_size() {
    for len in
        [1, FIRST_STEP - 1, FIRST_STEP, FIRST_STEP + 1, 2 * FIRST_STEP, 4 * FIRST_STEP - 1, 4 * FIRST_STEP, 4 * FIRST_STEP + 1, MAX_LEN]
    {
        let things = [Owned::Hello(hello()), Owned::Message(content(len)), Owned::Message(content(3)), Owned::Message(content(len))];
        let stream = encode(&things);
        for piece in [1_000, FIRST_STEP - 1, FIRST_STEP, FIRST_STEP + 8, 4 * FIRST_STEP] {
            expect(&things, decode(stream.chunks(piece)));
        }
    }
}

#[test]
fn reads_end_where_frames_like_the_last_one_would() {
    const ROOM: usize = 1_000;
    const LONG: usize = LONGEST_IN_PLACE;
    let stream = encode(&[Owned::Hello(hello()), Owned::Message(content(92)), Owned::Message(content(LONG)), Owned::Message(content(10))]);
    let hello_len = hello().encode().len();
    let fed = |len: usize, have: usize| decode([&stream[..len]]).expect("it is whole").1.read_len(ROOM, have);
    assert_eq!(Inbound::new(MAX_LEN).read_len(ROOM, 0), ROOM, "nothing is known before the hello");
    assert_eq!(fed(hello_len + 100, 0), 1_000, "ten frames of 100 bytes");
    assert_eq!(fed(hello_len + 103, 3), 997, "three bytes of the next are here");
    assert_eq!(fed(hello_len + 100 + 500, 0), 1_000, "behind the rest of a longer one");
    assert_eq!(fed(hello_len + 100 + 8 + LONG, 0), HEAD_LEN, "a longer one is read into its own memory");
    assert_eq!(fed(hello_len + 100 + 8 + LONG + 3, 3), HEAD_LEN - 3);
    assert_eq!(fed(stream.len(), 0), 990, "55 frames of 18 bytes");
    let beat = encode(&[Owned::Hello(hello()), Owned::Message(content(LONG)), Owned::Heartbeat]);
    assert_eq!(decode([&beat[..]]).expect("it is whole").1.read_len(ROOM, 0), ROOM, "behind a heartbeat anything may come");
}

#[test]
fn a_message_that_has_begun_stays_unless_it_is_long_or_hardly_begun() {
    const LEN: usize = 50_000;
    let stream = encode(&[Owned::Hello(hello()), Owned::Message(content(10)), Owned::Message(content(LEN))]);
    let mut inbound = decode([&stream[..72 + 18]]).expect("it is whole").1;
    let begun = |n: usize| &stream[72 + 18..][..n];
    assert_eq!(inbound.stays(begun(HEAD_LEN - 1)), None, "who knows what it is");
    assert_eq!(inbound.stays(begun(LEAST_IN_PLACE - 1)), None, "it is not worth it");
    assert_eq!(inbound.stays(begun(10_000)), Some(HEAD_LEN + LEN));
    assert_eq!(inbound.read_len(HEAD_LEN + LEN, 10_000), HEAD_LEN + LEN - 10_000);
    assert_eq!(inbound.read_len(3 * (HEAD_LEN + LEN) - 1, 10_000), 2 * (HEAD_LEN + LEN) - 10_000, "and those behind it");
    let long = encode(&[Owned::Message(content(LONGEST_IN_PLACE))]);
    assert_eq!(inbound.stays(&long[..10_000]), None, "longer ones have memory of their own");
}

#[test]
fn an_end_inside_a_frame_is_seen() {
    let stream = encode(&[Owned::Hello(hello()), Owned::Message(content(20)), Owned::Heartbeat]);
    let frames = [72, 72 + 28, 72 + 36];
    for cut in 1..=stream.len() {
        let (_, inbound) = decode([&stream[..cut]]).expect("it is the beginning of a stream");
        assert_eq!(inbound.is_inside_frame(), !frames.contains(&cut), "{cut}");
    }
}

#[test]
fn nothing_is_allocated_on_a_lengths_word() {
    let mut stream = encode(&[Owned::Hello(hello())]);
    stream.extend_from_slice(&Frame::Data(MAX_LEN).head());
    stream.push(0);
    let (_, inbound) = decode([&stream[..]]).expect("it is the beginning of a stream");
    assert!(inbound.held() <= FIRST_STEP);
}

#[test]
fn memory_is_given_back_between_messages_alone() {
    let stream = encode(&[Owned::Hello(hello()), Owned::Message(content(100_000)), Owned::Message(content(100_000))]);
    let (first, rest) = stream.split_at(72 + 100_008 + 50_000);
    let (_, mut inbound) = decode([&first[..100_000], &first[100_000..]]).expect("it is the beginning of a stream");
    let held = inbound.held();
    inbound.trim();
    assert_eq!(inbound.held(), held, "it is in use");
    let mut rest = rest;
    while let Some((room, _)) = room(&mut inbound) {
        let n = room.len();
        room.copy_from_slice(&rest[..n]);
        rest = &rest[n..];
        if let Some(len) = inbound.assembled(n) {
            assert!(inbound.memory()[..len] == content(100_000));
        }
    }
    inbound.trim();
    assert_eq!(inbound.held(), 0);
}

#[test]
fn bad_heads_break_the_stream_however_they_are_cut() {
    for (bad, expected) in [
        ([9; HEAD_LEN], BadHead::Kind),
        ([0; HEAD_LEN], BadHead::Kind),
        ([0, 0, 0, 0, 0xD1, 0, 0, 1], BadHead::Kind),
        ([1, 0, 0, 0, 0xE3, 0, 0, 0], BadHead::Kind),
        (Frame::Data(MAX_LEN + 1).head(), BadHead::TooLong(MAX_LEN + 1)),
        (Frame::Data(u32::MAX as usize).head(), BadHead::TooLong(u32::MAX as usize)),
    ] {
        let mut stream = encode(&[Owned::Hello(hello()), Owned::Message(content(5))]);
        stream.extend_from_slice(&bad);
        for cut in 0..=stream.len() {
            assert_eq!(decode([&stream[..cut], &stream[cut..]]).err(), Some(Broken::Head(expected)), "{cut}");
        }
    }
    assert_eq!(decode([&b"HTTP"[..]]).err(), Some(Broken::Hello));
}

fn thing() -> impl Strategy<Value = Owned> {
    let around = |len: usize| (len - 9..len + 9).prop_map(content).prop_map(Owned::Message);
    prop_oneof![
        6 => (0_usize..300).prop_map(content).prop_map(Owned::Message),
        1 => around(FIRST_STEP),
        1 => around(4 * FIRST_STEP),
        1 => (0..MAX_LEN).prop_map(content).prop_map(Owned::Message),
        1 => Just(Owned::Heartbeat),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_pieces_give_the_same(
        things in prop::collection::vec(thing(), 0..12),
        cuts in prop::collection::vec(prop_oneof![0_usize..20, 0_usize..2_000, 0_usize..300_000], 1..60),
    ) {
        let things: Vec<_> = [Owned::Hello(hello())].into_iter().chain(things).collect();
        let stream = encode(&things);
        let mut pieces = Vec::new();
        let mut rest = &stream[..];
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        expect(&things, decode(pieces.iter().copied()));
        expect(&things, decode_with(pieces, true));
    }
}

#[test]
fn messages_are_counted_without_being_fed() {
    let inbound = Inbound::new(100);
    let stream = |frames: &[Frame]| -> Vec<u8> {
        let of = |frame: &Frame| [&frame.head()[..], &vec![0; if let Frame::Data(len) = frame { (*len).min(100) } else { 0 }]].concat();
        frames.iter().flat_map(of).collect()
    };
    let all = stream(&[Frame::Data(5), Frame::Heartbeat, Frame::Data(0), Frame::Data(100)]);
    assert_eq!(inbound.count_messages(&[]), 0);
    assert_eq!(inbound.count_messages(&all), 3);
    for cut in [1, 50, 100, 101, 107] {
        assert_eq!(inbound.count_messages(&all[..all.len() - cut]), 3, "one is cut off by {cut}");
    }
    assert_eq!(inbound.count_messages(&all[..all.len() - 108]), 2);
    for end in [Frame::Goodbye, Frame::Data(101)] {
        assert_eq!(inbound.count_messages(&stream(&[Frame::Data(5), end, Frame::Data(5)])), 1, "nothing counts after {end:?}");
    }
}
