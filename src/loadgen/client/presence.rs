//! When users beat, and whether what friends are told about them fits.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::protocol::limits::OFFLINE_AFTER;

/// Tolerance for beats on their way and for clocks, in µs.
const SLACK_US: u64 = 1_000_000;

/// Latest that "offline" may be told after the last beat, in µs. Source: invariant I8.
const OFFLINE_LATEST_US: u64 = 35_000_000 + SLACK_US;

/// Earliest, in µs.
const OFFLINE_EARLIEST_US: u64 = OFFLINE_AFTER.as_micros() as u64 - SLACK_US;

/// One user's beats, on the run's clock in µs; 0 means never. Written by the user's devices, read by friends' devices.
#[derive(Default)]
pub(in crate::loadgen) struct UserPresence {
    last_beat_us: AtomicU64,
    /// The last beat before the latest silence that was long enough for an "offline", and the first one after it, should
    /// that have crossed the "offline" on its way.
    silent_since_us: AtomicU64,
    resumed_us: AtomicU64,
    /// The beat that surely brought the user online; 0 when that is not sure.
    came_online_us: AtomicU64,
}

/// What an "offline" looks like from the beats' side.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum OfflineTold {
    /// Between 30 and 35 s after the last beat: this long.
    InTime(u64),
    /// At another time: this long after the last beat.
    Wrong(u64),
}

impl UserPresence {
    pub(super) fn on_beat(&self, now_us: u64) {
        let last = self.last_beat_us.swap(now_us, Ordering::Relaxed);
        let silence = now_us.saturating_sub(last);
        if last > 0 && silence > OFFLINE_EARLIEST_US {
            self.silent_since_us.store(last, Ordering::Relaxed);
            self.resumed_us.store(now_us, Ordering::Relaxed);
        }
        if last == 0 || silence > OFFLINE_LATEST_US {
            self.came_online_us.store(now_us, Ordering::Relaxed);
        } else if silence > OFFLINE_EARLIEST_US {
            self.came_online_us.store(0, Ordering::Relaxed);
        }
    }

    /// A friend who is connected since `since_us` was told "online": how long it took, if that can be said.
    pub(super) fn online_told(&self, since_us: u64, now_us: u64) -> Option<u64> {
        let came = self.came_online_us.load(Ordering::Relaxed);
        // Who connected later was told by the list of friends, not by the change.
        (came > since_us).then(|| now_us.saturating_sub(came))
    }

    /// A friend was told "offline".
    pub(super) fn offline_told(&self, now_us: u64) -> OfflineTold {
        let since = |beat: &AtomicU64| now_us.saturating_sub(beat.load(Ordering::Relaxed));
        let (last, silent) = (since(&self.last_beat_us), since(&self.silent_since_us));
        let fits = |silence| (OFFLINE_EARLIEST_US..=OFFLINE_LATEST_US).contains(&silence);
        if fits(last) {
            return OfflineTold::InTime(last);
        }
        // The user came back, on however many devices, when the decision was made already.
        let has_just_resumed = since(&self.resumed_us) < 2 * SLACK_US;
        if has_just_resumed && fits(silent) { OfflineTold::InTime(silent) } else { OfflineTold::Wrong(last) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    #[test]
    fn offline_is_right_between_thirty_and_thirty_five_seconds() {
        let user = UserPresence::default();
        user.on_beat(10 * S);
        assert_eq!(user.offline_told(41 * S), OfflineTold::InTime(31 * S));
        assert_eq!(user.offline_told(20 * S), OfflineTold::Wrong(10 * S));
        assert_eq!(user.offline_told(50 * S), OfflineTold::Wrong(40 * S));
        user.on_beat(40 * S + S / 2);
        assert_eq!(user.offline_told(41 * S), OfflineTold::InTime(31 * S), "the beat crossed the decision");
        user.on_beat(40 * S + S / 2 + 1);
        assert_eq!(user.offline_told(41 * S), OfflineTold::InTime(31 * S), "so did that of another device");
        assert_eq!(user.offline_told(43 * S), OfflineTold::Wrong(2 * S + S / 2 - 1), "not for long");
    }

    #[test]
    fn online_is_measured_for_friends_who_were_there() {
        let user = UserPresence::default();
        user.on_beat(10 * S);
        assert_eq!(user.online_told(5 * S, 10 * S + 50), Some(50));
        assert_eq!(user.online_told(11 * S, 12 * S), None);
        user.on_beat(15 * S);
        assert_eq!(user.online_told(5 * S, 15 * S), Some(5 * S), "still the same coming");
        user.on_beat(60 * S);
        assert_eq!(user.online_told(5 * S, 60 * S + 70), Some(70));
    }
}
