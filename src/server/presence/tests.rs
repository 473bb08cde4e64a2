use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use super::*;
use crate::backends::log::{GroupReader, KeyedLog, LogReader, Record, Topic};
use crate::backends::presence::{Presence, PresenceRecord, Silent};
use crate::backends::{BackendError, error::ErrorKind};
use crate::protocol::ServerName;
use crate::server::bench::{Bench, entry};

/// A log that is away or slow now and then, and keeps what it was given.
#[derive(Default)]
pub(super) struct Away {
    pub(super) is_away: AtomicBool,
    pub(super) is_slow: AtomicBool,
    pub(super) tries: AtomicU32,
    published: Mutex<Vec<(u64, String)>>,
}

#[async_trait]
impl KeyedLog for Away {
    fn partitions(&self) -> u32 {
        4
    }
    async fn publish(&self, _: Topic, record: Record) -> BackendResult<u64> {
        self.tries.fetch_add(1, Ordering::Relaxed);
        let takes = if self.is_slow.load(Ordering::Relaxed) { 2_000 } else { 5 };
        tokio::time::sleep(Duration::from_millis(takes)).await;
        if self.is_away.load(Ordering::Relaxed) {
            return Err(BackendError::not_applied("log.publish", ErrorKind::Unavailable, "away"));
        }
        let text = String::from_utf8_lossy(&record.payload).into_owned();
        self.published.lock().expect("no panic while held").push((record.keys[0], text));
        Ok(1)
    }
    async fn probe(&self) -> BackendResult<()> {
        Ok(())
    }
    async fn reader(&self, _: &str) -> BackendResult<Arc<dyn LogReader>> {
        unreachable!("nobody reads")
    }
    async fn group(&self, _: Topic, _: &str) -> BackendResult<Arc<dyn GroupReader>> {
        unreachable!("nobody reads")
    }
}

impl Away {
    /// What was published until now, of each user in its order.
    pub(super) fn told(&self) -> Vec<(u64, &'static str)> {
        let mut told = self.published.lock().expect("no panic while held").clone();
        told.sort_by_key(|(user, _)| *user);
        let word = |text: &String| if text.contains("offline") { "offline" } else { "online" };
        told.iter().map(|(user, text)| (*user, word(text))).collect()
    }
}

const BEAT_IS_LOST: u8 = 1;
const EXPIRE_IS_LOST: u8 = 2;

/// The store, whose answers to some calls are lost behind the deed.
struct Lossy {
    inner: Arc<dyn Presence>,
    loses: AtomicU8,
    /// Of so many reads the answer is old when it is there.
    late_reads: AtomicU8,
}

impl Lossy {
    fn answer<T>(&self, what: u8, answer: T) -> BackendResult<T> {
        if self.loses.load(Ordering::Relaxed) & what == 0 { Ok(answer) } else { Err(BackendError::timed_out("lost")) }
    }
}

