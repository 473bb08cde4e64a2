//! What a run looks like now: one value that the TUI, the plain lines and later readers are all made from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ByPath, Latency, LatencySummary, RunPhase};

/// A load run at one moment. Written by the generator once per interval, read by whoever shows it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LiveSnapshot {
    /// Name of the scenario.
    pub scenario: String,
    /// The phase under way.
    pub phase: RunPhase,
    /// How far the phase is, 0 to 1, and what is being counted, for progress bars.
    pub progress: f64,
    /// What the progress counts, such as `accounts 120/500`.
    pub progress_text: String,
    /// Seconds since the load began (0 during setup).
    pub elapsed_s: f64,
    /// Seconds that the load is planned to take.
    pub planned_s: f64,
    /// Connections that should be open now.
    pub connections_wanted: u64,
    /// Connections that are open now.
    pub connections: u64,
    /// Messages sent, acknowledged and delivered so far.
    pub totals: Totals,
    /// The same, per second over the last interval.
    pub rates: Totals,
    /// Latency of the last interval by path.
    pub interval: ByPath<LatencySummary>,
    /// Deliveries of the last interval by latency: see [`heat_of`].
    #[serde(default)]
    pub heat: Vec<u64>,
    /// Latency since the warm-up ended, by path.
    pub overall: ByPath<LatencySummary>,
    /// Servers of the stack, from their `/metrics`.
    pub servers: BTreeMap<String, ServerSnapshot>,
    /// Violations found so far, by kind; empty while all is well.
    pub violations: BTreeMap<String, u64>,
    /// Errors seen so far, by code.
    pub errors: BTreeMap<String, u64>,
    /// How late the generator was, median of the last interval, in µs.
    #[serde(default)]
    pub generator_lag_us_p50: u64,
    /// The same, 99th percentile.
    pub generator_lag_us_p99: u64,
    /// Largest lag so far, in µs.
    pub generator_lag_us_max: u64,
    /// Processor time of the generator over the last interval, in cores.
    pub generator_cores: f64,
    /// Processors that everything on the generator's machine used over the last interval.
    #[serde(default)]
    pub machine_cores: f64,
    /// The same, and who used them; `None` in the first interval.
    #[serde(default)]
    pub machine: Option<MachineLoad>,
    /// Resident memory of the process, in bytes.
    pub resident_bytes: u64,
    /// `running`, then the final verdict's word.
    pub verdict: String,
    /// The newest notable events, newest last.
    pub events: Vec<String>,
    /// Whether the last interval counts, or is warm-up.
    #[serde(default)]
    pub is_measured: bool,
    /// Latencies of the last interval by path, to be merged with those of other generators; not in files. Those that count.
    #[serde(skip)]
    pub histograms: ByPath<Latency>,
    /// Those that do not, since what they measure was due in a warm-up or after the load.
    #[serde(skip)]
    pub unmeasured: ByPath<Latency>,
}

/// What the processors of the generator's machine did over an interval, in processors that were busy all the time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MachineLoad {
    /// Processors of the machine.
    pub cores: f64,
    /// Everything that ran.
    pub used_cores: f64,
    /// Programs that are neither the generator nor the stack; `None` where that can't be told.
    pub foreign_cores: Option<f64>,
    /// What other machines of the same host took while something here was ready to run.
    pub steal_cores: f64,
    /// Share of the time in which something waited for a processor; `None` where the kernel does not tell.
    pub pressure: Option<f64>,
}

impl MachineLoad {
    /// What others took from the run.
    #[must_use]
    pub fn taken_cores(&self) -> f64 {
        self.foreign_cores.unwrap_or(0.0) + self.steal_cores
    }

    /// Two intervals of some lengths as one.
    #[must_use]
    pub fn joined(self, seconds: f64, other: Self, other_seconds: f64) -> Self {
        let all = (seconds + other_seconds).max(f64::MIN_POSITIVE);
        let mean = |a: f64, b: f64| (a * seconds + b * other_seconds) / all;
        let both = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| mean(a, b));
        Self {
            cores: self.cores.max(other.cores),
            used_cores: mean(self.used_cores, other.used_cores),
            foreign_cores: both(self.foreign_cores, other.foreign_cores),
            steal_cores: mean(self.steal_cores, other.steal_cores),
            pressure: both(self.pressure, other.pressure),
        }
    }
}

/// Steps of a heat map per factor of ten.
pub const HEAT_STEPS_PER_DECADE: u32 = 6;

/// Lowest latency that a heat map tells apart, in µs.
pub const HEAT_US_MIN: u64 = 100;

/// Steps of a heat map: up to 100 s.
pub const HEAT_STEPS: u32 = 6 * HEAT_STEPS_PER_DECADE;

/// Numbers of latencies by step: the first holds everything up to [`HEAT_US_MIN`], the last everything above it, each
/// in between covers a sixth of a factor of ten. Empty when there is none.
#[must_use]
pub fn heat_of(latency: &Latency) -> Vec<u64> {
    let mut heat = Vec::new();
    for (us, count) in latency.values_us() {
        let step = ((us as f64 / HEAT_US_MIN as f64).log10() * f64::from(HEAT_STEPS_PER_DECADE)).ceil().max(0.0);
        let step = (step as usize).min(HEAT_STEPS as usize);
        if heat.len() <= step {
            heat.resize(step + 1, 0);
        }
        heat[step] += count;
    }
    heat
}

/// Message counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Messages that clients wanted to send.
    pub intended: f64,
    /// Messages acknowledged.
    pub acked: f64,
    /// Messages shown to persons, over all devices.
    pub delivered: f64,
    /// Frames that repeated a message and were dropped by the client.
    pub repeated_on_wire: f64,
    /// Reconnects.
    pub reconnects: f64,
}

/// One server, as its metrics say.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerSnapshot {
    /// `chat`, `api`, `presence`, `push`.
    pub role: String,
    /// Open connections.
    pub connections: u64,
    /// Message frames written per second.
    pub deliveries_per_s: f64,
    /// Messages acknowledged per second.
    pub acked_per_s: f64,
    /// Log records not read yet.
    pub lag_records: u64,
    /// Age of the oldest of them, in seconds.
    pub lag_s: f64,
    /// True when the last scrape did not answer.
    pub gone: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heat_has_the_fast_first_and_the_slow_last() {
        let mut latency = Latency::default();
        assert!(heat_of(&latency).is_empty());
        latency.record_many_us(50, 3);
        latency.record_us(1_000);
        assert_eq!(heat_of(&latency), [3, 0, 0, 0, 0, 0, 1]);
        latency.record_us(u64::MAX);
        assert_eq!(heat_of(&latency).len(), HEAT_STEPS as usize + 1);
    }
}
