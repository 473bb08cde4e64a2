//! Sends, ACKs and refusals as they come: every uuid has one fate.

use uuid::Uuid;

use super::fates::{Claim, ClaimSource};
use super::members::GONE_US;
use super::{ConversationLedger, Kind, Ledger, device, user_name};
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
        self.check_acceptance(world, &mut ledger, tag, "acknowledged");
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

    // ---- what removed members try

    /// A removed member is about to try to send a message. Must be called before anybody can see it.
    pub(in crate::loadgen) fn on_probe(&self, tag: &Tag) {
        self.conversation(tag.conversation).live().fates.on_probe(tag.client, tag.counter, tag.sent_us);
    }

    /// Takes what a removed member tried to send, at the first answer to it; `None` where a uuid stands for no such message
    /// of the device.
    pub(in crate::loadgen) fn take_probe(&self, world: &World, client: u32, uuid: Uuid) -> Option<Tag> {
        let own = Identity::of(uuid).filter(|own| own.client == client && self.was_sent(world, *own))?;
        let Identity { run, conversation, counter, .. } = own;
        let sent_us = self.conversation(conversation).live().fates.take_probe(client, counter)?;
        Some(Tag { run, conversation, client, counter, intended_us: sent_us, sent_us })
    }

    /// What a removed member tried to send was acknowledged. Returns whether that says something: who may be a member again by
    /// then may send.
    pub(in crate::loadgen) fn on_probe_acked(&self, world: &World, tag: &Tag) -> bool {
        self.check_acceptance(world, &mut self.conversation(tag.conversation), tag, "acknowledged")
    }

    /// What a removed member tried to send was refused, as it has to be.
    pub(in crate::loadgen) fn on_probe_refused(&self, tag: &Tag) {
        self.conversation(tag.conversation).live().fates.on_refused(tag.client, tag.counter);
    }

    /// Checks the right to send of whoever sent a message that is there. Returns whether the sender had none, which is a
    /// violation once for each message: removed before it was first sent, and not back.
    pub(super) fn check_acceptance(
        &self,
        world: &World,
        ledger: &mut ConversationLedger,
        tag: &Tag,
        how: &str,
    ) -> bool {
        let user = world.clients[tag.client as usize].user;
        let had_left = ledger.stays(user).is_some_and(|stays| stays.had_left(tag.sent_us));
        // A server that was faulty or cut off may not have heard of the removal.
        let from_us = tag.sent_us.saturating_sub(GONE_US);
        if !had_left || self.presence.may_have_lost_push(from_us, tag.sent_us) {
            return false;
        }
        if ledger.live().fates.note_false_acceptance(tag.client, tag.counter) {
            self.violation(Kind::FalseAcceptance, || {
                let (name, device) = (world.conversation_name(tag.conversation), device(world, tag.client));
                format!("{name} message {} of {device}, whose user was removed before, was {how}", tag.counter)
            });
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadgen::ledger::audit_conversation;
    use crate::loadgen::world::tests::tiny_world;
    use crate::protocol::{ConversationId, MessageFrame, MessageId};

    const AT: u64 = 1_800_000_000_000;

    /// A ledger with a user who was removed between 30 and 40, and the message that this user sent at a time.
    fn removed(sent_us: u64) -> (World, Ledger, Tag) {
        let (world, ledger) = (tiny_world(), Ledger::new(1, 1, AT));
        let tag = Tag { run: 1, conversation: 0, client: 0, counter: 1, intended_us: 10, sent_us };
        ledger.leaving(&world, 0, 0, 30);
        ledger.left(&world, 0, 0, 40);
        ledger.on_sent(&tag);
        (world, ledger, tag)
    }

    fn ack(tag: &Tag) -> AckFrame {
        AckFrame { uuid: tag.uuid(), conversation: ConversationId(1), id: MessageId(1), at: AT }
    }

    fn acked(world: &World, ledger: &Ledger, tag: &Tag) {
        assert!(ledger.on_ack(world, tag, &ack(tag), 90));
    }

    fn shown(world: &World, ledger: &Ledger, tag: &Tag) {
        ledger.on_shown(world, 1, &Seen::acked(tag, &ack(tag)), 0, true);
    }

    fn stored(world: &World, ledger: &Ledger, tag: &Tag) {
        let row = MessageFrame {
            conversation: ConversationId(1),
            id: MessageId(1),
            uuid: tag.uuid(),
            sender: world.users[0].id,
            kind: "text".to_owned(),
            body: tag.body(0),
            reply_to: None,
            at: AT,
        };
        audit_conversation(ledger, world, 0, &[row], &[], AT);
    }

    #[test]
    fn what_a_removed_member_sends_is_a_violation_once_wherever_it_is_seen() {
        let ways: [fn(&World, &Ledger, &Tag); 3] = [acked, shown, stored];
        for way in ways {
            let (world, ledger, tag) = removed(50);
            way(&world, &ledger, &tag);
            assert_eq!(ledger.count(Kind::FalseAcceptance), 1, "{:?}", ledger.described());
            assert_eq!(ledger.described().len(), 1, "{:?}", ledger.described());
            for way in ways {
                way(&world, &ledger, &tag);
            }
            assert_eq!(ledger.count(Kind::FalseAcceptance), 1, "{:?}", ledger.described());
        }
    }

    #[test]
    fn who_may_have_been_a_member_is_not_accused() {
        let innocent = |sent_us, happens: fn(&World, &Ledger)| {
            let (world, ledger, tag) = removed(sent_us);
            happens(&world, &ledger);
            acked(&world, &ledger, &tag);
            shown(&world, &ledger, &tag);
            stored(&world, &ledger, &tag);
            assert_eq!(ledger.described(), [""; 0], "sent at {sent_us}");
        };
        // While the removal was under way, and before the adding that has begun since.
        innocent(40, |_, _| ());
        innocent(50, |world, ledger| ledger.joining(world, 0, 0, 60));
        // A server that was cut off may not have heard of it.
        innocent(50, |_, ledger| ledger.presence.fault_began(45));
    }

    #[test]
    fn a_try_is_taken_by_its_device_and_its_refusal_holds() {
        let (world, ledger, mut tag) = removed(20);
        (tag.counter, tag.intended_us, tag.sent_us) = (2, 50, 50);
        ledger.on_probe(&tag);
        assert_eq!([1, 0, 0].map(|client| ledger.take_probe(&world, client, tag.uuid())), [None, Some(tag), None]);
        ledger.on_probe_refused(&tag);
        assert_eq!(ledger.described(), [""; 0]);
        stored(&world, &ledger, &tag);
        assert_eq!([Kind::FalseRefusal, Kind::FalseAcceptance].map(|kind| ledger.count(kind)), [1, 1]);
        ledger.joining(&world, 0, 0, 60);
        assert!(!ledger.on_probe_acked(&world, &tag), "a member again, perhaps: it says nothing");
    }
}
