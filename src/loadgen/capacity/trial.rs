//! One trial of a search: its scenario, and whether it held.

use std::time::Duration;

use super::Outcome;
use crate::loadgen::result::Verdict;
use crate::loadgen::scenario::threshold::Threshold;
use crate::loadgen::scenario::{Phase, PhaseKind};
use crate::loadgen::{RunResult, Scenario};
use crate::telemetry::{LatencyPath, LiveSnapshot, RunPhase};

/// Generator's share of the processor time that was used, past which it was itself the limit.
const GENERATOR_SHARE_MAX: f64 = 0.65;

/// Share of the machine's processors past which they count as full.
const FULL_SHARE: f64 = 0.85;

/// Share of the machine's processors that other programs may use: past it a trial that fails says nothing of the stack.
const FOREIGN_SHARE_MAX: f64 = 0.15;

/// Share of what was offered that has to be acknowledged and delivered while the rate was the trial's.
const KEPT_UP_MIN: f64 = 0.99;

/// Longest time that a delivery may be under way at the end of a trial without being missing.
const UNDER_WAY_MAX: Duration = Duration::from_millis(50);

/// Shortest steady part of a trial: whether the stack keeps up shows in the trend of some seconds, of which the first
/// and the last may be cut.
pub const TRIAL_MIN: Duration = Duration::from_secs(6);

/// What a trial says in whose seconds too little came to see a trend.
const NO_TREND: &str = "whether the stack keeps up is not known: deliveries in fewer than four seconds";

/// Thresholds of a search whose scenario limits no latency: without one, any load holds that is delivered some day.
pub const DEFAULT_THRESHOLDS: [&str; 2] = ["ack_ms.p95 < 500", "delivery_ms.p95 < 500"];

/// Why a trial failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// A guarantee was broken.
    Ledger(String),
    /// A threshold was not met.
    Threshold(String),
    /// Less was acknowledged or delivered than was offered.
    Behind(String),
    /// The machine's processors were full, with both sides on them.
    Processors(String),
    /// The generator could not make the load: nothing is known of the stack.
    Generator(String),
    /// Other programs had the processors: nothing is known of the stack.
    Foreign(String),
}

impl Cause {
    /// For people.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Ledger(text)
            | Self::Threshold(text)
            | Self::Behind(text)
            | Self::Processors(text)
            | Self::Generator(text)
            | Self::Foreign(text) => text,
        }
    }

    /// Whether the trial says nothing of the stack.
    #[must_use]
    pub const fn is_local(&self) -> bool {
        matches!(self, Self::Generator(_) | Self::Foreign(_))
    }

    /// What the search makes of it.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Ledger(_) => Outcome::Breaks,
            Self::Generator(_) | Self::Foreign(_) => Outcome::SaysNothing,
            Self::Threshold(_) | Self::Behind(_) | Self::Processors(_) => Outcome::Fails,
        }
    }
}

/// What was seen while the rate was the trial's.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Steady {
    /// Processors of the generator's machine that were in use, by whomever, in the mean.
    pub busy_cores: f64,
    /// Messages shown to persons per second, over all devices, in the mean.
    pub deliveries_per_s: f64,
    /// Messages that were due per second; `None` with less than two seconds.
    pub due_per_s: Option<f64>,
    /// Share of what was due that was acknowledged, without what was under way at both ends.
    pub acked_share: Option<f64>,
    /// Share of the offered deliveries that the stack kept up with: 1 minus what each second of load adds to their latency.
    pub delivered_share: Option<f64>,
}

