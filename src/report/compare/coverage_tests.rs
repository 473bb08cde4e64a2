//! What is answered where only some of the runs have a figure or a rate.

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::simulation::{Machine, finding, run};
use super::*;
use crate::loadgen::result::Counts;
use crate::telemetry::{Latency, LatencyPath};

/// Ten runs of each side whose pushes are changed, new ones by their index.
fn pushed(change: impl Fn(&mut Counts, usize)) -> Comparison {
    checked_with_base(
        |r| (r.counts.push_expected, r.counts.pushed) = (1_000, 1_000),
        |r, n| {
            (r.counts.push_expected, r.counts.pushed) = (1_000, 1_000);
            change(&mut r.counts, n);
        },
    )
}

fn checked_with_base(base_change: impl Fn(&mut RunResult), new_change: impl Fn(&mut RunResult, usize)) -> Comparison {
    let mut rng = StdRng::seed_from_u64(1);
    let quiet = Machine { noise: 0.005 };
    let mut side = |change: &dyn Fn(&mut RunResult, usize)| -> Vec<RunResult> {
        let one = |n| {
            let mut result = run(&mut rng, quiet, 0.0, 1.0);
            change(&mut result, n);
            result
        };
        (0..10).map(one).collect()
    };
    let (base, new) = (side(&|r, _| base_change(r)), side(&new_change));
    compare(&Sides { base: &base, new: &new, are_interleaved: true }, Rules::default())
}

#[test]
fn a_rate_that_runs_of_one_side_lack_is_listed_and_not_the_same() {
    const NAME: &str = "not pushed per delivery";
    assert!(pushed(|_, _| ()).answer < Answer::BaselineMade);
    let one_without = pushed(|c, n| {
        c.pushed = 900;
        if n == 4 {
            (c.push_expected, c.pushed) = (0, 0);
        }
    });
    let found = finding(&one_without, NAME);
    assert!((found.new.expect("some have it") - 0.1).abs() < 1e-9, "over the runs that have it: {found:?}");
    assert!(found.answer >= Answer::NotEnoughData && one_without.answer >= Answer::NotEnoughData, "{one_without:?}");
    let without_a_rise = pushed(|c, n| {
        if n == 4 {
            (c.push_expected, c.pushed) = (0, 0);
        }
    });
    let all_without = pushed(|c, _| (c.push_expected, c.pushed) = (0, 0));
    for (compared, in_new) in [(without_a_rise, 9), (all_without, 0)] {
        let found = finding(&compared, NAME);
        assert_eq!((found.answer, found.weight), (Answer::NotEnoughData, Weight::Gate), "{compared:?}");
        assert_eq!(compared.answer, Answer::NotEnoughData);
        let note = format!("{NAME}: measured in 10 runs of base and in {in_new} of new");
        assert!(compared.notes.contains(&note), "{:?}", compared.notes);
    }
}

#[test]
fn of_a_rate_that_one_run_has_no_number_of_runs_is_said_not_to_be_enough() {
    let one_has_it = pushed(|c, n| (c.push_expected, c.pushed) = if n == 4 { (1_000, 990) } else { (0, 0) });
    let found = finding(&one_has_it, "not pushed per delivery");
    assert!(found.change.is_some() && found.answer == Answer::NotEnoughData, "{found:?}");
    let notes = one_has_it.notes.join("\n");
    assert!(notes.contains("in 1 of new") && !notes.contains("not even"), "{notes}");
}

#[test]
fn where_only_watched_figures_are_measured_they_decide() {
    let idle = |us: u64, count: u64| {
        let mut result = RunResult { scenario: "idle".to_owned(), ..RunResult::default() };
        let mut connect = Latency::default();
        connect.record_many_us(us, count);
        result.histograms.insert(LatencyPath::Connect, connect);
        result.counts.clients = 300;
        result
    };
    let (base, slower) = (vec![idle(10_000, 300); 3], vec![idle(19_000, 300); 3]);
    let compared = compare(&Sides { base: &base, new: &slower, are_interleaved: false }, Rules::default());
    assert_eq!((compared.answer, compared.is_open), (Answer::NotEnoughData, true), "{compared:?}");
    assert_eq!(finding(&compared, "connect p50").weight, Weight::Gate);
    let many: Vec<RunResult> = (0..20).map(|n| idle(10_000 + n, 300)).collect();
    let same = compare(&Sides { base: &many, new: &many, are_interleaved: true }, Rules::default());
    assert!(same.answer < Answer::BaselineMade, "{same:?}");
    // Nothing but what too few runs have, and that stays watched.
    let mut rare = many.clone();
    rare.iter_mut().skip(3).for_each(|r| r.histograms.clear());
    let nothing = compare(&Sides { base: &many, new: &rare, are_interleaved: true }, Rules::default());
    assert_eq!(nothing.answer, Answer::NotEnoughData, "{nothing:?}");
}

#[test]
fn too_few_samples_are_no_loss_and_a_rare_figure_decides_nothing() {
    let acks = |count| {
        move |r: &mut RunResult| {
            let mut ack = Latency::default();
            ack.record_many_us(2_000, count);
            r.histograms.insert(LatencyPath::Ack, ack);
        }
    };
    let fewer = checked_with_base(acks(100), |r, _| acks(99)(r));
    assert_eq!(finding(&fewer, "ack p99").answer, Answer::NotEnoughData, "{fewer:?}");
    assert_eq!(fewer.answer, Answer::NotEnoughData);
    let cpu_unknown = checked_with_base(|_| (), |r, _| r.generator.stack_cpu_s = 0.0);
    let cpu = finding(&cpu_unknown, "stack CPU per delivery");
    assert_eq!((cpu.answer, cpu.limit, cpu.new), (Answer::NotEnoughData, 0.05, None), "{cpu:?}");
    assert!(cpu.base.is_some(), "what one side has is shown: {cpu:?}");
    let gone = checked_with_base(acks(100), |r, _| drop(r.histograms.remove(LatencyPath::Ack)));
    assert_eq!(finding(&gone, "ack p99").answer, Answer::Worse);
    let rare = checked_with_base(
        |_| (),
        |r, n| {
            if n == 0 {
                let mut sync = Latency::default();
                sync.record_many_us(2_000, 2);
                r.histograms.insert(LatencyPath::Sync, sync);
            }
        },
    );
    assert_eq!(finding(&rare, "sync p50").weight, Weight::Watch);
    assert!(rare.answer < Answer::BaselineMade, "{rare:?}");
}
