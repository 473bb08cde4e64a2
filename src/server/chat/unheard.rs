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
use crate::backends::BackendResult;
use crate::backends::messages::Messages;
use crate::protocol::{ConversationId, MessageId, SessionId, UserId};
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

/// Tries to announce what a user missed; then it is given up.
const TRIES: u8 = 6;

/// Where a message is.
type Place = (ConversationId, MessageId);

/// What a connection keeps: nothing while its client is heard after each message.
pub(super) type Unheard = Mutex<State>;

#[derive(Default)]
pub(super) struct State {
    messages: Option<Box<VecDeque<Place>>>,
    /// Once the connection has ended.
    is_over: bool,
}

/// Users whose connection ended without a word.
#[derive(Default)]
pub(super) struct Lost(Mutex<VecDeque<Missing>>);

struct Missing {
    user: UserId,
    /// The connection: a session that the store has of it still is not the user's return.
    session: SessionId,
    messages: VecDeque<Place>,
    tries: u8,
    /// When to look, on [`clock::now_us`].
    due_us: u64,
}

impl Connection {
    /// Notes a message that is being written; false when the connection has ended, so that it goes nowhere.
    pub(super) fn note_written(&self, conversation: ConversationId, id: MessageId) -> bool {
        let mut unheard = self.unheard.lock().expect("no panic while held");
        if unheard.is_over {
            return false;
        }
        let messages = unheard.messages.get_or_insert_default();
        if messages.len() >= OF_A_CONNECTION_MAX {
            messages.pop_front();
        }
        messages.push_back((conversation, id));
        true
    }

    /// Notes that the client was heard: what was written before has arrived, or the client will ask for it.
    pub(super) fn note_heard(&self) {
        self.unheard.lock().expect("no panic while held").messages = None;
    }
}

impl Lost {
    /// Takes a user; returns how many were given up for it.
    fn put(&self, mut missing: Missing) -> u64 {
        missing.due_us = clock::now_us() + BACK_WITHIN.as_micros() as u64;
        let mut waiting = self.0.lock().expect("no panic while held");
        waiting.push_back(missing);
        let given_up = if waiting.len() > USERS_MAX { waiting.pop_front() } else { None };
        given_up.map_or(0, |given_up| given_up.messages.len() as u64)
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
        let unheard = {
            let mut unheard = connection.unheard.lock().expect("no panic while held");
            unheard.is_over = true;
            unheard.messages.take()
        };
        if let Some(messages) = unheard.filter(|_| !self.is_draining()) {
            let (user, session) = (connection.user, connection.session);
            self.lose(Missing { user, session, messages: *messages, tries: 0, due_us: 0 });
        }
    }

    /// The same of one message that came for a connection which had just ended.
    pub(super) fn note_late(&self, connection: &Connection, conversation: ConversationId, id: MessageId) {
        let (user, session) = (connection.user, connection.session);
        self.lose(Missing { user, session, messages: VecDeque::from([(conversation, id)]), tries: 0, due_us: 0 });
    }

    fn lose(&self, missing: Missing) {
        let given_up = self.lost.put(missing);
        self.deps.metrics.add(Counter::AnnouncementsDropped, given_up);
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
            let sessions = self.deps.backends.sessions.lookup(&users).await;
            let mut is_failing = sessions.is_err();
            let sessions = sessions.unwrap_or_default();
            for mut missing in missing {
                let is_back = sessions.iter().any(|s| s.user == missing.user && s.session != missing.session);
                if is_back {
                    continue;
                }
                // An engine that fails is not asked for all the others too: their turn comes again.
                is_failing = is_failing || self.announce_again(&mut missing).await.is_err();
                if missing.messages.is_empty() {
                    continue;
                }
                missing.tries += 1;
                if missing.tries < TRIES {
                    self.lose(missing);
                } else {
                    self.deps.metrics.add(Counter::AnnouncementsDropped, missing.messages.len() as u64);
                }
            }
        }
    }

    /// Writes an inbox record of each message for one user, who is a member still. What is done is taken out.
    async fn announce_again(&self, missing: &mut Missing) -> BackendResult<()> {
        while let Some((conversation, id)) = missing.messages.front().copied() {
            if self.members.contains(conversation, missing.user).await?
                && let Some(message) = read_one(&*self.deps.backends.messages, conversation, id).await?
            {
                self.publisher.publish_to_inboxes(None, &message, &[missing.user]).await?;
                self.deps.metrics.count(Counter::AnnouncedAgain);
            }
            missing.messages.pop_front();
        }
        Ok(())
    }
}

async fn read_one(
    store: &dyn Messages,
    conversation: ConversationId,
    id: MessageId,
) -> BackendResult<Option<crate::protocol::MessageFrame>> {
    let Some(before) = id.0.checked_sub(1) else { return Ok(None) };
    Ok(store.read(conversation, MessageId(before), id, 1).await?.pop())
}
