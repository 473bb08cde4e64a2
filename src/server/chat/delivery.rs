//! From the log and from peers to the sockets.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::channel_feed::ChannelFeed;
use super::deliverer::Deliverer;
use super::lanes::{Lanes, Put};
use super::outbound::{Outbound, Writes};
use super::presence_feed::PresenceFeed;
use super::shared::Shared;
use super::unheard::LostConnections;
use crate::backends::BackendResult;
use crate::backends::log::{Delivered, LogReader, Topic};
use crate::protocol::frames::HeadFrame;
use crate::protocol::{ConversationId, MessageId, SessionId, UserId, websocket};
use crate::runtime::{Backoff, Tasks, clock};
use crate::server::Deps;
use crate::server::access::members::Members;
use crate::server::inbox::InboxHeader;
use crate::server::lag;
use crate::telemetry::{Counter, Gauge, Metrics, Timer};

/// Wait after a failed read of the log.
const READ_RETRY: Duration = Duration::from_millis(200);

/// Waits before members that could not be read are read again, and the longest.
const MEMBERS_RETRY: Duration = Duration::from_millis(200);
const MEMBERS_RETRY_MAX: Duration = Duration::from_secs(5);

/// How long a message is tried whose members can't be read.
const GIVE_UP_AFTER: Duration = Duration::from_mins(1);

/// Passes what is said on to the connections of one server.
pub(super) struct Delivery {
    outbound: Arc<Outbound>,
    reader: Arc<dyn LogReader>,
    members: Arc<Members>,
    channels: Arc<ChannelFeed>,
    presence: Arc<PresenceFeed>,
    lost: Arc<LostConnections>,
    deliverer: Deliverer,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    lanes: Lanes,
}

impl Delivery {
    /// To the owners that it hands records to.
    pub(super) fn new(
        deps: &Deps,
        shared: &Shared,
        channels: Arc<ChannelFeed>,
        presence: Arc<PresenceFeed>,
        lost: Arc<LostConnections>,
        deliverer: Deliverer,
    ) -> Self {
        Self {
            outbound: Arc::clone(&shared.outbound),
            reader: Arc::clone(&shared.reader),
            members: Arc::clone(&shared.members),
            channels,
            presence,
            lost,
            deliverer,
            tasks: deps.tasks.clone(),
            metrics: Arc::clone(&deps.metrics),
            lanes: Lanes::default(),
        }
    }

    /// Whether a test has users go on getting what they have no right to any more.
    pub(super) fn ignores_removals(&self) -> bool {
        self.deliverer.ignores_removals()
    }

    /// Passes records of the log on. Inputs: the log.
    pub(super) async fn inbox_loop(self: Arc<Self>) {
        loop {
            match self.reader.next().await {
                Ok(records) => {
                    self.metrics.add(Counter::LogRead, records.len() as u64);
                    let mut writes = Writes::of_records(records.len());
                    for record in records {
                        self.on_record(&mut writes, &record).await;
                    }
                    self.outbound.write(&mut writes);
                }
                Err(error) => {
                    tracing::warn!(%error, "reading the log failed");
                    tokio::time::sleep(READ_RETRY).await;
                }
            }
        }
    }

    async fn on_record(self: &Arc<Self>, writes: &mut Writes, delivered: &Delivered) {
        match delivered.topic {
            Topic::Inbox => self.on_inbox_record(writes, delivered).await,
            Topic::PresenceUpdates => self.presence.on_record(delivered),
            Topic::Channel => self.on_channel_record(writes, delivered).await,
        }
    }

    async fn on_inbox_record(self: &Arc<Self>, writes: &mut Writes, delivered: &Delivered) {
        let Some((header, frame)) = InboxHeader::parse(&delivered.record.payload) else {
            tracing::error!(offset = delivered.offset, "an inbox record can't be read");
            return;
        };
        let conversation = header.conversation;
        if self.members.are_known(conversation)
            && !self.lanes.has(conversation)
            && self.deliver_record(writes, delivered, &header, &frame).await.is_ok()
        {
            return;
        }
        if !self.put(conversation, delivered) {
            self.give_up(conversation, "too many wait");
        }
    }

    async fn on_channel_record(self: &Arc<Self>, writes: &mut Writes, delivered: &Delivered) {
        let payload = &delivered.record.payload;
        let Some((header, frame)) = InboxHeader::parse(payload) else {
            // A server of an older build says no more than this.
            if let Ok(head) = serde_json::from_slice::<HeadFrame>(payload) {
                self.channels.tell(head.conversation, head.id);
            } else {
                tracing::error!(offset = delivered.offset, "a channel record can't be read");
            }
            return;
        };
        let conversation = header.conversation;
        let is_passed =
            !self.lanes.has(conversation) && self.channels.pass(writes, &header, &frame, age(delivered)).await;
        if !is_passed && !self.put(conversation, delivered) {
            self.channels.tell(conversation, header.id);
        }
    }

