//! The servers of a seed, in one runtime whose clock the model moves, on embedded engines.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::Handle;

use super::ledger::Ledger;
use super::schedule::{CHANNEL, DEVICES_PER_USER, PAIRS, Schedule, USERS};
use super::weather::Weather;
use crate::backends::directory::{NewConversationRow, NewUser};
use crate::backends::registry::Role;
use crate::backends::{self, Backends, Engines};
use crate::protocol::api::ConversationKind;
use crate::protocol::limits::FANOUT_ON_WRITE_MEMBERS_MAX;
use crate::protocol::{ConversationId, DeviceName, UserId};
use crate::runtime::{Tasks, clock};
use crate::server::Deps;
use crate::server::access::auth;
use crate::server::access::keys::{Keys, Purpose};
use crate::server::chat::ChatServer;
use crate::stack::config::{Config, Place};
use crate::stack::node::{Home, Node};
use crate::telemetry::Registry;

/// Silence after which a user is offline: the least that a stack may have.
pub(super) const OFFLINE_AFTER: Duration = Duration::from_secs(10);

/// How far the clock goes at once, while much happens and while little does.
const FINE: Duration = Duration::from_millis(2);
const COARSE: Duration = Duration::from_millis(25);

/// Looks at sockets between two steps of the clock: bytes get as far as that many tasks.
const LOOKS: usize = 4;

/// Life of tokens that are to last.
const LONG_S: u64 = 3_600;

const SECRET: [u8; 32] = [7; 32];

/// A chat server's place.
enum Slot {
    Up(Box<Node>),
    /// It is stopped or started just now.
    Changing,
    Down,
}

/// Everything of one seed.
pub(super) struct World {
    config: Config,
    backends: Backends,
    tokens: Arc<auth::Tokens>,
    metrics: Registry,
    slots: Mutex<Vec<Slot>>,
    others: Mutex<Vec<Node>>,
    /// Every chat server that ever was.
    pub(super) servers: Mutex<Vec<(String, Weak<ChatServer>)>>,
    /// Those of them that were killed.
    pub(super) killed: Mutex<HashSet<usize>>,
    pub(super) weather: Arc<Weather>,
    pub(super) ledger: Mutex<Ledger>,
    /// Tasks of clients.
    pub(super) tasks: Tasks,
    /// Steps that are under way.
    pub(super) steps: AtomicUsize,
    pub(super) is_busy: AtomicBool,
    pub(super) users: Vec<UserId>,
    pub(super) conversations: Vec<ConversationId>,
    /// Of each user, to ask the API with.
    pub(super) api_tokens: Vec<String>,
    pub(super) api: String,
    began_us: u64,
    /// Removed last.
    _data: TempDir,
}

/// Lets a runtime's clock stand still while nobody moves it, until this is dropped.
pub(super) struct Stillness {
    _word: std::sync::mpsc::Sender<()>,
}

impl Stillness {
    /// Of the runtime that this is called in. A paused clock does not move by itself while a blocking task runs.
    pub(super) fn begin() -> Self {
        let (word, ended) = std::sync::mpsc::channel::<()>();
        #[expect(clippy::disallowed_methods, reason = "it is to begin now, and nobody waits for it")]
        tokio::task::spawn_blocking(move || ended.recv().is_err());
        Self { _word: word }
    }
}

/// Where the engines' files are: in memory where that can be had.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
}

fn config(servers: usize) -> Config {
    let mut config = Config { chat_servers: servers, push: false, partitions: 4, ..Config::default() };
    config.presence.offline_after = OFFLINE_AFTER;
    config.presence.grace = OFFLINE_AFTER;
    config.api.password_cost = auth::PasswordCost { memory_kib: 64, passes: 1 };
    config
}

fn keys(purpose: Purpose) -> Keys {
    Keys::derive(&SECRET, &[], purpose)
}

/// A token of so many seconds, and when it expires, in milliseconds since 1970.
pub(super) fn token(user: UserId, device: &str, lives_s: u64) -> (String, u64) {
    let device: DeviceName = device.parse().expect("a name");
    let (text, claims) = auth::Tokens::new(&keys(Purpose::Tokens), lives_s).issue(user, &device);
    (text, claims.exp * 1_000)
}

