//! `recv` and `send`, `echo` and `ping`: everything arrives, and the report says so.

use crate::util::{backends, fabric, pair, run, start};
use serde_json::Value;

const FIELDS: [&str; 24] = [
    "role",
    "backend",
    "provider",
    "mode",
    "size",
    "connections",
    "messages",
    "bytes",
    "seconds",
    "msgs_per_s",
    "gbytes_per_s",
    "rtt_us",
    "turn_us",
    "cpu_s",
    "max_rss_kib",
    "lost",
    "duplicated",
    "reordered",
    "corrupted",
    "verified",
    "refused_sends",
    "calls",
    "slowest",
    "error",
];

/// Sends a number of messages and checks both reports.
#[track_caller]
fn transfer(backend: &str, more: &str, size: usize, messages: u64, connections: u32) -> (Value, Value) {
    let passive = format!("recv --listen 127.0.0.1:0 --backend {backend} --json");
    let active = format!("send --backend {backend} --size {size} --messages {messages} --connections {connections} --verify --json {more}");
    let (received, sent) = pair(&passive, &active);
    let (received, sent) = (received.delivered(), sent.delivered());
    for (object, role) in [(&received, "recv"), (&sent, "send")] {
        for field in FIELDS {
            assert!(object.get(field).is_some(), "{field}: {object}");
        }
        assert_eq!((&object["role"], &object["backend"]), (&role.into(), &backend.into()), "{object}");
        assert_eq!(object["size"], size, "{object}");
        assert_eq!(object["messages"], messages, "{object}");
        assert_eq!(object["bytes"], messages * size as u64, "{object}");
        assert_eq!(object["connections"], connections, "{object}");
        assert!(messages == 0 || object["seconds"].as_f64().unwrap() > 0.0, "{object}");
        assert!(object["max_rss_kib"].as_u64().unwrap() > 0, "{object}");
    }
    assert_eq!(received["mode"], sent["mode"]);
    (received, sent)
}

#[test]
fn all_modes_of_tcp() {
    for mode in ["zero-copy", "copy", "buffered"] {
        for (size, messages) in [(0, 3_000), (1, 3_000), (7, 3_000), (8, 3_000), (64, 50_000), (5_000, 3_000), (1 << 20, 40)] {
            let (_, sent) = transfer("tcp", &format!("--mode {mode}"), size, messages, 1);
            assert_eq!(sent["mode"], mode);
        }
    }
}

#[test]
fn threads_send_through_the_synchronized_backend() {
    for backend in backends().filter(|backend| !backend.starts_with("raw")) {
        for mode in ["zero-copy", "copy", "buffered"] {
            for connections in [1, 4] {
                transfer(backend, &format!("--mode {mode} --threads"), 64, 20_000, connections);
            }
        }
    }
}

#[test]
fn idle_connections_stay_beside_those_that_send() {
    for backend in backends() {
        let passive = format!("recv --listen 127.0.0.1:0 --backend {backend} --json");
        let active = format!("send --backend {backend} --size 100 --messages 1000 --connections 2 --idle 20 --verify --json");
        let (received, sent) = pair(&passive, &active);
        for object in [received.delivered(), sent.delivered()] {
            assert_eq!((&object["messages"], &object["connections"]), (&1_000.into(), &22.into()), "{backend}: {object}");
        }
    }
}

#[test]
fn small_messages_share_calls_and_completions() {
    for backend in backends().filter(|backend| !backend.starts_with("raw")) {
        let (received, sent) = transfer(backend, "", 64, 50_000, 1);
        let calls = |object: &Value, kind: &str| object["calls"][kind].as_u64().expect("it is told");
        let (writes, signalled, reads) = (calls(&sent, "writes"), calls(&sent, "signalled"), calls(&received, "reads"));
        assert!(writes > 0 && writes <= 5_000 && signalled <= writes && reads > 0, "{backend}: {sent} {received}");
        assert!((backend == "rdma") == (signalled > 0), "{backend}: {sent}");
    }
}

