//! What the program leaves beside what it delivered: words, its exit status, and no process.

use std::collections::HashSet;
use std::fs;

use crate::util::{fabric, run, start, until};

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
