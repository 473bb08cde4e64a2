//! The answer for one figure or rate: an interval of its change held against a limit, as in tests of equivalence.
//!
//! Source of the method: Schuirmann, "A comparison of the two one-sided tests procedure", 1987. "The same" is something that is
//! shown, by an interval that lies within the limit, and never the absence of a difference.

use crate::loadgen::RunResult;
use crate::report::counted;

use super::figure::{Figure, RATE_LIMIT, Rate, Weight};
use super::stats::{self, Groups};
use super::{Answer, Finding, Rules, Usable, rank};

/// Probability past each end of an interval: both together hold the change with 90 %.
const TAIL: f64 = 0.05;

/// Chance from which on a rise or a fall counts as real, where it is within the limit and alarms nobody.
const REAL: f64 = 0.01;

/// Chance up to which a rise of something that is only watched is worth more runs.
const SUSPICION: f64 = 0.05;

/// Factor past which a change is told although the runs are too few for a test, and the same for the tail, which a single bad
/// second makes several times as long.
const FAR: f64 = 2.0;
const FAR_TAIL: f64 = 5.0;

/// Noise of a figure between two runs that is assumed where nothing is known of it, as a logarithm. Source: `chatctl check` of
/// `scenarios/gate.yaml` against itself, docs/performance.md.
const NOISE_ASSUMED: f64 = 0.08;

/// Standard deviations past which a rate is far off although the runs are too few for a test.
const FAR_DEVIATIONS: f64 = 5.0;

/// Rise of a rate that is told although the runs are too few for a test: one in a hundred.
const FAR_RATE: f64 = 0.01;

/// Runs of each side past which more of them are no advice.
pub(super) const RUNS_NEEDED_MAX: u64 = 10_000;

/// What the answer needs to know of a change. All are for the worse when above 0.
struct Change {
    estimate: f64,
    interval: Option<(f64, f64)>,
    chance_of_rise: f64,
    chance_of_fall: f64,
    smallest_chance: f64,
    limit: f64,
    /// The same for the better, above 0.
    limit_of_fall: f64,
}

impl Change {
    /// The answer, or `None` where the runs are too few for a test.
    fn answer(&self, weight: Weight, rules: Rules) -> Option<Answer> {
        let alarm = rules.alarm(weight);
        let (low, high) = self.interval?;
        let is_testable = self.smallest_chance <= alarm;
        let answer = if is_testable && self.chance_of_rise <= alarm && self.estimate > self.limit {
            Answer::Worse
        } else if high > self.limit {
            // Untested, it may still be far off.
            return is_testable.then_some(Answer::NotEnoughData);
        } else if self.chance_of_rise <= REAL {
            Answer::SlightlyWorse
        } else if self.chance_of_fall <= alarm && self.estimate < -self.limit_of_fall {
            Answer::Better
        } else if low < -self.limit_of_fall {
            Answer::NotWorse
        } else {
            Answer::Same
        };
        Some(answer)
    }
}

/// The values of a figure on both sides, as logarithms, with their signs turned where more is better.
pub(super) enum Values {
    /// In every run of both; of a figure that is watched, in enough of them.
    Both(Groups),
    /// In no run of base or of new, or in too few.
    Missing(Coverage),
    /// In none of either.
    Neither,
}

/// Share of the runs that must have a figure that is watched.
const WATCH_SHARE: f64 = 0.6;

/// How many runs of each side have a value, and how many runs there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Coverage {
    base: (usize, usize),
    new: (usize, usize),
}

impl Coverage {
    fn of<T>(base: &[Option<T>], new: &[Option<T>]) -> Self {
        let side = |values: &[Option<T>]| (values.iter().flatten().count(), values.len());
        Self { base: side(base), new: side(new) }
    }

    const fn is_nowhere(self) -> bool {
        self.base.0 + self.new.0 == 0
    }

    /// Whether a side has it in this share of its runs.
    fn is_in((has, of): (usize, usize), share: f64) -> bool {
        has > 0 && has as f64 >= share * of as f64
    }

    /// Whether both sides have it in as many of their runs as the weight asks for.
    fn is_enough(self, weight: Weight) -> bool {
        let share = match weight {
            Weight::Gate => 1.0,
            Weight::Watch => WATCH_SHARE,
        };
        Self::is_in(self.base, share) && Self::is_in(self.new, share)
    }

    /// Whether both sides have it in the same share of their runs.
    const fn is_even(self) -> bool {
        self.base.0 * self.new.1 == self.new.0 * self.base.1
    }

