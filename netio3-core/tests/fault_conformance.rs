//! The conformance suite over the loopback backend with faults before it: without any, all of it holds, and with stalls
//! and delays all that does not speak of them. (Refusals without need are not for the suite, which demands acceptance.)
#![cfg(all(feature = "fault", feature = "conformance"))]

use netio3_core::conformance::Harness;
use netio3_core::fault::{Clock, FaultConfig, wrap};
use netio3_core::{Budget, Callbacks, EndPointAddress, EventLoop, NetworkBackend, NetworkConfig, Next, Source, loopback};
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

    fn local(&self, config: NetworkConfig, callbacks: Box<dyn Callbacks + Send>, ev: &dyn EventLoop) -> Box<dyn NetworkBackend> {
        let create = |callbacks| loopback::create_local(config, callbacks, ev);
        Box::new(wrap(self.config, self.seed, &self.clock, ev, callbacks, create).unwrap())
    }

    /// Without faults, since a backend with faults belongs to its loop's thread.
    fn synchronized(
        &self,
        config: NetworkConfig,
        callbacks: Box<dyn Callbacks + Send>,
        ev: &dyn EventLoop,
    ) -> Box<dyn NetworkBackend + Send + Sync> {
        loopback::create(config, callbacks, ev).unwrap()
    }

    fn is_synchronized(&self) -> bool {
        false
    }

    fn listen_address(&self) -> EndPointAddress {
        EndPointAddress::localhost(0)
    }

    fn skip(&self, case: &str) -> Option<&'static str> {
        let is_slow = self.config != FaultConfig::none();
        match case {
            "a_foreign_local_address_cannot_be_used" => Some("any address can be a local one of the loopback backend"),
            "an_accepted_message_leaves_with_the_turn" | "what_was_sent_before_the_goodbye_of_the_peer_was_read_leaves" if is_slow => {
                Some("not when it is delayed")
            }
            "counters_equal_what_happened" | "counters_are_right_within_a_burst" if is_slow => {
                Some("the counters know no message that is held back")
            }
            "the_totals_of_all_queues_are_bounded"
            | "large_totals_of_all_queues_are_bounded"
            | "the_total_bytes_of_all_queues_are_bounded"
                if is_slow =>
            {
                Some("the totals know no message that is held back")
            }
            _ => None,
        }
    }
}

/// Moves the clock on at the end of each turn, as long as something waits for it.
struct Ticker(Clock);

impl Source for Ticker {
    fn before_sleep(&mut self, _: &dyn EventLoop, _: &mut Budget) -> Next {
        if self.0.advance_to_next_event() { Next::Again } else { Next::Wait }
    }
}

mod without_faults {
    use netio3_core::fault::FaultConfig;

    netio3_core::conformance_suite!(super::FaultHarness::new(FaultConfig::none(), 0));
}

mod slow {
    use netio3_core::fault::FaultConfig;

    netio3_core::conformance_suite!(super::FaultHarness::new(FaultConfig { would_block: 0.0, ..FaultConfig::rough() }, 1));
}

/// With all kinds of faults, the cases whose programs take whatever comes.
mod rough {
    use netio3_core::conformance::run;
    use netio3_core::fault::FaultConfig;

    use super::FaultHarness;

    #[test]
    fn random_calls_break_no_rule() {
        run("random_calls_break_no_rule", FaultHarness::new(FaultConfig::rough(), 1));
        run("random_calls_break_no_rule", FaultHarness::new(FaultConfig::resetting(), 2));
    }

    #[test]
    fn random_ends_of_a_backend_break_no_rule() {
        run("random_ends_of_a_backend_break_no_rule", FaultHarness::new(FaultConfig::rough(), 3));
        run("random_ends_of_a_backend_break_no_rule", FaultHarness::new(FaultConfig::resetting(), 4));
    }
}
