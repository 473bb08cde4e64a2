//! What the command can do: one file per verb, with its flags.

mod capacity;
mod check;
mod compare;
mod config;
mod control;
mod doctor;
mod load;
mod migrate;
mod plan;
mod report;
mod up;
mod worker;

use clap::Subcommand;

use crate::exit::Failure;

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Run a load scenario and end with a verdict.
    Load(load::Args),
    /// Find the highest load at which a scenario holds.
    Capacity(capacity::Args),
    /// Work out what a deployment of some size needs.
    Plan(plan::Args),
    /// Compare the results of two builds.
    Compare(compare::CompareArgs),
    /// Run a scenario several times beside a baseline: better, same, worse, or not enough data.
    Check(check::CheckArgs),
    /// Make the report of a finished run once more.
    Report(report::ReportArgs),
    /// Show a finished run on the live screen.
    Replay(report::ReplayArgs),
    /// Show what this machine allows, and what would change it.
    Doctor(doctor::Args),
    /// Simulate a part of a run that another chatctl coordinates.
    Worker(worker::Args),
    /// Run a whole stack until ctrl-c: in this process, or each server a process of its own.
    Up(up::UpArgs),
    /// Run some roles of a stack in this process until ctrl-c.
    Serve(up::ServeArgs),
    /// Show the servers and engines of a running stack of processes.
    Status(control::StatusArgs),
    /// Show the logs of a stack of processes.
    Logs(control::LogsArgs),
    /// Change how many servers of a role there are.
    Scale(control::ScaleArgs),
    /// Have the clients of a server leave, then end it.
    Drain(control::DrainArgs),
    /// Restart servers, one after the other.
    Restart(control::RestartArgs),
    /// Do something to a server or an engine on purpose.
    Fault(control::FaultArgs),
    /// End a running stack of processes.
    Down(control::DownArgs),
    /// Print a configuration for another program.
    Config(config::Args),
    /// Make the tables, topics and keyspaces that a stack on real engines needs.
    Migrate(migrate::Args),
}

impl Verb {
    /// Does it; returns the exit code.
    pub(crate) fn run(self) -> Result<u8, Failure> {
        match self {
            Self::Load(args) => load::run(args),
            Self::Capacity(args) => capacity::run(args),
            Self::Plan(args) => plan::run(args),
            Self::Compare(args) => compare::run_compare(args),
            Self::Check(args) => check::run(args),
            Self::Report(args) => report::run_report(args),
            Self::Replay(args) => report::run_replay(args),
            Self::Doctor(args) => doctor::run(args),
            Self::Worker(args) => worker::run(args),
            Self::Up(args) => up::run_up(args),
            Self::Serve(args) => up::run_serve(args),
            Self::Status(args) => control::run_status(args),
            Self::Logs(args) => control::run_logs(args),
            Self::Scale(args) => control::run_scale(args),
            Self::Drain(args) => control::run_drain(args),
            Self::Restart(args) => control::run_restart(args),
            Self::Fault(args) => control::run_fault(args),
            Self::Down(args) => control::run_down(args),
            Self::Config(args) => config::run(args),
            Self::Migrate(args) => migrate::run(args),
        }
    }
}
