//! What a delivery counts as. Pure functions of what a device knows when a message is shown.

use super::members::SETTLE_US;

/// Where a message is shown, as far as it decides what the delivery counts as. Times are on the run's clock in µs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::loadgen) struct Delivery {
    /// When the message was due.
    pub(in crate::loadgen) due_us: u64,
    /// When it was first written.
    pub(in crate::loadgen) sent_us: u64,
    /// Now.
    pub(in crate::loadgen) shown_us: u64,
    /// Since when the device is there by plan: its first welcome since the plan wanted it online; 0 while it is away by plan.
    pub(in crate::loadgen) here_since_us: u64,
    /// Since when its present connection is open; 0 while it has none.
    pub(in crate::loadgen) opened_us: u64,
    /// Whether this connection still fetches what was missed before it.
    pub(in crate::loadgen) is_catching_up: bool,
    /// What the ledger said of the user's membership.
    pub(in crate::loadgen) membership: Membership,
    /// Whether a live frame brought it, or announced it.
    pub(in crate::loadgen) came_by_push: bool,
    /// Longest time that a frame waits for a device that polls, or that reads slowly.
    pub(in crate::loadgen) reads_every_us: u64,
}

/// A user's membership, seen from one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::loadgen) struct Membership {
    /// Surely a member when the message was sent.
    pub(in crate::loadgen) was_member: bool,
    /// Surely a member from before then until now.
    pub(in crate::loadgen) is_settled: bool,
}

impl Delivery {
    /// Whether the device was away by plan, or its user no member, when the message was due: its latency says when it came
    /// back, and nothing of the server. A device that was cut against the plan is not among them: its user waited.
    pub(in crate::loadgen) const fn is_after_reconnect(&self) -> bool {
        !self.membership.was_member || self.here_since_us == 0 || self.here_since_us > self.due_us
    }

    /// Whether the message had to come by push, and if so whether it did.
    ///
    /// It had to where the device was connected, had caught up, and its user was a member, from before the send until now.
    /// Where a sync was faster, the push is missing so far: it may still be on its way. A device that polls, or reads slowly,
    /// has to be given the time for that.
    pub(in crate::loadgen) const fn push(&self) -> Option<bool> {
        let is_open = self.opened_us > 0 && self.opened_us.saturating_add(SETTLE_US) <= self.sent_us;
        // What was pushed to somebody who hardly reads may come by sync before it is read.
        let is_slow = self.reads_every_us == u64::MAX;
        if !is_open || self.is_catching_up || !self.membership.is_settled || is_slow {
            return None;
        }
        let waited_us = self.shown_us.saturating_sub(self.sent_us);
        if self.came_by_push {
            Some(true)
        } else if self.reads_every_us == 0 || waited_us >= SETTLE_US.saturating_add(self.reads_every_us) {
            Some(false)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    const LIVE: Delivery = Delivery {
        due_us: 20 * S,
        sent_us: 20 * S,
        shown_us: 20 * S + 900,
        here_since_us: 5 * S,
        opened_us: 5 * S,
        is_catching_up: false,
        membership: Membership { was_member: true, is_settled: true },
        came_by_push: true,
        reads_every_us: 0,
    };

    const BY_SYNC: Delivery = Delivery { came_by_push: false, shown_us: 21 * S + 5, ..LIVE };

    #[test]
    fn who_was_cut_against_the_plan_waited() {
        assert!(!LIVE.is_after_reconnect());
        let cut = Delivery { opened_us: 23 * S, shown_us: 24 * S, came_by_push: false, ..LIVE };
        assert!(!cut.is_after_reconnect(), "the connection was lost, the person was there");
        let away = Delivery { here_since_us: 23 * S, ..cut };
        assert!(away.is_after_reconnect());
        assert!(Delivery { here_since_us: 0, ..cut }.is_after_reconnect(), "still away");
        let removed = Membership { was_member: false, is_settled: false };
        assert!(Delivery { membership: removed, ..LIVE }.is_after_reconnect());
    }

    #[test]
    fn a_push_is_expected_where_nothing_was_in_its_way() {
        assert_eq!(LIVE.push(), Some(true));
        assert_eq!(Delivery { reads_every_us: u64::MAX, ..LIVE }.push(), None, "a slow reader");
        assert_eq!(BY_SYNC.push(), Some(false));
        for (what, delivery) in [
            ("not connected", Delivery { opened_us: 0, ..BY_SYNC }),
            ("connected after the send", Delivery { opened_us: 20 * S + 1, ..BY_SYNC }),
            ("connected just before the send", Delivery { opened_us: 19 * S + 1, ..BY_SYNC }),
            ("catching up", Delivery { is_catching_up: true, ..BY_SYNC }),
            ("a member since", Delivery { membership: Membership { was_member: true, is_settled: false }, ..BY_SYNC }),
            ("a device that polls", Delivery { reads_every_us: 2 * S, ..BY_SYNC }),
        ] {
            assert_eq!(delivery.push(), None, "{what}");
        }
        assert_eq!(Delivery { reads_every_us: 2 * S, shown_us: 23 * S, ..BY_SYNC }.push(), Some(false));
        assert_eq!(Delivery { shown_us: 20 * S + 500, ..BY_SYNC }.push(), Some(false), "missing so far");
    }
}
