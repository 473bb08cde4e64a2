//! Which device is on which server.

#[cfg(test)]
pub(crate) mod contract;
mod embedded;
mod redis;

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use self::embedded::{Clock, EmbeddedSessions};
pub use self::redis::RedisSessions;

use super::BackendResult;
use crate::protocol::{DeviceName, ServerName, SessionId, UserId};

/// A session's life without a refresh. Servers refresh at a third of it.
pub const SESSION_TTL: Duration = Duration::from_secs(90);

/// One live connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Whose.
    pub user: UserId,
    /// On which device; a device has one session.
    pub device: DeviceName,
    /// New for each connection.
    pub session: SessionId,
    /// The server that holds the connection.
    pub server: ServerName,
}

/// What came of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// The session is the device's, in place of another one, if there was one.
    Made(Option<Session>),
    /// Nothing has changed: the device has a session that this one is not behind, as by the clock of another server. A
    /// claim with an id behind that one is made.
    Late(SessionId),
}

/// The session store.
///
/// The sessions of a device have an order, which is that of their ids (see [`SessionId::is_behind`]) and of their
/// claims. So the last one can be told also after the store forgot them.
#[async_trait]
pub trait Sessions: Send + Sync {
    /// Makes this the device's session.
    async fn claim(&self, session: &Session) -> BackendResult<Claim>;

    /// Gives live sessions another [`SESSION_TTL`]. For a store that forgot: where the device has none, or one that
    /// this one is behind, the session is entered again; any other that the device has stays. Returns those of
    /// `sessions` whose device has another one.
    async fn refresh(&self, sessions: &[Session]) -> BackendResult<Vec<SessionId>>;

    /// Removes a session, if it is still the device's; returns whether it was.
    async fn release(&self, session: &Session) -> BackendResult<bool>;

    /// The live sessions of some users.
    async fn lookup(&self, users: &[UserId]) -> BackendResult<Vec<Session>>;

    /// The store's time, in milliseconds since 1970: one clock for all servers, by which they date their sessions.
    async fn now_ms(&self) -> BackendResult<u64>;

    /// Enters a mark that lives as long as a session does, and goes with whatever takes sessions from the store: a flush, data of
    /// another age. Who enters sessions and finds its mark later knows that they are there.
    async fn enter_mark(&self, mark: Uuid) -> BackendResult<()>;

    /// Whether a mark is there.
    async fn has_mark(&self, mark: Uuid) -> BackendResult<bool>;

    /// Writes something small that nobody reads: whether the engine takes writes now.
    async fn probe(&self) -> BackendResult<()>;
}
