//! Soft state of the embedded engines: a map in memory that is written to the data folder a moment later.
//!
//! What is lost by a `kill -9` is the last [`FLUSH_INTERVAL`]. Every user of a soft map can bear that: sessions, beats and
//! server entries are all refreshed or replaced by themselves.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::store::{Change, Durability, EmbeddedStore, Keyspace};
use super::{BackendError, BackendResult, error::ErrorKind};

/// How long a change may wait to be written.
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(500);

/// Changes that one flush writes at most.
const FLUSH_CHANGES_MAX: usize = 20_000;

/// A map that survives a restart. Clones are the same map.
pub struct SoftMap<K, V> {
    inner: Arc<Inner<K, V>>,
}

struct Inner<K, V> {
    store: EmbeddedStore,
    keyspace: Keyspace,
    state: Mutex<State<K, V>>,
}

/// The map and which of its keys are not written yet.
pub struct State<K, V> {
    /// The values. Change them through [`State::touch`] or say so with [`State::mark`].
    pub map: HashMap<K, V>,
    dirty: HashSet<K>,
}

impl<K: Eq + Hash + Copy, V> State<K, V> {
    /// Says that a key was changed or removed.
    pub fn mark(&mut self, key: K) {
        self.dirty.insert(key);
    }

    /// The value of a key, made if it is not there, and marked as changed.
    pub fn touch(&mut self, key: K) -> &mut V
    where
        V: Default,
    {
        self.dirty.insert(key);
        self.map.entry(key).or_default()
    }
}

impl<K, V> Clone for SoftMap<K, V> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

/// A key of a soft map, as eight bytes.
pub trait SoftKey: Copy + Eq + Hash + Send + 'static {
    /// To bytes.
    fn to_u64(self) -> u64;
    /// From bytes.
    fn from_u64(value: u64) -> Self;
}

impl SoftKey for crate::protocol::UserId {
    fn to_u64(self) -> u64 {
        self.0
    }
    fn from_u64(value: u64) -> Self {
        Self(value)
    }
}

impl<K, V> SoftMap<K, V>
where
    K: SoftKey,
    V: Serialize + DeserializeOwned + Send + 'static,
{
    /// Loads the map and starts the thread that writes it. The thread ends when the map is dropped.
    pub fn open(store: &EmbeddedStore, name: &'static str) -> BackendResult<Self> {
        let keyspace = store.keyspace(name)?;
        let mut map = HashMap::new();
        let open = keyspace.get_ref().map_err(|e| BackendError::not_applied(name, ErrorKind::Unavailable, e))?;
        for guard in open.iter() {
            let (key, value) =
                guard.into_inner().map_err(|e| BackendError::not_applied(name, ErrorKind::Unavailable, e))?;
            let corrupt = || BackendError::not_applied(name, ErrorKind::Corrupt, "a stored value has a wrong shape");
            let key = u64::from_be_bytes(key.as_ref().try_into().map_err(|_| corrupt())?);
            map.insert(K::from_u64(key), serde_json::from_slice(&value).map_err(|_| corrupt())?);
        }
        let state = Mutex::new(State { map, dirty: HashSet::new() });
        let inner = Arc::new(Inner { store: store.clone(), keyspace, state });
        let weak = Arc::downgrade(&inner);
        std::thread::Builder::new()
            .name("engine-flush".to_owned())
            .spawn(move || flush_loop(&weak))
            .map_err(|e| BackendError::not_applied(name, ErrorKind::Unavailable, e))?;
        Ok(Self { inner })
    }

    /// The map, locked. Hold it for a short section only.
    pub fn lock(&self) -> MutexGuard<'_, State<K, V>> {
        self.inner.state.lock().expect("no panic while held")
    }
}

fn flush_loop<K: SoftKey, V: Serialize>(map: &Weak<Inner<K, V>>) {
    loop {
        std::thread::sleep(FLUSH_INTERVAL);
        let Some(inner) = map.upgrade() else { return };
        inner.flush();
    }
}

impl<K, V> Inner<K, V> {
    /// Has what changed written; what is not stays marked for the next round.
    fn flush(&self)
    where
        K: SoftKey,
        V: Serialize,
    {
        let mut state = self.state.lock().expect("no panic while held");
        let keys: Vec<K> = state.dirty.iter().copied().take(FLUSH_CHANGES_MAX).collect();
        let changes: Vec<Change> = keys
            .iter()
            .map(|key| Change {
                keyspace: self.keyspace.clone(),
                key: key.to_u64().to_be_bytes().to_vec(),
                value: state.map.get(key).map(|v| serde_json::to_vec(v).expect("plain data")),
            })
            .collect();
        if changes.is_empty() {
            return;
        }
        let Ok(pending) = self.store.enqueue("flush", changes, Durability::Process) else { return };
        for key in &keys {
            state.dirty.remove(key);
        }
        drop(state);
        if pending.wait_blocking().is_err() {
            self.state.lock().expect("no panic while held").dirty.extend(keys);
        }
    }
}
