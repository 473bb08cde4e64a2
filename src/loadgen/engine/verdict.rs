//! Derives verdict and reasons from counts, thresholds and ledger.
//!
//! A broken guarantee outweighs everything, an interruption included. INVALID is for local causes, what the generator or its
//! machine could not do, and for a run that says nothing of the push path. Whatever else is missing is the target's, and fails
//! a threshold.

use super::blame::{self, Blame};
use crate::loadgen::client::DeviceState;
use crate::loadgen::ledger::Kind;
use crate::loadgen::result::{Counts, FaultRecord, RunResult, Verdict};
use crate::loadgen::run::Shared;
use crate::loadgen::scenario::threshold::{self, Outcome, Threshold};
use crate::loadgen::scenario::{PhaseKind, Scenario};
use crate::loadgen::stats::get;
use crate::telemetry::human::counted;
use crate::telemetry::{Latency, LatencyPath};

/// Everything that was counted.
pub(super) fn counts(shared: &Shared, states: &[DeviceState], unaudited: u64) -> Counts {
    let stats = &shared.stats;
    let ledger = &shared.ledger;
    let clients = shared.mailboxes.len() as u64;
    let (scheduled, intended) = (get(&stats.scheduled), get(&stats.intended));
    let answered = get(&stats.acked) + get(&stats.refused) + get(&stats.refused_removed);
    Counts {
        lost: ledger.count(Kind::Lost),
        duplicated: ledger.count(Kind::Duplicated),
        out_of_order: ledger.count(Kind::OutOfOrder),
        id_reuse: ledger.count(Kind::IdReuse),
        id_went_back: ledger.count(Kind::IdWentBack),
        leaked: ledger.count(Kind::Leaked),
        altered: ledger.count(Kind::Altered),
        false_refusal: ledger.count(Kind::FalseRefusal),
        false_acceptance: ledger.count(Kind::FalseAcceptance),
        ack_wrong: ledger.count(Kind::AckWrong),
        forged: ledger.count(Kind::Forged),
        presence_wrong: ledger.count(Kind::PresenceWrong),
        presence_missed: ledger.count(Kind::PresenceMissed),
        presence_leaked: ledger.count(Kind::PresenceLeaked),
        scheduled,
        skipped: scheduled.saturating_sub(intended),
        intended,
        sent: get(&stats.sent),
        resent: get(&stats.resent),
        acked: get(&stats.acked),
        refused: get(&stats.refused),
        refused_removed: get(&stats.refused_removed),
        // Every message that was due has one fate: what none of the others explains has no answer.
        unresolved: intended.saturating_sub(answered),
        unresolved_local: get(&stats.unresolved_local),
        delivered: get(&stats.delivered),
        delivered_online: get(&stats.delivered_online),
        connects_failed: get(&stats.connects_failed),
        removals: get(&stats.removals),
        additions: get(&stats.additions),
        changes_failed: get(&stats.changes_failed),
        push_expected: get(&stats.push_expected),
        pushed: get(&stats.pushed),
        pushed_by_head: get(&stats.pushed_by_head),
        push_unknown: get(&stats.push_unknown),
        frames: get(&stats.frames),
        repeated_on_wire: get(&stats.repeated_on_wire),
        gaps_synced: get(&stats.gaps_synced),
        beats: get(&stats.beats),
        presence_expected: get(&ledger.tallies.presence_expected),
        presence_seen: get(&ledger.tallies.presence_seen),
        poll_requests: get(&shared.traffic.requests),
        bytes_out: get(&shared.traffic.bytes_out),
        bytes_in: get(&shared.traffic.bytes_in),
        clients,
        never_connected: clients - get(&stats.ever_connected),
        never_connected_local: states.iter().filter(|s| s.is_shut_in).count() as u64,
        disconnects: get(&stats.disconnects),
        reconnects: get(&stats.reconnects),
        protocol_errors: get(&stats.protocol_errors),
        http_errors: get(&stats.http_errors) + shared.world.tokens_refused(),
        throttled: get(&stats.throttled),
        retries: get(&stats.retries) + get(&shared.api.counts().retries),
        retries_per_device_max: get(&stats.retries_per_device_max),
        tokens_renewed: shared.world.tokens_renewed(),
        local_errors: get(&stats.local_errors),
        not_caught_up: get(&stats.not_caught_up),
        not_caught_up_local: get(&stats.not_caught_up_local),
        undrained: clients - states.iter().filter(|s| s.is_drained).count() as u64,
        undrained_local: states.iter().filter(|s| s.is_undrained_here).count() as u64,
        audited: shared.world.conversations.len() as u64 - unaudited,
        unaudited,
        unaudited_local: get(&stats.unaudited_local),
        read_views: get(&stats.read_views),
        unread_views: get(&stats.unread_views),
        access_probes: get(&stats.access_probes),
        unprobed: get(&stats.unprobed),
        write_probes: get(&stats.write_probes),
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

/// Time from the end of a fault until its last consequence, in seconds; `None` when there was none after it.
pub(super) fn calm_after_s(ended_us: u64, trouble_us: u64) -> Option<f64> {
    (trouble_us > ended_us).then(|| (trouble_us - ended_us) as f64 / 1e6)
}

/// Longest time from the end of a fault until its last consequence: an error, a late ACK or delivery, a device that was not
/// back yet. A fault ends when it was meant to: the time that a restart takes is part of what it does to users. Where
/// fewer than 99 % of the devices came back, the recovery took at least until the end of the load.
pub(in crate::loadgen) fn recovery_ms_max(faults: &[FaultRecord], load_s: f64) -> u64 {
    let after = |fault: &FaultRecord| {
        let back_s = match fault.recovered_99_s {
            Some(s) => s - fault.planned_s,
            None if fault.disconnected > 0 => load_s - fault.at_s - fault.planned_s,
            None => 0.0,
        };
        fault.calm_after_s.unwrap_or(0.0).max(back_s)
    };
    (faults.iter().map(after).fold(0.0, f64::max) * 1e3).round() as u64
}

/// Decides: a broken guarantee outweighs an interruption, which outweighs a run that says nothing of the target, which
/// outweighs what the target failed. That outweighs a threshold of which it can't be said whose fault its failure is.
pub(in crate::loadgen) fn decide(scenario: &Scenario, result: &mut RunResult, was_interrupted: bool) {
    let own = scenario.thresholds.iter().map(|t| t.judge(result));
    let defaults = threshold::defaults(scenario);
    result.thresholds = own.chain(defaults.iter().filter_map(|t| t.judge_default(result))).collect();
    let broken: Vec<String> = result.counts.violations().into_iter().map(|(kind, n)| format!("{kind}: {n}")).collect();
    let Blame { invalid: local, undecided, excused, warnings } = blame::of(scenario, result);
    let invalid = [local, invalid_reasons(scenario, result)].concat();
    let (shut_in, some_shut_in) = shut_in(&result.counts);
    let invalid = [invalid, shut_in].concat();
    let undecided: Vec<String> =
        undecided.into_iter().chain(unknown_pushes(scenario, result)).chain(some_shut_in).collect();
    let here = failed_here(scenario.thresholds.iter().chain(&defaults), result);
    let undecided: Vec<String> = undecided.into_iter().chain(here.iter().map(by_a_local_limit)).collect();
    result.warnings.extend(warnings);
    result.warnings.extend(resends(&result.counts));
    result.warnings.extend(local_limits(&result.counts));
    let failed = failed_reasons(result, |_| true);
    let is_excused = |threshold: &&Threshold| threshold.upper_limit().is_some_and(|limit| excused.contains(&limit));
    let excused = scenario.thresholds.iter().filter(is_excused).map(ToString::to_string);
    let excused: Vec<String> = excused.chain(here.into_iter().map(|outcome| outcome.threshold)).collect();
    let has_failed = !failed_reasons(result, |threshold| excused.iter().all(|text| text != threshold)).is_empty();
    result.verdict = if !broken.is_empty() {
        Verdict::LedgerViolated
    } else if was_interrupted {
        Verdict::Interrupted
    } else if !invalid.is_empty() {
        Verdict::Invalid
    } else if has_failed {
        Verdict::ThresholdFailed
    } else if !undecided.is_empty() {
        Verdict::Invalid
    } else {
        Verdict::Pass
    };
    let interrupted = if was_interrupted { vec!["interrupted".to_owned()] } else { Vec::new() };
    result.reasons = [broken, interrupted, invalid, undecided, failed].concat();
}

/// What the target did not do; of the thresholds, those that are asked for.
fn failed_reasons(result: &RunResult, is_asked_for: impl Fn(&str) -> bool) -> Vec<String> {
    let thresholds = result.thresholds.iter().filter(|outcome| !outcome.passed && is_asked_for(&outcome.threshold));
    let mut reasons: Vec<String> =
        thresholds.map(|outcome| format!("threshold {}: {}", outcome.threshold, outcome.measured())).collect();
    for fault in result.faults.iter().filter(|fault| fault.disconnected > 0 && fault.recovered_99_s.is_none()) {
        let FaultRecord { what, disconnected, recovered, .. } = fault;
        reasons.push(format!(
            "fault {what:?}: {recovered} of {} came back, less than 99 %",
            counted(*disconnected, "device")
        ));
    }
    reasons
}

/// Conditions that fail, and hold without what is missing by a limit of the generator's machine.
fn failed_here<'a>(conditions: impl Iterator<Item = &'a Threshold>, result: &mut RunResult) -> Vec<Outcome> {
    let failed: Vec<(&Threshold, Outcome)> = conditions
        .map(|condition| (condition, condition.judge(result)))
        .filter(|(_, outcome)| !outcome.passed)
        .collect();
    let counts = result.counts;
    result.counts = counts.without_local();
    let here = failed.into_iter().filter(|(condition, _)| condition.judge(result).passed);
    let here = here.map(|(_, outcome)| outcome).collect();
    result.counts = counts;
    here
}

fn by_a_local_limit(outcome: &Outcome) -> String {
    let Outcome { threshold, .. } = outcome;
    format!("{threshold} fails with {} by a limit of the generator's machine; see `chatctl doctor`", outcome.measured())
}

/// What whoever reads the figures has to know of what this machine could not do.
fn local_limits(counts: &Counts) -> Option<String> {
    let of = counts.local_errors;
    (of > 0).then(|| {
        format!(
            "{} by a limit of the generator's machine: connects, connections or requests; see `chatctl doctor`",
            counted(of, "failure")
        )
    })
}

/// Deliveries by sync from which on it matters that nothing can be said of their pushes.
const PUSH_UNKNOWN_MIN: u64 = 50;

/// Why it can't be said whether the target pushes at all: most of what reached devices that were there came by sync, each
/// time too soon after a connect to expect it by push. A run without any push is no proof of the push path.
fn unknown_pushes(scenario: &Scenario, result: &RunResult) -> Option<String> {
    let Counts { push_unknown, delivered_online, .. } = result.counts;
    let is_much = push_unknown >= PUSH_UNKNOWN_MIN && push_unknown.saturating_mul(2) > delivered_online;
    (is_much && scenario.faults.is_empty()).then(|| {
        format!(
            "it can't be said whether messages are pushed: {push_unknown} of {} to devices that were online \
             came by sync, too soon after a connect or a send to expect a push; let devices stay connected for longer",
            counted(delivered_online, "delivery")
        )
    })
}

/// What whoever reads the figures has to know of answers that did not come.
fn resends(counts: &Counts) -> Option<String> {
    (counts.resent > 0).then(|| {
        format!("{} of {} had no answer within 5 s: sent again", counts.resent, counted(counts.sent, "message"))
    })
}

/// Devices that this machine did not let connect. Where they are all that never connected, the load was not the
/// scenario's, and nothing can be said (the first); beside others that the target did not let in, they hide nothing of
/// that (the second).
fn shut_in(counts: &Counts) -> (Vec<String>, Option<String>) {
    let Counts { never_connected, never_connected_local: local, .. } = *counts;
    let of = |all: &str| {
        let devices = counted(local, "device");
        format!("{devices}{all} never connected by a limit of the generator's machine; see `chatctl doctor`")
    };
    match local {
        0 => (Vec::new(), None),
        _ if local == never_connected => (vec![of("")], None),
        _ => (Vec::new(), Some(of(&format!(" of {never_connected}")))),
    }
}

/// Share of the scheduled messages that may go unsent because nobody could send them, in percent.
const SKIPPED_PERCENT_MAX: f64 = 2.0;

/// Why the run is inconclusive, if it is.
fn invalid_reasons(scenario: &Scenario, result: &RunResult) -> Vec<String> {
    let lost = result.workers.iter().filter_map(|worker| Some((worker, worker.lost.as_ref()?)));
    let mut reasons: Vec<String> = lost.map(|(worker, why)| format!("worker {} was {why}", worker.name)).collect();
    let counts = &result.counts;
    if let Some(percent) = counts.skipped_percent().filter(|percent| *percent > SKIPPED_PERCENT_MAX) {
        reasons.push(format!(
            "{} of {} scheduled messages ({percent:.1} %) could not be sent: no talker was online and a member; lower the rate \
             or add talkers",
            counts.skipped, counts.scheduled
        ));
    }
    if counts.never_connected == counts.clients && counts.clients > 0 {
        // Nobody was let in: that is the target's, and says enough.
    } else if counts.sent + counts.beats == 0 {
        reasons.push("no load: nothing was sent and nobody beat".to_owned());
    } else if counts.scheduled == 0
        && scenario.phases.iter().any(|phase| phase.rate.max(phase.rate_to.unwrap_or(0.0)) > 0.0)
    {
        reasons.push(
            "no messages: the rates of the phases ask for some, and too few for one to be due; raise them, or say 0"
                .to_owned(),
        );
    } else if counts.sent > 0 && result.latency.get(LatencyPath::Ack).is_none_or(|ack| ack.count == 0) {
        reasons.push("nothing was measured: no message was due outside the warm-up".to_owned());
    } else if scenario.phases.iter().all(|phase| phase.phase == PhaseKind::WarmUp) {
        reasons.push("nothing was measured: every phase is a warm-up".to_owned());
    }
    for fault in result.faults.iter().filter_map(|f| f.error.as_ref().map(|e| (f, e))) {
        reasons.push(format!("fault {:?} failed: {}", fault.0.what, fault.1));
    }
    reasons
}

#[cfg(test)]
#[expect(clippy::large_types_passed_by_value, reason = "counts are written where they are used")]
mod tests {
    use super::*;
    use crate::telemetry::LatencySummary;

    fn scenario() -> Scenario {
        let text = "{name: t, population: {users: 2, direct_per_user: 1}, behaviors: {one-to-one: 1}, \
                    phases: [{phase: steady, duration: 1s, rate: 1}], thresholds: ['acked > 5']}";
        Scenario::parse(text, "t").expect("valid")
    }

    fn sound(counts: Counts) -> RunResult {
        let mut result = RunResult { counts: Counts { sent: 10, scheduled: 10, ..counts }, ..RunResult::default() };
        result.latency.insert(LatencyPath::Ack, LatencySummary { count: 10, ..LatencySummary::default() });
        result
    }

    fn decided(counts: Counts, lag_us: u64, was_interrupted: bool) -> RunResult {
        let mut result = sound(counts);
        result.generator.lag = LatencySummary { p99_us: lag_us, ..LatencySummary::default() };
        decide(&scenario(), &mut result, was_interrupted);
        result
    }

    const GOOD: fn() -> Counts = || Counts { acked: 10, ..Counts::default() };

    #[test]
    fn the_gravest_finding_is_the_verdict() {
        assert_eq!(decided(GOOD(), 0, false).verdict, Verdict::Pass);
        assert_eq!(decided(Counts::default(), 0, false).verdict, Verdict::ThresholdFailed);
        assert_eq!(decided(Counts::default(), 200_000, false).verdict, Verdict::Invalid);
        let lost = decided(Counts { lost: 1, ..Counts::default() }, 200_000, false);
        assert_eq!(lost.verdict, Verdict::LedgerViolated);
        assert_eq!(lost.reasons.len(), 3, "every finding is told: {:?}", lost.reasons);
        assert_eq!(decided(GOOD(), 0, true).verdict, Verdict::Interrupted);
        let interrupted = decided(Counts { lost: 1, ..GOOD() }, 0, true);
        assert_eq!(interrupted.verdict, Verdict::LedgerViolated, "ctrl-c does not undo a broken guarantee");
        assert_eq!(interrupted.reasons, ["lost: 1", "interrupted"]);
    }

    #[test]
    fn a_latency_that_the_machine_explains_does_not_hide_what_the_target_failed() {
        let decided = |acked: u64| {
            let text = "{name: t, population: {users: 2, direct_per_user: 1}, behaviors: {one-to-one: 1}, \
                        phases: [{phase: steady, duration: 1s, rate: 1}], thresholds: ['acked > 5', 'ack_ms.p50 < 1']}";
            let mut result = sound(Counts { acked, ..Counts::default() });
            for (path, us) in [(LatencyPath::Ack, 1_100), (LatencyPath::SendLag, 200)] {
                result.latency.insert(path, LatencySummary { count: 10, p50_us: us, ..LatencySummary::default() });
            }
            decide(&Scenario::parse(text, "t").expect("valid"), &mut result, false);
            (result.verdict, result.reasons)
        };
        let (verdict, reasons) = decided(10);
        assert_eq!(verdict, Verdict::Invalid, "{reasons:?}");
        let (verdict, reasons) = decided(3);
        assert_eq!(verdict, Verdict::ThresholdFailed, "{reasons:?}");
        assert_eq!(reasons.len(), 3, "both are told, and why one of them says nothing: {reasons:?}");
    }

    #[test]
    fn every_violation_fails_the_ledger() {
        for name in
            ["lost", "id_went_back", "false_refusal", "ack_wrong", "forged", "presence_missed", "presence_leaked"]
        {
            let mut value = serde_json::to_value(GOOD()).expect("writes");
            value[name] = 1.into();
            let counts = serde_json::from_value(value).expect("reads");
            assert_eq!(decided(counts, 0, false).verdict, Verdict::LedgerViolated, "{name}");
        }
    }

    #[test]
    fn what_the_target_did_not_do_fails_and_what_this_machine_could_not_is_inconclusive() {
        let never = Counts { never_connected: 1, ..GOOD() };
        assert_eq!(decided(never, 0, false).verdict, Verdict::ThresholdFailed);
        let shut_in = decided(Counts { local_errors: 1, never_connected_local: 1, ..never }, 0, false);
        assert_eq!(shut_in.verdict, Verdict::Invalid);
        assert!(shut_in.reasons[0].contains("1 device never connected by a limit"), "{:?}", shut_in.reasons);
        let overcome = Counts { local_errors: 1, never_connected: 1_000, ..GOOD() };
        assert_eq!(decided(overcome, 0, false).verdict, Verdict::ThresholdFailed, "that one came in after all");
        let both = decided(Counts { never_connected_local: 2, ..overcome }, 0, false);
        assert_eq!(both.verdict, Verdict::ThresholdFailed, "the target refused 998");
        assert!(both.reasons.iter().any(|reason| reason.starts_with("2 devices of 1000")), "{:?}", both.reasons);
        assert_eq!(decided(Counts { local_errors: 1, ..GOOD() }, 0, false).verdict, Verdict::Pass);
        for name in [
            "undrained",
            "unaudited",
            "unread_views",
            "unprobed",
            "unresolved",
            "refused",
            "disconnects",
            "protocol_errors",
            "http_errors",
        ] {
            let mut value = serde_json::to_value(GOOD()).expect("writes");
            value[name] = 1.into();
            let counts = serde_json::from_value(value).expect("reads");
            assert_eq!(decided(counts, 0, false).verdict, Verdict::ThresholdFailed, "{name}");
        }
        for name in ["throttled", "retries", "refused_removed", "gaps_synced", "repeated_on_wire"] {
            let mut value = serde_json::to_value(GOOD()).expect("writes");
            value[name] = 1.into();
            let counts = serde_json::from_value(value).expect("reads");
            assert_eq!(decided(counts, 0, false).verdict, Verdict::Pass, "{name}");
        }
    }

    #[test]
    fn what_is_missing_by_a_limit_of_this_machine_alone_is_inconclusive() {
        for name in ["unresolved", "not_caught_up", "undrained", "unaudited"] {
            let decided_with = |all: u64, local: u64, refused: u64| {
                let mut value = serde_json::to_value(GOOD()).expect("writes");
                value[name] = all.into();
                value[format!("{name}_local")] = local.into();
                value["refused"] = refused.into();
                decided(serde_json::from_value(value).expect("reads"), 0, false)
            };
            let here = decided_with(3, 3, 0);
            assert_eq!(here.verdict, Verdict::Invalid, "{name}");
            let why = format!("{name} == 0 fails with 3 by a limit of the generator's machine; see `chatctl doctor`");
            assert_eq!(here.reasons[0], why);
            assert_eq!(decided_with(3, 2, 0).verdict, Verdict::ThresholdFailed, "{name}: one is the target's");
            assert_eq!(decided_with(3, 3, 1).verdict, Verdict::ThresholdFailed, "{name} hides nothing else");
        }
    }

    #[test]
    fn a_run_without_load_is_never_a_pass() {
        let mut nothing = RunResult { counts: GOOD(), ..RunResult::default() };
        decide(&scenario(), &mut nothing, false);
        assert_eq!(nothing.verdict, Verdict::Invalid, "{:?}", nothing.reasons);
        let mut beats_only = RunResult { counts: Counts { beats: 5, clients: 2, ..GOOD() }, ..RunResult::default() };
        decide(&scenario(), &mut beats_only, false);
        assert_eq!(beats_only.verdict, Verdict::Invalid, "its rate asks for messages: {:?}", beats_only.reasons);
        let mut warm_up_only =
            RunResult { counts: Counts { sent: 10, scheduled: 10, ..GOOD() }, ..RunResult::default() };
        decide(&scenario(), &mut warm_up_only, false);
        assert_eq!(warm_up_only.verdict, Verdict::Invalid, "{:?}", warm_up_only.reasons);
        let skipping = |skipped| {
            let mut result = sound(GOOD());
            (result.counts.scheduled, result.counts.skipped) = (600, skipped);
            decide(&scenario(), &mut result, false);
            result.verdict
        };
        assert_eq!([12, 13, 525].map(skipping), [Verdict::Pass, Verdict::Invalid, Verdict::Invalid]);
    }

    #[test]
    fn recovery_is_told_as_users_see_it() {
        let fault = |recovered_99_s, planned_s, lasted_s| FaultRecord {
            disconnected: 100,
            recovered_99_s,
            planned_s,
            lasted_s,
            at_s: 10.0,
            ..FaultRecord::default()
        };
        let restart = fault(Some(61.0), 0.0, 58.5);
        assert_eq!(recovery_ms_max(&[restart], 120.0), 61_000, "a restart's own length is part of it");
        let pause = fault(Some(12.0), 10.0, 10.1);
        assert_eq!(recovery_ms_max(std::slice::from_ref(&pause), 120.0), 2_000, "a pause ends when it was meant to");
        let never = FaultRecord { recovered: 80, ..fault(None, 0.0, 0.1) };
        assert_eq!(recovery_ms_max(&[pause, never.clone()], 120.0), 110_000, "at least until the end of the load");
        let mut result = sound(GOOD());
        result.faults.push(never);
        decide(&scenario(), &mut result, false);
        assert_eq!(result.verdict, Verdict::ThresholdFailed);
        assert!(result.reasons[0].contains("80 of 100"), "{:?}", result.reasons);
        let untouched = FaultRecord { calm_after_s: Some(1.5), ..FaultRecord::default() };
        assert_eq!(recovery_ms_max(&[untouched], 120.0), 1_500);
    }
}
