//! Sessions in memory, written to the data folder a moment later.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Claim, SESSION_TTL, Session, Sessions};
use crate::backends::BackendResult;
use crate::backends::soft::SoftMap;
use crate::backends::store::EmbeddedStore;
use crate::protocol::{DeviceName, ServerName, SessionId, UserId};
use crate::runtime::clock;

/// Tells the time in milliseconds since 1970; tests bring their own.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Sessions of a data folder. Clones are the same store.
#[derive(Clone)]
pub struct EmbeddedSessions {
    users: SoftMap<UserId, Vec<Entry>>,
    /// When each mark expires. In memory only: whoever entered one has ended with it.
    marks: Arc<Mutex<HashMap<Uuid, u64>>>,
    now_ms: Clock,
}

#[derive(Clone, Serialize, Deserialize)]
struct Entry {
    device: DeviceName,
    session: SessionId,
    server: ServerName,
    expires_ms: u64,
}

impl Entry {
    fn of(session: &Session, expires_ms: u64) -> Self {
        let Session { device, session, server, .. } = session.clone();
        Self { device, session, server, expires_ms }
    }
}

impl EmbeddedSessions {
    /// Opens the sessions of a data folder.
    pub fn open(store: &EmbeddedStore) -> BackendResult<Self> {
        Self::open_with_clock(store, Arc::new(clock::unix_ms))
    }

    /// The same, with another clock.
    pub fn open_with_clock(store: &EmbeddedStore, now_ms: Clock) -> BackendResult<Self> {
        Ok(Self { users: SoftMap::open(store, "sessions")?, marks: Arc::default(), now_ms })
    }

    fn expiry(&self) -> u64 {
        (self.now_ms)() + SESSION_TTL.as_millis() as u64
    }
}

fn session(user: UserId, entry: Entry) -> Session {
    Session { user, device: entry.device, session: entry.session, server: entry.server }
}

#[async_trait]
impl Sessions for EmbeddedSessions {
    async fn claim(&self, new: &Session) -> BackendResult<Claim> {
        let (now, expires_ms) = ((self.now_ms)(), self.expiry());
        let mut state = self.users.lock();
        let entries = state.touch(new.user);
        entries.retain(|e| e.expires_ms > now);
        let old = entries.iter().position(|e| e.device == new.device);
        if let Some(known) = old.map(|at| entries[at].session).filter(|known| known.is_behind(&new.session)) {
            return Ok(Claim::Late(known));
        }
        let old = old.map(|at| entries.swap_remove(at));
        entries.push(Entry::of(new, expires_ms));
        entries.shrink_to_fit();
        Ok(Claim::Made(old.map(|entry| session(new.user, entry))))
    }

    async fn refresh(&self, sessions: &[Session]) -> BackendResult<Vec<SessionId>> {
        let (now, expires_ms) = ((self.now_ms)(), self.expiry());
        let mut replaced = Vec::new();
        let mut state = self.users.lock();
        for wanted in sessions {
            let entries = state.touch(wanted.user);
            entries.retain(|e| e.expires_ms > now);
            match entries.iter_mut().find(|e| e.device == wanted.device) {
                Some(entry) if entry.session == wanted.session => entry.expires_ms = expires_ms,
                Some(entry) if wanted.session.is_behind(&entry.session) => *entry = Entry::of(wanted, expires_ms),
                Some(_) => replaced.push(wanted.session),
                None => entries.push(Entry::of(wanted, expires_ms)),
            }
        }
        Ok(replaced)
    }

    async fn release(&self, old: &Session) -> BackendResult<bool> {
        let mut state = self.users.lock();
        let Some(entries) = state.map.get_mut(&old.user) else { return Ok(false) };
        let before = entries.len();
        entries.retain(|e| e.session != old.session);
        let removed = entries.len() < before;
        if entries.is_empty() {
            state.map.remove(&old.user);
        }
        if removed {
            state.mark(old.user);
        }
        Ok(removed)
    }

    async fn lookup(&self, users: &[UserId]) -> BackendResult<Vec<Session>> {
        let now = (self.now_ms)();
        let state = self.users.lock();
        let live = |user: &UserId| {
            let entries = state.map.get(user).map_or(&[][..], Vec::as_slice);
            entries.iter().filter(|e| e.expires_ms > now).map(|e| session(*user, e.clone())).collect::<Vec<_>>()
        };
        Ok(users.iter().flat_map(live).collect())
    }

    async fn now_ms(&self) -> BackendResult<u64> {
        Ok((self.now_ms)())
    }

    async fn enter_mark(&self, mark: Uuid) -> BackendResult<()> {
        let (now, expires_ms) = ((self.now_ms)(), self.expiry());
        let mut marks = self.marks.lock().expect("no panic while held");
        marks.retain(|_, expires_ms| *expires_ms > now);
        marks.insert(mark, expires_ms);
        Ok(())
    }

    async fn has_mark(&self, mark: Uuid) -> BackendResult<bool> {
        let marks = self.marks.lock().expect("no panic while held");
        Ok(marks.get(&mark).is_some_and(|expires_ms| *expires_ms > (self.now_ms)()))
    }

    async fn probe(&self) -> BackendResult<()> {
        // Kept in memory; the folder that it is written to now and then is probed by the message store.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::backends::contract::{EmbeddedPlace, Place};
    use crate::backends::sessions::contract::{promises, sessions_contract};

    fn place() -> EmbeddedPlace<dyn Sessions> {
        EmbeddedPlace::<dyn Sessions>::new(|store| Arc::new(EmbeddedSessions::open(store).expect("opens")))
    }

    sessions_contract!(place());

    #[tokio::test]
    async fn a_session_ends_after_its_time_to_live() {
        let now = Arc::new(AtomicU64::new(1_000));
        let place: EmbeddedPlace<dyn Sessions> = {
            let now = Arc::clone(&now);
            EmbeddedPlace::<dyn Sessions>::new(move |store| {
                let now = Arc::clone(&now);
                let clock: Clock = Arc::new(move || now.load(Ordering::Relaxed));
                Arc::new(EmbeddedSessions::open_with_clock(store, clock).expect("opens"))
            })
        };
        let port = place.open().await;
        let s = promises::session(1, "phone", "chat-1");
        port.claim(&s).await.expect("claims");
        now.fetch_add(SESSION_TTL.as_millis() as u64 - 1, Ordering::Relaxed);
        assert_eq!(port.lookup(&[s.user]).await.expect("answers").len(), 1);
        port.refresh(std::slice::from_ref(&s)).await.expect("refreshes");
        now.fetch_add(SESSION_TTL.as_millis() as u64 - 1, Ordering::Relaxed);
        assert_eq!(port.lookup(&[s.user]).await.expect("answers").len(), 1);
        now.fetch_add(1, Ordering::Relaxed);
        assert_eq!(port.lookup(&[s.user]).await.expect("answers").len(), 0);
    }
}
