//! What of an outcome is the generator's or its machine's, and not the target's: scheduling lag, and processor time that other
//! programs and other machines of the host took. Nothing else is a local cause.
//!
//! A figure that is too high is held against the lag that is in each of its samples, at the same statistic, and against what
//! is left without the seconds in which the machine was not the run's own, or which the lag explains: that of the whole time
//! in which what ended in that second was under way. What still fails then is the target's.

use std::collections::{BTreeMap, BTreeSet};

use crate::loadgen::api::REQUESTS_AT_ONCE;
use crate::loadgen::intervals::{Interval, Intervals};
use crate::loadgen::result::RunResult;
use crate::loadgen::scenario::Scenario;
use crate::loadgen::scenario::threshold::{Threshold, UpperLimit};
use crate::telemetry::human::{counted, human_us};
use crate::telemetry::live::MachineLoad;
use crate::telemetry::{Latency, LatencyPath, LatencySummary};

/// Processors that others took from which on they count, in one second and on average over a run.
const TAKEN_CORES_MIN: f64 = 0.3;

/// Share of the processors that is in use where work waits for one.
const BUSY_SHARE: f64 = 0.9;

/// Share of a figure that the generator's lag may be.
const LAG_SHARE_MAX: f64 = 0.2;

/// Time that API calls wait for their turn from which on it is told.
const CALL_WAIT_MIN_US: u64 = 100_000;

/// Share of the seconds that must be left for what is left to be judged.
const LEFT_SHARE_MIN: f64 = 0.5;

/// Seconds that are named.
const NAMED_MAX: usize = 5;

/// What the generator and its machine did to the outcome.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Blame {
    /// Why nothing can be said of the target.
    pub(super) invalid: Vec<String>,
    /// Why it can't be said whether some thresholds failed by the target.
    pub(super) undecided: Vec<String>,
    /// Those thresholds. What else failed did so by the target.
    pub(super) excused: Vec<UpperLimit>,
    /// What whoever reads the figures has to know.
    pub(super) warnings: Vec<String>,
}

impl Blame {
    fn excuse(&mut self, limit: &UpperLimit, why: String) {
        self.excused.push(*limit);
        self.undecided.push(why);
    }
}

/// Holds the outcome of a run, its thresholds judged, against what the generator and its machine did.
pub(super) fn of(scenario: &Scenario, result: &RunResult) -> Blame {
    let mut blame = Blame::default();
    let limits: Vec<UpperLimit> = scenario.thresholds.iter().filter_map(Threshold::upper_limit).collect();
    let contended = seconds_of(&result.intervals, |row| row.machine.is_some_and(|m| is_contended(&m)));
    lag_limit(scenario, result, &contended, &mut blame);
    for limit in &limits {
        judge(limit, result, &contended, &mut blame);
    }
    lag_shares(&limits, result, &mut blame);
    call_waits(result, &mut blame);
    if blame.invalid.is_empty() && blame.undecided.is_empty() {
        late_seconds(scenario, &limits, result, &mut blame);
    }
    taken(result, &contended, &mut blame);
    blame
}

/// True where others took processor time and none was left.
fn is_contended(machine: &MachineLoad) -> bool {
    let busy = machine.used_cores + machine.steal_cores;
    machine.taken_cores() >= TAKEN_CORES_MIN && busy >= BUSY_SHARE * machine.cores
}

/// Numbers of the intervals of which something holds.
fn seconds_of(intervals: &Intervals, holds: impl Fn(&Interval) -> bool) -> BTreeSet<usize> {
    (0..).zip(intervals.rows()).filter(|(_, row)| holds(row)).map(|(at, _)| at).collect()
}

/// The scenario's own limit of the lag, over the whole run and for each worker.
fn lag_limit(scenario: &Scenario, result: &RunResult, contended: &BTreeSet<usize>, blame: &mut Blame) {
    let lag_max_us = scenario.generator_lag_max.as_micros() as u64;
    let late = |p99_us: u64| format!("was late: p99 {:.1} ms, limit {} ms", p99_us as f64 / 1e3, lag_max_us / 1_000);
    if result.generator.lag.p99_us > lag_max_us {
        let advice = if contended.is_empty() {
            "; lower the rate or use more cores".to_owned()
        } else {
            format!(", while {}", who_took(result, contended))
        };
        blame.invalid.push(format!("the generator {}{advice}", late(result.generator.lag.p99_us)));
    }
    for worker in result.workers.iter().filter(|w| w.lost.is_none() && w.lag_us_p99 > lag_max_us) {
        blame.invalid.push(format!("worker {} {}", worker.name, late(worker.lag_us_p99)));
    }
}

