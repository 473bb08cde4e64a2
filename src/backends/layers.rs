//! Wrappers over any port: a deadline with timing, seeded faults, and answers that come late.
//!
//! One macro forwards every call of a port through `Layer::around`, so a layer is written once and serves all ports.

use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

use super::directory::{Audience, ConversationRow, Credentials, Directory, NewConversationRow, NewUser, TokenStanding};
use super::error::{BackendError, BackendResult, ErrorKind};
use super::limiter::Limiter;
use super::log::{GroupReader, KeyedLog, LogReader, Record, Topic};
use super::media::{Media, MediaBody, MediaInfo, MediaKey, MediaUpload};
use super::messages::{ConversationHead, Messages, Newest, StoredMessage};
use super::presence::{Beat, LastBeat, Presence, PresenceRecord, Silent};
use super::push::{Notification, Notifier};
use super::registry::{Registry, Role, ServerEntry};
use super::sequence::{Progress, Remembered, Request, Reservation, Seed, Sequence, Slot};
use super::sessions::{Claim, Session, Sessions};
use crate::protocol::api::{Profile, Receipt};
use crate::protocol::{ConversationId, MessageId, ServerName, SessionId, UserId};
use crate::runtime::clock;
use crate::telemetry::{Counter, Metrics, Timer};

/// Longest that a caller waits for an engine. Leaves room for a second call within the 5 s of invariant I9.
pub const DEADLINE: Duration = Duration::from_millis(2_500);

/// What is done around each call.
pub enum Layer {
    /// Ends calls at the deadline, counts and times them, and has no more under way than the engine answers in time.
    Timed(Arc<Metrics>, Box<Limiter>),
    /// Breaks calls on purpose.
    Faulty(Box<Faults>),
    /// Answers of some operations come late: what they say was true when it was read.
    Late(&'static [&'static str], Duration),
    /// Calls take as long as a test says.
    #[cfg(test)]
    Paced(Arc<dyn Pace>),
}

/// Says how long calls take, and hears which ones are at an engine.
#[cfg(test)]
pub trait Pace: Send + Sync {
    /// How long a call waits before it gets to the engine, and its answer after that.
    fn waits(&self, operation: &'static str) -> [Duration; 2];
    /// What a call waits for before that, if it waits for something else than time.
    fn gate(&self, _operation: &'static str) -> Option<Arc<tokio::sync::Semaphore>> {
        None
    }
    /// A call has got to the engine.
    fn enter(&self);
    /// It is answered, or nobody waits for it any more.
    fn leave(&self);
}

/// A call at an engine.
#[cfg(test)]
struct AtEngine<'a>(&'a dyn Pace);

#[cfg(test)]
impl Drop for AtEngine<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
async fn paced<T>(
    pace: &dyn Pace,
    operation: &'static str,
    call: impl Future<Output = BackendResult<T>>,
) -> BackendResult<T> {
    let [before, after] = pace.waits(operation);
    if !before.is_zero() {
        tokio::time::sleep(before).await;
    }
    if let Some(gate) = pace.gate(operation) {
        let opened = gate.acquire().await;
        drop(opened);
    }
    pace.enter();
    let at_engine = AtEngine(pace);
    let answer = call.await;
    drop(at_engine);
    if !after.is_zero() {
        tokio::time::sleep(after).await;
    }
    answer
}

/// Seeded faults: which calls go wrong, and how.
pub struct Faults {
    rng: Mutex<StdRng>,
    /// Of 1,000 calls, how many go wrong.
    per_mille: u32,
}

impl Faults {
    /// `per_mille` of 1,000 calls go wrong; the seed decides which and how.
    #[must_use]
    pub fn new(seed: u64, per_mille: u32) -> Self {
        Self { rng: Mutex::new(StdRng::seed_from_u64(seed)), per_mille }
    }

    fn draw(&self) -> Fault {
        let mut rng = self.rng.lock().expect("no panic while held");
        if rng.random_range(0..1_000) >= self.per_mille {
            return Fault::None;
        }
        match rng.random_range(0..5) {
            0 => Fault::RefusedWithoutEffect,
            1 => Fault::FailedWithoutEffect,
            2 => Fault::FailedWithEffect,
            3 => Fault::TimedOutWithoutEffect,
            _ => Fault::TimedOutWithEffect,
        }
    }
}