impl Steady {
    /// Of a run's snapshots; zeros where none is of that time.
    #[must_use]
    pub fn of(series: &[LiveSnapshot]) -> Self {
        let steady: Vec<&LiveSnapshot> =
            series.iter().filter(|s| s.phase == RunPhase::Load(PhaseKind::Steady)).collect();
        let mean = |figure: fn(&LiveSnapshot) -> f64| {
            steady.iter().map(|s| figure(s)).sum::<f64>() / steady.len().max(1) as f64
        };
        let mut of = Self {
            busy_cores: mean(|s| s.machine_cores),
            deliveries_per_s: mean(|s| s.rates.delivered),
            delivered_share: delivered_share(&steady),
            ..Self::default()
        };
        if let (Some(first), Some(last)) = (steady.first(), steady.last())
            && last.elapsed_s > first.elapsed_s
        {
            let due = last.totals.intended - first.totals.intended;
            let open = |s: &LiveSnapshot| s.totals.intended - s.totals.acked;
            of.due_per_s = Some(due / (last.elapsed_s - first.elapsed_s));
            // How many are under way at a moment is chance: three deviations of it are nothing to tell.
            let under_way = of.due_per_s.unwrap_or(0.0) * UNDER_WAY_MAX.as_secs_f64();
            let behind = open(last) - open(first) - 3.0 * under_way.sqrt() - 1.0;
            of.acked_share = (due > 0.0).then(|| 1.0 - (behind / due).clamp(0.0, 1.0));
        }
        of
    }
}

/// What the stack kept up with, from the median latency of each second: where it delivers 2 % less than is offered, each second
/// adds 20 ms. The middle of the first third against that of the last, so that a bad second is no trend.
fn delivered_share(steady: &[&LiveSnapshot]) -> Option<f64> {
    /// Seconds without which there is no trend.
    const SECONDS_MIN: usize = 4;
    let medians: Vec<(f64, f64)> = steady
        .iter()
        .filter_map(|s| {
            Some((s.elapsed_s, s.interval.get(LatencyPath::Delivery).filter(|d| d.count > 0)?.p50_us as f64 / 1e6))
        })
        .collect();
    if medians.len() < SECONDS_MIN {
        return None;
    }
    let third = medians.len().div_ceil(3);
    let middle = |points: &[(f64, f64)]| {
        let mut sorted = points.to_vec();
        sorted.sort_by(|a, b| a.1.total_cmp(&b.1));
        (points.iter().map(|p| p.0).sum::<f64>() / points.len() as f64, sorted[points.len() / 2].1)
    };
    let (first, last) = (middle(&medians[..third]), middle(&medians[medians.len() - third..]));
    let grows_by = (last.1 - first.1) / (last.0 - first.0).max(1e-3);
    // What is under way that long anyway is no backlog.
    let is_backlog = last.1 - first.1 > UNDER_WAY_MAX.as_secs_f64() / 2.0;
    Some(if is_backlog { 1.0 - grows_by.clamp(0.0, 1.0) } else { 1.0 })
}

/// The machine of a trial: its processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cores(pub usize);

/// Judges a trial at a rate: `None` where it holds.
#[must_use]
pub fn cause(result: &RunResult, rate: f64, cores: Cores, steady: &Steady) -> Option<Cause> {
    let reasons = result.reasons.join("; ");
    if result.verdict == Verdict::LedgerViolated || !result.counts.violations().is_empty() {
        return Some(Cause::Ledger(reasons));
    }
    let cause = match result.verdict {
        Verdict::Invalid | Verdict::Interrupted => invalid(result, cores, steady, reasons),
        Verdict::ThresholdFailed => Cause::Threshold(reasons),
        Verdict::Pass | Verdict::LedgerViolated => behind(rate, steady)?,
    };
    // Whatever failed, with the processors elsewhere it is not known why.
    let foreign = result.generator.foreign_cores_mean.unwrap_or(0.0) + result.generator.steal_cores_mean;
    if foreign > FOREIGN_SHARE_MAX * cores.0 as f64 {
        let text = format!("other programs used {foreign:.1} of {} processors; {}", cores.0, cause.text());
        return Some(Cause::Foreign(text));
    }
    Some(cause)
}

