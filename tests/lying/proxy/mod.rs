//! A proxy for HTTP and WebSocket between generator and stack. It decodes everything that passes, and a [`Lie`] may change,
//! drop, repeat, delay or invent any of it. What it did is counted in a [`Tally`]; what really happened is in [`Facts`].
//!
//! | file | what |
//! |---|---|
//! | `http` | requests and answers, as bytes and as calls of the API |
//! | `socket` | WebSockets: upgrade, frames both ways, timed output |
//! | `facts` | who is a member, who sent what, which id it got |
//! | `numbers` | message ids shown under other numbers, everywhere alike |

pub(crate) mod facts;
pub(crate) mod http;
pub(crate) mod numbers;
pub(crate) mod socket;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use chatctl::protocol::{ClientFrame, ConversationId, MessageFrame, ServerFrame, UserId};
use chatctl::runtime::http_client::{ClientConfig, HttpClient};
use chatctl::runtime::{Tasks, clock, net};
use http_body_util::Full;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use facts::{Facts, Who};
use http::{Answer, Call, Reply};
use numbers::Numbers;
use socket::{Out, Socket, Upgrade};

/// How connections to the stack are made and kept.
const CONNECTIONS: ClientConfig = ClientConfig {
    connect_timeout: Duration::from_secs(3),
    idle_max: Duration::from_mins(1),
    idle_per_host_max: usize::MAX,
};

/// What a mode does with what passes. Each hook sees one thing and says what goes on instead.
#[derive(Clone, Copy)]
pub(crate) struct Lie {
    /// A device wants a WebSocket.
    pub(crate) connect: fn(&Proxy, &Who) -> Upgrade,
    /// A frame of a client; the result goes to the server.
    pub(crate) client: fn(&Proxy, &Socket, ClientFrame) -> Vec<ClientFrame>,
    /// A frame of the server; the result goes to the client.
    pub(crate) server: fn(&Proxy, &Socket, ServerFrame) -> Vec<Out>,
    /// A request of the API.
    pub(crate) request: fn(&Proxy, &mut Call) -> Reply,
    /// The stack's answer to a request.
    pub(crate) answer: fn(&Proxy, &Call, &mut Answer),
    /// How bytes are cut on their way to a client.
    pub(crate) wire: Wire,
    /// Whether an HTTP connection is closed behind each answer, without a word of it.
    pub(crate) closes_idle: bool,
    /// Called when the run is over: sums up what can't be counted before.
    pub(crate) finish: fn(&Proxy),
}

impl Lie {
    /// Passes everything on as it is.
    pub(crate) const NONE: Self = Self {
        connect: |_, _| Upgrade::Through,
        client: |_, _, frame| vec![frame],
        server: |_, _, frame| Out::pass(frame),
        request: |_, _| Reply::Pass,
        answer: |_, _, _| {},
        wire: Wire::Plain,
        closes_idle: false,
        finish: |_| {},
    };
}

/// How bytes are cut on their way to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    /// Each frame in one write.
    Plain,
    /// A few bytes at a time.
    Crumbs,
    /// What comes within some time in one write.
    Lumps(Duration),
}

