//! How many calls may be under way on one engine, learned from how it answers: time-outs halve the limit, answers raise it.
//!
//! Without a limit an engine that comes back is buried under the calls that waited for it: each takes longer than its
//! deadline, is given up and made again, and nothing ever succeeds. With one, a slow engine gets few calls, answers these in
//! time, and gets more as it warms up. What finds no room within a moment is refused without being tried, with a time after
//! which to come back that is drawn at random, so that those who were refused together do not come back together.
//! Source of the rule (additive increase, multiplicative decrease): Chiu and Jain, 1989.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::error::{BackendError, BackendResult, Effect, ErrorKind};
use crate::runtime::clock;

/// Calls that may be under way at the start.
const FIRST: usize = 128;

/// The same where an embedded writer takes a thousand at once: what a disk that stalls for a second holds up.
const FIRST_BATCHED: usize = 1_024;

/// The lowest limit.
const MIN: usize = 2;

/// The highest. Those of all ports together stay below what the embedded writer has room for.
const MAX: usize = 512;
const MAX_BATCHED: usize = 2_048;

/// Time between two halvings: calls that were under way together time out together.
const HALVE_EVERY: Duration = Duration::from_millis(500);

/// Longest that a call waits for room.
const WAIT: Duration = Duration::from_millis(800);

/// When those who found no room are asked to come back, in ms.
const COME_BACK_MS: std::ops::Range<u64> = 1_000..4_000;

/// The limit of one port of one server.
pub struct Limiter {
    room: Semaphore,
    state: Mutex<State>,
}

struct State {
    limit: usize,
    limit_max: usize,
    /// Permits that are to go and are still in use.
    owed: usize,
    /// Answers in time since the limit was raised.
    answers: usize,
    halved_us: Option<u64>,
}

/// Leave to make a call. Dropping it without an outcome, as a cancelled caller does, counts as nothing.
pub(super) struct Turn<'a> {
    limiter: &'a Limiter,
    permit: Option<SemaphorePermit<'a>>,
}

impl Default for Limiter {
    fn default() -> Self {
        Self::within(FIRST, MAX)
    }
}

impl Limiter {
    /// For a port whose calls an embedded writer takes in batches.
    pub(super) fn of_batches() -> Self {
        Self::within(FIRST_BATCHED, MAX_BATCHED)
    }

    fn within(first: usize, limit_max: usize) -> Self {
        let state = State { limit: first, limit_max, owed: 0, answers: 0, halved_us: None };
        Self { room: Semaphore::new(first), state: Mutex::new(state) }
    }

    /// Waits for room.
    ///
    /// # Errors
    /// `NotApplied`: there was none in time.
    pub(super) async fn turn(&self, operation: &'static str) -> BackendResult<Turn<'_>> {
        match tokio::time::timeout(WAIT, self.room.acquire()).await {
            Ok(Ok(permit)) => Ok(Turn { limiter: self, permit: Some(permit) }),
            _ => Err(BackendError {
                operation,
                kind: ErrorKind::Unavailable,
                effect: Effect::NotApplied,
                retry_after: Some(Duration::from_millis(rand::random_range(COME_BACK_MS))),
                source: Some("the engine is slow and as many calls are under way as it answers in time".into()),
            }),
        }
    }

    fn answered(&self) {
        let mut state = self.state.lock().expect("no panic while held");
        state.answers += 1;
        if state.answers >= state.limit && state.limit < state.limit_max {
            state.answers = 0;
            state.limit += 1;
            if state.owed > 0 {
                state.owed -= 1;
            } else {
                self.room.add_permits(1);
            }
        }
    }

    fn timed_out(&self) {
        let now = clock::now_us();
        let mut state = self.state.lock().expect("no panic while held");
        state.answers = 0;
        if state.halved_us.is_some_and(|at| now.saturating_sub(at) < HALVE_EVERY.as_micros() as u64) {
            return;
        }
        state.halved_us = Some(now);
        let lower = (state.limit / 2).max(MIN);
        let surplus = state.limit - lower;
        state.limit = lower;
        state.owed += surplus - self.room.forget_permits(surplus);
    }
}

impl Turn<'_> {
    /// Ends the turn with what came of the call.
    pub(super) fn end<T>(self, result: &BackendResult<T>) {
        match result {
            Err(error) if error.kind == ErrorKind::TimedOut => self.limiter.timed_out(),
            // A refusal or a broken connection says nothing about how much an engine can do.
            Err(_) => {}
            Ok(_) => self.limiter.answered(),
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.limiter.state.lock().expect("no panic while held");
        if state.owed > 0
            && let Some(permit) = self.permit.take()
        {
            state.owed -= 1;
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(kind: Option<ErrorKind>) -> BackendResult<()> {
        kind.map_or(Ok(()), |kind| Err(BackendError::unknown("test", kind, "x")))
    }

    #[tokio::test(start_paused = true)]
    async fn time_outs_halve_the_limit_and_answers_raise_it_again() {
        let limiter = Limiter::default();
        let limit = || limiter.state.lock().expect("no panic").limit;
        for _ in 0..2 * FIRST {
            limiter.turn("test").await.expect("room").end(&outcome(None));
        }
        assert_eq!((limit(), limiter.room.available_permits()), (FIRST + 1, FIRST + 1));
        let mut turns = Vec::new();
        for _ in 0..limit() {
            turns.push(limiter.turn("test").await.expect("room"));
        }
        assert!(limiter.turn("test").await.is_err_and(|e| e.effect == Effect::NotApplied && e.retry_after.is_some()));
        for turn in turns {
            turn.end(&outcome(Some(ErrorKind::TimedOut)));
        }
        assert_eq!(limit(), FIRST / 2, "those that were under way together count once");
        assert_eq!(limiter.room.available_permits(), limit());
        limiter.turn("test").await.expect("room").end(&outcome(Some(ErrorKind::Unavailable)));
        assert_eq!(limit(), FIRST / 2);
    }

    #[tokio::test]
    async fn the_limit_never_falls_below_two() {
        let limiter = Limiter::default();
        for _ in 0..20 {
            limiter.state.lock().expect("no panic").halved_us = None;
            limiter.timed_out();
        }
        assert_eq!((limiter.room.available_permits(), limiter.state.lock().expect("no panic").owed), (2, 0));
    }
}
