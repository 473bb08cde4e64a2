//! The search for the highest load that holds: which rate to try next, and when to stop. No I/O: the caller runs the trials.

use std::time::Duration;

use super::scenario::{Phase, PhaseKind};
use super::{RunResult, Scenario};
use crate::loadgen::result::Verdict;
use crate::telemetry::LiveSnapshot;

/// Factor between two steps while everything holds.
const STEP: f64 = 1.6;

/// Most trials of a search. Twelve steps are a factor of 280, six bisections narrow a step to 0.8 %.
const TRIALS_MAX: usize = 40;

/// Generator's share of the processor time that was used, past which it was itself the limit.
const GENERATOR_SHARE_MAX: f64 = 0.65;

/// Share of the machine's processors past which they count as full.
const FULL_SHARE: f64 = 0.85;

/// How a search is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// First rate to try, in messages per second.
    pub start: f64,
    /// Rates past this are not tried.
    pub max: f64,
    /// The search ends when the lowest rate that fails is less than this above the highest that holds, as a share.
    pub precision: f64,
    /// Trials that the highest rate must hold in.
    pub repeats: u32,
}

/// What a trial said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Ledger and thresholds hold.
    Holds,
    /// They do not.
    Fails,
}

/// How a search stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    /// Try this rate.
    Try(f64),
    /// The answer: the highest rate that held in all its trials.
    Found(Found),
    /// Even the lowest rate that makes sense fails.
    NothingHolds {
        /// The lowest rate that was tried.
        lowest: f64,
    },
    /// Everything holds up to the highest rate that may be tried.
    HoldsToTheEnd(Found),
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// Highest rate that held, in messages per second.
    pub rate: f64,
    /// Lowest rate above it that failed; the same as `rate` where none did.
    pub fails_at: f64,
    /// Trials at `rate`, all of which held.
    pub trials: u32,
}

impl Found {
    /// Probability that fewer than this share of further trials fail, with 95 % confidence. Source: the rule of three, Jovanovic
    /// and Levy, "A look at the rule of three", 1997, exact form.
    #[must_use]
    pub fn fails_less_often_than(&self) -> f64 {
        1.0 - 0.05_f64.powf(1.0 / f64::from(self.trials.max(1)))
    }
}

/// A search. Ask [`Search::next`], run the trial, tell [`Search::note`].
#[derive(Debug)]
pub struct Search {
    rules: Rules,
    /// Rates with the trials in which they held, and whether they ever failed.
    tried: Vec<(f64, u32, bool)>,
    trials: usize,
}

impl Search {
    /// A search that has tried nothing yet.
    #[must_use]
    pub const fn new(rules: Rules) -> Self {
        Self { rules, tried: Vec::new(), trials: 0 }
    }

    /// Tells what came of a trial.
    pub fn note(&mut self, rate: f64, outcome: Outcome) {
        self.trials += 1;
        let at = self.tried.iter().position(|(tried, ..)| (tried - rate).abs() < 1e-9);
        let entry = if let Some(at) = at {
            &mut self.tried[at]
        } else {
            self.tried.push((rate, 0, false));
            let last = self.tried.len() - 1;
            &mut self.tried[last]
        };
        match outcome {
            Outcome::Holds => entry.1 += 1,
            Outcome::Fails => entry.2 = true,
        }
    }

    /// Highest rate that never failed and lies below everything that did, with its trials.
    fn best(&self) -> Option<(f64, u32)> {
        let fails_at = self.fails_at();
        let held = self.tried.iter().filter(|(rate, held, fails)| *held > 0 && !fails && *rate < fails_at);
        held.map(|(rate, held, _)| (*rate, *held)).max_by(|a, b| a.0.total_cmp(&b.0))
    }

    fn fails_at(&self) -> f64 {
        self.tried.iter().filter(|(.., fails)| *fails).map(|(rate, ..)| *rate).fold(f64::INFINITY, f64::min)
    }

