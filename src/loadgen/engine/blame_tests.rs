use super::*;
use crate::loadgen::result::WorkerRecord;
use crate::telemetry::{ByPath, Latency, LatencyPath};

/// One second of a run: what each of its 100 messages took, the lag that is in that, and the machine.
#[derive(Clone, Copy)]
struct Second {
    ack_us: u64,
    lag_us: u64,
    machine: MachineLoad,
}

const QUIET: MachineLoad =
    MachineLoad { cores: 2.0, used_cores: 0.4, foreign_cores: Some(0.02), steal_cores: 0.0, pressure: None };
const TWO_BUSY_LOOPS: MachineLoad =
    MachineLoad { cores: 2.0, used_cores: 2.0, foreign_cores: Some(1.8), steal_cores: 0.0, pressure: Some(1.0) };

const fn second(ack_us: u64, lag_us: u64) -> Second {
    Second { ack_us, lag_us, machine: QUIET }
}

fn scenario(thresholds: &str) -> Scenario {
    let text = format!(
        "{{name: t, behaviors: {{one-to-one: 1, group-talker: 1}}, \
         population: {{users: 200, direct_per_user: 1, groups: [{{count: 1, members: 10}}, {{count: 1, members: 150}}]}}, \
         phases: [{{phase: steady, duration: 100s, rate: 100}}], thresholds: [{thresholds}]}}"
    );
    Scenario::parse(&text, "t").expect("valid")
}

fn latencies(us: u64, count: u64) -> Latency {
    let mut latency = Latency::default();
    latency.record_many_us(us, count);
    latency
}

fn result(seconds: &[Second]) -> RunResult {
    let mut result = RunResult::default();
    let mut whole: ByPath<Latency> = ByPath::new();
    for (at, second) in seconds.iter().enumerate() {
        let Second { ack_us, lag_us, machine } = *second;
        let service_us = ack_us.saturating_sub(lag_us);
        let paths = [(LatencyPath::Ack, ack_us), (LatencyPath::AckService, service_us), (LatencyPath::SendLag, lag_us)];
        let row: ByPath<Latency> = paths.into_iter().map(|(path, us)| (path, latencies(us, 100))).collect();
        for (path, latency) in &row {
            whole.entry(path).or_default().merge(latency);
        }
        result.intervals.push((at + 1) as f64, Some(machine), &row);
    }
    result.latency = whole.iter().map(|(path, latency)| (path, latency.summary())).collect();
    result.generator.lag = result.latency[LatencyPath::SendLag];
    result.note_machine();
    result
}

fn blamed(thresholds: &str, seconds: &[Second]) -> Blame {
    of(&scenario(thresholds), &result(seconds))
}

#[test]
fn a_slow_server_on_a_quiet_machine_is_the_targets() {
    assert_eq!(blamed("'ack_ms.p99 < 50'", &[second(80_000, 60); 20]), Blame::default());
    assert_eq!(blamed("'ack_ms.p99 < 50'", &[second(10_000, 60); 20]), Blame::default());
}

#[test]
fn a_threshold_that_fails_by_the_lag_is_inconclusive() {
    let blame = blamed("'ack_ms.p99 < 50'", &[second(54_000, 5_000); 20]);
    assert_eq!(blame.undecided.len(), 1, "{blame:?}");
    let text = &blame.undecided[0];
    assert!(text.starts_with("ack_ms.p99 < 50 fails with 54.0 ms (from the first write 49.0 ms)"), "{text}");
    assert!(text.contains("5.0 ms"), "{text}");
}

#[test]
fn lag_that_does_not_decide_excuses_nothing() {
    let blame = blamed("'ack_ms.p99 < 50'", &[second(150_000, 20_000); 20]);
    assert_eq!(blame.undecided, [""; 0], "{blame:?}");
    assert_eq!(blame.warnings.len(), 1, "the seconds are named: {blame:?}");
}

#[test]
fn foreign_load_is_named_with_its_figure() {
    let slow = Second { machine: TWO_BUSY_LOOPS, ..second(808_000, 60_000) };
    let blame = blamed("'ack_ms.p99 < 50'", &[slow; 20]);
    assert_eq!(blame.undecided.len(), 1, "{blame:?}");
    assert!(blame.undecided[0].contains("in 20 of 20 seconds other programs used 1.80 of 2 cores"), "{blame:?}");
    let fast = Second { machine: TWO_BUSY_LOOPS, ..second(20_000, 60) };
    let blame = blamed("'ack_ms.p99 < 50'", &[fast; 20]);
    assert_eq!(blame.undecided, [""; 0], "what passes all the same passes");
    assert!(blame.warnings[0].contains("1.80 of 2 cores"), "{blame:?}");
}

