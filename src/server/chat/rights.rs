//! Rights of connections that are open. They last as long as what gave them (DESIGN section 3, 8): a token until it expires or
//! is logged out, a claim until the device connects elsewhere, a membership and a friendship until they end.
//!
//! Whoever ends a right notes that first and then looks for connections that have it. A connection that comes up is entered
//! into the hub first and then looks for the notes. So one of the two sees the other, whatever the order.
//!
//! What one server tells another may be lost: logouts are read from the directory as well, replaced sessions come back with
//! the refresh, and members that could not be read are read again.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::task::task_tracker::TaskTrackerToken;
use uuid::Uuid;

use super::ChatServer;
use super::connection::Connection;
use super::recent_set::RecentSet;
use crate::backends::registry::Role;
use crate::backends::sessions::Session;
use crate::protocol::{CloseCode, ConversationId, SessionId, UserId};
use crate::runtime::{Backoff, clock};
use crate::server::cluster::peer::Call;

/// How often logouts are read and what could not be checked is checked again.
const INTERVAL: Duration = Duration::from_secs(2);

/// Logouts of so many seconds are read each time: longer than a commit may take to be seen.
const LOGOUTS_S: u64 = 20;

/// Waits between tries to tell a server that one of its sessions was replaced.
const REPLACE_RETRY: Duration = Duration::from_millis(100);
const REPLACE_RETRY_MAX: Duration = Duration::from_secs(2);

/// Tries of that; after them the server finds it out when it refreshes its sessions.
const REPLACE_TRIES: u32 = 20;

/// Rights that ended lately, and what could not be checked.
#[derive(Default)]
pub(super) struct Rights {
    /// Tokens that were logged out.
    tokens: RecentSet<Uuid>,
    /// Sessions whose device connected elsewhere.
    sessions: RecentSet<SessionId>,
    /// Conversations whose members could not be read when they changed, with the number of members that was told.
    unchecked_members: Mutex<HashMap<ConversationId, u64>>,
}

impl Rights {
    /// Has the members of a conversation looked up again.
    pub(super) fn check_members_later(&self, conversation: ConversationId, count: u64) {
        self.unchecked_members.lock().expect("no panic while held").insert(conversation, count);
    }
}

impl ChatServer {
    /// Why a connection may not stay, if so. For one that was entered into the hub just now.
    pub(super) fn ended_right(&self, connection: &Connection) -> Option<CloseCode> {
        if self.rights.tokens.contains(&connection.token) {
            Some(CloseCode::LoggedOut)
        } else if self.rights.sessions.contains(&connection.session) {
            Some(CloseCode::Replaced)
        } else if connection.has_expired(clock::unix_ms()) {
            Some(CloseCode::Unauthorized)
        } else {
            None
        }
    }

    /// Closes the connections of a token that was logged out, those that come up now too.
    pub(super) fn log_out(self: &Arc<Self>, token: Uuid) {
        self.rights.tokens.insert(token);
        for connection in self.outbound.hub.select(|connection| connection.token == token) {
            self.outbound.close(&connection, CloseCode::LoggedOut);
        }
    }

    /// Closes a session of this server whose device connected elsewhere, also if it comes up only now.
    pub(super) fn replace(self: &Arc<Self>, user: UserId, session: SessionId) {
        self.rights.sessions.insert(session);
        if let Some(connection) = self.outbound.hub.find(user, session) {
            self.outbound.close(&connection, CloseCode::Replaced);
        }
    }

    /// Has the connection closed that a new one of the same device replaces. Does not wait for it; the claim is under way for
    /// as long as it takes.
    pub(super) fn send_away(self: &Arc<Self>, old: Session, claim: TaskTrackerToken) {
        if old.server == self.deps.name {
            return self.replace(old.user, old.session);
        }
        let this = Arc::clone(self);
        self.deps.tasks.spawn_until_stopped("chat.replace", async move {
            this.replace_elsewhere(&old).await;
            drop(claim);
        });
    }

    /// Tells another server that one of its sessions was replaced, until it has heard it or is gone with its connections.
    async fn replace_elsewhere(&self, old: &Session) {
        let call = Call::Replace { user: old.user, session: old.session };
        let mut backoff = Backoff::new(REPLACE_RETRY, REPLACE_RETRY_MAX);
        while backoff.tries() < REPLACE_TRIES {
            let Some(entry) = self.cluster.look_up(Role::Chat, &old.server).await else { return };
            if self.peers.call(&entry, &call).await.is_ok() {
                return;
            }
            let wait = backoff.next_wait(&mut rand::rng());
            tokio::time::sleep(wait).await;
        }
    }

    /// Closes connections whose token was logged out, by the directory. Inputs: the clock.
    pub(super) async fn logouts_loop(self: Arc<Self>) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            // What fails now is read again in a moment; the port's layer counts it.
            let Ok(tokens) = self.deps.backends.directory.revoked_within(LOGOUTS_S).await else { continue };
            let new: HashSet<Uuid> = tokens.into_iter().filter(|token| !self.rights.tokens.contains(token)).collect();
            if new.is_empty() {
                continue;
            }
            for token in &new {
                self.rights.tokens.insert(*token);
            }
            for connection in self.outbound.hub.select(|connection| new.contains(&connection.token)) {
                self.outbound.close(&connection, CloseCode::LoggedOut);
            }
        }
    }

    /// Does again what could not be done when members or friends changed. Inputs: the clock.
    pub(super) async fn recheck_loop(self: Arc<Self>) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let members = std::mem::take(&mut *self.rights.unchecked_members.lock().expect("no panic while held"));
            let mut members = members.into_iter();
            while let Some((conversation, count)) = members.next() {
                self.members.invalidate(conversation);
                if self.members_changed(conversation, count).await.is_err() {
                    // The others would fail as well.
                    self.rights.check_members_later(conversation, count);
                    members.by_ref().for_each(|(other, count)| self.rights.check_members_later(other, count));
                }
            }
            self.presence.watch_again().await;
        }
    }
}
