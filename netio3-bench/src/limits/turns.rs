//! Two measurements at the same time, in turns.
//!
//! A machine that others share is now fast and now slow, for seconds at a time: what is measured one after the other
//! differs by more than the two sides do. So the processes of both are started, and then run those of one side or
//! those of the other, for some milliseconds each, the others being stopped.

use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::args::Common;
use crate::failure::Failure;
use crate::limits::rows::Setup;
use crate::peers::{Outcome, Running};

/// The time beyond its own after which a measurement counts as stuck.
const PATIENCE: Duration = Duration::from_secs(120);

struct Side<'a> {
    running: Running<'a>,
    /// For how long it ran, and for how long it was there, once it is over.
    ran: Duration,
    lived: Option<Duration>,
}

impl<'a> Side<'a> {
    /// Starts both processes; they are stopped when everything is connected.
    fn start(setup: &'a Setup, common: &Common) -> Result<Self, Failure> {
        let mut running = setup.pairing.start(&Common { spin: setup.spin, epoll: setup.epoll, held: true, ..common.clone() })?;
        running.until_held()?;
        running.signal(Signal::SIGSTOP);
        Ok(Self { running, ran: Duration::ZERO, lived: None })
    }

    /// Lets it run for a while; `began`: when both did.
    fn run(&mut self, slice: Duration, began: Instant) {
        let went_on = Instant::now();
        self.running.signal(Signal::SIGCONT);
        sleep(slice);
        if self.running.is_over() {
            self.lived = Some(began.elapsed());
        } else {
            self.running.signal(Signal::SIGSTOP);
        }
        self.ran += went_on.elapsed();
    }

    fn finish(self) -> Result<Outcome, Failure> {
        let (mut active, passive) = self.running.finish()?;
        // It does not know of the time in which it was stopped.
        let share = self.ran.as_secs_f64() / self.lived.unwrap_or(self.ran).as_secs_f64();
        active.msgs_per_s /= share;
        Ok((active, passive))
    }
}

/// Measures both, in slices of time. Rates are those of the time in which a side ran.
pub fn in_turns(setups: [&Setup; 2], common: &Common, slice: Duration) -> Result<[Outcome; 2], Failure> {
    let [first, second] = setups.map(|setup| Side::start(setup, common));
    let mut sides = [first?, second?];
    let limit = setups.map(|setup| setup.pairing.limit(PATIENCE)).into_iter().max().unwrap_or(PATIENCE);
    let began = Instant::now();
    while sides.iter().any(|side| side.lived.is_none()) {
        if began.elapsed() > limit {
            let [one, other] = setups;
            return Err(Failure::NotDelivered(format!("{one} beside {other}: they did not end within {} s", limit.as_secs())));
        }
        for side in &mut sides {
            // With this one over, the other one is stopped as often as before.
            match side.lived {
                Some(_) => sleep(slice),
                None => side.run(slice, began),
            }
        }
    }
    let [first, second] = sides.map(Side::finish);
    Ok([first?, second?])
}
