//! Messages that a sync fetched where a push had to bring them: the push may still come, only late.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

/// So many are remembered. Past them, those that no push is waited for any more make room.
const UNPUSHED_MAX: usize = 1_000_000;

/// Longest that a push is waited for where nothing else has to be, from when its message was shown.
pub(in crate::loadgen) const PUSH_WAIT_US: u64 = 5_000_000;

/// Least time between two looks for room, in µs: each goes through everything that is missing.
const SWEEP_EVERY_US: u64 = 1_000_000;

/// One message on one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::loadgen) struct MessageCopy {
    /// Index of the device.
    pub(in crate::loadgen) client: u32,
    /// Index of the conversation.
    pub(in crate::loadgen) conversation: u32,
    /// The message's id.
    pub(in crate::loadgen) id: u64,
}

/// Time from when a message was shown in which its push may still be on its way, in µs.
const ON_ITS_WAY_US: u64 = 2_000_000;

/// The messages whose push is missing so far. Locked only when one is missing, comes twice, or can't come any more.
#[derive(Debug)]
pub(in crate::loadgen) struct Unpushed {
    missing: Mutex<Missing>,
    room: usize,
}

#[derive(Debug, Default)]
struct Missing {
    /// By device; of each message, by conversation and id, when it was shown.
    of_clients: HashMap<u32, HashMap<(u32, u64), u64>>,
    count: usize,
    /// When room was last looked for.
    swept_us: u64,
}

impl Default for Unpushed {
    fn default() -> Self {
        Self::with_room(UNPUSHED_MAX)
    }
}

impl Missing {
    /// Removes those of a device that are no longer missing; returns how many.
    fn remove(&mut self, client: u32, is_one: impl Fn(u32, u64, u64) -> bool) -> u64 {
        let Some(of_client) = self.of_clients.get_mut(&client) else { return 0 };
        let before = of_client.len();
        of_client.retain(|(conversation, id), shown_us| !is_one(*conversation, *id, *shown_us));
        let removed = before - of_client.len();
        if of_client.is_empty() {
            self.of_clients.remove(&client);
        }
        self.count -= removed;
        removed as u64
    }

    /// Forgets what has been missing for so long that no push is waited for: it stays missing.
    fn make_room(&mut self, now_us: u64) {
        if now_us < self.swept_us.saturating_add(SWEEP_EVERY_US) {
            return;
        }
        self.swept_us = now_us;
        self.of_clients.retain(|_, of_client| {
            of_client.retain(|_, shown_us| now_us < shown_us.saturating_add(PUSH_WAIT_US));
            !of_client.is_empty()
        });
        self.count = self.of_clients.values().map(HashMap::len).sum();
    }
}

impl Unpushed {
    pub(in crate::loadgen) fn with_room(room: usize) -> Self {
        Self { missing: Mutex::default(), room }
    }

    /// A sync was faster than the push of a message, which it brought at `shown_us`. Returns false where there is no room to
    /// wait for it: then it stays missing, whatever comes.
    pub(in crate::loadgen) fn note(&self, copy: MessageCopy, shown_us: u64) -> bool {
        let mut missing = self.missing();
        if missing.count >= self.room {
            missing.make_room(shown_us);
        }
        let has_room = missing.count < self.room;
        if has_room {
            let of_client = missing.of_clients.entry(copy.client).or_default();
            missing.count += usize::from(of_client.insert((copy.conversation, copy.id), shown_us).is_none());
        }
        has_room
    }

    /// A device's connection has ended. Returns how many pushes were on their way to it, of which nothing can be said.
    pub(in crate::loadgen) fn cut(&self, client: u32, now_us: u64) -> u64 {
        self.missing().remove(client, |_, _, shown_us| now_us < shown_us.saturating_add(ON_ITS_WAY_US))
    }

    /// The same of a device whose user is being removed from a conversation.
    pub(in crate::loadgen) fn cut_conversation(&self, client: u32, conversation: u32, now_us: u64) -> u64 {
        let is_one = |of, _, shown_us: u64| of == conversation && now_us < shown_us.saturating_add(ON_ITS_WAY_US);
        self.missing().remove(client, is_one)
    }

    /// The same of all devices, when a fault begins.
    pub(in crate::loadgen) fn cut_all(&self, now_us: u64) -> u64 {
        let mut missing = self.missing();
        let clients: Vec<u32> = missing.of_clients.keys().copied().collect();
        let is_one = |_, _, shown_us: u64| now_us < shown_us.saturating_add(ON_ITS_WAY_US);
        clients.into_iter().map(|client| missing.remove(client, is_one)).sum()
    }

