//! Records of conversations whose members are not known just now: one lane for each conversation, so that a look for members that
//! takes long, or fails, holds up no other conversation and loses nothing.
//!
//! A conversation that has a lane keeps to it until the lane is empty: its records stay in order.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::backends::log::Delivered;
use crate::protocol::ConversationId;

/// Bytes that may wait in all lanes; a record for which there is no room is given up, and its recipients sync.
const BYTES_MAX: usize = 64 << 20;

/// What a record takes beside its payload and keys, about.
const RECORD_BYTES: usize = 128;

/// What came of a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// Its lane is new: somebody has to go along it.
    New,
    /// It waits for those before it.
    Behind,
    /// There is no room.
    Full,
}

/// The lanes of one server.
#[derive(Default)]
pub(super) struct Lanes {
    lanes: Mutex<HashMap<ConversationId, VecDeque<Delivered>>>,
    /// How many there are, for the many records that need none.
    count: AtomicUsize,
    bytes: AtomicUsize,
}

fn bytes(delivered: &Delivered) -> usize {
    RECORD_BYTES + delivered.record.payload.len() + delivered.record.keys.len() * size_of::<u64>()
}

impl Lanes {
    fn lock(&self) -> MutexGuard<'_, HashMap<ConversationId, VecDeque<Delivered>>> {
        self.lanes.lock().expect("no panic while held")
    }

    /// Whether a conversation has one.
    pub(super) fn has(&self, conversation: ConversationId) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.lock().contains_key(&conversation)
    }

    /// Puts a record at the end of its conversation's lane.
    pub(super) fn put(&self, conversation: ConversationId, delivered: Delivered) -> Put {
        let added = bytes(&delivered);
        let mut lanes = self.lock();
        if self.bytes.load(Ordering::Relaxed) + added > BYTES_MAX {
            return Put::Full;
        }
        self.bytes.fetch_add(added, Ordering::Relaxed);
        let lane = lanes.entry(conversation).or_default();
        lane.push_back(delivered);
        if lane.len() > 1 {
            return Put::Behind;
        }
        self.count.fetch_add(1, Ordering::Release);
        Put::New
    }

    /// The first record of a lane.
    pub(super) fn first(&self, conversation: ConversationId) -> Option<Delivered> {
        self.lock().get(&conversation)?.front().cloned()
    }

    /// Removes the first record of a lane. Returns whether another one waits; if not, the lane is gone.
    pub(super) fn done(&self, conversation: ConversationId) -> bool {
        let mut lanes = self.lock();
        let Some(lane) = lanes.get_mut(&conversation) else { return false };
        if let Some(done) = lane.pop_front() {
            self.bytes.fetch_sub(bytes(&done), Ordering::Relaxed);
        }
        if !lane.is_empty() {
            return true;
        }
        lanes.remove(&conversation);
        self.count.fetch_sub(1, Ordering::Release);
        false
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::backends::log::{Record, Topic};

    fn record(offset: u64, bytes: usize) -> Delivered {
        let record = Arc::new(Record { keys: vec![1], payload: Bytes::from(vec![0; bytes]) });
        Delivered { topic: Topic::Inbox, partition: 0, offset, at_ms: 0, record }
    }

    #[test]
    fn a_lane_keeps_its_order_and_is_gone_when_it_is_empty() {
        let lanes = Lanes::default();
        let (busy, other) = (ConversationId(1), ConversationId(2));
        assert_eq!((lanes.put(busy, record(1, 9)), lanes.put(busy, record(2, 9))), (Put::New, Put::Behind));
        assert_eq!((lanes.has(busy), lanes.has(other), lanes.put(other, record(3, 9))), (true, false, Put::New));
        let first = |conversation| lanes.first(conversation).map(|delivered| delivered.offset);
        assert_eq!((first(busy), lanes.done(busy), first(busy)), (Some(1), true, Some(2)));
        assert_eq!((lanes.done(busy), first(busy), lanes.has(busy)), (false, None, false));
        assert!(lanes.has(other) && !lanes.done(other));
        assert_eq!((lanes.count.into_inner(), lanes.bytes.into_inner()), (0, 0));
    }

    #[test]
    fn what_waits_is_bounded_by_bytes() {
        let lanes = Lanes::default();
        let taken = (0..100).filter(|n| lanes.put(ConversationId(1), record(*n, 1 << 20)) != Put::Full).count();
        assert_eq!(taken, 63);
        lanes.done(ConversationId(1));
        assert_eq!(lanes.put(ConversationId(2), record(1, 1 << 20)), Put::New);
    }
}
