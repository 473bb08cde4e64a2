//! Runs of two builds held against each other: better, same, worse, or not enough data.

mod junit;
mod markdown;
mod stats;
mod text;

use serde::{Deserialize, Serialize};

pub use junit::render as junit;
pub use markdown::render as markdown;
pub use text::render as text;

use self::stats::Groups;
use crate::loadgen::RunResult;

/// Chance of a false alarm of a whole comparison in which nothing has changed.
const FALSE_ALARM_MAX: f64 = 0.01;

/// Chance of a rise up to which more runs are worth their time.
const SUSPICION: f64 = 0.5;

/// Probability with which an interval holds the change.
const INTERVAL_LEVEL: f64 = 0.95;

/// How many standard deviations of the change can be told from noise nearly always: the quantile of the test (2.3 at 1 %) and
/// one for the change that must be seen in spite of bad luck.
const SEEN_DEVIATIONS: f64 = 3.3;

/// Noise of a figure between two runs that is assumed where nothing is known of it, as a share. Source: `chatctl check` of
/// `scenarios/gate.yaml` against itself, docs/performance.md.
const NOISE_ASSUMED: f64 = 0.08;

/// Factor past which a change is told although the runs are too few for a test, and the same for the tail, which a single bad
/// second makes several times as long.
const FAR: f64 = 2.0;
const FAR_TAIL: f64 = 5.0;

/// What is compared of a run. Smaller is better in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// Median time from when a message was due to each device.
    DeliveryP50,
    /// Its 99th percentile.
    DeliveryP99,
    /// Median time from when a message was due to its ACK.
    AckP50,
    /// Its 99th percentile.
    AckP99,
    /// Processor time of the stack for each delivery.
    StackCpu,
}

impl Figure {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::DeliveryP50, Self::DeliveryP99, Self::AckP50, Self::AckP99, Self::StackCpu];

    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DeliveryP50 => "delivery p50",
            Self::DeliveryP99 => "delivery p99",
            Self::AckP50 => "ack p50",
            Self::AckP99 => "ack p99",
            Self::StackCpu => "stack CPU per delivery",
        }
    }

    /// The value of a run, in µs; `None` where it was not measured.
    #[must_use]
    pub fn of(self, result: &RunResult) -> Option<f64> {
        let latency = |path: &str, percent: f64| {
            let histogram = result.histograms.get(path).filter(|h| h.count() > 0)?;
            Some(histogram.percentile_us(percent) as f64)
        };
        match self {
            Self::DeliveryP50 => latency("delivery", 50.0),
            Self::DeliveryP99 => latency("delivery", 99.0),
            Self::AckP50 => latency("ack", 50.0),
            Self::AckP99 => latency("ack", 99.0),
            Self::StackCpu => {
                let cpu_s = result.stack_cpu_s();
                (cpu_s > 0.0 && result.counts.delivered > 0).then(|| cpu_s * 1e6 / result.counts.delivered as f64)
            }
        }
    }
}

/// What came of a comparison, of one figure or of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// No change that is large enough to matter; one of the size that is told would have been seen.
    Same,
    /// Faster, or less.
    Better,
    /// The runs are too few or too noisy to tell.
    NotEnoughData,
    /// Slower, or more.
    Worse,
}

impl Answer {
    /// The word for people.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Better => "better",
            Self::NotEnoughData => "not enough data",
            Self::Worse => "worse",
        }
    }
}

/// How a comparison is done.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rules {
    /// Smallest change that matters, as a share: 0.05 is 5 %.
    pub min_effect: f64,
    /// Largest change that may go unseen before the answer is "not enough data", as a share.
    pub max_unseen: f64,
    /// How often the runs are looked at before they are enough: each look may raise its part of the false alarms only. Source:
    /// Bonferroni's inequality.
    pub looks: u32,
}

impl Default for Rules {
    fn default() -> Self {
        Self { min_effect: 0.05, max_unseen: 0.25, looks: 1 }
    }
}

impl Rules {
    /// Chance of a false alarm of one look.
    fn false_alarm_max(self) -> f64 {
        FALSE_ALARM_MAX / f64::from(self.looks.max(1))
    }
}

