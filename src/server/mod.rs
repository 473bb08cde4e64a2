//! The services. Each role runs alone or with others; a role gets its engines and its listeners from the caller.
//!
//! The roles [`api`], [`chat`], [`gateway`], [`presence`] and [`push`] know nothing of each other. What they share lies
//! beside them: [`access`] (who may do what), [`ordering`] (ids, order, repeats), [`cluster`] (who else is there, and
//! how servers talk to each other), `http` (one server for all), `inbox` (what chat writes and push reads).

pub mod access;
pub mod api;
mod beats;
#[cfg(test)]
mod bench;
mod bounded_map;
pub mod chat;
pub mod cluster;
mod error;
pub mod gateway;
mod http;
mod inbox;
mod lag;
mod min_rate;
pub mod ordering;
pub mod presence;
pub mod push;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::net::TcpListener;

pub use self::error::StartError;
use crate::backends::Backends;
use crate::protocol::ServerName;
use crate::runtime::Tasks;
use crate::telemetry::{self, Metrics};

/// Files of a process that are no connections of clients: engines, peers, logs, the runtime.
const FILES_RESERVED: u64 = 300;

/// What a server listens on; bound by the caller.
pub struct Listeners {
    /// For clients.
    pub clients: TcpListener,
    /// For other servers.
    pub peers: TcpListener,
}

/// What every role gets from the stack.
#[derive(Clone)]
pub struct Deps {
    /// This server.
    pub name: ServerName,
    /// Where it is reached, if not at the address that it listens on.
    pub advertise: Option<IpAddr>,
    /// The engines, timed for this server.
    pub backends: Backends,
    /// This server's figures.
    pub metrics: Arc<Metrics>,
    /// The figures of every server in this process.
    pub registry: telemetry::Registry,
    /// Issues and checks tokens.
    pub tokens: Arc<access::auth::Tokens>,
    /// Authenticate peer links.
    pub peer_keys: Arc<access::keys::Keys>,
    /// Authenticate what gateways say of clients.
    pub client_keys: Arc<access::keys::Keys>,
    /// Tasks of this server.
    pub tasks: Tasks,
}

impl Deps {
    /// Where others reach a listener of this server.
    ///
    /// # Errors
    /// When the listener is of no use.
    fn reached_at(&self, listener: &TcpListener) -> std::io::Result<SocketAddr> {
        let mut address = listener.local_addr()?;
        if let Some(advertised) = self.advertise {
            address.set_ip(advertised);
        }
        Ok(address)
    }
}
