//! The keyed log in one process: recent records in memory, all retained ones in the data folder.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;

use super::{Delivered, GroupReader, KeyedLog, LogReader, PartitionLag, Record, Topic};
use crate::backends::store::{Change, Durability, EmbeddedStore, Keyspace};
use crate::backends::{BackendError, BackendResult, error::ErrorKind};
use crate::runtime::clock;

/// Records that a partition keeps in memory for its readers.
const RECENT_RECORDS_MAX: usize = 1_024;

/// Records that a partition retains on disk. A reader that is further behind misses the rest, as with any log.
const RETAINED_RECORDS_MAX: u64 = 65_536;

/// Records that one `next` returns at most.
const READ_RECORDS_MAX: usize = 512;

/// A log inside a data folder. Clones are the same log.
#[derive(Clone)]
pub struct EmbeddedLog {
    inner: Arc<Inner>,
}

/// Where a group reads next, by partition.
type GroupPositions = Arc<Mutex<Vec<u64>>>;

struct Inner {
    store: EmbeddedStore,
    records: Keyspace,
    commits: Keyspace,
    partitions: u32,
    topics: HashMap<Topic, Vec<Partition>>,
    /// Positions of the consumer groups. Written by group readers.
    groups: Mutex<HashMap<(Topic, String), GroupPositions>>,
    group_news: Notify,
}

#[derive(Default)]
struct Partition(Mutex<PartitionState>);

#[derive(Default)]
struct PartitionState {
    /// Offset of the next record.
    next: u64,
    /// The newest records, oldest first, without holes.
    recent: VecDeque<Delivered>,
    /// Readers that hold a key of this partition.
    readers: Vec<Weak<Notify>>,
}

impl Partition {
    fn lock(&self) -> MutexGuard<'_, PartitionState> {
        self.0.lock().expect("no panic while held")
    }
}

impl EmbeddedLog {
    /// Opens the log of a data folder.
    ///
    /// # Errors
    /// When the folder was made with another number of partitions.
    pub fn open(store: &EmbeddedStore, partitions: u32) -> BackendResult<Self> {
        let records = store.keyspace("log")?;
        let commits = store.keyspace("log-commits")?;
        check_partitions(&commits, partitions)?;
        let open = records.get_ref().map_err(read_failed)?;
        let mut topics = HashMap::new();
        for topic in Topic::ALL {
            let mut all = Vec::new();
            for partition in 0..partitions {
                let last = open.prefix(partition_key(topic, partition)).next_back();
                let next = match last.map(fjall::Guard::key).transpose().map_err(read_failed)? {
                    Some(key) => offset_of(&key).ok_or_else(corrupt)? + 1,
                    None => 0,
                };
                all.push(Partition(Mutex::new(PartitionState { next, ..PartitionState::default() })));
            }
            topics.insert(topic, all);
        }
        let groups = Mutex::default();
        let store = store.clone();
        let group_news = Notify::new();
        Ok(Self { inner: Arc::new(Inner { store, records, commits, partitions, topics, groups, group_news }) })
    }
}

fn check_partitions(commits: &Keyspace, partitions: u32) -> BackendResult<()> {
    const KEY: &str = "partitions";
    match commits.get(KEY).map_err(read_failed)? {
        None => commits.get_ref().map_err(read_failed)?.insert(KEY, partitions.to_be_bytes()).map_err(read_failed),
        Some(value) if *value == partitions.to_be_bytes() => Ok(()),
        Some(value) => {
            let found = value.as_ref().try_into().map(u32::from_be_bytes).unwrap_or_default();
            let text = format!(
                "this data folder was made with {found} partitions, the configuration says {partitions}: \
                 set partitions to {found}, or start with an empty folder"
            );
            Err(BackendError::not_applied("open log", ErrorKind::Rejected, text))
        }
    }
}

fn read_failed(error: fjall::Error) -> BackendError {
    BackendError::not_applied("log.read", ErrorKind::Unavailable, error)
}

fn corrupt() -> BackendError {
    BackendError::not_applied("log.read", ErrorKind::Corrupt, "a log record has a wrong shape")
}

fn partition_key(topic: Topic, partition: u32) -> Vec<u8> {
    [&[topic as u8][..], &partition.to_be_bytes()].concat()
}

