//! Simulated checks: what `chatctl check` answers for a build against itself, and for slower ones, on machines of different noise.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::stats::tests::normal;
use super::*;
use crate::loadgen::result::{Counts, Verdict};
use crate::telemetry::{Latency, LatencyPath, PathName};

/// Pairs at each look: `chatctl check` by default.
const LOOKS: [usize; 3] = [10, 20, 40];

/// A machine: noise of one run beyond that of its minute, as a share, for a median. A 95th percentile has half as much again, a
/// 99th three times as much, and in one run of twenty three times its usual value; processor time has what the speed of the
/// machine has in that run, for stack and generator alike, and a little of its own.
#[derive(Clone, Copy)]
pub(super) struct Machine {
    pub(super) noise: f64,
}

const QUIET: Machine = Machine { noise: 0.03 };
const USUAL: Machine = Machine { noise: 0.05 };
const NOISY: Machine = Machine { noise: 0.10 };

/// A run of a build that is `factor` times as slow.
pub(super) fn run(rng: &mut StdRng, machine: Machine, minute: f64, factor: f64) -> RunResult {
    let mut result = RunResult { scenario: "t".to_owned(), ..RunResult::default() };
    // What a run's figures have in common, and what each has by itself.
    let common = normal(rng) * 0.7;
    let noisy = |rng: &mut StdRng, usual: f64, share: f64| {
        let own = common + normal(rng) * 0.7;
        usual * factor * (minute * 0.1 + own * machine.noise * share).exp()
    };
    for path in [LatencyPath::Delivery, LatencyPath::Ack] {
        let mut latency = Latency::default();
        let tail = if rng.random::<f64>() < 0.05 { 3.0 } else { 1.0 };
        latency.record_many_us(noisy(rng, 2_000.0, 1.0) as u64, 9_000);
        latency.record_many_us(noisy(rng, 5_000.0, 1.5) as u64, 850);
        latency.record_many_us((noisy(rng, 12_000.0, 3.0) * tail) as u64, 150);
        result.histograms.insert(path, latency);
    }
    let speed = (minute * 0.1 + normal(rng) * machine.noise).exp();
    result.generator.cpu_s = 20.0 * speed * (normal(rng) * 0.01).exp();
    result.generator.stack_cpu_s = 10.0 * factor * speed * (normal(rng) * 0.02).exp();
    result.counts = Counts { intended: 10_000, acked: 10_000, delivered: 490_000, clients: 300, ..Counts::default() };
    result
}

/// What is answered with so many pairs at the most.
fn checked(seed: u64, machine: Machine, factor: f64, pairs_max: usize) -> Comparison {
    checked_with(seed, machine, factor, pairs_max, |_, _| ())
}

fn checked_with(
    seed: u64,
    machine: Machine,
    factor: f64,
    pairs_max: usize,
    mut change: impl FnMut(&mut RunResult, usize),
) -> Comparison {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut base, mut new) = (Vec::new(), Vec::new());
    for (look, pairs) in LOOKS.into_iter().enumerate() {
        while base.len() < pairs {
            let minute = normal(&mut rng);
            base.push(run(&mut rng, machine, minute, 1.0));
            let mut result = run(&mut rng, machine, minute, factor);
            change(&mut result, new.len());
            new.push(result);
        }
        let rules = Rules { look: look as u32 + 1, ..Rules::default() };
        let compared = compare(&Sides { base: &base, new: &new, are_interleaved: true }, rules);
        if !compared.is_open || pairs >= pairs_max {
            return compared;
        }
    }
    unreachable!("the last look is an answer");
}

/// The share of each answer over many seeds.
fn shares(seeds: u64, machine: Machine, factor: f64, pairs_max: usize) -> BTreeMap<Answer, f64> {
    let mut shares = BTreeMap::new();
    for seed in 0..seeds {
        *shares.entry(checked(seed, machine, factor, pairs_max).answer).or_default() += 1.0 / seeds as f64;
    }
    shares
}

/// Good enough to pass: exit 0.
fn passing(shares: &BTreeMap<Answer, f64>) -> f64 {
    shares.range(..Answer::BaselineMade).map(|(_, share)| share).sum()
}

