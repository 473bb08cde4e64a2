//! What a device sends, and what it does with each frame that it gets.

use std::sync::Arc;

use rand::RngExt;
use serde_json::json;

use super::cursor::{Arrival, Seen};
use super::device::Device;
use super::mutant::{Mutant, is_planted};
use super::pending::Pending;
use crate::loadgen::body::Tag;
use crate::loadgen::fault_track::Consequence;
use crate::loadgen::ledger::{Delivery, Kind, MESSAGE_KIND, Membership, MessageCopy, Refusal, device};
use crate::loadgen::recorder::LagOf;
use crate::loadgen::run::{LATE_US, Run};
use crate::loadgen::scenario::Transport;
use crate::loadgen::stats::add;
use crate::protocol::api::ConversationKind;
use crate::protocol::frames::{AckFrame, ConversationChangeFrame, ErrorFrame, HeadFrame, PresenceFrame, SendFrame};
use crate::protocol::{ClientFrame, ConversationId, MessageFrame, ServerFrame};
use crate::telemetry::LatencyPath;

/// Time without an answer after which a message is sent again; it doubles with each try.
const RETRY_WAIT_US: u64 = 5_000_000;

/// Longest time between two tries.
const RETRY_WAIT_MAX_US: u64 = 20_000_000;

/// The fetch that brought messages; of what came live, nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Fetched {
    /// The newest id of which a `head` of a large channel had told.
    pub(super) announced: u64,
    /// What it waited for the generator, in µs.
    pub(super) lag_us: u64,
}

/// Wait after an error that names none.
const ERROR_WAIT_US: u64 = 1_000_000;

impl Device {
    // ---- sending

    pub(super) fn on_send_due(&mut self, conversation: u32, intended_us: u64, bytes: u32) {
        let run = self.run.id;
        let at = self.find(conversation).expect("a device is asked to send where its user is a member");
        if self.is_finishing() {
            return add(&self.run.stats.unresolved, 1);
        }
        let counter = self.conversations[at].next_counter();
        let tag = Tag { run, conversation, client: self.client, counter, intended_us, sent_us: 0 };
        self.pending.push(Pending::new(tag, bytes));
        // From here on the target is at work, or keeps the device waiting.
        self.run.recorder.late_by(LagOf::Send, intended_us, self.now_us);
    }

    /// Writes what is due of the messages without an answer, in the order in which they were due at first.
    pub(super) fn send_pending(&mut self) {
        let now = self.now_us;
        let mut rng = None;
        let mut frames = Vec::new();
        let mut is_again = false;
        let mut resent = 0;
        for at in 0..self.pending.len() {
            if self.pending[at].next_try_us > now {
                continue;
            }
            let is_retry = self.pending[at].tries > 0;
            let jitter = if is_retry { rng.get_or_insert_with(|| self.rng()).random_range(0.0..0.25) } else { 0.0 };
            let pending = &mut self.pending[at];
            // A new connection and an answer that asks for it are other reasons to write it again.
            let has_waited = is_retry && pending.next_try_us > 0 && !pending.was_put_off;
            resent += u64::from(has_waited && !pending.was_resent);
            is_again |= is_retry;
            pending.was_resent |= has_waited;
            pending.was_put_off = false;
            let wait_us = (RETRY_WAIT_US << pending.tries.min(4)).min(RETRY_WAIT_MAX_US);
            pending.next_try_us = now + (wait_us as f64 * (1.0 + jitter)) as u64;
            pending.tries = pending.tries.saturating_add(1);
            pending.open_tries = pending.open_tries.saturating_add(1);
            if pending.tag.sent_us == 0 {
                pending.tag.sent_us = now;
            }
            pending.asks(now);
            frames.push((pending.tag, pending.bytes, is_retry));
        }
        for (tag, bytes, is_retry) in frames {
            self.send(&tag, bytes, is_retry);
        }
        add(&self.run.stats.resent, resent);
        if is_again {
            self.doubt_connection(now.saturating_sub(RETRY_WAIT_US));
        }
    }

