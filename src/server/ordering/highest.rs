//! The highest id of each conversation that this server knows to be given out.
//!
//! A counter whose data went back in time (a restored data set, a copy that was behind) gives out ids for the second time. A
//! server that sees an id which is not above all that it knew before it asked knows what happened, and the counter is rebuilt
//! from the message store instead. It is the second line: the first is that a counter's key carries the life of its data.

use std::sync::Mutex;

use crate::protocol::{ConversationId, MessageId};
use crate::server::bounded_map::BoundedMap;

/// Conversations that are kept. In one that is forgotten nothing is noticed.
const CONVERSATIONS_MAX: usize = 100_000;

/// Written by `store` and `progress`, before an id is used.
pub(super) struct Highest(Mutex<BoundedMap<ConversationId, MessageId>>);

impl Default for Highest {
    fn default() -> Self {
        Self(Mutex::new(BoundedMap::new(CONVERSATIONS_MAX)))
    }
}

impl Highest {
    /// The highest id that is known now; 0 if none. Ask before the counter is asked: an id that another task got meanwhile says
    /// nothing.
    pub(super) fn of(&self, conversation: ConversationId) -> MessageId {
        self.0.lock().expect("no panic while held").get(&conversation).copied().unwrap_or_default()
    }

    /// Notes an id that was given out.
    pub(super) fn note(&self, conversation: ConversationId, id: MessageId) {
        let mut known = self.0.lock().expect("no panic while held");
        let highest = known.use_entry(conversation);
        *highest = id.max(*highest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_stays_and_what_nobody_used_for_long_is_forgotten() {
        let highest = Highest::default();
        let (busy, quiet) = (ConversationId(1), ConversationId(2));
        highest.note(quiet, MessageId(9));
        for n in 0..2 * CONVERSATIONS_MAX as u64 {
            highest.note(busy, MessageId(7));
            highest.note(ConversationId(10 + n), MessageId(1));
        }
        highest.note(busy, MessageId(3));
        assert_eq!((highest.of(busy), highest.of(quiet)), (MessageId(7), MessageId(0)));
    }
}
