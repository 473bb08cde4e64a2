//! The uuids of committed messages, in memory: a fingerprint and an id each, for as long as a client may try again.

use std::collections::{HashMap, VecDeque};

use crate::protocol::MessageId;
use crate::protocol::limits::RETRY_WINDOW;

/// Parts of the window that are dropped whole: a uuid is remembered for up to so much longer.
const PARTS: u64 = 8;

const WINDOW_MS: u64 = RETRY_WINDOW.as_millis() as u64;

/// Of one conversation.
#[derive(Clone, Default)]
pub(super) struct Fingerprints {
    /// The youngest last.
    parts: VecDeque<Part>,
}

#[derive(Clone)]
struct Part {
    began_ms: u64,
    ids: HashMap<u64, MessageId>,
}

impl Fingerprints {
    /// Remembers one from now on.
    pub(super) fn insert(&mut self, fingerprint: u64, id: MessageId, now_ms: u64) {
        while self.parts.front().is_some_and(|part| part.began_ms + WINDOW_MS + WINDOW_MS / PARTS <= now_ms) {
            self.parts.pop_front();
        }
        if self.parts.back().is_none_or(|part| part.began_ms + WINDOW_MS / PARTS <= now_ms) {
            self.parts.push_back(Part { began_ms: now_ms, ids: HashMap::new() });
        }
        let youngest = self.parts.back_mut().expect("one was pushed");
        youngest.ids.insert(fingerprint, id);
    }

    /// The lowest id above `above` with this fingerprint.
    pub(super) fn find(&self, fingerprint: u64, above: MessageId, now_ms: u64) -> Option<MessageId> {
        let is_within = |part: &&Part| part.began_ms + WINDOW_MS + WINDOW_MS / PARTS > now_ms;
        let known = self.parts.iter().filter(is_within).filter_map(|part| part.ids.get(&fingerprint).copied());
        known.filter(|id| *id > above).min()
    }

    /// Whether this is the id of one.
    pub(super) fn has(&self, fingerprint: u64, id: MessageId) -> bool {
        self.parts.iter().any(|part| part.ids.get(&fingerprint) == Some(&id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_remembered_for_the_window_at_least_and_an_eighth_more_at_most() {
        let mut known = Fingerprints::default();
        for hour in 0..100 {
            known.insert(hour, MessageId(hour + 1), hour * 3_600_000);
        }
        let now_ms = 99 * 3_600_000;
        let found = |hour| known.find(hour, MessageId(0), now_ms).is_some();
        assert!((75..100).all(found), "not older than a day");
        assert!(!(0..72).any(found), "older than 27 hours");
        assert!(known.parts.len() as u64 <= PARTS + 2);
    }

    #[test]
    fn ids_that_were_looked_at_are_not_found_again() {
        let mut known = Fingerprints::default();
        known.insert(7, MessageId(3), 0);
        known.insert(7, MessageId(9), WINDOW_MS / PARTS);
        let find = |above| known.find(7, MessageId(above), WINDOW_MS / PARTS).map(|id| id.0);
        assert_eq!((find(0), find(3), find(9)), (Some(3), Some(9), None));
        assert!(known.has(7, MessageId(9)) && !known.has(7, MessageId(4)));
    }
}
