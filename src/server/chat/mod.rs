//! The chat server: holds WebSocket connections, takes messages in, pushes messages out.
//!
//! [`ChatServer`] accepts connections, reads them, drains, and answers other servers. What it does with a message, a
//! beat or a right lies with owners. Each has the fields that it needs, none has the server, and each uses only owners
//! above it in this table:
//!
//! | owner | what |
//! |---|---|
//! | `hub` | who is connected |
//! | `outbound` | what goes to the sockets |
//! | `publisher` | stored messages on their way to the log |
//! | `rights` | tokens and claims, which may end while a connection is open |
//! | `subscriptions` | who subscribes to which large channel |
//! | `presence_feed` | beats out, friends' changes in |
//! | `unheard` | messages that were written to connections which ended without a word |
//! | `channel_feed` | large channels to their subscribers |
//! | `delivery` | from the log and from peers to the sockets |
//! | `unannounced` | messages that are stored and could not be published |
//! | `fanout` | from a message to its recipients, wherever they are connected |
//! | `sender` | from a client's request to its answer |
//!
//! | file | what |
//! |---|---|
//! | `handshake` | HTTP upgrade, authentication, `hello`: everything before a connection is live |
//! | `turned_away` | connections that do not become live: what they are told, and how they end |
//! | `inbound` | how a connection becomes live, how it is read, how it ends |
//! | `connection` | what is kept of a live connection |
//! | `socket` | its socket: reading, merging writes, closing |
//! | `session` | what a frame means: a state machine without I/O |
//! | `requests` | a connection's requests that wait, or are under way |
//! | `poll` | the transports without a socket |
//! | `echo` | `/echo`, for conformance suites |
//! | `shared` | what several owners use, for making them |
//! | `refused` | why a request or a connection was refused, as its client is told |
//! | `in_flight` | requests under way, for a change of members that waits for them |
//! | `uuids` | in which conversation a uuid is in use |
//! | `lanes` | records of conversations whose members are not known just now |
//! | `channels` | who subscribes to which large channel, and what is known of their rights |
//! | `deliverer` | writes a message to a connection |
//! | `watches` | who hears of whose presence |
//! | `session_clock` | the time by which sessions are dated: the session store's |
//! | `session_keeper` | keeps sessions in the store, and enters them again after it forgot them |
//! | `recent_set` | notes of what ended in the last half minute |
//! | `tamper` | breaking the server on purpose |

#[cfg(test)]
mod bench;
mod channel_feed;
mod channels;
mod connection;
mod deliverer;
mod delivery;
mod echo;
mod fanout;
#[cfg(test)]
mod figures;
mod handshake;
mod hub;
mod in_flight;
mod inbound;
mod lanes;
mod outbound;
mod poll;
mod presence_feed;
mod publisher;
mod recent_set;
mod refused;
mod requests;
mod rights;
mod sender;
mod session;
mod session_clock;
mod session_keeper;
mod shared;
mod socket;
mod subscriptions;
pub mod tamper;
mod turned_away;
mod unannounced;
mod unheard;
mod uuids;
mod watches;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering as Atomic};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use self::channel_feed::{ChannelFeed, RateMax};
use self::deliverer::Deliverer;
use self::delivery::Delivery;
#[cfg(test)]
pub(crate) use self::figures::Figures;
use self::outbound::Outbound;
use self::poll::Polls;
use self::presence_feed::PresenceFeed;
use self::rights::Rights;
use self::sender::Sender;
use self::session_clock::SessionClock;
use self::shared::Shared;
use self::subscriptions::Subscriptions;
use self::tamper::Tamper;
use self::turned_away::TurnedAway;
use self::unheard::LostConnections;
use super::access::auth;
use super::access::connects::Connects;
use super::access::members::Members;
use super::access::places::LEAVING_MAX;
use super::access::seats::{HalfOpen, Seats};
use super::cluster;
use super::cluster::peer::{self, Answer, Call, PeerHandler};
use super::cluster::readiness::Readiness;
use super::http::page::LocalPage;
use super::{Deps, FILES_RESERVED, Listeners, StartError};
use crate::backends::registry::{Role, ServerEntry};
use crate::protocol::{CloseCode, ConversationId, Limits};
use crate::runtime::{clock, machine, net};
use crate::telemetry::{Counter, Gauge};

/// How often what could not be read when members or friends changed is read again.
const RECHECK_INTERVAL: Duration = Duration::from_secs(2);

/// How often all subscriptions are looked at, whether or not something was told.
const CHECK_INTERVAL: Duration = Duration::from_secs(16);

/// How often connections that went silent, or whose token has expired, are looked for. Source: invariant I13, 5 s.
const SWEEP_CONNECTIONS_INTERVAL: Duration = Duration::from_secs(2);

