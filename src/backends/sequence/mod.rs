//! Ids, repeats and the stable mark of each conversation.
//!
//! A sequence may forget everything (Redis does, on a restart with stock settings); then every call on a conversation
//! answers "unseeded" until somebody has rebuilt it from the message store. How that is done, and in which order, is
//! `server::ordering`'s; this port only promises that the steps are atomic.

#[cfg(test)]
pub(crate) mod contract;
mod embedded;
mod redis;

use async_trait::async_trait;
use uuid::Uuid;

pub use self::embedded::EmbeddedSequence;
pub use self::redis::RedisSequence;

use super::BackendResult;
use crate::protocol::{ConversationId, MessageId, UserId};

/// Ids of one conversation that may be pending; then reservations are refused. Source: DESIGN section 3.
pub const PENDING_IDS_MAX: usize = 500;

/// What is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Where.
    pub conversation: ConversationId,
    /// By whom.
    pub sender: UserId,
    /// Chosen by the sender, the same for each retry.
    pub uuid: Uuid,
    /// Hash of kind, body and reply; the same uuid with another digest is a conflict.
    pub digest: u64,
    /// Now, in milliseconds since 1970.
    pub at_ms: u64,
}

/// An id that belongs to a message, and the time that goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// The message's id.
    pub id: MessageId,
    /// When it was first reserved, in milliseconds since 1970. A retry stores the same time.
    pub at_ms: u64,
}

/// Answer of [`Sequence::reserve`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reservation {
    /// A new id, pending from now on.
    Fresh(Slot),
    /// The uuid has an id that was never committed: store the same message under it and commit.
    Pending(Slot),
    /// The uuid has an id and is stored.
    Stored(Slot),
    /// The uuid came with another digest before.
    Conflict,
    /// Too many ids are pending.
    Overloaded,
    /// The counter is not there: seed it.
    Unseeded,
    /// The block of usable ids is used up: raise it.
    BlockUsedUp {
        /// Epoch of the counter.
        epoch: u64,
        /// Largest usable id.
        block_end: u64,
    },
}

/// How far a conversation is settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Every id up to this one is stored or void for ever.
    pub stable: MessageId,
    /// The greatest id given out.
    pub head: MessageId,
    /// Ids above `stable` that are not committed yet, rising; each with the time of its reservation.
    pub pending: Vec<Slot>,
}

/// A message that a seed found in the store: its uuid is remembered, as committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    /// By whom.
    pub sender: UserId,
    /// The sender's uuid.
    pub uuid: Uuid,
    /// Hash of kind, body and reply.
    pub digest: u64,
    /// Its place.
    pub slot: Slot,
}

/// Everything that a counter starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// The epoch under which the block was raised.
    pub epoch: u64,
    /// The greatest id that is settled; the next reservation gets the id behind it.
    pub settled: MessageId,
    /// Largest usable id.
    pub block_end: u64,
    /// Messages of the retry window.
    pub remembered: Vec<Remembered>,
}

/// The counters.
#[async_trait]
pub trait Sequence: Send + Sync {
    /// Gives out an id, or says what the uuid has already. Atomic, and one round trip.
    ///
    /// # Errors
    /// `Unknown`: an id may be pending now; reserving again with the same uuid finds it.
    async fn reserve(&self, request: &Request) -> BackendResult<Reservation>;

    /// Ends the pending state of an id: the message is stored. Returns false when the id is void, voiding or unknown
    /// here: then the message must not be acknowledged. Committing twice answers true twice.
    async fn commit(
        &self,
        conversation: ConversationId,
        sender: UserId,
        uuid: Uuid,
        id: MessageId,
    ) -> BackendResult<bool>;

    /// How far the conversation is settled; `None` when the counter is not there.
    async fn progress(&self, conversation: ConversationId) -> BackendResult<Option<Progress>>;

    /// Marks a pending id: from here a commit of it fails. Returns false when it is not pending (any more).
    async fn begin_void(&self, conversation: ConversationId, id: MessageId) -> BackendResult<bool>;

    /// Settles an id that was marked; its uuid is forgotten, so that a retry gets a fresh id.
    async fn end_void(&self, conversation: ConversationId, id: MessageId) -> BackendResult<()>;

    /// Claims the right to seed for an epoch. Returns false when the counter is there, or a higher epoch has the claim.
    async fn begin_seed(&self, conversation: ConversationId, epoch: u64) -> BackendResult<bool>;

    /// Writes the counter, if the claim for this epoch still stands. Returns whether it did.
    async fn seed(&self, conversation: ConversationId, seed: &Seed) -> BackendResult<bool>;

    /// Raises the end of the block, if the counter is of this epoch.
    async fn extend(&self, conversation: ConversationId, epoch: u64, block_end: u64) -> BackendResult<()>;

    /// Drops a counter of this epoch or an older one: it was overtaken.
    async fn forget(&self, conversation: ConversationId, epoch: u64) -> BackendResult<()>;
}
