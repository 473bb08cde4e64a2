//! Who else is there: a view of the registry that a server refreshes, and its own entry in it.
//!
//! | file | what |
//! |---|---|
//! | `peer` | how servers talk to each other |
//! | `placement` | which chat server a user is sent to |
//! | `probe` | failure detector: a client's report triggers a probe of a server |
//! | `readiness` | whether a server can do its work now |

pub mod peer;
pub mod placement;
pub(super) mod probe;
pub(super) mod readiness;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_util::future::join_all;

use self::placement::LOAD_SLACK;
use crate::backends::registry::{Registry, Role, ServerEntry};
use crate::protocol::ServerName;
use crate::runtime::clock;
use crate::server::Deps;

/// How often the view is read and the own entry announced in a small deployment.
pub const REFRESH_INTERVAL: Duration = Duration::from_millis(500);

/// Servers up to which the view is read every [`REFRESH_INTERVAL`]; twice as many make it twice as long.
const SERVERS_PER_REFRESH: usize = 6;

/// Looks at the own entry between two announcements of one that has hardly changed: four of these fit the life of an entry.
const LOOKS_PER_ANNOUNCEMENT: u32 = 2;

/// Longest time between two reads of the registry: within the life of an entry.
const REFRESH_INTERVAL_MAX: Duration = Duration::from_millis(2_500);

/// How long a server counts as present that the registry has left out: it may be cut off from the registry alone, with its
/// connections alive, for as long as its clients bear its silence.
const MISSING_KEPT: Duration = Duration::from_secs(15);

/// Longest that a stopping server may take to leave the registry.
const WITHDRAW_TIMEOUT: Duration = Duration::from_secs(1);

/// Shortest time between two looks for a server that is not in the view.
const LOOK_UP_EVERY: Duration = Duration::from_millis(50);

/// The live servers, as this server last read them. A registry that does not answer leaves the last view in force.
pub struct Cluster {
    registry: Arc<dyn Registry>,
    /// Has a role from when it could first be read.
    view: ArcSwap<HashMap<Role, Arc<Vec<ServerEntry>>>>,
    /// Servers that the registry has left out, each with when that was first seen. Written by refreshes.
    missing: Mutex<HashMap<(ServerName, u64), (ServerEntry, Instant)>>,
    /// Refreshes that have begun, and the youngest of those that came to their end.
    refreshes: AtomicU64,
    newest: Mutex<u64>,
    /// Users that this server placed since the view was read. Written by placement, cleared by a refresh.
    placed: Mutex<HashMap<ServerName, u64>>,
    /// When the registry was last asked for a server that was missed. Held by the look-up under way; others wait for it.
    looked_up_us: tokio::sync::Mutex<Option<u64>>,
}

impl Cluster {
    /// Reads the registry once and keeps reading it in a task of the server.
    pub async fn start(deps: &Deps) -> Arc<Self> {
        let cluster = Arc::new(Self::of(Arc::clone(&deps.backends.registry)));
        cluster.refresh().await;
        let task = Arc::clone(&cluster);
        deps.tasks.spawn_until_stopped("cluster.refresh", async move {
            loop {
                let servers = task.view.load().values().map(|servers| servers.len()).sum();
                tokio::time::sleep(refresh_interval(servers)).await;
                task.refresh().await;
            }
        });
        cluster
    }

    fn of(registry: Arc<dyn Registry>) -> Self {
        Self {
            registry,
            view: ArcSwap::default(),
            missing: Mutex::default(),
            refreshes: AtomicU64::default(),
            newest: Mutex::default(),
            placed: Mutex::default(),
            looked_up_us: tokio::sync::Mutex::default(),
        }
    }

    /// Reads the registry now: all roles at once. Given up at any time it changes nothing.
    pub async fn refresh(&self) {
        let begun = self.refreshes.fetch_add(1, Ordering::Relaxed) + 1;
        let lists = Role::ALL.map(|role| async move { (role, self.registry.list(role).await) });
        let lists = join_all(lists).await;
        let mut newest = self.newest.lock().expect("no panic while held");
        if *newest > begun {
            // One that began later has a younger view.
            return;
        }
        *newest = begun;
        let before = self.view.load();
        let mut view = HashMap::clone(&before);
        for (role, servers) in lists {
            let Ok(servers) = servers else { continue };
            let known = before.get(&role).map_or(&[][..], |servers| servers.as_slice());
            self.note_missing(known, &servers);
            view.insert(role, Arc::new(servers));
        }
        self.view.store(Arc::new(view));
        self.placed.lock().expect("no panic while held").clear();
    }

