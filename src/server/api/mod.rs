//! The API server: accounts, friends, groups, placement, sync, health and metrics, over HTTP/1.1 and JSON.

mod accounts;
mod conversations;
mod extract;
mod health;
mod logins;
mod names;
mod sync;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post};
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use uuid::Uuid;

use super::access::auth::{PasswordCost, Passwords};
use super::access::callers::Callers;
use super::access::members::Members;
use super::access::rate::Buckets;
use super::access::seats::Begun;
use super::cluster::peer::{self, Answer, Call, PeerHandler, Peers};
use super::cluster::placement::Placement;
use super::cluster::probe::FailureDetector;
use super::cluster::readiness::Readiness;
use super::cluster::{self, Cluster};
use super::http::page::{GatheredPage, LocalPage};
use super::http::pages::Pages;
use super::http::status::{self, Failure};
use super::ordering::Ordering;
use super::{Deps, Listeners, StartError, http};
use crate::backends::registry::Role;
use crate::protocol::ErrorCode;
use crate::runtime::{Backoff, clock};
use crate::telemetry::{Counter, Timer};

/// Largest request body.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Time for a request; past it the answer is `unavailable`. Source: invariant I9, 5 s.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(4_800);

/// How long a change of members may wait for servers that do not answer.
const BROADCAST_TIMEOUT: Duration = Duration::from_millis(4_300);

/// Longest that a registry may take before the servers are told whom it named last.
const REGISTRY_WAIT: Duration = Duration::from_millis(500);

/// First wait before a server that did not confirm a change is asked again, and the longest.
const BROADCAST_RETRY: Duration = Duration::from_millis(100);
const BROADCAST_RETRY_MAX: Duration = Duration::from_millis(800);

/// How long a change is told of behind its answer: longer than it takes until a server that does not answer counts as gone.
const TELL_MAX: Duration = Duration::from_secs(25);

/// Changes that are told of behind their answers at once.
const LATE_TELLS_MAX: usize = 256;

/// How often tokens that were logged out and have expired since are removed from the directory.
const PURGE_INTERVAL: Duration = Duration::from_mins(10);

/// Addresses and tokens whose requests are counted.
const ACCOUNTS_MAX: usize = 100_000;

/// Settings of an API server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How users are placed on chat servers.
    pub placement: Placement,
    /// Cost of a password hash.
    pub password_cost: PasswordCost,
    /// Logins per second for one name from one address, over ten seconds.
    pub logins_per_second: u32,
    /// Signups per second from one address, over ten seconds; no limit where `bulk_accounts` is on.
    pub signups_per_second: u32,
    /// Requests per second of one account, over ten seconds.
    pub requests_per_second: u32,
    /// Whether `POST /accounts` makes many accounts at once: for stacks that are only there for a test.
    pub bulk_accounts: bool,
    /// Connections that the server holds at most.
    pub connections_max: usize,
    /// Of them, those of one address at most, which may be a gateway's or a balancer's.
    pub connections_per_address: usize,
    /// WebSocket address of a balancer in front of the chat servers, such as `ws://chat.example.com:443/ws`, which clients
    /// are sent to instead; the name of their server is put behind it as a path. A gateway of the stack needs no setting.
    pub public_chat_url: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            placement: Placement::default(),
            password_cost: PasswordCost::default(),
            logins_per_second: 1,
            signups_per_second: 100,
            requests_per_second: 100,
            bulk_accounts: false,
            connections_max: 10_000,
            connections_per_address: 10_000,
            public_chat_url: None,
        }
    }
}

/// A running API server; the state of every handler.
pub(crate) struct ApiServer {
    deps: Deps,
    config: Config,
    cluster: Arc<Cluster>,
    detector: Arc<FailureDetector>,
    peers: Peers,
    members: Members,
    callers: Callers,
    ordering: Ordering,
    passwords: Passwords,
    logins: logins::Logins,
    /// Signups from each address.
    signups: Buckets<IpAddr>,
    /// Logouts of each token.
    logouts: Buckets<Uuid>,
    pages: Pages,
    readiness: Readiness,
    metrics_page: LocalPage,
    cluster_page: GatheredPage,
    /// Changes that may be told of behind their answers.
    late_tells: Semaphore,
}

type App = State<Arc<ApiServer>>;

/// Starts an API server; it is announced when this returns.
///
/// # Errors
/// When the registry does not answer, the listener is of no use, or the password cost is not valid.
pub async fn start(listeners: Listeners, deps: Deps, config: Config) -> Result<SocketAddr, StartError> {
    let (address, peer) = (deps.reached_at(&listeners.clients)?, deps.reached_at(&listeners.peers)?);
    let server = Arc::new(ApiServer::new(deps.clone(), config).await?);
    let room = http::Room::new(server.config.connections_max, server.config.connections_per_address);
    peer::serve(listeners.peers, &deps, Arc::clone(&server) as Arc<dyn PeerHandler>);
    deps.tasks.spawn("api.accept", accept_loop(listeners.clients, router(&server), deps.clone(), room));
    deps.tasks.spawn_until_stopped("api.purge_revoked", purge_revoked(deps.clone()));
    cluster::announce_as(Role::Api, &deps, address, peer, || 0).await?;
    Ok(address)
}