    /// A push came of what was here before. Returns whether it is one that was missing.
    pub(in crate::loadgen) fn came(&self, copy: MessageCopy) -> bool {
        self.missing().remove(copy.client, |of, id, _| (of, id) == (copy.conversation, copy.id)) > 0
    }

    /// News came of everything in a conversation up to an id. Returns how many of it were missing.
    pub(in crate::loadgen) fn came_upto(&self, client: u32, conversation: u32, upto: u64) -> u64 {
        self.missing().remove(client, |of, id, _| of == conversation && id <= upto)
    }

    /// When the newest message was shown whose push to a device is missing.
    pub(in crate::loadgen) fn newest_us(&self, client: u32) -> Option<u64> {
        self.missing().of_clients.get(&client)?.values().copied().max()
    }

    fn missing(&self) -> MutexGuard<'_, Missing> {
        self.missing.lock().expect("no panic while held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadgen::counts::Counts;

    const fn copy(client: u32, id: u64) -> MessageCopy {
        MessageCopy { client, conversation: 2, id }
    }

    #[test]
    fn a_push_that_comes_late_is_missing_no_more_and_counts_once() {
        let unpushed = Unpushed::default();
        assert!(unpushed.note(copy(1, 7), 10));
        assert!(!unpushed.came(copy(1, 8)), "that one was never missing");
        assert!(unpushed.came(copy(1, 7)));
        assert!(!unpushed.came(copy(1, 7)), "sent twice");
        assert!((7..10).all(|id| unpushed.note(copy(1, id), 10)));
        assert_eq!([unpushed.came_upto(1, 3, 9), unpushed.came_upto(1, 2, 8), unpushed.came_upto(1, 2, 9)], [0, 2, 1]);
        let missing = unpushed.missing();
        assert!(missing.of_clients.is_empty() && missing.count == 0);
    }

    #[test]
    fn a_push_that_was_on_its_way_when_its_way_ended_is_nobodys_fault() {
        let unpushed = Unpushed::default();
        for (copy, shown_us) in [(copy(1, 7), 0), (copy(1, 8), 500), (copy(2, 8), 500)] {
            unpushed.note(copy, shown_us);
        }
        assert_eq!([1, 2, 3].map(|client| unpushed.newest_us(client)), [Some(500), Some(500), None]);
        assert_eq!(unpushed.cut(1, ON_ITS_WAY_US), 1, "the first had its time");
        assert!(unpushed.came(copy(1, 7)) && !unpushed.came(copy(1, 8)));
        assert_eq!([unpushed.cut_conversation(2, 3, 600), unpushed.cut_conversation(2, 2, 600)], [0, 1]);
        unpushed.note(copy(4, 1), 500);
        unpushed.note(copy(5, 1), 0);
        assert_eq!(unpushed.cut_all(ON_ITS_WAY_US + 100), 1);
    }

    #[test]
    fn what_no_push_is_waited_for_any_more_makes_room() {
        let unpushed = Unpushed::with_room(10);
        assert!((0..10).all(|id| unpushed.note(copy(1, id), id)));
        assert!(!unpushed.note(copy(2, 1), PUSH_WAIT_US - 1), "each of them may still come");
        assert!(unpushed.came(copy(1, 9)) && unpushed.note(copy(2, 1), PUSH_WAIT_US));
        assert!(!unpushed.note(copy(2, 2), PUSH_WAIT_US + 4), "it is not looked for room so soon again");
        let later_us = PUSH_WAIT_US + SWEEP_EVERY_US;
        assert!((2..11).all(|id| unpushed.note(copy(2, id), later_us)) && !unpushed.note(copy(2, 11), later_us));
        assert!(!unpushed.came(copy(1, 1)) && unpushed.came(copy(2, 1)));
        assert_eq!(unpushed.cut_all(later_us), 9, "those that were there for a moment only");
    }

    /// Ten million deliveries within 100 s, of which three of a hundred never come by push.
    #[test]
    fn misses_of_a_large_run_are_not_forgotten_for_their_number() {
        let unpushed = Unpushed::with_room(1_000);
        let mut counts = Counts { push_expected: 10_000_000, pushed: 9_700_000, ..Counts::default() };
        for miss in 0..300_000_u64 {
            unpushed.note(copy((miss % 5_000) as u32, miss), miss * 333);
        }
        counts.push_expected -= unpushed.cut_all(300_000 * 333);
        let percent = counts.pushed_percent().expect("some were expected");
        assert!(percent < 97.1, "{percent} % of {}", counts.push_expected);
    }
}
