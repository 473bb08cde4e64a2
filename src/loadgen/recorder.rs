//! Latencies by path, in µs from the intended time, and counters.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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
    /// Devices that were not connected when the message was due, and got it by sync.
    DeliveryAfterReconnect,
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
    pub const ALL: [Self; 13] = [
        Self::Connect,
        Self::Login,
        Self::Ack,
        Self::Delivery,
        Self::DeliverySameServer,
        Self::DeliveryOtherServer,
        Self::DeliveryGroup,
        Self::DeliveryChannel,
        Self::DeliveryAfterReconnect,
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
            Self::PresenceOnline => "presence_online",
            Self::PresenceOffline => "presence_offline",
            Self::Sync => "sync",
            Self::Recovery => "recovery",
        }
    }

    /// True for what happens once per client and is measured from the first second, warm-up or not.
    const fn is_always_measured(self) -> bool {
        matches!(self, Self::Connect | Self::Login | Self::Recovery | Self::PresenceOnline | Self::PresenceOffline)
    }
}

#[derive(Default)]
struct Shard {
    overall: BTreeMap<Path, Latency>,
    interval: BTreeMap<Path, Latency>,
}

const SHARDS: usize = 8;

/// All latencies of a run. Sharded by client, so that threads rarely meet.
pub(super) struct Recorder {
    shards: [Mutex<Shard>; SHARDS],
    /// False during warm-up. Written by the engine.
    measuring: AtomicBool,
    /// How late the generator did things. Written by whoever is late.
    lag: Mutex<(Latency, Latency)>,
}

impl Recorder {
    pub(super) fn new() -> Self {
        Self { shards: Default::default(), measuring: AtomicBool::new(false), lag: Mutex::default() }
    }

    pub(super) fn measure(&self, on: bool) {
        self.measuring.store(on, Ordering::Relaxed);
    }

    pub(super) fn record(&self, client: u32, path: Path, us: u64) {
        let mut shard = self.shards[client as usize % SHARDS].lock().expect("no panic while held");
        shard.interval.entry(path).or_default().record_us(us);
        if path.is_always_measured() || self.measuring.load(Ordering::Relaxed) {
            shard.overall.entry(path).or_default().record_us(us);
        }
    }

    /// Notes that the generator did something `us` after it was due.
    pub(super) fn late_by(&self, us: u64) {
        let mut lag = self.lag.lock().expect("no panic while held");
        lag.0.record_us(us);
        lag.1.record_us(us);
    }

    /// The lag of the whole run, and of the interval, which begins anew.
    pub(super) fn take_lag(&self) -> (LatencySummary, LatencySummary) {
        let mut lag = self.lag.lock().expect("no panic while held");
        let summaries = (lag.0.summary(), lag.1.summary());
        lag.1.clear();
        summaries
    }

    /// Everything measured so far.
    pub(super) fn overall(&self) -> BTreeMap<Path, Latency> {
        let mut all: BTreeMap<Path, Latency> = BTreeMap::new();
        for shard in &self.shards {
            let shard = shard.lock().expect("no panic while held");
            for (path, latency) in &shard.overall {
                all.entry(*path).or_default().merge(latency);
            }
        }
        all
    }

    /// What came since the last call.
    pub(super) fn take_interval(&self) -> BTreeMap<Path, Latency> {
        let mut all: BTreeMap<Path, Latency> = BTreeMap::new();
        for shard in &self.shards {
            let interval = std::mem::take(&mut shard.lock().expect("no panic while held").interval);
            for (path, latency) in interval {
                all.entry(path).or_default().merge(&latency);
            }
        }
        all
    }
}

/// Summaries by name.
pub(super) fn summaries(latencies: &BTreeMap<Path, Latency>) -> BTreeMap<String, LatencySummary> {
    latencies.iter().map(|(path, latency)| (path.name().to_owned(), latency.summary())).collect()
}

/// Counters of a run. Written by clients, read by the engine.
#[derive(Default)]
pub(super) struct Stats {
    pub(super) intended: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) acked: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) unresolved: AtomicU64,
    pub(super) delivered: AtomicU64,
    pub(super) frames: AtomicU64,
    pub(super) repeated_on_wire: AtomicU64,
    pub(super) connects: AtomicU64,
    pub(super) reconnects: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) wanted: AtomicU64,
    pub(super) gaps_synced: AtomicU64,
    /// Messages sent and not answered yet.
    pub(super) pending: AtomicU64,
    /// Errors by code.
    pub(super) errors: Mutex<BTreeMap<String, u64>>,
}

impl Stats {
    pub(super) fn error(&self, code: &str) {
        *self.errors.lock().expect("no panic while held").entry(code.to_owned()).or_default() += 1;
    }
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// Takes from a counter.
pub(super) fn sub(counter: &AtomicU64, n: u64) {
    counter.fetch_sub(n, Ordering::Relaxed);
}

/// Reads a counter.
pub(super) fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