fn router(server: &Arc<ApiServer>) -> Router {
    Router::new()
        .route("/signup", post(accounts::signup))
        .route("/accounts", post(accounts::bulk))
        .route("/login", post(accounts::login))
        .route("/logout", post(accounts::logout))
        .route("/placement", get(accounts::placement))
        .route("/me", get(accounts::me))
        .route("/me", patch(accounts::change_me))
        .route("/users", get(accounts::find_user))
        .route("/users/{user}", get(accounts::user))
        .route("/friends", get(accounts::friends))
        .route("/friends", post(accounts::add_friend))
        .route("/friends/{user}", delete(accounts::remove_friend))
        .route("/conversations", get(conversations::list))
        .route("/conversations", post(conversations::create))
        .route("/conversations/{conversation}", get(conversations::get))
        .route("/conversations/{conversation}/members", get(conversations::members))
        .route("/conversations/{conversation}/members", post(conversations::add_members))
        .route("/conversations/{conversation}/members/{user}", delete(conversations::remove_member))
        .route("/conversations/{conversation}/receipts", get(conversations::receipts))
        .route("/messages/sync", get(sync::messages))
        .route("/inbox/sync", get(sync::inbox))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/health/engines", get(health::ready))
        .route("/metrics", get(health::metrics))
        .route("/metrics/cluster", get(health::cluster_metrics))
        .fallback(|| async { Failure::new(ErrorCode::NotFound, "there is nothing at this path, see docs/protocol.md") })
        .method_not_allowed_fallback(|| async { status::method_not_allowed() })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(Arc::clone(server), around))
        .with_state(Arc::clone(server))
}

/// Counts, times and bounds each request.
async fn around(State(server): App, request: Request, next: Next) -> Response {
    let started = clock::now_us();
    let answer = tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await;
    let response = answer.unwrap_or_else(|_| {
        Failure::retry_later(ErrorCode::Unavailable, "an engine did not answer in time", 1_000).into_response()
    });
    let metrics = &server.deps.metrics;
    metrics.count(Counter::HttpRequests);
    metrics.time_us(Timer::Http, clock::now_us() - started);
    if response.status().is_server_error() {
        metrics.count(Counter::HttpServerErrors);
    }
    response
}

/// Removes logged-out tokens that have expired. Inputs: the clock.
async fn purge_revoked(deps: Deps) {
    loop {
        tokio::time::sleep(PURGE_INTERVAL).await;
        // What fails now is done the next time, by this server or another; the port's layer counts it.
        let _ = deps.backends.directory.purge_revoked().await;
    }
}

/// Accepts until the server stops. Inputs: the listener, the word to stop.
async fn accept_loop(listener: TcpListener, router: Router, deps: Deps, room: http::Room) {
    let room = Arc::new(room);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = deps.tasks.stopped() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let admitted = tokio::select! {
                    admitted = room.admit() => admitted,
                    () = deps.tasks.stopped() => return,
                };
                let served = serve(stream, router.clone(), deps.clone(), Arc::clone(&room), admitted);
                deps.tasks.spawn("api.connection", served);
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Serves one connection.
async fn serve(stream: TcpStream, router: Router, deps: Deps, room: Arc<http::Room>, admitted: Begun) {
    let Ok(peer) = stream.peer_addr() else { return };
    let router = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |mut request: Request| {
        request.extensions_mut().insert(extract::ConnectedFrom(peer.ip()));
        hyper::service::Service::call(&router, request)
    });
    if http::serve_in(&room, admitted, stream, deps.tasks, service).await.is_err() {
        deps.metrics.count(Counter::ConnectionsDropped);
    }
}

#[async_trait]
impl PeerHandler for ApiServer {
    async fn handle(&self, call: Call) -> Answer {
        match call {
            Call::MembersChanged { conversation, .. } => self.members.invalidate(conversation),
            Call::MemberGone { conversation, user } => {
                self.members.invalidate_if_member(conversation, user);
            }
            Call::LogOut(token) => self.callers.invalidate(token),
            _ => return Answer::WrongRole,
        }
        Answer::Done
    }
}

