//! Backends with faults: a program written on the contract survives them, and each kind can be seen.
#![cfg(feature = "fault")]

mod kinds;
mod pair;
mod program;
mod survival;
