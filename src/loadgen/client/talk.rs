//! What a device sends, and what it does with each frame that it gets.

use std::sync::Arc;

use serde_json::json;

use super::cursor::{Arrival, Seen};
use super::device::{Device, NEVER, Pending};
use super::{LATE_US, Shared, Trouble};
use crate::loadgen::body::Tag;
use crate::loadgen::ledger::{Delivery, Kind, MESSAGE_KIND, Membership, Refusal};
use crate::loadgen::recorder::{Path, add, sub};
use crate::loadgen::scenario::Transport;
use crate::protocol::api::ConversationKind;
use crate::protocol::frames::{AckFrame, ErrorFrame, HeadFrame, PresenceFrame, SendFrame};
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
        self.pending.push(Pending { tag, bytes, open_tries: 0, next_try_us: 0 });
        self.sends_due_us = 0;
        add(&self.shared.stats.pending, 1);
        if self.is_connected() {
            self.shared.recorder.late_by(self.now_us.saturating_sub(intended_us));
        }
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
                pending.open_tries += 1;
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
        if is_first {
            add(&self.shared.stats.sent, 1);
            self.shared.ledger.on_sent(tag);
        }
        let (uuid, conversation) = (tag.uuid(), self.shared.world.conversations[tag.conversation as usize].id);
        self.shared.note("send", || {
            let (user, device) = self.name();
            json!({"conv": conversation, "user": user, "uuid": uuid, "dev": device, "try": u32::from(!is_first)})
        });
        self.push(&ClientFrame::Send(SendFrame {
            uuid,
            conversation,
            kind: MESSAGE_KIND.to_owned(),
            body: tag.body(bytes as usize),
            reply_to: None,
        }));
    }

    /// Where the message of an answer is among those without one. There are rarely more than a few.
    fn find_pending(&self, uuid: uuid::Uuid) -> Option<usize> {
        self.pending.iter().position(|pending| pending.tag.uuid() == uuid)
    }

    fn on_ack(&mut self, ack: &AckFrame) {
        let shared = Arc::clone(&self.shared);
        // Not there: the answer to a retry of something answered already, or to nothing.
        let Some(at) = self.find_pending(ack.uuid) else {
            return shared.ledger.on_other_ack(&shared.world, self.client, ack);
        };
        if !shared.ledger.on_ack(&shared.world, &self.pending[at].tag, ack, self.now_us) {
            return;
        }
        let tag = self.pending.remove(at).tag;
        sub(&shared.stats.pending, 1);
        add(&shared.stats.acked, 1);
        let took_us = self.now_us.saturating_sub(tag.intended_us);
        shared.recorder.record(self.client, Path::Ack, took_us);
        if took_us > LATE_US {
            shared.trouble(Trouble::LateAck, self.now_us);
        }
        shared.note("ack", || {
            let (user, device) = self.name();
            json!({"conv": ack.conversation, "user": user, "uuid": ack.uuid, "id": ack.id, "dev": device})
        });
        let Some(at) = self.find(tag.conversation) else { return };
        self.conversations[at].note_acked(tag.counter);
        self.on_seen(at, Seen::acked(&tag, ack));
    }

    fn on_error(&mut self, error: &ErrorFrame) {
        self.shared.stats.error(error.code.as_str());
        let Some((uuid, at)) = error.uuid.and_then(|uuid| Some((uuid, self.find_pending(uuid)?))) else { return };
        let pending = &mut self.pending[at];
        pending.open_tries = pending.open_tries.saturating_sub(u32::from(error.code.is_definite()));
        if error.code.is_retryable() {
            self.shared.trouble(Trouble::Error, self.now_us);
            let wait_us = error.retry_after_ms.unwrap_or(1_000) * 1_000;
            self.pending[at].next_try_us = self.now_us + wait_us;
            self.sends_due_us = self.sends_due_us.min(self.now_us + wait_us);
            return;
        }
        let Pending { tag, open_tries, .. } = self.pending.remove(at);
        let shared = Arc::clone(&self.shared);
        sub(&shared.stats.pending, 1);
        let refusal = Refusal { code: error.code, has_other_tries: open_tries > 0 };
        let is_explained = shared.ledger.on_refused(&shared.world, &tag, &refusal);
        add(if is_explained { &shared.stats.refused_removed } else { &shared.stats.refused }, 1);
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
            ServerFrame::Receipt(_) => self.shared.ledger.on_unsent_notice("receipt", self.client),
            ServerFrame::Typing(_) => self.shared.ledger.on_unsent_notice("typing notice", self.client),
            ServerFrame::Welcome(_) | ServerFrame::Moved(_) | ServerFrame::Pong => {}
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

    /// Reads a message that came; one that nobody sent, or that was changed, is a violation.
    pub(super) fn check(&self, message: &MessageFrame, is_live: bool) -> Option<Seen> {
        let place = || format!("{} id {} came to client {}", message.conversation, message.id, self.client);
        let tag = self.shared.ledger.read(&self.shared.world, message, place)?;
        Some(Seen { id: message.id.0, tag, at: message.at, is_live })
    }

    fn on_message(&mut self, message: &MessageFrame) {
        self.shared.note("wire", || {
            let (user, device) = self.name();
            let (conversation, id) = (message.conversation, message.id);
            json!({"user": user, "dev": device, "conv": conversation, "uuid": message.uuid, "id": id, "from": message.sender})
        });
        let Some(seen) = self.check(message, true) else { return };
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
        self.show(at, &show, false);
    }

    /// Shows messages to the person: the ledger checks them, the recorder times them.
    /// `is_announced`: whether a `head` frame said that they are there.
    pub(super) fn show(&mut self, at: usize, messages: &[Seen], is_announced: bool) {
        let shared = Arc::clone(&self.shared);
        for seen in messages {
            let (newest, is_first_time) = self.conversations[at].note_shown(seen);
            let membership = shared.ledger.on_shown(&shared.world, self.user, seen, newest, is_first_time);
            shared.note("recv", || {
                let (user, device) = self.name();
                let conversation = shared.world.conversations[seen.tag.conversation as usize].id;
                json!({"user": user, "dev": device, "conv": conversation, "uuid": seen.tag.uuid(), "id": seen.id})
            });
            if seen.tag.client != self.client {
                self.count_delivery(&shared, seen, membership, is_announced);
            }
        }
    }

    /// Records how long a message took to this device, on the path that it went, and whether it came by push.
    fn count_delivery(&self, shared: &Shared, seen: &Seen, membership: Membership, is_announced: bool) {
        add(&shared.stats.delivered, 1);
        let tag = &seen.tag;
        let poll_us = match shared.scenario.transport {
            Transport::Poll => shared.scenario.poll_interval.as_micros() as u64,
            Transport::Websocket | Transport::LongPoll => 0,
        };
        let pause_us = if self.is_slow_reader() { shared.scenario.read_pause.as_micros() as u64 } else { 0 };
        let delivery = Delivery {
            due_us: tag.intended_us,
            sent_us: tag.sent_us,
            shown_us: self.now_us,
            here_since_us: self.here_since_us,
            opened_us: if self.is_connected() { self.opened_us } else { 0 },
            is_catching_up: self.catching_up.is_some(),
            membership,
            came_by_push: seen.is_live || is_announced,
            reads_every_us: poll_us.max(pause_us),
        };
        if let Some(came) = delivery.push() {
            add(&shared.stats.push_expected, 1);
            add(&shared.stats.pushed, u64::from(came));
        }
        let took_us = self.now_us.saturating_sub(tag.intended_us);
        let path = self.delivery_path(shared, tag, &delivery);
        shared.recorder.record(self.client, path, took_us);
        let is_live = !matches!(path, Path::DeliveryAfterReconnect | Path::DeliverySlowReader);
        if is_live && took_us > LATE_US + poll_us {
            shared.trouble(Trouble::LateDelivery, self.now_us);
        }
    }

    fn delivery_path(&self, shared: &Shared, tag: &Tag, delivery: &Delivery) -> Path {
        let spec = &shared.world.conversations[tag.conversation as usize];
        let server = |client: u32| shared.mailboxes[client as usize].server();
        if delivery.is_after_reconnect() {
            Path::DeliveryAfterReconnect
        } else if self.is_slow_reader() {
            Path::DeliverySlowReader
        } else if spec.is_large() {
            Path::DeliveryChannel
        } else if spec.kind == ConversationKind::Group {
            Path::DeliveryGroup
        } else if server(self.client) == server(tag.client) {
            Path::DeliverySameServer
        } else {
            Path::DeliveryOtherServer
        }
    }

    fn on_presence(&self, frame: &PresenceFrame) {
        self.shared.note("pres", || json!({"by": self.name().0, "user": frame.user, "state": frame.state}));
        let shared = &self.shared;
        let notice = (frame.user, frame.state);
        let latency = shared.ledger.on_presence_notice(&shared.world, self.user, notice, self.now_us);
        if let Some((path, took_us)) = latency {
            shared.recorder.record(self.client, path, took_us);
        }
    }
}
