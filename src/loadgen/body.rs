//! Message bodies that describe themselves: who sent it, which one it is, when it was due; and a checksum over all of it.
//!
//! So a receiver needs no table of messages to measure latency, and no copy of the body to see that it was changed.

use std::cell::RefCell;

use uuid::Uuid;

use crate::protocol::{MessageFrame, MessageId};

const FILLER: &str = "abcdefghijklmnopqrstuvwxyz0123456789 the quick brown fox jumps over the lazy dog ";

/// Which message a uuid stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    /// Which run.
    pub(super) run: u32,
    /// Index of the conversation, in 24 bits.
    pub(super) conversation: u32,
    /// Index of the sending client, in 24 bits.
    pub(super) client: u32,
    /// As in [`Tag::counter`].
    pub(super) counter: u32,
}

impl Identity {
    /// Reads what [`Tag::uuid`] wrote; any other uuid of version 8 reads as some message that nobody sent.
    pub(super) fn of(uuid: Uuid) -> Option<Self> {
        let b = uuid.as_bytes();
        let four = |at: usize| u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        (uuid.get_version_num() == 8).then(|| Self {
            run: four(0),
            conversation: four(8) & 0x00ff_ffff,
            client: u32::from_be_bytes([0, b[4], b[5], b[7]]),
            counter: four(12),
        })
    }

    /// Hash of the message's identity and an id, for sums that do not depend on the order.
    pub(super) fn hash_with(&self, id: MessageId) -> u64 {
        let identity = (u64::from(self.client) << 32) | u64::from(self.counter);
        mix(identity ^ mix(u64::from(self.conversation) ^ mix(id.0)))
    }
}

/// Hash of a message's id and its time, for sums that do not depend on the order.
pub(super) const fn at_hash(id: u64, at: u64) -> u64 {
    mix(mix(id) ^ at)
}

/// What a body says of its message. Indexes are into the run's world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tag {
    /// Which run.
    pub(super) run: u32,
    /// Index of the conversation.
    pub(super) conversation: u32,
    /// Index of the sending client.
    pub(super) client: u32,
    /// 1, 2, 3 … for each client and conversation.
    pub(super) counter: u32,
    /// When it was due, on the run's clock, in µs.
    pub(super) intended_us: u64,
    /// When it was first written, on the run's clock, in µs.
    pub(super) sent_us: u64,
}

/// Bodies that a thread remembers.
const READ_MAX: usize = 32;

/// A body that was read.
struct Read {
    uuid: Uuid,
    body: String,
    tag: Tag,
}

thread_local! {
    static READ: RefCell<[Option<Read>; READ_MAX]> = const { RefCell::new([const { None }; READ_MAX]) };
}

impl Tag {
    /// The message's uuid: version 8 (custom) of RFC 9562, made of run, client, conversation and counter.
    pub(super) fn uuid(&self) -> Uuid {
        let (run, client) = (self.run.to_be_bytes(), self.client.to_be_bytes());
        let (conversation, counter) = (self.conversation.to_be_bytes(), self.counter.to_be_bytes());
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&run);
        bytes[4..6].copy_from_slice(&client[1..3]);
        bytes[7] = client[3];
        bytes[9..12].copy_from_slice(&conversation[1..]);
        bytes[12..].copy_from_slice(&counter);
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }

    /// The message's body, `bytes` long or a little longer where the tag needs it.
    pub(super) fn body(&self, bytes: usize) -> String {
        let Self { run, conversation, client, counter, intended_us, sent_us } = self;
        let mut body = format!("{run:x}.{conversation:x}.{client:x}.{counter:x}.{intended_us:x}.{sent_us:x}.");
        let filler = bytes.saturating_sub(body.len() + 17);
        let mut text = String::with_capacity(filler);
        while text.len() < filler {
            text.push_str(&FILLER[..FILLER.len().min(filler - text.len())]);
        }
        body.push_str(&format!("{:016x}.{text}", checksum(&body, &text)));
        body
    }

    /// Reads a body; `None` when it is not of this kind or was changed.
    pub(super) fn parse(body: &str) -> Option<Self> {
        let mut parts = body.splitn(8, '.');
        let mut hex = || u64::from_str_radix(parts.next()?, 16).ok();
        let (run, conversation, client, counter) = (hex()?, hex()?, hex()?, hex()?);
        let (intended_us, sent_us, sum) = (hex()?, hex()?, hex()?);
        let text = parts.next()?;
        let head = &body[..body.len() - text.len() - 17];
        // A number can be written in several ways; a body is written in one.
        let is_plain = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'.');
        if !body[..body.len() - text.len()].bytes().all(is_plain) {
            return None;
        }
        let narrow = |n: u64| u32::try_from(n).ok();
        let tag = Self {
            run: narrow(run)?,
            conversation: narrow(conversation)?,
            client: narrow(client)?,
            counter: narrow(counter)?,
            intended_us,
            sent_us,
        };
        (checksum(head, text) == sum).then_some(tag)
    }

    /// Reads a message's tag and checks that the frame around it tells the same. A message of a group comes to a hundred devices
    /// at about the same time: the newest bodies are read once, and compared after that.
    pub(super) fn of(message: &MessageFrame) -> Option<Self> {
        READ.with_borrow_mut(|read| {
            let slot = &mut read[message.uuid.as_bytes().iter().fold(0, |sum, byte| sum ^ byte) as usize % READ_MAX];
            if let Some(read) = slot
                && read.uuid == message.uuid
                && read.body == message.body
            {
                return Some(read.tag);
            }
            let tag = Self::parse(&message.body).filter(|tag| tag.uuid() == message.uuid)?;
            *slot = Some(Read { uuid: message.uuid, body: message.body.clone(), tag });
            Some(tag)
        })
    }

    /// Which message it is, without its times.
    pub(super) const fn identity(&self) -> Identity {
        Identity { run: self.run, conversation: self.conversation, client: self.client, counter: self.counter }
    }

    /// [`Identity::hash_with`].
    pub(super) fn hash_with(&self, id: MessageId) -> u64 {
        self.identity().hash_with(id)
    }
}

