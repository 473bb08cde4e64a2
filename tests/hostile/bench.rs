//! The stack, those who mean no harm, and what is measured.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chatctl::runtime::{Tasks, clock, machine};
use chatctl::telemetry::{Counter, Gauge, prometheus};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::case::Case;
use crate::client::{Api, LIMIT, Person, Socket, conversation, crowd, http, http_text, login, signup};
use crate::process::Process;
use crate::up::Up;
use crate::wire::{get_last, talk};

/// Limits that a client reaches with some hundred connections. Passwords cost nothing.
const SETTINGS: &str = "
chat_servers: 2
gateways: 1
partitions: 4
drain_timeout: 1s
chat: {connections_max: 400, handshake_timeout: 3s, outgoing_bytes_max: 262144}
api: {password_cost: {memory_kib: 64, passes: 1}, logins_per_second: 50, requests_per_second: 40, bulk_accounts: true, connections_max: 200}
gateway: {tunnels_max: 600, http_connections_max: 200, first_line_timeout: 3s}
";

/// Files that this process and the stack's need.
const FILES_MIN: u64 = 6_000;

/// Memory that all cases together may leave with the process: what its engines and caches keep of some thousand users.
const MEMORY_MAX_MIB: u64 = 256;

/// Longest until what a case left behind is gone.
const SETTLE_MAX: Duration = Duration::from_mins(1);

/// Longer than unused connections between servers are kept.
const UNUSED: Duration = Duration::from_secs(5);

const PAUSE: Duration = Duration::from_millis(100);

/// What a hostile client holds while others are served: connections, and tasks that go on.
#[derive(Default)]
pub(crate) struct Siege {
    #[expect(dead_code, reason = "held, and not used any more")]
    pub(crate) streams: Vec<TcpStream>,
    #[expect(dead_code, reason = "as the streams")]
    pub(crate) sockets: Vec<Socket>,
    pub(crate) tasks: Running,
}

impl From<Vec<TcpStream>> for Siege {
    fn from(streams: Vec<TcpStream>) -> Self {
        Self { streams, ..Self::default() }
    }
}

/// Tasks that end with this.
#[derive(Default)]
pub(crate) struct Running(Tasks);

