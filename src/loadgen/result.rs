//! The outcome of a run: one type, versioned, from which every report is made.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::intervals::Intervals;
use super::scenario::threshold::Outcome;
use super::scenario::{PhaseKind, Scenario};
use crate::runtime::machine;
use crate::telemetry::live::MachineLoad;
use crate::telemetry::{Latency, LatencySummary};

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

macro_rules! counts {
    ($( $(#[$doc:meta])* $name:ident ),* $(,)?) => {
        /// What was counted over the whole run.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Counts { $( $(#[$doc])* pub $name: u64 ),* }

        impl Counts {
            /// Names of all counts, for thresholds.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];

            /// Both, put together one by one.
            #[must_use]
            pub fn zip(&self, other: &Self, with: impl Fn(u64, u64) -> u64) -> Self {
                Self { $( $name: with(self.$name, other.$name) ),* }
            }

            /// The count of a name.
            #[must_use]
            pub fn get(&self, name: &str) -> Option<f64> {
                match name {
                    $( stringify!($name) => Some(self.$name as f64), )*
                    _ => None,
                }
            }
        }
    };
}

counts!(
    /// Acknowledged messages that are not stored, and stored ones that a member's device or view never got.
    lost,
    /// Messages shown twice to a person, or stored under two ids.
    duplicated,
    /// Messages shown after a younger one.
    out_of_order,
    /// Ids that belonged to two messages, or were not the acknowledged ones.
    id_reuse,
    /// Messages acknowledged under an id below that of a message that was acknowledged before they were first sent.
    id_went_back,
    /// Messages shown to, or readable by, somebody who was not a member when they were sent.
    leaked,
    /// Messages whose body, sender, kind, reply or time came or was stored changed.
    altered,
    /// Messages refused definitely, and stored or shown all the same.
    false_refusal,
    /// ACKs with another id than before, for another conversation, or for a message that the device did not send.
    ack_wrong,
    /// Messages, receipts and typing notices that no simulated client sent.
    forged,
    /// Presence notices that contradict the beats.
    presence_wrong,
    /// Changes of presence that a watching friend had to be told and was not.
    presence_missed,
    /// Presence notices about somebody who is no friend.
    presence_leaked,
    /// Messages that the rates asked for.
    scheduled,
    /// Messages of those that nobody could send, since no talker was online and a member.
    skipped,
    /// Messages that were due.
    intended,
    /// Messages written at least once.
    sent,
    /// Messages acknowledged.
    acked,
    /// Messages refused for good.
    refused,
    /// Messages refused for good because the sender was being removed from the conversation.
    refused_removed,
    /// Messages without an answer at the end.
    unresolved,
    /// Messages shown to persons, over all devices; a device's own, which its ACK shows, are not among them.
    delivered,
    /// Deliveries that had to come by push: to devices that were connected and members from before the send until it was
    /// shown.
    push_expected,
    /// Deliveries of those that came by push; in large channels a `head` frame is the push.
    pushed,
    /// Frames received.
    frames,
    /// Frames that repeated a message and were dropped by the client.
    repeated_on_wire,
    /// Gaps that clients filled by a sync.
    gaps_synced,
    /// Heartbeats sent.
    beats,
    /// Changes of presence that a watching friend had to be told.
    presence_expected,
    /// Changes of those that were told in time.
    presence_seen,
    /// HTTP requests of clients without a socket; those for syncs are not among them.
    poll_requests,
    /// Bytes that clients wrote to their WebSockets, or in such requests.
    bytes_out,
    /// Bytes that they read from them.
    bytes_in,
    /// Devices.
    clients,
    /// Devices that never connected.
    never_connected,
    /// Connections that were lost or closed against the plan; closes of a planned drain are not among them.
    disconnects,
    /// Connections made after the first.
    reconnects,
    /// Frames and answers that could not be read or break the protocol.
    protocol_errors,
    /// API calls of devices, final sync and audit that failed: unexpected statuses, time-outs, broken transport. A 429 or
    /// 503 with a retry time is backpressure and counts as throttled.
    http_errors,
    /// Answers of 429 or 503 that named a time to come back.
    throttled,
    /// Requests and connects that were repeated.
    retries,
    /// The most retries of one device.
    retries_per_device_max,
    /// Devices' tokens that were renewed during the run.
    tokens_renewed,
    /// Connects and requests that failed by a limit of the generator's own machine.
    local_errors,
    /// Devices that could not sync at the end.
    undrained,
    /// Conversations read back in full at the end.
    audited,
    /// Conversations that could not be read back.
    unaudited,
    /// Members' views of conversations that were read back beside the owner's.
    read_views,
    /// Reads that were tried for removed members at the end.
    access_probes,
    /// Longest time from the end of a fault until its last consequence, in ms.
    recovery_ms_max,
);

impl Counts {
    /// Broken guarantees, by kind, without zeros.
    #[must_use]
    pub fn violations(&self) -> BTreeMap<String, u64> {
        let kinds = [
            ("lost", self.lost),
            ("duplicated", self.duplicated),
            ("out_of_order", self.out_of_order),
            ("id_reuse", self.id_reuse),
            ("id_went_back", self.id_went_back),
            ("leaked", self.leaked),
            ("altered", self.altered),
            ("false_refusal", self.false_refusal),
            ("ack_wrong", self.ack_wrong),
            ("forged", self.forged),
            ("presence_wrong", self.presence_wrong),
            ("presence_missed", self.presence_missed),
            ("presence_leaked", self.presence_leaked),
        ];
        kinds.into_iter().filter(|(_, n)| *n > 0).map(|(kind, n)| (kind.to_owned(), n)).collect()
    }

    /// Both added up; of greatest values, the greater.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            recovery_ms_max: self.recovery_ms_max.max(other.recovery_ms_max),
            retries_per_device_max: self.retries_per_device_max.max(other.retries_per_device_max),
            ..self.zip(other, u64::saturating_add)
        }
    }

    /// The share of the expected pushes that came, in percent; `None` where none was expected.
    #[must_use]
    pub fn pushed_percent(&self) -> Option<f64> {
        (self.push_expected > 0).then(|| self.pushed as f64 * 100.0 / self.push_expected as f64)
    }

    /// The share of the scheduled messages that nobody could send, in percent; `None` where none was scheduled.
    #[must_use]
    pub fn skipped_percent(&self) -> Option<f64> {
        (self.scheduled > 0).then(|| self.skipped as f64 * 100.0 / self.scheduled as f64)
    }
}