/// Opened engines with the users and conversations of the model in them.
pub(super) struct Ground {
    data: TempDir,
    backends: Backends,
    users: Vec<UserId>,
    conversations: Vec<ConversationId>,
}

impl Ground {
    /// Opens them, which takes real time: the clock must stand still.
    pub(super) async fn lay() -> Self {
        let data = folder();
        let engines = backends::Config {
            data: data.path().to_owned(),
            partitions: config(1).partitions,
            engines: Engines::default(),
        };
        let backends = backends::open(&engines).await.expect("opens");
        let users = add_users(&backends).await;
        let conversations = add_conversations(&backends, &users).await;
        Self { data, backends, users, conversations }
    }
}

impl World {
    /// Starts the servers of a schedule.
    pub(super) async fn start(ground: Ground, schedule: &Schedule, weather: Arc<Weather>) -> Arc<Self> {
        let Ground { data, backends, users, conversations } = ground;
        let config = config(schedule.servers);
        let pace: Arc<dyn backends::layers::Pace> = Arc::clone(&weather) as Arc<dyn backends::layers::Pace>;
        let backends = backends.paced(&pace);
        let mut world = Self {
            tokens: Arc::new(auth::Tokens::new(&keys(Purpose::Tokens), LONG_S)),
            metrics: Registry::default(),
            slots: Mutex::default(),
            others: Mutex::default(),
            servers: Mutex::default(),
            killed: Mutex::default(),
            weather,
            ledger: Mutex::default(),
            tasks: Tasks::new(),
            steps: AtomicUsize::new(0),
            is_busy: AtomicBool::new(true),
            api_tokens: users.iter().take(USERS).map(|user| token(*user, "api", LONG_S).0).collect(),
            users,
            conversations,
            api: String::new(),
            began_us: clock::now_us(),
            config,
            backends,
            _data: data,
        };
        for place in world.config.places() {
            let node = world.start_node(place).await;
            if node.role == Role::Api {
                world.api = node.address.expect("it listens").to_string();
            }
            if node.role == Role::Chat {
                world.slots.get_mut().expect("no panic while held").push(Slot::Up(Box::new(node)));
            } else {
                world.others.get_mut().expect("no panic while held").push(node);
            }
        }
        Arc::new(world)
    }

    async fn start_node(&self, place: Place) -> Node {
        let metrics = self.metrics.register(place.role.name(), place.name.as_str());
        let deps = Deps {
            name: place.name.clone(),
            advertise: None,
            backends: self.backends.timed(&metrics),
            metrics,
            registry: self.metrics.clone(),
            tokens: Arc::clone(&self.tokens),
            peer_keys: Arc::new(keys(Purpose::PeerLinks)),
            client_keys: Arc::new(keys(Purpose::Clients)),
            tasks: Tasks::new(),
        };
        let name = place.name.to_string();
        let node = Node::start(Home::Process(Handle::current()), place, deps, &self.config, None).await;
        let node = node.expect("starts");
        if let Some(chat) = node.chat() {
            self.servers.lock().expect("no panic while held").push((name, Arc::downgrade(&chat)));
        }
        node
    }

    /// The newest server of a name, among all that ever were.
    pub(super) fn life_of(&self, name: &str) -> usize {
        let servers = self.servers.lock().expect("no panic while held");
        servers.iter().rposition(|(known, _)| known == name).expect("it was started")
    }

    fn slots(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.slots.lock().expect("no panic while held")
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("no panic while held")
    }

    /// Virtual milliseconds since the beginning.
    pub(super) fn now_ms(&self) -> u64 {
        (clock::now_us() - self.began_us) / 1_000
    }

    pub(super) fn note(&self, text: &str) {
        let line = format!("{:>7} {text}", self.now_ms());
        self.ledger().journal.push(line);
    }

    /// The model's number of a conversation.
    pub(super) fn conversation_of(&self, id: ConversationId) -> Option<usize> {
        self.conversations.iter().position(|known| *known == id)
    }

    /// Takes a running server out of its place, which is changing then.
    fn take(&self, server: usize) -> Option<Box<Node>> {
        let mut slots = self.slots();
        let slot = &mut slots[server];
        if !matches!(slot, Slot::Up(_)) {
            return None;
        }
        match std::mem::replace(slot, Slot::Changing) {
            Slot::Up(node) => Some(node),
            _ => None,
        }
    }