/// Batches of connections that a drain closes in a second, and the time between two.
const DRAINS_PER_SECOND: u32 = 20;
const DRAIN_INTERVAL: Duration = Duration::from_millis(1_000 / DRAINS_PER_SECOND as u64);

/// Longest that a drain waits, without connections, for claims that are under way.
const CLAIMS_WAIT_MAX: Duration = Duration::from_secs(2);

/// Settings of a chat server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What one connection may do.
    pub limits: Limits,
    /// Users that may be connected at once. Connections that have not said yet who they are come on top: a tenth as
    /// many, or 256.
    pub connections_max: usize,
    /// Time for the HTTP upgrade and the `hello`.
    #[serde(with = "humantime_serde")]
    pub handshake_timeout: Duration,
    /// Silence after which a connection is closed.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// Bytes that may wait for one slow reader; then it is cut.
    pub outgoing_bytes_max: usize,
    /// Messages of one large channel that a subscriber is sent in a second; past that it is told of news, and fetches. 0: always.
    pub channel_messages_per_second: u32,
    /// The same in bytes.
    pub channel_bytes_per_second: u64,
    /// Connections closed per second while draining.
    pub drain_per_second: u32,
    /// Serves `/echo`, which sends every message back, without authentication. For conformance suites.
    pub echo: bool,
    /// Largest message on `/echo`, in bytes.
    pub echo_message_bytes_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            connections_max: 200_000,
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            outgoing_bytes_max: 512 * 1024,
            channel_messages_per_second: 1_000,
            channel_bytes_per_second: 2 << 20,
            drain_per_second: 2_000,
            echo: false,
            echo_message_bytes_max: 16 << 20,
        }
    }
}

/// A running chat server.
pub struct ChatServer {
    config: Config,
    deps: Deps,
    address: SocketAddr,
    peer_address: SocketAddr,
    epoch: u64,
    outbound: Arc<Outbound>,
    members: Arc<Members>,
    subscriptions: Arc<Subscriptions>,
    presence: Arc<PresenceFeed>,
    channels: Arc<ChannelFeed>,
    delivery: Arc<Delivery>,
    sender: Arc<Sender>,
    polls: Polls,
    rights: Arc<Rights>,
    lost: Arc<LostConnections>,
    readiness: Readiness,
    /// For users, and for connections of `/echo`.
    seats: Seats,
    connects: Connects,
    half_open: Arc<HalfOpen>,
    turned_away: TurnedAway,
    metrics_page: LocalPage,
    draining: AtomicBool,
}

/// Starts a chat server; it is announced when this returns, and runs in the tasks of `deps` until they stop.
///
/// # Errors
/// When an engine does not answer, or the listeners are of no use.
pub async fn start(
    listeners: Listeners,
    deps: Deps,
    config: Config,
    tamper: Option<Arc<dyn Tamper>>,
) -> Result<Arc<ChatServer>, StartError> {
    let shared = Shared::open(&deps, config.outgoing_bytes_max).await?;
    let (address, peer_address) = (deps.reached_at(&listeners.clients)?, deps.reached_at(&listeners.peers)?);
    let files = machine::raise_open_files().saturating_sub(FILES_RESERVED) as usize;
    // As configured, or as the process may open files, half-open connections and those of polls included.
    let seats = config.connections_max.min(files.saturating_sub(turned_away::FILES + LEAVING_MAX) / 12 * 10);
    let subscriptions = Arc::new(Subscriptions::new(&deps, &shared, config.limits.subscriptions_max as usize));
    let presence = Arc::new(PresenceFeed::new(&deps, &shared));
    let session_clock = Arc::new(SessionClock::begin(Arc::clone(&deps.backends.sessions)).await);
    // Sessions are compared with it, so both are by one clock.
    let epoch = session_clock.epoch_ms();
    let rights = Arc::new(Rights::new(&deps, &shared, session_clock));
    let lost = Arc::new(LostConnections::new(&deps, &shared));
    let deliverer = Deliverer::new(Arc::clone(&shared.outbound), deps.tasks.clone(), tamper);
    let rate_max = RateMax { messages: config.channel_messages_per_second, bytes: config.channel_bytes_per_second };
    let channels = Arc::new(ChannelFeed::new(
        &deps,
        Arc::clone(&shared.outbound),
        Arc::clone(&subscriptions),
        deliverer.clone(),
        rate_max,
    ));
    let delivery = Arc::new(Delivery::new(
        &deps,
        &shared,
        Arc::clone(&channels),
        Arc::clone(&presence),
        Arc::clone(&lost),
        deliverer,
    ));
    let sender = Arc::new(Sender::new(
        &deps,
        &shared,
        Arc::clone(&subscriptions),
        Arc::clone(&delivery),
        config.limits.sends_pending_max as usize,
    ));
    let Shared { outbound, members, .. } = shared;
    let server = Arc::new(ChatServer {
        address,
        peer_address,
        epoch,
        outbound,
        members,
        subscriptions,
        presence,
        channels,
        delivery,
        sender,
        polls: Polls::new(&deps, &config.limits, seats),
        rights,
        lost,
        // Messages are sent and delivered without.
        readiness: Readiness::but_for(&["media", "presence", "registry"]),
        seats: Seats::new(seats),
        connects: Connects::new(),
        half_open: HalfOpen::beside(seats),
        turned_away: TurnedAway::new(Arc::clone(&deps.metrics)),
        metrics_page: LocalPage::default(),
        draining: AtomicBool::new(false),
        config,
        deps,
    });
    let handler: Arc<dyn PeerHandler> = Arc::clone(&server) as Arc<dyn PeerHandler>;
    peer::serve(listeners.peers, &server.deps, handler);
    server.deps.tasks.spawn("chat.accept", Arc::clone(&server).accept_loop(listeners.clients));
    server.spawn_loops();
    let announced = Arc::clone(&server);
    cluster::announce(&server.deps, move || announced.entry()).await?;
    Ok(server)
}