#[async_trait]
impl Presence for Lossy {
    async fn beat(&self, beats: &[Beat]) -> BackendResult<Vec<LastBeat>> {
        let came = self.inner.beat(beats).await?;
        self.answer(BEAT_IS_LOST, came)
    }
    async fn silent(&self, silence_ms: u64, skip: usize, limit: usize) -> BackendResult<Silent> {
        self.inner.silent(silence_ms, skip, limit).await
    }
    async fn expire(&self, last: &LastBeat) -> BackendResult<bool> {
        let expired = self.inner.expire(last).await?;
        self.answer(EXPIRE_IS_LOST, expired)
    }
    async fn get(&self, users: &[UserId]) -> BackendResult<Vec<PresenceRecord>> {
        let records = self.inner.get(users).await;
        let late = self.late_reads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if late.is_ok() {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        records
    }
    async fn probe(&self) -> BackendResult<()> {
        Err(BackendError::not_applied("presence.probe", ErrorKind::Unavailable, "nobody asks"))
    }
}

/// A presence server without a listener, between a store whose answers may get lost and a log in memory.
struct Place {
    bench: Bench,
    server: Arc<PresenceServer>,
    store: Arc<Lossy>,
    log: Arc<Away>,
}

impl Place {
    async fn new() -> Self {
        let (log, mut store) = (Arc::new(Away::default()), None);
        let of_server = Arc::clone(&log);
        let bench = Bench::new(Role::Presence, "presence-1", |backends| {
            let lossy = Arc::new(Lossy {
                inner: Arc::clone(&backends.presence),
                loses: AtomicU8::new(0),
                late_reads: AtomicU8::new(0),
            });
            store = Some(Arc::clone(&lossy));
            crate::backends::Backends { presence: lossy, log: of_server, ..backends }
        })
        .await;
        let deps = bench.deps.clone();
        let server = Arc::new(PresenceServer {
            cluster: Cluster::start(&deps).await,
            deps,
            config: Config { grace: Duration::ZERO, ..Config::default() },
            waiting: BeatBuffer::new(USERS_WAITING_MAX),
            changes: Changes::default(),
        });
        Self { bench, server, store: store.expect("it was made"), log }
    }
}

#[tokio::test]
async fn changes_whose_answer_was_lost_are_told() {
    let Place { server, store, log, bench: _bench } = Place::new().await;
    tokio::time::pause();
    server.start_loops();
    store.loses.store(BEAT_IS_LOST, Ordering::Relaxed);
    server.gather([(UserId(1), clock::now_us())]);
    tokio::time::sleep(GATHER * 2).await;
    store.loses.store(EXPIRE_IS_LOST, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(log.told(), [(1, "online")], "the next try found the user online already");
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(log.told(), [(1, "online"), (1, "offline")], "no sweep found the user any more");
}

#[tokio::test]
async fn a_server_that_stood_still_does_not_tell_what_it_read_before() {
    let Place { server, store, log, bench: _bench } = Place::new().await;
    tokio::time::pause();
    let beat = Beat { user: UserId(1), age_ms: 0 };
    store.beat(&[beat]).await.expect("takes");
    let at_ms = store.inner.get(&[UserId(1)]).await.expect("answers")[0].last_beat_ms;
    let last = LastBeat { user: UserId(1), at_ms };
    assert!(store.expire(&last).await.expect("answers"));
    store.late_reads.store(1, Ordering::Relaxed);
    server.changes.note(&[last], PresenceState::Offline);
    server.start_loops();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Through another server, which tells it.
    store.beat(&[beat]).await.expect("takes");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(log.told(), []);
}

#[tokio::test]
async fn what_a_server_that_stops_has_found_is_told_before_its_end() {
    let Place { bench, server, log, .. } = Place::new().await;
    tokio::time::pause();
    server.start_loops();
    server.gather([(UserId(1), clock::now_us())]);
    bench.deps.tasks.stop();
    assert_eq!(bench.deps.tasks.join(Duration::from_secs(5)).await, 0);
    assert_eq!(log.told(), [(1, "online")]);
}

#[tokio::test]
async fn what_a_server_could_not_tell_before_its_end_another_one_tells_as_it_is() {
    let Place { bench, server, store, log } = Place::new().await;
    let deps = Deps { name: "presence-2".parse().expect("a name"), tasks: Tasks::new(), ..bench.deps.clone() };
    let other = Arc::new(PresenceServer {
        cluster: Arc::clone(&server.cluster),
        deps: deps.clone(),
        config: server.config.clone(),
        waiting: BeatBuffer::new(USERS_WAITING_MAX),
        changes: Changes::default(),
    });
    other.start_loops();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let mut entry = entry(Role::Presence, &deps.name, 1);
    entry.peer = listener.local_addr().ok();
    peer::serve(listener, &deps, other);
    bench.deps.backends.registry.announce(&entry).await.expect("announces");
    server.cluster.refresh().await;
    store.beat(&[Beat { user: UserId(1), age_ms: 0 }]).await.expect("takes");
    bench.deps.tasks.stop();
    server.hand_over(&[(UserId(1), 7), (UserId(2), 7)]).await;
    assert_eq!(bench.deps.metrics.counted(Counter::PresenceChangesDropped), 0);
    let told = async {
        while log.told().len() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), told).await.expect("they are told");
    assert_eq!(log.told(), [(1, "online"), (2, "offline")]);
    deps.tasks.kill();
    server.hand_over(&[(UserId(1), 7)]).await;
    assert_eq!(bench.deps.metrics.counted(Counter::PresenceChangesDropped), 1, "nobody takes it");
}

/// A presence server that refuses or never answers, and counts how often it was called.
#[derive(Default)]
struct Useless {
    hangs: bool,
    calls: AtomicU32,
}

#[async_trait]
impl PeerHandler for Useless {
    async fn handle(&self, _: Call) -> Answer {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.hangs {
            std::future::pending::<()>().await;
        }
        Answer::Failed
    }
}

impl Place {
    /// The only other server is one of no use.
    async fn beside(&self, useless: &Arc<Useless>) {
        let deps = Deps { name: "presence-2".parse().expect("a name"), ..self.bench.deps.clone() };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let mut entry = entry(Role::Presence, &deps.name, 1);
        entry.peer = listener.local_addr().ok();
        peer::serve(listener, &deps, Arc::clone(useless) as Arc<dyn PeerHandler>);
        deps.backends.registry.announce(&entry).await.expect("announces");
        self.server.cluster.refresh().await;
    }

