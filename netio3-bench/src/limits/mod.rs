//! The limits: what netio3 reaches of what bare sockets and bare libfabric calls reach, quantity by quantity.
//!
//! Both are measured between two processes, each pinned to a processor of its own, at the same time, in turns of some
//! milliseconds: a machine's speed drifts by more than the two differ. Ratios are taken within a round.

mod awake;
mod rows;
mod table;
mod turns;

use std::time::{Duration, Instant};

use nix::sched::sched_getaffinity;
use nix::unistd::Pid;

pub use crate::limits::awake::stay_awake;

use crate::args::{Backend, Common, LimitsArgs};
use crate::failure::Failure;
use crate::info::choose;
use crate::limits::awake::Awake;
use crate::limits::rows::{Row, Setup, rows};
use crate::limits::table::{Findings, Ratios};
use crate::limits::turns::in_turns;
use crate::peers::Outcome;
use crate::report::progress;

/// How long a side runs at a time: round trips for longer, since one in each such slice is in vain.
const SLICE: Duration = Duration::from_millis(10);
const SLICE_OF_ROUND_TRIPS: Duration = Duration::from_millis(40);

/// Measures, and prints the table of what could be. Fails when something could not, not when it is short.
pub fn limits(common: &Common, args: &LimitsArgs) -> Result<(), Failure> {
    let began = Instant::now();
    let (backends, left_out) = backends(common)?;
    let matches = |row: &Row| args.only.as_ref().is_none_or(|part| row.name().contains(part.as_str()));
    // Bare sockets beside bare sockets tell something of TCP.
    let of = |row: &Row| if row.own.pairing.backend == Backend::Raw { Backend::Tcp } else { row.own.pairing.backend };
    let mut rows: Vec<Row> = rows(2 * args.time).into_iter().filter(|row| backends.contains(&of(row)) && matches(row)).collect();
    if rows.is_empty() {
        let part = args.only.as_deref().unwrap_or_default();
        let why: String = left_out.iter().map(|why| format!("; {why}")).collect();
        return Err(Failure::NoConnection(format!("nothing that can be measured here has `{part}` in its name{why}")));
    }
    let cpus = two_processors();
    rows.iter_mut().flat_map(|row| row.base.iter_mut().chain([&mut row.own])).for_each(|setup| setup.pairing.cpus = cpus);
    // What several rows need is measured once a round.
    let mut pairs: Vec<(Option<Setup>, Setup)> = Vec::new();
    for pair in rows.iter().map(|row| (row.base.clone(), row.own.clone())) {
        if !pairs.contains(&pair) {
            pairs.push(pair);
        }
    }
    let bar = progress(args.rounds as usize * pairs.len());
    let mut ratios: Vec<Ratios> = rows.iter().map(|_| Ratios::default()).collect();
    let mut sleep_because = None;
    // What could not be measured is not tried again: it may take its time to fail.
    let mut failures: Vec<Option<String>> = vec![None; pairs.len()];
    for _ in 0..args.rounds {
        let mut outcomes: Vec<Option<(Option<Outcome>, Outcome)>> = Vec::new();
        for ((base, own), failure) in pairs.iter().zip(&mut failures) {
            bar.set_message(own.to_string());
            outcomes.push(if failure.is_some() {
                None
            } else {
                let mut awake = own.awake.then(|| Awake::on(cpus));
                let outcome = measure(common, base.as_ref(), own);
                sleep_because = sleep_because.or_else(|| awake.as_mut()?.lacks());
                outcome.map_err(|why| *failure = Some(why.to_string())).ok()
            });
            bar.inc(1);
        }
        for (row, ratios) in rows.iter().zip(&mut ratios) {
            let index = pairs.iter().position(|(base, own)| (base, own) == (&row.base, &row.own)).expect("every row has its pair");
            ratios.error.clone_from(&failures[index]);
            if let Some((base, own)) = &outcomes[index] {
                ratios.add(row.figure.of(own), base.as_ref().map_or(Some(1.0), |base| row.figure.of(base)));
            }
        }
    }
    bar.finish_and_clear();
    let mut notes = left_out;
    if cpus.is_none() {
        notes.push("only one processor may be used, which both sides shared".into());
    }
    if let Some(why) = sleep_because {
        notes.push(format!("processors could sleep during round trips, which adds to both sides: {why}"));
    }
    Findings { rows, ratios, notes, seconds: began.elapsed().as_secs_f64() }.print(common.json)
}

/// Measures what sets the limit, if there is such a thing, and what is to reach it.
fn measure(common: &Common, base: Option<&Setup>, own: &Setup) -> Result<(Option<Outcome>, Outcome), Failure> {
    let Some(base) = base else {
        return Ok((None, own.pairing.run(&Common { spin: own.spin, epoll: own.epoll, ..common.clone() })?));
    };
    let slice = if own.pairing.is_of_round_trips() { SLICE_OF_ROUND_TRIPS } else { SLICE };
    let [base, own] = in_turns([base, own], common, slice)?;
    Ok((Some(base), own))
}

/// The backends to measure, and why the others are left out.
fn backends(common: &Common) -> Result<(Vec<Backend>, Vec<String>), Failure> {
    let wanted: &[Backend] = match common.backend {
        None => &[Backend::Tcp, Backend::Rdma],
        Some(Backend::Tcp) => &[Backend::Tcp],
        Some(Backend::Rdma) => &[Backend::Rdma],
        Some(other) => return Err(Failure::NoConnection(format!("{other} has no limits to be compared with; tcp and rdma have"))),
    };
    choose(common, wanted)
}

/// Two processors that this process may use.
fn two_processors() -> Option<[usize; 2]> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let mut allowed = (0..nix::sched::CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    Some([allowed.next()?, allowed.next()?])
}
