//! What became of the messages of one conversation: which were sent, which were refused, which ids were acknowledged when.
//! No I/O, no clock.
//!
//! Each client counts its messages of a conversation 1, 2, 3 …: what was sent is one number for each sender, and what was refused
//! a set of ranges. What was acknowledged is kept by the sending device ([`crate::loadgen::client`]) in the same way.

use std::collections::HashMap;

use super::ranges::Ranges;

/// Second ACKs of a conversation that are kept until the end, and as many repeated pushes.
const CLAIMS_MAX: usize = 256;

/// The fates of a conversation's messages. There is one for each conversation that had a message.
#[derive(Debug, Default)]
pub(super) struct Fates {
    /// Greatest counter that was written, by client, rising by client.
    sent: Vec<(u32, u32)>,
    pub(super) acked: Staircase,
    /// `None` while nothing was refused and nothing repeated.
    rare: Option<Box<Rare>>,
}

/// What sound runs rarely have.
#[derive(Debug, Default)]
struct Rare {
    /// Counters that were refused definitely, by client.
    refused: HashMap<u32, Ranges<u32>>,
    /// Of those, the ones that were found stored or shown.
    false_refusals: HashMap<u32, Ranges<u32>>,
    /// Counters of messages that were taken though their senders were removed, by client.
    false_acceptances: HashMap<u32, Ranges<u32>>,
    /// Messages that removed members tried to send and that have no answer yet, by client and counter, with the times.
    probes: HashMap<(u32, u32), u64>,
    claims: Vec<Claim>,
}

/// A second ACK of a message, or a push of what its device has: what it said is compared with what is stored, at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) client: u32,
    pub(super) counter: u32,
    pub(super) id: u64,
    pub(super) source: ClaimSource,
}

/// What claimed an id for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClaimSource {
    Ack,
    Push,
}

impl Fates {
    /// A client is about to write a message for the first time.
    pub(super) fn on_sent(&mut self, client: u32, counter: u32) {
        match self.sent.binary_search_by_key(&client, |entry| entry.0) {
            Ok(at) => self.sent[at].1 = self.sent[at].1.max(counter),
            Err(at) => self.sent.insert(at, (client, counter)),
        }
    }

    /// Whether a client wrote that message.
    pub(super) fn was_sent(&self, client: u32, counter: u32) -> bool {
        let found = self.sent.binary_search_by_key(&client, |entry| entry.0);
        found.is_ok_and(|at| (1..=self.sent[at].1).contains(&counter))
    }

    /// A message was refused, and the answer said that it is not stored.
    pub(super) fn on_refused(&mut self, client: u32, counter: u32) {
        self.rare.get_or_insert_default().refused.entry(client).or_default().insert(counter);
    }

    /// Notes that a message is stored or was shown. Returns true the first time that this contradicts a refusal.
    pub(super) fn contradicts_refusal(&mut self, client: u32, counter: u32) -> bool {
        let Some(rare) = &mut self.rare else { return false };
        let was_refused = rare.refused.get(&client).is_some_and(|refused| refused.contains(counter));
        was_refused && rare.false_refusals.entry(client).or_default().insert(counter)
    }

    /// Notes that a message was taken though its sender was removed. Returns true the first time.
    pub(super) fn note_false_acceptance(&mut self, client: u32, counter: u32) -> bool {
        self.rare.get_or_insert_default().false_acceptances.entry(client).or_default().insert(counter)
    }

    /// A removed member is about to try to send a message.
    pub(super) fn on_probe(&mut self, client: u32, counter: u32, sent_us: u64) {
        self.on_sent(client, counter);
        self.rare.get_or_insert_default().probes.insert((client, counter), sent_us);
    }

    /// Takes when a removed member tried to send that message; `None` where it is no such try, or was answered.
    pub(super) fn take_probe(&mut self, client: u32, counter: u32) -> Option<u64> {
        self.rare.as_mut()?.probes.remove(&(client, counter))
    }

    /// Keeps what a second ACK or a repeated push said; returns false where there is no room.
    pub(super) fn claim(&mut self, claim: Claim) -> bool {
        let claims = &mut self.rare.get_or_insert_default().claims;
        if claims.contains(&claim) {
            return true;
        }
        let has_room = claims.iter().filter(|kept| kept.source == claim.source).count() < CLAIMS_MAX;
        if has_room {
            claims.push(claim);
        }
        has_room
    }

    /// What second ACKs and repeated pushes said, taken out.
    pub(super) fn take_claims(&mut self) -> Vec<Claim> {
        self.rare.as_mut().map(|rare| std::mem::take(&mut rare.claims)).unwrap_or_default()
    }
}

/// Least time between a step and the one before it, newest first, in µs.
const SPACING_US: [u64; 4] = [50_000, 200_000, 800_000, 3_200_000];

