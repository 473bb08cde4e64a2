//! How other processes of this machine steer a stack: JSON lines over a Unix socket in the stack's folder, which only its
//! owner may enter.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::supervisor::Supervisor;
use crate::backends::registry::Role;
use crate::protocol::Fault;
use crate::runtime::{Tasks, queue};

/// Most that one connection may ask.
const ASKED_BYTES_MAX: u64 = 1 << 20;

/// Longest that a question may take which the supervisor answers from what it knows.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Notes that may wait for a slow reader.
const NOTES_WAITING_MAX: usize = 256;

/// What is asked of a supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// What is there? Answer: [`super::Status`].
    Status,
    /// Start or drain servers until there are this many of a role.
    Scale {
        /// Of which role.
        role: Role,
        /// How many.
        count: usize,
    },
    /// Can this be done?
    CheckFault(Fault),
    /// Do this, and answer when it is over.
    DoFault(Fault),
    /// Restart these servers one after the other; all when there are none.
    Restart(Vec<String>),
    /// End the stack. Answer: the supervisor's process, which ends after it.
    Down,
}

/// What a supervisor says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    /// Something happened on the way.
    Note(String),
    /// Done; the answer.
    Done(Value),
    /// Not done, or not all of it.
    Failed(String),
}

/// Why a stack can't be steered.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody is there.
    #[error("no stack runs in {}: {source}; start one with `chatctl up --profile engines`, or name its folder with --stack", folder.display())]
    NoStack {
        /// Where it was looked for.
        folder: PathBuf,
        /// What the socket said.
        source: std::io::Error,
    },
    /// A stack is there already.
    #[error("a stack runs in {} already: stop it with `chatctl down`, or give this one another folder with --stack", .0.display())]
    Occupied(PathBuf),
    /// The supervisor is there and says nothing.
    #[error("the supervisor of the stack (process {pid}) does not answer within {} s: it is stopped, or the machine has no time for it; `kill -CONT {pid}` lets it go on, `kill {pid}` ends it and the stack", ANSWER_TIMEOUT.as_secs())]
    Silent {
        /// Its process.
        pid: i32,
    },
    /// The supervisor could not do it.
    #[error("{0}")]
    Refused(String),
    /// The socket broke.
    #[error("the supervisor's socket: {0}")]
    Socket(#[from] std::io::Error),
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("control.sock")
}

/// Takes the place of the stack in a folder. What an earlier one left behind is removed.
///
/// # Errors
/// When a stack runs there.
pub fn bind(folder: &Path) -> Result<UnixListener, ControlError> {
    let path = socket(folder);
    if std::os::unix::net::UnixStream::connect(&path).is_ok() {
        return Err(ControlError::Occupied(folder.to_owned()));
    }
    super::make_folder(folder)?;
    if path.exists() {
        std::fs::remove_file(&path)?;
    }
    Ok(UnixListener::bind(&path)?)
}

/// Answers requests until the stack is ended by one of them.
pub async fn serve(listener: UnixListener, supervisor: Arc<Supervisor>) {
    let tasks = Tasks::new();
    let ended = Tasks::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ended.stopped() => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let (supervisor, ended) = (Arc::clone(&supervisor), ended.clone());
        tasks.spawn("control.connection", async move {
            // A caller that goes away ends only its own connection.
            let _ = converse(stream, &supervisor, &ended).await;
        });
    }
}

async fn converse(stream: UnixStream, supervisor: &Arc<Supervisor>, ended: &Tasks) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(tokio::io::AsyncReadExt::take(read, ASKED_BYTES_MAX)).lines();
    while let Some(line) = lines.next_line().await? {
        let request = match serde_json::from_str::<Request>(&line) {
            Ok(request) => request,
            Err(error) => {
                say(&mut write, &Reply::Failed(format!("not understood: {error}"))).await?;
                continue;
            }
        };
        let is_down = matches!(request, Request::Down);
        let (notes, mut noted) = queue::bounded("control.notes", NOTES_WAITING_MAX);
        let answer = answer(supervisor, request, move |note| {
            // A caller that does not read misses notes, not the answer.
            let _ = notes.try_send(note);
        });
        let mut answer = std::pin::pin!(answer);
        let answer = loop {
            tokio::select! {
                Some(note) = noted.recv() => say(&mut write, &Reply::Note(note)).await?,
                answer = &mut answer => break answer,
            }
        };
        while let Ok(note) = noted.try_recv() {
            say(&mut write, &Reply::Note(note)).await?;
        }
        say(&mut write, &answer.map_or_else(Reply::Failed, Reply::Done)).await?;
        if is_down {
            ended.stop();
        }
    }
    Ok(())
}

