//! Bodies as the generator makes them, made again for messages that nobody sent.
//!
//! The form is the generator's own affair: an assertion says so at once where it has changed.

use chatctl::protocol::MessageFrame;
use uuid::Uuid;

/// A message that looks like the sender's next one but some, with everything right but that it was never sent.
pub(crate) fn forged(message: &MessageFrame, counter_up: u32) -> Option<MessageFrame> {
    let mut parts = Parts::of(&message.body)?;
    parts.counter += counter_up;
    let mut uuid = *message.uuid.as_bytes();
    uuid[12..].copy_from_slice(&parts.counter.to_be_bytes());
    Some(MessageFrame { uuid: Uuid::from_bytes(uuid), body: parts.body(), ..message.clone() })
}

/// Run, conversation, client, counter, two times, a checksum and text.
struct Parts<'a> {
    before: [&'a str; 3],
    counter: u32,
    after: [&'a str; 2],
    text: &'a str,
}

impl<'a> Parts<'a> {
    fn of(body: &'a str) -> Option<Self> {
        let mut parts = body.splitn(8, '.');
        let before = [parts.next()?, parts.next()?, parts.next()?];
        let counter = u32::from_str_radix(parts.next()?, 16).ok()?;
        let after = [parts.next()?, parts.next()?];
        let (_sum, text) = (parts.next()?, parts.next()?);
        let parts = Self { before, counter, after, text };
        assert_eq!(parts.body(), body, "the generator's bodies have another form: mend this file");
        Some(parts)
    }

    fn body(&self) -> String {
        let head = format!("{}.{:x}.{}.", self.before.join("."), self.counter, self.after.join("."));
        format!("{head}{:016x}.{}", checksum(&head, self.text), self.text)
    }
}

/// FNV-1a in words of eight bytes.
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
