//! Presence at size: many who come at once do not wait for each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chatctl::backends::log::{GroupReader, KeyedLog, LogReader, Record, Topic};
use chatctl::backends::{BackendResult, Backends};
use chatctl::loadgen::result::Verdict;

use crate::proofs::run;

const SCENARIO: &str = "
name: crowd
seed: 5
population: {users: 120, friends_per_user: 2}
behaviors: {lurker: 1}
connect_over: 100ms
phases: [{phase: steady, duration: 3s}]
generator_lag_max: 10s
thresholds: ['beats > 100']
";

/// A log whose answers to changes of presence take a while; counts how many of them were waited for at once.
struct SlowForPresence {
    log: Arc<dyn KeyedLog>,
    waiting: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

#[async_trait]
impl KeyedLog for SlowForPresence {
    fn partitions(&self) -> u32 {
        self.log.partitions()
    }

    async fn publish(&self, topic: Topic, record: Record) -> BackendResult<u64> {
        if topic == Topic::PresenceUpdates {
            let waiting = self.waiting.fetch_add(1, Ordering::Relaxed) + 1;
            self.most.fetch_max(waiting, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(50)).await;
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        self.log.publish(topic, record).await
    }

    async fn probe(&self) -> BackendResult<()> {
        self.log.probe().await
    }

    async fn reader(&self, name: &str) -> BackendResult<Arc<dyn LogReader>> {
        self.log.reader(name).await
    }

    async fn group(&self, topic: Topic, group: &str) -> BackendResult<Arc<dyn GroupReader>> {
        self.log.group(topic, group).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_comes_online_is_told_of_side_by_side() {
    let most = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&most);
    let slow = move |backends: Backends| {
        let log: Arc<dyn KeyedLog> =
            Arc::new(SlowForPresence { log: backends.log, waiting: Arc::default(), most: counted });
        Backends { log, ..backends }
    };
    let result = run(SCENARIO, slow, None).await;
    assert_eq!(result.verdict, Verdict::Pass, "{:?} {:?}", result.reasons, result.violations);
    let most = most.load(Ordering::Relaxed);
    assert!(most > 20, "{most} changes of 120 at once");
}
