//! Who subscribes to which large channel, kept in line with who is a member.
//!
//! A subscription is in three places: the connection's list, the hub, and the reader's count of the channel's key. List and
//! hub change together, under the lock of the list; the count is raised before and lowered after. A connection that has left
//! the hub gets no subscription any more, whatever its worker still does.

use std::sync::Arc;
use std::time::Duration;

use super::ChatServer;
use super::connection::Connection;
use crate::backends::BackendResult;
use crate::backends::log::Topic;
use crate::protocol::frames::{ConversationChangeFrame, HeadFrame};
use crate::protocol::limits::{FANOUT_ON_WRITE_MEMBERS_MAX, MEMBERS_PER_CALL_MAX};
use crate::protocol::{ConversationId, MessageId, ServerFrame, UserId};
use crate::server::access::members::LIST_TTL;

/// Members up to which a conversation may have become large with the last change.
const JUST_GROWN_MAX: usize = FANOUT_ON_WRITE_MEMBERS_MAX + MEMBERS_PER_CALL_MAX;

/// After a conversation has shrunk: servers that were not told yet may send its messages the old way for so long.
const OLD_WAY: Duration = LIST_TTL.saturating_add(Duration::from_secs(1));

/// What came of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Added {
    /// It is new.
    New,
    /// It was there.
    Known,
    /// The connection has as many as it may have.
    TooMany,
    /// The connection has ended.
    Gone,
}

impl ChatServer {
    /// Subscribes a connection that has fewer than `limit` subscriptions.
    ///
    /// # Errors
    /// When the log can't be read from the channel's end; then nothing has changed.
    pub(super) async fn add_subscription(
        &self,
        connection: &Arc<Connection>,
        channel: ConversationId,
        limit: usize,
    ) -> BackendResult<Added> {
        self.reader.subscribe(Topic::Channel, channel.0).await?;
        let added = self.enter_subscription(connection, channel, limit);
        if added != Added::New {
            self.lower_count(channel).await;
        }
        Ok(added)
    }

    fn enter_subscription(&self, connection: &Arc<Connection>, channel: ConversationId, limit: usize) -> Added {
        // Held over the look in the hub: who ends a connection takes it out of there first, and then empties this list.
        let mut subscriptions = connection.subscriptions();
        if self.outbound.hub.find(connection.user, connection.session).is_none() {
            return Added::Gone;
        }
        if subscriptions.contains(&channel) {
            return Added::Known;
        }
        if subscriptions.len() >= limit {
            return Added::TooMany;
        }
        subscriptions.push(channel);
        self.outbound.hub.subscribe(channel, connection);
        Added::New
    }

    /// Ends a subscription; returns whether there was one.
    pub(super) async fn remove_subscription(&self, connection: &Connection, channel: ConversationId) -> bool {
        let was_there = {
            let mut subscriptions = connection.subscriptions();
            let before = subscriptions.len();
            subscriptions.retain(|c| *c != channel);
            let was_there = subscriptions.len() < before;
            if was_there {
                self.outbound.hub.unsubscribe(channel, connection.session);
            }
            was_there
        };
        if was_there {
            self.lower_count(channel).await;
        }
        was_there
    }

    /// Ends all subscriptions of a connection that has left the hub.
    pub(super) async fn remove_subscriptions(&self, connection: &Connection) {
        let channels = {
            let mut subscriptions = connection.subscriptions();
            for channel in subscriptions.iter() {
                self.outbound.hub.unsubscribe(*channel, connection.session);
            }
            std::mem::take(&mut *subscriptions)
        };
        for channel in channels {
            self.lower_count(channel).await;
        }
    }

    async fn lower_count(&self, channel: ConversationId) {
        // The reader only reads too much if this fails.
        let _ = self.reader.unsubscribe(Topic::Channel, channel.0).await;
    }