/// What came of one figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Which.
    pub figure: Figure,
    /// Geometric mean over the runs of each side, in µs.
    pub base_us: f64,
    /// The same.
    pub new_us: f64,
    /// The change as a share of base: 0.1 is 10 % more.
    pub change: f64,
    /// An interval that holds the change with 95 %, by bootstrap over runs; never narrower than the learned noise allows.
    pub interval: (f64, f64),
    /// Chance of a rise like this where nothing has changed, after Holm's correction.
    pub chance_of_rise: f64,
    /// The same of a fall.
    pub chance_of_fall: f64,
    /// Noise of one run: standard deviation as a share, learned where the same build ran several times.
    pub noise: f64,
    /// Smallest change that would have been seen, as a share.
    pub detectable: f64,
    /// The answer.
    pub answer: Answer,
}

/// What came of all figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The scenario's name.
    pub scenario: String,
    /// The answer: the gravest of all figures.
    pub answer: Answer,
    /// Figure by figure.
    pub findings: Vec<Finding>,
    /// Runs of each side.
    pub runs: (usize, usize),
    /// Whether runs of both sides ran in turn.
    pub are_interleaved: bool,
    /// Whether more runs may turn the answer into "worse": there is a rise that matters, and it may be chance.
    pub is_open: bool,
    /// Things to know.
    pub notes: Vec<String>,
    /// How it was done.
    pub rules: Rules,
}

/// What is compared.
pub struct Sides<'a> {
    /// Runs of the build that is known.
    pub base: &'a [RunResult],
    /// Runs of the new build.
    pub new: &'a [RunResult],
    /// Whether the runs with the same index ran side by side.
    pub are_interleaved: bool,
    /// Further runs of the known build by itself, from which noise is learned.
    pub noise: &'a [RunResult],
}

/// Compares.
#[must_use]
pub fn compare(sides: &Sides<'_>, rules: Rules) -> Comparison {
    let mut notes = Vec::new();
    let scenario = |runs: &[RunResult]| runs.first().map(|r| r.scenario.clone()).unwrap_or_default();
    let (base, new) = (scenario(sides.base), scenario(sides.new));
    if base != new {
        notes.push(format!("the scenarios differ: {base} and {new}"));
    }
    if let Some(other) = sides.new.iter().zip(sides.base).find(|(a, b)| a.machine != b.machine) {
        notes.push(format!("the machines differ: {} and {}", other.1.machine, other.0.machine));
    }
    if sides.base.len().min(sides.new.len()) == 1 {
        notes.push("one run of a side says nothing of the noise between runs: compare several".to_owned());
    }
    let are_paired = sides.are_interleaved && sides.base.len() == sides.new.len();
    let groups: Vec<(Figure, Groups)> = Figure::ALL
        .into_iter()
        .filter_map(|figure| {
            let logs = |runs: &[RunResult]| runs.iter().map(|r| figure.of(r).map(f64::ln)).collect::<Option<Vec<_>>>();
            let mut groups = Groups { base: logs(sides.base)?, new: logs(sides.new)?, are_paired };
            if figure == Figure::StackCpu
                && let Some(generator) = unchanged_generator(sides, are_paired, rules)
            {
                groups = groups.relative_to(&generator);
                notes.push(HELD_AGAINST_GENERATOR.to_owned());
            }
            (!groups.base.is_empty() && !groups.new.is_empty()).then_some((figure, groups))
        })
        .collect();
    let rises = stats::holm(&groups.iter().map(|(_, g)| g.chance_of_rise()).collect::<Vec<_>>());
    let falls = stats::holm(&groups.iter().map(|(_, g)| g.chance_of_fall()).collect::<Vec<_>>());
    let findings: Vec<Finding> = groups
        .iter()
        .enumerate()
        .map(|(n, (figure, groups))| {
            let learned: Vec<f64> = sides.noise.iter().filter_map(|r| figure.of(r).map(f64::ln)).collect();
            let is_testable = groups.smallest_chance() * Figure::ALL.len() as f64 <= rules.false_alarm_max();
            judge(*figure, groups, (rises[n], falls[n]), stats::robust_deviation(&learned), is_testable, rules)
        })
        .collect();
    if findings.is_empty() {
        notes.push("no figure was measured on both sides".to_owned());
    }
    let is_open = |f: &Finding| {
        let may_be_worse = f.chance_of_rise <= SUSPICION && f.change >= rules.min_effect;
        matches!(f.answer, Answer::Same | Answer::NotEnoughData) && (may_be_worse || f.interval.1 > rules.max_unseen)
    };
    for finding in findings.iter().filter(|f| f.answer == Answer::Same && f.interval.1 > rules.max_unseen) {
        notes.push(format!("{}: some runs of the new build are far off the others", finding.figure.name()));
    }
    let gravest = findings.iter().map(|f| f.answer).max().unwrap_or(Answer::NotEnoughData);
    Comparison {
        scenario: new,
        answer: gravest,
        is_open: gravest != Answer::Worse && findings.iter().any(is_open),
        findings,
        runs: (sides.base.len(), sides.new.len()),
        are_interleaved: are_paired,
        notes,
        rules,
    }
}

