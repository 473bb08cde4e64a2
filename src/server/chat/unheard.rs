//! Messages that were written to a connection from which nothing was heard since.
//!
//! What is written into a dead socket looks delivered. A connection that ends without a word (it went silent, or broke)
//! may have taken none of what came after its client was last heard; a user who is not back a moment later has an inbox
//! record written for each, and the push service notifies. A client that had got them is notified of what it has: once
//! too often, not never.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::connection::Connection;
use super::publisher::Publisher;
use super::shared::Shared;
use crate::backends::BackendResult;
use crate::backends::messages::Messages;
use crate::backends::sessions::Sessions;
use crate::protocol::{ConversationId, MessageFrame, MessageId, SessionId, UserId};
use crate::runtime::clock;
use crate::server::Deps;
use crate::server::access::members::Members;
use crate::telemetry::{Counter, Metrics};

/// Messages that are kept of one connection, the newest; the others are given up when it ends.
const OF_A_CONNECTION_MAX: usize = 16;

/// Users that may wait; then the oldest are given up.
const USERS_MAX: usize = 50_000;

/// How long a user has to come back.
const BACK_WITHIN: Duration = Duration::from_secs(10);

/// How often users are looked at that did not, and how many at once: a storm of lost connections is no storm of
/// notifications.
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
    messages: Option<Box<Missed>>,
    /// Once the connection has ended.
    is_over: bool,
}

/// What a connection that has ended may not have got.
#[derive(Default)]
pub(super) struct Missed {
    places: VecDeque<Place>,
    /// Earlier ones that are not kept.
    dropped: u64,
}

impl Connection {
    /// Notes a message that is being written; false when the connection has ended, so that it goes nowhere.
    pub(super) fn note_written(&self, conversation: ConversationId, id: MessageId) -> bool {
        let mut unheard = self.unheard.lock().expect("no panic while held");
        if unheard.is_over {
            return false;
        }
        let messages = unheard.messages.get_or_insert_default();
        if messages.places.len() >= OF_A_CONNECTION_MAX {
            messages.places.pop_front();
            messages.dropped += 1;
        }
        messages.places.push_back((conversation, id));
        true
    }

    /// Notes that the client was heard: what was written before has arrived, or the client will ask for it.
    pub(super) fn note_heard(&self) {
        self.unheard.lock().expect("no panic while held").messages = None;
    }

    /// Notes that the connection has ended: nothing counts as written to it any more. Returns what it may not have got;
    /// `None` where its client said goodbye.
    pub(super) fn note_ended(&self) -> Option<Missed> {
        let mut unheard = self.unheard.lock().expect("no panic while held");
        unheard.is_over = true;
        unheard.messages.take().map(|missed| *missed)
    }
}

/// Users whose connection ended without a word, until they are back or notified.
pub(super) struct LostConnections {
    sessions: Arc<dyn Sessions>,
    messages: Arc<dyn Messages>,
    members: Arc<Members>,
    publisher: Publisher,
    metrics: Arc<Metrics>,
    waiting: Mutex<VecDeque<Missing>>,
}

struct Missing {
    user: UserId,
    /// The connection: a session that the store has of it still is not the user's return.
    session: SessionId,
    messages: VecDeque<Place>,
    tries: u8,
    /// When to look, on [`clock::now_us`].
    due_us: u64,
}

impl LostConnections {
    /// Nobody.
    pub(super) fn new(deps: &Deps, shared: &Shared) -> Self {
        Self {
            sessions: Arc::clone(&deps.backends.sessions),
            messages: Arc::clone(&deps.backends.messages),
            members: Arc::clone(&shared.members),
            publisher: shared.publisher.clone(),
            metrics: Arc::clone(&deps.metrics),
            waiting: Mutex::default(),
        }
    }

    /// Takes over what a connection may not have got, when it has ended.
    pub(super) fn note_missed(&self, connection: &Connection, missed: Missed) {
        let (user, session) = (connection.user, connection.session);
        self.metrics.add(Counter::AnnouncementsDropped, missed.dropped);
        self.put(Missing { user, session, messages: missed.places, tries: 0, due_us: 0 });
    }

    /// The same of one message that came for a connection which had just ended.
    pub(super) fn note_late(&self, connection: &Connection, conversation: ConversationId, id: MessageId) {
        self.note_missed(connection, Missed { places: [(conversation, id)].into(), dropped: 0 });
    }