fn share(shares: &BTreeMap<Answer, f64>, answer: Answer) -> f64 {
    shares.get(&answer).copied().unwrap_or(0.0)
}

#[test]
fn a_build_against_itself_passes_and_is_hardly_ever_called_worse() {
    for (machine, least) in [(QUIET, 0.98), (USUAL, 0.9)] {
        let of = shares(80, machine, 1.0, 40);
        assert!(passing(&of) >= least, "{of:?} at {}", machine.noise);
        assert!(share(&of, Answer::Worse) <= 0.01, "{of:?}");
    }
    let of = shares(150, NOISY, 1.0, 20);
    assert!(share(&of, Answer::Worse) <= 0.01, "{of:?}");
}

#[test]
fn ten_percent_are_never_called_the_same_and_nearly_always_worse() {
    for (machine, least) in [(QUIET, 0.98), (USUAL, 0.9), (NOISY, 0.5)] {
        let of = shares(50, machine, 1.1, 40);
        assert!(passing(&of) < 0.005, "{of:?} at {}", machine.noise);
        assert!(share(&of, Answer::Worse) >= least, "{of:?} at {}", machine.noise);
    }
}

#[test]
fn a_rise_at_the_limit_passes_in_one_case_of_twenty_at_the_most() {
    for pairs in [10, 20] {
        let of = shares(100, USUAL, 1.05, pairs);
        assert!(passing(&of) <= 0.05, "{of:?} at {pairs} pairs");
    }
}

#[test]
fn ten_percent_less_are_called_better() {
    let of = shares(60, QUIET, 0.9, 40);
    assert!(share(&of, Answer::Better) >= 0.95, "{of:?}");
}

#[test]
fn a_real_rise_within_the_limit_is_called_slightly_worse() {
    let of = shares(60, Machine { noise: 0.01 }, 1.025, 40);
    assert!(share(&of, Answer::SlightlyWorse) >= 0.95, "{of:?}");
}

#[test]
#[ignore = "prints the table of docs/regressions.md: cargo test --release --lib compare::simulation::table -- --ignored --nocapture"]
#[expect(clippy::print_stdout, reason = "a table for a document")]
fn table() {
    const SEEDS: u64 = 1_000;
    let mut out = String::new();
    for (name, machine) in [("quiet, 3 %", QUIET), ("usual, 5 %", USUAL), ("noisy, 10 %", NOISY)] {
        for pairs in LOOKS {
            for factor in [1.0, 1.05, 1.1, 1.2] {
                let of = shares(SEEDS, machine, factor, pairs);
                let percent = |share: f64| format!("{:.1} %", (share * 100.0).max(0.0));
                let slightly = share(&of, Answer::SlightlyWorse);
                let _ = writeln!(
                    out,
                    "| {name} | {pairs} | {:+.0} % | {} | {} | {} | {} |",
                    (factor - 1.0) * 100.0,
                    percent(passing(&of) - slightly),
                    percent(slightly),
                    percent(share(&of, Answer::NotEnoughData)),
                    percent(share(&of, Answer::Worse))
                );
            }
        }
    }
    println!("| noise of a run | pairs | slower by | same, better | slightly worse | not enough data | worse |\n{out}");
}

/// The finding of a name.
pub(super) fn finding<'a>(compared: &'a Comparison, name: &str) -> &'a Finding {
    compared.findings.iter().find(|f| f.name == name).unwrap_or_else(|| panic!("{name}: {compared:?}"))
}

#[test]
fn the_speed_of_the_machine_is_told_from_the_stack_by_the_generator() {
    let is_held = |compared: &Comparison| compared.notes.iter().any(|note| note == HELD_AGAINST_GENERATOR);
    let slower = checked_with(8, NOISY, 1.0, 20, |r, _| r.generator.stack_cpu_s *= 1.1);
    assert!(is_held(&slower) && finding(&slower, "stack CPU per delivery").answer == Answer::Worse, "{slower:?}");
    // A generator that became slower itself hides nothing.
    let both = checked_with(8, USUAL, 1.0, 20, |r, _| {
        r.generator.stack_cpu_s *= 1.2;
        r.generator.cpu_s *= 1.2;
    });
    assert!(!is_held(&both) && finding(&both, "stack CPU per delivery").answer == Answer::Worse, "{both:?}");
}

