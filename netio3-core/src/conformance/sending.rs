//! Sending: families, headers, keys, sizes, and when a message's memory is the user's again.

use std::cell::{Cell, RefCell};
use std::io::IoSlice;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::node::Node;
use super::pair::{Pair, Setup, connected, connected_across};
use super::plan::Plan;
use super::recorder::Kind;
use super::world::{World, config};
use crate::config::{ConnectionParameters, ConnectionParametersRecv, NetworkConfig};
use crate::status::{CompletionKind, NetioStatus};

/// Every family of calls carries messages both ways; each key comes back once, in send order, with its kind.
pub(super) fn all_families_carry_both_ways(world: &World) {
    let pair = Pair::with(world, Setup::buffers(8_192, 64));
    let plans = [
        Plan::zero_copy(3_000),
        Plan::zero_copy(3_000).header(16),
        Plan::zero_copy(40).pieces(5),
        Plan::copy(2_000).header(256),
        Plan::copy(30),
        Plan::copy(9_000).pieces(7).header(7),
        Plan::buffer(8_192),
        Plan::buffer(1),
        Plan::zero_copy(100_000).pieces(3),
    ];
    for _ in 0..4 {
        for plan in plans {
            pair.dialer.sent(pair.out, plan);
            pair.listener.sent(pair.back, plan);
        }
    }
    pair.deliver(world);
}

/// Keys are the caller's: any number comes back as it was, repeated ones as often as given.
pub(super) fn keys_come_back_as_given(world: &World) {
    let pair = Pair::new(world);
    for key in [0, u64::MAX, 7, 7, 7, 1 << 63, 0] {
        pair.dialer.sent(pair.out, Plan::zero_copy(2_000).key(key));
        pair.dialer.sent(pair.out, Plan::copy(20).key(key));
    }
    pair.deliver(world);
}

/// Completions come from the loop, never from inside the send or `flush`.
pub(super) fn completions_never_come_from_inside_the_send(world: &World) {
    let pair = Pair::new(world);
    for plan in [Plan::copy(1), Plan::zero_copy(200_000), Plan::copy(200_000)] {
        pair.dialer.sent(pair.out, plan);
        assert_eq!(pair.dialer.backend().flush(pair.out), Ok(()));
    }
    assert_eq!(pair.dialer.completed(pair.out), 0);
    pair.deliver(world);
}

/// The receiver sees one slice: header, then payload.
pub(super) fn the_header_is_prepended(world: &World) {
    let pair = Pair::new(world);
    [&pair.dialer, &pair.listener].into_iter().for_each(Node::counts_itself);
    let got = Rc::new(RefCell::new(Vec::new()));
    let seen = got.clone();
    pair.listener.on(Kind::Data, move |call| seen.borrow_mut().push(call.with_message(<[u8]>::to_vec)));
    let backend = pair.dialer.backend();
    let payload = Bytes::from_static(b"payload");
    let pieces = [IoSlice::new(b"pay"), IoSlice::new(b""), IoSlice::new(b"load")];
    assert_eq!(backend.send(pair.out, &payload, b"header:", 1), Ok(NetioStatus::Ok));
    assert_eq!(backend.send_iov(pair.out, &[payload.slice(..3), payload.slice(3..)], b"header:", 2), Ok(NetioStatus::Ok));
    assert_eq!(backend.send_copy(pair.out, &payload, b"header:", 3), Ok(NetioStatus::Ok));
    assert_eq!(backend.send_copy_iov(pair.out, &pieces, b"header:", 4), Ok(NetioStatus::Ok));
    assert_eq!(backend.send_iov(pair.out, &[], b"header:payload", 5), Ok(NetioStatus::Ok));
    drop(backend);
    world.until("five messages", || got.borrow().len() == 5);
    assert!(got.borrow().iter().all(|message| message == b"header:payload"));
}

/// Memory that tells when it is released.
struct Tracked {
    bytes: Vec<u8>,
    released: Arc<AtomicBool>,
    when_released: Option<Box<dyn FnOnce() + Send>>,
}

impl AsRef<[u8]> for Tracked {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.released.store(true, Ordering::SeqCst);
        if let Some(run) = self.when_released.take() {
            run();
        }
    }
}

