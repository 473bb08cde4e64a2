//! When somebody was a member of a conversation, as far as the run can tell. No I/O, no clock.
//!
//! A change is a call that takes its time: between its begin and its success nobody can say on which side of it something
//! fell. What falls there is no accusation.

/// A time that has not come.
const NEVER: u64 = u64::MAX;

/// Time after an addition in which its effects (a subscription, a cache that expires) may still be on their way, in µs.
pub(super) const SETTLE_US: u64 = 1_000_000;

/// Time after a removal in which what was said of the conversation before it may still arrive, in µs.
pub(super) const GONE_US: u64 = 5_000_000;

/// A stretch of membership, on the run's clock in µs. Each end has the begin of its call and the success of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stay {
    joining_us: u64,
    joined_us: u64,
    leaving_us: u64,
    left_us: u64,
}

impl Stay {
    /// That of a member from the start.
    const ORIGINAL: Self = Self { joining_us: 0, joined_us: 0, leaving_us: NEVER, left_us: NEVER };
}

/// The memberships of one user in one conversation, in their order.
#[derive(Debug, Default)]
pub(super) struct Stays(Vec<Stay>);

impl Stays {
    /// Those of somebody who was a member when the run began, or was not.
    pub(super) fn new(is_original: bool) -> Self {
        Self(if is_original { vec![Stay::ORIGINAL] } else { Vec::new() })
    }

    /// A call begins that adds the user. Repeating it changes nothing.
    pub(super) fn joining(&mut self, now_us: u64) {
        if self.0.last().is_none_or(|stay| stay.left_us < NEVER) {
            self.0.push(Stay { joining_us: now_us, joined_us: NEVER, ..Stay::ORIGINAL });
        }
    }

    /// That call succeeded.
    pub(super) fn joined(&mut self, now_us: u64) {
        if let Some(stay) = self.0.last_mut().filter(|stay| stay.joined_us == NEVER) {
            stay.joined_us = now_us;
        }
    }

    /// A call begins that removes the user. Repeating it changes nothing.
    pub(super) fn leaving(&mut self, now_us: u64) {
        if let Some(stay) = self.0.last_mut().filter(|stay| stay.leaving_us == NEVER) {
            stay.leaving_us = now_us;
        }
    }

    /// That call succeeded.
    pub(super) fn left(&mut self, now_us: u64) {
        self.leaving(now_us);
        if let Some(stay) = self.0.last_mut() {
            stay.left_us = now_us;
        }
    }

    /// Whether the user surely is a member now.
    pub(super) fn is_sure(&self) -> bool {
        self.0.last().is_some_and(|stay| stay.joined_us < NEVER && stay.leaving_us == NEVER)
    }

    /// Whether the user surely is none now, and was one.
    pub(super) fn has_left(&self) -> bool {
        self.0.last().is_some_and(|stay| stay.left_us < NEVER)
    }

    /// Whether the user surely was removed before a time, and nobody has begun to add the user again since.
    pub(super) fn had_left(&self, at_us: u64) -> bool {
        self.0.last().is_some_and(|stay| stay.left_us < at_us)
    }

    /// Whether the user surely is none, and has been told for so long that nothing may be on its way any more.
    pub(super) fn has_been_gone(&self, now_us: u64) -> bool {
        self.0.last().is_some_and(|stay| stay.left_us.saturating_add(GONE_US) <= now_us)
    }

    /// Whether a message sent at a time may be seen: history is for everybody who is a member now, and what was sent before a
    /// removal was confirmed may still arrive.
    pub(super) fn may_see(&self, sent_us: u64) -> bool {
        self.0.iter().any(|stay| sent_us <= stay.left_us)
    }

    /// Whether the user surely was a member at a time.
    pub(super) fn was_member(&self, at_us: u64) -> bool {
        self.0.iter().any(|stay| stay.joined_us <= at_us && at_us < stay.leaving_us)
    }

    /// Whether the user surely was a member from a time until now, and the addition had settled by then.
    pub(super) fn was_settled_since(&self, at_us: u64) -> bool {
        let is_original = |stay: &Stay| stay.joined_us == 0;
        let settled = |stay: &Stay| is_original(stay) || stay.joined_us.saturating_add(SETTLE_US) <= at_us;
        self.0.last().is_some_and(|stay| stay.leaving_us == NEVER && settled(stay))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_under_way_makes_nothing_sure() {
        let mut stays = Stays::new(true);
        assert!(stays.is_sure() && stays.was_settled_since(0) && !stays.has_left());
        stays.leaving(10);
        assert!(!stays.is_sure() && !stays.has_left() && stays.may_see(15) && !stays.was_settled_since(5));
        stays.left(20);
        assert!(stays.has_left() && stays.may_see(20) && !stays.may_see(21));
        assert_eq!([15, 20, 21].map(|at| stays.had_left(at)), [false, false, true]);
        assert_eq!([19 + GONE_US, 20 + GONE_US].map(|at| stays.has_been_gone(at)), [false, true]);
        assert_eq!([5, 15, 25].map(|at| stays.was_member(at)), [true, false, false]);
        stays.joining(30);
        assert!(!stays.is_sure() && !stays.has_left() && !stays.had_left(25), "perhaps a member");
        assert!(stays.may_see(21), "history is for those who come again");
        stays.joining(35);
        stays.joined(40);
        assert!(stays.is_sure() && !stays.was_member(35) && stays.was_member(40));
        assert!(!stays.was_settled_since(41) && stays.was_settled_since(40 + SETTLE_US));
    }

    #[test]
    fn who_was_never_a_member_sees_nothing() {
        let stays = Stays::new(false);
        assert!(!stays.is_sure() && !stays.may_see(0) && !stays.was_member(0) && !stays.has_left());
    }
}
