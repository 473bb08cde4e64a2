//! One server of the stack. Beside others of its process it has a runtime of its own: killing it ends its tasks and sockets
//! at once, in the middle of whatever they did, as the end of a process would. A process that is one server has one runtime,
//! so that no call to an engine goes from thread to thread.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinHandle;

use super::config::{Config, Place};
use super::running::{NodeInfo, StackError};
use crate::backends::registry::Role;
use crate::protocol::ServerName;
use crate::runtime::{Tasks, net};
use crate::server::chat::tamper::Tamper;
use crate::server::chat::{self, ChatServer};
use crate::server::gateway::{self, Gateway};
use crate::server::{Deps, Listeners, api, presence, push};

/// How long tasks may take to end once they are told to.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A running server.
pub(super) struct Node {
    pub(super) name: ServerName,
    pub(super) role: Role,
    /// Where it is reached: clients of chat and API servers, peers of presence servers. `None` for push.
    pub(super) address: Option<SocketAddr>,
    /// Where a gateway takes WebSockets.
    websocket_address: Option<SocketAddr>,
    tasks: Tasks,
    clients_of: Option<ClientsOf>,
    /// `None` once the node is stopped or killed.
    home: Option<Home>,
}

/// A server that holds connections of clients, who are let go before it stops.
enum ClientsOf {
    Chat(Arc<ChatServer>),
    Gateway(Arc<Gateway>),
}

impl ClientsOf {
    async fn drain(&self, limit: Duration) {
        match self {
            Self::Chat(server) => server.drain(limit).await,
            Self::Gateway(gateway) => gateway.drain(limit).await,
        }
    }
}

/// Where a server runs.
pub(super) enum Home {
    /// In a runtime that ends in the background wherever it is dropped: waiting for it would block, which async code may not.
    Own(Option<Runtime>),
    /// In the runtime of the process, with which it ends.
    Process(Handle),
}

impl Home {
    /// A runtime with one thread, for a server that may be killed.
    pub(super) fn own(server: &ServerName) -> Result<Self, StackError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(format!("srv-{server}"))
            .enable_all()
            .build()
            .map_err(|source| StackError::Runtime { server: server.clone(), source })?;
        Ok(Self::Own(Some(runtime)))
    }

    /// Begins work there. What a server does from then on is in its own tasks.
    #[expect(clippy::disallowed_methods, reason = "the tasks of a server are spawned on the runtime that spawns them")]
    fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        match self {
            Self::Own(runtime) => runtime.as_ref().expect("taken only by drop").spawn(task),
            Self::Process(handle) => handle.spawn(task),
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Self::Own(runtime) = self
            && let Some(runtime) = runtime.take()
        {
            runtime.shutdown_background();
        }
    }
}

impl Node {
    /// Starts a server and returns when it is announced.
    pub(super) async fn start(
        home: Home,
        place: Place,
        deps: Deps,
        config: &Config,
        tamper: Option<Arc<dyn Tamper>>,
    ) -> Result<Self, StackError> {
        let (name, role) = (place.name.clone(), place.role);
        let tasks = deps.tasks.clone();
        let config = config.clone();
        let started = home.spawn(async move { start_role(&place, deps, config, tamper).await });
        let Started { address, websocket_address, clients_of } = match started.await {
            Ok(Ok(started)) => started,
            Ok(Err(error)) => return Err(error),
            Err(error) => return Err(StackError::Runtime { server: name, source: std::io::Error::other(error) }),
        };
        Ok(Self { name, role, address, websocket_address, tasks, clients_of, home: Some(home) })
    }

