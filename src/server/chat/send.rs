//! From a `send` frame to its ACK: membership, store, recipients, answer. And the small requests beside it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::ChatServer;
use super::connection::Connection;
use super::refused::{Refused, members_for};
use super::requests::Waiting;
use super::session::Request;
use super::uuids::Use;
use crate::backends::BackendResult;
use crate::backends::error::BackendError;
use crate::backends::registry::Role;
use crate::backends::sessions::Session;
use crate::protocol::api::{ConversationKind, Receipt};
use crate::protocol::frames::{AckFrame, ReceiptFrame, SendFrame, SendReceiptFrame, TypingFrame};
use crate::protocol::{ConversationId, ErrorCode, MessageFrame, MessageId, ServerFrame, ServerName, SessionId, UserId};
use crate::runtime::clock;
use crate::server::access::members::MemberList;
use crate::server::cluster::peer::{Answer, Call};
use crate::telemetry::{Counter, Timer};

/// A send that is not answered so long after it came is answered with an error; it may be stored. Source: invariant I9, 5 s.
const SEND_TIMEOUT: Duration = Duration::from_millis(4_500);

impl ChatServer {
    pub(super) async fn handle_request(self: &Arc<Self>, connection: &Arc<Connection>, waiting: Waiting) {
        let Waiting { request, arrived_us } = waiting;
        // Before the members are looked at: a removal waits for what goes by the list as it was.
        let _entered = self.in_flight.enter(request.conversation(), connection.user);
        let (uuid, work) = match request {
            Request::Send(frame) => {
                let uuid = frame.uuid;
                (Some(uuid), self.send(connection, frame, arrived_us).await.map(Some))
            }
            Request::Typing(conversation) => (None, self.typing(connection, conversation).await.map(|()| None)),
            Request::Receipt(frame) => (None, self.receipt(connection, frame).await.map(|()| None)),
            Request::Subscribe(channel) => (None, self.subscriptions.subscribe(connection, channel).await.map(|()| None)),
            Request::Unsubscribe(channel) => {
                self.subscriptions.remove(connection, channel).await;
                (None, Ok(None))
            }
        };
        match work {
            Ok(Some(ack)) => self.outbound.reply(connection, &ServerFrame::Ack(ack)),
            Ok(None) => {}
            Err(refused) => self.outbound.reply(connection, &refused.into_frame(uuid)),
        }
    }

    /// Stores a message and sends it on its way. On `Ok` both are done.
    async fn send(
        self: &Arc<Self>,
        from: &Arc<Connection>,
        frame: SendFrame,
        arrived_us: u64,
    ) -> Result<AckFrame, Refused> {
        let used = self.uuids.claim(from.user, frame.uuid, frame.conversation);
        if used == Use::Elsewhere {
            self.deps.metrics.count(Counter::SendsFailed);
            return Err(Refused::uuid_elsewhere());
        }
        let waited = Duration::from_micros(clock::now_us() - arrived_us);
        let timed_out = || Err(BackendError::timed_out("send").into());
        let result = match SEND_TIMEOUT.checked_sub(waited).filter(|left| !left.is_zero()) {
            Some(left) => {
                tokio::time::timeout(left, self.store_and_fan_out(from, &frame)).await.unwrap_or_else(|_| timed_out())
            }
            None => Err(Refused::too_late()),
        };
        match result {
            Ok(message) => {
                self.deps.metrics.count(Counter::SendsAcked);
                self.deps.metrics.time_us(Timer::Send, clock::now_us() - arrived_us);
                let MessageFrame { uuid, conversation, id, at, .. } = message;
                Ok(AckFrame { uuid, conversation, id, at })
            }
            Err(refused) => {
                if used == Use::New && refused.code.is_definite() {
                    self.uuids.give_back(from.user, frame.uuid);
                }
                self.deps.metrics.count(Counter::SendsFailed);
                Err(refused)
            }
        }
    }

    async fn store_and_fan_out(
        self: &Arc<Self>,
        from: &Arc<Connection>,
        frame: &SendFrame,
    ) -> Result<MessageFrame, Refused> {
        let members = members_for(&self.members, from.user, frame.conversation).await?;
        if let Some(answered) = frame.reply_to
            && !self.ordering.is_stored(frame.conversation, answered).await.map_err(Refused::unread)?
        {
            let message = format!("reply_to: there is no message {answered} in {}", frame.conversation);
            return Err(Refused::definite(ErrorCode::NotFound, message));
        }
        let message = self.ordering.store(from.user, frame).await?;
        let announcing = self.unannounced.begin(from.session, &message);
        let announced = if members.is_large() {
            self.publisher.publish_head(&message).await
        } else if members.kind == ConversationKind::Direct {
            self.push_direct(from.session, &message, &members).await
        } else {
            self.publisher.publish_to_inboxes(Some(from.session), &message, members.users()).await
        };
        announced.map_err(Refused::unannounced)?;
        announcing.done();
        Ok(message)
    }

