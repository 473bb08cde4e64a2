//! What unit tests of servers stand on: embedded engines in a folder of their own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::Deps;
use super::access::auth::Tokens;
use super::access::keys::{Keys, Purpose};
use crate::backends::layers::Pace;
use crate::backends::registry::{Role, ServerEntry};
use crate::backends::{self, Backends, Engines};
use crate::protocol::ServerName;
use crate::runtime::Tasks;
use crate::telemetry;

/// Engines, and what a server gets from the stack. The server ends with this.
pub(super) struct Bench {
    pub(super) deps: Deps,
    _data: tempfile::TempDir,
}

impl Bench {
    /// Opens engines, changed as a test needs them, for a server of some name.
    pub(super) async fn new(role: Role, name: &str, change: impl FnOnce(Backends) -> Backends) -> Self {
        let data = tempfile::tempdir().expect("a folder");
        let config = backends::Config { data: data.path().to_owned(), partitions: 8, engines: Engines::default() };
        let backends = change(backends::open(&config).await.expect("opens"));
        let (registry, keys) = (telemetry::Registry::default(), |purpose| Keys::derive(&[7; 32], &[], purpose));
        let metrics = registry.register(role.name(), name);
        let deps = Deps {
            name: name.parse().expect("a name"),
            advertise: None,
            backends: backends.timed(&metrics),
            metrics,
            registry,
            tokens: Arc::new(Tokens::new(&keys(Purpose::Tokens), 3_600)),
            peer_keys: Arc::new(keys(Purpose::PeerLinks)),
            client_keys: Arc::new(keys(Purpose::Clients)),
            tasks: Tasks::new(),
        };
        Self { deps, _data: data }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.deps.tasks.kill();
    }
}

/// Holds calls of one operation up until it is opened, and tells when one has come.
pub(super) struct Gate {
    operation: &'static str,
    open: Arc<Semaphore>,
    comers: Semaphore,
}

impl Gate {
    pub(super) fn new(operation: &'static str) -> Arc<Self> {
        Arc::new(Self { operation, open: Arc::new(Semaphore::new(0)), comers: Semaphore::new(0) })
    }

    /// Waits until a call has come.
    pub(super) async fn reached(&self) {
        self.comers.acquire().await.expect("it is never closed").forget();
    }

    /// How many have come, but for those that were waited for.
    pub(super) fn comers(&self) -> usize {
        self.comers.available_permits()
    }

    /// Lets everybody through from now on.
    pub(super) fn open(&self) {
        self.open.add_permits(1_000);
    }
}

impl Pace for Gate {
    fn waits(&self, _: &'static str) -> [Duration; 2] {
        [Duration::ZERO; 2]
    }
    fn gate(&self, operation: &'static str) -> Option<Arc<Semaphore>> {
        (operation == self.operation).then(|| {
            self.comers.add_permits(1);
            Arc::clone(&self.open)
        })
    }
    fn enter(&self) {}
    fn leave(&self) {}
}

/// A server that nobody answers for.
pub(super) fn entry(role: Role, name: &ServerName, epoch: u64) -> ServerEntry {
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    ServerEntry { name: name.clone(), role, address, peer: Some(address), load: 0, seats: 0, draining: false, epoch }
}
