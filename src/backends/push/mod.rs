//! Notifications for users without a live session. They never carry message text.

mod recorder;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use recorder::Recorder;

use super::BackendResult;
use crate::protocol::{ConversationId, MessageId, UserId};

/// What is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    /// For whom.
    pub user: UserId,
    /// Where there is news.
    pub conversation: ConversationId,
    /// Which message.
    pub id: MessageId,
    /// When it was handed over, in milliseconds since 1970.
    pub at: u64,
}

/// A way to a user's device outside of the chat connection.
#[async_trait]
pub trait Notifier: Send + Sync {
    /// Hands notifications over. The same one may be handed over again after a failure.
    async fn notify(&self, notifications: &[Notification]) -> BackendResult<()>;
}
