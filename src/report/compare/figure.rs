//! What is compared of a run, and how much of a change is allowed.

use serde::{Deserialize, Serialize};

use crate::loadgen::RunResult;
use crate::telemetry::LatencyPath;

/// Largest rise that is allowed, as a share of the base: 0.05 is 5 %. What is past it is worse.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Of a median.
    pub p50: f64,
    /// Of a 95th percentile.
    pub p95: f64,
    /// Of a 99th percentile.
    pub p99: f64,
    /// Of processor time per delivery.
    pub cpu: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { p50: 0.05, p95: 0.10, p99: 0.20, cpu: 0.05 }
    }
}

impl Limits {
    /// Names of the limits.
    pub const NAMES: [&'static str; 4] = ["p50", "p95", "p99", "cpu"];

    /// The limit of a name.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut f64> {
        match name {
            "p50" => Some(&mut self.p50),
            "p95" => Some(&mut self.p95),
            "p99" => Some(&mut self.p99),
            "cpu" => Some(&mut self.cpu),
            _ => None,
        }
    }
}

/// What a finding says of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// There is no answer until this one has its own.
    Gate,
    /// It makes a build worse, but leaves no comparison open.
    Watch,
}

/// Factor of the limits of latencies that are only watched: they have few samples in most scenarios.
const WATCH_FACTOR: f64 = 2.0;

/// Fewest samples past a percentile, without which a run has no such percentile.
const SAMPLES_PAST: f64 = 1.0;

/// A percentile that is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Percentile {
    P50,
    P95,
    P99,
}

impl Percentile {
    const ALL: [Self; 3] = [Self::P50, Self::P95, Self::P99];

    const fn name(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P95 => "p95",
            Self::P99 => "p99",
        }
    }

    const fn percent(self) -> f64 {
        match self {
            Self::P50 => 50.0,
            Self::P95 => 95.0,
            Self::P99 => 99.0,
        }
    }

    const fn limit(self, limits: &Limits) -> f64 {
        match self {
            Self::P50 => limits.p50,
            Self::P95 => limits.p95,
            Self::P99 => limits.p99,
        }
    }
}

/// A figure of which each run has one value above 0; a change is a factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Figure {
    /// From when a message was due, or a client wanted something, in µs.
    Latency(LatencyPath, Percentile),
    /// Processor time of the stack for each delivery, in µs.
    StackCpu,
    /// Messages shown to persons per acknowledged message. Less is worse.
    Deliveries,
}

/// Paths whose latencies must be settled.
const GATE_PATHS: [LatencyPath; 2] = [LatencyPath::Delivery, LatencyPath::Ack];

/// Paths whose latencies are watched; the parts of [`LatencyPath::Delivery`] are in it.
const WATCH_PATHS: [LatencyPath; 8] = [
    LatencyPath::Connect,
    LatencyPath::Login,
    LatencyPath::DeliveryAfterReconnect,
    LatencyPath::DeliverySlowReader,
    LatencyPath::PresenceOnline,
    LatencyPath::PresenceOffline,
    LatencyPath::Sync,
    LatencyPath::Recovery,
];

impl Figure {
    /// All of them, those that must be settled first.
    pub(super) fn all() -> Vec<Self> {
        let gate = GATE_PATHS.into_iter().flat_map(|path| Percentile::ALL.map(|p| Self::Latency(path, p)));
        let watch =
            WATCH_PATHS.into_iter().flat_map(|path| [Percentile::P50, Percentile::P99].map(|p| Self::Latency(path, p)));
        gate.chain([Self::StackCpu, Self::Deliveries]).chain(watch).collect()
    }

    /// What it is called.
    pub(super) fn name(self) -> String {
        match self {
            Self::Latency(path, percentile) => format!("{} {}", path.as_str().replace('_', " "), percentile.name()),
            Self::StackCpu => "stack CPU per delivery".to_owned(),
            Self::Deliveries => "deliveries per message".to_owned(),
        }
    }

    pub(super) fn weight(self) -> Weight {
        match self {
            Self::Latency(path, _) if !GATE_PATHS.contains(&path) => Weight::Watch,
            _ => Weight::Gate,
        }
    }

