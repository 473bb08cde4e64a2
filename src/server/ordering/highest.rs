//! The highest id of each conversation that this server knows to be given out.
//!
//! A counter whose data went back in time (a restored data set, a copy that was behind) gives out ids for the second time. A
//! server that sees an id which is not above all that it knew before it asked knows what happened, and the counter is rebuilt
//! from the message store instead. It is the second line: the first is that a counter's key carries the life of its data.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::protocol::{ConversationId, MessageId};

/// Conversations that are kept of each half. A conversation that was not used while so many others were is forgotten: then
/// nothing is noticed there.
const HALF_MAX: usize = 50_000;

/// Written by `store` and `progress`, before an id is used.
#[derive(Default)]
pub(super) struct Highest {
    halves: Mutex<Halves>,
}

/// The conversations of late, and the ones before.
#[derive(Default)]
struct Halves {
    young: HashMap<ConversationId, MessageId>,
    old: HashMap<ConversationId, MessageId>,
}

impl Highest {
    /// The highest id that is known now; 0 if none. Ask before the counter is asked: an id that another task got meanwhile says
    /// nothing.
    pub(super) fn of(&self, conversation: ConversationId) -> MessageId {
        let halves = self.halves.lock().expect("no panic while held");
        let known = halves.young.get(&conversation).or_else(|| halves.old.get(&conversation));
        known.copied().unwrap_or(MessageId(0))
    }

    /// Notes an id that was given out.
    pub(super) fn note(&self, conversation: ConversationId, id: MessageId) {
        let mut halves = self.halves.lock().expect("no panic while held");
        let known = halves.young.get(&conversation).or_else(|| halves.old.get(&conversation)).copied();
        if halves.young.len() >= HALF_MAX && !halves.young.contains_key(&conversation) {
            halves.old = std::mem::take(&mut halves.young);
        }
        halves.young.insert(conversation, known.map_or(id, |known| known.max(id)));
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
        for n in 0..4 * HALF_MAX as u64 {
            highest.note(busy, MessageId(7));
            highest.note(ConversationId(10 + n), MessageId(1));
        }
        highest.note(busy, MessageId(3));
        assert_eq!((highest.of(busy), highest.of(quiet)), (MessageId(7), MessageId(0)));
        let halves = highest.halves.lock().expect("no panic while held");
        assert!(halves.young.len() + halves.old.len() <= 2 * HALF_MAX + 1);
    }
}
