//! Every kind of backend through the one door, and everything else a program needs from this crate alone.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use netio3::bytes::Bytes;
use netio3::{
    Callbacks, ConnectionParameters, ConnectionParametersRecv, CreateError, EndPointAddress, EpollEventLoop, EventLoop, Handlers,
    NetioStatus, NetworkConfig, NetworkType, create, create_local,
};

const LIMIT: Duration = Duration::from_secs(20);

fn usable() -> impl Iterator<Item = NetworkType> {
    NetworkType::ALL.into_iter().filter(|kind| match kind.availability() {
        Ok(()) => true,
        Err(error) => {
            println!("skipped: {error}");
            false
        }
    })
}

#[test]
fn a_message_goes_there_and_back_over_every_backend() {
    for kind in usable() {
        let ev = EpollEventLoop::new().unwrap();
        let echo = Handlers::new().on_data(|backend, from, _, message| {
            assert_eq!(backend.send_copy(from, &message, b"re: ", 0), Ok(NetioStatus::Ok));
        });
        let server = create_local(kind, NetworkConfig::default(), Box::new(echo), &ev).unwrap();
        let address = server.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default()).unwrap();
        let answered = Rc::new(Cell::new(false));
        let client = Handlers::new()
            .on_connection_established(|backend, connection| {
                let data = Bytes::from_static(b"hello");
                assert_eq!(backend.send(connection.endpoint, &data, &[], 1), Ok(NetioStatus::Ok));
            })
            .on_data({
                let answered = answered.clone();
                move |_, _, _, message| answered.set(&message[..] == b"re: hello")
            });
        let client = create_local(kind, NetworkConfig::default(), Box::new(client), &ev).unwrap();
        client.open_send_endpoint(&address, &ConnectionParameters::default()).unwrap();
        assert!(ev.run_until(&mut || answered.get(), LIMIT).unwrap(), "{kind}");
    }
}

#[test]
fn other_threads_send_over_every_synchronized_backend() {
    const EACH: u64 = 500;
    for kind in usable() {
        let ev = EpollEventLoop::new().unwrap();
        let received = Arc::new(AtomicU64::new(0));
        let count = received.clone();
        let sink = Handlers::new().on_data(move |_, _, _, message| {
            count.fetch_add(message.len() as u64, Ordering::Relaxed);
        });
        let server = create(kind, NetworkConfig::default(), Box::new(sink), &ev).unwrap();
        let address = server.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default()).unwrap();
        let established = Arc::new(AtomicU64::new(0));
        let connected = established.clone();
        let callbacks = Handlers::new().on_connection_established(move |_, _| {
            connected.store(1, Ordering::Relaxed);
        });
        let client = create(kind, NetworkConfig::default(), Box::new(callbacks), &ev).unwrap();
        let endpoint = client.open_send_endpoint(&address, &ConnectionParameters::default()).unwrap();
        assert!(ev.run_until(&mut || established.load(Ordering::Relaxed) == 1, LIMIT).unwrap(), "{kind}");
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for key in 0..EACH {
                        while client.send_copy(endpoint, &[7; 10], &[], key) != Ok(NetioStatus::Ok) {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            let all = || received.load(Ordering::Relaxed) == 3 * EACH * 10;
            assert!(ev.run_until(&mut { all }, LIMIT).unwrap(), "{kind}");
        });
    }
}

#[test]
fn what_cannot_be_used_says_so_by_either_door() {
    struct Nothing;
    impl Callbacks for Nothing {}
    let ev = EpollEventLoop::new().unwrap();
    for kind in NetworkType::ALL {
        let Err(expected) = kind.availability() else { continue };
        let local = create_local(kind, NetworkConfig::default(), Box::new(Nothing), &ev).err().unwrap();
        let synchronized = create(kind, NetworkConfig::default(), Box::new(Nothing), &ev).err().unwrap();
        for error in [local, synchronized] {
            assert_eq!(error.to_string(), expected.to_string());
            assert!(matches!(error, CreateError::NotCompiledIn { .. } | CreateError::NotAvailable { .. }));
        }
    }
}

#[test]
fn a_senseless_configuration_is_refused_by_every_backend() {
    let ev = EpollEventLoop::new().unwrap();
    for kind in usable() {
        let config = NetworkConfig { max_message_len: 0, ..Default::default() };
        let error = create_local(kind, config, Box::new(Handlers::new()), &ev).err().unwrap();
        assert!(matches!(error, CreateError::Config { field: "max_message_len", .. }), "{error}");
    }
}

#[test]
fn nothing_of_the_other_crates_is_missing_here() {
    let here = include_str!("../src/lib.rs");
    let own: Vec<&str> = here.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    for (name, source) in
        [("netio3-core", include_str!("../../netio3-core/src/lib.rs")), ("netio3-evloop", include_str!("../../netio3-evloop/src/lib.rs"))]
    {
        for list in source.split("\npub use ").skip(1).map(|rest| rest.split(';').next().unwrap()) {
            let (_, items) = list.rsplit_once("::").unwrap();
            for item in items.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|item| !item.is_empty()) {
                assert!(own.contains(&item), "{name} has {item}");
            }
        }
    }
}
