//! Keeps the sessions of a server in the session store: gives them more life, and enters them again after the store forgot them.
//!
//! Each pass first enters a new mark, then every session. As long as the mark is found, nothing of the pass was forgotten. What
//! failed, or may have, is no pass: it is owed, and tried again after a while that grows.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::backends::BackendResult;
use crate::backends::sessions::{SESSION_TTL, Session, Sessions};
use crate::runtime::backoff::Backoff;
use crate::runtime::clock;

/// How often the mark is looked for: so long users may count as offline after the store forgot them.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// From one pass to the next, where nothing is forgotten.
const PASS_INTERVAL: Duration = SESSION_TTL.checked_div(3).expect("three is not zero");

/// Longest wait before a pass that failed is tried again. With the time that a pass takes well under a session's life.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Sessions in one call.
const AT_ONCE: usize = 1_000;

/// The state between two looks.
pub(super) struct SessionKeeper {
    sessions: Arc<dyn Sessions>,
    /// The mark of the last pass that was complete, and when it began, on [`clock::now_us`].
    kept: Option<(Uuid, u64)>,
    backoff: Backoff,
}

impl SessionKeeper {
    /// Has not entered anything yet.
    pub(super) fn new(sessions: Arc<dyn Sessions>) -> Self {
        Self { sessions, kept: None, backoff: Backoff::new(LOOK_INTERVAL, RETRY_MAX) }
    }

    /// Time until the next look.
    pub(super) fn wait(&mut self) -> Duration {
        if self.backoff.tries() == 0 {
            return LOOK_INTERVAL;
        }
        LOOK_INTERVAL + self.backoff.next_wait(&mut rand::rng())
    }

    /// Enters all sessions if that is due or the store forgot them. Returns those whose device has another session.
    pub(super) async fn look(
        &mut self,
        all: impl FnOnce() -> Vec<Session>,
        is_here: impl Fn(&Session) -> bool,
    ) -> Vec<Session> {
        if let Some((mark, begun_us)) = self.kept {
            let is_due = clock::now_us() - begun_us >= PASS_INTERVAL.as_micros() as u64;
            // A store that does not answer is asked again.
            let has_forgotten = matches!(self.sessions.has_mark(mark).await, Ok(false));
            if !is_due && !has_forgotten {
                return Vec::new();
            }
        }
        let (mark, begun_us) = (Uuid::new_v4(), clock::now_us());
        let mut replaced = Vec::new();
        // A failure is counted by the port's layer.
        let passed = self.pass(mark, all, is_here, &mut replaced).await;
        self.kept = passed.is_ok().then_some((mark, begun_us));
        if passed.is_ok() {
            self.backoff.reset();
        } else {
            self.backoff.at_least(1);
        }
        replaced
    }

