//! The producer of a Kafka log, replaced when it delivers nothing any more.
//!
//! An idempotent producer whose records ran out of time stops sending until everything that was under way is settled. Seen
//! after a broker had been paused for ten seconds: one producer of three never got over it, though the broker answered
//! everyone else, and its server could send nothing until the end of the run. A new producer has no such past. What the old
//! one had not delivered ends as "unknown", as it would by its deadline; readers take repeats.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{FutureProducer, FutureRecord};

use crate::runtime::clock;

/// A producer that has delivered nothing for this long, though it was asked to, is replaced. Longer than the life of a
/// record (`message.timeout.ms`), far shorter than the 30 s in which a stack recovers.
const STUCK_AFTER: Duration = Duration::from_secs(6);

/// Nothing waits.
const NEVER: u64 = 0;

/// The live producer of a log.
pub(super) struct Producing {
    config: ClientConfig,
    live: ArcSwap<Live>,
}

struct Live {
    producer: FutureProducer,
    waiting: Arc<Waiting>,
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
        let live = ArcSwap::from_pointee(Live { producer: config.create()?, waiting: Arc::default() });
        Ok(Self { config, live })
    }

    /// The live producer, for questions about the cluster.
    pub(super) fn client(&self) -> FutureProducer {
        self.live.load().producer.clone()
    }

    /// Publishes a record; returns when the brokers have it.
    ///
    /// # Errors
    /// `Ok(Err(…))`: it may be published. `Err(…)`: it never left this process.
    pub(super) async fn publish(&self, record: FutureRecord<'_, Vec<u8>, [u8]>) -> KafkaResult<KafkaResult<()>> {
        let (delivery, waiting) = {
            let live = self.live();
            live.waiting.asked(clock::now_us());
            let delivery = live.producer.send_result(record).map_err(|(error, _)| error)?;
            (delivery, Arc::clone(&live.waiting))
        };
        Ok(match delivery.await {
            Ok(Ok(_)) => {
                waiting.delivered();
                Ok(())
            }
            Ok(Err((error, _))) => Err(error),
            Err(_) => Err(KafkaError::Canceled),
        })
    }

    /// The producer to use: a new one when the last is stuck.
    fn live(&self) -> Arc<Live> {
        let live = self.live.load_full();
        if !live.waiting.is_mine_to_replace(clock::now_us()) {
            return live;
        }
        match self.config.create() {
            Ok(producer) => {
                tracing::warn!("Kafka took no record for {} s: a new producer tries", STUCK_AFTER.as_secs());
                let new = Arc::new(Live { producer, waiting: Arc::default() });
                let old = self.live.swap(Arc::clone(&new));
                // Its end waits for the client library's threads.
                tokio::task::spawn_blocking(move || drop((live, old)));
                new
            }
            Err(error) => {
                tracing::warn!(%error, "no new producer");
                live
            }
        }
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
        let brokers = crate::backends::contract::engine_address("CHATCTL_TEST_KAFKA");
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", "127.0.0.1:1").set("message.timeout.ms", "500");
        let mut producing = Producing::new(config).expect("a producer");
        let prefix = format!("stuck-{}-", uuid::Uuid::new_v4().simple());
        let opened = super::super::KafkaLog::open(&format!("kafka://{brokers}/{prefix}"), 1).await;
        opened.expect("makes the topics");
        let topic = format!("{prefix}inbox");
        let key = Vec::new();
        let record = || FutureRecord::to(&topic).key(&key).payload(&b"x"[..]);
        // Nobody listens on port 1: this one delivers nothing.
        producing.publish(record()).await.expect("taken").expect_err("no broker");
        producing.config.set("bootstrap.servers", brokers.as_str()).set("message.timeout.ms", "20000");
        producing.live.load().waiting.0.store(1, Ordering::Relaxed);
        producing.publish(record()).await.expect("taken").expect("delivered");
    }
}
