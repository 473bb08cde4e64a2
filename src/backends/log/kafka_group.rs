//! A consumer group in Kafka: several members share the partitions of a topic.
//!
//! A member commits what it has dealt with, and only in partitions that it still has. What it has not committed comes again, to it
//! or to the member that has the partition by then; so records may come twice when members come and go, and none is left out.
//! Where the partitions are shared out anew each is read on from what was committed: positions from before say nothing
//! any more, and would set back what another member has committed meanwhile.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::FutureExt;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance, StreamConsumer};
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::kafka::{ANSWER_TIMEOUT, Inner, blocking, failed};
use super::kafka_batch::gather;
use super::kafka_lag::{Ends, offsets};
use super::{Delivered, GroupPosition, GroupReader, PartitionLag, Topic};
use crate::backends::error::{BackendError, BackendResult, ErrorKind};
use crate::runtime::clock;

/// Beside the offsets in a position: how often partitions had been taken from its member or given to it. No partition
/// has this number.
const REBALANCES: u32 = u32::MAX;

/// How often partitions were taken from a member or given to it.
#[derive(Default)]
struct Rebalances(AtomicU64);

impl ClientContext for Rebalances {}

impl ConsumerContext for Rebalances {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, _: &Rebalance<'_>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A member of a group.
pub(super) struct KafkaGroup {
    log: Arc<Inner>,
    consumer: Arc<StreamConsumer<Rebalances>>,
    topic: Topic,
    /// Of each partition that it has. Written by `lag`.
    partitions: Mutex<HashMap<u32, PartitionRead>>,
}

/// What is remembered of a partition from one look at the lag to the next.
#[derive(Default)]
struct PartitionRead {
    /// Where it was taken up, as far as that is known: it counts until something was read.
    begun: Option<u64>,
    ends: Ends,
}

impl KafkaGroup {
    /// Joins a group of the deployment, which begins with the oldest records that there are.
    pub(super) fn join(log: &Arc<Inner>, topic: Topic, group: &str) -> BackendResult<Self> {
        let consumer: StreamConsumer<Rebalances> = log
            .config
            .clone()
            .set("group.id", format!("{}{group}-{}", log.prefix, log.deployment))
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("session.timeout.ms", "10000")
            .create_with_context(Rebalances::default())
            .map_err(|e| BackendError::not_applied("log.group", ErrorKind::Rejected, e))?;
        consumer.subscribe(&[&log.topic(topic)]).map_err(|e| failed("log.group", e))?;
        Ok(Self { log: Arc::clone(log), consumer: Arc::new(consumer), topic, partitions: Mutex::default() })
    }

    fn rebalances(&self) -> u64 {
        self.consumer.context().0.load(Ordering::SeqCst)
    }

    /// Where the partitions that it has are read on, by number; those of which nothing was read yet at `None`.
    fn positions(&self) -> HashMap<u32, Option<u64>> {
        let (Ok(assigned), Ok(positions)) = (self.consumer.assignment(), self.consumer.position()) else {
            return HashMap::new();
        };
        let name = self.log.topic(self.topic);
        let assigned = assigned.elements();
        let mine = assigned.iter().filter_map(|element| u32::try_from(element.partition()).ok());
        let position = |partition: u32| match positions.find_partition(&name, partition as i32)?.offset() {
            Offset::Offset(offset) => u64::try_from(offset).ok(),
            _ => None,
        };
        mine.map(|partition| (partition, position(partition))).collect()
    }

    /// Where partitions of which nothing was read yet are taken up: behind what was committed, or at their beginning.
    async fn beginnings(&self, partitions: &[(Topic, u32)]) -> HashMap<(Topic, u32), u64> {
        let mut found = offsets(&self.log, Arc::clone(&self.consumer), partitions, Offset::Beginning).await;
        let (consumer, name) = (Arc::clone(&self.consumer), self.log.topic(self.topic));
        let mut list = TopicPartitionList::new();
        for (_, partition) in partitions {
            list.add_partition(&name, *partition as i32);
        }
        let Ok(committed) = blocking(move || consumer.committed_offsets(list, ANSWER_TIMEOUT)).await else {
            return HashMap::new();
        };
        for element in committed.elements() {
            if let Offset::Offset(offset) = element.offset()
                && let (Ok(partition), Ok(offset)) = (u32::try_from(element.partition()), u64::try_from(offset))
            {
                // What was committed may not be retained any more.
                let begun = found.entry((self.topic, partition)).or_insert(offset);
                *begun = offset.max(*begun);
            }
        }
        found
    }
}

#[async_trait]
impl GroupReader for KafkaGroup {
    async fn next(&self) -> BackendResult<Vec<Delivered>> {
        loop {
            let first = self.consumer.recv().await;
            let ready = || self.consumer.recv().now_or_never();
            let records = gather(first, ready, |message| self.log.delivered(&message));
            let records = records.map_err(|e| failed("log.group.next", e))?;
            if !records.is_empty() {
                return Ok(records);
            }
        }
    }

