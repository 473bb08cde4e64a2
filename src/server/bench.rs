//! What unit tests of servers stand on: embedded engines in a folder of their own.

use std::net::SocketAddr;
use std::sync::Arc;

use super::Deps;
use super::access::auth::Tokens;
use super::access::keys::{Keys, Purpose};
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

/// A server that nobody answers for.
pub(super) fn entry(role: Role, name: &ServerName, epoch: u64) -> ServerEntry {
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    ServerEntry { name: name.clone(), role, address, peer: Some(address), load: 0, draining: false, epoch }
}