/// The outcomes of a call: {applied, not applied} × {ok, error, time-out}, without "not applied, ok", which would be a lie
/// and no fault. (Tests that must see a lie use a lying port of their own.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    RefusedWithoutEffect,
    FailedWithoutEffect,
    FailedWithEffect,
    TimedOutWithoutEffect,
    TimedOutWithEffect,
}

/// How long a time-out of the faulty layer takes: long enough to let others overtake, short enough for tests.
const FAULTY_TIMEOUT: Duration = Duration::from_millis(30);

impl Layer {
    /// Runs one call.
    async fn around<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = BackendResult<T>>,
    ) -> BackendResult<T> {
        match self {
            Self::Timed(metrics, limiter) => timed(metrics, limiter, operation, call).await,
            Self::Faulty(faults) => faulty(faults.draw(), operation, call).await,
            Self::Late(operations, wait) => {
                let answer = call.await;
                if operations.contains(&operation) {
                    tokio::time::sleep(*wait).await;
                }
                answer
            }
            #[cfg(test)]
            Self::Paced(pace) => paced(&**pace, operation, call).await,
        }
    }
}

async fn timed<T>(
    metrics: &Metrics,
    limiter: &Limiter,
    operation: &'static str,
    call: impl Future<Output = BackendResult<T>>,
) -> BackendResult<T> {
    let turn = limiter.turn(operation).await.inspect_err(|_| metrics.count(Counter::BackendErrors))?;
    let start = clock::now_us();
    let result = match tokio::time::timeout(DEADLINE, call).await {
        Ok(result) => result,
        Err(_) => Err(BackendError::timed_out(operation)),
    };
    turn.end(&result);
    metrics.time_us(Timer::Backend, clock::now_us() - start);
    if let Err(error) = &result
        && error.kind != ErrorKind::Conflict
    {
        metrics.count(Counter::BackendErrors);
    }
    result
}

async fn faulty<T>(
    fault: Fault,
    operation: &'static str,
    call: impl Future<Output = BackendResult<T>>,
) -> BackendResult<T> {
    const INJECTED: &str = "injected fault";
    match fault {
        Fault::None => call.await,
        Fault::RefusedWithoutEffect => Err(BackendError::not_applied(operation, ErrorKind::Unavailable, INJECTED)),
        Fault::FailedWithoutEffect => Err(BackendError::unknown(operation, ErrorKind::Unavailable, INJECTED)),
        Fault::FailedWithEffect => {
            call.await?;
            Err(BackendError::unknown(operation, ErrorKind::Unavailable, INJECTED))
        }
        Fault::TimedOutWithoutEffect => {
            tokio::time::sleep(FAULTY_TIMEOUT).await;
            Err(BackendError::timed_out(operation))
        }
        Fault::TimedOutWithEffect => {
            let result = call.await;
            tokio::time::sleep(FAULTY_TIMEOUT).await;
            result.and(Err(BackendError::timed_out(operation)))
        }
    }
}

/// A port with a layer around each call.
pub struct Layered<P: ?Sized> {
    inner: Arc<P>,
    layer: Layer,
}

impl<P: ?Sized> Layered<P> {
    /// Wraps a port.
    pub const fn new(inner: Arc<P>, layer: Layer) -> Self {
        Self { inner, layer }
    }
}

