//! What a device has of one conversation. There are ten or more for each simulated user: every field counts.

use super::cursor::{Cursor, Seen};
use crate::loadgen::body::at_hash;
use crate::loadgen::ledger::ranges::Ranges;
use crate::protocol::MessageId;

/// What a device has of one conversation.
#[derive(Default)]
pub(in crate::loadgen) struct DeviceConversation {
    /// Index of the conversation in the world.
    pub(in crate::loadgen) index: u32,
    /// Messages that this device sent here.
    counter: u32,
    pub(in crate::loadgen) cursor: Cursor,
    /// `None` before the first message.
    record: Option<Box<Record>>,
    /// What there is to do; `None` while the conversation is up to date.
    behind: Option<Box<Behind>>,
}

/// What is held against what is stored, at the end.
#[derive(Debug)]
pub(in crate::loadgen) struct Record {
    /// Ids shown to the person.
    pub(in crate::loadgen) shown: Ranges<u64>,
    /// Sum of [`crate::loadgen::body::Tag::hash_with`] over what was shown.
    pub(in crate::loadgen) shown_sum: u64,
    /// Sum of [`at_hash`] over what was shown.
    pub(in crate::loadgen) at_sum: u64,
    /// Counters of own messages that were acknowledged.
    pub(in crate::loadgen) acked: Ranges<u32>,
}

impl Record {
    const EMPTY: Self = Self { shown: Ranges::EMPTY, shown_sum: 0, at_sum: 0, acked: Ranges::EMPTY };
}

impl Default for Record {
    fn default() -> Self {
        Self::EMPTY
    }
}

/// What a conversation waits for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Behind {
    /// The newest id that is known to exist: of a `head` frame, or of the inbox.
    pub(super) head: u64,
    /// The newest id of a `head` frame.
    pub(super) announced: u64,
    /// When to sync, in µs; 0 for never.
    pub(super) sync_due_us: u64,
    /// A sync that failed is not repeated before, whatever news come: by a backoff, and by what the server asked for. 0
    /// for none.
    pub(super) put_off_until_us: u64,
    /// When the first try of the page began that did not come yet; 0 for none.
    pub(super) tried_since_us: u64,
    /// How long the calls for what is fetched now have waited for the generator, in µs: of all its tries and pages.
    pub(super) waited_us: u64,
    pub(super) is_syncing: bool,
    /// The newest id that the inbox named after a connect: up to it, this sync belongs to the catching up. 0 for none.
    pub(super) catching_upto: u64,
    /// Syncs in a row that changed nothing.
    pub(super) attempts: u8,
}

impl DeviceConversation {
    pub(super) fn new(index: u32) -> Self {
        Self { index, ..Self::default() }
    }

    /// What there is to do, to be changed.
    pub(super) fn behind(&mut self) -> &mut Behind {
        self.behind.get_or_insert_default()
    }

    /// Whether there is anything to do.
    pub(super) const fn has_work(&self) -> bool {
        self.behind.is_some()
    }

    /// Gives the memory back when there is nothing to do any more.
    pub(super) fn settle(&mut self) {
        let nothing = self.behind.as_ref().is_some_and(|behind| {
            let is_idle = behind.sync_due_us == 0 && !behind.is_syncing && behind.catching_upto == 0;
            is_idle && behind.put_off_until_us == 0 && behind.head <= self.cursor.upto()
        });
        if nothing {
            self.behind = None;
        }
    }

    pub(super) fn is_syncing(&self) -> bool {
        self.behind.as_ref().is_some_and(|behind| behind.is_syncing)
    }

    /// The newest id of a `head` frame that is not shown yet; 0 for none.
    pub(super) fn announced(&self) -> u64 {
        self.behind.as_ref().map_or(0, |behind| behind.announced)
    }

    /// When to sync next, unless a sync is under way.
    pub(super) fn sync_due_us(&self) -> Option<u64> {
        let behind = self.behind.as_ref()?;
        (behind.sync_due_us > 0 && !behind.is_syncing).then_some(behind.sync_due_us)
    }

    /// True when something is known to exist that is not shown.
    pub(super) fn is_behind(&self) -> bool {
        self.cursor.has_gap() || self.behind.as_ref().is_some_and(|behind| behind.head > self.cursor.upto())
    }

    /// Syncs in a row that changed nothing.
    pub(super) fn attempts(&self) -> u8 {
        self.behind.as_ref().map_or(0, |behind| behind.attempts)
    }

    /// Whether everything is there that was said before this connection.
    pub(super) fn has_caught_up(&self) -> bool {
        self.behind.as_ref().is_none_or(|behind| behind.catching_upto <= self.cursor.upto())
    }

    /// The newest id that a server told of, where nothing that came has it, or one above.
    pub(super) fn news_of_nothing(&self) -> Option<u64> {
        let told = self.behind.as_ref()?.head;
        let known = self.cursor.held().map(|seen| seen.id).last().unwrap_or(0).max(self.cursor.upto());
        (told > known).then_some(told)
    }

    /// Gives a page up that did not come so far; returns since when it was tried. One whose next try is under way is not
    /// given up: its answer counts, from the first try on.
    pub(super) fn give_up_page(&mut self) -> Option<u64> {
        if self.is_syncing() { None } else { self.abandon_page() }
    }

    /// The same of a page of which no answer is taken any more, whether or not a try is under way.
    pub(super) fn abandon_page(&mut self) -> Option<u64> {
        let behind = self.behind.as_mut()?;
        behind.waited_us = 0;
        let since_us = std::mem::take(&mut behind.tried_since_us);
        (since_us > 0).then_some(since_us)
    }

    /// Ends this connection's catching up.
    pub(super) fn stop_catching_up(&mut self) {
        if let Some(behind) = &mut self.behind {
            behind.catching_upto = 0;
        }
    }

    /// The number of the next message that this device sends here.
    pub(super) const fn next_counter(&mut self) -> u32 {
        self.counter += 1;
        self.counter
    }

    /// What was shown and acknowledged.
    pub(in crate::loadgen) fn record(&self) -> &Record {
        static EMPTY: Record = Record::EMPTY;
        self.record.as_deref().unwrap_or(&EMPTY)
    }

    /// Notes that a message is shown. Returns the newest id shown before, 0 for none, and whether this one is new.
    pub(super) fn note_shown(&mut self, seen: &Seen) -> (u64, bool) {
        let record = self.record.get_or_insert_default();
        let newest = record.shown.max().unwrap_or(0);
        record.shown_sum = record.shown_sum.wrapping_add(seen.tag.hash_with(MessageId(seen.id)));
        record.at_sum = record.at_sum.wrapping_add(at_hash(seen.id, seen.at));
        (newest, record.shown.insert(seen.id))
    }

    /// Notes that an own message was acknowledged.
    pub(super) fn note_acked(&mut self, counter: u32) {
        self.record.get_or_insert_default().acked.insert(counter);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_that_is_up_to_date_is_small() {
        let mut conversation = DeviceConversation::new(7);
        conversation.behind().sync_due_us = 5;
        conversation.settle();
        assert_eq!(conversation.sync_due_us(), Some(5));
        conversation.behind().sync_due_us = 0;
        conversation.behind().head = 3;
        conversation.settle();
        assert!(conversation.is_behind());
        conversation.behind().head = 0;
        conversation.settle();
        assert!(conversation.behind.is_none() && !conversation.is_behind());
        assert!(conversation.record.is_none() && conversation.record().shown.max().is_none());
        assert!(size_of::<DeviceConversation>() <= 40, "{}", size_of::<DeviceConversation>());
    }
}
