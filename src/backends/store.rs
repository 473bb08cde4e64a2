//! The embedded engines' storage: one LSM store per data folder, with one writer thread that commits in groups.
//!
//! Whatever is waiting when the writer looks becomes one batch. A batch with an acknowledged message in it is flushed to
//! the disk (`fdatasync`) before anybody hears "done"; a batch without one survives the end of the process, not of the
//! machine. Reads go straight to the store and run on blocking threads.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use fs4::fs_std::FileExt;
use tokio::sync::oneshot;

use super::error::{BackendError, BackendResult, ErrorKind};

/// Writes that may wait for the writer thread; more are refused.
const WRITES_WAITING_MAX: usize = 8_192;

/// Writes in one batch.
const BATCH_WRITES_MAX: usize = 1_024;

/// What must survive once a write is reported done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// The end of the process, by `kill -9` too.
    Process,
    /// A loss of power.
    Power,
}

/// One change of one key. `None` removes it.
pub struct Change {
    /// Made by [`EmbeddedStore::keyspace`].
    pub keyspace: Keyspace,
    /// The key.
    pub key: Vec<u8>,
    /// The new value.
    pub value: Option<Vec<u8>>,
}

struct Write {
    changes: Vec<Change>,
    durability: Durability,
    done: oneshot::Sender<Result<(), String>>,
}

/// An open data folder. Clones are the same store; the folder is released when the last one is dropped.
#[derive(Clone)]
pub struct EmbeddedStore {
    inner: Arc<Inner>,
}

struct Inner {
    /// Taken on drop, so that the writer ends before the database closes.
    writes: Option<SyncSender<Write>>,
    writer: Option<std::thread::JoinHandle<()>>,
    database: Database,
    /// Held for as long as the store is open: two processes in one folder would corrupt each other.
    _lock: std::fs::File,
}

/// A write on its way to the disk.
#[derive(Debug)]
pub struct Pending {
    operation: &'static str,
    done: oneshot::Receiver<Result<(), String>>,
}

impl Pending {
    /// Waits until the write is as durable as was asked.
    pub async fn wait(self) -> BackendResult<()> {
        let operation = self.operation;
        match self.done.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(BackendError::unknown(operation, ErrorKind::Unavailable, error)),
            Err(_) => Err(BackendError::unknown(operation, ErrorKind::Unavailable, "the store was closed")),
        }
    }
}

impl EmbeddedStore {
    /// Opens the folder, or makes it.
    ///
    /// # Errors
    /// Says so when another process has the folder open.
    pub fn open(folder: &Path) -> BackendResult<Self> {
        const OPEN: &str = "open data folder";
        let failed = |error: std::io::Error| {
            let text = format!("{}: {error}", folder.display());
            BackendError::not_applied(OPEN, ErrorKind::Unavailable, text)
        };
        std::fs::create_dir_all(folder).map_err(failed)?;
        let lock = std::fs::File::create(folder.join("lock")).map_err(failed)?;
        if !FileExt::try_lock_exclusive(&lock).map_err(failed)? {
            let text = format!(
                "{} is in use by another process: stop it, or give another folder with --data",
                folder.display()
            );
            return Err(BackendError::not_applied(OPEN, ErrorKind::Rejected, text));
        }
        let database = Database::builder(folder.join("store"))
            .cache_size(32 << 20)
            .worker_threads(1)
            .manual_journal_persist(false)
            .open()
            .map_err(|e| BackendError::not_applied(OPEN, ErrorKind::Unavailable, e))?;
        let (writes, waiting) = sync_channel(WRITES_WAITING_MAX);
        let target = database.clone();
        let writer = std::thread::Builder::new()
            .name("engine-writer".to_owned())
            .spawn(move || write_loop(&target, &waiting))
            .map_err(failed)?;
        Ok(Self { inner: Arc::new(Inner { writes: Some(writes), writer: Some(writer), database, _lock: lock }) })
    }

    /// A named set of keys.
    pub fn keyspace(&self, name: &str) -> BackendResult<Keyspace> {
        self.inner
            .database
            .keyspace(name, KeyspaceCreateOptions::default)
            .map_err(|e| BackendError::not_applied("open keyspace", ErrorKind::Unavailable, e))
    }

    /// Hands a write to the writer thread and returns at once; writes are applied in the order of these calls.
    ///
    /// # Errors
    /// `NotApplied` when too many writes are waiting.
    pub fn enqueue(
        &self,
        operation: &'static str,
        changes: Vec<Change>,
        durability: Durability,
    ) -> BackendResult<Pending> {
        let (done, receiver) = oneshot::channel();
        let writes = self.inner.writes.as_ref().expect("taken only on drop");
        match writes.try_send(Write { changes, durability, done }) {
            Ok(()) => Ok(Pending { operation, done: receiver }),
            Err(TrySendError::Full(_)) => {
                Err(BackendError::not_applied(operation, ErrorKind::Unavailable, "too many writes are waiting"))
            }
            Err(TrySendError::Disconnected(_)) => {
                Err(BackendError::not_applied(operation, ErrorKind::Unavailable, "the writer thread ended"))
            }
        }
    }

    /// Writes and waits.
    pub async fn write(
        &self,
        operation: &'static str,
        changes: Vec<Change>,
        durability: Durability,
    ) -> BackendResult<()> {
        self.enqueue(operation, changes, durability)?.wait().await
    }

    /// Runs a read on a blocking thread.
    pub async fn read<T, F>(operation: &'static str, read: F) -> BackendResult<T>
    where
        T: Send + 'static,
        F: FnOnce() -> fjall::Result<T> + Send + 'static,
    {
        match tokio::task::spawn_blocking(read).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(BackendError::not_applied(operation, ErrorKind::Unavailable, error)),
            Err(error) => Err(BackendError::not_applied(operation, ErrorKind::Unavailable, error)),
        }
    }
}

impl std::fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EmbeddedStore")
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.writes.take());
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has already failed its writes.
            let _ = writer.join();
        }
        // What was only handed to the operating system becomes safe at a clean end; a failure changes no promise.
        let _ = self.database.persist(PersistMode::SyncAll);
    }
}

/// Takes what is waiting, commits it as one batch, tells everybody.
fn write_loop(database: &Database, waiting: &Receiver<Write>) {
    while let Ok(first) = waiting.recv() {
        let mut writes = vec![first];
        while writes.len() < BATCH_WRITES_MAX {
            match waiting.try_recv() {
                Ok(write) => writes.push(write),
                Err(_) => break,
            }
        }
        let durability = writes.iter().map(|w| w.durability).max().unwrap_or(Durability::Process);
        let mode = match durability {
            Durability::Process => PersistMode::Buffer,
            Durability::Power => PersistMode::SyncData,
        };
        let mut batch = database.batch().durability(Some(mode));
        for change in writes.iter_mut().flat_map(|w| w.changes.drain(..)) {
            match change.value {
                Some(value) => batch.insert(&change.keyspace, change.key, value),
                None => batch.remove(&change.keyspace, change.key),
            }
        }
        let result = batch.commit().map_err(|e| e.to_string());
        for write in writes {
            // A caller that gave up does not listen any more.
            let _ = write.done.send(result.clone());
        }
    }
}
