//! Messages that were written to a connection from which nothing was heard since.
//!
//! What is written into a dead socket looks delivered. A connection that ends without a word (it went silent, or broke) may have
//! taken none of what came after its client was last heard; a user who is not back a moment later has an inbox record written
//! for each, and the push service notifies. A client that had got them is notified of what it has: once too often, not never.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::ChatServer;
use super::connection::Connection;
use crate::backends::messages::Messages;
use crate::protocol::{ConversationId, MessageId, UserId};
use crate::runtime::clock;
use crate::telemetry::Counter;

/// Messages that are kept of one connection, the newest.
const OF_A_CONNECTION_MAX: usize = 16;

/// Users that may wait; then the oldest are given up.
const USERS_MAX: usize = 50_000;

/// How long a user has to come back.
const BACK_WITHIN: Duration = Duration::from_secs(10);

/// How often users are looked at that did not, and how many at once: a storm of lost connections is no storm of notifications.
const INTERVAL: Duration = Duration::from_secs(1);
const AT_ONCE: usize = 200;

/// What a connection keeps; nothing while its client is heard after each message.
pub(super) type Unheard = Mutex<Option<Box<VecDeque<(ConversationId, MessageId)>>>>;

/// Users whose connection ended without a word.
#[derive(Default)]
pub(super) struct Lost(Mutex<VecDeque<Missing>>);

struct Missing {
    user: UserId,
    messages: VecDeque<(ConversationId, MessageId)>,
    /// When to look, on [`clock::now_us`].
    due_us: u64,
}

impl Connection {
    /// Notes a message that is being written.
    pub(super) fn note_written(&self, conversation: ConversationId, id: MessageId) {
        let mut unheard = self.unheard.lock().expect("no panic while held");
        let messages = unheard.get_or_insert_default();
        if messages.len() >= OF_A_CONNECTION_MAX {
            messages.pop_front();
        }
        messages.push_back((conversation, id));
    }

    /// Notes that the client was heard: what was written before has arrived, or the client will ask for it.
    pub(super) fn note_heard(&self) {
        *self.unheard.lock().expect("no panic while held") = None;
    }
}

impl Lost {
    fn put(&self, user: UserId, messages: VecDeque<(ConversationId, MessageId)>) {
        let mut waiting = self.0.lock().expect("no panic while held");
        if waiting.len() >= USERS_MAX {
            waiting.pop_front();
        }
        waiting.push_back(Missing { user, messages, due_us: clock::now_us() + BACK_WITHIN.as_micros() as u64 });
    }

    fn due(&self) -> Vec<Missing> {
        let mut waiting = self.0.lock().expect("no panic while held");
        let now_us = clock::now_us();
        let due = waiting.iter().take(AT_ONCE).take_while(|missing| missing.due_us <= now_us).count();
        waiting.drain(..due).collect()
    }
}

impl ChatServer {
    /// Takes over what a connection may not have got, when it has ended. Nothing where its client said goodbye.
    pub(super) fn note_lost(&self, connection: &Connection) {
        let unheard = connection.unheard.lock().expect("no panic while held").take();
        if let Some(messages) = unheard.filter(|_| !self.is_draining()) {
            self.lost.put(connection.user, *messages);
        }
    }

    /// Has users notified who did not come back. Inputs: who was lost, the clock.
    pub(super) async fn lost_loop(self: Arc<Self>) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let missing = self.lost.due();
            if missing.is_empty() {
                continue;
            }
            let users: Vec<UserId> = missing.iter().map(|missing| missing.user).collect();
            // Who can't be looked up is taken to be back: a sync finds everything.
            let Ok(back) = self.deps.backends.sessions.lookup(&users).await else { continue };
            for Missing { user, messages, .. } in missing {
                if !back.iter().any(|session| session.user == user) {
                    self.announce_again(user, messages).await;
                }
            }
        }
    }

    /// Writes an inbox record of each message for one user.
    async fn announce_again(&self, user: UserId, messages: VecDeque<(ConversationId, MessageId)>) {
        for (conversation, id) in messages {
            let Some(message) = read_one(&*self.deps.backends.messages, conversation, id).await else { continue };
            // A failure is counted by the port's layer; it costs a notification.
            if self.publish_to_inboxes(None, &message, &[user]).await.is_ok() {
                self.deps.metrics.count(Counter::AnnouncedAgain);
            }
        }
    }
}

async fn read_one(
    store: &dyn Messages,
    conversation: ConversationId,
    id: MessageId,
) -> Option<crate::protocol::MessageFrame> {
    let before = MessageId(id.0.checked_sub(1)?);
    store.read(conversation, before, id, 1).await.ok()?.pop()
}
