//! Registered memory.

use bytes::Bytes;

use super::node::Node;
use super::pair::{Pair, Setup, fill_by};
use super::plan::Plan;
use super::world::{World, config};
use crate::config::NetworkConfig;
use crate::endpoint::Endpoint;
use crate::error::{DeregisterError, RegisterError};
use crate::memory::MemoryRegion;
use crate::status::{CompletionKind, NetioStatus};

/// A region filled with a pattern, and its bytes.
fn region(len: usize) -> (MemoryRegion, Bytes) {
    let mut region = MemoryRegion::new(len).expect("memory");
    let filled = region.as_mut_slice().expect("the only handle");
    filled.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i * 31 / 7) as u8);
    let bytes = region.bytes().expect("it is not cut");
    (region, bytes)
}

/// Sends bytes by hand, journalled.
fn send(node: &Node, to: Endpoint, data: &[Bytes]) -> NetioStatus {
    let status = node.backend().send_iov(to, data, b"", 9).expect("the connection is there");
    if status == NetioStatus::Ok {
        node.accepted(to, 9, CompletionKind::ZeroCopy, &data.concat());
    }
    status
}

/// A handle of another backend's is unknown, though that has as many.
pub(super) fn a_region_of_another_backend_is_unknown(world: &World) {
    let pair = Pair::new(world);
    let [one, two] = [&pair.dialer, &pair.listener].map(|node| node.backend().register(&region(4_096).0).expect("there is room"));
    assert_eq!(pair.dialer.backend().deregister(two), Err(DeregisterError::Unknown(two)));
    pair.listener.backend().deregister(two).expect("nothing holds it");
    pair.dialer.backend().deregister(one).expect("nothing holds it");
}

/// A registered region can be sent from, in part and in pieces, on every connection.
pub(super) fn registered_memory_is_sent_from(world: &World) {
    let pair = Pair::new(world);
    let (region, bytes) = region(100_000);
    let id = pair.dialer.backend().register(&region).expect("there is room");
    let total = pair.dialer.backend().totals();
    assert!(total.registered_bytes.get() >= 100_000);
    for cut in [0..1, 5..4_000, 0..100_000, 99_999..100_000] {
        assert_eq!(send(&pair.dialer, pair.out, &[bytes.slice(cut)]), NetioStatus::Ok);
    }
    assert_eq!(send(&pair.dialer, pair.out, &[bytes.slice(..10), Bytes::new(), bytes.slice(50..9_000)]), NetioStatus::Ok);
    pair.deliver(world);
    pair.dialer.backend().deregister(id).expect("nothing holds it");
    assert_eq!(total.registered_bytes.get(), 0);
    assert_eq!(send(&pair.dialer, pair.out, &[bytes]), NetioStatus::Ok, "without strict regions it need not be registered");
    pair.deliver(world);
}

/// Memory may be registered and deregistered while a connection is being opened, whatever is opened for that.
pub(super) fn memory_is_registered_while_a_connection_opens(world: &World) {
    let listener = world.node("listener", config());
    let address = listener.listen(world.harness.listen_address(), &Default::default());
    let (region, bytes) = region(100_000);
    // What a backend opens for its first connection it has from then on.
    for name in ["first", "second", "third", "fourth"] {
        let dialer = world.node(name, config());
        let out = dialer.open(address, &Default::default());
        world.until("established", || {
            for _ in 0..2_000 {
                let id = dialer.backend().register(&region).expect("there is room");
                dialer.backend().deregister(id).expect("nothing holds it");
            }
            dialer.is_established(out)
        });
        let id = dialer.backend().register(&region).expect("there is room");
        assert_eq!(send(&dialer, out, std::slice::from_ref(&bytes)), NetioStatus::Ok);
        world.until("the key comes back", || dialer.completed(out) == 1);
        dialer.backend().deregister(id).expect("nothing holds it");
    }
}

