//! When to send a heartbeat, and when a silent peer is dead: the rules that all backends share.

use std::time::{Duration, Instant};

/// Watches the silence of one connection, both ways; it knows no socket and reads no clock.
///
/// The engine reports what left and what arrived, calls [`check`](Self::check) once
/// [`next_deadline`](Self::next_deadline) has passed, and does what that says until it says [`Nothing`](LivenessAction::Nothing).
///
/// Reports cost a store or two, deadlines only ever move later by them, so a timer set earlier need not be
/// moved: a check that comes too early does nothing.
///
/// A peer is dead after `missed_heartbeats` of its own announced intervals without any arriving byte, and
/// is judged only right after a read that found nothing. A check that comes more than a whole interval late
/// tells of a stall of this side (a stopped or debugged process, a slow callback) and is not counted, unless
/// the one before was late as well. A connection that is not being read from is not judged.
#[derive(Clone, Debug)]
pub(crate) struct Liveness {
    own_interval: Duration,
    peer_interval: Duration,
    missed_heartbeats: u32,
    last_sent: Instant,
    /// Begin of the peer's current interval.
    silent_since: Instant,
    /// Intervals without any byte before the current one.
    missed: u32,
    /// The last check came so late that it was not counted.
    stalled: bool,
    reading: bool,
}

/// What the engine has to do for a connection now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum LivenessAction {
    /// Nothing before [`Liveness::next_deadline`].
    Nothing,
    /// Send a heartbeat (it counts as sent already). Unneeded when other bytes are waiting to leave.
    SendHeartbeat,
    /// Read from the connection now, then call [`Liveness::probed`].
    Probe,
    /// The peer is dead: end the connection with [`HeartbeatTimeout`](crate::ClosedReason::HeartbeatTimeout).
    Dead,
}

impl Liveness {
    /// A connection established now.
    ///
    /// `own_interval` is the silence after which this side sends a heartbeat, `peer_interval` the one that
    /// the peer announced; zero means that the respective side sends none. One of `missed_heartbeats` leaves
    /// no room for any delay on the way; zero is taken as one.
    pub(crate) fn new(own_interval: Duration, peer_interval: Duration, missed_heartbeats: u32, now: Instant) -> Self {
        Self {
            own_interval,
            peer_interval,
            missed_heartbeats: missed_heartbeats.max(1),
            last_sent: now,
            silent_since: now,
            missed: 0,
            stalled: false,
            reading: true,
        }
    }

    /// Something left, be it part of a message. The turn's time is exact enough, here and below.
    #[inline]
    pub(crate) fn sent(&mut self, now: Instant) {
        self.last_sent = now;
    }

    /// Some byte arrived.
    #[inline]
    pub(crate) fn received(&mut self, now: Instant) {
        self.silent_since = now;
        self.missed = 0;
        self.stalled = false;
    }

    /// Reading from the connection stopped or goes on; the peer is judged afresh from then on.
    pub(crate) fn set_reading(&mut self, reading: bool, now: Instant) {
        if reading && !self.reading {
            self.received(now);
        }
        self.reading = reading;
    }

    /// What is to be done; ask again until it is [`LivenessAction::Nothing`].
    pub(crate) fn check(&mut self, now: Instant) -> LivenessAction {
        if self.heartbeat_at().is_some_and(|at| now >= at) {
            self.last_sent = now;
            return LivenessAction::SendHeartbeat;
        }
        if self.judge_at().is_none_or(|at| now < at) {
            return LivenessAction::Nothing;
        }
        let late = now.saturating_duration_since(self.silent_since) >= 2 * self.peer_interval;
        if late && !self.stalled {
            self.stalled = true;
            self.silent_since = now;
            return LivenessAction::Nothing;
        }
        if self.missed + 1 < self.missed_heartbeats {
            self.missed += 1;
            self.stalled = false;
            self.silent_since = now;
            return LivenessAction::Nothing;
        }
        LivenessAction::Probe
    }

    /// The read that [`LivenessAction::Probe`] asked for has `found` something, or nothing: then the peer is
    /// [`LivenessAction::Dead`].
    pub(crate) fn probed(&mut self, found: bool, now: Instant) -> LivenessAction {
        if found {
            self.received(now);
            return LivenessAction::Nothing;
        }
        LivenessAction::Dead
    }

