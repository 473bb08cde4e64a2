//! Latencies by path, in µs from the time at which something was due.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use super::call_lag::SlotWait;
use super::result::PhaseRecord;
use super::scenario::Phase;
use super::stats::{add, get};
use crate::telemetry::{ByPath, Latency, LatencyPath, LatencySummary, PhaseKind};

/// What was done after it was due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LagOf {
    /// A message.
    Send,
    /// A beat, a connect, a change of membership, a fault.
    Other,
}

/// Latencies by path. Indexed rather than mapped: this is what every received message touches.
type Slots = [Option<Box<Latency>>; LatencyPath::ALL.len()];

/// As many as there are threads that record much, or more.
const SHARDS: usize = 8;

thread_local! {
    /// The shard that a thread writes to. What it counts stays in its processor's cache.
    static SHARD: usize = {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        THREADS.fetch_add(1, Ordering::Relaxed) % SHARDS
    };
}

/// All latencies of a run. Sharded by thread, so that threads rarely meet.
///
/// Each latency belongs to the phase in which what it measures was *due*, however late it is recorded. It is recorded once, in
/// its shard; shards are folded into the run's totals when somebody looks.
pub(super) struct Recorder {
    /// Latencies by part of the run (see [`PhaseBounds::part_at`]).
    shards: [Mutex<Vec<Slots>>; SHARDS],
    folded: Mutex<Folded>,
    /// Set once, when the load begins.
    bounds: OnceLock<PhaseBounds>,
}

/// The phases of the load. Part 0 is what was due before them, part n the n-th, the last what is due after them.
struct PhaseBounds {
    /// When each phase begins and, last, when the load ends, on the run's clock in µs.
    bounds_us: Vec<u64>,
    phases: Vec<PhaseKind>,
    /// Messages that were due in each phase. What came of them is in the histograms.
    due: Vec<AtomicU64>,
}

impl PhaseBounds {
    fn part_at(&self, due_us: u64) -> usize {
        self.bounds_us.partition_point(|bound| *bound <= due_us)
    }

    fn is_measured(&self, part: usize) -> bool {
        part > 0 && self.phases.get(part - 1).is_some_and(|phase| *phase != PhaseKind::WarmUp)
    }
}

/// What was folded. Written by `fold`.
#[derive(Default)]
struct Folded {
    /// By part of the run.
    parts: Vec<BTreeMap<LatencyPath, Latency>>,
    /// Since the last [`Recorder::take_interval`].
    interval: IntervalLatencies,
}

/// What was recorded in an interval.
#[derive(Default)]
pub(super) struct IntervalLatencies {
    /// What counts.
    pub(super) measured: BTreeMap<LatencyPath, Latency>,
    /// What was due in a warm-up or after the load.
    pub(super) unmeasured: BTreeMap<LatencyPath, Latency>,
    /// Whether the interval ended in a phase that counts.
    pub(super) is_measured: bool,
}

impl IntervalLatencies {
    /// All of it, for the eye.
    pub(super) fn all(&self) -> BTreeMap<LatencyPath, Latency> {
        let mut all = self.measured.clone();
        for (path, latency) in &self.unmeasured {
            all.entry(*path).or_default().merge(latency);
        }
        all
    }
}

impl Recorder {
    pub(super) fn new() -> Self {
        Self { shards: Default::default(), folded: Mutex::default(), bounds: OnceLock::new() }
    }

    /// The load begins. What was recorded before was due before it.
    pub(super) fn begin(&self, started_us: u64, phases: &[Phase]) {
        let ends_us = phases.iter().scan(started_us, |at_us, phase| {
            *at_us += phase.duration.as_micros() as u64;
            Some(*at_us)
        });
        let bounds = PhaseBounds {
            bounds_us: std::iter::once(started_us).chain(ends_us).collect(),
            phases: phases.iter().map(|phase| phase.phase).collect(),
            due: phases.iter().map(|_| AtomicU64::new(0)).collect(),
        };
        assert!(self.bounds.set(bounds).is_ok(), "a load begins once");
    }

