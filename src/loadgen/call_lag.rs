//! How long calls of the API waited for the generator, which makes so many at once and no more: of one task's calls, and of all
//! since a time.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Mutex;

/// Waits below this matter to nobody, in µs.
const WAIT_MIN_US: u64 = 1_000;

/// Waits that are kept. Each is shorter than the ones before it, so that so many are rarely there.
const KEPT_MAX: usize = 1_024;

tokio::task_local! {
    /// What the calls of this task have waited so far.
    static WAITED_US: Cell<u64>;
}

/// Makes calls; returns with their outcome for how long they waited together, in µs.
pub(super) fn with_wait<T>(calls: impl Future<Output = T>) -> impl Future<Output = (T, u64)> {
    // Calls are large futures: boxed, one is laid out once.
    let calls = Box::pin(calls);
    WAITED_US.scope(Cell::new(0), async { (calls.await, WAITED_US.with(Cell::get)) })
}

/// A call of this task has waited for so long.
pub(super) fn waited(us: u64) {
    // A task that does not ask is not told.
    let _ = WAITED_US.try_with(|waited| waited.set(waited.get().saturating_add(us)));
}

/// Waits of all calls. Written by calls, read by devices that doubt a connect.
#[derive(Debug, Default)]
pub(super) struct CallLags {
    /// When each call had its turn, and what it had waited, in µs: the latest last, without what a later one outdoes.
    waits: Mutex<VecDeque<(u64, u64)>>,
}

impl CallLags {
    /// A call that was asked for at one time had its turn at another.
    pub(super) fn note(&self, asked_us: u64, turn_us: u64) {
        let wait_us = turn_us.saturating_sub(asked_us);
        if wait_us < WAIT_MIN_US {
            return;
        }
        let mut waits = self.waits.lock().expect("no panic while held");
        while waits.back().is_some_and(|(_, us)| *us <= wait_us) {
            waits.pop_back();
        }
        if waits.len() == KEPT_MAX {
            waits.pop_front();
        }
        waits.push_back((turn_us, wait_us));
    }

    /// Longest that a call waited from a time on, in µs.
    pub(super) fn longest_since(&self, since_us: u64) -> u64 {
        let waits = self.waits.lock().expect("no panic while held");
        // What a call waited before that time is nobody's wait since.
        waits.iter().map(|(turn_us, wait_us)| turn_us.saturating_sub(since_us).min(*wait_us)).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    #[test]
    fn the_longest_wait_is_that_since_a_time() {
        let lags = CallLags::default();
        assert_eq!(lags.longest_since(0), 0);
        lags.note(10 * S, 40 * S);
        lags.note(48 * S, 50 * S);
        lags.note(50 * S, 50 * S + 5);
        let longest = |since_s: u64| lags.longest_since(since_s * S) / S;
        assert_eq!([0, 10, 30, 40, 49, 50].map(longest), [30, 30, 10, 2, 1, 0]);
        lags.note(57 * S, 60 * S);
        assert_eq!([0, 45, 58].map(longest), [30, 3, 2]);
    }

    #[test]
    fn no_more_waits_are_kept_than_can_matter() {
        let lags = CallLags::default();
        for n in 0..3_000 {
            lags.note(n * S, n * S + (4_000 - n) * 1_000);
        }
        let kept = lags.waits.lock().expect("free").len();
        assert_eq!(kept, KEPT_MAX);
        lags.note(0, 5_000 * S);
        assert_eq!(lags.waits.lock().expect("free").len(), 1);
    }

    #[tokio::test]
    async fn the_calls_of_a_task_are_told_what_they_waited() {
        waited(7);
        let ((), us) = with_wait(async {
            waited(5);
            tokio::task::yield_now().await;
            waited(6);
        })
        .await;
        assert_eq!(us, 11);
    }
}
