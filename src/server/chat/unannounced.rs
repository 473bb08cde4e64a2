//! Messages that are stored and that nobody was told of: their publish failed, or took longer than their sender waits.
//!
//! A sender repeats what got no ACK, and that publishes it again; but a sender may have gone for good. So the server
//! that stored a message goes on trying, for as long as it runs; recipients drop what comes twice. What is lost with
//! the server is found by the next sync, or by the gap before the next message.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Notify;

use super::publisher::Publisher;
use super::shared::Shared;
use crate::backends::{BackendResult, error::ErrorKind};
use crate::protocol::{ConversationId, MessageFrame, MessageId, SessionId};
use crate::runtime::Backoff;
use crate::server::Deps;
use crate::server::access::members::Members;
use crate::telemetry::{Counter, Metrics};

/// Bytes that may wait; then the oldest are given up.
const BYTES_MAX: usize = 32 << 20;

/// What a message takes beside its body, about.
const MESSAGE_BYTES: usize = 256;

/// Messages that are published at the same time.
const AT_ONCE: usize = 32;

/// First wait before messages are published again, and the longest.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Publishes what could not be published when it was stored.
pub(super) struct Unannounced {
    members: Arc<Members>,
    publisher: Publisher,
    metrics: Arc<Metrics>,
    queue: Queue,
}

/// What waits.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    news: Notify,
}

/// Where a message is.
type Key = (ConversationId, MessageId);

#[derive(Default)]
struct Waiting {
    /// Each once, however often its sender repeats it.
    messages: HashMap<Key, (SessionId, MessageFrame)>,
    /// Their keys, those that waited longest first.
    order: VecDeque<Key>,
    bytes: usize,
    /// Given up, and not counted yet.
    dropped: u64,
}

const fn bytes(message: &MessageFrame) -> usize {
    MESSAGE_BYTES + message.body.len()
}

/// A message that is stored and is being published; kept for later when this is dropped before it is done.
pub(super) struct Announcing<'a> {
    queue: &'a Queue,
    from: SessionId,
    message: Option<&'a MessageFrame>,
}

impl Announcing<'_> {
    pub(super) fn done(mut self) {
        self.message = None;
    }
}

impl Drop for Announcing<'_> {
    fn drop(&mut self) {
        if let Some(message) = self.message {
            self.queue.put(self.from, message.clone());
        }
    }
}

impl Queue {
    const fn begin<'a>(&'a self, from: SessionId, message: &'a MessageFrame) -> Announcing<'a> {
        Announcing { queue: self, from, message: Some(message) }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("no panic while held")
    }

    fn put(&self, from: SessionId, message: MessageFrame) {
        let mut waiting = self.lock();
        let key = (message.conversation, message.id);
        let added = bytes(&message);
        if waiting.messages.insert(key, (from, message)).is_none() {
            waiting.order.push_back(key);
            waiting.bytes += added;
        }
        while waiting.bytes > BYTES_MAX {
            let Some(oldest) = waiting.order.pop_front() else { break };
            if let Some((_, gone)) = waiting.messages.remove(&oldest) {
                waiting.bytes -= bytes(&gone);
                waiting.dropped += 1;
            }
        }
        drop(waiting);
        self.news.notify_one();
    }

    /// Takes those out that waited longest.
    fn take(&self) -> Vec<(SessionId, MessageFrame)> {
        let mut waiting = self.lock();
        let mut taken = Vec::new();
        while taken.len() < AT_ONCE
            && let Some(key) = waiting.order.pop_front()
        {
            if let Some((from, message)) = waiting.messages.remove(&key) {
                waiting.bytes -= bytes(&message);
                taken.push((from, message));
            }
        }
        taken
    }

    fn take_dropped(&self) -> u64 {
        std::mem::take(&mut self.lock().dropped)
    }
}

impl Unannounced {
    /// With nothing that waits.
    pub(super) fn new(deps: &Deps, shared: &Shared) -> Self {
        Self {
            members: Arc::clone(&shared.members),
            publisher: shared.publisher.clone(),
            metrics: Arc::clone(&deps.metrics),
            queue: Queue::default(),
        }
    }

    /// Begins to tell the members of a message that is stored.
    pub(super) const fn begin<'a>(&'a self, from: SessionId, message: &'a MessageFrame) -> Announcing<'a> {
        self.queue.begin(from, message)
    }