    /// One-to-one: straight to the servers that hold the devices. Who has no device that took it gets an inbox record.
    async fn push_direct(
        self: &Arc<Self>,
        from: SessionId,
        message: &MessageFrame,
        members: &MemberList,
    ) -> BackendResult<()> {
        // Without the sessions everybody counts as offline: the inbox reaches who is not.
        let Ok(mut sessions) = self.deps.backends.sessions.lookup(members.users()).await else {
            return self.publisher.publish_to_inboxes(Some(from), message, members.users()).await;
        };
        sessions.retain(|s| s.session != from);
        let frame = ServerFrame::Message(message.clone()).encode();
        let about = (message.conversation, Some(message.id));
        let accepted = self.push_to_sessions(about, &sessions, &frame).await;
        let reached = |user: UserId| {
            let mut devices = sessions.iter().filter(|s| s.user == user).peekable();
            let has_devices = devices.peek().is_some();
            let all_accepted = devices.all(|s| accepted.contains(&s.session));
            // The sender has at least the device that sends; only others can be missing.
            all_accepted && (has_devices || user == message.sender)
        };
        let missed: Vec<UserId> = members.users().iter().copied().filter(|user| !reached(*user)).collect();
        if missed.is_empty() {
            return Ok(());
        }
        self.publisher.publish_to_inboxes(Some(from), message, &missed).await
    }

    /// Writes a frame to sessions here and on other servers; returns those that took it.
    async fn push_to_sessions(
        self: &Arc<Self>,
        (conversation, message): (ConversationId, Option<MessageId>),
        sessions: &[Session],
        frame: &str,
    ) -> Vec<SessionId> {
        let mut servers: BTreeMap<&ServerName, Vec<(UserId, SessionId)>> = BTreeMap::new();
        for session in sessions {
            servers.entry(&session.server).or_default().push((session.user, session.session));
        }
        let pushes = servers.into_iter().map(|(server, sessions)| async move {
            if *server == self.deps.name {
                return self.delivery.deliver_to_sessions(Some(conversation), message, &sessions, frame).await;
            }
            let (conversation, frame) = (Some(conversation), frame.to_owned());
            self.push_to_peer(server, Call::Deliver { conversation, message, sessions, frame }).await
        });
        join_all(pushes).await.concat()
    }

    async fn push_to_peer(&self, server: &ServerName, call: Call) -> Vec<SessionId> {
        let Some(server) = self.cluster.look_up(Role::Chat, server).await else { return Vec::new() };
        self.deps.metrics.count(Counter::PeerPushes);
        if let Ok(Answer::Accepted(sessions)) = self.peers.call(&server, &call).await {
            return sessions;
        }
        self.deps.metrics.count(Counter::PeerFailures);
        Vec::new()
    }

    async fn typing(self: &Arc<Self>, from: &Arc<Connection>, conversation: ConversationId) -> Result<(), Refused> {
        let members = members_for(&self.members, from.user, conversation).await?;
        let frame = ServerFrame::Typing(TypingFrame { conversation, user: from.user });
        self.tell_others(from, conversation, &members, &frame).await;
        Ok(())
    }

    async fn receipt(self: &Arc<Self>, from: &Arc<Connection>, frame: SendReceiptFrame) -> Result<(), Refused> {
        let SendReceiptFrame { conversation, status, upto } = frame;
        let members = members_for(&self.members, from.user, conversation).await?;
        if upto.0 == 0 || !self.ordering.is_given_out(conversation, upto).await? {
            let message = format!("upto: there is no message {upto} in {conversation} yet");
            return Err(Refused::definite(ErrorCode::BadRequest, message));
        }
        let receipt = Receipt { user: from.user, status, upto };
        if !self.deps.backends.directory.raise_receipt(conversation, &receipt).await? {
            // A higher one is known; what was said before is not said again.
            return Ok(());
        }
        let frame = ServerFrame::Receipt(ReceiptFrame { conversation, user: from.user, status, upto });
        self.tell_others(from, conversation, &members, &frame).await;
        Ok(())
    }

    /// Tells the members that are online something that is not stored; large conversations are spared.
    async fn tell_others(
        self: &Arc<Self>,
        from: &Arc<Connection>,
        conversation: ConversationId,
        members: &MemberList,
        frame: &ServerFrame,
    ) {
        if members.is_large() {
            return;
        }
        // Nobody hears it when the sessions can't be read: it is not worth a retry.
        let Ok(mut sessions) = self.deps.backends.sessions.lookup(members.users()).await else { return };
        sessions.retain(|s| s.session != from.session);
        self.push_to_sessions((conversation, None), &sessions, &frame.encode()).await;
    }
}