#[test]
fn two_runs_that_are_far_off_make_neither_worse_nor_the_same() {
    let two = |r: &mut RunResult, n: usize| {
        if n < 2 {
            let mut latency = Latency::default();
            latency.record_many_us(2_000, 9_800);
            latency.record_many_us(80_000, 200);
            r.histograms.insert(LatencyPath::Delivery, latency);
        }
    };
    let compared = checked_with(4, QUIET, 1.0, 10, two);
    assert_eq!((compared.answer, compared.is_open), (Answer::NotEnoughData, true), "{compared:?}");
    let settled = checked_with(4, QUIET, 1.0, 40, two);
    assert!(settled.answer < Answer::BaselineMade, "two of forty are no regression: {settled:?}");
}

#[test]
fn one_run_of_a_side_is_enough_for_nothing_and_two_for_what_is_far_off() {
    let mut rng = StdRng::seed_from_u64(9);
    let mut runs =
        |count: usize, factor| -> Vec<RunResult> { (0..count).map(|_| run(&mut rng, USUAL, 0.0, factor)).collect() };
    let (base, near, far, fast) = (runs(2, 1.0), runs(2, 1.4), runs(2, 6.0), runs(2, 0.1));
    let answer =
        |base: &[RunResult], new: &[RunResult]| compare(&Sides { base, new, are_interleaved: false }, Rules::default());
    for new in [&base, &near, &far, &fast] {
        for (base, new) in [(&base[..1], &new[..1]), (&base[..], &new[..1]), (&base[..1], &new[..])] {
            let one = answer(base, new);
            assert_eq!(one.answer, Answer::NotEnoughData, "{one:?}");
            assert!(one.findings.iter().all(|f| f.answer == Answer::NotEnoughData), "{one:?}");
            let forms = [text(&one), markdown(&one), junit(&one)];
            assert!(forms.iter().all(|form| form.contains("compare 7 of each side, or more")), "{forms:?}");
            assert!(forms[2].contains("<error") && !forms[2].contains("<failure"), "{}", forms[2]);
        }
    }
    let many = runs(20, 1.0);
    for (base, new) in [(&base[..1], &many[..]), (&many[..], &base[..1]), (&many[..], &far[..1])] {
        let one = answer(base, new);
        assert_eq!(one.answer, Answer::NotEnoughData, "{one:?}");
        assert!(one.findings.iter().all(|f| f.answer == Answer::NotEnoughData && f.interval.is_none()), "{one:?}");
    }
    assert_eq!(answer(&base, &near).answer, Answer::NotEnoughData);
    assert_eq!(answer(&base, &far).answer, Answer::Worse);
    // A run's own verdict needs no second one.
    let failed = RunResult { verdict: Verdict::ThresholdFailed, ..base[0].clone() };
    assert_eq!(answer(&base[..1], &[failed]).answer, Answer::Failed);
}

#[test]
fn what_is_open_says_how_many_runs_would_settle_it() {
    let mut rng = StdRng::seed_from_u64(4);
    let mut runs =
        |count: usize, machine| -> Vec<RunResult> { (0..count).map(|_| run(&mut rng, machine, 0.0, 1.0)).collect() };
    for (pairs, machine) in [(2, USUAL), (4, USUAL), (10, NOISY)] {
        let (base, new) = (runs(pairs, machine), runs(pairs, machine));
        let open = compare(&Sides { base: &base, new: &new, are_interleaved: true }, Rules::default());
        assert_eq!(open.answer, Answer::NotEnoughData);
        let wanted = format!("runs of each side would settle what is open, at the noise of these {pairs}");
        for form in [text(&open), markdown(&open), junit(&open)] {
            let told = form.lines().find_map(|line| line.split_once(&wanted)).unwrap_or_else(|| panic!("{form}"));
            let number = told.0.split_once("about ").and_then(|(_, rest)| rest.trim().parse::<usize>().ok());
            assert!(number.is_some_and(|number| number >= 5 && number > pairs), "{form}");
        }
    }
    // Every second run takes a thousand times as long.
    let torn = |r: &mut RunResult, n: usize| {
        let mut latency = Latency::default();
        latency.record_many_us(if n.is_multiple_of(2) { 1_000 } else { 1_000_000 }, 10_000);
        r.histograms.insert(LatencyPath::Ack, latency);
    };
    let beyond = checked_with(4, QUIET, 1.0, 10, torn);
    assert_eq!(beyond.answer, Answer::NotEnoughData, "{beyond:?}");
    assert!(
        text(&beyond).contains("not even 10 000 runs of each side settle ack p50, ack p95, ack p99: use"),
        "{beyond:?}"
    );
}

