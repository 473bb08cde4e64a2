//! The presence server: decides who is online, and says so.
//!
//! A user is online from the first beat, and offline when no device has beaten for 30 s. Beats travel with their age, and the
//! store's clock dates them: what a server's clock says is of no matter. The thirty seconds are the debounce: a device that flaps
//! never shows. For 35 s after a start, and after the store's data or its clock have jumped, nobody is declared offline: the
//! beats of that time may have been lost with whoever held them (`calm`).

mod calm;
mod changes;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use self::calm::Calm;
use self::changes::{Changes, Untold, Ways};
use super::beats::BeatBuffer;
use super::cluster::peer::{self, Answer, Call, PeerHandler, Peers};
use super::cluster::placement::rendezvous;
use super::cluster::{self, Cluster};
use super::{Deps, StartError};
use crate::backends::BackendResult;
use crate::backends::error::Effect;
use crate::backends::presence::{Beat, LastBeat};
use crate::backends::registry::Role;
use crate::protocol::UserId;
use crate::protocol::frames::PresenceState;
use crate::protocol::limits::{OFFLINE_AFTER, PRESENCE_TTL};
use crate::runtime::{Tasks, clock};
use crate::telemetry::Counter;

/// How often silence is looked for.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);

/// Beats may be on their way this long; added to the silence, so that "30 s" is never early.
const BEAT_TRAVEL: Duration = Duration::from_millis(500);

/// How long beats of all chat servers are gathered: one call of the store takes what came meanwhile.
const GATHER: Duration = Duration::from_millis(50);

/// Beats in one call of the store; one that fails costs the others nothing.
const BEATS_AT_ONCE: usize = 500;

/// Users whose beats may wait for the store; a newer beat of a user replaces the older one.
const USERS_WAITING_MAX: usize = 2_000_000;

/// Users that are declared offline at the same time.
const EXPIRES_AT_ONCE: usize = 512;

/// Wait before beats are tried again that the store did not take.
const STORE_RETRY: Duration = Duration::from_millis(500);

/// Silent users in one page of a sweep, and declared offline in one sweep.
const SWEEP_USERS_MAX: usize = 10_000;

/// Pages of one sweep: another server's users, who may be many while it declares nobody offline, are read over.
const SWEEP_PAGES_MAX: usize = 10;

/// Changes in one call to another presence server.
const UNTOLD_PER_CALL: usize = 5_000;

/// How long a server that stops waits for the calls of the store that are under way. Source: the deadline of a call.
const LAST_CALLS: Duration = crate::backends::layers::DEADLINE;

/// Settings of a presence server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Silence after which a user is offline.
    #[serde(with = "humantime_serde")]
    pub offline_after: Duration,
    /// Time in which nobody is declared offline, after a start and after a jump of the store's data or clock.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { offline_after: OFFLINE_AFTER, grace: PRESENCE_TTL }
    }
}

/// A running presence server.
pub struct PresenceServer {
    deps: Deps,
    config: Config,
    cluster: Arc<Cluster>,
    /// Beats that are not stored yet. Written by peer calls, taken by the loop.
    waiting: BeatBuffer,
    changes: Changes,
}

/// What is kept from one sweep to the next.
struct Sweep {
    calm: Calm,
    /// Silent users of other servers that were read over: the next page begins behind them.
    skip: usize,
}

/// Changes that nobody has taken yet. Those that are left when it is dropped, which the limit of a stop may do at any
/// time, are counted as dropped.
struct Untaken<'a> {
    server: &'a PresenceServer,
    changes: usize,
}

impl Drop for Untaken<'_> {
    fn drop(&mut self) {
        let dropped = self.changes + self.server.changes.take_all().len();
        if dropped > 0 {
            tracing::warn!(dropped, "presence changes were told by nobody at the end");
            self.server.deps.metrics.add(Counter::PresenceChangesDropped, dropped as u64);
        }
    }
}

/// Starts a presence server; it is announced when this returns.
///
/// # Errors
/// When the registry does not answer, or the listener is of no use.
pub async fn start(listener: TcpListener, deps: Deps, config: Config) -> Result<SocketAddr, StartError> {
    let address = deps.reached_at(&listener)?;
    let cluster = Cluster::start(&deps).await;
    let server = Arc::new(PresenceServer {
        deps: deps.clone(),
        config,
        cluster,
        waiting: BeatBuffer::new(USERS_WAITING_MAX),
        changes: Changes::default(),
    });
    let handler: Arc<dyn PeerHandler> = Arc::clone(&server) as Arc<dyn PeerHandler>;
    peer::serve(listener, &deps, handler);
    server.start_loops();
    cluster::announce_as(Role::Presence, &deps, address, address, || 0).await?;
    Ok(address)
}

