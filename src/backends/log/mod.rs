//! The keyed log: `inbox`, `presence-updates` and `channel`, each a topic cut into P partitions by the hash of a key.
//!
//! A record names the keys it is for. An engine on servers of its own writes one record for each partition that holds some of
//! them, so that a reader of one partition finds what is for its keys; the log in the process writes one for all. Readers say
//! which keys they hold and get only records that name one of them.

#[cfg(test)]
pub(crate) mod contract;
mod embedded;
mod embedded_group;
mod kafka;
mod kafka_batch;
mod kafka_group;
mod kafka_lag;
mod kafka_producer;
mod kafka_reader;
mod kafka_version;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

pub use embedded::EmbeddedLog;
pub use kafka::KafkaLog;

use super::BackendResult;

/// The three logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// Messages for users; keys are user ids.
    Inbox,
    /// Presence changes; keys are the ids of the users that changed.
    PresenceUpdates,
    /// News of large channels; keys are conversation ids.
    Channel,
}

impl Topic {
    /// All topics.
    pub const ALL: [Self; 3] = [Self::Inbox, Self::PresenceUpdates, Self::Channel];

    /// The topic's name in an engine.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inbox => "inbox",
            Self::PresenceUpdates => "presence-updates",
            Self::Channel => "channel",
        }
    }
}

/// What is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Who it is for: users or conversations, at least one.
    pub keys: Vec<u64>,
    /// The content, opaque to the log.
    pub payload: Bytes,
}

/// A record as a reader gets it.
#[derive(Debug, Clone)]
pub struct Delivered {
    /// Where it was published.
    pub topic: Topic,
    /// In which partition.
    pub partition: u32,
    /// At which place of it.
    pub offset: u64,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// What.
    pub record: Arc<Record>,
}

/// How far a reader is behind in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionLag {
    /// Which topic.
    pub topic: Topic,
    /// Which partition.
    pub partition: u32,
    /// Records not read yet.
    pub records: u64,
    /// Age of the oldest of them in milliseconds; 0 if none.
    pub age_ms: u64,
}

/// Publishes and opens readers.
#[async_trait]
pub trait KeyedLog: Send + Sync {
    /// P: what users are placed by, and what an engine on servers of its own cuts its topics into.
    fn partitions(&self) -> u32;

    /// The partition of a key. Every server computes the same.
    fn partition_of(&self, key: u64) -> u32 {
        partition_of(key, self.partitions())
    }

    /// Appends a record; returns as how many. On `Ok` every reader that held one of the keys before this call began gets it,
    /// for each key in the order of these calls, at least once; as several records, each naming some of the keys, where it was
    /// written as several.
    ///
    /// # Errors
    /// `NotApplied`: nobody gets it. `Unknown`: some may; publishing again may repeat it.
    async fn publish(&self, topic: Topic, record: Record) -> BackendResult<u64>;

    /// Asks whether the log can be written to.
    async fn probe(&self) -> BackendResult<()>;

    /// Opens a reader that holds no keys yet.
    async fn reader(&self, name: &str) -> BackendResult<Arc<dyn LogReader>>;

    /// Joins a consumer group that reads every record of a topic, each by one member, from where it last committed (a
    /// new group: from the beginning of what is retained).
    async fn group(&self, topic: Topic, group: &str) -> BackendResult<Arc<dyn GroupReader>>;
}

/// Reads the records of the keys that it holds.
#[async_trait]
pub trait LogReader: Send + Sync {
    /// Holds one more key, or holds it once more: as many [`LogReader::unsubscribe`] calls let it go. When it returns,
    /// the position is fixed: every record published from now on is seen.
    async fn subscribe(&self, topic: Topic, key: u64) -> BackendResult<()>;

    /// Lets a key go.
    async fn unsubscribe(&self, topic: Topic, key: u64) -> BackendResult<()>;

    /// Waits for records, at least one. Dropping the future loses nothing. One task at a time calls this.
    async fn next(&self) -> BackendResult<Vec<Delivered>>;

    /// How far behind it is in each partition that it reads.
    async fn lag(&self) -> Vec<PartitionLag>;
}

/// How far a member of a group has come in the partitions that it had: the offset behind the last record of each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupPosition(pub BTreeMap<u32, u64>);

/// Reads all records of a topic, and remembers how far it came.
#[async_trait]
pub trait GroupReader: Send + Sync {
    /// Waits for records, at least one. Dropping the future loses nothing. One task at a time calls this.
    async fn next(&self) -> BackendResult<Vec<Delivered>>;

    /// How far what [`GroupReader::next`] has returned goes.
    fn position(&self) -> GroupPosition;

    /// Remembers that everything returned up to a position is dealt with. What was not committed comes again after a
    /// restart.
    async fn commit(&self, to: &GroupPosition) -> BackendResult<()>;

    /// How far behind it is in each partition that it has.
    async fn lag(&self) -> Vec<PartitionLag>;
}

/// Hashes a key to a partition: the finalizer of `splitmix64`, which spreads consecutive ids evenly, then a multiply to
/// scale. Stable for ever: placement and Kafka's partitions depend on it. Source: Steele, Lea, Flood, "Fast splittable
/// pseudorandom number generators", 2014.
#[must_use]
pub fn partition_of(key: u64, partitions: u32) -> u32 {
    let mut x = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 31;
    ((u128::from(x) * u128::from(partitions)) >> 64) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_keys_spread_evenly() {
        let mut counts = [0_u32; 16];
        (0..16_000).for_each(|key| counts[partition_of(key, 16) as usize] += 1);
        assert!(counts.iter().all(|c| (800..1200).contains(c)), "{counts:?}");
    }

    #[test]
    fn the_hash_never_changes() {
        assert_eq!([0, 1, 2, 1_000_000].map(|k| partition_of(k, 16)), [14, 9, 9, 6]);
    }
}
