//! Stored conversations: rows by (conversation, id), and the head of each conversation, which fences id blocks.

mod cassandra;
mod cassandra_cluster;
#[cfg(test)]
pub(crate) mod contract;
mod embedded;
mod hbase;

use async_trait::async_trait;

pub use cassandra::CassandraMessages;
pub use embedded::EmbeddedMessages;
pub use hbase::HBaseMessages;

use super::BackendResult;
use crate::protocol::{ConversationId, MessageFrame, MessageId};

/// A message as it is stored; the same fields as on the wire.
pub type StoredMessage = MessageFrame;

/// Who may give out ids of a conversation, and up to which. Raised by compare-and-set only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConversationHead {
    /// Rises with every seed of the conversation's counter. 0 means that no counter was ever seeded.
    pub epoch: u64,
    /// Largest id that the counter of this epoch may give out.
    pub block_end: u64,
}

/// The column `status` of a stored message, where an engine has columns. (Deletion and editing come with their own.)
const STATUS_SENT: i8 = 1;

/// Which message is the newest of its conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newest {
    /// Its id.
    pub id: MessageId,
    /// Its time, in milliseconds since 1970.
    pub at: u64,
}

impl From<StoredMessage> for Newest {
    fn from(message: StoredMessage) -> Self {
        Self { id: message.id, at: message.at }
    }
}

/// The message store.
#[async_trait]
pub trait Messages: Send + Sync {
    /// Appends one message. On `Ok` it is durable and every later read sees it, unless its id was declared void: then
    /// nothing changes. Appending the same id and content again changes nothing.
    ///
    /// # Errors
    /// `NotApplied`: not stored, retry freely. `Unknown`: may be stored; append again with the same id and body.
    async fn append(&self, message: &StoredMessage) -> BackendResult<()>;

    /// Messages with `after < id <= upto`, in id order, at most `limit`. Void ids are not there.
    async fn read(
        &self,
        conversation: ConversationId,
        after: MessageId,
        upto: MessageId,
        limit: usize,
    ) -> BackendResult<Vec<StoredMessage>>;

    /// Messages with `id < before`, newest first, at most `limit`.
    async fn read_back(
        &self,
        conversation: ConversationId,
        before: MessageId,
        limit: usize,
    ) -> BackendResult<Vec<StoredMessage>>;

    /// Id and time of the newest message of each conversation. Bodies are not kept: many conversations are asked for at once.
    async fn newest(&self, conversations: &[ConversationId]) -> BackendResult<Vec<Option<Newest>>>;

    /// Declares every id with `after < id <= upto` void, stored or not: such a row is gone, and one that lands later is
    /// shadowed. Repeating it changes nothing.
    async fn void(&self, conversation: ConversationId, after: MessageId, upto: MessageId) -> BackendResult<()>;

    /// The head, as of the last raise that had returned when this was called; one that is under way may be missed. Whoever
    /// raises it finds out.
    async fn head(&self, conversation: ConversationId) -> BackendResult<ConversationHead>;

    /// Gives the store a mark of a name unless it has one, and returns the one that it has: its deployment, its directory.
    /// Durable on `Ok`; of several that mark at once all get the same answer.
    async fn mark(&self, name: &str, value: &str) -> BackendResult<String>;

    /// Writes something small that nobody reads: whether the engine takes writes now.
    async fn probe(&self) -> BackendResult<()>;

    /// Sets the head to `to` if it is `from` now; returns whether it did. Durable on `Ok(true)`.
    async fn raise_head(
        &self,
        conversation: ConversationId,
        from: ConversationHead,
        to: ConversationHead,
    ) -> BackendResult<bool>;
}
