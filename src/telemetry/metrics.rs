//! Metric names as enum variants, and the counters behind them: one [`Metrics`] per server.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::Latency;

macro_rules! names {
    ($(#[$doc:meta])* $name:ident { $( $(#[$vdoc:meta])* $variant:ident = $text:literal ),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $( $(#[$vdoc])* $variant ),* }

        impl $name {
            /// Every name, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The Prometheus name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
    };
}

names!(
    /// Things that only grow.
    Counter {
        /// Connections accepted.
        ConnectionsOpened = "chatctl_connections_opened_total",
        /// Connections that ended.
        ConnectionsClosed = "chatctl_connections_closed_total",
        /// Connections that were dropped at once: of HTTP where all places and those for probes were taken, of peers
        /// where too many had not said who they are.
        ConnectionsDropped = "chatctl_connections_dropped_total",
        /// Connections ended because the client read too slowly.
        SlowConsumers = "chatctl_slow_consumers_total",
        /// Connections ended because the client broke the WebSocket protocol.
        ProtocolViolations = "chatctl_protocol_violations_total",
        /// Handshakes that failed.
        HandshakesFailed = "chatctl_handshakes_failed_total",
        /// Frames that clients sent.
        FramesIn = "chatctl_frames_in_total",
        /// Messages that were acknowledged.
        SendsAcked = "chatctl_sends_acked_total",
        /// Messages that were refused or failed.
        SendsFailed = "chatctl_sends_failed_total",
        /// Message frames written to connections.
        Deliveries = "chatctl_deliveries_total",
        /// Messages pushed over peer links.
        PeerPushes = "chatctl_peer_pushes_total",
        /// Peer calls that failed.
        PeerFailures = "chatctl_peer_failures_total",
        /// Changes of rights that are stored, and that a server which did not answer was not told of.
        ChangesUntold = "chatctl_changes_untold_total",
        /// Records published to the log.
        LogPublished = "chatctl_log_published_total",
        /// Records read from the log.
        LogRead = "chatctl_log_read_total",
        /// `head` frames left out because a newer one followed at once.
        HeadsCoalesced = "chatctl_heads_coalesced_total",
        /// Messages of large channels that subscribers were told of by a `head` frame instead.
        ChannelMessagesSkipped = "chatctl_channel_messages_skipped_total",
        /// Messages that were published later than their sender waited.
        AnnouncedLate = "chatctl_announced_late_total",
        /// Messages that were announced again, since their recipient's connection was lost without a word.
        AnnouncedAgain = "chatctl_announced_again_total",
        /// Messages whose announcement was given up: too many waited.
        AnnouncementsDropped = "chatctl_announcements_dropped_total",
        /// Messages that were not delivered by push, since their conversation's members could not be read for a minute.
        DeliveriesGivenUp = "chatctl_deliveries_given_up_total",
        /// Notes of logouts, of replaced sessions and of friendships that ended which were forgotten too early: too
        /// many ended at once.
        NotesDropped = "chatctl_notes_dropped_total",
        /// Large conversations of which a server subscribed the first members only.
        GrownCutOff = "chatctl_grown_conversations_cut_off_total",
        /// Ids declared void.
        IdsVoided = "chatctl_ids_voided_total",
        /// Messages that were stored and not acknowledged, since their counter was overtaken.
        SendsFenced = "chatctl_sends_fenced_total",
        /// Conversations whose counter was rebuilt from the store.
        SequenceSeeds = "chatctl_sequence_seeds_total",
        /// Conversations whose counter went back in time: it was dropped, to be rebuilt from the store.
        SequenceRollbacks = "chatctl_sequence_rollbacks_total",
        /// Heartbeats taken.
        Beats = "chatctl_beats_total",
        /// Heartbeats thrown away because the way to the presence servers was blocked.
        BeatsDropped = "chatctl_beats_dropped_total",
        /// Changes of presence for which there was no room while the log was away.
        PresenceChangesDropped = "chatctl_presence_changes_dropped_total",
        /// Users that came online.
        PresenceOnline = "chatctl_presence_online_total",
        /// Users that went offline.
        PresenceOffline = "chatctl_presence_offline_total",
        /// HTTP requests answered.
        HttpRequests = "chatctl_http_requests_total",
        /// HTTP requests answered with a 5xx status.
        HttpServerErrors = "chatctl_http_server_errors_total",
        /// Logins that succeeded.
        Logins = "chatctl_logins_total",
        /// Push notifications handed over.
        Notifications = "chatctl_notifications_total",
        /// Notifications that are not looked at again when the recipient's chat server turns out to be gone: too many
        /// wait.
        SecondLooksDropped = "chatctl_second_looks_dropped_total",
        /// Requests and frames refused by a rate limit.
        RateLimited = "chatctl_rate_limited_total",
        /// Calls to an engine that failed or timed out.
        BackendErrors = "chatctl_backend_errors_total",
    }
);

names!(
    /// Things that go up and down.
    Gauge {
        /// Open, authenticated connections.
        Connections = "chatctl_connections",
        /// Records of the log not read yet.
        LagRecords = "chatctl_log_lag_records",
        /// Age of the oldest record not read yet, in ms; 0 if none.
        LagMs = "chatctl_log_lag_milliseconds",
        /// Partitions of the log that this server reads.
        LogPartitions = "chatctl_log_partitions",
        /// Notifications that wait for the second look at a recipient whose chat server is gone.
        NotificationsHeld = "chatctl_notifications_held",
        /// 1 while the server drains.
        Draining = "chatctl_draining",
    }
);

names!(
    /// Durations.
    Timer {
        /// From a `send` frame read to its ACK written.
        Send = "chatctl_send_seconds",
        /// One call to an engine.
        Backend = "chatctl_backend_seconds",
        /// One HTTP request.
        Http = "chatctl_http_seconds",
        /// From a record published to its frames written.
        Fanout = "chatctl_fanout_seconds",
    }
);

/// How far a server is behind in one partition of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionFigures {
    /// `inbox`, `presence-updates` or `channel`.
    pub topic: &'static str,
    /// Which partition.
    pub partition: u32,
    /// Records not read yet.
    pub records: u64,
    /// Age of the oldest of them, in ms; 0 if none.
    pub age_ms: u64,
}

/// Records of a partition that a server has not read yet. Servers that do not read the partition have no sample: counting
/// samples by partition tells how many read it.
pub const PARTITION_LAG_RECORDS: &str = "chatctl_log_partition_lag_records";

/// Age of the oldest record of a partition that a server has not read yet, in ms; 0 if none.
pub const PARTITION_LAG_MS: &str = "chatctl_log_partition_lag_milliseconds";

/// The figures of one server. Written by its tasks, read by `/metrics`.
#[derive(Debug)]
pub struct Metrics {
    role: &'static str,
    server: String,
    counters: Vec<AtomicU64>,
    gauges: Vec<AtomicU64>,
    timers: Vec<Mutex<Latency>>,
    partitions: Mutex<Vec<PartitionFigures>>,
}

impl Metrics {
    /// All zero.
    #[must_use]
    pub fn new(role: &'static str, server: &str) -> Self {
        Self {
            role,
            server: server.to_owned(),
            counters: Counter::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
            gauges: Gauge::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
            timers: Timer::ALL.iter().map(|_| Mutex::default()).collect(),
            partitions: Mutex::default(),
        }
    }

    /// The server's role, a label of every metric.
    #[must_use]
    pub const fn role(&self) -> &'static str {
        self.role
    }

    /// The server's name, a label of every metric.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Adds one.
    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Adds some.
    pub fn add(&self, counter: Counter, n: u64) {
        self.counters[counter as usize].fetch_add(n, Ordering::Relaxed);
    }

    /// Reads a counter.
    #[must_use]
    pub fn counted(&self, counter: Counter) -> u64 {
        self.counters[counter as usize].load(Ordering::Relaxed)
    }

    /// Sets a gauge.
    pub fn set(&self, gauge: Gauge, value: u64) {
        self.gauges[gauge as usize].store(value, Ordering::Relaxed);
    }

    /// Reads a gauge.
    #[must_use]
    pub fn gauge(&self, gauge: Gauge) -> u64 {
        self.gauges[gauge as usize].load(Ordering::Relaxed)
    }

    /// Sets the partitions that the server reads.
    pub fn set_partitions(&self, partitions: Vec<PartitionFigures>) {
        *self.partitions.lock().expect("no panic while held") = partitions;
    }

    /// The partitions that the server reads.
    #[must_use]
    pub fn partitions(&self) -> Vec<PartitionFigures> {
        self.partitions.lock().expect("no panic while held").clone()
    }

    /// Adds a duration, in µs.
    pub fn time_us(&self, timer: Timer, us: u64) {
        self.timers[timer as usize].lock().expect("no panic while held").record_us(us);
    }

    /// Durations recorded so far.
    #[must_use]
    pub fn timer(&self, timer: Timer) -> Latency {
        self.timers[timer as usize].lock().expect("no panic while held").clone()
    }
}

/// All servers of this process. Clones are the same registry.
#[derive(Debug, Clone, Default)]
pub struct Registry(Arc<Mutex<Vec<Arc<Metrics>>>>);

impl Registry {
    /// Makes the metrics of one server and keeps them for `/metrics`. A server that starts again under its old name
    /// starts from zero.
    pub fn register(&self, role: &'static str, server: &str) -> Arc<Metrics> {
        let metrics = Arc::new(Metrics::new(role, server));
        let mut all = self.0.lock().expect("no panic while held");
        all.retain(|m| m.server != server);
        all.push(Arc::clone(&metrics));
        metrics
    }

    /// Takes a server that is gone out of `/metrics`.
    pub fn forget(&self, server: &str) {
        self.0.lock().expect("no panic while held").retain(|m| m.server != server);
    }

    /// The servers, in the order in which they registered.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Metrics>> {
        self.0.lock().expect("no panic while held").clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_in_the_documents() {
        let table = include_str!("../../docs/operating.md");
        for counter in Counter::ALL.iter().filter(|counter| counter.name().contains("_dropped_")) {
            assert!(table.contains(&format!("| `{}` |", counter.name())), "{}", counter.name());
        }
    }
}
