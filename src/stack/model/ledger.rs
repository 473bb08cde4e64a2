//! What was done and what came of it, in the order in which it happened.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio::sync::mpsc;
use uuid::Uuid;

use super::schedule::user_of;
use crate::protocol::frames::PresenceState;
use crate::protocol::{ClientFrame, MessageFrame, ServerFrame, SessionId, UserId};
use crate::runtime::clock;

/// How long a right that ended may still be of use. Source: invariant I13, 5 s; and a moment for what is on its way.
const VOID_WITHIN_MS: u64 = 5_500;

/// How long what is written already may take to its client.
const ON_ITS_WAY_MS: u64 = 100;

/// A point in the order of everything that happened.
pub(super) type Moment = u64;

/// What a line is told.
pub(super) enum Word {
    Say(ClientFrame),
    /// Ends without a word.
    Cut,
    Goodbye,
}

pub(super) struct Token {
    pub(super) text: String,
    pub(super) device: usize,
    pub(super) expires_ms: u64,
    /// When the logout was answered, in milliseconds since 1970.
    pub(super) logged_out_ms: Option<u64>,
}

impl Token {
    /// When it ended, or will.
    pub(super) fn ends_ms(&self) -> u64 {
        self.logged_out_ms.unwrap_or(u64::MAX).min(self.expires_ms)
    }
}

/// A message or a head that came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard {
    pub(super) at: Moment,
    pub(super) conversation: usize,
    pub(super) id: u64,
    /// Of a message; a head has none.
    pub(super) uuid: Option<Uuid>,
}

/// A socket that was welcomed.
pub(super) struct Sock {
    pub(super) device: usize,
    pub(super) token: usize,
    pub(super) server: String,
    /// Which of all servers that ever were: names come again.
    pub(super) life: usize,
    /// Whether the model cut it.
    pub(super) was_cut: bool,
    pub(super) session: SessionId,
    pub(super) words: mpsc::Sender<Word>,
    pub(super) ended: Option<(Moment, Option<u16>)>,
    pub(super) heard: Vec<Heard>,
    /// When it last asked for the channel's heads; none after it asked for their end.
    pub(super) subscribed: Option<Moment>,
    /// What it was told of its friends.
    pub(super) told: BTreeMap<UserId, PresenceState>,
}

pub(super) struct Sent {
    pub(super) user: usize,
    pub(super) conversation: usize,
    pub(super) body: String,
    /// When it was first written to a socket.
    pub(super) written: Moment,
    pub(super) is_acked: bool,
    /// The ids that anybody gave it.
    pub(super) ids: BTreeSet<u64>,
}

/// A change of a member: what it is, and whether it was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    RemoveAsked,
    Removed,
    AddAsked,
    Added,
}

#[derive(Default)]
pub(super) struct Ledger {
    clock: Moment,
    pub(super) tokens: Vec<Token>,
    /// The newest token of each device.
    pub(super) token_of: HashMap<usize, usize>,
    pub(super) sockets: Vec<Sock>,
    pub(super) sent: HashMap<Uuid, Sent>,
    /// By conversation and user.
    pub(super) changes: HashMap<(usize, usize), Vec<(Moment, Change)>>,
    /// When the newest change of a member was answered, in milliseconds since 1970.
    changed_ms: HashMap<(usize, usize), u64>,
    /// Members with a change under way.
    pub(super) changing: BTreeSet<(usize, usize)>,
    pub(super) faults: Vec<String>,
    /// What happened, for people.
    pub(super) journal: Vec<String>,
}

impl Ledger {
    pub(super) fn tick(&mut self) -> Moment {
        self.clock += 1;
        self.clock
    }

    pub(super) fn note_change(&mut self, place: (usize, usize), change: Change) {
        let at = self.tick();
        self.changed_ms.insert(place, clock::unix_ms());
        self.changes.entry(place).or_default().push((at, change));
    }

    /// Whether a user is a member, as far as the last change that was answered says; `None` while that is open.
    pub(super) fn is_member(&self, conversation: usize, user: usize) -> Option<bool> {
        match self.changes.get(&(conversation, user)).and_then(|changes| changes.last()) {
            None | Some((_, Change::Added)) => Some(true),
            Some((_, Change::Removed)) => Some(false),
            Some(_) => None,
        }
    }

    /// The last change of a member before a moment.
    fn change_before(&self, place: (usize, usize), at: Moment) -> Option<(Moment, Change)> {
        self.changes.get(&place)?.iter().rev().find(|(then, _)| *then < at).copied()
    }

