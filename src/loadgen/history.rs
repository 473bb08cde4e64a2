//! Every event of a run as a line of JSON, for other programs to judge. `t` is in seconds on `CLOCK_MONOTONIC`.

use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{SyncSender, sync_channel};

use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::runtime::clock;

/// Lines that may wait for the disk; then whoever has an event waits too, and the run is late rather than incomplete.
const LINES_WAITING_MAX: usize = 65_536;

/// The hash by which a history tells bodies apart: the first 16 hexadecimal digits of SHA-256.
pub(super) fn body_hash(body: &str) -> String {
    let digest = Sha256::digest(body);
    let first = digest[..8].try_into().expect("sha256 has 32 bytes");
    format!("{:016x}", u64::from_be_bytes(first))
}

/// Writes events from any task.
pub(super) struct History {
    /// `None` once closed.
    lines: Mutex<Option<SyncSender<String>>>,
    writer: Mutex<Option<std::thread::JoinHandle<std::io::Result<()>>>>,
}

impl History {
    /// Creates the file.
    pub(super) fn create(path: &Path) -> std::io::Result<Self> {
        let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
        let (lines, waiting) = sync_channel::<String>(LINES_WAITING_MAX);
        let writer = std::thread::Builder::new().name("gen-history".to_owned()).spawn(move || {
            for line in waiting {
                file.write_all(line.as_bytes())?;
            }
            file.flush()
        })?;
        let history = Self { lines: Mutex::new(Some(lines)), writer: Mutex::new(Some(writer)) };
        // Ids are burnt in blocks where a counter is rebuilt, and by calls that were never answered.
        history.write("meta", json!({"gaps": "ignore", "history": "all", "dedup": "client", "order": "device"}));
        Ok(history)
    }

    /// Writes one event that happened now.
    pub(super) fn write(&self, event: &'static str, fields: Value) {
        self.write_at(event, clock::boot_seconds(), fields);
    }

    /// Writes one event that began at `t`.
    pub(super) fn write_at(&self, event: &'static str, t: f64, fields: Value) {
        #[derive(Serialize)]
        struct Line {
            e: &'static str,
            t: f64,
            #[serde(flatten)]
            fields: Value,
        }
        let mut line = serde_json::to_string(&Line { e: event, t, fields }).expect("plain data");
        line.push('\n');
        let sender = self.lines.lock().expect("no panic while held").clone();
        if let Some(sender) = sender {
            // A writer that failed says so when the history is closed.
            let _ = sender.send(line);
        }
    }

    /// Writes what is left and closes the file.
    pub(super) fn close(&self) -> std::io::Result<()> {
        *self.lines.lock().expect("no panic while held") = None;
        match self.writer.lock().expect("no panic while held").take() {
            Some(writer) => writer.join().unwrap_or_else(|_| Err(std::io::Error::other("the writer failed"))),
            None => Ok(()),
        }
    }
}
