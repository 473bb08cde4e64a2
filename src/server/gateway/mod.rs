//! The gateway: one address for clients. Passes WebSockets on as bytes (L4) and HTTP as requests (L7).
//!
//! | file | what |
//! |---|---|
//! | `tunnel` | the L4 side: from the first line of a connection to a chat server, then bytes both ways |
//! | `proxy` | the L7 side: requests to the API server with the fewest under way |
//! | `stalled` | answers of servers that stop in the middle |
//! | `lost` | chat servers that hang: their tunnels are ended |
//! | `health` | whether the gateway itself is well |
//! | `polls` | L7, too: requests of clients without a socket, to the chat server that has their session |
//!
//! It keeps nothing: any gateway serves any client, and one that dies costs its clients a new connection.

mod health;
mod lost;
mod polls;
mod proxy;
mod stalled;
mod tunnel;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use self::lost::Led;
use self::proxy::{Connection, Proxy};
use super::access::places::{LEAVING_MAX, Places};
use super::access::seats::{HALF_OPEN_MIN, HalfOpen, LINGERING_MAX};
use super::cluster::peer::{self, NothingOfItsOwn, Peers};
use super::cluster::{self, Cluster};
use super::{Deps, FILES_RESERVED, Listeners, StartError, http};
use crate::backends::registry::{Role, ServerEntry};
use crate::protocol::ServerName;
use crate::runtime::{clock, machine, net};
use crate::telemetry::{Counter, Gauge};

/// How often the gauge of open connections is written.
const GAUGE_INTERVAL: Duration = Duration::from_millis(500);

/// Settings of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// WebSockets, and connections of clients that poll, that the gateway passes on at most; each takes two descriptors, and fewer
    /// are passed on where the process may not open so many.
    pub tunnels_max: usize,
    /// Of them, those of one address at most, which may be a load generator's or a balancer's.
    pub tunnels_per_address: usize,
    /// HTTP connections that the gateway holds at most; at most an eighth of the files that the process may open.
    pub http_connections_max: usize,
    /// Of them, those of one address at most.
    pub http_connections_per_address: usize,
    /// Time that a client has for the first line of a WebSocket upgrade.
    #[serde(with = "humantime_serde")]
    pub first_line_timeout: Duration,
    /// Largest request body: what the largest request of a server may have.
    pub body_bytes_max: usize,
    /// Tunnels ended per second while draining.
    pub drain_per_second: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tunnels_max: 100_000,
            tunnels_per_address: 100_000,
            http_connections_max: 10_000,
            http_connections_per_address: 5_000,
            first_line_timeout: Duration::from_secs(10),
            body_bytes_max: 256 << 10,
            drain_per_second: 2_000,
        }
    }
}

impl Config {
    /// The same, with no more connections than a number of files takes: of HTTP, those to the API servers and the reserve for
    /// probes and who is refused included; of tunnels two each; and of both half-open ones, a tenth as many, and those that were cut and go.
    fn within(self, files: usize) -> Self {
        let http_connections_max = self.http_connections_max.min(files / 8);
        let half_open = (http_connections_max / 10).max(HALF_OPEN_MIN);
        let leaving = 2 * LEAVING_MAX;
        let left = files.saturating_sub(2 * http_connections_max + half_open + http::RESERVE + LINGERING_MAX + leaving);
        let tunnels_max = self.tunnels_max.min((left / 21 * 10).min(left.saturating_sub(HALF_OPEN_MIN) / 2));
        Self { tunnels_max, http_connections_max, ..self }
    }
}

/// A running gateway.
pub struct Gateway {
    /// What the registry is told.
    name: ServerName,
    address: SocketAddr,
    peer: SocketAddr,
    epoch: u64,
    draining: AtomicBool,
    /// Leave for tunnels to end: nothing until the gateway drains.
    leave: Semaphore,
    deps: Deps,
    config: Config,
    cluster: Arc<Cluster>,
    peers: Peers,
    proxy: Proxy,
    led: Led,
    /// WebSockets passed on now, and connections of clients that poll. Written by the tunnels, read by the registry's entry.
    tunnels: AtomicU64,
}

/// Starts a gateway; it is announced when this returns. `listeners.clients` takes WebSockets, `http` takes requests.
///
/// # Errors
/// When the registry does not answer, or a listener is of no use.
pub async fn start(
    listeners: Listeners,
    http: TcpListener,
    deps: Deps,
    config: Config,
) -> Result<Arc<Gateway>, StartError> {
    let (address, peer) = (deps.reached_at(&listeners.clients)?, deps.reached_at(&listeners.peers)?);
    let wanted = config.clone();
    let config = config.within(machine::raise_open_files().saturating_sub(FILES_RESERVED) as usize);
    if config != wanted {
        let (tunnels, http) = (config.tunnels_max, config.http_connections_max);
        tracing::warn!(
            tunnels,
            http,
            "this process may open fewer files than gateway.tunnels_max needs: raise its limit"
        );
    }
    let gateway = Arc::new(Gateway {
        name: deps.name.clone(),
        address,
        peer,
        epoch: clock::unix_ms(),
        draining: AtomicBool::new(false),
        leave: Semaphore::new(0),
        cluster: Cluster::start(&deps).await,
        peers: Peers::new(&deps),
        proxy: Proxy::default(),
        led: Led::default(),
        tunnels: AtomicU64::new(0),
        config,
        deps: deps.clone(),
    });
    peer::serve(listeners.peers, &deps, Arc::new(NothingOfItsOwn));
    deps.tasks.spawn("gateway.tunnels", Arc::clone(&gateway).accept_tunnels(listeners.clients));
    deps.tasks.spawn("gateway.http", Arc::clone(&gateway).accept_requests(http));
    deps.tasks.spawn_until_stopped("gateway.gauges", Arc::clone(&gateway).write_gauges());
    deps.tasks.spawn_until_stopped("gateway.lost", Arc::clone(&gateway).look_for_lost());
    let announced = Arc::clone(&gateway);
    cluster::announce(&deps, move || announced.entry()).await?;
    Ok(gateway)
}