    /// Publishes what could not be published before. Inputs: what waits, the clock.
    pub(super) async fn publish_loop(&self) {
        let mut backoff = Backoff::new(RETRY, RETRY_MAX);
        loop {
            self.queue.news.notified().await;
            // Their senders repeat them at about the same time: not at once.
            let mut wait = backoff.next_wait(&mut rand::rng());
            loop {
                tokio::time::sleep(wait).await;
                let metrics = &self.metrics;
                metrics.add(Counter::AnnouncementsDropped, self.queue.take_dropped());
                let taken = self.queue.take();
                if taken.is_empty() {
                    break;
                }
                let announced = join_all(taken.iter().map(|(from, message)| self.announce(*from, message))).await;
                let mut has_failed = false;
                for ((from, message), announced) in taken.into_iter().zip(announced) {
                    match announced {
                        Ok(()) => metrics.count(Counter::AnnouncedLate),
                        Err(error) if error.kind == ErrorKind::Rejected => {
                            let (conversation, id) = (message.conversation, message.id);
                            tracing::error!(%error, %conversation, %id, "a message can't be published");
                            metrics.count(Counter::AnnouncementsDropped);
                        }
                        // Counted by the port's layer. Behind the others, whose way may be free.
                        Err(_) => {
                            has_failed = true;
                            self.queue.put(from, message);
                        }
                    }
                }
                wait = if has_failed { backoff.next_wait(&mut rand::rng()) } else { Duration::ZERO };
            }
            backoff.reset();
        }
    }

    /// Tells the members of a message that is stored, through the log.
    async fn announce(&self, from: SessionId, message: &MessageFrame) -> BackendResult<()> {
        match self.members.get(message.conversation).await? {
            Some(members) if members.is_large() => self.publisher.publish_to_channel(None, message).await,
            Some(members) => self.publisher.publish_to_inboxes(Some(from), message, members.users()).await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::bench::Bench;
    use super::*;
    use crate::backends::log::Topic;
    use crate::protocol::UserId;
    use crate::server::inbox::InboxHeader;

    fn message(id: u64, body_bytes: usize) -> MessageFrame {
        MessageFrame {
            conversation: ConversationId(1),
            id: MessageId(id),
            uuid: Uuid::new_v4(),
            sender: UserId(1),
            kind: "text".to_owned(),
            body: "x".repeat(body_bytes),
            reply_to: None,
            at: 0,
        }
    }

    #[test]
    fn what_is_not_done_waits_and_the_oldest_gives_way() {
        let (all, from) = (Queue::default(), SessionId(Uuid::new_v4()));
        let (told, given_up) = (message(1, 10), message(2, 10));
        all.begin(from, &told).done();
        assert!(all.take().is_empty());
        for _ in 0..3 {
            // Its sender repeats it.
            drop(all.begin(from, &given_up));
        }
        assert_eq!(all.take().iter().map(|(_, m)| m.id).collect::<Vec<_>>(), [MessageId(2)]);
        for id in 3..100 {
            drop(all.begin(from, &message(id, 1 << 20)));
        }
        assert!(all.lock().bytes <= BYTES_MAX && all.take_dropped() > 60);
        let first = all.take();
        assert!(first.len() > 20 && first[0].1.id > MessageId(60), "{}", first[0].1.id);
        assert!(all.take().is_empty());
        assert_eq!(all.lock().bytes, 0);
    }
    #[tokio::test]
    async fn a_message_whose_publish_was_cut_off_is_published_later() {
        let bench = Bench::new().await;
        let all = Unannounced::new(&bench.deps, &bench.shared);
        let [sender, member] = bench.users().await;
        let talk = bench.group(&[sender, member]).await;
        let (message, from) = (bench.say(talk, sender).await, SessionId(Uuid::new_v4()));
        for user in [sender, member] {
            bench.shared.reader.subscribe(Topic::Inbox, user.0).await.expect("subscribes");
        }
        drop(all.begin(from, &message));
        bench.deps.tasks.spawn_until_stopped("test.publish_loop", async move { all.publish_loop().await });
        let record = bench.shared.reader.next().await.expect("reads").remove(0).record;
        assert_eq!(record.payload, InboxHeader::payload(&message, Some(from)));
        bench.deps.tasks.stop();
    }
}
