//! From the log and from peers to the sockets.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::ChatServer;
use super::connection::Connection;
use super::tamper::Tamper;
use crate::backends::log::{Delivered, Topic};
use crate::protocol::frames::HeadFrame;
use crate::protocol::websocket::{self, Decoder, Event, Role};
use crate::protocol::{ConversationId, MessageId, ServerFrame, SessionId, UserId};
use crate::runtime::clock;
use crate::server::inbox::InboxHeader;
use crate::telemetry::{Counter, Timer};

/// How often heads of large channels are passed on: a busy channel costs each subscriber this many frames at most.
const HEAD_INTERVAL: Duration = Duration::from_millis(50);

/// Wait after a failed read of the log.
const READ_RETRY: Duration = Duration::from_millis(200);

/// Newest head of each large channel, not passed on yet.
pub(super) type PendingHeads = std::sync::Mutex<HashMap<ConversationId, MessageId>>;

impl ChatServer {
    /// Passes records of the log on. Inputs: the log.
    pub(super) async fn inbox_loop(self: Arc<Self>) {
        loop {
            match self.reader.next().await {
                Ok(records) => {
                    self.deps.metrics.add(Counter::LogRead, records.len() as u64);
                    for record in records {
                        self.on_record(&record).await;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "reading the log failed");
                    tokio::time::sleep(READ_RETRY).await;
                }
            }
        }
    }

    async fn on_record(self: &Arc<Self>, delivered: &Delivered) {
        match delivered.topic {
            Topic::Inbox => self.on_inbox_record(delivered).await,
            Topic::PresenceUpdates => self.presence.on_record(delivered),
            Topic::Channel => {
                if let Ok(head) = serde_json::from_slice::<HeadFrame>(&delivered.record.payload) {
                    self.note_head(&head);
                }
            }
        }
    }

    async fn on_inbox_record(self: &Arc<Self>, delivered: &Delivered) {
        let Some((header, frame)) = InboxHeader::parse(&delivered.record.payload) else {
            tracing::error!(offset = delivered.offset, "an inbox record can't be read");
            return;
        };
        let users = delivered.record.keys.iter().map(|key| UserId(*key));
        let mut connections = self.outbound.hub.connections_of(users);
        connections.retain(|connection| header.except != Some(connection.session));
        let connections = self.keep_members(header.conversation, connections, |connection| connection.user).await;
        for connection in &connections {
            if connection.note_written(header.conversation, header.id) {
                self.deliver(connection, &frame);
            } else {
                self.note_late(connection, header.conversation, header.id);
            }
        }
        self.deps.metrics.add(Counter::Deliveries, connections.len() as u64);
        let age_ms = clock::unix_ms().saturating_sub(delivered.at_ms);
        self.deps.metrics.time_us(Timer::Fanout, age_ms * 1_000);
    }

    /// Writes an encoded message frame to one connection; the place where tests may tamper.
    fn deliver(self: &Arc<Self>, connection: &Arc<Connection>, frame: &Bytes) {
        match &self.tamper {
            None => self.outbound.push(connection, frame.clone()),
            Some(tamper) => {
                let delay = tamper.delay();
                if delay.is_zero() {
                    return self.deliver_tampered(&**tamper, connection, frame);
                }
                let (server, connection, frame) = (Arc::clone(self), Arc::clone(connection), frame.clone());
                let tamper = Arc::clone(tamper);
                self.deps.tasks.spawn("chat.delayed", async move {
                    tokio::time::sleep(delay).await;
                    server.deliver_tampered(&*tamper, &connection, &frame);
                });
            }
        }
    }

    fn deliver_tampered(self: &Arc<Self>, tamper: &dyn Tamper, connection: &Arc<Connection>, frame: &Bytes) {
        let mut message = None;
        let mut copy = frame.to_vec();
        let read = Decoder::new(Role::Client, u32::MAX).feed(&mut copy, &mut |event| {
            if let Event::Text(text) = event
                && let Ok(ServerFrame::Message(frame)) = ServerFrame::decode(text)
            {
                message = Some(frame);
            }
        });
        match (read, message) {
            (Ok(()), Some(message)) => {
                for message in tamper.outgoing(connection.user, &message) {
                    self.outbound.reply(connection, &ServerFrame::Message(message));
                }
            }
            _ => self.outbound.push(connection, frame.clone()),
        }
    }

    /// Leaves out those whose user is not a member (any more). When the members can't be read nobody is left in: the
    /// message is stored, and a sync finds it.
    async fn keep_members<T>(
        &self,
        conversation: ConversationId,
        mut all: Vec<T>,
        user_of: impl Fn(&T) -> UserId,
    ) -> Vec<T> {
        if all.is_empty() || self.tamper.as_ref().is_some_and(|t| t.ignores_removals()) {
            return all;
        }
        let kept = match self.members.get(conversation).await {
            Ok(Some(list)) if list.is_large() => {
                // It has grown since the message was sent, or this server's look is the older one.
                let users: Vec<UserId> = all.iter().map(&user_of).collect();
                let members = self.members.among(conversation, &users).await;
                members.map(|members| all.retain(|one| members.contains(&user_of(one))))
            }
            Ok(Some(list)) => {
                all.retain(|one| list.has(user_of(one)));
                Ok(())
            }
            Ok(None) => {
                all.clear();
                Ok(())
            }
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            tracing::warn!(%error, %conversation, "members can't be read; recipients will sync");
            all.clear();
        }
        all
    }

    /// Writes a frame to sessions of this server; returns those that took it.
    pub(super) async fn deliver_to_sessions(
        &self,
        conversation: Option<ConversationId>,
        message: Option<MessageId>,
        sessions: &[(UserId, SessionId)],
        text: &str,
    ) -> Vec<SessionId> {
        let Some(this) = self.me() else { return Vec::new() };
        let mut sessions = sessions.to_vec();
        if let Some(conversation) = conversation {
            sessions = self.keep_members(conversation, sessions, |(user, _)| *user).await;
        }
        let frame: Bytes = websocket::text_frame(text, None).into();
        let mut accepted = Vec::new();
        for (user, session) in sessions {
            if let Some(connection) = self.outbound.hub.find(user, session) {
                let is_over = conversation.zip(message).is_some_and(|(c, id)| !connection.note_written(c, id));
                if is_over {
                    continue;
                }
                this.deliver(&connection, &frame);
                accepted.push(session);
            }
        }
        self.deps.metrics.add(Counter::Deliveries, accepted.len() as u64);
        accepted
    }

    fn note_head(&self, head: &HeadFrame) {
        let mut heads = self.heads.lock().expect("no panic while held");
        match heads.get_mut(&head.conversation) {
            Some(newest) => {
                *newest = (*newest).max(head.id);
                self.deps.metrics.count(Counter::HeadsCoalesced);
            }
            None => {
                heads.insert(head.conversation, head.id);
            }
        }
    }

    /// Passes the newest heads on. Inputs: the clock.
    pub(super) async fn head_loop(self: Arc<Self>) {
        loop {
            tokio::time::sleep(HEAD_INTERVAL).await;
            let heads = std::mem::take(&mut *self.heads.lock().expect("no panic while held"));
            for (conversation, id) in heads {
                let text = ServerFrame::Head(HeadFrame { conversation, id }).encode();
                let frame: Bytes = websocket::text_frame(&text, None).into();
                for connection in self.subscriptions.of(conversation) {
                    self.outbound.push(&connection, frame.clone());
                }
            }
        }
    }
}
