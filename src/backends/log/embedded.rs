//! The keyed log in one process: recent records in memory, all retained ones in the data folder.
//!
//! Each topic is one queue: servers of one process have nothing to gain from partitions, and a group message is one record for all
//! of its members, on disk and in memory.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;

use super::embedded_group::{EmbeddedGroup, SharedState};
use super::{Delivered, GroupReader, KeyedLog, LogReader, PartitionLag, Record, Topic};
use crate::backends::store::{Change, Durability, EmbeddedStore, Keyspace};
use crate::backends::{BackendError, BackendResult, error::ErrorKind};
use crate::runtime::clock;

/// Records that a topic keeps in memory for its readers, at most, and bytes of them.
const RECENT_RECORDS_MAX: usize = 8_192;
const RECENT_BYTES_MAX: usize = 32 << 20;

/// Records that a topic retains on disk. A reader that is further behind misses the rest, as with any log.
const RETAINED_RECORDS_MAX: u64 = 1 << 20;

/// Records that one `next` returns at most.
pub(super) const READ_RECORDS_MAX: usize = 512;

/// The number of a topic's only queue, in keys and to readers.
pub(super) const QUEUE: u32 = 0;

/// A log inside a data folder. Clones are the same log.
#[derive(Clone)]
pub struct EmbeddedLog {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) store: EmbeddedStore,
    records: Keyspace,
    pub(super) commits: Keyspace,
    /// What users are placed by; the log has no use for it.
    partitions: u32,
    topics: HashMap<Topic, Queue>,
    /// Positions of the consumer groups. Written by group readers.
    pub(super) groups: Mutex<HashMap<(Topic, String), SharedState>>,
    pub(super) group_news: Notify,
}

#[derive(Default)]
struct Queue(Mutex<QueueState>);

#[derive(Default)]
struct QueueState {
    /// Offset of the next record.
    next: u64,
    /// The newest records, oldest first, without holes.
    recent: VecDeque<Delivered>,
    /// Bytes of their payloads and keys.
    recent_bytes: usize,
    /// Somebody looked for records on the disk: they may be on their way there.
    is_read_on_disk: bool,
    /// Readers that hold a key of this topic.
    readers: Vec<Weak<Notify>>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.0.lock().expect("no panic while held")
    }
}

impl QueueState {
    fn push(&mut self, delivered: Delivered) {
        self.next = delivered.offset + 1;
        self.recent_bytes += bytes_of(&delivered.record);
        self.recent.push_back(delivered);
        while self.recent.len() > RECENT_RECORDS_MAX || self.recent_bytes > RECENT_BYTES_MAX {
            let Some(oldest) = self.recent.pop_front() else { return };
            self.recent_bytes -= bytes_of(&oldest.record);
        }
    }

    fn wake_readers(&mut self) {
        self.readers.retain(|reader| {
            reader.upgrade().is_some_and(|notify| {
                notify.notify_one();
                true
            })
        });
    }
}

fn bytes_of(record: &Record) -> usize {
    record.payload.len() + record.keys.len() * size_of::<u64>()
}

impl EmbeddedLog {
    /// Opens the log of a data folder.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn open(store: &EmbeddedStore, partitions: u32) -> BackendResult<Self> {
        let records = store.keyspace("log")?;
        let commits = store.keyspace("log-commits")?;
        let open = records.get_ref().map_err(read_failed)?;
        let mut topics = HashMap::new();
        for topic in Topic::ALL {
            // What was cut into partitions by an older version is left behind but for the first of them.
            for old in open.range(queue_key(topic, QUEUE + 1)..[topic as u8 + 1].to_vec()) {
                open.remove(old.key().map_err(read_failed)?).map_err(read_failed)?;
            }
            let last = open.prefix(queue_key(topic, QUEUE)).next_back();
            let next = match last.map(fjall::Guard::key).transpose().map_err(read_failed)? {
                Some(key) => offset_of(&key).ok_or_else(corrupt)? + 1,
                None => 0,
            };
            topics.insert(topic, Queue(Mutex::new(QueueState { next, ..QueueState::default() })));
        }
        let groups = Mutex::default();
        let store = store.clone();
        let group_news = Notify::new();
        Ok(Self { inner: Arc::new(Inner { store, records, commits, partitions, topics, groups, group_news }) })
    }
}

pub(super) fn read_failed(error: fjall::Error) -> BackendError {
    BackendError::not_applied("log.read", ErrorKind::Unavailable, error)
}

