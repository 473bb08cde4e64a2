//! Live servers and their load.

#[cfg(test)]
pub(crate) mod contract;
mod embedded;
mod etcd;
mod zookeeper;

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use embedded::EmbeddedRegistry;
pub use etcd::EtcdRegistry;
pub use zookeeper::ZooKeeperRegistry;

use super::BackendResult;
use crate::protocol::ServerName;

/// An entry's life without a refresh: a dead server is gone from the list after it. Servers refresh at a quarter of it.
pub const ENTRY_TTL: Duration = Duration::from_secs(4);

/// What a server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Holds WebSocket connections.
    Chat,
    /// Decides who is online.
    Presence,
    /// Answers HTTP.
    Api,
    /// Hands notifications over.
    Push,
    /// Passes connections and requests on to chat and API servers.
    Gateway,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 5] = [Self::Chat, Self::Presence, Self::Api, Self::Push, Self::Gateway];

    /// The role's name, as in `--role` and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Presence => "presence",
            Self::Api => "api",
            Self::Push => "push",
            Self::Gateway => "gateway",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|r| r.name() == text)
            .ok_or_else(|| format!("unknown role {text:?}: valid roles are {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// A server as others see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerEntry {
    /// Unique.
    pub name: ServerName,
    /// What it does.
    pub role: Role,
    /// Where clients reach it.
    pub address: SocketAddr,
    /// Where other servers reach it, by peer links.
    pub peer: Option<SocketAddr>,
    /// Open connections.
    pub load: u64,
    /// Connections that it has room for; 0 where it does not say.
    #[serde(default)]
    pub seats: u64,
    /// True while it wants no new users.
    pub draining: bool,
    /// Rises with every start of the server.
    pub epoch: u64,
}

/// The registry.
#[async_trait]
pub trait Registry: Send + Sync {
    /// Enters a server, or refreshes its entry with new figures. An entry of a younger epoch is left alone.
    async fn announce(&self, entry: &ServerEntry) -> BackendResult<()>;

    /// Takes a server out, if its entry is of this epoch.
    async fn withdraw(&self, name: &ServerName, epoch: u64) -> BackendResult<()>;

    /// The live servers of a role, by name.
    async fn list(&self, role: Role) -> BackendResult<Vec<ServerEntry>>;
}
