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

/// A user who beat, and how long ago. Servers' clocks differ and are set, ages don't care: the store dates them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// Who.
    pub user: UserId,
    /// Milliseconds since the beat was read.
    pub age_ms: u64,
}

/// The last beat of a user as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastBeat {
    /// Who.
    pub user: UserId,
    /// When, in milliseconds since 1970 on the store's clock.
    pub at_ms: u64,
}

/// A look for silent users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silent {
    /// Which life the store's data have. In another one than before they may be any age.
    pub life: String,
    /// The store's clock, in milliseconds since 1970.
    pub now_ms: u64,
    /// Online users without a beat for so long.
    pub users: Vec<LastBeat>,
}

/// What is known of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PresenceRecord {
    /// True from the first beat until the user was declared offline.
    pub online: bool,
    /// The last beat of any device, on the store's clock.
    pub last_beat_ms: u64,
}

/// The presence store.
#[async_trait]
pub trait Presence: Send + Sync {
    /// Takes beats; returns the users that were offline before, each to one caller only. An older beat never replaces a
    /// younger one.
    async fn beat(&self, beats: &[Beat]) -> BackendResult<Vec<LastBeat>>;

    /// Looks for online users without a beat for `silence_ms`, and returns at most `limit` of them, behind the first `skip`. While
    /// nobody beats, comes or goes their order stays, so that pages behind each other name each of them once.
    async fn silent(&self, silence_ms: u64, skip: usize, limit: usize) -> BackendResult<Silent>;

    /// Declares a user offline, if the last beat is still the one given; returns whether this call did it.
    async fn expire(&self, last: &LastBeat) -> BackendResult<bool>;

    /// What is known of some users, in their order; unknown users are offline since 0.
    async fn get(&self, users: &[UserId]) -> BackendResult<Vec<PresenceRecord>>;

    /// Writes something small that nobody reads: whether the engine takes writes now.
    async fn probe(&self) -> BackendResult<()>;
}
