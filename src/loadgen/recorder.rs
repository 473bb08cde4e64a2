//! Latencies by path, in µs from the intended time.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use crate::telemetry::{Latency, LatencySummary};

/// What took its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Path {
    /// From the wish to connect to `welcome`.
    Connect,
    /// `POST /login`.
    Login,
    /// From the intended send to the ACK.
    Ack,
    /// From the intended send to each device that was connected: all of the four below.
    Delivery,
    /// One-to-one, sender and recipient on the same server.
    DeliverySameServer,
    /// One-to-one, sender and recipient on different servers.
    DeliveryOtherServer,
    /// Groups fanned out on write.
    DeliveryGroup,
    /// Large channels: `head`, then fetched through sync.
    DeliveryChannel,
    /// Devices that were not connected, or whose user was no member, when the message was due: they got it by sync.
    DeliveryAfterReconnect,
    /// Devices that read slowly on purpose: what they waited for is themselves.
    DeliverySlowReader,
    /// From a user's first beat to each online friend being told.
    PresenceOnline,
    /// From a user's last beat to each online friend being told; 30 to 35 s are right.
    PresenceOffline,
    /// One `GET /messages/sync`.
    Sync,
    /// From a lost connection to being connected and caught up.
    Recovery,
}

impl Path {
    /// All paths.
    pub const ALL: [Self; 14] = [
        Self::Connect,
        Self::Login,
        Self::Ack,
        Self::Delivery,
        Self::DeliverySameServer,
        Self::DeliveryOtherServer,
        Self::DeliveryGroup,
        Self::DeliveryChannel,
        Self::DeliveryAfterReconnect,
        Self::DeliverySlowReader,
        Self::PresenceOnline,
        Self::PresenceOffline,
        Self::Sync,
        Self::Recovery,
    ];

    /// The name in results and thresholds.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Login => "login",
            Self::Ack => "ack",
            Self::Delivery => "delivery",
            Self::DeliverySameServer => "delivery_same_server",
            Self::DeliveryOtherServer => "delivery_other_server",
            Self::DeliveryGroup => "delivery_group",
            Self::DeliveryChannel => "delivery_channel",
            Self::DeliveryAfterReconnect => "delivery_after_reconnect",
            Self::DeliverySlowReader => "delivery_slow_reader",
            Self::PresenceOnline => "presence_online",
            Self::PresenceOffline => "presence_offline",
            Self::Sync => "sync",
            Self::Recovery => "recovery",
        }
    }

    /// True for what is measured over the whole run, warm-up or not.
    #[must_use]
    pub fn is_measured_in_warm_up(name: &str) -> bool {
        Self::ALL.into_iter().any(|path| path.is_always_measured() && path.name() == name)
    }

    /// True for the paths whose sum is [`Path::Delivery`].
    const fn is_part_of_delivery(self) -> bool {
        matches!(
            self,
            Self::DeliverySameServer | Self::DeliveryOtherServer | Self::DeliveryGroup | Self::DeliveryChannel
        )
    }

    /// True for what happens once per client and is measured from the first second, warm-up or not.
    const fn is_always_measured(self) -> bool {
        matches!(self, Self::Connect | Self::Login | Self::Recovery | Self::PresenceOnline | Self::PresenceOffline)
    }
}

/// Latencies of one interval, by path. Indexed rather than mapped: this is what every received message touches.
type Interval = [Option<Box<Latency>>; Path::ALL.len()];

const SHARDS: usize = 8;

/// All latencies of a run. Sharded by client, so that threads rarely meet.
///
/// A latency is recorded once, in its shard's interval; the interval is folded into the run's totals when somebody looks.
pub(super) struct Recorder {
    shards: [Mutex<Interval>; SHARDS],
    folded: Mutex<Folded>,
    /// How late the generator did things. Written by whoever is late.
    lag: Mutex<(Latency, Latency)>,
}

/// What was folded. Written by `fold`.
#[derive(Default)]
struct Folded {
    /// False during warm-up.
    is_measuring: bool,
    overall: BTreeMap<Path, Latency>,
    /// Since the last [`Recorder::take_interval`].
    interval: BTreeMap<Path, Latency>,
}

