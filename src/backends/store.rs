//! The embedded engines' storage: one LSM store per data folder, with one writer thread that commits in groups.
//!
//! Whatever is waiting when the writer looks becomes one batch. After a flush the writer looks again when as much time has passed
//! as the flush took: a busy store gathers more for the next one, and a write that comes alone waits for nothing. A batch with an acknowledged message in it is flushed to
//! the disk (`fdatasync`) before anybody hears "done"; a batch without one survives the end of the process, not of the
//! machine. Reads go straight to the store and run on blocking threads.
//!
//! After a failed write, such as on a full disk, the store takes nothing any more, since nobody knows what of it is on the disk.
//! The writer closes it, refuses what comes, and opens it again as soon as the disk takes a file.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use fjall::{Database, KeyspaceCreateOptions, PersistMode};
use fs4::fs_std::FileExt;
use tokio::sync::oneshot;

use super::error::{BackendError, BackendResult, ErrorKind};
use crate::runtime::{Tasks, clock};

/// Writes that may wait for the writer thread; more are refused.
const WRITES_WAITING_MAX: usize = 8_192;

/// Writes in one batch.
const BATCH_WRITES_MAX: usize = 1_024;

/// Longest that the writer gathers after a flush.
const GATHER_MAX: Duration = Duration::from_millis(1);

/// First wait before a store that failed is opened again, and the longest.
const REOPEN_WAIT: Duration = Duration::from_millis(100);
const REOPEN_WAIT_MAX: Duration = Duration::from_secs(2);

/// What a disk must take before the store is opened again.
const ROOM_BYTES: usize = 4 << 20;

/// What must survive once a write is reported done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// The end of the process, by `kill -9` too.
    Process,
    /// A loss of power.
    Power,
}

/// A named set of keys. Clones are the same set, also after the store was opened again.
#[derive(Clone)]
pub struct Keyspace(Arc<ArcSwapOption<fjall::Keyspace>>);

impl Keyspace {
    /// The set, to read from.
    ///
    /// # Errors
    /// While the store is closed, after a write had failed.
    pub fn get_ref(&self) -> fjall::Result<Arc<fjall::Keyspace>> {
        self.0.load_full().ok_or(fjall::Error::Poisoned)
    }

    /// The value of a key.
    ///
    /// # Errors
    /// As [`Keyspace::get_ref`], or when the disk can't be read.
    pub fn get(&self, key: impl AsRef<[u8]>) -> fjall::Result<Option<fjall::Slice>> {
        self.get_ref()?.get(key)
    }
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
    disk: Arc<Disk>,
    /// Held for as long as the store is open: two processes in one folder would corrupt each other.
    _lock: std::fs::File,
}

/// What is open of the folder.
struct Disk {
    folder: PathBuf,
    state: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    /// `None` from a failed write until it is open again.
    database: Option<Database>,
    /// Each that was ever asked for. Written by [`Disk::close`] and [`Disk::open`].
    keyspaces: HashMap<String, Keyspace>,
}

impl Disk {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.state.lock().expect("no panic while held")
    }

    /// Opens the store, and every set of keys that was open before.
    fn open(&self) -> fjall::Result<()> {
        let database = Database::builder(self.folder.join("store"))
            .cache_size(32 << 20)
            .worker_threads(1)
            .manual_journal_persist(false)
            .open()?;
        let mut state = self.lock();
        // All of them or none: one that stayed open would keep the folder's lock.
        let open = |name: &String| database.keyspace(name, KeyspaceCreateOptions::default).map(Arc::new);
        let opened = state.keyspaces.keys().map(open).collect::<fjall::Result<Vec<_>>>()?;
        for (keyspace, open) in state.keyspaces.values().zip(opened) {
            keyspace.0.store(Some(open));
        }
        state.database = Some(database);
        Ok(())
    }

    /// Closes the store. Whoever reads just now finishes first.
    fn close(&self) {
        let mut state = self.lock();
        for keyspace in state.keyspaces.values() {
            keyspace.0.store(None);
        }
        let database = state.database.take();
        drop(state);
        drop(database);
    }

    fn keyspace(&self, name: &str) -> fjall::Result<Keyspace> {
        let mut state = self.lock();
        if let Some(keyspace) = state.keyspaces.get(name) {
            return Ok(keyspace.clone());
        }
        let database = state.database.as_ref().ok_or(fjall::Error::Poisoned)?;
        let open = database.keyspace(name, KeyspaceCreateOptions::default)?;
        let keyspace = Keyspace(Arc::new(ArcSwapOption::from_pointee(open)));
        state.keyspaces.insert(name.to_owned(), keyspace.clone());
        Ok(keyspace)
    }

    fn commit(&self, writes: &mut [Write]) -> fjall::Result<()> {
        let database = self.lock().database.clone().ok_or(fjall::Error::Poisoned)?;
        let durability = writes.iter().map(|w| w.durability).max().unwrap_or(Durability::Process);
        let mode = match durability {
            Durability::Process => PersistMode::Buffer,
            Durability::Power => PersistMode::SyncData,
        };
        let mut batch = database.batch().durability(Some(mode));
        for change in writes.iter_mut().flat_map(|w| w.changes.drain(..)) {
            let keyspace = change.keyspace.get_ref()?;
            match change.value {
                Some(value) => batch.insert(&keyspace, change.key, value),
                None => batch.remove(&keyspace, change.key),
            }
        }
        batch.commit()
    }

    /// Whether the disk takes a file of some size.
    fn has_room(&self) -> std::io::Result<()> {
        let path = self.folder.join("room");
        let written = std::fs::File::create(&path).and_then(|mut file| {
            file.write_all(&vec![0; ROOM_BYTES])?;
            file.sync_data()
        });
        let removed = std::fs::remove_file(&path);
        written.and(removed)
    }
}

