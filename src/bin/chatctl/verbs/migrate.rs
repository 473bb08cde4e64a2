//! `chatctl migrate`: makes the tables, topics and keyspaces that a stack needs, and says which engine is where.

use chatctl::stack::{self, Config};

use crate::cli::read_config;
use crate::exit::{self, Failure};
use crate::output::outln;
use crate::process::init_logging;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// YAML file with settings (see docs/engines.md)
    #[arg(long, value_name = "FILE", env = "CHATCTL_CONFIG")]
    config: std::path::PathBuf,
    /// Data folder, for ports with embedded engines
    #[arg(long, value_name = "DIR", env = "CHATCTL_DATA")]
    data: Option<std::path::PathBuf>,
}

pub(crate) fn run(args: Args) -> Result<u8, Failure> {
    init_logging();
    let config = read_config(&args.config)?;
    let config = Config { data: args.data.or(config.data), ..config };
    if config.data.is_none() && config.engines.not_shared().is_some() {
        return Err(Failure::usage("some ports have embedded engines: give their folder with --data"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::environment)?;
    runtime.block_on(stack::migrate(&config))?;
    for (port, engine, _) in config.engines.all() {
        outln!("{port:<12} ready at {engine}");
    }
    Ok(exit::PASS)
}
