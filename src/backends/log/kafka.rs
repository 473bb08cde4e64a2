//! The keyed log in Kafka: three topics of P partitions each.
//!
//! A record's keys are the Kafka key, eight bytes each; the partition is chosen here, so that every server computes the same.
//! A reader (`kafka_reader`) assigns itself the partitions of the keys that it holds, without disturbing the rest, and drops records
//! for other keys. The push service reads as a consumer group.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::{BaseRecord, Producer};

use super::kafka_group::KafkaGroup;
use super::kafka_producer::Producing;
use super::kafka_reader::KafkaReader;
use super::{Delivered, GroupReader, KeyedLog, LogReader, Record, Topic};
use crate::backends::deployment::DeploymentId;
use crate::backends::error::{BackendError, BackendResult, Effect, ErrorKind};
use crate::runtime::{Tasks, clock};

/// Longest that one question to a broker may take.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest that opening may wait for the first broker.
const OPEN_TIMEOUT: Duration = Duration::from_secs(8);

/// From one try to make topics that are gone to the next, at least.
const HEAL_INTERVAL: Duration = Duration::from_secs(5);

/// Replicas of new topics, where there are as many brokers.
const REPLICAS: usize = 3;

/// Longest that new topics may take until every partition has a leader.
const TOPICS_TIMEOUT: Duration = Duration::from_secs(30);

/// A log in a Kafka cluster. Clones share the producer.
#[derive(Clone)]
pub struct KafkaLog {
    pub(super) inner: Arc<Inner>,
}

/// What a cluster has.
struct Found {
    brokers: usize,
    /// Replicas of the partition of ours that has the fewest.
    replicas_min: usize,
    /// Partitions with a leader, by topic.
    partitions: HashMap<String, u32>,
}

pub(super) struct Inner {
    pub(super) config: ClientConfig,
    brokers: String,
    /// Before each topic's name.
    pub(super) prefix: String,
    pub(super) partitions: u32,
    /// Before the keys of each record: those of other deployments on the same topics are left out.
    pub(super) deployment: DeploymentId,
    producing: Producing,
    /// Whether missing topics are being made.
    is_healing: AtomicBool,
    tasks: Tasks,
    /// Product and version, as far as a broker tells.
    version: String,
}

impl KafkaLog {
    /// Opens the log at an address such as `kafka://host:9092,host:9092/prefix-`, and makes the topics that are missing.
    ///
    /// # Errors
    /// Names the address, the topic or the setting, and the fix.
    pub async fn open(url: &str, partitions: u32, deployment: DeploymentId) -> BackendResult<Self> {
        Self::open_of(url, partitions, deployment, super::kafka_version::ask).await
    }

    /// The same, with another way to ask brokers for their version: a cluster that is played by the client library has none.
    pub(super) async fn open_of(
        url: &str,
        partitions: u32,
        deployment: DeploymentId,
        ask: impl AsyncFnOnce(&str) -> Result<String, String>,
    ) -> BackendResult<Self> {
        const OPEN: &str = "open log";
        let rejected = |text: String| BackendError::not_applied(OPEN, ErrorKind::Rejected, text);
        let rest = url.strip_prefix("kafka://").unwrap_or(url);
        let (brokers, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if brokers.is_empty() || !prefix.chars().all(is_valid) {
            let valid =
                "valid is kafka://HOST:PORT[,HOST:PORT…][/PREFIX] with letters, digits, dots, dashes and underscores";
            return Err(rejected(format!("{:?}: {valid}", crate::backends::without_password(url))));
        }
        if brokers.contains('@') {
            let text = "an address of Kafka has no account: name hosts and ports only";
            return Err(rejected(format!("{}: {text}", crate::backends::without_password(url))));
        }
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("client.id", "chatctl").set("socket.nagle.disable", "true");
        // A broker that comes back is found within a second, not within the library's ten.
        config.set("reconnect.backoff.ms", "50").set("reconnect.backoff.max.ms", "1000");
        // Topics that were made anew, as on a broker whose disk was lost, are found within seconds, not within five minutes.
        config.set("topic.metadata.refresh.interval.ms", "10000");
        let mut producer = config.clone();
        producer
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "3")
            .set("message.timeout.ms", "4000")
            .set("message.max.bytes", "1000000");
        let producing = Producing::new(producer).map_err(|e| rejected(e.to_string()))?;
        let version = ask(brokers).await.map_err(rejected)?;
        let brokers = brokers.to_owned();
        let inner = Inner {
            config,
            brokers,
            prefix: prefix.to_owned(),
            partitions,
            deployment,
            producing,
            version,
            is_healing: AtomicBool::new(false),
            tasks: Tasks::new(),
        };
        let log = Self { inner: Arc::new(inner) };
        log.inner.check_topics(OPEN).await?;
        Ok(log)
    }

