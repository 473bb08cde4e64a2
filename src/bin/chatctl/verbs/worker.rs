//! `chatctl worker`: simulates a part of somebody else's run.

use std::net::SocketAddr;
use std::path::PathBuf;

use chatctl::loadgen::fleet;
use chatctl::run::{runner, secret};
use chatctl::runtime::{Tasks, machine, net};

use crate::exit::{self, Failure};
use crate::output::outln;
use crate::process::init_logging;
use crate::signals;

#[derive(clap::Args)]
#[group(required = true, multiple = false, id = "where")]
pub(crate) struct Where {
    /// Waits for coordinators (`chatctl load --workers`) at this address
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Serves one run over standard input and output
    #[arg(long, hide = true)]
    pipe: bool,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    at: Where,
    /// Threads; as many as there are processors without it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// File with the secret shared with the coordinator, at least 16 characters; without it one in the user's configuration folder,
    /// made when it is not there
    #[arg(long, value_name = "FILE", env = "CHATCTL_WORKER_SECRET_FILE")]
    secret_file: Option<PathBuf>,
}

pub(crate) fn run(args: Args) -> Result<u8, Failure> {
    init_logging();
    let _ = machine::raise_open_files();
    if args.at.pipe {
        // There may be fifty of them here.
        machine::avoid_huge_pages();
    }
    let runtime = runner::runtime_of(args.threads.map_or(machine::cores(), usize::from))?;
    let stop = Tasks::new();
    let Some(address) = args.at.listen else {
        // The coordinator ends it, by a word or by closing the pipe; its terminal's ctrl-c is not for us.
        let served = runtime.block_on(fleet::serve_pipe(stop));
        // A reader of standard input can't be interrupted: the process must not wait for it.
        runtime.shutdown_background();
        return served.map(|()| exit::PASS).map_err(Failure::environment);
    };
    let secret = secret::read(args.secret_file.as_deref())?;
    runtime.block_on(async {
        signals::watch(&stop)?;
        let listener = net::listen(address).map_err(|e| Failure::environment(format!("--listen {address}: {e}")))?;
        let address = listener.local_addr().map_err(Failure::environment)?;
        outln!("worker at {address}, {} connections at most", limits());
        fleet::serve(listener, secret, stop, |note| outln!("{note}")).await;
        Ok(exit::PASS)
    })
}

fn limits() -> u64 {
    chatctl::runtime::limits::Machine::read().connections_per_process()
}