    fn part_at(&self, due_us: u64) -> usize {
        self.bounds.get().map_or(0, |bounds| bounds.part_at(due_us))
    }

    /// Records that something that was due at `due_us` took `us`.
    pub(super) fn record(&self, path: LatencyPath, due_us: u64, us: u64) {
        self.record_all(self.part_at(due_us), [(path, us)]);
    }

    fn record_all(&self, part: usize, latencies: impl IntoIterator<Item = (LatencyPath, u64)>) {
        let mut shard = self.shards[SHARD.with(|shard| *shard)].lock().expect("no panic while held");
        if shard.len() <= part {
            shard.resize_with(part + 1, Slots::default);
        }
        for (path, us) in latencies {
            shard[part][path as usize].get_or_insert_default().record_us(us);
        }
    }

    /// A message is due.
    pub(super) fn due(&self, due_us: u64) {
        let Some(bounds) = self.bounds.get() else { return };
        if let Some(due) = bounds.part_at(due_us).checked_sub(1).and_then(|phase| bounds.due.get(phase)) {
            add(due, 1);
        }
    }

    /// A message that was first written at `sent_us` was acknowledged at `now_us`; `asked_us`: see [`Recorder::answered`].
    pub(super) fn acked(&self, due_us: u64, sent_us: u64, asked_us: Option<u64>, now_us: u64) {
        let since = |us: u64| now_us.saturating_sub(us);
        let all = [(LatencyPath::Ack, since(due_us)), (LatencyPath::AckService, since(sent_us))];
        let answer = asked_us.map(|asked_us| (LatencyPath::Answer, since(asked_us)));
        self.record_all(self.part_at(due_us), all.into_iter().chain(answer));
    }

    /// A message that was written at `asked_us`, and had no answer on that connection since, has one of whatever kind.
    pub(super) fn answered(&self, due_us: u64, asked_us: Option<u64>, now_us: u64) {
        if let Some(asked_us) = asked_us {
            self.record(LatencyPath::Answer, due_us, now_us.saturating_sub(asked_us));
        }
    }

    /// A message was refused for good, or has no answer at the end: as an ACK, it took at least until `now_us`.
    pub(super) fn unanswered(&self, due_us: u64, now_us: u64) {
        self.record(LatencyPath::Ack, due_us, now_us.saturating_sub(due_us));
    }

    /// A message that was first written at `sent_us` was shown to a device at `now_us`. The fetch that brought it had waited
    /// for the generator for `fetch_lag_us`.
    pub(super) fn delivered(&self, path: LatencyPath, due_us: u64, sent_us: u64, now_us: u64, fetch_lag_us: u64) {
        // A fetch that was asked for before the message was due is in its delivery only from then on.
        let fetch = (LatencyPath::FetchLag, fetch_lag_us.min(now_us.saturating_sub(due_us)));
        let fetch = (path == LatencyPath::DeliveryChannel).then_some(fetch);
        let service = (LatencyPath::DeliveryService, now_us.saturating_sub(sent_us));
        let service = path.is_part_of_delivery().then_some(service);
        let due = (path, now_us.saturating_sub(due_us));
        self.record_all(self.part_at(due_us), std::iter::once(due).chain(service).chain(fetch));
    }

    /// Notes that the generator did something at `now_us` that was due at `due_us`.
    pub(super) fn late_by(&self, what: LagOf, due_us: u64, now_us: u64) {
        let path = match what {
            LagOf::Send => LatencyPath::SendLag,
            LagOf::Other => LatencyPath::TimerLag,
        };
        self.record(path, due_us, now_us.saturating_sub(due_us));
    }

    /// Notes what an API call waited for its turn. After the load, devices and audit ask for all at once, and nothing is
    /// measured any more.
    pub(super) fn call_had_turn(&self, wait: SlotWait) {
        let part = self.part_at(wait.asked_us);
        if self.bounds.get().is_none_or(|bounds| part <= bounds.phases.len()) {
            self.record_all(part, [(LatencyPath::CallWait, wait.us()), (LatencyPath::CallLag, wait.lag_us)]);
        }
    }

