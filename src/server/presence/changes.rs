//! Changes of presence on their way to the log.
//!
//! A change waits until the log has it, however long the log is away: nobody else would tell it again. Of a user the newest waits;
//! what it overtook is of no matter any more. One round is over before the next begins, so that two changes of a user never
//! overtake each other.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::Notify;

use crate::backends::log::{KeyedLog, Record, Topic};
use crate::backends::presence::LastBeat;
use crate::protocol::frames::{PresenceFrame, PresenceState};
use crate::protocol::{ServerFrame, UserId};
use crate::runtime::Backoff;

/// Changes on their way to the log at the same time: a log that is slow must not fill its client's queue.
const PUBLISHES_AT_ONCE: usize = 512;

/// Users whose changes may wait.
const WAITING_MAX: usize = 2_000_000;

/// First wait before the log is tried again, and the longest.
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    state: PresenceState,
    at_ms: u64,
}

/// What waits, by user. Written by whoever sees a change, taken by the loop.
#[derive(Default)]
pub(super) struct Changes {
    waiting: Mutex<HashMap<UserId, Change>>,
    news: Notify,
}

impl Changes {
    /// Takes users that have come or gone. Returns how many changes there was no room for.
    pub(super) fn note(&self, users: &[LastBeat], state: PresenceState) -> usize {
        let mut waiting = self.waiting.lock().expect("no panic while held");
        let mut dropped = 0;
        for last in users {
            if waiting.len() >= WAITING_MAX && !waiting.contains_key(&last.user) {
                dropped += 1;
                continue;
            }
            waiting.insert(last.user, Change { state, at_ms: last.at_ms });
        }
        drop(waiting);
        self.news.notify_one();
        dropped
    }

    /// Publishes what waits, for ever. Inputs: the changes.
    pub(super) async fn publish_loop(&self, log: &dyn KeyedLog) {
        let mut backoff = Backoff::new(RETRY, RETRY_MAX);
        loop {
            let round = std::mem::take(&mut *self.waiting.lock().expect("no panic while held"));
            if round.is_empty() {
                self.news.notified().await;
                continue;
            }
            let failed: Vec<(UserId, Change)> = futures_util::stream::iter(round)
                .map(|(user, change)| async move { (user, change, publish(log, user, change).await) })
                .buffer_unordered(PUBLISHES_AT_ONCE)
                .filter_map(|(user, change, is_done)| std::future::ready((!is_done).then_some((user, change))))
                .collect()
                .await;
            if failed.is_empty() {
                backoff.reset();
                continue;
            }
            tracing::warn!(changes = failed.len(), "presence changes were not published, they are tried again");
            {
                let mut waiting = self.waiting.lock().expect("no panic while held");
                for (user, change) in failed {
                    waiting.entry(user).or_insert(change);
                }
            }
            let wait = backoff.next_wait(&mut rand::rng());
            tokio::time::sleep(wait).await;
        }
    }
}

/// Publishes one change; returns whether the log has it.
async fn publish(log: &dyn KeyedLog, user: UserId, change: Change) -> bool {
    let frame = ServerFrame::Presence(PresenceFrame { user, state: change.state, at: change.at_ms });
    let record = Record { keys: vec![user.0], payload: frame.encode().into() };
    log.publish(Topic::PresenceUpdates, record).await.is_ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::backends::log::{GroupReader, LogReader};
    use crate::backends::{BackendError, BackendResult, error::ErrorKind};

    /// A log that is away now and then, and keeps what it was given.
    #[derive(Default)]
    struct Away {
        is_away: AtomicBool,
        tries: AtomicU32,
        published: Mutex<Vec<(u64, String)>>,
    }

    #[async_trait]
    impl KeyedLog for Away {
        fn partitions(&self) -> u32 {
            4
        }
        async fn publish(&self, _: Topic, record: Record) -> BackendResult<u64> {
            self.tries.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(5)).await;
            if self.is_away.load(Ordering::Relaxed) {
                return Err(BackendError::not_applied("log.publish", ErrorKind::Unavailable, "away"));
            }
            let text = String::from_utf8_lossy(&record.payload).into_owned();
            self.published.lock().expect("no panic while held").push((record.keys[0], text));
            Ok(1)
        }
        async fn probe(&self) -> BackendResult<()> {
            Ok(())
        }
        async fn reader(&self, _: &str) -> BackendResult<Arc<dyn LogReader>> {
            unreachable!("nobody reads")
        }
        async fn group(&self, _: Topic, _: &str) -> BackendResult<Box<dyn GroupReader>> {
            unreachable!("nobody reads")
        }
    }

    fn beat(user: u64, at_ms: u64) -> LastBeat {
        LastBeat { user: UserId(user), at_ms }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_waits_for_the_log_however_long_and_the_newest_of_a_user_is_told() {
        let (log, changes) = (Arc::new(Away::default()), Arc::new(Changes::default()));
        log.is_away.store(true, Ordering::Relaxed);
        let (publishing, away) = (Arc::clone(&changes), Arc::clone(&log));
        let tasks = crate::runtime::Tasks::new();
        tasks.spawn_until_stopped("test.publish", async move { publishing.publish_loop(&*away).await });
        changes.note(&[beat(1, 10), beat(2, 10)], PresenceState::Online);
        tokio::time::sleep(Duration::from_mins(1)).await;
        changes.note(&[beat(1, 20)], PresenceState::Offline);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let tries = log.tries.load(Ordering::Relaxed);
        assert!((40..200).contains(&tries), "{tries} tries in a minute for two users");
        log.is_away.store(false, Ordering::Relaxed);
        tokio::time::sleep(RETRY_MAX * 2).await;
        let mut published = log.published.lock().expect("no panic while held").clone();
        published.sort();
        assert_eq!(published.iter().map(|(user, _)| *user).collect::<Vec<_>>(), [1, 2]);
        assert!(published[0].1.contains("offline") && published[1].1.contains("online"), "{published:?}");
        tasks.stop();
    }
}