/// One region more than `max_regions` is `TooManyRegions`, which names the limit; a place freed can be used.
pub(super) fn the_limit_of_regions_is_told(world: &World) {
    let node = world.node("node", NetworkConfig { max_regions: 3, ..config() });
    let regions: Vec<_> = (0..4).map(|_| MemoryRegion::new(4_096).expect("memory")).collect();
    let ids: Vec<_> = regions[..3].iter().map(|region| node.backend().register(region).expect("there is room")).collect();
    let refused = node.backend().register(&regions[3]).expect_err("there is none");
    assert!(matches!(refused, RegisterError::TooManyRegions { limit: 3 }), "{refused:?}");
    assert!(refused.to_string().contains('3'));
    node.backend().deregister(ids[1]).expect("nothing holds it");
    let again = node.backend().register(&regions[3]).expect("there is room now");
    assert!(!ids.contains(&again), "names are never reused");
    assert_eq!(node.backend().deregister(ids[1]), Err(DeregisterError::Unknown(ids[1])));
}

/// A region is `Busy` while accepted sends hold it, and can be taken back once their keys are.
pub(super) fn a_region_is_busy_while_sends_hold_it(world: &World) {
    let pair = Pair::with(world, Setup::tight());
    let (region, bytes) = region(50_000);
    let id = pair.dialer.backend().register(&region).expect("there is room");
    pair.listener.backend().pause(pair.back).expect("it is there");
    fill_by(world, &pair.dialer, pair.out, || {
        let status = send(&pair.dialer, pair.out, &[bytes.slice(..40_000)]);
        if status == NetioStatus::NoResources {
            pair.dialer.refused(pair.out);
        }
        status
    });
    assert_eq!(pair.dialer.backend().deregister(id), Err(DeregisterError::Busy(id)));
    pair.listener.backend().resume(pair.back).expect("it is there");
    pair.deliver(world);
    assert_eq!(pair.dialer.backend().deregister(id), Ok(()));
}

/// With strict regions, zero-copy bytes outside every region are `NotRegistered`; all else goes as ever.
pub(super) fn strict_regions_refuse_other_memory(world: &World) {
    let dialer = NetworkConfig { strict_regions: true, ..config() };
    let setup = Setup { dialer, ..Setup::buffers(1_000, 2) };
    let pair = Pair::with(world, setup);
    let (region, bytes) = region(10_000);
    assert_eq!(send(&pair.dialer, pair.out, &[bytes.slice(..100)]), NetioStatus::NotRegistered);
    let id = pair.dialer.backend().register(&region).expect("there is room");
    assert_eq!(send(&pair.dialer, pair.out, std::slice::from_ref(&bytes)), NetioStatus::Ok);
    assert_eq!(send(&pair.dialer, pair.out, &[Bytes::new(), bytes.slice(3..4)]), NetioStatus::Ok, "empty pieces lie nowhere");
    assert_eq!(send(&pair.dialer, pair.out, &[]), NetioStatus::Ok);
    let outside = Bytes::from(vec![1; 100]);
    assert_eq!(send(&pair.dialer, pair.out, std::slice::from_ref(&outside)), NetioStatus::NotRegistered);
    assert_eq!(send(&pair.dialer, pair.out, &[bytes.slice(..9), outside]), NetioStatus::NotRegistered);
    pair.dialer.sent(pair.out, Plan::copy(5_000).header(50));
    pair.dialer.sent(pair.out, Plan::buffer(900));
    pair.listener.sent(pair.back, Plan::zero_copy(5_000));
    pair.deliver(world);
    pair.dialer.backend().deregister(id).expect("nothing holds it");
    assert_eq!(send(&pair.dialer, pair.out, &[bytes]), NetioStatus::NotRegistered);
    assert_eq!(pair.dialer.writables(pair.out), 0, "that is no refusal for want of resources");
}

/// Two regions held by one message are both busy until it is done.
pub(super) fn one_message_may_hold_two_regions(world: &World) {
    let pair = Pair::new(world);
    let ((one, bytes_one), (two, bytes_two)) = (region(20_000), region(30_000));
    let ids = [&one, &two].map(|region| pair.dialer.backend().register(region).expect("there is room"));
    // Less than what is flushed at once, so that it is held until the loop runs.
    assert_eq!(send(&pair.dialer, pair.out, &[bytes_one.clone(), bytes_two.clone(), bytes_one.slice(..50)]), NetioStatus::Ok);
    assert!(ids.iter().all(|id| pair.dialer.backend().deregister(*id) == Err(DeregisterError::Busy(*id))), "the loop has not run since");
    pair.deliver(world);
    assert!(ids.iter().all(|id| pair.dialer.backend().deregister(*id).is_ok()));
}