    fn send(&mut self, tag: &Tag, bytes: u32, is_retry: bool) {
        if !is_retry {
            add(&self.run.stats.sent, 1);
            self.run.ledger.on_sent(tag);
        }
        let conversation = self.run.world.conversations[tag.conversation as usize].id;
        let uuid = if is_retry && is_planted(Mutant::RetryUnderNewUuid) {
            Tag { counter: tag.counter | 1 << 30, ..*tag }.uuid()
        } else {
            tag.uuid()
        };
        let frame = SendFrame {
            uuid,
            conversation,
            kind: MESSAGE_KIND.to_owned(),
            body: tag.body(bytes as usize),
            reply_to: None,
        };
        self.note_send(&frame, is_retry);
        self.push(ClientFrame::Send(frame));
    }

    /// Where the message of an answer is among those without one. There are rarely more than a few.
    fn find_pending(&self, uuid: uuid::Uuid) -> Option<usize> {
        self.pending.iter().position(|pending| pending.tag.uuid() == uuid)
    }

    fn on_ack(&mut self, ack: &AckFrame) {
        let run = Arc::clone(&self.run);
        // Not there: the answer to what a removed member tried, to a retry of something answered already, or to nothing.
        let Some(at) = self.find_pending(ack.uuid) else {
            if !self.on_probe_acked(ack) {
                run.ledger.on_other_ack(&run.world, self.client, ack);
            }
            return;
        };
        if !run.ledger.on_ack(&run.world, &self.pending[at].tag, ack, self.now_us) {
            return;
        }
        let asked_us = self.take_asked_us(at);
        let tag = self.pending.remove(at).tag;
        add(&run.stats.acked, 1);
        let took_us = self.now_us.saturating_sub(tag.intended_us);
        run.recorder.acked(tag.intended_us, tag.sent_us, asked_us, self.now_us);
        if took_us > LATE_US {
            run.consequence(Consequence::LateAck, tag.intended_us, self.now_us);
        }
        self.note_ack(ack);
        let Some(at) = self.find(tag.conversation) else { return };
        self.conversations[at].note_acked(tag.counter);
        self.on_seen(at, Seen::acked(&tag, ack));
    }

    fn on_error(&mut self, error: &ErrorFrame) {
        let run = Arc::clone(&self.run);
        let found = error.uuid.and_then(|uuid| Some((uuid, self.find_pending(uuid)?)));
        if found.is_none() && self.on_probe_refused(error) {
            return;
        }
        if error.retry_after_ms.is_some() && error.code.is_backpressure() {
            add(&run.stats.throttled, 1);
        } else {
            run.stats.error(error.code.as_str());
        }
        let Some((uuid, at)) = found else { return self.on_other_error(error) };
        let asked_us = self.take_asked_us(at);
        run.recorder.answered(self.pending[at].tag.intended_us, asked_us, self.now_us);
        let pending = &mut self.pending[at];
        pending.open_tries = pending.open_tries.saturating_sub(u16::from(error.code.is_definite()));
        if error.code.is_retryable() {
            run.consequence(Consequence::Error, self.now_us, self.now_us);
            let asked_us = error.retry_after_ms.map_or(ERROR_WAIT_US, |ms| ms.saturating_mul(1_000));
            let tries = self.pending[at].tries.min(4);
            let spread_us = (ERROR_WAIT_US << tries).min(RETRY_WAIT_MAX_US) / 4;
            let wait_us = asked_us.saturating_add(self.rng().random_range(0..=spread_us));
            self.pending[at].next_try_us = self.now_us.saturating_add(wait_us);
            self.pending[at].was_put_off = true;
            return self.count_retry();
        }
        let Pending { tag, open_tries, .. } = self.pending.remove(at);
        let refusal = Refusal { code: error.code, has_other_tries: open_tries > 0 };
        let is_explained = run.ledger.on_refused(&run.world, &tag, refusal);
        add(if is_explained { &run.stats.refused_removed } else { &run.stats.refused }, 1);
        run.recorder.unanswered(tag.intended_us, self.now_us);
        self.note_refused(uuid, error.code);
    }

    /// An error came for a message that has no open try: it was answered before, or this device did not send it.
    fn on_other_error(&self, error: &ErrorFrame) {
        let (run, client) = (&self.run, self.client);
        let own = error.uuid.and_then(|uuid| run.ledger.answered(&run.world, client, uuid, "an error"));
        let Some(own) = own.filter(|_| error.code.is_definite() && !error.code.is_retryable()) else { return };
        let Some(at) = self.find(own.conversation) else { return };
        if self.conversations[at].record().acked.contains(own.counter) {
            self.run.ledger.on_refused_after_ack(&self.run.world, own, error.code);
        }
    }

