//! What a removed member tries: one message over its own connection, which a server that checks the right to send refuses.
//! It is in none of the figures of messages.

use std::sync::Arc;

use super::device::Device;
use crate::loadgen::body::Tag;
use crate::loadgen::ledger::MESSAGE_KIND;
use crate::loadgen::stats::add;
use crate::protocol::frames::{AckFrame, ErrorFrame, SendFrame};
use crate::protocol::{ClientFrame, ErrorCode};

impl Device {
    /// Sends a message to a conversation that the user was removed from, unless the user may be back. It is shorter than any
    /// of the load.
    pub(super) fn try_to_send(&mut self, conversation: u32) {
        let run = Arc::clone(&self.run);
        let is_out = run.ledger.has_left(&run.world, conversation, self.user);
        let can_write = self.is_connected() && !self.is_finishing();
        let Some(at) = self.find(conversation).filter(|_| is_out && can_write) else { return };
        let now = self.now_us;
        let counter = self.conversations[at].next_counter();
        let tag = Tag { run: run.id, conversation, client: self.client, counter, intended_us: now, sent_us: now };
        run.ledger.on_probe(&tag);
        let frame = SendFrame {
            uuid: tag.uuid(),
            conversation: run.world.conversations[conversation as usize].id,
            kind: MESSAGE_KIND.to_owned(),
            body: tag.body(0),
            reply_to: None,
        };
        self.note_probe(&frame);
        self.push(ClientFrame::Send(frame));
    }

    /// Takes an ACK of such a message; returns false where it is of any other.
    pub(super) fn on_probe_acked(&mut self, ack: &AckFrame) -> bool {
        let run = Arc::clone(&self.run);
        let Some(tag) = run.ledger.take_probe(&run.world, self.client, ack.uuid) else { return false };
        self.note_ack(ack);
        add(&run.stats.write_probes, u64::from(run.ledger.on_probe_acked(&run.world, &tag)));
        true
    }

    /// Takes a refusal of such a message; returns false where it is of any other, or no refusal that a sound server gives.
    pub(super) fn on_probe_refused(&mut self, error: &ErrorFrame) -> bool {
        let run = Arc::clone(&self.run);
        let Some(uuid) = error.uuid else { return false };
        let Some(tag) = run.ledger.take_probe(&run.world, self.client, uuid) else { return false };
        self.note_refused(uuid, error.code);
        match error.code {
            ErrorCode::NotAMember | ErrorCode::Forbidden | ErrorCode::NotFound => {
                run.ledger.on_probe_refused(&tag);
                add(&run.stats.write_probes, 1);
                true
            }
            // It may be asked again, and is not: nothing is known.
            code => code.is_retryable(),
        }
    }
}
