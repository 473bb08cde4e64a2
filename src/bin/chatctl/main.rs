//! The `chatctl` command: flags, printing, exit codes. One file per verb; no logic of its own.

// They panic when the reader went away.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod capacity;
mod check;
mod cli;
mod compare;
mod config;
mod control;
mod display;
mod doctor;
mod exit;
mod load;
mod migrate;
mod output;
mod plan;
mod progress;
mod report;
mod signals;
mod table;
mod up;
mod up_processes;
mod worker;

use clap::{Parser, Subcommand};

use crate::output::errln;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs a chat server stack, simulates its users, and proves what was lost, repeated, reordered or leaked.
#[derive(Parser)]
#[command(name = "chatctl", version, max_term_width = 100, after_help = exit::HELP)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
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

fn main() -> std::process::ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version go to standard output and are no failure.
            let _ = error.print();
            return if error.use_stderr() { exit::USAGE.into() } else { exit::PASS.into() };
        }
    };
    let result = match args.verb {
        Verb::Load(args) => load::run(args),
        Verb::Capacity(args) => capacity::run(args),
        Verb::Plan(args) => plan::run(args),
        Verb::Compare(args) => compare::run_compare(args),
        Verb::Check(args) => check::run(args),
        Verb::Report(args) => report::run_report(args),
        Verb::Replay(args) => report::run_replay(args),
        Verb::Doctor(args) => doctor::run(args),
        Verb::Worker(args) => worker::run(args),
        Verb::Up(args) => up::run_up(args),
        Verb::Serve(args) => up::run_serve(args),
        Verb::Status(args) => control::run_status(args),
        Verb::Logs(args) => control::run_logs(args),
        Verb::Scale(args) => control::run_scale(args),
        Verb::Drain(args) => control::run_drain(args),
        Verb::Restart(args) => control::run_restart(args),
        Verb::Fault(args) => control::run_fault(args),
        Verb::Down(args) => control::run_down(args),
        Verb::Config(args) => config::run(args),
        Verb::Migrate(args) => migrate::run(args),
    };
    // A broken pipe is the reader's choice; what else keeps the output from being written is an error.
    let result = match (result, output::failure()) {
        (Ok(exit::PASS), Some(error)) => Err(exit::Failure::environment(format!("standard output: {error}"))),
        (result, _) => result,
    };
    match result {
        Ok(code) => code.into(),
        Err(failure) => {
            errln!("chatctl: {}", failure.message);
            failure.code.into()
        }
    }
}