    /// Whether one side has it as a rule, and the other never.
    fn is_on_one_side(self) -> bool {
        (self.base.0 == 0 && Self::is_in(self.new, WATCH_SHARE))
            || (self.new.0 == 0 && Self::is_in(self.base, WATCH_SHARE))
    }

    /// What is only watched leaves nothing open, unless one side has it as a rule and the other never.
    fn weight(self, of: Weight) -> Weight {
        if self.is_on_one_side() { Weight::Gate } else { of }
    }

    fn note(self, name: &str) -> String {
        let base = counted(self.base.0 as u64, "run");
        format!("{name}: measured in {base} of base and in {} of new", self.new.0)
    }
}

pub(super) fn values(figure: Figure, sides: &Usable<'_>) -> Values {
    let sign = if figure.is_more_better() { -1.0 } else { 1.0 };
    let logs = |runs: &[&RunResult]| runs.iter().map(|r| figure.of(r).map(|v| sign * v.ln())).collect::<Vec<_>>();
    let (base, new) = (logs(&sides.base), logs(&sides.new));
    let coverage = Coverage::of(&base, &new);
    if coverage.is_nowhere() || base.is_empty() || new.is_empty() {
        return Values::Neither;
    }
    if !coverage.is_enough(figure.weight()) {
        return Values::Missing(coverage);
    }
    let groups = if sides.are_paired {
        let (base, new) = base.into_iter().zip(new).filter_map(|(b, n)| Some((b?, n?))).unzip();
        Groups { base, new, are_paired: true }
    } else {
        Groups {
            base: base.into_iter().flatten().collect(),
            new: new.into_iter().flatten().collect(),
            are_paired: false,
        }
    };
    if groups.base.is_empty() { Values::Missing(coverage) } else { Values::Both(groups) }
}

/// The finding of a figure without its values.
pub(super) fn bare(figure: Figure, weight: Weight, rules: Rules, answer: Answer) -> Finding {
    let sign = if figure.is_more_better() { -1.0 } else { 1.0 };
    Finding::bare(figure.name(), figure.unit(), weight, sign * figure.limit(&rules.limits), answer)
}

/// The finding of a figure that only some of the runs have, and a note of how many.
pub(super) fn missing(figure: Figure, coverage: Coverage, sides: &Usable<'_>, rules: Rules) -> (Finding, String) {
    // What users got before and do not get any more is no matter of statistics. That there are too few samples for a
    // percentile is.
    let is_gone = figure.weight() == Weight::Gate
        && figure != Figure::StackCpu
        && coverage.is_on_one_side()
        && !sides.new.iter().any(|run| figure.has_samples(run));
    let answer = if is_gone { Answer::Worse } else { Answer::NotEnoughData };
    let level = |runs: &[&RunResult]| {
        let values: Vec<f64> = runs.iter().filter_map(|run| figure.of(run)).collect();
        (!values.is_empty()).then(|| stats::median(values))
    };
    let (base, new) = (level(&sides.base), level(&sides.new));
    let finding = bare(figure, coverage.weight(figure.weight()), rules, answer);
    let note = coverage.note(&finding.name);
    (Finding { base, new, ..finding }, note)
}

/// The shift between two groups of logarithms.
pub(super) fn shift(groups: &Groups) -> Option<rank::Shift> {
    if groups.are_paired {
        rank::paired(&groups.differences(), TAIL)
    } else {
        rank::unpaired(&groups.base, &groups.new, TAIL)
    }
}