macro_rules! forward {
    ($port:ident, $room:literal { $( $(#[$plain:ident])? fn $name:ident($($arg:ident: $ty:ty),*) -> $out:ty; )* } $($also:item)*) => {
        #[async_trait]
        impl $port for Layered<dyn $port> {
            $($also)*
            $(
                async fn $name(&self, $($arg: $ty),*) -> BackendResult<$out> {
                    self.layer.around(concat!($room, ".", stringify!($name)), self.inner.$name($($arg),*)).await
                }
            )*
        }
    };
}

forward!(Messages, "messages" {
    fn append(message: &StoredMessage) -> ();
    fn read(conversation: ConversationId, after: MessageId, upto: MessageId, limit: usize) -> Vec<StoredMessage>;
    fn read_back(conversation: ConversationId, before: MessageId, limit: usize) -> Vec<StoredMessage>;
    fn void(conversation: ConversationId, after: MessageId, upto: MessageId) -> ();
    fn head(conversation: ConversationId) -> ConversationHead;
    fn newest(conversations: &[ConversationId]) -> Vec<Option<Newest>>;
    fn raise_head(conversation: ConversationId, from: ConversationHead, to: ConversationHead) -> bool;
    fn mark(name: &str, value: &str) -> String;
    fn probe() -> ();
});

forward!(Sequence, "sequence" {
    fn reserve(request: &Request) -> Reservation;
    fn now_ms() -> u64;
    fn commit(conversation: ConversationId, sender: UserId, uuid: Uuid, id: MessageId) -> bool;
    fn progress(conversation: ConversationId) -> Option<Progress>;
    fn newest(conversations: &[ConversationId]) -> Vec<Option<Slot>>;
    fn begin_void(conversation: ConversationId, id: MessageId) -> bool;
    fn end_void(conversation: ConversationId, id: MessageId) -> ();
    fn take_turn(conversation: ConversationId, owner: u64, life: Duration) -> bool;
    fn keep_turn(conversation: ConversationId, owner: u64, life: Duration) -> ();
    fn end_turn(conversation: ConversationId, owner: u64) -> ();
    fn begin_seed(conversation: ConversationId, epoch: u64) -> bool;
    fn remember(conversation: ConversationId, epoch: u64, messages: &[Remembered]) -> bool;
    fn seed(conversation: ConversationId, seed: &Seed) -> bool;
    fn extend(conversation: ConversationId, epoch: u64, to: ConversationHead) -> ();
    fn forget(conversation: ConversationId, epoch: u64) -> ();
    fn probe() -> ();
}
fn can_split(&self) -> bool {
    self.inner.can_split()
});

forward!(Sessions, "sessions" {
    fn claim(session: &Session) -> Claim;
    fn refresh(sessions: &[Session]) -> Vec<SessionId>;
    fn release(session: &Session) -> bool;
    fn lookup(users: &[UserId]) -> Vec<Session>;
    fn now_ms() -> u64;
    fn enter_mark(mark: Uuid) -> ();
    fn has_mark(mark: Uuid) -> bool;
    fn probe() -> ();
});

forward!(Presence, "presence" {
    fn beat(beats: &[Beat]) -> Vec<LastBeat>;
    fn silent(silence_ms: u64, skip: usize, limit: usize) -> Silent;
    fn expire(last: &LastBeat) -> bool;
    fn get(users: &[UserId]) -> Vec<PresenceRecord>;
    fn probe() -> ();
});

forward!(Registry, "registry" {
    fn announce(entry: &ServerEntry) -> ();
    fn withdraw(name: &ServerName, epoch: u64) -> ();
    fn list(role: Role) -> Vec<ServerEntry>;
});

forward!(Directory, "directory" {
    fn add_users(users: &[NewUser]) -> Vec<UserId>;
    fn add_user(user: &NewUser) -> UserId;
    fn credentials(name: &str) -> Option<Credentials>;
    fn profiles(users: &[UserId]) -> Vec<Profile>;
    fn find_user(name: &str) -> Option<Profile>;
    fn set_display_name(user: UserId, display_name: &str) -> ();
    fn set_friends(a: UserId, b: UserId, friends: bool) -> bool;
    fn friend_count(user: UserId, most: usize) -> u64;
    fn are_friends(a: UserId, b: UserId) -> bool;
    fn friends(user: UserId) -> Vec<UserId>;
    fn add_conversation(new: &NewConversationRow) -> ConversationId;
    fn conversation(conversation: ConversationId) -> Option<ConversationRow>;
    fn conversations_of(user: UserId, after: ConversationId, limit: usize) -> Vec<ConversationRow>;
    fn conversation_ids_of(user: UserId, after: ConversationId, limit: usize) -> Vec<ConversationId>;
    fn audience(conversation: ConversationId, most: usize) -> Option<Audience>;
    fn members(conversation: ConversationId, after: UserId, limit: usize) -> Vec<UserId>;
    fn is_member(conversation: ConversationId, user: UserId) -> bool;
    fn members_among(conversation: ConversationId, users: &[UserId]) -> Vec<UserId>;
    fn add_members(conversation: ConversationId, users: &[UserId]) -> u64;
    fn remove_member(conversation: ConversationId, user: UserId) -> bool;
    fn raise_receipt(conversation: ConversationId, receipt: &Receipt) -> bool;
    fn receipts(conversation: ConversationId, after: UserId, limit: usize) -> Vec<Receipt>;
    fn revoke_token(token: Uuid, expires_at: u64) -> ();
    fn token_standing(user: UserId, token: Uuid) -> TokenStanding;
    fn revoked_within(seconds: u64) -> Vec<Uuid>;
    fn purge_revoked() -> u64;
    fn probe() -> ();
});

// Of an upload and of a body only the beginning is seen here: they take as long as their client does.
forward!(Media, "media" {
    fn begin(key: &MediaKey) -> Box<dyn MediaUpload>;
    fn info(key: &MediaKey) -> Option<MediaInfo>;
    fn read(key: &MediaKey, range: Option<Range<u64>>) -> Option<(MediaInfo, MediaBody)>;
    fn remove(key: &MediaKey) -> ();
});

forward!(Notifier, "push" {
    fn notify(notifications: &[Notification]) -> ();
});

#[async_trait]
impl KeyedLog for Layered<dyn KeyedLog> {
    fn partitions(&self) -> u32 {
        self.inner.partitions()
    }

    async fn publish(&self, topic: Topic, record: Record) -> BackendResult<u64> {
        self.layer.around("log.publish", self.inner.publish(topic, record)).await
    }

    async fn probe(&self) -> BackendResult<()> {
        self.layer.around("log.probe", self.inner.probe()).await
    }

    async fn reader(&self, name: &str) -> BackendResult<Arc<dyn LogReader>> {
        self.inner.reader(name).await
    }

    async fn group(&self, topic: Topic, group: &str) -> BackendResult<Arc<dyn GroupReader>> {
        self.inner.group(topic, group).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::backends::error::Effect;

    #[tokio::test]
    async fn the_faulty_layer_shows_every_outcome_and_tells_the_truth_about_effects() {
        let layer = Layer::Faulty(Box::new(Faults::new(7, 1_000)));
        let applied = AtomicU64::new(0);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let before = applied.load(Ordering::Relaxed);
            let result: BackendResult<()> = layer
                .around("test", async {
                    applied.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                })
                .await;
            let took_effect = applied.load(Ordering::Relaxed) > before;
            let error = result.expect_err("every call goes wrong");
            assert!(error.effect == Effect::Unknown || !took_effect, "NotApplied must be true");
            seen.insert((took_effect, error.kind == ErrorKind::TimedOut, error.effect == Effect::Unknown));
        }
        assert_eq!(seen.len(), 5, "{seen:?}");
    }

    /// Whose disk hangs.
    struct Hung;

    #[async_trait]
    impl Notifier for Hung {
        async fn notify(&self, _: &[Notification]) -> BackendResult<()> {
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn a_notifier_has_a_deadline_and_its_failures_are_counted() {
        let data = tempfile::tempdir().expect("a folder");
        let (data, engines) = (data.path().to_owned(), super::super::Engines::default());
        let config = super::super::Config { data, partitions: 4, engines };
        let backends = super::super::open(&config).await.expect("opens");
        let backends = super::super::Backends { notifier: Arc::new(Hung), ..backends };
        let metrics = Arc::new(Metrics::new("push", "push-1"));
        tokio::time::pause();
        let error = backends.timed(&metrics).notifier.notify(&[]).await.expect_err("no answer");
        assert_eq!((error.operation, error.kind), ("push.notify", ErrorKind::TimedOut));
        assert_eq!(metrics.counted(Counter::BackendErrors), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_timed_layer_ends_a_call_that_hangs() {
        let metrics = Arc::new(Metrics::new("test", "t"));
        let layer = Layer::Timed(Arc::clone(&metrics), Box::default());
        let result: BackendResult<()> = layer.around("test", std::future::pending()).await;
        let error = result.expect_err("timed out");
        assert_eq!((error.kind, error.effect), (ErrorKind::TimedOut, Effect::Unknown));
        assert_eq!(metrics.counted(Counter::BackendErrors), 1);
    }
}
