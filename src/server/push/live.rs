//! Which sessions count: a session counts while its chat server is in the registry, in the life in which it was made.
//!
//! An empty registry, or one that can't be read, is no proof of anything: servers enter it again within seconds. Then every session
//! counts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::backends::registry::{Registry, Role};
use crate::backends::sessions::Session;
use crate::protocol::ServerName;
use crate::runtime::clock;

/// Age at which the registry is read again.
const AGE_MAX: Duration = Duration::from_secs(1);

/// Longest that a read of it may hold up notifications.
const READ_TIMEOUT: Duration = Duration::from_millis(500);

/// Whether a recipient is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// One session counts, or all that there are may count.
    Live,
    /// There are sessions, all of servers that are gone: the user may be about to come back.
    Doubtful,
    /// There is none.
    Absent,
}

/// The chat servers, as they were last read.
pub(super) struct View {
    registry: Arc<dyn Registry>,
    /// Epoch of each; `None` while nothing is known.
    servers: Option<HashMap<ServerName, u64>>,
    /// When it was read, on [`clock::now_us`].
    read_us: Option<u64>,
    /// Servers have come, gone or begun another life, and nobody was told yet.
    is_news: bool,
}

impl View {
    pub(super) fn new(registry: Arc<dyn Registry>) -> Self {
        Self { registry, servers: None, read_us: None, is_news: false }
    }

    /// Reads the registry, unless that was done just now.
    pub(super) async fn look_if_old(&mut self) {
        let now_us = clock::now_us();
        if self.read_us.is_some_and(|read_us| now_us.saturating_sub(read_us) < AGE_MAX.as_micros() as u64) {
            return;
        }
        let servers = tokio::time::timeout(READ_TIMEOUT, self.registry.list(Role::Chat)).await;
        // From the end: one that hangs is not asked again at once.
        self.read_us = Some(clock::now_us());
        let servers = match servers {
            Ok(Ok(servers)) if !servers.is_empty() => servers,
            // A failure is counted by the port's layer.
            Ok(_) | Err(_) => {
                self.servers = None;
                return;
            }
        };
        let servers: HashMap<ServerName, u64> = servers.into_iter().map(|entry| (entry.name, entry.epoch)).collect();
        self.is_news |= self.servers.as_ref() != Some(&servers);
        self.servers = Some(servers);
    }

    /// Reads the registry if that is due; returns whether it says something else than when this was last asked.
    pub(super) async fn look(&mut self) -> bool {
        self.look_if_old().await;
        std::mem::take(&mut self.is_news)
    }

    /// Whether the registry says anything.
    pub(super) const fn is_known(&self) -> bool {
        self.servers.is_some()
    }

    /// What the sessions of a user say.
    pub(super) fn standing(&self, sessions: &[Session]) -> Standing {
        if sessions.is_empty() {
            return Standing::Absent;
        }
        let Some(servers) = &self.servers else { return Standing::Live };
        let counts = |session: &Session| {
            let epoch = servers.get(&session.server);
            epoch.is_some_and(|epoch| session.session.made_ms().is_none_or(|made_ms| made_ms >= *epoch))
        };
        if sessions.iter().any(counts) { Standing::Live } else { Standing::Doubtful }
    }
}
