//! Conditions of a pass: `delivery_ms.p99 < 50`, `lost == 0`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::as_text;
use crate::loadgen::recorder::Path;
use crate::loadgen::result::{Counts, RunResult};
use crate::telemetry::LatencySummary;

/// One condition.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    measure: Measure,
    comparison: Comparison,
    limit: f64,
}

#[derive(Debug, Clone, PartialEq)]
enum Measure {
    Latency(Path, Statistic),
    Count(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
/// A figure of a latency.
pub(in crate::loadgen) enum Statistic {
    Mean,
    P50,
    P75,
    P90,
    P95,
    P99,
    P999,
    Max,
    Count,
}

impl Statistic {
    const ALL: [(&'static str, Self); 9] = [
        ("mean", Self::Mean),
        ("p50", Self::P50),
        ("p75", Self::P75),
        ("p90", Self::P90),
        ("p95", Self::P95),
        ("p99", Self::P99),
        ("p999", Self::P999),
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
            Self::P50 => summary.p50_us as f64,
            Self::P75 => summary.p75_us as f64,
            Self::P90 => summary.p90_us as f64,
            Self::P95 => summary.p95_us as f64,
            Self::P99 => summary.p99_us as f64,
            Self::P999 => summary.p999_us as f64,
            Self::Max => summary.max_us as f64,
        })
    }

    /// Whether so many samples have at least one at or above it.
    pub(in crate::loadgen) const fn is_known_from(self, samples: u64) -> bool {
        let needed = match self {
            Self::Count => 0,
            Self::Mean | Self::Max => 1,
            Self::P50 => 2,
            Self::P75 => 4,
            Self::P90 => 10,
            Self::P95 => 20,
            Self::P99 => 100,
            Self::P999 => 1_000,
        };
        samples >= needed
    }
}

/// A latency that has to stay below a limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::loadgen) struct UpperLimit {
    pub(in crate::loadgen) path: Path,
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
        let (path, statistic) = (self.path.name(), self.statistic.name());
        write!(f, "{path}_ms.{statistic} {} {}", self.comparison.operator(), self.limit_us / 1e3)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
}

impl Comparison {
    /// Longer operators first, so that `<=` is not read as `<`.
    const ALL: [(&'static str, Self); 5] = [
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The condition as it was written.
    pub threshold: String,
    /// What was measured; `None` when there were no samples.
    pub value: Option<f64>,
    /// Whether it holds. A latency without samples does not.
    pub passed: bool,
}

impl Threshold {
    /// The latency that it keeps below a limit, if that is what it does.
    pub(in crate::loadgen) fn upper_limit(&self) -> Option<UpperLimit> {
        let is_upper = matches!(self.comparison, Comparison::Less | Comparison::LessOrEqual);
        match self.measure {
            Measure::Latency(path, statistic) if is_upper && statistic != Statistic::Count => {
                Some(UpperLimit { path, statistic, limit_us: self.limit * 1e3, comparison: self.comparison })
            }
            _ => None,
        }
    }

    /// Holds it against a result.
    #[must_use]
    pub fn judge(&self, result: &RunResult) -> Outcome {
        let value = match &self.measure {
            Measure::Count(name) => result.counts.get(name),
            Measure::Latency(path, statistic) => {
                let summary = result.latency.get(path.name()).copied().unwrap_or_default();
                match statistic.of_us(&summary) {
                    None => Some(summary.count as f64),
                    Some(us) => (summary.count > 0).then_some(us / 1_000.0),
                }
            }
        };
        let passed = value.is_some_and(|value| self.comparison.holds(value, self.limit));
        Outcome { threshold: self.to_string(), value, passed }
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.measure {
            Measure::Count(name) => f.write_str(name)?,
            Measure::Latency(path, statistic) => {
                write!(f, "{}_ms.{}", path.name(), statistic.name())?;
            }
        }
        write!(f, " {} {}", self.comparison.operator(), self.limit)
    }
}

impl FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Comparison::ALL.iter().find_map(|(operator, comparison)| {
            let (measure, limit) = text.split_once(operator)?;
            Some((measure.trim(), *comparison, limit.trim()))
        });
        let Some((measure, comparison, limit)) = found else {
            return Err(format!("threshold {text:?} has no comparison: write it as \"delivery_ms.p99 < 50\""));
        };
        let limit = limit.parse().map_err(|_| format!("threshold {text:?}: {limit:?} is not a number"))?;
        Ok(Self { measure: parse_measure(measure)?, comparison, limit })
    }
}

fn parse_measure(text: &str) -> Result<Measure, String> {
    if let Some(name) = Counts::NAMES.iter().find(|name| **name == text) {
        return Ok(Measure::Count(name));
    }
    let latency = text.split_once("_ms.").and_then(|(path, statistic)| {
        let path = Path::ALL.iter().find(|p| p.name() == path)?;
        let (_, statistic) = Statistic::ALL.iter().find(|(name, _)| *name == statistic)?;
        Some(Measure::Latency(*path, *statistic))
    });
    latency.ok_or_else(|| {
        let paths: Vec<String> = Path::ALL.iter().map(|p| format!("{}_ms", p.name())).collect();
        let statistics: Vec<&str> = Statistic::ALL.iter().map(|(name, _)| *name).collect();
        format!(
            "unknown measure {text:?}: valid are {} with one of .{}, and the counts {}",
            paths.join(", "),
            statistics.join(" ."),
            Counts::NAMES.join(", ")
        )
    })
}

as_text!(Threshold);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_reads_back_what_it_writes() {
        for text in ["delivery_ms.p99 < 50", "lost == 0", "connect_ms.max <= 1000", "delivered > 10", "ack_ms.p95 < 5"]
        {
            assert_eq!(text.parse::<Threshold>().expect("valid").to_string(), text);
        }
    }

    #[test]
    fn what_is_not_known_is_refused_with_what_is() {
        for bad in ["delivery_ms.p98 < 5", "delivery < 5", "lost", "lost == none"] {
            assert!(bad.parse::<Threshold>().is_err(), "{bad}");
        }
        assert!("happiness == 1".parse::<Threshold>().expect_err("unknown").contains("duplicated"));
    }

    #[test]
    fn a_latency_without_samples_does_not_pass() {
        let threshold: Threshold = "delivery_ms.p99 < 50".parse().expect("valid");
        let outcome = threshold.judge(&RunResult::default());
        assert_eq!((outcome.value, outcome.passed), (None, false));
        assert!("lost == 0".parse::<Threshold>().expect("valid").judge(&RunResult::default()).passed);
    }
}
