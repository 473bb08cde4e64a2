//! A whole stack in this process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use super::config::Config;
use super::node::{Home, Node};
use super::secrets::Secrets;
use crate::backends::error::ErrorKind;
use crate::backends::registry::Role;
use crate::backends::{self, BackendError, Backends};
use crate::protocol::ServerName;
use crate::runtime::{Tasks, TemporaryFolder};
use crate::server::access::auth;
use crate::server::access::keys::Purpose;
use crate::server::chat::tamper::Tamper;
use crate::server::{Deps, StartError};
use crate::telemetry::Registry;

/// Why a stack did not start, or a server of it did not.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// A setting is wrong.
    #[error("configuration: {0}")]
    Config(String),
    /// An engine failed.
    #[error("engines: {0}")]
    Backend(BackendError),
    /// An address can't be had.
    #[error("{server} can't listen on {address}: {source}; {fix}")]
    Bind {
        /// Which server.
        server: ServerName,
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
        /// Which setting to change.
        fix: String,
    },
    /// A server did not start.
    #[error("{server} did not start: {source}")]
    Start {
        /// Which server.
        server: ServerName,
        /// Why.
        source: StartError,
    },
    /// No threads could be had.
    #[error("{server} got no runtime: {source}")]
    Runtime {
        /// Which server.
        server: ServerName,
        /// Why.
        source: std::io::Error,
    },
    /// The data folder is of no use.
    #[error("data folder {}: {source}", path.display())]
    Data {
        /// Which folder or file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another stack is where this one wants to be.
    #[error("{0}")]
    Occupied(String),
    /// A server's process did not come up.
    #[error("{server} did not start: {how}; the end of its log ({log}):\n  {tail}")]
    Process {
        /// Which server.
        server: ServerName,
        /// How it ended.
        how: String,
        /// Where its log is.
        log: String,
        /// The last lines of it.
        tail: String,
    },
    /// No relay to an engine could be had.
    #[error("relays of {server}: {source}")]
    Relay {
        /// Which server.
        server: ServerName,
        /// Why.
        source: std::io::Error,
    },
    /// No server of that name runs.
    #[error("there is no server {name}: running are {running}")]
    NoSuchServer {
        /// What was asked for.
        name: String,
        /// What there is.
        running: String,
    },
}

impl From<BackendError> for StackError {
    fn from(error: BackendError) -> Self {
        match (error.kind, &error.source) {
            (ErrorKind::InUse, Some(source)) => Self::Occupied(source.to_string()),
            _ => Self::Backend(error),
        }
    }
}

/// A server of the stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its name.
    pub name: ServerName,
    /// What it does.
    pub role: Role,
    /// Where it is reached.
    pub address: Option<SocketAddr>,
    /// Where a gateway takes WebSockets.
    pub websocket_address: Option<SocketAddr>,
    /// False once it was stopped or killed.
    pub is_running: bool,
}

/// A running stack. Dropping it kills its servers; [`Stack::stop`] lets clients leave first.
pub struct Stack {
    nodes: Vec<Node>,
    config: Config,
    metrics: Registry,
    backends: Backends,
    data: DataFolder,
}

/// Where a stack's data is.
enum DataFolder {
    Given(PathBuf),
    /// Removed with the stack.
    Temporary(TemporaryFolder),
}

impl DataFolder {
    fn path(&self) -> &Path {
        match self {
            Self::Given(path) => path,
            Self::Temporary(folder) => folder.path(),
        }
    }
}

/// Opens every engine of a configuration once, which makes the tables, topics and keyspaces that are missing.
///
/// # Errors
/// Names the setting, the engine and what to do.
pub async fn migrate(config: &Config) -> Result<(), StackError> {
    config.check().map_err(StackError::Config)?;
    let data = data_folder(config)?;
    backends::open(&engines(config, data.path())).await?;
    Ok(())
}

pub(super) fn engines(config: &Config, data: &Path) -> backends::Config {
    backends::Config { data: data.to_owned(), partitions: config.partitions, engines: config.engines.clone() }
}

/// Where the servers of a stack run.
#[derive(Clone, Copy)]
enum Homes {
    Own,
    Process,
}

impl Stack {
    /// Starts every server; they are reachable when this returns.
    ///
    /// # Errors
    /// Names the setting, the engine or the server, and what to do. What had started is stopped.
    pub async fn start(config: Config) -> Result<Self, StackError> {
        Self::start_changed(config, |backends| backends, None).await
    }

    /// The same where this process is the server: when there is one, it runs in the caller's runtime and ends with it.
    pub async fn start_as_process(config: Config) -> Result<Self, StackError> {
        let homes = if config.places().len() == 1 { Homes::Process } else { Homes::Own };
        Self::start_in(homes, config, |backends| backends, None).await
    }

