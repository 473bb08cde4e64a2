//! Two results compared, or two groups of them: better, same, worse, or not enough data; and before that, whether each run was a
//! pass by itself.

#[cfg(test)]
mod coverage_tests;
mod figure;
mod judge;
mod junit;
mod markdown;
mod notes;
mod rank;
#[cfg(test)]
mod simulation;
mod soundness;
mod stats;
mod text;

use serde::{Deserialize, Serialize};

pub use figure::{Limits, Unit, Weight};
pub use junit::render as junit;
pub use markdown::render as markdown;
pub use soundness::{Defect, Problem, Side, same_scenario};
pub use text::render as text;

use self::figure::{Figure, RATES};
use self::judge::Values;
use crate::loadgen::RunResult;

/// What came of a comparison, of one figure or of all. Later ones are graver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The interval of the change lies within the limit on both sides.
    Same,
    /// It lies below the limit; how far below is open.
    NotWorse,
    /// Faster, or less, by more than the limit.
    Better,
    /// There is a rise, and all of its interval lies within the limit.
    SlightlyWorse,
    /// There was no baseline: one was made, and nothing was compared.
    BaselineMade,
    /// The interval reaches past the limit: the runs are too few or too noisy to tell.
    NotEnoughData,
    /// Slower, or more, by more than the limit.
    Worse,
    /// Runs of the base broke a guarantee or are inconclusive: there is nothing to compare with.
    UnsoundBaseline,
    /// Runs of the new build are inconclusive.
    Invalid,
    /// Runs could not be done.
    NotRun,
    /// Runs of the new build failed a threshold.
    Failed,
    /// Runs of the new build broke a guarantee.
    Violated,
}

impl Answer {
    /// The words for people.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::NotWorse => "same or better",
            Self::Better => "better",
            Self::SlightlyWorse => "slightly worse (within the limit)",
            Self::BaselineMade => "baseline made, nothing compared",
            Self::NotEnoughData => "not enough data",
            Self::Worse => "worse",
            Self::UnsoundBaseline => "unsound baseline",
            Self::Invalid => "invalid",
            Self::NotRun => "not run",
            Self::Failed => "failed a threshold",
            Self::Violated => "broke a guarantee",
        }
    }
}

/// How a comparison is done.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rules {
    /// Largest rise of each figure.
    pub limits: Limits,
    /// Which look at the runs this is, from 1: more are run where the first leaves something open.
    pub look: u32,
}

impl Default for Rules {
    fn default() -> Self {
        Self { limits: Limits::default(), look: 1 }
    }
}

impl Rules {
    /// Chance below which a rise past the limit is an alarm; of the figures with gate weight, ten pairs must all point
    /// the same way (1 in 1,024). Over all figures and three looks that sums to 6 in 100 at the most (Bonferroni's
    /// inequality); figures of a run go together, and a rise has to be past its limit as well: the simulation has at
    /// most 8 in 1,000.
    const fn alarm(self, weight: Weight) -> f64 {
        match (weight, self.look) {
            (Weight::Gate, 0 | 1) => 0.001,
            (Weight::Gate, _) => 0.000_5,
            (Weight::Watch, _) => 0.000_2,
        }
    }
}

/// What came of one figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Which.
    pub name: String,
    /// How its values are written.
    pub unit: Unit,
    /// Whether it leaves the whole open.
    pub weight: Weight,
    /// Middle of the runs of base; `None` where it was not measured.
    pub base: Option<f64>,
    /// The same of the new build.
    pub new: Option<f64>,
    /// The change: as a share of base (0.1 is 10 % more), or new minus base, as [`Unit::is_difference`] says.
    pub change: Option<f64>,
    /// An interval that holds the change with 90 %: past each end it lies with 5 %. `None` with too few runs.
    pub interval: Option<(f64, f64)>,
    /// Largest change for the worse that is allowed; negative where less is worse.
    pub limit: f64,
    /// Chance of a rise like this where nothing has changed.
    pub chance_of_rise: f64,
    /// The same of a fall.
    pub chance_of_fall: f64,
    /// Noise of one run: standard deviation as a share.
    pub noise: Option<f64>,
    /// Runs of each side that would probably settle it.
    pub runs_needed: Option<u64>,
    /// Whether the change passes the limit, with a chance below 5 %.
    pub is_suspicious: bool,
    /// The answer.
    pub answer: Answer,
}