/// The finding of a figure that both sides have.
pub(super) fn figure(figure: Figure, groups: &Groups, rules: Rules) -> Option<Finding> {
    let mut shift = shift(groups)?;
    if !groups.are_repeated() {
        // However many the other side has: nothing is known of the noise of one run.
        shift.interval = None;
    }
    let allowed = figure.limit(&rules.limits);
    // Ten percent more, and the reverse of it: as logarithms both are as far from 0.
    let limit = if figure.is_more_better() { -(1.0 - allowed).ln() } else { (1.0 + allowed).ln() };
    let change = Change {
        estimate: shift.estimate,
        interval: shift.interval,
        chance_of_rise: shift.chance_of_rise,
        chance_of_fall: shift.chance_of_fall,
        smallest_chance: shift.smallest_chance,
        limit,
        limit_of_fall: limit,
    };
    let (noise, alarm) = (noise(groups), rules.alarm(figure.weight()));
    let tested = groups.are_repeated().then(|| change.answer(figure.weight(), rules)).flatten();
    let answer = tested.unwrap_or_else(|| {
        // Too few runs for the test: only what is far outside of the noise is told, and one run of a side has none to be told.
        let is_tail = matches!(figure, Figure::Latency(..)) && !figure.name().ends_with("p50");
        let spread = noise.unwrap_or(NOISE_ASSUMED).max(NOISE_ASSUMED);
        let far = (FAR_DEVIATIONS * spread).max(if is_tail { FAR_TAIL } else { FAR }.ln());
        if_far(groups, shift.estimate, far)
    });
    let sign = if figure.is_more_better() { -1.0 } else { 1.0 };
    let ends = |(low, high): (f64, f64)| if sign > 0.0 { (low, high) } else { (-high, -low) };
    let (rise, fall) = (shift.chance_of_rise, shift.chance_of_fall);
    let level = |values: &[f64]| (sign * stats::median(values.to_vec())).exp();
    Some(Finding {
        name: figure.name(),
        unit: figure.unit(),
        weight: figure.weight(),
        base: Some(level(&groups.base)),
        new: Some(level(&groups.new)),
        change: Some((sign * shift.estimate).exp_m1()),
        interval: shift.interval.map(ends).map(|(low, high)| (low.exp_m1(), high.exp_m1())),
        limit: sign * allowed,
        chance_of_rise: if sign > 0.0 { rise } else { fall },
        chance_of_fall: if sign > 0.0 { fall } else { rise },
        noise: noise.map(f64::exp_m1),
        runs_needed: (answer == Answer::NotEnoughData).then(|| runs_needed(&change, groups, alarm)).flatten(),
        is_suspicious: groups.are_repeated() && shift.chance_of_rise <= SUSPICION && shift.estimate > limit,
        answer,
    })
}

/// The answer where the runs are too few for a test: worse or better from a change that is far outside of the noise.
const fn if_far(groups: &Groups, estimate: f64, far: f64) -> Answer {
    if !groups.are_repeated() {
        Answer::NotEnoughData
    } else if estimate > far {
        Answer::Worse
    } else if estimate < -far {
        Answer::Better
    } else {
        Answer::NotEnoughData
    }
}

/// Noise of one run, as a logarithm: what the runs of each side differ by among themselves.
fn noise(groups: &Groups) -> Option<f64> {
    match (stats::robust_deviation(&groups.base), stats::robust_deviation(&groups.new)) {
        (Some(a), Some(b)) => Some(f64::midpoint(a * a, b * b).sqrt()),
        (a, b) => a.or(b),
    }
}

/// Runs of each side with which an interval around no change would lie within the limit nineteen times in twenty, and enough
/// for an interval at all; past the limit, for an alarm. `None` where nothing is known of the noise, or there are too many.
fn runs_needed(change: &Change, groups: &Groups, alarm: f64) -> Option<u64> {
    let runs = groups.base.len().min(groups.new.len());
    // Half of the interval is t deviations; it needs room for its own width and for the estimate's own bad luck.
    let deviation = match change.interval {
        Some((low, high)) => (high - low) / 2.0 / stats::t_95(runs.saturating_sub(1)),
        None if groups.are_repeated() => groups.change_deviation()?,
        None => return None,
    };
    let needed = runs as f64 * ((1.645 + 1.645) * deviation / change.limit).powi(2);
    let chance = if change.estimate > change.limit { alarm } else { TAIL };
    let fewest = stats::fewest_runs(groups.are_paired, chance).max(runs + 1) as u64;
    (needed.is_finite() && needed <= RUNS_NEEDED_MAX as f64).then_some((needed.ceil() as u64).max(fewest))
}

/// The finding of a rate, and a note where not every run has it; `None` where no run counted it, or nothing of it happened.
pub(super) fn rate(rate: &Rate, sides: &Usable<'_>, rules: Rules) -> Option<(Finding, Option<String>)> {
    let read = |runs: &[&RunResult]| runs.iter().map(|r| (rate.of)(r).filter(|(_, of)| *of > 0)).collect::<Vec<_>>();
    let (base, new) = (read(&sides.base), read(&sides.new));
    let coverage = Coverage::of(&base, &new);
    if coverage.is_nowhere() || base.is_empty() || new.is_empty() {
        return None;
    }
    let weight = coverage.weight(rate.weight);
    let note = Some(coverage.note(rate.name));
    let are_paired = sides.are_paired && coverage.is_enough(Weight::Gate);
    let is_settled = match rate.weight {
        Weight::Gate => coverage.is_even(),
        Weight::Watch => coverage.is_enough(Weight::Watch),
    };
    let (base, new): (Vec<_>, Vec<_>) = (base.into_iter().flatten().collect(), new.into_iter().flatten().collect());
    if base.is_empty() || new.is_empty() {
        return Some((Finding::bare(rate.name.to_owned(), rate.unit, weight, rate.floor, Answer::NotEnoughData), note));
    }
    let judged = judged_rate(rate, (&base, &new), are_paired, rules);
    if is_settled {
        return judged.map(|finding| (finding, None));
    }
    // A rise is one without the runs that lack it; that there is none is not known without them.
    let finding = judged
        .unwrap_or_else(|| Finding::bare(rate.name.to_owned(), rate.unit, weight, rate.floor, Answer::NotEnoughData));
    Some((Finding { answer: finding.answer.max(Answer::NotEnoughData), ..finding }, note))
}