    pub(super) const fn unit(self) -> Unit {
        match self {
            Self::Latency(..) | Self::StackCpu => Unit::Microseconds,
            Self::Deliveries => Unit::Each,
        }
    }

    /// Whether less of it is worse.
    pub(super) const fn is_more_better(self) -> bool {
        matches!(self, Self::Deliveries)
    }

    /// Largest change for the worse, as a share.
    pub(super) fn limit(self, limits: &Limits) -> f64 {
        match self {
            Self::Latency(_, percentile) => {
                percentile.limit(limits) * if self.weight() == Weight::Watch { WATCH_FACTOR } else { 1.0 }
            }
            Self::StackCpu => limits.cpu,
            Self::Deliveries => 0.01,
        }
    }

    /// The value of a run; `None` where it was not measured, or is no figure.
    pub(super) fn of(self, result: &RunResult) -> Option<f64> {
        let counts = &result.counts;
        let value = match self {
            Self::Latency(path, percentile) => {
                let histogram = result.histograms.get(path).filter(|h| h.count() > 0)?;
                let past = histogram.count() as f64 * (1.0 - percentile.percent() / 100.0);
                // A hair below, since 0.01 is not 1/100.
                (past >= SAMPLES_PAST - 1e-6).then(|| histogram.percentile_us(percentile.percent()) as f64)?
            }
            Self::StackCpu => per(result.stack_cpu_s() * 1e6, counts.delivered)?,
            Self::Deliveries => per(counts.delivered as f64, counts.acked)?,
        };
        (value.is_finite() && value > 0.0).then_some(value)
    }
}

impl Figure {
    /// Whether a run measured anything of it, be it too little for a value.
    pub(super) fn has_samples(self, result: &RunResult) -> bool {
        match self {
            Self::Latency(path, _) => result.histograms.get(path).is_some_and(|histogram| histogram.count() > 0),
            Self::StackCpu | Self::Deliveries => self.of(result).is_some(),
        }
    }
}

fn per(sum: f64, n: u64) -> Option<f64> {
    (n > 0).then(|| sum / n as f64)
}

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A time in µs; its change is a factor.
    Microseconds,
    /// A number for each of something; its change is a factor.
    Each,
    /// A share of messages; its change is a difference.
    Share,
    /// A number for each device; its change is a difference.
    PerDevice,
}

impl Unit {
    /// Whether a change is new minus base; without it, new by base.
    #[must_use]
    pub const fn is_difference(self) -> bool {
        matches!(self, Self::Share | Self::PerDevice)
    }
}

/// A rate of something that should be rare: so many of so many.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    pub(super) name: &'static str,
    pub(super) unit: Unit,
    pub(super) weight: Weight,
    /// Rise that is always allowed.
    pub(super) floor: f64,
    /// How many of how many; `None` where the run did not count it.
    pub(super) of: fn(&RunResult) -> Option<(u64, u64)>,
}

/// Rise that is allowed where there is much of it already, as a share of the base.
pub(super) const RATE_LIMIT: f64 = 0.10;

/// Reads a count by its name.
fn count(result: &RunResult, name: &str) -> Option<u64> {
    result.counts.get(name).map(|n| n as u64)
}

macro_rules! rates {
    ($( $name:literal, $unit:ident, $weight:ident, $floor:literal, |$r:ident| $of:expr; )*) => {
        &[$( Rate {
            name: $name,
            unit: Unit::$unit,
            weight: Weight::$weight,
            floor: $floor,
            of: |$r: &RunResult| -> Option<(u64, u64)> { $of },
        } ),*]
    };
}

