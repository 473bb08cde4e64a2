//! Rebuilding a counter from the message store.
//!
//! A seed is a task of its own: it goes on when the request that wanted it has run out of time, everybody on this server who
//! needs the same counter waits for the same task, and of servers that share a counter one has the turn. It reads page by page
//! and hands each page over, so that a conversation of any length takes the memory of a page.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::RngExt;
use tokio::sync::{Semaphore, watch};

use super::{BLOCK_IDS, fence, page};
use crate::backends::BackendResult;
use crate::backends::error::{BackendError, Effect, ErrorKind};
use crate::backends::messages::{ConversationHead, Messages};
use crate::backends::sequence::{Remembered, Seed, Sequence};
use crate::protocol::limits::RETRY_WINDOW;
use crate::protocol::{ConversationId, MessageId};
use crate::runtime::backoff::Backoff;
use crate::runtime::{Tasks, clock};
use crate::telemetry::{Counter, Metrics};

/// Messages that are read and handed over at once; fewer of large ones, as of a page for a client.
const ROWS_MAX: usize = 1_000;

/// Seeds of one server at once: each holds a page of messages, and all of them wait for the same engines.
const SEEDS_AT_ONCE: usize = 16;

/// How often the turn is renewed while it is used.
const KEEP_TURN_EVERY: Duration = Duration::from_millis(1_500);

/// Longest that the turn to seed outlives a server that had it.
const TURN_LIFE: Duration = Duration::from_secs(5);

/// Tries of one page's calls, with waits between them; then the seed fails, and the next use begins another.
const PAGE_TRIES: u32 = 6;

/// How a seed ended, for those who wait: an error without what can't be copied.
type End = Result<(), (ErrorKind, String)>;

/// Seeds of one server.
pub(super) struct Seeder {
    engines: Arc<Engines>,
    /// Ends with this.
    tasks: Tasks,
    turns: Arc<Semaphore>,
    /// Those under way. Written when one begins and when it ends.
    running: Arc<Mutex<HashMap<ConversationId, watch::Receiver<Option<End>>>>>,
}

/// What a seed works on.
struct Engines {
    sequence: Arc<dyn Sequence>,
    messages: Arc<dyn Messages>,
    metrics: Arc<Metrics>,
}

impl Seeder {
    pub(super) fn new(sequence: &Arc<dyn Sequence>, messages: &Arc<dyn Messages>, metrics: &Arc<Metrics>) -> Self {
        let (sequence, messages, metrics) = (Arc::clone(sequence), Arc::clone(messages), Arc::clone(metrics));
        let engines = Arc::new(Engines { sequence, messages, metrics });
        Self { engines, tasks: Tasks::new(), turns: Arc::new(Semaphore::new(SEEDS_AT_ONCE)), running: Arc::default() }
    }

    /// Waits for the seed of a conversation's counter, and begins one if none is under way. On `Ok` the counter is there, or was a
    /// moment ago, or another server is at it. Dropping the future ends the wait and not the seed.
    pub(super) async fn seed(&self, conversation: ConversationId) -> BackendResult<()> {
        let mut end = self.join_or_begin(conversation);
        let ended = end.wait_for(Option::is_some).await.map(|end| end.clone());
        match ended {
            Ok(Some(Ok(())) | None) => Ok(()),
            Ok(Some(Err((kind, text)))) => Err(BackendError::not_applied("ordering.seed", kind, text)),
            Err(_) => Err(BackendError::not_applied("ordering.seed", ErrorKind::Unavailable, "the seed was dropped")),
        }
    }

    fn join_or_begin(&self, conversation: ConversationId) -> watch::Receiver<Option<End>> {
        let mut running = self.running.lock().expect("no panic while held");
        if let Some(end) = running.get(&conversation) {
            return end.clone();
        }
        let (tell, end) = watch::channel(None);
        running.insert(conversation, end.clone());
        let (engines, running) = (Arc::clone(&self.engines), Arc::clone(&self.running));
        let turns = Arc::clone(&self.turns);
        self.tasks.spawn_until_stopped("ordering.seed", async move {
            // Also where it panics: nobody may wait for a seed that is gone.
            let ended = Ended { conversation, running };
            let end = {
                let _turn = turns.acquire().await;
                engines.seed(conversation).await
            };
            // First taken out: who hears of a failure and tries again must find another one.
            drop(ended);
            tell.send_replace(Some(end.map_err(|error| (error.kind, error.to_string()))));
        });
        end
    }
}

