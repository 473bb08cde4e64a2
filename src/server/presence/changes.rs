//! Changes of presence on their way to the log.
//!
//! A change waits until the log has it, however long the log is away: nobody else would tell it again. A server that
//! stops meanwhile leaves what waits to another one. Of a user the newest waits; what it overtook is of no matter any
//! more. One round is over before the next begins, so that two changes of a user never overtake each other here.
//!
//! Between two servers nothing orders changes but the store. So the state is read just before a change is published, and one that
//! is no longer so is left out: whoever made it so tells that. A publication that took long is looked at once more behind it.
//!
//! A call of the store whose answer was lost may have changed users whom nobody names. They are in doubt until a later call was
//! answered, since the lost one may still lie with the store; then their state is read and told as it is.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::Notify;

use crate::backends::BackendResult;
use crate::backends::log::{KeyedLog, Record, Topic};
use crate::backends::presence::{LastBeat, Presence, PresenceRecord};
use crate::protocol::frames::{PresenceFrame, PresenceState};
use crate::protocol::{ServerFrame, UserId};
use crate::runtime::{Backoff, clock};

/// Changes on their way to the log at the same time: a log that is slow must not fill its client's queue.
const PUBLISHES_AT_ONCE: usize = 512;

/// Changes whose state is read at once, just before they are published: none of them waits for another.
const READS_AT_ONCE: usize = PUBLISHES_AT_ONCE;

/// Longest time from the read of a state to the end of its publication that needs no second look.
const STATE_AGE_MAX: Duration = Duration::from_secs(1);

/// Users whose changes may wait, and as many who may be in doubt.
const WAITING_MAX: usize = 2_000_000;

/// First wait before the log or the store is tried again, and the longest.
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(3);

/// How long a server that stops goes on with what waits.
const LAST_PUBLISHES: Duration = Duration::from_secs(2);

/// What may be told of a user: the one that is so when it is published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Change {
    online: bool,
    offline: bool,
    /// For a store that has forgotten the last beat.
    at_ms: u64,
}

/// A user of whom something is to be told, and the last beat, in milliseconds since 1970.
pub(super) type Untold = (UserId, u64);

impl Change {
    const fn to(state: PresenceState, at_ms: u64) -> Self {
        let online = matches!(state, PresenceState::Online);
        Self { online, offline: !online, at_ms }
    }

    /// Either of two.
    fn or(self, other: Self) -> Self {
        let (online, offline) = (self.online || other.online, self.offline || other.offline);
        Self { online, offline, at_ms: self.at_ms.max(other.at_ms) }
    }

    /// What is to be told, where that is so.
    fn frame(self, user: UserId, record: PresenceRecord) -> Option<PresenceFrame> {
        let is_so = if record.online { self.online } else { self.offline };
        let state = state_of(record.online);
        // What the store has forgotten meanwhile was there when the change was made.
        let at = if record.last_beat_ms > 0 { record.last_beat_ms } else { self.at_ms };
        is_so.then_some(PresenceFrame { user, state, at })
    }
}

/// Whether a state that was read at a time may be another by now.
fn is_old(read_us: u64) -> bool {
    clock::now_us().saturating_sub(read_us) > STATE_AGE_MAX.as_micros() as u64
}

const fn state_of(online: bool) -> PresenceState {
    if online { PresenceState::Online } else { PresenceState::Offline }
}

/// A change that may have been made, and when that was found, on [`clock::now_us`].
struct Doubt {
    change: Change,
    since_us: u64,
}

/// What waits, by user. Written by whoever sees a change, taken by the loop.
#[derive(Default)]
pub(super) struct Changes {
    waiting: Mutex<HashMap<UserId, Change>>,
    doubts: Mutex<HashMap<UserId, Doubt>>,
    news: Notify,
}

/// Where changes are read and told.
pub(super) struct Ways<'a> {
    /// Has the state as it is.
    pub(super) store: &'a dyn Presence,
    /// Tells whoever watches.
    pub(super) log: &'a dyn KeyedLog,
}

