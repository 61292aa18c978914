//! The two processes of a measurement: how they are started, what they say, and when they are given up.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::job::{Job, Measured};
use crate::library::Library;

/// The time after which a process counts as stuck.
const LIMIT: Duration = Duration::from_secs(30);
/// The time in which a process that has broken off ends.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Measures a library between two processes on these processors.
///
/// # Errors
/// One of them failed: what it said.
pub fn measure(library: Library, job: &Job, cpus: Option<[usize; 2]>) -> Outcome<Measured> {
    let here = |why: String| format!("{} of {} bytes over {}: {why}", job.task.name(), job.size, library.name());
    let mut server = Process::start("serve", library, job, cpus.map(|cpus| cpus[0]), &[]).map_err(here)?;
    let address = server.line().map_err(here)?;
    let connect = ["--connect", address.as_str()];
    let mut driver = Process::start("drive", library, job, cpus.map(|cpus| cpus[1]), &connect).map_err(here)?;
    let report = driver.line().map_err(|why| here(server.complaint().map_or(why.clone(), |first| format!("{first}; {why}"))))?;
    Ok(serde_json::from_str(&report).map_err(|error| here(format!("no report: {error}")))?)
}

/// In the serving process: tells where it can be reached.
pub fn announce(address: &str) {
    say(address);
}

/// In the driving process: tells what it found.
///
/// # Errors
/// Never, in the form of what can fail before it.
pub fn report(measured: &Measured) -> Outcome {
    say(&serde_json::to_string(measured)?);
    Ok(())
}

/// Writes a line. If nobody reads it, this process is about to be ended.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// A process of this program; ended when dropped.
struct Process {
    role: &'static str,
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    fn start(role: &'static str, library: Library, job: &Job, cpu: Option<usize>, more: &[&str]) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("cannot start `{role}`: {error}");
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.args([role, library.name(), "--task", job.task.name()]);
        command.args(["--size", &job.size.to_string(), "--time", &job.time.as_secs_f64().to_string()]);
        command.args(["--parent", &std::process::id().to_string()]);
        command.args(cpu.iter().flat_map(|cpu| ["--cpu".to_owned(), cpu.to_string()])).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let output = BufReader::new(child.stdout.take().expect("standard output is piped"));
        // Lines are read by a thread, so that they can be waited for with a limit; it ends with the process.
        let (sender, lines) = channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Ok(Self { role, child, lines })
    }

    /// The next line that it says.
    fn line(&mut self) -> Result<String, String> {
        self.lines.recv_timeout(LIMIT).map_err(|error| match error {
            RecvTimeoutError::Timeout => format!("`{}` said nothing within {} s", self.role, LIMIT.as_secs()),
            RecvTimeoutError::Disconnected => self.complaint().unwrap_or_else(|| format!("`{}` ended without a word", self.role)),
        })
    }

    /// What it said before it ended by itself with a failure, or ends so within a moment.
    fn complaint(&mut self) -> Option<String> {
        let began = Instant::now();
        while self.child.try_wait().ok()?.is_none() {
            if began.elapsed() > LAST_WORDS {
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let status = self.child.wait().ok()?;
        let mut text = String::new();
        self.child.stderr.as_mut()?.read_to_string(&mut text).ok()?;
        let line = text.lines().last().map(|line| line.trim_start_matches("netio3-peers: ").to_owned());
        (!status.success()).then(|| format!("`{}`: {}", self.role, line.unwrap_or_else(|| status.to_string())))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