    /// Keeps those whom the registry leaves out, for a while, and forgets those whom it names.
    fn note_missing(&self, before: &[ServerEntry], now: &[ServerEntry]) {
        let mut missing = self.missing.lock().expect("no panic while held");
        let at = clock::instant();
        for entry in before {
            missing.entry((entry.name.clone(), entry.epoch)).or_insert_with(|| (entry.clone(), at));
        }
        for entry in now {
            missing.remove(&(entry.name.clone(), entry.epoch));
        }
        missing.retain(|_, (_, since)| at.saturating_duration_since(*since) < MISSING_KEPT);
    }

    /// The servers of a role that may have connections: those that the registry names, and those that it left out a while ago.
    /// `None` while the registry could never be read.
    #[must_use]
    pub fn present(&self, role: Role) -> Option<Vec<ServerEntry>> {
        let mut servers = self.view.load().get(&role)?.to_vec();
        let missing = self.missing.lock().expect("no panic while held");
        servers.extend(missing.values().map(|(entry, _)| entry).filter(|entry| entry.role == role).cloned());
        Some(servers)
    }

    /// The live servers of a role.
    #[must_use]
    pub fn servers(&self, role: Role) -> Arc<Vec<ServerEntry>> {
        self.view.load().get(&role).cloned().unwrap_or_default()
    }

    /// One live server.
    #[must_use]
    pub fn find(&self, role: Role, name: &ServerName) -> Option<ServerEntry> {
        self.servers(role).iter().find(|s| s.name == *name).cloned()
    }

    /// One live server; when it is not in the view, the registry is asked again, but not more often than every 50 ms.
    pub async fn look_up(&self, role: Role, name: &ServerName) -> Option<ServerEntry> {
        if let Some(found) = self.find(role, name) {
            return Some(found);
        }
        self.refresh_for_look_up().await;
        self.find(role, name)
    }

    /// The live servers of a role; when the view has none, the registry is asked again, but not more often than every 50 ms.
    pub async fn look_for(&self, role: Role) -> Arc<Vec<ServerEntry>> {
        if self.servers(role).is_empty() {
            self.refresh_for_look_up().await;
        }
        self.servers(role)
    }

    async fn refresh_for_look_up(&self) {
        let asked_us = clock::now_us();
        let mut last_us = self.looked_up_us.lock().await;
        // Whoever waited for another's look-up has its answer.
        if last_us.is_none_or(|last| asked_us.saturating_sub(last) >= LOOK_UP_EVERY.as_micros() as u64) {
            self.refresh().await;
            *last_us = Some(clock::now_us());
        }
    }

    /// A server's load with what was placed on it since.
    #[must_use]
    pub fn load(&self, server: &ServerEntry) -> u64 {
        let placed = self.placed.lock().expect("no panic while held");
        server.load + placed.get(&server.name).copied().unwrap_or(0)
    }

    /// Remembers that a user was sent to a server.
    pub fn note_placed(&self, server: &ServerName) {
        *self.placed.lock().expect("no panic while held").entry(server.clone()).or_default() += 1;
    }
}

/// Time between two reads of the registry, for a number of servers. Every server reads all entries, so that the work grows
/// with the square of their number; a view that is a second older costs nothing but a worse guess of loads.
#[must_use]
pub fn refresh_interval(servers: usize) -> Duration {
    (REFRESH_INTERVAL * (servers / SERVERS_PER_REFRESH) as u32).clamp(REFRESH_INTERVAL, REFRESH_INTERVAL_MAX)
}

/// [`announce`] for a server that never drains; `load` is asked for its connections each time.
///
/// # Errors
/// When the first announcement fails.
pub async fn announce_as(
    role: Role,
    deps: &Deps,
    address: SocketAddr,
    peer: SocketAddr,
    load: impl Fn() -> u64 + Send + Sync + 'static,
) -> crate::backends::BackendResult<()> {
    let (name, epoch) = (deps.name.clone(), clock::unix_ms());
    let current = move || ServerEntry {
        name: name.clone(),
        role,
        address,
        peer: Some(peer),
        load: load(),
        seats: 0,
        draining: false,
        epoch,
    };
    announce(deps, current).await
}

/// Whether others would place users differently if they knew: a load is news when it has moved by a sixteenth and by more than
/// a handful of connections.
fn is_news(told: &ServerEntry, entry: &ServerEntry) -> bool {
    told.draining != entry.draining || told.load.abs_diff(entry.load) > LOAD_SLACK + told.load / 16
}

