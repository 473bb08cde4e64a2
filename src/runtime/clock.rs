//! The only place that reads clocks.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec};

/// How far this process's wall clock is off, in µs: 0 but in a server that is told so by a fault.
static SKEW_US: AtomicI64 = AtomicI64::new(0);

/// How a line on a supervised server's standard input begins that sets its skew; the rest are ms.
pub const SKEW_PREFIX: &str = "skew_ms ";

/// Has the wall clock be off by so much from now on, ahead or behind: what a machine's clock does when it is set.
pub fn skew(by_ms: i64) {
    SKEW_US.store(by_ms.saturating_mul(1_000), Ordering::Relaxed);
}

/// Milliseconds since 1970 on the wall clock.
#[must_use]
pub fn unix_ms() -> u64 {
    unix_us() / 1_000
}

/// Microseconds since 1970 on the wall clock.
#[must_use]
pub fn unix_us() -> u64 {
    let since = wall().duration_since(UNIX_EPOCH);
    let us = since.map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX));
    us.saturating_add_signed(SKEW_US.load(Ordering::Relaxed))
}

/// Microseconds on the monotonic clock since this process first asked. Never goes back.
#[must_use]
pub fn now_us() -> u64 {
    u64::try_from(since_start().as_micros()).unwrap_or(u64::MAX)
}

/// Milliseconds on the same clock as [`now_us`], for fields that must be small (wraps after 49 days).
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "wrapping is documented")]
pub fn now_ms_u32() -> u32 {
    since_start().as_millis() as u32
}

/// Seconds on `CLOCK_MONOTONIC`, which other processes of this boot share.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "nanoseconds of a second fit a double")]
pub fn boot_seconds() -> f64 {
    let time = rustix::time::clock_gettime(ClockId::Monotonic);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Seconds since the machine was started, with those in which it slept: what the kernel dates processes by.
#[must_use]
pub fn since_boot_s() -> f64 {
    let time = rustix::time::clock_gettime(ClockId::Boottime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// A point on the monotonic clock.
#[must_use]
pub fn instant() -> Instant {
    steady()
}

/// The monotonic clock. In a test it is the one of the runtime, which may be paused and moved.
#[cfg_attr(not(test), expect(clippy::disallowed_methods, reason = "this module is the wrapper"))]
fn steady() -> Instant {
    #[cfg(test)]
    return tokio::time::Instant::now().into_std();
    #[cfg(not(test))]
    Instant::now()
}

/// The wall clock. In a test it is as far ahead of its time, or behind, as the runtime's clock is.
#[expect(clippy::disallowed_methods, reason = "this module is the wrapper")]
fn wall() -> SystemTime {
    let now = SystemTime::now();
    #[cfg(test)]
    let now = {
        let (real, steady) = (Instant::now(), steady());
        now + steady.saturating_duration_since(real) - real.saturating_duration_since(steady)
    };
    now
}

/// When [`now_us`] was 0, as an instant and on `CLOCK_MONOTONIC`.
#[derive(Clone, Copy)]
struct Start {
    instant: Instant,
    monotonic: Timespec,
}

/// Readings of both clocks of which the closest pair is taken: one of them may be cut in two by another thread.
const START_READINGS: usize = 5;

#[expect(clippy::disallowed_methods, reason = "this module is the wrapper")]
fn start() -> Start {
    static START: OnceLock<Start> = OnceLock::new();
    *START.get_or_init(|| {
        let read = || {
            let (before, monotonic) = (Instant::now(), rustix::time::clock_gettime(ClockId::Monotonic));
            (before.elapsed(), Start { instant: before, monotonic })
        };
        let readings = (0..START_READINGS).map(|_| read());
        readings.min_by_key(|(apart, _)| *apart).map(|(_, start)| start).expect("there is more than one reading")
    })
}

fn since_start() -> Duration {
    steady().saturating_duration_since(start().instant)
}

/// `CLOCK_MONOTONIC` at the time at which [`now_us`] says `at_us`, for absolute sleeps.
pub(super) fn monotonic_at_us(at_us: u64) -> Timespec {
    let offset = Timespec { tv_sec: (at_us / 1_000_000) as i64, tv_nsec: (at_us % 1_000_000 * 1_000) as i64 };
    // A time that the clock can't hold is as good as the last one that it can.
    start().monotonic.checked_add(offset).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
}

/// The instant at which [`now_us`] says `at_us`: never earlier, however long this thread is held up meanwhile.
#[must_use]
pub fn instant_at_us(at_us: u64) -> Instant {
    start().instant + Duration::from_micros(at_us)
}

/// Sleeps until [`now_us`] says `at_us`; returns at once when that has passed.
///
/// A loop over times that have all passed still lets other tasks run. The runtime's own timer would take at least a
/// millisecond for each. It is late by up to a millisecond; what must not be has a [`super::PacingThread`].
pub async fn sleep_until_us(at_us: u64) {
    if now_us() >= at_us {
        return tokio::task::consume_budget().await;
    }
    tokio::time::sleep_until(instant_at_us(at_us).into()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_does_not_depend_on_when_it_is_asked_for() {
        let at_us = now_us() + 5_000;
        let asked = instant_at_us(at_us);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(asked, instant_at_us(at_us));
        assert_eq!(instant_at_us(at_us + 7) - asked, Duration::from_micros(7));
    }

    #[test]
    fn absolute_sleeps_and_the_run_have_one_clock() {
        let (before, now) = (now_us(), rustix::time::clock_gettime(ClockId::Monotonic));
        let earliest = monotonic_at_us(before);
        let latest = monotonic_at_us(now_us() + 1);
        assert!(earliest <= now && now <= latest, "{earliest:?} {now:?} {latest:?}");
        assert!(monotonic_at_us(u64::MAX) > latest);
    }

    #[tokio::test(start_paused = true)]
    async fn every_clock_goes_by_the_one_of_the_runtime_of_a_test() {
        let (steady_us, wall_ms, point) = (now_us(), unix_ms(), instant());
        tokio::time::advance(Duration::from_hours(1)).await;
        assert_eq!((instant() - point).as_secs(), 3_600);
        // The process's clock may begin only now, and the wall clock is read a moment after the runtime's.
        assert!(now_us() - steady_us >= 3_599_000_000 && unix_ms().abs_diff(wall_ms + 3_600_000) < 1_000);
    }

    #[tokio::test(start_paused = true)]
    async fn times_that_have_passed_are_not_slept_for() {
        let before = tokio::time::Instant::now();
        for _ in 0..1_000 {
            sleep_until_us(now_us()).await;
        }
        assert_eq!(before.elapsed(), Duration::ZERO, "the paused clock moves when something sleeps");
    }
}
