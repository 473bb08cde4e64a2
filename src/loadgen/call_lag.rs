//! Slots of API calls, of which the generator has so many and no more; how long calls waited for one, and what of that is its
//! own: of one task's calls, and of all since a time.
//!
//! A call that waits for a slot waits for a call that holds it, and that one waits for the target: so does the first. The
//! generator's own part is what its tasks waited for a processor, which shows in the time from when a slot is left until the
//! next call goes on.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};

use crate::runtime::clock;

/// How often the generator has to schedule something while a call holds its slot: the connection's task with the request and
/// with the answer, and the call's own.
const SCHEDULED: f64 = 3.0;

/// Waits below this matter to nobody, in µs.
const WAIT_MIN_US: u64 = 1_000;

/// Waits that are kept. Each is shorter than the ones before it, so that so many are rarely there.
const KEPT_MAX: usize = 1_024;

/// What a call waited for its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlotWait {
    /// When the call was to be made, on the run's clock in µs.
    pub(super) asked_us: u64,
    /// When it had its slot.
    pub(super) turn_us: u64,
    /// What of the time between is the generator's own, in µs. The rest, calls that held the slots waited for the target.
    pub(super) lag_us: u64,
}

impl SlotWait {
    /// The whole of it, in µs.
    pub(super) const fn us(&self) -> u64 {
        self.turn_us.saturating_sub(self.asked_us)
    }
}

/// How a slot was left.
#[derive(Debug, Clone, Copy, Default)]
struct Left {
    at_us: u64,
    held_us: u64,
}

impl Left {
    /// What is the generator's own of the wait for this slot: the time since it was left, in which the next call's task
    /// waited for a processor, and the share of the time before in which those of the call that held it did.
    fn lag_us(self, asked_us: u64, turn_us: u64) -> u64 {
        let scheduling_us = turn_us.saturating_sub(self.at_us.max(asked_us));
        let rest_us = turn_us.saturating_sub(asked_us).saturating_sub(scheduling_us);
        let share = (SCHEDULED * scheduling_us as f64 / self.held_us.max(1) as f64).min(1.0);
        scheduling_us + (rest_us as f64 * share) as u64
    }
}

/// Slots of calls: a concurrency limit that says what a wait is due to. Waiters are served in order.
#[derive(Debug)]
pub(super) struct CallSlots {
    free: Semaphore,
    /// How each slot was left that is free, or that a call has been given which has not gone on yet: the earliest first.
    left: Mutex<VecDeque<Left>>,
}

impl CallSlots {
    /// So many slots.
    pub(super) fn new(slots: usize) -> Self {
        Self { free: Semaphore::new(slots), left: Mutex::new(vec![Left::default(); slots].into()) }
    }

    /// Takes a slot when there is one.
    pub(super) async fn take(&self) -> Result<CallSlot<'_>, AcquireError> {
        let asked_us = clock::now_us();
        let slot = |wait, permit| CallSlot { slots: self, wait, _permit: permit };
        if let Ok(permit) = self.free.try_acquire() {
            // The one left last: those before may be of slots that were given to calls that have not gone on yet.
            self.left().pop_back();
            return Ok(slot(SlotWait { asked_us, turn_us: asked_us, lag_us: 0 }, permit));
        }
        let permit = self.free.acquire().await?;
        let turn_us = clock::now_us();
        let left = self.left().pop_front().unwrap_or_default();
        Ok(slot(SlotWait { asked_us, turn_us, lag_us: left.lag_us(asked_us, turn_us) }, permit))
    }

    fn left(&self) -> MutexGuard<'_, VecDeque<Left>> {
        self.left.lock().expect("no panic while held")
    }
}

/// A slot that a call holds until this is dropped.
#[derive(Debug)]
pub(super) struct CallSlot<'a> {
    slots: &'a CallSlots,
    /// What the call waited for it.
    pub(super) wait: SlotWait,
    /// Given back after [`Drop::drop`], which says how it is left.
    _permit: SemaphorePermit<'a>,
}

impl Drop for CallSlot<'_> {
    fn drop(&mut self) {
        let at_us = clock::now_us();
        let held_us = at_us.saturating_sub(self.wait.turn_us);
        self.slots.left().push_back(Left { at_us, held_us });
    }
}

tokio::task_local! {
    /// What the calls of this task have waited for the generator so far.
    static WAITED_US: Cell<u64>;
}

/// Makes calls; returns with their outcome for how long they waited for the generator together, in µs.
pub(super) fn with_wait<T>(calls: impl Future<Output = T>) -> impl Future<Output = (T, u64)> {
    // Calls are large futures: boxed, one is laid out once.
    let calls = Box::pin(calls);
    WAITED_US.scope(Cell::new(0), async { (calls.await, WAITED_US.with(Cell::get)) })
}

/// A call of this task has waited for the generator for so long.
pub(super) fn waited(us: u64) {
    // A task that does not ask is not told.
    let _ = WAITED_US.try_with(|waited| waited.set(waited.get().saturating_add(us)));
}

/// Waits of all calls, whoever they were due to. Written by calls, read by devices that doubt a connect.
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
    use std::time::Duration;

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

    /// The wait of a call for the only slot, which another one held for `held_us`: after that the processors are elsewhere
    /// for `lag_us`.
    async fn waited_behind(held_us: u64, lag_us: u64) -> SlotWait {
        let slots = CallSlots::new(1);
        let before = slots.take().await.expect("open");
        let mut next = Box::pin(slots.take());
        tokio::select! {
            biased;
            _ = &mut next => panic!("the slot is held"),
            () = std::future::ready(()) => {}
        }
        tokio::time::advance(Duration::from_micros(held_us)).await;
        drop(before);
        tokio::time::advance(Duration::from_micros(lag_us)).await;
        next.await.expect("open").wait
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_for_a_call_that_waits_for_the_target_is_the_targets() {
        let wait = waited_behind(3 * S, 0).await;
        assert_eq!((wait.us(), wait.lag_us), (3 * S, 0));
        let wait = waited_behind(100 * S, S / 2).await;
        assert_eq!(wait.us(), 100 * S + S / 2);
        // Half a second until it went on, and as much three times while the slot was held.
        assert!(wait.lag_us.abs_diff(2 * S) < 10, "{wait:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_for_a_call_that_waits_for_a_processor_is_the_generators() {
        let wait = waited_behind(S, S / 2).await;
        assert_eq!((wait.us(), wait.lag_us), (S + S / 2, S + S / 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_that_is_free_is_waited_for_by_nobody() {
        let slots = CallSlots::new(2);
        let first = slots.take().await.expect("open");
        tokio::time::advance(Duration::from_secs(1)).await;
        let second = slots.take().await.expect("open");
        assert_eq!([first.wait.us(), second.wait.us(), second.wait.lag_us], [0; 3]);
        drop((first, second));
        tokio::time::advance(Duration::from_secs(1)).await;
        // However long ago it was left.
        assert_eq!(slots.take().await.expect("open").wait.lag_us, 0);
        assert_eq!((slots.left().len(), slots.free.available_permits()), (2, 2));
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
