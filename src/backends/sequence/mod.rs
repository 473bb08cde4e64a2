//! Ids, repeats and the stable mark of each conversation.
//!
//! A sequence may forget everything (Redis does, on a restart with stock settings); then every call on a conversation
//! answers "unseeded" until somebody has rebuilt it from the message store. How that is done, and in which order, is
//! `server::ordering`'s; this port only promises that the steps are atomic.

#[cfg(test)]
pub(crate) mod contract;
mod embedded;
#[cfg(test)]
mod failover;
mod fingerprints;
mod redis;
mod redis_scripts;

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

pub use self::embedded::EmbeddedSequence;
pub use self::redis::RedisSequence;

use super::BackendResult;
use super::messages::ConversationHead;
use crate::protocol::{ConversationId, MessageId, UserId};
use crate::runtime::clock;

/// Ids of one conversation that may be pending; then reservations are refused. Source: docs/design.md, section 2.3.
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
    /// Ids of committed messages up to this one are known to be other messages'. 0 at first; see [`Reservation::Committed`].
    pub not_upto: MessageId,
}

/// An id that belongs to a message, and the time that goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// The message's id.
    pub id: MessageId,
    /// When it was first reserved, in milliseconds since 1970, by the clock of the counters: the same one for all servers. A
    /// retry stores the same time.
    pub at_ms: u64,
}

/// Answer of [`Sequence::reserve`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reservation {
    /// A new id, pending from now on, and the epoch of the counter that gave it out.
    Fresh(Slot, u64),
    /// The uuid has an id that was never committed: store the same message under it and commit. With the counter's epoch.
    Pending(Slot, u64),
    /// A message was committed under this id whose uuid has the same fingerprint: the store says whether it is this one. If
    /// not, reserve again with [`Request::not_upto`].
    Committed(MessageId),
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
    /// Epoch of the counter.
    pub epoch: u64,
    /// Every id up to this one is stored or void for ever.
    pub stable: MessageId,
    /// The greatest id given out.
    pub head: MessageId,
    /// Ids above `stable` that are not committed yet, rising; each with the time of its reservation.
    pub pending: Vec<Slot>,
    /// Now, by the clock that dated them.
    pub now_ms: u64,
}

/// A message that a seed found in the store: its uuid is remembered, as committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    /// By whom.
    pub sender: UserId,
    /// The sender's uuid.
    pub uuid: Uuid,
    /// Its place.
    pub id: MessageId,
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
}

/// The counters.
///
/// A uuid is remembered for [`RETRY_WINDOW`](crate::protocol::limits::RETRY_WINDOW) at least: whole while its id is pending, as
/// a fingerprint beside the id afterwards (docs/adr/0023-uuid-fingerprints.md).
#[async_trait]
pub trait Sequence: Send + Sync {
    /// Gives out an id, or says which one the uuid has already. Atomic, and one round trip.
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

    /// The greatest committed id of each conversation, with its time; `None` where the counter does not know one: it is not
    /// there, or was not used since it was seeded.
    async fn newest(&self, conversations: &[ConversationId]) -> BackendResult<Vec<Option<Slot>>>;

    /// Marks a pending id: from here a commit of it fails. Returns false when it is not pending (any more).
    async fn begin_void(&self, conversation: ConversationId, id: MessageId) -> BackendResult<bool>;

    /// Settles an id that was marked; its uuid is forgotten, so that a retry gets a fresh id.
    async fn end_void(&self, conversation: ConversationId, id: MessageId) -> BackendResult<()>;

    /// Now, by the clock that dates the ids.
    async fn now_ms(&self) -> BackendResult<u64> {
        Ok(clock::unix_ms())
    }

    /// Whether two servers may see different counters at the same time, each of them alive: two Redis masters after a
    /// failover. Then whoever uses a counter holds its epoch against the store's.
    fn can_split(&self) -> bool {
        false
    }

    /// Takes the turn to seed, for `life`, so that others wait rather than outbid. Returns false when somebody else has
    /// it. It only saves work: who seeds without a turn does no harm.
    async fn take_turn(&self, _conversation: ConversationId, _owner: u64, _life: Duration) -> BackendResult<bool> {
        Ok(true)
    }

    /// Has the turn for `life` from now on, if it is still this owner's.
    async fn keep_turn(&self, _conversation: ConversationId, _owner: u64, _life: Duration) -> BackendResult<()> {
        Ok(())
    }

    /// Gives the turn back, if it is still this owner's.
    async fn end_turn(&self, _conversation: ConversationId, _owner: u64) -> BackendResult<()> {
        Ok(())
    }

    /// Claims the right to seed for an epoch. Returns false when the counter is there, or a higher epoch has the claim.
    async fn begin_seed(&self, conversation: ConversationId, epoch: u64) -> BackendResult<bool>;

    /// Remembers messages of the retry window under a claim, as committed. Returns false when the claim does not stand any more.
    /// Repeating it changes nothing.
    async fn remember(&self, conversation: ConversationId, epoch: u64, messages: &[Remembered]) -> BackendResult<bool>;

    /// Writes the counter, with what was remembered, if the claim for this epoch still stands. Returns whether it did.
    async fn seed(&self, conversation: ConversationId, seed: &Seed) -> BackendResult<bool>;

    /// Gives a counter of this epoch a head that was raised for it: another end of its block, and perhaps another epoch. A
    /// counter of another epoch stays as it is.
    async fn extend(&self, conversation: ConversationId, epoch: u64, to: ConversationHead) -> BackendResult<()>;

    /// Drops a counter of this epoch or an older one: it was overtaken.
    async fn forget(&self, conversation: ConversationId, epoch: u64) -> BackendResult<()>;

    /// Writes something small that nobody reads: whether the engine takes writes now.
    async fn probe(&self) -> BackendResult<()>;
}