fn corrupt() -> BackendError {
    BackendError::not_applied("log.read", ErrorKind::Corrupt, "a log record has a wrong shape")
}

fn queue_key(topic: Topic, number: u32) -> Vec<u8> {
    [&[topic as u8][..], &number.to_be_bytes()].concat()
}

fn record_key(topic: Topic, offset: u64) -> Vec<u8> {
    [queue_key(topic, QUEUE), offset.to_be_bytes().to_vec()].concat()
}

fn offset_of(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(5..13)?.try_into().ok()?))
}

/// `at_ms`, number of keys, keys, payload; all integers big-endian.
fn encode(at_ms: u64, record: &Record) -> Vec<u8> {
    let mut out = Vec::with_capacity(12 + record.keys.len() * 8 + record.payload.len());
    out.extend_from_slice(&at_ms.to_be_bytes());
    out.extend_from_slice(&(record.keys.len() as u32).to_be_bytes());
    record.keys.iter().for_each(|key| out.extend_from_slice(&key.to_be_bytes()));
    out.extend_from_slice(&record.payload);
    out
}

fn decode(value: &[u8]) -> Option<(u64, Record)> {
    let at_ms = u64::from_be_bytes(value.get(..8)?.try_into().ok()?);
    let count = u32::from_be_bytes(value.get(8..12)?.try_into().ok()?) as usize;
    let end = 12 + count.checked_mul(8)?;
    let keys = value.get(12..end)?.chunks_exact(8).map(|c| u64::from_be_bytes(c.try_into().expect("eight"))).collect();
    Some((at_ms, Record { keys, payload: Bytes::copy_from_slice(value.get(end..)?) }))
}

impl Inner {
    fn queue(&self, topic: Topic) -> &Queue {
        &self.topics[&topic]
    }

    /// Records from `from` on, at most `limit`, and the position behind them.
    pub(super) fn read(&self, topic: Topic, from: u64, limit: usize) -> BackendResult<(Vec<Delivered>, u64)> {
        {
            let mut state = self.queue(topic).lock();
            let first = state.next - state.recent.len() as u64;
            state.is_read_on_disk |= from < first;
            if from >= first {
                let out: Vec<_> = state.recent.iter().skip((from - first) as usize).take(limit).cloned().collect();
                let position = from + out.len() as u64;
                return Ok((out, position));
            }
        }
        let mut out = Vec::new();
        let mut position = from;
        let records = self.records.get_ref().map_err(read_failed)?;
        for guard in records.range(record_key(topic, from)..record_key(topic, u64::MAX)) {
            let (key, value) = guard.into_inner().map_err(read_failed)?;
            let offset = offset_of(&key).ok_or_else(corrupt)?;
            let (at_ms, record) = decode(&value).ok_or_else(corrupt)?;
            out.push(Delivered { topic, partition: QUEUE, offset, at_ms, record: Arc::new(record) });
            position = offset + 1;
            if out.len() == limit {
                break;
            }
        }
        Ok((out, position))
    }
}

impl Inner {
    /// How far a position is behind.
    pub(super) fn lag(&self, topic: Topic, position: u64) -> PartitionLag {
        let next = self.queue(topic).lock().next;
        let records = next.saturating_sub(position);
        // From the disk, where it is older than what is in memory.
        let oldest = || self.read(topic, position, 1).ok()?.0.first().map(|delivered| delivered.at_ms);
        let at_ms = (records > 0).then(oldest).flatten();
        let age_ms = at_ms.map_or(0, |at_ms| clock::unix_ms().saturating_sub(at_ms));
        PartitionLag { topic, partition: QUEUE, records, age_ms }
    }
}

#[async_trait]
impl KeyedLog for EmbeddedLog {
    fn partitions(&self) -> u32 {
        self.inner.partitions
    }

    async fn publish(&self, topic: Topic, record: Record) -> BackendResult<u64> {
        if record.keys.is_empty() {
            return Ok(0);
        }
        let at_ms = clock::unix_ms();
        let value = encode(at_ms, &record);
        let pending = {
            let mut state = self.inner.queue(topic).lock();
            let offset = state.next;
            let change =
                |offset, value| Change { keyspace: self.inner.records.clone(), key: record_key(topic, offset), value };
            let mut changes = vec![change(offset, Some(value))];
            changes.extend(offset.checked_sub(RETAINED_RECORDS_MAX).map(|old| change(old, None)));
            let pending = self.inner.store.enqueue("log.publish", changes, Durability::Process)?;
            state.push(Delivered { topic, partition: QUEUE, offset, at_ms, record: Arc::new(record) });
            state.wake_readers();
            pending
        };
        self.inner.group_news.notify_waiters();
        let written = pending.wait().await;
        let mut state = self.inner.queue(topic).lock();
        if std::mem::take(&mut state.is_read_on_disk) {
            state.wake_readers();
            self.inner.group_news.notify_waiters();
        }
        written.map(|()| 1)
    }

