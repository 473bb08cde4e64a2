//! Jittered exponential backoff.

use std::time::Duration;

use rand::{Rng, RngExt};

/// Waits between tries: each is drawn evenly between zero and a ceiling that doubles ("full jitter"), so that many
/// clients that failed together do not come back together.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    first: Duration,
    ceiling_max: Duration,
    tries: u32,
}

impl Backoff {
    /// Starts at `first`, never waits longer than `ceiling_max`.
    #[must_use]
    pub const fn new(first: Duration, ceiling_max: Duration) -> Self {
        Self { first, ceiling_max, tries: 0 }
    }

    /// The next wait.
    pub fn next_wait(&mut self, rng: &mut impl Rng) -> Duration {
        let ceiling = self.first.saturating_mul(1 << self.tries.min(16)).min(self.ceiling_max);
        self.tries = self.tries.saturating_add(1);
        let micros = u64::try_from(ceiling.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(rng.random_range(0..=micros))
    }

    /// Waits since something last worked.
    #[must_use]
    pub const fn tries(&self) -> u32 {
        self.tries
    }

    /// Waits as after so many waits, or more.
    pub fn at_least(&mut self, tries: u32) {
        self.tries = self.tries.max(tries);
    }

    /// Starts again at `first`, after something worked.
    pub const fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn waits_grow_to_the_ceiling_and_vary() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let waits: Vec<Duration> = (0..50).map(|_| backoff.next_wait(&mut rng)).collect();
        assert!(waits[0] <= Duration::from_millis(100));
        assert!(waits.iter().all(|w| *w <= Duration::from_secs(2)));
        assert!(waits.iter().any(|w| *w > Duration::from_secs(1)));
        assert_eq!(backoff.tries(), 50);
        backoff.reset();
        assert_eq!(backoff.tries(), 0);
        backoff.at_least(3);
        backoff.at_least(1);
        assert_eq!(backoff.tries(), 3);
        assert!(backoff.next_wait(&mut rng) <= Duration::from_millis(100));
    }
}
