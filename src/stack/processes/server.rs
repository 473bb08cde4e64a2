//! One server as a process: started, waited for, told to end, started again when it ends by itself.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;

use super::status::Phase;
use crate::protocol::ServerName;
use crate::runtime::process::{self, Tell};
use crate::runtime::{Backoff, clock};
use crate::stack::config::{Config, Place};
use crate::stack::running::NodeInfo;

/// Longest that a server may take to be ready: Kafka's first idempotent producer alone takes seconds.
const READY_TIMEOUT: Duration = Duration::from_mins(1);

/// Longest that an end in good order may take beyond the time for clients to leave.
const END_TIMEOUT: Duration = Duration::from_secs(15);

/// Waits before a server is started again.
const RESTART_FIRST: Duration = Duration::from_millis(500);
const RESTART_MAX: Duration = Duration::from_secs(5);

/// A server that ran this long starts again without a long wait.
const STEADY: Duration = Duration::from_secs(30);

/// A log of this size is put aside when its server starts.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// Lines of a log that are told when a server does not start.
const TAIL_LINES: usize = 5;

/// What the supervisor wants of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// Run; with another number: end in good order and start again.
    Run(u32),
    /// End at once and stay down until told.
    Hold,
    /// End in good order, for good.
    End,
}

/// What is known of a server. Written by its task, read by whoever asks.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) phase: Phase,
    /// On [`clock::now_us`].
    pub(super) since_us: u64,
    pub(super) pid: Option<u32>,
    pub(super) restarts: u32,
    pub(super) last_exit: Option<String>,
    pub(super) address: Option<SocketAddr>,
    pub(super) websocket_address: Option<SocketAddr>,
}

/// Where a server's program and files are.
pub(super) struct Files {
    pub(super) program: PathBuf,
    /// Settings for this server alone.
    pub(super) config: PathBuf,
    pub(super) log: PathBuf,
    pub(super) data: PathBuf,
}

/// A supervised server.
pub(super) struct Server {
    pub(super) name: ServerName,
    /// Its ports become those of its first start, where clients have to find it again. Written by its task.
    place: Mutex<Place>,
    files: Files,
    config: Config,
    wish: watch::Sender<Wish>,
    /// How far its wall clock is to be off, in ms.
    skew_ms: watch::Sender<i64>,
    state: watch::Sender<State>,
}

/// How one life of a process ended.
enum Ended {
    Asked,
    ByItself(String),
}

impl Server {
    /// Not started yet: [`Server::supervise`] does that.
    pub(super) fn new(place: Place, files: Files, config: Config) -> Self {
        let state = State {
            phase: Phase::Starting,
            since_us: clock::now_us(),
            pid: None,
            restarts: 0,
            last_exit: None,
            address: None,
            websocket_address: None,
        };
        Self {
            name: place.name.clone(),
            place: Mutex::new(place),
            files,
            config,
            wish: watch::Sender::new(Wish::Run(0)),
            skew_ms: watch::Sender::new(0),
            state: watch::Sender::new(state),
        }
    }

    pub(super) fn place(&self) -> Place {
        self.place.lock().expect("no panic while held").clone()
    }

    pub(super) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    pub(super) fn log(&self) -> &Path {
        &self.files.log
    }

