//! Conditions of a pass: `delivery_ms.p99 < 50`, `lost == 0`, `pushed_percent >= 99`; and those that every run has.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Scenario, as_text, unknown_measure};
use crate::loadgen::result::{Counts, RunResult};
use crate::telemetry::human::{counted, human_value};
use crate::telemetry::{LatencyPath, LatencySummary, Percentile};

/// One condition.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    measure: Measure,
    comparison: Comparison,
    limit: f64,
}

#[derive(Debug, Clone, PartialEq)]
enum Measure {
    Latency(LatencyPath, Statistic),
    Count(&'static str),
    Percent(Percent),
}

/// A share, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Percent {
    /// [`Counts::pushed_percent`].
    Pushed,
    /// [`Counts::pushed_whole_percent`].
    PushedWhole,
}

impl Percent {
    /// All of them.
    pub(super) const ALL: [Self; 2] = [Self::Pushed, Self::PushedWhole];

    /// The name in thresholds.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Pushed => "pushed_percent",
            Self::PushedWhole => "pushed_whole_percent",
        }
    }

    fn of(self, counts: &Counts) -> Option<f64> {
        match self {
            Self::Pushed => counts.pushed_percent(),
            Self::PushedWhole => counts.pushed_whole_percent(),
        }
    }
}

/// Conditions of every run whose scenario does not name their measures: what a user would call a failure.
const DEFAULTS: [&str; 10] = [
    "refused == 0",
    "unresolved == 0",
    "never_connected == 0",
    "changes_failed == 0",
    "undrained == 0",
    "unaudited == 0",
    "unread_views == 0",
    "unprobed == 0",
    "protocol_errors == 0",
    "pushed_percent >= 99",
];

/// The same for runs without faults: a fault takes connections and answers away, and is judged by the recovery from it.
const DEFAULTS_WITHOUT_FAULTS: [&str; 4] =
    ["connects_failed == 0", "disconnects == 0", "http_errors == 0", "not_caught_up == 0"];

/// The conditions that a scenario has beside its own.
#[must_use]
pub fn defaults(scenario: &Scenario) -> Vec<Threshold> {
    let without_faults = scenario.faults.is_empty().then_some(DEFAULTS_WITHOUT_FAULTS);
    let all = DEFAULTS.into_iter().chain(without_faults.into_iter().flatten());
    let all = all.map(|text| text.parse::<Threshold>().expect("the defaults are valid"));
    all.filter(|default| scenario.thresholds.iter().all(|own| own.measure != default.measure)).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
/// A figure of a latency.
pub(in crate::loadgen) enum Statistic {
    Mean,
    Percentile(Percentile),
    Max,
    Count,
}

impl Statistic {
    pub(super) const ALL: [(&'static str, Self); 9] = [
        ("mean", Self::Mean),
        ("p50", Self::Percentile(Percentile::P50)),
        ("p75", Self::Percentile(Percentile::P75)),
        ("p90", Self::Percentile(Percentile::P90)),
        ("p95", Self::Percentile(Percentile::P95)),
        ("p99", Self::Percentile(Percentile::P99)),
        ("p999", Self::Percentile(Percentile::P999)),
        ("max", Self::Max),
        ("count", Self::Count),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, s)| *s == self).map_or("", |(name, _)| *name)
    }

    /// Its value in µs; `None` of a count, which is no time.
    pub(in crate::loadgen) const fn of_us(self, summary: &LatencySummary) -> Option<f64> {
        Some(match self {
            Self::Count => return None,
            Self::Mean => summary.mean_us,
            Self::Percentile(percentile) => summary.percentile_us(percentile) as f64,
            Self::Max => summary.max_us as f64,
        })
    }

    /// Samples without which it says nothing: at least one has to lie above the percentile.
    pub(super) const fn samples_min(self) -> u64 {
        match self {
            Self::Count => 0,
            Self::Mean | Self::Max => 1,
            Self::Percentile(percentile) => percentile.samples_min(),
        }
    }

    /// Whether so many samples say something.
    pub(in crate::loadgen) const fn is_known_from(self, samples: u64) -> bool {
        samples >= self.samples_min()
    }
}

/// A latency that has to stay below a limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::loadgen) struct UpperLimit {
    pub(in crate::loadgen) path: LatencyPath,
    pub(in crate::loadgen) statistic: Statistic,
    pub(in crate::loadgen) limit_us: f64,
    comparison: Comparison,
}