    /// Takes the time since which a message waits for an answer on this connection; `None` where it does not, and of devices
    /// that keep answers waiting: slow readers, and those that fetch them now and then.
    fn take_asked_us(&mut self, at: usize) -> Option<u64> {
        let asked_us = self.pending[at].take_asked_us();
        let keeps_waiting = self.is_slow_reader() || self.run.scenario.transport == Transport::Poll;
        asked_us.filter(|_| !keeps_waiting)
    }

    /// The connection is over: no more answers come on it. One that the device ended itself is no answer: then only what has
    /// waited for so long that it was to be written again counts, as waiting until now.
    pub(super) fn end_answers(&mut self, is_by_device: bool) {
        for at in 0..self.pending.len() {
            let asked_us = self.take_asked_us(at);
            let asked_us = asked_us.filter(|us| !is_by_device || self.now_us.saturating_sub(*us) >= RETRY_WAIT_US);
            self.run.recorder.answered(self.pending[at].tag.intended_us, asked_us, self.now_us);
        }
    }

    /// Messages that have no answer at the end never get one. Each counts as having waited until now.
    pub(super) fn abandon_pending(&mut self) {
        self.end_answers(true);
        let pending = std::mem::take(&mut self.pending);
        add(&self.run.stats.unresolved, pending.len() as u64);
        if !self.is_connected() && self.connect_causes.are_only_here() {
            // One that had no answer for long while there was a connection is the target's all the same.
            let here = pending.iter().filter(|pending| !pending.was_resent).count();
            add(&self.run.stats.unresolved_local, here as u64);
        }
        for Pending { tag, .. } in pending {
            self.run.recorder.unanswered(tag.intended_us, self.now_us);
        }
    }

    // ---- receiving

    pub(super) fn on_frame(&mut self, frame: ServerFrame) {
        match frame {
            ServerFrame::Message(message) => self.on_message(&message),
            ServerFrame::Ack(ack) => self.on_ack(&ack),
            ServerFrame::Error(error) => self.on_error(&error),
            ServerFrame::Presence(presence) => self.on_presence(&presence),
            ServerFrame::Head(head) => self.on_head(&head),
            ServerFrame::Moved(moved) => self.on_moved(moved.retry_after_ms),
            ServerFrame::Receipt(frame) => {
                self.note_receipt(&frame);
                self.run.ledger.on_unsent_notice(&self.run.world, "receipt", self.client);
            }
            ServerFrame::Typing(frame) => {
                self.note_typing(&frame);
                self.run.ledger.on_unsent_notice(&self.run.world, "typing notice", self.client);
            }
            ServerFrame::Conversation(of) => self.on_conversation(of),
            ServerFrame::Welcome(_) => self.break_protocol("second_welcome"),
            ServerFrame::Pong => {}
        }
    }

    fn on_conversation(&mut self, of: ConversationChangeFrame) {
        let Some(at) = self.own_conversation(of.conversation, "a notice", self.said_us()) else { return };
        let index = self.conversations[at].index;
        if !self.run.ledger.may_have_been(&self.run.world, index, of.large) {
            return self.break_protocol("conversation_size");
        }
        // The subscription is the server's work, and a `head` follows; that it is messages that are wanted is not.
        if of.large {
            self.subscribe_to(index);
        }
    }

    fn on_head(&mut self, head: &HeadFrame) {
        let Some(at) = self.own_conversation(head.conversation, "news", self.said_us()) else { return };
        let index = self.conversations[at].index;
        let is_large = self.run.world.conversations[index as usize].is_large();
        if !is_large {
            // What was never large has no heads: its messages come whole, or the connection ends.
            self.break_protocol("head_of_no_channel");
        }
        let conversation = &mut self.conversations[at];
        if head.id.0 > conversation.cursor.upto() {
            let behind = conversation.behind();
            behind.head = behind.head.max(head.id.0);
            // It is the push in a channel only.
            if is_large {
                behind.announced = behind.announced.max(head.id.0);
            }
            self.sync_news(at);
        }
        if is_large {
            // Of what a sync has brought already, too.
            self.push_of_all_came(index, head.id.0);
        }
    }

