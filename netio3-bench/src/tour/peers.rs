//! Runs the program itself in two processes and reads their reports.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::args::{Backend, Common};
use crate::failure::Failure;

/// What is read of a report.
#[derive(Deserialize, Clone, Copy, Debug)]
pub struct Measured {
    pub messages: u64,
    pub msgs_per_s: f64,
    pub gbytes_per_s: f64,
    pub rtt_us: Option<MeasuredRtt>,
}

/// What is read of the round-trip times.
#[derive(Deserialize, Clone, Copy, Debug)]
pub struct MeasuredRtt {
    pub p50: f64,
    pub p99: f64,
}

/// A transfer for some time.
pub fn measure_throughput(common: &Common, backend: Backend, size: usize, time: Duration) -> Result<Measured, Failure> {
    let more = ["--duration".to_owned(), time.as_secs_f64().to_string()];
    run(common, backend, ["recv", "send"], size, &more)
}

/// A number of round trips.
pub fn measure_round_trips(common: &Common, backend: Backend, size: usize, count: u64) -> Result<Measured, Failure> {
    run(common, backend, ["echo", "ping"], size, &["--count".to_owned(), count.to_string()])
}

/// The time after which a process counts as stuck.
const LIMIT: Duration = Duration::from_secs(20);

fn run(common: &Common, backend: Backend, [passive, active]: [&str; 2], size: usize, more: &[String]) -> Result<Measured, Failure> {
    let here = |role: &str, why: String| Failure::NotDelivered(format!("{role} over {backend} with messages of {size} bytes: {why}"));
    let mut peer = None;
    let mut args = vec!["--size".to_owned(), size.to_string()];
    args.extend_from_slice(more);
    // Loopback brings its own peer.
    if backend != Backend::Loopback {
        let mut process = Process::start(common, backend, passive, &["--listen".to_owned(), "127.0.0.1:0".to_owned()])
            .map_err(|why| here(passive, why))?;
        let address = process.address().map_err(|why| here(passive, why))?;
        args.extend(["--connect".to_owned(), address]);
        peer = Some(process);
    }
    let measured = Process::start(common, backend, active, &args).and_then(Process::report).map_err(|why| here(active, why))?;
    if let Some(peer) = peer {
        let counted = peer.report().map_err(|why| here(passive, why))?;
        if counted.messages != measured.messages {
            let why = format!("{} messages were sent and {} received", measured.messages, counted.messages);
            return Err(here(passive, why));
        }
    }
    Ok(measured)
}

/// A process of this program; ended when dropped.
struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(common: &Common, backend: Backend, role: &str, args: &[String]) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        command.arg(role).args(["--backend", backend.name(), "--json"]).args(args);
        command.args(["--spin", &common.spin.to_string()]);
        if common.verify {
            command.arg("--verify");
        }
        if let Some(provider) = &common.provider {
            command.args(["--provider", provider]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let output = BufReader::new(child.stdout.take().expect("standard output is piped"));
        Ok(Self { child, output })
    }

    /// The address that the process listens on.
    fn address(&mut self) -> Result<String, String> {
        let mut line = String::new();
        self.output.read_line(&mut line).map_err(|error| error.to_string())?;
        match line.trim_end().strip_prefix("listening on ") {
            Some(address) => Ok(address.to_owned()),
            None => Err(self.complaint()),
        }
    }

    /// Waits for the end; the report is the last line.
    fn report(mut self) -> Result<Measured, String> {
        let status = self.wait()?;
        if !status.success() {
            return Err(self.complaint());
        }
        let mut text = String::new();
        self.output.read_to_string(&mut text).map_err(|error| error.to_string())?;
        serde_json::from_str(text.lines().last().unwrap_or_default()).map_err(|error| format!("no report: {error}"))
    }

    fn wait(&mut self) -> Result<ExitStatus, String> {
        let began = Instant::now();
        loop {
            match self.child.try_wait().map_err(|error| error.to_string())? {
                Some(status) => return Ok(status),
                None if began.elapsed() > LIMIT => return Err(format!("it did not end within {} s", LIMIT.as_secs())),
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    /// What the process said before it failed.
    fn complaint(&mut self) -> String {
        let _ = self.child.kill();
        let mut text = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            let _ = stderr.read_to_string(&mut text);
        }
        let line = text.lines().last().unwrap_or("it failed without a word");
        line.trim_start_matches("netio3-bench: ").to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
