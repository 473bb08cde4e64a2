//! Counters in memory.
//!
//! They are deliberately not written down: after a restart every counter is rebuilt from the message store, by the same
//! code that rebuilds them after Redis forgot (see `docs/adr/0004-embedded-sequence-forgets.md`).

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::fingerprints::Fingerprints;
use super::{PENDING_IDS_MAX, Progress, Remembered, Request, Reservation, Seed, Sequence, Slot};
use crate::backends::BackendResult;
use crate::backends::messages::ConversationHead;
use crate::protocol::{ConversationId, MessageId, UserId};
use crate::runtime::clock;

const SHARDS: usize = 64;

/// Counters of one process. Clones are the same counters.
#[derive(Clone)]
pub struct EmbeddedSequence {
    shards: Arc<[Mutex<HashMap<ConversationId, Entry>>]>,
    can_split: bool,
    /// How far the counters' clock is ahead of this machine's, or behind where that is negative: tests let time pass.
    ahead_ms: Arc<AtomicI64>,
}

#[derive(Clone, Default)]
struct Entry {
    /// Epoch of the highest claim to seed.
    claimed: u64,
    /// What was remembered under that claim.
    remembered: Fingerprints,
    counter: Option<Counter>,
}

#[derive(Clone)]
struct Counter {
    epoch: u64,
    last: u64,
    block_end: u64,
    /// The greatest committed id since the counter was seeded.
    newest: Option<Slot>,
    pending: BTreeMap<u64, Pending>,
    /// Ids of `pending`.
    pending_uuids: HashMap<(UserId, Uuid), u64>,
    committed: Fingerprints,
}

#[derive(Clone)]
struct Pending {
    at_ms: u64,
    sender: UserId,
    uuid: Uuid,
    digest: u64,
    voiding: bool,
}

impl Default for EmbeddedSequence {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), can_split: false, ahead_ms: Arc::default() }
    }
}

#[cfg(test)]
impl EmbeddedSequence {
    /// One of two that are alive at the same time, as Redis masters after a failover.
    pub(crate) fn split() -> Self {
        Self { can_split: true, ..Self::default() }
    }

    /// Lets time pass for the counters.
    pub(crate) fn advance(&self, by: std::time::Duration) {
        self.ahead_ms.fetch_add(by.as_millis() as i64, Ordering::Relaxed);
    }

    /// Sets the counters' clock back.
    pub(crate) fn set_back(&self, by: std::time::Duration) {
        self.ahead_ms.fetch_sub(by.as_millis() as i64, Ordering::Relaxed);
    }

    /// What the counters are now, as a backup.
    pub(crate) fn backup(&self) -> Self {
        let shard = |shard: &Mutex<HashMap<ConversationId, Entry>>| {
            Mutex::new(shard.lock().expect("no panic while held").clone())
        };
        Self { shards: self.shards.iter().map(shard).collect(), ahead_ms: Arc::clone(&self.ahead_ms), ..*self }
    }

    /// Goes back to a backup, under everybody who uses these counters.
    pub(crate) fn restore(&self, backup: &Self) {
        for (shard, old) in self.shards.iter().zip(backup.backup().shards.iter()) {
            *shard.lock().expect("no panic while held") =
                std::mem::take(&mut *old.lock().expect("no panic while held"));
        }
    }
}

impl EmbeddedSequence {
    fn now_ms(&self) -> u64 {
        clock::unix_ms().saturating_add_signed(self.ahead_ms.load(Ordering::Relaxed))
    }

    fn shard(&self, conversation: ConversationId) -> MutexGuard<'_, HashMap<ConversationId, Entry>> {
        self.shards[conversation.0 as usize % SHARDS].lock().expect("no panic while held")
    }

    fn with_counter<T>(&self, conversation: ConversationId, work: impl FnOnce(&mut Counter) -> T) -> Option<T> {
        self.shard(conversation).get_mut(&conversation).and_then(|entry| entry.counter.as_mut()).map(work)
    }
}

/// What is remembered of a sender's uuid: 64 bits, which two of them hardly ever share.
fn fingerprint(sender: UserId, uuid: Uuid) -> u64 {
    let hash = Sha256::new().chain_update(sender.0.to_be_bytes()).chain_update(uuid).finalize();
    u64::from_be_bytes(hash[..8].try_into().expect("sha256 has 32 bytes"))
}

impl Counter {
    fn reserve(&mut self, request: &Request, now_ms: u64) -> Reservation {
        let key = (request.sender, request.uuid);
        if let Some(id) = self.pending_uuids.get(&key) {
            let pending = &self.pending[id];
            return match pending {
                _ if pending.digest != request.digest => Reservation::Conflict,
                _ if pending.voiding => Reservation::Overloaded,
                _ => Reservation::Pending(Slot { id: MessageId(*id), at_ms: pending.at_ms }, self.epoch),
            };
        }
        if let Some(id) = self.committed.find(fingerprint(request.sender, request.uuid), request.not_upto, now_ms) {
            return Reservation::Committed(id);
        }
        if self.pending.len() >= PENDING_IDS_MAX {
            return Reservation::Overloaded;
        }
        if self.last >= self.block_end {
            return Reservation::BlockUsedUp { epoch: self.epoch, block_end: self.block_end };
        }
        self.last += 1;
        let Request { sender, uuid, digest, .. } = *request;
        self.pending.insert(self.last, Pending { at_ms: now_ms, sender, uuid, digest, voiding: false });
        self.pending_uuids.insert(key, self.last);
        Reservation::Fresh(Slot { id: MessageId(self.last), at_ms: now_ms }, self.epoch)
    }