/// Told where [`unchanged_generator`] is used.
const HELD_AGAINST_GENERATOR: &str = "stack CPU is held against the generator's of the same run, which did not change";

/// Processor time of the generator for each delivery, where it is no other in the new build as far as can be told. It does the
/// same work in every run, so what it takes more or less of in one is the machine's speed, which the stack of that run had too.
fn unchanged_generator(sides: &Sides<'_>, are_paired: bool, rules: Rules) -> Option<Groups> {
    /// Chance below which it counts as changed: much earlier than for an alarm.
    const CHANGED: f64 = 0.05;
    let log = |r: &RunResult| {
        let is_known = r.generator.cpu_s > 0.0 && r.counts.delivered > 0;
        is_known.then(|| (r.generator.cpu_s * 1e6 / r.counts.delivered as f64).ln())
    };
    let logs = |runs: &[RunResult]| runs.iter().map(log).collect::<Option<Vec<f64>>>();
    let groups = Groups { base: logs(sides.base)?, new: logs(sides.new)?, are_paired };
    let is_unchanged = are_paired
        && groups.change().abs() < rules.min_effect
        && groups.chance_of_rise() > CHANGED
        && groups.chance_of_fall() > CHANGED;
    is_unchanged.then_some(groups)
}

fn judge(
    figure: Figure,
    groups: &Groups,
    (chance_of_rise, chance_of_fall): (f64, f64),
    learned: Option<f64>,
    is_testable: bool,
    rules: Rules,
) -> Finding {
    let change = groups.change();
    // Noise of one run: what was learned before, what these runs show by themselves, or an assumption.
    let spread = |values: &[f64]| stats::robust_deviation(values);
    let own = match (spread(&groups.base), spread(&groups.new)) {
        (Some(a), Some(b)) => Some(f64::midpoint(a * a, b * b).sqrt()),
        (a, b) => a.or(b),
    };
    let noise = learned.into_iter().chain(own).reduce(f64::max).unwrap_or(NOISE_ASSUMED);
    let by_noise = noise * (1.0 / groups.base.len() as f64 + 1.0 / groups.new.len() as f64).sqrt();
    // Pairs share what the machine did in their minute, so their differences may be quieter than the runs themselves.
    let deviation = if groups.are_paired { groups.change_deviation().unwrap_or(by_noise) } else { by_noise };
    let (mut low, mut high) = groups.interval(INTERVAL_LEVEL);
    (low, high) = (low.min(change - 1.96 * deviation), high.max(change + 1.96 * deviation));
    let detectable = (SEEN_DEVIATIONS * deviation).exp_m1().max(rules.min_effect);
    let answer = if is_testable {
        if chance_of_rise <= rules.false_alarm_max() && change.exp_m1() >= rules.min_effect {
            Answer::Worse
        } else if chance_of_fall <= rules.false_alarm_max() && -change.exp_m1() >= rules.min_effect {
            Answer::Better
        } else if detectable <= rules.max_unseen
            // A bad run or two lift the mean and not the middle: they are told in a note.
            && (groups.typical_change() + 1.96 * deviation).exp_m1() <= rules.max_unseen
        {
            Answer::Same
        } else {
            Answer::NotEnoughData
        }
    } else {
        // Too few runs for the test: only what is far outside of the noise is told.
        let is_tail = matches!(figure, Figure::DeliveryP99 | Figure::AckP99);
        let unknown = if is_tail { FAR_TAIL } else { FAR };
        let far = (SEEN_DEVIATIONS * by_noise * 1.5).max(unknown.ln()).max(rules.max_unseen);
        match change {
            c if c > far => Answer::Worse,
            c if c < -far => Answer::Better,
            _ => Answer::NotEnoughData,
        }
    };
    let mean = |values: &[f64]| (values.iter().sum::<f64>() / values.len() as f64).exp();
    Finding {
        figure,
        base_us: mean(&groups.base),
        new_us: mean(&groups.new),
        change: change.exp_m1(),
        interval: (low.exp_m1(), high.exp_m1()),
        chance_of_rise,
        chance_of_fall,
        noise: noise.exp_m1(),
        detectable,
        answer,
    }
}

