//! Flags that several verbs share, and what they mean to a run.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chatctl::run::{Layout, SourceAddresses, preflight};
use chatctl::runtime::files::{self, SETTINGS_BYTES_MAX};
use chatctl::runtime::yaml;
use chatctl::stack::Config;

use crate::exit::Failure;

/// Where the stack is.
#[derive(clap::Args)]
pub(crate) struct StackLocation {
    /// Folder of the stack, as given to `chatctl up`
    #[arg(long, value_name = "DIR", env = "CHATCTL_STACK", default_value = DEFAULT_FOLDER)]
    pub(crate) stack: PathBuf,
}

/// Folder of a stack's control socket, logs and data.
pub(crate) const DEFAULT_FOLDER: &str = ".chatctl";

/// How an answer is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

/// How a run is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Ui {
    /// A live screen on a terminal, lines elsewhere and in CI
    Auto,
    /// The live screen
    Tui,
    /// One line per second
    Plain,
    /// Only the summary
    None,
}

/// What a run is aimed at, and where its generators are.
#[derive(clap::Args)]
pub(crate) struct LayoutArgs {
    /// API address of a running stack; without it a stack is started for the run
    #[arg(long, value_name = "URL", env = "CHATCTL_TARGET")]
    target: Option<String>,
    #[command(flatten)]
    at: StackLocation,
    /// Generators: a number of processes of this machine, or the addresses of `chatctl worker --listen` as a:port,b:port; without
    /// it as many processes as the connections need
    #[arg(long, value_name = "N|ADDRESSES")]
    workers: Option<String>,
    /// Addresses of this machine that connections come from, as 10.0.0.5,10.0.0.6 or 10.0.0.5-10.0.0.9; on loopback they are chosen
    #[arg(long, value_name = "LIST")]
    source_addresses: Option<SourceAddresses>,
    /// File with the secret shared with workers on other machines
    #[arg(long, value_name = "FILE", env = "CHATCTL_WORKER_SECRET_FILE")]
    secret_file: Option<PathBuf>,
    /// Runs even where a limit of this machine is short
    #[arg(long)]
    force: bool,
}

impl LayoutArgs {
    /// The layout that the flags ask for.
    pub(crate) fn layout(&self) -> Result<Layout, Failure> {
        Ok(Layout {
            target: preflight::target(self.target.as_deref())?,
            stack_folder: self.at.stack.clone(),
            generators: self.workers.as_deref().map(str::parse).transpose()?.unwrap_or_default(),
            sources: self.source_addresses.clone(),
            secret_file: self.secret_file.clone(),
            is_forced: self.force,
        })
    }
}

/// Reads a time of a flag.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| format!("{text:?}: write a time such as 30s, 5m or 12h"))
}

/// Reads a file with the settings of a stack.
pub(crate) fn read_config(path: &Path) -> Result<Config, Failure> {
    let text = files::read_text(path, SETTINGS_BYTES_MAX)
        .map_err(|e| Failure::usage(format!("{}: {e}; give an existing file with --config", path.display())))?;
    yaml::parse(&text, &path.display().to_string()).map_err(Failure::usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_a_flag_is_read_or_told_how_to_write() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        for text in ["", "abc", "5", "-1s", "1e9s"] {
            let problem = duration(text).expect_err("no time");
            assert!(problem.starts_with(&format!("{text:?}: write a time")), "{problem}");
        }
    }
}
