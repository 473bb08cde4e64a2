//! Ids, order and repeats, above the ports: the same code for embedded and real engines.
//!
//! A message is reserved (an id, pending), appended, committed. A counter that is not there is seeded from the message
//! store. An id whose writer died is declared void after [`VOID_AFTER_MS`]. The rules are in docs/design.md,
//! section 2; the order of the steps is what keeps invariants I1 to I5.

mod fence;
mod highest;
mod page;
mod recent;
mod seed;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

use self::fence::{Fence, Look};
use self::highest::Highest;
use self::page::PAGE_BYTES_MAX;
use self::recent::Recent;
use self::seed::Seeder;
use crate::backends::error::{BackendError, ErrorKind};
use crate::backends::messages::{ConversationHead, Messages, Newest, StoredMessage};
use crate::backends::sequence::{Progress, Request, Reservation, Sequence, Slot};
use crate::backends::{BackendResult, Backends};
use crate::protocol::frames::SendFrame;
use crate::protocol::{ConversationId, MessageId, UserId};
use crate::telemetry::{Counter, Metrics};

/// Ids that a counter may give out before the head must be raised. Source: docs/design.md, section 2.1.
pub const BLOCK_IDS: u64 = 10_000;

/// Age at which a pending id may be declared void by anyone. Source: docs/design.md, section 2.3.
pub const VOID_AFTER_MS: u64 = 10_000;

/// Tries of one store or progress call: each seed, raised block or lost race takes one.
const TRIES_MAX: usize = 12;

/// Conversations that one server watches for overdue ids.
const WATCHED_MAX: usize = 100_000;

/// Why a message was not stored, or not surely.
#[derive(Debug, thiserror::Error)]
pub enum OrderingError {
    /// The uuid came with another body before.
    #[error("this uuid was used for another message")]
    Conflict,
    /// Too many ids are pending.
    #[error("too many messages of this conversation are under way")]
    Overloaded,
    /// An engine failed. The message may be stored; sending it again with the same uuid is safe.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Where messages are read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// What this server remembers of settled messages, and the store for the rest.
    Memory,
    /// The store alone.
    Store,
}

/// Stores messages under ids.
pub struct Ordering {
    sequence: Arc<dyn Sequence>,
    messages: Arc<dyn Messages>,
    metrics: Arc<Metrics>,
    fence: Fence,
    highest: Highest,
    seeder: Seeder,
    /// Filled and used by `read`.
    recent: Recent,
    /// Conversations in which this server reserved lately. Written by `store`, taken by the sweep.
    watched: Mutex<HashSet<ConversationId>>,
}

impl Ordering {
    /// Over the engines of a server.
    #[must_use]
    pub fn new(backends: &Backends, metrics: &Arc<Metrics>) -> Self {
        Self {
            sequence: Arc::clone(&backends.sequence),
            messages: Arc::clone(&backends.messages),
            metrics: Arc::clone(metrics),
            fence: Fence::default(),
            highest: Highest::default(),
            seeder: Seeder::new(&backends.sequence, &backends.messages, metrics),
            recent: Recent::default(),
            watched: Mutex::default(),
        }
    }

