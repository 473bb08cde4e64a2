//! What a device sends, and what it does with each frame that it gets.

use std::sync::Arc;

use rand::RngExt;
use serde_json::json;

use super::cursor::{Arrival, Seen};
use super::device::{Device, Pending};
use super::mutant::{Mutant, is_planted};
use super::presence::OfflineTold;
use crate::loadgen::body::Tag;
use crate::loadgen::ledger::Kind;
use crate::loadgen::recorder::Path;
use crate::loadgen::run::{Consequence, LATE_ACK_US, Run};
use crate::loadgen::stats::add;
use crate::protocol::api::ConversationKind;
use crate::protocol::frames::{AckFrame, ErrorFrame, HeadFrame, PresenceFrame, PresenceState, SendFrame};
use crate::protocol::{ClientFrame, MessageFrame, ServerFrame};

/// Time without an answer after which a message is sent again; it doubles with each try.
const RETRY_WAIT_US: u64 = 5_000_000;

/// Longest time between two tries.
const RETRY_WAIT_MAX_US: u64 = 20_000_000;

/// Wait after an error that names none.
const ERROR_WAIT_US: u64 = 1_000_000;

/// The kind of every message of a run.
pub(in crate::loadgen) const MESSAGE_KIND: &str = "text";

impl Device {
    // ---- sending

    pub(super) fn on_send_due(&mut self, conversation: u32, intended_us: u64, bytes: u32) {
        let run = self.run.id;
        let at = self.find(conversation).expect("a device is asked to send where its user is a member");
        if self.is_finishing() {
            return add(&self.run.stats.unresolved, 1);
        }
        let own = &mut self.conversations[at];
        own.counter += 1;
        let tag = Tag { run, conversation, client: self.client, counter: own.counter, intended_us, sent_us: 0 };
        self.pending.push(Pending { tag, bytes, tries: 0, next_try_us: 0 });
        // From here on the target is at work, or keeps the device waiting.
        self.run.recorder.late_by(self.now_us.saturating_sub(intended_us));
    }

    /// Writes what is due of the messages without an answer, in the order in which they were due at first.
    pub(super) fn send_pending(&mut self) {
        let now = self.now_us;
        let mut rng = None;
        let mut frames = Vec::new();
        let mut is_again = false;
        for at in 0..self.pending.len() {
            if self.pending[at].next_try_us > now {
                continue;
            }
            let is_retry = self.pending[at].tries > 0;
            let jitter = if is_retry { rng.get_or_insert_with(|| self.rng()).random_range(0.0..0.25) } else { 0.0 };
            let pending = &mut self.pending[at];
            is_again |= is_retry;
            let wait_us = (RETRY_WAIT_US << pending.tries.min(4)).min(RETRY_WAIT_MAX_US);
            pending.next_try_us = now + (wait_us as f64 * (1.0 + jitter)) as u64;
            pending.tries = pending.tries.saturating_add(1);
            if pending.tag.sent_us == 0 {
                pending.tag.sent_us = now;
            }
            frames.push((pending.tag, pending.bytes, is_retry));
        }
        for (tag, bytes, is_retry) in frames {
            self.send(&tag, bytes, is_retry);
        }
        if is_again {
            self.doubt_connection(now.saturating_sub(RETRY_WAIT_US));
        }
    }