#[test]
fn a_bad_second_is_named_and_what_is_left_is_judged() {
    let mut seconds = [second(10_000, 60); 20];
    seconds[11] = Second { machine: TWO_BUSY_LOOPS, ..second(900_000, 100) };
    let blame = blamed("'ack_ms.p99 < 50'", &seconds);
    assert_eq!(blame.undecided.len(), 1, "{blame:?}");
    assert!(blame.undecided[0].contains("only by second 12, in which other programs used 1.80"), "{blame:?}");
    // The same second on a server that is slow anyway.
    let mut seconds = [second(90_000, 60); 20];
    seconds[11].machine = TWO_BUSY_LOOPS;
    let blame = blamed("'ack_ms.p99 < 50'", &seconds);
    assert_eq!(blame.undecided, [""; 0]);
    assert!(blame.warnings.iter().any(|w| w.contains("fails without second 12 too")), "{blame:?}");
}

#[test]
fn a_second_in_which_the_generator_was_late_is_named() {
    let mut seconds = [second(10_000, 60); 40];
    seconds[29] = second(90_000, 70_000);
    let blame = blamed("'ack_ms.p99 < 50'", &seconds);
    assert!(blame.undecided.len() == 1 && blame.undecided[0].contains("at the same statistic"), "{blame:?}");
    let blame = blamed("'ack_ms.p50 < 50'", &seconds);
    assert_eq!(blame.undecided, [""; 0]);
    assert!(blame.warnings[0].starts_with("the generator was late in second 30: p99 up to 70"), "{blame:?}");
}

#[test]
fn lag_that_is_a_large_part_of_what_is_judged_is_a_warning() {
    let warned = |lag_us| blamed("'ack_ms.p99 < 50'", &[second(400, lag_us); 20]).warnings;
    assert_eq!(warned(70), [""; 0]);
    assert_eq!(warned(100), ["the generator's own lag, p50 100 µs, is 25 % of the p50 of ack, 400 µs"]);
    assert_eq!(blamed("'lost == 0'", &[second(400, 100); 20]).warnings, [""; 0], "nothing of it is judged");
}

#[test]
fn the_scenarios_own_limit_of_the_lag_stands() {
    let blame = blamed("'lost == 0'", &[second(300_000, 120_000); 20]);
    let late = "the generator was late: p99 120";
    assert!(blame.invalid[0].starts_with(late) && blame.invalid[0].ends_with("use more cores"), "{blame:?}");
    let slow = Second { machine: TWO_BUSY_LOOPS, ..second(300_000, 120_000) };
    let blame = blamed("'lost == 0'", &[slow; 20]);
    assert!(blame.invalid[0].ends_with("while other programs used 1.80 of 2 cores"), "{blame:?}");
    let mut result = result(&[second(400, 40); 20]);
    result.workers.push(WorkerRecord { name: "w".to_owned(), lag_us_p99: 200_000, ..WorkerRecord::default() });
    assert_eq!(of(&scenario(""), &result).invalid, ["worker w was late: p99 200.0 ms, limit 100 ms"]);
}

#[test]
fn other_machines_of_the_host_count_like_other_programs() {
    let stolen = MachineLoad { used_cores: 1.0, foreign_cores: Some(0.0), steal_cores: 1.0, ..QUIET };
    let blame = blamed("'ack_ms.p99 < 50'", &[Second { machine: stolen, ..second(200_000, 500) }; 20]);
    assert!(blame.undecided[0].contains("other machines of the host took 1.00 of 2 cores"), "{blame:?}");
}

#[test]
fn where_it_is_not_known_whose_load_it_is_nobody_else_is_blamed() {
    let unknown = MachineLoad { foreign_cores: None, ..TWO_BUSY_LOOPS };
    let blame = blamed("'ack_ms.p99 < 50'", &[Second { machine: unknown, ..second(200_000, 500) }; 20]);
    assert_eq!(blame.undecided, [""; 0]);
}

/// A run of so many seconds, each with so many samples of some paths.
fn run_of(seconds: usize, of: impl Fn(usize) -> Vec<(LatencyPath, u64, u64)>) -> RunResult {
    let mut result = RunResult::default();
    let mut whole: ByPath<Latency> = ByPath::new();
    for at in 0..seconds {
        let row: ByPath<Latency> = of(at).into_iter().map(|(path, us, count)| (path, latencies(us, count))).collect();
        for (path, latency) in &row {
            whole.entry(path).or_default().merge(latency);
        }
        result.intervals.push((at + 1) as f64, Some(QUIET), &row);
    }
    result.latency = whole.iter().map(|(path, latency)| (path, latency.summary())).collect();
    result
}

