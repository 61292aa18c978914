//! Keeps processors awake while sleeping round trips are measured: what an idle processor takes to wake up, in a
//! virtual machine tens of microseconds, has nothing to do with either side, and hides what has.

use std::io;
use std::process::{Child, Command, Stdio};

use nix::unistd::getppid;

/// A process for each processor that runs when nothing else does. They end when this is dropped.
#[derive(Default)]
pub struct Awake {
    processes: Vec<Child>,
    /// Why one could not be started, and what to do.
    lacks: Option<String>,
}

impl Awake {
    /// Keeps these processors awake. One that both sides share is never idle.
    pub fn on(cpus: Option<[usize; 2]>) -> Self {
        let start = |cpu: usize| {
            // The scheduler's class for what must never delay anything else.
            let mut command = Command::new("chrt");
            command.args(["--idle", "0"]).arg(std::env::current_exe()?).args(["stay-awake", "--cpu", &cpu.to_string()]);
            command.args(["--parent", &std::process::id().to_string()]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
        };
        let mut awake = Self::default();
        for cpu in cpus.into_iter().flatten() {
            match start(cpu) {
                Ok(process) => awake.processes.push(process),
                Err(error) if error.kind() == io::ErrorKind::NotFound => awake.lacks = Some("install util-linux (`chrt`)".into()),
                Err(error) => awake.lacks = Some(format!("`chrt` cannot be started: {error}")),
            }
        }
        awake
    }

    /// Why not all were kept awake until now, if they were not.
    pub fn lacks(&mut self) -> Option<String> {
        let has_ended = |process: &mut Child| !matches!(process.try_wait(), Ok(None));
        let ended = self.processes.iter_mut().any(has_ended).then(|| "`chrt --idle 0` does not work here".to_owned());
        self.lacks.take().or(ended)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Uses the processor until whoever started this process is gone.
pub fn stay_awake() {
    let parent = getppid();
    while getppid() == parent {
        (0..1_000_000).for_each(|_| std::hint::spin_loop());
    }
}
