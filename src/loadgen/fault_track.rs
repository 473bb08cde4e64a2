//! What came of a fault: errors, late ACKs and deliveries, devices that lost their connection.
//!
//! A fault is over once it is calm: what is due later is not its doing, however late it comes. (One delivery that was two
//! seconds late at the end of a run was told as a recovery of half a minute.)

use crate::telemetry::Latency;

/// Time without a consequence after which a fault may be over.
const CALM_US: u64 = 10_000_000;

/// ACKs and deliveries in that time that show it: where nothing happens, nothing is known.
const CALM_ANSWERS: u64 = 100;

/// A consequence of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consequence {
    /// A refused send, a failed connect or call.
    Error,
    /// An ACK later than [`super::run::LATE_US`].
    LateAck,
    /// A delivery later than that.
    LateDelivery,
}

/// A fault and its consequences.
#[derive(Debug, Clone, Default)]
pub(super) struct FaultTrack {
    pub(super) what: String,
    /// On the run's clock.
    pub(super) at_us: u64,
    /// From the start of the load.
    pub(super) at_s: f64,
    pub(super) disconnected: u64,
    /// Times from the fault until a device was connected and caught up.
    pub(super) recovery: Latency,
    /// On the run's clock; 0 while it lasts.
    pub(super) ended_us: u64,
    pub(super) errors: u64,
    pub(super) late_acks: u64,
    /// How long it is meant to last; 0 for what is done in a moment.
    pub(super) planned_us: u64,
    pub(super) late_deliveries: u64,
    /// When the last consequence was, on the run's clock.
    pub(super) last_consequence_us: u64,
    /// ACKs and deliveries by the end of the fault, or by its last consequence.
    pub(super) answers: u64,
    pub(super) error: Option<String>,
}

impl FaultTrack {
    /// The fault has ended, at a time and after so many ACKs and deliveries of the run.
    pub(super) const fn end(&mut self, now_us: u64, answers: u64) {
        self.ended_us = now_us;
        self.answers = answers;
    }

    /// Counts a consequence, unless the fault was over before it was due.
    pub(super) fn note(&mut self, consequence: Consequence, since_us: u64, now_us: u64, answers: u64) {
        if self.is_over(since_us, answers) {
            return;
        }
        match consequence {
            Consequence::Error => self.errors += 1,
            Consequence::LateAck => self.late_acks += 1,
            Consequence::LateDelivery => self.late_deliveries += 1,
        }
        self.last_consequence_us = now_us;
        self.answers = answers;
    }

    /// Counts a lost connection, unless the fault was over; returns whether it did.
    pub(super) fn note_disconnect(&mut self, now_us: u64, answers: u64) -> bool {
        let is_of_it = !self.is_over(now_us, answers);
        self.disconnected += u64::from(is_of_it);
        is_of_it
    }

    /// Whether it was calm for long enough before something was due.
    fn is_over(&self, since_us: u64, answers: u64) -> bool {
        let trouble_us = self.ended_us.max(self.last_consequence_us).max(self.at_us + self.planned_us);
        self.ended_us > 0 && since_us > trouble_us + CALM_US && answers.saturating_sub(self.answers) >= CALM_ANSWERS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    /// A pause from second 10 to 18, in which 500 answers came.
    fn pause() -> FaultTrack {
        let mut track = FaultTrack { at_us: 10 * SECOND, planned_us: 8 * SECOND, ..FaultTrack::default() };
        track.note(Consequence::Error, 12 * SECOND, 12 * SECOND, 400);
        track.end(18 * SECOND, 500);
        track
    }

    #[test]
    fn what_is_late_long_after_calm_is_not_the_faults_doing() {
        let mut track = pause();
        track.note(Consequence::LateDelivery, 17 * SECOND, 23 * SECOND, 900);
        track.note(Consequence::LateDelivery, 49 * SECOND, 51 * SECOND, 9_000);
        assert_eq!((track.late_deliveries, track.last_consequence_us), (1, 23 * SECOND));
        assert!(!track.note_disconnect(51 * SECOND, 9_000));
        assert_eq!(track.disconnected, 0);
    }

    #[test]
    fn what_was_due_before_it_was_calm_is_its_doing_however_late_it_comes() {
        let mut track = pause();
        // A push path that never came back: the last sync finds what was due since.
        track.note(Consequence::LateDelivery, 20 * SECOND, 70 * SECOND, 9_000);
        assert_eq!(track.last_consequence_us, 70 * SECOND);
    }

    #[test]
    fn silence_is_not_calm() {
        let mut track = pause();
        track.note(Consequence::LateAck, 60 * SECOND, 62 * SECOND, 599);
        assert_eq!((track.late_acks, track.last_consequence_us), (1, 62 * SECOND));
    }

    #[test]
    fn a_fault_that_lasts_is_not_over() {
        let mut track = FaultTrack { at_us: 10 * SECOND, ..FaultTrack::default() };
        track.note(Consequence::Error, 60 * SECOND, 60 * SECOND, 9_000);
        assert!(track.note_disconnect(90 * SECOND, 90_000));
        assert_eq!((track.errors, track.disconnected), (1, 1));
    }
}
