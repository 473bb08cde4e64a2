//! The whole stack of processes: started, told about, changed, stopped.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::{join_all, select_all};
use tokio::sync::Mutex as AsyncMutex;

use super::engines::LocalEngines;
use super::make_folder;
use super::relay::Relay;
use super::server::{Files, Server};
use super::status::{EngineStatus, Phase, ServerStatus, Status};
use crate::backends::registry::{ENTRY_TTL, Role};
use crate::backends::{self, Backends, Engine, OpenedEngine};
use crate::protocol::{Fault, ServerName};
use crate::runtime::process::{self, Usage};
use crate::runtime::{Tasks, clock};
use crate::server::cluster::refresh_interval;
use crate::stack::config::{Config, Place, SERVERS_MAX};
use crate::stack::running::{self, StackError};
use crate::stack::secrets::Secrets;

/// Longest that faults may take to come to their end when the stack ends: an engine is started again.
const FAULTS_END_TIMEOUT: Duration = Duration::from_mins(1);

/// Longest that an engine may take to say how it is.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// What a supervisor needs beside the stack's settings.
pub struct Options {
    /// Folder of the control socket, the logs and the data; made when it is not there.
    pub folder: PathBuf,
    /// The `chatctl` program.
    pub program: PathBuf,
    /// Told what happens while the stack starts, for people.
    pub note: Box<dyn Fn(String) + Send + Sync>,
}

/// A running stack of processes. Its processes end with it.
pub struct Supervisor {
    config: Config,
    options: Options,
    backends: Backends,
    /// By name. Changed by `scale` and `drain`.
    servers: Mutex<BTreeMap<ServerName, Arc<Server>>>,
    /// By server and kind of engine; empty without `processes.relays`.
    relays: Mutex<HashMap<(ServerName, String), Arc<Relay>>>,
    local_engines: Option<LocalEngines>,
    /// Held while the set of servers changes, so that two changes do not mix.
    changing: AsyncMutex<()>,
    tasks: Tasks,
    /// Faults under way; told to come to their end when the stack ends.
    pub(super) faults: Tasks,
    pub(super) faults_under_way: Mutex<Vec<(Fault, Instant)>>,
}

impl Supervisor {
    /// Starts every server; all of them serve when this returns.
    ///
    /// # Errors
    /// Names the setting, the engine or the server, and what to do. What had started is ended.
    pub async fn start(config: Config, options: Options) -> Result<Arc<Self>, StackError> {
        config.check().map_err(StackError::Config)?;
        if let Some(port) = config.engines.not_shared() {
            return Err(StackError::Config(format!(
                "engines.{port} is embedded: servers in processes of their own share nothing with it; give an address"
            )));
        }
        let folder = &options.folder;
        for path in [folder.clone(), folder.join("logs"), folder.join("servers"), folder.join("data")] {
            make_folder(&path).map_err(|source| StackError::Data { path, source })?;
        }
        let data = folder.join("data");
        Secrets::read_or_make(&data)?;
        (options.note)("opening the engines".to_owned());
        let backends = backends::open(&running::engines(&config, &data)).await?;
        for opened in &*backends.opened {
            (options.note)(format!("{} at {} for {}", opened.version, opened.address, opened.ports.join(", ")));
        }
        let local_engines = config.processes.engines_command.clone().map(LocalEngines::new);
        let supervisor = Arc::new(Self {
            config,
            options,
            backends,
            servers: Mutex::default(),
            relays: Mutex::default(),
            local_engines,
            changing: AsyncMutex::default(),
            tasks: Tasks::new(),
            faults: Tasks::new(),
            faults_under_way: Mutex::default(),
        });
        supervisor.wait_for_an_empty_registry().await?;
        let places = supervisor.config.places();
        let until_all_are_seen = refresh_interval(places.len()) * 3 / 2;
        let started = supervisor.start_all(places).await;
        if let Err(error) = started {
            supervisor.stop().await;
            return Err(error);
        }
        // By then every server has read the registry once more, and an API server that was up before the chat servers does
        // not send the first thousand users to the one that it knows.
        tokio::time::sleep(until_all_are_seen).await;
        Ok(supervisor)
    }