/// A server that is gone seeds no more: where its engines are its process's, they would be held open.
impl Drop for Seeder {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// Takes a seed out of those under way.
struct Ended {
    conversation: ConversationId,
    running: Arc<Mutex<HashMap<ConversationId, watch::Receiver<Option<End>>>>>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        if let Ok(mut running) = self.running.lock() {
            running.remove(&self.conversation);
        }
    }
}

impl Engines {
    /// Order matters: (a) raise epoch and block in the store, (b) claim the seed, after which no lower epoch can give out
    /// ids, (c) read the tail, (d) void everything that the old epochs left open, (e) write the counter.
    async fn seed(&self, conversation: ConversationId) -> BackendResult<()> {
        let owner = rand::random();
        if !self.sequence.take_turn(conversation, owner, TURN_LIFE).await? {
            return self.wait_for_other_seeds().await;
        }
        let seeded = tokio::select! {
            seeded = self.seed_in_turn(conversation) => seeded,
            () = self.keep_turn(conversation, owner) => unreachable!("it never ends"),
        };
        // What can't be given back ends by itself.
        let _ = self.sequence.end_turn(conversation, owner).await;
        seeded
    }

    /// Renews the turn, for ever. It only saves work: where it fails, another server may begin its own seed.
    async fn keep_turn(&self, conversation: ConversationId, owner: u64) {
        loop {
            tokio::time::sleep(KEEP_TURN_EVERY).await;
            let _ = self.sequence.keep_turn(conversation, owner, TURN_LIFE).await;
        }
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
        if self.sequence.can_split()
            && old.epoch > 0
            && fence::was_in_use(&*self.sequence, &*self.messages, conversation).await?
        {
            tokio::time::sleep(fence::TAIL_WAIT).await;
        }
        let settled = MessageId(old.block_end);
        // Where no counter ever was, nothing can be stored.
        let is_first = old == ConversationHead::default();
        if !is_first && !self.take_over_tail(conversation, new.epoch, settled).await? {
            // A younger epoch has the claim.
            return self.wait_for_other_seeds().await;
        }
        let seed = Seed { epoch: new.epoch, settled, block_end: new.block_end };
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

    /// Reads the messages of the retry window, newest first, hands them over, and voids every gap between them up to `settled`.
    /// Returns whether the claim still stands.
    async fn take_over_tail(
        &self,
        conversation: ConversationId,
        epoch: u64,
        settled: MessageId,
    ) -> BackendResult<bool> {
        let window_ms = RETRY_WINDOW.as_millis() as u64;
        let mut oldest_ms = None;
        // Everything with an id above this one is stored or void.
        let mut explained = settled;
        let mut wanted = page::rows_of_next(&[], ROWS_MAX);
        loop {
            let page = persist(|| self.messages.read_back(conversation, explained.next(), wanted)).await?;
            let is_last = page.len() < wanted;
            wanted = page::rows_of_next(&page, ROWS_MAX);
            let mut remembered = Vec::with_capacity(page.len());
            let mut is_in_window = true;
            // Rows are dated by the counters' clock. By the earlier of that and this server's, too many are remembered, not too few.
            let newest_ms = page.first().map_or(0, |row| row.at);
            let oldest_ms = *oldest_ms.get_or_insert(clock::unix_ms().min(newest_ms).saturating_sub(window_ms));
            for row in &page {
                if row.id < explained {
                    persist(|| self.messages.void(conversation, row.id, explained)).await?;
                }
                explained = MessageId(row.id.0 - 1);
                is_in_window = row.at >= oldest_ms;
                if !is_in_window {
                    break;
                }
                remembered.push(Remembered { sender: row.sender, uuid: row.uuid, id: row.id });
            }
            if !remembered.is_empty() && !persist(|| self.sequence.remember(conversation, epoch, &remembered)).await? {
                return Ok(false);
            }
            if !is_in_window {
                return Ok(true);
            }
            if is_last {
                persist(|| self.messages.void(conversation, MessageId(0), explained)).await?;
                return Ok(true);
            }
        }
    }
}

/// Repeats a call that can be repeated, a few times and with waits between them: half a day's messages are not read again for one
/// page that did not come.
async fn persist<T, F: Future<Output = BackendResult<T>>>(call: impl Fn() -> F) -> BackendResult<T> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        let error = match call().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if backoff.tries() + 1 >= PAGE_TRIES || error.kind == ErrorKind::Corrupt || error.kind == ErrorKind::Rejected {
            return Err(BackendError { effect: Effect::NotApplied, ..error });
        }
        let wait = backoff.next_wait(&mut rand::rng());
        tokio::time::sleep(wait.max(error.retry_after.unwrap_or_default())).await;
    }
}
