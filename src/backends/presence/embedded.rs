//! Presence in memory, written to the data folder a moment later.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Beat, Presence, PresenceRecord};
use crate::backends::BackendResult;
use crate::backends::soft::SoftMap;
use crate::backends::store::EmbeddedStore;
use crate::protocol::UserId;

/// A beat is written down only when the last one on disk is this much older: after a restart nobody is declared offline
/// for longer than that.
const WRITE_EVERY_MS: u64 = 10_000;

/// Presence of a data folder. Clones are the same store.
#[derive(Clone)]
pub struct EmbeddedPresence {
    users: SoftMap<UserId, Entry>,
}

#[derive(Default, Serialize, Deserialize)]
struct Entry {
    online: bool,
    last_beat_ms: u64,
    #[serde(skip)]
    written_ms: u64,
}

impl EmbeddedPresence {
    /// Opens the presence of a data folder.
    pub fn open(store: &EmbeddedStore) -> BackendResult<Self> {
        Ok(Self { users: SoftMap::open(store, "presence")? })
    }
}

#[async_trait]
impl Presence for EmbeddedPresence {
    async fn beat(&self, beats: &[Beat]) -> BackendResult<Vec<Beat>> {
        let mut state = self.users.lock();
        let mut came_online = Vec::new();
        for beat in beats {
            let entry = state.map.entry(beat.user).or_default();
            if beat.at_ms <= entry.last_beat_ms {
                continue;
            }
            entry.last_beat_ms = beat.at_ms;
            if !entry.online {
                entry.online = true;
                came_online.push(*beat);
            }
            if came_online.last() == Some(beat) || entry.written_ms + WRITE_EVERY_MS <= beat.at_ms {
                entry.written_ms = beat.at_ms;
                state.mark(beat.user);
            }
        }
        Ok(came_online)
    }

    async fn overdue(&self, before_ms: u64, limit: usize) -> BackendResult<Vec<Beat>> {
        let state = self.users.lock();
        let overdue = state.map.iter().filter(|(_, e)| e.online && e.last_beat_ms < before_ms);
        Ok(overdue.take(limit).map(|(user, e)| Beat { user: *user, at_ms: e.last_beat_ms }).collect())
    }

    async fn expire(&self, last: &Beat) -> BackendResult<bool> {
        let mut state = self.users.lock();
        let Some(entry) = state.map.get_mut(&last.user) else { return Ok(false) };
        let expires = entry.online && entry.last_beat_ms == last.at_ms;
        if expires {
            entry.online = false;
            state.mark(last.user);
        }
        Ok(expires)
    }

    async fn get(&self, users: &[UserId]) -> BackendResult<Vec<PresenceRecord>> {
        let state = self.users.lock();
        let get = |user| state.map.get(user).map_or((false, 0), |e| (e.online, e.last_beat_ms));
        Ok(users.iter().map(get).map(|(online, last_beat_ms)| PresenceRecord { online, last_beat_ms }).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backends::contract::EmbeddedPlace;
    use crate::backends::presence::contract::presence_contract;

    fn place() -> EmbeddedPlace<dyn Presence> {
        EmbeddedPlace::<dyn Presence>::new(|store| Arc::new(EmbeddedPresence::open(store).expect("opens")))
    }

    presence_contract!(place());
}
