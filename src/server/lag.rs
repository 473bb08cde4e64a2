//! How far a server is behind the log, as its gauges tell it.

use std::time::Duration;

use crate::backends::log::{PartitionLag, Topic};
use crate::telemetry::{Gauge, Metrics, PartitionFigures};

/// How often it is told.
pub(super) const INTERVAL: Duration = Duration::from_millis(500);

/// Writes the gauges of the partitions that a server reads.
pub(super) fn tell(metrics: &Metrics, lag: &[PartitionLag]) {
    metrics.set(Gauge::LagRecords, lag.iter().map(|l| l.records).sum());
    metrics.set(Gauge::LagMs, lag.iter().map(|l| l.age_ms).max().unwrap_or(0));
    metrics.set(Gauge::LogPartitions, lag.iter().filter(|l| l.topic == Topic::Inbox).count() as u64);
    let figures = |l: &PartitionLag| {
        let PartitionLag { topic, partition, records, age_ms } = *l;
        PartitionFigures { topic: topic.name(), partition, records, age_ms }
    };
    metrics.set_partitions(lag.iter().map(figures).collect());
}
