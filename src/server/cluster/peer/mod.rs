//! Peer links: one TCP connection from a server to another, on which both have proved who they are, with pipelined calls.
//!
//! Messages are JSON: calls `{id, call}` and answers `{id, answer}`, sealed (`wire`). The caller's end is `link`, the other one
//! `serve`.

mod link;
mod serve;
mod wire;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use self::link::Peers;
pub use self::serve::serve;
use crate::protocol::{ConversationId, MessageId, ServerName, SessionId, UserId};

/// Longest that a call may take, and that anything may take to be written.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// What a server asks of another.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Write a frame to sessions of this server.
    Deliver {
        /// Where it was said; recipients who are not members (any more) are left out. `None` for frames that need no check.
        conversation: Option<ConversationId>,
        /// Which message it is, if it is one.
        message: Option<MessageId>,
        /// To whom.
        sessions: Vec<(UserId, SessionId)>,
        /// A server frame, encoded.
        frame: String,
    },
    /// Users that beat, and how long ago (milliseconds).
    Beats(Vec<(UserId, u64)>),
    /// Users whose presence may have changed, which could not be told, and when they beat last (milliseconds since
    /// 1970): tell it as it is.
    PresenceUntold(Vec<(UserId, u64)>),
    /// Members changed: read them again.
    MembersChanged {
        /// Of which conversation.
        conversation: ConversationId,
        /// How many there are now.
        members: u64,
    },
    /// Somebody has left, as was told before: make sure that you know. Costs nothing where it is known.
    MemberGone {
        /// Which conversation.
        conversation: ConversationId,
        /// Who.
        user: UserId,
    },
    /// The device connected elsewhere: close the old connection.
    Replace {
        /// Whose.
        user: UserId,
        /// The old session.
        session: SessionId,
    },
    /// What are your figures? Every role answers it.
    Metrics,
    /// A token was logged out: close its connections.
    LogOut(Uuid),
    /// Two users became friends, or ended it.
    Friends {
        /// One.
        a: UserId,
        /// The other.
        b: UserId,
        /// True when they became friends.
        friends: bool,
    },
}

impl Call {
    /// Whether it changes what the other server knows, beyond what it writes to sockets.
    const fn changes_state(&self) -> bool {
        match self {
            Self::MembersChanged { .. }
            | Self::MemberGone { .. }
            | Self::PresenceUntold(_)
            | Self::Replace { .. }
            | Self::LogOut(_)
            | Self::Friends { .. } => true,
            Self::Deliver { .. } | Self::Beats(_) | Self::Metrics => false,
        }
    }
}

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Done.
    Done,
    /// The sessions that took the frame.
    Accepted(Vec<SessionId>),
    /// The server's figures in the Prometheus text format.
    Metrics(String),
    /// This server does not do that.
    WrongRole,
    /// It could not be done now: call again.
    Failed,
}

/// Why a call failed. The other side may have done it.
#[derive(Debug, thiserror::Error)]
#[error("peer {server}: {reason}")]
pub struct PeerError {
    /// Who was called.
    pub server: ServerName,
    /// What happened.
    pub reason: &'static str,
    /// Nobody listens where it was: its process has ended, and its connections with it.
    pub is_gone: bool,
}

/// What a role does with calls.
#[async_trait]
pub trait PeerHandler: Send + Sync + 'static {
    /// Handles one call of those that a role answers in its own way.
    async fn handle(&self, call: Call) -> Answer;
}

/// A role that answers only what every role answers.
pub struct NothingOfItsOwn;

#[async_trait]
impl PeerHandler for NothingOfItsOwn {
    async fn handle(&self, _: Call) -> Answer {
        Answer::WrongRole
    }
}

#[derive(Serialize, Deserialize)]
struct Numbered<T> {
    id: u64,
    body: T,
}

fn encode<T: Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value).expect("plain data").into()
}

#[cfg(test)]
mod tests;
