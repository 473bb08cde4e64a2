//! Conditions of a pass: `delivery_ms.p99 < 50`, `lost == 0`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::as_text;
use crate::loadgen::recorder::Path;
use crate::loadgen::result::{Counts, RunResult};

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
enum Statistic {
    Mean,
    P50,
    P90,
    P99,
    P999,
    Max,
    Count,
}

impl Statistic {
    const ALL: [(&'static str, Self); 7] = [
        ("mean", Self::Mean),
        ("p50", Self::P50),
        ("p90", Self::P90),
        ("p99", Self::P99),
        ("p999", Self::P999),
        ("max", Self::Max),
        ("count", Self::Count),
    ];
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
    /// Holds it against a result.
    #[must_use]
    pub fn judge(&self, result: &RunResult) -> Outcome {
        let value = match &self.measure {
            Measure::Count(name) => result.counts.get(name),
            Measure::Latency(path, statistic) => {
                let summary = result.latency.get(path.name()).copied().unwrap_or_default();
                let us = match statistic {
                    Statistic::Count => summary.count as f64 * 1_000.0,
                    Statistic::Mean => summary.mean_us,
                    Statistic::P50 => summary.p50_us as f64,
                    Statistic::P90 => summary.p90_us as f64,
                    Statistic::P99 => summary.p99_us as f64,
                    Statistic::P999 => summary.p999_us as f64,
                    Statistic::Max => summary.max_us as f64,
                };
                (summary.count > 0 || *statistic == Statistic::Count).then_some(us / 1_000.0)
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
                let name = Statistic::ALL.iter().find(|(_, s)| s == statistic).map_or("", |(name, _)| *name);
                write!(f, "{}_ms.{name}", path.name())?;
            }
        }
        let operator = Comparison::ALL.iter().find(|(_, c)| *c == self.comparison).map_or("", |(text, _)| *text);
        write!(f, " {operator} {}", self.limit)
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
        let parsed = limit.parse().ok().filter(|limit: &f64| limit.is_finite());
        let limit = parsed.ok_or_else(|| format!("threshold {text:?}: {limit:?} is not a finite number"))?;
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
        for text in ["delivery_ms.p99 < 50", "lost == 0", "connect_ms.max <= 1000", "delivered > 10"] {
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