impl ApiServer {
    /// A server that serves nobody yet.
    async fn new(deps: Deps, config: Config) -> Result<Self, StartError> {
        let passwords = Passwords::new(config.password_cost)
            .map_err(|reason| StartError::Config { setting: "api.password_cost", reason })?;
        Ok(Self {
            cluster: Cluster::start(&deps).await,
            detector: FailureDetector::new(deps.tasks.clone()),
            peers: Peers::new(&deps),
            members: Members::new(Arc::clone(&deps.backends.directory)),
            callers: Callers::new(Arc::clone(&deps.backends.directory), config.requests_per_second),
            ordering: Ordering::new(&deps.backends, &deps.metrics),
            passwords,
            logins: logins::Logins::new(config.logins_per_second),
            signups: Buckets::new(config.signups_per_second, ACCOUNTS_MAX),
            logouts: Buckets::new(1, ACCOUNTS_MAX),
            pages: Pages::default(),
            metrics_page: LocalPage::default(),
            cluster_page: GatheredPage::default(),
            late_tells: Semaphore::new(LATE_TELLS_MAX),
            // Nothing of it is needed to talk.
            readiness: Readiness::but_for(&["media"]),
            config,
            deps,
        })
    }

    /// Makes a change and tells of it, to the end also where its client hangs up meanwhile: one that is stored but told to
    /// nobody would leave rights with those who lost them.
    async fn carry_out<T, F, C>(self: &Arc<Self>, change: C) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send,
        C: FnOnce(Arc<Self>) -> F + Send + 'static,
    {
        let (done, result) = oneshot::channel();
        let server = Arc::clone(self);
        self.deps.tasks.spawn("api.change", async move {
            // Nobody may wait any more.
            let _ = done.send(change(server).await);
        });
        result.await.unwrap_or_else(|_| Err(Failure::new(ErrorCode::Internal, "the change was given up")))
    }

    /// Has every server of some roles that may have connections do something, and returns when each of them did.
    ///
    /// A server that does not answer is asked again, with a backoff, until it does, or until it is gone: nobody listens there, or
    /// the registry has not named it for a while. That goes on behind an answer that could not wait for it.
    async fn tell(self: &Arc<Self>, roles: &'static [Role], call: Call) -> Result<(), Failure> {
        let (mut done, told) = oneshot::channel();
        let server = Arc::clone(self);
        self.deps.tasks.spawn("api.tell", async move {
            let is_told = tokio::select! {
                () = server.tell_all(roles, &call) => true,
                () = server.telling_ends(&mut done) => false,
            };
            if is_told {
                let _ = done.send(());
            } else {
                server.deps.metrics.count(Counter::ChangesUntold);
                tracing::warn!(?call, "a server that did not answer was not told of this change");
            }
        });
        let message = "the change is stored, but not every server has confirmed it: repeat the request";
        let unconfirmed = || Failure::retry_later(ErrorCode::Unavailable, message, 1_000);
        let told = tokio::time::timeout(BROADCAST_TIMEOUT, told).await.map_err(|_| unconfirmed())?;
        told.map_err(|_| unconfirmed())
    }

    /// Returns when a change that its client does not wait for is told no further: after a while, when the server stops, or when
    /// many others are told already.
    async fn telling_ends(&self, done: &mut oneshot::Sender<()>) {
        done.closed().await;
        let Ok(_turn) = self.late_tells.try_acquire() else { return };
        tokio::select! {
            () = tokio::time::sleep(TELL_MAX) => {}
            () = self.deps.tasks.stopped() => {}
        }
    }

    /// The same, for as long as it takes.
    async fn tell_all(&self, roles: &[Role], call: &Call) {
        let mut backoff = Backoff::new(BROADCAST_RETRY, BROADCAST_RETRY_MAX);
        let mut told = std::collections::HashSet::new();
        loop {
            // One that hangs leaves the last view in force.
            let _ = tokio::time::timeout(REGISTRY_WAIT, self.cluster.refresh()).await;
            let present: Option<Vec<_>> = roles.iter().map(|role| self.cluster.present(*role)).collect();
            // Where the registry could never be read nobody knows who is there.
            let is_known = present.is_some();
            let servers = present.unwrap_or_default().into_iter().flatten();
            let waiting: Vec<_> = servers.filter(|s| !told.contains(&(s.name.clone(), s.epoch))).collect();
            if waiting.is_empty() && is_known {
                return;
            }
            let calls = waiting.iter().map(|server| async {
                let is_done = match self.peers.call(server, call).await {
                    Ok(answer) => answer != Answer::Failed,
                    Err(error) => error.is_gone,
                };
                is_done.then(|| (server.name.clone(), server.epoch))
            });
            let confirmed: Vec<_> = futures_util::future::join_all(calls).await.into_iter().flatten().collect();
            let is_incomplete = !is_known || confirmed.len() < waiting.len();
            told.extend(confirmed);
            if is_incomplete {
                let wait = backoff.next_wait(&mut rand::rng());
                tokio::time::sleep(wait).await;
            }
        }
    }
}
