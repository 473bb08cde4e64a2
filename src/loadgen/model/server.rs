//! A chat server in simulated time: ids with holes, commits out of order, pushes, syncs. It keeps every promise, unless a lie is
//! planted.

use std::collections::{BTreeMap, HashMap};

use crate::loadgen::world::World;
use crate::protocol::api::{InboxEntry, MessagesSync};
use crate::protocol::frames::{AckFrame, SendFrame};
use crate::protocol::{MessageFrame, MessageId, UserId};

/// A promise that the server breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lie {
    /// Every 7th message is acknowledged and not stored.
    AckedNotStored,
    /// Every 7th message is stored twice, under two ids.
    StoredTwice,
    /// Every 7th message is pushed with another body than is stored.
    BodyChanged,
    /// Every 7th message is pushed to everybody.
    PushedToAll,
    /// Every 7th message is acknowledged under the next id.
    AckedUnderAnotherId,
    /// Syncs of the user with index 0 leave every 7th id out, and nothing pushes it to that user.
    HiddenFromOne,
}

/// Ids between two lies.
const LIE_EVERY: u64 = 7;

/// What the server keeps of a conversation.
#[derive(Default)]
struct Conversation {
    last_id: u64,
    rows: BTreeMap<u64, MessageFrame>,
    /// Reserved ids that are not committed.
    open: BTreeMap<u64, MessageFrame>,
    ids: HashMap<uuid::Uuid, u64>,
}

/// The server.
pub(super) struct Server {
    conversations: Vec<Conversation>,
    lie: Option<Lie>,
}

/// What became of a `send`.
pub(super) enum Sent {
    /// An id is reserved; the commit comes later.
    Reserved(u64),
    /// It was committed before.
    Known(AckFrame),
    /// Its commit is under way.
    Open,
}

/// What a commit leads to.
pub(super) struct Committed {
    pub(super) ack: AckFrame,
    pub(super) message: MessageFrame,
    /// Whether everybody gets it, member or not.
    pub(super) to_all: bool,
    /// The user index that it is hidden from.
    pub(super) hidden_from: Option<u32>,
}

impl Server {
    pub(super) fn new(conversations: usize, lie: Option<Lie>) -> Self {
        Self { conversations: (0..conversations).map(|_| Conversation::default()).collect(), lie }
    }

    fn lies(&self, lie: Lie, id: u64) -> bool {
        self.lie == Some(lie) && id.is_multiple_of(LIE_EVERY)
    }

    /// Reserves an id, `skip` above the last one: ids have holes.
    pub(super) fn send(&mut self, index: u32, frame: SendFrame, sender: UserId, skip: u64, now_ms: u64) -> Sent {
        let conversation = &mut self.conversations[index as usize];
        if let Some(id) = conversation.ids.get(&frame.uuid) {
            let Some(row) = conversation.rows.get(id) else { return Sent::Open };
            return Sent::Known(ack_of(row));
        }
        conversation.last_id += 1 + skip;
        let id = conversation.last_id;
        conversation.ids.insert(frame.uuid, id);
        let row = MessageFrame {
            conversation: frame.conversation,
            id: MessageId(id),
            uuid: frame.uuid,
            sender,
            kind: frame.kind,
            body: frame.body,
            reply_to: frame.reply_to,
            at: now_ms,
        };
        conversation.open.insert(id, row);
        Sent::Reserved(id)
    }

    /// Stores a reserved message.
    pub(super) fn commit(&mut self, index: u32, id: u64) -> Option<Committed> {
        let lies = |lie| self.lies(lie, id);
        let (unstored, twice) = (lies(Lie::AckedNotStored), lies(Lie::StoredTwice));
        let (changed, other_id) = (lies(Lie::BodyChanged), lies(Lie::AckedUnderAnotherId));
        let (to_all, hidden) = (lies(Lie::PushedToAll), lies(Lie::HiddenFromOne));
        let conversation = &mut self.conversations[index as usize];
        let row = conversation.open.remove(&id)?;
        let mut message = row.clone();
        let mut ack = ack_of(&row);
        if changed {
            message.body = message.body.replace('a', "b");
        }
        if other_id {
            ack.id = MessageId(id + 1);
            conversation.last_id = conversation.last_id.max(id + 1);
        }
        if twice {
            conversation.last_id += 1;
            let again = conversation.last_id;
            conversation.rows.insert(again, MessageFrame { id: MessageId(again), ..row.clone() });
        }
        if !unstored {
            conversation.rows.insert(id, row);
        }
        Some(Committed { ack, message, to_all, hidden_from: hidden.then_some(0) })
    }

    fn stable(&self, index: u32) -> u64 {
        let conversation = &self.conversations[index as usize];
        conversation.open.keys().next().map_or(conversation.last_id, |first| first - 1)
    }

    pub(super) fn sync(&self, index: u32, user: u32, after: u64, limit: usize) -> MessagesSync {
        let rows = self.conversations[index as usize].rows.range(after + 1..);
        let hides = |id: u64| user == 0 && self.lies(Lie::HiddenFromOne, id);
        let mut messages: Vec<MessageFrame> =
            rows.filter(|(id, _)| !hides(**id)).take(limit + 1).map(|(_, row)| row.clone()).collect();
        let has_more = messages.len() > limit;
        messages.truncate(limit);
        MessagesSync { messages, has_more, stable: MessageId(self.stable(index)) }
    }

    pub(super) fn inbox(&self, world: &World, user: u32) -> Vec<InboxEntry> {
        let entry = |index: &u32| {
            let newest = self.conversations[*index as usize].rows.values().next_back()?;
            let conversation = world.conversations[*index as usize].id;
            Some(InboxEntry { conversation, head: newest.id, at: newest.at })
        };
        world.conversations_of(user).iter().filter_map(entry).collect()
    }

    /// Everything that is stored, for the audit.
    pub(super) fn stored(&self, index: u32) -> Vec<MessageFrame> {
        self.conversations[index as usize].rows.values().cloned().collect()
    }
}

fn ack_of(row: &MessageFrame) -> AckFrame {
    AckFrame { uuid: row.uuid, conversation: row.conversation, id: row.id, at: row.at }
}
