//! A consumer group in Kafka: several members share the partitions of a topic.
//!
//! A member commits what it has dealt with, and only in partitions that it still has. What it has not committed comes again, to it
//! or to the member that has the partition by then; so records may come twice when members come and go, and none is left out.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::FutureExt;
use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::kafka::{Inner, blocking, failed};
use super::kafka_batch::gather;
use super::{Delivered, GroupReader, Topic};
use crate::backends::error::{BackendError, BackendResult, ErrorKind};

/// A member of a group.
pub(super) struct KafkaGroup {
    log: Arc<Inner>,
    consumer: Arc<StreamConsumer>,
}

impl KafkaGroup {
    /// Joins a group of the deployment, which begins with the oldest records that there are.
    pub(super) fn join(log: &Arc<Inner>, topic: Topic, group: &str) -> BackendResult<Self> {
        let consumer: StreamConsumer = log
            .config
            .clone()
            .set("group.id", format!("{}{group}-{}", log.prefix, log.deployment))
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("session.timeout.ms", "10000")
            .create()
            .map_err(|e| BackendError::not_applied("log.group", ErrorKind::Rejected, e))?;
        consumer.subscribe(&[&log.topic(topic)]).map_err(|e| failed("log.group", e))?;
        Ok(Self { log: Arc::clone(log), consumer: Arc::new(consumer) })
    }
}

#[async_trait]
impl GroupReader for KafkaGroup {
    async fn next(&mut self) -> BackendResult<Vec<Delivered>> {
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

    async fn commit(&mut self) -> BackendResult<()> {
        let consumer = Arc::clone(&self.consumer);
        let commit = blocking(move || consumer.commit_consumer_state(CommitMode::Sync)).await;
        match commit {
            // Nothing was read since the last commit.
            Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) | Ok(()) => Ok(()),
            Err(error) => Err(failed("log.group.commit", error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use bytes::Bytes;

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
    async fn read(members: &mut [Box<dyn GroupReader>], text: &str, commits: bool) -> HashMap<Bytes, usize> {
        let mut seen: HashMap<Bytes, usize> = HashMap::new();
        for _ in 0..600 {
            for member in &mut *members {
                let Ok(records) = tokio::time::timeout(Duration::from_millis(100), member.next()).await else {
                    continue;
                };
                for delivered in records.expect("reads") {
                    *seen.entry(delivered.record.payload.clone()).or_default() += 1;
                }
                if commits {
                    member.commit().await.expect("commits");
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
        assert!(read(&mut members, "alone", true).await.values().all(|times| *times == 1));
        members.push(join().await);
        publish(&log, "shared").await;
        read(&mut members, "shared", true).await;
        publish(&log, "unfinished").await;
        read(&mut members, "unfinished", false).await;
        members.remove(0);
        let seen = read(&mut members, "unfinished", true).await;
        assert!(seen.keys().all(|text| text.starts_with(b"unfinished")), "what was committed came again: {seen:?}");
    }
}