#[test]
fn an_own_stack_beside_a_running_one_is_noted() {
    let run = |has_own_stack| RunResult { has_own_stack, ..RunResult::default() };
    let notes = |base: &[RunResult], new: &[RunResult]| {
        compare(&Sides { base, new, are_interleaved: false }, Rules::default()).notes.join("\n")
    };
    let (own, running, unknown) = (run(Some(true)), run(Some(false)), run(None));
    let one = std::slice::from_ref::<RunResult>;
    let noted = notes(one(&own), one(&running));
    assert!(noted.contains("base ran on a stack of its own, new against a running stack (--target)"), "{noted}");
    assert!(notes(one(&running), &[own.clone(), own.clone()]).contains("the stacks differ"));
    assert!(notes(&[own.clone(), running.clone()], &[own.clone(), running.clone()]).contains("the stacks differ"));
    for same in [&own, &running, &unknown] {
        assert!(!notes(one(same), one(same)).contains("the stacks differ"));
    }
    assert!(!notes(one(&own), one(&unknown)).contains("the stacks differ"), "older results do not say");
}

#[test]
fn refused_messages_are_worse_in_ten_pairs_and_in_two_but_not_in_one() {
    let refuse = |r: &mut RunResult, _| {
        (r.counts.refused, r.counts.acked) = (2_000, 8_000);
        r.errors.insert("refused".to_owned(), 2_000);
    };
    let compared = checked_with(1, USUAL, 1.0, 40, refuse);
    assert_eq!(compared.answer, Answer::Worse);
    for name in ["refused per message", "unacknowledged per message", "errors per message and device"] {
        assert_eq!(finding(&compared, name).answer, Answer::Worse, "{name}");
    }
    let mut rng = StdRng::seed_from_u64(3);
    let base = vec![run(&mut rng, USUAL, 0.0, 1.0); 2];
    let mut new = base.clone();
    let answer = |new: &[RunResult]| {
        let base = &base[..new.len()];
        let compared = compare(&Sides { base, new, are_interleaved: false }, Rules::default());
        finding(&compared, "refused per message").answer
    };
    refuse(&mut new[0], 0);
    assert_eq!(answer(&new[..1]), Answer::NotEnoughData, "one burst is one event");
    assert_eq!(answer(&new), Answer::NotEnoughData, "in one of two runs, too");
    refuse(&mut new[1], 1);
    assert_eq!(answer(&new), Answer::Worse);
}

#[test]
fn a_few_events_are_told_by_what_they_can_show() {
    // Three reconnects in all: within the limit. One run with a hundred: not known. A third more, always: worse.
    let few = checked_with(1, QUIET, 1.0, 20, |r, n| r.counts.reconnects = u64::from(n % 4 == 0));
    assert!(few.answer < Answer::BaselineMade, "{few:?}");
    assert_eq!(finding(&few, "reconnects per device").answer, Answer::Same);
    let burst = checked_with(1, QUIET, 1.0, 10, |r, n| r.counts.refused = if n == 3 { 900 } else { 0 });
    assert_eq!(finding(&burst, "refused per message").answer, Answer::NotEnoughData, "one burst is one event");
    let mut rng = StdRng::seed_from_u64(5);
    let mut side = |reconnects: f64| -> Vec<RunResult> {
        let one = |_| {
            let mut result = run(&mut rng, QUIET, 0.0, 1.0);
            result.counts.reconnects = (reconnects * (1.0 + 0.05 * normal(&mut rng))) as u64;
            result
        };
        (0..20).map(one).collect()
    };
    let (base, more, same) = (side(300.0), side(400.0), side(300.0));
    let of = |new: &[RunResult]| compare(&Sides { base: &base, new, are_interleaved: true }, Rules::default());
    assert_eq!(finding(&of(&more), "reconnects per device").answer, Answer::Worse);
    assert!(finding(&of(&same), "reconnects per device").answer < Answer::BaselineMade);
}

