//! Ids, order and repeats, above the ports: the same code for embedded and real engines.
//!
//! A message is reserved (an id, pending), appended, committed. A counter that is not there is seeded from the message
//! store. An id whose writer died is declared void after [`VOID_AFTER_MS`]. The rules are in DESIGN section 3; the order
//! of the steps is what keeps invariants I1 to I5.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::RngExt;
use sha2::{Digest, Sha256};

use super::fence::{self, Fence};
use super::recent::Recent;
use crate::backends::error::BackendError;
use crate::backends::messages::{ConversationHead, Messages, StoredMessage};
use crate::backends::sequence::{Progress, Remembered, Request, Reservation, Seed, Sequence, Slot};
use crate::backends::{BackendResult, Backends};
use crate::protocol::frames::SendFrame;
use crate::protocol::limits::RETRY_WINDOW;
use crate::protocol::{ConversationId, MessageId, UserId};
use crate::runtime::clock;
use crate::telemetry::{Counter, Metrics};

/// Ids that a counter may give out before the head must be raised. Source: DESIGN section 3.
pub const BLOCK_IDS: u64 = 10_000;

/// Age at which a pending id may be declared void by anyone. Source: DESIGN section 3.
pub const VOID_AFTER_MS: u64 = 10_000;

/// Messages that a seed reads at once.
const SEED_PAGE: usize = 1_000;

/// Tries of one store or progress call: each seed, raised block or lost race takes one.
const TRIES_MAX: usize = 12;