    pub(super) fn kill(&self, server: usize) {
        if let Some(mut node) = self.take(server) {
            let life = self.life_of(node.name.as_str());
            self.killed.lock().expect("no panic while held").insert(life);
            node.kill();
            self.slots()[server] = Slot::Down;
        }
    }

    pub(super) async fn drain(&self, server: usize) {
        if let Some(mut node) = self.take(server) {
            node.stop(Duration::from_secs(2)).await;
            self.slots()[server] = Slot::Down;
        }
    }

    /// Starts a server that is down.
    pub(super) async fn bring_up(&self, server: usize) {
        if matches!(self.slots()[server], Slot::Down) {
            self.slots()[server] = Slot::Changing;
            let node = self.start_node(self.config.place(Role::Chat, server + 1)).await;
            self.slots()[server] = Slot::Up(Box::new(node));
        }
    }

    /// The chat servers that run.
    pub(super) fn running(&self) -> HashMap<String, Arc<ChatServer>> {
        let slots = self.slots();
        let up = slots.iter().filter_map(|slot| match slot {
            Slot::Up(node) => node.chat().map(|chat| (node.name.to_string(), chat)),
            _ => None,
        });
        up.collect()
    }

    /// Stops everything, as a deployment is stopped.
    pub(super) async fn stop(&self) {
        for server in 0..self.config.chat_servers {
            self.drain(server).await;
        }
        let others = std::mem::take(&mut *self.others.lock().expect("no panic while held"));
        for mut node in others {
            node.stop(Duration::ZERO).await;
        }
        self.tasks.kill();
    }
}

async fn add_users(backends: &Backends) -> Vec<UserId> {
    // The channel has one more than are fanned out on write, whoever of the users leaves it.
    let new = |n: usize| NewUser {
        name: format!("user-{n}"),
        display_name: format!("user-{n}"),
        password_hash: "none".to_owned(),
    };
    let new: Vec<NewUser> = (0..USERS + FANOUT_ON_WRITE_MEMBERS_MAX).map(new).collect();
    let users = backends.directory.add_users(&new).await.expect("adds");
    for user in &users[1..USERS] {
        backends.directory.set_friends(users[0], *user, true).await.expect("befriends");
    }
    users
}

async fn add_conversations(backends: &Backends, users: &[UserId]) -> Vec<ConversationId> {
    let mut conversations = Vec::new();
    let groups = [(0..USERS).collect::<Vec<_>>(), (0..users.len()).collect()];
    for (n, members) in groups.into_iter().chain(PAIRS.map(|pair| pair.to_vec())).enumerate() {
        let new = NewConversationRow {
            kind: if n <= CHANNEL { ConversationKind::Group } else { ConversationKind::Direct },
            name: String::new(),
            owner: users[members[0]],
            members: members.iter().map(|user| users[*user]).collect(),
        };
        conversations.push(backends.directory.add_conversation(&new).await.expect("adds"));
    }
    conversations
}

/// The name of a device.
pub(super) fn device_name(device: usize) -> String {
    format!("device-{}", device % DEVICES_PER_USER)
}

/// Does some work in the runtime, and moves its clock on whenever nothing is left to do at a time.
pub(super) async fn drive<T>(weather: &Weather, is_busy: impl Fn() -> bool, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = rest(weather) => tokio::time::advance(if is_busy() { FINE } else { COARSE }).await,
        }
    }
}

/// Returns when engines have answered and what they said has got where it goes.
async fn rest(weather: &Weather) {
    loop {
        for _ in 0..LOOKS {
            tokio::task::yield_now().await;
        }
        if !weather.engines_rest().await {
            return;
        }
    }
}

/// Whether a step is under way, until it is dropped.
pub(super) struct Under(Arc<World>);

impl Under {
    pub(super) fn begin(world: &Arc<World>) -> Self {
        world.steps.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(world))
    }
}

impl Drop for Under {
    fn drop(&mut self) {
        self.0.steps.fetch_sub(1, Ordering::Relaxed);
    }
}