#[test]
fn round_trips_are_measured_beside_a_busy_connection() {
    for backend in backends() {
        let passive = format!("echo --listen 127.0.0.1:0 --backend {backend} --json");
        let active = format!("ping --backend {backend} --size 64 --count 300 --beside 64KiB --verify --json");
        if backend.starts_with("raw") {
            let refused = run(&format!("{active} --connect 127.0.0.1:9"));
            refused.failed(2, "--beside is for netio3's backends");
            continue;
        }
        let (echoed, pinged) = pair(&passive, &active);
        let (echoed, pinged) = (echoed.delivered(), pinged.delivered());
        assert_eq!((&pinged["messages"], &pinged["bytes"]), (&300.into(), &(300 * 64).into()), "{backend}: {pinged}");
        assert!(echoed["messages"].as_u64() > Some(300), "{backend}: nothing went beside: {echoed}");
        assert!(pinged["turn_us"].as_f64() > Some(0.0), "{backend}: {pinged}");
        // Rates are of what is counted.
        let of = |name: &str| pinged[name].as_f64().expect("it is told");
        for (rate, count) in [(of("msgs_per_s"), of("messages")), (of("gbytes_per_s") * 1e9, of("bytes"))] {
            assert!((rate * of("seconds") / count - 1.0).abs() < 1e-6, "{backend}: {pinged}");
        }
        assert_eq!(pinged["connections"], 2, "{backend}: {pinged}");
    }
}

#[test]
fn every_round_trip_may_have_a_connection_of_its_own() {
    for backend in backends() {
        let passive = format!("echo --listen 127.0.0.1:0 --backend {backend} --json");
        let active = format!("ping --backend {backend} --size 64 --reconnect --verify --json --count");
        if backend == "raw-fabric" {
            run(&format!("{active} 5 --connect 127.0.0.1:9")).failed(2, "--reconnect is for netio3's backends and bare sockets");
            continue;
        }
        let (echoed, pinged) = pair(&passive, &format!("{active} 40"));
        for told in [echoed.delivered(), pinged.delivered()] {
            assert_eq!((told["messages"].as_u64(), told["connections"].as_u64()), (Some(40), Some(40)), "{backend}: {told}");
        }
        assert!(pinged.delivered()["rtt_us"]["min"].as_f64() > Some(0.0), "{backend}");
    }
    run("ping --size 64 --reconnect --count 65536 --connect 127.0.0.1:9").failed(2, "65535 connections at most");
    run("ping --size 64 --reconnect --count 3 --connect 127.0.0.1:9").failed(2, "cannot connect to 127.0.0.1:9");
}

#[test]
fn the_time_of_one_long_message_is_that_of_its_way() {
    for backend in backends() {
        for (passive, active) in [("recv", "send --messages"), ("echo", "ping --count")] {
            let passive = format!("{passive} --listen 127.0.0.1:0 --backend {backend} --json");
            let (told, _) = pair(&passive, &format!("{active} 1 --size 16MiB --backend {backend} --json"));
            // Nothing carries 80 GB/s over the loopback interface.
            assert!(told.delivered()["seconds"].as_f64() > Some(0.0002), "{told:?}");
        }
    }
}

#[test]
fn the_slowest_connection_is_told() {
    let (_, sent) = pair("recv --listen 127.0.0.1:0", "send --size 100 --duration 0.2 --connections 3 --json");
    let slowest = sent.delivered()["slowest"].as_f64().expect("there are several");
    assert!(slowest > 0.0 && slowest <= 1.0, "{slowest}");
}

#[test]
fn raw_may_wait_in_epoll() {
    let passive = |role: &str| format!("{role} --listen 127.0.0.1:0 --backend raw --epoll --verify --json");
    for (size, count) in [(0, 300), (64, 3_000), (5_000, 3_000), (1 << 20, 40)] {
        let transfer = format!("send --backend raw --epoll --size {size} --messages {count} --json");
        let round_trips = format!("ping --backend raw --epoll --size {size} --count {count} --verify --json");
        for (received, sent) in [pair(&passive("recv"), &transfer), pair(&passive("echo"), &round_trips)] {
            for told in [received.delivered(), sent.delivered()] {
                assert_eq!(told["messages"].as_u64(), Some(count), "{size} bytes: {told}");
            }
        }
    }
    let ping = "ping --size 1 --count 2 --connect 127.0.0.1:9 --epoll";
    let elsewhere = [format!("{ping} --backend tcp"), format!("{ping} --backend raw --spin 1"), "limits --epoll".into(), "--epoll".into()];
    elsewhere.iter().for_each(|args| run(args).failed(2, "--epoll is for bare sockets"));
    for args in ["--window 2", "--reconnect"] {
        run(&format!("{ping} --backend raw {args}")).failed(2, "--epoll is for one message in flight");
    }
}

