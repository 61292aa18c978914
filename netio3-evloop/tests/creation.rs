//! Creating a loop fails with a reason. Alone in its file, since it changes the limits of the process.

use std::fs::File;

use netio3_evloop::EpollEventLoop;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn a_full_descriptor_table_is_an_error_that_says_so() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum: limit.maximum }).unwrap();
    let mut files: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    let mut missing = 0;
    // Each of the loop's descriptors is the one that fails once.
    while let Err(error) = EpollEventLoop::new() {
        let text = error.to_string();
        assert!(
            text.starts_with("cannot ") && text.contains("of an event loop: Too many open files") && text.contains("ulimit -n"),
            "{text}"
        );
        missing += 1;
        files.pop();
    }
    assert_eq!(missing, 4);
    drop(files);
    setrlimit(Resource::Nofile, limit).unwrap();
}
