//! Snapshots and results of several workers, put together.

use std::collections::BTreeMap;

use crate::loadgen::engine::verdict;
use crate::loadgen::ledger::checks;
use crate::loadgen::result::{FaultRecord, RunResult, WorkerRecord};
use crate::telemetry::live::{ServerSnapshot, Totals, heat_of};
use crate::telemetry::{ByPath, Latency, LatencyPath, LatencySummary, LiveSnapshot, PathName};

/// Violations and events that are kept in words.
const TEXTS_MAX: usize = 100;

/// What all workers have told so far. Written by the coordinator as reports come.
#[derive(Default)]
pub(super) struct View {
    newest: Vec<LiveSnapshot>,
    interval: ByPath<Latency>,
    /// Of the interval, what does not count.
    unmeasured: ByPath<Latency>,
    overall: ByPath<Latency>,
    is_measured: bool,
}

impl View {
    pub(super) fn new(workers: usize) -> Self {
        Self { newest: vec![LiveSnapshot::default(); workers], ..Self::default() }
    }

    /// Takes a worker's report.
    pub(super) fn take(
        &mut self,
        worker: usize,
        snapshot: LiveSnapshot,
        histograms: ByPath<Latency>,
        unmeasured: &ByPath<Latency>,
    ) {
        for (path, latency) in histograms {
            self.overall.entry(&path).or_default().merge(&latency);
            self.interval.entry(path).or_default().merge(&latency);
        }
        merge(&mut self.unmeasured, unmeasured);
        self.is_measured |= snapshot.is_measured;
        self.newest[worker] = snapshot;
    }

    /// Connections that are open, and resident memory of all workers in bytes.
    pub(super) fn connections_and_memory(&self) -> (u64, u64) {
        self.newest.iter().fold((0, 0), |(c, m), s| (c + s.connections, m + s.resident_bytes))
    }

    /// The worker that is least far.
    fn slowest(&self) -> Option<&LiveSnapshot> {
        let place = |s: &LiveSnapshot| s.phase.closing_step();
        self.newest.iter().min_by(|a, b| (place(a), a.progress).partial_cmp(&(place(b), b.progress)).expect("no NaN"))
    }

    /// One snapshot of all; the interval begins anew. Rates are sums of the workers' own.
    pub(super) fn snapshot(&mut self, servers: BTreeMap<String, ServerSnapshot>) -> LiveSnapshot {
        let (histograms, unmeasured) = (std::mem::take(&mut self.interval), std::mem::take(&mut self.unmeasured));
        let mut interval = histograms.clone();
        merge(&mut interval, &unmeasured);
        let mut all = LiveSnapshot {
            interval: summaries(&interval),
            heat: interval.get(LatencyPath::Delivery).map(heat_of).unwrap_or_default(),
            overall: summaries(&self.overall),
            is_measured: std::mem::take(&mut self.is_measured),
            histograms,
            unmeasured,
            servers,
            verdict: "running".to_owned(),
            ..LiveSnapshot::default()
        };
        if let Some(slowest) = self.slowest() {
            all.phase = slowest.phase;
            all.progress = slowest.progress;
            all.progress_text.clone_from(&slowest.progress_text);
        }
        for s in &self.newest {
            all.connections += s.connections;
            all.connections_wanted += s.connections_wanted;
            add_totals(&mut all.totals, s.totals);
            add_totals(&mut all.rates, s.rates);
            add_counts(&mut all.violations, &s.violations);
            add_counts(&mut all.errors, &s.errors);
            all.generator_lag_us_p50 = all.generator_lag_us_p50.max(s.generator_lag_us_p50);
            all.generator_lag_us_p99 = all.generator_lag_us_p99.max(s.generator_lag_us_p99);
            all.generator_lag_us_max = all.generator_lag_us_max.max(s.generator_lag_us_max);
            all.generator_cores += s.generator_cores;
            // Of one machine: those of this one all say the same.
            all.machine_cores = all.machine_cores.max(s.machine_cores);
            all.resident_bytes += s.resident_bytes;
            for event in &s.events {
                if !all.events.contains(event) && all.events.len() < TEXTS_MAX {
                    all.events.push(event.clone());
                }
            }
        }
        all
    }
}

fn merge(sum: &mut ByPath<Latency>, more: &ByPath<Latency>) {
    for (path, latency) in more {
        sum.entry(path).or_default().merge(latency);
    }
}

fn summaries(latencies: &ByPath<Latency>) -> ByPath<LatencySummary> {
    latencies.iter().map(|(path, latency)| (path, latency.summary())).collect()
}

fn add_totals(sum: &mut Totals, more: Totals) {
    let Totals { intended, acked, delivered, repeated_on_wire, reconnects } = more;
    sum.intended += intended;
    sum.acked += acked;
    sum.delivered += delivered;
    sum.repeated_on_wire += repeated_on_wire;
    sum.reconnects += reconnects;
}

fn add_counts(sum: &mut BTreeMap<String, u64>, more: &BTreeMap<String, u64>) {
    for (what, n) in more {
        *sum.entry(what.clone()).or_default() += n;
    }
}

