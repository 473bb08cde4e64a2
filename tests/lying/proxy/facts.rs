//! What really happened, as the proxy saw it pass.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use chatctl::protocol::api::{AddMembers, Conversation, LoggedIn, MadeAccounts, NewConversation, UserRef};
use chatctl::protocol::frames::AckFrame;
use chatctl::protocol::{ConversationId, DeviceName, MessageId, UserId};
use chatctl::runtime::clock;
use uuid::Uuid;

use super::http::{Answer, Call, Endpoint};

/// A device and its user.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Who {
    pub(crate) user: UserId,
    pub(crate) device: DeviceName,
}

/// A conversation.
#[derive(Debug, Default)]
pub(crate) struct Room {
    pub(crate) members: BTreeSet<UserId>,
    owner: Option<UserId>,
    /// When removals were answered, by user, until the user is added again.
    removed_us: HashMap<UserId, u64>,
}

/// A message that a client sent.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) by: Who,
    pub(crate) first_us: u64,
    pub(crate) last_us: u64,
}

/// What really happened.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    tokens: HashMap<String, Who>,
    devices: BTreeSet<Who>,
    /// Those of each device's first login.
    first_tokens: HashSet<String>,
    rooms: BTreeMap<ConversationId, Room>,
    friends: BTreeSet<(UserId, UserId)>,
    sent: HashMap<Uuid, Sent>,
    /// Ids that the stack gave.
    acked: HashMap<Uuid, (ConversationId, MessageId)>,
    /// When ACKs went to the client.
    acked_us: HashMap<Uuid, u64>,
    first_beat_us: HashMap<UserId, u64>,
    first_welcome_us: HashMap<UserId, u64>,
}

impl Facts {
    // ---- what passes

    /// A call goes to the stack.
    pub(super) fn before(&mut self, call: &Call) {
        if let Endpoint::AddMembers(conversation) = call.api {
            let room = self.rooms.entry(conversation).or_default();
            for user in serde_json::from_slice::<AddMembers>(&call.body).map(|b| b.members).unwrap_or_default() {
                room.removed_us.remove(&user);
                room.members.insert(user);
            }
        }
    }

    /// The stack has answered a call.
    pub(super) fn after(&mut self, call: &Call, answer: &Answer) {
        match call.api {
            Endpoint::Login => answer.read().into_iter().for_each(|login| self.logged_in(&login)),
            Endpoint::Accounts => {
                let made = answer.read::<MadeAccounts>();
                made.into_iter().flat_map(|m| m.accounts).flatten().for_each(|login| self.logged_in(&login));
            }
            Endpoint::AddFriend if answer.is_good() => {
                if let (Some(who), Ok(friend)) = (&call.who, serde_json::from_slice::<UserRef>(&call.body)) {
                    self.friends.insert((who.user, friend.user));
                    self.friends.insert((friend.user, who.user));
                }
            }
            Endpoint::NewConversation => {
                let new = serde_json::from_slice::<NewConversation>(&call.body).ok();
                if let (Some(made), Some(new)) = (answer.read::<Conversation>(), new) {
                    let room = self.rooms.entry(made.conversation).or_default();
                    room.owner = Some(made.owner);
                    room.members.insert(made.owner);
                    room.members.extend(new.members);
                }
            }
            Endpoint::RemoveMember(conversation, user) if answer.is_good() => {
                let room = self.rooms.entry(conversation).or_default();
                room.members.remove(&user);
                room.removed_us.insert(user, clock::now_us());
            }
            _ => {}
        }
    }

    fn logged_in(&mut self, login: &LoggedIn) {
        let who = Who { user: login.user, device: login.device.clone() };
        if self.devices.insert(who.clone()) {
            self.first_tokens.insert(login.token.clone());
        }
        self.tokens.insert(login.token.clone(), who);
    }

    pub(super) fn welcomed(&mut self, who: &Who) {
        self.first_welcome_us.entry(who.user).or_insert_with(clock::now_us);
    }

    pub(super) fn beat(&mut self, who: &Who) {
        self.first_beat_us.entry(who.user).or_insert_with(clock::now_us);
    }