fn record_key(topic: Topic, partition: u32, offset: u64) -> Vec<u8> {
    [partition_key(topic, partition), offset.to_be_bytes().to_vec()].concat()
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
    fn partition(&self, topic: Topic, partition: u32) -> &Partition {
        &self.topics[&topic][partition as usize]
    }

    /// Records from `from` on, at most `limit`, and the position behind them.
    fn read(&self, topic: Topic, partition: u32, from: u64, limit: usize) -> BackendResult<(Vec<Delivered>, u64)> {
        {
            let state = self.partition(topic, partition).lock();
            let first = state.next - state.recent.len() as u64;
            if from >= first {
                let out: Vec<_> = state.recent.iter().skip((from - first) as usize).take(limit).cloned().collect();
                let position = from + out.len() as u64;
                return Ok((out, position));
            }
        }
        let mut out = Vec::new();
        let mut position = from;
        let records = self.records.get_ref().map_err(read_failed)?;
        for guard in records.range(record_key(topic, partition, from)..record_key(topic, partition, u64::MAX)) {
            let (key, value) = guard.into_inner().map_err(read_failed)?;
            let offset = offset_of(&key).ok_or_else(corrupt)?;
            let (at_ms, record) = decode(&value).ok_or_else(corrupt)?;
            out.push(Delivered { topic, partition, offset, at_ms, record: Arc::new(record) });
            position = offset + 1;
            if out.len() == limit {
                break;
            }
        }
        Ok((out, position))
    }
}

#[async_trait]
impl KeyedLog for EmbeddedLog {
    fn partitions(&self) -> u32 {
        self.inner.partitions
    }

    async fn publish(&self, topic: Topic, partition: u32, record: Record) -> BackendResult<()> {
        let at_ms = clock::unix_ms();
        let value = encode(at_ms, &record);
        let pending = {
            let mut state = self.inner.partition(topic, partition).lock();
            let offset = state.next;
            let keyspace = &self.inner.records;
            let mut changes = vec![Change {
                keyspace: keyspace.clone(),
                key: record_key(topic, partition, offset),
                value: Some(value),
            }];
            if let Some(old) = offset.checked_sub(RETAINED_RECORDS_MAX) {
                changes.push(Change {
                    keyspace: keyspace.clone(),
                    key: record_key(topic, partition, old),
                    value: None,
                });
            }
            let pending = self.inner.store.enqueue("log.publish", changes, Durability::Process)?;
            state.next += 1;
            if state.recent.len() == RECENT_RECORDS_MAX {
                state.recent.pop_front();
            }
            state.recent.push_back(Delivered { topic, partition, offset, at_ms, record: Arc::new(record) });
            state.readers.retain(|reader| {
                reader.upgrade().is_some_and(|notify| {
                    notify.notify_one();
                    true
                })
            });
            pending
        };
        self.inner.group_news.notify_waiters();
        pending.wait().await
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

    async fn group(&self, topic: Topic, group: &str) -> BackendResult<Box<dyn GroupReader>> {
        let mut groups = self.inner.groups.lock().expect("no panic while held");
        let positions = if let Some(positions) = groups.get(&(topic, group.to_owned())) {
            Arc::clone(positions)
        } else {
            let mut all = Vec::new();
            for partition in 0..self.inner.partitions {
                let value = self.inner.commits.get(commit_key(topic, group, partition)).map_err(read_failed)?;
                let committed = value.and_then(|v| v.as_ref().try_into().ok()).map_or(0, u64::from_be_bytes);
                all.push(committed);
            }
            let positions = Arc::new(Mutex::new(all));
            groups.insert((topic, group.to_owned()), Arc::clone(&positions));
            positions
        };
        let log = Arc::clone(&self.inner);
        Ok(Box::new(EmbeddedGroup { log, topic, group: group.to_owned(), positions, dealt_with: HashMap::new() }))
    }
}

fn commit_key(topic: Topic, group: &str, partition: u32) -> String {
    format!("{}/{group}/{partition}", topic.name())
}

struct EmbeddedReader {
    log: Arc<Inner>,
    news: Arc<Notify>,
    held: Mutex<Held>,
}

/// What a reader holds. Written by subscribe, unsubscribe and next.
#[derive(Default)]
struct Held {
    keys: HashMap<(Topic, u64), u32>,
    partitions: BTreeMap<(Topic, u32), PartitionRead>,
}

#[derive(Default)]
struct PartitionRead {
    position: u64,
    keys: u32,
}

impl EmbeddedReader {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no panic while held")
    }

    /// What can be read now, without waiting.
    fn take(&self) -> BackendResult<Vec<Delivered>> {
        let mut held = self.held();
        let held = &mut *held;
        let mut out = Vec::new();
        for (&(topic, partition), read) in &mut held.partitions {
            if read.keys == 0 || out.len() >= READ_RECORDS_MAX {
                continue;
            }
            let (records, position) = match self.log.read(topic, partition, read.position, READ_RECORDS_MAX) {
                Ok(read) => read,
                // What was read of others is theirs.
                Err(_) if !out.is_empty() => break,
                Err(error) => return Err(error),
            };
            read.position = position;
            out.extend(
                records.into_iter().filter(|d| d.record.keys.iter().any(|key| held.keys.contains_key(&(topic, *key)))),
            );
        }
        Ok(out)
    }
}

