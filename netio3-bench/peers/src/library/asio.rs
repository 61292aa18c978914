//! asio: a program in C++, `asio/main.cpp`, in place of this one.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::Outcome;
use crate::job::{Job, Measured};

/// Receives, or sends back.
pub fn serve(job: &Job) -> Outcome {
    become_it("serve", job, None)
}

/// Sends, or waits for what comes back.
pub fn drive(job: &Job, address: &str) -> Outcome<Measured> {
    become_it("drive", job, Some(address))
}

/// Goes on as the other program, which keeps the processor and says what this one would.
fn become_it<T>(role: &str, job: &Job, address: Option<&str>) -> Outcome<T> {
    let mut program = Command::new(env!("ASIO_PEER"));
    program.args([role, job.task.name(), &job.size.to_string(), &job.time.as_secs_f64().to_string()]).args(address);
    Err(format!("cannot start {}: {}", env!("ASIO_PEER"), program.exec()).into())
}
