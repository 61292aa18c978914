//! The conformance suite: what implementing the contract means, as tests over [`NetworkBackend`](crate::NetworkBackend).
//!
//! A backend implements [`Harness`] in a test file and invokes
//! [`conformance_suite!`](crate::conformance_suite), which makes one `#[test]` of every case:
//!
//! ```ignore
//! mod single_threaded {
//!     netio3_core::conformance_suite!(super::LoopbackHarness { synchronized: false });
//! }
//! ```
//!
//! Each case states one promise in the first line of its documentation. It uses only the public traits,
//! waits only for events and never longer than a bound, and everything done and told is written into a
//! journal. At the end the journal is checked against the rules of order and exactly-once, whatever the
//! case was about; when something failed, it is printed.

mod buffers;
mod bursts;
mod callers;
mod chaos;
mod check;
mod closing;
mod ending;
mod flow;
mod harness;
mod inside;
mod journal;
mod listeners;
mod liveness;
mod loops;
mod moments;
mod node;
mod noted;
mod numbers;
mod opening;
mod owned;
mod pair;
mod panics;
mod pattern;
mod plan;
mod raw;
mod recorder;
mod regions;
mod sending;
mod sizes;
mod threads;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

pub use harness::Harness;
pub use moments::expect_heard_at_any_moment;
pub use noted::{Noted, Told, Witness};

use check::Broken;
use journal::{Journal, SharedJournal};
use world::World;