#[test]
fn both_ways_of_raw() {
    for mode in ["zero-copy", "copy", "buffered"] {
        for (size, messages) in [(0, 3_000), (1, 3_000), (8, 3_000), (64, 50_000), (5_000, 3_000), (1 << 20, 40)] {
            transfer("raw", &format!("--mode {mode}"), size, messages, 1);
        }
    }
    assert_eq!(transfer("raw", "", 64, 10, 1).1["mode"], "copy");
    assert_eq!(transfer("raw", "", 1 << 20, 10, 1).1["mode"], "zero-copy");
}

#[test]
fn all_modes_over_libfabric() {
    for backend in fabric() {
        for mode in ["zero-copy", "copy", "buffered"] {
            // Below and above what fits in one receive, 66,048 bytes; and where the last part would be tiny.
            let sizes = [(0, 2_000), (1, 2_000), (8, 2_000), (64, 5_000), (5_000, 2_000), (65_536, 100), (65_537, 100), (66_040, 50)];
            for (size, messages) in sizes.into_iter().chain([(66_041, 50), (66_042, 50), (132_090, 50), (1 << 20, 30), (16 << 20, 3)]) {
                let (received, sent) = transfer(backend, &format!("--mode {mode}"), size, messages, 1);
                assert_eq!((&sent["mode"], &sent["provider"]), (&mode.into(), &received["provider"]));
            }
        }
    }
}

#[test]
fn many_connections_over_libfabric() {
    for backend in fabric() {
        for (size, messages) in [(64, 10_000), (1 << 10, 10_000), (65_537, 300)] {
            transfer(backend, "", size, messages, 64);
        }
        transfer(backend, "--mode copy", 200_000, 200, 70);
    }
}

#[test]
fn several_connections_count_as_one_sender() {
    for backend in backends() {
        for mode in ["zero-copy", "copy", "buffered"] {
            transfer(backend, &format!("--mode {mode}"), 1_000, 20_003, 17);
            transfer(backend, &format!("--mode {mode}"), 300_000, 50, 3);
        }
    }
}

#[test]
fn more_connections_than_messages() {
    for backend in backends() {
        transfer(backend, "", 10, 3, 5);
        transfer(backend, "", 10, 0, 1);
    }
}

#[test]
fn headers_and_pieces() {
    for backend in backends() {
        for mode in ["zero-copy", "copy", "buffered"] {
            for split in ["--header 0", "--header 3 --iov 3", "--header 100", "--header 256 --iov 7", "--iov 40", "--header 1000"] {
                transfer(backend, &format!("--mode {mode} {split}"), 1_000, 2_000, 2);
            }
        }
    }
}

#[test]
fn messages_in_batches() {
    for backend in backends().filter(|backend| !backend.starts_with("raw")) {
        for batch in [2, 64, 256] {
            for (size, messages) in [(0, 100), (3, 1_000), (64, 20_001), (300_000, 20)] {
                transfer(backend, &format!("--mode copy --batch {batch}"), size, messages, 2);
                transfer(backend, &format!("--mode copy --batch {batch} --threads"), size, messages, 2);
            }
        }
    }
    for (options, why) in [
        ("--batch 8 --backend tcp --mode zero-copy", "--mode copy"),
        ("--batch 8 --backend tcp", "--mode copy"),
        ("--batch 8 --backend raw --mode copy", "--batch is for netio3's backends"),
        ("--batch 8 --backend tcp --mode copy --iov 2", "leave --iov out"),
        ("--batch 8 --backend tcp --mode copy --header 3", "leave --header out"),
        ("--batch 257 --backend tcp --mode copy", "257"),
    ] {
        let ended = run(&format!("send --connect 127.0.0.1:9 --size 64 --messages 5 {options}"));
        assert_eq!(ended.status, 2, "{ended:?}");
        assert!(ended.stderr.contains(why), "{options}: {}", ended.stderr);
    }
}

#[test]
fn messages_as_long_as_the_conversation_itself() {
    // What the two sides tell each other beside the messages must not be taken for one of them.
    for size in (2..40).chain(150..250) {
        transfer("raw", "", size, 5, 1);
    }
    for size in [9, 10, 11, 12, 13, 17, 18, 100, 101, 102, 103, 104, 190, 191, 192, 193, 194, 195, 196, 197, 198] {
        transfer("tcp", "", size, 5, 1);
    }
}

#[test]
fn loopback_brings_its_own_peer() {
    for mode in ["zero-copy", "copy", "buffered"] {
        for (size, messages) in [(0, 1_000), (64, 20_000), (1 << 20, 20)] {
            let args = format!("send --backend loopback --size {size} --messages {messages} --mode {mode} --connections 3 --verify --json");
            let sent = run(&args).delivered();
            assert_eq!((&sent["messages"], &sent["bytes"]), (&messages.into(), &(messages * size).into()));
        }
    }
    let sent = run("ping --backend loopback --size 64 --count 1000 --verify --json").delivered();
    assert_eq!(sent["messages"], 1_000);
    assert!(sent["rtt_us"]["p50"].as_f64().unwrap() > 0.0);
}

