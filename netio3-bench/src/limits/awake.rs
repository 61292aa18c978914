//! Keeps processors awake while sleeping round trips are measured: what an idle processor takes to wake up, in a
//! virtual machine tens of microseconds, has nothing to do with either side, and hides what has.

use std::process::{Child, Command, Stdio};

use nix::unistd::{Pid, getppid};

/// A process for each processor that runs when nothing else does. They end when this is dropped.
pub struct Awake {
    processes: Vec<Child>,
    wanted: usize,
}

impl Awake {
    /// Keeps these processors awake.
    pub fn on(cpus: Option<[usize; 2]>) -> Self {
        let cpus: Vec<usize> = cpus.into_iter().flatten().collect();
        let start = |cpu: &usize| {
            // The scheduler's class for what must never delay anything else.
            let mut command = Command::new("chrt");
            command.args(["--idle", "0"]).arg(std::env::current_exe().ok()?).args(["stay-awake", "--cpu", &cpu.to_string()]);
            command.args(["--parent", &std::process::id().to_string()]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
        };
        Self { processes: cpus.iter().filter_map(start).collect(), wanted: cpus.len().max(1) }
    }

    /// Whether all could be started.
    pub fn is_complete(&self) -> bool {
        self.processes.len() == self.wanted
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

/// Uses the processor until whoever started this process is gone: `parent` if it said which one it is.
pub fn stay_awake(parent: Option<i32>) {
    let parent = parent.map_or_else(getppid, Pid::from_raw);
    while getppid() == parent {
        (0..1_000_000).for_each(|_| std::hint::spin_loop());
    }
}
