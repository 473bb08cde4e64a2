//! What a supervisor tells about its stack.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::backends::registry::Role;
use crate::protocol::ServerName;

/// Where a server is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The process runs and is not ready yet.
    Starting,
    /// It serves.
    Running,
    /// Its clients are asked to leave, then it ends.
    Draining,
    /// It has ended and will be started again.
    Down,
    /// It has ended for good.
    Stopped,
}

impl Phase {
    /// For people.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Draining => "draining",
            Self::Down => "down",
            Self::Stopped => "stopped",
        }
    }
}

/// A server and its process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its name.
    pub name: ServerName,
    /// What it does.
    pub role: Role,
    /// Where it is in its life.
    pub phase: Phase,
    /// Its process; `None` while there is none.
    pub pid: Option<u32>,
    /// Time in this phase, in seconds.
    pub phase_s: f64,
    /// How often it was started again after it had ended by itself.
    pub restarts: u32,
    /// How it ended the last time by itself.
    pub last_exit: Option<String>,
    /// Where clients reach it.
    pub address: Option<SocketAddr>,
    /// Where a gateway takes WebSockets.
    pub websocket_address: Option<SocketAddr>,
    /// Connections by the registry; `None` where the registry does not tell.
    pub connections: Option<u64>,
    /// Processor time of the process, in seconds.
    pub cpu_s: f64,
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
}

/// An engine that the stack uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineStatus {
    /// `redis`, `kafka`, …
    pub kind: String,
    /// Product and version, as of the start of the stack.
    pub version: String,
    /// Where, without a password.
    pub address: String,
    /// The ports that are on it.
    pub ports: Vec<String>,
    /// `ok`, or what is wrong.
    pub state: String,
    /// Its process, when it is on this machine and was started by the engines' command.
    pub pid: Option<u32>,
    /// Processor time of its processes, in seconds.
    pub cpu_s: f64,
    /// Resident memory of its processes, in bytes.
    pub resident_bytes: u64,
}

/// A whole stack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The supervisor's process.
    pub supervisor_pid: u32,
    /// Folder of the control socket, the logs and the data.
    pub folder: PathBuf,
    /// Address for HTTP.
    pub api_url: Option<String>,
    /// The servers.
    pub servers: Vec<ServerStatus>,
    /// The engines.
    pub engines: Vec<EngineStatus>,
}
