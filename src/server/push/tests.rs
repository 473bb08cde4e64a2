use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use async_trait::async_trait;
use uuid::Uuid;

use super::*;
use crate::backends::log::{PartitionLag, Record};
use crate::backends::push::Notifier;
use crate::backends::{Backends, error::ErrorKind};
use crate::protocol::{ConversationId, MessageFrame, MessageId, ServerName, SessionId};
use crate::runtime::Tasks;
use crate::server::bench::{Bench, entry};

const READ_MAX: usize = 512;
const SENDER: UserId = UserId(1_000);

/// A group reader with records in memory.
#[derive(Default)]
struct Queue {
    records: Mutex<Vec<Delivered>>,
    read: AtomicUsize,
    committed: AtomicUsize,
    commits: AtomicU32,
}

#[async_trait]
impl GroupReader for Queue {
    async fn next(&self) -> BackendResult<Vec<Delivered>> {
        loop {
            let read: Vec<Delivered> = {
                let records = self.records.lock().expect("no panic while held");
                records.iter().skip(self.read.load(Ordering::Relaxed)).take(READ_MAX).cloned().collect()
            };
            self.read.fetch_add(read.len(), Ordering::Relaxed);
            if !read.is_empty() {
                return Ok(read);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    fn position(&self) -> GroupPosition {
        GroupPosition([(0, self.read.load(Ordering::Relaxed) as u64)].into())
    }
    async fn commit(&self, to: &GroupPosition) -> BackendResult<()> {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.committed.store(to.0[&0] as usize, Ordering::Relaxed);
        Ok(())
    }
    async fn lag(&self) -> Vec<PartitionLag> {
        let records = self.records.lock().expect("no panic while held").len() - self.read.load(Ordering::Relaxed);
        let records = records as u64;
        vec![PartitionLag { topic: Topic::Inbox, partition: 3, records, age_ms: records * 7 }]
    }
}

/// Keeps what it is handed; fails and hangs as it is told.
#[derive(Default)]
struct Phone {
    fails: AtomicU32,
    handed: Mutex<Vec<(u64, u64)>>,
}

#[async_trait]
impl Notifier for Phone {
    async fn notify(&self, notifications: &[Notification]) -> BackendResult<()> {
        let left = self.fails.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        match left {
            Ok(left) if left % 2 == 0 => std::future::pending().await,
            Ok(_) => Err(BackendError::not_applied("push.notify", ErrorKind::Unavailable, "away")),
            Err(_) => {
                let handed = notifications.iter().map(|n| (n.user.0, n.id.0));
                self.handed.lock().expect("no panic while held").extend(handed);
                Ok(())
            }
        }
    }
}

struct Place {
    bench: Bench,
    queue: Arc<Queue>,
    phone: Arc<Phone>,
    /// Those of the service.
    tasks: Tasks,
}

impl Place {
    /// Starts the service with a paused clock.
    async fn start() -> Self {
        let (queue, phone) = (Arc::new(Queue::default()), Arc::new(Phone::default()));
        let notifier = Arc::clone(&phone);
        let bench = Bench::new(Role::Push, "push-1", |backends| Backends { notifier, ..backends }).await;
        tokio::time::pause();
        let mut place = Self { bench, queue, phone, tasks: Tasks::new() };
        place.start_service();
        place
    }

    fn start_service(&mut self) {
        self.tasks = Tasks::new();
        let deps = Deps { tasks: self.tasks.clone(), ..self.bench.deps.clone() };
        let reader: Arc<dyn GroupReader> = Arc::clone(&self.queue) as Arc<dyn GroupReader>;
        start_loops(&deps, &reader);
    }

    /// The service is killed, or stops in good order, and starts again from what it committed.
    async fn restart(&mut self, is_killed: bool) {
        if is_killed {
            self.tasks.kill();
        } else {
            self.tasks.stop();
        }
        assert_eq!(self.tasks.join(Duration::from_mins(1)).await, 0);
        self.queue.read.store(self.queue.committed.load(Ordering::Relaxed), Ordering::Relaxed);
        self.start_service();
    }

    /// A chat server that lives from now on until the end.
    async fn lives(&self, name: &str) {
        let (registry, entry) = (Arc::clone(&self.bench.deps.backends.registry), chat(name));
        registry.announce(&entry).await.expect("announces");
        self.bench.deps.tasks.spawn_until_stopped("test.announce", async move {
            loop {
                registry.announce(&entry).await.expect("announces");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }

    /// A user connects to a server now.
    async fn connects(&self, user: u64, server: &str) {
        self.claims(user, server, SessionId::made_at(clock::unix_ms(), [1; 10])).await;
    }

    async fn claims(&self, user: u64, server: &str, session: SessionId) {
        let (device, server) = ("phone".parse().expect("a name"), name(server));
        let session = Session { user: UserId(user), device, session, server };
        self.bench.deps.backends.sessions.claim(&session).await.expect("claims");
    }

    /// Messages with ids of a range come for some users.
    fn comes(&self, users: &[u64], ids: std::ops::Range<u64>) {
        let record = |id| {
            let message = MessageFrame {
                conversation: ConversationId(1),
                id: MessageId(id),
                uuid: Uuid::nil(),
                sender: SENDER,
                kind: "text".to_owned(),
                body: "x".to_owned(),
                reply_to: None,
                at: 5,
            };
            let record = Record { keys: users.to_vec(), payload: InboxHeader::payload(&message, None) };
            Delivered { topic: Topic::Inbox, partition: 0, offset: id, at_ms: 1, record: Arc::new(record) }
        };
        self.queue.records.lock().expect("no panic while held").extend(ids.map(record));
    }

    fn handed(&self) -> Vec<(u64, u64)> {
        self.phone.handed.lock().expect("no panic while held").clone()
    }

    fn commits(&self) -> u32 {
        self.queue.commits.load(Ordering::Relaxed)
    }
}

fn name(server: &str) -> ServerName {
    server.parse().expect("a name")
}

fn chat(server: &str) -> crate::backends::registry::ServerEntry {
    entry(Role::Chat, &name(server), clock::unix_ms())
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test]
async fn who_has_no_session_is_notified_and_who_is_connected_is_not() {
    let place = Place::start().await;
    place.lives("chat-1").await;
    place.connects(1, "chat-1").await;
    place.comes(&[1, 2, SENDER.0], 7..8);
    pass(1).await;
    assert_eq!((place.handed(), place.commits()), (vec![(2, 7)], 0), "whether the first is there shows later");
    pass(10).await;
    assert_eq!((place.handed(), place.commits()), (vec![(2, 7)], 1));
}

#[tokio::test]
async fn users_of_a_dead_server_are_notified_unless_they_come_back() {
    let place = Place::start().await;
    place.lives("chat-1").await;
    place.connects(1, "chat-2").await;
    place.connects(2, "chat-2").await;
    place.comes(&[1, 2], 7..8);
    pass(5).await;
    assert_eq!((place.handed(), place.commits()), (vec![], 0), "they may come back, and it is not dealt with");
    place.connects(2, "chat-1").await;
    pass(10).await;
    assert_eq!((place.handed(), place.commits()), (vec![(1, 7)], 1));
}

#[tokio::test]
async fn a_session_of_an_earlier_life_of_its_server_does_not_count() {
    let place = Place::start().await;
    place.connects(1, "chat-2").await;
    place.claims(3, "chat-2", SessionId(Uuid::new_v4())).await;
    pass(2).await;
    place.lives("chat-2").await;
    place.connects(2, "chat-2").await;
    place.comes(&[1, 2, 3], 7..8);
    pass(15).await;
    assert_eq!(place.handed(), [(1, 7)], "an id that does not say when it was made counts");
}

#[tokio::test]
async fn what_was_left_to_the_sessions_of_a_server_that_the_registry_listed_still_is_made_good() {
    let place = Place::start().await;
    place.lives("chat-1").await;
    // It dies now: the registry lists it for four seconds more.
    place.bench.deps.backends.registry.announce(&chat("chat-2")).await.expect("announces");
    place.connects(1, "chat-2").await;
    place.connects(2, "chat-2").await;
    place.comes(&[1, 2], 7..8);
    pass(2).await;
    assert_eq!((place.handed(), place.commits()), (vec![], 0), "both seem to be there");
    pass(5).await;
    place.connects(2, "chat-1").await;
    pass(13).await;
    assert_eq!(place.handed(), [(1, 7)]);
}

#[tokio::test]
async fn what_was_left_to_a_dead_server_outlives_the_push_server() {
    let mut place = Place::start().await;
    place.lives("chat-1").await;
    place.bench.deps.backends.registry.announce(&chat("chat-2")).await.expect("announces");
    place.connects(1, "chat-2").await;
    place.connects(3, "chat-1").await;
    for id in 7..9 {
        place.comes(&[1, 3], id..id + 1);
        pass(1).await;
    }
    // It dies after the chat server, and before the registry tells of that.
    place.restart(true).await;
    pass(30).await;
    assert_eq!(place.handed(), [(1, 7), (1, 8)]);
}

#[tokio::test]
async fn a_restart_in_good_order_repeats_nothing() {
    let mut place = Place::start().await;
    place.lives("chat-1").await;
    place.connects(1, "chat-1").await;
    for id in 7..12 {
        place.comes(&[1, 2], id..id + 1);
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    place.restart(false).await;
    pass(30).await;
    assert_eq!(place.handed(), (7..12).map(|id| (2, id)).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_stop_while_what_was_held_back_is_handed_over_loses_none_of_it() {
    let mut place = Place::start().await;
    place.lives("chat-1").await;
    place.connects(1, "chat-2").await;
    place.comes(&[1], 7..8);
    pass(5).await;
    place.phone.fails.store(1_000, Ordering::Relaxed);
    pass(10).await;
    assert!(place.phone.fails.load(Ordering::Relaxed) < 1_000, "it is being handed over");
    place.restart(false).await;
    assert_eq!((place.handed(), place.commits()), (vec![], 0));
    place.phone.fails.store(0, Ordering::Relaxed);
    pass(15).await;
    assert_eq!(place.handed(), [(1, 7)]);
}

#[tokio::test]
async fn an_empty_registry_is_no_proof() {
    let place = Place::start().await;
    place.connects(1, "chat-2").await;
    place.comes(&[1], 7..8);
    pass(30).await;
    assert_eq!(place.handed(), []);
}

#[tokio::test]
async fn full_reads_follow_each_other_without_a_wait() {
    let place = Place::start().await;
    place.comes(&[2], 0..10_240);
    tokio::time::sleep(GATHER * 3).await;
    assert_eq!(place.handed().len(), 10_240, "in 300 ms");
}

#[tokio::test]
async fn a_notifier_that_hangs_and_fails_gets_everything_once_it_is_back_and_the_lag_shows_meanwhile() {
    let place = Place::start().await;
    place.phone.fails.store(6, Ordering::Relaxed);
    place.comes(&[2], 0..1_500);
    pass(2).await;
    let metrics = &place.bench.deps.metrics;
    let lag = || (metrics.gauge(Gauge::LagRecords), metrics.gauge(Gauge::LagMs));
    assert_eq!(lag(), (1_500 - 512, (1_500 - 512) * 7));
    pass(60).await;
    assert_eq!((place.handed().len(), lag()), (1_500, (0, 0)));
    assert_eq!(metrics.counted(Counter::BackendErrors), 6);
}
