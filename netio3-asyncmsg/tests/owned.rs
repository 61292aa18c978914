//! Messages that the user took over and drops on another thread.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use netio3_core::{
    ClosedReason, ConnectionParameters, ConnectionParametersRecv, EndPointAddress, Endpoint, EventLoop, Handlers, NetioStatus,
    NetworkBackend, NetworkConfig,
};
use netio3_evloop::EpollEventLoop;

/// Floods a receiver that takes every message over and has them dropped elsewhere, at a cap of two messages.
fn flood(size: usize, messages: u64) {
    let ev = EpollEventLoop::new().unwrap();
    let (hand_over, taken_over) = mpsc::channel::<Bytes>();
    let dropper = std::thread::spawn(move || taken_over.into_iter().for_each(drop));

    let received = Rc::new(Cell::new(0));
    let ended: Rc<Cell<Option<ClosedReason>>> = Rc::default();
    let (count, end) = (received.clone(), ended.clone());
    let receiver = Handlers::new()
        .on_data(move |_, _, _, message| {
            assert_eq!(message.first_chunk(), Some(&u64::to_le_bytes(count.get())), "messages come in order");
            assert!(message[8..].iter().all(|byte| *byte == count.get() as u8));
            count.set(count.get() + 1);
            hand_over.send(message.into_bytes()).unwrap();
        })
        .on_connection_closed(move |_, _, _, _, reason| end.set(Some(reason)));
    let config = NetworkConfig { owned_bytes: 2 * size, ..Default::default() };
    let receiver = netio3_asyncmsg::create_local(config, Box::new(receiver), &ev).unwrap();
    let address = receiver.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default()).unwrap();

    let sent = Cell::new(0u64);
    let fill = Rc::new(move |backend: &dyn NetworkBackend, to: Endpoint| {
        let mut data = vec![0; size];
        while sent.get() < messages {
            data.fill(sent.get() as u8);
            data[..8].copy_from_slice(&sent.get().to_le_bytes());
            match backend.send_copy(to, &data, &[], sent.get()).unwrap() {
                NetioStatus::Ok => sent.set(sent.get() + 1),
                NetioStatus::NoResources => return,
                status => panic!("{status}"),
            }
        }
    });
    let refill = fill.clone();
    let sender = Handlers::new()
        .on_connection_established(move |backend, connection| fill(backend, connection.endpoint))
        .on_writable(move |backend, to, _| refill(backend, to));
    let sender = netio3_asyncmsg::create_local(NetworkConfig::default(), Box::new(sender), &ev).unwrap();
    sender.connect(&address, &ConnectionParameters::default()).unwrap();

    ev.run_until(&mut || received.get() == messages || ended.get().is_some(), Duration::from_secs(60)).unwrap();
    assert_eq!((received.get(), ended.get()), (messages, None));
    drop((sender, receiver, ev));
    dropper.join().unwrap();
}

#[test]
fn small_messages_dropped_elsewhere_at_the_cap_stay_in_order() {
    flood(5_000, 10_000);
}

#[test]
fn large_messages_dropped_elsewhere_at_the_cap_stay_in_order() {
    flood(300_000, 300);
}