/// What a trial has too few samples for: thresholds, with what was measured, or whether the stack keeps up; `None`
/// where something else failed too, or nothing is missing. Such a trial says nothing of its rate.
#[must_use]
pub fn lacks_samples(result: &RunResult, rate: f64, steady: &Steady) -> Option<String> {
    if !result.counts.violations().is_empty() || behind(rate, steady).is_some() {
        return None;
    }
    if result.verdict == Verdict::Pass {
        let is_known = rate <= 0.0 || (steady.acked_share.is_some() && steady.delivered_share.is_some());
        return (!is_known).then(|| NO_TREND.to_owned());
    }
    let failed: Vec<_> = result.thresholds.iter().filter(|threshold| !threshold.passed).collect();
    let is_that_all =
        result.verdict == Verdict::ThresholdFailed && failed.iter().all(|threshold| threshold.lacks_samples());
    let texts = failed.iter().map(|threshold| format!("{}: {}", threshold.threshold, threshold.measured()));
    (is_that_all && !failed.is_empty()).then(|| texts.collect::<Vec<_>>().join("; "))
}

/// Why a run that says nothing by itself failed: at the end of the machine, or of the generator?
fn invalid(result: &RunResult, Cores(cores): Cores, steady: &Steady, reasons: String) -> Cause {
    let seconds = result.duration_s.max(1e-3);
    let stack = result.stack_cpu_s() / seconds;
    let generator = result.generator.cpu_s / seconds;
    let others = match result.generator.foreign_cores_mean {
        Some(foreign) => format!("other programs {foreign:.1}"),
        None => "what other programs used is not known".to_owned(),
    };
    let busy = steady.busy_cores;
    let used = format!(
        "{busy:.1} of {cores} processors were in use (over the whole trial stack {stack:.1}, generator {generator:.1}, {others}); \
         {reasons}"
    );
    // Late, since the stack that shares the machine had taken it: that is the end of this machine, not of the generator. Only
    // what is known to be the stack's own counts as that.
    let is_full = busy > FULL_SHARE * cores as f64;
    let is_generator = stack == 0.0 || generator > GENERATOR_SHARE_MAX * (stack + generator);
    if is_full && !is_generator { Cause::Processors(used) } else { Cause::Generator(used) }
}

/// Whether less went through than was offered.
fn behind(rate: f64, steady: &Steady) -> Option<Cause> {
    if let Some(due) = steady.due_per_s {
        // Random arrivals: four deviations of a second's.
        let least = KEPT_UP_MIN * rate - 4.0 * rate.max(1.0).sqrt();
        if due < least {
            return Some(Cause::Generator(format!("the generator offered {due:.1} of {rate:.1} messages/s")));
        }
    }
    let shares = [("acknowledged", steady.acked_share), ("delivered", steady.delivered_share)];
    shares.into_iter().find_map(|(what, share)| {
        let share = share.filter(|share| *share < KEPT_UP_MIN)?;
        Some(Cause::Behind(format!(
            "the stack fell behind: {:.1} % of what was offered was {what} in its time, at least {:.0} % must be",
            share * 100.0,
            KEPT_UP_MIN * 100.0
        )))
    })
}

/// Whether a threshold limits a latency from above.
fn is_latency_limit(threshold: &Threshold) -> bool {
    let text = threshold.to_string();
    text.contains("_ms.") && !text.contains("_ms.count") && text.contains('<')
}

