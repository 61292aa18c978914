//! What goes wrong: the exit status, and one clear line.

use std::io::Write;
use std::net::{TcpListener, TcpStream};

use crate::util::{backends, fabric, pair, run, start, start_within};

#[test]
fn nonsense_is_a_bad_argument() {
    for args in [
        "frobnicate",
        "send",
        "send --connect 127.0.0.1:1 --size 64",
        "send --connect 127.0.0.1:1 --size 64 --messages 1 --duration 1",
        "send --connect 127.0.0.1:1 --size -1 --messages 1",
        "send --connect 127.0.0.1:1 --size 9G --messages 1",
        "send --connect 127.0.0.1:1 --size 64 --messages 1 --mode teleport",
        "send --connect 127.0.0.1:1 --size 64 --messages 1 --connections 0",
        "send --connect 127.0.0.1:1 --size 64 --duration -3",
        "send --connect 127.0.0.1:1 --size 64 --messages 1 --header 65",
        "send --size 64 --messages 1",
        "send --size 64 --messages 1 --backend raw",
        "ping --connect 127.0.0.1:1 --size 64",
        "ping --connect 127.0.0.1:1 --size 64 --count 0",
        "ping --connect 127.0.0.1:1 --size 64 --count 1 --window 0",
        "recv --listen 127.0.0.1",
        "recv --listen 224.0.0.1:0",
        "recv --listen 127.0.0.1:0 --senders 0",
        "recv --listen no-such-host.invalid:0",
        "recv --listen 127.0.0.1:0 --cpu 1000",
        "recv --listen 127.0.0.1:0 --backend smoke-signals",
        "send --connect 127.0.0.1:0 --size 1 --messages 1",
        "send --connect 127.0.0.1:1 --size 64 --messages 1 --backend loopback",
        "ping --connect 127.0.0.1:1 --size 64 --count 1 --backend loopback",
        "info --provider tcp",
        "send --connect 0.0.0.0:1 --size 1 --messages 1 --backend raw",
    ] {
        run(args).failed(2, "netio3-bench: ");
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for args in ["--help", "--version", "send --help"] {
        let ended = run(args);
        assert_eq!((ended.status, &ended.stderr[..]), (0, ""), "{ended:?}");
        assert!(!ended.stdout.is_empty());
    }
}

#[test]
#[cfg(not(feature = "rdma"))]
fn backends_that_are_not_there() {
    assert!(fabric().is_empty());
    for command in ["recv --listen 127.0.0.1:0", "send --connect 127.0.0.1:1 --size 1 --messages 1"] {
        run(&format!("{command} --backend rdma")).failed(2, "--features rdma");
        run(&format!("{command} --backend raw-fabric")).failed(2, "--features rdma");
    }
    run("--backend rdma").failed(2, "--features rdma");
}

#[test]
fn an_unwritable_standard_error_leaves_the_exit_status() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_netio3-bench"));
    let full = std::fs::File::options().write(true).open("/dev/full").expect("it is there");
    let status = command.arg("send").stdin(std::process::Stdio::null()).stderr(full).status().expect("the program starts");
    assert_eq!(status.code(), Some(2));
}

/// A message that the system has no memory for ends its connection, not the program.
#[test]
fn a_message_beyond_the_memory_ends_its_connection() {
    let mut receiver = start_within("-v 150000", "recv --listen 127.0.0.1:0");
    let address = receiver.address();
    let sender = run(&format!("send --connect {address} --size 256MiB --messages 1"));
    sender.failed(1, "");
    receiver.end().failed(1, "a limit of this backend was exceeded");
}

#[test]
fn loopback_has_no_other_process() {
    run("recv --listen 127.0.0.1:0 --backend loopback").failed(2, "within one process");
    run("echo --listen 127.0.0.1:0 --backend loopback").failed(2, "within one process");
}