    /// Takes a user; where there are too many the oldest is given up for it.
    fn put(&self, mut missing: Missing) {
        missing.due_us = clock::now_us() + BACK_WITHIN.as_micros() as u64;
        let mut waiting = self.waiting.lock().expect("no panic while held");
        waiting.push_back(missing);
        let given_up = if waiting.len() > USERS_MAX { waiting.pop_front() } else { None };
        drop(waiting);
        self.metrics.add(Counter::AnnouncementsDropped, given_up.map_or(0, |given_up| given_up.messages.len() as u64));
    }

    fn due(&self) -> Vec<Missing> {
        let mut waiting = self.waiting.lock().expect("no panic while held");
        let now_us = clock::now_us();
        let due = waiting.iter().take(AT_ONCE).take_while(|missing| missing.due_us <= now_us).count();
        waiting.drain(..due).collect()
    }

    /// Has users notified who did not come back. Inputs: who was lost, the clock.
    pub(super) async fn lost_loop(self: Arc<Self>) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            self.notify_due().await;
        }
    }

    async fn notify_due(&self) {
        let missing = self.due();
        if missing.is_empty() {
            return;
        }
        let users: Vec<UserId> = missing.iter().map(|missing| missing.user).collect();
        let sessions = self.sessions.lookup(&users).await;
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
                self.put(missing);
            } else {
                self.metrics.add(Counter::AnnouncementsDropped, missing.messages.len() as u64);
            }
        }
    }

    /// Writes an inbox record of each message for one user, who is a member still. What is done is taken out.
    async fn announce_again(&self, missing: &mut Missing) -> BackendResult<()> {
        while let Some((conversation, id)) = missing.messages.front().copied() {
            if self.members.contains(conversation, missing.user).await?
                && let Some(message) = read_one(&*self.messages, conversation, id).await?
            {
                self.publisher.publish_to_inboxes(None, &message, &[missing.user]).await?;
                self.metrics.count(Counter::AnnouncedAgain);
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
) -> BackendResult<Option<MessageFrame>> {
    let Some(before) = id.0.checked_sub(1) else { return Ok(None) };
    Ok(store.read(conversation, MessageId(before), id, 1).await?.pop())
}

#[cfg(test)]
mod tests {
    use super::super::bench::Bench;
    use super::*;

    #[tokio::test]
    async fn who_does_not_come_back_is_notified_of_what_was_written_since_the_client_was_heard() {
        let bench = Bench::new().await;
        let lost = LostConnections::new(&bench.deps, &bench.shared);
        let [gone, back] = bench.users().await;
        let talk = bench.direct(gone, back).await;
        let id = bench.say(talk, back).await.id;
        let connections = [gone, back].map(|user| bench.enter(user));
        for connection in &connections {
            assert!(connection.note_written(talk, MessageId(7)));
            connection.note_heard();
            assert!(connection.note_written(talk, id));
            lost.note_missed(connection, connection.note_ended().expect("one message"));
            assert!(!connection.note_written(talk, id), "it has ended");
        }
        assert_eq!(lost.metrics.counted(Counter::AnnouncementsDropped), 0);
        let rights = bench.rights().await;
        rights.claim(&mut rights.new_session(back, connections[1].device.clone())).await.expect("claims");
        lost.notify_due().await;
        assert_eq!(lost.metrics.counted(Counter::AnnouncedAgain), 0, "there is time to come back");
        tokio::time::pause();
        tokio::time::advance(BACK_WITHIN).await;
        tokio::time::resume();
        lost.notify_due().await;
        assert_eq!(lost.metrics.counted(Counter::AnnouncedAgain), 1, "of the one who is not back");
        assert!(lost.waiting.lock().expect("no panic while held").is_empty());
    }

    #[tokio::test]
    async fn what_is_not_kept_of_a_connection_is_counted_when_it_ends() {
        let bench = Bench::new().await;
        let lost = LostConnections::new(&bench.deps, &bench.shared);
        let connection = bench.enter(UserId(1));
        for id in 0..OF_A_CONNECTION_MAX as u64 + 3 {
            assert!(connection.note_written(ConversationId(1), MessageId(id)));
        }
        lost.note_missed(&connection, connection.note_ended().expect("some messages"));
        assert_eq!(lost.metrics.counted(Counter::AnnouncementsDropped), 3);
    }
}
