//! A scenario: data with a name. Parsed from YAML, checked with file, line and the valid values in the error.

mod check;
mod name;
mod places;
mod range;
pub mod schedule;
pub mod threshold;
mod unknown_measure;
mod yields;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::name::{NAME_CHARS_MAX, check_name};
use self::places::Places;
pub use self::range::Range;
use self::threshold::Threshold;
use crate::loadgen::behavior::{Behavior, Flapper};
use crate::protocol::fault;
use crate::runtime::files::{self, SETTINGS_BYTES_MAX};
use crate::runtime::yaml;
pub use crate::telemetry::PhaseKind;
use crate::telemetry::printable_lines;

/// A scenario that can't be run, with the place and the fix.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ScenarioError(String);

impl ScenarioError {
    fn new(text: &str) -> Self {
        Self(printable_lines(text).into_owned())
    }
}

/// What to simulate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Shown in reports.
    pub name: String,
    /// What it is for, in a sentence.
    #[serde(default)]
    pub description: String,
    /// Everything random comes from it.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
    /// The stack that is started when no target is given.
    #[serde(default)]
    pub stack: StackSpec,
    /// Who is simulated.
    pub population: Population,
    /// What the users do, by weight.
    pub behaviors: BTreeMap<Behavior, u32>,
    /// Time over which all clients connect, evenly.
    #[serde(default = "defaults::connect_over", with = "humantime_serde")]
    pub connect_over: Duration,
    /// What happens, in order.
    pub phases: Vec<Phase>,
    /// Time between two beats of a device.
    #[serde(default = "defaults::heartbeat", with = "humantime_serde")]
    pub heartbeat: Duration,
    /// Beats go out together at multiples of this time; zero where each has its own.
    #[serde(default, with = "humantime_serde")]
    pub heartbeat_grid: Duration,
    /// Silence of the server after which a client pings it; without anything after that, the connection is dead. Zero for
    /// never, or 1 s to a day.
    #[serde(default = "defaults::ping_after", with = "humantime_serde")]
    pub ping_after: Duration,
    /// How a client comes back.
    #[serde(default)]
    pub reconnect: Reconnect,
    /// When users go away and come back.
    #[serde(default)]
    pub flapper: Flapper,
    /// How clients are connected.
    #[serde(default)]
    pub transport: Transport,
    /// Time between two requests of clients that poll.
    #[serde(default = "defaults::poll_interval", with = "humantime_serde")]
    pub poll_interval: Duration,
    /// How long slow readers do not read.
    #[serde(default = "defaults::read_pause", with = "humantime_serde")]
    pub read_pause: Duration,
    /// Members removed from groups and added again while the load runs; none when absent.
    #[serde(default)]
    pub churn: Option<Churn>,
    /// Things done to the stack, for stacks that chatctl started.
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// Lowers the users to what this machine holds, and raises the chat servers to what the users need, before the run.
    #[serde(default)]
    pub scale_to_fit: bool,
    /// What must hold for a pass. The ledger must be clean in any case.
    #[serde(default)]
    pub thresholds: Vec<Threshold>,
    /// 99th percentile of the generator's own lag past which the run is invalid.
    #[serde(default = "defaults::generator_lag_max", with = "humantime_serde")]
    pub generator_lag_max: Duration,
}

mod defaults {
    use std::time::Duration;

    pub(super) const fn seed() -> u64 {
        1
    }
    pub(super) const fn connect_over() -> Duration {
        Duration::from_secs(3)
    }
    pub(super) const fn heartbeat() -> Duration {
        crate::protocol::limits::HEARTBEAT
    }
    pub(super) const fn ping_after() -> Duration {
        Duration::from_secs(30)
    }
    pub(super) const fn poll_interval() -> Duration {
        Duration::from_secs(3)
    }
    pub(super) const fn read_pause() -> Duration {
        Duration::from_secs(3)
    }
    pub(super) const fn generator_lag_max() -> Duration {
        Duration::from_millis(100)
    }
}

/// How clients are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// A WebSocket.
    #[default]
    Websocket,
    /// HTTP requests that wait for news, one after the other.
    LongPoll,
    /// HTTP requests that do not wait, at an interval.
    Poll,
}

/// The stack that a run starts for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StackSpec {
    /// Chat servers.
    pub chat_servers: usize,
    /// Presence servers.
    pub presence_servers: usize,
    /// API servers.
    pub api_servers: usize,
    /// Gateways; without one, clients go straight to the servers.
    pub gateways: usize,
    /// Partitions of the log.
    pub partitions: u32,
    /// What is behind the servers.
    pub engines: EngineChoice,
}

