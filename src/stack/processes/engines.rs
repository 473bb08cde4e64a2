//! The engines of this machine: their processes, found, ended and started by the command of the configuration, so that
//! nothing is done to a process that was not started by it.

use std::path::PathBuf;
use std::time::Duration;

use tokio::process::Command;

use crate::runtime::Tasks;
use crate::runtime::process::{self, Tell, Usage};

/// Longest that the command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_mins(3);

/// Longest that a killed engine may take to be gone.
const GONE_TIMEOUT: Duration = Duration::from_secs(10);

/// The command that knows the engines.
#[derive(Clone)]
pub(super) struct LocalEngines(PathBuf);

impl LocalEngines {
    pub(super) const fn new(command: PathBuf) -> Self {
        Self(command)
    }

    async fn run(&self, verb: &str, engine: &str) -> Result<String, String> {
        let shown = format!("{} {verb} {engine}", self.0.display());
        // A group of its own: a ctrl-c is for the supervisor, and what was begun comes to its end.
        let run =
            Command::new(&self.0).args([verb, engine]).process_group(0).stdin(std::process::Stdio::null()).output();
        let output = match tokio::time::timeout(COMMAND_TIMEOUT, run).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => return Err(format!("{shown}: {error}; set processes.engines_command")),
            Err(_) => return Err(format!("{shown}: no end within {} s", COMMAND_TIMEOUT.as_secs())),
        };
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        Err(format!("{shown}: {}", text.trim().lines().last().unwrap_or("failed without a word")))
    }

    /// The process of an engine; an error when the command did not start it, or it does not run.
    pub(super) async fn pid(&self, engine: &str) -> Result<u32, String> {
        let text = self.run("pid", engine).await?;
        text.trim().parse().map_err(|_| format!("{} pid {engine}: {text:?} is no process", self.0.display()))
    }

    pub(super) async fn start(&self, engine: &str) -> Result<(), String> {
        self.run("start", engine).await.map(|_| ())
    }

    pub(super) async fn stop(&self, engine: &str) -> Result<(), String> {
        self.run("stop", engine).await.map(|_| ())
    }

    /// Removes the data of an engine that does not run.
    pub(super) async fn wipe(&self, engine: &str) -> Result<(), String> {
        self.run("wipe", engine).await.map(|_| ())
    }

    /// Keeps a copy of an engine's data as they are now.
    pub(super) async fn save(&self, engine: &str) -> Result<(), String> {
        self.run("save", engine).await.map(|_| ())
    }

    /// Gives an engine that does not run the data of that copy.
    pub(super) async fn restore(&self, engine: &str) -> Result<(), String> {
        self.run("restore", engine).await.map(|_| ())
    }

    /// Has a running engine follow one that has that copy, and lead again once it holds the same.
    pub(super) async fn fail_back(&self, engine: &str) -> Result<(), String> {
        self.run("fail-back", engine).await.map(|_| ())
    }

    /// Has an engine's disk take nothing.
    pub(super) async fn fill_disk(&self, engine: &str) -> Result<(), String> {
        self.run("fill-disk", engine).await.map(|_| ())
    }

    /// Ends that.
    pub(super) async fn free_disk(&self, engine: &str) -> Result<(), String> {
        self.run("free-disk", engine).await.map(|_| ())
    }

    /// Sends a signal to every process of an engine.
    pub(super) async fn tell(&self, engine: &str, what: Tell) -> Result<(), String> {
        for pid in process::family(self.pid(engine).await?) {
            // A child may end in this moment.
            let _ = process::tell(pid, what);
        }
        Ok(())
    }

    /// Ends every process of an engine at once and waits until they are gone.
    pub(super) async fn kill(&self, engine: &str) -> Result<(), String> {
        let family = process::family(self.pid(engine).await?);
        for pid in &family {
            let _ = process::tell(*pid, Tell::Die);
        }
        let gone = async {
            while family.iter().any(|pid| process::is_running(*pid)) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(GONE_TIMEOUT, gone).await.map_err(|_| format!("{engine} was killed and is not gone"))
    }

    /// What the processes of an engine have taken, with those that have ended: PostgreSQL has one for each connection.
    pub(super) async fn usage(&self, engine: &str) -> Option<(u32, Usage)> {
        let pid = self.pid(engine).await.ok()?;
        let mut total = Usage::default();
        let family = Tasks::block(move || process::family(pid)).await.unwrap_or_default();
        for usage in process::usage_of_all(family).await.into_values() {
            total.cpu += usage.cpu + usage.ended_children_cpu;
            total.resident_bytes += usage.resident_bytes;
        }
        Some((pid, total))
    }
}