/// Longest that the turn to seed is kept: the wait for looks to end, and the reading of a day's messages.
const TURN_LIFE: Duration = Duration::from_secs(5);

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
            recent: Recent::default(),
            watched: Mutex::default(),
        }
    }

    /// Stores a message, or finds where its uuid is stored already. On `Ok` it is durable and committed.
    ///
    /// Dropping the future leaves an id pending, as a crash would: a retry completes it, or it becomes void.
    pub async fn store(&self, sender: UserId, frame: &SendFrame) -> Result<StoredMessage, OrderingError> {
        let request = Request {
            conversation: frame.conversation,
            sender,
            uuid: frame.uuid,
            digest: digest(&frame.kind, &frame.body, frame.reply_to),
            at_ms: clock::unix_ms(),
        };
        self.watch(frame.conversation);
        for _ in 0..TRIES_MAX {
            match self.sequence.reserve(&request).await? {
                Reservation::Stored(slot) => return Ok(message(sender, frame, slot)),
                Reservation::Fresh(slot, epoch) | Reservation::Pending(slot, epoch) => {
                    let message = message(sender, frame, slot);
                    self.messages.append(&message).await?;
                    if !self.may_acknowledge(frame.conversation, epoch).await? {
                        continue;
                    }
                    if self.commit(&message).await? {
                        return Ok(message);
                    }
                    // The id was declared void meanwhile: the row is shadowed, the uuid is free.
                }
                Reservation::Conflict => return Err(OrderingError::Conflict),
                Reservation::Overloaded => return Err(OrderingError::Overloaded),
                Reservation::Unseeded => self.seed(frame.conversation).await?,
                Reservation::BlockUsedUp { epoch, block_end } => {
                    self.raise_block(frame.conversation, epoch, block_end).await?;
                }
            }
        }
        Err(OrderingError::Overloaded)
    }

    /// Whether a counter of this epoch still speaks for the conversation; if not, it is left alone for a while, and then
    /// taken over.
    async fn may_acknowledge(&self, conversation: ConversationId, epoch: u64) -> BackendResult<bool> {
        if !self.sequence.can_split() || self.fence.holds(&*self.messages, conversation, epoch).await? {
            return Ok(true);
        }
        self.metrics.count(Counter::SendsFenced);
        self.fence.overtaken(conversation, epoch)?;
        self.sequence.forget(conversation, epoch).await?;
        Ok(false)
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
            let Some(progress) = self.sequence.progress(conversation).await? else {
                self.seed(conversation).await?;
                continue;
            };
            if !self.void_overdue(conversation, &progress).await? {
                return Ok(progress);
            }
        }
        let operation = "ordering.progress";
        Err(BackendError::not_applied(
            operation,
            crate::backends::error::ErrorKind::Unavailable,
            "the counter is being rebuilt",
        ))
    }

    /// Messages with `after < id`, settled or at least committed, at most `limit`; whether there are more; and the
    /// progress that explains the holes.
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
        let (mut rows, known) = remembered.unwrap_or((Vec::new(), after));
        if rows.len() <= limit && known < progress.head {
            let news = self.messages.read(conversation, known, progress.head, limit + 1).await?;
            let seen = if news.len() <= limit { progress.head } else { news.last().map_or(known, |row| row.id) };
            if source == Source::Memory {
                self.recent.put(conversation, known, seen.min(progress.stable), news.iter().cloned());
            }
            rows.extend(news);
        }
        let has_more = rows.len() > limit;
        rows.truncate(limit);
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
        let stored_slot = |row: StoredMessage| Slot { id: row.id, at_ms: row.at };
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

    fn watch(&self, conversation: ConversationId) {
        let mut watched = self.watched.lock().expect("no panic while held");
        if watched.len() < WATCHED_MAX {
            watched.insert(conversation);
        }
    }

    /// Declares pending ids void whose writer had its time. Returns whether there were any.
    async fn void_overdue(&self, conversation: ConversationId, progress: &Progress) -> BackendResult<bool> {
        let now_ms = clock::unix_ms();
        let mut any = false;
        for slot in progress.pending.iter().filter(|slot| slot.at_ms + VOID_AFTER_MS < now_ms) {
            any = true;
            // Three steps, each of which another server can repeat: mark (from here a commit fails), shadow, settle.
            if self.sequence.begin_void(conversation, slot.id).await? {
                self.messages.void(conversation, MessageId(slot.id.0 - 1), slot.id).await?;
                self.sequence.end_void(conversation, slot.id).await?;
                self.metrics.count(Counter::IdsVoided);
            }
        }
        Ok(any)
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

    /// Rebuilds the counter of a conversation from the message store, unless another server does.
    ///
    /// Order matters: (a) raise epoch and block in the store, (b) claim the seed, after which no lower epoch can give out
    /// ids, (c) read the tail, (d) void everything that the old epochs left open, (e) write the counter.
    async fn seed(&self, conversation: ConversationId) -> BackendResult<()> {
        let owner = rand::random();
        if !self.sequence.take_turn(conversation, owner, TURN_LIFE).await? {
            return self.wait_for_other_seeds().await;
        }
        let seeded = self.seed_in_turn(conversation).await;
        // What can't be given back ends by itself.
        let _ = self.sequence.end_turn(conversation, owner).await;
        seeded
    }

    async fn seed_in_turn(&self, conversation: ConversationId) -> BackendResult<()> {
        let old = self.messages.head(conversation).await?;
        let new = ConversationHead { epoch: old.epoch + 1, block_end: old.block_end + BLOCK_IDS };
        if !self.messages.raise_head(conversation, old, new).await? {
            return self.wait_for_other_seeds().await;
        }
        if !self.sequence.begin_seed(conversation, new.epoch).await? {
            // Somebody was faster. If the counter is of the epoch from which the head was raised, the new one is its own:
            // nobody else has used it.
            self.sequence.extend(conversation, old.epoch, new).await?;
            return self.wait_for_other_seeds().await;
        }
        if self.sequence.can_split() && old.epoch > 0 && fence::was_in_use(&*self.messages, conversation).await? {
            tokio::time::sleep(fence::TAIL_WAIT).await;
        }
        // Where no counter ever was, nothing can be stored.
        let is_first = old == ConversationHead::default();
        let remembered = if is_first { Vec::new() } else { self.read_tail(conversation, old.block_end).await? };
        let settled = MessageId(old.block_end);
        let seed = Seed { epoch: new.epoch, settled, block_end: new.block_end, remembered };
        if !self.sequence.seed(conversation, &seed).await? {
            return self.wait_for_other_seeds().await;
        }
        self.metrics.count(Counter::SequenceSeeds);
        Ok(())
    }

    /// Another server is seeding: gives it a moment, of random length so that two do not outbid each other for ever. Where
    /// a seed has to wait for looks to end, so do those who wait for it.
    async fn wait_for_other_seeds(&self) -> BackendResult<()> {
        let longest_ms = if self.sequence.can_split() { 300 } else { 60 };
        let wait = rand::rng().random_range(5..longest_ms);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        Ok(())
    }

    /// Reads the messages of the retry window, newest first, and voids every gap between them up to `block_end`.
    async fn read_tail(&self, conversation: ConversationId, block_end: u64) -> BackendResult<Vec<Remembered>> {
        let oldest_ms = clock::unix_ms().saturating_sub(RETRY_WINDOW.as_millis() as u64);
        let mut remembered = Vec::new();
        // Everything with an id above this one is stored or void.
        let mut explained = MessageId(block_end);
        let mut before = MessageId(block_end + 1);
        loop {
            let page = self.messages.read_back(conversation, before, SEED_PAGE).await?;
            let is_last = page.len() < SEED_PAGE;
            for row in page {
                self.messages.void(conversation, row.id, explained).await?;
                explained = MessageId(row.id.0 - 1);
                before = row.id;
                if row.at < oldest_ms {
                    return Ok(remembered);
                }
                remembered.push(remember(&row));
            }
            if is_last {
                self.messages.void(conversation, MessageId(0), explained).await?;
                return Ok(remembered);
            }
        }
    }
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

fn remember(row: &StoredMessage) -> Remembered {
    Remembered {
        sender: row.sender,
        uuid: row.uuid,
        digest: digest(&row.kind, &row.body, row.reply_to),
        slot: Slot { id: row.id, at_ms: row.at },
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
mod tests {
    use super::*;
    use crate::backends::sequence::EmbeddedSequence;
    use uuid::Uuid;

    const TALK: ConversationId = ConversationId(1);
    const ALICE: UserId = UserId(1);

    struct Bench {
        _folder: tempfile::TempDir,
        backends: Backends,
        metrics: Arc<Metrics>,
    }

    impl Bench {
        async fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let config = crate::backends::Config {
                data: folder.path().to_owned(),
                partitions: 4,
                engines: crate::backends::Engines::default(),
            };
            let backends = crate::backends::open(&config).await.expect("opens");
            Self { _folder: folder, backends, metrics: Arc::new(Metrics::new("test", "t")) }
        }

        fn ordering(&self) -> Ordering {
            Ordering::new(&self.backends, &self.metrics)
        }

        /// What a Redis with stock settings does on `kill -9`.
        fn forget_everything(&mut self) {
            self.backends.sequence = Arc::new(EmbeddedSequence::default());
        }
    }

    fn frame(body: &str) -> SendFrame {
        SendFrame {
            uuid: Uuid::new_v4(),
            conversation: TALK,
            kind: "text".to_owned(),
            body: body.to_owned(),
            reply_to: None,
        }
    }

    #[tokio::test]
    async fn a_retry_finds_its_id_and_another_body_is_a_conflict() {
        let bench = Bench::new().await;
        let ordering = bench.ordering();
        let hello = frame("hello");
        let first = ordering.store(ALICE, &hello).await.expect("stores");
        assert_eq!(ordering.store(ALICE, &hello).await.expect("finds"), first);
        let other = SendFrame { body: "other".to_owned(), ..hello };
        assert!(matches!(ordering.store(ALICE, &other).await, Err(OrderingError::Conflict)));
    }

    #[tokio::test]
    async fn ids_are_not_reused_after_the_counter_forgot_and_uuids_are_remembered() {
        let mut bench = Bench::new().await;
        let hello = frame("hello");
        let first = bench.ordering().store(ALICE, &hello).await.expect("stores");
        bench.forget_everything();
        let ordering = bench.ordering();
        assert_eq!(ordering.store(ALICE, &hello).await.expect("finds").id, first.id);
        let next = ordering.store(ALICE, &frame("next")).await.expect("stores");
        assert!(next.id.0 > BLOCK_IDS, "the rest of the old block is void");
        let (rows, _, progress) = ordering.read(TALK, MessageId(0), 10, Source::Store).await.expect("reads");
        assert_eq!(rows.iter().map(|r| r.id).collect::<Vec<_>>(), [first.id, next.id]);
        assert_eq!(progress.stable, next.id);
    }

    #[tokio::test]
    async fn a_row_that_lands_late_from_an_old_epoch_is_never_seen() {
        let mut bench = Bench::new().await;
        let first = bench.ordering().store(ALICE, &frame("one")).await.expect("stores");
        bench.forget_everything();
        bench.ordering().progress(TALK).await.expect("seeds");
        let late = StoredMessage { id: first.id.next(), uuid: Uuid::new_v4(), ..first.clone() };
        bench.backends.messages.append(&late).await.expect("says ok");
        let (rows, ..) = bench.ordering().read(TALK, MessageId(0), 10, Source::Store).await.expect("reads");
        assert_eq!(rows, [first]);
    }

    #[tokio::test]
    async fn stable_never_passes_a_pending_id_and_a_sync_hides_uncommitted_rows() {
        let bench = Bench::new().await;
        let ordering = bench.ordering();
        ordering.store(ALICE, &frame("one")).await.expect("stores");
        let slow = frame("slow");
        let request = Request {
            conversation: TALK,
            sender: ALICE,
            uuid: slow.uuid,
            digest: digest(&slow.kind, &slow.body, None),
            at_ms: clock::unix_ms(),
        };
        let Reservation::Fresh(slot, _) = bench.backends.sequence.reserve(&request).await.expect("reserves") else {
            panic!("not fresh")
        };
        bench.backends.messages.append(&message(ALICE, &slow, slot)).await.expect("appends");
        let three = ordering.store(ALICE, &frame("three")).await.expect("stores");
        let (rows, _, progress) = ordering.read(TALK, MessageId(0), 10, Source::Store).await.expect("reads");
        assert_eq!((progress.stable.0, rows.len()), (1, 2), "the pending row is not shown");
        assert_eq!(rows[1], three);
        let retried = ordering.store(ALICE, &slow).await.expect("completes");
        assert_eq!((retried.id, retried.at), (slot.id, slot.at_ms));
        assert_eq!(ordering.progress(TALK).await.expect("reads").stable, three.id);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_two_counters_that_are_alive_only_one_acknowledges_and_nothing_is_lost() {
        let bench = Bench::new().await;
        let side = || {
            let sequence = Arc::new(EmbeddedSequence::split());
            Ordering::new(&Backends { sequence, ..bench.backends.clone() }, &bench.metrics)
        };
        let (old, young) = (side(), side());
        let mut acked = vec![old.store(ALICE, &frame("before")).await.expect("stores")];
        // The look of the old side holds while the young one seeds and waits; what it stores by then is found.
        let first_young = frame("young");
        let seeding = young.store(ALICE, &first_young);
        let meanwhile = async {
            let mut acked = Vec::new();
            for n in 0..40 {
                acked.extend(old.store(ALICE, &frame(&format!("meanwhile {n}"))).await.ok());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            acked
        };
        let (seeded, meanwhile) = tokio::join!(seeding, meanwhile);
        assert!(!meanwhile.is_empty() && meanwhile.len() < 40, "{} were acknowledged", meanwhile.len());
        acked.extend(meanwhile);
        acked.push(seeded.expect("stores"));
        assert!(old.store(ALICE, &frame("fenced")).await.is_err());
        acked.push(young.store(ALICE, &frame("after")).await.expect("stores"));
        let stored = bench.backends.messages.read(TALK, MessageId(0), MessageId(u64::MAX), 100).await.expect("reads");
        for message in &acked {
            assert!(stored.contains(message), "{message:?} was acknowledged and is not stored");
        }
    }

    #[tokio::test]
    async fn what_is_remembered_is_what_the_store_has() {
        let bench = Bench::new().await;
        let ordering = bench.ordering();
        for n in 0..30 {
            ordering.store(ALICE, &frame(&n.to_string())).await.expect("stores");
            for (after, limit) in [(0, 100), (n / 2, 3), (n, 10), (n + 5, 10)] {
                let recent = ordering.read(TALK, MessageId(after), limit, Source::Memory).await.expect("reads");
                assert_eq!(recent, ordering.read(TALK, MessageId(after), limit, Source::Store).await.expect("reads"));
            }
        }
        let newest = ordering.newest(&[TALK, ConversationId(2)]).await.expect("reads");
        assert_eq!(newest.iter().map(|slot| slot.map(|s| s.id.0)).collect::<Vec<_>>(), [Some(30), None]);
    }

    #[tokio::test]
    async fn an_id_whose_writer_died_becomes_void_and_its_retry_gets_a_fresh_one() {
        let bench = Bench::new().await;
        let ordering = bench.ordering();
        ordering.store(ALICE, &frame("one")).await.expect("stores");
        let dead = frame("dead");
        let request = Request {
            conversation: TALK,
            sender: ALICE,
            uuid: dead.uuid,
            digest: digest(&dead.kind, &dead.body, None),
            at_ms: clock::unix_ms() - VOID_AFTER_MS - 1,
        };
        bench.backends.sequence.reserve(&request).await.expect("reserves");
        let progress = ordering.progress(TALK).await.expect("voids");
        assert_eq!((progress.stable.0, progress.pending.len()), (2, 0));
        assert_eq!(bench.metrics.counted(Counter::IdsVoided), 1);
        assert_eq!(ordering.store(ALICE, &dead).await.expect("stores").id, MessageId(3));
    }

    #[tokio::test]
    async fn a_block_is_raised_when_it_is_used_up() {
        let bench = Bench::new().await;
        let ordering = bench.ordering();
        ordering.store(ALICE, &frame("one")).await.expect("stores");
        let sequence = &bench.backends.sequence;
        // A second block begins where the first ends; use up the first without 10,000 writes.
        sequence.forget(TALK, 1).await.expect("forgets");
        assert!(sequence.begin_seed(TALK, 1).await.expect("claims"));
        let seed = Seed { epoch: 1, settled: MessageId(BLOCK_IDS), block_end: BLOCK_IDS, remembered: Vec::new() };
        assert!(sequence.seed(TALK, &seed).await.expect("seeds"));
        assert_eq!(ordering.store(ALICE, &frame("two")).await.expect("stores").id, MessageId(BLOCK_IDS + 1));
        let head = bench.backends.messages.head(TALK).await.expect("reads");
        assert_eq!(head, ConversationHead { epoch: 1, block_end: 2 * BLOCK_IDS });
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_servers_that_seed_at_once_agree() {
        let bench = Bench::new().await;
        let frames: Vec<SendFrame> = (0..40).map(|n| frame(&n.to_string())).collect();
        let stores = frames.iter().map(|frame| {
            let ordering = bench.ordering();
            async move { ordering.store(ALICE, frame).await.expect("stores").id }
        });
        let ids: HashSet<MessageId> = futures_util::future::join_all(stores).await.into_iter().collect();
        assert_eq!(ids.len(), 40);
        let (rows, _, progress) = bench.ordering().read(TALK, MessageId(0), 100, Source::Store).await.expect("reads");
        assert_eq!((rows.len(), progress.pending.len()), (40, 0));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whatever_fails_an_acknowledged_message_is_stored_once() {
        for seed in 0..20 {
            let mut bench = Bench::new().await;
            let sound = bench.backends.clone();
            bench.backends = sound.faulty(seed, 150);
            let ordering = bench.ordering();
            let mut acked = Vec::new();
            for n in 0..60 {
                let frame = frame(&n.to_string());
                let mut stored = ordering.store(ALICE, &frame).await;
                for _ in 0..20 {
                    if stored.is_ok() {
                        break;
                    }
                    stored = ordering.store(ALICE, &frame).await;
                }
                acked.push(stored.unwrap_or_else(|e| panic!("seed {seed}: never stored: {e}")));
            }
            bench.backends = sound;
            let (rows, _, progress) =
                bench.ordering().read(TALK, MessageId(0), 1_000, Source::Store).await.expect("reads");
            assert_eq!(rows, acked, "seed {seed}");
            assert!(progress.pending.is_empty(), "seed {seed}");
        }
    }
}