impl ChatServer {
    /// Where clients connect.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts what goes on until the server stops.
    fn spawn_loops(self: &Arc<Self>) {
        let tasks = &self.deps.tasks;
        tasks.spawn_until_stopped("chat.inbox_loop", Arc::clone(&self.delivery).inbox_loop());
        tasks.spawn_until_stopped("chat.head_loop", Arc::clone(&self.channels).head_loop());
        tasks.spawn_until_stopped("chat.beat_loop", Arc::clone(&self.presence).beat_loop());
        tasks.spawn_until_stopped("chat.flush_loop", Arc::clone(&self.outbound).flush_loop());
        tasks.spawn_until_stopped("chat.session_loop", Arc::clone(&self.rights).session_loop());
        tasks.spawn_until_stopped("chat.sweep_loop", Arc::clone(&self.sender).sweep_loop());
        tasks.spawn_until_stopped("chat.sweep_connections", Arc::clone(self).sweep_connections_loop());
        tasks.spawn_until_stopped("chat.logouts_loop", Arc::clone(&self.rights).logouts_loop());
        tasks.spawn_until_stopped("chat.recheck_loop", Arc::clone(self).recheck_loop());
        tasks.spawn_until_stopped("chat.check_loop", Arc::clone(self).check_loop());
        tasks.spawn_until_stopped("chat.unannounced_loop", Arc::clone(&self.sender).unannounced_loop());
        tasks.spawn_until_stopped("chat.lost_loop", Arc::clone(&self.lost).lost_loop());
        tasks.spawn_until_stopped("chat.lag_loop", Arc::clone(&self.delivery).lag_loop());
    }

    fn entry(&self) -> ServerEntry {
        ServerEntry {
            name: self.deps.name.clone(),
            role: Role::Chat,
            address: self.address,
            peer: Some(self.peer_address),
            load: self.outbound.hub.len() as u64,
            seats: self.seats.most() as u64,
            draining: self.draining.load(Atomic::Relaxed),
            epoch: self.epoch,
        }
    }

