//! Latency paths: what takes its time in a run, under the names that they have in thresholds and results.

use std::cmp::Ordering;
use std::collections::{BTreeMap, btree_map};
use std::fmt;
use std::ops::Index;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What took its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LatencyPath {
    /// From the wish to connect to `welcome`.
    Connect,
    /// `POST /login`.
    Login,
    /// From the time at which a message is due until its sender's device takes it: the generator's own part of what
    /// follows.
    SendLag,
    /// The same of everything else that is due at a time: connects, leaves, beats, changes of membership, faults.
    TimerLag,
    /// From the wish to make a call of the API until the generator, which makes so many at once and no more, makes it.
    CallWait,
    /// What of that its tasks waited for a processor, and not the calls before it for the target: the generator's own part of
    /// connects, syncs and recoveries.
    CallLag,
    /// The same of the fetch that brought a message of a large channel: the generator's own part of its delivery.
    FetchLag,
    /// From the time at which a message is due to its ACK.
    Ack,
    /// From the first write of a message to its ACK.
    AckService,
    /// From a write of a message to the first answer to it on that connection, whatever it says: an ACK, a refusal, "try again
    /// later". A connection that ends first is the answer, too.
    Answer,
    /// From the time at which a message is due to each device that was connected: all of the four below.
    Delivery,
    /// The same from the first write.
    DeliveryService,
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

impl LatencyPath {
    /// All paths.
    pub const ALL: [Self; 22] = [
        Self::Connect,
        Self::Login,
        Self::SendLag,
        Self::TimerLag,
        Self::CallWait,
        Self::CallLag,
        Self::FetchLag,
        Self::Ack,
        Self::AckService,
        Self::Answer,
        Self::Delivery,
        Self::DeliveryService,
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
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Login => "login",
            Self::SendLag => "send_lag",
            Self::TimerLag => "timer_lag",
            Self::CallWait => "call_wait",
            Self::CallLag => "call_lag",
            Self::FetchLag => "fetch_lag",
            Self::Ack => "ack",
            Self::AckService => "ack_service",
            Self::Answer => "answer",
            Self::Delivery => "delivery",
            Self::DeliveryService => "delivery_service",
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

    /// The path with a name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|path| path.as_str() == name)
    }

    /// The time from the first write, of a path that is also measured from the due time.
    #[must_use]
    pub const fn service(self) -> Option<Self> {
        match self {
            Self::Ack => Some(Self::AckService),
            Self::Delivery => Some(Self::DeliveryService),
            Self::Connect
            | Self::Login
            | Self::SendLag
            | Self::TimerLag
            | Self::CallWait
            | Self::CallLag
            | Self::FetchLag
            | Self::AckService
            | Self::Answer
            | Self::DeliveryService
            | Self::DeliverySameServer
            | Self::DeliveryOtherServer
            | Self::DeliveryGroup
            | Self::DeliveryChannel
            | Self::DeliveryAfterReconnect
            | Self::DeliverySlowReader
            | Self::PresenceOnline
            | Self::PresenceOffline
            | Self::Sync
            | Self::Recovery => None,
        }
    }

    /// True for what begins when a message is due or written, and so has the generator's lag in it.
    #[must_use]
    pub const fn is_from_a_send(self) -> bool {
        matches!(self, Self::Ack | Self::Answer | Self::Delivery) || self.is_part_of_delivery()
    }

    /// True for the paths whose sum is [`LatencyPath::Delivery`].
    #[must_use]
    pub const fn is_part_of_delivery(self) -> bool {
        matches!(
            self,
            Self::DeliverySameServer | Self::DeliveryOtherServer | Self::DeliveryGroup | Self::DeliveryChannel
        )
    }

    /// True for deliveries of every kind, counted from the due time or from the first write.
    #[must_use]
    pub const fn is_delivery(self) -> bool {
        self.is_part_of_delivery()
            || matches!(
                self,
                Self::Delivery | Self::DeliveryService | Self::DeliveryAfterReconnect | Self::DeliverySlowReader
            )
    }

    /// True for what happens once per client and is measured from the first second, warm-up or not.
    #[must_use]
    pub const fn is_always_measured(self) -> bool {
        matches!(
            self,
            Self::Connect
                | Self::Login
                | Self::CallWait
                | Self::CallLag
                | Self::Recovery
                | Self::PresenceOnline
                | Self::PresenceOffline
        )
    }

    /// The generator's own lag that is in each sample of it and is measured with it, and how often at the most: a message is
    /// late when it is sent and when it is taken, and one of a large channel is fetched.
    #[must_use]
    pub const fn lags_of_each(self) -> &'static [(Self, f64)] {
        match self {
            Self::DeliveryChannel => &[(Self::SendLag, 2.0), (Self::FetchLag, 1.0)],
            _ if self.is_from_a_send() => &[(Self::SendLag, 2.0)],
            _ => &[],
        }
    }

    /// The generator's own lag that is in some samples of it, and how often at the most: that of calls, most of which are
    /// made for something else, and that of deliveries of one kind. Who comes back asks for a placement, an inbox and a page.
    #[must_use]
    pub const fn lags_of_some(self) -> &'static [(Self, f64)] {
        match self {
            Self::Connect | Self::Sync => &[(Self::CallLag, 1.0)],
            Self::Recovery | Self::DeliveryAfterReconnect => &[(Self::CallLag, 3.0)],
            Self::Delivery => &[(Self::FetchLag, 1.0)],
            _ => &[],
        }
    }

    /// True for what the generator itself was late by with what is due at a time.
    #[must_use]
    pub const fn is_lag(self) -> bool {
        matches!(self, Self::SendLag | Self::TimerLag)
    }
}

