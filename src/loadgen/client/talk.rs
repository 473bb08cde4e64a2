//! What a device sends, and what it does with each frame that it gets.

use std::sync::Arc;

use serde_json::json;

use super::cursor::{Arrival, Seen};
use super::device::{Device, NEVER, Pending};
use super::presence::OfflineTold;
use super::{LATE_ACK_US, Shared, Trouble};
use crate::loadgen::body::Tag;
use crate::loadgen::ledger::Kind;
use crate::loadgen::recorder::{Path, add, sub};
use crate::protocol::api::ConversationKind;
use crate::protocol::frames::{AckFrame, ErrorFrame, HeadFrame, PresenceFrame, PresenceState, SendFrame};
use crate::protocol::{ClientFrame, MessageFrame, ServerFrame};

/// Time without an answer after which a message is sent again.
const RETRY_WAIT_US: u64 = 5_000_000;

impl Device {
    // ---- sending

    pub(super) fn on_send_due(&mut self, conversation: u32, intended_us: u64, bytes: u32) {
        let run = self.shared.run;
        let Some(at) = self.find(conversation) else { return };
        let own = &mut self.conversations[at];
        own.counter += 1;
        let tag = Tag { run, conversation, client: self.client, counter: own.counter, intended_us, sent_us: 0 };
        self.pending.push(Pending { tag, bytes, next_try_us: 0 });
        self.sends_due_us = 0;
        add(&self.shared.stats.pending, 1);
    }

    /// Writes what is due of the messages without an answer, in the order in which they were due at first.
    pub(super) fn send_pending(&mut self) {
        let now = self.now_us;
        let mut next_due_us = NEVER;
        let mut frames = Vec::new();
        for pending in &mut self.pending {
            if pending.next_try_us <= now {
                pending.next_try_us = now + RETRY_WAIT_US;
                let is_first = pending.tag.sent_us == 0;
                if is_first {
                    pending.tag.sent_us = now;
                }
                frames.push((pending.tag, pending.bytes, is_first));
            }
            next_due_us = next_due_us.min(pending.next_try_us);
        }
        self.sends_due_us = next_due_us;
        for (tag, bytes, is_first) in frames {
            self.send(&tag, bytes, is_first);
        }
    }

    fn send(&mut self, tag: &Tag, bytes: u32, is_first: bool) {
        add(&self.shared.stats.sent, u64::from(is_first));
        let (uuid, conversation) = (tag.uuid(), self.shared.world.conversations[tag.conversation as usize].id);
        self.shared.note("send", || {
            let (user, device) = self.name();
            json!({"conv": conversation, "user": user, "uuid": uuid, "dev": device, "try": u32::from(!is_first)})
        });
        self.push(&ClientFrame::Send(SendFrame {
            uuid,
            conversation,
            kind: "text".to_owned(),
            body: tag.body(bytes as usize),
            reply_to: None,
        }));
    }

    /// Where the message of an answer is among those without one. There are rarely more than a few.
    fn find_pending(&self, uuid: uuid::Uuid) -> Option<usize> {
        self.pending.iter().position(|pending| pending.tag.uuid() == uuid)
    }

    fn on_ack(&mut self, ack: &AckFrame) {
        // Not there: the answer to a retry of something answered already.
        let Some(at) = self.find_pending(ack.uuid) else { return };
        let tag = self.pending.remove(at).tag;
        let shared = Arc::clone(&self.shared);
        sub(&shared.stats.pending, 1);
        add(&shared.stats.acked, 1);
        let took_us = self.now_us.saturating_sub(tag.intended_us);
        shared.recorder.acked(self.client, tag.intended_us, tag.sent_us, self.now_us);
        if took_us > LATE_ACK_US {
            shared.trouble(Trouble::LateAck, self.now_us);
        }
        shared.note("ack", || {
            let (user, device) = self.name();
            json!({"conv": ack.conversation, "user": user, "uuid": ack.uuid, "id": ack.id, "dev": device})
        });
        shared.ledger.on_ack(&tag, ack.id);
        let Some(at) = self.find(tag.conversation) else { return };
        self.conversations[at].note_acked(tag.counter);
        self.on_seen(at, Seen { id: ack.id.0, tag });
    }

    fn on_error(&mut self, error: &ErrorFrame) {
        self.shared.stats.error(error.code.as_str());
        let Some((uuid, at)) = error.uuid.and_then(|uuid| Some((uuid, self.find_pending(uuid)?))) else { return };
        if error.code.is_retryable() {
            self.shared.trouble(Trouble::Error, self.now_us);
            let wait_us = error.retry_after_ms.unwrap_or(1_000) * 1_000;
            self.pending[at].next_try_us = self.now_us + wait_us;
            self.sends_due_us = self.sends_due_us.min(self.now_us + wait_us);
            return;
        }
        self.pending.remove(at);
        sub(&self.shared.stats.pending, 1);
        add(&self.shared.stats.refused, 1);
        let definite = error.code.is_definite();
        self.shared.note("fail", || json!({"uuid": uuid, "code": error.code, "definite": definite}));
    }

    // ---- receiving

    pub(super) fn on_frame(&mut self, frame: ServerFrame) {
        add(&self.shared.stats.frames, 1);
        match frame {
            ServerFrame::Message(message) => self.on_message(&message),
            ServerFrame::Ack(ack) => self.on_ack(&ack),
            ServerFrame::Error(error) => self.on_error(&error),
            ServerFrame::Presence(presence) => self.on_presence(&presence),
            ServerFrame::Head(head) => self.on_head(&head),
            ServerFrame::Welcome(_)
            | ServerFrame::Receipt(_)
            | ServerFrame::Typing(_)
            | ServerFrame::Moved(_)
            | ServerFrame::Pong => {}
        }
    }

