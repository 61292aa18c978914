//! What the program leaves beside what it delivered: words, its exit status, and no process.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::net::{Ipv6Addr, SocketAddrV6, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use crate::util::{backends, fabric, pair, run, start, until};

/// A process: its number, and when it started, by which it is told from a later one of the same number.
type Process = (u32, String);

/// State, parent and start of a process that has not ended.
fn stat(pid: u32) -> Option<(u32, String)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit(')').next()?.split_whitespace().collect();
    (!matches!(fields[0], "Z" | "X")).then(|| (fields[1].parse().expect("a number"), fields[19].to_owned()))
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").expect("it is there").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn children(parent: u32) -> impl Iterator<Item = Process> {
    processes().filter_map(move |pid| stat(pid).filter(|(of, _)| *of == parent).map(|(_, began)| (pid, began)))
}

/// Whether a process was told that this one is its parent.
fn is_named_in_an_argument(parent: u32) -> bool {
    let named = format!("--parent\0{parent}\0");
    let line = |pid: u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    processes().any(|pid| String::from_utf8_lossy(&line(pid)).contains(&named))
}

#[test]
fn whatever_is_killed_takes_the_processes_along_that_it_started() {
    let mut commands = vec!["--backend loopback", "limits --backend tcp sleeping,", "limits --backend tcp pieces"];
    commands.extend((!fabric().is_empty()).then_some("--backend raw-fabric"));
    for command in commands {
        // At whatever it is when so many have been started.
        for wanted in [1, 2, 4] {
            let running = start(command);
            let pid = running.pid();
            let mut seen: HashSet<Process> = HashSet::new();
            until(command, "it starts nothing", || {
                seen.extend(children(pid));
                seen.len() >= wanted
            });
            running.kill();
            let left = || seen.iter().filter(|(pid, began)| stat(*pid).is_some_and(|(_, now)| now == *began)).count();
            until(command, "processes are left", || left() == 0 && !is_named_in_an_argument(pid));
        }
    }
}

#[test]
fn a_process_whose_parent_has_gone_already_does_not_begin() {
    for command in ["recv --listen 127.0.0.1:0", "echo --listen 127.0.0.1:0 --backend raw", "stay-awake"] {
        // This test is no child of the first process.
        run(&format!("{command} --parent 1")).failed(1, "which started this one, has gone");
    }
}

/// Starts the program with this as its standard output. It ends with the test.
fn start_into(output: impl Into<Stdio>, args: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netio3-bench"));
    command.args(["--parent", &std::process::id().to_string()]).args(args.split_whitespace());
    command.stdin(Stdio::null()).stdout(output).stderr(Stdio::piped());
    command.spawn().expect("the program starts")
}

/// The exit status, and what it said on standard error.
fn end(mut child: Child, args: &str) -> (Option<i32>, String) {
    until(args, "it does not end", || child.try_wait().expect("it can be waited for").is_some());
    let status = child.wait().expect("it has ended").code();
    let mut said = String::new();
    child.stderr.expect("it is piped").read_to_string(&mut said).expect("it is text");
    (status, said)
}

/// A file without any room.
fn full() -> File {
    File::options().write(true).open("/dev/full").expect("it is there")
}

/// A pipe that nobody reads.
fn closed() -> OwnedFd {
    let (own, other) = UnixStream::pair().expect("there are sockets");
    drop(other);
    own.into()
}

#[test]
fn results_that_cannot_be_written_are_complained_about() {
    for args in ["--help", "info", "info --json", "limits --rounds 1 --time 0.05 --backend tcp pieces"] {
        let (status, said) = end(start_into(full(), args), args);
        assert_eq!((status, said.lines().count()), (Some(1), 1), "{args}: {said}");
        assert!(said.contains("cannot write to standard output: No space left"), "{args}: {said}");
        assert_eq!(end(start_into(closed(), args), args), (Some(0), String::new()), "{args}");
    }
    for args in ["--size 64 --messages 10", "--size 64 --messages 10 --json"] {
        for (is_full, expected) in [(true, Some(1)), (false, Some(0))] {
            // A port that nothing else takes, since nothing else uses this address.
            let address = TcpListener::bind("127.77.77.77:0").unwrap().local_addr().unwrap();
            let [receiver, sender] = [format!("recv --listen {address} --json"), format!("send --connect {address} {args}")];
            let output = || if is_full { Stdio::from(full()) } else { Stdio::from(closed()) };
            let mut receiving = start_into(output(), &receiver);
            until(&receiver, "it does not listen", || {
                assert!(receiving.try_wait().unwrap().is_none(), "it ended");
                // A stranger, who is ignored.
                TcpStream::connect(address).is_ok()
            });
            for (child, args) in [(start_into(output(), &sender), &sender), (receiving, &receiver)] {
                let (status, said) = end(child, args);
                assert_eq!((status, said.lines().count()), (expected, usize::from(is_full)), "{args}: {said}");
            }
        }
    }
}

