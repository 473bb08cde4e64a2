//! What a device writes to the history, for other programs to judge. Nothing of it is made where there is no history.

use std::collections::HashMap;

use serde_json::{Value, json};
use uuid::Uuid;

use super::cursor::Seen;
use super::device::Device;
use crate::loadgen::history::body_hash;
use crate::loadgen::run::history_seconds;
use crate::protocol::api::MessagesSync;
use crate::protocol::frames::{AckFrame, ReceiptFrame, SendFrame, TypingFrame, WelcomeFrame};
use crate::protocol::{ErrorCode, MessageFrame, MessageId, SessionId, UserId};

/// Bodies that are kept until they are shown; what is above a hole for very long is shown without its hash.
const BODIES_MAX: usize = 10_000;

/// What a device keeps for the history's sake.
#[derive(Default)]
pub(super) struct Noted {
    /// The connection that stands, or stood last.
    connection: Option<SessionId>,
    /// Hashes of bodies that were sent or seen and not shown yet, and by whom the frame said they are.
    bodies: HashMap<Uuid, (String, UserId)>,
}

impl Device {
    /// Writes an event with who and where it is.
    fn note_own(&self, event: &'static str, fields: impl FnOnce(Option<SessionId>) -> Value) {
        self.run.note(event, || {
            let (user, device) = self.name();
            let mut line = fields(self.noted.as_ref().and_then(|noted| noted.connection));
            if let Value::Object(fields) = &mut line {
                fields.insert("user".to_owned(), json!(user));
                fields.insert("dev".to_owned(), json!(device));
            }
            line
        });
    }

    /// What is kept for the history; `None` where there is none.
    fn noted(&mut self) -> Option<&mut Noted> {
        self.run.history.as_ref()?;
        Some(self.noted.get_or_insert_default())
    }

    /// Keeps whose a body is and its hash, until it is shown; returns the hash, `None` where there is no history.
    fn keep_body(&mut self, uuid: Uuid, body: &str, from: UserId) -> Option<String> {
        let noted = self.noted()?;
        if noted.bodies.len() >= BODIES_MAX {
            noted.bodies.clear();
        }
        let hash = body_hash(body);
        noted.bodies.insert(uuid, (hash.clone(), from));
        Some(hash)
    }

    pub(super) fn note_connected(&mut self, welcome: &WelcomeFrame) {
        if let Some(noted) = self.noted() {
            noted.connection = Some(welcome.session);
        }
        self.note_own("conn", |connection| json!({"conn": connection, "srv": welcome.server.as_str()}));
        self.run.note("watch", || json!({"user": self.name().0}));
    }

    pub(super) fn note_disconnected(&self, why: &str) {
        self.note_own("disc", |connection| json!({"conn": connection, "why": why}));
        self.run.note("unwatch", || json!({"user": self.name().0}));
    }

    pub(super) fn note_send(&mut self, frame: &SendFrame, is_retry: bool) {
        let from = self.run.world.users[self.user as usize].id;
        let Some(hash) = self.keep_body(frame.uuid, &frame.body, from) else { return };
        self.note_own("send", |connection| {
            json!({"conv": frame.conversation, "uuid": frame.uuid, "conn": connection, "try": u32::from(is_retry),
                   "h": hash})
        });
    }

    /// The same of what a removed member tries to send.
    pub(super) fn note_probe(&mut self, frame: &SendFrame) {
        let from = self.run.world.users[self.user as usize].id;
        let Some(hash) = self.keep_body(frame.uuid, &frame.body, from) else { return };
        self.note_own("send", |connection| {
            json!({"conv": frame.conversation, "uuid": frame.uuid, "conn": connection, "try": 0, "h": hash, "probe": true})
        });
    }

    pub(super) fn note_ack(&self, ack: &AckFrame) {
        self.note_own(
            "ack",
            |connection| json!({"conv": ack.conversation, "uuid": ack.uuid, "id": ack.id, "conn": connection}),
        );
    }

