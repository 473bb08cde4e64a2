//! What a run looks like now: one value that the TUI, the plain lines and later readers are all made from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::LatencySummary;

/// A load run at one moment. Written by the generator once per interval, read by whoever shows it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LiveSnapshot {
    /// Name of the scenario.
    pub scenario: String,
    /// Name of the phase under way: `setup`, the scenario's own phases, `drain`, `audit`, `done`.
    pub phase: String,
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
    pub interval: BTreeMap<String, LatencySummary>,
    /// Latency since the warm-up ended, by path.
    pub overall: BTreeMap<String, LatencySummary>,
    /// Servers of the stack, from their `/metrics`.
    pub servers: BTreeMap<String, ServerSnapshot>,
    /// Violations found so far, by kind; empty while all is well.
    pub violations: BTreeMap<String, u64>,
    /// Errors seen so far, by code.
    pub errors: BTreeMap<String, u64>,
    /// How late the generator was, 99th percentile of the last interval, in µs.
    pub generator_lag_us_p99: u64,
    /// Largest lag so far, in µs.
    pub generator_lag_us_max: u64,
    /// Processor time of the generator over the last interval, in cores.
    pub generator_cores: f64,
    /// Resident memory of the process, in bytes.
    pub resident_bytes: u64,
    /// `running`, then the final verdict's word.
    pub verdict: String,
    /// The newest notable events, newest last.
    pub events: Vec<String>,
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