/// Whether a threshold that failed did so by the generator's lag, or by seconds in which others had the machine.
fn judge(limit: &UpperLimit, result: &RunResult, contended: &BTreeSet<usize>, blame: &mut Blame) {
    let value = |summary: &LatencySummary| limit.statistic.of_us(summary).filter(|_| summary.count > 0);
    let Some(value_us) = result.latency.get(limit.path).and_then(value) else { return };
    if limit.holds(value_us) {
        return;
    }
    let us = |us: f64| human_us(us as u64);
    if let Some(lag_us) = whole_lag(limit, result).filter(|lag| limit.holds(value_us - lag.most_us)).map(|lag| lag.us) {
        let service = limit.path.service().and_then(|path| result.latency.get(path)).and_then(value);
        let service = service.map(|s| format!(" (from the first write {})", us(s))).unwrap_or_default();
        blame.excuse(
            limit,
            format!(
                "{limit} fails with {}{service} by the generator's own lag, which is {} at the same statistic",
                us(value_us),
                us(lag_us)
            ),
        );
        return;
    }
    let rows = result.intervals.rows();
    let late = late_rows(limit, rows);
    let bad: BTreeSet<usize> = late.keys().chain(contended).copied().collect();
    if bad.is_empty() {
        return;
    }
    let counted = seconds_of(&result.intervals, |row| row.latency(limit.path).is_some());
    let reached = reached_rows(limit, rows, contended);
    // What was due in a bad second may come in the next.
    let is_after = |at: &usize| at.checked_sub(1).is_some_and(|before| bad.contains(&before));
    let is_left = |at: &usize| !bad.contains(at) && !is_after(at) && !reached.contains(at);
    let left = counted.iter().filter(|at| is_left(at)).count();
    let rest = result.intervals.merged(limit.path, |at, _| is_left(&at)).summary();
    let is_enough = left as f64 >= LEFT_SHARE_MIN * counted.len() as f64 && limit.statistic.is_known_from(rest.count);
    let bad_counted: BTreeSet<usize> = bad.intersection(&counted).copied().collect();
    let bad_counted = if bad_counted.is_empty() { bad.clone() } else { bad_counted };
    let why = if contended.is_empty() { who_was_late(limit, rows, &late) } else { who_took(result, contended) };
    let seconds = named_seconds(&result.intervals, &bad_counted);
    let rest_us = limit.statistic.of_us(&rest).unwrap_or(0.0);
    if !is_enough {
        let of = format!("{} of {} seconds", bad_counted.len(), counted.len());
        let value = us(value_us);
        blame.excuse(limit, format!("{limit} fails with {value}, and whose fault it is can't be said: in {of} {why}"));
    } else if limit.holds(rest_us) {
        let (value, rest) = (us(value_us), us(rest_us));
        blame.excuse(
            limit,
            format!("{limit} fails with {value} only by {seconds}, in which {why}; without them {rest}"),
        );
    } else {
        blame.warnings.push(format!("{limit} fails without {seconds} too, in which {why}: {}", us(rest_us)));
    }
}

/// The generator's lag in a figure.
#[derive(Clone, Copy)]
struct Lag {
    /// At the statistic of the figure.
    us: f64,
    /// What it can be of the figure at the most.
    most_us: f64,
}

impl Lag {
    fn sum(parts: impl Iterator<Item = (f64, f64)>) -> Self {
        parts.fold(Self { us: 0.0, most_us: 0.0 }, |sum, (us, times)| Self {
            us: sum.us + us,
            most_us: sum.most_us + times * us,
        })
    }
}

/// The lag in a figure of the whole run, where each of its samples has one. That of calls is not such a lag: most of them,
/// and those that waited perhaps, were made at other times and for something else.
fn whole_lag(limit: &UpperLimit, result: &RunResult) -> Option<Lag> {
    let parts = limit.path.lags_of_each();
    let value = |path| Some(limit.statistic.of_us(result.latency.get(path)?).unwrap_or(0.0));
    (!parts.is_empty()).then(|| Lag::sum(parts.iter().filter_map(|(path, times)| Some((value(*path)?, *times)))))
}

/// Number of the interval in which began, at the earliest, what ended in an interval and took so long.
fn begun_in(rows: &[Interval], at: usize, took_us: f64) -> usize {
    let since_s = rows[at].from_s - took_us / 1e6;
    rows[..at].partition_point(|row| row.to_s <= since_s)
}