    /// Accepts until the server stops. Inputs: the listener, the word to stop.
    async fn accept_loop(self: Arc<Self>, listener: TcpListener) {
        let tasks = self.deps.tasks.clone();
        loop {
            let accept = async {
                let (stream, _) = listener.accept().await?;
                Ok::<_, std::io::Error>((stream, self.half_open.admit().await))
            };
            let accepted = tokio::select! {
                accepted = accept => accepted,
                () = tasks.stopped() => return,
            };
            match accepted {
                Ok((stream, begun)) => {
                    self.deps.metrics.count(Counter::ConnectionsOpened);
                    net::set_options(&stream);
                    tasks.spawn("chat.handshake", handshake::run(Arc::clone(&self), stream, begun));
                }
                Err(error) => {
                    if !net::is_transient_accept_error(&error) {
                        tracing::error!(%error, server = %self.deps.name, "accept failed");
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    fn socket_closed(&self) {
        self.deps.metrics.count(Counter::ConnectionsClosed);
    }

    /// Does again what could not be done when members or friends changed. Inputs: the clock.
    async fn recheck_loop(self: Arc<Self>) {
        loop {
            tokio::time::sleep(RECHECK_INTERVAL).await;
            self.subscriptions.check_again().await;
            self.presence.watch_again().await;
        }
    }

    /// Looks at all subscriptions. By itself, so that nothing else holds it up. Inputs: the clock.
    async fn check_loop(self: Arc<Self>) {
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            self.subscriptions.check_all().await;
        }
    }

    /// Closes connections that said nothing for too long, and those whose token has expired. Inputs: the clock.
    async fn sweep_connections_loop(self: Arc<Self>) {
        let limit_ms = u32::try_from(self.config.idle_timeout.as_millis()).unwrap_or(u32::MAX);
        loop {
            tokio::time::sleep(SWEEP_CONNECTIONS_INTERVAL).await;
            let (now, unix_ms) = (clock::now_ms_u32(), clock::unix_ms());
            self.rights.close_expired(unix_ms);
            for connection in self.outbound.hub.select(|c| now.wrapping_sub(c.last_heard_ms()) > limit_ms) {
                self.outbound.close(&connection, CloseCode::IdleTimeout);
            }
        }
    }

    async fn former_members_ended(&self, conversation: ConversationId) -> Answer {
        if self.sender.former_members_ended(conversation).await { Answer::Done } else { Answer::Failed }
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Atomic::Relaxed)
    }

    /// Asks every client to come back elsewhere, at a limited rate, and returns when all are gone or `limit` has
    /// passed.
    pub async fn drain(self: &Arc<Self>, limit: Duration) {
        self.draining.store(true, Atomic::Relaxed);
        self.deps.metrics.set(Gauge::Draining, 1);
        // Told at once, so that nobody is sent here any more; the announce loop repeats it.
        let _ = self.deps.backends.registry.announce(&self.entry()).await;
        let deadline = clock::instant() + limit;
        let batch = (self.config.drain_per_second / DRAINS_PER_SECOND).max(1) as usize;
        let mut empty_since = None;
        // Ends with this: what is not cleaned up by then ends by its time to live.
        let mut cleaning = FuturesUnordered::new();
        loop {
            let connections = self.outbound.hub.some(batch);
            let now = clock::instant();
            if now >= deadline {
                return;
            }
            if connections.is_empty() {
                let _ =
                    tokio::time::timeout_at(deadline.into(), async { while cleaning.next().await.is_some() {} }).await;
                // The device of a claim may have a connection elsewhere, whose server is to hear of the claim from this
                // one.
                let waited = now - *empty_since.get_or_insert(now);
                if !self.rights.has_claims_under_way() || waited >= CLAIMS_WAIT_MAX {
                    return;
                }
            } else {
                empty_since = None;
            }
            for connection in connections {
                self.outbound.send_elsewhere(&connection);
                // Engines that hang hold up nobody's word to leave.
                if let Some(was_last) = self.leave(&connection) {
                    cleaning.push(async move { self.clean_up(&connection, was_last).await });
                }
            }
            let pause = tokio::time::sleep(DRAIN_INTERVAL);
            let cleaned = async { while cleaning.next().await.is_some() {} };
            tokio::join!(pause, async { tokio::time::timeout(DRAIN_INTERVAL, cleaned).await.is_ok() });
        }
    }
}

#[async_trait]
impl PeerHandler for ChatServer {
    async fn handle(&self, call: Call) -> Answer {
        match call {
            Call::Deliver { conversation, message, sessions, frame } => {
                Answer::Accepted(self.delivery.deliver_to_sessions(conversation, message, &sessions, &frame).await)
            }
            Call::MembersChanged { conversation, members } => {
                if self.delivery.ignores_removals() {
                    return Answer::Done;
                }
                self.members.invalidate(conversation);
                if self.subscriptions.members_changed(conversation, members).await.is_err() {
                    return Answer::Failed;
                }
                // What a removed member has under way is stored before the removal is answered, or never.
                self.former_members_ended(conversation).await
            }
            Call::MemberGone { conversation, user } => {
                let is_subscribed = || self.subscriptions.has(conversation, user);
                if self.members.invalidate_if_member(conversation, user) || is_subscribed() {
                    // Not told when it happened: as if it happened now.
                    return self.handle(Call::MembersChanged { conversation, members: 0 }).await;
                }
                self.former_members_ended(conversation).await
            }
            Call::Replace { user, session } => {
                self.rights.replace(user, session);
                Answer::Done
            }
            Call::LogOut(token) => {
                self.polls.callers.invalidate(token);
                self.rights.log_out(token);
                Answer::Done
            }
            Call::Friends { a, b, friends } => {
                self.presence.friends_changed(a, b, friends).await;
                Answer::Done
            }
            Call::Beats(_) | Call::PresenceUntold(_) | Call::Metrics => Answer::WrongRole,
        }
    }
}

/// The identity that a connection gets from its token.
pub(crate) type Identity = auth::Claims;