    pub(super) fn info(&self) -> NodeInfo {
        NodeInfo {
            name: self.name.clone(),
            role: self.role,
            address: self.address,
            websocket_address: self.websocket_address,
            is_running: self.is_running(),
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.home.is_some()
    }

    /// Lets clients leave, then stops.
    pub(super) async fn stop(&mut self, drain: Duration) {
        let Some(home) = self.home.take() else { return };
        if let Some(clients_of) = self.clients_of.take() {
            let tasks = self.tasks.clone();
            let drained = home.spawn(async move {
                clients_of.drain(drain).await;
                tasks.stop();
            });
            let _ = drained.await;
        }
        self.tasks.stop();
        self.tasks.join(STOP_TIMEOUT).await;
        drop(home);
    }

    /// The chat server, for tests that look inside.
    #[cfg(test)]
    pub(super) fn chat(&self) -> Option<Arc<ChatServer>> {
        match &self.clients_of {
            Some(ClientsOf::Chat(server)) => Some(Arc::clone(server)),
            _ => None,
        }
    }

    /// Ends the server at once.
    pub(super) fn kill(&mut self) {
        self.clients_of = None;
        // The runtime of a test goes on.
        #[cfg(test)]
        self.tasks.kill();
        self.home = None;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a start gives.
struct Started {
    address: Option<SocketAddr>,
    websocket_address: Option<SocketAddr>,
    clients_of: Option<ClientsOf>,
}

impl Started {
    const fn at(address: SocketAddr) -> Self {
        Self { address: Some(address), websocket_address: None, clients_of: None }
    }
}

async fn start_role(
    place: &Place,
    deps: Deps,
    config: Config,
    tamper: Option<Arc<dyn Tamper>>,
) -> Result<Started, StackError> {
    let failed = |source| StackError::Start { server: place.name.clone(), source };
    let bind = |port, setting| bind(&place.name, SocketAddr::new(config.host, port), setting);
    let setting = PortSetting::of(place.role);
    let listeners = || Ok::<_, StackError>(Listeners { clients: bind(place.port, setting)?, peers: bind(0, None)? });
    Ok(match place.role {
        Role::Chat => {
            let server = chat::start(listeners()?, deps, config.chat, tamper).await.map_err(failed)?;
            Started { clients_of: Some(ClientsOf::Chat(Arc::clone(&server))), ..Started::at(server.address()) }
        }
        Role::Presence => Started::at(presence::start(bind(0, None)?, deps, config.presence).await.map_err(failed)?),
        Role::Api => Started::at(api::start(listeners()?, deps, config.api).await.map_err(failed)?),
        Role::Push => {
            push::start(bind(0, None)?, deps).await.map_err(failed)?;
            Started { address: None, websocket_address: None, clients_of: None }
        }
        Role::Gateway => {
            let http = bind(place.port, setting)?;
            let mut address = http.local_addr().map_err(|e| failed(e.into()))?;
            if let Some(advertised) = deps.advertise {
                address.set_ip(advertised);
            }
            let clients = bind(place.websocket_port, Some(PortSetting::GATEWAY_WEBSOCKETS))?;
            let listeners = Listeners { clients, peers: bind(0, None)? };
            let gateway = gateway::start(listeners, http, deps, config.gateway).await.map_err(failed)?;
            Started {
                websocket_address: Some(gateway.address()),
                clients_of: Some(ClientsOf::Gateway(gateway)),
                ..Started::at(address)
            }
        }
    })
}

/// How the port of the first server of a role is set; the next ones have the next.
#[derive(Clone, Copy)]
struct PortSetting {
    /// In a file.
    key: &'static str,
    /// On the command line.
    flag: Option<&'static str>,
}

impl PortSetting {
    const GATEWAY_WEBSOCKETS: Self = Self { key: "gateway_chat_port", flag: None };

    const fn of(role: Role) -> Option<Self> {
        match role {
            Role::Api => Some(Self { key: "api_port", flag: Some("--api-port") }),
            Role::Chat => Some(Self { key: "chat_port", flag: Some("--chat-port") }),
            Role::Gateway => Some(Self { key: "gateway_port", flag: None }),
            Role::Presence | Role::Push => None,
        }
    }
}

fn bind(
    server: &ServerName,
    address: SocketAddr,
    setting: Option<PortSetting>,
) -> Result<tokio::net::TcpListener, StackError> {
    net::listen(address).map_err(|source| {
        let is_about_host = source.kind() == std::io::ErrorKind::AddrNotAvailable || address.port() == 0;
        let fix = match setting.filter(|_| !is_about_host) {
            Some(PortSetting { key, flag: Some(flag) }) => {
                format!("give another port with {flag} ({key} in a file of settings), or 0 for any")
            }
            Some(PortSetting { key, flag: None }) => {
                format!("give another port with {key} in a file of settings, or 0 for any")
            }
            None => "give an address of this machine with --host (host in a file of settings)".to_owned(),
        };
        StackError::Bind { server: server.clone(), address, source, fix }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_can_not_be_had_names_the_setting() {
        let taken = net::listen("127.0.0.1:0".parse().expect("valid")).expect("binds");
        let address = taken.local_addr().expect("bound");
        let refused = |role, address| {
            let server = format!("{role}-1").parse().expect("a name");
            bind(&server, address, PortSetting::of(role)).expect_err("refused").to_string()
        };
        for (role, wanted) in [
            (Role::Api, "give another port with --api-port (api_port in a file of settings), or 0 for any"),
            (Role::Chat, "give another port with --chat-port (chat_port in a file of settings)"),
            (Role::Gateway, "give another port with gateway_port in a file of settings"),
        ] {
            let told = refused(role, address);
            assert!(told.contains(wanted), "{told}");
        }
        let nowhere = refused(Role::Api, "203.0.113.1:7100".parse().expect("valid"));
        assert!(nowhere.contains("--host (host in a file"), "{nowhere}");
    }
}