impl Finding {
    /// One without figures, whose limit is one for the worse.
    fn bare(name: String, unit: Unit, weight: Weight, limit: f64, answer: Answer) -> Self {
        Self {
            name,
            unit,
            weight,
            base: None,
            new: None,
            change: None,
            interval: None,
            limit,
            chance_of_rise: 1.0,
            chance_of_fall: 1.0,
            noise: None,
            runs_needed: None,
            is_suspicious: false,
            answer,
        }
    }

    /// The answer as it counts for the whole: what is only watched leaves nothing open.
    fn counts_as(&self) -> Answer {
        match (self.weight, self.answer) {
            (Weight::Watch, Answer::NotEnoughData) => Answer::Same,
            (_, answer) => answer,
        }
    }
}

/// What came of all figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The scenario's name.
    pub scenario: String,
    /// The answer: the gravest of all figures, and of what the runs are by themselves.
    pub answer: Answer,
    /// Figure by figure.
    pub findings: Vec<Finding>,
    /// Runs that are no pass by themselves.
    pub problems: Vec<Problem>,
    /// Runs of each side.
    pub runs: (usize, usize),
    /// Whether runs of both sides ran in turn.
    pub are_interleaved: bool,
    /// Whether more runs may settle what is open.
    pub is_open: bool,
    /// Things to know.
    pub notes: Vec<String>,
    /// How it was done.
    pub rules: Rules,
}

/// What is compared.
#[derive(Debug, Clone, Copy)]
pub struct Sides<'a> {
    /// Runs of the build that is known.
    pub base: &'a [RunResult],
    /// Runs of the new build.
    pub new: &'a [RunResult],
    /// Whether the runs with the same index ran side by side.
    pub are_interleaved: bool,
}

/// The runs that have figures to compare.
struct Usable<'a> {
    base: Vec<&'a RunResult>,
    new: Vec<&'a RunResult>,
    are_paired: bool,
}

impl<'a> Usable<'a> {
    fn of(sides: &Sides<'a>) -> Self {
        let is_usable = |r: &&RunResult| !matches!(Defect::of(r), Some(Defect::Invalid | Defect::Interrupted));
        let usable = |runs: &'a [RunResult]| runs.iter().filter(is_usable).collect::<Vec<_>>();
        let (base, new) = (usable(sides.base), usable(sides.new));
        let are_all = base.len() == sides.base.len() && new.len() == sides.new.len();
        let are_paired = sides.are_interleaved && are_all && base.len() == new.len();
        Self { base, new, are_paired }
    }
}

