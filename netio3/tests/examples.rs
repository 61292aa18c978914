//! Every example runs, ends well and says so; those of two roles also as two processes.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn echo_talks_to_itself() {
    demonstrates("echo", "\"goodbye\" came back");
}

#[test]
fn file_transfer_proves_its_copy() {
    demonstrates("file_transfer", "received 9999999 bytes with CRC-32 355ffbcf");
}

#[test]
fn many_to_one_loses_nothing() {
    demonstrates("many_to_one", "nothing was lost");
}

#[test]
fn coalesce_delivers_every_record() {
    demonstrates("coalesce", "20000 records arrived");
}

#[test]
fn reconnect_survives_its_server() {
    demonstrates("reconnect", "200 of 200 messages arrived, over 2 connections");
}

#[test]
fn threads_send_everything_in_order() {
    demonstrates("threads", "300000 messages of 3 threads arrived in order");
}

#[test]
fn nested_tokio_answers() {
    demonstrates("nested_tokio", "the connection ended: closed by this side");
}

#[test]
fn echo_runs_as_two_processes() {
    let server = Program::start("echo", &["listen", "127.0.0.1:0"]);
    let address = server.address();
    let told = Program::start("echo", &[&address, "one", "two"]).finish();
    assert!(told.contains("\"one\" came back") && told.contains("\"two\" came back"), "{told}");
}

#[test]
fn files_of_any_size_arrive() {
    let directory = Directory::new("files_of_any_size_arrive");
    for len in [0, 1, 1 << 20, (5 << 20) + 3] {
        let (file, copy) = (directory.join("file"), directory.join("copy"));
        let content: Vec<u8> = (0..len).map(|i: u32| (i / 3) as u8).collect();
        fs::write(&file, &content).unwrap();
        let receiver = Program::start("file_transfer", &["listen", "127.0.0.1:0", &copy]);
        let address = receiver.address();
        Program::start("file_transfer", &[&address, &file]).finish();
        let told = receiver.finish();
        assert!(told.contains(&format!("received {len} bytes")), "{told}");
        assert!(fs::read(&copy).unwrap() == content, "a file of {len} bytes changed");
    }
}

#[test]
fn a_full_disk_is_told_to_both_sides() {
    let directory = Directory::new("a_full_disk_is_told_to_both_sides");
    let file = directory.join("file");
    fs::write(&file, vec![7; 3 << 20]).unwrap();
    let receiver = Program::start("file_transfer", &["listen", "127.0.0.1:0", "/dev/full"]);
    let address = receiver.address();
    let told = Program::start("file_transfer", &[&address, &file]).fail();
    assert!(told.contains("the receiver says: No space left"), "{told}");
    let told = receiver.fail();
    assert!(told.contains("/dev/full is not complete"), "{told}");
}

#[test]
fn wrong_arguments_are_explained() {
    for (name, args, text) in [
        ("echo", &["here"][..], "\"here\" is not an address"),
        ("echo", &["--backend", "pigeon"], "there is no backend \"pigeon\""),
        ("file_transfer", &["127.0.0.1:1"], "usage"),
        ("file_transfer", &["127.0.0.1:1", "/no/such/file"], "cannot open /no/such/file"),
        ("many_to_one", &["soon"], "invalid float"),
        ("many_to_one", &["-1"], "negative"),
        ("coalesce", &["1", "2"], "usage"),
    ] {
        let told = Program::start(name, args).fail();
        assert!(told.contains(text), "{name} {args:?} said: {told}");
    }
}

/// Runs an example without arguments, over every backend that needs no hardware.
#[track_caller]
fn demonstrates(name: &str, proof: &str) {
    for backend in ["tcp", "loopback"] {
        let told = Program::start(name, &["--backend", backend]).finish();
        assert!(told.contains(proof), "{name} over {backend} said: {told}");
    }
}

/// A running example; killed when dropped.
struct Program {
    name: String,
    child: Child,
    lines: Receiver<String>,
}

impl Program {
    #[track_caller]
    fn start(name: &str, args: &[&str]) -> Self {
        // Cargo puts examples beside the directory of the tests: target/debug/deps/…, target/debug/examples/….
        let test = env::current_exe().unwrap();
        let program = test.parent().unwrap().with_file_name("examples").join(name);
        assert!(program.exists(), "{} is missing: `cargo build --examples` makes it", program.display());
        let mut child = Command::new(program).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (tell, lines) = mpsc::channel();
        tell_lines(child.stdout.take().unwrap(), tell.clone());
        tell_lines(child.stderr.take().unwrap(), tell);
        Self { name: name.to_owned(), child, lines }
    }

    /// The address it says it listens on.
    #[track_caller]
    fn address(&self) -> String {
        let line = self.lines.recv_timeout(LIMIT).expect("a line of output");
        line.strip_prefix("listening on ").expect("the address comes first").to_owned()
    }

    /// Waits for a good end and gives what was said.
    #[track_caller]
    fn finish(self) -> String {
        let (ended_well, told) = self.end();
        assert!(ended_well, "{told}");
        told
    }

    /// Waits for a bad end and gives what was said.
    #[track_caller]
    fn fail(self) -> String {
        let (ended_well, told) = self.end();
        assert!(!ended_well, "{told}");
        told
    }

    #[track_caller]
    fn end(mut self) -> (bool, String) {
        let deadline = Instant::now() + LIMIT;
        let mut told = String::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => told += &format!("{line}\n"),
                // Both ends of its output are closed: it has ended.
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("{} runs for more than {LIMIT:?} and said: {told}", self.name),
            }
        }
        let status = self.child.wait().unwrap();
        assert!(status.code().is_some_and(|code| code <= 1), "{} ended with {status}: {told}", self.name);
        (status.success(), told)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tell_lines(output: impl Read + Send + 'static, tell: Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                return;
            }
        }
    });
}

/// A directory for the files of one test; removed when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Self {
        let path = env::temp_dir().join(format!("netio3-{test}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn join(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