    fn dropped(&self) -> u64 {
        self.bench.deps.metrics.counted(Counter::PresenceChangesDropped)
    }
}

#[tokio::test]
async fn a_server_that_failed_once_is_handed_nothing_more() {
    let (place, useless) = (Place::new().await, Arc::new(Useless::default()));
    place.beside(&useless).await;
    let left: Vec<Untold> = (0..3 * UNTOLD_PER_CALL as u64).map(|user| (UserId(user), 7)).collect();
    place.server.hand_over(&left).await;
    assert_eq!((useless.calls.load(Ordering::Relaxed), place.dropped()), (1, left.len() as u64));
}

#[tokio::test]
async fn changes_that_a_stop_cuts_off_while_they_are_handed_over_or_wait_are_counted() {
    let (place, useless) = (Place::new().await, Arc::new(Useless { hangs: true, ..Useless::default() }));
    place.beside(&useless).await;
    tokio::select! {
        () = place.server.hand_over(&[(UserId(1), 7), (UserId(2), 7)]) => panic!("it was answered"),
        () = async { while useless.calls.load(Ordering::Relaxed) == 0 { tokio::task::yield_now().await } } => {}
    }
    assert_eq!(place.dropped(), 2);
    place.log.is_away.store(true, Ordering::Relaxed);
    place.store.beat(&[Beat { user: UserId(3), age_ms: 0 }]).await.expect("takes");
    let tasks = Tasks::new();
    let deps = Deps { tasks: tasks.clone(), ..place.bench.deps.clone() };
    let server = Arc::new(PresenceServer {
        cluster: Arc::clone(&place.server.cluster),
        deps,
        config: place.server.config.clone(),
        waiting: BeatBuffer::new(USERS_WAITING_MAX),
        changes: Changes::default(),
    });
    server.changes.note(&[LastBeat { user: UserId(3), at_ms: 7 }], PresenceState::Online);
    server.start_loops();
    while place.log.tries.load(Ordering::Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tasks.kill();
    assert_eq!(tasks.join(Duration::from_mins(1)).await, 0);
    assert_eq!(place.dropped(), 3);
}

#[tokio::test]
async fn silent_users_of_another_server_do_not_stand_before_those_of_this_one() {
    let Place { bench, server, .. } = Place::new().await;
    for name in ["presence-1", "presence-2"] {
        let name: ServerName = name.parse().expect("a name");
        bench.deps.backends.registry.announce(&entry(Role::Presence, &name, 1)).await.expect("announces");
    }
    server.cluster.refresh().await;
    let (mine, others): (Vec<u64>, Vec<u64>) = (1..=70_000).partition(|user| server.owns(UserId(*user)));
    let silent = |user: &u64| Beat { user: UserId(*user), age_ms: 40_000 };
    let beats: Vec<Beat> = others.iter().take(25_000).chain(mine.iter().take(50)).map(silent).collect();
    bench.deps.backends.presence.beat(&beats).await.expect("takes");
    let mut sweep = Sweep { calm: Calm::new(Duration::ZERO), skip: 0 };
    server.sweep(&mut sweep).await.expect("sweeps");
    let users: Vec<UserId> = mine.iter().take(50).map(|user| UserId(*user)).collect();
    let left = bench.deps.backends.presence.get(&users).await.expect("answers");
    assert_eq!(left.iter().filter(|record| record.online).count(), 0, "of this server's users");
}
