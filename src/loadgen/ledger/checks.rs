//! What the verdict rests on, and how much of it: by check, how many things had to be there, how many were, what was wrong,
//! and what could not be judged.

use std::sync::atomic::AtomicU64;

use serde::{Deserialize, Serialize};

use crate::loadgen::result::{Check, Counts};
use crate::loadgen::stats::get;

macro_rules! tallies {
    ($( $(#[$doc:meta])* $visibility:vis $name:ident ),* $(,)?) => {
        /// How much the ledger checks. Written by the ledger and the audit.
        #[derive(Default)]
        pub(in crate::loadgen) struct Tallies { $( $(#[$doc])* $visibility $name: AtomicU64 ),* }

        /// How much the ledger has checked, for the notes of the checks.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
        pub struct Tallied { $( $(#[$doc])* $name: u64 ),* }

        impl Tallies {
            /// What was counted until now.
            pub(in crate::loadgen) fn tallied(&self) -> Tallied {
                Tallied { $( $name: get(&self.$name) ),* }
            }
        }

        impl Tallied {
            /// Both added up.
            pub(in crate::loadgen) fn plus(&self, other: &Self) -> Self {
                Self { $( $name: self.$name.saturating_add(other.$name) ),* }
            }
        }
    };
}

tallies!(
    /// Acknowledged messages that were looked for in the store.
    pub(super) acked,
    /// Of those, the ones that were found.
    pub(super) stored,
    /// Acknowledged messages times the members' devices that synced to the end.
    pub(super) reach_expected,
    /// Of those, the ones that were shown.
    pub(super) reached,
    /// Stored messages whose every field was compared with what was sent.
    pub(super) rows,
    /// The same of other members' views, compared with the owner's.
    pub(super) view_rows,
    /// Messages that were refused definitely.
    pub(super) refusals,
    /// Second ACKs and repeated pushes for which there was no room.
    pub(super) claims_dropped,
    /// Deliveries in or soon after a fault, of which it is not asked whether they came by push.
    pub(in crate::loadgen) push_unsure,
    /// Presence notices.
    pub(super) presence_notices,
    /// Changes of presence that had to be told.
    pub(in crate::loadgen) presence_expected,
    /// Of those, the ones that were told.
    pub(in crate::loadgen) presence_seen,
    /// Changes of presence of which nothing can be said.
    pub(super) presence_unsure,
    /// Those of which nothing can be said since the target, or the generator, was as late at that time.
    pub(super) presence_late,
);

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
pub(in crate::loadgen) fn checks(c: &Counts, tallied: &Tallied) -> Vec<Check> {
    let Tallied { acked, stored, reach_expected, reached, rows, view_rows, refusals, .. } = *tallied;
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
            .unless(tallied.push_unsure, "in or soon after a fault are not judged"),
        check(
            "shown once",
            c.delivered,
            c.delivered.saturating_sub(c.duplicated + c.out_of_order),
            c.duplicated + c.out_of_order,
        )
        .none("nothing was shown"),
        check("ids", c.acked, c.acked, c.id_reuse + c.id_went_back + c.ack_wrong)
            .unless(tallied.claims_dropped, "repeated ACKs and pushes were too many to compare"),
        check("content", rows, rows.saturating_sub(c.altered), c.altered + c.forged).none("nothing is stored"),
        check("views", view_rows, view_rows, 0)
            .none("no other member's view was read")
            .unless(c.unread_views, "members' views could not be read"),
        check("refusals", refusals, refusals.saturating_sub(c.false_refusal), c.false_refusal)
            .none("nothing was refused for good"),
        check("access", probes, probes, c.leaked + c.false_acceptance)
            .none(if c.removals > 0 { "no try of a removed member was answered" } else { "nobody was removed" })
            .unless(c.unprobed, "reads of removed members had no answer"),
        check("presence", c.presence_expected, c.presence_seen, presence_wrong)
            .unless(tallied.presence_unsure, "changes were too close to others, or to the end, or too many, to judge")
            .unless(tallied.presence_late, "are not judged: the target, or the generator, was as late then")
            .none("no change of presence had to be told"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_says_how_much_and_what_it_could_not() {
        let empty = checks(&Counts::default(), &Tallied::default());
        assert!(empty.iter().filter(|c| c.name != "ids").all(|c| !c.note.is_empty()), "absence is told: {empty:?}");
        let tallied = Tallied { acked: 90, stored: 88, ..Tallied::default() };
        let counts = Counts { acked: 100, unaudited: 1, push_expected: 50, pushed: 40, ..Counts::default() };
        let checks = checks(&counts, &tallied);
        let of = |name: &str| checks.iter().find(|c| c.name == name).expect("there is one").clone();
        assert_eq!((of("stored").expected, of("stored").seen, of("stored").wrong), (100, 88, 2));
        assert_eq!(of("stored").note, "1 conversations could not be read back");
        assert_eq!((of("pushed").wrong, of("pushed").note.as_str()), (10, ""));
        assert_eq!(of("access").note, "nobody was removed");
    }

    #[test]
    fn what_could_not_be_read_is_told_apart_from_what_there_was_not_to_read() {
        let note = |counts: Counts, name: &str| {
            let checks = checks(&counts, &Tallied::default());
            checks.iter().find(|c| c.name == name).expect("there is one").note.clone()
        };
        let removed = Counts { removals: 12, unprobed: 12, unread_views: 3, ..Counts::default() };
        let access = note(removed, "access");
        assert_eq!(access, "no try of a removed member was answered; 12 reads of removed members had no answer");
        assert!(note(removed, "views").ends_with("3 members' views could not be read"));
        assert!(note(Counts { read_views: 5, ..removed }, "views").contains("3 members' views"));
    }
}