/// Shared memory with a flag that is set when the last reference is gone.
pub(super) fn tracked(len: usize) -> (Bytes, Arc<AtomicBool>) {
    tracked_with(len, None)
}

/// The same; `when_released` runs as the memory is dropped.
pub(super) fn tracked_with(len: usize, when_released: Option<Box<dyn FnOnce() + Send>>) -> (Bytes, Arc<AtomicBool>) {
    let released = Arc::new(AtomicBool::new(false));
    (Bytes::from_owner(Tracked { bytes: vec![7; len], released: released.clone(), when_released }), released)
}

/// A completed message's memory is no longer referenced: it is released before its key is told.
pub(super) fn memory_is_released_when_the_key_comes_back(world: &World) {
    let pair = Pair::new(world);
    [&pair.dialer, &pair.listener].into_iter().for_each(Node::counts_itself);
    let flags = Rc::new(RefCell::new(Vec::new()));
    let back = Rc::new(Cell::new(0));
    let (seen, count) = (flags.clone(), back.clone());
    pair.dialer.on(Kind::Completed, move |call| {
        let super::journal::What::Completed(completions) = call.what else { return };
        for completion in completions {
            let flags: &Vec<Arc<AtomicBool>> = &seen.borrow();
            assert!(flags[completion.key as usize].load(Ordering::SeqCst), "{completion:?} while its memory is still held");
            count.set(count.get() + 1);
        }
    });
    for (key, len) in [10, 1_000, 2_000, 70_000, 1_000_000, 0].into_iter().enumerate() {
        let (bytes, released) = tracked(len);
        flags.borrow_mut().push(released);
        assert_eq!(pair.dialer.backend().send(pair.out, &bytes, b"", key as u64), Ok(NetioStatus::Ok));
    }
    world.until("all keys come back", || back.get() == 6);
}

/// A message that is not accepted is not held, whatever the status.
pub(super) fn a_refused_message_is_not_held(world: &World) {
    let setup = Setup {
        dialer: NetworkConfig { max_message_len: 100_000, ..config() },
        dial: ConnectionParameters { queue_messages: 1, ..Default::default() },
        ..Default::default()
    };
    let pair = Pair::with(world, setup);
    let refused = |len: usize, status: NetioStatus| {
        let (bytes, released) = tracked(len);
        assert_eq!(pair.dialer.backend().send_iov(pair.out, &[bytes.clone(), bytes], b"", 1), Ok(status));
        assert!(released.load(Ordering::SeqCst), "still held after {status:?}");
    };
    refused(60_000, NetioStatus::TooBig);
    pair.dialer.sent(pair.out, Plan::zero_copy(10));
    refused(10_000, NetioStatus::NoResources);
    pair.dialer.refused(pair.out);
    world.until("writable", || pair.dialer.writables(pair.out) == 1);
    pair.dialer.close(pair.out);
    refused(10_000, NetioStatus::NotConnected);
    pair.until_closed(world);
    let (bytes, released) = tracked(10_000);
    assert!(pair.dialer.backend().send(pair.out, &bytes, b"", 1).is_err());
    drop(bytes);
    assert!(released.load(Ordering::SeqCst), "still held after an error");
}

/// User memory is dropped with no lock or borrow held: its drop may call into the backend.
pub(super) fn the_drop_of_memory_may_call_the_backend(world: &World) {
    thread_local! {
        static SENDER: RefCell<Option<(Node, crate::Endpoint)>> = const { RefCell::new(None) };
        static CALLS: Cell<usize> = const { Cell::new(0) };
    }
    let pair = Pair::new(world);
    SENDER.set(Some((pair.dialer.clone(), pair.out)));
    for (i, len) in [100, 10_000, 100_000].into_iter().enumerate() {
        let call_back = || {
            // On whichever thread it is dropped, only the loop's has a node.
            let Some((node, out)) = SENDER.take() else { return };
            let backend = node.backend();
            assert!(!backend.connections().is_empty());
            backend.stats(out).expect("it is there");
            backend.flush(out).expect("it is there");
            drop(backend);
            node.sent(out, Plan::copy(33));
            SENDER.set(Some((node, out)));
            CALLS.set(CALLS.get() + 1);
        };
        let (bytes, _) = tracked_with(len, Some(Box::new(call_back)));
        let plain = bytes.to_vec();
        assert_eq!(pair.dialer.backend().send(pair.out, &bytes, b"", 5), Ok(NetioStatus::Ok));
        pair.dialer.accepted(pair.out, 5, CompletionKind::ZeroCopy, &plain);
        drop(bytes);
        world.until("the memory is dropped, and what it sent arrives", || {
            CALLS.get() == i + 1 && pair.listener.received(pair.back) == 2 * (i + 1)
        });
    }
    pair.deliver(world);
    SENDER.set(None);
}