/// Makes a `#[test]` of every case of the suite, for the harness that the expression gives.
///
/// The expression is evaluated anew for each test; invoke the macro inside a `mod` of its own.
#[macro_export]
macro_rules! conformance_suite {
    // The one list of all cases: theme (the file), then its cases.
    (@cases $then:ident ($($with:tt)*)) => {
        $crate::conformance_suite! { @$then ($($with)*)
            opening {
                opening_ends_in_established_on_both_sides
                an_address_that_names_no_peer_is_invalid
                an_address_has_one_owner
                connect_opens_many_to_one_address
                by_address_calls_reach_the_owner
                by_address_calls_without_an_owner_are_unknown
                where_nobody_listens_is_refused
                closing_before_established_is_refused_locally
                a_refused_address_is_free_inside_refused
                a_handle_is_never_reused
                a_foreign_local_address_cannot_be_used
                an_open_beyond_max_connections_fails
                buffers_of_no_bytes_are_refused
                the_connect_deadline_is_kept
                limits_are_the_smaller_of_both_sides
                connections_and_listeners_are_listed
                sending_before_established_is_not_connected
                unknown_handles_are_errors_of_every_call
            }
            listeners {
                port_zero_picks_a_port
                a_wildcard_listener_returns_the_wildcard
                an_address_that_nobody_can_have_is_invalid
                an_address_has_one_listener
                closing_an_unknown_listener_is_an_error
                closing_a_listener_closes_what_it_accepted
                closing_a_listener_under_a_newcomer_leaves_one_outcome
                a_filtered_peer_is_refused_and_counted
                a_peer_beyond_the_limit_is_refused_and_counted
                listeners_count_their_own
                nothing_is_listened_on_after_a_shutdown_of_a_full_backend
                a_listener_may_be_closed_by_its_own_connection
                an_ipv6_listener_takes_ipv6_only
                a_closed_listeners_address_is_free_at_once
            }
            sending {
                all_families_carry_both_ways
                keys_come_back_as_given
                completions_never_come_from_inside_the_send
                the_header_is_prepended
                memory_is_released_when_the_key_comes_back
                a_refused_message_is_not_held
                the_drop_of_memory_may_call_the_backend
                memory_is_released_when_the_key_comes_back_at_the_end
                memory_sent_in_a_drop_is_released_when_the_key_comes_back
                copied_bytes_are_taken_before_the_call_returns
                a_batch_is_sent_like_its_messages_one_by_one
                a_batch_ends_at_the_first_message_that_is_not_accepted
                an_accepted_message_leaves_with_the_turn
                what_a_callback_of_completions_sends_leaves_with_the_turn
                flush_is_harmless_at_any_time
                flush_sends_without_waiting_for_the_turn
                the_accepted_side_may_send_first
            }
            bursts {
                bursts_of_all_families_keep_their_order
                counters_are_right_within_a_burst
                a_region_registered_within_a_burst_is_held
                a_burst_ends_as_its_connection_does
            }
            sizes {
                empty_and_tiny_messages_are_messages
                sizes_around_internal_limits_arrive_whole
                a_message_may_have_any_number_of_pieces
                the_default_maximum_is_64_mib
                a_mixed_stream_arrives_in_order
                too_big_is_by_the_smaller_maximum
                headers_go_up_to_their_limit
            }
            flow {
                a_full_queue_refuses_and_tells_once_when_it_has_room
                a_queue_full_of_bytes_refuses_likewise
                an_empty_queue_takes_any_one_message
                a_batch_goes_as_far_as_there_is_room
                writable_never_comes_without_a_refusal
                after_writable_the_refused_message_is_accepted
                a_stream_continued_in_writable_arrives_whole
                the_totals_of_all_queues_are_bounded
                large_totals_of_all_queues_are_bounded
                the_total_bytes_of_all_queues_are_bounded
                nothing_is_delivered_while_paused
                pausing_inside_data_holds_at_once
                a_paused_connection_with_messages_to_leave_ends_with_its_peer
                a_paused_peer_slows_the_sender_down
                a_paused_connection_hinders_no_other
                a_close_waits_behind_paused_data
                both_sides_full_recover
                memory_for_assembling_is_bounded
                memory_kept_for_assembling_hinders_no_other
            }
            owned {
                a_message_taken_over_outlives_everything
                at_the_cap_of_messages_reading_pauses
                at_the_cap_of_bytes_reading_pauses
                an_echo_at_its_cap_is_told_of_the_end_of_its_peer
                who_pauses_after_the_end_of_the_peer_is_told_all_the_same
                at_the_cap_of_all_connections_reading_pauses
                at_the_cap_of_the_bytes_of_all_connections_reading_pauses
                messages_only_looked_at_are_not_counted
                resume_does_not_lift_the_cap
            }
            buffers {
                buffers_go_round
                no_buffer_is_followed_by_writable
                a_refused_buffer_is_followed_by_writable_though_none_is_free
                a_buffer_dropped_unsent_returns
                the_low_water_mark_is_told
                without_buffers_there_are_none
                a_foreign_buffer_is_handed_back
                a_refused_buffer_is_handed_back
                a_buffer_outlives_its_backend
                buffers_cut_from_a_region_go_anywhere
                buffers_cut_from_a_region_count_as_its_use
                queued_buffers_are_pending_at_the_end
                no_buffer_is_free_before_its_key_comes_back_though_its_message_was_given_up
                a_completed_buffer_is_free_inside_the_callback
                families_keep_their_order_when_mixed
                a_buffer_of_a_former_connection_is_foreign
            }
            regions {
                registered_memory_is_sent_from
                a_region_of_another_backend_is_unknown
                memory_is_registered_while_a_connection_opens
                the_limit_of_regions_is_told
                a_region_is_busy_while_sends_hold_it
                strict_regions_refuse_other_memory
                one_message_may_hold_two_regions
            }
            raw {
                raw_memory_is_sent_and_rewritten
                raw_sends_are_refused_like_others
                raw_sends_are_pending_at_the_end
                raw_sends_are_allowed_inside_callbacks
            }
            closing {
                a_close_flushes_what_was_accepted
                a_close_with_data_in_flight_loses_nothing_completed
                messages_are_delivered_until_closed
                what_was_sent_before_the_goodbye_of_the_peer_was_read_leaves
                a_paused_connection_that_is_closed_reads_on_to_the_goodbye
                a_pause_while_closing_leaves_no_gap
                both_sides_may_close_at_once
                sends_after_a_close_are_refused
                closing_twice_is_no_error
                the_close_deadline_is_kept
                a_slow_peer_gets_everything_before_the_deadline
                an_address_can_be_reopened_inside_closed
                closing_one_leaves_the_others
                opening_and_closing_leaves_nothing_behind
            }
            ending {
                an_abort_returns_what_is_pending
                an_abort_sends_nothing_more
                an_abort_at_any_moment_gives_each_key_back
                a_vanished_peer_is_lost
                a_vanished_peer_of_an_idle_connection_is_lost
                a_peer_that_vanishes_during_opening_is_told_once
                a_drop_closes_at_once_without_callbacks
                a_shutdown_closes_everything_with_callbacks
                after_a_shutdown_nothing_can_be_opened
                a_shutdown_keeps_its_deadline
                a_peer_that_shuts_down_takes_nobody_new
                data_comes_before_the_loss_of_its_sender
                pending_memory_is_released_inside_closed
                a_drop_at_any_moment_is_seen_once
                addresses_are_free_after_a_drop
            }
            inside {
                every_call_is_allowed_inside_established
                every_call_is_allowed_inside_refused
                every_call_is_allowed_inside_closed
                every_call_is_allowed_inside_data
                every_call_is_allowed_inside_data_of_a_large_message
                nothing_read_already_follows_an_end_inside_data
                every_call_is_allowed_inside_completed
                every_call_is_allowed_inside_completed_of_a_large_message
                every_call_is_allowed_inside_writable
                running_inside_a_callback_is_nested
                a_call_never_runs_a_callback
            }
            panics {
                a_panic_in_established_ends_that_backend_alone
                a_panic_in_refused_ends_that_backend_alone
                a_panic_in_closed_ends_that_backend_alone
                a_panic_in_data_ends_that_backend_alone
                a_panic_in_data_of_a_large_message_ends_that_backend_alone
                a_panic_in_completed_ends_that_backend_alone
                a_panic_in_writable_ends_that_backend_alone
                a_panic_in_the_drop_of_memory_ends_that_backend_alone
                a_panic_in_the_drop_of_memory_in_a_flush_ends_that_backend_alone
                a_panic_in_the_drop_of_memory_keeps_nothing_else
                a_panic_releases_the_memory_of_pending_messages
                a_loop_survives_many_panics
                a_panic_in_any_callback_ends_that_backend_alone
            }
            threads {
                four_threads_send_at_once
                batches_of_several_threads_keep_their_order
                a_call_wakes_the_sleeping_loop
                pausing_from_another_thread_loses_nothing
                buffers_travel_between_threads
                the_loops_thread_may_call_as_well
                refusals_of_another_thread_are_answered_once
            }
            callers {
                no_call_waits_for_the_loop
                a_close_from_another_thread_flushes
                threads_open_and_close_at_once
                dropping_on_another_thread_is_a_drop
                nothing_read_already_follows_a_drop_on_another_thread
                calls_after_the_loop_is_gone_fail
                sends_racing_with_the_end_are_accounted_for
            }
            liveness {
                an_idle_connection_lives
                heartbeats_are_sent_in_silence_and_counted
                a_silent_peer_is_given_up
                a_silent_peer_with_short_heartbeats_is_given_up
                a_peer_without_heartbeats_is_never_judged
                a_stall_of_ones_own_blames_nobody
                a_paused_connection_lives
                a_stalled_queue_ends_the_connection
                an_idle_or_busy_connection_is_not_stalled
            }
            loops {
                backends_share_a_loop
                loops_on_several_threads_talk
                a_loop_may_be_dropped_before_its_backend
                an_idle_loop_sleeps
                a_loop_with_stuck_connections_sleeps
                stopping_inside_callbacks_loses_nothing
                a_flood_starves_nobody
                a_connection_that_feeds_itself_starves_nobody
                chains_of_callbacks_need_no_outside_event
                posted_work_may_call_the_backend
                a_backend_may_be_made_inside_a_callback
                a_callback_may_use_another_backend
            }
            numbers {
                counters_equal_what_happened
                zero_copy_messages_that_are_copied_are_counted
                totals_survive_the_connections
                many_connections_at_once
                many_connections_dropped_at_once
                interleaved_streams_keep_apart
            }
            chaos {
                random_calls_break_no_rule
                random_ends_of_a_backend_break_no_rule
                random_calls_from_threads_break_no_rule
            }
        }
    };
    // A test for each, in the file that invokes the macro.
    (@tests ($harness:expr) $($theme:ident { $($case:ident)* })*) => {
        $($(
            #[test]
            fn $case() {
                $crate::conformance::run(stringify!($case), $harness);
            }
        )*)*
    };
    // The table by name, in this crate: a case missing in the list is dead code.
    (@table () $($theme:ident { $($case:ident)* })*) => {
        &[$($((stringify!($case), $theme::$case)),*),*]
    };
    ($harness:expr) => {
        $crate::conformance_suite! { @cases tests ($harness) }
    };
}