#[test]
fn for_a_time_instead_of_a_number() {
    for backend in backends() {
        for connections in [1, 4] {
            let passive = format!("recv --listen 127.0.0.1:0 --backend {backend} --json");
            let active = format!("send --backend {backend} --size 100 --duration 0.2 --connections {connections} --json");
            let (received, sent) = pair(&passive, &active);
            let (received, sent) = (received.delivered(), sent.delivered());
            assert_eq!(received["messages"], sent["messages"]);
            assert!(sent["messages"].as_u64().unwrap() > 1_000, "{sent}");
            assert!(sent["seconds"].as_f64().unwrap() >= 0.15, "{sent}");
        }
    }
}

#[test]
fn round_trips() {
    for backend in backends() {
        for (size, more) in
            [(0, ""), (1, ""), (64, ""), (64, "--window 16"), (64, "--spin 100"), (300_000, ""), (300_000, "--window 50 --spin 20")]
        {
            let passive = format!("echo --listen 127.0.0.1:0 --backend {backend} --json");
            let active = format!("ping --backend {backend} --size {size} --count 300 --verify --json {more}");
            let (echoed, asked) = pair(&passive, &active);
            let (echoed, asked) = (echoed.delivered(), asked.delivered());
            assert_eq!((&echoed["messages"], &asked["messages"]), (&300.into(), &300.into()), "{active}");
            assert_eq!((&echoed["role"], &asked["role"]), (&"echo".into(), &"ping".into()));
            assert!(echoed["rtt_us"].is_null());
            let rtt = |name: &str| asked["rtt_us"][name].as_f64().unwrap_or_else(|| panic!("{name}: {asked}"));
            assert!(0.0 < rtt("min") && rtt("min") <= rtt("p50") && rtt("p50") <= rtt("p90"), "{asked}");
            assert!(rtt("p90") <= rtt("p99") && rtt("p99") <= rtt("p999") && rtt("p999") <= rtt("max"), "{asked}");
        }
    }
}

#[test]
fn two_senders() {
    for backend in backends() {
        let mut receiver = start(&format!("recv --listen 127.0.0.1:0 --senders 2 --backend {backend} --json"));
        let address = receiver.address();
        let send = format!("send --connect {address} --backend {backend} --size 64 --messages 20000 --connections 2 --json");
        let first = start(&send);
        let second = start(&send);
        first.end().delivered();
        second.end().delivered();
        let received = receiver.end().delivered();
        assert_eq!((&received["messages"], &received["connections"]), (&40_000.into(), &4.into()));
    }
}

#[test]
fn staying_for_ever() {
    for backend in backends() {
        for (passive, active) in [("recv", "send --messages 1000"), ("echo", "ping --count 100")] {
            let mut listener = start(&format!("{passive} --forever --listen 127.0.0.1:0 --backend {backend} --json"));
            let address = listener.address();
            for _ in 0..3 {
                run(&format!("{active} --connect {address} --backend {backend} --size 64 --json")).delivered();
                let object: Value = serde_json::from_str(&listener.line()).unwrap();
                assert_eq!((&object["role"], &object["lost"]), (&passive.into(), &0.into()), "{object}");
            }
        }
    }
}

#[test]
fn ipv6_and_host_names() {
    for backend in backends() {
        let (received, sent) = pair(
            &format!("recv --listen [::1]:0 --backend {backend} --json"),
            &format!("send --backend {backend} --size 64 --messages 10 --json"),
        );
        received.delivered();
        sent.delivered();
        let mut receiver = start(&format!("recv --listen 127.0.0.1:0 --backend {backend} --json"));
        let port = receiver.address().rsplit(':').next().unwrap().to_owned();
        run(&format!("send --connect localhost:{port} --backend {backend} --size 64 --messages 10 --json")).delivered();
        receiver.end().delivered();
    }
}

#[test]
fn a_wildcard_is_told_by_an_address_that_can_be_dialled() {
    for backend in backends() {
        let (received, sent) = pair(
            &format!("recv --listen 0.0.0.0:0 --backend {backend} --json"),
            &format!("send --backend {backend} --size 64 --messages 10 --json"),
        );
        received.delivered();
        sent.delivered();
    }
}