/// The greatest acknowledged id over time: the newest, and a few steps that reach some seconds back.
#[derive(Debug, Default)]
pub(super) struct Staircase {
    newest: Step,
    /// Newest first.
    steps: [Step; SPACING_US.len()],
}

/// At this time the greatest acknowledged id was this one; id 0 stands for none.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Step {
    at_us: u64,
    id: u64,
}

impl Staircase {
    /// An ACK with an id arrived.
    pub(super) fn on_ack(&mut self, id: u64, at_us: u64) {
        if id <= self.newest.id {
            return;
        }
        let newest = Step { at_us: at_us.max(self.newest.at_us), id };
        let mut older = std::mem::replace(&mut self.newest, newest);
        for (step, spacing_us) in self.steps.iter_mut().zip(SPACING_US) {
            if older.id == 0 || older.at_us < step.at_us.saturating_add(spacing_us) && step.id > 0 {
                return;
            }
            older = std::mem::replace(step, older);
        }
    }

    /// The greatest id that is known to have been acknowledged before a time; 0 for none.
    pub(super) fn id_before(&self, at_us: u64) -> u64 {
        let steps = std::iter::once(&self.newest).chain(&self.steps);
        steps.filter(|step| step.id > 0 && step.at_us < at_us).map(|step| step.id).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_sent_is_one_number_for_each_client() {
        let mut fates = Fates::default();
        assert!(!fates.was_sent(1, 1));
        for (client, counter) in [(7, 1), (3, 1), (7, 2), (7, 3)] {
            fates.on_sent(client, counter);
        }
        assert!(fates.was_sent(7, 1) && fates.was_sent(7, 3) && fates.was_sent(3, 1));
        assert!(!fates.was_sent(7, 4) && !fates.was_sent(7, 0) && !fates.was_sent(4, 1));
    }

    #[test]
    fn a_false_refusal_is_told_once() {
        let mut fates = Fates::default();
        assert!(!fates.contradicts_refusal(1, 5));
        fates.on_refused(1, 5);
        assert!(!fates.contradicts_refusal(1, 4) && !fates.contradicts_refusal(2, 5));
        assert!(fates.contradicts_refusal(1, 5));
        assert!(!fates.contradicts_refusal(1, 5));
    }

    #[test]
    fn a_try_of_a_removed_member_is_answered_once_and_accused_once() {
        let mut fates = Fates::default();
        assert_eq!(fates.take_probe(1, 5), None);
        fates.on_probe(1, 5, 70);
        assert!(fates.was_sent(1, 5));
        assert_eq!([fates.take_probe(1, 4), fates.take_probe(1, 5), fates.take_probe(1, 5)], [None, Some(70), None]);
        assert_eq!([(); 2].map(|()| fates.note_false_acceptance(1, 5)), [true, false]);
    }

    #[test]
    fn second_acks_are_kept_up_to_a_limit() {
        let mut fates = Fates::default();
        let claim = |id| Claim { client: 1, counter: 1, id, source: ClaimSource::Ack };
        assert!((0..CLAIMS_MAX as u64).all(|id| fates.claim(claim(id)) && fates.claim(claim(id))));
        assert!(!fates.claim(claim(9_999)));
        assert!(fates.claim(Claim { source: ClaimSource::Push, ..claim(9_999) }), "those have a place of their own");
        assert_eq!(fates.take_claims().len(), CLAIMS_MAX + 1);
        assert_eq!(fates.take_claims(), []);
    }

    #[test]
    fn the_staircase_reaches_seconds_back() {
        let mut stairs = Staircase::default();
        assert_eq!(stairs.id_before(u64::MAX), 0);
        for n in 1..=1_000 {
            stairs.on_ack(n, n * 10_000);
        }
        assert_eq!(stairs.id_before(u64::MAX), 1_000);
        assert_eq!(stairs.id_before(10_000_000), stairs.steps[0].id, "not before itself");
        assert!(stairs.id_before(9_900_000) >= 980);
        assert!(stairs.id_before(7_000_000) > 300, "{stairs:?}");
    }

    proptest! {
        #[test]
        fn a_step_never_says_more_than_was_acknowledged(acks in prop::collection::vec((0_u64..400_000, 1_u64..50), 1..80)) {
            let mut stairs = Staircase::default();
            let (mut now_us, mut id, mut all) = (0, 0, Vec::new());
            for (pause_us, rise) in acks {
                now_us += pause_us;
                id += rise;
                stairs.on_ack(id, now_us);
                all.push((now_us, id));
                for at_us in [0, now_us / 2, now_us.saturating_sub(300_000), now_us, now_us + 1] {
                    let truth = all.iter().filter(|ack| ack.0 < at_us).map(|ack| ack.1).max().unwrap_or(0);
                    prop_assert!(stairs.id_before(at_us) <= truth);
                }
                prop_assert_eq!(stairs.id_before(now_us + 1), id);
            }
        }
    }
}