    /// Folds the shards into the totals.
    fn fold(&self) -> MutexGuard<'_, Folded> {
        let mut folded = self.folded.lock().expect("no panic while held");
        let is_measured = |part| self.bounds.get().is_some_and(|bounds| bounds.is_measured(part));
        for shard in &self.shards {
            let taken = std::mem::take(&mut *shard.lock().expect("no panic while held"));
            for (part, by_path) in taken.into_iter().enumerate() {
                for (path, latency) in LatencyPath::ALL.into_iter().zip(by_path) {
                    let Some(latency) = latency else { continue };
                    let is_measured = is_measured(part);
                    folded.add(part, path, &latency, is_measured);
                    if path.is_part_of_delivery() {
                        folded.add(part, LatencyPath::Delivery, &latency, is_measured);
                    }
                }
            }
        }
        folded
    }

    /// How late the generator did everything that was due up to the end of the load. When a hundred thousand devices leave
    /// at once after it, nothing is measured any more.
    pub(super) fn lag(&self) -> Latency {
        let after = self.bounds.get().map_or(usize::MAX, |bounds| bounds.bounds_us.len());
        let folded = self.fold();
        let parts = folded.parts.iter().enumerate().filter(|(part, _)| *part < after);
        let mut lag = Latency::default();
        for (_, latency) in parts.flat_map(|(_, by_path)| by_path).filter(|(path, _)| path.is_lag()) {
            lag.merge(latency);
        }
        lag
    }

    /// Everything measured so far: what was due in a phase that is measured and, of what happens once per client, all.
    pub(super) fn overall(&self) -> BTreeMap<LatencyPath, Latency> {
        let folded = self.fold();
        let mut overall: BTreeMap<LatencyPath, Latency> = BTreeMap::new();
        for (part, by_path) in folded.parts.iter().enumerate() {
            let is_measured = self.bounds.get().is_some_and(|bounds| bounds.is_measured(part));
            for (path, latency) in by_path.iter().filter(|(path, _)| is_measured || path.is_always_measured()) {
                overall.entry(*path).or_default().merge(latency);
            }
        }
        overall
    }

    /// What was recorded since the last call, and whether what is due at `now_us` counts.
    pub(super) fn take_interval(&self, now_us: u64) -> IntervalLatencies {
        let interval = std::mem::take(&mut self.fold().interval);
        let is_measured = self.bounds.get().is_some_and(|bounds| bounds.is_measured(bounds.part_at(now_us)));
        IntervalLatencies { is_measured, ..interval }
    }

    /// What was due in each phase, and what came of it.
    pub(super) fn phases(&self) -> Vec<PhaseRecord> {
        let Some(bounds) = self.bounds.get() else { return Vec::new() };
        let folded = self.fold();
        let seconds = |us: u64| (us - bounds.bounds_us[0]) as f64 / 1e6;
        let record = |index: usize| {
            let latencies = folded.parts.get(index + 1).cloned().unwrap_or_default();
            let count = |path| latencies.get(&path).map_or(0, Latency::count);
            let elsewhere = count(LatencyPath::DeliveryAfterReconnect) + count(LatencyPath::DeliverySlowReader);
            PhaseRecord {
                phase: bounds.phases[index],
                from_s: seconds(bounds.bounds_us[index]),
                to_s: seconds(bounds.bounds_us[index + 1]),
                due: get(&bounds.due[index]),
                acked: count(LatencyPath::AckService),
                delivered: count(LatencyPath::Delivery) + elsewhere,
                latency: summaries(&latencies),
                histograms: named(latencies),
            }
        };
        (0..bounds.phases.len()).map(record).collect()
    }
}

impl Folded {
    fn add(&mut self, part: usize, path: LatencyPath, latency: &Latency, is_measured: bool) {
        if self.parts.len() <= part {
            self.parts.resize_with(part + 1, BTreeMap::new);
        }
        self.parts[part].entry(path).or_default().merge(latency);
        let interval = &mut self.interval;
        let counts = is_measured || path.is_always_measured();
        let by_path = if counts { &mut interval.measured } else { &mut interval.unmeasured };
        by_path.entry(path).or_default().merge(latency);
    }
}