/// One thing that the verdict rests on, and how much of it was checked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Check {
    /// What, such as `stored` or `presence`.
    pub name: String,
    /// How many had to be there.
    pub expected: u64,
    /// How many of them were seen.
    pub seen: u64,
    /// Violations and misses that it found.
    pub wrong: u64,
    /// What could not be judged, and why; empty where everything was.
    pub note: String,
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
    pub latency: BTreeMap<String, LatencySummary>,
    /// The histograms of that.
    #[serde(default)]
    pub histograms: BTreeMap<String, Latency>,
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
    pub latency: BTreeMap<String, LatencySummary>,
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
    /// The histograms themselves, by path, and [`LAG`].
    pub histograms: BTreeMap<String, Latency>,
    /// The phases of the load, in order.
    pub phases: Vec<PhaseRecord>,
    /// What connections took in memory, where server, client and kernel can be told apart.
    pub memory: Option<ConnectionMemory>,
    /// The generators that took part, when there were several.
    pub workers: Vec<WorkerRecord>,
    /// Everything second by second, for the `.hlog` files, which are where it is kept.
    #[serde(skip)]
    pub intervals: Intervals,
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

/// Name of the histogram of [`GeneratorHealth::lag`] among [`RunResult::histograms`].
pub const LAG: &str = "generator_lag";

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