/// What the proxy did, by name.
#[derive(Default)]
pub(crate) struct Tally(Mutex<BTreeMap<&'static str, u64>>);

/// Name in the tally of what every mode must have done at least once.
pub(crate) const LIES: &str = "lies";

impl Tally {
    pub(crate) fn add(&self, name: &'static str, n: u64) {
        *self.0.lock().expect("no panic while held").entry(name).or_default() += n;
    }

    pub(crate) fn set(&self, name: &'static str, n: u64) {
        self.0.lock().expect("no panic while held").insert(name, n);
    }

    /// 0 for what was never counted.
    pub(crate) fn get(&self, name: &str) -> u64 {
        self.0.lock().expect("no panic while held").get(name).copied().unwrap_or(0)
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let all = self.0.lock().expect("no panic while held");
        all.iter().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ")
    }
}

/// A message, or one on its way to one user.
pub(crate) type Target = (Uuid, Option<UserId>);

/// What a mode remembers between hooks.
#[derive(Default)]
struct Memory {
    counters: HashMap<&'static str, u64>,
    seen: HashSet<String>,
    chosen: HashSet<Target>,
    served: HashSet<Target>,
    asked: HashMap<(&'static str, Who), u64>,
    held: HashMap<String, MessageFrame>,
    promises: Vec<(ConversationId, UserId, u64, u64)>,
}

/// One proxy, for one run.
pub(crate) struct Proxy {
    address: std::net::SocketAddr,
    /// Host and port of the API server.
    upstream: String,
    lie: Lie,
    pub(crate) tally: Tally,
    facts: Mutex<Facts>,
    pub(crate) numbers: Numbers,
    memory: Mutex<Memory>,
    rng: Mutex<StdRng>,
    sockets: Mutex<BTreeMap<u64, Arc<Socket>>>,
    sockets_made: AtomicU64,
    /// When the first device was welcomed, in µs; 0 before.
    first_welcome_us: AtomicU64,
    client: HttpClient<Full<Bytes>>,
    tasks: Tasks,
}

impl Proxy {
    /// Listens on a port of its own before a stack.
    pub(crate) fn start(api_url: &str, lie: Lie, seed: u64) -> Arc<Self> {
        let listener = net::listen(([127, 0, 0, 1], 0).into()).expect("a free port");
        let proxy = Arc::new(Self {
            address: listener.local_addr().expect("bound"),
            upstream: api_url.strip_prefix("http://").expect("plain HTTP").to_owned(),
            lie,
            tally: Tally::default(),
            facts: Mutex::default(),
            numbers: Numbers::default(),
            memory: Mutex::default(),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            sockets: Mutex::default(),
            sockets_made: AtomicU64::new(0),
            first_welcome_us: AtomicU64::new(0),
            client: HttpClient::new(CONNECTIONS),
            tasks: Tasks::new(),
        });
        proxy.tasks.spawn_until_stopped("lying.accept", Arc::clone(&proxy).accept(listener));
        proxy
    }

    /// Where a generator finds the API.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends every connection.
    pub(crate) async fn stop(&self) {
        self.tasks.stop();
        self.tasks.join(Duration::from_secs(5)).await;
        self.sockets.lock().expect("no panic while held").clear();
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            net::set_options(&stream);
            let proxy = Arc::clone(&self);
            self.tasks.spawn_until_stopped("lying.connection", proxy.serve(stream));
        }
    }

    /// Requests of one connection, until one of them is an upgrade.
    async fn serve(self: Arc<Self>, mut stream: TcpStream) {
        let mut buffer = Vec::new();
        while let Some(request) = http::read_request(&mut stream, &mut buffer).await {
            if let Some(target) = request.socket_target() {
                return socket::serve(self, stream, &request, &target).await;
            }
            let answer = self.exchange(request).await;
            if http::write_answer(&mut stream, &answer).await.is_err() {
                return;
            }
            if self.lie.closes_idle {
                self.lied();
                // What the client writes meanwhile is lost, as it is where both write at the same time.
                tokio::time::sleep(Duration::from_millis(self.below(3))).await;
                return;
            }
        }
    }

    /// One call of the API.
    async fn exchange(&self, request: http::Request) -> Answer {
        let mut call = Call::of(request, &self.facts());
        if let Some(who) = &call.who {
            let mut memory = self.memory();
            *memory.asked.entry((call.api.name(), who.clone())).or_default() += 1;
        }
        let token = match (self.lie.request)(self, &mut call) {
            Reply::Answer(answer) => return answer.waited().await,
            Reply::Hang => std::future::pending().await,
            Reply::Later(wait) => {
                tokio::time::sleep(wait).await;
                call.token.clone()
            }
            Reply::As(token) => Some(token),
            Reply::Pass => call.token.clone(),
        };
        self.facts().before(&call);
        let mut answer = http::forward(&self.client, &self.upstream, &call, token.as_deref()).await;
        if matches!(answer.status, 429 | 503) {
            self.tally.add("throttled", 1);
        }
        self.facts().after(&call, &answer);
        (self.lie.answer)(self, &call, &mut answer);
        answer.send_sockets_to(&call, self.address);
        answer.waited().await
    }

    /// Counts what every mode may name.
    pub(crate) fn finish(&self) {
        let facts = self.facts();
        self.tally.set("one", 1);
        self.tally.set("clients", facts.devices().len() as u64);
        self.tally.set("conversations", facts.rooms().len() as u64);
    }

    // ---- for modes

    pub(crate) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().expect("no panic while held")
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().expect("no panic while held")
    }

    /// Counts one lie.
    pub(crate) fn lied(&self) {
        self.tally.add(LIES, 1);
    }

    /// True for the first of each `n` calls under a name.
    pub(crate) fn one_in(&self, name: &'static str, n: u64) -> bool {
        let mut memory = self.memory();
        let count = memory.counters.entry(name).or_default();
        *count += 1;
        (*count - 1).is_multiple_of(n)
    }

    /// True for the first call with a key.
    pub(crate) fn first(&self, key: impl std::fmt::Display) -> bool {
        self.memory().seen.insert(key.to_string())
    }

    /// Whether [`Proxy::first`] was called with a key.
    pub(crate) fn has(&self, key: impl std::fmt::Display) -> bool {
        self.memory().seen.contains(&key.to_string())
    }

    /// Everything that was chosen.
    pub(crate) fn chosen(&self) -> Vec<Target> {
        self.memory().chosen.iter().copied().collect()
    }

    /// Whether a message is one of those that are lied about: the first of each `n` that are asked for is, for ever, and counts
    /// as one lie. With a user it is about the way of the message to that user, unless it went there before.
    pub(crate) fn choose(&self, message: Uuid, user: Option<UserId>, n: u64) -> bool {
        let mut memory = self.memory();
        let target = (message, user);
        if memory.chosen.contains(&target) {
            return true;
        }
        let is_known = memory.served.contains(&target) || !memory.seen.insert(format!("asked {target:?}"));
        if is_known {
            return false;
        }
        let count = memory.counters.entry("choose").or_default();
        *count += 1;
        let is_chosen = (*count - 1).is_multiple_of(n);
        if is_chosen {
            memory.chosen.insert(target);
            drop(memory);
            self.lied();
        }
        is_chosen
    }

    /// Whether a message was chosen.
    pub(crate) fn is_chosen(&self, message: Uuid, user: Option<UserId>) -> bool {
        self.memory().chosen.contains(&(message, user))
    }

    /// Whether a row may be in an answer to a user: one that was chosen may not, any other can't be chosen any more.
    pub(crate) fn serves(&self, message: Uuid, user: UserId) -> bool {
        let mut memory = self.memory();
        let target = (message, Some(user));
        let may = !memory.chosen.contains(&target);
        if may {
            memory.served.insert(target);
        }
        may
    }

    /// Keeps a message under a key.
    pub(crate) fn hold(&self, key: String, message: MessageFrame) {
        self.memory().held.insert(key, message);
    }

    /// Takes what was kept.
    pub(crate) fn take_held(&self, key: &str) -> Option<MessageFrame> {
        self.memory().held.remove(key)
    }

    /// Remembers that a user was promised that nothing will come between two ids.
    pub(crate) fn note_promise(&self, conversation: ConversationId, user: UserId, after: u64, upto: u64) {
        self.memory().promises.push((conversation, user, after, upto));
    }

    pub(crate) fn promises(&self) -> Vec<(ConversationId, UserId, u64, u64)> {
        self.memory().promises.clone()
    }

    /// Requests that the busiest device made to an endpoint.
    pub(crate) fn asked_max(&self, endpoint: &str) -> u64 {
        let memory = self.memory();
        memory.asked.iter().filter(|(key, _)| key.0 == endpoint).map(|(_, n)| *n).max().unwrap_or(0)
    }

    /// A number below `n`, from the seed.
    pub(crate) fn below(&self, n: u64) -> u64 {
        self.rng.lock().expect("no panic while held").random_range(0..n)
    }

    /// When the first device was welcomed; 0 before.
    pub(crate) fn first_welcome_us(&self) -> u64 {
        self.first_welcome_us.load(Ordering::Relaxed)
    }

    /// Time since the first device was welcomed.
    pub(crate) fn age(&self) -> Duration {
        match self.first_welcome_us() {
            0 => Duration::ZERO,
            first_us => Duration::from_micros(clock::now_us().saturating_sub(first_us)),
        }
    }

    /// The open sockets.
    pub(crate) fn sockets(&self) -> Vec<Arc<Socket>> {
        self.sockets.lock().expect("no panic while held").values().cloned().collect()
    }

    /// The open sockets of a user.
    pub(crate) fn sockets_of(&self, user: UserId) -> Vec<Arc<Socket>> {
        self.sockets().into_iter().filter(|socket| socket.who.user == user).collect()
    }

    /// Whether a user is a member now.
    pub(crate) fn is_member(&self, conversation: ConversationId, user: UserId) -> bool {
        self.facts().is_member(conversation, user)
    }
}