/// The lag of a kind in some intervals, at the statistic of a limit: of the worst of them, or of all together. As if there were
/// so many samples at least: those that lack waited for nothing.
fn lag_in(limit: &UpperLimit, rows: &[Interval], path: LatencyPath, samples_min: u64) -> f64 {
    let figure = |mut lag: Latency| {
        lag.record_many_us(0, samples_min.saturating_sub(lag.count()));
        limit.statistic.of_us(&lag.summary()).unwrap_or(0.0)
    };
    let mut all = Latency::default();
    let lags = rows.iter().filter_map(|row| row.latency(path)).inspect(|lag| all.merge(lag));
    let worst = lags.map(figure).fold(0.0, f64::max);
    worst.max(figure(all))
}

/// The figure of an interval, where it is above a limit.
fn figure_above(limit: &UpperLimit, row: &Interval) -> Option<(f64, u64)> {
    let latency = row.latency(limit.path)?;
    let value_us = limit.statistic.of_us(&latency.summary())?;
    (!limit.holds(value_us)).then(|| (value_us, latency.count()))
}

/// Numbers of the intervals whose latencies are above a limit by the generator's lag alone, each with that of the interval in
/// which they began. A lag is measured when it ends, and what it was in may end much later.
fn late_rows(limit: &UpperLimit, rows: &[Interval]) -> BTreeMap<usize, usize> {
    let late = |at: usize| {
        let (value_us, samples) = figure_above(limit, &rows[at])?;
        let begun = begun_in(rows, at, value_us);
        let lag = |path: LatencyPath, samples_min: u64| {
            // That of a fetch is measured with the delivery that it is in.
            let from = if path == LatencyPath::FetchLag { at } else { begun };
            lag_in(limit, &rows[from..=at], path, samples_min)
        };
        // One message that was sent late is so at each of its recipients.
        let each = limit.path.lags_of_each().iter().map(|(path, times)| (lag(*path, 0), *times));
        let some = limit.path.lags_of_some().iter().map(|(path, times)| (lag(*path, samples), *times));
        limit.holds(value_us - Lag::sum(each.chain(some)).most_us).then_some((at, begun))
    };
    (0..rows.len()).filter_map(late).collect()
}

/// Numbers of the intervals whose latencies would hold without the seconds in which others had the machine while they were
/// under way.
fn reached_rows(limit: &UpperLimit, rows: &[Interval], contended: &BTreeSet<usize>) -> BTreeSet<usize> {
    let is_reached = |at: &usize| {
        let Some((value_us, _)) = figure_above(limit, &rows[*at]) else { return false };
        let taken = contended.range(begun_in(rows, *at, value_us)..=*at);
        let taken_us: f64 = taken.filter_map(|at| rows.get(*at)).map(|row| (row.to_s - row.from_s) * 1e6).sum();
        taken_us > 0.0 && limit.holds(value_us - taken_us)
    };
    if contended.is_empty() { BTreeSet::new() } else { (0..rows.len()).filter(is_reached).collect() }
}

/// How late the generator was while what ended in some intervals was under way; of each, where it began.
fn who_was_late(limit: &UpperLimit, rows: &[Interval], late: &BTreeMap<usize, usize>) -> String {
    let seconds: BTreeSet<usize> = late.iter().flat_map(|(at, begun)| *begun..=*at).collect();
    let worst = |parts: &[(LatencyPath, f64)]| {
        let lags =
            seconds.iter().flat_map(|at| parts.iter().filter_map(move |(path, _)| rows.get(*at)?.latency(*path)));
        lags.map(|lag| lag.summary().p99_us).max().unwrap_or(0)
    };
    let (of_each, of_calls) = (worst(limit.path.lags_of_each()), worst(limit.path.lags_of_some()));
    if of_calls > of_each {
        format!("API calls waited for the generator by up to p99 {}", human_us(of_calls))
    } else {
        format!("the generator was late by up to p99 {}", human_us(of_each))
    }
}

/// A warning where API calls waited long for their turn: it says which limit that is, and who kept them waiting.
fn call_waits(result: &RunResult, blame: &mut Blame) {
    let p99_us = |path| result.latency.get(path).map_or(0, |latency| latency.p99_us);
    let (wait_us, lag_us) = (p99_us(LatencyPath::CallWait), p99_us(LatencyPath::CallLag));
    if wait_us < CALL_WAIT_MIN_US {
        return;
    }
    let lag = human_us(lag_us);
    let why = if lag_us.saturating_mul(2) >= wait_us {
        format!("the generator was at its own limit, its lag in that is p99 {lag}")
    } else {
        format!("the target was slow to answer those before them, the generator's own lag in that is p99 {lag}")
    };
    blame.warnings.push(format!(
        "API calls waited for one of the {REQUESTS_AT_ONCE} that a generator makes at once, p99 {}: {why}; the wait is in the \
         times of connects, syncs and recoveries",
        human_us(wait_us)
    ));
}

