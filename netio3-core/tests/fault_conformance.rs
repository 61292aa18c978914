//! The conformance suite over the loopback backend with faults before it: without any, all of it holds, and with stalls
//! and delays all that does not speak of them. (Refusals without need are not for the suite, which demands acceptance.)
#![cfg(all(feature = "fault", feature = "conformance"))]

use netio3_core::conformance::Harness;
use netio3_core::fault::{Clock, FaultConfig, wrap};
use netio3_core::{Budget, Callbacks, EndPointAddress, EventLoop, NetworkBackend, NetworkConfig, Next, Ready, Source, loopback};
use netio3_evloop::EpollEventLoop;

struct FaultHarness {
    config: FaultConfig,
    seed: u64,
    clock: Clock,
}

impl FaultHarness {
    fn new(config: FaultConfig, seed: u64) -> Self {
        Self { config, seed, clock: Clock::new() }
    }
}

impl Harness for FaultHarness {
    fn event_loop(&self) -> Box<dyn EventLoop> {
        let ev = EpollEventLoop::new().unwrap();
        ev.add_source(Box::new(Ticker(self.clock.clone())));
        Box::new(ev)
    }

    fn backend(&self, config: NetworkConfig, callbacks: Box<dyn Callbacks + Send>, ev: &dyn EventLoop) -> Box<dyn NetworkBackend> {
        let create = |callbacks| loopback::create_local(config, callbacks, ev);
        Box::new(wrap(self.config, self.seed, &self.clock, ev, callbacks, create).unwrap())
    }

    fn synchronized(&self, _: NetworkConfig, _: Box<dyn Callbacks + Send>, _: &dyn EventLoop) -> Box<dyn NetworkBackend + Send + Sync> {
        unreachable!("the cases with threads are skipped")
    }

    fn is_synchronized(&self) -> bool {
        false
    }

    fn listen_address(&self) -> EndPointAddress {
        EndPointAddress::localhost(0)
    }

    fn nobody_listens(&self) -> EndPointAddress {
        EndPointAddress::localhost(9)
    }

    fn skip(&self, case: &str) -> Option<&'static str> {
        let is_slow = self.config != FaultConfig::none();
        match case {
            _ if WITH_THREADS.contains(&case) => Some("a backend with faults belongs to its loop's thread"),
            "a_foreign_local_address_cannot_be_used" => Some("any address can be a local one of the loopback backend"),
            "an_accepted_message_leaves_with_the_turn" if is_slow => Some("not when it is delayed"),
            "counters_equal_what_happened" if is_slow => Some("the counters know no message that is held back"),
            "the_totals_of_all_queues_are_bounded" | "the_total_bytes_of_all_queues_are_bounded" if is_slow => {
                Some("the totals know no message that is held back")
            }
            _ => None,
        }
    }
}

/// Moves the clock on at the end of each turn, as long as something waits for it.
struct Ticker(Clock);

impl Source for Ticker {
    fn ready(&mut self, _: &dyn EventLoop, _token: usize, _: Ready, _: &mut Budget) -> Next {
        Next::Wait
    }

    fn before_sleep(&mut self, _: &dyn EventLoop, _: &mut Budget) -> Next {
        if self.0.advance_to_next_event() { Next::Again } else { Next::Wait }
    }
}

const WITH_THREADS: &[&str] = &[
    "four_threads_send_at_once",
    "no_call_waits_for_the_loop",
    "a_call_wakes_the_sleeping_loop",
    "a_close_from_another_thread_flushes",
    "threads_open_and_close_at_once",
    "pausing_from_another_thread_loses_nothing",
    "buffers_travel_between_threads",
    "dropping_on_another_thread_is_a_drop",
    "calls_after_the_loop_is_gone_fail",
    "the_loops_thread_may_call_as_well",
];

mod without_faults {
    use netio3_core::fault::FaultConfig;

    netio3_core::conformance_suite!(super::FaultHarness::new(FaultConfig::none(), 0));
}

mod slow {
    use netio3_core::fault::FaultConfig;

    netio3_core::conformance_suite!(super::FaultHarness::new(FaultConfig { would_block: 0.0, ..FaultConfig::rough() }, 1));
}
