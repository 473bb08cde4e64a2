//! `chatctl worker`: simulates a part of somebody else's run.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use chatctl::loadgen::fleet::{self, Secret};
use chatctl::runtime::files::{self, SETTINGS_BYTES_MAX};
use chatctl::runtime::{Tasks, machine, net};

use crate::exit::{self, Failure};
use crate::output::outln;
use crate::runner;
use crate::up::init_logging;

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
    let secret = secret(args.secret_file.as_deref())?;
    runtime.block_on(async {
        runner::watch_signals(&stop)?;
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

/// The secret that workers and coordinators of this user share.
pub(crate) fn secret(file: Option<&Path>) -> Result<Secret, Failure> {
    let path = match file {
        Some(file) => file.to_owned(),
        None => default_file()?,
    };
    let named = |e: &dyn std::fmt::Display| format!("the workers' secret {}: {e}", path.display());
    match files::read_text(&path, SETTINGS_BYTES_MAX) {
        Ok(text) => Secret::new(&text).map_err(|e| Failure::usage(named(&e))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => {
            let made = make(&path).map_err(|e| Failure::environment(named(&e)));
            // Another process may have made it meanwhile.
            made.or_else(|failure| {
                files::read_text(&path, SETTINGS_BYTES_MAX).ok().and_then(|text| Secret::new(&text).ok()).ok_or(failure)
            })
        }
        Err(error) => Err(Failure::usage(named(&error))),
    }
}

fn default_file() -> Result<PathBuf, Failure> {
    let folder = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    let folder = folder.or_else(home).ok_or_else(|| Failure::usage("HOME is not set: give --secret-file"))?;
    Ok(folder.join("chatctl").join("worker.secret"))
}

/// Makes a secret that only its owner can read, in one step: nobody sees half of it.
fn make(path: &Path) -> std::io::Result<Secret> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let (secret, text) = Secret::generate();
    let whole = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&whole)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    // A link fails where there is one already, a rename would replace it.
    let linked = written.and_then(|()| std::fs::hard_link(&whole, path));
    std::fs::remove_file(&whole)?;
    linked.map(|()| secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_made_once_and_read_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("deep").join("worker.secret");
        make(&path).expect("makes");
        let text = std::fs::read_to_string(&path).expect("is there");
        assert!(make(&path).is_err(), "it is never replaced");
        assert_eq!(std::fs::read_to_string(&path).expect("is there"), text);
        assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
        assert!(secret(Some(&folder.path().join("nowhere"))).is_err(), "a named file is not made");
    }
}