    /// When to call [`check`](Self::check), or `None` when neither side sends heartbeats.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        [self.heartbeat_at(), self.judge_at()].into_iter().flatten().min()
    }

    fn heartbeat_at(&self) -> Option<Instant> {
        if self.own_interval.is_zero() { None } else { self.last_sent.checked_add(self.own_interval) }
    }

    fn judge_at(&self) -> Option<Instant> {
        if self.peer_interval.is_zero() || !self.reading { None } else { self.silent_since.checked_add(self.peer_interval) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Checks until nothing is left to do; tells how many heartbeats were asked for, and whether the peer is dead.
    fn check_all(liveness: &mut Liveness, now: Instant, arrived: bool) -> (usize, bool) {
        let mut heartbeats = 0;
        loop {
            let action = match liveness.check(now) {
                LivenessAction::Probe => liveness.probed(arrived, now),
                action => action,
            };
            match action {
                LivenessAction::SendHeartbeat => heartbeats += 1,
                LivenessAction::Dead => return (heartbeats, true),
                _ => return (heartbeats, false),
            }
        }
    }

    #[test]
    fn a_heartbeat_follows_an_interval_without_anything_sent() {
        let start = Instant::now();
        let mut liveness = Liveness::new(2 * SECOND, Duration::ZERO, 5, start);
        assert_eq!(liveness.next_deadline(), Some(start + 2 * SECOND));
        liveness.sent(start + SECOND);
        assert_eq!(check_all(&mut liveness, start + 2 * SECOND, false), (0, false));
        assert_eq!(liveness.next_deadline(), Some(start + 3 * SECOND));
        assert_eq!(check_all(&mut liveness, start + 3 * SECOND, false), (1, false));
        assert_eq!(check_all(&mut liveness, start + 1000 * SECOND, false), (1, false));
        assert_eq!(liveness.next_deadline(), Some(start + 1002 * SECOND));
    }

    #[test]
    fn without_heartbeats_nothing_is_due() {
        let start = Instant::now();
        let mut liveness = Liveness::new(Duration::ZERO, Duration::ZERO, 1, start);
        assert_eq!(liveness.next_deadline(), None);
        assert_eq!(check_all(&mut liveness, start + 1000 * SECOND, false), (0, false));
        let endless = Liveness::new(Duration::MAX, Duration::MAX, 1, start);
        assert_eq!(endless.next_deadline(), None);
    }

    #[test]
    fn a_silent_peer_dies_after_its_missed_heartbeats_and_not_before() {
        let start = Instant::now();
        let mut liveness = Liveness::new(Duration::ZERO, 2 * SECOND, 5, start);
        for second in 1..10 {
            assert_eq!(check_all(&mut liveness, start + second * SECOND, false), (0, false), "after {second} s");
        }
        assert_eq!(liveness.check(start + 10 * SECOND), LivenessAction::Probe);
        assert_eq!(liveness.probed(false, start + 10 * SECOND), LivenessAction::Dead);
    }

    #[test]
    fn a_byte_found_by_the_probe_starts_afresh() {
        let start = Instant::now();
        let mut liveness = Liveness::new(Duration::ZERO, SECOND, 2, start);
        assert_eq!(check_all(&mut liveness, start + SECOND, true), (0, false));
        assert_eq!(check_all(&mut liveness, start + 2 * SECOND, true), (0, false));
        assert_eq!(liveness.next_deadline(), Some(start + 3 * SECOND));
        assert_eq!(check_all(&mut liveness, start + 3 * SECOND, false), (0, false));
        assert_eq!(check_all(&mut liveness, start + 4 * SECOND, false), (0, true));
    }

    #[test]
    fn a_stall_of_ones_own_blames_nobody() {
        let start = Instant::now();
        for missed_heartbeats in [1, 5] {
            let mut liveness = Liveness::new(Duration::ZERO, SECOND, missed_heartbeats, start);
            let awake = start + 3600 * SECOND;
            assert_eq!(check_all(&mut liveness, awake, false), (0, false));
            assert_eq!(liveness.next_deadline(), Some(awake + SECOND));
            for second in 1..missed_heartbeats {
                assert_eq!(check_all(&mut liveness, awake + second * SECOND, false), (0, false));
            }
            assert_eq!(check_all(&mut liveness, awake + missed_heartbeats * SECOND, false), (0, true));
        }
    }

    #[test]
    fn a_loop_that_is_always_late_still_finds_the_dead() {
        let start = Instant::now();
        let mut liveness = Liveness::new(Duration::ZERO, SECOND, 3, start);
        let died = (1..100).find(|turn| check_all(&mut liveness, start + turn * 10 * SECOND, false).1);
        assert_eq!(died, Some(6));
    }

    #[test]
    fn a_paused_connection_is_not_judged() {
        let start = Instant::now();
        let mut liveness = Liveness::new(Duration::ZERO, SECOND, 1, start);
        liveness.set_reading(false, start);
        assert_eq!(liveness.next_deadline(), None);
        assert_eq!(check_all(&mut liveness, start + 100 * SECOND, false), (0, false));
        liveness.set_reading(true, start + 100 * SECOND);
        assert_eq!(liveness.next_deadline(), Some(start + 101 * SECOND));
        assert_eq!(check_all(&mut liveness, start + 101 * SECOND, false), (0, true));
    }

    proptest! {
        /// Two sides with whatever stalls: a peer that sends when asked to is never dead, and one that has gone
        /// silent is, in time.
        #[test]
        fn only_the_silent_die(stalls in prop::collection::vec(0_u32..5_000, 1..60), missed_heartbeats in 2_u32..6) {
            let start = Instant::now();
            let interval = Duration::from_secs(1);
            let mut peer = Liveness::new(interval, Duration::ZERO, 1, start);
            let mut own = Liveness::new(Duration::ZERO, interval, missed_heartbeats, start);
            let mut now = start;
            let mut last_read = start;
            let mut last_heartbeat = start;
            for stall in stalls {
                // The peer runs on time while this side is stalled.
                now = now.max(own.next_deadline().unwrap()) + Duration::from_millis(stall.into());
                while let Some(at) = peer.next_deadline().filter(|at| *at <= now) {
                    prop_assert_eq!(check_all(&mut peer, at, false).0, 1);
                    prop_assert!(at - last_heartbeat <= interval);
                    last_heartbeat = at;
                }
                // The timer comes before the descriptor in the turn.
                prop_assert!(!check_all(&mut own, now, last_heartbeat > last_read).1);
                if last_heartbeat > last_read {
                    own.received(now);
                }
                last_read = now;
            }
            let mut on_time = 0;
            loop {
                now = own.next_deadline().unwrap();
                on_time += 1;
                if check_all(&mut own, now, false).1 {
                    break;
                }
            }
            prop_assert!(on_time <= missed_heartbeats);
        }
    }
}