    /// What to do next.
    #[must_use]
    pub fn next(&self) -> Step {
        let Rules { start, max, precision, repeats } = self.rules;
        if self.tried.is_empty() {
            return Step::Try(start.min(max));
        }
        let fails_at = self.fails_at();
        let Some((rate, trials)) = self.best() else {
            let lowest = fails_at;
            return if lowest < start / 200.0 || self.trials >= TRIALS_MAX {
                Step::NothingHolds { lowest }
            } else {
                Step::Try(lowest / STEP / STEP)
            };
        };
        let found = Found { rate, fails_at: if fails_at.is_finite() { fails_at } else { rate }, trials };
        let is_settled = fails_at <= rate * (1.0 + precision);
        let is_at_end = fails_at.is_infinite() && rate >= max;
        if is_settled || is_at_end || self.trials >= TRIALS_MAX {
            if trials < repeats && self.trials < TRIALS_MAX {
                return Step::Try(rate);
            }
            return if is_at_end { Step::HoldsToTheEnd(found) } else { Step::Found(found) };
        }
        if fails_at.is_infinite() {
            return Step::Try((rate * STEP).min(max));
        }
        // The middle by factor: a rate is wrong by a share, not by a number.
        Step::Try((rate * fails_at).sqrt())
    }
}

/// Why a trial failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// A guarantee was broken.
    Ledger(String),
    /// A threshold was not met.
    Threshold(String),
    /// The machine's processors were full, with both sides on them.
    Processors(String),
    /// The generator could not make the load: nothing is known of the stack.
    Generator(String),
}

impl Cause {
    /// For people.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Ledger(text) | Self::Threshold(text) | Self::Processors(text) | Self::Generator(text) => text,
        }
    }
}

/// What was seen while the rate was the trial's, in the mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Steady {
    /// Processors of the generator's machine that were in use.
    pub busy_cores: f64,
    /// Messages shown to persons per second, over all devices. Less than the rate asks for where the stack did not keep up.
    pub deliveries_per_s: f64,
}

impl Steady {
    /// Of a run's snapshots; zeros where none is of that time.
    #[must_use]
    pub fn of(series: &[LiveSnapshot]) -> Self {
        let steady: Vec<&LiveSnapshot> = series.iter().filter(|s| s.phase == PhaseKind::Steady.name()).collect();
        let mean = |figure: fn(&LiveSnapshot) -> f64| {
            steady.iter().map(|s| figure(s)).sum::<f64>() / steady.len().max(1) as f64
        };
        Self { busy_cores: mean(|s| s.machine_cores), deliveries_per_s: mean(|s| s.rates.delivered) }
    }
}

/// Judges a trial on a machine with some processors, of which so many were in use: `None` where it holds.
#[must_use]
pub fn cause(result: &RunResult, cores: usize, busy_cores: f64) -> Option<Cause> {
    let reasons = || result.reasons.join("; ");
    match result.verdict {
        Verdict::Pass => None,
        Verdict::LedgerViolated => Some(Cause::Ledger(reasons())),
        Verdict::ThresholdFailed => Some(Cause::Threshold(reasons())),
        Verdict::Invalid | Verdict::Interrupted => {
            let seconds = result.duration_s.max(1e-3);
            let stack = result.stack_cpu_s() / seconds;
            let generator = result.generator.cpu_s / seconds;
            let used = format!(
                "{busy_cores:.1} of {cores} processors were in use (over the whole trial stack {stack:.1}, generator \
                 {generator:.1}); {}",
                reasons()
            );
            // Late, since the stack that shares the machine had taken it: that is the end of this machine, not of the generator.
            let is_full = busy_cores > FULL_SHARE * cores as f64;
            let is_generator = stack == 0.0 || generator > GENERATOR_SHARE_MAX * (stack + generator);
            Some(if is_full && !is_generator { Cause::Processors(used) } else { Cause::Generator(used) })
        }
    }
}

/// The scenario of a trial: its load at one rate, after a short run-up.
#[must_use]
pub fn trial(scenario: &Scenario, rate: f64, lasts: Duration) -> Scenario {
    let arrivals =
        scenario.phases.iter().find(|p| p.phase == PhaseKind::Steady).map_or_else(Default::default, |p| p.arrivals);
    let phase = |phase, duration, rate, rate_to| Phase { phase, duration, rate, rate_to, arrivals };
    let connect = scenario.connect_over;
    let mut trial = scenario.clone();
    trial.phases = vec![
        // Nobody talks before everybody had the time to connect.
        phase(PhaseKind::WarmUp, connect + Duration::from_millis(500), rate.min(10.0) / 10.0, None),
        phase(PhaseKind::WarmUp, Duration::from_secs(2), rate / 4.0, Some(rate)),
        phase(PhaseKind::WarmUp, Duration::from_secs(1), rate, None),
        phase(PhaseKind::Steady, lasts, rate, None),
    ];
    trial.faults = Vec::new();
    trial
}

