//! Every outside system behind a small trait, each with an embedded default.
//!
//! [`open`] is the only place that names implementations. The servers see [`Backends`] and never ask what is behind it.

#[cfg(test)]
pub(crate) mod contract;
pub mod deployment;
pub mod directory;
mod engines;
pub mod error;
mod json_http;
pub mod layers;
mod limiter;
pub mod log;
pub mod media;
pub mod messages;
pub mod presence;
pub mod push;
pub mod redis;
pub mod redis_admin;
pub mod registry;
mod sentinels;
pub mod sequence;
pub mod sessions;
pub mod soft;
pub mod store;
mod version;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use engines::{Engine, Engines};
pub use error::{BackendError, BackendResult};

use serde::{Deserialize, Serialize};

use self::deployment::DeploymentId;
use self::layers::{Faults, Layer, Layered};
use self::limiter::Limiter;
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
    /// Pictures, films, documents.
    pub media: Arc<dyn media::Media>,
    /// Notifications.
    pub notifier: Arc<dyn push::Notifier>,
    /// What the ports are on, as of the opening.
    pub opened: Arc<Vec<OpenedEngine>>,
    /// Of the message store, and of all that is derived from it.
    pub deployment: DeploymentId,
}

/// An engine that was opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenedEngine {
    /// `redis`, `kafka`, …, or `embedded`.
    pub kind: String,
    /// Where, without a password; `embedded` when it is.
    pub address: String,
    /// Product and version.
    pub version: String,
    /// The ports that are on it.
    pub ports: Vec<String>,
}

/// Which engines.
#[derive(Debug, Clone)]
pub struct Config {
    /// Data folder of the embedded engines.
    pub data: PathBuf,
    /// Partitions of the log. Fixed once the data folder, or the topics, exist.
    pub partitions: u32,
    /// One for each port.
    pub engines: Engines,
}

/// Opens the engines.
///
/// # Errors
/// Names the setting, the engine and what to do.
pub async fn open(config: &Config) -> BackendResult<Backends> {
    let Config { data, partitions, engines } = config;
    let rejected = |text: String| BackendError::not_applied("open engines", error::ErrorKind::Rejected, text);
    engines.check().map_err(rejected)?;
    let store = tokio::sync::OnceCell::new();
    let (messages, version) = open_messages(&engines.messages, data, &store).await.map_err(|e| at("messages", e))?;
    // Whose state everything else is that is opened from here on.
    let deployment = DeploymentId::of(&*messages).await.map_err(|e| at("messages", e))?;
    let opening = Opening {
        data,
        partitions: *partitions,
        deployment,
        messages: &*messages,
        store,
        redis: Mutex::default(),
        opened: Mutex::default(),
    };
    if let Some(version) = version {
        opening.note("messages", &engines.messages, &version);
    }
    let backends = Backends {
        deployment,
        opened: Arc::default(),
        log: opening.log(&engines.log).await.map_err(|e| at("log", e))?,
        messages: Arc::clone(&messages),
        sequence: opening.sequence(&engines.sequence).await.map_err(|e| at("sequence", e))?,
        sessions: opening.sessions(&engines.sessions).await.map_err(|e| at("sessions", e))?,
        presence: opening.presence(&engines.presence).await.map_err(|e| at("presence", e))?,
        registry: opening.registry(&engines.registry).await.map_err(|e| at("registry", e))?,
        directory: opening.directory(&engines.directory).await.map_err(|e| at("directory", e))?,
        media: opening.media(&engines.media).await.map_err(|e| at("media", e))?,
        notifier: Arc::new(push::Recorder::open(&data.join("notifications.jsonl")).await?),
    };
    for (port, engine, _) in engines.all().into_iter().filter(|(_, engine, _)| **engine == Engine::Embedded) {
        opening.note(port, engine, concat!("chatctl ", env!("CARGO_PKG_VERSION")));
    }
    Ok(Backends { opened: Arc::new(opening.opened.into_inner().expect("no panic while held")), ..backends })
}

/// An error with the setting that it belongs to: that of a data folder in use is none of an engine's.
fn at(port: &str, error: BackendError) -> BackendError {
    if error.kind == error::ErrorKind::InUse {
        return error;
    }
    let text = match &error.source {
        Some(source) => format!("engines.{port}: {source}"),
        None => format!("engines.{port}"),
    };
    BackendError { source: Some(text.into()), ..error }
}

/// What the ports share while they are opened: one embedded store, one connection to each Redis.
struct Opening<'a> {
    data: &'a Path,
    partitions: u32,
    deployment: DeploymentId,
    messages: &'a dyn messages::Messages,
    store: tokio::sync::OnceCell<store::EmbeddedStore>,
    redis: Mutex<HashMap<String, redis::Redis>>,
    opened: Mutex<Vec<OpenedEngine>>,
}

