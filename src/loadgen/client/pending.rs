//! A message of a device that has no answer yet.

use crate::loadgen::body::Tag;

/// A message without an answer yet.
pub(super) struct Pending {
    pub(super) tag: Tag,
    pub(super) bytes: u32,
    /// Writes so far.
    pub(super) tries: u8,
    /// Whether the next try was asked for by an answer.
    pub(super) was_put_off: bool,
    /// Whether it was written again since no answer came.
    pub(super) was_resent: bool,
    /// Writes that had no definite answer: more than one where a connection or an answer was lost.
    pub(super) open_tries: u16,
    pub(super) next_try_us: u64,
    /// When it was first written of the writes on this connection that have no answer; 0 where each has.
    asked_us: u64,
}

impl Pending {
    /// A message that is due.
    pub(super) const fn new(tag: Tag, bytes: u32) -> Self {
        Self { tag, bytes, tries: 0, was_put_off: false, was_resent: false, open_tries: 0, next_try_us: 0, asked_us: 0 }
    }

    /// Notes that it is written at a time.
    pub(super) const fn asks(&mut self, now_us: u64) {
        if self.asked_us == 0 {
            self.asked_us = now_us;
        }
    }

    /// Takes the time since which an answer is awaited; `None` where none is.
    pub(super) fn take_asked_us(&mut self) -> Option<u64> {
        Some(std::mem::take(&mut self.asked_us)).filter(|us| *us > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_awaited_from_the_first_write_since_the_last_one() {
        let tag = Tag { run: 1, conversation: 0, client: 0, counter: 1, intended_us: 5, sent_us: 10 };
        let mut pending = Pending::new(tag, 100);
        assert_eq!(pending.take_asked_us(), None, "nothing was written");
        pending.asks(10);
        pending.asks(30);
        assert_eq!([pending.take_asked_us(), pending.take_asked_us()], [Some(10), None]);
        pending.asks(50);
        assert_eq!(pending.take_asked_us(), Some(50));
    }
}