impl UpperLimit {
    /// Whether a value keeps it.
    pub(in crate::loadgen) fn holds(&self, us: f64) -> bool {
        self.comparison.holds(us, self.limit_us)
    }
}

impl fmt::Display for UpperLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, statistic) = (self.path.as_str(), self.statistic.name());
        write!(f, "{path}_ms.{statistic} {} {}", self.comparison.operator(), self.limit_us / 1e3)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
}

impl Comparison {
    /// Each with its operator.
    pub(super) const ALL: [(&'static str, Self); 5] = [
        ("<=", Self::LessOrEqual),
        (">=", Self::GreaterOrEqual),
        ("==", Self::Equal),
        ("<", Self::Less),
        (">", Self::Greater),
    ];

    fn operator(self) -> &'static str {
        Self::ALL.iter().find(|(_, c)| *c == self).map_or("", |(text, _)| *text)
    }

    fn holds(self, value: f64, limit: f64) -> bool {
        match self {
            Self::Less => value < limit,
            Self::LessOrEqual => value <= limit,
            Self::Equal => (value - limit).abs() < f64::EPSILON,
            Self::GreaterOrEqual => value >= limit,
            Self::Greater => value > limit,
        }
    }
}

/// What a threshold made of a result.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    /// The condition as it was written.
    pub threshold: String,
    /// What was measured; `None` when there were no samples.
    pub value: Option<f64>,
    /// Whether it holds. A latency without the samples that its statistic needs does not.
    pub passed: bool,
    /// Whether it is one that every run has, rather than one of the scenario's own.
    pub is_default: bool,
    /// Why nothing could be measured, or too little; empty where the value says it all.
    pub note: String,
}

/// Whether what is there of too few samples fails by itself: a stack that is too slow for a rate answers less at it.
fn fails_anyway(outcome: &Outcome) -> bool {
    let threshold = outcome.threshold.parse::<Threshold>();
    outcome.value.is_some_and(|value| threshold.is_ok_and(|of| !of.comparison.holds(value, of.limit)))
}

impl Outcome {
    /// Whether it fails for want of samples alone: there are none, or too few, and those that there are would hold.
    #[must_use]
    pub fn lacks_samples(&self) -> bool {
        let is_few = self.value.is_none() || !self.note.is_empty();
        !self.passed && is_few && !fails_anyway(self)
    }

    /// What was measured, for people.
    #[must_use]
    pub fn measured(&self) -> String {
        match self.value {
            _ if !self.note.is_empty() => self.note.clone(),
            Some(value) => human_value(value),
            None => "nothing was measured".to_owned(),
        }
    }
}

impl Threshold {
    /// The latency that it is about; `None` of a count.
    pub(super) const fn latency(&self) -> Option<(LatencyPath, Statistic)> {
        match self.measure {
            Measure::Latency(path, statistic) => Some((path, statistic)),
            Measure::Count(_) | Measure::Percent(_) => None,
        }
    }

    /// The latency that it keeps below a limit, if that is what it does.
    pub(in crate::loadgen) fn upper_limit(&self) -> Option<UpperLimit> {
        let is_upper = matches!(self.comparison, Comparison::Less | Comparison::LessOrEqual);
        let (path, statistic) = self.latency().filter(|(_, statistic)| is_upper && *statistic != Statistic::Count)?;
        Some(UpperLimit { path, statistic, limit_us: self.limit * 1e3, comparison: self.comparison })
    }

    /// Why it fails whatever comes, or, of a count, holds; `None` where that is open. A figure that needs something to be
    /// measured fails where nothing was. `has_faults`: what only faults bring about is 0 without them.
    pub(super) fn foregone(&self, has_faults: bool) -> Option<String> {
        if self.measure == Measure::Count("recovery_ms_max") && !has_faults {
            let what = if self.comparison.holds(0.0, self.limit) { "can't fail" } else { "can't be met" };
            return Some(format!("{what}: there are no faults to recover from"));
        }
        let most = if matches!(self.measure, Measure::Percent(_)) { 100.0 } else { f64::INFINITY };
        let Self { comparison, limit, .. } = *self;
        let (at_0, at_most) = (comparison.holds(0.0, limit), comparison.holds(most, limit));
        let (is_met, is_open) = match comparison {
            Comparison::Less | Comparison::LessOrEqual => (at_most, at_0),
            Comparison::GreaterOrEqual | Comparison::Greater => (at_0, at_most),
            Comparison::Equal => (false, (0.0..=most).contains(&limit)),
        };
        // Of what every run is held to, it says that it may happen.
        let can_not_fail = is_met && matches!(self.measure, Measure::Count(_)) && !self.has_default();
        let what = if can_not_fail {
            "can't fail"
        } else if !is_open {
            "can't be met"
        } else {
            return None;
        };
        let range = if most.is_finite() { format!("lies between 0 and {most}") } else { "is never below 0".to_owned() };
        Some(format!("{what}: {} {range}", self.measure))
    }

