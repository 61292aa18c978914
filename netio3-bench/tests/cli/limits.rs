//! `limits`: the table of what is reached of what the machine can do.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::util::{run, start_within};

#[test]
fn limits_compare_with_bare_sockets_and_say_what_is_asked() {
    let ended = run("limits --rounds 2 --time 0.05 --json --backend tcp 1_KiB");
    assert_eq!(ended.status, 2, "a part is taken as it stands: {ended:?}");
    assert!(ended.stderr.contains("1_KiB"), "{}", ended.stderr);

    let ended = run("limits --rounds 2 --time 0.05 --json --backend tcp pieces");
    assert_eq!((ended.status, &ended.stderr[..]), (0, ""), "{ended:?}");
    let rows = ended.json()["rows"].as_array().unwrap().clone();
    assert_eq!(rows.len(), 1, "{rows:?}");
    let row = &rows[0];
    assert_eq!(
        (row["name"].as_str(), row["unit"].as_str(), row["rounds"].as_u64()),
        (Some("tcp, header of 16 B and 4 pieces, 1 KiB"), Some("/s"), Some(2))
    );
    let [own, base, ratio, asked] = ["own", "base", "ratio", "asked"].map(|field| row[field].as_f64().unwrap());
    assert!(own > 0.0 && base > 0.0 && ratio > 0.0 && ratio < 100.0);
    assert_eq!(row["pass"].as_bool(), Some(ratio >= asked));
    assert!(ended.stdout.contains("as asked"), "{}", ended.stdout);
}

#[test]
fn round_trips_and_processor_time_are_costs() {
    let ended = run("limits --rounds 1 --time 0.05 --json --backend tcp sleeping,");
    assert_eq!(ended.status, 0, "{ended:?}");
    for row in ended.json()["rows"].as_array().unwrap() {
        assert_eq!(row["unit"], "us");
        assert_eq!(row["pass"].as_bool(), Some(row["ratio"].as_f64() <= row["asked"].as_f64()));
    }
}

#[test]
fn what_waiting_in_epoll_takes_is_told_and_not_judged() {
    let ended = run("limits --rounds 1 --time 0.05 --json --backend tcp epoll");
    assert_eq!(ended.status, 0, "{ended:?}");
    let rows = ended.json()["rows"].as_array().unwrap().clone();
    assert_eq!(rows.len(), 4, "{rows:?}");
    for row in rows {
        assert!(row["name"].as_str().unwrap().starts_with("raw, "), "{row}");
        assert!(row["own"].as_f64() > Some(0.0) && row["asked"].is_null() && row["pass"].is_null(), "{row}");
    }
}

#[test]
fn baselines_and_loopback_have_no_limits() {
    for backend in ["raw", "loopback"] {
        let ended = run(&format!("limits --backend {backend}"));
        assert_eq!(ended.status, 2, "{ended:?}");
        assert!(ended.stderr.contains("tcp and rdma have"), "{}", ended.stderr);
    }
}

#[test]
fn what_cannot_be_measured_is_told_with_its_reason_beside_what_could_be() {
    // Too few descriptors for the row with many connections.
    let ended = start_within("-n 1000", "limits --rounds 1 --time 0.05 --json --backend tcp '64 connections'").end();
    ended.failed(1, "1 row could not be measured: send over tcp");
    let rows = ended.json()["rows"].as_array().unwrap().clone();
    let (measured, failed): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row["error"].is_null());
    assert_eq!((measured.len(), failed.len()), (2, 1), "{rows:?}");
    assert!(measured.iter().all(|row| row["ratio"].is_number() && row["rounds"] == 1), "{rows:?}");
    let [row] = &failed[..] else { unreachable!() };
    assert!(row["name"].as_str().unwrap().contains("idle ones") && row["ratio"].is_null() && row["pass"].is_null(), "{row}");
    let why = row["error"].as_str().unwrap();
    assert!(why.contains("open files") && !why.contains("ECHILD"), "{why}");
    for text in [&format!("not measured: {why}"), ", 1 not measured"] {
        assert!(ended.stdout.contains(text), "{text}: {}", ended.stdout);
    }
}

/// Lets what this test starts use one processor only.
fn use_one_processor() {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).unwrap();
    let mut one = CpuSet::new();
    one.set((0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap()).unwrap()).unwrap();
    sched_setaffinity(this, &one).unwrap();
}

#[test]
fn what_is_missing_on_one_processor_is_a_second_one() {
    use_one_processor();
    let ended = run("limits --rounds 1 --time 0.05 --json --backend tcp sleeping,");
    assert_eq!((ended.status, &ended.stderr[..]), (0, ""), "{ended:?}");
    assert_eq!(ended.json()["notes"], serde_json::json!(["only one processor may be used, which both sides shared"]), "{ended:?}");
}

#[test]
fn what_is_missing_to_keep_processors_awake_is_told() {
    let ended = start_within("-n 1000; PATH=/nowhere", "limits --rounds 1 --time 0.05 --json --backend tcp sleeping,").end();
    assert_eq!((ended.status, &ended.stderr[..]), (0, ""), "{ended:?}");
    let told = ended.json()["notes"][0].as_str().unwrap().to_owned();
    // A machine with one processor shares it.
    assert!(told.contains("install util-linux (`chrt`)") || told.contains("only one processor"), "{told}");
}