/// Opens the message store; with its product and version, where it is not embedded.
async fn open_messages(
    engine: &Engine,
    data: &Path,
    store: &tokio::sync::OnceCell<store::EmbeddedStore>,
) -> BackendResult<(Arc<dyn messages::Messages>, Option<String>)> {
    Ok(match engine.address() {
        None => {
            let store = store.get_or_try_init(|| async { store::EmbeddedStore::open(data) }).await?;
            (Arc::new(messages::EmbeddedMessages::open(store)?), None)
        }
        Some(address) if address.starts_with("hbase:") => {
            let messages = messages::HBaseMessages::open(address).await?;
            let version = messages.version().to_owned();
            (Arc::new(messages), Some(version))
        }
        Some(address) => {
            let messages = messages::CassandraMessages::open(address).await?;
            let version = messages.version().to_owned();
            (Arc::new(messages), Some(version))
        }
    })
}

impl Opening<'_> {
    /// Notes what a port is on.
    fn note(&self, port: &str, engine: &Engine, version: &str) {
        let (kind, address) = (engine.kind().unwrap_or("embedded").to_owned(), engine.to_string());
        let mut opened = self.opened.lock().expect("no panic while held");
        if let Some(known) = opened.iter_mut().find(|known| known.kind == kind && known.address == address) {
            known.ports.push(port.to_owned());
            return;
        }
        opened.push(OpenedEngine { kind, address, version: version.to_owned(), ports: vec![port.to_owned()] });
    }

    /// The store of the data folder, if it is this deployment's.
    async fn store(&self) -> BackendResult<&store::EmbeddedStore> {
        let store = self.store.get_or_try_init(|| async { store::EmbeddedStore::open(self.data) }).await?;
        let own = DeploymentId::marked(&messages::EmbeddedMessages::open(store)?, self.deployment).await?;
        if own == self.deployment {
            return Ok(store);
        }
        let text = format!(
            "data folder {} belongs to deployment {own}, and the message store to {}: give another folder with --data",
            self.data.display(),
            self.deployment
        );
        Err(BackendError::not_applied("open data folder", error::ErrorKind::Rejected, text))
    }

    async fn redis(&self, port: &str, engine: &Engine, address: &str) -> BackendResult<redis::Redis> {
        let known = self.redis.lock().expect("no panic while held").get(address).cloned();
        let redis = match known {
            Some(redis) => redis,
            None => redis::Redis::open(address, self.deployment).await?,
        };
        self.redis.lock().expect("no panic while held").insert(address.to_owned(), redis.clone());
        self.note(port, engine, redis.version());
        Ok(redis)
    }

    async fn log(&self, engine: &Engine) -> BackendResult<Arc<dyn log::KeyedLog>> {
        Ok(match engine.address() {
            None => Arc::new(log::EmbeddedLog::open(self.store().await?, self.partitions)?),
            Some(address) => {
                let log = log::KafkaLog::open(address, self.partitions, self.deployment).await?;
                self.note("log", engine, log.version());
                Arc::new(log)
            }
        })
    }

    async fn sequence(&self, engine: &Engine) -> BackendResult<Arc<dyn sequence::Sequence>> {
        Ok(match engine.address() {
            None => Arc::new(sequence::EmbeddedSequence::default()),
            Some(address) => Arc::new(sequence::RedisSequence::new(self.redis("sequence", engine, address).await?)),
        })
    }

    async fn sessions(&self, engine: &Engine) -> BackendResult<Arc<dyn sessions::Sessions>> {
        Ok(match engine.address() {
            None => Arc::new(sessions::EmbeddedSessions::open(self.store().await?)?),
            Some(address) => Arc::new(sessions::RedisSessions::new(self.redis("sessions", engine, address).await?)),
        })
    }

    async fn presence(&self, engine: &Engine) -> BackendResult<Arc<dyn presence::Presence>> {
        Ok(match engine.address() {
            None => Arc::new(presence::EmbeddedPresence::open(self.store().await?)?),
            Some(address) => Arc::new(presence::RedisPresence::new(self.redis("presence", engine, address).await?)),
        })
    }

    async fn registry(&self, engine: &Engine) -> BackendResult<Arc<dyn registry::Registry>> {
        Ok(match engine.address() {
            None => Arc::new(registry::EmbeddedRegistry::default()),
            Some(address) if address.starts_with("etcd:") => {
                let registry = registry::EtcdRegistry::open(address, self.deployment).await?;
                self.note("registry", engine, registry.version());
                Arc::new(registry)
            }
            Some(address) => {
                let registry = registry::ZooKeeperRegistry::open(address, self.deployment).await?;
                self.note("registry", engine, registry.version());
                Arc::new(registry)
            }
        })
    }

    async fn directory(&self, engine: &Engine) -> BackendResult<Arc<dyn directory::Directory>> {
        let directory = match engine.address() {
            None => directory::SqlDirectory::open_file(&self.data.join("directory.db")).await?,
            Some(address) => {
                let directory = directory::SqlDirectory::open(address).await?;
                self.note("directory", engine, directory.version());
                directory
            }
        };
        deployment::bind_directory(self.messages, directory.id()).await?;
        Ok(Arc::new(directory))
    }

    async fn media(&self, engine: &Engine) -> BackendResult<Arc<dyn media::Media>> {
        Ok(match engine.address() {
            None => Arc::new(media::ObjectMedia::open_folder(&self.data.join("media"))?),
            Some(address) => {
                let media = media::ObjectMedia::open_bucket(address).await?;
                self.note("media", engine, media.server());
                Arc::new(media)
            }
        })
    }
}

