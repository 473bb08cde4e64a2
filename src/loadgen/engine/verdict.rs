//! From counts to a word, and why.

use crate::loadgen::client::DeviceState;
use crate::loadgen::ledger::Kind;
use crate::loadgen::result::{Counts, FaultRecord, RunResult, Verdict};
use crate::loadgen::run::Shared;
use crate::loadgen::scenario::Scenario;
use crate::loadgen::stats::get;
use crate::telemetry::Latency;
use crate::telemetry::human::human_value;

/// Everything that was counted.
pub(super) fn counts(shared: &Shared, states: &[DeviceState], unaudited: u64) -> Counts {
    let stats = &shared.stats;
    let ledger = &shared.ledger;
    let clients = shared.mailboxes.len() as u64;
    Counts {
        lost: ledger.count(Kind::Lost),
        duplicated: ledger.count(Kind::Duplicated),
        out_of_order: ledger.count(Kind::OutOfOrder),
        id_reuse: ledger.count(Kind::IdReuse),
        leaked: ledger.count(Kind::Leaked),
        altered: ledger.count(Kind::Altered),
        presence_wrong: ledger.count(Kind::PresenceWrong),
        intended: get(&stats.intended),
        sent: get(&stats.sent),
        acked: get(&stats.acked),
        refused: get(&stats.refused),
        unresolved: get(&stats.unresolved),
        delivered: get(&stats.delivered),
        frames: get(&stats.frames),
        repeated_on_wire: get(&stats.repeated_on_wire),
        gaps_synced: get(&stats.gaps_synced),
        beats: get(&stats.beats),
        poll_requests: get(&shared.traffic.requests),
        bytes_out: get(&shared.traffic.bytes_out),
        bytes_in: get(&shared.traffic.bytes_in),
        clients,
        never_connected: clients - get(&stats.ever_connected),
        undrained: clients - states.iter().filter(|s| s.is_drained).count() as u64,
        audited: shared.world.conversations.len() as u64 - unaudited,
        unaudited,
        reconnects: get(&stats.reconnects),
        recovery_ms_max: 0,
    }
}

/// The time by which 99 % of those who lost their connection were back, in seconds.
pub(in crate::loadgen) fn recovered_99_s(disconnected: u64, recovery: &Latency) -> Option<f64> {
    let needed = (disconnected * 99).div_ceil(100);
    let is_known = needed > 0 && recovery.count() >= needed;
    let percent = || needed as f64 * 100.0 / recovery.count() as f64;
    is_known.then(|| recovery.percentile_us(percent()) as f64 / 1e6)
}

/// Longest time from the end of a fault until its last consequence: an error, a late ACK, a device that was not back yet.
pub(in crate::loadgen) fn recovery_ms_max(faults: &[FaultRecord]) -> u64 {
    let after = |fault: &FaultRecord| {
        let back_s = fault.recovered_99_s.map_or(0.0, |s| s - fault.lasted_s);
        fault.calm_after_s.unwrap_or(0.0).max(back_s)
    };
    (faults.iter().map(after).fold(0.0, f64::max) * 1e3).round() as u64
}

/// Decides: a broken guarantee outweighs an invalid run, which outweighs a threshold.
pub(in crate::loadgen) fn decide(scenario: &Scenario, result: &mut RunResult, was_interrupted: bool) {
    result.thresholds = scenario.thresholds.iter().map(|t| t.judge(result)).collect();
    let broken: Vec<String> = result.counts.violations().into_iter().map(|(kind, n)| format!("{kind}: {n}")).collect();
    let invalid = invalid_reasons(scenario, result);
    let failed: Vec<String> = result
        .thresholds
        .iter()
        .filter(|outcome| !outcome.passed)
        .map(|outcome| match outcome.value {
            Some(value) => format!("threshold {}: measured {}", outcome.threshold, human_value(value)),
            None => format!("threshold {}: nothing was measured", outcome.threshold),
        })
        .collect();
    result.verdict = if was_interrupted {
        Verdict::Interrupted
    } else if !broken.is_empty() {
        Verdict::LedgerViolated
    } else if !invalid.is_empty() {
        Verdict::Invalid
    } else if !failed.is_empty() {
        Verdict::ThresholdFailed
    } else {
        Verdict::Pass
    };
    result.reasons = [broken, invalid, failed].concat();
}

/// Why the run says nothing, if it does.
fn invalid_reasons(scenario: &Scenario, result: &RunResult) -> Vec<String> {
    let counts = &result.counts;
    let mut reasons = Vec::new();
    let lag_max_us = scenario.generator_lag_max.as_micros() as u64;
    if result.generator.lag.p99_us > lag_max_us {
        let lag_ms = result.generator.lag.p99_us as f64 / 1e3;
        reasons.push(format!(
            "the generator was late: p99 {lag_ms:.1} ms, limit {} ms; lower the rate or use more cores",
            lag_max_us / 1_000
        ));
    }
    for worker in &result.workers {
        if let Some(why) = &worker.lost {
            reasons.push(format!("worker {} was {why}", worker.name));
        } else if worker.lag_us_p99 > lag_max_us {
            let lag_ms = worker.lag_us_p99 as f64 / 1e3;
            reasons.push(format!(
                "worker {} was late: p99 {lag_ms:.1} ms, limit {} ms",
                worker.name,
                lag_max_us / 1_000
            ));
        }
    }
    let mut add = |n: u64, text: &str| {
        if n > 0 {
            reasons.push(format!("{n} {text}"));
        }
    };
    add(counts.never_connected, "devices never connected");
    add(counts.undrained, "devices could not sync at the end, so nothing is known of what they missed");
    add(counts.unaudited, "conversations could not be read back");
    for fault in result.faults.iter().filter_map(|f| f.error.as_ref().map(|e| (f, e))) {
        reasons.push(format!("fault {:?} failed: {}", fault.0.what, fault.1));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::LatencySummary;

    fn scenario() -> Scenario {
        let text = "{name: t, population: {users: 2, direct_per_user: 1}, behaviors: {one-to-one: 1}, \
                    phases: [{phase: steady, duration: 1s, rate: 1}], thresholds: ['acked > 5']}";
        Scenario::parse(text, "t").expect("valid")
    }

    fn decided(counts: Counts, lag_us: u64, was_interrupted: bool) -> RunResult {
        let mut result = RunResult { counts, ..RunResult::default() };
        result.generator.lag = LatencySummary { p99_us: lag_us, ..LatencySummary::default() };
        decide(&scenario(), &mut result, was_interrupted);
        result
    }

    #[test]
    fn the_gravest_finding_is_the_verdict() {
        let good = Counts { acked: 10, ..Counts::default() };
        assert_eq!(decided(good, 0, false).verdict, Verdict::Pass);
        assert_eq!(decided(Counts::default(), 0, false).verdict, Verdict::ThresholdFailed);
        assert_eq!(decided(Counts::default(), 200_000, false).verdict, Verdict::Invalid);
        assert_eq!(decided(Counts { never_connected: 1, ..good }, 0, false).verdict, Verdict::Invalid);
        let lost = decided(Counts { lost: 1, ..Counts::default() }, 200_000, false);
        assert_eq!(lost.verdict, Verdict::LedgerViolated);
        assert_eq!(lost.reasons.len(), 3, "every finding is told: {:?}", lost.reasons);
        assert_eq!(decided(good, 0, true).verdict, Verdict::Interrupted);
    }
}
