//! What several owners of a chat server use.

use std::sync::Arc;

use super::outbound::Outbound;
use super::publisher::Publisher;
use crate::backends::BackendResult;
use crate::backends::log::LogReader;
use crate::server::Deps;
use crate::server::access::members::Members;
use crate::server::cluster::Cluster;
use crate::server::cluster::peer::Peers;

/// Made before the owners; each takes what it needs, and nobody keeps the whole.
pub(super) struct Shared {
    pub(super) outbound: Arc<Outbound>,
    pub(super) reader: Arc<dyn LogReader>,
    pub(super) members: Arc<Members>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) peers: Arc<Peers>,
    pub(super) publisher: Publisher,
}

impl Shared {
    /// Opens the log, and joins the other servers. At most `outgoing_bytes_max` bytes wait for one connection.
    ///
    /// # Errors
    /// When the log does not answer.
    pub(super) async fn open(deps: &Deps, outgoing_bytes_max: usize) -> BackendResult<Self> {
        let reader = deps.backends.log.reader(deps.name.as_str()).await?;
        Ok(Self {
            outbound: Arc::new(Outbound::new(outgoing_bytes_max, deps.tasks.clone(), Arc::clone(&deps.metrics))),
            reader,
            members: Arc::new(Members::new(Arc::clone(&deps.backends.directory))),
            cluster: Cluster::start(deps).await,
            peers: Arc::new(Peers::new(deps)),
            publisher: Publisher::new(deps),
        })
    }
}
