//! A worker before it has a job: started or reached, trusted, its clocks compared with ours.

use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::wire::{self, FromWorker, Reader, Secret, ToWorker, WireError, Writer};
use crate::runtime::{Tasks, clock, net};

/// Longest that connecting to a worker may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Questions to a worker's clock. The fastest answer counts.
const CLOCK_QUESTIONS: usize = 16;

/// Longest wait for a clock's answer.
const CLOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Lines of a worker's own output that are kept for the reason of its end.
const LAST_WORDS: usize = 5;

/// A worker that waits for its job.
pub struct Worker {
    pub(super) name: String,
    pub(super) reader: Reader,
    pub(super) writer: Writer,
    pub(super) child: Option<Child>,
    pub(super) last_words: Arc<Mutex<Vec<String>>>,
    pub(super) is_here: bool,
    pub(super) clocks: Clocks,
    /// What it took before it had a job.
    pub(super) idle_bytes: u64,
}

/// How far a worker's clocks are from ours, in µs.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Clocks {
    /// Its own clock, which begins with its process.
    pub(super) own_us: i64,
    /// Its machine's wall clock.
    pub(super) wall_us: i64,
    /// Most that either is off by.
    pub(super) error_us: u64,
}

impl Worker {
    /// Starts a worker process of this machine with some threads: `program worker --pipe`. It ends when this value is dropped.
    ///
    /// # Errors
    /// When the program can't be started, or is no worker.
    pub async fn start(program: &Path, threads: usize, tasks: &Tasks) -> Result<Self, String> {
        let mut child = Command::new(program)
            .args(["worker", "--pipe", "--threads", &threads.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            // A terminal's ctrl-c is for the coordinator, who tells the workers.
            .process_group(0)
            .spawn()
            .map_err(|e| format!("can't start a worker with {}: {e}", program.display()))?;
        let taken = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = taken else { return Err("a worker without pipes".to_owned()) };
        let name = format!("pid {}", child.id().unwrap_or(0));
        let last_words: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = Arc::clone(&last_words);
        tasks.spawn("fleet.last_words", async move {
            let mut lines = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let mut kept = kept.lock().expect("no panic while held");
                if kept.len() == LAST_WORDS {
                    kept.remove(0);
                }
                kept.push(line);
            }
        });
        let mut worker = Self {
            name,
            reader: Reader::new(Box::new(stdout)),
            writer: Writer::new(Box::new(stdin)),
            child: Some(child),
            last_words,
            is_here: true,
            clocks: Clocks::default(),
            idle_bytes: 0,
        };
        worker.compare_clocks().await.map_err(|e| format!("worker {}: {e}", worker.name))?;
        Ok(worker)
    }

    /// Connects to a worker that listens at `host:port`.
    ///
    /// # Errors
    /// When nobody answers there, or it does not know the secret.
    pub async fn connect(address: &str, secret: &Secret) -> Result<Self, String> {
        let named = |e: &dyn std::fmt::Display| {
            format!("worker {address}: {e}; start one there with `chatctl worker --listen {address}`")
        };
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        let stream = connected.map_err(|_| named(&"no answer"))?.map_err(|e| named(&e))?;
        net::set_options(&stream);
        let is_here = stream.peer_addr().is_ok_and(|peer| peer.ip().is_loopback());
        let (read, write) = stream.into_split();
        let mut worker = Self {
            name: address.to_owned(),
            reader: Reader::new(Box::new(read)),
            writer: Writer::new(Box::new(write)),
            child: None,
            last_words: Arc::default(),
            is_here,
            clocks: Clocks::default(),
            idle_bytes: 0,
        };
        wire::greet(&mut worker.reader, &mut worker.writer, secret).await.map_err(|e| match e {
            WireError::Secret | WireError::Busy => format!("worker {address}: {e}"),
            // A worker that does not know our secret hangs up without a word.
            e => named(&e),
        })?;
        worker.compare_clocks().await.map_err(|e| match e {
            WireError::Lost(_) => format!("worker {address} hung up: {}", WireError::Secret),
            e => format!("worker {address}: {e}"),
        })?;
        Ok(worker)
    }

    /// Whether it is on this machine.
    #[must_use]
    pub const fn is_here(&self) -> bool {
        self.is_here
    }

    /// Estimates how far the worker's clocks are from ours, from the fastest of several answers: the true difference lies
    /// within half of its round trip. Source: Cristian, "Probabilistic clock synchronization", 1989.
    async fn compare_clocks(&mut self) -> Result<(), WireError> {
        let mut fastest_us = u64::MAX;
        for _ in 0..CLOCK_QUESTIONS {
            let (asked_us, asked_unix_us) = (clock::now_us(), clock::unix_us());
            self.writer.send(&ToWorker::Ping).await?;
            let answer = tokio::time::timeout(CLOCK_TIMEOUT, self.reader.next::<FromWorker>()).await;
            let answer = answer.map_err(|_| WireError::Lost(format!("no answer within {CLOCK_TIMEOUT:?}")))??;
            let FromWorker::Pong { now_us, unix_us, resident_bytes } = answer else {
                return Err(WireError::Broken("another answer than the time".to_owned()));
            };
            let round_trip_us = clock::now_us() - asked_us;
            self.idle_bytes = resident_bytes;
            if round_trip_us < fastest_us {
                fastest_us = round_trip_us;
                let offset_us = |theirs: u64, asked: u64| theirs as i64 - (asked + round_trip_us / 2) as i64;
                self.clocks = Clocks {
                    own_us: offset_us(now_us, asked_us),
                    wall_us: offset_us(unix_us, asked_unix_us),
                    error_us: round_trip_us.div_ceil(2),
                };
            }
        }
        Ok(())
    }
}
