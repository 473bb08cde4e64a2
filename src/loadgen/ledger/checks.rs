//! What the verdict rests on, and how much of it: by check, how many things had to be there, how many were, what was wrong,
//! and what could not be judged.

use std::sync::atomic::AtomicU64;

use crate::loadgen::result::{Check, Counts};
use crate::loadgen::stats::get;

/// How much the ledger checked. Written by the ledger and the audit.
#[derive(Default)]
pub(in crate::loadgen) struct Tallies {
    /// Acknowledged messages that were looked for in the store, and those found.
    pub(super) acked: AtomicU64,
    pub(super) stored: AtomicU64,
    /// Acknowledged messages times the members' devices that synced to the end, and those that were shown.
    pub(super) reach_expected: AtomicU64,
    pub(super) reached: AtomicU64,
    /// Stored messages whose every field was compared with what was sent.
    pub(super) rows: AtomicU64,
    /// The same of other members' views, compared with the owner's.
    pub(super) view_rows: AtomicU64,
    /// Messages that were refused definitely.
    pub(super) refusals: AtomicU64,
    /// Second ACKs for which there was no room.
    pub(super) claims_dropped: AtomicU64,
    /// Deliveries in or soon after a fault, of which it is not asked whether they came by push.
    pub(in crate::loadgen) push_unsure: AtomicU64,
    /// Members' views that were asked for and could not be read.
    pub(in crate::loadgen) views_unread: AtomicU64,
    /// Presence notices, changes that had to be told, those told in time, and those of which nothing can be said.
    pub(super) presence_notices: AtomicU64,
    pub(in crate::loadgen) presence_expected: AtomicU64,
    pub(in crate::loadgen) presence_seen: AtomicU64,
    pub(super) presence_unsure: AtomicU64,
    /// Those of which nothing can be said since messages, or the generator, were as late at that time.
    pub(super) presence_late: AtomicU64,
}

fn check(name: &str, expected: u64, seen: u64, wrong: u64) -> Check {
    Check { name: name.to_owned(), expected, seen, wrong, note: String::new() }
}

impl Check {
    /// Says that something could not be judged, where there was any of it.
    fn unless(mut self, n: u64, why: &str) -> Self {
        if n > 0 {
            let gap = if self.note.is_empty() { "" } else { "; " };
            self.note.push_str(&format!("{gap}{n} {why}"));
        }
        self
    }

    fn none(mut self, why: &str) -> Self {
        if self.expected == 0 {
            why.clone_into(&mut self.note);
        }
        self
    }
}

/// All checks of a run.
pub(in crate::loadgen) fn checks(c: &Counts, tallies: &Tallies) -> Vec<Check> {
    let t = |tally: &AtomicU64| get(tally);
    let (acked, stored) = (t(&tallies.acked), t(&tallies.stored));
    let (reach_expected, reached) = (t(&tallies.reach_expected), t(&tallies.reached));
    let (rows, view_rows) = (t(&tallies.rows), t(&tallies.view_rows));
    let refusals = t(&tallies.refusals);
    let presence_wrong = c.presence_wrong + c.presence_missed + c.presence_leaked;
    let answered = c.acked + c.refused + c.refused_removed;
    let probes = c.access_probes + c.write_probes;
    vec![
        check("answered", c.intended, answered, c.unresolved + c.refused).none("no message was due"),
        check("stored", c.acked, stored, acked - stored)
            .unless(c.unaudited, "conversations could not be read back")
            .none("nothing was acknowledged"),
        check("reached", reach_expected, reached, reach_expected - reached)
            .unless(c.undrained, "devices could not sync at the end")
            .none(if c.acked > 0 && c.unaudited > 0 { "not known" } else { "nobody was to get anything" }),
        check("pushed", c.push_expected, c.pushed, c.push_expected.saturating_sub(c.pushed))
            .none("no delivery had to come by push")
            .unless(c.push_unknown, "by sync, too soon after a connect or a send to judge")
            .unless(t(&tallies.push_unsure), "in or soon after a fault are not judged"),
        check(
            "shown once",
            c.delivered,
            c.delivered.saturating_sub(c.duplicated + c.out_of_order),
            c.duplicated + c.out_of_order,
        )
        .none("nothing was shown"),
        check("ids", c.acked, c.acked, c.id_reuse + c.id_went_back + c.ack_wrong)
            .unless(t(&tallies.claims_dropped), "repeated ACKs were too many to compare"),
        check("content", rows, rows.saturating_sub(c.altered), c.altered + c.forged).none("nothing is stored"),
        check("views", view_rows, view_rows, 0)
            .unless(t(&tallies.views_unread), "members' views could not be read")
            .none("no other member's view was read"),
        check("refusals", refusals, refusals.saturating_sub(c.false_refusal), c.false_refusal)
            .none("nothing was refused for good"),
        check("access", probes, probes, c.leaked + c.false_acceptance).none("nobody was removed"),
        check("presence", c.presence_expected, c.presence_seen, presence_wrong)
            .unless(t(&tallies.presence_unsure), "changes were too close to others, or to the end, to judge")
            .unless(t(&tallies.presence_late), "are not judged: messages, or the generator, were as late then")
            .none("no change of presence had to be told"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_says_how_much_and_what_it_could_not() {
        let tallies = Tallies::default();
        let empty = checks(&Counts::default(), &tallies);
        assert!(empty.iter().filter(|c| c.name != "ids").all(|c| !c.note.is_empty()), "absence is told: {empty:?}");
        tallies.acked.store(90, std::sync::atomic::Ordering::Relaxed);
        tallies.stored.store(88, std::sync::atomic::Ordering::Relaxed);
        let counts = Counts { acked: 100, unaudited: 1, push_expected: 50, pushed: 40, ..Counts::default() };
        let checks = checks(&counts, &tallies);
        let of = |name: &str| checks.iter().find(|c| c.name == name).expect("there is one").clone();
        assert_eq!((of("stored").expected, of("stored").seen, of("stored").wrong), (100, 88, 2));
        assert_eq!(of("stored").note, "1 conversations could not be read back");
        assert_eq!((of("pushed").wrong, of("pushed").note.as_str()), (10, ""));
    }
}
