//! Who subscribes to which large channel, kept in line with who is a member.
//!
//! A subscription is in three places: the connection's list, the channels, and the reader's count of the channel's key.
//! List and channels change together, under the lock of the list; the count is raised before and lowered after. A
//! connection that has left the hub gets no subscription any more, whatever its worker still does.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use super::channels::{Channels, Rights, Subscriber};
use super::connection::Connection;
use super::outbound::Outbound;
use super::refused::{Refused, members_for};
use super::shared::Shared;
use crate::backends::BackendResult;
use crate::backends::directory::Directory;
use crate::backends::log::{LogReader, Topic};
use crate::backends::messages::Messages;
use crate::protocol::frames::{ConversationChangeFrame, HeadFrame, SubscribeFrame};
use crate::protocol::limits::{FANOUT_ON_WRITE_MEMBERS_MAX, MEMBERS_PER_CALL_MAX};
use crate::protocol::{ConversationId, ErrorCode, MessageId, ServerFrame, UserId};
use crate::runtime::Tasks;
use crate::server::Deps;
use crate::server::access::members::{LIST_TTL, Members};
use crate::telemetry::{Counter, Metrics};

/// Members that are read of a conversation that has become large: more than come together before a server hears of it.
const GROWN_MEMBERS_MAX: usize = 20 * MEMBERS_PER_CALL_MAX;

/// Conversations that are known to go the way of large ones; past that they are forgotten, and looked at once more.
const SWITCHED_MAX: usize = 100_000;

/// After a conversation has shrunk: servers that were not told yet may send its messages the old way for so long.
const OLD_WAY: Duration = LIST_TTL.saturating_add(Duration::from_secs(1));

/// Where nobody says how many members a conversation has: it is looked at.
const UNKNOWN: u64 = 0;

/// What came of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Added {
    /// It is new.
    New,
    /// It was there.
    Known,
    /// The connection has as many as it may have.
    TooMany,
    /// The connection has ended.
    Gone,
}

/// The subscriptions of one server's connections.
pub(super) struct Subscriptions {
    outbound: Arc<Outbound>,
    reader: Arc<dyn LogReader>,
    members: Arc<Members>,
    directory: Arc<dyn Directory>,
    messages: Arc<dyn Messages>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    /// [`GROWN_MEMBERS_MAX`], but for tests.
    grown_members_max: usize,
    /// Subscriptions that a connection may ask for.
    of_a_connection_max: usize,
    /// By large channel.
    channels: Channels,
    /// Conversations whose connected members were subscribed when they had become large. Written by [`Self::members_changed`].
    switched: Mutex<HashSet<ConversationId>>,
    /// Held while connected members of a conversation are subscribed, by conversation. Those that nobody waits for are
    /// taken out when the next is taken.
    growing: Mutex<HashMap<ConversationId, Arc<tokio::sync::Mutex<()>>>>,
    /// Conversations whose members could not be read when they changed. How many they were is not kept: it may be
    /// others by now.
    unchecked: Mutex<HashSet<ConversationId>>,
}

impl Subscriptions {
    /// None. A connection may ask for so many.
    pub(super) fn new(deps: &Deps, shared: &Shared, of_a_connection_max: usize) -> Self {
        Self {
            outbound: Arc::clone(&shared.outbound),
            reader: Arc::clone(&shared.reader),
            members: Arc::clone(&shared.members),
            directory: Arc::clone(&deps.backends.directory),
            messages: Arc::clone(&deps.backends.messages),
            tasks: deps.tasks.clone(),
            metrics: Arc::clone(&deps.metrics),
            grown_members_max: GROWN_MEMBERS_MAX,
            of_a_connection_max,
            channels: Channels::default(),
            switched: Mutex::default(),
            growing: Mutex::default(),
            unchecked: Mutex::default(),
        }
    }

    /// Who subscribes to a channel.
    pub(super) fn of(&self, channel: ConversationId) -> Arc<[Subscriber]> {
        self.channels.of(channel)
    }

    /// The same, with what is known of their rights; `None` where nobody subscribes.
    pub(super) fn look(&self, channel: ConversationId) -> Option<(Arc<[Subscriber]>, Rights)> {
        self.channels.look(channel)
    }

    /// Whether a connection of a user subscribes to a channel.
    pub(super) fn has(&self, channel: ConversationId, user: UserId) -> bool {
        self.channels.has(channel, user)
    }

