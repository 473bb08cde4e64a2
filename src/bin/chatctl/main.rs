//! The `chatctl` command: flags, printing, exit codes. One file per verb in `verbs/`; what a run does is in the library.

// They panic when the reader went away.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod cli;
mod display;
mod exit;
mod help;
mod output;
mod process;
mod progress;
mod reporting;
mod signals;
mod table;
mod verbs;

use clap::{CommandFactory, FromArgMatches, Parser};

use crate::output::errln;
use crate::verbs::Verb;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs a chat server stack, simulates its users, and proves what was lost, repeated, reordered or leaked.
#[derive(Parser)]
#[command(name = "chatctl", version, max_term_width = 100, after_help = exit::HELP)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

fn main() -> std::process::ExitCode {
    let parsed = help::plain(Args::command()).try_get_matches();
    let args = match parsed.and_then(|matches| Args::from_arg_matches(&matches)) {
        Ok(args) => args,
        Err(error) => {
            // Help and version go to standard output and are no failure.
            let _ = error.print();
            return if error.use_stderr() { exit::USAGE.into() } else { exit::PASS.into() };
        }
    };
    let result = args.verb.run();
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