    /// Runs the process for as long as it is wanted.
    pub(super) async fn supervise(self: Arc<Self>) {
        let mut wish = self.wish.subscribe();
        let mut backoff = Backoff::new(RESTART_FIRST, RESTART_MAX);
        loop {
            let wanted = *wish.borrow_and_update();
            match wanted {
                Wish::Run(_) => {}
                Wish::End => return self.enter(Phase::Stopped),
                Wish::Hold => {
                    self.enter(Phase::Down);
                    if wish.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
            }
            let started = clock::instant();
            match self.live(&mut wish).await {
                Ended::Asked => backoff.reset(),
                Ended::ByItself(how) => {
                    tracing::warn!(server = %self.name, how, "a server ended by itself");
                    self.state.send_modify(|state| {
                        state.restarts += 1;
                        state.last_exit = Some(how);
                    });
                    self.enter(Phase::Down);
                    if started.elapsed() > STEADY {
                        backoff.reset();
                    }
                    let wait = backoff.next_wait(&mut rand::rng());
                    let _ = tokio::time::timeout(wait, wish.changed()).await;
                }
            }
        }
    }

    fn enter(&self, phase: Phase) {
        self.state.send_modify(|state| {
            state.phase = phase;
            state.since_us = clock::now_us();
            if matches!(phase, Phase::Down | Phase::Stopped) {
                state.pid = None;
            }
        });
    }

    /// One life of the process.
    async fn live(&self, wish: &mut watch::Receiver<Wish>) -> Ended {
        self.enter(Phase::Starting);
        let mut child = match self.spawn() {
            Ok(child) => child,
            Err(error) => {
                return Ended::ByItself(format!("{} can't be started: {error}", self.files.program.display()));
            }
        };
        self.state.send_modify(|state| state.pid = child.id());
        // Held open for as long as it lives: its end tells the server that its supervisor is gone.
        let input = child.stdin.take();
        tokio::select! {
            ended = self.live_on(child, wish) => ended,
            () = self.tell_the_time(input) => unreachable!("it never ends"),
        }
    }

    /// Tells a process how far its clock is to be off, at its start and whenever that changes; for ever.
    async fn tell_the_time(&self, mut input: Option<ChildStdin>) {
        let mut skew_ms = self.skew_ms.subscribe();
        loop {
            let line = format!("{}{}\n", clock::SKEW_PREFIX, *skew_ms.borrow_and_update());
            if let Some(input) = &mut input {
                // One that does not hear it is about to end.
                let _ = input.write_all(line.as_bytes()).await;
            }
            if skew_ms.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Inputs: its ready line, its end, a change of the wish.
    async fn live_on(&self, mut child: Child, wish: &mut watch::Receiver<Wish>) -> Ended {
        let mut lines = child.stdout.take().map(|out| BufReader::new(out).lines());
        let ready = async {
            match &mut lines {
                Some(lines) => lines.next_line().await.ok().flatten(),
                None => None,
            }
        };
        tokio::select! {
            biased;
            _ = wish.changed() => {
                let wish = *wish.borrow();
                return self.end(&mut child, wish).await;
            }
            line = tokio::time::timeout(READY_TIMEOUT, ready) => {
                let nodes = line.ok().flatten().and_then(|line| serde_json::from_str::<Vec<NodeInfo>>(&line).ok());
                let Some(node) = nodes.as_ref().and_then(|nodes| nodes.first()) else {
                    // It ends by itself, or it hangs.
                    let exit = tokio::time::timeout(Duration::from_secs(1), child.wait()).await;
                    let _ = child.kill().await;
                    return Ended::ByItself(match exit {
                        Ok(Ok(exit)) => describe(exit),
                        _ => format!("not ready within {} s", READY_TIMEOUT.as_secs()),
                    });
                };
                self.is_ready(node);
            }
        }
        tokio::select! {
            biased;
            _ = wish.changed() => {
                let wish = *wish.borrow();
                self.end(&mut child, wish).await
            }
            exit = child.wait() => Ended::ByItself(exit.map_or_else(|e| e.to_string(), describe)),
        }
    }

    fn is_ready(&self, node: &NodeInfo) {
        // Clients know a gateway by its address: it comes back where it was.
        let mut place = self.place.lock().expect("no panic while held");
        if place.role == crate::backends::registry::Role::Gateway {
            place.port = node.address.map_or(place.port, |address| address.port());
            place.websocket_port = node.websocket_address.map_or(place.websocket_port, |address| address.port());
        }
        drop(place);
        self.state.send_modify(|state| {
            state.address = node.address;
            state.websocket_address = node.websocket_address;
        });
        self.enter(Phase::Running);
    }

    /// Ends the process as it is wished.
    async fn end(&self, child: &mut Child, wish: Wish) -> Ended {
        let Some(pid) = child.id() else { return Ended::Asked };
        if wish == Wish::Hold {
            let _ = child.kill().await;
            return Ended::Asked;
        }
        self.enter(Phase::Draining);
        // One that stands still would not hear it. That the process is gone already is what we want.
        let _ = process::tell(pid, Tell::GoOn);
        let _ = process::tell(pid, Tell::End);
        if tokio::time::timeout(self.config.drain_timeout + END_TIMEOUT, child.wait()).await.is_err() {
            tracing::warn!(server = %self.name, "a server did not end in time and is killed");
            let _ = child.kill().await;
        }
        Ended::Asked
    }

    fn spawn(&self) -> io::Result<Child> {
        let place = self.place();
        self.write_config(&place)?;
        let mut command = Command::new(&self.files.program);
        // What the supervisor was told by its environment is in the file.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CHATCTL_") && name != "CHATCTL_LOG") {
            command.env_remove(name);
        }
        command
            .args(["serve", "--supervised", "--role", place.role.name(), "--config"])
            .arg(&self.files.config)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(open_log(&self.files.log)?)
            // A ctrl-c in the terminal is for the supervisor.
            .process_group(0)
            .kill_on_drop(true);
        command.spawn()
    }

    /// Writes the settings of this server; readable by its owner only, for there are passwords in it.
    fn write_config(&self, place: &Place) -> io::Result<()> {
        let mut config = self.config.clone();
        config.data = Some(self.files.data.clone());
        config.first_number = place.number;
        (config.chat_servers, config.presence_servers, config.api_servers, config.gateways) = (1, 1, 1, 1);
        (config.chat_port, config.api_port, config.gateway_port) = (place.port, place.port, place.port);
        config.gateway_chat_port = place.websocket_port;
        config.processes = super::Config::default();
        // JSON is YAML.
        let text = serde_json::to_vec_pretty(&config)?;
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&self.files.config)?;
        io::Write::write_all(&mut file, &text)
    }

    // ---- what the supervisor does

    /// Waits until a state fits; `None` when the server's task is gone.
    pub(super) async fn until(&self, fits: impl FnMut(&State) -> bool) -> Option<State> {
        self.state.subscribe().wait_for(fits).await.ok().map(|state| state.clone())
    }

    /// Has it end in good order, for good, and waits for that.
    pub(super) async fn finish(&self) {
        self.wish.send_replace(Wish::End);
        self.until(|state| state.phase == Phase::Stopped).await;
    }

    /// Has it end in good order and start again, and waits until it serves.
    ///
    /// # Errors
    /// When it does not serve in time; it goes on being started.
    pub(super) async fn restart(&self) -> Result<(), String> {
        let before = self.state().pid;
        self.wish.send_modify(|wish| {
            *wish = match *wish {
                Wish::Run(number) => Wish::Run(number + 1),
                Wish::Hold | Wish::End => Wish::Run(0),
            };
        });
        let serves = self.until(|state| state.phase == Phase::Running && state.pid != before);
        let limit = self.config.drain_timeout + END_TIMEOUT + READY_TIMEOUT;
        if tokio::time::timeout(limit, serves).await.is_ok() {
            return Ok(());
        }
        let how = self.state().last_exit.unwrap_or_else(|| "no word from it".to_owned());
        Err(format!("{} does not serve after {} s: {how}; see {}", self.name, limit.as_secs(), self.log().display()))
    }

    /// Has its wall clock be off by so much, ahead or behind, until told otherwise.
    pub(super) fn skew(&self, by_ms: i64) {
        self.skew_ms.send_replace(by_ms);
    }

    /// Ends it at once; it stays down until [`Server::release`].
    pub(super) fn hold(&self) {
        self.wish.send_replace(Wish::Hold);
    }

    /// Lets a server that is held start again.
    pub(super) fn release(&self) {
        self.wish.send_if_modified(|wish| {
            let is_held = *wish == Wish::Hold;
            if is_held {
                *wish = Wish::Run(0);
            }
            is_held
        });
    }

    /// Sends a signal to the process.
    pub(super) fn tell(&self, what: Tell) -> Result<(), String> {
        let pid = self.state().pid.ok_or_else(|| format!("{} has no process now", self.name))?;
        process::tell(pid, what).map_err(|e| format!("{} (process {pid}): {e}", self.name))
    }

    /// The last lines of the log, for an error.
    pub(super) fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.files.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n  ")
    }
}

fn describe(exit: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (exit.code(), exit.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => exit.to_string(),
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    if std::fs::metadata(path).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
        std::fs::rename(path, path.with_extension("log.1"))?;
    }
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}