impl Backends {
    /// The same engines for one server: each call with a deadline and counted, no more of them at once than a port answers
    /// in time.
    #[must_use]
    pub fn timed(&self, metrics: &Arc<Metrics>) -> Self {
        let embedded = self.opened.iter().find(|opened| opened.kind == "embedded");
        self.layered(|port| {
            let is_batched = ["log", "messages"].contains(&port)
                && embedded.is_some_and(|opened| opened.ports.iter().any(|on| on == port));
            let limiter = if is_batched { Limiter::of_batches() } else { Limiter::default() };
            Layer::Timed(Arc::clone(metrics), Box::new(limiter))
        })
    }

    /// Has every port write something small: `ok`, or what is wrong, by port. Of the registry and the media it is a read: servers
    /// write their entries all the time, and media are no part of talking.
    pub async fn probe(&self, limit: Duration) -> BTreeMap<&'static str, String> {
        let nothing = media::MediaKey::nowhere();
        let (log, directory, messages, sequence, sessions, presence, registry, media) = tokio::join!(
            answers(limit, self.log.probe()),
            answers(limit, self.directory.probe()),
            answers(limit, self.messages.probe()),
            answers(limit, self.sequence.probe()),
            answers(limit, self.sessions.probe()),
            answers(limit, self.presence.probe()),
            answers(limit, self.registry.list(registry::Role::Chat)),
            answers(limit, self.media.info(&nothing)),
        );
        BTreeMap::from([
            ("log", log),
            ("directory", directory),
            ("messages", messages),
            ("sequence", sequence),
            ("sessions", sessions),
            ("presence", presence),
            ("registry", registry),
            ("media", media),
        ])
    }

    /// The same engines with seeded faults in the message path: log, messages, sequence, sessions and presence.
    #[must_use]
    pub fn faulty(&self, seed: u64, per_mille: u32) -> Self {
        let mut port = 0;
        let layered = self.layered(|_| {
            port += 1;
            Layer::Faulty(Box::new(Faults::new(seed.wrapping_mul(31).wrapping_add(port), per_mille)))
        });
        let (registry, directory) = (Arc::clone(&self.registry), Arc::clone(&self.directory));
        let (media, notifier) = (Arc::clone(&self.media), Arc::clone(&self.notifier));
        Self { registry, directory, media, notifier, ..layered }
    }

    /// The same engines, whose answers to some operations, such as `sessions.claim`, come late: for tests of what happens
    /// meanwhile.
    #[must_use]
    pub fn late(&self, operations: &'static [&'static str], wait: Duration) -> Self {
        self.layered(|_| Layer::Late(operations, wait))
    }

    /// The same engines, whose calls take as long as a test says.
    #[cfg(test)]
    pub(crate) fn paced(&self, pace: &Arc<dyn layers::Pace>) -> Self {
        self.layered(|_| Layer::Paced(Arc::clone(pace)))
    }

    fn layered(&self, mut layer: impl FnMut(&str) -> Layer) -> Self {
        Self {
            log: Arc::new(Layered::new(Arc::clone(&self.log), layer("log"))),
            messages: Arc::new(Layered::new(Arc::clone(&self.messages), layer("messages"))),
            sequence: Arc::new(Layered::new(Arc::clone(&self.sequence), layer("sequence"))),
            sessions: Arc::new(Layered::new(Arc::clone(&self.sessions), layer("sessions"))),
            presence: Arc::new(Layered::new(Arc::clone(&self.presence), layer("presence"))),
            registry: Arc::new(Layered::new(Arc::clone(&self.registry), layer("registry"))),
            directory: Arc::new(Layered::new(Arc::clone(&self.directory), layer("directory"))),
            media: Arc::new(Layered::new(Arc::clone(&self.media), layer("media"))),
            notifier: Arc::new(Layered::new(Arc::clone(&self.notifier), layer("notifier"))),
            opened: Arc::clone(&self.opened),
            deployment: self.deployment,
        }
    }
}

async fn answers<T>(limit: Duration, call: impl Future<Output = BackendResult<T>>) -> String {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(_)) => "ok".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer in time".to_owned(),
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
