//! One Redis, as the ports that live there share it: connecting, checking, and what an error means.
//!
//! It is the server at an address, or the one that sentinels call the master when a connection is made.
//!
//! A connection carries every caller's commands at once. It is made on the first call and again after it broke, and each
//! time the server says which life its data has: the replication id, which is another one after each start and each promotion
//! (and now and then without either, as when the first replica comes), and of which a replica has its master's. Data of another
//! life may be any age. A server can change its life under an open connection too, so whatever must not follow data back in time
//! asks for the life in its script ([`IN_LIFE`]).

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::RngExt;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, FromRedisValue, RedisError, Script, ScriptInvocation};
use tokio::sync::Mutex;

use super::deployment::DeploymentId;
use super::error::{BackendError, BackendResult, ErrorKind};
use super::sentinels::Sentinels;
use super::{version, without_password};
use crate::runtime::clock;

/// Life of what a probe writes.
const PROBE_TTL_S: u64 = 60;

/// Longest that connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest that an answer may take. Under the deadline that every call to a port has.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a search for a server that failed answers for those who come after it: of many callers one searches, a few
/// times a second.
const PAUSE_US: RangeInclusive<u64> = 100_000..=300_000;

/// Oldest version with everything that the scripts use (`ZADD` with options, millisecond expiry of every kind).
const VERSION_MIN: version::Version = (6, 2);

