//! Runs the built program and checks what it prints and how it exits.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_netio3-peers")).args(args).output().expect("the program starts")
}

#[test]
fn every_library_is_measured_at_every_size() {
    let ended = run(&["--rounds", "1", "--time", "0.05", "--sizes", "64,4096,262144", "--json"]);
    assert!(ended.status.success(), "{ended:?}");
    let text = String::from_utf8(ended.stdout).unwrap();
    let object: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let rows = object["rows"].as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|row| (row["figure"].as_str().unwrap(), row["size"].as_u64().unwrap())).collect();
    let rates = [("rate", 64), ("rate", 4_096), ("rate", 262_144)];
    let times = [("p50", 64), ("p99", 64), ("p50", 1_024), ("p99", 1_024)];
    assert_eq!(names, [&rates[..], &times].concat());
    for row in rows {
        for library in ["netio3", "zeromq", "nng", "tokio", "asio"] {
            let found = &row["libraries"][library];
            assert!(found["median"].as_f64().is_some_and(|value| value > 0.0), "{library}: {row}");
            assert_eq!(found["rounds"].as_array().map(Vec::len), Some(1), "{library}: {row}");
        }
        for peer in ["zeromq", "nng", "tokio", "asio"] {
            assert!(row["netio3_to"][peer]["median"].as_f64().is_some_and(|ratio| ratio > 0.0), "{peer}: {row}");
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    for (args, text) in [
        (["--sizes", "64,4"], "from 8 to 67108864"),
        (["--sizes", "x"], "must be a number of bytes"),
        (["--time", "0"], "must be a number of seconds"),
        (["--rounds", "0"], "--rounds"),
        (["drive", "nanomsg"], "zeromq"),
    ] {
        let ended = run(&args);
        let stderr = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(text), "{args:?}: {stderr}");
    }
}

#[test]
fn a_side_that_finds_nobody_says_so() {
    for (library, text) in
        [("netio3", "no connection to 127.0.0.1:1"), ("tokio", "cannot connect to 127.0.0.1:1"), ("asio", "cannot connect to 127.0.0.1:1")]
    {
        let ended = run(&["drive", library, "--connect", "127.0.0.1:1", "--task", "transfer", "--size", "64", "--time", "0.1"]);
        let stderr = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{library}: {stderr}");
        assert!(stderr.contains(text), "{library}: {stderr}");
    }
}

#[test]
fn its_processes_end_with_it() {
    let mut program = Command::new(env!("CARGO_BIN_EXE_netio3-peers"));
    let mut running = program.args(["--time", "5", "--rounds", "1"]).stderr(Stdio::null()).spawn().expect("the program starts");
    let named = format!("--parent\0{}\0", running.id());
    let children = || {
        let commands = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        commands.filter(|command| String::from_utf8_lossy(command).contains(&named)).count()
    };
    let wait_for = |count: usize| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while children() != count {
            assert!(Instant::now() < deadline, "{} instead of {count} processes", children());
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait_for(2);
    running.kill().unwrap();
    running.wait().unwrap();
    wait_for(0);
}

#[test]
fn a_side_whose_starter_has_gone_ends() {
    let ended = run(&["serve", "netio3", "--parent", "1", "--task", "transfer", "--size", "64", "--time", "0.1"]);
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("which started this one, has gone"), "{stderr}");
}
