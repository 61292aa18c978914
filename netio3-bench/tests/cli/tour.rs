//! The program without a command.

use std::time::Instant;

use crate::util::{backends, run};

#[test]
fn the_tour_shows_every_backend_beside_bare_sockets() {
    let began = Instant::now();
    let ended = run("--json");
    assert_eq!((ended.status, &ended.stderr[..]), (0, ""), "{ended:?}");
    assert!(began.elapsed().as_secs() < 40, "{:?}", began.elapsed());
    let object = ended.json();
    assert_eq!((&object["role"], object["error"].is_null()), (&"tour".into(), true));
    assert!(object["messages"].as_u64().unwrap() > 1_000_000 && object["verified"] == false);
    for (block, sizes) in [("throughput", 5), ("round_trips", 1)] {
        let entries = object[block].as_array().unwrap();
        for backend in backends().chain(["loopback"]) {
            let own: Vec<_> = entries.iter().filter(|entry| entry["backend"] == backend).collect();
            assert_eq!(own.len(), sizes, "{block} of {backend}");
            assert!(own.iter().all(|entry| entry["share_of_raw"].as_f64().unwrap() > 0.0));
        }
    }
    // Whatever is not shown is explained.
    assert_eq!(object["left_out"].as_array().unwrap().is_empty(), backends().any(|backend| backend == "rdma"), "{object}");
    for text in ["bare sockets", "64 B", "1 MiB", "p99", "all delivered once and in order, their bytes not checked"] {
        assert!(ended.stdout.contains(text), "{text}: {}", ended.stdout);
    }
}

#[test]
fn the_tour_of_one_backend() {
    let ended = run("--backend loopback --verify");
    assert_eq!((ended.status, &ended.stderr[..]), (0, ""), "{ended:?}");
    assert!(ended.stdout.contains("in order, every byte checked\n"), "{}", ended.stdout);
    assert!(ended.stdout.contains("loopback") && !ended.stdout.contains(" tcp "), "{}", ended.stdout);
}