/// A change with its sign, such as `+4.2 %`.
fn percent(share: f64) -> String {
    format!("{:+.1} %", share * 100.0)
}

/// A figure in µs with a unit that suits it.
fn human(us: f64) -> String {
    if us < 100.0 { format!("{us:.1} µs") } else { super::human_us(us.round() as u64) }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::telemetry::Latency;

    /// Pairs of runs that were checked in each simulation.
    const PAIRS: usize = 10;

    /// A run whose figures are `factor` times the usual, with noise of its own and of its minute of 10 %.
    fn run(rng: &mut StdRng, minute: f64, factor: f64, noise: f64) -> RunResult {
        let mut result = RunResult { scenario: "t".to_owned(), ..RunResult::default() };
        let mut noisy = |usual: f64| usual * factor * (minute * 0.1 + stats::tests::normal(rng) * noise).exp();
        for path in ["delivery", "ack"] {
            let mut latency = Latency::default();
            latency.record_many_us(noisy(2_000.0) as u64, 980);
            latency.record_many_us(noisy(9_000.0) as u64, 20);
            result.histograms.insert(path.to_owned(), latency);
        }
        result.generator.stack_cpu_s = noisy(10.0);
        result.generator.cpu_s = 20.0 * (minute * 0.1 + stats::tests::normal(rng) * noise).exp();
        result.counts.delivered = 1_000_000;
        result
    }

    /// What `chatctl check` does, with runs that are noisy by a share: twice as many pairs where the first leave it open.
    fn checked_at(seed: u64, factor: f64, noise: f64) -> Comparison {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut base, mut new) = (Vec::new(), Vec::new());
        let rules = Rules { looks: 2, ..Rules::default() };
        loop {
            for _ in 0..PAIRS {
                let minute = stats::tests::normal(&mut rng);
                base.push(run(&mut rng, minute, 1.0, noise));
                new.push(run(&mut rng, minute, factor, noise));
            }
            let compared = compare(&Sides { base: &base, new: &new, are_interleaved: true, noise: &[] }, rules);
            if !compared.is_open || base.len() > PAIRS {
                return compared;
            }
        }
    }

    /// The same on a quiet machine.
    fn checked(seed: u64, factor: f64) -> Comparison {
        checked_at(seed, factor, 0.04)
    }

    #[test]
    fn a_build_against_itself_raises_at_most_one_alarm_in_a_hundred() {
        let alarms = (0..300).filter(|seed| checked(*seed, 1.0).answer == Answer::Worse).count();
        assert!(alarms <= 3, "{alarms} false alarms in 300");
        let same = (0..100).filter(|seed| checked(*seed, 1.0).answer == Answer::Same).count();
        assert!(same >= 95, "{same} of 100 are told to be the same");
        let alarms = (1_000..2_500).filter(|seed| checked_at(*seed, 1.0, 0.08).answer == Answer::Worse).count();
        assert!(alarms <= 15, "{alarms} false alarms in 1,500 on a noisy machine");
    }

    #[test]
    fn ten_percent_are_called_worse_on_a_noisy_machine_too() {
        let worse = (0..100).filter(|seed| checked_at(*seed, 1.1, 0.08).answer == Answer::Worse).count();
        assert!(worse >= 95, "{worse} of 100");
    }

    #[test]
    fn a_rise_that_two_runs_make_is_not_called_worse_and_is_told() {
        let mut rng = StdRng::seed_from_u64(4);
        let base: Vec<RunResult> = (0..PAIRS).map(|_| run(&mut rng, 0.0, 1.0, 0.02)).collect();
        let new: Vec<RunResult> = (0..PAIRS).map(|n| run(&mut rng, 0.0, if n < 2 { 6.0 } else { 1.0 }, 0.02)).collect();
        let compared = compare(
            &Sides { base: &base, new: &new, are_interleaved: true, noise: &[] },
            Rules { looks: 2, ..Rules::default() },
        );
        assert_eq!((compared.answer, compared.is_open), (Answer::Same, true));
        assert!(compared.notes.iter().any(|note| note.starts_with("delivery p99: some runs")), "{:?}", compared.notes);
    }

    /// Pairs in which the machine's speed differs by `speed` from run to run, for stack and generator alike.
    fn on_an_unsteady_machine(stack: f64, generator: f64, speed: f64) -> Comparison {
        let mut rng = StdRng::seed_from_u64(8);
        let mut side = |stack: f64, generator: f64| -> Vec<RunResult> {
            let one = |_| {
                let mut result = run(&mut rng, 0.0, 1.0, 0.02);
                let speed = (stats::tests::normal(&mut rng) * speed).exp();
                result.generator.stack_cpu_s *= stack * speed;
                result.generator.cpu_s *= generator * speed;
                result
            };
            (0..2 * PAIRS).map(one).collect()
        };
        let (base, new) = (side(1.0, 1.0), side(stack, generator));
        let sides = Sides { base: &base, new: &new, are_interleaved: true, noise: &[] };
        compare(&sides, Rules { looks: 2, ..Rules::default() })
    }

    #[test]
    fn the_speed_of_the_machine_is_told_from_the_stack_by_the_generator() {
        let cpu = |compared: &Comparison| compared.findings.iter().find(|f| f.figure == Figure::StackCpu).cloned();
        let is_held = |compared: &Comparison| compared.notes.iter().any(|note| note == HELD_AGAINST_GENERATOR);
        let slower = on_an_unsteady_machine(1.1, 1.0, 0.1);
        assert!(is_held(&slower) && cpu(&slower).is_some_and(|f| f.answer == Answer::Worse), "{slower:?}");
        assert_eq!(on_an_unsteady_machine(1.0, 1.0, 0.1).answer, Answer::Same);
        // A generator that became slower itself hides nothing.
        let both = on_an_unsteady_machine(1.2, 1.2, 0.02);
        assert!(!is_held(&both) && cpu(&both).is_some_and(|f| f.answer == Answer::Worse), "{both:?}");
    }

    #[test]
    fn ten_percent_are_called_worse_and_better_from_ten_pairs_on() {
        let worse = (0..100).filter(|seed| checked(*seed, 1.1).answer == Answer::Worse).count();
        assert!(worse >= 95, "{worse} of 100");
        let better = (0..100).filter(|seed| checked(*seed, 0.9).answer == Answer::Better).count();
        assert!(better >= 95, "{better} of 100");
    }

    #[test]
    fn a_change_below_the_minimum_is_hardly_ever_called_worse() {
        let alarms = (0..100).filter(|seed| checked(*seed, 1.01).answer == Answer::Worse).count();
        assert!(alarms <= 3, "{alarms} of 100");
    }

    #[test]
    fn one_run_of_each_is_enough_only_for_what_is_far_off() {
        let mut rng = StdRng::seed_from_u64(9);
        let mut one = |factor| vec![run(&mut rng, 0.0, factor, 0.04)];
        let (base, near, far) = (one(1.0), one(1.4), one(3.0));
        let answer = |new: &[RunResult]| {
            compare(&Sides { base: &base, new, are_interleaved: false, noise: &[] }, Rules::default())
        };
        assert_eq!(answer(&near).answer, Answer::NotEnoughData);
        let far = answer(&far);
        assert_eq!(far.answer, Answer::Worse);
        assert!(far.notes.iter().any(|note| note.contains("one run")), "{:?}", far.notes);
    }

    #[test]
    fn nothing_measured_is_not_the_same() {
        let empty = [RunResult::default()];
        let compared =
            compare(&Sides { base: &empty, new: &empty, are_interleaved: false, noise: &[] }, Rules::default());
        assert_eq!((compared.answer, compared.findings.len()), (Answer::NotEnoughData, 0));
    }

    #[test]
    fn every_form_names_the_answer_and_each_figure() {
        let compared = checked(1, 1.3);
        for form in [text(&compared), markdown(&compared), junit(&compared)] {
            for wanted in ["worse", "delivery p99", "stack CPU per delivery"] {
                assert!(form.to_lowercase().contains(&wanted.to_lowercase()), "lacks {wanted}:\n{form}");
            }
        }
        assert!(junit(&compared).contains("<failure"));
        assert!(!junit(&checked(1, 1.0)).contains("<failure"));
    }
}