    async fn probe(&self) -> BackendResult<()> {
        let keyspace = self.inner.commits.clone();
        let change = Change { keyspace, key: b"probe".to_vec(), value: Some(Vec::new()) };
        self.inner.store.write("log.probe", vec![change], Durability::Process).await
    }

    async fn reader(&self, _name: &str) -> BackendResult<Arc<dyn LogReader>> {
        Ok(Arc::new(EmbeddedReader {
            log: Arc::clone(&self.inner),
            news: Arc::new(Notify::new()),
            held: Mutex::default(),
        }))
    }

    async fn group(&self, topic: Topic, group: &str) -> BackendResult<Arc<dyn GroupReader>> {
        Ok(Arc::new(EmbeddedGroup::join(&self.inner, topic, group)?))
    }
}

struct EmbeddedReader {
    log: Arc<Inner>,
    news: Arc<Notify>,
    held: Mutex<Held>,
}

/// What a reader holds of each topic. Written by subscribe, unsubscribe and next.
type Held = HashMap<Topic, TopicRead>;

#[derive(Default)]
struct TopicRead {
    position: u64,
    /// How often each key is held.
    keys: HashMap<u64, u32>,
}

impl EmbeddedReader {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no panic while held")
    }

    /// What can be read now, without waiting, and whether anything was read: records of other keys count too.
    fn take(&self) -> BackendResult<(Vec<Delivered>, bool)> {
        let mut held = self.held();
        let mut out = Vec::new();
        let mut has_read = false;
        for (&topic, read) in &mut *held {
            let (records, position) = match self.log.read(topic, read.position, READ_RECORDS_MAX) {
                Ok(read) => read,
                // What was read of others is theirs.
                Err(_) if !out.is_empty() => break,
                Err(error) => return Err(error),
            };
            has_read |= position > read.position;
            read.position = position;
            let is_held = |d: &Delivered| d.record.keys.iter().any(|key| read.keys.contains_key(key));
            out.extend(records.into_iter().filter(is_held));
        }
        Ok((out, has_read))
    }
}

#[async_trait]
impl LogReader for EmbeddedReader {
    async fn subscribe(&self, topic: Topic, key: u64) -> BackendResult<()> {
        let mut held = self.held();
        let read = held.entry(topic).or_default();
        if read.keys.is_empty() {
            let mut state = self.log.queue(topic).lock();
            read.position = state.next;
            state.readers.push(Arc::downgrade(&self.news));
        }
        *read.keys.entry(key).or_default() += 1;
        Ok(())
    }

    async fn unsubscribe(&self, topic: Topic, key: u64) -> BackendResult<()> {
        let mut held = self.held();
        let Some(read) = held.get_mut(&topic) else { return Ok(()) };
        let Some(count) = read.keys.get_mut(&key) else { return Ok(()) };
        *count -= 1;
        if *count > 0 {
            return Ok(());
        }
        read.keys.remove(&key);
        if read.keys.is_empty() {
            held.remove(&topic);
            let mut state = self.log.queue(topic).lock();
            state.readers.retain(|r| r.upgrade().is_some_and(|n| !Arc::ptr_eq(&n, &self.news)));
        }
        Ok(())
    }

    async fn next(&self) -> BackendResult<Vec<Delivered>> {
        loop {
            let news = self.news.notified();
            let (out, has_read) = self.take()?;
            if !out.is_empty() {
                return Ok(out);
            }
            if has_read {
                // More may lie behind a full read of other keys' records, and the news of it may have come already.
                tokio::task::yield_now().await;
            } else {
                news.await;
            }
        }
    }

