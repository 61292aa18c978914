//! Schedules: a busy phase under faults, then a calm one in which everything has to settle and end.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use netio3_core::fault::FaultConfig;

use super::kernel::{Kernel, Weather};
use super::node::{Node, Shared};
use super::random::Random;

struct Schedule {
    kernel: Kernel,
    nodes: [Node; 2],
    shared: Rc<RefCell<Shared>>,
    random: Random,
}

impl Schedule {
    fn new(seed: u64, faults: FaultConfig, verbose: bool) -> Self {
        let mut random = Random::new(seed);
        let capacity = random.choose(&[100, 3_000, 64 << 10, 512 << 10]).unwrap_or(1);
        let weather = Weather {
            faults,
            capacity,
            longest_connect: random.choose(&[0, 10, 5_000]).map_or(Duration::ZERO, Duration::from_micros),
            bad_accepts: random.choose(&[0, 0, 20]).unwrap_or(0),
        };
        let gentle = faults.reset == 0.0;
        let kernel = Kernel::new(random.next(), weather);
        // Thousands of tiny steps for one large message are not worth their time.
        let longest = (capacity * 64).min(300 << 10);
        let shared = Rc::new(RefCell::new(Shared::new(random.next(), gentle, longest)));
        shared.borrow_mut().book.verbose = verbose;
        let nodes = [0, 1].map(|number| Node::new(number, &kernel, &shared, random.next()));
        Self { kernel, nodes, shared, random }
    }

    fn run(&mut self) -> (usize, usize) {
        for node in &self.nodes {
            node.user.with(|backend| node.user.listen(backend));
        }
        let steps = 50 + self.random.up_to(250);
        for _ in 0..steps {
            self.busy_step();
        }
        self.settle();
        self.end();
        self.shared.borrow().book.tally()
    }

    /// A call, a turn, or a moment of time.
    fn busy_step(&mut self) {
        let node = self.random.up_to(1);
        let user = self.nodes[node].user.clone();
        match self.random.up_to(99) {
            0..30 => {
                let established = self.shared.borrow().book.established_of(node);
                let endpoint = self.random.choose(&established).map(|id| id.1);
                user.with(|backend| user.act(backend, endpoint));
            }
            30..85 => self.nodes[node].ev.turn(),
            85..95 => {
                // Deadlines are far away and not meant to pass.
                let clock = self.kernel.clock();
                if clock.next_event().is_some_and(|at| at - clock.now() < Duration::from_millis(60)) {
                    clock.advance_to_next_event();
                }
            }
            _ => self.kernel.clock().advance(Duration::from_micros(self.random.skewed(5_000) as u64)),
        }
    }

    /// Turns and time until the condition holds.
    fn until(&mut self, what: &str, mut unmet: impl FnMut(&Self) -> Option<String>) {
        let clock = self.kernel.clock();
        let began = clock.now();
        for _ in 0..400_000 {
            let Some(left) = unmet(self) else { return };
            let first = self.random.up_to(1);
            if let Some(node) = [first, 1 - first].into_iter().find(|node| self.nodes[*node].ev.has_work()) {
                self.nodes[node].ev.turn();
            } else {
                let elapsed = clock.now() - began;
                assert!(elapsed < Duration::from_secs(60) && clock.advance_to_next_event(), "{what} after {elapsed:?}: {left}");
            }
        }
        panic!("{what}: {:?} after many turns", unmet(self));
    }

    /// Without faults and with nobody in the way, everything arrives and comes back.
    fn settle(&mut self) {
        self.kernel.calm();
        self.shared.borrow_mut().busy = false;
        for (number, node) in self.nodes.iter().enumerate() {
            let user = &node.user;
            user.drop_held(true);
            let living = self.shared.borrow().book.established_of(number);
            user.with(|backend| living.iter().for_each(|id| user.pause(backend, id.1, false)));
        }
        self.until("not settled", |schedule| schedule.shared.borrow().book.unsettled());
    }

    /// Everything is closed one way or another, and nothing is left.
    fn end(&mut self) {
        for number in [0, 1] {
            let user = self.nodes[number].user.clone();
            match self.random.up_to(3) {
                0 => {
                    let living = self.shared.borrow().book.alive_of(number);
                    user.with(|backend| living.iter().for_each(|id| user.close(backend, id.1)));
                }
                1 => user.with(|backend| {
                    let deadline = self.shared.borrow().close_deadline;
                    backend.shutdown(deadline);
                    let living = self.shared.borrow().book.alive_of(number);
                    living.iter().for_each(|id| self.shared.borrow_mut().book.closing(*id));
                }),
                2 => user.with(|backend| user.close_listener(backend)),
                // The other side closes.
                _ => {}
            }
            if self.random.percent(50) {
                let other = &self.nodes[self.random.up_to(1)];
                other.ev.turn();
            }
        }
        let user = self.nodes[0].user.clone();
        let living: Vec<_> = self.shared.borrow().book.alive_of(0);
        user.with(|backend| living.iter().for_each(|id| user.close(backend, id.1)));
        self.until("not ended", |schedule| {
            let book = &schedule.shared.borrow().book;
            [0, 1].iter().find_map(|node| book.alive_of(*node).first().map(|id| format!("{id:?} lives")))
        });
        self.shared.borrow().book.check_ends();
        for node in &self.nodes {
            node.user.with(|backend| {
                let totals = backend.totals().snapshot();
                let levels = [totals.connections, totals.queued_messages, totals.queued_bytes, totals.owned_messages, totals.owned_bytes];
                assert_eq!(levels, [0; 5], "what is left in connections, queues and owned messages");
                assert_eq!(totals.assembly_bytes, 0, "assembly memory is left");
            });
            node.user.drop_backend();
        }
        assert_eq!(self.kernel.open_files(), 0, "sockets are left open");
    }
}

/// Runs the schedules of one kind of network.
fn run(name: &str, schedules: u64, faults: FaultConfig) {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let one = number("NETIO3_SIM_SEED");
    let seeds = match one {
        Some(seed) => seed..seed + 1,
        None => 0..number("NETIO3_SIM_SEEDS").unwrap_or(schedules),
    };
    let (mut messages, mut connections, count) = (0, 0, seeds.end - seeds.start);
    for seed in seeds {
        let announce = Announce { name, seed };
        let (received, closed) = Schedule::new(seed, faults, one.is_some()).run();
        std::mem::forget(announce);
        messages += received;
        connections += closed;
    }
    println!("{count} schedules: {messages} messages received, {connections} ends of connections");
    assert!(one.is_some() || messages as u64 > 10 * count, "the schedules do next to nothing");
}

/// Tells the seed of a schedule that panics.
struct Announce<'a> {
    name: &'a str,
    seed: u64,
}

impl Drop for Announce<'_> {
    fn drop(&mut self) {
        eprintln!("failed: NETIO3_SIM_SEED={} of {}", self.seed, self.name);
    }
}

#[test]
fn nothing_is_lost_on_a_calm_network() {
    run("nothing_is_lost_on_a_calm_network", 600, FaultConfig::none());
}

#[test]
fn nothing_is_lost_in_short_reads_and_writes() {
    run("nothing_is_lost_in_short_reads_and_writes", 500, FaultConfig::short());
}

#[test]
fn nothing_is_lost_in_stalls_and_delays() {
    run("nothing_is_lost_in_stalls_and_delays", 500, FaultConfig::rough());
}

#[test]
fn resets_and_aborts_lose_only_the_end_and_name_it() {
    run("resets_and_aborts_lose_only_the_end_and_name_it", 600, FaultConfig::resetting());
}
