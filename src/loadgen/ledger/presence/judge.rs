//! What one moment says about one watcher: settles what is owed, and judges each notice.

use super::beats::Beats;
use super::{
    Finding, HELD_BACK_MAX, HeldBack, NEVER, OFFLINE_EARLIEST_US, OFFLINE_LATEST_US, ONLINE_LATEST_US, Pair, Presence,
    SLACK_US,
};
use crate::protocol::frames::PresenceState;

/// A judge of one moment.
pub(super) struct Judge<'a> {
    pub(super) presence: &'a Presence,
    pub(super) watcher: u32,
    pub(super) now_us: u64,
    pub(super) findings: Vec<Finding>,
}

impl Judge<'_> {
    /// Something is wrong, unless a notice that was `needs_us` late between a time and now explains it; what is known
    /// so far is not all yet.
    fn accuse(&mut self, finding: Finding, needs_us: u64, from_us: u64) {
        if needs_us == 0 {
            return self.findings.push(Finding::Unsure);
        }
        let is_late = needs_us <= self.presence.late_us(from_us, self.now_us);
        let mut held_back = self.presence.held_back.lock().expect("no panic while held");
        if is_late {
            self.findings.push(Finding::Late);
        } else if needs_us == NEVER {
            self.findings.push(finding);
        } else if held_back.len() < HELD_BACK_MAX {
            held_back.push(HeldBack { needs_us, from_us, until_us: self.now_us, finding });
        } else {
            // What will be known of that time at the end can't be waited for.
            self.findings.push(Finding::Unsure);
        }
    }

    /// A change that had to be told between a time and now was not, or `needs_us` too late.
    fn missed(&mut self, pair: &Pair, state: PresenceState, from_us: u64, needs_us: u64) {
        if self.presence.was_disturbed(from_us, self.now_us) {
            self.findings.push(Finding::Unsure);
        } else {
            self.accuse(
                Finding::Missed(self.watcher, pair.friend, state),
                needs_us,
                Self::told_from_us(state, from_us),
            );
        }
    }

    /// When a change may be told at the earliest, from the time at which it began.
    const fn told_from_us(state: PresenceState, from_us: u64) -> u64 {
        match state {
            PresenceState::Online => from_us,
            PresenceState::Offline => from_us + OFFLINE_EARLIEST_US,
        }
    }

    /// Whether a change that was told now, and so too late, is so for lateness alone.
    fn is_as_late(&self, state: PresenceState, from_us: u64, needs_us: u64) -> bool {
        // Nearly all came in time: they ask nobody how late the target was.
        needs_us == 0 || needs_us <= self.presence.late_us(Self::told_from_us(state, from_us), self.now_us)
    }

    /// Ends what is owed: told never, or still in time when something else happened.
    pub(super) fn settle_online(&mut self, pair: &mut Pair) {
        if pair.owed_us == 0 {
            return;
        }
        // A target that looked late may have found the friend gone, and said nothing.
        let spare_us = pair.spare_us();
        match self.now_us.checked_sub(pair.owed_us + ONLINE_LATEST_US) {
            Some(needs_us) => self.missed(pair, PresenceState::Online, pair.owed_us, needs_us.min(spare_us)),
            None => self.findings.push(Finding::Unsure),
        }
        pair.owed_us = 0;
    }

    /// Another device of the watcher comes, and is told who is there: what was to be told before is missing where it is
    /// overdue, and is not timed by that where it is not.
    pub(super) fn before_a_greeting(&mut self, pair: &mut Pair) {
        if pair.owed_us > 0 && self.now_us > pair.owed_us + ONLINE_LATEST_US {
            self.settle_online(pair);
        }
        pair.is_change = false;
    }

    /// Whether a watcher must be told that a silence became too long: who watches since before it, or was told in it that the
    /// user is there.
    fn must_be_told(pair: &Pair, beats: &Beats, since_us: u64) -> bool {
        let was_told_in_it = pair.told == Some(PresenceState::Online)
            && since_us <= pair.told_us
            && (beats.last_us..=beats.last_us + OFFLINE_LATEST_US).contains(&pair.told_us);
        since_us > 0 && (since_us <= beats.last_us || was_told_in_it)
    }

    /// Judges a silence that is over its limit, once.
    pub(super) fn settle_offline(&mut self, pair: &mut Pair, beats: &Beats, since_us: u64) {
        let last_us = beats.last_us;
        let Some(needs_us) = self.now_us.checked_sub(last_us + OFFLINE_LATEST_US) else { return };
        if last_us == 0 || pair.judged_us == last_us || needs_us == 0 {
            return;
        }
        pair.judged_us = last_us;
        if Self::must_be_told(pair, beats, since_us) {
            self.missed(pair, PresenceState::Offline, last_us, needs_us);
        }
    }

    pub(super) fn online(&mut self, pair: &mut Pair, beats: &Beats) {
        let silence_us = self.now_us.saturating_sub(beats.last_us);
        let was_disturbed = || self.presence.was_disturbed(beats.last_us, self.now_us);
        let is_after_offline = pair.told == Some(PresenceState::Offline)
            && pair.offline_of_us == beats.last_us
            && self.now_us > pair.told_us + SLACK_US;
        let wrong = |silence_us| Finding::Wrong(self.watcher, pair.friend, PresenceState::Online, silence_us);
        if beats.last_us == 0 {
            self.accuse(wrong(None), NEVER, self.now_us);
        } else if silence_us > OFFLINE_LATEST_US || is_after_offline {
            let needs_us = if is_after_offline { NEVER } else { silence_us - OFFLINE_LATEST_US };
            let needs_us = if was_disturbed() { 0 } else { needs_us };
            self.accuse(wrong(Some(silence_us)), needs_us, beats.last_us);
        }
        if pair.owed_us > 0 {
            let took_us = self.now_us.saturating_sub(pair.owed_us);
            if pair.is_change {
                self.findings.push(Finding::Took(PresenceState::Online, took_us));
                self.presence.slow.note(self.now_us, took_us);
            }
            // What came is not missed, however late: that is what the latency is for.
            self.findings.push(Finding::Seen);
            pair.owed_us = 0;
        }
    }

    pub(super) fn offline(&mut self, pair: &mut Pair, beats: &Beats, since_us: u64) {
        let silence_us = self.now_us.saturating_sub(beats.last_us);
        // A user of whom no beat was ever sent is offline.
        if beats.last_us == 0 {
            return;
        }
        if pair.owed_us > 0 {
            pair.owed_us = 0;
            self.findings.push(Finding::Unsure);
        }
        if silence_us >= OFFLINE_EARLIEST_US {
            self.offline_in_silence(pair, beats, silence_us, since_us);
        } else if let Some((silent_since_us, 0)) = beats.crossed(self.now_us) {
            // The decision and the beat that ended the silence crossed: the friend must be told that the user is back.
            self.findings.push(Finding::Took(PresenceState::Offline, self.now_us - silent_since_us));
            if pair.judged_us != silent_since_us {
                self.findings.push(Finding::Seen);
                pair.judged_us = silent_since_us;
            }
            pair.offline_of_us = silent_since_us;
            if !self.presence.is_closed() {
                pair.owe(self.now_us, false);
            }
        } else {
            let wrong = Finding::Wrong(self.watcher, pair.friend, PresenceState::Offline, Some(silence_us));
            let explained_by = beats.crossed(self.now_us).map_or(NEVER, |(_, needs_us)| needs_us);
            // Beats of a whole silence may lie before a server that stands still.
            let silent_from_us = self.now_us.saturating_sub(OFFLINE_EARLIEST_US);
            let is_explained =
                beats.is_doubtful() || self.presence.was_disturbed_throughout(silent_from_us, self.now_us);
            // From the beat that it would have crossed.
            let from_us = self.now_us.saturating_sub(explained_by.saturating_add(2 * SLACK_US));
            self.accuse(wrong, if is_explained { 0 } else { explained_by }, from_us);
            // Not of a silence: whatever comes next is no contradiction of this one.
            pair.offline_of_us = 0;
        }
    }

    fn offline_in_silence(&mut self, pair: &mut Pair, beats: &Beats, silence_us: u64, since_us: u64) {
        self.findings.push(Finding::Took(PresenceState::Offline, silence_us));
        if pair.judged_us != beats.last_us && Self::must_be_told(pair, beats, since_us) {
            match silence_us.saturating_sub(OFFLINE_LATEST_US) {
                needs_us if self.is_as_late(PresenceState::Offline, beats.last_us, needs_us) => {
                    self.findings.push(Finding::Seen);
                }
                needs_us => self.missed(pair, PresenceState::Offline, beats.last_us, needs_us),
            }
        }
        (pair.judged_us, pair.offline_of_us) = (beats.last_us, beats.last_us);
    }
}