/// How a script begins that may only run on data of one life, which its last argument names.
pub const IN_LIFE: &str = r"
local life = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
if life ~= ARGV[#ARGV] then return redis.error_reply('OTHERLIFE the data are of life ' .. tostring(life)) end
";

/// Code of the error that [`IN_LIFE`] raises.
const OTHER_LIFE: &str = "OTHERLIFE";

/// A Redis server, for one deployment. Clones share one connection.
#[derive(Clone)]
pub struct Redis {
    inner: Arc<Inner>,
}

struct Inner {
    server: Server,
    /// Without a password, for messages.
    address: String,
    /// Whose keys are seen.
    deployment: DeploymentId,
    /// The server's version when it was opened.
    version: std::sync::OnceLock<String>,
    /// Written by whoever finds no connection, or a broken one.
    slot: Mutex<Slot>,
    /// Connections that were made.
    connections: AtomicU64,
    /// How many of them are given up: those with lower numbers.
    given_up: AtomicU64,
}

/// The connection, and what came of the last search for one.
#[derive(Default)]
struct Slot {
    connection: Option<Connection>,
    /// Why there was none, and until when nobody searches again, on [`clock::now_us`].
    failed: Option<(u64, String)>,
}

/// Where the server is.
enum Server {
    At(Client),
    /// Where sentinels say.
    MasterOf(Sentinels),
}

/// A connection, and the life of the data that it leads to.
#[derive(Clone)]
pub struct Connection {
    /// Where commands go.
    pub commands: MultiplexedConnection,
    /// The server's replication id: another one after each start and each promotion.
    pub life: Arc<str>,
    /// Which connection of this process it is.
    number: u64,
}

impl Redis {
    /// Connects, and checks version and eviction policy.
    ///
    /// # Errors
    /// Names the address, the setting and the fix.
    pub async fn open(url: &str, deployment: DeploymentId) -> BackendResult<Self> {
        const OPERATION: &str = "open redis";
        let rejected = |text: String| BackendError::not_applied(OPERATION, ErrorKind::Rejected, text);
        let address = without_password(url);
        let server = Server::parse(url).map_err(|problem| rejected(format!("{address}: {problem}")))?;
        let redis = Self::at(server, address, deployment);
        let mut connection = redis.connection(OPERATION).await.map_err(|error| {
            let text = error.source.as_ref().map(ToString::to_string).unwrap_or_default();
            let fix = "is Redis listening there, and are name and password right?";
            BackendError { source: Some(format!("{text}; {fix}").into()), ..error }
        })?;
        let info = all_info(&mut connection.commands).await.map_err(|e| failed(OPERATION, e))?;
        check(&info).map_err(|problem| rejected(format!("{}: {problem}", redis.inner.address)))?;
        let version = field(&info, "redis_version").unwrap_or_default();
        redis.inner.version.get_or_init(|| match redis.inner.server {
            Server::At(_) => format!("Redis {version}"),
            Server::MasterOf(_) => format!("Redis {version} (Sentinel)"),
        });
        Ok(redis)
    }

    fn at(server: Server, address: String, deployment: DeploymentId) -> Self {
        Self {
            inner: Arc::new(Inner {
                server,
                address,
                deployment,
                version: std::sync::OnceLock::new(),
                slot: Mutex::default(),
                connections: AtomicU64::new(0),
                given_up: AtomicU64::new(0),
            }),
        }
    }

    /// Product and version, as of the opening.
    #[must_use]
    pub fn version(&self) -> &str {
        self.inner.version.get().map_or("Redis", String::as_str)
    }

    /// The name of a key of the deployment: `chatctl:{deployment}:` and `rest`.
    #[must_use]
    pub fn key(&self, rest: impl Display) -> String {
        format!("chatctl:{}:{rest}", self.inner.deployment)
    }

    /// The same for keys that one script touches together.
    #[must_use]
    pub fn tagged_key(&self, tag: &str, rest: impl Display) -> String {
        format!("chatctl:{{{}:{tag}}}:{rest}", self.inner.deployment)
    }

    /// The live connection, or a new one. Whoever waited for a search that failed, or comes soon behind it, gets its
    /// failure: all of them would search, one after the other.
    ///
    /// # Errors
    /// `NotApplied`: nothing was sent.
    pub async fn connection(&self, operation: &'static str) -> BackendResult<Connection> {
        let asked_us = clock::now_us();
        let mut slot = self.inner.slot.lock().await;
        let given_up = self.inner.given_up.load(Ordering::Acquire);
        if let Some(connection) = slot.connection.as_ref().filter(|connection| connection.number >= given_up) {
            return Ok(connection.clone());
        }
        let unavailable = |problem: &str| {
            let text = format!("{}: {problem}", self.inner.address);
            BackendError::not_applied(operation, ErrorKind::Unavailable, text)
        };
        if let Some((_, problem)) = slot.failed.as_ref().filter(|(until_us, _)| *until_us > asked_us) {
            return Err(unavailable(problem));
        }
        slot.connection = None;
        let (commands, life) = self.inner.connect().await.map_err(|problem| {
            let error = unavailable(&problem);
            slot.failed = Some((clock::now_us() + rand::rng().random_range(PAUSE_US), problem));
            error
        })?;
        let number = self.inner.connections.fetch_add(1, Ordering::Relaxed);
        let connection = Connection { commands, life, number };
        *slot = Slot { connection: Some(connection.clone()), failed: None };
        Ok(connection)
    }

    /// Runs a script that begins with [`IN_LIFE`] on data of the life that `fill` is told of: one round trip, and one
    /// more after the server forgot the script or has other data.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn run_in_life<T: FromRedisValue>(
        &self,
        operation: &'static str,
        script: &Script,
        fill: impl Fn(&mut ScriptInvocation<'_>, &str) + Sync,
    ) -> BackendResult<T> {
        let mut is_repeat = false;
        loop {
            let mut connection = self.connection(operation).await?;
            let mut call = script.prepare_invoke();
            fill(&mut call, &connection.life);
            call.arg(&*connection.life);
            match call.invoke_async(&mut connection.commands).await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    let may_repeat = error.code() == Some(OTHER_LIFE) && !is_repeat;
                    let error = self.failed(operation, error, &connection);
                    if !may_repeat {
                        return Err(error);
                    }
                    is_repeat = true;
                }
            }
        }
    }

    /// Writes something that nobody reads: whether the server takes writes now (a full one does not, nor one whose disk is full).
    ///
    /// # Errors
    /// Those of the server.
    pub async fn probe(&self, operation: &'static str) -> BackendResult<()> {
        let mut connection = self.connection(operation).await?;
        let mut write = redis::cmd("SET");
        write.arg(self.key("probe")).arg(1).arg("EX").arg(PROBE_TTL_S);
        match write.query_async(&mut connection.commands).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.failed(operation, error, &connection)),
        }
    }

    /// The server's time, in milliseconds since 1970.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn now_ms(&self, operation: &'static str) -> BackendResult<u64> {
        let mut connection = self.connection(operation).await?;
        match redis::cmd("TIME").query_async::<(u64, u64)>(&mut connection.commands).await {
            Ok((s, us)) => Ok(s * 1_000 + us / 1_000),
            Err(error) => Err(self.failed(operation, error, &connection)),
        }
    }

    /// Turns an error into the port's, and gives the connection that it came from up if it is of no use any more.
    pub fn failed(&self, operation: &'static str, error: RedisError, from: &Connection) -> BackendError {
        let is_broken = error.is_io_error() || error.is_connection_dropped() || error.is_timeout();
        let is_elsewhere = code_of(&error).is_some_and(is_code_of_another);
        if is_broken || is_elsewhere {
            // Without the slot's lock: somebody may hold it for as long as a search takes.
            self.inner.given_up.fetch_max(from.number + 1, Ordering::AcqRel);
        }
        failed(operation, error)
    }
}