impl fmt::Display for LatencyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The name under which a latency stands in results. Parsed where a file is read, and compared as an enum after that.
#[derive(Debug, Clone)]
pub enum PathName {
    /// A path.
    Path(LatencyPath),
    /// How late the generator was with everything that was due, up to the end of the load. Among the histograms only.
    GeneratorLag,
    /// In a file of another version: one that this version does not have. Kept as it is.
    Other(Box<str>),
}

impl PathName {
    /// The name in results.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Path(path) => path.as_str(),
            Self::GeneratorLag => "generator_lag",
            Self::Other(name) => name,
        }
    }

    /// Reads a name.
    #[must_use]
    pub fn parse(name: &str) -> Self {
        match LatencyPath::parse(name) {
            Some(path) => Self::Path(path),
            None if name == Self::GeneratorLag.as_str() => Self::GeneratorLag,
            None => Self::Other(name.into()),
        }
    }
}

impl From<LatencyPath> for PathName {
    fn from(path: LatencyPath) -> Self {
        Self::Path(path)
    }
}

impl From<&Self> for PathName {
    fn from(name: &Self) -> Self {
        name.clone()
    }
}

impl PartialEq for PathName {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for PathName {}

/// By name, which is the order in results.
impl Ord for PathName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl PartialOrd for PathName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for PathName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for PathName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for PathName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::parse(&String::deserialize(deserializer)?))
    }
}

/// Values by latency path, in the order of their names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByPath<V>(BTreeMap<PathName, V>);

impl<V> ByPath<V> {
    /// Without any value.
    #[must_use]
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// The value of a path.
    pub fn get(&self, path: impl Into<PathName>) -> Option<&V> {
        self.0.get(&path.into())
    }

    /// Sets the value of a path; returns the one before.
    pub fn insert(&mut self, path: impl Into<PathName>, value: V) -> Option<V> {
        self.0.insert(path.into(), value)
    }

    /// Takes the value of a path.
    pub fn remove(&mut self, path: impl Into<PathName>) -> Option<V> {
        self.0.remove(&path.into())
    }

    /// The place of a path's value.
    pub fn entry(&mut self, path: impl Into<PathName>) -> btree_map::Entry<'_, PathName, V> {
        self.0.entry(path.into())
    }

    /// All names and values.
    pub fn iter(&self) -> btree_map::Iter<'_, PathName, V> {
        self.0.iter()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Removes all.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl<V> Default for ByPath<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V, P: Into<PathName>> Index<P> for ByPath<V> {
    type Output = V;

    fn index(&self, path: P) -> &V {
        &self.0[&path.into()]
    }
}

impl<V, P: Into<PathName>> FromIterator<(P, V)> for ByPath<V> {
    fn from_iter<I: IntoIterator<Item = (P, V)>>(values: I) -> Self {
        Self(values.into_iter().map(|(path, value)| (path.into(), value)).collect())
    }
}

impl<V, P: Into<PathName>, const N: usize> From<[(P, V); N]> for ByPath<V> {
    fn from(values: [(P, V); N]) -> Self {
        values.into_iter().collect()
    }
}

impl<V> IntoIterator for ByPath<V> {
    type Item = (PathName, V);
    type IntoIter = btree_map::IntoIter<PathName, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a, V> IntoIterator for &'a ByPath<V> {
    type Item = (&'a PathName, &'a V);
    type IntoIter = btree_map::Iter<'a, PathName, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_stands_at_its_number_and_reads_back_what_it_writes() {
        for (n, path) in LatencyPath::ALL.into_iter().enumerate() {
            assert_eq!(path as usize, n, "{path}");
            assert_eq!(PathName::parse(path.as_str()), PathName::Path(path));
            assert_eq!(path.is_delivery(), path.as_str().starts_with("delivery"), "{path}");
        }
    }

    #[test]
    fn a_name_of_another_version_stays() {
        let text = r#"{"ack":1,"delivery":2,"generator_lag":3,"teleport":4}"#;
        let by_path: ByPath<u32> = serde_json::from_str(text).expect("reads");
        assert_eq!((by_path[LatencyPath::Ack], by_path.get(PathName::GeneratorLag)), (1, Some(&3)));
        assert_eq!(by_path.get(PathName::Other("teleport".into())), Some(&4));
        assert_eq!(serde_json::to_string(&by_path).expect("writes"), text);
    }
}