/// Compares.
#[must_use]
pub fn compare(sides: &Sides<'_>, rules: Rules) -> Comparison {
    let usable = Usable::of(sides);
    let mut notes = notes::of_runs(sides);
    let mut findings = Vec::new();
    for figure in Figure::all() {
        match judge::values(figure, &usable) {
            Values::Neither => {}
            Values::Missing(coverage) => {
                let (finding, note) = judge::missing(figure, coverage, &usable, rules);
                findings.push(finding);
                notes.push(note);
            }
            Values::Both(mut groups) => {
                if figure == Figure::StackCpu
                    && let Some(generator) = judge::unchanged_generator(&usable, rules)
                {
                    groups = groups.relative_to(&generator);
                    notes.push(HELD_AGAINST_GENERATOR.to_owned());
                }
                findings.extend(judge::figure(figure, &groups, rules));
            }
        }
    }
    promote_watched(&mut findings);
    for (finding, note) in RATES.iter().filter_map(|rate| judge::rate(rate, &usable, rules)) {
        findings.push(finding);
        notes.extend(note);
    }
    if findings.is_empty() {
        notes.push("no figure was measured on both sides".to_owned());
    }
    notes.extend(notes::of_open(&findings, &usable));
    let mut comparison = Comparison {
        scenario: sides.new.iter().chain(sides.base).next().map(|r| r.scenario.clone()).unwrap_or_default(),
        answer: Answer::Same,
        is_open: (!findings.is_empty() && of_findings(&findings) == Answer::NotEnoughData)
            || findings.iter().any(|f| f.counts_as() == Answer::NotEnoughData)
            || findings.iter().any(|f| f.answer == Answer::NotEnoughData && f.is_suspicious),
        findings,
        problems: [soundness::problems(Side::Base, sides.base), soundness::problems(Side::New, sides.new)].concat(),
        runs: (sides.base.len(), sides.new.len()),
        are_interleaved: usable.are_paired,
        notes,
        rules,
    };
    comparison.settle();
    comparison
}

/// Gives those that were measured on both sides gate weight where there is no other figure: then they are what the scenario is
/// about, such as the connects of one in which nobody talks.
fn promote_watched(figures: &mut [Finding]) {
    if figures.iter().all(|figure| figure.weight == Weight::Watch) {
        for figure in figures.iter_mut().filter(|figure| figure.change.is_some()) {
            figure.weight = Weight::Gate;
        }
    }
}

/// The answer of all figures together: none, where there is none or nothing but what is watched and left open.
fn of_findings(findings: &[Finding]) -> Answer {
    let is_nothing_known = findings.iter().all(|f| f.answer == Answer::NotEnoughData);
    let gravest = findings.iter().map(Finding::counts_as).max();
    gravest.filter(|_| !is_nothing_known).unwrap_or(Answer::NotEnoughData)
}

/// Told where the generator's processor time is used.
const HELD_AGAINST_GENERATOR: &str = "stack CPU is held against the generator's of the same run, which did not change";

impl Comparison {
    /// Of a baseline that was made of these runs, and of nothing else.
    #[must_use]
    pub fn of_baseline(runs: &[RunResult], rules: Rules) -> Self {
        let measured = |figure: Figure| {
            let logs: Vec<f64> = runs.iter().filter_map(|r| figure.of(r)).map(f64::ln).collect();
            (!logs.is_empty()).then(|| Finding {
                base: Some(stats::median(logs.clone()).exp()),
                noise: stats::robust_deviation(&logs).map(f64::exp_m1),
                ..judge::bare(figure, figure.weight(), rules, Answer::BaselineMade)
            })
        };
        let mut comparison = Self {
            scenario: runs.first().map(|r| r.scenario.clone()).unwrap_or_default(),
            answer: Answer::BaselineMade,
            findings: Figure::all().into_iter().filter_map(measured).collect(),
            problems: soundness::problems(Side::New, runs),
            runs: (runs.len(), 0),
            are_interleaved: false,
            is_open: false,
            notes: Vec::new(),
            rules,
        };
        comparison.settle();
        comparison.notes.push(match comparison.answer {
            Answer::BaselineMade => {
                "there was no baseline to compare with: this build is the baseline from now on".to_owned()
            }
            _ => "no baseline was made: its runs must be sound themselves".to_owned(),
        });
        comparison
    }

    /// Of no run at all, because of what stands in `problem`.
    #[must_use]
    pub fn not_run(scenario: &str, problem: String, rules: Rules) -> Self {
        Self {
            scenario: scenario.to_owned(),
            answer: Answer::NotRun,
            findings: Vec::new(),
            problems: vec![Problem { side: Side::New, run: None, defect: Defect::NotRun, reasons: vec![problem] }],
            runs: (0, 0),
            are_interleaved: false,
            is_open: false,
            notes: Vec::new(),
            rules,
        }
    }

