//! The outcome of a run: one type, versioned, from which every report is made.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use super::counts::{Check, Counts};
use super::intervals::Intervals;
pub use super::ledger::Tallied;
use super::scenario::threshold::Outcome;
use super::scenario::{PhaseKind, Scenario};
use crate::runtime::machine;
use crate::telemetry::live::MachineLoad;
use crate::telemetry::{ByPath, Latency, LatencySummary};

/// Version of the JSON form. Rises when a field changes its meaning or goes.
pub const SCHEMA_VERSION: u32 = 2;

/// The word at the end of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything holds.
    #[default]
    Pass,
    /// The ledger is clean, a threshold is not met.
    ThresholdFailed,
    /// A guarantee was broken.
    LedgerViolated,
    /// Inconclusive: the generator or its machine was the limit, not the target.
    Invalid,
    /// The run was stopped, and nothing was broken until then.
    Interrupted,
}

impl Verdict {
    /// The word for people.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::ThresholdFailed => "FAIL (threshold)",
            Self::LedgerViolated => "FAIL (ledger)",
            Self::Invalid => "INVALID",
            Self::Interrupted => "INTERRUPTED",
        }
    }
}

/// How the generator itself did.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GeneratorHealth {
    /// How late it did what was due.
    pub lag: LatencySummary,
    /// Processor time of its threads, in seconds.
    pub cpu_s: f64,
    /// Processor time of the stack's threads, in seconds; 0 when the stack is elsewhere.
    pub stack_cpu_s: f64,
    /// Resident memory of the process at the end of the load, in bytes, without its program.
    pub resident_bytes: u64,
    /// Processors of its machine.
    pub cores: f64,
    /// What other programs than generator and stack used of them, on average over the load; `None` where that can't be told.
    pub foreign_cores_mean: Option<f64>,
    /// The same in the worst second.
    pub foreign_cores_max: Option<f64>,
    /// What other machines of the same host took, on average.
    pub steal_cores_mean: f64,
    /// The same in the worst second.
    pub steal_cores_max: f64,
}

/// What was due in one phase, and what came of it, however late.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PhaseRecord {
    /// Its kind. A warm-up is in no figure outside of this list.
    pub phase: PhaseKind,
    /// When it began, in seconds from the start of the load.
    pub from_s: f64,
    /// When it ended.
    pub to_s: f64,
    /// Messages that were due.
    pub due: u64,
    /// Of those, acknowledged.
    pub acked: u64,
    /// How often they were shown to others than the sender's device, over all devices.
    pub delivered: u64,
    /// Latency of what was due in it, by path.
    pub latency: ByPath<LatencySummary>,
    /// The histograms of that.
    #[serde(default)]
    pub histograms: ByPath<Latency>,
}

/// What one process of the stack, or one engine, took during the load.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ProcessUsage {
    /// `chat-1`, `kafka`, …
    pub name: String,
    /// `chat`, `api`, …, or `engine`.
    pub role: String,
    /// Process, to tell one that was started again.
    pub pid: u32,
    /// Processor time in seconds.
    pub cpu_s: f64,
    /// Resident memory at the end, in bytes.
    pub resident_bytes: u64,
}

/// One thing done to the stack.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct FaultRecord {
    /// What.
    pub what: String,
    /// When, in seconds from the start of the load.
    pub at_s: f64,
    /// How long the deed took, in seconds.
    pub lasted_s: f64,
    /// How long it was meant to last, in seconds; 0 for what is done in a moment. It ends that long after its begin.
    #[serde(default)]
    pub planned_s: f64,
    /// Times from the fault until a device was connected and caught up.
    #[serde(default)]
    pub recovery: Latency,
    /// Devices that lost their connection by it.
    pub disconnected: u64,
    /// Of those, how many were connected and caught up again.
    pub recovered: u64,
    /// Time from the fault until 99 % of them were, in seconds; `None` while they are not.
    pub recovered_99_s: Option<f64>,
    /// Errors that clients got between it and the next fault: refused sends, failed connects.
    pub errors: u64,
    /// Messages of that time whose ACK came over a second after they were due.
    pub late_acks: u64,
    /// Deliveries of that time that came over a second late, in the same sense.
    #[serde(default)]
    pub late_deliveries: u64,
    /// Time from the end of the fault until the last of these, in seconds; `None` when there was none after it.
    pub calm_after_s: Option<f64>,
    /// What went wrong with the fault itself.
    pub error: Option<String>,
}