/// What is behind the servers of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineChoice {
    /// Embedded engines, and every server in this process.
    #[default]
    Embedded,
    /// The real engines of this machine, and each server a process of its own.
    Real,
}

impl Default for StackSpec {
    fn default() -> Self {
        Self {
            chat_servers: 3,
            presence_servers: 1,
            api_servers: 1,
            gateways: 0,
            partitions: 8,
            engines: EngineChoice::Embedded,
        }
    }
}

/// Who is simulated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Population {
    /// Users; each gets an account.
    pub users: u32,
    /// Devices of each user.
    #[serde(default = "one")]
    pub devices_per_user: Range,
    /// Friends of each user, about.
    #[serde(default)]
    pub friends_per_user: u32,
    /// One-to-one conversations of each user, about.
    #[serde(default)]
    pub direct_per_user: u32,
    /// Groups; above 100 members they are large channels.
    #[serde(default)]
    pub groups: Vec<Groups>,
    /// Size of a message body in bytes.
    #[serde(default = "message_bytes")]
    pub message_bytes: Range,
}

const fn one() -> Range {
    Range { min: 1, max: 1 }
}

const fn message_bytes() -> Range {
    Range { min: 100, max: 200 }
}

/// Some groups of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Groups {
    /// How many.
    pub count: u32,
    /// How many members each has.
    pub members: Range,
}

/// A stretch of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// What it is: a warm-up is not measured.
    pub phase: PhaseKind,
    /// How long.
    #[serde(with = "humantime_serde")]
    pub duration: Duration,
    /// Messages per second over all users: fixed, or from one rate to another in a ramp.
    #[serde(default)]
    pub rate: f64,
    /// The rate at the end of a ramp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_to: Option<f64>,
    /// When messages are due within the rate.
    #[serde(default)]
    pub arrivals: Arrivals,
}

/// An open model: messages are due whether or not earlier ones were answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arrivals {
    /// Exponential gaps, as of many independent people.
    #[default]
    Poisson,
    /// Equal gaps.
    Constant,
}

/// How a client comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reconnect {
    /// First wait at most.
    #[serde(with = "humantime_serde")]
    pub first: Duration,
    /// Longest wait.
    #[serde(with = "humantime_serde")]
    pub max: Duration,
}

impl Default for Reconnect {
    fn default() -> Self {
        Self { first: Duration::from_millis(500), max: Duration::from_secs(10) }
    }
}

/// Changes of membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Churn {
    /// Time between two removals.
    #[serde(with = "humantime_serde")]
    pub every: Duration,
    /// Time until the removed member is added again.
    #[serde(with = "humantime_serde")]
    pub back_after: Duration,
}

/// Something done to the stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// When, from the start of the load.
    #[serde(with = "humantime_serde")]
    pub at: Duration,
    /// What, such as `kill chat-2` or `pause redis 10s`.
    #[serde(rename = "do")]
    pub action: fault::Fault,
}