impl Recorder {
    pub(super) fn new() -> Self {
        Self { shards: Default::default(), folded: Mutex::default(), lag: Mutex::default() }
    }

    /// Begins or ends measuring; what was recorded before counts by the old state.
    pub(super) fn measure(&self, on: bool) {
        self.fold().is_measuring = on;
    }

    pub(super) fn record(&self, client: u32, path: Path, us: u64) {
        let mut shard = self.shards[client as usize % SHARDS].lock().expect("no panic while held");
        shard[path as usize].get_or_insert_default().record_us(us);
    }

    /// Folds the shards into the totals.
    fn fold(&self) -> MutexGuard<'_, Folded> {
        let mut folded = self.folded.lock().expect("no panic while held");
        for shard in &self.shards {
            let taken = std::mem::take(&mut *shard.lock().expect("no panic while held"));
            for (path, latency) in Path::ALL.into_iter().zip(taken) {
                let Some(latency) = latency else { continue };
                folded.add(path, &latency);
                if path.is_part_of_delivery() {
                    folded.add(Path::Delivery, &latency);
                }
            }
        }
        folded
    }

    /// Notes that the generator did something `us` after it was due.
    pub(super) fn late_by(&self, us: u64) {
        let mut lag = self.lag.lock().expect("no panic while held");
        lag.0.record_us(us);
        lag.1.record_us(us);
    }

    /// The lag of the whole run so far.
    pub(super) fn lag(&self) -> Latency {
        self.lag.lock().expect("no panic while held").0.clone()
    }

    /// The lag of the interval, which begins anew.
    pub(super) fn take_lag(&self) -> LatencySummary {
        std::mem::take(&mut self.lag.lock().expect("no panic while held").1).summary()
    }

    /// Everything measured so far.
    pub(super) fn overall(&self) -> BTreeMap<Path, Latency> {
        self.fold().overall.clone()
    }

    /// What came since the last call, and whether it counts.
    pub(super) fn take_interval(&self) -> (BTreeMap<Path, Latency>, bool) {
        let mut folded = self.fold();
        (std::mem::take(&mut folded.interval), folded.is_measuring)
    }
}

impl Folded {
    fn add(&mut self, path: Path, latency: &Latency) {
        self.interval.entry(path).or_default().merge(latency);
        if path.is_always_measured() || self.is_measuring {
            self.overall.entry(path).or_default().merge(latency);
        }
    }
}

/// The same by name.
pub(super) fn named(latencies: BTreeMap<Path, Latency>) -> BTreeMap<String, Latency> {
    latencies.into_iter().map(|(path, latency)| (path.name().to_owned(), latency)).collect()
}

/// Summaries by name.
pub(super) fn summaries(latencies: &BTreeMap<Path, Latency>) -> BTreeMap<String, LatencySummary> {
    latencies.iter().map(|(path, latency)| (path.name().to_owned(), latency.summary())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(latencies: &BTreeMap<Path, Latency>, path: Path) -> u64 {
        latencies.get(&path).map_or(0, Latency::count)
    }

    #[test]
    fn a_warm_up_is_shown_and_not_measured() {
        let recorder = Recorder::new();
        recorder.record(1, Path::DeliveryGroup, 100);
        recorder.record(1, Path::Connect, 100);
        recorder.measure(true);
        recorder.record(2, Path::DeliveryGroup, 200);
        recorder.record(3, Path::DeliverySameServer, 300);
        let overall = recorder.overall();
        assert_eq!([Path::DeliveryGroup, Path::Delivery, Path::Connect].map(|p| count(&overall, p)), [1, 2, 1]);
        let (interval, is_measured) = recorder.take_interval();
        assert!(is_measured);
        assert_eq!([Path::DeliveryGroup, Path::Delivery].map(|p| count(&interval, p)), [2, 3]);
        assert!(recorder.take_interval().0.is_empty());
        assert_eq!(count(&recorder.overall(), Path::Delivery), 2);
    }
}
