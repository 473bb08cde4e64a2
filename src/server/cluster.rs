//! Who else is there: a view of the registry that a server refreshes, and its own entry in it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::Deps;
use crate::backends::registry::{Registry, Role, ServerEntry};
use crate::protocol::ServerName;
use crate::runtime::clock;

/// How often the view is read and the own entry announced in a small deployment.
pub const REFRESH_INTERVAL: Duration = Duration::from_millis(500);

/// Servers up to which the view is read every [`REFRESH_INTERVAL`]; twice as many make it twice as long.
const SERVERS_PER_REFRESH: usize = 6;

/// Looks at the own entry between two announcements of one that has hardly changed: four of these fit the life of an entry.
const LOOKS_PER_ANNOUNCEMENT: u32 = 2;

/// Longest time between two reads of the registry: within the life of an entry.
const REFRESH_INTERVAL_MAX: Duration = Duration::from_millis(2_500);

/// Longest that a stopping server may take to leave the registry.
const WITHDRAW_TIMEOUT: Duration = Duration::from_secs(1);

/// Shortest time between two looks for a server that is not in the view.
const LOOK_UP_EVERY: Duration = Duration::from_millis(50);

/// The live servers, as this server last read them. A registry that does not answer leaves the last view in force.
pub struct Cluster {
    registry: Arc<dyn Registry>,
    view: ArcSwap<HashMap<Role, Arc<Vec<ServerEntry>>>>,
    /// Users that this server placed since the view was read. Written by placement, cleared by a refresh.
    placed: Mutex<HashMap<ServerName, u64>>,
    /// When a server was missed last. Written by look-ups.
    looked_up_us: AtomicU64,
}

impl Cluster {
    /// Reads the registry once and keeps reading it in a task of the server.
    pub async fn start(deps: &Deps) -> Arc<Self> {
        let cluster = Arc::new(Self {
            registry: Arc::clone(&deps.backends.registry),
            view: ArcSwap::default(),
            placed: Mutex::default(),
            looked_up_us: AtomicU64::new(0),
        });
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

    /// Reads the registry now.
    pub async fn refresh(&self) {
        let mut view = HashMap::clone(&self.view.load());
        for role in Role::ALL {
            if let Ok(servers) = self.registry.list(role).await {
                view.insert(role, Arc::new(servers));
            }
        }
        self.view.store(Arc::new(view));
        self.placed.lock().expect("no panic while held").clear();
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
        let now = clock::now_us();
        let last = self.looked_up_us.swap(now, Ordering::Relaxed);
        if now.saturating_sub(last) >= LOOK_UP_EVERY.as_micros() as u64 {
            self.refresh().await;
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
        draining: false,
        epoch,
    };
    announce(deps, current).await
}

/// Whether others would place users differently if they knew: a load is news when it has moved by a sixteenth and by more than
/// a handful of connections.
fn is_news(told: &ServerEntry, entry: &ServerEntry) -> bool {
    const HANDFUL: u64 = 8;
    told.draining != entry.draining || told.load.abs_diff(entry.load) > HANDFUL + told.load / 16
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