    /// A time before the server said what is read now. A slow reader reads what was said long ago.
    fn said_us(&self) -> u64 {
        match self.run.scenario.transport {
            _ if self.is_slow_reader() => 0,
            Transport::Poll => self.now_us.saturating_sub(self.run.scenario.poll_interval.as_micros() as u64),
            Transport::Websocket | Transport::LongPoll => self.now_us,
        }
    }

    /// Where the conversation that a frame or an answer names is among the device's own. That of somebody else is leaked by it,
    /// and one that was never made is made up. `said_us` is a time before the server said it.
    pub(super) fn own_conversation(&self, id: ConversationId, what: &str, said_us: u64) -> Option<usize> {
        let run = &self.run;
        let index = run.ledger.hears_of(&run.world, (self.user, id), what, said_us)?;
        self.find(index)
    }

    /// Whether a time that a server tells of something in this run may be right.
    pub(super) fn is_of_run(&self, at_ms: u64) -> bool {
        let now_unix_us = self.now_us.wrapping_add(self.run.unix_offset_us);
        self.run.ledger.is_of_run(at_ms, now_unix_us / 1_000)
    }

    /// Counts a frame that the protocol does not allow.
    pub(super) fn break_protocol(&self, what: &str) {
        add(&self.run.stats.protocol_errors, 1);
        self.run.stats.error(what);
    }

    /// Reads a message that came; one that nobody sent, or that was changed, is a violation.
    pub(super) fn check(&self, message: &MessageFrame, is_live: bool) -> Option<Seen> {
        let run = &self.run;
        let place =
            || format!("{} id {} came to {}", message.conversation, message.id, device(&run.world, self.client));
        let tag = run.ledger.read(&run.world, message, place)?;
        Some(Seen { id: message.id.0, tag, at: message.at, is_live })
    }

    fn on_message(&mut self, message: &MessageFrame) {
        self.note_wire(message);
        let Some(seen) = self.check(message, true) else { return };
        if !self.run.ledger.may_arrive(&self.run.world, self.user, &seen) {
            return;
        }
        let Some(at) = self.find(seen.tag.conversation) else {
            self.run.ledger.violation(Kind::Leaked, || {
                let device = device(&self.run.world, self.client);
                format!("{} id {} came to {device}, whose user was never a member", message.conversation, message.id)
            });
            return;
        };
        if self.on_seen(at, seen) == Arrival::Repeated {
            self.run.ledger.on_repeated(&seen);
        }
    }

    /// Takes a message that came live, or the device's own that was acknowledged.
    fn on_seen(&mut self, at: usize, seen: Seen) -> Arrival {
        let mut show = Vec::new();
        let arrival = self.conversations[at].cursor.on_live(seen, &mut show);
        match arrival {
            Arrival::Shown => {}
            Arrival::Held if is_planted(Mutant::HoleIgnored) => show.push(seen),
            Arrival::Held => self.sync_later(at),
            Arrival::Repeated => {
                if seen.tag.client != self.client {
                    add(&self.run.stats.repeated_on_wire, 1);
                    if self.run.ledger.unpushed.came(self.copy(&seen)) {
                        add(&self.run.stats.pushed, 1);
                        self.pushes_came(1);
                    }
                }
            }
            Arrival::Contradicts(held) => self.run.ledger.violation(Kind::IdReuse, || {
                let (id, device) = (seen.id, device(&self.run.world, self.client));
                format!("id {id} came to {device} as {} and as {}", held.uuid(), seen.tag.uuid())
            }),
        }
        self.show(at, &show, Fetched::default());
        self.rest(at);
        arrival
    }

    /// Shows messages to the person: the ledger checks them, the recorder times them.
    pub(super) fn show(&mut self, at: usize, messages: &[Seen], fetched: Fetched) {
        let run = Arc::clone(&self.run);
        for seen in messages {
            let (newest, is_first_time) = self.conversations[at].note_shown(seen);
            let membership = run.ledger.on_shown(&run.world, self.user, seen, newest, is_first_time);
            self.note_shown(seen);
            if seen.tag.client != self.client {
                self.count_delivery(&run, seen, membership, fetched);
            }
        }
    }

