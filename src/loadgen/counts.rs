//! What a run counted, and what its verdict rests on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

macro_rules! counts {
    ($( $(#[$doc:meta])* $name:ident ),* $(,)?) => {
        /// What was counted over the whole run.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Counts { $( $(#[$doc])* pub $name: u64 ),* }

        impl Counts {
            /// Names of all counts, for thresholds.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];

            /// Both, put together one by one.
            #[must_use]
            pub fn zip(&self, other: &Self, with: impl Fn(u64, u64) -> u64) -> Self {
                Self { $( $name: with(self.$name, other.$name) ),* }
            }

            /// The count of a name.
            #[must_use]
            pub fn get(&self, name: &str) -> Option<f64> {
                match name {
                    $( stringify!($name) => Some(self.$name as f64), )*
                    _ => None,
                }
            }
        }
    };
}

counts!(
    /// Acknowledged messages that are not stored, and stored ones that a member's device or view never got.
    lost,
    /// Messages shown twice to a person, or stored under two ids.
    duplicated,
    /// Messages shown after a younger one.
    out_of_order,
    /// Ids that belonged to two messages, or were not the acknowledged ones.
    id_reuse,
    /// Messages acknowledged under an id below that of a message that was acknowledged before they were first sent.
    id_went_back,
    /// Messages shown to, or readable by, somebody who was not a member when they were sent.
    leaked,
    /// Messages whose body, sender, kind, reply or time came or was stored changed.
    altered,
    /// Messages refused definitely, and stored or shown all the same.
    false_refusal,
    /// Messages acknowledged, stored or shown whose sender was removed before they were first sent, and was not back.
    false_acceptance,
    /// ACKs with another id than before, or for another conversation; ACKs and errors for messages that the device did not
    /// send.
    ack_wrong,
    /// Messages, receipts and typing notices that no simulated client sent.
    forged,
    /// Presence notices that contradict the beats.
    presence_wrong,
    /// Changes of presence that a watching friend had to be told and was not.
    presence_missed,
    /// Presence notices about somebody who is no friend.
    presence_leaked,
    /// Messages that the rates asked for.
    scheduled,
    /// Messages of those that nobody could send, since no talker was online and a member.
    skipped,
    /// Messages that were due.
    intended,
    /// Messages written at least once.
    sent,
    /// Messages of those that had no answer for five seconds on a connection that stood, and were sent again.
    resent,
    /// Messages acknowledged.
    acked,
    /// Messages refused for good.
    refused,
    /// Messages refused for good because the sender was being removed from the conversation.
    refused_removed,
    /// Messages without an answer at the end.
    unresolved,
    /// Messages of those whose device was kept from a connection by a limit of the generator's own machine.
    unresolved_local,
    /// Messages shown to persons, over all devices; a device's own, which its ACK shows, are not among them.
    delivered,
    /// Deliveries of those to devices that were there by plan and read at once.
    delivered_online,
    /// Deliveries that had to come by push: to devices that were connected and members from before the send until it was
    /// shown.
    push_expected,
    /// Deliveries of those that came by push; in large channels a `head` frame is the push.
    pushed,
    /// Deliveries of those of which only a `head` frame told: a sync fetched them.
    pushed_by_head,
    /// Deliveries by sync to devices that were there by plan, so soon after a connect or a send that it can't be said whether
    /// a push had to bring them.
    push_unknown,
    /// Frames received.
    frames,
    /// Frames that repeated a message and were dropped by the client.
    repeated_on_wire,
    /// Gaps that clients filled by a sync.
    gaps_synced,
    /// Heartbeats sent.
    beats,
    /// Changes of presence that a watching friend had to be told.
    presence_expected,
    /// Changes of those that were told, an "offline" in time.
    presence_seen,
    /// HTTP requests of clients without a socket; those for syncs are not among them.
    poll_requests,
    /// Bytes that clients wrote to their WebSockets, or in such requests.
    bytes_out,
    /// Bytes that they read from them.
    bytes_in,
    /// Devices.
    clients,
    /// Devices that never connected.
    never_connected,
    /// Devices of those whose last try failed by a limit of the generator's own machine.
    never_connected_local,
    /// Connections that were lost or closed against the plan; closes of a planned drain, and losses by a limit of the
    /// generator's own machine, are not among them.
    disconnects,
    /// Tries to connect that failed: refused, lost or timed out. Backpressure, and tokens that were refused when they may have
    /// ended, are not among them.
    connects_failed,
    /// Connections made after the first.
    reconnects,
    /// Frames and answers that could not be read or break the protocol.
    protocol_errors,
    /// API calls of devices, final sync and audit that failed: unexpected statuses, time-outs, broken transport, and a 401 for
    /// a token that can't have ended. A 429 or 503 with a retry time is backpressure and counts as throttled.
    http_errors,
    /// Answers of 429 or 503, and `error` frames of the same meaning, that named a time to come back.
    throttled,
    /// Requests and connects that were repeated.
    retries,
    /// The most retries of one device.
    retries_per_device_max,
    /// Devices' tokens that were renewed during the run.
    tokens_renewed,
    /// Connects, connections and requests that failed by a limit of the generator's own machine.
    local_errors,
    /// Members of groups that were removed, as the API confirmed.
    removals,
    /// Members of those that were added again.
    additions,
    /// Removals and additions of members that the API never confirmed.
    changes_failed,
    /// Devices that, when the load ended, had been fetching what they had missed for ten seconds or longer, or had been without a
    /// connection for so long, or had been asked to wait for longer than 25 s.
    not_caught_up,
    /// Devices of those that a limit of the generator's own machine kept from it.
    not_caught_up_local,
    /// Devices that could not sync at the end.
    undrained,
    /// Devices of those whose calls failed by a limit of the generator's own machine, and by nothing else.
    undrained_local,
    /// Conversations read back in full at the end.
    audited,
    /// Conversations that could not be read back.
    unaudited,
    /// Conversations of those, where the audit's calls failed by a limit of the generator's own machine, and by nothing else.
    unaudited_local,
    /// Members' views of conversations that were read back beside the owner's.
    read_views,
    /// Members' views of those that were asked for and could not be read.
    unread_views,
    /// Reads that were tried for removed members and were answered.
    access_probes,
    /// Reads of those that had no answer which says whether they may.
    unprobed,
    /// Messages that removed members tried to send, and that were answered.
    write_probes,
    /// Longest time from the end of a fault until its last consequence, in ms.
    recovery_ms_max,
);

impl Counts {
    /// Broken guarantees, by kind, without zeros.
    #[must_use]
    pub fn violations(&self) -> BTreeMap<String, u64> {
        let kinds = [
            ("lost", self.lost),
            ("duplicated", self.duplicated),
            ("out_of_order", self.out_of_order),
            ("id_reuse", self.id_reuse),
            ("id_went_back", self.id_went_back),
            ("leaked", self.leaked),
            ("altered", self.altered),
            ("false_refusal", self.false_refusal),
            ("false_acceptance", self.false_acceptance),
            ("ack_wrong", self.ack_wrong),
            ("forged", self.forged),
            ("presence_wrong", self.presence_wrong),
            ("presence_missed", self.presence_missed),
            ("presence_leaked", self.presence_leaked),
        ];
        kinds.into_iter().filter(|(_, n)| *n > 0).map(|(kind, n)| (kind.to_owned(), n)).collect()
    }

    /// The same without what is missing by a limit of the generator's own machine. Devices that never
    /// connected stay: they are judged by themselves.
    #[must_use]
    pub const fn without_local(&self) -> Self {
        Self {
            unresolved: self.unresolved.saturating_sub(self.unresolved_local),
            not_caught_up: self.not_caught_up.saturating_sub(self.not_caught_up_local),
            undrained: self.undrained.saturating_sub(self.undrained_local),
            unaudited: self.unaudited.saturating_sub(self.unaudited_local),
            ..*self
        }
    }

    /// Both added up; of greatest values, the greater.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            recovery_ms_max: self.recovery_ms_max.max(other.recovery_ms_max),
            retries_per_device_max: self.retries_per_device_max.max(other.retries_per_device_max),
            ..self.zip(other, u64::saturating_add)
        }
    }

    /// The share of the expected pushes that came, in percent; `None` where none was expected.
    #[must_use]
    pub fn pushed_percent(&self) -> Option<f64> {
        (self.push_expected > 0).then(|| self.pushed as f64 * 100.0 / self.push_expected as f64)
    }

    /// The share of the expected pushes that brought the message itself, in percent; `None` where none was expected.
    #[must_use]
    pub fn pushed_whole_percent(&self) -> Option<f64> {
        let whole = self.pushed.saturating_sub(self.pushed_by_head);
        (self.push_expected > 0).then(|| whole as f64 * 100.0 / self.push_expected as f64)
    }

    /// The share of the scheduled messages that nobody could send, in percent; `None` where none was scheduled.
    #[must_use]
    pub fn skipped_percent(&self) -> Option<f64> {
        (self.scheduled > 0).then(|| self.skipped as f64 * 100.0 / self.scheduled as f64)
    }
}

/// One thing that the verdict rests on, and how much of it was checked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Check {
    /// What, such as `stored` or `presence`.
    pub name: String,
    /// How many had to be there.
    pub expected: u64,
    /// How many of them were seen.
    pub seen: u64,
    /// Violations and misses that it found.
    pub wrong: u64,
    /// What could not be judged, and why; empty where everything was.
    pub note: String,
}