/// What is sent, and leaves, while the memory of another message is dropped is told when its own memory is dropped, too.
pub(super) fn memory_sent_in_a_drop_is_released_when_the_key_comes_back(world: &World) {
    thread_local! {
        static SENDER: RefCell<Option<(Node, crate::Endpoint)>> = const { RefCell::new(None) };
    }
    let pair = Pair::new(world);
    [&pair.dialer, &pair.listener].into_iter().for_each(Node::counts_itself);
    let back = Rc::new(Cell::new(0));
    let count = back.clone();
    // The memory of the message whose key is 2.
    let released = Arc::new(Mutex::new(None::<Arc<AtomicBool>>));
    let flag = released.clone();
    pair.dialer.on(Kind::Completed, move |call| {
        let super::journal::What::Completed(completions) = call.what else { return };
        for completion in completions {
            let flag = flag.lock().take_if(|_| completion.key == 2);
            assert!(flag.is_none_or(|flag| flag.load(Ordering::SeqCst)), "{completion:?} while its memory is still held");
            count.set(count.get() + 1);
        }
    });
    for (i, len) in [(0, 10), (1, 10_000), (2, 100_000)] {
        SENDER.set(Some((pair.dialer.clone(), pair.out)));
        let released = released.clone();
        let send_another = move || {
            let Some((node, out)) = SENDER.take() else { return };
            let (bytes, flag) = tracked(len);
            *released.lock() = Some(flag);
            assert_eq!(node.backend().send(out, &bytes, b"", 2), Ok(NetioStatus::Ok));
            node.backend().flush(out).expect("it is there");
        };
        let (bytes, _) = tracked_with(50_000, Some(Box::new(send_another)));
        assert_eq!(pair.dialer.backend().send(pair.out, &bytes, b"", 1), Ok(NetioStatus::Ok));
        drop(bytes);
        world.until("both keys come back", || back.get() == 2 * (i + 1));
    }
}

/// So it is when the connection ends just then.
pub(super) fn memory_is_released_when_the_key_comes_back_at_the_end(world: &World) {
    let pair = Pair::new(world);
    [&pair.dialer, &pair.listener].into_iter().for_each(Node::counts_itself);
    let released = Rc::new(RefCell::new(Vec::<Arc<AtomicBool>>::new()));
    let seen = released.clone();
    pair.dialer.on(Kind::Completed, move |call| {
        let super::journal::What::Completed(completions) = call.what else { return };
        for completion in completions {
            assert!(seen.borrow()[completion.key as usize].load(Ordering::SeqCst), "{completion:?} while its memory is still held");
        }
    });
    pair.listener.on(Kind::Data, |call| _ = call.backend.abort(call.endpoint));
    let mut out = pair.out;
    for round in 0..40 {
        for len in [300, 30_000] {
            let (bytes, flag) = tracked(len);
            let key = released.borrow().len() as u64;
            released.borrow_mut().push(flag);
            assert_eq!(pair.dialer.backend().send(out, &bytes, b"", key), Ok(NetioStatus::Ok), "round {round}");
        }
        world.until("it is closed", || pair.dialer.closing(out).is_some());
        out = pair.another(world).0;
    }
}

