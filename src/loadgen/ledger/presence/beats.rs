//! When a user beat: what can be said of it later takes six numbers.

use super::{OFFLINE_EARLIEST_US, OFFLINE_LATEST_US, ONLINE_LATEST_US, SLACK_US};

/// What a beat changed for those who watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    None,
    /// The user surely came: the first beat, or one after a silence over the limit.
    Came,
    /// The silence was long enough for an "offline", and not so long that it had to be told.
    Perhaps,
}

/// One user's beats, on the run's clock in µs; 0 means never.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Beats {
    pub(super) last_us: u64,
    /// Since when the user surely is there; 0 while that is not sure.
    there_since_us: u64,
    /// The last beat before the latest silence that was long enough for an "offline", and the first one after it.
    silent_since_us: u64,
    resumed_us: u64,
    /// The last beat that may have been written into a connection that was lost.
    doubted_us: u64,
}

impl Beats {
    pub(super) fn on_beat(&mut self, now_us: u64) -> Change {
        let before_us = std::mem::replace(&mut self.last_us, now_us);
        let silence_us = now_us.saturating_sub(before_us);
        if before_us > 0 && silence_us < OFFLINE_EARLIEST_US {
            if self.there_since_us == 0 {
                self.there_since_us = now_us;
            }
            return Change::None;
        }
        if before_us > 0 {
            (self.silent_since_us, self.resumed_us) = (before_us, now_us);
        }
        if before_us == 0 || silence_us > OFFLINE_LATEST_US {
            self.there_since_us = now_us;
            return Change::Came;
        }
        self.there_since_us = 0;
        Change::Perhaps
    }

    /// The connection of a device was lost: the last beat may not have arrived.
    pub(super) const fn doubt(&mut self) {
        self.doubted_us = self.last_us;
    }

    /// Whether the last beat may not have arrived.
    pub(super) const fn is_doubtful(&self) -> bool {
        self.doubted_us == self.last_us
    }

    /// Whether the user surely is there from a second before a time until whoever comes then must have been told.
    pub(super) const fn is_surely_there(&self, now_us: u64, late_us: u64) -> bool {
        let ends_us = self.last_us + OFFLINE_EARLIEST_US;
        self.there_since_us > 0
            && self.there_since_us + SLACK_US <= now_us
            && now_us + ONLINE_LATEST_US + late_us <= ends_us
            && !self.is_doubtful()
    }

    /// For how long after a time the user surely is there without another beat, beyond the time in which it must be
    /// told.
    pub(super) const fn there_for_us(&self, now_us: u64) -> u64 {
        (self.last_us + OFFLINE_EARLIEST_US).saturating_sub(now_us + ONLINE_LATEST_US)
    }

    /// The beginning of the latest silence that is over, where an "offline" that comes now may be of it; and how late that
    /// one must have been for it, beyond one that crossed the beat.
    pub(super) const fn crossed(&self, now_us: u64) -> Option<(u64, u64)> {
        if self.resumed_us == 0 {
            return None;
        }
        let since_resumed_us = now_us.saturating_sub(self.resumed_us);
        Some((self.silent_since_us, since_resumed_us.saturating_sub(2 * SLACK_US - 1)))
    }
}
