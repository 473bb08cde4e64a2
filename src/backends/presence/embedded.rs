//! Presence in memory, written to the data folder a moment later.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Beat, LastBeat, Presence, PresenceRecord, Silent};
use crate::backends::BackendResult;
use crate::backends::soft::SoftMap;
use crate::backends::store::EmbeddedStore;
use crate::protocol::UserId;
use crate::runtime::clock;

/// A beat is written down only when the last one on disk is this much older: after a restart nobody is declared offline
/// for longer than that.
const WRITE_EVERY_MS: u64 = 10_000;

/// Presence of a data folder. Clones are the same store.
#[derive(Clone)]
pub struct EmbeddedPresence {
    users: SoftMap<UserId, Entry>,
    clock: SteadyClock,
}

/// Milliseconds since 1970 when this was made, and steady from then on: whoever sets the machine's clock makes nobody silent.
#[derive(Clone, Copy)]
struct SteadyClock {
    unix_ms: u64,
    began_us: u64,
}

impl SteadyClock {
    fn new() -> Self {
        Self { unix_ms: clock::unix_ms(), began_us: clock::now_us() }
    }

    fn now_ms(self) -> u64 {
        self.unix_ms + (clock::now_us() - self.began_us) / 1_000
    }
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
        let (users, clock) = (SoftMap::<UserId, Entry>::open(store, "presence")?, SteadyClock::new());
        // The machine's clock may have been set back: a beat from the future would keep its user online until then.
        for entry in users.lock().map.values_mut() {
            entry.last_beat_ms = entry.last_beat_ms.min(clock.now_ms());
        }
        Ok(Self { users, clock })
    }
}

#[async_trait]
impl Presence for EmbeddedPresence {
    async fn beat(&self, beats: &[Beat]) -> BackendResult<Vec<LastBeat>> {
        let now_ms = self.clock.now_ms();
        let mut state = self.users.lock();
        let mut came_online = Vec::new();
        for beat in beats {
            let beat = LastBeat { user: beat.user, at_ms: now_ms.saturating_sub(beat.age_ms) };
            let entry = state.map.entry(beat.user).or_default();
            if beat.at_ms <= entry.last_beat_ms {
                continue;
            }
            entry.last_beat_ms = beat.at_ms;
            if !entry.online {
                entry.online = true;
                came_online.push(beat);
            }
            if came_online.last() == Some(&beat) || entry.written_ms + WRITE_EVERY_MS <= beat.at_ms {
                entry.written_ms = beat.at_ms;
                state.mark(beat.user);
            }
        }
        Ok(came_online)
    }

    async fn silent(&self, silence_ms: u64, skip: usize, limit: usize) -> BackendResult<Silent> {
        let now_ms = self.clock.now_ms();
        let before_ms = now_ms.saturating_sub(silence_ms);
        let state = self.users.lock();
        let silent = state.map.iter().filter(|(_, e)| e.online && e.last_beat_ms < before_ms);
        let users = silent.skip(skip).take(limit);
        let users = users.map(|(user, e)| LastBeat { user: *user, at_ms: e.last_beat_ms }).collect();
        // The data folder is this process's: another life begins with another process.
        Ok(Silent { life: String::new(), now_ms, users })
    }

    async fn expire(&self, last: &LastBeat) -> BackendResult<bool> {
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

    async fn probe(&self) -> BackendResult<()> {
        // Kept in memory; the folder that it is written to now and then is probed by the message store.
        Ok(())
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
