//! The stack that a load runs against, when chatctl has hands on it: in this process, as processes of its own, or one that
//! `chatctl up` started.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::loadgen::control::StackControl;
use crate::loadgen::result::ProcessUsage;
use crate::loadgen::scenario::EngineChoice;
use crate::loadgen::{Scenario, Target};
use crate::protocol::Fault;
use crate::run::Error;
use crate::server::access::auth::PasswordCost;
use crate::stack::processes::control::{Client, Request};
use crate::stack::processes::{Options, Status};
use crate::stack::profile::Profile;
use crate::stack::{Config, Stack, Supervisor, fault_check};
use async_trait::async_trait;
use tokio::sync::Mutex;

/// Cost of password hashes in a stack that lives for one run: its accounts are worth nothing, and a thousand logins at
/// the real cost would take longer than the load.
const THROWAWAY_PASSWORD_COST: PasswordCost = PasswordCost { memory_kib: 64, passes: 1 };

/// A stack and what may be done to it.
#[derive(Clone)]
pub(super) enum OwnStack {
    /// In this process; `None` once it was stopped.
    InProcess(Arc<Mutex<Option<Stack>>>),
    /// Each server a process, which this one supervises.
    Processes(Arc<Supervisor>),
    /// Started by `chatctl up`, in this folder.
    Up(PathBuf),
    /// Not started: what could be done to it is known all the same.
    Planned(Box<Config>),
}

impl OwnStack {
    /// The settings of the stack that a scenario asks for.
    pub(super) fn config(scenario: &Scenario) -> Config {
        let spec = &scenario.stack;
        let profile = match spec.engines {
            EngineChoice::Embedded => Profile::Embedded,
            EngineChoice::Real => Profile::Engines,
        };
        let mut config = Config {
            chat_servers: spec.chat_servers,
            presence_servers: spec.presence_servers,
            api_servers: spec.api_servers,
            gateways: spec.gateways,
            partitions: spec.partitions,
            drain_timeout: Duration::from_secs(2),
            // Any ports: this stack is nobody's but the run's.
            api_port: 0,
            chat_port: 0,
            gateway_port: 0,
            gateway_chat_port: 0,
            ..profile.config()
        };
        config.api.password_cost = THROWAWAY_PASSWORD_COST;
        config.api.bulk_accounts = true;
        config.processes.relays = scenario.faults.iter().any(|fault| matches!(fault.action, Fault::Cut { .. }));
        config
    }

    /// Starts what a scenario asks for. `folder` is for the logs of processes; `note` gets what the supervisor of processes reports.
    ///
    /// # Errors
    /// When the stack does not start.
    pub(super) async fn start(
        scenario: &Scenario,
        folder: &Path,
        note: impl Fn(String) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let config = Self::config(scenario);
        if !config.processes.enabled {
            return Ok(Self::InProcess(Arc::new(Mutex::new(Some(Stack::start(config).await?)))));
        }
        let program = std::env::current_exe().map_err(Error::environment)?;
        let options = Options { folder: folder.to_owned(), program, note: Box::new(note) };
        let supervisor = Supervisor::start(config, options).await;
        Ok(Self::Processes(supervisor.map_err(Error::of_local_engines)?))
    }

    /// The stack that `chatctl up` runs in a folder, if the target is its.
    pub(super) async fn find(target: &Target, folder: &Path) -> Option<Self> {
        let mut client = Client::connect(folder).await.ok()?;
        let status: Status = client.ask(&Request::Status, |_| ()).await.ok()?;
        (status.api_url.as_deref() == Some(target.as_str())).then(|| Self::Up(folder.to_owned()))
    }

    /// Address for HTTP.
    pub(super) async fn api_url(&self) -> Option<String> {
        match self {
            Self::InProcess(stack) => stack.lock().await.as_ref().and_then(Stack::api_url),
            Self::Processes(supervisor) => supervisor.api_url(),
            Self::Up(_) | Self::Planned(_) => None,
        }
    }

    /// Ends what was started for the run.
    pub(super) async fn stop(self) {
        match self {
            Self::InProcess(stack) => {
                let stack = stack.lock().await.take();
                if let Some(stack) = stack {
                    stack.stop().await;
                }
            }
            Self::Processes(supervisor) => supervisor.stop().await,
            Self::Up(_) | Self::Planned(_) => {}
        }
    }

    async fn status(&self) -> Option<Status> {
        match self {
            Self::InProcess(_) | Self::Planned(_) => None,
            Self::Processes(supervisor) => Some(supervisor.status().await),
            Self::Up(folder) => Client::connect(folder).await.ok()?.ask(&Request::Status, |_| ()).await.ok(),
        }
    }
}

async fn ask(folder: &Path, request: &Request) -> Result<(), String> {
    let mut client = Client::connect(folder).await.map_err(|e| e.to_string())?;
    client.ask(request, |_| ()).await.map_err(|e| e.to_string())
}

#[async_trait]
impl StackControl for OwnStack {
    async fn check(&self, fault: &Fault) -> Result<(), String> {
        match self {
            Self::InProcess(stack) => {
                let nodes = stack.lock().await.as_ref().map(Stack::nodes).unwrap_or_default();
                let servers: Vec<String> = nodes.iter().map(|node| node.name.to_string()).collect();
                fault_check::in_process(fault, &servers)
            }
            Self::Planned(config) => fault_check::check_planned(config, fault),
            Self::Processes(supervisor) => supervisor.check_fault(fault).await,
            Self::Up(folder) => ask(folder, &Request::CheckFault(fault.clone())).await,
        }
    }

    async fn do_fault(&self, fault: &Fault) -> Result<(), String> {
        match self {
            Self::InProcess(stack) => {
                let mut stack = stack.lock().await;
                let stack = stack.as_mut().ok_or("the stack is gone")?;
                match fault {
                    Fault::Kill(name) => stack.kill(name).map_err(|e| e.to_string()),
                    Fault::Drain(name) => stack.drain(name).await.map_err(|e| e.to_string()),
                    other => Err(format!("{other}: not in one process")),
                }
            }
            Self::Processes(supervisor) => supervisor.do_fault(fault.clone()).await,
            Self::Up(folder) => ask(folder, &Request::DoFault(fault.clone())).await,
            Self::Planned(_) => Err("the stack was not started".to_owned()),
        }
    }

    async fn usage(&self) -> Vec<ProcessUsage> {
        let Some(status) = self.status().await else { return Vec::new() };
        let servers = status.servers.into_iter().filter_map(|s| {
            let role = s.role.name().to_owned();
            let (name, cpu_s, resident_bytes) = (s.name.to_string(), s.cpu_s, s.resident_bytes);
            Some(ProcessUsage { name, role, pid: s.pid?, cpu_s, resident_bytes })
        });
        let engines = status.engines.into_iter().filter_map(|e| {
            let role = "engine".to_owned();
            let (name, cpu_s, resident_bytes) = (e.kind, e.cpu_s, e.resident_bytes);
            Some(ProcessUsage { name, role, pid: e.pid?, cpu_s, resident_bytes })
        });
        servers.chain(engines).collect()
    }
}