    /// Enters the mark and every session, up to the first failure.
    async fn pass(
        &self,
        mark: Uuid,
        all: impl FnOnce() -> Vec<Session>,
        is_here: impl Fn(&Session) -> bool,
        replaced: &mut Vec<Session>,
    ) -> BackendResult<()> {
        self.sessions.enter_mark(mark).await?;
        // Behind the mark: who came after it is missed by no flush that takes the mark.
        for chunk in all().chunks(AT_ONCE) {
            let refreshed = self.sessions.refresh(chunk).await;
            // Who left in the same moment must not come back by it, also where its answer was lost.
            for left in chunk.iter().filter(|session| !is_here(session)) {
                let _ = self.sessions.release(left).await;
            }
            let gone = refreshed?;
            replaced.extend(chunk.iter().filter(|session| gone.contains(&session.session)).cloned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::error::{BackendError, ErrorKind};
    use crate::backends::sessions::{Claim, EmbeddedSessions};
    use crate::backends::store::EmbeddedStore;
    use crate::protocol::{SessionId, UserId};
    use async_trait::async_trait;
    use std::sync::Mutex;

    /// The embedded store, which forgets and fails as it is told.
    struct Forgetful {
        inner: Mutex<Arc<EmbeddedSessions>>,
        fails: Mutex<Option<&'static str>>,
        refreshed: Mutex<Vec<usize>>,
        folder: tempfile::TempDir,
    }

    impl Forgetful {
        fn new() -> Arc<Self> {
            let folder = tempfile::tempdir().expect("a folder");
            let inner = Mutex::new(Arc::new(Self::empty(&folder)));
            Arc::new(Self { inner, fails: Mutex::default(), refreshed: Mutex::default(), folder })
        }

        fn empty(folder: &tempfile::TempDir) -> EmbeddedSessions {
            let folder = folder.path().join(Uuid::new_v4().to_string());
            EmbeddedSessions::open(&EmbeddedStore::open(&folder).expect("opens")).expect("opens")
        }

        fn forget(&self) {
            *self.inner.lock().expect("no panic while held") = Arc::new(Self::empty(&self.folder));
        }

        fn inner(&self, operation: &'static str) -> BackendResult<Arc<EmbeddedSessions>> {
            if *self.fails.lock().expect("no panic while held") == Some(operation) {
                return Err(BackendError::not_applied(operation, ErrorKind::Unavailable, "away"));
            }
            Ok(Arc::clone(&self.inner.lock().expect("no panic while held")))
        }

        /// How many sessions were entered since the last look, call by call.
        fn entered(&self) -> Vec<usize> {
            std::mem::take(&mut *self.refreshed.lock().expect("no panic while held"))
        }

        fn fail(&self, operation: Option<&'static str>) {
            *self.fails.lock().expect("no panic while held") = operation;
        }
    }

    #[async_trait]
    impl Sessions for Forgetful {
        async fn claim(&self, session: &Session) -> BackendResult<Claim> {
            self.inner("claim")?.claim(session).await
        }
        async fn refresh(&self, sessions: &[Session]) -> BackendResult<Vec<SessionId>> {
            let result = self.inner("refresh")?.refresh(sessions).await;
            self.refreshed.lock().expect("no panic while held").push(sessions.len());
            self.inner("answer to refresh")?;
            result
        }
        async fn release(&self, session: &Session) -> BackendResult<bool> {
            self.inner("release")?.release(session).await
        }
        async fn lookup(&self, users: &[UserId]) -> BackendResult<Vec<Session>> {
            self.inner("lookup")?.lookup(users).await
        }
        async fn now_ms(&self) -> BackendResult<u64> {
            self.inner("now_ms")?.now_ms().await
        }
        async fn enter_mark(&self, mark: Uuid) -> BackendResult<()> {
            let inner = self.inner("enter_mark")?;
            inner.enter_mark(mark).await?;
            // The answer may get lost behind the deed.
            self.inner("answer to enter_mark").map(|_| ())
        }
        async fn has_mark(&self, mark: Uuid) -> BackendResult<bool> {
            self.inner("has_mark")?.has_mark(mark).await
        }
        async fn probe(&self) -> BackendResult<()> {
            self.inner("probe").map(|_| ())
        }
    }

    fn sessions(count: u64) -> Vec<Session> {
        let session = |user| Session {
            user: UserId(user),
            device: "phone".parse().expect("valid"),
            session: SessionId(Uuid::new_v4()),
            server: "chat-1".parse().expect("valid"),
        };
        (0..count).map(session).collect()
    }

    const NONE: [usize; 0] = [];

    /// A look with all sessions here; returns how many were entered, call by call.
    async fn look(keeper: &mut SessionKeeper, store: &Forgetful, all: &[Session]) -> Vec<usize> {
        keeper.look(|| all.to_vec(), |_| true).await;
        store.entered()
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_store_forgot_is_entered_at_the_next_look_and_else_when_it_is_due() {
        let store = Forgetful::new();
        let all = sessions(3);
        let mut keeper = SessionKeeper::new(Arc::clone(&store) as Arc<dyn Sessions>);
        assert_eq!(look(&mut keeper, &store, &all).await, [3], "the first look enters them");
        assert_eq!(look(&mut keeper, &store, &all).await, NONE);
        store.forget();
        assert_eq!(look(&mut keeper, &store, &all).await, [3]);
        assert_eq!(store.lookup(&[UserId(1)]).await.expect("answers"), [all[1].clone()]);
        assert_eq!((look(&mut keeper, &store, &all).await, keeper.wait()), (vec![], LOOK_INTERVAL));
        tokio::time::advance(PASS_INTERVAL).await;
        assert_eq!(look(&mut keeper, &store, &all).await, [3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pass_that_failed_anywhere_is_owed_and_waited_for_longer() {
        let store = Forgetful::new();
        let all = sessions(2_500);
        let mut keeper = SessionKeeper::new(Arc::clone(&store) as Arc<dyn Sessions>);
        for failing in ["enter_mark", "answer to enter_mark", "refresh"] {
            store.fail(Some(failing));
            store.forget();
            assert_eq!(look(&mut keeper, &store, &all).await, NONE, "{failing}: nothing is entered behind a failure");
            assert!(keeper.wait() >= LOOK_INTERVAL && keeper.backoff.tries() > 1, "{failing}");
            store.fail(None);
            assert_eq!(look(&mut keeper, &store, &all).await, [1_000, 1_000, 500], "{failing}");
            assert_eq!(look(&mut keeper, &store, &all).await, NONE, "{failing}");
        }
        store.fail(Some("has_mark"));
        assert_eq!(look(&mut keeper, &store, &all).await, NONE, "no answer is no news");
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_another_session_is_told_and_who_left_does_not_come_back() {
        let store = Forgetful::new();
        let all = sessions(3);
        let newer = Session { session: SessionId(Uuid::new_v4()), ..all[1].clone() };
        store.claim(&newer).await.expect("claims");
        let mut keeper = SessionKeeper::new(Arc::clone(&store) as Arc<dyn Sessions>);
        let replaced = keeper.look(|| all.clone(), |session| session.user != UserId(2)).await;
        assert_eq!(replaced, [all[1].clone()]);
        let lost = Forgetful::new();
        lost.fail(Some("answer to refresh"));
        let mut keeper = SessionKeeper::new(Arc::clone(&lost) as Arc<dyn Sessions>);
        keeper.look(|| all.clone(), |session| session.user != UserId(2)).await;
        let entered = lost.lookup(&[UserId(0), UserId(2)]).await.expect("answers");
        assert_eq!(entered, [all[0].clone()], "who left is released though nobody heard that it was entered");
        assert_eq!(store.lookup(&[UserId(0), UserId(1), UserId(2)]).await.expect("answers"), [all[0].clone(), newer]);
    }
}