    /// Brings subscriptions in line with the members as they are now, of which there are `count`: who is none any more loses
    /// the subscription; a conversation that has grown past the limit, or has shrunk below it, changes its way for everybody
    /// who is connected here, and they are told.
    ///
    /// # Errors
    /// When members or messages can't be read; then it is to be done again.
    pub(super) async fn members_changed(
        self: &Arc<Self>,
        conversation: ConversationId,
        count: u64,
    ) -> BackendResult<()> {
        let may_have_grown = (FANOUT_ON_WRITE_MEMBERS_MAX as u64 + 1..=JUST_GROWN_MAX as u64).contains(&count);
        let subscribers = self.outbound.hub.subscribers(conversation);
        if subscribers.is_empty() && !may_have_grown {
            return Ok(());
        }
        let users: Vec<UserId> = subscribers.iter().map(|connection| connection.user).collect();
        let members = self.members.among(conversation, &users).await?;
        for connection in subscribers.iter().filter(|connection| !members.contains(&connection.user)) {
            self.remove_subscription(connection, conversation).await;
        }
        match self.members.get(conversation).await? {
            Some(list) if list.is_large() && may_have_grown => self.has_grown(conversation).await,
            Some(list) if !list.is_large() => self.has_shrunk(conversation).await,
            _ => Ok(()),
        }
    }

    /// Subscribes the members that are connected here, tells them, and says where the conversation stands: what was said the
    /// new way before they were subscribed is below that. Where that fails they are subscribed no more, so that whoever does
    /// it again finds them as they were.
    async fn has_grown(self: &Arc<Self>, conversation: ConversationId) -> BackendResult<()> {
        let directory = &self.deps.backends.directory;
        let members = directory.members(conversation, UserId(0), JUST_GROWN_MAX).await?;
        let mut new = Vec::new();
        let mut result = Ok(());
        for connection in self.outbound.hub.connections_of(members.into_iter()) {
            match self.add_subscription(&connection, conversation, usize::MAX).await {
                Ok(Added::New) => {
                    let frame = ConversationChangeFrame { conversation, large: true };
                    self.outbound.reply(&connection, &ServerFrame::Conversation(frame));
                    new.push(connection);
                }
                Ok(_) => {}
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        if result.is_ok() {
            result = self.show_head(conversation, &new).await;
        }
        if result.is_err() {
            for connection in &new {
                self.remove_subscription(connection, conversation).await;
            }
        }
        result
    }

    /// Ends the subscriptions and tells their connections, which get what is said by themselves from now on; and says where the
    /// conversation stands once nobody sends the old way any more.
    async fn has_shrunk(self: &Arc<Self>, conversation: ConversationId) -> BackendResult<()> {
        let mut told = Vec::new();
        for connection in self.outbound.hub.subscribers(conversation) {
            if self.remove_subscription(&connection, conversation).await {
                let frame = ConversationChangeFrame { conversation, large: false };
                self.outbound.reply(&connection, &ServerFrame::Conversation(frame));
                told.push(connection);
            }
        }
        if !told.is_empty() {
            let this = Arc::clone(self);
            self.deps.tasks.spawn_until_stopped("chat.shrunk", async move {
                tokio::time::sleep(OLD_WAY).await;
                // A client that misses this one finds the gap with the next message.
                let _ = this.show_head(conversation, &told).await;
            });
        }
        Ok(())
    }

    /// Sends the newest id of a conversation to some connections.
    pub(super) async fn show_head(
        self: &Arc<Self>,
        conversation: ConversationId,
        connections: &[Arc<Connection>],
    ) -> BackendResult<()> {
        if connections.is_empty() {
            return Ok(());
        }
        let newest = self.deps.backends.messages.read_back(conversation, MessageId(u64::MAX), 1).await?;
        if let Some(message) = newest.first() {
            let head = ServerFrame::Head(HeadFrame { conversation, id: message.id });
            for connection in connections {
                self.outbound.reply(connection, &head);
            }
        }
        Ok(())
    }
}