    async fn lag(&self) -> Vec<PartitionLag> {
        self.held().iter().map(|(&topic, read)| self.log.lag(topic, read.position)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::contract::EmbeddedPlace;
    use crate::backends::log::contract::log_contract;

    /// Nothing here takes this long, unless it waits for ever.
    const STUCK: std::time::Duration = std::time::Duration::from_mins(1);

    fn place() -> EmbeddedPlace<dyn KeyedLog> {
        EmbeddedPlace::<dyn KeyedLog>::new(|store| Arc::new(EmbeddedLog::open(store, 8).expect("opens")))
    }

    log_contract!(place());

    #[tokio::test]
    async fn a_folder_of_many_partitions_is_taken_over_with_any_number() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = EmbeddedStore::open(folder.path()).expect("opens");
        let record = |text: &'static str| Record { keys: vec![1], payload: Bytes::from_static(text.as_bytes()) };
        let old = store.keyspace("log").expect("opens").get_ref().expect("opens");
        for (number, offset) in [(0, 4), (1, 9), (7, 2)] {
            let key = [queue_key(Topic::Inbox, number), u64::to_be_bytes(offset).to_vec()].concat();
            old.insert(key, encode(1, &record("old"))).expect("writes");
        }
        let log = EmbeddedLog::open(&store, 3).expect("opens");
        assert_eq!(log.publish(Topic::Inbox, record("new")).await.ok(), Some(1));
        let group = log.group(Topic::Inbox, "push").await.expect("joins");
        let read = group.next().await.expect("reads");
        let read: Vec<_> = read.iter().map(|d| (d.offset, &*d.record.payload)).collect();
        assert_eq!(read, [(4, &b"old"[..]), (5, b"new")]);
        assert_eq!(old.iter().count(), 2, "what nobody reads is gone");
    }

    #[tokio::test]
    async fn what_lies_behind_more_records_of_others_than_one_read_takes_is_read_without_further_news() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = EmbeddedStore::open(folder.path()).expect("opens");
        let log = EmbeddedLog::open(&store, 3).expect("opens");
        let record = |key| Record { keys: vec![key], payload: Bytes::from_static(b"x") };
        let reader = log.reader("chat-1").await.expect("opens");
        reader.subscribe(Topic::Inbox, 7).await.expect("subscribes");
        for key in std::iter::repeat_n(9, 3 * READ_RECORDS_MAX).chain([7]) {
            log.publish(Topic::Inbox, record(key)).await.expect("publishes");
        }
        let read = tokio::time::timeout(STUCK, reader.next()).await.expect("is not stuck").expect("reads");
        assert_eq!(read.iter().map(|d| d.offset).collect::<Vec<_>>(), [3 * READ_RECORDS_MAX as u64]);
    }

    #[tokio::test]
    async fn the_age_of_the_lag_is_that_of_the_oldest_record_also_where_the_memory_has_newer_ones_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = EmbeddedStore::open(folder.path()).expect("opens");
        let old = store.keyspace("log").expect("opens").get_ref().expect("opens");
        let record = |bytes| Record { keys: vec![1], payload: Bytes::from(vec![0; bytes]) };
        old.insert(record_key(Topic::Inbox, 0), encode(clock::unix_ms() - 60_000, &record(1))).expect("writes");
        let log = EmbeddedLog::open(&store, 3).expect("opens");
        log.publish(Topic::Inbox, record(1)).await.expect("publishes");
        let lag = [0, 1, 2].map(|position| log.inner.lag(Topic::Inbox, position));
        assert_eq!(lag.map(|lag| lag.records), [2, 1, 0]);
        assert_eq!(lag.map(|lag| lag.age_ms >= 60_000), [true, false, false], "{lag:?}");
        assert_eq!(lag[2].age_ms, 0);
    }

    #[test]
    fn the_memory_is_bounded_by_records_and_by_bytes() {
        let mut state = QueueState::default();
        let mut push = |bytes| {
            let record = Arc::new(Record { keys: vec![1], payload: Bytes::from(vec![0; bytes]) });
            state.push(Delivered { topic: Topic::Inbox, partition: QUEUE, offset: state.next, at_ms: 1, record });
            (state.recent.len(), state.recent_bytes, state.next)
        };
        let small = (0..RECENT_RECORDS_MAX + 5).map(|_| push(2)).last().expect("some");
        assert_eq!(small, (RECENT_RECORDS_MAX, RECENT_RECORDS_MAX * 10, RECENT_RECORDS_MAX as u64 + 5));
        let large = (0..40).map(|_| push(1 << 20)).last().expect("some");
        assert_eq!((large.0, large.1), (31, 31 * ((1 << 20) + 8)));
        assert_eq!(push(RECENT_BYTES_MAX).0, 0, "one that is larger is read from the disk");
    }
}
