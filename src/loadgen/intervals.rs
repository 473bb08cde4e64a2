//! What was measured in each second of the load: latencies by path, and what the generator's machine did meanwhile. The `.hlog`
//! files come from it, and what the verdict says of single seconds.

use crate::telemetry::live::MachineLoad;
use crate::telemetry::{ByPath, Latency, LatencyPath, LatencySummary, PathName};

/// Intervals that are kept; in a longer run neighbours are joined, the shortest and oldest first.
const KEPT_MAX: usize = 1_200;

/// The intervals of a run, in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Intervals {
    rows: Vec<Interval>,
}

/// A second of a run, or a few of a long one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Interval {
    /// When it began, in seconds from the start of the load.
    pub from_s: f64,
    /// When it ended.
    pub to_s: f64,
    /// What the machine did. Of the time after the load it is not kept.
    pub machine: Option<MachineLoad>,
    /// Latencies by path, as [`Latency::to_bytes`] makes them: only of what counts, and by when they were recorded.
    packed: ByPath<Box<[u8]>>,
}

impl Interval {
    /// An interval with its latencies; those that can't be written are left out.
    #[must_use]
    pub fn new(from_s: f64, to_s: f64, machine: Option<MachineLoad>, latencies: &ByPath<Latency>) -> Self {
        let pack = |(path, latency): (&PathName, &Latency)| Some((path.clone(), latency.to_bytes().ok()?.into()));
        Self { from_s, to_s, machine, packed: latencies.iter().filter_map(pack).collect() }
    }

    /// The latencies of a path.
    #[must_use]
    pub fn latency(&self, path: impl Into<PathName>) -> Option<Latency> {
        self.packed.get(path).and_then(|bytes| Latency::from_bytes(bytes).ok())
    }

    /// How late the generator was with messages.
    #[must_use]
    pub fn send_lag(&self) -> LatencySummary {
        self.latency(LatencyPath::SendLag).map(|lag| lag.summary()).unwrap_or_default()
    }

    fn seconds(&self) -> f64 {
        self.to_s - self.from_s
    }

    /// Takes the interval behind it.
    fn join(&mut self, next: &Self) {
        self.machine = match (self.machine, next.machine) {
            (Some(a), Some(b)) => Some(a.joined(self.seconds(), b, next.seconds())),
            (a, b) => a.or(b),
        };
        self.to_s = next.to_s;
        for (path, bytes) in &next.packed {
            let more = || Latency::from_bytes(bytes).ok();
            let joined = match self.latency(path) {
                Some(mut latency) => more().and_then(|more| {
                    latency.merge(&more);
                    latency.to_bytes().ok()
                }),
                None => Some(bytes.to_vec()),
            };
            if let Some(joined) = joined {
                self.packed.insert(path, joined.into());
            }
        }
    }
}

impl Intervals {
    /// Appends an interval; it begins where the last one ended.
    pub fn push(&mut self, to_s: f64, machine: Option<MachineLoad>, latencies: &ByPath<Latency>) {
        let from_s = self.rows.last().map_or(0.0, |last| last.to_s);
        self.rows.push(Interval::new(from_s, to_s.max(from_s), machine, latencies));
        if self.rows.len() > KEPT_MAX {
            let lengths = self.rows.windows(2).map(|pair| pair[1].to_s - pair[0].from_s);
            // The first of the shortest; `min_by` would take the last of equals only from the other end.
            let shortest = lengths.enumerate().min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(at, _)| at);
            let next = self.rows.remove(shortest + 1);
            self.rows[shortest].join(&next);
        }
    }

    /// Appends what the intervals lack of the latencies of the whole run.
    pub fn complete(&mut self, to_s: f64, whole: &ByPath<Latency>) {
        let lacks = |(path, latency): (&PathName, &Latency)| {
            let left = latency.without(&self.merged(path, |_, _| true))?;
            (left.count() > 0).then(|| (path.clone(), left))
        };
        let rest: ByPath<Latency> = whole.iter().filter_map(lacks).collect();
        if !rest.is_empty() {
            self.push(to_s, None, &rest);
        }
    }

    /// The intervals.
    #[must_use]
    pub fn rows(&self) -> &[Interval] {
        &self.rows
    }

    /// The latencies of a path over the intervals that `take` says.
    pub fn merged(&self, path: impl Into<PathName>, take: impl Fn(usize, &Interval) -> bool) -> Latency {
        let path = path.into();
        let mut merged = Latency::default();
        let taken = self.rows.iter().enumerate().filter(|(at, row)| take(*at, row));
        taken.filter_map(|(_, row)| row.latency(&path)).for_each(|latency| merged.merge(&latency));
        merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latencies(us: u64) -> ByPath<Latency> {
        let mut latency = Latency::default();
        latency.record_us(us);
        ByPath::from([(LatencyPath::Ack, latency)])
    }

    #[test]
    fn what_is_known_at_the_end_only_is_the_last_interval() {
        let mut intervals = Intervals::default();
        intervals.push(1.0, None, &latencies(5));
        let mut whole = latencies(5);
        whole.entry(LatencyPath::Ack).or_default().record_us(7);
        intervals.complete(3.0, &whole);
        intervals.complete(4.0, &whole);
        let rows: Vec<_> =
            intervals.rows().iter().map(|row| (row.to_s, row.latency(LatencyPath::Ack).map(|l| l.max_us()))).collect();
        assert_eq!(rows, [(1.0, Some(5)), (3.0, Some(7))]);
    }

    #[test]
    fn a_long_run_keeps_all_its_samples_in_fewer_intervals() {
        let mut intervals = Intervals::default();
        let seconds = KEPT_MAX as u64 * 2;
        for second in 1..=seconds {
            let machine = MachineLoad { used_cores: second as f64, ..MachineLoad::default() };
            intervals.push(second as f64, Some(machine), &latencies(second));
        }
        let rows = intervals.rows();
        assert_eq!(rows.len(), KEPT_MAX);
        assert!(rows.windows(2).all(|w| (w[0].to_s - w[1].from_s).abs() < 1e-9));
        let longest = rows.iter().map(|row| row.to_s - row.from_s).fold(0.0, f64::max);
        assert!((2.0..=4.0).contains(&longest), "{longest}");
        let all = intervals.merged(LatencyPath::Ack, |_, _| true);
        assert!(all.count() == seconds && all.max_us().abs_diff(seconds) <= seconds / 1_000, "{:?}", all.summary());
        let first = &rows[0];
        assert!(first.machine.is_some_and(|m| m.used_cores > 1.0 && m.used_cores < first.to_s), "{first:?}");
        assert_eq!(intervals.merged(LatencyPath::Ack, |_, row| row.to_s <= first.to_s).count(), first.to_s as u64);
    }
}
