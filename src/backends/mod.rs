//! Every outside system behind a small trait, each with an embedded default.
//!
//! [`open`] is the only place that names implementations. The servers see [`Backends`] and never ask what is behind it.

#[cfg(test)]
pub(crate) mod contract;
pub mod directory;
pub mod error;
pub mod layers;
pub mod log;
pub mod messages;
pub mod presence;
pub mod push;
pub mod redis;
pub mod registry;
pub mod sequence;
pub mod sessions;
pub mod soft;
pub mod store;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use error::{BackendError, BackendResult};

use self::layers::{Faults, Layer, Layered};
use crate::telemetry::Metrics;

/// One handle per port. Clones share the engines.
#[derive(Clone)]
pub struct Backends {
    /// Inboxes, presence updates, channels.
    pub log: Arc<dyn log::KeyedLog>,
    /// Stored conversations.
    pub messages: Arc<dyn messages::Messages>,
    /// Ids and repeats.
    pub sequence: Arc<dyn sequence::Sequence>,
    /// Live connections.
    pub sessions: Arc<dyn sessions::Sessions>,
    /// Last beats.
    pub presence: Arc<dyn presence::Presence>,
    /// Live servers.
    pub registry: Arc<dyn registry::Registry>,
    /// Users and groups.
    pub directory: Arc<dyn directory::Directory>,
    /// Notifications.
    pub notifier: Arc<dyn push::Notifier>,
}

/// Which engines.
#[derive(Debug, Clone)]
pub struct Config {
    /// Data folder of the embedded engines.
    pub data: PathBuf,
    /// Partitions of the log. Fixed once the data folder exists.
    pub partitions: u32,
}

/// Opens the engines.
///
/// # Errors
/// Names the engine and what to do.
pub async fn open(config: &Config) -> BackendResult<Backends> {
    open_embedded(&config.data, config.partitions).await
}

async fn open_embedded(data: &Path, partitions: u32) -> BackendResult<Backends> {
    let store = store::EmbeddedStore::open(data)?;
    Ok(Backends {
        log: Arc::new(log::EmbeddedLog::open(&store, partitions)?),
        messages: Arc::new(messages::EmbeddedMessages::open(&store)?),
        sequence: Arc::new(sequence::EmbeddedSequence::default()),
        sessions: Arc::new(sessions::EmbeddedSessions::open(&store)?),
        presence: Arc::new(presence::EmbeddedPresence::open(&store)?),
        registry: Arc::new(registry::EmbeddedRegistry::default()),
        directory: Arc::new(directory::SqlDirectory::open_file(&data.join("directory.db")).await?),
        notifier: Arc::new(push::Recorder::open(&data.join("notifications.jsonl")).await?),
    })
}

impl Backends {
    /// The same engines, each call with a deadline, counted for one server.
    #[must_use]
    pub fn timed(&self, metrics: &Arc<Metrics>) -> Self {
        self.layered(|| Layer::Timed(Arc::clone(metrics)))
    }

    /// The same engines with seeded faults in the message path: log, messages, sequence, sessions and presence.
    #[must_use]
    pub fn faulty(&self, seed: u64, per_mille: u32) -> Self {
        let mut port = 0;
        let layered = self.layered(|| {
            port += 1;
            Layer::Faulty(Box::new(Faults::new(seed.wrapping_mul(31).wrapping_add(port), per_mille)))
        });
        Self { registry: Arc::clone(&self.registry), directory: Arc::clone(&self.directory), ..layered }
    }

    fn layered(&self, mut layer: impl FnMut() -> Layer) -> Self {
        Self {
            log: Arc::new(Layered::new(Arc::clone(&self.log), layer())),
            messages: Arc::new(Layered::new(Arc::clone(&self.messages), layer())),
            sequence: Arc::new(Layered::new(Arc::clone(&self.sequence), layer())),
            sessions: Arc::new(Layered::new(Arc::clone(&self.sessions), layer())),
            presence: Arc::new(Layered::new(Arc::clone(&self.presence), layer())),
            registry: Arc::new(Layered::new(Arc::clone(&self.registry), layer())),
            directory: Arc::new(Layered::new(Arc::clone(&self.directory), layer())),
            notifier: Arc::clone(&self.notifier),
        }
    }
}

/// An address for messages: what stands before the host is left out.
fn without_password(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}{}", &url[..scheme + 3], &url[at + 1..]),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_never_show_a_password() {
        assert_eq!(without_password("redis://user:se@cret@host:1/0"), "redis://host:1/0");
        assert_eq!(without_password("redis://host:1/0"), "redis://host:1/0");
    }
}