const MS: u64 = 1_000;

#[test]
fn calls_that_waited_for_the_generator_are_not_the_targets() {
    let judged = |sync_ms: u64, call_lag_ms: u64| {
        let paths = |at| match at {
            7 => vec![
                (LatencyPath::Sync, sync_ms * MS, 100),
                (LatencyPath::CallWait, call_lag_ms * MS, 100),
                (LatencyPath::CallLag, call_lag_ms * MS, 100),
            ],
            _ => vec![(LatencyPath::Sync, 5 * MS, 100), (LatencyPath::CallLag, 0, 100)],
        };
        of(&scenario("'sync_ms.p99 < 500'"), &run_of(20, paths))
    };
    let blame = judged(3_000, 2_900);
    let wanted =
        "only by second 8, in which API calls waited for the generator by up to p99 2.90 s; without them 5.0 ms";
    assert!(blame.undecided[0].contains(wanted) && blame.excused.len() == 1, "{blame:?}");
    let told = "API calls waited for one of the 128 that a generator makes at once, p99 2.90 s: the generator was at its own limit";
    assert!(blame.warnings[0].starts_with(told), "{blame:?}");
    assert_eq!(judged(3_000, 1_000).undecided, [""; 0], "two seconds were the target's");
    assert_eq!(judged(3_000, 10), Blame::default());
}

#[test]
fn calls_that_waited_for_calls_that_waited_for_the_target_excuse_nothing() {
    let paths = |_| {
        vec![
            (LatencyPath::Sync, 3_000 * MS, 100),
            (LatencyPath::CallWait, 2_900 * MS, 100),
            (LatencyPath::CallLag, 3 * MS, 100),
        ]
    };
    let blame = of(&scenario("'sync_ms.p99 < 500'"), &run_of(20, paths));
    assert!(blame.undecided.is_empty() && blame.warnings.len() == 1, "{blame:?}");
    let told =
        "p99 2.90 s: the target was slow to answer those before them, the generator's own lag in that is p99 3.0 ms";
    assert!(blame.warnings[0].contains(told), "{blame:?}");
}

#[test]
fn calls_that_waited_at_another_time_or_for_something_else_excuse_nothing() {
    // A rush of logins at the start, and syncs that are slow all the time.
    let paths = |at| match at {
        0 => vec![(LatencyPath::CallLag, 2_900 * MS, 5_000)],
        _ => vec![(LatencyPath::Sync, 3_000 * MS, 100), (LatencyPath::CallLag, 0, 100)],
    };
    let blame = of(&scenario("'sync_ms.p99 < 500'"), &run_of(20, paths));
    assert_eq!(blame.undecided, [""; 0], "{blame:?}");
    // Few calls waited among many connects, which made none.
    let paths = |_| vec![(LatencyPath::Connect, 900 * MS, 1_000), (LatencyPath::CallLag, 850 * MS, 5)];
    let blame = of(&scenario("'connect_ms.p50 < 500'"), &run_of(20, paths));
    assert_eq!(blame.undecided, [""; 0], "{blame:?}");
}

#[test]
fn a_call_that_waited_explains_what_ends_in_the_next_second() {
    let paths = |at| match at {
        4 => vec![(LatencyPath::CallLag, 900 * MS, 100)],
        5 => vec![(LatencyPath::Recovery, 2_000 * MS, 100)],
        _ => vec![(LatencyPath::Recovery, 20 * MS, 100), (LatencyPath::CallLag, 0, 100)],
    };
    let blame = of(&scenario("'recovery_ms.p99 < 500'"), &run_of(20, paths));
    assert!(blame.undecided.len() == 1 && blame.undecided[0].contains("only by second 6"), "{blame:?}");
}

