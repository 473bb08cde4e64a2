//! Messages that a sync fetched where a push had to bring them: the push may still come, only late.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use super::members::SETTLE_US;

/// So many are remembered. Where more are missing, pushes that come late stay counted as missing.
const UNPUSHED_MAX: usize = 100_000;

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

/// The messages whose push is missing so far. Locked only when one is missing, comes twice, or can't come any more.
#[derive(Debug, Default)]
pub(in crate::loadgen) struct Unpushed(Mutex<Missing>);

#[derive(Debug, Default)]
struct Missing {
    /// By device; of each message, until when its push may be on its way.
    of_clients: HashMap<u32, HashMap<(u32, u64), u64>>,
    count: usize,
}

impl Unpushed {
    /// A sync was faster than the push of a message that was sent at `sent_us`.
    pub(in crate::loadgen) fn note(&self, copy: MessageCopy, sent_us: u64) {
        let mut missing = self.missing();
        if missing.count < UNPUSHED_MAX {
            let until_us = sent_us.saturating_add(SETTLE_US);
            let of_client = missing.of_clients.entry(copy.client).or_default();
            missing.count += usize::from(of_client.insert((copy.conversation, copy.id), until_us).is_none());
        }
    }

    /// A device's connection has ended. Returns how many pushes were on their way to it, of which nothing can be said.
    pub(in crate::loadgen) fn cut(&self, client: u32, now_us: u64) -> u64 {
        let mut missing = self.missing();
        let Some(of_client) = missing.of_clients.get_mut(&client) else { return 0 };
        let before = of_client.len();
        of_client.retain(|_, until_us| *until_us <= now_us);
        let cut = before - of_client.len();
        missing.count -= cut;
        cut as u64
    }

    /// A push came of what was here before. Returns whether it is one that was missing.
    pub(in crate::loadgen) fn came(&self, copy: MessageCopy) -> bool {
        let mut missing = self.missing();
        let of_client = missing.of_clients.get_mut(&copy.client);
        let was_missing = of_client.is_some_and(|of| of.remove(&(copy.conversation, copy.id)).is_some());
        missing.count -= usize::from(was_missing);
        was_missing
    }

    /// News came of everything in a conversation up to an id. Returns how many of it were missing.
    pub(in crate::loadgen) fn came_upto(&self, client: u32, conversation: u32, upto: u64) -> u64 {
        let mut missing = self.missing();
        let Some(of_client) = missing.of_clients.get_mut(&client) else { return 0 };
        let before = of_client.len();
        of_client.retain(|(of, id), _| *of != conversation || *id > upto);
        let came = before - of_client.len();
        missing.count -= came;
        came as u64
    }

    /// When the newest message was sent whose push to a device is missing.
    pub(in crate::loadgen) fn newest_us(&self, client: u32) -> Option<u64> {
        let until_us = self.missing().of_clients.get(&client)?.values().copied().max()?;
        Some(until_us.saturating_sub(SETTLE_US))
    }

    fn missing(&self) -> MutexGuard<'_, Missing> {
        self.0.lock().expect("no panic while held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_that_comes_late_is_missing_no_more_and_counts_once() {
        let unpushed = Unpushed::default();
        let copy = |id| MessageCopy { client: 1, conversation: 2, id };
        unpushed.note(copy(7), 10);
        assert!(!unpushed.came(copy(8)), "that one was never missing");
        assert!(unpushed.came(copy(7)));
        assert!(!unpushed.came(copy(7)), "sent twice");
        (7..10).for_each(|id| unpushed.note(copy(id), 10));
        assert_eq!([unpushed.came_upto(1, 3, 9), unpushed.came_upto(1, 2, 8), unpushed.came_upto(1, 2, 9)], [0, 2, 1]);
    }

    #[test]
    fn a_push_that_was_on_its_way_when_the_connection_ended_is_nobodys_fault() {
        let unpushed = Unpushed::default();
        let copy = |client, id| MessageCopy { client, conversation: 2, id };
        unpushed.note(copy(1, 7), 0);
        unpushed.note(copy(1, 8), 500);
        unpushed.note(copy(2, 8), 500);
        assert_eq!([1, 2, 3].map(|client| unpushed.newest_us(client)), [Some(500), Some(500), None]);
        assert_eq!(unpushed.cut(1, SETTLE_US), 1, "the first had its time");
        assert!(unpushed.came(copy(1, 7)) && !unpushed.came(copy(1, 8)) && unpushed.came(copy(2, 8)));
    }
}
