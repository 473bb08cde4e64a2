//! `chatctl up` with each server a process of its own: supervises them until ctrl-c, SIGTERM or `chatctl down`.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use chatctl::run::Error;
use chatctl::runtime::machine;
use chatctl::stack::processes::control::{self, Client, ControlError};
use chatctl::stack::processes::{Options, make_folder};
use chatctl::stack::{Config, StackError, Supervisor};

use crate::exit::{self, Failure};
use crate::output::{errln, out, outln};
use crate::process::init_logging;
use crate::verbs::up::Stops;

/// Longest that a stack in the background may take to serve.
const DETACHED_START: Duration = Duration::from_mins(3);

/// `why` makes an error of a stack that did not start.
pub(crate) fn run(config: Config, folder: &Path, detach: bool, why: fn(StackError) -> Error) -> Result<u8, Failure> {
    init_logging();
    let _ = machine::raise_open_files();
    // The supervisor watches; two threads are enough whatever it watches over.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Failure::environment)?;
    if detach { runtime.block_on(start_detached(folder)) } else { runtime.block_on(supervise(config, folder, why)) }
}

async fn supervise(config: Config, folder: &Path, why: fn(StackError) -> Error) -> Result<u8, Failure> {
    let folder = std::path::absolute(folder).map_err(Failure::environment)?;
    let mut stops = Stops::new()?;
    let listener = control::bind(&folder)?;
    // A reader that went away does not end the stack.
    let note = |text: String| outln!("{text}");
    let program = std::env::current_exe().map_err(Failure::environment)?;
    let options = Options { folder: folder.clone(), program, note: Box::new(note) };
    let supervisor = tokio::select! {
        started = Supervisor::start(config, options) => started,
        () = stops.next() => return Err(Failure { code: exit::INTERRUPTED, message: "interrupted".to_owned() }),
    };
    let socket = folder.join("control.sock");
    let supervisor = match supervisor {
        Ok(supervisor) => supervisor,
        Err(error) => {
            let _ = std::fs::remove_file(&socket);
            return Err(why(error).into());
        }
    };
    note(format!("ready at {}; ctrl-c or `chatctl down` stops", supervisor.api_url().unwrap_or_default()));
    let code = tokio::select! {
        () = control::serve(listener, Arc::clone(&supervisor)) => exit::PASS,
        () = stops.next() => {
            errln!("stopping: clients are told to move; once more to stop at once");
            tokio::select! {
                () = supervisor.stop() => exit::PASS,
                () = stops.next() => exit::INTERRUPTED,
            }
        }
    };
    let _ = std::fs::remove_file(&socket);
    Ok(code)
}

/// Starts this command once more without `--detach`, in the background, and waits until it serves.
async fn start_detached(folder: &Path) -> Result<u8, Failure> {
    if Client::connect(folder).await.is_ok() {
        return Err(ControlError::Occupied(folder.to_owned()).into());
    }
    let path = folder.join("logs").join("supervisor.log");
    let log = || {
        make_folder(folder)?;
        make_folder(&folder.join("logs"))?;
        std::fs::File::create(&path)
    };
    let log = log().map_err(|e| Failure::environment(format!("{}: {e}", path.display())))?;
    let errors = log.try_clone().map_err(Failure::environment)?;
    let program = std::env::current_exe().map_err(Failure::environment)?;
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--detach" && argument != "-d");
    let mut child = std::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        // Its terminal may go, it stays.
        .process_group(0)
        .spawn()
        .map_err(Failure::environment)?;
    let mut shown = 0;
    let deadline = chatctl::runtime::clock::instant() + DETACHED_START;
    loop {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        out!("{}", &text[shown.min(whole)..whole]);
        shown = shown.max(whole);
        if text.lines().any(|line| line.starts_with("ready at ")) {
            return Ok(exit::PASS);
        }
        if let Ok(Some(status)) = child.try_wait() {
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::ENVIRONMENT);
            return Err(Failure { code, message: format!("the stack did not start, see {}", path.display()) });
        }
        if chatctl::runtime::clock::instant() >= deadline {
            let seconds = DETACHED_START.as_secs();
            return Err(Failure::environment(format!("no stack within {seconds} s, see {}", path.display())));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
