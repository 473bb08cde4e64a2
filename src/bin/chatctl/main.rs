//! The `chatctl` command: flags, printing, exit codes. One file per verb; no logic of its own.

mod exit;
mod load;
mod migrate;
mod up;

use clap::{Parser, Subcommand};

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
    /// Run a whole stack in this process until ctrl-c.
    Up(up::UpArgs),
    /// Run some roles of a stack in this process until ctrl-c.
    Serve(up::ServeArgs),
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
        Verb::Up(args) => up::run_up(args),
        Verb::Serve(args) => up::run_serve(args),
        Verb::Migrate(args) => migrate::run(args),
    };
    match result {
        Ok(code) => code.into(),
        Err(failure) => {
            eprintln!("chatctl: {}", failure.message);
            failure.code.into()
        }
    }
}