/// The outcome of a run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RunResult {
    /// [`SCHEMA_VERSION`].
    pub schema: u32,
    /// chatctl's version.
    pub version: String,
    /// The scenario's name.
    pub scenario: String,
    /// The seed.
    pub seed: u64,
    /// SHA-256 of [`Self::scenario_text`]: runs with another one are not comparable. Empty in results of older versions.
    pub scenario_hash: String,
    /// The scenario as it ran, as JSON in one line, without the passwords of its addresses.
    pub scenario_text: String,
    /// API address of the stack.
    pub target: String,
    /// Whether that stack was started for the run and by it; `None` in results of older versions.
    pub has_own_stack: Option<bool>,
    /// When the load began, in milliseconds since 1970.
    pub started_at_ms: u64,
    /// How long the load took, in seconds.
    pub duration_s: f64,
    /// The machine of the generator.
    pub machine: String,
    /// The word.
    pub verdict: Verdict,
    /// Why it is not a pass.
    pub reasons: Vec<String>,
    /// What does not change the verdict, and what whoever reads the figures has to know.
    pub warnings: Vec<String>,
    /// Reconnects in the busiest second.
    pub reconnects_per_s_max: f64,
    /// What was counted.
    pub counts: Counts,
    /// Latency by path, without warm-up.
    pub latency: ByPath<LatencySummary>,
    /// What the verdict rests on, by check: expected, seen, wrong, and what could not be judged.
    pub checks: Vec<Check>,
    /// Each threshold with its value; those that every run has are marked.
    pub thresholds: Vec<Outcome>,
    /// The first violations, in words, with the ids of what was broken.
    pub violations: Vec<String>,
    /// Errors by code.
    pub errors: BTreeMap<String, u64>,
    /// What was done to the stack.
    pub faults: Vec<FaultRecord>,
    /// How the generator did.
    pub generator: GeneratorHealth,
    /// What each process of the stack took, when whoever runs the load runs the stack.
    pub processes: Vec<ProcessUsage>,
    /// The histograms themselves, by path, and that of [`GeneratorHealth::lag`].
    pub histograms: ByPath<Latency>,
    /// The phases of the load, in order.
    pub phases: Vec<PhaseRecord>,
    /// What connections took in memory, where server, client and kernel can be told apart.
    pub memory: Option<ConnectionMemory>,
    /// The generators that took part, when there were several.
    pub workers: Vec<WorkerRecord>,
    /// Everything second by second, for the `.hlog` files, which are where it is kept.
    #[serde(skip)]
    pub intervals: Intervals,
    /// What the checks are made of, beside the counts.
    #[serde(skip)]
    pub tallied: Tallied,
}

impl RunResult {
    /// A result that says what ran, when and where, and nothing of how it went.
    pub(super) fn begun(scenario: &Scenario, started_at_ms: u64) -> Self {
        let identity = ScenarioIdentity::of(scenario);
        Self {
            schema: SCHEMA_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            scenario: scenario.name.clone(),
            seed: scenario.seed,
            scenario_hash: identity.hash,
            scenario_text: identity.text,
            started_at_ms,
            machine: machine::describe(),
            ..Self::default()
        }
    }

    /// Takes what the machine did from the intervals of the load.
    pub(super) fn note_machine(&mut self) {
        let loads = self.intervals.rows().iter().filter_map(|row| Some((row.machine?, row.to_s - row.from_s)));
        let mut whole: Option<(MachineLoad, f64)> = None;
        for (load, seconds) in loads {
            let g = &mut self.generator;
            g.foreign_cores_max = load.foreign_cores.map(|cores| cores.max(g.foreign_cores_max.unwrap_or(0.0)));
            g.steal_cores_max = g.steal_cores_max.max(load.steal_cores);
            whole = Some(
                whole.map_or((load, seconds), |(sum, before)| (sum.joined(before, load, seconds), before + seconds)),
            );
        }
        if let Some((whole, _)) = whole {
            self.generator.cores = whole.cores;
            self.generator.foreign_cores_mean = whole.foreign_cores;
            self.generator.steal_cores_mean = whole.steal_cores;
        }
    }