type Case = fn(&World);

const CASES: &[(&str, Case)] = crate::conformance_suite! { @cases table () };

/// The bound on a whole case, in which many waits may follow each other.
const CASE_LIMIT: Duration = Duration::from_secs(180);

/// Runs one case by its name; what the tests of [`conformance_suite!`](crate::conformance_suite) call.
///
/// # Panics
/// The case fails, breaks a rule, does not end in time, or there is none of that name.
pub fn run(case: &'static str, harness: impl Harness + 'static) {
    let (name, body) = CASES.iter().find(|(name, _)| *name == case).unwrap_or_else(|| panic!("there is no case {case}"));
    if let Some(why) = harness.skip(name) {
        println!("skipped: {why}");
        return;
    }
    let harness: Arc<dyn Harness> = Arc::new(harness);
    let journal: SharedJournal = Arc::new(Mutex::new(Journal::new()));
    let (done, finished) = mpsc::channel();
    // On a thread of its own, so that a case that hangs is a failure of this test only.
    let its_journal = journal.clone();
    let thread = thread::Builder::new().name((*name).to_owned()).spawn(move || {
        let world = World::new(harness, its_journal);
        let result = catch_unwind(AssertUnwindSafe(|| {
            body(&world);
            world.tear_down();
        }));
        // Sent before a failed case's world is dropped, which may fail again.
        let _ = done.send(result);
    });
    let thread = thread.expect("a thread can be started");
    let failure = match finished.recv_timeout(CASE_LIMIT) {
        Ok(result) => result.err(),
        Err(RecvTimeoutError::Timeout) => Some(Box::new(format!("{name} does not end within {CASE_LIMIT:?}")) as _),
        Err(RecvTimeoutError::Disconnected) => Some(Box::new(format!("{name} ended without a result")) as _),
    };
    let hangs = !thread.is_finished() && failure.is_some();
    if !hangs {
        let _ = thread.join();
    }
    let broken = check::broken_rules(&journal.lock());
    if failure.is_some() || !broken.is_empty() {
        println!("{}", journal.lock().print(None));
        for Broken { rule, about } in &broken {
            println!("broken: {rule}\n{}", journal.lock().print(Some(about)));
        }
    }
    if let Some(payload) = failure {
        resume_unwind(payload);
    }
    assert!(broken.is_empty(), "{} rules are broken, first: {}", broken.len(), broken[0].rule);
}