macro_rules! as_text {
    ($name:ty) => {
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use as_text;

impl Scenario {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ScenarioError> {
        let named = |e: &dyn std::fmt::Display| ScenarioError::new(&format!("{}: {e}", path.display()));
        let missing = |e: std::io::Error| named(&format!("{e}; scenarios lie in the folder scenarios/"));
        let text = files::read_text(path, SETTINGS_BYTES_MAX).map_err(missing)?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Parses and checks a text; `origin` names it in errors.
    pub fn parse(text: &str, origin: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = yaml::parse(text, origin).map_err(|e| ScenarioError::new(&e))?;
        let places = Places::read(text);
        let problems = check::problems(&scenario, places.as_ref());
        if problems.is_empty() {
            return Ok(scenario);
        }
        let shown = problems.iter().map(|check::Problem { path, text }| {
            let place = places.as_ref().and_then(|places| places.find(path));
            let place = place.map_or_else(String::new, |(line, column)| format!(":{line}:{column}"));
            format!("{origin}{place}: {path}: {text}")
        });
        Err(ScenarioError::new(&shown.collect::<Vec<_>>().join("\n")))
    }

    /// Everything that keeps it from being run after it was changed: the path of each value, and what is wrong with it.
    #[must_use]
    pub fn problems(&self) -> Vec<(String, String)> {
        check::problems(self, None).into_iter().map(|check::Problem { path, text }| (path, text)).collect()
    }

    /// [`Self::ping_after`] in µs; `None` where clients never ping.
    pub(in crate::loadgen) fn ping_after_us(&self) -> Option<u64> {
        let us = u64::try_from(self.ping_after.as_micros()).unwrap_or(u64::MAX);
        (us > 0).then_some(us)
    }

    /// Where in a scenario's file a value stands, such as `phases[2].rate`: `file:line:column`, or the file alone.
    #[must_use]
    pub fn place(file: &Path, path: &str) -> String {
        // Who wrote into a pipe does not write again.
        let text = file.is_file().then(|| files::read_text(file, SETTINGS_BYTES_MAX).ok()).flatten();
        let found = text.and_then(|text| Places::read(&text)?.find(path));
        found.map_or_else(|| file.display().to_string(), |(line, column)| format!("{}:{line}:{column}", file.display()))
    }

    /// Connections at the same time, at most.
    #[must_use]
    pub fn connections_max(&self) -> u64 {
        u64::from(self.population.users) * u64::from(self.population.devices_per_user.max)
    }

    /// Time of all phases.
    #[must_use]
    pub fn duration(&self) -> Duration {
        self.phases.iter().fold(Duration::ZERO, |total, phase| total.saturating_add(phase.duration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
name: tiny
population: {users: 10, direct_per_user: 2}
behaviors:
  one-to-one: 1
phases:
  - {phase: steady, duration: 5s, rate: 40}
thresholds: ['ack_ms.p99 < 50', 'lost == 0']
";

    fn error(text: &str) -> String {
        Scenario::parse(text, "x.yaml").expect_err("refused").to_string()
    }

    #[test]
    fn churn_says_what_its_groups_lack() {
        let head = "{name: t, population: {users: 9, direct_per_user: 1";
        let rest =
            "}, behaviors: {lurker: 1}, churn: {every: 2s, back_after: 3s}, phases: [{phase: steady, duration: 1s}]}";
        for (groups, wanted) in [
            ("", "there are none; add population.groups"),
            (
                ", groups: [{count: 0, members: {min: 3, max: 4}}]",
                "there are none; set population.groups[].count above 0",
            ),
            (", groups: [{count: 4, members: {min: 2, max: 2}}]", "the largest has 2; set population.groups[].members"),
        ] {
            let error = Scenario::parse(&format!("{head}{groups}{rest}"), "x").expect_err(wanted).to_string();
            assert!(error.contains("churn: members come and go in groups of at least 3: "), "{error}");
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn a_small_scenario_has_defaults_for_the_rest() {
        let s = Scenario::parse(GOOD, "x.yaml").expect("valid");
        assert_eq!((s.seed, s.heartbeat, s.thresholds.len()), (1, Duration::from_secs(5), 2));
    }

    #[test]
    fn a_wrong_key_names_the_line_and_the_valid_keys() {
        let text = error(&GOOD.replace("direct_per_user", "directs_per_user"));
        assert!(text.starts_with("x.yaml:3:"), "{text}");
        assert!(text.contains("directs_per_user") && text.contains("direct_per_user"), "{text}");
    }

    #[test]
    fn an_unknown_behaviour_lists_the_known_ones() {
        let text = error(&GOOD.replace("one-to-one", "chatterbox"));
        assert!(
            text.starts_with("x.yaml:5:") && text.contains("chatterbox") && text.contains("presence-only"),
            "{text}"
        );
    }

    #[test]
    fn a_wrong_threshold_names_the_valid_measures() {
        let text = error(&GOOD.replace("ack_ms.p99", "ack.p99"));
        assert!(text.contains("ack_ms"), "{text}");
    }

    #[test]
    fn what_can_not_be_read_is_named() {
        assert!(error("").contains("x.yaml"));
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("large.yaml");
        std::fs::write(&path, vec![b'#'; SETTINGS_BYTES_MAX as usize + 1]).expect("writes");
        assert!(Scenario::read(&path).expect_err("too large").to_string().contains("larger than 1024 KiB"));
        assert!(Scenario::read(Path::new("/dev/zero")).expect_err("no end").to_string().starts_with("/dev/zero: "));
    }

    #[test]
    fn every_scenario_of_the_folder_is_valid_and_limits_a_latency() {
        let folders =
            [("scenarios", 6), ("scenarios/faults", 10), ("scenarios/transports", 3), ("scenarios/calibrate", 3)];
        for (folder, least) in folders {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
            let mut count = 0;
            for entry in std::fs::read_dir(folder).expect("there is a folder") {
                let path = entry.expect("readable").path();
                if path.extension().is_some_and(|e| e == "yaml") {
                    let scenario = Scenario::read(&path).unwrap_or_else(|e| panic!("{e}"));
                    let limits_latency = scenario.thresholds.iter().any(|t| t.upper_limit().is_some());
                    assert!(limits_latency, "{} passes however slow the target is", path.display());
                    count += 1;
                }
            }
            assert!(count >= least, "{count} scenarios");
        }
    }
}
