//! What can be measured: metric names, histograms, Prometheus text, and the snapshot that the TUI shows.
//!
//! Knows no other room. Whoever counts something owns a [`Metrics`]; whoever shows something reads a snapshot.

pub mod human;
pub mod latency;
mod latency_path;
pub mod live;
pub mod metrics;
mod phase;
mod printable;
pub mod prometheus;

pub use latency::{Latency, LatencySummary, Percentile};
pub use latency_path::{ByPath, LatencyPath, PathName};
pub use live::LiveSnapshot;
pub use metrics::{Counter, Gauge, Metrics, PartitionFigures, Registry, Timer};
pub use phase::{PhaseKind, RunPhase};
pub use printable::{printable, printable_lines};
