//! Sends, ACKs and refusals as they come: every uuid has one fate.

use uuid::Uuid;

use super::fates::{Claim, ClaimSource};
use super::{Kind, Ledger, device, user_name};
use crate::loadgen::body::{Identity, Tag};
use crate::loadgen::client::cursor::Seen;
use crate::loadgen::stats::add;
use crate::loadgen::world::World;
use crate::protocol::ErrorCode;
use crate::protocol::frames::AckFrame;

/// A refusal, as the device that got it sees it.
#[derive(Debug, Clone, Copy)]
pub(in crate::loadgen) struct Refusal {
    pub(in crate::loadgen) code: ErrorCode,
    /// Whether a try may still be under way beside the one that was refused: what is definite for one says nothing of the
    /// other.
    pub(in crate::loadgen) has_other_tries: bool,
}

impl Ledger {
    /// A device is about to write a message for the first time. Must be called before anybody can see it.
    pub(in crate::loadgen) fn on_sent(&self, tag: &Tag) {
        self.conversation(tag.conversation).live().fates.on_sent(tag.client, tag.counter);
    }

    /// The server said that a message is stored under an id; `tag` is that of the message with the ACK's uuid, which had no
    /// answer yet. Returns false when it is no ACK of it.
    pub(in crate::loadgen) fn on_ack(&self, world: &World, tag: &Tag, ack: &AckFrame, now_us: u64) -> bool {
        if !self.is_of_its_conversation(world, tag.conversation, ack) {
            return false;
        }
        let id = ack.id.0;
        let mut ledger = self.conversation(tag.conversation);
        let live = ledger.live();
        live.acked_sum = live.acked_sum.wrapping_add(tag.hash_with(ack.id));
        self.compare(&mut live.window, &Seen::acked(tag, ack), "acknowledged");
        let before = live.fates.acked.id_before(tag.sent_us);
        if id < before {
            self.violation(Kind::IdWentBack, || {
                let name = world.conversation_name(tag.conversation);
                format!("{name} id {id} for {}, which was first sent after id {before} was acknowledged", tag.uuid())
            });
        }
        live.fates.acked.on_ack(id, now_us);
        self.presence.target_took(now_us, now_us.saturating_sub(tag.sent_us));
        true
    }

    fn is_of_its_conversation(&self, world: &World, conversation: u32, ack: &AckFrame) -> bool {
        let own = world.conversations[conversation as usize].id;
        if own != ack.conversation {
            self.violation(Kind::AckWrong, || format!("the ACK of {} of {own} names {}", ack.uuid, ack.conversation));
        }
        own == ack.conversation
    }

    /// The message of an ACK or an error that answers none of a device's open ones. For a uuid that the device did not send it
    /// is a violation; `what` names the answer.
    pub(in crate::loadgen) fn answered(&self, world: &World, client: u32, uuid: Uuid, what: &str) -> Option<Identity> {
        let identity = Identity::of(uuid).filter(|own| own.client == client && self.was_sent(world, *own));
        if identity.is_none() {
            self.violation(Kind::AckWrong, || {
                format!("{} got {what} of {uuid}, which it did not send", device(world, client))
            });
        }
        identity
    }

    /// An ACK came for a message that a device has not without an answer: a repeat, or nothing that it sent.
    /// `was_acked` says whether the device had an ACK of it.
    pub(in crate::loadgen) fn on_other_ack(&self, world: &World, client: u32, ack: &AckFrame) {
        let Some(identity) = self.answered(world, client, ack.uuid, "an ACK") else { return };
        let Identity { conversation, counter, .. } = identity;
        if !self.is_of_its_conversation(world, conversation, ack) {
            return;
        }
        let mut ledger = self.conversation(conversation);
        let live = ledger.live();
        if live.fates.contradicts_refusal(client, counter) {
            return self.violation(Kind::FalseRefusal, || format!("{} was refused, then acknowledged", ack.uuid));
        }
        match live.window.id_of(client, counter) {
            Some(id) if id == ack.id.0 => {}
            Some(id) => self.violation(Kind::AckWrong, || {
                format!("{} was acknowledged as id {}, and is id {id} elsewhere", ack.uuid, ack.id)
            }),
            None => {
                if !live.fates.claim(Claim { client, counter, id: ack.id.0, source: ClaimSource::Ack }) {
                    add(&self.tallies.claims_dropped, 1);
                }
            }
        }
    }

    /// A message that was acknowledged to its sender is refused for good. A retry may be, of who was removed meanwhile.
    pub(in crate::loadgen) fn on_refused_after_ack(&self, world: &World, identity: Identity, code: ErrorCode) {
        let Identity { conversation, client, counter, .. } = identity;
        let user = world.clients[client as usize].user;
        let was_member = self.was_settled_since(world, conversation, user, 0);
        if code != ErrorCode::NotAMember || was_member {
            self.violation(Kind::FalseRefusal, || {
                let device = device(world, client);
                format!("message {counter} of {device} was acknowledged, then refused as {}", code.as_str())
            });
        }
    }

    /// A message was refused for good. Returns whether a change of the sender's membership explains that.
    pub(in crate::loadgen) fn on_refused(&self, world: &World, tag: &Tag, refusal: Refusal) -> bool {
        let user = world.clients[tag.client as usize].user;
        if refusal.code.is_definite() && !refusal.has_other_tries {
            let mut ledger = self.conversation(tag.conversation);
            let live = ledger.live();
            live.fates.on_refused(tag.client, tag.counter);
            add(&self.tallies.refusals, 1);
            let is_shown = live.window.id_of(tag.client, tag.counter).is_some();
            if is_shown && live.fates.contradicts_refusal(tag.client, tag.counter) {
                self.violation(Kind::FalseRefusal, || {
                    format!("{} of {} was shown, then refused", tag.uuid(), user_name(world, user))
                });
            }
        }
        let was_member = self.ask(world, tag.conversation, user, |stays| stays.was_settled_since(tag.sent_us));
        refusal.code == ErrorCode::NotAMember && !was_member
    }
}