    /// Puts a record into its conversation's lane. Returns false where there is no room.
    fn put(self: &Arc<Self>, conversation: ConversationId, delivered: &Delivered) -> bool {
        match self.lanes.put(conversation, delivered.clone()) {
            Put::New => {
                let this = Arc::clone(self);
                self.tasks.spawn_until_stopped("chat.lane", async move { this.go_along(conversation).await });
                true
            }
            Put::Behind => true,
            Put::Full => false,
        }
    }

    /// Delivers what is in a conversation's lane, one after the other, until it is empty.
    async fn go_along(&self, conversation: ConversationId) {
        let mut backoff = Backoff::new(MEMBERS_RETRY, MEMBERS_RETRY_MAX);
        let mut failing_since = None;
        while let Some(delivered) = self.lanes.first(conversation) {
            let parsed = InboxHeader::parse(&delivered.record.payload);
            let outcome = match &parsed {
                Some((header, frame)) if delivered.topic == Topic::Channel => {
                    self.channels.pass_after_a_look(header, frame, age(&delivered)).await;
                    Ok(())
                }
                Some((header, frame)) => self.deliver_record(&mut Writes::direct(), &delivered, header, frame).await,
                None => Ok(()),
            };
            if let Err(error) = outcome {
                let now = clock::instant();
                if now - *failing_since.get_or_insert(now) < GIVE_UP_AFTER {
                    let wait = backoff.next_wait(&mut rand::rng());
                    tokio::time::sleep(MEMBERS_RETRY + wait).await;
                    continue;
                }
                self.give_up(conversation, &error.to_string());
            }
            backoff.reset();
            failing_since = None;
            if !self.lanes.done(conversation) {
                return;
            }
        }
    }

    fn give_up(&self, conversation: ConversationId, why: &str) {
        tracing::warn!(%conversation, why, "a message could not be delivered since its members are not known; recipients will sync");
        self.metrics.count(Counter::DeliveriesGivenUp);
    }

    /// Writes a record to the connections of the members whom it names.
    ///
    /// # Errors
    /// When the members can't be read; nothing was written then.
    async fn deliver_record(
        &self,
        writes: &mut Writes,
        delivered: &Delivered,
        header: &InboxHeader,
        frame: &Bytes,
    ) -> BackendResult<()> {
        let users = delivered.record.keys.iter().map(|key| UserId(*key));
        let mut connections = self.outbound.hub.connections_of(users);
        connections.retain(|connection| header.except != Some(connection.session));
        let connections = self.keep_members(header.conversation, connections, |connection| connection.user).await?;
        for connection in &connections {
            if connection.note_written(header.conversation, header.id) {
                self.deliverer.deliver(writes, connection, frame);
            } else {
                self.lost.note_late(connection, header.conversation, header.id);
            }
        }
        self.metrics.add(Counter::Deliveries, connections.len() as u64);
        self.metrics.time_us(Timer::Fanout, age(delivered).as_micros() as u64);
        Ok(())
    }

    /// Leaves out those whose user is not a member (any more).
    ///
    /// # Errors
    /// When the members can't be read.
    async fn keep_members<T>(
        &self,
        conversation: ConversationId,
        mut all: Vec<T>,
        user_of: impl Fn(&T) -> UserId,
    ) -> BackendResult<Vec<T>> {
        if all.is_empty() || self.deliverer.ignores_removals() {
            return Ok(all);
        }
        match self.members.get(conversation).await? {
            Some(list) if list.is_large() => {
                // It has grown since the message was sent, or this server's look is the older one.
                let users: Vec<UserId> = all.iter().map(&user_of).collect();
                let members = self.members.among(conversation, &users).await?;
                all.retain(|one| members.contains(&user_of(one)));
            }
            Some(list) => all.retain(|one| list.has(user_of(one))),
            None => all.clear(),
        }
        Ok(all)
    }

    /// Writes a frame to sessions of this server; returns those that took it.
    pub(super) async fn deliver_to_sessions(
        &self,
        conversation: Option<ConversationId>,
        message: Option<MessageId>,
        sessions: &[(UserId, SessionId)],
        text: &str,
    ) -> Vec<SessionId> {
        let mut sessions = sessions.to_vec();
        if let Some(conversation) = conversation {
            // Who can't be told for a member gets it by the log, whose record waits until that is known.
            let kept = self.keep_members(conversation, sessions, |(user, _)| *user).await;
            sessions = kept.unwrap_or_default();
        }
        let frame: Bytes = websocket::text_frame(text, None).into();
        let mut accepted = Vec::new();
        for (user, session) in sessions {
            if let Some(connection) = self.outbound.hub.find(user, session) {
                let is_over = conversation.zip(message).is_some_and(|(c, id)| !connection.note_written(c, id));
                if is_over {
                    continue;
                }
                self.deliverer.deliver(&mut Writes::direct(), &connection, &frame);
                accepted.push(session);
            }
        }
        self.metrics.add(Counter::Deliveries, accepted.len() as u64);
        accepted
    }

