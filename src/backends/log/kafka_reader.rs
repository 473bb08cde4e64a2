//! The reader of a Kafka log: assigns itself the partitions of the keys that it holds, and reads on with another consumer when its own
//! gives nothing any more.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use futures_util::FutureExt;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::{KafkaResult, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::{Notify, RwLock};

use super::kafka::{ANSWER_TIMEOUT, Inner, blocking, failed};
use super::kafka_batch::gather;
use super::kafka_lag::{Ends, offsets};
use super::{Delivered, LogReader, PartitionLag, Topic};
use crate::backends::error::{BackendError, BackendResult, ErrorKind};
use crate::runtime::clock;

/// How long a broker holds a fetch that has nothing to give; a partition that is read anew waits for the end of the last.
/// An empty fetch costs broker and reader as much as one that carries something, and every server has one under way.
const FETCH_WAIT_MS: &str = "200";

/// Longest that a subscription waits for where its partition ends.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_millis(2_500);

/// A consumer that gives nothing for this long, though there is something to read, is replaced.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// Records that are read again of a partition which ends before what was read of it.
const REREAD_MAX: u64 = 500;

/// How long a partition may end before what was read of it: a new leader learns within that what the last one had acknowledged.
const WENT_BACK_FOR: Duration = Duration::from_secs(5);

fn make_consumer(log: &Inner, name: &str) -> KafkaResult<StreamConsumer> {
    let mut config = log.config.clone();
    config
        .set("client.id", format!("chatctl-{name}"))
        // Only manual assignment: the group is a word that the client library asks for.
        .set("group.id", format!("chatctl-reader-{name}"))
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("fetch.wait.max.ms", FETCH_WAIT_MS);
    config.create()
}

/// Where a partition ends now. A broker that has only just come to lead it, as of a new topic, says for a moment that it
/// does not.
fn fetch_end(consumer: &StreamConsumer, topic: &str, partition: i32) -> KafkaResult<i64> {
    let deadline = clock::instant() + ANSWER_TIMEOUT;
    loop {
        match consumer.fetch_watermarks(topic, partition, ANSWER_TIMEOUT) {
            Err(error)
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::NotLeaderForPartition)
                    && clock::instant() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(50));
            }
            answer => return answer.map(|(_, end)| end),
        }
    }
}

/// Held while a partition is taken up or let go.
type Turn = Arc<tokio::sync::Mutex<()>>;

/// A reader of the partitions whose keys it holds.
pub(super) struct KafkaReader {
    log: Arc<Inner>,
    name: String,
    /// Replaced by [`KafkaReader::renew`].
    consumer: ArcSwap<StreamConsumer>,
    /// Told when it was replaced.
    renewed: Notify,
    held: Mutex<Held>,
    /// Each held while its partition is taken up or let go.
    changing: Mutex<HashMap<(Topic, u32), Turn>>,
    /// Written while the consumer is replaced, read while what it is assigned changes.
    replacing: RwLock<()>,
    /// Since when `next` waits for a record, on [`clock::now_us`]; 0 while it does not.
    waiting_since_us: AtomicU64,
    /// Since when a partition ends before what was read of it, on the same clock; 0 while none does.
    went_back_since_us: AtomicU64,
    /// When the consumer was made.
    made_us: AtomicU64,
}

/// What a reader holds. Written by subscribe, unsubscribe and next.
#[derive(Default)]
struct Held {
    keys: HashMap<(Topic, u64), u32>,
    partitions: HashMap<(Topic, u32), PartitionRead>,
}

#[derive(Default)]
struct PartitionRead {
    /// Distinct keys of this partition that are held.
    keys: u32,
    /// Offset of the next record to read.
    position: u64,
    ends: Ends,
}

impl Held {
    /// Counts a key in, if its partition is held.
    fn count_in(&mut self, topic: Topic, partition: u32, key: u64) -> bool {
        let Some(read) = self.partitions.get_mut(&(topic, partition)) else { return false };
        let count = self.keys.entry((topic, key)).or_default();
        *count += 1;
        if *count == 1 {
            read.keys += 1;
        }
        true
    }
}

impl KafkaReader {
    /// A reader that holds nothing yet.
    pub(super) fn open(log: &Arc<Inner>, name: &str) -> BackendResult<Self> {
        let consumer = make_consumer(log, name).map_err(|e| failed("log.reader", e))?;
        Ok(Self {
            log: Arc::clone(log),
            name: name.to_owned(),
            consumer: ArcSwap::from_pointee(consumer),
            renewed: Notify::new(),
            held: Mutex::default(),
            changing: Mutex::default(),
            replacing: RwLock::default(),
            waiting_since_us: AtomicU64::new(0),
            went_back_since_us: AtomicU64::new(0),
            made_us: AtomicU64::new(clock::now_us()),
        })
    }

