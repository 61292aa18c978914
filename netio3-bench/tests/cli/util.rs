//! Runs the program and reads what it prints, within bounded time.
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The time after which a process counts as stuck.
const LIMIT: Duration = Duration::from_secs(60);

/// The backends and baselines that need two processes and can be used here.
pub fn backends() -> impl Iterator<Item = &'static str> {
    ["tcp", "raw"].into_iter().chain(fabric().iter().copied())
}

/// Those of them that need libfabric. Where it is absent they are left out, saying so; `NETIO3_REQUIRE_LIBFABRIC=1` makes
/// that a failure.
pub fn fabric() -> &'static [&'static str] {
    static FABRIC: OnceLock<Vec<&str>> = OnceLock::new();
    FABRIC.get_or_init(|| {
        if !cfg!(feature = "rdma") {
            return Vec::new();
        }
        let info = run("info --backend rdma");
        if info.status == 0 {
            return vec!["rdma", "raw-fabric"];
        }
        assert!(std::env::var("NETIO3_REQUIRE_LIBFABRIC").as_deref() != Ok("1"), "NETIO3_REQUIRE_LIBFABRIC=1, but {}", info.stderr);
        eprintln!("libfabric is left out: {}", info.stderr.trim_end());
        Vec::new()
    })
}

/// A running program; killed when dropped.
pub struct Running {
    child: Child,
    output: BufReader<ChildStdout>,
    command: String,
}

/// What an ended program left.
#[derive(Debug)]
pub struct Ended {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
    #[allow(dead_code, reason = "shown when a test fails")]
    pub command: String,
}

/// Starts the program with arguments separated by spaces. What the library logs fails the test, but for its warning over
/// RDMA that the provider is no hardware.
#[track_caller]
pub fn start(args: &str) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netio3-bench"));
    command.args(args.split_whitespace());
    if args.contains("rdma") {
        command.args(["--log", "error"]);
    }
    start_command(command, args)
}

/// The same, within a limit that the shell's `ulimit` takes.
#[track_caller]
pub fn start_within(limit: &str, args: &str) -> Running {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit {limit} && exec {} {args}", env!("CARGO_BIN_EXE_netio3-bench"))]);
    start_command(command, args)
}

#[track_caller]
fn start_command(mut command: Command, args: &str) -> Running {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let output = BufReader::new(child.stdout.take().expect("standard output is piped"));
    Running { child, output, command: args.to_owned() }
}

/// Runs the program to its end.
#[track_caller]
pub fn run(args: &str) -> Ended {
    start(args).end()
}

/// Runs both sides; gives what the passive and the active one left.
#[track_caller]
pub fn pair(passive: &str, active: &str) -> (Ended, Ended) {
    let mut listener = start(passive);
    let address = listener.address();
    let active = run(&format!("{active} --connect {address}"));
    (listener.end(), active)
}

/// Waits for what a program is to come to.
#[track_caller]
pub fn until(command: &str, otherwise: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < LIMIT, "{command}: {otherwise}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Running {
    /// The address that it says it listens on.
    #[track_caller]
    pub fn address(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("standard output can be read");
        let address = line.trim_end().strip_prefix("listening on ");
        address.unwrap_or_else(|| panic!("{}: it says {line:?}", self.command)).to_owned()
    }

    /// The next line of its output.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("standard output can be read");
        line
    }

    /// Waits until it is in the middle of its measurement, before which it stops, since it was started with `--held`.
    #[track_caller]
    pub fn until_busy(&mut self) {
        self.until_held();
        let before = self.ticks();
        self.go_on();
        until(&self.command, "it does nothing", || self.ticks() > before + 5);
    }

    /// Waits until everything is connected, where it stops, since it was started with `--held`.
    #[track_caller]
    pub fn until_held(&self) {
        until(&self.command, "it is not connected", || self.stat(0) == "T");
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGCONT).expect("it can be told to go on");
    }

    /// The processor time that it used.
    fn ticks(&self) -> u64 {
        self.stat(11).parse::<u64>().expect("a number") + self.stat(12).parse::<u64>().expect("a number")
    }

    /// What the kernel says of it.
    fn stat(&self, at: usize) -> String {
        // Name, state, and nine further fields before the processor time.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it has not ended");
        stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(at)).expect("it is there").to_owned()
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it.
    pub fn kill(mut self) {
        self.child.kill().expect("it can be killed");
    }

    /// Waits for its end.
    #[track_caller]
    pub fn end(mut self) -> Ended {
        let mut status = None;
        let child = &mut self.child;
        until(&self.command, "it does not end", || {
            status = child.try_wait().expect("it can be waited for");
            status.is_some()
        });
        let status = status.expect("it ended");
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.output.read_to_string(&mut stdout).expect("standard output is text");
        let pipe = self.child.stderr.as_mut().expect("standard error is piped");
        pipe.read_to_string(&mut stderr).expect("standard error is text");
        Ended { status: status.code().unwrap_or(-1), stdout, stderr, command: std::mem::take(&mut self.command) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// The object in its last line.
    #[track_caller]
    pub fn json(&self) -> Value {
        let line = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// It delivered everything; gives its object.
    #[track_caller]
    pub fn delivered(&self) -> Value {
        assert_eq!((self.status, &self.stderr[..]), (0, ""), "{self:?}");
        let object = self.json();
        for count in ["lost", "duplicated", "reordered", "corrupted"] {
            assert_eq!(object[count], 0, "{count}: {self:?}");
        }
        assert!(object["error"].is_null(), "{self:?}");
        object
    }

    /// It failed with this status and one line that contains a text.
    #[track_caller]
    pub fn failed(&self, status: i32, text: &str) {
        assert_eq!((self.status, self.stderr.lines().count()), (status, 1), "{self:?}");
        assert!(self.stderr.contains(text), "{text:?} is missing: {self:?}");
    }
}
