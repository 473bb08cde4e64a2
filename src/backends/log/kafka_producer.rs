//! The producer of a Kafka log, replaced when it delivers nothing any more.
//!
//! An idempotent producer whose records ran out of time stops sending until everything that was under way is settled. Seen
//! after a broker had been paused for ten seconds: one producer of three never got over it, though the broker answered
//! everyone else, and its server could send nothing until the end of the run. A new producer has no such past. What the old
//! one had not delivered ends as "unknown", as it would by its deadline; readers take repeats.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, ProducerContext};
use tokio::sync::oneshot;

use crate::runtime::clock;

/// A producer that has delivered nothing for this long, though it was asked to, is replaced. Longer than the life of a
/// record (`message.timeout.ms`), far shorter than the 30 s in which a stack recovers.
const STUCK_AFTER: Duration = Duration::from_secs(6);

/// How long the thread of a producer waits for events in one call; they are handled when they come.
///
/// rdkafka's own producers use 100 ms, and its `BaseProducer::poll` spins through the last millisecond of a wait, since it
/// waits in whole ones: an idle producer took 1 % of a processor, thirty idle servers a third of one.
const POLL: Duration = Duration::from_secs(2);

/// Nothing waits.
const NEVER: u64 = 0;

/// The live producer of a log.
pub(super) struct Producing {
    config: ClientConfig,
    live: ArcSwap<Live>,
}

struct Live {
    producer: Producer,
    waiting: Arc<Waiting>,
}

/// A record on its way; who waits is told what became of it.
pub(super) type Sending<'a> = BaseRecord<'a, Vec<u8>, [u8], Answer>;

/// Where the fate of a record goes.
pub(super) type Answer = Box<oneshot::Sender<KafkaResult<()>>>;

/// Passes the fate of each record on.
pub(super) struct Answers;

impl ClientContext for Answers {}

impl ProducerContext for Answers {
    type DeliveryOpaque = Answer;

    fn delivery(&self, result: &DeliveryResult<'_>, answer: Answer) {
        let fate = result.as_ref().map(|_| ()).map_err(|(error, _)| error.clone());
        // Nobody waits any more when the task that published was dropped.
        let _ = answer.send(fate);
    }
}

/// A client with a thread that handles its events.
struct Producer {
    client: Arc<BaseProducer<Answers>>,
    is_over: Arc<AtomicBool>,
}

impl Producer {
    fn start(config: &ClientConfig) -> KafkaResult<Self> {
        let client: Arc<BaseProducer<Answers>> = Arc::new(config.create_with_context(Answers)?);
        let is_over = Arc::new(AtomicBool::new(false));
        let (polled, until) = (Arc::clone(&client), Arc::clone(&is_over));
        let poll = move || {
            while !until.load(Ordering::Relaxed) {
                polled.poll(POLL);
            }
        };
        let thread = std::thread::Builder::new().name("kafka-producer".to_owned()).spawn(poll);
        thread.map_err(|error| KafkaError::ClientCreation(format!("no thread for a producer: {error}")))?;
        Ok(Self { client, is_over })
    }
}