/// Gives a scenario the thresholds that a search needs: those of the caller, and [`DEFAULT_THRESHOLDS`] where none limits a
/// latency. Returns those that were added.
pub fn add_thresholds(scenario: &mut Scenario, of_caller: &[Threshold]) -> Vec<String> {
    scenario.thresholds.extend_from_slice(of_caller);
    let mut added: Vec<String> = of_caller.iter().map(Threshold::to_string).collect();
    if !scenario.thresholds.iter().any(is_latency_limit) {
        let default: Vec<Threshold> = DEFAULT_THRESHOLDS.iter().filter_map(|text| text.parse().ok()).collect();
        added.extend(default.iter().map(Threshold::to_string));
        scenario.thresholds.extend(default);
    }
    added
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
    use crate::loadgen::result::Counts;
    use crate::telemetry::LatencySummary;
    use crate::telemetry::live::Totals;

    const CORES: Cores = Cores(2);

    fn busy(busy_cores: f64) -> Steady {
        Steady { busy_cores, ..Steady::default() }
    }

    #[test]
    fn a_late_generator_is_the_limit_unless_the_stack_had_the_processors() {
        let mut result = RunResult { verdict: Verdict::Invalid, duration_s: 10.0, ..RunResult::default() };
        let judged = |result: &RunResult, cores, used| cause(result, 100.0, Cores(cores), &busy(used));
        (result.generator.cpu_s, result.generator.stack_cpu_s) = (8.0, 11.0);
        assert!(matches!(judged(&result, 2, 1.9), Some(Cause::Processors(text)) if text.contains("is not known")));
        assert!(matches!(judged(&result, 8, 1.9), Some(Cause::Generator(_))), "there was room");
        (result.generator.cpu_s, result.generator.stack_cpu_s) = (17.0, 2.0);
        assert!(matches!(judged(&result, 2, 1.9), Some(Cause::Generator(_))), "it took the processors itself");
        result.verdict = Verdict::Pass;
        assert_eq!(judged(&result, 2, 1.9), None);
    }

    #[test]
    fn what_other_programs_took_is_not_the_stacks() {
        let mut result = RunResult { verdict: Verdict::ThresholdFailed, duration_s: 10.0, ..RunResult::default() };
        result.generator.stack_cpu_s = 8.0;
        assert!(matches!(cause(&result, 100.0, CORES, &busy(1.9)), Some(Cause::Threshold(_))));
        result.generator.foreign_cores_mean = Some(1.1);
        let foreign = cause(&result, 100.0, CORES, &busy(1.9)).expect("it failed");
        assert!(foreign.is_local() && foreign.text().contains("other programs used 1.1 of 2"), "{foreign:?}");
        // It holds all the same: then nothing is to be explained.
        result.verdict = Verdict::Pass;
        assert_eq!(cause(&result, 100.0, CORES, &busy(1.9)), None);
    }

    #[test]
    fn a_broken_guarantee_is_one_whatever_the_verdict_says() {
        let mut result = RunResult { counts: Counts { lost: 1, ..Counts::default() }, ..RunResult::default() };
        result.generator.foreign_cores_mean = Some(1.5);
        let broken = cause(&result, 100.0, CORES, &busy(1.9)).expect("it broke");
        assert_eq!((broken.outcome(), broken.is_local()), (Outcome::Breaks, false));
    }

    #[test]
    fn a_threshold_without_its_samples_is_no_verdict_on_the_rate() {
        let outcome = |value, note: &str| crate::loadgen::scenario::threshold::Outcome {
            threshold: "ack_ms.p99 < 50".to_owned(),
            value,
            note: note.to_owned(),
            ..Default::default()
        };
        let few = outcome(Some(3.0), "20 samples, needs 100");
        let slow = outcome(Some(600.0), "20 samples, needs 100");
        let result = |thresholds| RunResult { verdict: Verdict::ThresholdFailed, thresholds, ..RunResult::default() };
        let lacks = |thresholds, steady: &Steady| lacks_samples(&result(thresholds), 100.0, steady);
        let lacking = lacks(vec![few.clone()], &busy(1.0));
        assert_eq!(lacking.as_deref(), Some("ack_ms.p99 < 50: 20 samples, needs 100"));
        assert_eq!(lacks(vec![few.clone(), outcome(Some(80.0), "")], &busy(1.0)), None, "another is too slow");
        assert_eq!(lacks(vec![slow], &busy(1.0)), None, "too few, and too slow: it is slow at every rate");
        assert!(lacks(vec![outcome(None, "")], &busy(1.0)).is_some());
        let stuck = Steady { acked_share: Some(0.1), ..Steady::default() };
        assert_eq!(lacks(vec![few], &stuck), None, "the samples are few since the stack fell behind");
        assert_eq!(lacks(Vec::new(), &busy(1.0)), None);
    }

    #[test]
    fn a_trial_without_a_trend_does_not_say_that_the_stack_keeps_up() {
        let lacks = |series: &[LiveSnapshot]| lacks_samples(&RunResult::default(), 1_000.0, &Steady::of(series));
        let whole = series(1_000.0, 1.0, |_| 3.0);
        assert_eq!(lacks(&whole), None);
        assert!(lacks(&whole[..4]).is_some_and(|text| text.contains("keeps up")), "three seconds");
        assert_eq!(lacks(&series(1_000.0, 0.97, |_| 3.0)[..4]), None, "it does not");
    }

    /// A stack that is offered `rate` messages per second and gets through with a share of it; seconds 1 to 10 are steady.
    fn series(rate: f64, acked: f64, latency_ms: impl Fn(f64) -> f64) -> Vec<LiveSnapshot> {
        let one = |second: u32| {
            let at = f64::from(second);
            let delivery = LatencySummary { count: 9, p50_us: (latency_ms(at) * 1e3) as u64, ..Default::default() };
            LiveSnapshot {
                phase: RunPhase::Load(if second == 0 { PhaseKind::WarmUp } else { PhaseKind::Steady }),
                elapsed_s: at,
                machine_cores: 1.5,
                rates: Totals { delivered: rate, ..Totals::default() },
                totals: Totals { intended: rate * at, acked: rate * at * acked, ..Totals::default() },
                interval: [(LatencyPath::Delivery, delivery)].into(),
                ..LiveSnapshot::default()
            }
        };
        (0..=10).map(one).collect()
    }

    #[test]
    fn a_stack_that_falls_behind_fails_although_its_thresholds_hold() {
        let judged = |series: &[LiveSnapshot]| cause(&RunResult::default(), 1_000.0, CORES, &Steady::of(series));
        assert_eq!(judged(&series(1_000.0, 1.0, |_| 3.0)), None);
        assert_eq!(judged(&series(1_000.0, 1.0, |at| if at as u32 == 7 { 400.0 } else { 3.0 })), None, "a bad second");
        let acks = judged(&series(1_000.0, 0.97, |_| 3.0));
        assert!(
            matches!(&acks, Some(Cause::Behind(text)) if text.contains("97.3 %") || text.contains("97.2 %")),
            "{acks:?}"
        );
        // 98 % of the deliveries: 20 ms more each second.
        let deliveries = judged(&series(1_000.0, 1.0, |at| 3.0 + 20.0 * at));
        assert!(
            matches!(&deliveries, Some(Cause::Behind(text)) if text.contains("98.0 % of what was offered was delivered")),
            "{deliveries:?}"
        );
        assert!(matches!(judged(&series(700.0, 1.0, |_| 3.0)), Some(Cause::Generator(_))), "less was offered");
        let steady = Steady::of(&series(1_000.0, 1.0, |_| 3.0));
        assert!((steady.busy_cores - 1.5).abs() < 1e-9 && (steady.deliveries_per_s - 1_000.0).abs() < 1e-9);
        assert_eq!(Steady::of(&[]), Steady::default());
    }

    #[test]
    fn a_scenario_that_limits_no_latency_gets_a_limit_and_one_that_does_keeps_its_own() {
        let read = |thresholds: &str| {
            let text = format!(
                "{{name: t, population: {{users: 2, direct_per_user: 1}}, behaviors: {{one-to-one: 1}}, \
                 phases: [{{phase: steady, duration: 100s, rate: 50}}], thresholds: [{thresholds}]}}"
            );
            Scenario::parse(&text, "t").expect("valid")
        };
        for without in ["", "'lost == 0'", "'delivery_ms.count > 5'", "'delivery_ms.p50 > 1'"] {
            let mut scenario = read(without);
            assert_eq!(add_thresholds(&mut scenario, &[]), DEFAULT_THRESHOLDS, "{without}");
        }
        let mut scenario = read("'delivery_same_server_ms.p99 < 100'");
        assert_eq!(add_thresholds(&mut scenario, &[]), Vec::<String>::new());
        let own = "ack_ms.p50 < 20".parse().expect("valid");
        assert_eq!(add_thresholds(&mut read(""), &[own]), ["ack_ms.p50 < 20"]);
    }
}