/// The code of an error that the server answered. Before Redis 7 one that a script's own call got is in the script's error.
fn code_of(error: &RedisError) -> Option<&str> {
    let code = error.code()?;
    let detail = error.detail().unwrap_or_default();
    if code != "ERR" || !detail.contains("Error running script") {
        return Some(code);
    }
    let inner = ["OOM", "MISCONF", "READONLY", "NOREPLICAS"].into_iter();
    let is_named = |code: &&str| detail.split_whitespace().any(|word| word.trim_start_matches('-') == *code);
    inner.into_iter().find(is_named).or(Some(code))
}

/// What an error of a command that was sent means.
fn failed(operation: &'static str, error: RedisError) -> BackendError {
    if let Some(code) = code_of(&error) {
        // The server answered, so it did nothing: scripts here fail before their first write or not at all.
        let kind = match code {
            // The first two: its memory is full, its disk is.
            "OOM" | "MISCONF" | "BUSY" | "CLUSTERDOWN" | "TRYAGAIN" => ErrorKind::Unavailable,
            code if is_code_of_another(code) => ErrorKind::Unavailable,
            _ => ErrorKind::Rejected,
        };
        return BackendError::not_applied(operation, kind, error);
    }
    let kind = if error.is_timeout() { ErrorKind::TimedOut } else { ErrorKind::Unavailable };
    if error.is_connection_refusal() {
        return BackendError::not_applied(operation, kind, error);
    }
    BackendError::unknown(operation, kind, error)
}

/// Whether a server says that it can't take the call and another one may: it is a replica, still loading, cut off from the
/// replicas that have to confirm writes, or has other data than it had.
fn is_code_of_another(code: &str) -> bool {
    matches!(code, "READONLY" | "LOADING" | "MASTERDOWN" | "NOREPLICAS" | OTHER_LIFE)
}

impl Server {
    fn parse(url: &str) -> Result<Self, String> {
        if let Some(sentinels) = Sentinels::parse(url) {
            return sentinels.map(Self::MasterOf);
        }
        let options = url.rsplit('@').next().and_then(|place| place.split_once('?'));
        let mut names = options.into_iter().flat_map(|(_, options)| options.split('&')).map(|o| o.split('=').next());
        if let Some(unknown) = names.find(|name| *name != Some("protocol")) {
            return Err(format!("there is no option {:?}", unknown.unwrap_or_default()));
        }
        Client::open(url).map(Self::At).map_err(|_| "no address of a Redis: write redis://HOST:PORT/".to_owned())
    }
}

impl Inner {
    /// A new connection to the server, or to the master that the sentinels name now, and the life of its data.
    async fn connect(&self) -> Result<(MultiplexedConnection, Arc<str>), String> {
        let sentinels = match &self.server {
            Server::At(client) => return connect(client).await,
            Server::MasterOf(sentinels) => sentinels,
        };
        let (mut tried, mut problems) = (Vec::new(), Vec::new());
        for sentinel in sentinels.order() {
            match sentinels.ask(sentinel).await {
                Err(problem) => problems.push(problem),
                Ok(server) if tried.contains(&server) => {}
                Ok(server) => {
                    let connected = match sentinels.client(&server) {
                        Ok(client) => connect(&client).await,
                        Err(error) => Err(error.to_string()),
                    };
                    match connected {
                        Ok((mut commands, life)) => {
                            sentinels.keep(sentinel);
                            self.note_master(&server, &mut commands).await;
                            return Ok((commands, life));
                        }
                        Err(problem) => problems.push(format!("master {server}: {problem}")),
                    }
                    tried.push(server);
                }
            }
        }
        Err(problems.join("; "))
    }

    /// Tells which server it is from now on, and warns where a replica that was promoted is not set up as its master was.
    async fn note_master(&self, server: &ConnectionAddr, commands: &mut MultiplexedConnection) {
        tracing::info!("{}: the master is {server}", self.address);
        // What the first one is refused for is said by `open`.
        if self.connections.load(Ordering::Relaxed) > 0
            && let Ok(info) = all_info(commands).await
            && let Err(problem) = check(&info)
        {
            tracing::warn!("{}: master {server}: {problem}", self.address);
        }
    }
}