    /// Whether every run has a condition on the same measure, unless the scenario has one.
    fn has_default(&self) -> bool {
        let Measure::Count(name) = self.measure else { return false };
        DEFAULTS.iter().chain(&DEFAULTS_WITHOUT_FAULTS).any(|text| text.split(' ').next() == Some(name))
    }

    /// Holds it against a result.
    #[must_use]
    pub fn judge(&self, result: &RunResult) -> Outcome {
        let (value, note) = match &self.measure {
            Measure::Count(name) => (result.counts.get(name), String::new()),
            Measure::Percent(percent) => (percent.of(&result.counts), String::new()),
            Measure::Latency(path, statistic) => {
                let samples = result.latency.get(*path).map_or(0, |summary| summary.count);
                let needs = statistic.samples_min();
                let note = if (1..needs).contains(&samples) {
                    format!("{}, needs {needs}", counted(samples, "sample"))
                } else {
                    String::new()
                };
                (measure_ms(result, *path, *statistic), note)
            }
        };
        let passed = note.is_empty() && value.is_some_and(|value| self.comparison.holds(value, self.limit));
        Outcome { threshold: self.to_string(), value, passed, is_default: false, note }
    }

    /// The same for a condition that every run has: where there was nothing to measure, it asks for nothing.
    #[must_use]
    pub fn judge_default(&self, result: &RunResult) -> Option<Outcome> {
        let outcome = self.judge(result);
        outcome.value.is_some().then_some(Outcome { is_default: true, ..outcome })
    }
}

/// A statistic of a path in ms; `None` without samples.
fn measure_ms(result: &RunResult, path: LatencyPath, statistic: Statistic) -> Option<f64> {
    let summary = result.latency.get(path).copied().unwrap_or_default();
    match statistic.of_us(&summary) {
        None => Some(summary.count as f64),
        Some(us) => (summary.count > 0).then_some(us / 1e3),
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(name) => f.write_str(name),
            Self::Percent(percent) => f.write_str(percent.name()),
            Self::Latency(path, statistic) => write!(f, "{}_ms.{}", path.as_str(), statistic.name()),
        }
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.measure, self.comparison.operator(), self.limit)
    }
}

impl FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let told = |problem: String| format!("threshold {text:?}: {problem}");
        let is_operator = |c: char| unknown_measure::OPERATOR_CHARS.contains(&c);
        let Some(begin) = text.find(is_operator) else {
            return Err(told("it has no comparison: write it as \"delivery_ms.p99 < 50\"".to_owned()));
        };
        let (measure, rest) = text.split_at(begin);
        let (operator, limit) = rest.split_at(rest.find(|c| !is_operator(c)).unwrap_or(rest.len()));
        let found = Comparison::ALL.iter().find(|(text, _)| *text == operator);
        let (_, comparison) = found.ok_or_else(|| told(unknown_measure::comparison(operator)))?;
        let (measure, limit) = (measure.trim(), limit.trim());
        let parsed = limit.parse().ok().filter(|limit: &f64| limit.is_finite());
        let limit = parsed.ok_or_else(|| told(format!("{limit:?} is not a finite number")))?;
        let measure = parse_measure(measure).ok_or_else(|| told(unknown_measure::measure(measure)))?;
        Ok(Self { measure, comparison: *comparison, limit })
    }
}

fn parse_measure(text: &str) -> Option<Measure> {
    if let Some(name) = Counts::NAMES.iter().find(|name| **name == text) {
        return Some(Measure::Count(name));
    }
    if let Some(percent) = Percent::ALL.into_iter().find(|percent| percent.name() == text) {
        return Some(Measure::Percent(percent));
    }
    let (path, statistic) = text.split_once("_ms.")?;
    let (_, statistic) = Statistic::ALL.iter().find(|(name, _)| *name == statistic)?;
    Some(Measure::Latency(LatencyPath::parse(path)?, *statistic))
}