impl PresenceServer {
    /// Starts what finds changes and what publishes them; the latter ends last.
    fn start_loops(self: &Arc<Self>) {
        // Each finder has a sender, through which nothing is sent: they are gone when the finders have ended.
        let (finds, mut found) = tokio::sync::mpsc::channel::<std::convert::Infallible>(1);
        let (beating, sweeping) = (Arc::clone(self), Arc::clone(self));
        let has_ended = finds.clone();
        self.deps.tasks.spawn("presence.beat_loop", async move {
            beating.beat_loop().await;
            drop(has_ended);
        });
        self.deps.tasks.spawn("presence.sweep_loop", async move {
            sweeping.sweep_loop().await;
            drop(finds);
        });
        let publishing = Arc::clone(self);
        self.deps.tasks.spawn("presence.publish_loop", async move {
            // What waits when this task is dropped.
            let _untaken = Untaken { server: &publishing, changes: 0 };
            let backends = &publishing.deps.backends;
            let ways = Ways { store: &*backends.presence, log: &*backends.log };
            let finders_ended = async {
                publishing.deps.tasks.stopped().await;
                let _ = tokio::time::timeout(LAST_CALLS, found.recv()).await;
            };
            let left = publishing.changes.publish_loop(&ways, finders_ended).await;
            if !left.is_empty() {
                publishing.hand_over(&left).await;
            }
        });
    }

    /// Leaves it to other presence servers to tell what this one could not before its end. One that has failed once is
    /// asked no more: there is little time.
    async fn hand_over(&self, left: &[Untold]) {
        let mut untaken = Untaken { server: self, changes: left.len() };
        let servers = self.cluster.servers(Role::Presence);
        let mut others = servers.iter().filter(|server| server.name != self.deps.name);
        let mut other = others.next();
        // Links in the tasks of this server have ended.
        let tasks = Tasks::new();
        let peers = Peers::with(self.deps.name.clone(), Arc::clone(&self.deps.peer_keys), tasks.clone());
        for some in left.chunks(UNTOLD_PER_CALL) {
            let call = Call::PresenceUntold(some.to_vec());
            while let Some(server) = other {
                if matches!(peers.call(server, &call).await, Ok(Answer::Done)) {
                    untaken.changes -= some.len();
                    break;
                }
                other = others.next();
            }
        }
        tasks.stop();
        let taken = left.len() - untaken.changes;
        tracing::warn!(changes = left.len(), taken, "presence changes were left to other servers at the end");
    }