    fn position(&self) -> GroupPosition {
        // Before the offsets: what is shared out anew meanwhile makes it one from before.
        let rebalances = self.rebalances();
        let read = self.positions().into_iter();
        let offsets = read.filter_map(|(partition, offset)| Some((partition, offset?)));
        GroupPosition(offsets.chain([(REBALANCES, rebalances)]).collect())
    }

    async fn commit(&self, to: &GroupPosition) -> BackendResult<()> {
        const OPERATION: &str = "log.group.commit";
        let (mut list, name) = (TopicPartitionList::new(), self.log.topic(self.topic));
        if to.0.get(&REBALANCES) != Some(&self.rebalances()) {
            return Ok(());
        }
        // What another member has by now is that one's.
        let mine = self.positions();
        for (partition, offset) in to.0.iter().filter(|(partition, _)| mine.contains_key(partition)) {
            let added = list.add_partition_offset(&name, *partition as i32, Offset::Offset(*offset as i64));
            added.map_err(|e| failed(OPERATION, e))?;
        }
        if list.count() == 0 {
            return Ok(());
        }
        let consumer = Arc::clone(&self.consumer);
        blocking(move || consumer.commit(&list, CommitMode::Sync)).await.map_err(|e| failed(OPERATION, e))
    }

    async fn lag(&self) -> Vec<PartitionLag> {
        let positions = self.positions();
        let unread: Vec<(Topic, u32)> = {
            let mut known = self.partitions.lock().expect("no panic while held");
            // What another member has now is taken up anew when it comes back.
            known.retain(|partition, _| positions.contains_key(partition));
            let is_unknown = |partition: &u32| known.get(partition).is_none_or(|read| read.begun.is_none());
            let unread = positions.iter().filter(|(partition, at)| at.is_none() && is_unknown(partition));
            unread.map(|(partition, _)| (self.topic, *partition)).collect()
        };
        let begun = if unread.is_empty() { HashMap::new() } else { self.beginnings(&unread).await };
        let all: Vec<(Topic, u32)> = positions.keys().map(|partition| (self.topic, *partition)).collect();
        let ends = offsets(&self.log, Arc::clone(&self.consumer), &all, Offset::End).await;
        let mut known = self.partitions.lock().expect("no panic while held");
        let mut out = Vec::with_capacity(positions.len());
        for (partition, position) in positions {
            let (read, place) = (known.entry(partition).or_default(), (self.topic, partition));
            read.begun = read.begun.or(begun.get(&place).copied());
            // Where neither is known nothing can be said.
            let Some(position) = position.or(read.begun) else { continue };
            let (records, age_ms) = read.ends.lag(clock::unix_ms(), ends.get(&place).copied(), position);
            out.push(PartitionLag { topic: self.topic, partition, records, age_ms });
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;

    use super::*;
    use crate::backends::contract::engine_address;
    use crate::backends::deployment::DeploymentId;
    use crate::backends::log::{KafkaLog, KeyedLog, Record};

    const PARTITIONS: u32 = 4;

    async fn publish(log: &KafkaLog, text: &str) {
        for partition in 0..PARTITIONS {
            let key = (0..10_000).find(|key| log.partition_of(*key) == partition).expect("there is one");
            let record = Record { keys: vec![key], payload: Bytes::from(format!("{text} {partition}")) };
            log.publish(Topic::Inbox, record).await.expect("publishes");
        }
    }

    /// How often each record came to any of the members until all of `text` came.
    async fn read(members: &[Arc<dyn GroupReader>], text: &str, commits: bool) -> HashMap<Bytes, usize> {
        let mut seen: HashMap<Bytes, usize> = HashMap::new();
        for _ in 0..600 {
            for member in members {
                let Ok(records) = tokio::time::timeout(Duration::from_millis(100), member.next()).await else {
                    continue;
                };
                for delivered in records.expect("reads") {
                    *seen.entry(delivered.record.payload.clone()).or_default() += 1;
                }
                if commits {
                    member.commit(&member.position()).await.expect("commits");
                }
            }
            if (0..PARTITIONS).all(|partition| seen.contains_key(format!("{text} {partition}").as_bytes())) {
                return seen;
            }
        }
        panic!("not all of {text:?} came: {seen:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs CHATCTL_TEST_KAFKA"]
    async fn what_a_member_did_not_commit_comes_to_the_one_that_is_left_and_nothing_is_left_out() {
        let own = uuid::Uuid::new_v4().simple().to_string();
        let url = format!("kafka://{}/group-{own}-", engine_address("CHATCTL_TEST_KAFKA"));
        let log = KafkaLog::open(&url, PARTITIONS, DeploymentId(7)).await.expect("opens");
        let join = async || log.group(Topic::Inbox, "push").await.expect("joins");
        let mut members = vec![join().await];
        publish(&log, "alone").await;
        assert!(read(&members, "alone", true).await.values().all(|times| *times == 1));
        members.push(join().await);
        publish(&log, "shared").await;
        read(&members, "shared", true).await;
        publish(&log, "unfinished").await;
        read(&members, "unfinished", false).await;
        members.remove(0);
        let seen = read(&members, "unfinished", true).await;
        assert!(seen.keys().all(|text| text.starts_with(b"unfinished")), "what was committed came again: {seen:?}");
    }

    /// A log in a cluster that the client library plays, for as long as that is kept.
    async fn played() -> (MockCluster<'static, DefaultProducerContext>, KafkaLog) {
        let cluster = MockCluster::new(1).expect("starts");
        for topic in Topic::ALL {
            cluster.create_topic(&format!("mock-{}", topic.name()), PARTITIONS as i32, 1).expect("makes");
        }
        let url = format!("kafka://{}/mock-", cluster.bootstrap_servers());
        let unasked = async |_: &str| Ok(String::new());
        let log = KafkaLog::open_of(&url, PARTITIONS, DeploymentId(7), unasked).await.expect("opens");
        (cluster, log)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_was_read_behind_a_commit_comes_again_and_what_was_read_before_does_not() {
        let (_cluster, log) = played().await;
        let join = async || [log.group(Topic::Inbox, "push").await.expect("joins")];
        let members = join().await;
        publish(&log, "dealt with").await;
        read(&members, "dealt with", false).await;
        let position = members[0].position();
        publish(&log, "read").await;
        read(&members, "read", false).await;
        members[0].commit(&position).await.expect("commits");
        drop(members);
        let seen = read(&join().await, "read", false).await;
        assert!(seen.keys().all(|text| text.starts_with(b"read")), "what was committed came again: {seen:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_position_from_before_the_partitions_were_shared_out_anew_sets_no_commit_back() {
        let (_cluster, log) = played().await;
        let group = Arc::new(KafkaGroup::join(&log.inner, Topic::Inbox, "push").expect("joins"));
        let members = [Arc::clone(&group) as Arc<dyn GroupReader>];
        publish(&log, "before").await;
        read(&members, "before", false).await;
        let old = group.position();
        assert!(old.0[&REBALANCES] > 0, "the partitions were given to it");
        publish(&log, "by another one").await;
        read(&members, "by another one", true).await;
        // As if another member had had them meanwhile.
        group.consumer.context().0.fetch_add(2, Ordering::SeqCst);
        group.commit(&old).await.expect("is of no matter");
        drop((group, members));
        publish(&log, "behind").await;
        let seen = read(&[log.group(Topic::Inbox, "push").await.expect("joins")], "behind", false).await;
        assert!(seen.keys().all(|text| text.starts_with(b"behind")), "what was committed came again: {seen:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_lag_counts_from_where_a_partition_was_taken_up_and_then_from_what_was_read() {
        let (_cluster, log) = played().await;
        let group = log.group(Topic::Inbox, "push").await.expect("joins");
        let lag = async || {
            let lag = group.lag().await;
            (lag.len(), lag.iter().map(|l| l.records).sum::<u64>(), lag.iter().map(|l| l.age_ms).max())
        };
        // Whoever waits for records is given partitions meanwhile.
        for _ in 0..100 {
            assert!(tokio::time::timeout(Duration::from_millis(100), group.next()).await.is_err(), "nothing is there");
            if lag().await.0 == PARTITIONS as usize {
                break;
            }
        }
        assert_eq!(lag().await, (PARTITIONS as usize, 0, Some(0)));
        for _ in 0..3 {
            publish(&log, "unread").await;
        }
        assert_eq!(lag().await.1, 3 * u64::from(PARTITIONS));
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(lag().await.2 > Some(0), "what is unread has an age");
        let mut read = 0;
        while read < 3 * PARTITIONS as usize {
            read += group.next().await.expect("reads").len();
        }
        assert_eq!(lag().await, (PARTITIONS as usize, 0, Some(0)));
    }
}