    /// How many there are, for tests that look for what was left behind.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.channels.len()
    }

    /// Subscribes a connection as its client asked, and shows it the head.
    pub(super) async fn subscribe(&self, from: &Arc<Connection>, asked: SubscribeFrame) -> Result<(), Refused> {
        let (channel, limit) = (asked.conversation, self.of_a_connection_max);
        members_for(&self.members, from.user, channel).await?;
        match self.add(from, channel, limit).await? {
            // Once more, too: the answer to the first may have been that the head could not be read.
            Added::New | Added::Known => {}
            Added::Gone => return Ok(()),
            Added::TooMany => {
                return Err(Refused::definite(ErrorCode::TooLarge, format!("at most {limit} subscriptions")));
            }
        }
        // Who was removed after the look above was not found among the subscribers. Not from the cache: messages follow.
        let is_member = self.directory.is_member(channel, from.user).await.map_err(Refused::unread);
        if !matches!(is_member, Ok(true)) {
            self.remove(from, channel).await;
            return Err(is_member.err().unwrap_or_else(|| Refused::not_a_member(channel)));
        }
        // From here on messages, if that is what was asked for: not before the right to them is sure.
        self.channels.want(channel, from.session, asked.deliver);
        // The head as it is now, so that the client knows whether to fetch.
        Ok(self.show_head(channel, std::slice::from_ref(from)).await?)
    }

    /// Subscribes a connection that has fewer than `limit` subscriptions.
    ///
    /// # Errors
    /// When the log can't be read from the channel's end; then nothing has changed.
    async fn add(&self, connection: &Arc<Connection>, channel: ConversationId, limit: usize) -> BackendResult<Added> {
        self.reader.subscribe(Topic::Channel, channel.0).await?;
        let added = self.enter(connection, channel, limit);
        if added != Added::New {
            self.lower_count(channel).await;
        }
        Ok(added)
    }

    fn enter(&self, connection: &Arc<Connection>, channel: ConversationId, limit: usize) -> Added {
        // Held over the look in the hub: who ends a connection takes it out of there first, and then empties this list.
        let mut subscriptions = connection.subscriptions();
        if self.outbound.hub.find(connection.user, connection.session).is_none() {
            return Added::Gone;
        }
        if !subscriptions.contains(&channel) {
            if subscriptions.len() >= limit {
                return Added::TooMany;
            }
            subscriptions.push(channel);
        }
        if self.channels.enter(channel, connection) { Added::New } else { Added::Known }
    }

    /// Ends a subscription; returns whether there was one.
    pub(super) async fn remove(&self, connection: &Connection, channel: ConversationId) -> bool {
        self.remove_if(connection, channel, || true).await
    }

    async fn remove_if(&self, connection: &Connection, channel: ConversationId, is_it: impl Fn() -> bool) -> bool {
        let was_there = {
            let mut subscriptions = connection.subscriptions();
            if !is_it() {
                return false;
            }
            let before = subscriptions.len();
            subscriptions.retain(|c| *c != channel);
            let was_there = subscriptions.len() < before;
            if was_there {
                self.channels.leave(channel, connection.session);
            }
            was_there
        };
        if was_there {
            self.lower_count(channel).await;
        }
        was_there
    }

    /// Ends all subscriptions of a connection that has left the hub.
    pub(super) async fn remove_all(&self, connection: &Connection) {
        let channels = {
            let mut subscriptions = connection.subscriptions();
            for channel in subscriptions.iter() {
                self.channels.leave(*channel, connection.session);
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

    /// Brings subscriptions in line with the members as they are now, of which there are `count` ([`UNKNOWN`] where
    /// that is not known): who is none any more loses the subscription; a conversation that has grown past the limit,
    /// or has shrunk below it, changes its way for everybody who is connected here, and they are told.
    ///
    /// # Errors
    /// When members or messages can't be read; then it is done again later.
    pub(super) async fn members_changed(
        self: &Arc<Self>,
        conversation: ConversationId,
        count: u64,
    ) -> BackendResult<()> {
        let changed = self.follow_members(conversation, count).await;
        if changed.is_err() {
            self.check_later(conversation);
        }
        changed
    }

    fn check_later(&self, conversation: ConversationId) {
        self.unchecked.lock().expect("no panic while held").insert(conversation);
    }

    /// Does again what could not be done when members changed.
    pub(super) async fn check_again(self: &Arc<Self>) {
        let unchecked = std::mem::take(&mut *self.unchecked.lock().expect("no panic while held"));
        let mut unchecked = unchecked.into_iter();
        while let Some(conversation) = unchecked.next() {
            self.members.invalidate(conversation);
            if self.members_changed(conversation, UNKNOWN).await.is_err() {
                // The others would fail as well.
                unchecked.by_ref().for_each(|other| self.check_later(other));
            }
        }
    }

    async fn follow_members(self: &Arc<Self>, conversation: ConversationId, count: u64) -> BackendResult<()> {
        // The number as somebody read it: of several who add members at once each may have read that of all.
        let is_small = (1..=FANOUT_ON_WRITE_MEMBERS_MAX as u64).contains(&count);
        let subscribers = self.of(conversation);
        if subscribers.is_empty() && is_small {
            self.switched().remove(&conversation);
            return Ok(());
        }
        self.look_at_rights(conversation).await?;
        match self.members.get(conversation).await? {
            Some(list) if list.is_large() => self.switch(conversation).await,
            Some(_) => {
                self.switched().remove(&conversation);
                self.has_shrunk(conversation).await
            }
            None => Ok(()),
        }
    }

    /// Has a conversation go the way of large ones, unless it does.
    async fn switch(&self, conversation: ConversationId) -> BackendResult<()> {
        if self.switched().contains(&conversation) {
            return Ok(());
        }
        // One at a time: who finds somebody else's half done takes it for done.
        let _growing = self.lock_growing(conversation).await;
        if !self.switched().contains(&conversation) {
            self.has_grown(conversation).await?;
            let mut switched = self.switched();
            if switched.len() >= SWITCHED_MAX {
                switched.clear();
            }
            switched.insert(conversation);
        }
        Ok(())
    }

    /// Waits until nobody else subscribes the members of a conversation. Other conversations wait for none of it.
    async fn lock_growing(&self, conversation: ConversationId) -> OwnedMutexGuard<()> {
        let lock = {
            let mut growing = self.growing.lock().expect("no panic while held");
            growing.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(growing.entry(conversation).or_default())
        };
        lock.lock_owned().await
    }

    fn switched(&self) -> MutexGuard<'_, HashSet<ConversationId>> {
        self.switched.lock().expect("no panic while held")
    }

    /// Ends the subscriptions of those who are no members. Asks the directory, not the cache: what is found holds from now on.
    ///
    /// # Errors
    /// When the members can't be read.
    pub(super) async fn look_at_rights(&self, channel: ConversationId) -> BackendResult<()> {
        let Some(look) = self.channels.begin_look(channel) else { return Ok(()) };
        for some in look.subscribers.chunks(MEMBERS_PER_CALL_MAX) {
            let users: Vec<UserId> = some.iter().map(|subscriber| subscriber.connection.user).collect();
            let members: HashSet<UserId> = self.directory.members_among(channel, &users).await?.into_iter().collect();
            for one in some.iter().filter(|one| !members.contains(&one.connection.user)) {
                self.remove_if(&one.connection, channel, || self.channels.is_still(channel, one)).await;
            }
        }
        look.end();
        Ok(())
    }

    /// Ends every subscription of somebody who is no member, whether or not this server was told.
    pub(super) async fn check_all(&self) {
        for channel in self.channels.ids() {
            // Members that can't be read now are read the next time; the port's layer counts it.
            if self.look_at_rights(channel).await.is_err() {
                return;
            }
        }
    }

    /// The members of a conversation that has become large, in the order of their ids, as far as they are read.
    async fn first_members(&self, conversation: ConversationId) -> BackendResult<Vec<UserId>> {
        let mut members: Vec<UserId> = Vec::new();
        loop {
            let after = members.last().copied().unwrap_or(UserId(0));
            // One more than are taken tells whether there are more.
            let wanted = (self.grown_members_max + 1 - members.len()).min(MEMBERS_PER_CALL_MAX);
            let page = self.directory.members(conversation, after, wanted).await?;
            let is_last = page.len() < wanted;
            members.extend(page);
            if members.len() > self.grown_members_max {
                members.truncate(self.grown_members_max);
                self.metrics.count(Counter::GrownCutOff);
                let read = members.len();
                tracing::warn!(%conversation, read, "not all members of a large conversation were subscribed and told");
                return Ok(members);
            }
            if is_last {
                return Ok(members);
            }
        }
    }

    /// Subscribes the members that are connected here, tells them, and says where the conversation stands: what was
    /// said the new way before they were subscribed is below that. Where that fails they are subscribed no more, so
    /// that whoever does it again finds them as they were.
    async fn has_grown(&self, conversation: ConversationId) -> BackendResult<()> {
        let members = self.first_members(conversation).await?;
        let mut new = Vec::new();
        let mut result = Ok(());
        for connection in self.outbound.hub.connections_of(members.into_iter()) {
            // Its client may ask for the messages when it hears of it.
            match self.add(&connection, conversation, usize::MAX).await {
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
                self.remove(connection, conversation).await;
            }
        }
        result
    }

    /// Ends the subscriptions and tells their connections, which get what is said by themselves from now on; and says
    /// where the conversation stands once nobody sends the old way any more.
    async fn has_shrunk(self: &Arc<Self>, conversation: ConversationId) -> BackendResult<()> {
        let mut told = Vec::new();
        for Subscriber { connection, .. } in self.of(conversation).iter() {
            if self.remove(connection, conversation).await {
                let frame = ConversationChangeFrame { conversation, large: false };
                self.outbound.reply(connection, &ServerFrame::Conversation(frame));
                told.push(Arc::clone(connection));
            }
        }
        if !told.is_empty() {
            let this = Arc::clone(self);
            self.tasks.spawn_until_stopped("chat.shrunk", async move {
                tokio::time::sleep(OLD_WAY).await;
                // A client that misses this one finds the gap with the next message.
                let _ = this.show_head(conversation, &told).await;
            });
        }
        Ok(())
    }

    /// Sends the newest id of a conversation to some connections.
    async fn show_head(&self, conversation: ConversationId, connections: &[Arc<Connection>]) -> BackendResult<()> {
        if connections.is_empty() {
            return Ok(());
        }
        let newest = self.messages.read_back(conversation, MessageId(u64::MAX), 1).await?;
        if let Some(message) = newest.first() {
            let head = ServerFrame::Head(HeadFrame { conversation, id: message.id });
            for connection in connections {
                self.outbound.reply(connection, &head);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "subscriptions_tests.rs"]
mod tests;