    /// The same with other engines and a tampered delivery, for tests that break things on purpose.
    pub async fn start_changed(
        config: Config,
        change: impl FnOnce(Backends) -> Backends,
        tamper: Option<Arc<dyn Tamper>>,
    ) -> Result<Self, StackError> {
        Self::start_in(Homes::Own, config, change, tamper).await
    }

    async fn start_in(
        homes: Homes,
        config: Config,
        change: impl FnOnce(Backends) -> Backends,
        tamper: Option<Arc<dyn Tamper>>,
    ) -> Result<Self, StackError> {
        config.check().map_err(StackError::Config)?;
        let data = data_folder(&config)?;
        let backends = change(backends::open(&engines(&config, data.path())).await?);
        let secrets = Secrets::read_or_make(data.path())?;
        let tokens = Arc::new(auth::Tokens::new(&secrets.keys(Purpose::Tokens), config.token_lifetime.as_secs()));
        let peer_keys = Arc::new(secrets.keys(Purpose::PeerLinks));
        let client_keys = Arc::new(secrets.keys(Purpose::Clients));
        let metrics = Registry::default();
        let mut stack = Self { nodes: Vec::new(), config, metrics, backends, data };
        for place in stack.config.places() {
            let server_metrics = stack.metrics.register(place.role.name(), place.name.as_str());
            let deps = Deps {
                name: place.name.clone(),
                advertise: stack.config.advertised(),
                backends: stack.backends.timed(&server_metrics),
                metrics: server_metrics,
                registry: stack.metrics.clone(),
                tokens: Arc::clone(&tokens),
                peer_keys: Arc::clone(&peer_keys),
                client_keys: Arc::clone(&client_keys),
                tasks: Tasks::new(),
            };
            let home = match homes {
                Homes::Own => Home::own(&place.name)?,
                Homes::Process => Home::Process(tokio::runtime::Handle::current()),
            };
            let node = Node::start(home, place, deps, &stack.config, tamper.clone()).await?;
            stack.nodes.push(node);
        }
        Ok(stack)
    }

    /// The servers, in the order in which they started.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeInfo> {
        self.nodes.iter().map(Node::info).collect()
    }

    /// Address for HTTP, as `http://host:port`: of the first gateway that runs, or of the first API server.
    #[must_use]
    pub fn api_url(&self) -> Option<String> {
        let nodes = self.nodes();
        let running = |role| nodes.iter().find(|n| n.role == role && n.is_running);
        let api = || nodes.iter().find(|n| n.role == Role::Api);
        let node = running(Role::Gateway).or_else(|| running(Role::Api)).or_else(api)?;
        Some(format!("http://{}", node.address?))
    }

    /// Where the embedded engines keep their data.
    #[must_use]
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// The engines, for tests that look behind the servers.
    #[must_use]
    pub const fn backends(&self) -> &Backends {
        &self.backends
    }

    /// Ends a server at once, in the middle of whatever it does.
    pub fn kill(&mut self, name: &str) -> Result<(), StackError> {
        self.find(name)?.kill();
        self.metrics.forget(name);
        Ok(())
    }

    /// Lets a server's clients leave at a limited rate, then stops it.
    pub async fn drain(&mut self, name: &str) -> Result<(), StackError> {
        let limit = self.config.drain_timeout;
        self.find(name)?.stop(limit).await;
        self.metrics.forget(name);
        Ok(())
    }

    fn find(&mut self, name: &str) -> Result<&mut Node, StackError> {
        let running: Vec<&str> = self.nodes.iter().filter(|n| n.is_running()).map(|n| n.name.as_str()).collect();
        let running = running.join(", ");
        let found = self.nodes.iter_mut().find(|n| n.is_running() && n.name.as_str() == name);
        found.ok_or_else(|| StackError::NoSuchServer { name: name.to_owned(), running })
    }

    /// Stops every server, chat servers first: their clients are told to leave, work under way is finished.
    pub async fn stop(mut self) {
        let limit = self.config.drain_timeout;
        let mut nodes = std::mem::take(&mut self.nodes);
        let (chat, others): (Vec<_>, Vec<_>) = nodes.iter_mut().partition(|n| n.role == Role::Chat);
        join_all(chat.into_iter().map(|node| node.stop(limit))).await;
        join_all(others.into_iter().map(|node| node.stop(limit))).await;
        drop(nodes);
    }
}

fn data_folder(config: &Config) -> Result<DataFolder, StackError> {
    let Some(path) = config.data.clone() else {
        let failed = |source| StackError::Data { path: std::env::temp_dir(), source };
        return TemporaryFolder::create().map(DataFolder::Temporary).map_err(failed);
    };
    std::fs::create_dir_all(&path).map_err(|source| StackError::Data { path: path.clone(), source })?;
    Ok(DataFolder::Given(path))
}