    /// Records how long a message took to this device, on the path that it went, and whether it came by push.
    fn count_delivery(&mut self, run: &Run, seen: &Seen, membership: Membership, fetched: Fetched) {
        let tag = &seen.tag;
        // A large channel announces a message, and the fetch is part of its delivery.
        let is_announced = !seen.is_live && seen.id <= fetched.announced;
        let came_by_push = seen.is_live || is_announced;
        let poll_us = match run.scenario.transport {
            Transport::Poll => run.scenario.poll_interval.as_micros() as u64,
            Transport::Websocket | Transport::LongPoll => 0,
        };
        // What was pushed to somebody who hardly reads waits in the socket for as long as that lasts.
        let pause_us = if self.is_slow_reader() { u64::MAX } else { 0 };
        let delivery = Delivery {
            due_us: tag.intended_us,
            sent_us: tag.sent_us,
            shown_us: self.now_us,
            here_since_us: self.there_since_us,
            opened_us: if self.is_connected() { self.opened_us } else { 0 },
            is_catching_up: self.catching_up.is_some() && !self.is_finishing(),
            membership,
            came_by_push,
            reads_every_us: poll_us.max(pause_us),
        };
        let is_there = !delivery.is_after_reconnect() && !self.is_slow_reader();
        add(&run.stats.delivered, 1);
        add(&run.stats.delivered_online, u64::from(is_there));
        match delivery.push() {
            // A fault may take the push path away: what came by it then says as little as what did not.
            Some(_) if self.is_under_fault(tag.sent_us) => add(&run.ledger.tallies.push_unsure, 1),
            Some(true) => {
                add(&run.stats.push_expected, 1);
                add(&run.stats.pushed, 1);
                add(&run.stats.pushed_by_head, u64::from(is_announced));
            }
            Some(false) => {
                add(&run.stats.push_expected, 1);
                if run.ledger.unpushed.note(self.copy(seen), self.now_us) {
                    self.push_is_missing();
                }
            }
            None => {
                add(&run.stats.push_unknown, u64::from(is_there && !came_by_push));
            }
        }
        let took_us = self.now_us.saturating_sub(tag.intended_us);
        let path = self.delivery_path(tag, &delivery);
        run.recorder.delivered(path, tag.intended_us, tag.sent_us, self.now_us, fetched.lag_us);
        let is_live = !matches!(path, LatencyPath::DeliveryAfterReconnect | LatencyPath::DeliverySlowReader);
        if is_live && came_by_push {
            run.ledger.presence.target_took(self.now_us, self.now_us.saturating_sub(tag.sent_us));
        }
        if is_live && took_us > LATE_US + poll_us {
            run.consequence(Consequence::LateDelivery, tag.intended_us, self.now_us);
        }
    }

    fn is_under_fault(&self, sent_us: u64) -> bool {
        !self.run.scenario.faults.is_empty() && self.run.ledger.presence.may_have_lost_push(sent_us, self.now_us)
    }

    const fn copy(&self, seen: &Seen) -> MessageCopy {
        MessageCopy { client: self.client, conversation: seen.tag.conversation, id: seen.id }
    }

    fn delivery_path(&self, tag: &Tag, delivery: &Delivery) -> LatencyPath {
        let spec = &self.run.world.conversations[tag.conversation as usize];
        if delivery.is_after_reconnect() {
            LatencyPath::DeliveryAfterReconnect
        } else if self.is_slow_reader() {
            LatencyPath::DeliverySlowReader
        } else if spec.is_large() {
            LatencyPath::DeliveryChannel
        } else if spec.kind == ConversationKind::Group {
            LatencyPath::DeliveryGroup
        } else if self.run.places.are_together(self.client, tag.client) {
            LatencyPath::DeliverySameServer
        } else {
            LatencyPath::DeliveryOtherServer
        }
    }

    fn on_presence(&self, frame: &PresenceFrame) {
        self.run.note("pres", || json!({"by": self.name().0, "user": frame.user, "state": frame.state}));
        // Users of this run have never beaten before it. 0: the server does not know the last beat any more.
        let is_of_ours = self.run.world.user_index(frame.user).is_some();
        if is_of_ours && frame.at > 0 && !self.is_of_run(frame.at) {
            self.break_protocol("presence_time");
        }
        let notice = (frame.user, frame.state);
        let told = self.run.ledger.on_presence_notice(&self.run.world, self.user, notice, self.now_us);
        if let Some((path, took_us)) = told {
            self.run.recorder.record(path, self.now_us.saturating_sub(took_us), took_us);
        }
    }
}
