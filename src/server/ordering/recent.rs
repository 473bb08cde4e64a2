//! The newest messages of conversations, kept by an API server so that a thousand members who fetch the same news cost the
//! store one read.
//!
//! Only what is settled is kept: an id up to the stable mark is in the store or void for ever (invariant I5), so that
//! nothing here can be out of date and no server has to be told of changes (docs/adr/0011-settled-messages.md).

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use super::page::PAGE_BYTES_MAX;
use crate::backends::messages::StoredMessage;
use crate::protocol::{ConversationId, MessageId};

/// Messages kept of one conversation.
const ROWS_MAX: usize = 256;

/// Bytes kept in all; a full cache starts anew.
const BYTES_MAX: usize = 64 << 20;

/// What a conversation takes beside its messages, about.
const STRETCH_BYTES: usize = 128;

/// What a message takes beside its body, about.
const ROW_BYTES: usize = 160;

/// Settled messages, by conversation.
#[derive(Default)]
pub(super) struct Recent {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stretches: HashMap<ConversationId, Stretch>,
    /// Of the messages.
    bytes: usize,
}

/// Every message with `after < id <= upto`.
struct Stretch {
    after: MessageId,
    upto: MessageId,
    rows: VecDeque<StoredMessage>,
}

fn bytes(row: &StoredMessage) -> usize {
    ROW_BYTES + row.body.len()
}

impl Recent {
    /// Messages with an id above `after`, at most `limit` and about a page's bytes, and the id up to which these are all; `None` when the cache does
    /// not reach back that far.
    pub(super) fn get(
        &self,
        conversation: ConversationId,
        after: MessageId,
        limit: usize,
    ) -> Option<(Vec<StoredMessage>, MessageId)> {
        let state = self.state.lock().expect("no panic while held");
        let stretch = state.stretches.get(&conversation).filter(|stretch| stretch.after <= after)?;
        let begin = stretch.rows.partition_point(|row| row.id <= after);
        let mut known_bytes = 0;
        let fits = |row: &&StoredMessage| {
            let is_begun = known_bytes < PAGE_BYTES_MAX;
            known_bytes += bytes(row);
            is_begun
        };
        let rows: Vec<_> = stretch.rows.range(begin..).take(limit).take_while(fits).cloned().collect();
        let upto = if begin + rows.len() < stretch.rows.len() { rows.last()?.id } else { stretch.upto };
        Some((rows, upto.max(after)))
    }

    /// Keeps every message with `after < id <= upto`, all of them settled.
    pub(super) fn put(
        &self,
        conversation: ConversationId,
        after: MessageId,
        upto: MessageId,
        rows: impl Iterator<Item = StoredMessage>,
    ) {
        if upto <= after {
            return;
        }
        let mut guard = self.state.lock().expect("no panic while held");
        if guard.bytes + guard.stretches.len() * STRETCH_BYTES > BYTES_MAX {
            *guard = State::default();
        }
        let State { stretches, bytes: total } = &mut *guard;
        let stretch = stretches.entry(conversation).or_insert(Stretch { after, upto: after, rows: VecDeque::new() });
        let touches = stretch.after <= after && after <= stretch.upto;
        if !touches {
            if upto <= stretch.upto {
                return;
            }
            *total -= stretch.rows.iter().map(bytes).sum::<usize>();
            *stretch = Stretch { after, upto: after, rows: VecDeque::new() };
        }
        for row in rows.filter(|row| row.id <= upto) {
            if row.id > stretch.upto {
                *total += bytes(&row);
                stretch.rows.push_back(row);
            }
        }
        stretch.upto = stretch.upto.max(upto);
        while stretch.rows.len() > ROWS_MAX {
            let oldest = stretch.rows.pop_front().expect("more than none");
            *total -= bytes(&oldest);
            stretch.after = oldest.id;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::UserId;

    const TALK: ConversationId = ConversationId(1);

    fn row(id: u64) -> StoredMessage {
        StoredMessage {
            conversation: TALK,
            id: MessageId(id),
            uuid: uuid::Uuid::nil(),
            sender: UserId(1),
            kind: "text".to_owned(),
            body: "x".to_owned(),
            reply_to: None,
            at: id,
        }
    }

    fn put(recent: &Recent, after: u64, upto: u64, ids: &[u64]) {
        recent.put(TALK, MessageId(after), MessageId(upto), ids.iter().map(|id| row(*id)));
    }

    fn get(recent: &Recent, after: u64, limit: usize) -> Option<(Vec<u64>, u64)> {
        let (rows, upto) = recent.get(TALK, MessageId(after), limit)?;
        Some((rows.iter().map(|row| row.id.0).collect(), upto.0))
    }

    #[test]
    fn stretches_that_touch_grow_together_and_holes_are_never_bridged() {
        let recent = Recent::default();
        assert_eq!(get(&recent, 0, 10), None);
        put(&recent, 4, 8, &[5, 8]);
        assert_eq!(get(&recent, 4, 10), Some((vec![5, 8], 8)));
        assert_eq!(get(&recent, 4, 1), Some((vec![5], 5)), "a limit is no end");
        assert_eq!(get(&recent, 3, 10), None, "4 is not known");
        put(&recent, 6, 10, &[8, 9]);
        assert_eq!(get(&recent, 4, 10), Some((vec![5, 8, 9], 10)));
        put(&recent, 20, 21, &[21]);
        assert_eq!(get(&recent, 10, 10), None, "11 to 20 are not known");
        assert_eq!(get(&recent, 20, 10), Some((vec![21], 21)));
        put(&recent, 0, 5, &[1]);
        assert_eq!(get(&recent, 20, 10), Some((vec![21], 21)), "older news do not replace younger");
        assert_eq!(get(&recent, 30, 10), Some((vec![], 30)));
    }

    #[test]
    fn the_oldest_leave_first_and_the_count_of_bytes_holds() {
        let recent = Recent::default();
        let ids: Vec<u64> = (1..=ROWS_MAX as u64 + 10).collect();
        put(&recent, 0, ROWS_MAX as u64 + 10, &ids);
        assert_eq!(get(&recent, 9, 1), None);
        assert_eq!(get(&recent, 10, 1), Some((vec![11], 11)));
        let state = recent.state.lock().expect("no panic");
        assert_eq!(state.bytes, ROWS_MAX * (ROW_BYTES + 1));
    }
}
