//! The time by which a server dates its sessions: the session store's. The order of a device's sessions is that of their
//! ids, and the push service compares them with the lives of servers; a server whose own clock is wrong would make
//! sessions that win over later ones, where the store forgot the claims, or that outlive their server.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::backends::sessions::Sessions;
use crate::runtime::clock;

/// The store's clock as a server knows it; this server's until the store has told its own.
pub(super) struct SessionClock {
    sessions: Arc<dyn Sessions>,
    /// How far the store's clock is ahead of this server's. Written by [`SessionClock::set`].
    ahead_ms: AtomicI64,
    /// When this life of the server began. No session of it is older, whatever clocks say.
    epoch_ms: u64,
}

impl SessionClock {
    /// Asks the store; this life of the server begins now.
    pub(super) async fn begin(sessions: Arc<dyn Sessions>) -> Self {
        let mut this = Self { sessions, ahead_ms: AtomicI64::new(0), epoch_ms: 0 };
        this.set().await;
        this.epoch_ms = this.now_ms();
        this
    }

    /// When this life of the server began, in milliseconds since 1970.
    pub(super) const fn epoch_ms(&self) -> u64 {
        self.epoch_ms
    }

    /// The time in milliseconds since 1970.
    pub(super) fn now_ms(&self) -> u64 {
        clock::unix_ms().saturating_add_signed(self.ahead_ms.load(Ordering::Relaxed)).max(self.epoch_ms)
    }

    /// Asks the store for its time. Without an answer, which the port's layer counts, what was known holds.
    pub(super) async fn set(&self) {
        let asked_ms = clock::unix_ms();
        if let Ok(told_ms) = self.sessions.now_ms().await {
            self.ahead_ms.store(ahead_ms(asked_ms, told_ms, clock::unix_ms()), Ordering::Relaxed);
        }
    }
}

/// How far a clock is ahead, at least, that told its time between two times of this server's clock.
fn ahead_ms(asked_ms: u64, told_ms: u64, answered_ms: u64) -> i64 {
    let nearest = told_ms.clamp(asked_ms.min(answered_ms), answered_ms);
    told_ms.wrapping_sub(nearest).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::sessions::{Clock, EmbeddedSessions};
    use crate::backends::store::EmbeddedStore;

    const HOUR_MS: i64 = 3_600_000;

    #[test]
    fn a_clock_is_ahead_by_what_the_call_does_not_explain() {
        assert_eq!([5, 7, 9].map(|told| ahead_ms(5, told, 9)), [0, 0, 0]);
        assert_eq!([1, 20].map(|told| ahead_ms(5, told, 9)), [-4, 11]);
        assert_eq!(ahead_ms(9, 7, 5), 2, "this server's clock went back meanwhile");
    }

    #[tokio::test]
    async fn sessions_are_dated_by_the_stores_clock_whatever_this_servers_says() {
        for apart_ms in [-HOUR_MS, HOUR_MS] {
            let folder = tempfile::tempdir().expect("a folder");
            let stores: Clock = Arc::new(move || clock::unix_ms().saturating_add_signed(apart_ms));
            let store = EmbeddedStore::open(folder.path()).expect("opens");
            let sessions = EmbeddedSessions::open_with_clock(&store, Arc::clone(&stores)).expect("opens");
            let before_ms = stores();
            let clock = SessionClock::begin(Arc::new(sessions)).await;
            let (epoch_ms, now_ms) = (clock.epoch_ms(), clock.now_ms());
            // What the call took may be missing where the store is behind.
            assert!(now_ms >= epoch_ms && now_ms.abs_diff(before_ms) < HOUR_MS as u64 / 2, "{before_ms}, {now_ms}");
        }
    }

    #[tokio::test]
    async fn no_session_is_older_than_its_server() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = EmbeddedStore::open(folder.path()).expect("opens");
        let clock = SessionClock::begin(Arc::new(EmbeddedSessions::open(&store).expect("opens"))).await;
        clock.ahead_ms.store(-HOUR_MS, Ordering::Relaxed);
        assert_eq!(clock.now_ms(), clock.epoch_ms());
    }
}
