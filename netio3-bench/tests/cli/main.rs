//! Runs the built program and checks what it prints and how it exits.

mod failures;
mod limits;
mod losses;
mod outputs;
mod tour;
mod transfers;
mod util;
