//! Runs the program itself in two processes and reads their reports.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::args::{Backend, Common};
use crate::failure::Failure;
use crate::report::Report;

/// A measurement between two processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pairing {
    pub backend: Backend,
    pub size: usize,
    /// The passive role and the active one.
    pub roles: [&'static str; 2],
    /// What else the active one is told.
    pub args: Vec<String>,
    /// The processors that the two are pinned to, in this order.
    pub cpus: Option<[usize; 2]>,
    /// How long it is to take at least, which is nothing where the number of messages is given.
    time: Duration,
}

impl Pairing {
    /// A transfer for some time.
    pub fn transfer(backend: Backend, size: usize, time: Duration) -> Self {
        let args = vec!["--duration".to_owned(), time.as_secs_f64().to_string()];
        Self { backend, size, roles: ["recv", "send"], args, cpus: None, time }
    }

    /// A number of round trips.
    pub fn round_trips(backend: Backend, size: usize, count: u64) -> Self {
        let args = vec!["--count".to_owned(), count.to_string()];
        Self { backend, size, roles: ["echo", "ping"], args, cpus: None, time: Duration::ZERO }
    }

    /// Whether round trips are measured.
    pub fn is_of_round_trips(&self) -> bool {
        self.roles[1] == "ping"
    }

    /// The time after which it counts as stuck, of which this much is patience.
    pub fn limit(&self, patience: Duration) -> Duration {
        self.time + patience
    }

    /// Runs both to their ends.
    pub fn run(&self, common: &Common) -> Result<Outcome, Failure> {
        self.start(common)?.finish()
    }

    /// Starts both.
    pub fn start(&self, common: &Common) -> Result<Running<'_>, Failure> {
        let Self { backend, size, roles: [passive, active], .. } = self;
        let pinned = |index: usize| self.cpus.iter().flat_map(move |cpus| ["--cpu".to_owned(), cpus[index].to_string()]);
        let mut peer = None;
        let mut args: Vec<String> = self.args.iter().cloned().chain(["--size".to_owned(), size.to_string()]).chain(pinned(1)).collect();
        // Loopback brings its own peer.
        if *backend != Backend::Loopback {
            let listen: Vec<String> = ["--listen", "127.0.0.1:0"].map(str::to_owned).into_iter().chain(pinned(0)).collect();
            let mut process = Process::start(common, *backend, passive, &listen).map_err(|why| self.failed(passive, &why))?;
            let address = process.address().map_err(|why| self.failed(passive, &why))?;
            args.extend(["--connect".to_owned(), address]);
            peer = Some(process);
        }
        let active = Process::start(common, *backend, active, &args).map_err(|why| self.failed(active, &why))?;
        Ok(Running { pairing: self, passive: peer, active })
    }

    fn failed(&self, role: &str, why: &str) -> Failure {
        Failure::NotDelivered(format!("{role} over {} with messages of {} bytes: {why}", self.backend, self.size))
    }
}

/// What the two processes of a measurement told: the active one, and the passive one if there was one.
pub type Outcome = (Report, Option<Report>);

/// The processes of a measurement; ended when dropped.
pub struct Running<'a> {
    pairing: &'a Pairing,
    passive: Option<Process>,
    active: Process,
}

impl Running<'_> {
    /// Waits for the ends of both. Fails when a message was not delivered.
    pub fn finish(self) -> Result<Outcome, Failure> {
        let Pairing { roles: [passive, active], .. } = self.pairing;
        let limit = self.pairing.limit(PATIENCE);
        let measured = self.active.report(limit).map_err(|why| self.pairing.failed(active, &why))?;
        let counted = self.passive.map(|peer| peer.report(limit)).transpose().map_err(|why| self.pairing.failed(passive, &why))?;
        match counted {
            Some(counted) if counted.messages != measured.messages => {
                let why = format!("{} messages were sent and {} received", measured.messages, counted.messages);
                Err(self.pairing.failed(passive, &why))
            }
            _ => Ok((measured, counted)),
        }
    }

    /// Waits until the active one, which was started with `--held`, is about to begin, or has failed.
    pub fn until_held(&mut self) -> Result<(), Failure> {
        self.active.until_stopped().map_err(|why| self.pairing.failed(self.pairing.roles[1], &why))
    }

    /// Whether the active one has ended.
    pub fn is_over(&mut self) -> bool {
        !matches!(self.active.child.try_wait(), Ok(None))
    }

    /// Stops both where they are, or lets them go on.
    pub fn signal(&self, signal: Signal) {
        for process in [Some(&self.active), self.passive.as_ref()].into_iter().flatten() {
            // One that has ended does not mind.
            let _ = kill(process.pid(), signal);
        }
    }
}

/// The time beyond that of its measurement after which a process counts as stuck.
const PATIENCE: Duration = Duration::from_secs(30);

/// A process of this program; ended when dropped.
struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(common: &Common, backend: Backend, role: &str, args: &[String]) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        command.arg(role).args(["--backend", &backend.to_string(), "--json", "--log", "off"]).args(args);
        command.args(["--spin", &common.spin.to_string(), "--parent", &std::process::id().to_string()]);
        for (flag, is_set) in [("--verify", common.verify), ("--held", common.held), ("--epoll", common.epoll)] {
            command.args(is_set.then_some(flag));
        }
        if let Some(provider) = common.provider.as_ref().filter(|_| backend.is_of_libfabric()) {
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

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Waits until it has stopped itself, or ended.
    fn until_stopped(&mut self) -> Result<(), String> {
        let began = Instant::now();
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG;
        loop {
            match waitid(Id::Pid(self.pid()), flags) {
                // One that has ended can only be waited for as such.
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
            if self.child.try_wait().map_err(|error| error.to_string())?.is_some() {
                return Err(self.complaint());
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("it was not ready within {} s", PATIENCE.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for the end; the report is the last line.
    fn report(mut self, limit: Duration) -> Result<Report, String> {
        let status = self.wait(limit)?;
        if !status.success() {
            return Err(self.complaint());
        }
        let mut text = String::new();
        self.output.read_to_string(&mut text).map_err(|error| error.to_string())?;
        serde_json::from_str(text.lines().last().unwrap_or_default()).map_err(|error| format!("no report: {error}"))
    }

    fn wait(&mut self, limit: Duration) -> Result<ExitStatus, String> {
        let began = Instant::now();
        loop {
            match self.child.try_wait().map_err(|error| error.to_string())? {
                Some(status) => return Ok(status),
                None if began.elapsed() > limit => return Err(format!("it did not end within {} s", limit.as_secs())),
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