    /// Servers of another stack in the same registry would get our users, and we theirs. Entries of a stack that has just
    /// ended go within their life.
    async fn wait_for_an_empty_registry(&self) -> Result<(), StackError> {
        let deadline = clock::instant() + ENTRY_TTL + Duration::from_secs(3);
        let mut is_told = false;
        loop {
            let mut there = Vec::new();
            for role in Role::ALL {
                there.extend(self.backends.registry.list(role).await?.into_iter().map(|entry| entry.name.to_string()));
            }
            if there.is_empty() {
                return Ok(());
            }
            if clock::instant() >= deadline {
                let (registry, there) = (&self.config.engines.registry, there.join(", "));
                return Err(StackError::Occupied(format!(
                    "another stack runs at {registry}: {there}; stop it, or give each stack an address with another prefix"
                )));
            }
            if !std::mem::replace(&mut is_told, true) {
                (self.options.note)("waiting for the entries of an earlier stack to end".to_owned());
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Starts servers side by side and waits until all serve.
    async fn start_all(self: &Arc<Self>, places: Vec<Place>) -> Result<(), StackError> {
        let mut starting = Vec::new();
        for place in places {
            let server = Arc::new(self.server(place)?);
            self.servers.lock().expect("no panic while held").insert(server.name.clone(), Arc::clone(&server));
            self.tasks.spawn("supervisor.server", Arc::clone(&server).supervise());
            let first = Box::pin(async move {
                let settled =
                    |s: &super::server::State| matches!(s.phase, Phase::Running | Phase::Down | Phase::Stopped);
                let state = server.until(settled).await;
                (server, state)
            });
            starting.push(first);
        }
        while !starting.is_empty() {
            let ((server, state), _, rest) = select_all(starting).await;
            starting = rest;
            match state {
                Some(state) if state.phase == Phase::Running => {
                    (self.options.note)(format!("{} is ready", server.name));
                }
                state => {
                    let how = state.and_then(|state| state.last_exit).unwrap_or_else(|| "ended".to_owned());
                    let (log, tail) = (server.log().display().to_string(), server.log_tail());
                    return Err(StackError::Process { server: server.name.clone(), how, log, tail });
                }
            }
        }
        Ok(())
    }

    /// A server with its files and, where relays are wanted, its own addresses of the engines.
    fn server(&self, place: Place) -> Result<Server, StackError> {
        let folder = &self.options.folder;
        let name = &place.name;
        let files = Files {
            program: self.options.program.clone(),
            config: folder.join("servers").join(format!("{name}.yaml")),
            log: folder.join("logs").join(format!("{name}.log")),
            data: folder.join("data"),
        };
        let mut config = self.config.clone();
        if config.processes.relays {
            for engine in config.engines.all_mut() {
                *engine =
                    self.relayed(name, engine).map_err(|source| StackError::Relay { server: name.clone(), source })?;
            }
        }
        Ok(Server::new(place, files, config))
    }

    /// An engine's address through relays of a server.
    fn relayed(&self, server: &ServerName, engine: &Engine) -> std::io::Result<Engine> {
        let Some(kind) = engine.kind() else { return Ok(engine.clone()) };
        let key = (server.clone(), kind.to_owned());
        let mut relays = self.relays.lock().expect("no panic while held");
        // One relay for each kind: a cluster's first node stands for it.
        let relay = if let Some(relay) = relays.get(&key) {
            Arc::clone(relay)
        } else {
            let host = engine.hosts().into_iter().next().unwrap_or_default();
            let relay = Arc::new(Relay::start(&host, kind == "kafka", &self.tasks)?);
            relays.insert(key, Arc::clone(&relay));
            relay
        };
        Ok(engine.with_host(&relay.address.to_string()))
    }

    // ---- what there is

    pub(super) const fn config(&self) -> &Config {
        &self.config
    }

    pub(super) fn local_engines(&self) -> Option<LocalEngines> {
        self.local_engines.clone()
    }

    pub(super) fn servers(&self) -> Vec<Arc<Server>> {
        self.servers.lock().expect("no panic while held").values().cloned().collect()
    }

    pub(super) fn find(&self, name: &str) -> Option<Arc<Server>> {
        self.servers().into_iter().find(|server| server.name.as_str() == name)
    }

    pub(super) fn engine_kinds(&self) -> Vec<String> {
        self.backends.opened.iter().map(|opened| opened.kind.clone()).collect()
    }

    pub(super) fn relay(&self, server: &str, engine: &str) -> Result<Arc<Relay>, String> {
        if !self.config.processes.relays {
            return Err("there is no relay between servers and engines: set processes.relays to true".to_owned());
        }
        let relays = self.relays.lock().expect("no panic while held");
        let found = relays.iter().find(|((s, e), _)| s.as_str() == server && e == engine).map(|(_, relay)| relay);
        found.cloned().ok_or_else(|| format!("{server} has no way to {engine}"))
    }

    /// Address for HTTP: of the first gateway that serves, or of the first API server.
    #[must_use]
    pub fn api_url(&self) -> Option<String> {
        let servers = self.servers();
        let address = |role| servers.iter().filter(|s| s.place().role == role).find_map(|s| s.state().address);
        address(Role::Gateway).or_else(|| address(Role::Api)).map(|address| format!("http://{address}"))
    }

    /// Everything that can be told now; engines that do not answer take a second.
    pub async fn status(&self) -> Status {
        let mut connections = HashMap::new();
        for role in [Role::Chat, Role::Gateway] {
            let entries = tokio::time::timeout(PROBE_TIMEOUT, self.backends.registry.list(role)).await;
            let entries = entries.ok().and_then(Result::ok).unwrap_or_default();
            connections.extend(entries.into_iter().map(|entry| (entry.name, entry.load)));
        }
        let health = self.backends.probe(PROBE_TIMEOUT).await;
        let engines = join_all(self.backends.opened.iter().map(|opened| self.engine_status(opened, &health))).await;
        let servers = self.servers();
        let usage = process::usage_of_all(servers.iter().filter_map(|server| server.state().pid).collect()).await;
        Status {
            supervisor_pid: std::process::id(),
            folder: self.options.folder.clone(),
            api_url: self.api_url(),
            servers: servers.iter().map(|server| server_status(server, &connections, &usage)).collect(),
            engines,
        }
    }

    async fn engine_status(&self, opened: &OpenedEngine, health: &BTreeMap<&'static str, String>) -> EngineStatus {
        let local = match &self.local_engines {
            Some(local) => local.usage(&opened.kind).await,
            None => None,
        };
        let wrong = opened.ports.iter().filter_map(|port| health.get(port.as_str())).find(|state| *state != "ok");
        let (pid, usage) = local.unzip();
        let usage: Usage = usage.unwrap_or_default();
        EngineStatus {
            kind: opened.kind.clone(),
            version: opened.version.clone(),
            address: opened.address.clone(),
            ports: opened.ports.clone(),
            state: wrong.cloned().unwrap_or_else(|| "ok".to_owned()),
            pid,
            cpu_s: usage.cpu.as_secs_f64(),
            resident_bytes: usage.resident_bytes,
        }
    }

    // ---- what changes it

    /// Starts or drains servers of a role until there are `count`.
    ///
    /// # Errors
    /// Names the role's limits, or the server that did not start.
    pub async fn scale(self: &Arc<Self>, role: Role, count: usize) -> Result<(), StackError> {
        let _alone = self.changing.lock().await;
        let most = if role == Role::Push { 1 } else { SERVERS_MAX };
        let least = usize::from(matches!(role, Role::Chat | Role::Api | Role::Presence));
        if !(least..=most).contains(&count) {
            return Err(StackError::Config(format!("{role}={count}: valid are {least} to {most}")));
        }
        let mut numbers: Vec<usize> =
            self.servers().iter().map(|s| s.place()).filter(|p| p.role == role).map(|p| p.number).collect();
        let mut places = Vec::new();
        let mut free = self.config.first_number..;
        while numbers.len() + places.len() < count {
            let number = free.by_ref().find(|n| !numbers.contains(n)).expect("there is always another number");
            places.push(self.config.place(role, number));
        }
        self.start_all(places).await?;
        // The youngest leave, one after the other, so that their clients find room.
        numbers.sort_unstable();
        while numbers.len() > count {
            let number = numbers.pop().expect("more than none");
            self.remove(self.config.place(role, number).name.as_str()).await.map_err(StackError::Config)?;
        }
        Ok(())
    }

    /// Lets a server's clients leave at a limited rate, then ends it for good.
    ///
    /// # Errors
    /// Names the servers that there are.
    pub async fn drain(&self, name: &str) -> Result<(), String> {
        let _alone = self.changing.lock().await;
        self.remove(name).await
    }

    async fn remove(&self, name: &str) -> Result<(), String> {
        let server = self.find(name).ok_or_else(|| self.no_such_server(name))?;
        server.finish().await;
        self.servers.lock().expect("no panic while held").remove(&server.name);
        self.relays.lock().expect("no panic while held").retain(|(of, _), _| *of != server.name);
        Ok(())
    }

    /// Ends servers in good order and starts them again, one after the other; all of them when none is named.
    ///
    /// # Errors
    /// Names the servers that there are, or the one that does not serve again.
    pub async fn restart(&self, names: &[String], note: impl Fn(String)) -> Result<(), String> {
        let _alone = self.changing.lock().await;
        let servers: Vec<Arc<Server>> = if names.is_empty() {
            self.servers()
        } else {
            let find = |name: &String| self.find(name).ok_or_else(|| self.no_such_server(name));
            names.iter().map(find).collect::<Result<_, _>>()?
        };
        for server in servers {
            server.restart().await?;
            note(format!("{} serves again", server.name));
        }
        Ok(())
    }

    fn no_such_server(&self, name: &str) -> String {
        let there = self.servers().iter().map(|s| s.name.to_string()).collect::<Vec<_>>().join(", ");
        format!("there is no server {name}: there are {there}")
    }

    /// Ends every server: chat servers first, so that their clients are told; then those that they need.
    pub async fn stop(&self) {
        // A cut or frozen server could not end in good order, and an engine must not stay frozen.
        self.faults.stop();
        self.faults.join(FAULTS_END_TIMEOUT).await;
        let servers = self.servers();
        let (chat, others): (Vec<_>, Vec<_>) = servers.iter().partition(|s| s.place().role == Role::Chat);
        join_all(chat.into_iter().map(|server| server.finish())).await;
        join_all(others.into_iter().map(|server| server.finish())).await;
        self.tasks.stop();
    }
}

fn server_status(
    server: &Server,
    connections: &HashMap<ServerName, u64>,
    usage: &BTreeMap<u32, Usage>,
) -> ServerStatus {
    let state = server.state();
    let usage = state.pid.and_then(|pid| usage.get(&pid)).copied().unwrap_or_default();
    ServerStatus {
        name: server.name.clone(),
        role: server.place().role,
        phase: state.phase,
        pid: state.pid,
        phase_s: (clock::now_us() - state.since_us) as f64 / 1e6,
        restarts: state.restarts,
        last_exit: state.last_exit,
        address: state.address,
        websocket_address: state.websocket_address,
        connections: connections.get(&server.name).copied(),
        cpu_s: usage.cpu.as_secs_f64(),
        resident_bytes: usage.resident_bytes,
    }
}