/// Enters a server in the registry and keeps its entry fresh; `current` is asked for the figures each time. The entry goes
/// when the server's tasks are told to stop.
///
/// # Errors
/// When the first announcement fails: a server that nobody can find is of no use.
pub async fn announce(
    deps: &Deps,
    current: impl Fn() -> ServerEntry + Send + Sync + 'static,
) -> crate::backends::BackendResult<()> {
    deps.backends.registry.announce(&current()).await?;
    let registry = Arc::clone(&deps.backends.registry);
    let tasks = deps.tasks.clone();
    deps.tasks.spawn("cluster.announce", async move {
        let announce = async {
            let (mut told, mut looks) = (current(), 0);
            loop {
                tokio::time::sleep(REFRESH_INTERVAL).await;
                let entry = current();
                looks += 1;
                if looks >= LOOKS_PER_ANNOUNCEMENT || is_news(&told, &entry) {
                    // A registry outage never ends a server: its entry comes back with the registry.
                    let _ = registry.announce(&entry).await;
                    (told, looks) = (entry, 0);
                }
            }
        };
        tokio::select! {
            () = announce => {}
            () = tasks.stopped() => {
                // An entry that stays behind ends by its time to live.
                let entry = current();
                let _ = tokio::time::timeout(WITHDRAW_TIMEOUT, registry.withdraw(&entry.name, entry.epoch)).await;
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::backends::BackendResult;
    use crate::backends::registry::EmbeddedRegistry;

    /// Takes a while to answer.
    struct Slow(EmbeddedRegistry);

    #[async_trait]
    impl Registry for Slow {
        async fn announce(&self, entry: &ServerEntry) -> BackendResult<()> {
            self.0.announce(entry).await
        }

        async fn withdraw(&self, name: &ServerName, epoch: u64) -> BackendResult<()> {
            self.0.withdraw(name, epoch).await
        }

        async fn list(&self, role: Role) -> BackendResult<Vec<ServerEntry>> {
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.0.list(role).await
        }
    }

    fn entry(name: &str, role: Role, epoch: u64) -> ServerEntry {
        ServerEntry {
            name: name.parse().expect("valid"),
            role,
            address: "127.0.0.1:1".parse().expect("valid"),
            peer: None,
            load: 0,
            seats: 0,
            draining: false,
            epoch,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_left_out_of_the_registry_counts_as_present_for_a_while_and_a_later_life_is_another_server() {
        let registry = Arc::new(EmbeddedRegistry::default());
        let cluster = Cluster::of(Arc::clone(&registry) as Arc<dyn Registry>);
        assert_eq!(cluster.present(Role::Chat), None, "it was never read");
        let [one, two] = [entry("chat-1", Role::Chat, 1), entry("chat-2", Role::Chat, 1)];
        for entry in [&one, &two, &entry("api-1", Role::Api, 1)] {
            registry.announce(entry).await.expect("announces");
        }
        let present = async || {
            cluster.refresh().await;
            let mut present = cluster.present(Role::Chat).expect("it was read");
            present.sort_by_key(|entry| (entry.name.clone(), entry.epoch));
            present
        };
        assert_eq!(present().await, [one.clone(), two.clone()]);
        registry.withdraw(&one.name, 1).await.expect("withdraws");
        assert_eq!(present().await, [one.clone(), two.clone()]);
        assert_eq!(cluster.servers(Role::Chat).as_slice(), std::slice::from_ref(&two), "nobody is sent there");
        let again = entry("chat-1", Role::Chat, 2);
        registry.announce(&again).await.expect("announces");
        assert_eq!(present().await, [one, again.clone(), two.clone()]);
        tokio::time::advance(MISSING_KEPT).await;
        registry.announce(&two).await.expect("announces");
        registry.announce(&again).await.expect("announces");
        assert_eq!(present().await, [again, two]);
    }

    #[tokio::test]
    async fn a_server_that_just_came_is_found_by_everyone_who_looks_for_it_at_once() {
        let registry = Arc::new(Slow(EmbeddedRegistry::default()));
        let cluster = Cluster::of(Arc::clone(&registry) as Arc<dyn Registry>);
        let entry = entry("api-1", Role::Api, 1);
        registry.announce(&entry).await.expect("announces");
        let looks = (0..10).map(|_| cluster.look_for(Role::Api));
        for found in futures_util::future::join_all(looks).await {
            assert_eq!(found.as_slice(), std::slice::from_ref(&entry));
        }
    }
}
