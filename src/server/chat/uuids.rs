//! In which conversation a user's uuid is in use.
//!
//! That a uuid has one id holds by conversation and sender, in the sequence, for 24 hours. A client that uses one again in another
//! conversation has a fault; this server notices it as long as it remembers the first use.

use std::sync::Mutex;

use uuid::Uuid;

use crate::protocol::{ConversationId, UserId};
use crate::server::bounded_map::BoundedMap;

/// Uses that are remembered.
const USES_MAX: usize = 100_000;

/// What a send finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// The uuid was not in use, or nobody knows it any more.
    New,
    /// A retry, perhaps.
    Known,
    /// It belongs to another conversation.
    Elsewhere,
}

/// Uses by this server's clients. Written by each send.
pub(super) struct Uuids(Mutex<BoundedMap<(UserId, Uuid), Option<ConversationId>>>);

impl Default for Uuids {
    fn default() -> Self {
        Self(Mutex::new(BoundedMap::new(USES_MAX)))
    }
}

impl Uuids {
    /// Uses a uuid, unless it is in use elsewhere.
    pub(super) fn claim(&self, sender: UserId, uuid: Uuid, conversation: ConversationId) -> Use {
        let mut uses = self.0.lock().expect("no panic while held");
        let place = uses.use_entry((sender, uuid));
        match *place {
            None => {
                *place = Some(conversation);
                Use::New
            }
            Some(known) if known == conversation => Use::Known,
            Some(_) => Use::Elsewhere,
        }
    }

    /// Gives a uuid back whose first send surely stored nothing.
    pub(super) fn give_back(&self, sender: UserId, uuid: Uuid) {
        *self.0.lock().expect("no panic while held").use_entry((sender, uuid)) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_in_one_conversation_until_it_is_given_back() {
        let uuids = Uuids::default();
        let (uuid, here, there) = (Uuid::new_v4(), ConversationId(1), ConversationId(2));
        assert_eq!(uuids.claim(UserId(1), uuid, here), Use::New);
        assert_eq!(uuids.claim(UserId(1), uuid, here), Use::Known);
        assert_eq!(uuids.claim(UserId(1), uuid, there), Use::Elsewhere);
        assert_eq!(uuids.claim(UserId(2), uuid, there), Use::New, "another sender's");
        uuids.give_back(UserId(1), uuid);
        assert_eq!(uuids.claim(UserId(1), uuid, there), Use::New);
    }
}