    /// Whether what was written at a moment may be heard by a user at a later one: it may not where the user was removed
    /// before the first and nobody wanted the user back before the second.
    pub(super) fn may_hear(&self, place: (usize, usize), written: Moment, heard: Moment) -> bool {
        let Some((removed, Change::Removed)) = self.change_before(place, written) else { return true };
        let changes = self.changes.get(&place).into_iter().flatten();
        changes.into_iter().any(|(then, change)| *change == Change::AddAsked && (removed..heard).contains(then))
    }

    /// Whether a user is no member, as an answer said a while ago.
    fn has_been_out(&self, place: (usize, usize), now_ms: u64) -> bool {
        let since_ms = self.changed_ms.get(&place).copied().unwrap_or(now_ms);
        self.is_member(place.0, place.1) == Some(false) && since_ms + ON_ITS_WAY_MS < now_ms
    }

    /// The newest socket of a device that has not ended.
    pub(super) fn newest(&self, device: usize) -> Option<usize> {
        self.sockets.iter().rposition(|sock| sock.device == device && sock.ended.is_none())
    }

    pub(super) fn live(&self) -> impl Iterator<Item = (usize, &Sock)> {
        self.sockets.iter().enumerate().filter(|(_, sock)| sock.ended.is_none())
    }

    pub(super) fn fault(&mut self, text: String) {
        self.journal.push(format!("    FAULT {text}"));
        self.faults.push(text);
    }

    pub(super) fn take_faults(&mut self, faults: Vec<String>) {
        for fault in faults {
            self.fault(fault);
        }
    }

    pub(super) fn ended(&mut self, socket: usize, code: Option<u16>) {
        let at = self.tick();
        if self.sockets[socket].ended.is_none() {
            self.sockets[socket].ended = Some((at, code));
        }
    }

    /// Takes what a socket heard; `conversation` finds the model's number of one.
    pub(super) fn hear(
        &mut self,
        socket: usize,
        frame: ServerFrame,
        now_ms: u64,
        conversation: impl Fn(crate::protocol::ConversationId) -> Option<usize>,
    ) {
        let at = self.tick();
        let (device, token) = (self.sockets[socket].device, self.sockets[socket].token);
        let heard = match &frame {
            ServerFrame::Message(message) => {
                self.check_message(message, conversation(message.conversation));
                Some((message.conversation, message.id.0, Some(message.uuid)))
            }
            ServerFrame::Head(head) => Some((head.conversation, head.id.0, None)),
            _ => None,
        };
        if let Some((of, id, uuid)) = heard
            && let Some(conversation) = conversation(of)
        {
            self.sockets[socket].heard.push(Heard { at, conversation, id, uuid });
            let written = uuid.and_then(|uuid| self.sent.get(&uuid)).map(|sent| sent.written);
            if written.is_some_and(|written| !self.may_hear((conversation, user_of(device)), written, at)) {
                self.fault(format!(
                    "socket {socket} of device {device} got message {id} of {conversation}, sent after its user's removal"
                ));
            }
            if self.has_been_out((conversation, user_of(device)), now_ms) {
                self.fault(format!(
                    "socket {socket} of device {device} got {id} of {conversation} after its user's removal was answered"
                ));
            }
            if self.tokens[token].ends_ms().saturating_add(VOID_WITHIN_MS) < now_ms {
                self.fault(format!("socket {socket} of device {device} got something long after its token ended"));
            }
        }
        match frame {
            ServerFrame::Ack(ack) => {
                let Some(sent) = self.sent.get_mut(&ack.uuid) else { return };
                sent.is_acked = true;
                sent.ids.insert(ack.id.0);
                let place = (sent.conversation, sent.user);
                if self.has_been_out(place, now_ms) {
                    self.fault(format!("{} was taken after its sender's removal was answered", ack.uuid));
                }
            }
            ServerFrame::Presence(change) => {
                self.sockets[socket].told.insert(change.user, change.state);
            }
            _ => {}
        }
    }

    /// Holds a message that came, or is stored, against what was sent.
    pub(super) fn check_message(&mut self, message: &MessageFrame, conversation: Option<usize>) {
        match self.sent.get_mut(&message.uuid) {
            Some(sent) if Some(sent.conversation) == conversation && sent.body == message.body => {
                sent.ids.insert(message.id.0);
            }
            Some(_) => self.fault(format!("message {} is not as it was sent", message.uuid)),
            None => self.fault(format!("nobody sent message {}", message.uuid)),
        }
    }
}
