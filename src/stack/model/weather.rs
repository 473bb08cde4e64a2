//! How long the engines take: drawn from the seed, on the clock that the test moves.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tokio::sync::Notify;

use crate::backends::layers::Pace;

/// The engines' pace.
pub(super) struct Weather {
    rng: Mutex<StdRng>,
    /// Longest wait of a slow call, in milliseconds.
    most_ms: u64,
    /// Of 1,000 calls, how many are slow.
    slow: u32,
    is_calm: AtomicBool,
    at_engines: AtomicUsize,
    answered: Notify,
}

impl Weather {
    /// What a seed makes of it.
    pub(super) fn draw(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed);
        let most_ms = *[1, 20, 150, 400, 900].choose(&mut rng).expect("not empty");
        let slow = *[0, 100, 400, 800].choose(&mut rng).expect("not empty");
        Self {
            rng: Mutex::new(rng),
            most_ms,
            slow,
            is_calm: AtomicBool::new(true),
            at_engines: AtomicUsize::new(0),
            answered: Notify::new(),
        }
    }

    /// From now on calls take their time, or no time at all.
    pub(super) fn set_calm(&self, is_calm: bool) {
        self.is_calm.store(is_calm, Ordering::Relaxed);
    }

    /// Waits until no call is at an engine, which takes real time; returns whether there was one.
    pub(super) async fn engines_rest(&self) -> bool {
        if self.at_engines.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let answered = self.answered.notified();
        if self.at_engines.load(Ordering::Relaxed) > 0 {
            answered.await;
        }
        true
    }
}

impl Pace for Weather {
    fn waits(&self, _operation: &'static str) -> [Duration; 2] {
        if self.is_calm.load(Ordering::Relaxed) {
            return [Duration::ZERO; 2];
        }
        let mut rng = self.rng.lock().expect("no panic while held");
        let mut wait = || {
            let is_slow = rng.random_range(0..1_000) < self.slow;
            Duration::from_millis(if is_slow { rng.random_range(0..=self.most_ms) } else { 0 })
        };
        [wait(), wait()]
    }

    fn enter(&self) {
        self.at_engines.fetch_add(1, Ordering::Relaxed);
    }

    fn leave(&self) {
        if self.at_engines.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.answered.notify_waiters();
        }
    }
}
