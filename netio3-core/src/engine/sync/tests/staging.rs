//! The single-threaded backend before the transport that goes nowhere: what is granted and staged.

use std::io::IoSlice;
use std::sync::mpsc::{self, Receiver};

use super::mock::{MockLoop, MockOpener, MockTransport};
use super::{ADDRESS, Tell, Told};
use crate::address::EndPointAddress;
use crate::backend::NetworkBackend;
use crate::config::{ConnectionParameters, NetworkConfig};
use crate::endpoint::Endpoint;
use crate::engine::local::create_local;
use crate::memory::{MemoryRegion, RawSlice};
use crate::status::NetioStatus;

/// A backend with a connection.
pub(super) struct Scene {
    pub(super) backend: Box<dyn NetworkBackend>,
    pub(super) to: Endpoint,
    pub(super) wire: MockTransport,
    pub(super) ev: MockLoop,
    pub(super) told: Receiver<Told>,
}

pub(super) fn connected(params: &ConnectionParameters) -> Scene {
    within(NetworkConfig::default(), params)
}

fn within(config: NetworkConfig, params: &ConnectionParameters) -> Scene {
    let (ev, wire) = (MockLoop::new(), MockTransport::default());
    let (tell, told) = mpsc::channel();
    let backend = create_local(wire.clone(), MockOpener::default(), config, Box::new(Tell(tell)), &ev).unwrap();
    let to = backend.open_send_endpoint(&EndPointAddress::localhost(ADDRESS), params).unwrap();
    ev.readable(to.slot());
    ev.turn();
    Scene { backend, to, wire, ev, told }
}

#[test]
fn a_grant_ends_with_the_flush_even_where_nothing_can_be_staged() {
    let Scene { backend, to, ev, .. } = &connected(&ConnectionParameters { flush_messages: Some(2), ..Default::default() });
    for key in 0..2 {
        assert_eq!(backend.send_copy(*to, b"x", b"", key), Ok(NetioStatus::Ok));
    }
    ev.turn();
    ev.turn();
    assert_eq!(backend.send_copy(*to, b"x", b"", 2), Ok(NetioStatus::Ok));
    assert!(ev.is_scheduled(), "it is listed for a flush");
}

#[test]
fn only_messages_that_can_be_staged_ask_for_it() {
    let region = MemoryRegion::new(4_096).unwrap();
    let registered = region.bytes().unwrap().slice(..64);
    let Scene { backend, to, wire, ev, .. } = &connected(&ConnectionParameters::default());
    backend.register(&region).unwrap();
    let raw = RawSlice::new(registered.as_ptr(), registered.len());
    for key in 0..100 {
        assert_eq!(backend.send(*to, &registered, b"", key), Ok(NetioStatus::Ok));
    }
    ev.turn();
    for key in 0..100 {
        // SAFETY: the region outlives the backend.
        #[allow(unsafe_code, reason = "the call whose contract the compiler cannot check")]
        let status = unsafe { backend.send_raw_iov(*to, &[raw], b"", key) };
        assert_eq!(status, Ok(NetioStatus::Ok));
    }
    ev.turn();
    for key in 0..100 {
        assert_eq!(backend.send_copy(*to, &[1; 10_000], b"", key), Ok(NetioStatus::Ok));
    }
    assert_eq!(wire.asked.get(), 0);
    ev.turn();
    for key in 0..100 {
        assert_eq!(backend.send_copy_iov(*to, &[IoSlice::new(b"x")], b"", key), Ok(NetioStatus::Ok));
    }
    assert_eq!(wire.asked.get(), 1, "once for all");
}

#[test]
fn who_flushes_each_message_stages_none() {
    let Scene { backend, to, wire, ev, .. } = &connected(&ConnectionParameters { flush_messages: Some(1), ..Default::default() });
    for key in 0..100 {
        assert_eq!(backend.send_copy(*to, b"x", b"", key), Ok(NetioStatus::Ok));
    }
    assert_eq!(wire.asked.get(), 0);
    ev.turn();
}

#[test]
fn what_has_no_room_for_a_message_is_not_staged() {
    let one_message = ConnectionParameters { queue_messages: 2, ..Default::default() };
    let Scene { backend, to, wire, ev, .. } = &connected(&one_message);
    for key in 0..2 {
        assert_eq!(backend.send_copy(*to, b"x", b"", key), Ok(NetioStatus::Ok));
    }
    assert_eq!(wire.asked.get(), 0);
    ev.turn();
    // A portion of what all queues together may hold.
    let Scene { backend, to, wire, ev, .. } =
        &within(NetworkConfig { total_queue_bytes: 1 << 20, ..NetworkConfig::default() }, &ConnectionParameters::default());
    for key in 0..100 {
        assert_eq!(backend.send_copy(*to, &[1; 1_020], b"", key), Ok(NetioStatus::Ok));
    }
    assert_eq!(wire.asked.get(), 0);
    ev.turn();
}