    /// Writes how far this server is behind the log. Inputs: the clock.
    pub(super) async fn lag_loop(self: Arc<Self>) {
        loop {
            lag::tell(&self.metrics, &self.reader.lag().await);
            self.metrics.set(Gauge::Connections, self.outbound.hub.len() as u64);
            tokio::time::sleep(lag::INTERVAL).await;
        }
    }
}

/// Time since a record was published, by the clocks of two machines.
fn age(delivered: &Delivered) -> Duration {
    Duration::from_millis(clock::unix_ms().saturating_sub(delivered.at_ms))
}

#[cfg(test)]
mod tests {
    use super::super::bench::{Bench, written};
    use super::*;
    use crate::backends::directory::Directory;
    use crate::backends::layers::{Faults, Layer, Layered};
    use crate::protocol::ServerFrame;

    #[tokio::test]
    async fn a_record_reaches_members_but_not_the_session_that_sent_it() {
        let bench = Bench::new().await;
        let delivery = bench.delivery();
        let [sender, member, stranger, gone] = bench.users().await;
        let talk = bench.group(&[sender, member, gone]).await;
        let message = bench.say(talk, sender).await;
        let [from, own_other, here, not_here, ended] =
            [sender, sender, member, stranger, gone].map(|user| bench.enter(user));
        ended.note_ended();
        let users = [sender, member, stranger, gone];
        for user in users {
            delivery.reader.subscribe(Topic::Inbox, user.0).await.expect("subscribes");
        }
        bench.shared.publisher.publish_to_inboxes(Some(from.session), &message, &users).await.expect("publishes");
        let mut read = 0;
        while read < users.len() {
            for record in delivery.reader.next().await.expect("reads") {
                read += record.record.keys.len();
                delivery.on_record(&mut Writes::direct(), &record).await;
            }
        }
        while delivery.lanes.has(talk) {
            tokio::task::yield_now().await;
        }
        let expected = [ServerFrame::Message(message)];
        assert_eq!((written(&own_other).0.as_slice(), written(&here).0.as_slice()), (&expected[..], &expected[..]));
        for connection in [&from, &not_here, &ended] {
            assert_eq!(written(connection).0, []);
        }
    }

    #[tokio::test]
    async fn peers_are_told_which_sessions_took_a_message() {
        let bench = Bench::new().await;
        let delivery = bench.delivery();
        let [member, stranger] = bench.users().await;
        let talk = bench.group(&[member]).await;
        let [here, ended, not_here] = [member, member, stranger].map(|user| bench.enter(user));
        ended.note_ended();
        let sessions = [&here, &ended, &not_here].map(|connection| (connection.user, connection.session));
        let text = ServerFrame::Pong.encode();
        let took = delivery.deliver_to_sessions(Some(talk), Some(MessageId(1)), &sessions, &text).await;
        assert_eq!(took, [here.session]);
        assert_eq!((written(&here).0, written(&not_here).0), (vec![ServerFrame::Pong], Vec::new()));
    }

    #[tokio::test]
    async fn what_comes_while_members_can_not_be_read_is_delivered_in_order_once_they_can() {
        let mut bench = Bench::new().await;
        let away = Layer::Faulty(Box::new(Faults::new(7, 500)));
        let directory = Layered::<dyn Directory>::new(Arc::clone(&bench.deps.backends.directory), away);
        bench.shared.members = Arc::new(Members::new(Arc::new(directory)));
        let delivery = bench.delivery();
        let [sender, member] = bench.users().await;
        let talk = bench.group(&[sender, member]).await;
        let here = bench.enter(member);
        delivery.reader.subscribe(Topic::Inbox, member.0).await.expect("subscribes");
        let mut expected = Vec::new();
        for _ in 0..5 {
            let message = bench.say(talk, sender).await;
            bench.shared.publisher.publish_to_inboxes(None, &message, &[member]).await.expect("publishes");
            expected.push(ServerFrame::Message(message));
        }
        let mut read = 0;
        while read < expected.len() {
            for record in delivery.reader.next().await.expect("reads") {
                read += 1;
                delivery.on_record(&mut Writes::direct(), &record).await;
                bench.shared.members.invalidate(talk);
            }
        }
        while delivery.lanes.has(talk) {
            bench.shared.members.invalidate(talk);
            tokio::time::sleep(MEMBERS_RETRY).await;
        }
        assert_eq!(written(&here).0, expected);
        assert_eq!(delivery.metrics.counted(Counter::DeliveriesGivenUp), 0);
    }
}