/// The highest rate of a scenario, in messages per second.
#[must_use]
pub fn peak_rate(scenario: &Scenario) -> f64 {
    scenario.phases.iter().map(|p| p.rate.max(p.rate_to.unwrap_or(0.0))).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::live::Totals;

    const RULES: Rules = Rules { start: 50.0, max: 1e6, precision: 0.05, repeats: 3 };

    fn search(rules: Rules, holds: impl Fn(f64, usize) -> bool) -> (Step, usize) {
        let mut search = Search::new(rules);
        for trial in 0.. {
            match search.next() {
                Step::Try(rate) => {
                    search.note(rate, if holds(rate, trial) { Outcome::Holds } else { Outcome::Fails });
                }
                end => return (end, trial),
            }
        }
        unreachable!("it ends");
    }

    #[test]
    fn the_end_of_a_stack_is_found_from_below_and_from_above() {
        for end in [7.0, 49.0, 51.0, 800.0, 12_345.0] {
            let (step, trials) = search(RULES, |rate, _| rate <= end);
            let Step::Found(found) = step else { panic!("{step:?} for {end}") };
            assert!(
                found.rate <= end && found.fails_at > end && found.fails_at <= found.rate * 1.05,
                "{found:?} for {end}"
            );
            assert!(found.trials == 3 && trials < 25, "{trials} trials");
        }
    }

    #[test]
    fn a_rate_that_fails_once_in_its_repeats_is_not_the_answer() {
        // Every third trial above 200 fails.
        let (step, _) = search(RULES, |rate, trial| rate <= 200.0 || (rate <= 400.0 && trial % 3 != 0));
        let Step::Found(found) = step else { panic!("{step:?}") };
        assert!(found.rate < 400.0 && found.trials >= 3, "{found:?}");
    }

    #[test]
    fn a_stack_without_end_and_one_without_beginning_are_told() {
        assert!(
            matches!(search(Rules { max: 500.0, ..RULES }, |_, _| true).0, Step::HoldsToTheEnd(f) if (f.rate - 500.0).abs() < 1e-9)
        );
        assert!(matches!(search(RULES, |_, _| false).0, Step::NothingHolds { .. }));
    }

    #[test]
    fn the_rule_of_three_for_three_trials() {
        let found = Found { rate: 1.0, fails_at: 1.0, trials: 3 };
        assert!((found.fails_less_often_than() - 0.632).abs() < 0.001);
    }

    #[test]
    fn a_late_generator_is_the_limit_unless_the_stack_had_the_processors() {
        let mut result = RunResult { verdict: Verdict::Invalid, duration_s: 10.0, ..RunResult::default() };
        (result.generator.cpu_s, result.generator.stack_cpu_s) = (8.0, 11.0);
        assert!(matches!(cause(&result, 2, 1.9), Some(Cause::Processors(_))));
        assert!(matches!(cause(&result, 8, 1.9), Some(Cause::Generator(_))), "there was room");
        (result.generator.cpu_s, result.generator.stack_cpu_s) = (17.0, 2.0);
        assert!(matches!(cause(&result, 2, 1.9), Some(Cause::Generator(_))), "it took the processors itself");
        result.verdict = Verdict::Pass;
        assert_eq!(cause(&result, 2, 1.9), None);
    }

    #[test]
    fn the_mean_is_of_the_steady_phase() {
        let snapshot = |phase: &str, machine_cores, delivered| LiveSnapshot {
            phase: phase.to_owned(),
            machine_cores,
            rates: Totals { delivered, ..Totals::default() },
            ..LiveSnapshot::default()
        };
        let series = [snapshot("warm-up", 0.5, 10.0), snapshot("steady", 1.5, 90.0), snapshot("steady", 2.0, 110.0)];
        assert_eq!(Steady::of(&series), Steady { busy_cores: 1.75, deliveries_per_s: 100.0 });
        assert_eq!(Steady::of(&[]), Steady { busy_cores: 0.0, deliveries_per_s: 0.0 });
    }
}
