//! Whether the runs of a side can be compared at all: each run's own verdict, and that all are of one scenario.

use serde::{Deserialize, Serialize};

use crate::loadgen::RunResult;
use crate::loadgen::result::Verdict;

/// Which runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Of the build that is known.
    Base,
    /// Of the new one.
    New,
}

impl Side {
    /// The word for people.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::New => "new",
        }
    }
}

/// What is wrong with a run by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Defect {
    /// It broke a guarantee.
    Violated,
    /// It failed a threshold.
    Failed,
    /// It is inconclusive: the generator was the limit.
    Invalid,
    /// It was stopped.
    Interrupted,
    /// It could not be done.
    NotRun,
}

impl Defect {
    /// The words for people.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Violated => "broke a guarantee",
            Self::Failed => "failed a threshold",
            Self::Invalid => "is INVALID",
            Self::Interrupted => "was interrupted",
            Self::NotRun => "could not be done",
        }
    }

    /// The defect of a result; `None` where it passed. The verdict alone is not enough: what was counted has to agree with it.
    #[must_use]
    pub fn of(result: &RunResult) -> Option<Self> {
        if result.verdict == Verdict::LedgerViolated || !result.counts.violations().is_empty() {
            return Some(Self::Violated);
        }
        match result.verdict {
            Verdict::Interrupted => Some(Self::Interrupted),
            Verdict::Invalid => Some(Self::Invalid),
            Verdict::ThresholdFailed => Some(Self::Failed),
            _ if result.thresholds.iter().any(|t| !t.passed) => Some(Self::Failed),
            _ => None,
        }
    }
}

/// A run with a defect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Whose.
    pub side: Side,
    /// Which of its runs, from 1; 0 is the warm-up. `None` where it is about no run.
    pub run: Option<usize>,
    /// What kind.
    pub defect: Defect,
    /// What exactly.
    pub reasons: Vec<String>,
}

impl Problem {
    /// In a line.
    #[must_use]
    pub fn text(&self) -> String {
        let reasons = self.reasons.join("; ");
        let colon = if reasons.is_empty() { "" } else { ": " };
        let which = match self.run {
            None => return format!("nothing was run{colon}{reasons}"),
            Some(0) => "warm-up".to_owned(),
            Some(run) => format!("run {run}"),
        };
        format!("{which} of {} {}{colon}{reasons}", self.side.word(), self.defect.words())
    }
}

/// Why a run is not a pass, in words.
fn reasons(result: &RunResult) -> Vec<String> {
    if !result.reasons.is_empty() {
        return result.reasons.clone();
    }
    let violations = result.counts.violations().into_iter().map(|(kind, n)| format!("{kind}: {n}"));
    let failed = result.thresholds.iter().filter(|t| !t.passed).map(|t| format!("threshold {}", t.threshold));
    violations.chain(failed).collect()
}

/// The defects of a side's runs.
pub(super) fn problems(side: Side, runs: &[RunResult]) -> Vec<Problem> {
    let of = |(n, result): (usize, &RunResult)| {
        Some(Problem { side, run: Some(n + 1), defect: Defect::of(result)?, reasons: reasons(result) })
    };
    runs.iter().enumerate().filter_map(of).collect()
}

/// Whether all runs are of one scenario: name, seed and content.
///
/// # Errors
/// Says what differs.
pub fn same_scenario(base: &[RunResult], new: &[RunResult]) -> Result<(), String> {
    let mut all = base.iter().chain(new);
    let Some(first) = all.next() else { return Ok(()) };
    for other in all {
        let differs = |what: &str, a: &dyn std::fmt::Display, b: &dyn std::fmt::Display| {
            Err(format!("the runs are of different scenarios: {what} {a} and {b}"))
        };
        if first.scenario != other.scenario {
            return differs("name", &first.scenario, &other.scenario);
        }
        if first.seed != other.seed {
            return differs(&format!("{}, seed", first.scenario), &first.seed, &other.seed);
        }
        // Results of older versions have none.
        let are_known = !first.scenario_hash.is_empty() && !other.scenario_hash.is_empty();
        if are_known && first.scenario_hash != other.scenario_hash {
            let short = |hash: &str| hash.chars().take(12).collect::<String>();
            return differs(
                &format!("{}, hash of its content", first.scenario),
                &short(&first.scenario_hash),
                &short(&other.scenario_hash),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadgen::result::Counts;
    use crate::loadgen::scenario::threshold::Outcome;

    #[test]
    fn a_verdict_that_its_counts_contradict_is_not_believed() {
        let lost = RunResult { counts: Counts { lost: 1, ..Counts::default() }, ..RunResult::default() };
        assert_eq!((lost.verdict, Defect::of(&lost)), (Verdict::Pass, Some(Defect::Violated)));
        let missed = Outcome { threshold: "acked > 5".to_owned(), value: Some(1.0), ..Outcome::default() };
        let failed = RunResult { thresholds: vec![missed], ..RunResult::default() };
        assert_eq!(Defect::of(&failed), Some(Defect::Failed));
        assert_eq!(reasons(&failed), ["threshold acked > 5"]);
        assert_eq!(Defect::of(&RunResult::default()), None);
    }

    #[test]
    fn another_name_seed_or_content_is_another_scenario() {
        let run = |name: &str, seed, hash: &str| RunResult {
            scenario: name.to_owned(),
            seed,
            scenario_hash: hash.to_owned(),
            ..RunResult::default()
        };
        let base = [run("a", 1, "x")];
        assert_eq!(same_scenario(&base, &[run("a", 1, "x"), run("a", 1, "")]), Ok(()));
        for (other, wanted) in [(run("b", 1, "x"), "name"), (run("a", 2, "x"), "seed"), (run("a", 1, "y"), "content")] {
            let refused = same_scenario(&base, &[other]).expect_err("another");
            assert!(refused.contains(wanted), "{refused}");
        }
        assert!(same_scenario(&[run("a", 1, "x"), run("a", 1, "y")], &[]).is_err(), "within a side too");
    }
}