#[test]
fn a_provider_that_is_not_there() {
    for backend in fabric() {
        for command in [
            "recv --listen 127.0.0.1:0",
            "send --connect 127.0.0.1:1 --size 64 --messages 1",
            "ping --connect 127.0.0.1:1 --size 1 --count 1",
        ] {
            run(&format!("{command} --backend {backend} --provider smoke-signals")).failed(2, "smoke-signals");
        }
    }
    if !fabric().is_empty() {
        run("recv --listen 127.0.0.1:0 --backend rdma --provider sockets").failed(2, "take `tcp`");
    }
}

#[test]
fn info_tells_what_can_be_used() {
    let info = run("info --json");
    assert_eq!(info.status, 0, "{info:?}");
    let object = info.json();
    let usable = |name: &str| {
        let backends = object["backends"].as_array().unwrap();
        backends.iter().find(|backend| backend["name"] == name).unwrap()["usable"].as_bool().unwrap()
    };
    assert!(usable("tcp") && usable("raw") && usable("loopback"));
    for field in ["version", "kernel", "processors", "libfabric", "libfabric_path", "providers", "endpoints", "devices", "limits", "advice"]
    {
        assert!(object.get(field).is_some(), "{field}: {object}");
    }
    if usable("rdma") {
        assert!(object["providers"].as_array().unwrap().iter().any(|provider| provider == "tcp" || provider == "verbs"), "{object}");
        assert!(object["endpoints"][0]["domain"].is_string() && object["libfabric"].is_string(), "{object}");
    }
    for backend in ["tcp", "rdma", "loopback", "raw", "raw-fabric"] {
        let ended = run(&format!("info --backend {backend}"));
        assert_eq!(ended.status, i32::from(!usable(backend)), "{ended:?}");
        assert_eq!(ended.stderr.lines().count(), usize::from(!usable(backend)), "{ended:?}");
        assert!(ended.stdout.contains("somaxconn"));
    }
}

#[test]
fn nobody_listens() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for backend in backends() {
        let line = format!("cannot connect to {free}");
        run(&format!("send --connect {free} --backend {backend} --size 64 --messages 1 --connections 3")).failed(2, &line);
        run(&format!("ping --connect {free} --backend {backend} --size 64 --count 1")).failed(2, &line);
    }
}

#[test]
fn the_port_is_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for backend in backends() {
        for command in ["recv", "echo"] {
            run(&format!("{command} --listen {address} --backend {backend}")).failed(2, &format!("cannot listen on {address}"));
        }
    }
}

#[test]
fn what_listens_is_something_else() {
    // It accepts and hangs up.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    std::thread::spawn(move || other.incoming().for_each(drop));
    for backend in backends() {
        let sent = run(&format!("send --connect {address} --backend {backend} --size 64 --messages 1"));
        assert_eq!((sent.status, sent.stderr.lines().count()), (2, 1), "{sent:?}");
        let asked = run(&format!("ping --connect {address} --backend {backend} --size 64 --count 1"));
        assert_eq!((asked.status, asked.stderr.lines().count()), (2, 1), "{asked:?}");
    }
    for backend in ["tcp", "raw"] {
        let asked = run(&format!("ping --connect {address} --backend {backend} --size 64 --count 3 --reconnect"));
        assert_eq!((asked.status, asked.stderr.lines().count()), (2, 1), "{asked:?}");
    }
}

#[test]
fn what_listens_speaks_something_else() {
    let answers: [fn(TcpStream); 2] = [
        |mut peer| _ = peer.write_all(b"220 smtp.example.org ready\r\n").map(|()| std::io::copy(&mut peer, &mut std::io::sink())),
        |mut peer| _ = peer.try_clone().map(|mut back| std::io::copy(&mut peer, &mut back)),
    ];
    for answer in answers {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = other.local_addr().unwrap();
        std::thread::spawn(move || other.incoming().flatten().for_each(|peer| _ = std::thread::spawn(move || answer(peer))));
        for backend in ["tcp", "raw"] {
            for active in ["send --messages 1", "ping --count 1"] {
                let ended = run(&format!("{active} --connect {address} --backend {backend} --size 64"));
                assert_eq!((ended.status, ended.stderr.lines().count()), (2, 1), "{ended:?}");
                assert!(!ended.stderr.contains("closed by this side"), "{ended:?}");
            }
        }
    }
}

