//! What one client may do. Sent in `welcome`, so that a client need not guess.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Groups up to this size are fanned out on write, larger ones on read. Source: docs/design.md, section 10.
pub const FANOUT_ON_WRITE_MEMBERS_MAX: usize = 100;

/// Most partitions: each is three topics of Kafka, and costs a broker a file and two memory maps for each replica.
pub const PARTITIONS_MAX: u32 = 16_384;

/// How often a client beats. Source: docs/design.md, section 10.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// Silence after which a user is offline. Source: docs/design.md, section 10.
pub const OFFLINE_AFTER: Duration = Duration::from_secs(30);

/// Life of a presence record; only clean-up, the status is decided by the last beat.
pub const PRESENCE_TTL: Duration = Duration::from_secs(35);

/// How long a uuid is remembered with its sender and conversation. Clients give up before it ends.
pub const RETRY_WINDOW: Duration = Duration::from_hours(24);

/// Most messages that one `GET /messages/sync` returns.
pub const SYNC_LIMIT_MAX: usize = 500;

/// Messages that `GET /messages/sync` returns when the client does not say.
pub const SYNC_LIMIT_DEFAULT: usize = 50;

/// Longest that a long-poll waits: below what proxies cut.
pub const POLL_WAIT_MAX: Duration = Duration::from_secs(25);

/// Most members that one API call may name.
pub const MEMBERS_PER_CALL_MAX: usize = 1_000;

/// Members of a conversation that its row counts; a larger one shows this number.
pub const MEMBERS_COUNTED_MAX: usize = 10_000;

/// The same in a list of conversations: enough to tell a large one.
pub const MEMBERS_LISTED_MAX: usize = FANOUT_ON_WRITE_MEMBERS_MAX + 1;

/// Friends that a user may have.
pub const FRIENDS_MAX: usize = 10_000;

/// Connections of one user that a chat server holds. Each message to a user goes to all of them, and seats are for everybody.
pub const CONNECTIONS_PER_USER_MAX: usize = 64;

/// Limits of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Largest WebSocket message, in bytes.
    pub message_bytes_max: u32,
    /// Largest `body` of a `send`, in bytes of UTF-8. Less than `message_bytes_max`, for the frame around it.
    pub body_bytes_max: u32,
    /// Frames that a client may send per second, averaged over ten seconds.
    pub frames_per_second: u32,
    /// `send` frames that may wait for their ACK on one connection.
    pub sends_pending_max: u32,
    /// Large channels that one connection may be subscribed to.
    pub subscriptions_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes_max: 64 * 1024,
            body_bytes_max: 63 * 1024,
            frames_per_second: 100,
            sends_pending_max: 64,
            subscriptions_max: 64,
        }
    }
}
