//! Whole backends against each other on a simulated network, in virtual time, by seeded schedules.
//!
//! Each seed makes a network (short reads and writes, would-block, stalls, delays, resets, or none of them),
//! two backends on loops of their own, and a schedule of calls, turns and moments of time. What the
//! callbacks tell is checked against the contract at once, the rest at the end.
//!
//! `NETIO3_SIM_SEEDS` sets the number of schedules per test, `NETIO3_SIM_SEED` runs a single one.

mod book;
mod event_loop;
mod kernel;
mod net;
mod node;
mod random;
mod schedule;