/// FNV-1a in words of eight bytes, over the tag and the text.
fn checksum(head: &str, text: &str) -> u64 {
    let words = |part: &str, start: u64| {
        part.as_bytes().chunks(8).fold(start, |hash, chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x0100_0000_01b3).rotate_left(29)
        })
    };
    words(text, words(head, 0xcbf2_9ce4_8422_2325) ^ (text.len() as u64))
}

/// The finalizer of `splitmix64`.
const fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{ConversationId, UserId};

    fn tag() -> Tag {
        Tag { run: 7, conversation: 3, client: 70_000, counter: 12, intended_us: 1_000, sent_us: 1_234 }
    }

    #[test]
    fn a_body_reads_back_and_has_its_length() {
        for bytes in [80, 81, 128, 5_000] {
            let body = tag().body(bytes);
            assert_eq!((body.len(), Tag::parse(&body)), (bytes, Some(tag())));
        }
    }

    #[test]
    fn a_changed_body_is_noticed() {
        let body = tag().body(128);
        for at in 0..body.len() {
            let mut changed = body.clone().into_bytes();
            changed[at] = if changed[at] == b'z' { b'y' } else { b'z' };
            assert_ne!(Tag::parse(std::str::from_utf8(&changed).expect("ascii")), Some(tag()), "byte {at}");
        }
        assert_eq!(Tag::parse(&body[..body.len() - 1]), None);
        assert_eq!(Tag::parse("hello"), None);
    }

    #[test]
    fn a_body_that_was_read_before_is_still_compared() {
        let message = |body: String, uuid| MessageFrame {
            conversation: ConversationId(1),
            id: MessageId(1),
            uuid,
            sender: UserId(1),
            at: 0,
            kind: "text".to_owned(),
            body,
            reply_to: None,
        };
        let (body, uuid) = (tag().body(128), tag().uuid());
        for _ in 0..2 {
            assert_eq!(Tag::of(&message(body.clone(), uuid)), Some(tag()));
            assert_eq!(Tag::of(&message(body.replace('z', "y").replace('a', "b"), uuid)), None);
            assert_eq!(Tag::of(&message(body.clone(), Uuid::nil())), None);
        }
    }

    #[test]
    fn different_messages_have_different_uuids() {
        let other = |change: fn(&mut Tag)| {
            let mut t = tag();
            change(&mut t);
            t.uuid()
        };
        assert_ne!(other(|t| t.counter += 1), tag().uuid());
        assert_ne!(other(|t| t.client += 1), tag().uuid());
        assert_ne!(other(|t| t.conversation += 1), tag().uuid());
        assert_eq!(tag().uuid().get_version_num(), 8);
    }

    #[test]
    fn a_uuid_says_which_message_it_stands_for() {
        let tag = Tag { conversation: 0x00ab_cdef, client: 0x0012_3456, ..tag() };
        let Tag { run, conversation, client, counter, .. } = tag;
        assert_eq!(Identity::of(tag.uuid()), Some(Identity { run, conversation, client, counter }));
        assert_eq!(Identity::of(Uuid::nil()), None);
    }
}
