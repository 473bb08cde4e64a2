//! One server of the stack, with a runtime of its own: killing it ends its tasks and sockets at once, in the middle of
//! whatever they did, as the end of a process would.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

use super::config::Config;
use super::running::StackError;
use crate::backends::registry::Role;
use crate::protocol::ServerName;
use crate::runtime::{Tasks, net};
use crate::server::chat::tamper::Tamper;
use crate::server::chat::{self, ChatServer, Listeners};
use crate::server::{Deps, api, presence, push};

/// How long tasks may take to end once they are told to.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A running server.
pub(super) struct Node {
    pub(super) name: ServerName,
    pub(super) role: Role,
    /// Where it is reached: clients of chat and API servers, peers of presence servers. `None` for push.
    pub(super) address: Option<SocketAddr>,
    tasks: Tasks,
    chat: Option<Arc<ChatServer>>,
    /// `None` once the node is stopped or killed.
    runtime: Option<Runtime>,
}

impl Node {
    /// Starts a server and returns when it is announced.
    pub(super) async fn start(
        role: Role,
        deps: Deps,
        config: &Config,
        port: u16,
        tamper: Option<Arc<dyn Tamper>>,
    ) -> Result<Self, StackError> {
        let name = deps.name.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(format!("srv-{name}"))
            .enable_all()
            .build()
            .map_err(|source| StackError::Runtime { server: name.clone(), source })?;
        let tasks = deps.tasks.clone();
        let config = config.clone();
        let server = name.clone();
        let started = runtime.spawn(async move { start_role(role, deps, config, port, tamper, &server).await });
        let (address, chat) = match started.await {
            Ok(Ok(started)) => started,
            Ok(Err(error)) => {
                runtime.shutdown_background();
                return Err(error);
            }
            Err(error) => {
                runtime.shutdown_background();
                return Err(StackError::Runtime { server: name, source: std::io::Error::other(error) });
            }
        };
        Ok(Self { name, role, address, tasks, chat, runtime: Some(runtime) })
    }

    pub(super) fn is_running(&self) -> bool {
        self.runtime.is_some()
    }

    /// Lets clients leave, then stops.
    pub(super) async fn stop(&mut self, drain: Duration) {
        let Some(runtime) = self.runtime.take() else { return };
        if let Some(chat) = self.chat.take() {
            let tasks = self.tasks.clone();
            let drained = runtime.spawn(async move {
                chat.drain(drain).await;
                // An entry that stays behind ends by its time to live.
                let _ = chat.withdraw().await;
                tasks.stop();
            });
            let _ = drained.await;
        }
        self.tasks.stop();
        self.tasks.join(STOP_TIMEOUT).await;
        runtime.shutdown_background();
    }

    /// Ends the server at once.
    pub(super) fn kill(&mut self) {
        self.chat = None;
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

type Started = (Option<SocketAddr>, Option<Arc<ChatServer>>);

async fn start_role(
    role: Role,
    deps: Deps,
    config: Config,
    port: u16,
    tamper: Option<Arc<dyn Tamper>>,
    name: &ServerName,
) -> Result<Started, StackError> {
    let failed = |source| StackError::Start { server: name.clone(), source };
    match role {
        Role::Chat => {
            let listeners = Listeners { clients: bind(name, config.host, port)?, peers: bind(name, config.host, 0)? };
            let server = chat::start(listeners, deps, config.chat, tamper).await.map_err(failed)?;
            Ok((Some(server.address()), Some(server)))
        }
        Role::Presence => {
            let listener = bind(name, config.host, port)?;
            let address = presence::start(listener, deps, config.presence).await.map_err(failed)?;
            Ok((Some(address), None))
        }
        Role::Api => {
            let listener = bind(name, config.host, port)?;
            let address = api::start(listener, deps, config.api).await.map_err(failed)?;
            Ok((Some(address), None))
        }
        Role::Push => {
            push::start(deps).await.map_err(|e| failed(e.into()))?;
            Ok((None, None))
        }
    }
}

fn bind(server: &ServerName, host: IpAddr, port: u16) -> Result<tokio::net::TcpListener, StackError> {
    let address = SocketAddr::new(host, port);
    net::listen(address).map_err(|source| StackError::Bind { server: server.clone(), address, source })
}