/// Connects to a server that takes writes; tells the life of its data.
async fn connect(client: &Client) -> Result<(MultiplexedConnection, Arc<str>), String> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(RESPONSE_TIMEOUT));
    let mut commands = client.get_multiplexed_async_connection_with_config(&config).await.map_err(|e| e.to_string())?;
    let info: String =
        redis::cmd("INFO").arg("replication").query_async(&mut commands).await.map_err(|e| e.to_string())?;
    if field(&info, "role") == Some("slave") {
        return Err("it is a replica: it takes no writes".to_owned());
    }
    Ok((commands, field(&info, "master_replid").unwrap_or_default().into()))
}

async fn all_info(commands: &mut MultiplexedConnection) -> redis::RedisResult<String> {
    redis::cmd("INFO").query_async(commands).await
}

/// Checks version and eviction policy in an answer to `INFO`.
fn check(info: &str) -> Result<(), String> {
    version::at_least("Redis", field(info, "redis_version").unwrap_or_default(), VERSION_MIN)?;
    match field(info, "maxmemory_policy") {
        None | Some("noeviction") => Ok(()),
        Some(policy) => {
            Err(format!("it has maxmemory-policy {policy}: it would throw counters away; set it to noeviction"))
        }
    }
}

/// A field of `INFO`.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_mean_nothing_are_refused() {
        assert!(Server::parse("redis://u:p@h:1/2?protocol=resp3").is_ok());
        let error = Server::parse("redis://u:p@h:1/2?protocol=resp3&tls=true").err().expect("refused");
        assert_eq!(error, "there is no option \"tls\"");
    }

    /// Counts those who come, and hangs up.
    async fn rude() -> (std::net::SocketAddr, Arc<AtomicU64>, crate::runtime::Tasks) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (came, tasks) = (Arc::new(AtomicU64::new(0)), crate::runtime::Tasks::new());
        let count = Arc::clone(&came);
        tasks.spawn_until_stopped("test.rude", async move {
            while listener.accept().await.is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        (address, came, tasks)
    }

    #[tokio::test]
    async fn those_who_find_no_master_together_or_soon_after_share_one_search() {
        let (sentinel, searches, tasks) = rude().await;
        let server = Server::parse(&format!("redis+sentinel://{sentinel}/chat")).expect("an address");
        let redis = Redis::at(server, "there".to_owned(), DeploymentId(7));
        for _ in 0..2 {
            let asked = futures_util::future::join_all((0..20).map(|_| redis.connection("test"))).await;
            for answer in asked {
                let error = answer.err().expect("there is none").to_string();
                assert!(error.contains(&sentinel.to_string()), "{error}");
            }
        }
        assert_eq!(searches.load(Ordering::Relaxed), 1);
        tokio::time::sleep(Duration::from_micros(*PAUSE_US.end())).await;
        assert!(redis.connection("test").await.is_err());
        assert_eq!(searches.load(Ordering::Relaxed), 2);
        tasks.stop();
        tasks.join(Duration::from_secs(5)).await;
    }

    #[test]
    fn what_a_script_was_refused_with_is_found_in_the_errors_of_old_and_new_servers() {
        let answered = |code: &str, text: &str| redis::make_extension_error(code.to_owned(), Some(text.to_owned()));
        let old = "Error running script (call to f_1): @user_script:20: @user_script: 20: -MISCONF Redis is configured";
        for (error, code, kind) in [
            (answered("MISCONF", "Redis is configured"), "MISCONF", ErrorKind::Unavailable),
            (answered("ERR", old), "MISCONF", ErrorKind::Unavailable),
            (answered("ERR", &old.replace("MISCONF", "READONLY")), "READONLY", ErrorKind::Unavailable),
            (answered("ERR", &old.replace("MISCONF", "WRONGTYPE")), "ERR", ErrorKind::Rejected),
            (answered("ERR", "unknown command MISCONF"), "ERR", ErrorKind::Rejected),
        ] {
            assert_eq!((code_of(&error), failed("test", error.clone()).kind), (Some(code), kind), "{error}");
        }
    }

    #[test]
    fn a_master_without_its_replicas_is_given_up() {
        assert!(is_code_of_another("NOREPLICAS") && is_code_of_another("READONLY") && !is_code_of_another("WRONGTYPE"));
    }
}