    pub(super) fn note_refused(&self, uuid: Uuid, code: ErrorCode) {
        self.run.note("fail", || json!({"uuid": uuid, "code": code, "definite": code.is_definite()}));
    }

    pub(super) fn note_wire(&mut self, message: &MessageFrame) {
        let MessageFrame { conversation, id, uuid, sender, body, .. } = message;
        let Some(hash) = self.keep_body(*uuid, body, *sender) else { return };
        self.note_own("wire", |connection| {
            json!({"conv": conversation, "uuid": uuid, "id": id, "conn": connection, "from": sender, "h": hash})
        });
    }

    pub(super) fn note_shown(&mut self, seen: &Seen) {
        let uuid = seen.tag.uuid();
        let body = self.noted.as_mut().and_then(|noted| noted.bodies.remove(&uuid));
        self.note_own("recv", |connection| {
            let conversation = self.run.world.conversations[seen.tag.conversation as usize].id;
            let mut line = json!({"conv": conversation, "uuid": uuid, "id": seen.id, "conn": connection});
            if let Some((hash, from)) = body {
                line["h"] = json!(hash);
                line["from"] = json!(from);
            }
            line
        });
    }

    pub(super) fn note_receipt(&self, frame: &ReceiptFrame) {
        self.run.note("receipt", || {
            json!({"user": frame.user, "conv": frame.conversation, "kind": frame.status, "upto": frame.upto,
                   "by": self.name().0})
        });
    }

    pub(super) fn note_typing(&self, frame: &TypingFrame) {
        self.run.note("typing", || json!({"user": frame.user, "conv": frame.conversation, "by": self.name().0}));
    }

    /// An answer of a sync, up to where it is complete: rows above the settled mark may have holes between them, and are told
    /// when they are shown.
    pub(super) fn note_sync(&mut self, at: usize, after: u64, started_us: u64, answer: &MessagesSync) {
        let upto = complete_upto(after, answer);
        let mut rows = Vec::new();
        for MessageFrame { id, uuid, body, sender, .. } in &answer.messages {
            let Some(hash) = self.keep_body(*uuid, body, *sender) else { return };
            if *id <= upto {
                rows.push(json!([id, uuid, hash]));
            }
        }
        self.note_own("sync", |_| {
            let conversation = self.run.world.conversations[self.conversations[at].index as usize].id;
            json!({"conv": conversation, "after": after, "msgs": rows, "t0": history_seconds(started_us), "upto": upto,
                   "vis": false})
        });
    }
}

/// Up to which id an answer lists everything that there will ever be.
fn complete_upto(after: u64, answer: &MessagesSync) -> MessageId {
    let listed =
        if answer.has_more { answer.messages.last().map_or(MessageId(after), |m| m.id) } else { answer.stable };
    listed.min(answer.stable).max(MessageId(after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ConversationId;

    #[test]
    fn an_answer_is_complete_up_to_what_is_listed_and_settled() {
        let message = |id| MessageFrame {
            conversation: ConversationId(1),
            id: MessageId(id),
            uuid: Uuid::new_v4(),
            sender: UserId(1),
            kind: "text".to_owned(),
            body: String::new(),
            reply_to: None,
            at: 0,
        };
        let answer = |ids: &[u64], has_more, stable| MessagesSync {
            messages: ids.iter().copied().map(message).collect(),
            has_more,
            stable: MessageId(stable),
        };
        for (after, answer, upto) in [
            (0, answer(&[1, 2, 3], false, 3), 3),
            (0, answer(&[1, 2, 5], false, 3), 3),
            (0, answer(&[1, 2], true, 9), 2),
            (0, answer(&[1, 4], true, 3), 3),
            (5, answer(&[], false, 5), 5),
            (5, answer(&[7], false, 4), 5),
        ] {
            assert_eq!(complete_upto(after, &answer), MessageId(upto), "{answer:?}");
        }
    }
}