    /// Product and version, as far as a broker told when this was opened.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.inner.version
    }
}

impl Inner {
    /// Makes topics that are gone, as after the loss of a broker's disk, and begins anew to publish. Once at a time; whoever
    /// finds them missing again begins it again.
    fn heal(self: &Arc<Self>) {
        if self.is_healing.swap(true, Ordering::Relaxed) {
            return;
        }
        let inner = Arc::clone(self);
        self.tasks.spawn("log.heal", async move {
            match inner.check_topics("log.heal").await {
                Ok(()) => inner.producing.renew(),
                Err(error) => tracing::warn!(%error, "the topics of the log are gone and can't be made yet"),
            }
            tokio::time::sleep(HEAL_INTERVAL).await;
            inner.is_healing.store(false, Ordering::Relaxed);
        });
    }

    /// Makes missing topics and refuses those with another number of partitions.
    async fn check_topics(self: &Arc<Self>, operation: &'static str) -> BackendResult<()> {
        let brokers = &self.brokers;
        let deadline = clock::instant() + TOPICS_TIMEOUT;
        let mut timeout = OPEN_TIMEOUT;
        loop {
            let found = self.look(timeout).await.map_err(|e| {
                let text = format!("kafka://{brokers}: {e}; is a broker listening there?");
                BackendError::not_applied(operation, ErrorKind::Unavailable, text)
            })?;
            timeout = ANSWER_TIMEOUT;
            let mut missing = Vec::new();
            for topic in Topic::ALL {
                let name = self.topic(topic);
                match found.partitions.get(&name) {
                    None | Some(0) => missing.push(name),
                    Some(count) if *count == self.partitions => {}
                    Some(count) => {
                        let wanted = self.partitions;
                        let fix = format!("set partitions to {count}, or use another prefix in the address");
                        let text =
                            format!("kafka://{brokers}: topic {name} has {count} partitions, not {wanted}: {fix}");
                        return Err(BackendError::not_applied(operation, ErrorKind::Rejected, text));
                    }
                }
            }
            if missing.is_empty() {
                if found.brokers >= REPLICAS && found.replicas_min < 2 {
                    tracing::warn!(
                        "kafka://{brokers}: a topic has one replica on {} brokers: one that dies takes what is on its disk with \
                         it; make topics with three replicas and min.insync.replicas=2",
                        found.brokers
                    );
                }
                return Ok(());
            }
            if clock::instant() >= deadline {
                let text = format!("kafka://{brokers}: topics {} did not come up", missing.join(", "));
                return Err(BackendError::not_applied(operation, ErrorKind::Unavailable, text));
            }
            self.create(operation, &missing, found.brokers).await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// What there is.
    async fn look(self: &Arc<Self>, timeout: Duration) -> KafkaResult<Found> {
        let inner = Arc::clone(self);
        blocking(move || {
            let metadata = inner.producing.client().client().fetch_metadata(None, timeout)?;
            let count = |topic: &rdkafka::metadata::MetadataTopic| {
                let with_leader = topic.partitions().iter().filter(|p| p.leader() >= 0).count() as u32;
                (topic.name().to_owned(), with_leader)
            };
            let ours = |topic: &&rdkafka::metadata::MetadataTopic| inner.topic_of(topic.name()).is_some();
            let partitions =
                metadata.topics().iter().filter(ours).flat_map(rdkafka::metadata::MetadataTopic::partitions);
            Ok(Found {
                brokers: metadata.brokers().len(),
                replicas_min: partitions.map(|partition| partition.replicas().len()).min().unwrap_or(usize::MAX),
                partitions: metadata.topics().iter().map(count).collect(),
            })
        })
        .await
    }

    async fn create(&self, operation: &'static str, names: &[String], brokers: usize) -> BackendResult<()> {
        let refused = |text: String| BackendError::not_applied(operation, ErrorKind::Rejected, text);
        let admin: AdminClient<DefaultClientContext> = self.config.create().map_err(|e| refused(e.to_string()))?;
        let topics: Vec<NewTopic<'_>> = names
            .iter()
            .map(|name| {
                if brokers < REPLICAS {
                    // The brokers' own default.
                    return NewTopic::new(name, self.partitions as i32, TopicReplication::Fixed(-1));
                }
                // One of three may be gone, and what is acknowledged is on two.
                NewTopic::new(name, self.partitions as i32, TopicReplication::Fixed(REPLICAS as i32))
                    .set("min.insync.replicas", "2")
            })
            .collect();
        let made = admin.create_topics(&topics, &AdminOptions::new().request_timeout(Some(OPEN_TIMEOUT))).await;
        for result in made.map_err(|e| refused(e.to_string()))? {
            match result {
                // Another server made it in the same moment.
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, code)) => return Err(refused(format!("topic {name} can't be made: {code}"))),
            }
        }
        Ok(())
    }

