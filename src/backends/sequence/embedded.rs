//! Counters in memory.
//!
//! They are deliberately not written down: after a restart every counter is rebuilt from the message store, by the same
//! code that rebuilds them after Redis forgot (see `docs/adr/0004-embedded-sequence-forgets.md`).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use uuid::Uuid;

use super::{PENDING_IDS_MAX, Progress, Remembered, Request, Reservation, Seed, Sequence, Slot};
use crate::backends::BackendResult;
use crate::backends::messages::ConversationHead;
use crate::protocol::limits::RETRY_WINDOW;
use crate::protocol::{ConversationId, MessageId, UserId};
use crate::runtime::clock;

const SHARDS: usize = 64;

/// Messages that are looked through for the newest committed one.
const NEWEST_LOOKS: usize = 16;

/// Counters of one process. Clones are the same counters.
#[derive(Clone)]
pub struct EmbeddedSequence {
    shards: Arc<[Mutex<HashMap<ConversationId, Entry>>]>,
    can_split: bool,
    /// How far the counters' clock is ahead of this machine's: tests let time pass.
    ahead_ms: Arc<AtomicU64>,
}

#[derive(Clone, Default)]
struct Entry {
    /// Epoch of the highest claim to seed.
    claimed: u64,
    /// What was remembered under that claim, by id.
    remembered: BTreeMap<u64, Remembered>,
    counter: Option<Counter>,
}

#[derive(Clone)]
struct Counter {
    epoch: u64,
    last: u64,
    block_end: u64,
    pending: BTreeMap<u64, Pending>,
    known: HashMap<(UserId, Uuid), Known>,
    /// Keys of `known`, oldest first, to forget them when the retry window has passed.
    ages: VecDeque<(u64, UserId, Uuid)>,
}

#[derive(Clone)]
struct Pending {
    at_ms: u64,
    sender: UserId,
    uuid: Uuid,
    voiding: bool,
}

#[derive(Clone, Copy)]
struct Known {
    slot: Slot,
    digest: u64,
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
        self.ahead_ms.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
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
        clock::unix_ms() + self.ahead_ms.load(Ordering::Relaxed)
    }

    fn shard(&self, conversation: ConversationId) -> MutexGuard<'_, HashMap<ConversationId, Entry>> {
        self.shards[conversation.0 as usize % SHARDS].lock().expect("no panic while held")
    }

    fn with_counter<T>(&self, conversation: ConversationId, work: impl FnOnce(&mut Counter) -> T) -> Option<T> {
        self.shard(conversation).get_mut(&conversation).and_then(|entry| entry.counter.as_mut()).map(work)
    }
}

impl Counter {
    fn reserve(&mut self, request: &Request, now_ms: u64) -> Reservation {
        self.forget_old(now_ms);
        let key = (request.sender, request.uuid);
        if let Some(known) = self.known.get(&key) {
            return match self.pending.get(&known.slot.id.0) {
                _ if known.digest != request.digest => Reservation::Conflict,
                Some(pending) if pending.voiding => Reservation::Overloaded,
                Some(_) => Reservation::Pending(known.slot, self.epoch),
                None => Reservation::Stored(known.slot),
            };
        }
        if self.pending.len() >= PENDING_IDS_MAX {
            return Reservation::Overloaded;
        }
        if self.last >= self.block_end {
            return Reservation::BlockUsedUp { epoch: self.epoch, block_end: self.block_end };
        }
        self.last += 1;
        let slot = Slot { id: MessageId(self.last), at_ms: now_ms };
        let pending = Pending { at_ms: now_ms, sender: request.sender, uuid: request.uuid, voiding: false };
        self.pending.insert(self.last, pending);
        self.remember(key, Known { slot, digest: request.digest });
        Reservation::Fresh(slot, self.epoch)
    }

    fn remember(&mut self, key: (UserId, Uuid), known: Known) {
        self.known.insert(key, known);
        self.ages.push_back((known.slot.at_ms, key.0, key.1));
    }

    fn forget_old(&mut self, now_ms: u64) {
        let window = RETRY_WINDOW.as_millis() as u64;
        while let Some(&(at_ms, sender, uuid)) = self.ages.front() {
            if at_ms + window > now_ms {
                break;
            }
            self.ages.pop_front();
            // A uuid that was voided and sent again has a younger entry of its own.
            if self.known.get(&(sender, uuid)).is_some_and(|k| k.slot.at_ms == at_ms) {
                self.known.remove(&(sender, uuid));
            }
        }
    }

    /// The newest of the youngest few that is committed. One that is pending for long hides it from nobody but the inbox.
    fn newest(&self) -> Option<Slot> {
        let youngest = self.ages.iter().rev().take(NEWEST_LOOKS);
        let slots = youngest.filter_map(|(_, sender, uuid)| Some(self.known.get(&(*sender, *uuid))?.slot));
        slots.filter(|slot| !self.pending.contains_key(&slot.id.0)).max_by_key(|slot| slot.id)
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
        let committed = self.with_counter(conversation, |c| {
            if c.known.get(&(sender, uuid)).is_none_or(|known| known.slot.id != id) {
                return false;
            }
            match c.pending.get(&id.0) {
                Some(pending) if pending.voiding => false,
                Some(_) => {
                    c.pending.remove(&id.0);
                    true
                }
                None => true,
            }
        });
        Ok(committed.unwrap_or(false))
    }

    async fn progress(&self, conversation: ConversationId) -> BackendResult<Option<Progress>> {
        Ok(self.with_counter(conversation, |c| c.progress(self.now_ms())))
    }

    async fn newest(&self, conversations: &[ConversationId]) -> BackendResult<Vec<Option<Slot>>> {
        Ok(conversations.iter().map(|c| self.with_counter(*c, |counter| counter.newest()).flatten()).collect())
    }

    async fn begin_void(&self, conversation: ConversationId, id: MessageId) -> BackendResult<bool> {
        let marked = self
            .with_counter(conversation, |c| c.pending.get_mut(&id.0).map(|pending| pending.voiding = true).is_some());
        Ok(marked.unwrap_or(false))
    }

    async fn end_void(&self, conversation: ConversationId, id: MessageId) -> BackendResult<()> {
        self.with_counter(conversation, |c| {
            if c.pending.get(&id.0).is_some_and(|p| p.voiding) {
                let pending = c.pending.remove(&id.0).expect("just seen");
                c.known.remove(&(pending.sender, pending.uuid));
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
            entry.remembered.clear();
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
        entry.remembered.extend(messages.iter().map(|message| (message.slot.id.0, *message)));
        Ok(true)
    }

    async fn seed(&self, conversation: ConversationId, seed: &Seed) -> BackendResult<bool> {
        let mut shard = self.shard(conversation);
        let Some(entry) = shard.get_mut(&conversation) else { return Ok(false) };
        if entry.counter.is_some() || entry.claimed != seed.epoch {
            return Ok(false);
        }
        let mut counter = Counter {
            epoch: seed.epoch,
            last: seed.settled.0,
            block_end: seed.block_end,
            pending: BTreeMap::new(),
            known: HashMap::new(),
            ages: VecDeque::new(),
        };
        for row in std::mem::take(&mut entry.remembered).into_values() {
            counter.remember((row.sender, row.uuid), Known { slot: row.slot, digest: row.digest });
        }
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