#[async_trait]
impl LogReader for EmbeddedReader {
    async fn subscribe(&self, topic: Topic, key: u64) -> BackendResult<()> {
        let mut held = self.held();
        let count = held.keys.entry((topic, key)).or_default();
        *count += 1;
        if *count > 1 {
            return Ok(());
        }
        let number = super::partition_of(key, self.log.partitions);
        let read = held.partitions.entry((topic, number)).or_default();
        read.keys += 1;
        if read.keys == 1 {
            let mut state = self.log.partition(topic, number).lock();
            read.position = state.next;
            state.readers.push(Arc::downgrade(&self.news));
        }
        Ok(())
    }

    async fn unsubscribe(&self, topic: Topic, key: u64) -> BackendResult<()> {
        let mut held = self.held();
        let Some(count) = held.keys.get_mut(&(topic, key)) else { return Ok(()) };
        *count -= 1;
        if *count > 0 {
            return Ok(());
        }
        held.keys.remove(&(topic, key));
        let number = super::partition_of(key, self.log.partitions);
        if let Some(read) = held.partitions.get_mut(&(topic, number)) {
            read.keys -= 1;
            if read.keys == 0 {
                held.partitions.remove(&(topic, number));
                let mut state = self.log.partition(topic, number).lock();
                state.readers.retain(|r| r.upgrade().is_some_and(|n| !Arc::ptr_eq(&n, &self.news)));
            }
        }
        Ok(())
    }

    async fn next(&self) -> BackendResult<Vec<Delivered>> {
        loop {
            let news = self.news.notified();
            let out = self.take()?;
            if !out.is_empty() {
                return Ok(out);
            }
            news.await;
        }
    }

    async fn lag(&self) -> Vec<PartitionLag> {
        let held = self.held();
        let now = clock::unix_ms();
        held.partitions
            .iter()
            .map(|(&(topic, partition), read)| {
                let state = self.log.partition(topic, partition).lock();
                let records = state.next.saturating_sub(read.position);
                let first = state.next - state.recent.len() as u64;
                let oldest = state.recent.get(read.position.saturating_sub(first) as usize);
                let age_ms = oldest.map_or(0, |d| now.saturating_sub(d.at_ms));
                PartitionLag { topic, partition, records, age_ms }
            })
            .collect()
    }
}

struct EmbeddedGroup {
    log: Arc<Inner>,
    topic: Topic,
    group: String,
    /// Shared by the group's members.
    positions: GroupPositions,
    /// Positions behind what this member was given, not committed yet.
    dealt_with: HashMap<u32, u64>,
}

impl EmbeddedGroup {
    fn take(&mut self) -> BackendResult<Vec<Delivered>> {
        let mut positions = self.positions.lock().expect("no panic while held");
        let mut out = Vec::new();
        for (partition, position) in (0_u32..).zip(positions.iter_mut()) {
            let (records, next) = match self.log.read(self.topic, partition, *position, READ_RECORDS_MAX) {
                Ok(read) => read,
                Err(_) if !out.is_empty() => break,
                Err(error) => return Err(error),
            };
            if !records.is_empty() {
                *position = next;
                self.dealt_with.insert(partition, next);
                out.extend(records);
            }
        }
        Ok(out)
    }
}

#[async_trait]
impl GroupReader for EmbeddedGroup {
    async fn next(&mut self) -> BackendResult<Vec<Delivered>> {
        let log = Arc::clone(&self.log);
        loop {
            let mut news = std::pin::pin!(log.group_news.notified());
            news.as_mut().enable();
            let out = self.take()?;
            if !out.is_empty() {
                return Ok(out);
            }
            news.await;
        }
    }

    async fn commit(&mut self) -> BackendResult<()> {
        let changes = self
            .dealt_with
            .drain()
            .map(|(partition, position)| Change {
                keyspace: self.log.commits.clone(),
                key: commit_key(self.topic, &self.group, partition).into_bytes(),
                value: Some(position.to_be_bytes().to_vec()),
            })
            .collect();
        self.log.store.write("log.commit", changes, Durability::Process).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::contract::EmbeddedPlace;
    use crate::backends::log::contract::log_contract;

    fn place() -> EmbeddedPlace<dyn KeyedLog> {
        EmbeddedPlace::<dyn KeyedLog>::new(|store| Arc::new(EmbeddedLog::open(store, 8).expect("opens")))
    }

    log_contract!(place());

    #[test]
    fn another_number_of_partitions_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = EmbeddedStore::open(folder.path()).expect("opens");
        EmbeddedLog::open(&store, 8).expect("opens");
        let error = EmbeddedLog::open(&store, 9).err().expect("refused").to_string();
        assert!(error.contains("8 partitions"), "{error}");
    }
}