impl Drop for Producer {
    /// The thread ends within [`POLL`] and drops the client, which waits for the client library's threads.
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// Since when a producer has been asked and has delivered nothing, on [`clock::now_us`]. Written by every publish.
#[derive(Default)]
struct Waiting(AtomicU64);

impl Waiting {
    fn asked(&self, now_us: u64) {
        let _ = self.0.compare_exchange(NEVER, now_us, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn delivered(&self) {
        self.0.store(NEVER, Ordering::Relaxed);
    }

    /// True for one caller of a producer that is stuck.
    fn is_mine_to_replace(&self, now_us: u64) -> bool {
        let since = self.0.load(Ordering::Relaxed);
        let is_stuck = since != NEVER && now_us.saturating_sub(since) > STUCK_AFTER.as_micros() as u64;
        is_stuck && self.0.compare_exchange(since, NEVER, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl Producing {
    /// Makes the first producer. `config` is a producer's.
    pub(super) fn new(config: ClientConfig) -> KafkaResult<Self> {
        let live = ArcSwap::from_pointee(Live { producer: Producer::start(&config)?, waiting: Arc::default() });
        Ok(Self { config, live })
    }

    /// The live producer, for questions about the cluster.
    pub(super) fn client(&self) -> Arc<BaseProducer<Answers>> {
        Arc::clone(&self.live.load().producer.client)
    }

    /// Publishes the record that `record` makes of an address for its answer; returns when the brokers have it.
    ///
    /// # Errors
    /// `Ok(Err(…))`: it may be published. `Err(…)`: it never left this process.
    pub(super) async fn publish<'a>(&self, record: impl FnOnce(Answer) -> Sending<'a>) -> KafkaResult<KafkaResult<()>> {
        let (answer, fate) = oneshot::channel();
        let waiting = {
            let live = self.live();
            live.waiting.asked(clock::now_us());
            live.producer.client.send(record(Box::new(answer))).map_err(|(error, _)| error)?;
            Arc::clone(&live.waiting)
        };
        let fate = fate.await.unwrap_or(Err(KafkaError::Canceled));
        if fate.is_ok() {
            waiting.delivered();
        }
        Ok(fate)
    }

    /// Makes a new producer, which knows nothing of what the last one knew of the cluster.
    pub(super) fn renew(&self) {
        match Producer::start(&self.config) {
            Ok(producer) => self.live.store(Arc::new(Live { producer, waiting: Arc::default() })),
            Err(error) => tracing::warn!(%error, "no new producer"),
        }
    }

    /// The producer to use: a new one when the last is stuck.
    fn live(&self) -> Arc<Live> {
        let live = self.live.load_full();
        if !live.waiting.is_mine_to_replace(clock::now_us()) {
            return live;
        }
        tracing::warn!("Kafka took no record for {} s: a new producer tries", STUCK_AFTER.as_secs());
        self.renew();
        self.live.load_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_producer_that_was_asked_and_delivered_nothing_is_stuck_and_one_caller_replaces_it() {
        let (waiting, stuck) = (Waiting::default(), STUCK_AFTER.as_micros() as u64 + 1);
        assert!(!waiting.is_mine_to_replace(stuck));
        waiting.asked(5);
        waiting.asked(1_000);
        assert!(!waiting.is_mine_to_replace(5 + stuck - 1));
        assert!(waiting.is_mine_to_replace(5 + stuck));
        assert!(!waiting.is_mine_to_replace(5 + stuck));
        waiting.asked(5);
        waiting.delivered();
        assert!(!waiting.is_mine_to_replace(5 + stuck));
    }

    #[tokio::test]
    #[ignore = "needs CHATCTL_TEST_KAFKA"]
    async fn the_successor_of_a_stuck_producer_delivers() {
        use crate::backends::deployment::DeploymentId;
        let brokers = crate::backends::contract::engine_address("CHATCTL_TEST_KAFKA");
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", "127.0.0.1:1").set("message.timeout.ms", "500");
        let mut producing = Producing::new(config).expect("a producer");
        let prefix = format!("stuck-{}-", uuid::Uuid::new_v4().simple());
        let opened = super::super::KafkaLog::open(&format!("kafka://{brokers}/{prefix}"), 1, DeploymentId(7)).await;
        opened.expect("makes the topics");
        let topic = format!("{prefix}inbox");
        let key = Vec::new();
        let record = |answer| BaseRecord::with_opaque_to(&topic, answer).key(&key).payload(&b"x"[..]);
        // Nobody listens on port 1: this one delivers nothing.
        producing.publish(record).await.expect("taken").expect_err("no broker");
        producing.config.set("bootstrap.servers", brokers.as_str()).set("message.timeout.ms", "20000");
        producing.live.load().waiting.0.store(1, Ordering::Relaxed);
        producing.publish(record).await.expect("taken").expect("delivered");
    }
}
