//! Last beats and the announced status of users.

#[cfg(test)]
pub(crate) mod contract;
mod embedded;
mod redis;

use async_trait::async_trait;

pub use self::embedded::EmbeddedPresence;
pub use self::redis::RedisPresence;

use super::BackendResult;
use crate::protocol::UserId;

/// A user who beat, and when, in milliseconds since 1970 on the clock of the chat server that read the beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// Who.
    pub user: UserId,
    /// When.
    pub at_ms: u64,
}

/// What is known of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PresenceRecord {
    /// True from the first beat until the user was declared offline.
    pub online: bool,
    /// The last beat of any device.
    pub last_beat_ms: u64,
}

/// The presence store.
#[async_trait]
pub trait Presence: Send + Sync {
    /// Takes beats; returns the users that were offline before, each to one caller only. An older beat never replaces a
    /// younger one.
    async fn beat(&self, beats: &[Beat]) -> BackendResult<Vec<Beat>>;

    /// Online users whose last beat is before a time, at most `limit`.
    async fn overdue(&self, before_ms: u64, limit: usize) -> BackendResult<Vec<Beat>>;

    /// Declares a user offline, if the last beat is still the one given; returns whether this call did it.
    async fn expire(&self, last: &Beat) -> BackendResult<bool>;

    /// What is known of some users, in their order; unknown users are offline since 0.
    async fn get(&self, users: &[UserId]) -> BackendResult<Vec<PresenceRecord>>;
}