/// The copying calls have taken the bytes when they return: the caller may overwrite them.
pub(super) fn copied_bytes_are_taken_before_the_call_returns(world: &World) {
    let pair = Pair::new(world);
    [&pair.dialer, &pair.listener].into_iter().for_each(Node::counts_itself);
    let got = Rc::new(RefCell::new(Vec::new()));
    let seen = got.clone();
    pair.listener.on(Kind::Data, move |call| seen.borrow_mut().push(call.with_message(<[u8]>::to_vec)));
    let mut memory = vec![0; 50_000];
    let mut header = [0; 8];
    for round in 1..=10 {
        memory.fill(round);
        header.fill(round);
        let (front, tail) = memory.split_at(20_000);
        let sent = match round % 2 {
            0 => pair.dialer.backend().send_copy(pair.out, &memory, &header, 1),
            _ => pair.dialer.backend().send_copy_iov(pair.out, &[IoSlice::new(front), IoSlice::new(tail)], &header, 1),
        };
        assert_eq!(sent, Ok(NetioStatus::Ok));
        memory.fill(0);
        header.fill(0);
        let shared = Bytes::from_static(b"");
        header.fill(round + 100);
        assert_eq!(pair.dialer.backend().send(pair.out, &shared, &header, 2), Ok(NetioStatus::Ok), "the header is taken, too");
        header.fill(0);
    }
    world.until("all arrive", || got.borrow().len() == 20);
    for (i, message) in got.borrow().iter().enumerate() {
        let (round, copied) = (i as u8 / 2 + 1, i % 2 == 0);
        let expected = if copied { vec![round; 50_008] } else { vec![round + 100; 8] };
        assert!(*message == expected, "message {i}");
    }
}

/// The messages of a batch arrive and come back like others, between others, however many and however long they are.
pub(super) fn a_batch_is_sent_like_its_messages_one_by_one(world: &World) {
    let pair = Pair::new(world);
    for (sender, to, ..) in pair.directions() {
        for (count, longest) in [(0, 1), (1, 100), (2, 3_000), (64, 64), (200, 1), (1_000, 90), (30, 100_000), (9, 70_001), (20, 400_000)] {
            let lengths: Vec<_> = (0..count).map(|i| (i % 17, 17 + i * 77_773 % longest)).collect();
            assert_eq!(sender.send_batch(&*sender.backend(), to, &lengths), Ok((count, NetioStatus::Ok)));
            sender.sent(to, Plan::zero_copy(3_000));
            assert_eq!(sender.send_batch(&*sender.backend(), to, &[(0, 0), (5, 5)]), Ok((2, NetioStatus::Ok)));
        }
        pair.deliver(world);
    }
}

/// A batch is taken up to the first message that is not accepted, whose status is told; of a connection that never was, or
/// is no more, none is.
pub(super) fn a_batch_ends_at_the_first_message_that_is_not_accepted(world: &World) {
    let dialer = NetworkConfig { max_message_len: 10_000, ..config() };
    let pair = Pair::with(world, Setup { dialer, ..Setup::default() });
    let (sender, out) = (&pair.dialer, pair.out);
    for (refused, at) in [((0, 10_001), 0), ((0, 10_001), 5), ((257, 300), 0), ((257, 300), 70), ((0, 1 << 20), 90)] {
        let mut lengths = vec![(3, 80); 100];
        lengths[at] = refused;
        assert_eq!(sender.send_batch(&*sender.backend(), out, &lengths), Ok((at, NetioStatus::TooBig)));
    }
    pair.deliver(world);
    let new = sender.connect(pair.address, &pair.setup.dial);
    assert_eq!(sender.send_batch(&*sender.backend(), new, &[(0, 5); 3]), Ok((0, NetioStatus::NotConnected)));
    assert_eq!(sender.send_batch(&*sender.backend(), out, &[(0, 5); 3]), Ok((3, NetioStatus::Ok)));
    sender.close(out);
    assert_eq!(sender.send_batch(&*sender.backend(), out, &[(0, 5); 3]), Ok((0, NetioStatus::NotConnected)));
    world.until("closed", || sender.closing(out).is_some() && pair.listener.closing(pair.back).is_some());
}