impl Changes {
    fn waiting(&self) -> MutexGuard<'_, HashMap<UserId, Change>> {
        self.waiting.lock().expect("no panic while held")
    }

    fn doubts(&self) -> MutexGuard<'_, HashMap<UserId, Doubt>> {
        self.doubts.lock().expect("no panic while held")
    }

    /// Takes users that have come or gone. Returns how many changes there was no room for.
    pub(super) fn note(&self, users: &[LastBeat], state: PresenceState) -> usize {
        let mut waiting = self.waiting();
        let mut dropped = 0;
        for last in users {
            if waiting.len() >= WAITING_MAX && !waiting.contains_key(&last.user) {
                dropped += 1;
                continue;
            }
            waiting.insert(last.user, Change::to(state, last.at_ms));
        }
        drop(waiting);
        self.news.notify_one();
        dropped
    }

    /// Takes users that may have come or gone: the answer was lost. Returns how many there was no room for.
    pub(super) fn doubt(&self, users: impl IntoIterator<Item = LastBeat>, state: PresenceState) -> usize {
        let mut doubts = self.doubts();
        let since_us = clock::now_us();
        let mut dropped = 0;
        for last in users {
            if doubts.len() >= WAITING_MAX && !doubts.contains_key(&last.user) {
                dropped += 1;
                continue;
            }
            let change = Change::to(state, last.at_ms);
            let doubt = doubts.entry(last.user).or_insert(Doubt { change, since_us });
            *doubt = Doubt { change: doubt.change.or(change), since_us };
        }
        dropped
    }

    /// Notes that the store answered a call which began at a time: whoever was in doubt before is looked at now.
    pub(super) fn answered(&self, began_us: u64) {
        let ripe: Vec<(UserId, Change)> = {
            let mut doubts = self.doubts();
            if doubts.is_empty() {
                return;
            }
            doubts.extract_if(|_, doubt| doubt.since_us < began_us).map(|(user, doubt)| (user, doubt.change)).collect()
        };
        if !ripe.is_empty() {
            self.put_back(ripe);
            self.news.notify_one();
        }
    }

    /// Takes what another server could not tell. Returns how many there was no room for.
    pub(super) fn take_over(&self, untold: &[Untold]) -> usize {
        let room = WAITING_MAX.saturating_sub(self.waiting().len());
        let taken = untold.len().min(room);
        self.put_back(
            untold[..taken].iter().map(|(user, at_ms)| (*user, Change { online: true, offline: true, at_ms: *at_ms })),
        );
        self.news.notify_one();
        untold.len() - taken
    }

    /// Adds to what waits: what has come meanwhile may be so, and so may this.
    fn put_back(&self, changes: impl IntoIterator<Item = (UserId, Change)>) {
        let mut waiting = self.waiting();
        for (user, change) in changes {
            let kept = waiting.entry(user).or_default();
            *kept = kept.or(change);
        }
    }

    /// Publishes what waits until nobody finds changes any more, and for a moment longer; returns what is left then.
    /// Inputs: the changes, the end of all that find some.
    pub(super) async fn publish_loop(&self, ways: &Ways<'_>, finders_ended: impl Future<Output = ()>) -> Vec<Untold> {
        tokio::select! {
            () = self.publish(ways) => {}
            () = finders_ended => {}
        }
        // No answer of the store comes any more that would end a doubt.
        self.answered(u64::MAX);
        let _ = tokio::time::timeout(LAST_PUBLISHES, async {
            while !self.waiting().is_empty() {
                if !self.publish_round(ways).await {
                    tokio::time::sleep(RETRY).await;
                }
            }
        })
        .await;
        self.take_all()
    }

    /// Takes out what waits.
    pub(super) fn take_all(&self) -> Vec<Untold> {
        std::mem::take(&mut *self.waiting()).into_iter().map(|(user, change)| (user, change.at_ms)).collect()
    }

    /// Publishes what waits, for ever.
    async fn publish(&self, ways: &Ways<'_>) {
        let mut backoff = Backoff::new(RETRY, RETRY_MAX);
        loop {
            if self.waiting().is_empty() {
                self.news.notified().await;
            } else if self.publish_round(ways).await {
                backoff.reset();
            } else {
                let wait = backoff.next_wait(&mut rand::rng());
                tokio::time::sleep(wait).await;
            }
        }
    }

    /// Publishes what waits now, up to the first failure; returns whether all of it is done. What is not waits again, also where
    /// this is dropped.
    async fn publish_round(&self, ways: &Ways<'_>) -> bool {
        let left = std::mem::take(&mut *self.waiting());
        let mut users: Vec<(UserId, Change)> = left.iter().map(|(user, change)| (*user, *change)).collect();
        let round = Round { changes: self, left: Mutex::new(left) };
        while !users.is_empty() {
            let batch = users.split_off(users.len().saturating_sub(READS_AT_ONCE));
            match round.publish_batch(ways, batch).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::warn!(%error, "presence can't be read, changes wait");
                    break;
                }
            }
        }
        let failed = round.left().len();
        if failed > 0 {
            tracing::warn!(changes = failed, "presence changes were not published, they are tried again");
        }
        failed == 0
    }
}

