//! A stack whose servers are processes of their own, kept alive and steered from outside.
//!
//! | file | what |
//! |---|---|
//! | `supervisor` | the whole stack: start, status, scale, drain, restart, stop |
//! | `server` | one server: its process, and starting it again |
//! | `faults` | what is done to servers and engines on purpose |
//! | `engines` | the engines of this machine: their processes |
//! | `relay` | a TCP relay between a server and an engine, which can be cut |
//! | `control` | the Unix socket through which other processes steer the stack |
//! | `status` | what is told about all of it |

pub mod control;
mod engines;
mod faults;
mod relay;
mod server;
mod status;
mod supervisor;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::status::{EngineStatus, Phase, ServerStatus, Status};
pub use self::supervisor::{Options, Supervisor};

/// Settings of a stack whose servers are processes of their own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether each server is a process of its own.
    pub enabled: bool,
    /// The command that starts and stops the engines of this machine, called as `COMMAND start NAME`, `stop NAME` and
    /// `pid NAME`. Faults of engines need it.
    pub engines_command: Option<PathBuf>,
    /// Whether a TCP relay stands between each server and each engine. The fault `cut` needs it.
    pub relays: bool,
}

/// Makes a folder of a stack, with those above it, if it is not there; only its owner may enter.
///
/// # Errors
/// The operating system's.
pub fn make_folder(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