#[test]
fn what_one_side_has_and_the_other_has_not_is_not_the_same() {
    let gone = checked_with(1, QUIET, 1.0, 10, |r, _| {
        r.histograms.remove(LatencyPath::Delivery);
        r.counts.delivered = 0;
    });
    assert_eq!(gone.answer, Answer::Worse, "nothing is delivered any more: {gone:?}");
    let mut rng = StdRng::seed_from_u64(2);
    let mut side = |path: Option<LatencyPath>| -> Vec<RunResult> {
        let one = |_| {
            let mut result = run(&mut rng, QUIET, 0.0, 1.0);
            if let Some(path) = path {
                let mut latency = Latency::default();
                latency.record_many_us(4_000, 300);
                result.histograms.insert(path, latency);
            }
            result
        };
        (0..20).map(one).collect()
    };
    let (with, without) = (side(Some(LatencyPath::PresenceOnline)), side(None));
    for (base, new) in [(&with, &without), (&without, &with)] {
        let compared = compare(&Sides { base, new, are_interleaved: true }, Rules::default());
        assert_eq!(compared.answer, Answer::NotEnoughData, "{compared:?}");
        assert!(compared.notes.iter().any(|note| note.starts_with("presence online p50: measured in")));
    }
    let nothing = [RunResult::default()];
    let compared = compare(&Sides { base: &nothing, new: &nothing, are_interleaved: false }, Rules::default());
    assert_eq!((compared.answer, compared.findings.len()), (Answer::NotEnoughData, 0));
}

#[test]
fn a_run_that_is_no_pass_is_never_the_same() {
    let answer = |verdict, base: bool| {
        let mut rng = StdRng::seed_from_u64(2);
        let mut side = |is_bad: bool| -> Vec<RunResult> {
            let one = |n| RunResult {
                verdict: if is_bad && n == 7 { verdict } else { Verdict::Pass },
                ..run(&mut rng, Machine { noise: 0.01 }, 0.0, 1.0)
            };
            (0..20).map(one).collect()
        };
        let (base, new) = (side(base), side(!base));
        compare(&Sides { base: &base, new: &new, are_interleaved: true }, Rules::default())
    };
    for (verdict, of_new, of_base) in [
        (Verdict::Pass, Answer::Same, Answer::Same),
        (Verdict::LedgerViolated, Answer::Violated, Answer::UnsoundBaseline),
        (Verdict::ThresholdFailed, Answer::Failed, Answer::Same),
        (Verdict::Invalid, Answer::Invalid, Answer::UnsoundBaseline),
        (Verdict::Interrupted, Answer::Invalid, Answer::UnsoundBaseline),
    ] {
        let (new, base) = (answer(verdict, false), answer(verdict, true));
        let as_base = if base.answer < Answer::BaselineMade { Answer::Same } else { base.answer };
        let as_new = if new.answer < Answer::BaselineMade { Answer::Same } else { new.answer };
        assert_eq!((as_new, as_base), (of_new, of_base), "{verdict:?}");
        if verdict != Verdict::Pass {
            let forms = [text(&new), markdown(&new), junit(&new)];
            assert!(forms.iter().all(|form| form.contains("un 8 of new")), "{forms:?}");
            assert!(!new.is_open, "more runs change nothing");
        }
        let is_failure = matches!(of_new, Answer::Violated | Answer::Failed);
        assert_eq!(junit(&new).contains("<failure"), is_failure, "{}", junit(&new));
        assert_eq!(junit(&new).contains("<error"), of_new == Answer::Invalid);
        assert_eq!(junit(&base).contains("<error"), of_base == Answer::UnsoundBaseline);
    }
}