    /// Stores a message, or finds where its uuid is stored already. On `Ok` it is durable and committed.
    ///
    /// Dropping the future leaves an id pending, as a crash would: a retry completes it, or it becomes void.
    pub async fn store(&self, sender: UserId, frame: &SendFrame) -> Result<StoredMessage, OrderingError> {
        let mut request = Request {
            conversation: frame.conversation,
            sender,
            uuid: frame.uuid,
            digest: digest(&frame.kind, &frame.body, frame.reply_to),
            not_upto: MessageId(0),
        };
        self.watch(frame.conversation);
        let mut was_stored = false;
        for _ in 0..TRIES_MAX {
            let seen = self.highest.of(frame.conversation);
            let reserved = self.sequence.reserve(&request).await?;
            match reserved {
                Reservation::Committed(id) => {
                    match self.stored(frame.conversation, id).await.map_err(BackendError::after_a_write)? {
                        Some(row) if row.sender != sender || row.uuid != frame.uuid => request.not_upto = id,
                        Some(row) if digest(&row.kind, &row.body, row.reply_to) == request.digest => return Ok(row),
                        Some(_) => return Err(OrderingError::Conflict),
                        // The store lost what it had: the sender still has the message.
                        None => request.not_upto = id,
                    }
                }
                Reservation::Fresh(slot, epoch) if slot.id <= seen => {
                    self.went_back(frame.conversation, epoch).await?;
                }
                Reservation::Fresh(slot, epoch) | Reservation::Pending(slot, epoch) => {
                    let is_fresh = matches!(reserved, Reservation::Fresh(..));
                    self.highest.note(frame.conversation, slot.id);
                    let message = message(sender, frame, slot);
                    self.messages.append(&message).await?;
                    was_stored = true;
                    // From here on an error does not say any more that nothing was stored.
                    let may_acknowledge = self.may_acknowledge(frame.conversation, epoch, is_fresh).await;
                    if !may_acknowledge.map_err(BackendError::after_a_write)? {
                        continue;
                    }
                    if self.commit(&message).await.map_err(BackendError::after_a_write)? {
                        return Ok(message);
                    }
                    // The id was declared void meanwhile: the row is shadowed, the uuid is free.
                }
                Reservation::Conflict => return Err(OrderingError::Conflict),
                Reservation::Overloaded => return Err(overloaded(was_stored)),
                Reservation::Unseeded => self.seed(frame.conversation).await?,
                Reservation::BlockUsedUp { epoch, block_end } => {
                    self.raise_block(frame.conversation, epoch, block_end).await?;
                }
            }
        }
        Err(overloaded(was_stored))
    }

    /// Drops a counter that gave out an id which was given out before, or knows of fewer than were: its data are older than what
    /// this server saw of them, and everything in them may be. The next use seeds it.
    async fn went_back(&self, conversation: ConversationId, epoch: u64) -> BackendResult<()> {
        self.metrics.count(Counter::SequenceRollbacks);
        self.sequence.forget(conversation, epoch).await
    }

    /// Whether a counter of this epoch still speaks for the conversation; if not, it is left alone for a while, and then
    /// taken over.
    async fn may_acknowledge(&self, conversation: ConversationId, epoch: u64, is_fresh: bool) -> BackendResult<bool> {
        if !self.sequence.can_split() {
            return Ok(true);
        }
        // Who looks whether the conversation is in use finds the time of its newest message: that of an id which was reserved
        // long ago would not tell of this look.
        let look = if is_fresh { Look::Kept } else { Look::Once };
        if self.fence.holds(&*self.messages, conversation, epoch, look).await? {
            return Ok(true);
        }
        self.left_behind(conversation, epoch).await
    }

    /// Commits, and once more after an unclear answer: a commit can be repeated.
    async fn commit(&self, message: &StoredMessage) -> BackendResult<bool> {
        let commit = || self.sequence.commit(message.conversation, message.sender, message.uuid, message.id);
        match commit().await {
            Ok(done) => Ok(done),
            Err(_) => commit().await,
        }
    }

    /// How far a conversation is settled. Seeds its counter if need be, and voids what is overdue.
    pub async fn progress(&self, conversation: ConversationId) -> BackendResult<Progress> {
        for _ in 0..TRIES_MAX {
            let seen = self.highest.of(conversation);
            let Some(progress) = self.sequence.progress(conversation).await? else {
                self.seed(conversation).await?;
                continue;
            };
            if progress.head < seen {
                self.went_back(conversation, progress.epoch).await?;
                continue;
            }
            self.highest.note(conversation, progress.head);
            if !self.void_overdue(conversation, &progress).await? {
                return Ok(progress);
            }
        }
        let operation = "ordering.progress";
        Err(BackendError::not_applied(operation, ErrorKind::Unavailable, "the counter is being rebuilt"))
    }

    /// Whether an id was given out: whether a receipt may say that it was read.
    pub async fn is_given_out(&self, conversation: ConversationId, id: MessageId) -> BackendResult<bool> {
        Ok(id <= self.highest.of(conversation) || id <= self.progress(conversation).await?.head)
    }