#[test]
fn options_that_nothing_would_take_notice_of_are_refused() {
    for command in
        ["", "recv", "send --connect 127.0.0.1:1 --size 1 --messages 1", "ping --connect 127.0.0.1:1 --size 1 --count 1", "limits"]
    {
        for backend in ["tcp", "raw", "loopback"] {
            run(&format!("{command} --provider verbs --backend {backend}")).failed(2, "--provider is of libfabric");
        }
    }
    for command in ["recv", "echo"] {
        run(&format!("{command} --provider verbs")).failed(2, "--provider is of libfabric");
    }
    for command in ["info", "info --backend rdma"] {
        run(&format!("{command} --provider verbs")).failed(2, "leave --provider out");
    }
    for command in ["", "info", "limits"] {
        run(&format!("{command} --cpu 0")).failed(2, "--cpu pins one process");
    }
    // This is a choice among those that are measured where there is libfabric.
    if !fabric().is_empty() {
        let ended = run("limits --rounds 1 --time 0.05 --provider tcp pieces");
        assert_eq!((ended.status, &ended.stderr[..]), (0, ""), "{ended:?}");
    }
}

#[test]
fn reports_tell_whether_every_byte_was_checked() {
    for backend in backends() {
        for (passive, active) in [("recv", "send --messages 50"), ("echo", "ping --count 50")] {
            for (here, there, checked) in [("", "", false), ("", "--verify", true), ("--verify", "", true)] {
                // An answer is checked by those who asked, unless they did not want that.
                let expected = [checked, checked && (passive == "recv" || there == "--verify")];
                for json in ["--json", ""] {
                    let (received, sent) = pair(
                        &format!("{passive} --listen 127.0.0.1:0 --backend {backend} {here} {json}"),
                        &format!("{active} --size 100 --backend {backend} {there} {json}"),
                    );
                    for (ended, verified) in [received, sent].into_iter().zip(expected) {
                        assert_eq!(ended.status, 0, "{ended:?}");
                        match json {
                            "" => {
                                let words = if verified { "corrupted 0\n" } else { "corrupted not checked\n" };
                                assert!(ended.stdout.contains(words), "{words}: {ended:?}");
                            }
                            _ => assert_eq!(ended.json()["verified"], verified, "{ended:?}"),
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn nothing_is_told_of_the_slowest_connection_when_nothing_was_sent() {
    for json in ["--json", ""] {
        let (_, sent) = pair("recv --listen 127.0.0.1:0", &format!("send --size 64 --duration 1e-9 --connections 4 {json}"));
        assert_eq!((sent.status, &sent.stderr[..]), (0, ""), "{sent:?}");
        assert!(!sent.stdout.contains("NaN") && !sent.stdout.contains("of the mean"), "{sent:?}");
        assert!(json.is_empty() || sent.json()["slowest"].is_null(), "{sent:?}");
    }
}

#[test]
fn bare_libfabric_tells_that_it_copies_what_the_provider_does_not_gather() {
    for backend in fabric().iter().filter(|backend| **backend == "raw-fabric") {
        for (pieces, mode) in [(1, "zero-copy"), (100, "copy")] {
            let (received, sent) = pair(
                &format!("recv --listen 127.0.0.1:0 --backend {backend} --json"),
                &format!("send --backend {backend} --size 1000 --messages 20 --mode zero-copy --iov {pieces} --verify --json"),
            );
            for object in [received.delivered(), sent.delivered()] {
                assert_eq!(object["mode"], mode, "{pieces} pieces: {object}");
            }
        }
    }
}

/// A link-local address of this machine with its interface, if there is one that can be bound.
fn link_local() -> Option<String> {
    let table = fs::read_to_string("/proc/net/if_inet6").ok()?;
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let address = Ipv6Addr::from(u128::from_str_radix(fields.first()?, 16).ok()?);
        let scope = u32::from_str_radix(fields.get(1)?, 16).ok()?;
        let is_usable = address.is_unicast_link_local() && TcpListener::bind(SocketAddrV6::new(address, 0, 0, scope)).is_ok();
        is_usable.then(|| format!("{address}%{}", fields[5]))
    };
    table.lines().find_map(of_line)
}

#[test]
fn a_link_local_address_is_told_with_its_scope() {
    let Some(address) = link_local() else { return eprintln!("there is no link-local address") };
    for backend in backends() {
        let (received, sent) = pair(
            &format!("recv --listen [{address}]:0 --backend {backend} --json"),
            &format!("send --backend {backend} --size 64 --messages 10 --json"),
        );
        received.delivered();
        assert!(sent.command.contains('%'), "{}", sent.command);
        sent.delivered();
    }
}