    /// Adds a run that could not be done, or that says nothing however often it was repeated.
    pub fn add_problem(&mut self, problem: Problem) {
        self.problems.push(problem);
        self.settle();
    }

    /// The answer, from findings and problems.
    fn settle(&mut self) {
        let of_figures = of_findings(&self.findings);
        let of_problem = |p: &Problem| match (p.side, p.defect) {
            (_, Defect::NotRun) => Some(Answer::NotRun),
            (Side::New, Defect::Violated) => Some(Answer::Violated),
            (Side::New, Defect::Failed) => Some(Answer::Failed),
            (Side::New, Defect::Invalid | Defect::Interrupted) => Some(Answer::Invalid),
            // A baseline that was too slow is told in a note.
            (Side::Base, Defect::Failed) => None,
            (Side::Base, _) => Some(Answer::UnsoundBaseline),
        };
        self.answer = self.problems.iter().filter_map(of_problem).chain([of_figures]).max().unwrap_or(of_figures);
        self.is_open &= self.answer == Answer::NotEnoughData || self.answer < Answer::BaselineMade;
    }

    /// How many runs of a side have a defect, by defect, in words; `None` where none has.
    fn defects(&self, side: Side) -> Option<String> {
        let kinds = [Defect::Violated, Defect::Failed, Defect::Invalid, Defect::Interrupted, Defect::NotRun];
        let words: Vec<String> = kinds
            .into_iter()
            .filter_map(|kind| {
                let count = self.problems.iter().filter(|p| p.side == side && p.defect == kind).count();
                (count > 0).then(|| format!("{count} {}", kind.words()))
            })
            .collect();
        (!words.is_empty()).then(|| words.join(", "))
    }
}

/// The figures of a run that are shown while others go on: their names and values, in µs.
#[must_use]
pub fn headline(result: &RunResult) -> Vec<(String, f64)> {
    let timed = Figure::all().into_iter().filter(|f| f.weight() == Weight::Gate && f.unit() == Unit::Microseconds);
    timed.filter_map(|figure| Some((figure.name(), figure.of(result)?))).collect()
}

/// A finding's value in a unit that suits it.
fn value(unit: Unit, value: Option<f64>) -> String {
    let Some(value) = value else { return "–".to_owned() };
    match unit {
        Unit::Microseconds if value < 100.0 => format!("{value:.1} µs"),
        Unit::Microseconds => super::human_us(value.round() as u64),
        Unit::Share => format!("{:.3} %", value * 100.0),
        Unit::Each | Unit::PerDevice if value.abs() < 1e6 => format!("{value:.3}"),
        Unit::Each | Unit::PerDevice => format!("{value:.3e}"),
    }
}

/// A change with its sign, such as `+4.2 %`, or `+0.120 pp` where it is a difference of shares.
fn change(unit: Unit, change: f64) -> String {
    // What is nearly nothing has no sign.
    let change = if change.abs() < 5e-6 { 0.0 } else { change };
    match unit {
        Unit::Share => format!("{:+.3} pp", change * 100.0),
        Unit::PerDevice if change.abs() < 1e6 => format!("{change:+.3}"),
        _ if unit.is_difference() || change.abs() > 100.0 => format!("{change:+.2e}"),
        _ => format!("{:+.1} %", change * 100.0),
    }
}

/// An interval in the same form.
fn interval(finding: &Finding) -> String {
    finding.interval.map_or("–".to_owned(), |(low, high)| {
        format!("{} … {}", change(finding.unit, low), change(finding.unit, high))
    })
}

/// What one finding says, in a sentence.
fn sentence(f: &Finding) -> String {
    let changed = f.change.map_or("not on both sides".to_owned(), |c| change(f.unit, c));
    format!(
        "{}: {} to {}, {changed} ({}), limit {}",
        f.answer.word(),
        value(f.unit, f.base),
        value(f.unit, f.new),
        interval(f),
        change(f.unit, f.limit)
    )
}