/// Changes that are being published; what is left of them waits again when this ends.
struct Round<'a> {
    changes: &'a Changes,
    left: Mutex<HashMap<UserId, Change>>,
}

impl Round<'_> {
    fn left(&self) -> MutexGuard<'_, HashMap<UserId, Change>> {
        self.left.lock().expect("no panic while held")
    }

    /// Reads the state of some users and publishes what is so; returns whether the log took all of it.
    async fn publish_batch(&self, ways: &Ways<'_>, batch: Vec<(UserId, Change)>) -> BackendResult<bool> {
        let users: Vec<UserId> = batch.iter().map(|(user, _)| *user).collect();
        let mut read_us = clock::now_us();
        let mut records = ways.store.get(&users).await?;
        if is_old(read_us) {
            // This process stood still, or the store is slow.
            read_us = clock::now_us();
            records = ways.store.get(&users).await?;
        }
        let publish = |((user, change), record): ((UserId, Change), PresenceRecord)| async move {
            let frame = change.frame(user, record);
            if let Some(frame) = frame
                && !publish(ways.log, frame).await
            {
                return false;
            }
            self.left().remove(&user);
            if frame.is_some() && is_old(read_us) {
                // Another server may have told the opposite before this was told.
                let opposite = Change::to(state_of(!record.online), change.at_ms);
                self.changes.put_back([(user, opposite)]);
            }
            true
        };
        let all = futures_util::stream::iter(batch.into_iter().zip(records).map(publish));
        let done = all.buffer_unordered(PUBLISHES_AT_ONCE);
        Ok(done.fold(true, |all, is_done| std::future::ready(all && is_done)).await)
    }
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        let left = std::mem::take(&mut *self.left());
        self.changes.put_back(left);
    }
}