/// A write on its way to the disk.
#[derive(Debug)]
pub struct Pending {
    operation: &'static str,
    done: oneshot::Receiver<Result<(), String>>,
}

impl Pending {
    /// The same on a thread that may block.
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub fn wait_blocking(self) -> BackendResult<()> {
        let operation = self.operation;
        match self.done.blocking_recv() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(BackendError::unknown(operation, ErrorKind::Unavailable, error)),
            Err(_) => Err(BackendError::unknown(operation, ErrorKind::Unavailable, "the store was closed")),
        }
    }

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
                "data folder {} is in use by another process: stop it, or give another folder with --data",
                folder.display()
            );
            return Err(BackendError::not_applied(OPEN, ErrorKind::InUse, text));
        }
        let disk = Arc::new(Disk { folder: folder.to_owned(), state: Mutex::default() });
        disk.open().map_err(|e| BackendError::not_applied(OPEN, ErrorKind::Unavailable, e))?;
        let (writes, waiting) = sync_channel(WRITES_WAITING_MAX);
        let target = Arc::clone(&disk);
        let writer = std::thread::Builder::new()
            .name("engine-writer".to_owned())
            .spawn(move || write_loop(&target, &waiting))
            .map_err(failed)?;
        Ok(Self { inner: Arc::new(Inner { writes: Some(writes), writer: Some(writer), disk, _lock: lock }) })
    }

    /// A named set of keys.
    pub fn keyspace(&self, name: &str) -> BackendResult<Keyspace> {
        self.inner
            .disk
            .keyspace(name)
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
        match Tasks::block(read).await {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => Err(BackendError::not_applied(operation, ErrorKind::Unavailable, error)),
            None => Err(BackendError::not_applied(operation, ErrorKind::Unavailable, "the read panicked")),
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
        if let Some(database) = &self.disk.lock().database {
            let _ = database.persist(PersistMode::SyncAll);
        }
    }
}

/// When the writer looks for the next batch.
#[derive(Default)]
struct Gathering {
    /// No sooner than this, on [`clock::now_us`].
    until_us: u64,
}

impl Gathering {
    /// A flush took from one moment to another.
    fn flushed(&mut self, from_us: u64, to_us: u64) {
        let took_us = to_us.saturating_sub(from_us);
        self.until_us = to_us + took_us.min(GATHER_MAX.as_micros() as u64);
    }

    /// How long the first write of a batch waits for others.
    const fn wait(&self, now_us: u64) -> Duration {
        Duration::from_micros(self.until_us.saturating_sub(now_us))
    }
}

/// Takes what is waiting, commits it as one batch, tells everybody.
fn write_loop(disk: &Disk, waiting: &Receiver<Write>) {
    let mut gathering = Gathering::default();
    while let Ok(first) = waiting.recv() {
        let wait = gathering.wait(clock::now_us());
        if !wait.is_zero() {
            // Asleep rather than waiting for the next write: one wake-up for all of them.
            std::thread::sleep(wait);
        }
        let mut writes = vec![first];
        while writes.len() < BATCH_WRITES_MAX {
            match waiting.try_recv() {
                Ok(write) => writes.push(write),
                Err(_) => break,
            }
        }
        let is_flushed = writes.iter().any(|write| write.durability == Durability::Power);
        let began_us = clock::now_us();
        let result = disk.commit(&mut writes).map_err(|e| e.to_string());
        if is_flushed {
            gathering.flushed(began_us, clock::now_us());
        }
        for write in writes {
            // A caller that gave up does not listen any more.
            let _ = write.done.send(result.clone());
        }
        if let Err(error) = result
            && !reopen(disk, waiting, &error)
        {
            return;
        }
    }
}

/// Closes a store that failed and opens it again once the disk is well; what comes meanwhile is refused. Returns false when the
/// store is to be closed for good.
fn reopen(disk: &Disk, waiting: &Receiver<Write>, error: &str) -> bool {
    tracing::error!(folder = %disk.folder.display(), %error, "the embedded store failed; it is opened again when the disk takes a file");
    disk.close();
    let mut wait = REOPEN_WAIT;
    loop {
        let until_us = clock::now_us() + wait.as_micros() as u64;
        loop {
            match waiting.recv_timeout(Duration::from_micros(until_us.saturating_sub(clock::now_us()))) {
                Ok(write) => {
                    let refusal = format!("the store is closed since a write failed ({error})");
                    let _ = write.done.send(Err(refusal));
                }
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        wait = (wait * 2).min(REOPEN_WAIT_MAX);
        let opened = disk.has_room().map_err(|e| e.to_string()).and_then(|()| disk.open().map_err(|e| e.to_string()));
        match opened {
            Ok(()) => {
                tracing::warn!(folder = %disk.folder.display(), "the embedded store is open again");
                return true;
            }
            Err(error) => tracing::debug!(%error, "the embedded store can't be opened yet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_gathered_for_as_long_as_the_last_flush_took() {
        let mut gathering = Gathering::default();
        assert_eq!(gathering.wait(1_000), Duration::ZERO, "nothing was flushed");
        gathering.flushed(1_000, 1_400);
        let waits = [1_400, 1_600, 1_800, 9_000].map(|now| gathering.wait(now).as_micros());
        assert_eq!(waits, [400, 200, 0, 0]);
        gathering.flushed(10_000, 5_010_000);
        assert_eq!(gathering.wait(5_010_000), GATHER_MAX, "a stalled disk");
    }
}