/// All rates. Failures must be settled; what the network does is watched.
pub(super) const RATES: &[Rate] = rates! {
    "unacknowledged per message", Share, Gate, 0.001, |r| Some((r.counts.intended.saturating_sub(r.counts.acked), r.counts.intended));
    "refused per message", Share, Gate, 0.001, |r| Some((r.counts.refused, r.counts.intended));
    "unresolved per message", Share, Gate, 0.001, |r| Some((r.counts.unresolved, r.counts.intended));
    "errors per message and device", Share, Gate, 0.001, |r| Some((errors(r), r.counts.intended.saturating_add(r.counts.clients)));
    "HTTP errors per device", PerDevice, Gate, 0.001, |r| Some((count(r, "http_errors")?, r.counts.clients));
    "protocol errors per device", PerDevice, Gate, 0.001, |r| Some((count(r, "protocol_errors")?, r.counts.clients));
    "disconnects per device", PerDevice, Gate, 0.001, |r| Some((count(r, "disconnects")?, r.counts.clients));
    "failed connects per device", PerDevice, Gate, 0.001, |r| Some((count(r, "connects_failed")?, r.counts.clients));
    "failed membership changes per device", PerDevice, Gate, 0.001, |r| Some((count(r, "changes_failed")?, r.counts.clients));
    "not caught up per device", PerDevice, Gate, 0.001, |r| Some((count(r, "not_caught_up")?, r.counts.clients));
    "never connected per device", PerDevice, Gate, 0.001, |r| Some((r.counts.never_connected, r.counts.clients));
    "not synced at the end per device", PerDevice, Gate, 0.001, |r| Some((r.counts.undrained, r.counts.clients));
    "not read back per conversation", Share, Gate, 0.001, |r| Some((r.counts.unaudited, r.counts.unaudited.saturating_add(r.counts.audited)));
    "not pushed per delivery", Share, Gate, 0.005, |r| {
        let expected = count(r, "push_expected")?;
        Some((expected.saturating_sub(count(r, "pushed")?), expected))
    };
    "presence not seen per change", Share, Watch, 0.005, |r| {
        let expected = count(r, "presence_expected")?;
        Some((expected.saturating_sub(count(r, "presence_seen")?), expected))
    };
    "reconnects per device", PerDevice, Watch, 0.01, |r| Some((r.counts.reconnects, r.counts.clients));
    "retries per device", PerDevice, Watch, 0.01, |r| Some((count(r, "retries")?, r.counts.clients));
    "sent again per message", Share, Watch, 0.01, |r| Some((count(r, "resent")?, r.counts.intended));
    "throttled per device", PerDevice, Watch, 0.01, |r| Some((count(r, "throttled")?, r.counts.clients));
    "gaps synced per delivery", Share, Watch, 0.01, |r| Some((r.counts.gaps_synced, r.counts.delivered));
    "repeats on the wire per delivery", Share, Watch, 0.01, |r| Some((r.counts.repeated_on_wire, r.counts.delivered));
};

fn errors(result: &RunResult) -> u64 {
    result.errors.values().fold(0, |sum, n| sum.saturating_add(*n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Latency;

    #[test]
    fn a_percentile_needs_samples_past_it() {
        let mut result = RunResult::default();
        let mut latency = Latency::default();
        latency.record_many_us(1_000, 99);
        result.histograms.insert(LatencyPath::Delivery, latency.clone());
        let p99 = Figure::Latency(LatencyPath::Delivery, Percentile::P99);
        assert_eq!(p99.of(&result), None);
        latency.record_us(5_000);
        result.histograms.insert(LatencyPath::Delivery, latency);
        assert!(p99.of(&result).is_some());
    }

    #[test]
    fn names_are_told_apart_and_limits_are_those_of_the_kind() {
        let names: std::collections::BTreeSet<String> =
            Figure::all().into_iter().map(Figure::name).chain(RATES.iter().map(|r| r.name.to_owned())).collect();
        assert_eq!(names.len(), Figure::all().len() + RATES.len());
        let limits = Limits::default();
        for name in Limits::NAMES {
            assert!(Limits::default().get_mut(name).is_some(), "{name}");
        }
        let limit = |path, percentile| Figure::Latency(path, percentile).limit(&limits);
        assert!((limit(LatencyPath::Ack, Percentile::P99) - 0.20).abs() < 1e-9);
        assert!((limit(LatencyPath::Connect, Percentile::P99) - 0.40).abs() < 1e-9);
    }
}