#[test]
fn not_enough_data_is_another_red_than_a_regression() {
    let (open, worse) = (checked(1, NOISY, 1.0, 10), checked(1, QUIET, 1.3, 10));
    assert_eq!((open.answer, worse.answer), (Answer::NotEnoughData, Answer::Worse), "{open:?}");
    let (open, worse) = ((junit(&open), markdown(&open)), (junit(&worse), markdown(&worse)));
    assert!(open.0.contains("<error") && !open.0.contains("<failure"), "{}", open.0);
    assert!(worse.0.contains("<failure message=\"worse: "), "{}", worse.0);
    assert!(open.1.contains("no regression that was found") && worse.1.contains("**A regression**"));
}

#[test]
fn a_baseline_that_was_made_is_skipped_and_says_so() {
    let mut rng = StdRng::seed_from_u64(2);
    let mut runs: Vec<RunResult> = (0..10).map(|_| run(&mut rng, QUIET, 0.0, 1.0)).collect();
    let made = Comparison::of_baseline(&runs, Rules::default());
    assert_eq!(made.answer, Answer::BaselineMade);
    let xml = junit(&made);
    assert_eq!(xml.matches("<testcase").count(), xml.matches("<skipped").count(), "{xml}");
    assert!(markdown(&made).contains("**nothing was compared**"));
    assert!(text(&made).contains("answer     baseline made, nothing compared"));
    runs[3].counts.lost = 2;
    assert_eq!(Comparison::of_baseline(&runs, Rules::default()).answer, Answer::Violated);
}

#[test]
fn every_form_names_the_answer_and_each_figure() {
    let compared = checked(1, QUIET, 1.3, 10);
    for form in [text(&compared), markdown(&compared), junit(&compared)] {
        for wanted in ["worse", "delivery p99", "delivery p95", "stack CPU per delivery", "deliveries per message"] {
            assert!(form.to_lowercase().contains(&wanted.to_lowercase()), "lacks {wanted}:\n{form}");
        }
    }
}

/// Values that a result from elsewhere may hold.
fn odd(rng: &mut StdRng) -> (f64, u64) {
    let floats = [0.0, -1.0, 1e300, -1e300, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MIN_POSITIVE, 1e-9, 10.0];
    let counts = [0, 1, 2, 1_000, u64::MAX, u64::MAX / 2, u64::MAX - 1, 1 << 53];
    (floats[rng.random_range(0..floats.len())], counts[rng.random_range(0..counts.len())])
}

#[test]
fn odd_results_are_compared_without_a_panic() {
    let mut rng = StdRng::seed_from_u64(77);
    for _ in 0..100 {
        let mut side = |runs: usize| -> Vec<RunResult> {
            let one = |_| {
                let mut result = RunResult { scenario: "a\u{1b}]0;x\u{7}|<b>\u{0}".to_owned(), ..RunResult::default() };
                result.duration_s = odd(&mut rng).0;
                (result.generator.cpu_s, result.generator.stack_cpu_s) = (odd(&mut rng).0, odd(&mut rng).0);
                let counts = [
                    &mut result.counts.intended,
                    &mut result.counts.acked,
                    &mut result.counts.delivered,
                    &mut result.counts.clients,
                    &mut result.counts.refused,
                    &mut result.counts.reconnects,
                    &mut result.counts.unaudited,
                    &mut result.counts.audited,
                ];
                for count in counts {
                    *count = odd(&mut rng).1;
                }
                result.errors = [("x".to_owned(), odd(&mut rng).1), ("y".to_owned(), odd(&mut rng).1)].into();
                for path in ["delivery", "ack", "connect", "nonsense"].map(PathName::parse) {
                    let mut latency = Latency::default();
                    if rng.random() {
                        latency.record_many_us(odd(&mut rng).1, odd(&mut rng).1 % 1_000_000);
                    }
                    result.histograms.insert(path, latency);
                }
                result
            };
            (0..runs).map(one).collect()
        };
        let (base, new) = (side(1), side(12));
        for (base, new, are_interleaved) in
            [(&base, &base, true), (&base, &new, false), (&new, &new, true), (&new, &base, true)]
        {
            let compared = compare(&Sides { base, new, are_interleaved }, Rules::default());
            let forms = text(&compared) + &markdown(&compared) + &junit(&compared);
            let is_clean = |c: char| !c.is_control() || c == '\n';
            assert!(forms.chars().all(is_clean) && forms.len() < 60_000, "{forms}");
            serde_json::to_string(&compared).expect("plain numbers");
        }
    }
}
