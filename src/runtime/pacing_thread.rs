//! A thread that acts at exact times. The runtime's own timers are good to a millisecond, which is more than what many
//! servers take to answer; here the kernel wakes the thread at an absolute time.
//!
//! A virtual machine takes 50 to 100 µs to wake a thread. The thread learns how long, asks to be woken so much earlier, and
//! waits actively for what is left: some ten microseconds.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::thread::futex;

use super::clock;

/// What is due within this time of a round is done in one: each round costs a wake-up of the thread.
const BATCH_US: u64 = 50;

/// How much later than asked for the kernel may wake the thread, so that it can join wake-ups. The default is 50 µs.
const TIMER_SLACK_NS: NonZeroU64 = NonZeroU64::new(1_000).expect("is not 0");

/// Most that the thread asks to be woken earlier, and so the longest active wait.
const HEAD_START_MAX_US: f64 = 200.0;

/// A wake-up that is later than this was not late by what waking takes.
const LATE_MAX_US: u64 = 500;

/// Share of wake-ups that come before their time and wait actively for it.
const EARLY_SHARE: f64 = 0.3;

/// How far one wake-up moves what the thread has learned.
const LEARNING_STEP_US: f64 = 1.0;

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

    /// Sleeps until `at_us` to within what the kernel's wake-ups vary, or until a ring after the one counted as `heard`.
    fn sleep_exactly(&self, heard: u32, at_us: u64, head_start: &mut HeadStart) {
        let asked_us = at_us.saturating_sub(head_start.us());
        let has_rung = || self.rings.load(Ordering::Acquire) != heard;
        let mut has_slept = false;
        // A sleep may end for nothing at all.
        while clock::now_us() < asked_us && !has_rung() {
            self.sleep(heard, Some(asked_us));
            has_slept = true;
        }
        if has_slept && !has_rung() {
            head_start.learn(clock::now_us().saturating_sub(asked_us));
        }
        while clock::now_us() < at_us && !has_rung() {
            std::hint::spin_loop();
        }
    }
}

/// How long the kernel takes to wake a thread: the time that [`EARLY_SHARE`] of the wake-ups stay below.
#[derive(Debug, Default)]
struct HeadStart(f64);

impl HeadStart {
    const fn us(&self) -> u64 {
        self.0 as u64
    }

    /// The kernel was so late. Each wake-up moves the estimate a little: up by a later one, down by an earlier one, in such
    /// a proportion that it stays where the share is right. A wake-up that is far later waited for a processor, which says
    /// nothing of how long waking takes.
    fn learn(&mut self, late_us: u64) {
        if late_us > LATE_MAX_US {
            return;
        }
        let step = if late_us as f64 > self.0 { EARLY_SHARE } else { EARLY_SHARE - 1.0 };
        self.0 = LEARNING_STEP_US.mul_add(step, self.0).clamp(0.0, HEAD_START_MAX_US);
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
            let mut head_start = HeadStart::default();
            loop {
                let heard = own.rings.load(Ordering::Acquire);
                if own.is_stopped.load(Ordering::Acquire) {
                    return;
                }
                let now_us = clock::now_us();
                let next_us = round(now_us).map(|next_us| next_us.max(now_us + BATCH_US));
                match next_us {
                    Some(at_us) => own.sleep_exactly(heard, at_us, &mut head_start),
                    None => own.sleep(heard, None),
                }
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
    fn the_head_start_settles_where_few_wake_ups_are_early() {
        let mut head_start = HeadStart::default();
        // Wake-ups that are late by 60 to 99 µs, evenly.
        let late = |n: u64| 60 + n * 7 % 40;
        (0..5_000).for_each(|n| head_start.learn(late(n)));
        assert!((68..=76).contains(&head_start.us()), "30 % of them are below 72: {}", head_start.us());
        let learned = head_start.us();
        (0..5_000).for_each(|_| head_start.learn(5_000));
        assert_eq!(head_start.us(), learned, "a busy machine teaches nothing");
        (0..5_000).for_each(|_| head_start.learn(400));
        assert_eq!(head_start.us(), HEAD_START_MAX_US as u64, "an active wait is never long");
        (0..5_000).for_each(|_| head_start.learn(0));
        assert_eq!(head_start.us(), 0);
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
