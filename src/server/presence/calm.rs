//! When silence says nothing: after a start, and after the store's data or clock have jumped.
//!
//! A store that came back with older data, or whose clock was set forward, makes everybody look silent who is not. Whoever is
//! there beats within a few seconds, so it takes one grace for the truth to be in the store again. A store that did not answer for
//! a while gets the beats that waited meanwhile first.

use std::time::Duration;

/// By how much the store's clock may differ from this server's steady one, since the last look, before it counts as set.
/// Looks come twice a second; a call takes its deadline at the most.
const CLOCK_STEP_MS: u64 = 5_000;

/// Time without a look after which beats may have piled up on their way, and how long they are given to come in then.
const GAP_MAX_US: u64 = 5_000_000;
const CATCH_UP_US: u64 = 10_000_000;

/// What was seen at the last look, and until when nobody is declared offline.
#[derive(Debug)]
pub(super) struct Calm {
    grace_us: u64,
    /// On the steady clock; `None` before the first look.
    until_us: Option<u64>,
    seen: Option<Seen>,
}

#[derive(Debug)]
struct Seen {
    at_us: u64,
    now_ms: u64,
    life: String,
}

impl Calm {
    /// Calm for a grace from the first look on.
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace_us: grace.as_micros() as u64, until_us: None, seen: None }
    }

    /// Takes a look: when on the steady clock, the store's clock, the life of its data. Returns what jumped, if something did.
    pub(super) fn note(&mut self, at_us: u64, now_ms: u64, life: &str) -> Option<&'static str> {
        let jumped = self.seen.as_ref().and_then(|seen| {
            let expected_ms = seen.now_ms + (at_us - seen.at_us) / 1_000;
            if seen.life != life {
                Some("the presence store's data are of another life")
            } else if expected_ms.abs_diff(now_ms) > CLOCK_STEP_MS {
                Some("the presence store's clock was set")
            } else {
                None
            }
        });
        if jumped.is_some() || self.until_us.is_none() {
            self.until_us = Some(at_us + self.grace_us);
        }
        if self.seen.as_ref().is_some_and(|seen| at_us - seen.at_us > GAP_MAX_US) {
            let until = at_us + CATCH_UP_US.min(self.grace_us);
            self.until_us = self.until_us.max(Some(until));
        }
        self.seen = Some(Seen { at_us, now_ms, life: life.to_owned() });
        jumped
    }

    /// Whether silence says something.
    pub(super) fn is_over(&self, now_us: u64) -> bool {
        self.until_us.is_some_and(|until| now_us >= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_US: u64 = 1_000_000;
    /// The store's clock when the steady one says 0.
    const EPOCH_MS: u64 = 1_700_000_000_000;

    /// Looks every half second up to a second, on the store's clock with an offset.
    fn look(calm: &mut Calm, seconds: std::ops::Range<u64>, offset_ms: u64, life: &str) -> Vec<&'static str> {
        (seconds.start * 2..seconds.end * 2)
            .filter_map(|half| calm.note(half * SECOND_US / 2, EPOCH_MS + half * 500 + offset_ms, life))
            .collect()
    }

    fn calm() -> Calm {
        let mut calm = Calm::new(Duration::from_secs(35));
        assert!(!calm.is_over(0), "nothing was seen");
        assert!(look(&mut calm, 0..100, 0, "a").is_empty());
        assert!(!calm.is_over(34 * SECOND_US) && calm.is_over(35 * SECOND_US));
        calm
    }

    #[test]
    fn other_data_begin_a_grace() {
        let mut calm = calm();
        assert_eq!(look(&mut calm, 100..110, 0, "b").len(), 1);
        assert!(!calm.is_over(134 * SECOND_US) && calm.is_over(135 * SECOND_US));
        assert_eq!(look(&mut calm, 110..120, 0, "a").len(), 1, "back to the ones before, which are older now");
        assert!(!calm.is_over(144 * SECOND_US));
    }

    #[test]
    fn a_clock_that_was_set_begins_a_grace_and_one_that_drifts_does_not() {
        for step_ms in [60_000_u64, 6_000] {
            let mut calm = calm();
            assert_eq!(look(&mut calm, 100..110, step_ms, "a").len(), 1);
            assert!(!calm.is_over(134 * SECOND_US) && calm.is_over(135 * SECOND_US));
            assert_eq!(look(&mut calm, 110..120, 0, "a").len(), 1, "set back");
        }
        let mut calm = calm();
        for n in 0..100 {
            assert!(look(&mut calm, 100 + n..101 + n, n * 20, "a").is_empty(), "20 ms in a second");
        }
        assert!(calm.is_over(201 * SECOND_US));
    }

    #[test]
    fn a_store_that_did_not_answer_for_long_has_not_jumped_and_what_waited_is_given_time() {
        let mut calm = calm();
        assert!(look(&mut calm, 400..405, 0, "a").is_empty());
        assert!(!calm.is_over(405 * SECOND_US));
        assert!(look(&mut calm, 405..411, 0, "a").is_empty());
        assert!(calm.is_over(411 * SECOND_US));
    }
}
