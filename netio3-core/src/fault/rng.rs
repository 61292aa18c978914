//! Random numbers that are the same everywhere for the same seed.

use std::time::Duration;

/// The splitmix64 generator: one word of state, good enough to choose faults.
#[derive(Clone, Debug)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `true` with this probability; an impossible event draws no number.
    pub(super) fn chance(&mut self, probability: f64) -> bool {
        // The upper 53 bits make a fraction exactly, on every platform.
        probability > 0.0 && ((self.next() >> 11) as f64) < probability * (1_u64 << 53) as f64
    }

    /// From 1 to `most`, small numbers being as frequent as large ones on a logarithmic scale.
    pub(super) fn part_of(&mut self, most: usize) -> usize {
        let bits = u64::from((most.max(1) as u64).ilog2()) + 1;
        let scale = 1 << (1 + self.next() % bits);
        (1 + (self.next() % scale) as usize).min(most)
    }

    /// From one nanosecond to `longest`, evenly.
    pub(super) fn time_up_to(&mut self, longest: Duration) -> Duration {
        let longest = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX).max(1);
        Duration::from_nanos(1 + self.next() % longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_the_published_one() {
        let mut rng = Rng::new(1_234_567);
        assert_eq!([rng.next(), rng.next(), rng.next()], [6457827717110365317, 3203168211198807973, 9817491932198370423]);
    }

    #[test]
    fn draws_stay_in_their_bounds_and_reach_them() {
        let mut rng = Rng::new(3);
        let parts: Vec<usize> = (0..1_000).map(|_| rng.part_of(100)).collect();
        assert_eq!((parts.iter().min(), parts.iter().max()), (Some(&1), Some(&100)));
        assert_eq!(rng.part_of(1), 1);
        assert!((0..1_000).all(|_| rng.time_up_to(Duration::from_nanos(5)) <= Duration::from_nanos(5)));
        assert!((0..1_000).all(|_| rng.chance(1.0)) && !(0..1_000).any(|_| rng.chance(0.0)));
        let hits = (0..10_000).filter(|_| rng.chance(0.25)).count();
        assert!((2_300..2_700).contains(&hits), "{hits}");
    }
}