/// Publishes one change; returns whether the log has it.
async fn publish(log: &dyn KeyedLog, frame: PresenceFrame) -> bool {
    let user = frame.user;
    let record = Record { keys: vec![user.0], payload: ServerFrame::Presence(frame).encode().into() };
    log.publish(Topic::PresenceUpdates, record).await.is_ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use super::super::tests::Away;
    use super::*;
    use crate::backends::presence::{Beat, EmbeddedPresence};
    use crate::backends::store::EmbeddedStore;
    use crate::runtime::Tasks;

    /// A server that publishes, and what it works with.
    struct Publisher {
        changes: Arc<Changes>,
        log: Arc<Away>,
        store: Arc<EmbeddedPresence>,
        tasks: Tasks,
        /// What was left at the end.
        left: Arc<Mutex<Vec<Untold>>>,
        _folder: tempfile::TempDir,
    }

    impl Publisher {
        fn start() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let store = EmbeddedPresence::open(&EmbeddedStore::open(folder.path()).expect("opens")).expect("opens");
            let (log, store, tasks) = (Arc::new(Away::default()), Arc::new(store), Tasks::new());
            let changes = Arc::new(Changes::default());
            let (publishing, to, from, group) =
                (Arc::clone(&changes), Arc::clone(&log), Arc::clone(&store), tasks.clone());
            let left = Arc::new(Mutex::default());
            let kept = Arc::clone(&left);
            tasks.spawn("test.publish", async move {
                let left = publishing.publish_loop(&Ways { store: &*from, log: &*to }, group.stopped()).await;
                *kept.lock().expect("no panic while held") = left;
            });
            Self { changes, log, store, tasks, left, _folder: folder }
        }

        /// A user beats, which nobody is told of.
        async fn beats(&self, user: u64) -> LastBeat {
            self.store.beat(&[Beat { user: UserId(user), age_ms: 0 }]).await.expect("takes");
            self.last(user).await
        }

        async fn last(&self, user: u64) -> LastBeat {
            let user = UserId(user);
            LastBeat { user, at_ms: self.store.get(&[user]).await.expect("answers")[0].last_beat_ms }
        }

        /// A user is declared offline, which nobody is told of.
        async fn goes(&self, user: u64) -> LastBeat {
            let last = self.last(user).await;
            assert!(self.store.expire(&last).await.expect("answers"));
            last
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_waits_for_the_log_however_long_and_the_newest_of_a_user_is_told() {
        let publisher = Publisher::start();
        publisher.log.is_away.store(true, Ordering::Relaxed);
        let beats = [publisher.beats(1).await, publisher.beats(2).await];
        publisher.changes.note(&beats, PresenceState::Online);
        tokio::time::sleep(Duration::from_mins(1)).await;
        publisher.changes.note(&[publisher.goes(1).await], PresenceState::Offline);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let tries = publisher.log.tries.load(Ordering::Relaxed);
        assert!((40..200).contains(&tries), "{tries} tries in a minute for two users");
        publisher.log.is_away.store(false, Ordering::Relaxed);
        tokio::time::sleep(RETRY_MAX * 2).await;
        assert_eq!(publisher.log.told(), [(1, "offline"), (2, "online")]);
        publisher.tasks.stop();
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_longer_so_is_left_out() {
        let publisher = Publisher::start();
        publisher.log.is_away.store(true, Ordering::Relaxed);
        publisher.beats(1).await;
        publisher.changes.note(&[publisher.goes(1).await], PresenceState::Offline);
        tokio::time::sleep(Duration::from_secs(5)).await;
        // Through another server, which tells it.
        publisher.beats(1).await;
        publisher.log.is_away.store(false, Ordering::Relaxed);
        tokio::time::sleep(RETRY_MAX * 2).await;
        assert_eq!(publisher.log.told(), []);
        publisher.tasks.stop();
    }

    #[tokio::test(start_paused = true)]
    async fn what_changed_while_the_opposite_was_on_its_way_is_told_behind_it() {
        let publisher = Publisher::start();
        publisher.log.is_slow.store(true, Ordering::Relaxed);
        publisher.beats(1).await;
        publisher.changes.note(&[publisher.goes(1).await], PresenceState::Offline);
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Through another server, whose word overtakes this one's.
        publisher.beats(1).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(publisher.log.told(), [(1, "offline"), (1, "online")]);
        publisher.tasks.stop();
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_in_doubt_is_told_as_it_is_once_a_later_call_was_answered() {
        let publisher = Publisher::start();
        for user in 1..=4 {
            publisher.beats(user).await;
        }
        let (gone, back) = (publisher.goes(3).await, publisher.last(4).await);
        let before_us = clock::now_us();
        let never = LastBeat { user: UserId(9), at_ms: 0 };
        publisher.changes.doubt([publisher.last(1).await, never], PresenceState::Online);
        publisher.changes.doubt([gone, back], PresenceState::Offline);
        publisher.changes.answered(before_us);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(publisher.log.told(), [], "the lost call may lie with the store still");
        publisher.changes.answered(clock::now_us());
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(publisher.log.told(), [(1, "online"), (3, "offline")]);
        publisher.tasks.stop();
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_at_the_end_is_published_before_it() {
        let publisher = Publisher::start();
        publisher.log.is_away.store(true, Ordering::Relaxed);
        publisher.changes.note(&[publisher.beats(1).await], PresenceState::Online);
        publisher.changes.doubt([publisher.beats(2).await], PresenceState::Online);
        tokio::time::sleep(Duration::from_mins(1)).await;
        publisher.tasks.stop();
        tokio::time::sleep(Duration::from_millis(300)).await;
        publisher.log.is_away.store(false, Ordering::Relaxed);
        assert_eq!(publisher.tasks.join(Duration::from_secs(5)).await, 0);
        assert_eq!(publisher.log.told(), [(1, "online"), (2, "online")]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_log_that_is_away_did_not_take_is_left_to_others() {
        let publisher = Publisher::start();
        publisher.log.is_away.store(true, Ordering::Relaxed);
        let last = publisher.beats(1).await;
        publisher.changes.note(&[last], PresenceState::Online);
        publisher.tasks.stop();
        assert_eq!(publisher.tasks.join(Duration::from_secs(5)).await, 0);
        assert_eq!(*publisher.left.lock().expect("no panic while held"), [(UserId(1), last.at_ms)]);
    }
}