/// Adds one worker's result to those before it. What only the coordinator knows (target, verdict, processes) is left alone.
pub(super) fn add_result(sum: &mut RunResult, part: RunResult, worker: &mut WorkerRecord) {
    worker.clients = part.counts.clients;
    worker.lag_us_p99 = part.generator.lag.p99_us;
    worker.cpu_s = part.generator.cpu_s;
    worker.resident_bytes = part.generator.resident_bytes;
    sum.duration_s = sum.duration_s.max(part.duration_s);
    sum.counts = sum.counts.plus(&part.counts);
    merge(&mut sum.histograms, &part.histograms);
    if sum.phases.is_empty() {
        sum.phases = part.phases;
    } else {
        for (sum, part) in sum.phases.iter_mut().zip(part.phases) {
            sum.due += part.due;
            sum.acked += part.acked;
            sum.delivered += part.delivered;
            merge(&mut sum.histograms, &part.histograms);
        }
    }
    let room = TEXTS_MAX.saturating_sub(sum.violations.len());
    sum.violations.extend(part.violations.into_iter().take(room));
    add_counts(&mut sum.errors, &part.errors);
    sum.tallied = sum.tallied.plus(&part.tallied);
    sum.checks = checks(&sum.counts, &sum.tallied);
    sum.generator.cpu_s += part.generator.cpu_s;
    sum.generator.resident_bytes += part.generator.resident_bytes;
    if sum.faults.is_empty() {
        sum.faults = part.faults;
    } else {
        for (sum, part) in sum.faults.iter_mut().zip(part.faults) {
            add_fault(sum, part);
        }
    }
}

/// What follows from merged histograms, once all results are in.
pub(super) fn summarize(sum: &mut RunResult) {
    sum.latency = summaries(&sum.histograms);
    sum.generator.lag = sum.latency.remove(PathName::GeneratorLag).unwrap_or_default();
    for phase in &mut sum.phases {
        phase.latency = summaries(&phase.histograms);
    }
    for fault in &mut sum.faults {
        fault.recovered = fault.recovery.count();
        fault.recovered_99_s = verdict::recovered_99_s(fault.disconnected, &fault.recovery);
    }
    sum.counts.recovery_ms_max = verdict::recovery_ms_max(&sum.faults, sum.duration_s);
}

fn add_fault(sum: &mut FaultRecord, part: FaultRecord) {
    sum.lasted_s = sum.lasted_s.max(part.lasted_s);
    sum.planned_s = sum.planned_s.max(part.planned_s);
    sum.recovery.merge(&part.recovery);
    sum.disconnected += part.disconnected;
    sum.errors += part.errors;
    sum.late_acks += part.late_acks;
    sum.late_deliveries += part.late_deliveries;
    sum.calm_after_s = match (sum.calm_after_s, part.calm_after_s) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    };
    sum.error = sum.error.take().or(part.error);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadgen::result::Counts;

    fn part(us: u64, count: u64, lost: u64) -> RunResult {
        let mut latency = Latency::default();
        latency.record_many_us(us, count);
        let mut result = RunResult { duration_s: 10.0, ..RunResult::default() };
        result.counts = Counts { lost, acked: count, clients: 5, retries_per_device_max: count, ..Counts::default() };
        (result.counts.removals, result.counts.access_probes) = (lost * 6, lost * 6);
        result.checks = checks(&result.counts, &result.tallied);
        result.histograms.insert(LatencyPath::Ack, latency.clone());
        result.histograms.insert(PathName::GeneratorLag, latency.clone());
        let fault = FaultRecord { disconnected: count, recovery: latency, errors: 1, ..FaultRecord::default() };
        result.faults.push(fault);
        result
    }

    #[test]
    fn percentiles_are_of_all_samples_and_not_means_of_percentiles() {
        let mut sum = RunResult::default();
        let mut records = [WorkerRecord::default(), WorkerRecord::default()];
        add_result(&mut sum, part(1_000, 90, 0), &mut records[0]);
        add_result(&mut sum, part(900_000, 10, 2), &mut records[1]);
        summarize(&mut sum);
        let ack = sum.latency[LatencyPath::Ack];
        assert_eq!((ack.count, ack.p50_us, ack.p90_us / 1_000), (100, 1_000, 1));
        assert!(ack.p99_us > 890_000 && sum.latency.get(PathName::GeneratorLag).is_none());
        assert_eq!((sum.counts.lost, sum.counts.acked, sum.counts.clients), (2, 100, 10));
        assert_eq!(sum.counts.retries_per_device_max, 90, "of greatest values the greatest");
        let access = sum.checks.iter().find(|check| check.name == "access").expect("there is one");
        assert_eq!((access.expected, access.note.as_str()), (12, ""), "the first part had nobody to remove");
        assert_eq!(sum.checks.iter().filter(|check| check.name == "answered").map(|c| c.seen).sum::<u64>(), 100);
        let fault = &sum.faults[0];
        assert_eq!((fault.disconnected, fault.recovered, fault.errors), (100, 100, 2));
        assert!(fault.recovered_99_s.is_some_and(|s| s > 0.89), "{fault:?}");
    }

    #[test]
    fn a_warm_up_is_shown_and_not_counted() {
        let mut view = View::new(2);
        let mut latency = Latency::default();
        latency.record_us(700);
        let of = |path: LatencyPath| ByPath::from([(path, latency.clone())]);
        view.take(
            0,
            LiveSnapshot { connections: 3, ..LiveSnapshot::default() },
            of(LatencyPath::Login),
            &of(LatencyPath::Ack),
        );
        view.take(
            1,
            LiveSnapshot { connections: 4, is_measured: true, ..LiveSnapshot::default() },
            of(LatencyPath::Ack),
            &of(LatencyPath::Ack),
        );
        let snapshot = view.snapshot(BTreeMap::new());
        assert_eq!(
            (snapshot.connections, snapshot.interval[LatencyPath::Ack].count, snapshot.overall[LatencyPath::Ack].count),
            (7, 3, 1)
        );
        assert_eq!((snapshot.overall[LatencyPath::Login].count, snapshot.histograms[LatencyPath::Ack].count()), (1, 1));
        assert!(view.snapshot(BTreeMap::new()).interval.is_empty(), "an interval is shown once");
    }
}