    pub(super) fn topic(&self, topic: Topic) -> String {
        format!("{}{}", self.prefix, topic.name())
    }

    fn topic_of(&self, name: &str) -> Option<Topic> {
        let name = name.strip_prefix(self.prefix.as_str())?;
        Topic::ALL.into_iter().find(|topic| topic.name() == name)
    }

    /// Topic, partition and offset of a record.
    pub(super) fn place_of(&self, message: &BorrowedMessage<'_>) -> Option<(Topic, u32, u64)> {
        let topic = self.topic_of(message.topic())?;
        Some((topic, u32::try_from(message.partition()).ok()?, u64::try_from(message.offset()).ok()?))
    }

    /// A record as it is delivered; `None` where it is of another deployment.
    pub(super) fn delivered(&self, message: &BorrowedMessage<'_>) -> Option<Delivered> {
        let mut words = message.key()?.chunks_exact(8).map(|c| u64::from_be_bytes(c.try_into().expect("eight")));
        if words.next() != Some(self.deployment.0) {
            return None;
        }
        let keys = words.collect();
        let payload = Bytes::copy_from_slice(message.payload().unwrap_or_default());
        let (topic, partition, offset) = self.place_of(message)?;
        Some(Delivered {
            topic,
            partition,
            offset,
            at_ms: message.timestamp().to_millis().and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0),
            record: Arc::new(Record { keys, payload }),
        })
    }
}

/// Whether a broker does not know a topic that was there when the log was opened.
fn is_topic_gone(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    matches!(
        code,
        Some(
            RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition
        )
    )
}

/// Runs a call of the client library that waits.
pub(super) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> KafkaResult<T> + Send + 'static,
) -> KafkaResult<T> {
    // The only failure is that the runtime ends, with everything that waits for this.
    Tasks::block(call).await.unwrap_or(Err(KafkaError::Canceled))
}

pub(super) fn failed(operation: &'static str, error: KafkaError) -> BackendError {
    let kind = match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageTimedOut | RDKafkaErrorCode::OperationTimedOut) => ErrorKind::TimedOut,
        Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::TopicAuthorizationFailed) => ErrorKind::Rejected,
        _ => ErrorKind::Unavailable,
    };
    BackendError::unknown(operation, kind, error)
}

impl Inner {
    /// Writes one record, of keys of one partition.
    async fn publish(self: &Arc<Self>, topic: Topic, partition: u32, record: Record) -> BackendResult<()> {
        const OPERATION: &str = "log.publish";
        let name = self.topic(topic);
        let words = std::iter::once(&self.deployment.0).chain(&record.keys);
        let key: Vec<u8> = words.flat_map(|word| word.to_be_bytes()).collect();
        let message = |answer| {
            let message = BaseRecord::with_opaque_to(&name, answer).partition(partition as i32);
            message.key(&key).payload(record.payload.as_ref())
        };
        match self.producing.publish(message).await {
            Ok(outcome) => outcome.map_err(|error| {
                if is_topic_gone(&error) {
                    self.heal();
                }
                failed(OPERATION, error)
            }),
            // Not taken into the queue of this process, so it went nowhere.
            Err(error) => Err(BackendError::not_applied(OPERATION, ErrorKind::Unavailable, error)),
        }
    }
}

#[async_trait]
impl KeyedLog for KafkaLog {
    fn partitions(&self) -> u32 {
        self.inner.partitions
    }

    async fn publish(&self, topic: Topic, record: Record) -> BackendResult<u64> {
        let mut partitions: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for key in record.keys {
            partitions.entry(self.partition_of(key)).or_default().push(key);
        }
        let records = partitions.len() as u64;
        let parts = partitions.into_iter().map(|(partition, keys)| {
            self.inner.publish(topic, partition, Record { keys, payload: Bytes::clone(&record.payload) })
        });
        // To the end of each: that one failed says nothing of the others.
        let outcomes = join_all(parts).await;
        let failures: Vec<BackendError> = outcomes.into_iter().filter_map(Result::err).collect();
        let some_went = failures.len() < records as usize;
        let worst = failures.into_iter().max_by_key(|error| error.effect == Effect::Unknown);
        worst.map_or(Ok(records), |error| Err(if some_went { error.after_a_write() } else { error }))
    }