#[test]
fn the_roles_do_not_match() {
    for backend in backends() {
        let mut echo = start(&format!("echo --listen 127.0.0.1:0 --backend {backend} --json"));
        let address = echo.address();
        run(&format!("send --connect {address} --backend {backend} --size 64 --messages 1")).failed(2, "`echo`, made for `ping`");
        // It still waits for its client.
        run(&format!("ping --connect {address} --backend {backend} --size 64 --count 1 --json")).delivered();
        echo.end().delivered();
        let mut recv = start(&format!("recv --listen 127.0.0.1:0 --backend {backend} --json"));
        let address = recv.address();
        run(&format!("ping --connect {address} --backend {backend} --size 64 --count 1")).failed(2, "`recv`, made for `send`");
        run(&format!("send --connect {address} --backend {backend} --size 64 --messages 1 --json")).delivered();
        recv.end().delivered();
    }
}

#[test]
fn strangers_are_ignored() {
    for backend in backends() {
        for (passive, active) in [("recv", "send --messages 1000"), ("echo", "ping --count 10")] {
            let mut listener = start(&format!("{passive} --listen 127.0.0.1:0 --backend {backend} --json"));
            let address = listener.address();
            drop(TcpStream::connect(&address).unwrap());
            let mut stranger = TcpStream::connect(&address).unwrap();
            stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            run(&format!("{active} --connect {address} --backend {backend} --size 64 --json")).delivered();
            listener.end().delivered();
        }
    }
}

#[test]
fn a_receiver_that_dies_leaves_messages_unacknowledged() {
    for backend in backends() {
        for connections in [1, 3] {
            let mut receiver = start(&format!("recv --listen 127.0.0.1:0 --backend {backend}"));
            let address = receiver.address();
            let mut sender = start(&format!(
                "send --held --connect {address} --backend {backend} --size 64 --duration 30 --connections {connections} --json"
            ));
            sender.until_busy();
            receiver.kill();
            let sent = sender.end();
            sent.failed(1, "not acknowledged");
            assert!(sent.json()["lost"].as_u64().unwrap() > 0, "{sent:?}");
        }
    }
}

#[test]
fn threads_tell_what_was_lost_when_the_receiver_dies() {
    for backend in backends().filter(|backend| !backend.starts_with("raw")) {
        let mut receiver = start(&format!("recv --listen 127.0.0.1:0 --backend {backend}"));
        let address = receiver.address();
        let mut sender = start(&format!("send --held --connect {address} --backend {backend} --size 64 --duration 30 --threads --json"));
        sender.until_busy();
        receiver.kill();
        let sent = sender.end();
        sent.failed(1, "the peer vanished");
        assert!(sent.stderr.contains("not acknowledged") && sent.json()["lost"].as_u64().unwrap() > 0, "{sent:?}");
    }
}

#[test]
fn a_sender_that_dies_fails_the_receiver() {
    for backend in backends() {
        for connections in [1, 3] {
            let mut receiver = start(&format!("recv --listen 127.0.0.1:0 --backend {backend} --json"));
            let address = receiver.address();
            let mut sender =
                start(&format!("send --held --connect {address} --backend {backend} --size 64 --duration 30 --connections {connections}"));
            sender.until_busy();
            sender.kill();
            let received = receiver.end();
            received.failed(1, "without a goodbye");
            assert!(received.json()["messages"].as_u64().unwrap() > 0, "{received:?}");
        }
    }
}

#[test]
fn either_side_of_round_trips_dies() {
    for backend in backends() {
        for survivor in ["ping", "echo"] {
            let mut echo = start(&format!("echo --listen 127.0.0.1:0 --backend {backend} --json"));
            let address = echo.address();
            let mut ping = start(&format!("ping --held --connect {address} --backend {backend} --size 64 --count 100000000 --json"));
            ping.until_busy();
            if survivor == "ping" {
                echo.kill();
                let ended = ping.end();
                ended.failed(1, "not answered");
                // One message is under way at a time.
                assert!(ended.json()["lost"].as_u64() <= Some(1), "{ended:?}");
            } else {
                ping.kill();
                let ended = echo.end();
                ended.failed(1, "of 100000000 messages");
                // Nobody knows of one that was sent and did not come.
                assert_eq!(ended.json()["lost"], 0, "{ended:?}");
            }
        }
    }
}