    /// Waits; returns whether the server goes on.
    async fn pause(&self, time: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = self.deps.tasks.stopped() => {}
        }
        !self.deps.tasks.is_stopped()
    }

    /// Puts beats where the loop takes them.
    fn gather(&self, beats: impl IntoIterator<Item = (UserId, u64)>) {
        self.deps.metrics.add(Counter::BeatsDropped, self.waiting.add(beats));
    }

    /// Stores what was gathered, also what is left at the end. Inputs: the clock, the word to stop.
    async fn beat_loop(&self) {
        let mut goes_on = true;
        while goes_on {
            goes_on = self.pause(GATHER).await;
            let gathered = self.waiting.take();
            if gathered.is_empty() {
                continue;
            }
            let beats: Vec<(UserId, u64)> = gathered.into_iter().collect();
            let mut is_failing = false;
            for beats in beats.chunks(BEATS_AT_ONCE) {
                if let Err(error) = self.store(beats).await {
                    tracing::warn!(%error, "beats were not stored, they are tried again");
                    self.gather(beats.iter().copied());
                    is_failing = true;
                    if self.deps.tasks.is_stopped() {
                        return;
                    }
                }
            }
            if is_failing {
                goes_on = goes_on && self.pause(STORE_RETRY).await;
            }
        }
    }

    /// Stores beats, and has told who came online; beats don't wait for a log that is slow.
    async fn store(&self, beats: &[(UserId, u64)]) -> BackendResult<()> {
        let now_us = clock::now_us();
        let beats: Vec<Beat> = beats
            .iter()
            .map(|(user, at_us)| Beat { user: *user, age_ms: now_us.saturating_sub(*at_us) / 1_000 })
            .collect();
        let came_online = match self.deps.backends.presence.beat(&beats).await {
            Ok(came_online) => came_online,
            Err(error) => {
                if error.effect == Effect::Unknown {
                    // The next try finds them online already, if this one was done.
                    let users = beats.iter().map(|beat| LastBeat { user: beat.user, at_ms: 0 });
                    self.count_dropped(self.changes.doubt(users, PresenceState::Online));
                }
                return Err(error);
            }
        };
        self.changes.answered(now_us);
        if !came_online.is_empty() {
            self.deps.metrics.add(Counter::PresenceOnline, came_online.len() as u64);
            self.count_dropped(self.changes.note(&came_online, PresenceState::Online));
        }
        Ok(())
    }

    fn count_dropped(&self, dropped: usize) {
        if dropped > 0 {
            self.deps.metrics.add(Counter::PresenceChangesDropped, dropped as u64);
            tracing::error!(dropped, "too many presence changes wait for the log");
        }
    }

    /// Looks for silence. Inputs: the clock, the word to stop.
    async fn sweep_loop(&self) {
        let mut sweep = Sweep { calm: Calm::new(self.config.grace), skip: 0 };
        while self.pause(SWEEP_INTERVAL).await {
            if let Err(error) = self.sweep(&mut sweep).await {
                tracing::warn!(%error, "looking for silent users failed");
            }
        }
    }

    /// Declares silent users offline, page by page until it has as many as it may or has seen all.
    async fn sweep(&self, sweep: &mut Sweep) -> BackendResult<()> {
        let silence_ms = (self.config.offline_after + BEAT_TRAVEL).as_millis() as u64;
        let mut mine_all = 0;
        for _ in 0..SWEEP_PAGES_MAX {
            let began_us = clock::now_us();
            let silent = self.deps.backends.presence.silent(silence_ms, sweep.skip, SWEEP_USERS_MAX).await?;
            self.changes.answered(began_us);
            if let Some(what) = sweep.calm.note(clock::now_us(), silent.now_ms, &silent.life) {
                tracing::warn!("{what}: nobody is declared offline for {:?}", self.config.grace);
            }
            if !sweep.calm.is_over(clock::now_us()) {
                sweep.skip = 0;
                return Ok(());
            }
            let is_last = silent.users.len() < SWEEP_USERS_MAX;
            let (mine, others): (Vec<LastBeat>, Vec<LastBeat>) =
                silent.users.into_iter().partition(|last| self.owns(last.user));
            // Those of this server are gone from the page then, so that the others move up.
            sweep.skip = if is_last { 0 } else { sweep.skip + others.len() };
            mine_all += mine.len();
            let expired = futures_util::stream::iter(mine.into_iter().map(|last| self.expire(last)))
                .buffer_unordered(EXPIRES_AT_ONCE);
            // To the end also where one fails: a user who was declared offline must be told of.
            expired.fold(Ok(()), |first, result| std::future::ready(first.and(result))).await?;
            if is_last || mine_all >= SWEEP_USERS_MAX {
                break;
            }
        }
        Ok(())
    }

    async fn expire(&self, last: LastBeat) -> BackendResult<()> {
        match self.deps.backends.presence.expire(&last).await {
            Ok(true) => {
                self.deps.metrics.count(Counter::PresenceOffline);
                self.count_dropped(self.changes.note(&[last], PresenceState::Offline));
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(error) => {
                if error.effect == Effect::Unknown {
                    // No sweep finds the user any more, if this was done.
                    self.count_dropped(self.changes.doubt([last], PresenceState::Offline));
                }
                Err(error)
            }
        }
    }

    /// Whether this server is the one to speak of a user. Only saves work: the store lets one caller expire a user.
    fn owns(&self, user: UserId) -> bool {
        let servers = self.cluster.servers(Role::Presence);
        let owner = servers.iter().max_by_key(|s| rendezvous(&s.name, user.0));
        owner.is_none_or(|owner| owner.name == self.deps.name)
    }
}

#[async_trait]
impl PeerHandler for PresenceServer {
    async fn handle(&self, call: Call) -> Answer {
        match call {
            Call::Beats(beats) => {
                let now_us = clock::now_us();
                let at_us = |age_ms: u64| now_us.saturating_sub(age_ms.saturating_mul(1_000));
                self.gather(beats.into_iter().map(|(user, age_ms)| (user, at_us(age_ms))));
                Answer::Done
            }
            Call::PresenceUntold(untold) => {
                self.count_dropped(self.changes.take_over(&untold));
                Answer::Done
            }
            _ => Answer::WrongRole,
        }
    }
}