    /// Whether the consumer is of no use any more: there is something to read for so long, and it gives nothing; or the topics are
    /// not those that it knew, since they end before what was read of them.
    ///
    /// A consumer of the client library was seen to read nothing any more of topics that were lost with a broker's disk and made
    /// again.
    fn is_stuck(&self, lag: &[PartitionLag], ends: &HashMap<(Topic, u32), u64>) -> bool {
        let stuck_us = STUCK_AFTER.as_micros() as u64;
        let now_us = clock::now_us();
        if now_us.saturating_sub(self.made_us.load(Ordering::Relaxed)) < stuck_us {
            return false;
        }
        let waiting_since_us = self.waiting_since_us.load(Ordering::Relaxed);
        let waits = waiting_since_us > 0 && now_us.saturating_sub(waiting_since_us) > stuck_us;
        let unread = |l: &PartitionLag| {
            l.records > 0 && l.age_ms > STUCK_AFTER.as_millis() as u64 && ends.contains_key(&(l.topic, l.partition))
        };
        self.went_back_for_long(now_us) || (waits && lag.iter().any(unread))
    }

    /// Notes whether a partition ends before what had been read of it when it was asked. A new leader says so for a moment.
    fn note_ends(&self, before: &[((Topic, u32), u64)], ends: &HashMap<(Topic, u32), u64>) {
        let went_back = before.iter().any(|(place, position)| ends.get(place).is_some_and(|end| position > end));
        let since_us = self.went_back_since_us.load(Ordering::Relaxed);
        let since_us = match (went_back, since_us) {
            (false, _) => 0,
            (true, 0) => clock::now_us().max(1),
            (true, since_us) => since_us,
        };
        self.went_back_since_us.store(since_us, Ordering::Relaxed);
    }

    fn went_back_for_long(&self, now_us: u64) -> bool {
        let since_us = self.went_back_since_us.load(Ordering::Relaxed);
        since_us > 0 && now_us.saturating_sub(since_us) > WENT_BACK_FOR.as_micros() as u64
    }

    /// Reads on with another consumer: from where the last one was, or from near the end of a topic that ends before that.
    async fn renew(&self, ends: &HashMap<(Topic, u32), u64>) -> KafkaResult<()> {
        let _replacing = self.replacing.write().await;
        tracing::warn!(reader = self.name, "a Kafka consumer reads nothing any more: another one reads on");
        self.made_us.store(clock::now_us(), Ordering::Relaxed);
        let consumer = make_consumer(&self.log, &self.name)?;
        let mut list = TopicPartitionList::new();
        {
            let mut held = self.held();
            for (place @ (topic, partition), read) in &mut held.partitions {
                if let Some(end) = ends.get(place).filter(|end| read.position > **end) {
                    // Made anew, or cut off behind what some replica had. Readers take repeats; not those of days.
                    read.position = end.saturating_sub(REREAD_MAX);
                    read.ends.clear();
                }
                let from = Offset::Offset(read.position as i64);
                list.add_partition_offset(&self.log.topic(*topic), *partition as i32, from)?;
            }
        }
        consumer.assign(&list)?;
        self.consumer.store(Arc::new(consumer));
        self.renewed.notify_one();
        Ok(())
    }

    /// What is held while a partition is taken up or let go: one that is slow holds up no other.
    fn changing(&self, topic: Topic, partition: u32) -> Turn {
        Arc::clone(self.changing.lock().expect("no panic while held").entry((topic, partition)).or_default())
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no panic while held")
    }

