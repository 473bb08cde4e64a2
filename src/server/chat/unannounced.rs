//! Messages that are stored and that nobody was told of: their publish failed, or took longer than their sender waits.
//!
//! A sender repeats what got no ACK, and that publishes it again; but a sender may have gone for good. So the server that stored
//! a message goes on trying, for as long as it runs; recipients drop what comes twice. What is lost with the server is found by
//! the next sync, or by the gap before the next message.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;

use super::ChatServer;
use crate::backends::{BackendResult, error::ErrorKind};
use crate::protocol::{MessageFrame, SessionId};
use crate::runtime::Backoff;
use crate::telemetry::Counter;

/// Bytes that may wait; then the oldest are given up.
const BYTES_MAX: usize = 32 << 20;

/// What a message takes beside its body, about.
const MESSAGE_BYTES: usize = 256;

/// First wait before a message is published again, and the longest.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What waits, oldest first.
#[derive(Default)]
pub(super) struct Unannounced {
    waiting: Mutex<Waiting>,
    news: Notify,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<(SessionId, MessageFrame)>,
    bytes: usize,
}

const fn bytes(message: &MessageFrame) -> usize {
    MESSAGE_BYTES + message.body.len()
}

/// A message that is stored and is being published; kept for later when this is dropped before it is done.
pub(super) struct Announcing<'a> {
    all: &'a Unannounced,
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
            self.all.put(self.from, message.clone());
        }
    }
}

impl Unannounced {
    pub(super) const fn begin<'a>(&'a self, from: SessionId, message: &'a MessageFrame) -> Announcing<'a> {
        Announcing { all: self, from, message: Some(message) }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("no panic while held")
    }

    fn put(&self, from: SessionId, message: MessageFrame) {
        let mut waiting = self.lock();
        waiting.bytes += bytes(&message);
        waiting.messages.push_back((from, message));
        while waiting.bytes > BYTES_MAX {
            let Some((_, oldest)) = waiting.messages.pop_front() else { break };
            waiting.bytes -= bytes(&oldest);
        }
        drop(waiting);
        self.news.notify_one();
    }

    fn first(&self) -> Option<(SessionId, MessageFrame)> {
        self.lock().messages.front().cloned()
    }

    /// Takes a message out, unless it was given up meanwhile.
    fn remove(&self, message: &MessageFrame) {
        let mut waiting = self.lock();
        let found = waiting.messages.iter().position(|(_, m)| m.uuid == message.uuid && m.id == message.id);
        if let Some(at) = found
            && let Some((_, gone)) = waiting.messages.remove(at)
        {
            waiting.bytes -= bytes(&gone);
        }
    }
}

impl ChatServer {
    /// Publishes what could not be published before. Inputs: what waits, the clock.
    pub(super) async fn unannounced_loop(self: Arc<Self>) {
        loop {
            let mut backoff = Backoff::new(RETRY, RETRY_MAX);
            while let Some((from, message)) = self.unannounced.first() {
                // Its sender repeats it at about the same time: not at once, and not with all others.
                let wait = backoff.next_wait(&mut rand::rng());
                tokio::time::sleep(wait).await;
                match self.announce(from, &message).await {
                    Ok(()) => {
                        self.unannounced.remove(&message);
                        self.deps.metrics.count(Counter::AnnouncedLate);
                        backoff = Backoff::new(RETRY / 100, RETRY_MAX);
                    }
                    Err(error) if error.kind == ErrorKind::Rejected => {
                        tracing::error!(%error, conversation = %message.conversation, id = %message.id, "a message can't be published");
                        self.unannounced.remove(&message);
                    }
                    // Counted by the port's layer.
                    Err(_) => {}
                }
            }
            self.unannounced.news.notified().await;
        }
    }

    /// Tells the members of a message that is stored, through the log.
    async fn announce(&self, from: SessionId, message: &MessageFrame) -> BackendResult<()> {
        match self.members.get(message.conversation).await? {
            Some(members) if members.is_large() => self.publish_head(message).await,
            Some(members) => self.publish_to_inboxes(Some(from), message, members.users()).await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{ConversationId, MessageId, UserId};
    use uuid::Uuid;

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
        let (all, from) = (Unannounced::default(), SessionId(Uuid::new_v4()));
        let (told, given_up) = (message(1, 10), message(2, 10));
        all.begin(from, &told).done();
        assert!(all.first().is_none());
        drop(all.begin(from, &given_up));
        assert_eq!(all.first().map(|(_, m)| m.id), Some(MessageId(2)));
        for id in 3..100 {
            drop(all.begin(from, &message(id, 1 << 20)));
        }
        assert!(all.lock().bytes <= BYTES_MAX && all.lock().messages.len() > 20);
        let (_, first) = all.first().expect("some wait");
        assert!(first.id > MessageId(60), "{}", first.id);
        while let Some((_, first)) = all.first() {
            all.remove(&first);
        }
        assert_eq!(all.lock().bytes, 0);
    }
}
