//! For tests of this server's owners: embedded engines, and connections whose other end is the test.

use std::sync::Arc;

use uuid::Uuid;

use super::Identity;
use super::channel_feed::{ChannelFeed, RateMax};
use super::connection::Connection;
use super::deliverer::Deliverer;
use super::delivery::Delivery;
use super::poll;
use super::presence_feed::PresenceFeed;
use super::rights::Rights;
use super::sender::Sender;
use super::session_clock::SessionClock;
use super::shared::Shared;
use super::socket::Socket;
use super::subscriptions::Subscriptions;
use super::unheard::LostConnections;
use crate::backends::directory::{NewConversationRow, NewUser};
use crate::backends::registry::Role;
use crate::protocol::api::ConversationKind;
use crate::protocol::frames::SendFrame;
use crate::protocol::{ConversationId, MessageFrame, ServerFrame, SessionId, UserId};
use crate::server::access::seats::Seats;
use crate::server::ordering::Ordering;
use crate::server::{Deps, bench};

/// What the owners of a server are made of.
pub(super) struct Bench {
    pub(super) deps: Deps,
    pub(super) shared: Shared,
    /// Ends its tasks, and removes its folder.
    _server: bench::Bench,
}

impl Bench {
    /// Fresh engines.
    pub(super) async fn new() -> Self {
        let server = bench::Bench::new(Role::Chat, "chat-1", |backends| backends).await;
        let deps = server.deps.clone();
        let shared = Shared::open(&deps, 1 << 20).await.expect("opens");
        Self { deps, shared, _server: server }
    }

    /// Some users who have nothing to do with each other.
    pub(super) async fn users<const N: usize>(&self) -> [UserId; N] {
        let new: [NewUser; N] = std::array::from_fn(|n| NewUser {
            name: format!("user-{n}"),
            display_name: format!("User {n}"),
            password_hash: "none".to_owned(),
        });
        let users = self.deps.backends.directory.add_users(&new).await.expect("adds");
        users.try_into().expect("one id for each")
    }

    /// A connection of a user's, in the hub.
    pub(super) fn enter(&self, user: UserId) -> Arc<Connection> {
        let connection = connection(user);
        self.shared.outbound.hub.add(Arc::clone(&connection));
        connection
    }

    /// A group.
    pub(super) async fn group(&self, members: &[UserId]) -> ConversationId {
        self.conversation(ConversationKind::Group, members).await
    }

    /// A conversation of two.
    pub(super) async fn direct(&self, a: UserId, b: UserId) -> ConversationId {
        self.conversation(ConversationKind::Direct, &[a, b]).await
    }

    async fn conversation(&self, kind: ConversationKind, members: &[UserId]) -> ConversationId {
        let (owner, members) = (members[0], members.to_vec());
        let new = NewConversationRow { kind, name: String::new(), owner, members };
        self.deps.backends.directory.add_conversation(&new).await.expect("adds")
    }

    /// A message that is stored and not told.
    pub(super) async fn say(&self, conversation: ConversationId, sender: UserId) -> MessageFrame {
        let frame = send_frame(conversation);
        let ordering = Ordering::new(&self.deps.backends, &self.deps.metrics);
        ordering.store(sender, &frame).await.expect("stores")
    }

    pub(super) async fn rights(&self) -> Arc<Rights> {
        let clock = SessionClock::begin(Arc::clone(&self.deps.backends.sessions)).await;
        Arc::new(Rights::new(&self.deps, &self.shared, Arc::new(clock)))
    }

    pub(super) fn presence_feed(&self) -> Arc<PresenceFeed> {
        Arc::new(PresenceFeed::new(&self.deps, &self.shared))
    }

    pub(super) fn delivery(&self) -> Arc<Delivery> {
        let lost = Arc::new(LostConnections::new(&self.deps, &self.shared));
        let outbound = Arc::clone(&self.shared.outbound);
        let deliverer = Deliverer::new(outbound, self.deps.tasks.clone(), None);
        let channels = self.channel_feed(self.subscriptions());
        Arc::new(Delivery::new(&self.deps, &self.shared, channels, self.presence_feed(), lost, deliverer))
    }

    /// A subscriber is sent three messages in a second, or 4 KiB.
    pub(super) fn channel_feed(&self, subscriptions: Arc<Subscriptions>) -> Arc<ChannelFeed> {
        let outbound = Arc::clone(&self.shared.outbound);
        let deliverer = Deliverer::new(Arc::clone(&outbound), self.deps.tasks.clone(), None);
        let rate_max = RateMax { messages: 3, bytes: 4 << 10 };
        Arc::new(ChannelFeed::new(&self.deps, outbound, subscriptions, deliverer, rate_max))
    }

    /// A connection may have two requests at once.
    pub(super) fn sender(&self) -> Arc<Sender> {
        Arc::new(Sender::new(&self.deps, &self.shared, self.subscriptions(), self.delivery(), 2))
    }

    /// A connection may have three.
    pub(super) fn subscriptions(&self) -> Arc<Subscriptions> {
        Arc::new(Subscriptions::new(&self.deps, &self.shared, 3))
    }
}

/// A message to be sent.
pub(super) fn send_frame(conversation: ConversationId) -> SendFrame {
    SendFrame { uuid: Uuid::new_v4(), conversation, kind: "text".to_owned(), body: "hello".to_owned(), reply_to: None }
}

/// A connection of a user's, over a socket.
pub(super) fn connection_over(socket: Socket, user: UserId) -> Arc<Connection> {
    let device = "phone".parse().expect("a name");
    let identity = Identity { sub: user, dev: device, jti: Uuid::new_v4(), iat: 0, exp: u64::MAX };
    let seat = Seats::new(1).take().expect("a free seat");
    Arc::new(Connection::new(identity, SessionId(Uuid::new_v4()), socket, seat))
}

/// A connection of a user's that keeps what it is sent until [`written`] asks.
pub(super) fn connection(user: UserId) -> Arc<Connection> {
    connection_over(Socket::polled(), user)
}

/// What a connection was sent since this was last asked, and the code that it was closed with.
pub(super) fn written(connection: &Connection) -> (Vec<ServerFrame>, Option<u16>) {
    let answer = poll::taken(connection);
    let frames = answer.frames.iter().map(|text| ServerFrame::decode(text.get()).expect("a frame of ours"));
    (frames.collect(), answer.closed)
}