/// How many of how many, of one run.
type OfMany = (u64, u64);

/// The finding of a rate from the runs that have it; `None` where nothing of it happened.
fn judged_rate(rate: &Rate, (base, new): (&[OfMany], &[OfMany]), are_paired: bool, rules: Rules) -> Option<Finding> {
    let sum = |runs: &[(u64, u64)]| runs.iter().fold((0.0, 0.0), |(n, of), (a, b)| (n + *a as f64, of + *b as f64));
    let ((base_n, base_of), (new_n, new_of)) = (sum(base), sum(new));
    if base_n + new_n == 0.0 {
        return None;
    }
    let (base_rate, new_rate) = (base_n / base_of, new_n / new_of);
    let each = |runs: &[(u64, u64)]| runs.iter().map(|(n, of)| *n as f64 / *of as f64).collect::<Vec<_>>();
    let groups = Groups { base: each(base), new: each(new), are_paired };
    // One event more on each side: that none was seen does not mean that there can be none.
    let by_chance = ((base_n + 1.0) / base_of.powi(2) + (new_n + 1.0) / new_of.powi(2)).sqrt();
    let runs = groups.base.len().min(groups.new.len());
    let deviation = groups.change_deviation().unwrap_or(0.0).max(by_chance);
    let half = stats::t_95(runs.saturating_sub(1)) * deviation;
    let estimate = new_rate - base_rate;
    let limit = rate.floor.max(RATE_LIMIT * base_rate);
    let change = Change {
        estimate,
        interval: (runs > 1).then_some((estimate - half, estimate + half)),
        chance_of_rise: groups.chance_of_rise(),
        chance_of_fall: groups.chance_of_fall(),
        smallest_chance: groups.smallest_chance(),
        limit,
        limit_of_fall: limit,
    };
    let answer = change.answer(rate.weight, rules).unwrap_or_else(|| {
        // A burst in one of two runs is one event, as it is in one of ten.
        if_far(&groups, estimate, (FAR_DEVIATIONS * deviation).max(FAR_RATE).max(limit))
    });
    let alarm = rules.alarm(rate.weight);
    Some(Finding {
        name: rate.name.to_owned(),
        unit: rate.unit,
        weight: rate.weight,
        base: Some(base_rate),
        new: Some(new_rate),
        change: Some(estimate),
        interval: change.interval,
        limit,
        chance_of_rise: change.chance_of_rise,
        chance_of_fall: change.chance_of_fall,
        noise: None,
        runs_needed: (answer == Answer::NotEnoughData).then(|| runs_needed(&change, &groups, alarm)).flatten(),
        is_suspicious: change.chance_of_rise <= SUSPICION && estimate > limit,
        answer,
    })
}

/// Processor time of the generator for each delivery, where it is no other in the new build as far as can be told. It does the
/// same work in every run, so what it takes more or less of in one is the machine's speed, which the stack of that run had too.
pub(super) fn unchanged_generator(sides: &Usable<'_>, rules: Rules) -> Option<Groups> {
    /// Chance below which it counts as changed: much earlier than for an alarm.
    const CHANGED: f64 = 0.02;
    let log = |r: &&RunResult| {
        let each = r.generator.cpu_s * 1e6 / r.counts.delivered as f64;
        (each.is_finite() && each > 0.0).then(|| each.ln())
    };
    let logs = |runs: &[&RunResult]| runs.iter().map(log).collect::<Option<Vec<f64>>>();
    let groups = Groups { base: logs(&sides.base)?, new: logs(&sides.new)?, are_paired: sides.are_paired };
    let shift = groups.are_paired.then(|| shift(&groups)).flatten()?;
    let is_unchanged = shift.estimate.abs() < rules.limits.cpu.ln_1p()
        && shift.chance_of_rise > CHANGED
        && shift.chance_of_fall > CHANGED;
    is_unchanged.then_some(groups)
}