    fn on_head(&mut self, head: &HeadFrame) {
        let found = self.shared.world.conversation_index(head.conversation).and_then(|c| self.find(c));
        let Some(at) = found else { return };
        let conversation = &mut self.conversations[at];
        if head.id.0 > conversation.cursor.upto() {
            let behind = conversation.behind();
            behind.head = behind.head.max(head.id.0);
            if !behind.is_syncing {
                self.start_sync(at);
            }
        }
    }

    /// Reads the tag of a message and checks that the frame around it fits; a body that was changed is a violation.
    pub(super) fn check(&self, message: &MessageFrame) -> Option<Seen> {
        let world = &self.shared.world;
        let fits = |tag: &Tag| {
            let sender = world.clients.get(tag.client as usize).map(|c| world.users[c.user as usize].id);
            let conversation = world.conversations.get(tag.conversation as usize).map(|c| c.id);
            conversation == Some(message.conversation) && sender == Some(message.sender) && tag.run == self.shared.run
        };
        if let Some(tag) = Tag::of(message).filter(fits) {
            Some(Seen { id: message.id.0, tag })
        } else {
            self.shared.ledger.on_altered(|| {
                format!("{} id {} came to client {} changed", message.conversation, message.id, self.client)
            });
            None
        }
    }

    fn on_message(&mut self, message: &MessageFrame) {
        self.shared.note("wire", || {
            let (user, device) = self.name();
            let (conversation, id) = (message.conversation, message.id);
            json!({"user": user, "dev": device, "conv": conversation, "uuid": message.uuid, "id": id, "from": message.sender})
        });
        let Some(seen) = self.check(message) else { return };
        let Some(at) = self.find(seen.tag.conversation) else {
            let client = self.client;
            self.shared.ledger.violation(Kind::Leaked, || {
                format!("{} id {} came to client {client}, who was never a member", message.conversation, message.id)
            });
            return;
        };
        self.on_seen(at, seen);
    }

    /// Takes a message that came live, or the device's own that was acknowledged.
    fn on_seen(&mut self, at: usize, seen: Seen) {
        let mut show = Vec::new();
        let conversation = &mut self.conversations[at];
        match conversation.cursor.on_live(seen, &mut show) {
            Arrival::Shown => {}
            Arrival::Held => self.sync_later(at),
            Arrival::Repeated => {
                if seen.tag.client != self.client {
                    add(&self.shared.stats.repeated_on_wire, 1);
                }
            }
        }
        let conversation = &mut self.conversations[at];
        if !conversation.cursor.has_gap() && conversation.sync_due_us().is_some() {
            conversation.behind().sync_due_us = 0;
            conversation.settle();
        }
        self.show(at, &show);
    }

    /// Shows messages to the person: the ledger checks them, the recorder times them.
    pub(super) fn show(&mut self, at: usize, messages: &[Seen]) {
        let shared = Arc::clone(&self.shared);
        for seen in messages {
            let (newest, is_first_time) = self.conversations[at].note_shown(seen);
            let was_there = shared.ledger.on_shown(&shared.world, self.user, seen, newest, is_first_time);
            shared.note("recv", || {
                let (user, device) = self.name();
                let conversation = shared.world.conversations[seen.tag.conversation as usize].id;
                json!({"user": user, "dev": device, "conv": conversation, "uuid": seen.tag.uuid(), "id": seen.id})
            });
            if seen.tag.client != self.client {
                self.time_delivery(&shared, &seen.tag, was_there);
            }
        }
        add(&shared.stats.delivered, messages.len() as u64);
    }

    /// Records how long a message took to this device, on the path that it went. `was_there`: as a member, when it was sent.
    fn time_delivery(&self, shared: &Shared, tag: &Tag, was_there: bool) {
        let record = |path| shared.recorder.delivered(self.client, path, tag.intended_us, tag.sent_us, self.now_us);
        if !was_there || self.opened_us == 0 || self.opened_us > tag.intended_us {
            return record(Path::DeliveryAfterReconnect);
        }
        if self.is_slow_reader() {
            return record(Path::DeliverySlowReader);
        }
        let spec = &shared.world.conversations[tag.conversation as usize];
        let server = |client: u32| shared.mailboxes[client as usize].server();
        let path = if spec.is_large() {
            Path::DeliveryChannel
        } else if spec.kind == ConversationKind::Group {
            Path::DeliveryGroup
        } else if server(self.client) == server(tag.client) {
            Path::DeliverySameServer
        } else {
            Path::DeliveryOtherServer
        };
        record(path);
    }

    fn on_presence(&self, frame: &PresenceFrame) {
        let Some(user) = self.shared.world.user_index(frame.user) else { return };
        let now = self.now_us;
        let record = |path, us| self.shared.recorder.record(self.client, path, now.saturating_sub(us), us);
        self.shared.note("pres", || json!({"by": self.name().0, "user": frame.user, "state": frame.state}));
        let presence = &self.shared.presence[user as usize];
        match frame.state {
            PresenceState::Online => {
                if let Some(us) = presence.online_told(self.opened_us, now) {
                    record(Path::PresenceOnline, us);
                }
            }
            PresenceState::Offline => match presence.offline_told(now) {
                OfflineTold::InTime(us) => record(Path::PresenceOffline, us),
                OfflineTold::Wrong(us) => self.shared.ledger.violation(Kind::PresenceWrong, || {
                    format!("{} was told offline {:.1} s after the last beat", frame.user, us as f64 / 1e6)
                }),
            },
        }
    }
}