as_text!(Threshold);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Latency;

    #[test]
    fn a_threshold_reads_back_what_it_writes() {
        for text in [
            "delivery_ms.p99 < 50",
            "lost == 0",
            "connect_ms.max <= 1000",
            "delivered > 10",
            "pushed_percent >= 99",
            "pushed_whole_percent >= 95",
            "ack_ms.p95 < 5",
        ] {
            assert_eq!(text.parse::<Threshold>().expect("valid").to_string(), text);
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for bad in [
            "delivery_ms.p98 < 5",
            "delivery < 5",
            "lost",
            "lost == none",
            "lost < nan",
            "acked > inf",
            "acked < 1e999",
        ] {
            assert!(bad.parse::<Threshold>().is_err(), "{bad}");
        }
    }

    fn measured(samples: u64) -> RunResult {
        let mut latency = Latency::default();
        latency.record_many_us(10_000, samples);
        let mut result = RunResult::default();
        result.latency.insert(LatencyPath::Delivery, latency.summary());
        result.histograms.insert(LatencyPath::Delivery, latency);
        result
    }

    fn judged(text: &str, result: &RunResult) -> Outcome {
        text.parse::<Threshold>().expect("valid").judge(result)
    }

    #[test]
    fn what_may_happen_can_be_said_of_every_default() {
        let foregone = |text: &str| text.parse::<Threshold>().expect("valid").foregone(false);
        assert!(
            ["disconnects >= 0", "refused >= 0", "lost == 0", "pushed_percent >= 0"]
                .iter()
                .all(|t| foregone(t).is_none())
        );
        assert!(["acked >= 0", "lost >= 0", "recovery_ms_max < 5"].iter().all(|t| foregone(t).is_some()));
    }

    #[test]
    fn a_latency_without_samples_does_not_pass() {
        let outcome = judged("delivery_ms.p99 < 50", &RunResult::default());
        assert_eq!((outcome.value, outcome.passed), (None, false));
        assert!(judged("lost == 0", &RunResult::default()).passed);
        assert!(judged("delivery_ms.count == 0", &RunResult::default()).passed);
    }

    #[test]
    fn a_percentile_needs_a_sample_above_it() {
        for (statistic, needs) in [("p50", 2), ("p75", 4), ("p90", 10), ("p95", 20), ("p99", 100), ("p999", 1_000)] {
            let text = format!("delivery_ms.{statistic} < 50");
            let few = judged(&text, &measured(needs - 1));
            assert!(!few.passed, "{few:?}");
            assert_eq!(few.measured(), format!("{}, needs {needs}", counted(needs - 1, "sample")));
            let enough = judged(&text, &measured(needs));
            assert!(enough.passed && enough.note.is_empty(), "{enough:?}");
        }
    }

    fn scenario(rest: &str) -> Scenario {
        let text = format!(
            "{{name: t, population: {{users: 2, direct_per_user: 1}}, behaviors: {{one-to-one: 1}}, \
             phases: [{{phase: steady, duration: 9s, rate: 1}}]{rest}}}"
        );
        Scenario::parse(&text, "t").expect("valid")
    }

    #[test]
    fn every_run_fails_on_what_a_user_calls_a_failure_unless_the_scenario_says_otherwise() {
        let names = |rest| defaults(&scenario(rest)).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names("").len(), 14);
        let own = names(", thresholds: ['refused < 10', 'unresolved > 3']");
        assert!(own.iter().all(|name| !name.starts_with("refused") && !name.starts_with("unresolved")), "{own:?}");
        let with_faults = names(", faults: [{at: 1s, do: kill chat-1}]");
        assert!(with_faults.iter().all(|name| *name != "disconnects == 0" && *name != "http_errors == 0"));
        let mut result = RunResult::default();
        let push = "pushed_percent >= 99".parse::<Threshold>().expect("valid");
        assert_eq!(push.judge_default(&result), None, "nothing had to be pushed");
        assert!(!push.judge(&result).passed, "who asks for it gets an answer");
        (result.counts.push_expected, result.counts.pushed) = (100, 98);
        assert!(push.judge_default(&result).is_some_and(|outcome| !outcome.passed && outcome.is_default));
    }
}