    /// Whether there is a message with an id.
    pub async fn is_stored(&self, conversation: ConversationId, id: MessageId) -> BackendResult<bool> {
        if id.0 == 0 || !self.is_given_out(conversation, id).await? {
            return Ok(false);
        }
        Ok(self.stored(conversation, id).await?.is_some())
    }

    /// The row of an id above 0.
    async fn stored(&self, conversation: ConversationId, id: MessageId) -> BackendResult<Option<StoredMessage>> {
        let rows = self.messages.read(conversation, MessageId(id.0 - 1), id, 1).await?;
        Ok(rows.into_iter().find(|row| row.id == id))
    }

    /// Messages with `after < id`, settled or at least committed, at most `limit` and of some 1 MiB;
    /// whether there may be more; and the progress that explains the holes.
    pub async fn read(
        &self,
        conversation: ConversationId,
        after: MessageId,
        limit: usize,
        source: Source,
    ) -> BackendResult<(Vec<StoredMessage>, bool, Progress)> {
        // The progress first: what it calls settled is in the store by then.
        let progress = self.progress(conversation).await?;
        let remembered = match source {
            Source::Memory => self.recent.get(conversation, after, limit + 1),
            Source::Store => None,
        };
        let (mut rows, mut known) = remembered.unwrap_or((Vec::new(), after));
        while rows.len() <= limit && known < progress.head && page::bytes(&rows) < PAGE_BYTES_MAX {
            let wanted = page::rows_to_read(&rows, limit + 1);
            let news = self.messages.read(conversation, known, progress.head, wanted).await?;
            let seen = if news.len() < wanted { progress.head } else { news.last().map_or(known, |row| row.id) };
            if source == Source::Memory {
                self.recent.put(conversation, known, seen.min(progress.stable), news.iter().cloned());
            }
            known = seen;
            rows.extend(news);
        }
        let fitting = page::fitting(&rows).min(limit);
        let has_more = rows.len() > fitting || known < progress.head;
        rows.truncate(fitting);
        // A row whose id is pending may still become void, and its message come again under another id.
        rows.retain(|row| progress.pending.binary_search_by_key(&row.id, |slot| slot.id).is_err());
        Ok((rows, has_more, progress))
    }

    /// The newest committed message of each conversation: its id and time, `None` where there is none.
    pub async fn newest(&self, conversations: &[ConversationId]) -> BackendResult<Vec<Option<Slot>>> {
        let counted = self.sequence.newest(conversations).await?;
        // No counter, or one that has given out nothing since it was seeded.
        let unknown: Vec<ConversationId> =
            conversations.iter().zip(&counted).filter(|(_, slot)| slot.is_none()).map(|(c, _)| *c).collect();
        if unknown.is_empty() {
            return Ok(counted);
        }
        let mut stored = self.messages.newest(&unknown).await?.into_iter();
        let stored_slot = |newest: Newest| Slot { id: newest.id, at_ms: newest.at };
        let known = |slot: Option<Slot>| slot.or_else(|| stored.next().flatten().map(stored_slot));
        Ok(counted.into_iter().map(known).collect())
    }

    /// Voids what is overdue in the conversations that this server wrote to lately.
    pub async fn sweep(&self) {
        let watched = std::mem::take(&mut *self.watched.lock().expect("no panic while held"));
        for conversation in watched {
            let progress = match self.sequence.progress(conversation).await {
                Ok(Some(progress)) => progress,
                Ok(None) => continue,
                Err(_) => {
                    self.watch(conversation);
                    continue;
                }
            };
            if !progress.pending.is_empty() {
                self.watch(conversation);
                // A failure is counted by the port's layer, and the next sweep tries again.
                let _ = self.void_overdue(conversation, &progress).await;
            }
        }
    }

    /// Rebuilds the counter of a conversation, unless another server does.
    async fn seed(&self, conversation: ConversationId) -> BackendResult<()> {
        self.seeder.seed(conversation).await
    }