/// An accepted message leaves at the latest at the end of the loop's turn, whatever follows or not.
pub(super) fn an_accepted_message_leaves_with_the_turn(world: &World) {
    let far = world.another_loop();
    let listener = far.node("listener", config());
    let dialer = world.node("dialer", config());
    let (out, back) = connected_across(world, &far, &dialer, &listener);
    for (round, plan) in [Plan::copy(1), Plan::copy(2_000), Plan::zero_copy(10), Plan::zero_copy(5_000)].into_iter().enumerate() {
        dialer.sent(out, plan);
        world.turn();
        far.until("it has left after one turn", || listener.received(back) == 2 * round + 1);
        // The same from inside a callback: the turn in which it runs is the one.
        dialer.once(Kind::Data, move |call| assert_eq!(call.send(call.endpoint, plan), NetioStatus::Ok));
        let before = dialer.received(out);
        listener.sent(back, Plan::copy(8));
        far.turn();
        world.until("the callback runs", || dialer.received(out) > before);
        far.until("it has left after that turn", || listener.received(back) == 2 * round + 2);
    }
}

/// So does what a callback of completions sends, however often one of its turn has done so before.
pub(super) fn what_a_callback_of_completions_sends_leaves_with_the_turn(world: &World) {
    let far = world.another_loop();
    let listener = far.node("listener", config());
    let dialer = world.node("dialer", config());
    let (out, back) = connected_across(world, &far, &dialer, &listener);
    let left = Rc::new(Cell::new(0));
    let to_send = left.clone();
    dialer.on(Kind::Completed, move |call| {
        if to_send.get() > 0 {
            to_send.set(to_send.get() - 1);
            assert_eq!(call.send(call.endpoint, Plan::copy(100)), NetioStatus::Ok);
        }
    });
    for more in 1..=6 {
        let all = dialer.tally(out).accepted + 1 + more;
        left.set(more);
        dialer.sent(out, Plan::copy(100));
        // The last turn is the one in which the last message was accepted.
        world.until_turn("all are accepted", || left.get() == 0);
        far.until("the last one has left, too", || listener.received(back) == all);
        world.until("all keys are back", || dialer.completed(out) == all);
    }
}

/// `flush` starts sending what is queued without ending the turn.
pub(super) fn flush_is_harmless_at_any_time(world: &World) {
    let pair = Pair::new(world);
    let backend = pair.dialer.backend();
    for _ in 0..3 {
        assert_eq!(backend.flush(pair.out), Ok(()));
        pair.dialer.sent(pair.out, Plan::copy(100));
        assert_eq!(backend.flush(pair.out), Ok(()));
        pair.dialer.sent(pair.out, Plan::zero_copy(100_000));
        assert_eq!(backend.flush(pair.out), Ok(()));
        assert_eq!(backend.flush(pair.out), Ok(()));
    }
    drop(backend);
    pair.deliver(world);
}

/// The accepted side may be the first to send, from inside its *established*.
pub(super) fn the_accepted_side_may_send_first(world: &World) {
    let listener = world.node("listener", config());
    let dialer = world.node("dialer", config());
    let address = listener.listen(world.harness.listen_address(), &ConnectionParametersRecv::default());
    listener.on(Kind::Established, |call| {
        (0..3).for_each(|i| assert_eq!(call.send(call.endpoint, Plan::copy(i * 700)), NetioStatus::Ok));
    });
    dialer.on(Kind::Established, |call| assert_eq!(call.send(call.endpoint, Plan::zero_copy(44)), NetioStatus::Ok));
    for _ in 0..20 {
        let (out, back) = connected(world, &dialer, &listener, || dialer.connect(address, &ConnectionParameters::default()));
        world.until("the greetings arrive", || dialer.received(out) == 3 && listener.received(back) == 1);
    }
}

/// `flush` starts sending at once, not at the end of the turn; on the synchronized kind it only asks the loop to.
pub(super) fn flush_sends_without_waiting_for_the_turn(world: &World) {
    let far = world.another_loop();
    let listener = far.node("listener", config());
    let dialer = world.node("dialer", config());
    let (out, back) = connected_across(world, &far, &dialer, &listener);
    for (round, plan) in [Plan::copy(10), Plan::zero_copy(5_000)].into_iter().enumerate() {
        dialer.sent(out, plan);
        assert_eq!(dialer.backend().flush(out), Ok(()));
        if world.harness.is_synchronized() {
            world.turn();
        }
        far.until("it has left", || listener.received(back) == round + 1);
        world.until("its key comes back", || dialer.completed(out) == round + 1);
    }
}