async fn say(write: &mut tokio::net::unix::OwnedWriteHalf, reply: &Reply) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    write.write_all(&line).await
}

async fn answer(supervisor: &Arc<Supervisor>, request: Request, note: impl Fn(String)) -> Result<Value, String> {
    let done = |()| Value::Null;
    match request {
        Request::Status => serde_json::to_value(supervisor.status().await).map_err(|e| e.to_string()),
        Request::Scale { role, count } => supervisor.scale(role, count).await.map(done).map_err(|e| e.to_string()),
        Request::CheckFault(fault) => supervisor.check_fault(&fault).await.map(done),
        Request::DoFault(fault) => supervisor.do_fault(fault).await.map(done),
        Request::Restart(names) => supervisor.restart(&names, note).await.map(done),
        Request::Down => {
            note("clients are told to move".to_owned());
            supervisor.stop().await;
            Ok(std::process::id().into())
        }
    }
}

/// A connection to the supervisor of a stack.
pub struct Client {
    lines: tokio::io::Lines<BufReader<tokio::net::unix::OwnedReadHalf>>,
    write: tokio::net::unix::OwnedWriteHalf,
    /// The supervisor's process; 0 where the system does not tell.
    pid: i32,
}

impl Client {
    /// Connects to the stack in a folder.
    ///
    /// # Errors
    /// When none runs there.
    pub async fn connect(folder: &Path) -> Result<Self, ControlError> {
        let stream = UnixStream::connect(socket(folder)).await;
        let stream = stream.map_err(|source| ControlError::NoStack { folder: folder.to_owned(), source })?;
        let pid = stream.peer_cred().ok().and_then(|who| who.pid()).unwrap_or_default();
        let (read, write) = stream.into_split();
        Ok(Self { lines: BufReader::new(read).lines(), write, pid })
    }

    /// Asks and waits for the answer; `note` gets what happens on the way.
    ///
    /// # Errors
    /// What the supervisor says, that it is gone, or that it does not say anything for too long.
    pub async fn ask<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        note: impl FnMut(String),
    ) -> Result<T, ControlError> {
        let limit = match request {
            Request::Status | Request::CheckFault(_) => ANSWER_TIMEOUT,
            // These take as long as what they do.
            Request::Scale { .. } | Request::DoFault(_) | Request::Restart(_) | Request::Down => {
                return self.converse(request, note).await;
            }
        };
        let silent = ControlError::Silent { pid: self.pid };
        tokio::time::timeout(limit, self.converse(request, note)).await.unwrap_or(Err(silent))
    }

    async fn converse<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        mut note: impl FnMut(String),
    ) -> Result<T, ControlError> {
        let mut line = serde_json::to_vec(request).map_err(std::io::Error::from)?;
        line.push(b'\n');
        self.write.write_all(&line).await?;
        loop {
            let line = self.lines.next_line().await?.ok_or_else(|| {
                ControlError::Socket(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "it went away"))
            })?;
            match serde_json::from_str(&line).map_err(std::io::Error::from)? {
                Reply::Note(text) => note(text),
                Reply::Done(value) => return Ok(serde_json::from_value(value).map_err(std::io::Error::from)?),
                Reply::Failed(text) => return Err(ControlError::Refused(text)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_supervisor_that_says_nothing_is_told_by_its_process() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let listener = UnixListener::bind(socket(folder.path())).expect("binds");
        let mut client = Client::connect(folder.path()).await.expect("connects");
        let _accepted_and_left_alone = listener.accept().await.expect("accepts");
        let error = client.ask::<Value>(&Request::Status, |_| {}).await.expect_err("no answer");
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    }
}
