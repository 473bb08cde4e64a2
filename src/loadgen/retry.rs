//! When a failed request or connect is repeated: exponential backoff with jitter, a server's own time, a budget. No I/O,
//! no clock.

use std::time::Duration;

/// Ceiling of the first wait.
const FIRST: Duration = Duration::from_millis(200);

/// Ceiling of every wait that the server does not ask for.
const CEILING_MAX: Duration = Duration::from_secs(10);

/// Time from the first failure after which nothing is repeated.
pub(super) const BUDGET: Duration = Duration::from_mins(1);

/// The time a wait after `now_us`, on the same clock. A server may ask for any wait: one beyond all times is the last of them.
#[must_use]
pub(super) fn after(now_us: u64, wait: Duration) -> u64 {
    now_us.saturating_add(u64::try_from(wait.as_micros()).unwrap_or(u64::MAX))
}

/// The retries of one request or connect. A failure gives a wait, or gives up.
///
/// Each wait is drawn between a half and the whole of a ceiling that doubles ("equal jitter"): clients that failed together
/// do not return together, and none returns at once. Where the server names a time (`retry_after_ms`, `Retry-After`), the wait is
/// that time and a jitter on top: never less.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retry {
    /// When the first failure was, on the caller's clock in µs. Written by the first call of [`Self::next`].
    began_us: u64,
    seed: u32,
    tries: u16,
    budget_s: u16,
}

impl Retry {
    /// No failure yet; the seed decides the jitter.
    #[must_use]
    pub(super) const fn new(seed: u64) -> Self {
        Self::with_budget(seed, BUDGET)
    }

    /// The same with another budget, in whole seconds, at most 18 hours.
    #[must_use]
    pub(super) const fn with_budget(seed: u64, budget: Duration) -> Self {
        let seconds = budget.as_secs();
        let budget_s = if seconds > u16::MAX as u64 { u16::MAX } else { seconds as u16 };
        Self { began_us: 0, seed: (seed ^ (seed >> 32)) as u32, tries: 0, budget_s }
    }

    /// Notes a failure. Returns how long to wait before the next try; `None` when the budget does not last for it.
    #[must_use]
    pub(super) fn next(&mut self, now_us: u64, retry_after: Option<Duration>) -> Option<Duration> {
        if self.tries == 0 {
            self.began_us = now_us;
        }
        let ceiling = FIRST.saturating_mul(1 << self.tries.min(16)).min(CEILING_MAX);
        self.tries = self.tries.saturating_add(1);
        let half_us = ceiling.as_micros() as u64 / 2;
        let jitter = Duration::from_micros(self.draw(half_us));
        let wait = retry_after.unwrap_or(ceiling / 2).checked_add(jitter)?;
        let spent = Duration::from_micros(now_us.saturating_sub(self.began_us));
        (spent.checked_add(wait)? <= Duration::from_secs(self.budget_s.into())).then_some(wait)
    }

    /// Failures so far.
    #[must_use]
    pub(super) const fn tries(&self) -> u16 {
        self.tries
    }

    /// Begins again, after a success.
    pub(super) const fn reset(&mut self) {
        self.tries = 0;
    }

    /// A number up to `most` (inclusive) that depends on the seed and the try.
    const fn draw(&self, most: u64) -> u64 {
        // The finalizer of `splitmix64`.
        let x = (((self.seed as u64) << 16) | self.tries as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % (most + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_wait_is_so_long_that_it_is_over_at_once() {
        assert_eq!(after(5, Duration::from_micros(7)), 12);
        assert_eq!(after(5, Duration::MAX), u64::MAX);
        assert_eq!(after(u64::MAX, Duration::from_secs(1)), u64::MAX);
    }

    /// The waits of a request that never succeeds, and when it gave up.
    fn waits(seed: u64, retry_after: Option<Duration>) -> (Vec<Duration>, u64) {
        let mut retry = Retry::new(seed);
        let (mut now_us, mut waits) = (5_000_000, Vec::new());
        while let Some(wait) = retry.next(now_us, retry_after) {
            waits.push(wait);
            now_us += wait.as_micros() as u64;
        }
        (waits, now_us - 5_000_000)
    }

    #[test]
    fn waits_double_to_the_ceiling_and_end_with_the_budget() {
        for seed in 0..100 {
            let (waits, took_us) = waits(seed, None);
            let mut ceiling = FIRST;
            for wait in &waits {
                assert!((ceiling / 2..=ceiling).contains(wait), "{wait:?} under {ceiling:?}");
                ceiling = (ceiling * 2).min(CEILING_MAX);
            }
            assert!((8..=16).contains(&waits.len()), "{} tries within {BUDGET:?}", waits.len());
            assert!(Duration::from_micros(took_us) <= BUDGET);
        }
    }

    #[test]
    fn the_time_that_a_server_names_is_the_least_wait() {
        let second = Duration::from_secs(1);
        let (waits, took_us) = waits(3, Some(second));
        assert!(waits.iter().all(|wait| (second..=second + CEILING_MAX / 2).contains(wait)), "{waits:?}");
        assert!(Duration::from_micros(took_us) <= BUDGET);
        // Longer than the budget: no try is worth its wait.
        assert_eq!(Retry::new(1).next(0, Some(Duration::from_hours(1))), None);
        assert_eq!(Retry::new(1).next(0, Some(Duration::MAX)), None);
    }

    #[test]
    fn clients_that_failed_together_do_not_return_together() {
        let mut firsts: Vec<Duration> = (0..1_000).map(|seed| waits(seed, None).0[0]).collect();
        firsts.sort_unstable();
        firsts.dedup();
        assert!(firsts.len() > 980, "{} different waits", firsts.len());
        assert_eq!(waits(7, None), waits(7, None), "a seed repeats");
    }

    #[test]
    fn a_success_begins_anew() {
        let mut retry = Retry::new(9);
        let first = retry.next(0, None).expect("within the budget");
        while retry.next(0, None).is_some_and(|wait| wait < Duration::from_secs(3)) {}
        retry.reset();
        assert_eq!(retry.tries(), 0);
        assert_eq!(retry.next(900_000_000, None), Some(first));
        assert!(std::mem::size_of::<Retry>() <= 16);
    }
}