    /// Processor time of the stack, in seconds: its threads in this process, or its processes and the engines of this machine;
    /// 0 where neither is known.
    #[must_use]
    pub fn stack_cpu_s(&self) -> f64 {
        self.generator.stack_cpu_s + self.processes.iter().map(|p| p.cpu_s).sum::<f64>()
    }

    /// Processor time of the generator for each frame that it received and each beat that it sent, in µs.
    #[must_use]
    pub fn generator_us_per_frame(&self) -> f64 {
        self.generator.cpu_s * 1e6 / (self.counts.frames + self.counts.beats).max(1) as f64
    }
}

/// What a scenario says, whatever its file looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScenarioIdentity {
    /// All of it as JSON in one line, defaults included, without the passwords of its addresses.
    pub text: String,
    /// SHA-256 of the text, in hexadecimal.
    pub hash: String,
}

impl ScenarioIdentity {
    /// Of a scenario.
    #[must_use]
    pub fn of(scenario: &Scenario) -> Self {
        use sha2::{Digest, Sha256};
        let text = without_passwords(&serde_json::to_string(scenario).unwrap_or_default());
        let bytes = Sha256::digest(text.as_bytes());
        let hash = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
        Self { text, hash }
    }
}

/// Text in which each address such as `postgres://user:password@host` has `***` for its password.
fn without_passwords(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        // The last `@` before the path: a password may hold others.
        let authority = after.find(['/', '"', ' ', '?', '#']).unwrap_or(after.len());
        let secret = after[..authority].rfind('@').and_then(|end| Some((after[..end].find(':')?, end)));
        rest = match secret {
            Some((colon, end)) => {
                out.push_str(&after[..=colon]);
                out.push_str("***");
                &after[end..]
            }
            None => after,
        };
    }
    out + rest
}

/// Growth of memory from before the first connection (clients: from before their accounts were made) to the end of the load, in
/// bytes over all connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConnectionMemory {
    /// Connections at the end of the load.
    pub connections: u64,
    /// Memory of the chat servers.
    pub server_bytes: u64,
    /// Memory of the generators.
    pub client_bytes: u64,
    /// Memory of the kernel: both ends, where the servers are on this machine.
    pub kernel_bytes: u64,
}

/// One of several generators of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerRecord {
    /// Where it ran: `pid 123` of this machine, or its address.
    pub name: String,
    /// Its devices.
    pub clients: u64,
    /// How late it did what was due, 99th percentile in µs.
    pub lag_us_p99: u64,
    /// Processor time in seconds.
    pub cpu_s: f64,
    /// Resident memory at the end of the load, in bytes, without its program.
    pub resident_bytes: u64,
    /// Its machine's wall clock minus the coordinator's, in µs, before the load.
    pub clock_offset_us: i64,
    /// That is right to within this, in µs. No latency contains it: both ends of each are on one worker.
    pub clock_error_us: u64,
    /// Why it has no part in the figures.
    pub lost: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_with_another_content_has_another_hash() {
        let read = |rate, comment: &str| {
            let text = format!(
                "{comment}{{name: t, population: {{users: 2, direct_per_user: 1}}, behaviors: {{one-to-one: 1}}, \
                 phases: [{{phase: steady, duration: 1s, rate: {rate}}}]}}"
            );
            ScenarioIdentity::of(&Scenario::parse(&text, "t").expect("valid"))
        };
        assert_eq!(read(1, ""), read(1, "# the same\n"));
        assert_ne!(read(1, "").hash, read(2, "").hash);
        let begun = RunResult::begun(&Scenario::parse(&read(1, "").text, "t").expect("reads back"), 0);
        assert_eq!((begun.scenario_hash.len(), begun.scenario_hash), (64, read(1, "").hash));
    }

    #[test]
    fn no_password_gets_into_a_result() {
        let text = r#"{"a":"postgres://u:p@ss@h:5/db","b":"redis://:x@h","c":"http://h:7100/a@b","d":"kafka://u@h"}"#;
        let wanted =
            r#"{"a":"postgres://u:***@h:5/db","b":"redis://:***@h","c":"http://h:7100/a@b","d":"kafka://u@h"}"#;
        assert_eq!(without_passwords(text), wanted);
    }
}