impl Gateway {
    /// Where it takes WebSockets.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it ends its tunnels, or stops.
    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed) || self.deps.tasks.is_stopped()
    }

    /// Returns when a tunnel is to end.
    async fn leave(&self) {
        self.leave.acquire().await.expect("it is never closed").forget();
    }

    /// The chat servers for a connection: the wanted one first, unless it drains, then those with the fewest connections.
    async fn chat_servers(&self, wanted: Option<&ServerName>) -> Vec<ServerEntry> {
        let mut servers = self.cluster.look_for(Role::Chat).await.to_vec();
        servers.sort_by_key(|s| (Some(&s.name) != wanted || s.draining, s.draining, self.cluster.load(s)));
        servers
    }

    fn entry(&self) -> ServerEntry {
        ServerEntry {
            name: self.name.clone(),
            role: Role::Gateway,
            address: self.address,
            peer: Some(self.peer),
            load: self.tunnels.load(Ordering::Relaxed),
            seats: 0,
            draining: self.draining.load(Ordering::Relaxed),
            epoch: self.epoch,
        }
    }

    /// Ends the tunnels at a limited rate, so that their clients come back elsewhere and not all at once; returns when all
    /// are gone or `limit` has passed. Clients see their connection end: a gateway looks into no frame, and writes none.
    pub async fn drain(&self, limit: Duration) {
        self.draining.store(true, Ordering::Relaxed);
        self.deps.metrics.set(Gauge::Draining, 1);
        // Told at once, so that nobody is sent here any more; the announce loop repeats it.
        let _ = self.deps.backends.registry.announce(&self.entry()).await;
        let deadline = clock::instant() + limit;
        let batch = (self.config.drain_per_second / 20).max(1) as usize;
        while self.tunnels.load(Ordering::Relaxed) > 0 && clock::instant() < deadline {
            // What the last batch left over is nobody's any more.
            self.leave.add_permits(batch.saturating_sub(self.leave.available_permits()));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Accepts WebSockets until the server stops. Inputs: the listener, the word to stop.
    async fn accept_tunnels(self: Arc<Self>, listener: TcpListener) {
        let half_open = HalfOpen::beside(self.config.tunnels_max);
        let places = Places::new(self.config.tunnels_max, self.config.tunnels_per_address);
        while let Some(stream) = self.accept(&listener).await {
            let (gateway, begun, places) = (Arc::clone(&self), half_open.admit().await, Arc::clone(&places));
            self.deps.tasks.spawn_until_stopped("gateway.tunnel", async move {
                gateway.tunnels.fetch_add(1, Ordering::Relaxed);
                gateway.deps.metrics.count(Counter::ConnectionsOpened);
                let _leaving = Leaving(Arc::clone(&gateway));
                tokio::select! {
                    () = tunnel::run(&gateway, stream, begun, &places) => {}
                    () = gateway.leave() => {}
                }
            });
        }
    }

    /// Accepts HTTP connections until the server stops. Inputs: the listener, the word to stop.
    async fn accept_requests(self: Arc<Self>, listener: TcpListener) {
        let room =
            Arc::new(http::Room::new(self.config.http_connections_max, self.config.http_connections_per_address));
        while let Some(stream) = self.accept(&listener).await {
            let admitted = tokio::select! {
                admitted = room.admit() => admitted,
                () = self.deps.tasks.stopped() => return,
            };
            let served = proxy::serve(Arc::clone(&self), stream, Connection::Api(Arc::clone(&room), admitted));
            self.deps.tasks.spawn("gateway.connection", served);
        }
    }

    /// The next connection; `None` when the server stops.
    async fn accept(&self, listener: &TcpListener) -> Option<TcpStream> {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.deps.tasks.stopped() => return None,
            };
            match accepted {
                Ok((stream, _)) => {
                    net::set_options(&stream);
                    return Some(stream);
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

    async fn write_gauges(self: Arc<Self>) {
        loop {
            self.deps.metrics.set(Gauge::Connections, self.tunnels.load(Ordering::Relaxed));
            tokio::time::sleep(GAUGE_INTERVAL).await;
        }
    }
}

/// Counts a tunnel out, also when its task is dropped.
struct Leaving(Arc<Gateway>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.tunnels.fetch_sub(1, Ordering::Relaxed);
        self.0.deps.metrics.count(Counter::ConnectionsClosed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_takes_no_more_connections_than_its_process_may_open_files() {
        for files in [0, 100, 700, 1_024, 4_096, 19_700, 100_000, 300_000, 1 << 40] {
            let config = Config::default().within(files);
            let (tunnels, http) = (config.tunnels_max, config.http_connections_max);
            let half_open = (tunnels / 10).max(HALF_OPEN_MIN) + (http / 10).max(HALF_OPEN_MIN);
            let needed = 2 * tunnels + half_open + 2 * http + http::RESERVE + LINGERING_MAX + 2 * LEAVING_MAX;
            assert!(needed <= files || tunnels == 0, "{needed} of {files}");
            assert!(tunnels <= Config::default().tunnels_max);
        }
        assert_eq!(Config::default().within(1 << 20), Config::default());
        assert!(Config::default().within(19_700).tunnels_max > 6_500, "most of it is for tunnels");
    }
}