    async fn probe(&self) -> BackendResult<()> {
        let name = self.inner.topic(Topic::Inbox);
        let inner = Arc::clone(&self.inner);
        let metadata =
            blocking(move || inner.producing.client().client().fetch_metadata(Some(&name), ANSWER_TIMEOUT)).await;
        let metadata = metadata.map_err(|e| failed("log.probe", e))?;
        let leaders = metadata
            .topics()
            .iter()
            .flat_map(rdkafka::metadata::MetadataTopic::partitions)
            // With three replicas two have to be there for a write (`min.insync.replicas`).
            .filter(|p| p.leader() >= 0 && (p.replicas().len() < REPLICAS || p.isr().len() >= 2))
            .count();
        if leaders == self.inner.partitions as usize {
            return Ok(());
        }
        if leaders == 0 {
            self.inner.heal();
        }
        let text = format!("{leaders} of {} inbox partitions can be written to", self.inner.partitions);
        Err(BackendError::not_applied("log.probe", ErrorKind::Unavailable, text))
    }

    async fn reader(&self, name: &str) -> BackendResult<Arc<dyn LogReader>> {
        let reader = KafkaReader::open(&self.inner, name)?;
        Ok(Arc::new(reader))
    }

    async fn group(&self, topic: Topic, group: &str) -> BackendResult<Arc<dyn GroupReader>> {
        Ok(Arc::new(KafkaGroup::join(&self.inner, topic, group)?))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::backends::contract::{Deployment, Place, engine_address};
    use crate::backends::log::contract::log_contract;

    const OWN: DeploymentId = DeploymentId(7);

    fn url() -> String {
        format!("kafka://{}/test-{}-", engine_address("CHATCTL_TEST_KAFKA"), uuid::Uuid::new_v4().simple())
    }

    /// Topics of its own in a running cluster.
    fn topics() -> impl Place<dyn KeyedLog> {
        let url = url();
        Deployment(move || {
            let url = url.clone();
            async move { Arc::new(KafkaLog::open(&url, 4, OWN).await.expect("opens")) as Arc<dyn KeyedLog> }
        })
    }

    log_contract!(topics(), ignore = "needs CHATCTL_TEST_KAFKA");

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs CHATCTL_TEST_KAFKA"]
    async fn records_of_another_deployment_on_the_same_topics_are_not_seen_and_are_no_lag() {
        const KEY: u64 = 3;
        let url = url();
        let own = KafkaLog::open(&url, 4, OWN).await.expect("opens");
        let other = KafkaLog::open(&url, 4, DeploymentId(8)).await.expect("opens");
        let record = |text: &'static str| Record { keys: vec![KEY], payload: Bytes::from_static(text.as_bytes()) };
        let reader = own.reader("own").await.expect("opens");
        reader.subscribe(Topic::Inbox, KEY).await.expect("subscribes");
        let group = own.group(Topic::Inbox, "push").await.expect("joins");
        let group_of_other = other.group(Topic::Inbox, "push").await.expect("joins");
        for (log, text) in [(&other, "theirs"), (&own, "ours"), (&other, "theirs too")] {
            log.publish(Topic::Inbox, record(text)).await.expect("publishes");
        }
        let texts = |records: Vec<Delivered>| -> Vec<Bytes> {
            records.into_iter().map(|delivered| delivered.record.payload.clone()).collect()
        };
        assert_eq!(texts(reader.next().await.expect("reads")), ["ours"]);
        assert_eq!(texts(group.next().await.expect("reads")), ["ours"]);
        let mut theirs = texts(group_of_other.next().await.expect("reads"));
        if theirs.len() == 1 {
            theirs.extend(texts(group_of_other.next().await.expect("reads")));
        }
        assert_eq!(theirs, ["theirs", "theirs too"]);
        // What is not ours is read past: nothing is unread.
        let until = clock::instant() + Duration::from_secs(10);
        loop {
            let _ = reader.next().now_or_never();
            let lag = reader.lag().await;
            if lag.iter().all(|lag| lag.records == 0) {
                break;
            }
            assert!(clock::instant() < until, "{lag:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    #[tokio::test]
    #[ignore = "needs CHATCTL_TEST_KAFKA"]
    async fn topics_with_another_number_of_partitions_are_refused() {
        let url = url();
        KafkaLog::open(&url, 4, OWN).await.expect("opens");
        let error = KafkaLog::open(&url, 5, OWN).await.err().expect("refused").to_string();
        assert!(error.contains("has 4 partitions, not 5") && error.contains("set partitions to 4"), "{error}");
    }

    #[tokio::test]
    async fn an_address_that_makes_no_sense_is_refused_with_the_valid_form() {
        let error = KafkaLog::open("kafka://host:1/no spaces", 4, OWN).await.err().expect("refused").to_string();
        assert!(error.contains("kafka://HOST:PORT"), "{error}");
    }
}