    fn watch(&self, conversation: ConversationId) {
        let mut watched = self.watched.lock().expect("no panic while held");
        if watched.len() < WATCHED_MAX {
            watched.insert(conversation);
        }
    }

    /// Declares pending ids void whose writer had its time. Returns whether there were any.
    async fn void_overdue(&self, conversation: ConversationId, progress: &Progress) -> BackendResult<bool> {
        let mut any = false;
        for slot in progress.pending.iter().filter(|slot| slot.at_ms + VOID_AFTER_MS < progress.now_ms) {
            any = true;
            // Before it is marked: an id that stays marked has its retries refused.
            if !self.may_void(conversation, progress.epoch).await? {
                return Ok(true);
            }
            // Three steps, each of which another server can repeat: mark (from here a commit fails), shadow, settle.
            if self.sequence.begin_void(conversation, slot.id).await? {
                self.messages.void(conversation, MessageId(slot.id.0 - 1), slot.id).await?;
                self.sequence.end_void(conversation, slot.id).await?;
                self.metrics.count(Counter::IdsVoided);
            }
        }
        Ok(any)
    }

    /// Whether a counter of this epoch still speaks for the conversation, by a look of now: the other side of a split may have
    /// found the row of an id that is overdue here, and acknowledged it. If not, as [`Ordering::may_acknowledge`].
    async fn may_void(&self, conversation: ConversationId, epoch: u64) -> BackendResult<bool> {
        if !self.sequence.can_split() || self.messages.head(conversation).await?.epoch == epoch {
            return Ok(true);
        }
        self.left_behind(conversation, epoch).await
    }

    /// A counter was overtaken: it is left alone for a while, and then dropped, so that its next use takes over.
    async fn left_behind(&self, conversation: ConversationId, epoch: u64) -> BackendResult<bool> {
        self.metrics.count(Counter::SendsFenced);
        self.fence.overtaken(conversation, epoch)?;
        self.sequence.forget(conversation, epoch).await?;
        Ok(false)
    }

    /// Lets the counter of an epoch give out more ids, or drops it when a younger epoch has begun.
    async fn raise_block(&self, conversation: ConversationId, epoch: u64, block_end: u64) -> BackendResult<()> {
        let head = self.messages.head(conversation).await?;
        if head.epoch != epoch {
            if self.sequence.can_split() {
                self.fence.overtaken(conversation, epoch)?;
            }
            return self.sequence.forget(conversation, epoch).await;
        }
        if head.block_end > block_end {
            // Somebody raised it and could not tell the counter.
            return self.sequence.extend(conversation, epoch, head).await;
        }
        let raised = ConversationHead { epoch, block_end: head.block_end + BLOCK_IDS };
        if self.messages.raise_head(conversation, head, raised).await? {
            self.sequence.extend(conversation, epoch, raised).await?;
        }
        Ok(())
    }
}

/// Why a message is not taken now. One that an earlier try has stored under an id may be read by the other side of a split.
fn overloaded(was_stored: bool) -> OrderingError {
    if !was_stored {
        return OrderingError::Overloaded;
    }
    let why = "the message is stored, and its counter has no room to say so";
    BackendError::not_applied("ordering.store", ErrorKind::Unavailable, why).after_a_write().into()
}

fn message(sender: UserId, frame: &SendFrame, slot: Slot) -> StoredMessage {
    StoredMessage {
        conversation: frame.conversation,
        id: slot.id,
        uuid: frame.uuid,
        sender,
        kind: frame.kind.clone(),
        body: frame.body.clone(),
        reply_to: frame.reply_to,
        at: slot.at_ms,
    }
}

/// Hash of what a retry must repeat. The same on every server and after every restart.
fn digest(kind: &str, body: &str, reply_to: Option<MessageId>) -> u64 {
    let mut hash = Sha256::new();
    hash.update((kind.len() as u64).to_be_bytes());
    hash.update(kind);
    hash.update(reply_to.map_or(0, |id| id.0).to_be_bytes());
    hash.update(body);
    let bytes = hash.finalize();
    u64::from_be_bytes(bytes[..8].try_into().expect("sha256 has 32 bytes"))
}

#[cfg(test)]
mod tests;