    pub(super) fn sends(&mut self, who: &Who, uuid: Uuid) {
        let now_us = clock::now_us();
        let sent = Sent { by: who.clone(), first_us: now_us, last_us: now_us };
        self.sent.entry(uuid).or_insert(sent).last_us = now_us;
    }

    /// The stack acknowledged a message.
    pub(super) fn acks(&mut self, ack: &AckFrame) {
        self.acked.entry(ack.uuid).or_insert((ack.conversation, ack.id));
    }

    /// An ACK goes to the client.
    pub(super) fn told_ack(&mut self, uuid: Uuid) {
        self.acked_us.entry(uuid).or_insert_with(clock::now_us);
    }

    // ---- what is known

    pub(super) fn who(&self, token: &str) -> Option<Who> {
        self.tokens.get(token).cloned()
    }

    /// A token of a user.
    pub(crate) fn token_of(&self, user: UserId) -> Option<String> {
        self.tokens.iter().find(|(_, who)| who.user == user).map(|(token, _)| token.clone())
    }

    /// Whether a token is of a device's first login.
    pub(crate) fn is_first_token(&self, token: &str) -> bool {
        self.first_tokens.contains(token)
    }

    pub(crate) fn devices(&self) -> &BTreeSet<Who> {
        &self.devices
    }

    pub(crate) fn rooms(&self) -> &BTreeMap<ConversationId, Room> {
        &self.rooms
    }

    pub(crate) fn is_member(&self, conversation: ConversationId, user: UserId) -> bool {
        self.rooms.get(&conversation).is_some_and(|room| room.members.contains(&user))
    }

    pub(crate) fn is_owner(&self, conversation: ConversationId, user: UserId) -> bool {
        self.owner(conversation) == Some(user)
    }

    pub(crate) fn owner(&self, conversation: ConversationId) -> Option<UserId> {
        self.rooms.get(&conversation)?.owner
    }

    /// Users who are no members now, with when their removal was answered.
    pub(crate) fn removed(&self, conversation: ConversationId) -> Vec<(UserId, u64)> {
        let room = self.rooms.get(&conversation);
        room.map(|room| room.removed_us.iter().map(|(user, us)| (*user, *us)).collect()).unwrap_or_default()
    }

    /// Some user who is no member, neither now nor before.
    pub(crate) fn stranger_to(&self, conversation: ConversationId) -> Option<UserId> {
        let room = self.rooms.get(&conversation)?;
        let knows = |user: &UserId| room.members.contains(user) || room.removed_us.contains_key(user);
        self.devices.iter().map(|who| who.user).find(|user| !knows(user))
    }

    /// Some other conversation that a user is in.
    pub(crate) fn other_room_of(&self, user: UserId, conversation: ConversationId) -> Option<ConversationId> {
        let mut rooms = self.rooms.iter().filter(|(_, room)| room.members.contains(&user));
        rooms.find(|(c, _)| **c != conversation).map(|(c, _)| *c)
    }

    pub(crate) fn are_friends(&self, a: UserId, b: UserId) -> bool {
        self.friends.contains(&(a, b))
    }

    pub(crate) fn friends(&self) -> &BTreeSet<(UserId, UserId)> {
        &self.friends
    }

    pub(crate) fn sent(&self, uuid: Uuid) -> Option<Sent> {
        self.sent.get(&uuid).cloned()
    }

    /// What the stack acknowledged in a conversation.
    pub(crate) fn acked_in(&self, conversation: ConversationId) -> impl Iterator<Item = (Uuid, MessageId)> {
        self.acked.iter().filter(move |(_, ack)| ack.0 == conversation).map(|(uuid, ack)| (*uuid, ack.1))
    }

    /// When the client got the ACK.
    pub(crate) fn acked_us(&self, uuid: Uuid) -> Option<u64> {
        self.acked_us.get(&uuid).copied()
    }

    pub(crate) fn has_sent(&self, user: UserId) -> bool {
        self.sent.values().any(|sent| sent.by.user == user)
    }

    pub(crate) fn first_beat_us(&self, user: UserId) -> Option<u64> {
        self.first_beat_us.get(&user).copied()
    }

    pub(crate) fn first_welcome_us(&self, user: UserId) -> Option<u64> {
        self.first_welcome_us.get(&user).copied()
    }
}