    fn commit(&mut self, sender: UserId, uuid: Uuid, id: MessageId, now_ms: u64) -> bool {
        let fingerprint = fingerprint(sender, uuid);
        if self.pending_uuids.get(&(sender, uuid)) != Some(&id.0) {
            return self.committed.has(fingerprint, id);
        }
        if self.pending[&id.0].voiding {
            return false;
        }
        let pending = self.take_pending(id).expect("just seen");
        self.committed.insert(fingerprint, id, now_ms);
        if self.newest.is_none_or(|newest| newest.id < id) {
            self.newest = Some(Slot { id, at_ms: pending.at_ms });
        }
        true
    }

    fn take_pending(&mut self, id: MessageId) -> Option<Pending> {
        let pending = self.pending.remove(&id.0)?;
        self.pending_uuids.remove(&(pending.sender, pending.uuid));
        Some(pending)
    }

    fn progress(&self, now_ms: u64) -> Progress {
        let pending: Vec<Slot> =
            self.pending.iter().map(|(id, p)| Slot { id: MessageId(*id), at_ms: p.at_ms }).collect();
        let stable = pending.first().map_or(self.last, |slot| slot.id.0 - 1);
        Progress { epoch: self.epoch, stable: MessageId(stable), head: MessageId(self.last), pending, now_ms }
    }
}

#[async_trait]
impl Sequence for EmbeddedSequence {
    async fn now_ms(&self) -> BackendResult<u64> {
        Ok(Self::now_ms(self))
    }

    fn can_split(&self) -> bool {
        self.can_split
    }

    async fn reserve(&self, request: &Request) -> BackendResult<Reservation> {
        Ok(self
            .with_counter(request.conversation, |c| c.reserve(request, self.now_ms()))
            .unwrap_or(Reservation::Unseeded))
    }

    async fn commit(
        &self,
        conversation: ConversationId,
        sender: UserId,
        uuid: Uuid,
        id: MessageId,
    ) -> BackendResult<bool> {
        let committed = self.with_counter(conversation, |c| c.commit(sender, uuid, id, self.now_ms()));
        Ok(committed.unwrap_or(false))
    }

    async fn progress(&self, conversation: ConversationId) -> BackendResult<Option<Progress>> {
        Ok(self.with_counter(conversation, |c| c.progress(self.now_ms())))
    }

    async fn newest(&self, conversations: &[ConversationId]) -> BackendResult<Vec<Option<Slot>>> {
        Ok(conversations.iter().map(|c| self.with_counter(*c, |counter| counter.newest).flatten()).collect())
    }

    async fn begin_void(&self, conversation: ConversationId, id: MessageId) -> BackendResult<bool> {
        let marked = self
            .with_counter(conversation, |c| c.pending.get_mut(&id.0).map(|pending| pending.voiding = true).is_some());
        Ok(marked.unwrap_or(false))
    }

    async fn end_void(&self, conversation: ConversationId, id: MessageId) -> BackendResult<()> {
        self.with_counter(conversation, |c| {
            if c.pending.get(&id.0).is_some_and(|p| p.voiding) {
                c.take_pending(id);
            }
        });
        Ok(())
    }

    async fn begin_seed(&self, conversation: ConversationId, epoch: u64) -> BackendResult<bool> {
        let mut shard = self.shard(conversation);
        let entry = shard.entry(conversation).or_default();
        if entry.counter.is_some() || entry.claimed > epoch {
            return Ok(false);
        }
        if entry.claimed != epoch {
            entry.remembered = Fingerprints::default();
        }
        entry.claimed = epoch;
        Ok(true)
    }

    async fn remember(&self, conversation: ConversationId, epoch: u64, messages: &[Remembered]) -> BackendResult<bool> {
        let mut shard = self.shard(conversation);
        let Some(entry) = shard.get_mut(&conversation) else { return Ok(false) };
        if entry.counter.is_some() || entry.claimed != epoch {
            return Ok(false);
        }
        let now_ms = self.now_ms();
        for message in messages {
            entry.remembered.insert(fingerprint(message.sender, message.uuid), message.id, now_ms);
        }
        Ok(true)
    }

    async fn seed(&self, conversation: ConversationId, seed: &Seed) -> BackendResult<bool> {
        let mut shard = self.shard(conversation);
        let Some(entry) = shard.get_mut(&conversation) else { return Ok(false) };
        if entry.counter.is_some() || entry.claimed != seed.epoch {
            return Ok(false);
        }
        let counter = Counter {
            epoch: seed.epoch,
            last: seed.settled.0,
            block_end: seed.block_end,
            newest: None,
            pending: BTreeMap::new(),
            pending_uuids: HashMap::new(),
            committed: std::mem::take(&mut entry.remembered),
        };
        entry.counter = Some(counter);
        Ok(true)
    }

    async fn extend(&self, conversation: ConversationId, epoch: u64, to: ConversationHead) -> BackendResult<()> {
        self.with_counter(conversation, |c| {
            if c.epoch == epoch {
                c.epoch = to.epoch;
                c.block_end = c.block_end.max(to.block_end);
            }
        });
        Ok(())
    }

    async fn forget(&self, conversation: ConversationId, epoch: u64) -> BackendResult<()> {
        if let Some(entry) = self.shard(conversation).get_mut(&conversation) {
            entry.counter.take_if(|c| c.epoch <= epoch);
        }
        Ok(())
    }

    async fn probe(&self) -> BackendResult<()> {
        // It is a map in this process.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::contract::EmbeddedPlace;
    use crate::backends::sequence::contract::sequence_contract;

    fn place() -> EmbeddedPlace<dyn Sequence> {
        EmbeddedPlace::<dyn Sequence>::new(|_| Arc::new(EmbeddedSequence::default()))
    }

    sequence_contract!(place());
}