    fn list(&self, topic: Topic, partition: u32, offset: Offset) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.log.topic(topic), partition as i32, offset)?;
        Ok(list)
    }

    /// Where the partition ends now.
    async fn end_of(&self, topic: Topic, partition: u32) -> KafkaResult<u64> {
        let (consumer, name) = (self.consumer.load_full(), self.log.topic(topic));
        let end = blocking(move || fetch_end(&consumer, &name, partition as i32)).await?;
        Ok(u64::try_from(end).unwrap_or(0))
    }

    /// Begins to read a partition at its end.
    async fn take_up(&self, topic: Topic, partition: u32) -> KafkaResult<()> {
        let end = self.end_of(topic, partition).await?;
        let _replacing = self.replacing.read().await;
        let list = self.list(topic, partition, Offset::Offset(end as i64))?;
        self.consumer.load().incremental_assign(&list)?;
        self.held().partitions.insert((topic, partition), PartitionRead { position: end, ..PartitionRead::default() });
        Ok(())
    }

    /// Takes a message; `None` when nobody here holds one of its keys.
    fn take(&self, message: &BorrowedMessage<'_>) -> Option<Delivered> {
        let (topic, partition, offset) = self.log.place_of(message)?;
        let mut held = self.held();
        let read = held.partitions.get_mut(&(topic, partition))?;
        // Also where it goes back: a topic that was made anew begins at 0.
        read.position = offset + 1;
        let delivered = self.log.delivered(message)?;
        let is_held = delivered.record.keys.iter().any(|key| held.keys.contains_key(&(delivered.topic, *key)));
        is_held.then_some(delivered)
    }
}

#[async_trait]
impl LogReader for KafkaReader {
    async fn subscribe(&self, topic: Topic, key: u64) -> BackendResult<()> {
        const OPERATION: &str = "log.subscribe";
        let partition = super::partition_of(key, self.log.partitions);
        if self.held().count_in(topic, partition, key) {
            return Ok(());
        }
        let take_up = async {
            let changing = self.changing(topic, partition);
            let _changing = changing.lock().await;
            while !self.held().count_in(topic, partition, key) {
                self.take_up(topic, partition)
                    .await
                    .map_err(|e| BackendError::not_applied(OPERATION, ErrorKind::Unavailable, e))?;
            }
            Ok(())
        };
        let in_time = tokio::time::timeout(SUBSCRIBE_TIMEOUT, take_up).await;
        // Nothing was counted in.
        let late =
            || BackendError::not_applied(OPERATION, ErrorKind::TimedOut, "the end of the partition is not known");
        in_time.unwrap_or_else(|_| Err(late()))
    }

    async fn unsubscribe(&self, topic: Topic, key: u64) -> BackendResult<()> {
        let partition = super::partition_of(key, self.log.partitions);
        let changing = self.changing(topic, partition);
        let _changing = changing.lock().await;
        let _replacing = self.replacing.read().await;
        let is_unused = {
            let mut held = self.held();
            let Some(count) = held.keys.get_mut(&(topic, key)) else { return Ok(()) };
            *count -= 1;
            if *count > 0 {
                return Ok(());
            }
            held.keys.remove(&(topic, key));
            let Some(read) = held.partitions.get_mut(&(topic, partition)) else { return Ok(()) };
            read.keys -= 1;
            let is_unused = read.keys == 0;
            if is_unused {
                held.partitions.remove(&(topic, partition));
            }
            is_unused
        };
        if is_unused {
            let list = self.list(topic, partition, Offset::Invalid);
            list.and_then(|list| self.consumer.load().incremental_unassign(&list))
                .map_err(|e| failed("log.unsubscribe", e))?;
        }
        Ok(())
    }

    async fn next(&self) -> BackendResult<Vec<Delivered>> {
        loop {
            let consumer = self.consumer.load_full();
            self.waiting_since_us.store(clock::now_us(), Ordering::Relaxed);
            let first = tokio::select! {
                first = consumer.recv() => first,
                () = self.renewed.notified() => continue,
            };
            self.waiting_since_us.store(0, Ordering::Relaxed);
            let ready = || consumer.recv().now_or_never();
            let records = gather(first, ready, |message| self.take(&message)).map_err(|e| failed("log.next", e))?;
            if !records.is_empty() {
                return Ok(records);
            }
        }
    }

    async fn lag(&self) -> Vec<PartitionLag> {
        let before: Vec<_> = self.held().partitions.iter().map(|(place, read)| (*place, read.position)).collect();
        let partitions: Vec<(Topic, u32)> = before.iter().map(|(place, _)| *place).collect();
        let ends = offsets(&self.log, self.consumer.load_full(), &partitions, Offset::End).await;
        self.note_ends(&before, &ends);
        let mut out = Vec::new();
        for (topic, partition) in partitions {
            let end = ends.get(&(topic, partition)).copied();
            let mut held = self.held();
            let Some(read) = held.partitions.get_mut(&(topic, partition)) else { continue };
            let (records, age_ms) = read.ends.lag(clock::unix_ms(), end, read.position);
            out.push(PartitionLag { topic, partition, records, age_ms });
        }
        if self.is_stuck(&out, &ends)
            && let Err(error) = self.renew(&ends).await
        {
            tracing::warn!(%error, reader = self.name, "no other consumer");
        }
        out
    }
}