/// The lag of all kinds, of an interval.
pub(super) fn lag_of(interval: &BTreeMap<LatencyPath, Latency>) -> LatencySummary {
    let mut lag = Latency::default();
    interval.iter().filter(|(path, _)| path.is_lag()).for_each(|(_, latency)| lag.merge(latency));
    lag.summary()
}

/// The same by name.
pub(super) fn named(latencies: BTreeMap<LatencyPath, Latency>) -> ByPath<Latency> {
    latencies.into_iter().collect()
}

/// Summaries by name.
pub(super) fn summaries(latencies: &BTreeMap<LatencyPath, Latency>) -> ByPath<LatencySummary> {
    latencies.iter().map(|(path, latency)| (*path, latency.summary())).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::loadgen::scenario::Arrivals;

    const S: u64 = 1_000_000;

    fn count(latencies: &BTreeMap<LatencyPath, Latency>, path: LatencyPath) -> u64 {
        latencies.get(&path).map_or(0, Latency::count)
    }

    /// A warm-up of 10 s, then a steady phase of 20, from second 100 on.
    fn recorder() -> Recorder {
        let phase = |phase, seconds| Phase {
            phase,
            duration: Duration::from_secs(seconds),
            rate: 1.0,
            rate_to: None,
            arrivals: Arrivals::Constant,
        };
        let recorder = Recorder::new();
        recorder.record(LatencyPath::Login, 90 * S, 100);
        recorder.begin(100 * S, &[phase(PhaseKind::WarmUp, 10), phase(PhaseKind::Steady, 20)]);
        recorder
    }

    #[test]
    fn a_warm_up_is_shown_and_not_measured() {
        let recorder = recorder();
        recorder.record(LatencyPath::DeliveryGroup, 105 * S, 100);
        recorder.record(LatencyPath::Connect, 105 * S, 100);
        recorder.record(LatencyPath::DeliveryGroup, 110 * S, 200);
        recorder.record(LatencyPath::DeliverySameServer, 129 * S, 300);
        let overall = recorder.overall();
        assert_eq!([LatencyPath::DeliveryGroup, LatencyPath::Delivery].map(|p| count(&overall, p)), [1, 2]);
        assert_eq!([LatencyPath::Connect, LatencyPath::Login].map(|p| count(&overall, p)), [1, 1]);
        let interval = recorder.take_interval(115 * S);
        assert!(interval.is_measured);
        assert_eq!(
            [LatencyPath::DeliveryGroup, LatencyPath::Delivery, LatencyPath::Connect]
                .map(|p| count(&interval.measured, p)),
            [1, 2, 1]
        );
        assert_eq!(
            [LatencyPath::DeliveryGroup, LatencyPath::Delivery, LatencyPath::Connect]
                .map(|p| count(&interval.unmeasured, p)),
            [1, 1, 0]
        );
        assert_eq!([LatencyPath::DeliveryGroup, LatencyPath::Delivery].map(|p| count(&interval.all(), p)), [2, 3]);
        let interval = recorder.take_interval(109 * S);
        assert!(interval.all().is_empty() && !interval.is_measured);
        assert_eq!(count(&recorder.overall(), LatencyPath::Delivery), 2);
    }

    #[test]
    fn what_was_due_in_the_warm_up_does_not_count_however_late_it_comes() {
        let recorder = recorder();
        recorder.due(109 * S);
        recorder.due(129 * S);
        recorder.acked(109 * S, 109 * S, Some(109 * S), 128 * S);
        recorder.delivered(LatencyPath::DeliveryGroup, 109 * S, 109 * S, 129 * S, 0);
        // Due in time, and there only after the end of the load.
        recorder.answered(129 * S, Some(130 * S), 132 * S);
        recorder.answered(129 * S, None, 133 * S);
        recorder.acked(129 * S, 130 * S, None, 133 * S);
        recorder.acked(129 * S, 130 * S, Some(132 * S), 133 * S);
        recorder.delivered(LatencyPath::DeliveryGroup, 129 * S, 130 * S, 135 * S, 0);
        let overall = recorder.overall();
        let seconds = |path| overall.get(&path).map(|l| (l.count(), (l.max_us() as f64 / 1e6).round()));
        assert_eq!([LatencyPath::Ack, LatencyPath::AckService].map(seconds), [Some((2, 4.0)), Some((2, 3.0))]);
        assert_eq!(seconds(LatencyPath::Answer), Some((2, 2.0)));
        assert_eq!(
            [LatencyPath::Delivery, LatencyPath::DeliveryService].map(seconds),
            [Some((1, 6.0)), Some((1, 5.0))]
        );
        let phases = recorder.phases();
        assert_eq!(
            phases.iter().map(|p| (p.phase, p.from_s, p.to_s)).collect::<Vec<_>>(),
            [(PhaseKind::WarmUp, 0.0, 10.0), (PhaseKind::Steady, 10.0, 30.0)]
        );
        assert_eq!(phases.iter().map(|p| (p.due, p.acked, p.delivered)).collect::<Vec<_>>(), [(1, 1, 1), (1, 2, 1)]);
        assert_eq!(phases[0].latency[LatencyPath::Ack].count, 1);
    }

    #[test]
    fn the_lag_of_the_load_is_kept_apart_from_that_of_its_end() {
        let recorder = recorder();
        recorder.late_by(LagOf::Other, 101 * S, 101 * S + 50);
        recorder.late_by(LagOf::Send, 111 * S, 111 * S + 70);
        recorder.late_by(LagOf::Other, 131 * S, 140 * S);
        let lag = recorder.lag().summary();
        assert_eq!((lag.count, lag.max_us), (2, 70));
        let overall = recorder.overall();
        assert_eq!(
            [LatencyPath::SendLag, LatencyPath::TimerLag].map(|p| count(&overall, p)),
            [1, 0],
            "of what is measured only"
        );
        assert_eq!(lag_of(&recorder.take_interval(0).all()).count, 3);
    }

    #[test]
    fn what_calls_waited_for_their_turn_is_measured_during_the_load_and_only_their_own_part_is_a_lag() {
        let recorder = recorder();
        let had_turn = |asked_s: u64, turn_s: u64, lag_us| {
            recorder.call_had_turn(SlotWait { asked_us: asked_s * S, turn_us: turn_s * S, lag_us });
        };
        had_turn(101, 103, S);
        had_turn(129, 131, 0);
        had_turn(130, 190, 60 * S);
        let overall = recorder.overall();
        let of = |path| overall.get(&path).map(|latency| (latency.count(), latency.max_us() / S));
        assert_eq!(of(LatencyPath::CallWait), Some((2, 2)), "in a warm-up, too; the end of the run is no load");
        assert_eq!(of(LatencyPath::CallLag), Some((2, 1)));
        assert_eq!(recorder.lag().summary().count, 0);
    }

    #[test]
    fn what_a_fetch_waited_for_is_a_lag_of_the_messages_of_channels_that_it_brought() {
        let recorder = recorder();
        recorder.delivered(LatencyPath::DeliveryChannel, 111 * S, 111 * S, 115 * S, 3 * S);
        recorder.delivered(LatencyPath::DeliveryChannel, 114 * S, 114 * S, 115 * S, 3 * S);
        recorder.delivered(LatencyPath::DeliveryGroup, 111 * S, 111 * S, 115 * S, 3 * S);
        recorder.delivered(LatencyPath::DeliveryAfterReconnect, 111 * S, 111 * S, 115 * S, 3 * S);
        let overall = recorder.overall();
        let lag = overall.get(&LatencyPath::FetchLag).expect("it is measured").summary();
        assert_eq!((lag.count, lag.max_us / S), (2, 3));
        assert!(lag.mean_us < 2.1 * S as f64, "the second was due when two of the three seconds had passed: {lag:?}");
    }
}