/// A warning where the lag is a large part of a latency that is judged.
fn lag_shares(limits: &[UpperLimit], result: &RunResult, blame: &mut Blame) {
    let paths: BTreeSet<LatencyPath> =
        limits.iter().map(|limit| limit.path).filter(|path| path.is_from_a_send()).collect();
    let Some(lag) = result.latency.get(LatencyPath::SendLag).filter(|lag| lag.count > 0) else { return };
    for path in paths {
        let Some(latency) = result.latency.get(path).filter(|latency| latency.count > 0) else { continue };
        let share = lag.p50_us as f64 / latency.p50_us.max(1) as f64;
        if share > LAG_SHARE_MAX {
            blame.warnings.push(format!(
                "the generator's own lag, p50 {}, is {:.0} % of the p50 of {}, {}",
                human_us(lag.p50_us),
                share * 100.0,
                path.as_str(),
                human_us(latency.p50_us)
            ));
        }
    }
}

/// A warning that names the seconds in which the generator was late, against the lowest limit that is judged.
fn late_seconds(scenario: &Scenario, limits: &[UpperLimit], result: &RunResult, blame: &mut Blame) {
    let judged = limits.iter().filter(|limit| limit.path.is_from_a_send()).map(|limit| limit.limit_us * LAG_SHARE_MAX);
    let lag_max_us = judged.fold(scenario.generator_lag_max.as_micros() as f64, f64::min);
    let late = seconds_of(&result.intervals, |row| row.send_lag().p99_us as f64 > lag_max_us);
    let worst = late.iter().map(|at| result.intervals.rows()[*at].send_lag().p99_us).max();
    if let Some(worst) = worst {
        let seconds = named_seconds(&result.intervals, &late);
        blame.warnings.push(format!("the generator was late in {seconds}: p99 up to {}", human_us(worst)));
    }
}

/// A warning where others took processor time, whether or not it changed the outcome.
fn taken(result: &RunResult, contended: &BTreeSet<usize>, blame: &mut Blame) {
    let generator = &result.generator;
    let mean = generator.foreign_cores_mean.unwrap_or(0.0) + generator.steal_cores_mean;
    if !contended.is_empty() {
        let (seconds, who) = (named_seconds(&result.intervals, contended), who_took(result, contended));
        blame.warnings.push(format!("in {seconds} {who}, and none was left"));
    } else if mean >= TAKEN_CORES_MIN {
        blame.warnings.push(who_took(result, &seconds_of(&result.intervals, |row| row.machine.is_some())));
    }
}

/// `other programs used 1.80 of 2 cores, other machines of the host 0.10`, on average over some intervals.
fn who_took(result: &RunResult, seconds: &BTreeSet<usize>) -> String {
    let rows = seconds.iter().filter_map(|at| result.intervals.rows().get(*at));
    let loads: Vec<MachineLoad> = rows.filter_map(|row| row.machine).collect();
    let mean = |of: fn(&MachineLoad) -> f64| loads.iter().map(of).sum::<f64>() / loads.len().max(1) as f64;
    let (foreign, steal) = (mean(|m| m.foreign_cores.unwrap_or(0.0)), mean(|m| m.steal_cores));
    let cores = loads.first().map_or(0.0, |m| m.cores);
    let hosts = || format!("other machines of the host took {steal:.2}");
    match (foreign >= 0.01, steal >= 0.01) {
        (false, true) => format!("{} of {}", hosts(), counted(cores.round() as u64, "core")),
        (_, true) => {
            format!("other programs used {foreign:.2} of {}, {}", counted(cores.round() as u64, "core"), hosts())
        }
        _ => format!("other programs used {foreign:.2} of {}", counted(cores.round() as u64, "core")),
    }
}

/// `second 12`, `seconds 3, 12, 13`, `seconds 1, 2, 3, 4, 5 and 20 more`; the first second is 1.
fn named_seconds(intervals: &Intervals, seconds: &BTreeSet<usize>) -> String {
    let names: Vec<String> = seconds
        .iter()
        .filter_map(|at| intervals.rows().get(*at))
        .take(NAMED_MAX)
        .map(|row| match (row.from_s.floor() as u64 + 1, row.to_s.ceil() as u64) {
            (from, to) if to > from + 1 => format!("{from}–{to}"),
            (from, _) => from.to_string(),
        })
        .collect();
    let word = if seconds.len() == 1 { "second" } else { "seconds" };
    match seconds.len().saturating_sub(NAMED_MAX) {
        0 => format!("{word} {}", names.join(", ")),
        more => format!("{word} {} and {more} more", names.join(", ")),
    }
}

#[cfg(test)]
#[path = "blame_tests.rs"]
mod tests;