    fn send(&mut self, tag: &Tag, bytes: u32, is_retry: bool) {
        add(&self.run.stats.sent, u64::from(!is_retry));
        let conversation = self.run.world.conversations[tag.conversation as usize].id;
        let uuid = if is_retry && is_planted(Mutant::RetryUnderNewUuid) {
            Tag { counter: tag.counter | 1 << 30, ..*tag }.uuid()
        } else {
            tag.uuid()
        };
        self.run.note("send", || {
            let (user, device) = self.name();
            json!({"conv": conversation, "user": user, "uuid": uuid, "dev": device, "try": u32::from(is_retry)})
        });
        self.push(ClientFrame::Send(SendFrame {
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
        // Not there: the answer to a retry of something answered already.
        let Some(at) = self.find_pending(ack.uuid) else { return };
        let tag = self.pending.remove(at).tag;
        let run = Arc::clone(&self.run);
        add(&run.stats.acked, 1);
        let took_us = self.now_us.saturating_sub(tag.intended_us);
        run.recorder.record(self.client, Path::Ack, took_us);
        if took_us > LATE_ACK_US {
            run.consequence(Consequence::LateAck, self.now_us);
        }
        run.note("ack", || {
            let (user, device) = self.name();
            json!({"conv": ack.conversation, "user": user, "uuid": ack.uuid, "id": ack.id, "dev": device})
        });
        run.ledger.on_ack(&tag, ack.id);
        let Some(at) = self.find(tag.conversation) else { return };
        self.conversations[at].note_acked(tag.counter);
        self.on_seen(at, Seen { id: ack.id.0, tag, is_live: true });
    }

    fn on_error(&mut self, error: &ErrorFrame) {
        let run = Arc::clone(&self.run);
        let found = error.uuid.and_then(|uuid| Some((uuid, self.find_pending(uuid)?)));
        if error.retry_after_ms.is_some() {
            add(&run.stats.throttled, 1);
        } else {
            run.stats.error(error.code.as_str());
        }
        let Some((uuid, at)) = found else { return };
        if error.code.is_retryable() {
            run.consequence(Consequence::Error, self.now_us);
            let asked_us = error.retry_after_ms.map_or(ERROR_WAIT_US, |ms| ms.saturating_mul(1_000));
            let tries = self.pending[at].tries.min(4);
            let spread_us = (ERROR_WAIT_US << tries).min(RETRY_WAIT_MAX_US) / 4;
            let wait_us = asked_us.saturating_add(self.rng().random_range(0..=spread_us));
            self.pending[at].next_try_us = self.now_us.saturating_add(wait_us);
            return self.count_retry();
        }
        let tag = self.pending.remove(at).tag;
        add(&run.stats.refused, 1);
        run.recorder.record(self.client, Path::Ack, self.now_us.saturating_sub(tag.intended_us));
        let definite = error.code.is_definite();
        run.note("fail", || json!({"uuid": uuid, "code": error.code, "definite": definite}));
    }

    /// Messages that have no answer at the end never get one. Each counts as having waited until now.
    pub(super) fn abandon_pending(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        add(&self.run.stats.unresolved, pending.len() as u64);
        for Pending { tag, .. } in pending {
            self.run.recorder.record(self.client, Path::Ack, self.now_us.saturating_sub(tag.intended_us));
        }
    }

    // ---- receiving

    pub(super) fn on_frame(&mut self, frame: ServerFrame) {
        add(&self.run.stats.frames, 1);
        match frame {
            ServerFrame::Message(message) => self.on_message(&message),
            ServerFrame::Ack(ack) => self.on_ack(&ack),
            ServerFrame::Error(error) => self.on_error(&error),
            ServerFrame::Presence(presence) => self.on_presence(&presence),
            ServerFrame::Head(head) => self.on_head(&head),
            ServerFrame::Moved(moved) => self.on_moved(moved.retry_after_ms),
            ServerFrame::Welcome(_) | ServerFrame::Receipt(_) | ServerFrame::Typing(_) | ServerFrame::Pong => {}
        }
    }

    fn on_head(&mut self, head: &HeadFrame) {
        let found = self.run.world.conversation_index(head.conversation).and_then(|c| self.find(c));
        let Some(at) = found else { return };
        let conversation = &mut self.conversations[at];
        if head.id.0 > conversation.cursor.upto() {
            let behind = conversation.behind();
            behind.head = behind.head.max(head.id.0);
            behind.announced = behind.announced.max(head.id.0);
            if !behind.is_syncing {
                self.start_sync(at);
            }
        }
    }

    /// Reads the tag of a message and checks that the frame around it fits; a body that was changed is a violation.
    pub(super) fn check(&self, message: &MessageFrame, is_live: bool) -> Option<Seen> {
        let world = &self.run.world;
        let fits = |tag: &Tag| {
            let sender = world.clients.get(tag.client as usize).map(|c| world.users[c.user as usize].id);
            let conversation = world.conversations.get(tag.conversation as usize).map(|c| c.id);
            conversation == Some(message.conversation)
                && sender == Some(message.sender)
                && tag.run == self.run.id
                && message.kind == MESSAGE_KIND
                && message.reply_to.is_none()
        };
        if let Some(tag) = Tag::of(message).filter(fits) {
            Some(Seen { id: message.id.0, tag, is_live })
        } else {
            self.run.ledger.on_altered(|| {
                format!("{} id {} came to client {} changed", message.conversation, message.id, self.client)
            });
            None
        }
    }

    fn on_message(&mut self, message: &MessageFrame) {
        self.run.note("wire", || {
            let (user, device) = self.name();
            let (conversation, id) = (message.conversation, message.id);
            json!({"user": user, "dev": device, "conv": conversation, "uuid": message.uuid, "id": id, "from": message.sender})
        });
        let Some(seen) = self.check(message, true) else { return };
        let Some(at) = self.find(seen.tag.conversation) else {
            let client = self.client;
            self.run.ledger.violation(Kind::Leaked, || {
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
            Arrival::Held if is_planted(Mutant::HoleIgnored) => show.push(seen),
            Arrival::Held => self.sync_later(at),
            Arrival::Repeated => {
                if seen.tag.client != self.client {
                    add(&self.run.stats.repeated_on_wire, 1);
                }
            }
        }
        self.show(at, &show);
        self.rest(at);
    }

    /// Shows messages to the person: the ledger checks them, the recorder times them.
    pub(super) fn show(&mut self, at: usize, messages: &[Seen]) {
        let run = Arc::clone(&self.run);
        let mut delivered = 0;
        for seen in messages {
            let (newest, is_first_time) = self.conversations[at].note_shown(seen);
            let was_there = run.ledger.on_shown(&run.world, self.user, seen, newest, is_first_time);
            run.note("recv", || {
                let (user, device) = self.name();
                let conversation = run.world.conversations[seen.tag.conversation as usize].id;
                json!({"user": user, "dev": device, "conv": conversation, "uuid": seen.tag.uuid(), "id": seen.id})
            });
            if seen.tag.client != self.client {
                delivered += 1;
                self.time_delivery(&run, seen, was_there);
            }
        }
        add(&run.stats.delivered, delivered);
    }

    /// Records how long a message took to this device, on the path that it went. `was_there`: as a member, when it was sent.
    fn time_delivery(&self, run: &Run, seen: &Seen, was_there: bool) {
        let tag = &seen.tag;
        let took = self.now_us.saturating_sub(tag.intended_us);
        // A device that was cut against the plan was there all the same.
        if !was_there || self.there_since_us == 0 || self.there_since_us > tag.intended_us {
            return run.recorder.record(self.client, Path::DeliveryAfterReconnect, took);
        }
        if self.is_slow_reader() {
            return run.recorder.record(self.client, Path::DeliverySlowReader, took);
        }
        let spec = &run.world.conversations[tag.conversation as usize];
        let path = if spec.is_large() {
            Path::DeliveryChannel
        } else if spec.kind == ConversationKind::Group {
            Path::DeliveryGroup
        } else if run.places.are_together(self.client, tag.client) {
            Path::DeliverySameServer
        } else {
            Path::DeliveryOtherServer
        };
        run.recorder.record(self.client, path, took);
    }

    fn on_presence(&self, frame: &PresenceFrame) {
        let Some(user) = self.run.world.user_index(frame.user) else { return };
        let now = self.now_us;
        self.run.note("pres", || json!({"by": self.name().0, "user": frame.user, "state": frame.state}));
        let presence = &self.run.presence[user as usize];
        match frame.state {
            PresenceState::Online => {
                if let Some(us) = presence.online_told(self.opened_us, now) {
                    self.run.recorder.record(self.client, Path::PresenceOnline, us);
                }
            }
            PresenceState::Offline => match presence.offline_told(now) {
                OfflineTold::InTime(us) => self.run.recorder.record(self.client, Path::PresenceOffline, us),
                OfflineTold::Wrong(us) => self.run.ledger.violation(Kind::PresenceWrong, || {
                    format!("{} was told offline {:.1} s after the last beat", frame.user, us as f64 / 1e6)
                }),
            },
        }
    }
}