#[test]
fn a_receiver_short_of_descriptors_says_so_once() {
    let mut receiver = start_within("-n 20", "recv --listen 127.0.0.1:0 --senders 2");
    let address = receiver.address();
    // Those beyond the few that are left wait in the kernel, which makes room when the others are gone.
    let peers: Vec<_> = (0..40).map(|_| std::net::TcpStream::connect(&address).expect("the kernel takes it")).collect();
    let patient = start(&format!("send --connect {address} --size 64 --messages 10 --json"));
    drop(peers);
    patient.end().delivered();
    run(&format!("send --connect {address} --size 64 --messages 10 --json")).delivered();
    let ended = receiver.end();
    assert_eq!((ended.status, ended.stderr.lines().count()), (0, 1), "{ended:?}");
    assert!(ended.stderr.contains("cannot accept (raise the limit of open files"), "{ended:?}");
}

#[test]
fn bare_sockets_short_of_descriptors_say_so() {
    let mut receiver = start_within("-n 20", "recv --backend raw --listen 127.0.0.1:0 --senders 2 --json");
    let sender = start(&format!("send --backend raw --connect {} --connections 30 --size 64 --messages 100", receiver.address()));
    let ended = receiver.end();
    ended.failed(1, "raise the limit of open files");
    assert_eq!(ended.json()["role"], "recv", "{ended:?}");
    assert_ne!(sender.end().status, 0);
    // Its listener takes the last one, and the kernel asks for another before it waits for a peer.
    let ended = start_within("-n 4", "echo --backend raw --listen 127.0.0.1:0 --json").end();
    ended.failed(1, "raise the limit of open files");
    assert_eq!(ended.json()["role"], "echo", "{ended:?}");
}

#[test]
fn the_log_has_what_was_asked_for() {
    for (option, lines) in [("", 0), ("--log off", 0), ("--log info", 2)] {
        let mut receiver = start(&format!("recv --listen 127.0.0.1:0 {option}"));
        run(&format!("send --connect {} --size 64 --messages 10 --json", receiver.address())).delivered();
        let ended = receiver.end();
        let told = ended.stderr.lines().filter(|line| line.contains("INFO") && line.contains("connection ")).count();
        assert_eq!((ended.status, told), (0, lines), "{ended:?}");
    }
    run("recv --log loud").failed(2, "--log");
}

#[test]
fn backends_do_not_mix() {
    let of_libfabric: Vec<_> = fabric().iter().flat_map(|one| fabric().iter().map(|other| (*one, *other))).collect();
    let pairs = [("tcp", "raw"), ("raw", "tcp")].into_iter().chain(of_libfabric.into_iter().filter(|(one, other)| one != other));
    for (passive, active) in pairs {
        let mut receiver = start(&format!("recv --listen 127.0.0.1:0 --backend {passive} --json"));
        let address = receiver.address();
        let sent = run(&format!("send --connect {address} --backend {active} --size 64 --messages 10"));
        assert_eq!((sent.status, sent.stderr.lines().count()), (2, 1), "{sent:?}");
        run(&format!("send --connect {address} --backend {passive} --size 64 --messages 10 --json")).delivered();
        receiver.end().delivered();
    }
}

#[test]
fn the_same_verdict_as_text() {
    let (received, sent) = pair("recv --listen 127.0.0.1:0", "send --size 64 --messages 10");
    for ended in [received, sent] {
        assert_eq!(ended.status, 0, "{ended:?}");
        assert!(ended.stdout.contains("10 messages") && ended.stdout.contains("lost 0"), "{ended:?}");
    }
}
