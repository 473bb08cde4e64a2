//! From a message to its recipients, wherever they are connected: here, on other servers, or nowhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;

use super::delivery::Delivery;
use super::publisher::Publisher;
use super::shared::Shared;
use crate::backends::BackendResult;
use crate::backends::registry::Role;
use crate::backends::sessions::{Session, Sessions};
use crate::protocol::api::ConversationKind;
use crate::protocol::{ConversationId, MessageFrame, MessageId, ServerFrame, ServerName, SessionId, UserId};
use crate::server::Deps;
use crate::server::access::members::MemberList;
use crate::server::cluster::Cluster;
use crate::server::cluster::peer::{Answer, Call, Peers};
use crate::telemetry::{Counter, Metrics};

/// Sends what a member says to the others.
pub(super) struct Fanout {
    /// Of this server.
    name: ServerName,
    delivery: Arc<Delivery>,
    sessions: Arc<dyn Sessions>,
    cluster: Arc<Cluster>,
    peers: Arc<Peers>,
    publisher: Publisher,
    metrics: Arc<Metrics>,
}

impl Fanout {
    /// With the delivery to this server's own connections.
    pub(super) fn new(deps: &Deps, shared: &Shared, delivery: Arc<Delivery>) -> Self {
        Self {
            name: deps.name.clone(),
            delivery,
            sessions: Arc::clone(&deps.backends.sessions),
            cluster: Arc::clone(&shared.cluster),
            peers: Arc::clone(&shared.peers),
            publisher: shared.publisher.clone(),
            metrics: Arc::clone(&deps.metrics),
        }
    }

    /// Sends a stored message to the members. On `Ok` it was pushed or published for each of them.
    pub(super) async fn send(
        &self,
        from: SessionId,
        message: &MessageFrame,
        members: &MemberList,
    ) -> BackendResult<()> {
        if members.is_large() {
            self.publisher.publish_to_channel(Some(from), message).await
        } else if members.kind == ConversationKind::Direct {
            self.push_direct(from, message, members).await
        } else {
            self.publisher.publish_to_inboxes(Some(from), message, members.users()).await
        }
    }

    /// One-to-one: straight to the servers that hold the devices. Who has no device that took it gets an inbox record.
    async fn push_direct(&self, from: SessionId, message: &MessageFrame, members: &MemberList) -> BackendResult<()> {
        // Without the sessions everybody counts as offline: the inbox reaches who is not.
        let Ok(mut sessions) = self.sessions.lookup(members.users()).await else {
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
        &self,
        (conversation, message): (ConversationId, Option<MessageId>),
        sessions: &[Session],
        frame: &str,
    ) -> Vec<SessionId> {
        let mut servers: BTreeMap<&ServerName, Vec<(UserId, SessionId)>> = BTreeMap::new();
        for session in sessions {
            servers.entry(&session.server).or_default().push((session.user, session.session));
        }
        let pushes = servers.into_iter().map(|(server, sessions)| async move {
            if *server == self.name {
                return self.delivery.deliver_to_sessions(Some(conversation), message, &sessions, frame).await;
            }
            let (conversation, frame) = (Some(conversation), frame.to_owned());
            self.push_to_peer(server, Call::Deliver { conversation, message, sessions, frame }).await
        });
        join_all(pushes).await.concat()
    }

    async fn push_to_peer(&self, server: &ServerName, call: Call) -> Vec<SessionId> {
        let Some(server) = self.cluster.look_up(Role::Chat, server).await else { return Vec::new() };
        self.metrics.count(Counter::PeerPushes);
        if let Ok(Answer::Accepted(sessions)) = self.peers.call(&server, &call).await {
            return sessions;
        }
        self.metrics.count(Counter::PeerFailures);
        Vec::new()
    }

    /// Tells the members that are online something that is not stored; large conversations are spared.
    pub(super) async fn tell_others(
        &self,
        from: SessionId,
        conversation: ConversationId,
        members: &MemberList,
        frame: &ServerFrame,
    ) {
        if members.is_large() {
            return;
        }
        // Nobody hears it when the sessions can't be read: it is not worth a retry.
        let Ok(mut sessions) = self.sessions.lookup(members.users()).await else { return };
        sessions.retain(|s| s.session != from);
        self.push_to_sessions((conversation, None), &sessions, &frame.encode()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::bench::{Bench, written};
    use super::*;

    #[tokio::test]
    async fn a_direct_message_is_pushed_and_published_for_who_has_a_device_that_did_not_take_it() {
        let bench = Bench::new().await;
        let fanout = Fanout::new(&bench.deps, &bench.shared, bench.delivery());
        let [sender, recipient] = bench.users().await;
        let talk = bench.direct(sender, recipient).await;
        let members = bench.shared.members.get(talk).await.expect("reads").expect("there");
        let (from, to, rights) = (bench.enter(sender), bench.enter(recipient), bench.rights().await);
        for connection in [&from, &to] {
            rights.claim(&mut rights.session_of(connection)).await.expect("claims");
        }
        let published = || bench.deps.metrics.counted(Counter::LogPublished);
        let message = bench.say(talk, sender).await;
        fanout.send(from.session, &message, &members).await.expect("sends");
        assert_eq!((written(&to).0, published()), (vec![ServerFrame::Message(message)], 0));
        assert_eq!(written(&from).0, [], "the sender's device has it");
        // The store has the session still, and the connection has ended.
        bench.shared.outbound.hub.remove(recipient, to.session);
        let message = bench.say(talk, sender).await;
        fanout.send(from.session, &message, &members).await.expect("sends");
        assert_eq!((written(&to).0, published()), (Vec::new(), 1));
        rights.give_up(&to).await;
        fanout.tell_others(from.session, talk, &members, &ServerFrame::Pong).await;
        assert_eq!(published(), 1, "what is not stored waits for nobody");
    }
}