#[test]
fn a_lag_explains_what_was_under_way_then_however_much_later_it_ends() {
    let judged = |limit: &str, lag_ms: u64, took_ms: u64| {
        let paths = |at| match at {
            3 => vec![(LatencyPath::CallLag, lag_ms * MS, 100)],
            8 => vec![(LatencyPath::Recovery, took_ms * MS, 100)],
            _ => vec![(LatencyPath::Recovery, 20 * MS, 100), (LatencyPath::CallLag, 0, 100)],
        };
        of(&scenario(limit), &run_of(30, paths)).undecided
    };
    // It ended in the ninth second, and began in the fourth.
    let undecided = judged("'recovery_ms.p99 < 500'", 1_700, 5_500);
    assert!(
        undecided.len() == 1 && undecided[0].contains("only by second 9, in which API calls waited"),
        "{undecided:?}"
    );
    assert!(undecided[0].contains("by up to p99 1.70 s"), "{undecided:?}");
    assert_eq!(judged("'recovery_ms.p99 < 500'", 1_500, 5_500), [""; 0], "a second of it was the target's");
    assert_eq!(judged("'recovery_ms.p99 < 500'", 1_700, 3_900), [""; 0], "it began after that");
    // Calls that waited in several seconds, few in each.
    let paths = |at| match at {
        2..=4 => vec![(LatencyPath::CallLag, 900 * MS, 40)],
        5 => vec![(LatencyPath::Sync, 3_500 * MS, 100)],
        6 => vec![(LatencyPath::Sync, 900 * MS, 1)],
        _ => vec![(LatencyPath::CallLag, 0, 100)],
    };
    let blame = of(&scenario("'sync_ms.p50 < 3000'"), &run_of(20, paths));
    assert_eq!(blame.undecided.len(), 1, "{blame:?}");
}

#[test]
fn others_on_the_machine_explain_no_more_than_their_time_of_what_was_under_way_then() {
    let judged = |took_ms: u64| {
        let paths = |at| vec![(LatencyPath::Recovery, if at == 8 { took_ms * MS } else { 20 * MS }, 100)];
        let mut result = RunResult::default();
        for at in 0..30 {
            let row: ByPath<Latency> = paths(at).into_iter().map(|(path, us, n)| (path, latencies(us, n))).collect();
            let machine = if (3..=5).contains(&at) { TWO_BUSY_LOOPS } else { QUIET };
            result.intervals.push(f64::from(at + 1), Some(machine), &row);
        }
        result.latency = ByPath::from([(LatencyPath::Recovery, latencies(took_ms * MS, 100).summary())]);
        of(&scenario("'recovery_ms.p99 < 3000'"), &result).undecided
    };
    let undecided = judged(5_500);
    assert!(undecided.len() == 1 && undecided[0].contains("in which other programs used 1.80"), "{undecided:?}");
    assert_eq!(judged(6_500), [""; 0], "it would have failed without them");
    assert_eq!(judged(3_200).len(), 1, "two seconds of it were theirs");
}

#[test]
fn a_message_that_was_sent_late_is_late_at_each_of_its_recipients() {
    let paths = |at| match at {
        3 => vec![(LatencyPath::DeliveryGroup, 900 * MS, 10_000), (LatencyPath::SendLag, 850 * MS, 100)],
        _ => vec![(LatencyPath::DeliveryGroup, 5 * MS, 10_000), (LatencyPath::SendLag, 60, 1_000)],
    };
    let blame = of(&scenario("'delivery_group_ms.p99 < 500'"), &run_of(40, paths));
    assert!(blame.undecided.len() == 1 && blame.undecided[0].contains("only by second 4"), "{blame:?}");
}

#[test]
fn a_delivery_of_a_channel_has_the_lag_of_its_own_fetch() {
    let judged = |thresholds: &str, fetch_lag_ms: u64| {
        let paths = |_| {
            vec![
                (LatencyPath::DeliveryChannel, 900 * MS, 100),
                (LatencyPath::Delivery, 900 * MS, 100),
                (LatencyPath::FetchLag, fetch_lag_ms * MS, 100),
                (LatencyPath::SendLag, 60, 100),
            ]
        };
        of(&scenario(thresholds), &run_of(20, paths)).undecided.len()
    };
    assert_eq!([850, 100].map(|lag_ms| judged("'delivery_channel_ms.p99 < 500'", lag_ms)), [1, 0]);
    assert_eq!([850, 100].map(|lag_ms| judged("'delivery_ms.p99 < 500'", lag_ms)), [1, 0]);
    // Where nine of ten deliveries are no channel's, the median is none of a fetch.
    let paths = |_| {
        vec![
            (LatencyPath::Delivery, 900 * MS, 1_000),
            (LatencyPath::FetchLag, 850 * MS, 100),
            (LatencyPath::SendLag, 60, 100),
        ]
    };
    assert_eq!(of(&scenario("'delivery_ms.p50 < 500'"), &run_of(20, paths)).undecided, [""; 0]);
}
