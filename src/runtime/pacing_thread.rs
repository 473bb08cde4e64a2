//! A thread that acts at exact times. The runtime's own timers are good to a millisecond, which is more than what many
//! servers take to answer; here the kernel wakes the thread at an absolute time, to within some ten microseconds.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::thread::futex;

use super::clock;

/// What is due within this time of a round is done in one: each round costs a wake-up of the thread.
const BATCH_US: u64 = 50;

/// How much later than asked for the kernel may wake the thread, so that it can join wake-ups. The default is 50 µs.
const TIMER_SLACK_NS: NonZeroU64 = NonZeroU64::new(1_000).expect("is not 0");

/// Any waker wakes the thread.
const ANY_WAKER: NonZeroU32 = NonZeroU32::MAX;

/// Wakes a pacing thread before the time that it sleeps until. Clones of the `Arc` are given to whoever sets such times.
#[derive(Debug, Default)]
pub struct Bell {
    /// Rises with each ring. The thread sleeps only while it is what it was before the round.
    rings: AtomicU32,
    is_stopped: AtomicBool,
}

impl Bell {
    /// Has the thread do a round at once.
    pub fn ring(&self) {
        self.rings.fetch_add(1, Ordering::Release);
        // It fails for bad addresses only.
        let _ = futex::wake(&self.rings, futex::Flags::PRIVATE, 1);
    }

    /// Sleeps until `at_us` on the run's clock, or until a ring after the one counted as `heard`.
    fn sleep(&self, heard: u32, at_us: Option<u64>) {
        let until = at_us.map(clock::monotonic_at_us);
        // Returns for a ring, in time, or for nothing at all: the round finds out.
        let _ = futex::wait_bitset(&self.rings, futex::Flags::PRIVATE, heard, until.as_ref(), ANY_WAKER);
    }
}

/// A running thread; it ends when this is dropped.
#[derive(Debug)]
pub struct PacingThread {
    bell: Arc<Bell>,
}

impl PacingThread {
    /// Starts a thread that calls `round` with the time on the run's clock (µs) whenever something is due. `round` does it and
    /// returns when to call it next: `None` waits for a ring of `bell`. A time that is set elsewhere and is earlier than what
    /// `round` returned last needs a ring.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(
        name: &str,
        bell: Arc<Bell>,
        mut round: impl FnMut(u64) -> Option<u64> + Send + 'static,
    ) -> std::io::Result<Self> {
        let own = Arc::clone(&bell);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Without it the thread is late by up to 50 µs more, which is measured as its lag.
            let _ = rustix::thread::set_current_timer_slack(Some(TIMER_SLACK_NS));
            loop {
                let heard = own.rings.load(Ordering::Acquire);
                if own.is_stopped.load(Ordering::Acquire) {
                    return;
                }
                let now_us = clock::now_us();
                let next_us = round(now_us).map(|next_us| next_us.max(now_us + BATCH_US));
                own.sleep(heard, next_us);
            }
        })?;
        Ok(Self { bell })
    }
}

impl Drop for PacingThread {
    fn drop(&mut self) {
        self.bell.is_stopped.store(true, Ordering::Release);
        self.bell.ring();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// Longest that anything expected may take.
    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn rounds_come_when_they_are_due_and_never_before() {
        let (tell, told) = mpsc::sync_channel(16);
        let start_us = clock::now_us();
        let mut due = (1..=5).map(move |n| start_us + n * 3_000);
        let mut next = due.next();
        let thread = PacingThread::start("test-pacing", Arc::default(), move |now_us| {
            if let Some(at_us) = next.filter(|at_us| *at_us <= now_us) {
                tell.send((at_us, now_us)).expect("somebody listens");
                next = due.next();
            }
            next
        });
        let _thread = thread.expect("starts");
        for n in 1..=5 {
            let (at_us, now_us) = told.recv_timeout(LIMIT).expect("comes");
            assert!(at_us == start_us + n * 3_000 && now_us >= at_us, "{at_us} {now_us}");
        }
    }

    #[test]
    fn a_ring_wakes_a_thread_that_has_nothing_to_do_and_its_end_stops_it() {
        let (tell, told) = mpsc::sync_channel(16);
        let bell = Arc::new(Bell::default());
        let thread = PacingThread::start("test-pacing", Arc::clone(&bell), move |now_us| {
            tell.send(now_us).expect("somebody listens");
            None
        });
        let thread = thread.expect("starts");
        for _ in 0..3 {
            told.recv_timeout(LIMIT).expect("a round for each ring, and the first");
            bell.ring();
        }
        drop(thread);
        // What it held is dropped with it.
        while told.recv_timeout(LIMIT).is_ok() {}
        assert!(matches!(told.try_recv(), Err(mpsc::TryRecvError::Disconnected)));
    }
}