impl Running {
    /// Starts one.
    pub(crate) fn spawn(&self, attack: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn_until_stopped("hostile.attack", attack);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// What must be again as it was before.
#[derive(Debug, PartialEq)]
struct Standing {
    /// Connections with other processes.
    outside: usize,
    /// `chatctl_connections` of each server.
    connections: BTreeMap<String, u64>,
}

/// Where each server listens.
pub(crate) struct Ports {
    pub(crate) gateway: String,
    /// Of the gateway, for WebSockets.
    pub(crate) tunnels: String,
    pub(crate) api: String,
    pub(crate) chat: String,
    /// Of the other chat server.
    chat_2: String,
    /// For links of servers.
    pub(crate) peers: Vec<String>,
}

impl Ports {
    fn of(up: &Up, process: &Process) -> Self {
        let host = |text: &str| text.split("//").nth(1).expect("an address").split('/').next().map(str::to_owned);
        let one = |server| host(up.address(server)).expect("a host");
        let (gateway, tunnels) = up.address("gateway-1").split_once(", ").expect("two addresses");
        let mut ports = Self {
            gateway: host(gateway).expect("a host"),
            tunnels: host(tunnels).expect("a host"),
            api: one("api-1"),
            chat: one("chat-1"),
            chat_2: one("chat-2"),
            peers: Vec::new(),
        };
        let all = process.ports().into_iter().map(|port| format!("127.0.0.1:{port}"));
        let known = ports.clients().map(str::to_owned);
        ports.peers = all.filter(|port| !known.contains(port) && *port != ports.chat_2).collect();
        ports
    }

    /// Those that clients may reach.
    pub(crate) fn clients(&self) -> [&str; 4] {
        [&self.gateway, &self.tunnels, &self.api, &self.chat]
    }

    /// Those that speak plain HTTP.
    pub(crate) fn http(&self) -> [&str; 2] {
        [&self.gateway, &self.api]
    }
}

/// The stack and its users.
pub(crate) struct Bench {
    up: Up,
    process: Process,
    folder: tempfile::TempDir,
    pub(crate) ports: Ports,
    /// Connected through the gateway.
    alice: Person,
    /// Connected to the other chat server.
    bob: Person,
    /// Comes again and again.
    dora: Person,
    talk: String,
    sockets: Mutex<(Socket, Socket)>,
    /// Has a token, and means no good.
    pub(crate) eve: Person,
    names: AtomicU64,
    /// Memory of the process at first, and at the start of the case.
    memory_mib: u64,
    case_memory_mib: AtomicU64,
    sockets_at_first: usize,
}

impl Api for Bench {
    fn api_url(&self) -> Option<String> {
        Some(format!("http://{}", self.ports.gateway))
    }
}

/// Repeats a step that fails until it does not, for as long as anything may take.
async fn until_some<T, F: Future<Output = Result<T, String>>>(mut step: impl FnMut() -> F) -> T {
    let started = clock::instant();
    loop {
        match step().await {
            Ok(done) => return done,
            Err(problem) => assert!(started.elapsed() < LIMIT, "{problem}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Asks until the answer is 200.
async fn is_answered(port: &str, request: &str) -> String {
    until_some(|| async {
        let answer = talk(port, request.as_bytes()).await;
        if answer.starts_with("HTTP/1.1 200") { Ok(answer) } else { Err(format!("{request:.30} at {port}: {answer}")) }
    })
    .await
}

/// A stack's API, before the bench is there.
struct At(String);

impl Api for At {
    fn api_url(&self) -> Option<String> {
        Some(format!("http://{}", self.0))
    }
}

impl Bench {
    pub(crate) async fn start() -> Self {
        let files = machine::raise_open_files();
        assert!(files >= FILES_MIN, "{files} files may be open: `ulimit -n {FILES_MIN}` and more");
        let folder = tempfile::tempdir().expect("a folder");
        let settings = folder.path().join("stack.yaml");
        std::fs::write(&settings, SETTINGS).expect("writes");
        let (settings, data) = (settings.display().to_string(), folder.path().join("data").display().to_string());
        let up = Up::start(&["--config", &settings, "--data", &data], &folder.path().join("log"));
        let process = Process(up.pid());
        let ports = Ports::of(&up, &process);
        let api = At(ports.gateway.clone());
        let (mut alice, mut bob) = (signup(&api, "alice").await, signup(&api, "bob").await);
        alice.url = format!("ws://{}/ws/chat-1", ports.tunnels);
        bob.url = format!("ws://{}/ws", ports.chat_2);
        let mut dora = signup(&api, "dora").await;
        dora.url = format!("ws://{}/ws/chat-1", ports.tunnels);
        let (eve, talk) = (signup(&api, "eve").await, conversation(&api, &alice, "direct", &[&bob]).await);
        let sockets = Mutex::new((Socket::open(&alice).await, Socket::open(&bob).await));
        let names = AtomicU64::new(0);
        let mut bench = Self {
            up,
            process,
            folder,
            ports,
            alice,
            bob,
            dora,
            talk,
            sockets,
            eve,
            names,
            memory_mib: 0,
            case_memory_mib: AtomicU64::new(0),
            sockets_at_first: 0,
        };
        bench.warm_up().await;
        bench
    }

    /// Has every server talk to those that it ever talks to, and notes how things are then.
    async fn warm_up(&mut self) {
        http_text(self, "/metrics/cluster").await;
        let gone = signup(self, "gone").await;
        assert_eq!(http(self, "POST", "/logout", &gone.token, &Value::Null).await.0, 204);
        self.others_are_served().await;
        self.settles().await.expect("two users are connected");
        tokio::time::sleep(UNUSED).await;
        self.memory_mib = self.process.memory_mib();
        self.sockets_at_first = self.process.sockets();
    }

    /// A name that nobody has.
    pub(crate) fn name(&self) -> String {
        format!("user-{}", self.names.fetch_add(1, Ordering::Relaxed))
    }

    /// Accounts with a phone each, for direct connections to one chat server.
    pub(crate) async fn crowd(&self, count: usize) -> Vec<Person> {
        let mut people = crowd(self, &self.name(), count).await;
        for person in &mut people {
            person.url = format!("ws://{}/ws", self.ports.chat);
        }
        people
    }

    /// A new account, connected as the crowd is.
    pub(crate) async fn person(&self) -> Person {
        let person = signup(self, &self.name()).await;
        Person { url: format!("ws://{}/ws", self.ports.chat), ..person }
    }

    /// Another device of a user.
    pub(crate) async fn device(&self, name: &str, device: &str) -> Person {
        let person = login(self, name, device).await;
        Person { url: format!("ws://{}/ws", self.ports.chat), ..person }
    }

    /// The secret of the deployment.
    pub(crate) fn secret(&self) -> Vec<u8> {
        std::fs::read(self.folder.path().join("data").join("secret")).expect("the deployment's secret")
    }

    /// The id of the user whom a sound request is answered for.
    pub(crate) const fn sound_user(&self) -> &Person {
        &self.alice
    }

    /// Asserts that whoever does no wrong is served: each repeats what was refused for a moment, as any client does.
    pub(crate) async fn others_are_served(&self) {
        for port in self.ports.clients() {
            for path in ["/health/live", "/health/ready"] {
                is_answered(port, &get_last(path, "")).await;
            }
        }
        {
            let mut sockets = self.sockets.lock().await;
            let (alice, bob) = &mut *sockets;
            self.says(alice, bob).await;
            self.says(bob, alice).await;
        }
        for port in self.ports.http() {
            let me = is_answered(port, &get_last("/me", &self.bob.token)).await;
            assert!(me.contains("\"name\":\"bob\""), "at {port}: {me}");
        }
        let comes = until_some(|| async { Socket::try_open(&self.dora).await.ok_or_else(|| "refused".to_owned()) });
        let mut comes = comes.await;
        comes.say(json!({"type": "ping"})).await;
        comes.next_of("pong").await;
    }

    /// Has a user who is connected say something to the other one.
    async fn says(&self, from: &mut Socket, to: &mut Socket) {
        let uuid = Uuid::new_v4();
        let text = uuid.to_string();
        let frame = json!({"type": "send", "uuid": uuid, "conversation": self.talk, "body": text});
        loop {
            from.say(frame.clone()).await;
            let answer = loop {
                let answer = from.next().await;
                if answer["uuid"] == text && (answer["type"] == "ack" || answer["type"] == "error") {
                    break answer;
                }
            };
            if answer["type"] == "ack" {
                break;
            }
            let wait_ms = answer["retry_after_ms"].as_u64().unwrap_or_else(|| panic!("refused for good: {answer}"));
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        }
        while to.next_of("message").await["body"] != text {}
    }

    /// Connects those who are connected all the time once more, where a case has failed.
    pub(crate) async fn connect_again(&self) {
        *self.sockets.lock().await = (Socket::open(&self.alice).await, Socket::open(&self.bob).await);
    }

    /// A counter of all servers together.
    pub(crate) async fn counted(&self, counter: Counter) -> f64 {
        let servers = prometheus::parse(&self.metrics().await);
        servers.values().map(|server| server.counter(counter)).sum()
    }

    /// From the server that has no limit in between.
    async fn metrics(&self) -> String {
        http_text(&At(self.ports.api.clone()), "/metrics").await
    }

    async fn standing(&self) -> Standing {
        let servers = prometheus::parse(&self.metrics().await);
        let has_any = |role: &str| matches!(role, "chat" | "gateway");
        let connections = servers.iter().filter(|(_, server)| has_any(&server.role));
        let connections = connections.map(|(name, server)| (name.clone(), server.gauge(Gauge::Connections) as u64));
        Standing { connections: connections.collect(), outside: self.process.outside() }
    }

    /// Whether nothing is left but those who are connected all the time: one at each chat server, one of them through
    /// the gateway.
    async fn settles(&self) -> Result<(), String> {
        let connections = ["chat-1", "chat-2", "gateway-1"].map(|name| (name.to_owned(), 1)).into();
        let (started, usual) = (clock::instant(), Standing { outside: 2, connections });
        loop {
            let now = self.standing().await;
            if now == usual {
                return Ok(());
            }
            if started.elapsed() > SETTLE_MAX {
                return Err(format!("what it left behind: {now:?}, and it was {usual:?}"));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Runs a case.
    pub(crate) async fn holds(&self, case: &Case) -> Result<(), String> {
        self.process.forget_peak();
        self.case_memory_mib.store(self.process.memory_mib(), Ordering::Relaxed);
        let siege = (case.run)(self).await;
        self.others_are_served().await;
        drop(siege);
        let peak = self.peak_mib();
        if peak > case.memory_mib {
            return Err(format!("{peak} MiB more than before, {} are allowed", case.memory_mib));
        }
        self.settles().await?;
        self.others_are_served().await;
        Ok(())
    }

    /// Most memory of the case, above that of its start.
    pub(crate) fn peak_mib(&self) -> u64 {
        self.process.peak_mib().saturating_sub(self.case_memory_mib.load(Ordering::Relaxed))
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Whether the process is as it was at first, and stops in good order.
    pub(crate) async fn end(self) -> Result<(), String> {
        self.settles().await?;
        let (started, at_first) = (clock::instant(), self.sockets_at_first);
        while self.process.sockets() > at_first {
            if started.elapsed() > SETTLE_MAX {
                return Err(format!("{} sockets are open, {at_first} were", self.process.sockets()));
            }
            tokio::time::sleep(PAUSE).await;
        }
        let memory_mib = self.process.memory_mib().saturating_sub(self.memory_mib);
        if memory_mib > MEMORY_MAX_MIB {
            return Err(format!("{memory_mib} MiB more than at first, {MEMORY_MAX_MIB} are allowed"));
        }
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        if let Some(line) = log.lines().find(|line| line.contains("panicked")) {
            return Err(format!("its log says: {line}"));
        }
        let Self { up, folder, .. } = self;
        let code = up.interrupt();
        drop(folder);
        if code == Some(0) { Ok(()) } else { Err(format!("it ended with {code:?}")) }
    }
}
