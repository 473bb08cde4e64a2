//! The database server in use, of those that an address names.
//!
//! With one host there is nothing to choose. With several it is the first that takes writes, until it is lost: then the one in
//! use, if it is back by now, or else the first again. Whoever finds it lost marks it, and the next call chooses.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::mysql::MySqlDatabaseError;
use sqlx::{AnyConnection, AnyPool, ConnectOptions, Connection, Executor};
use tokio::sync::Mutex;

use super::dialect::Dialect;
use crate::backends::Engine;
use crate::runtime::clock;

/// Connections of one process to a database server: forty processes of a large stack share the few hundred that a server has.
/// `SQLite` has one writer, so it gets fewer.
pub const CONNECTIONS_MAX: u32 = 6;
const SQLITE_CONNECTIONS_MAX: u32 = 4;

/// Longest wait for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(4);

/// The same where there are other hosts. Under the deadline that every call to a port has, so that the call marks the host.
const ACQUIRE_TIMEOUT_OF_SEVERAL: Duration = Duration::from_secs(1);

/// Longest that a host may take to say whether it takes writes. All of them are asked at once.
const CHECK_TIMEOUT: Duration = Duration::from_millis(800);

/// The connections to a host that was lost and is back are made anew, since those from before may hang in a link that
/// was cut; not again so soon, or a server that is only slow would get more and more of them. Longer than anybody
/// uses one.
const POOL_AGE_MIN: Duration = Duration::from_secs(4);

/// Errors of a MySQL that takes no writes: because of an option, in a read-only transaction, in a read-only mode.
/// Source: MySQL 8.4, "Server Error Message Reference".
const MYSQL_READ_ONLY: [u16; 3] = [1290, 1792, 1836];

/// A connection that was in use this short ago is taken without asking whether it is alive: the pool has asked when it was
/// given back, and under load the question would be a third of all round trips.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

/// The hosts of one address.
pub(super) struct Hosts {
    dialect: Dialect,
    /// `host:port`, and how to connect.
    hosts: Vec<(String, AnyConnectOptions)>,
    /// Written by whoever finds no host in use, or a lost one; the others wait for that one's choice.
    choice: Mutex<Choice>,
    /// Whether the host in use may be lost.
    is_doubted: Arc<AtomicBool>,
    /// Of the directory, once it is known: a host that has another one is no copy.
    id: OnceLock<String>,
}

/// What came of choosing.
#[derive(Default)]
struct Choice {
    chosen: Option<Chosen>,
    /// Why there was none, and when that was found, on [`clock::now_us`].
    failed: Option<(u64, String)>,
}

/// The host in use.
struct Chosen {
    host: usize,
    pool: AnyPool,
    /// When the pool was made, on [`clock::now_us`].
    since_us: u64,
}

impl Hosts {
    /// Reads an address such as `postgres://user:password@host:5432,host:5432/database`.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub(super) fn parse(url: &str, dialect: Dialect) -> Result<Self, String> {
        let whole = Engine::At(url.to_owned());
        // A file's path may hold anything.
        let names = if dialect == Dialect::Sqlite { vec![String::new()] } else { whole.hosts() };
        if names.len() > 1 && names.iter().any(String::is_empty) {
            return Err("one of its hosts has no name".to_owned());
        }
        let several = names.len() > 1;
        let read = |name: String| {
            let single = if several { whole.with_host(&name) } else { whole.clone() };
            let options = single.address().unwrap_or_default().parse();
            options.map(|options| (name, options)).map_err(|e: sqlx::Error| e.to_string())
        };
        let hosts = names.into_iter().map(read).collect::<Result<Vec<_>, String>>()?;
        Ok(Self { dialect, hosts, choice: Mutex::default(), is_doubted: Arc::default(), id: OnceLock::new() })
    }

    /// The connections to the host in use.
    ///
    /// # Errors
    /// Says what is wrong with each host.
    pub(super) async fn pool(&self) -> Result<AnyPool, String> {
        let asked_us = clock::now_us();
        let mut choice = self.choice.lock().await;
        let Choice { chosen, failed } = &mut *choice;
        let present = chosen.as_ref().map(|chosen| chosen.host);
        if let Some(chosen) = chosen
            && !(self.are_several() && self.is_doubted.load(Ordering::Acquire))
        {
            return Ok(chosen.pool.clone());
        }
        // Whoever waited for a choice that failed does not begin another one: all of them would, one after the other.
        if let Some((_, problem)) = failed.as_ref().filter(|(at_us, _)| *at_us > asked_us) {
            return Err(problem.clone());
        }
        let host = match self.choose(present).await {
            Ok(host) => host,
            Err(problem) => {
                *failed = Some((clock::now_us(), problem.clone()));
                return Err(problem);
            }
        };
        if let Some(chosen) = chosen.as_ref().filter(|chosen| chosen.host == host && chosen.is_new()) {
            self.is_doubted.store(false, Ordering::Release);
            return Ok(chosen.pool.clone());
        }
        let (name, options) = &self.hosts[host];
        let pool = if self.are_several() {
            tracing::info!("directory: the database is at {name}");
            self.pool_options().connect_lazy_with(options.clone())
        } else {
            self.pool_options().connect_with(options.clone()).await.map_err(|e| e.to_string())?
        };
        // Connections of the pool before are closed when those who still use them are done.
        *chosen = Some(Chosen { host, pool: pool.clone(), since_us: clock::now_us() });
        self.is_doubted.store(false, Ordering::Release);
        Ok(pool)
    }

    /// From now on a host must have the directory of this id.
    pub(super) fn hold_to(&self, id: &str) {
        self.id.get_or_init(|| id.to_owned());
    }

    /// Has the next call choose again, if an error may mean that the host in use is gone or takes no writes any more.
    pub(super) fn note(&self, error: &sqlx::Error) {
        if is_of_the_host(error) {
            self.is_doubted.store(true, Ordering::Release);
        }
    }

    /// Closes the connections.
    pub(super) async fn close(&self) {
        if let Some(chosen) = &self.choice.lock().await.chosen {
            chosen.pool.close().await;
        }
    }

    const fn are_several(&self) -> bool {
        self.hosts.len() > 1
    }

    /// The host in use if it takes writes, or else the first that does. All are asked at once, and nobody waits for a
    /// host that would not be chosen.
    async fn choose(&self, present: Option<usize>) -> Result<usize, String> {
        if !self.are_several() {
            return Ok(0);
        }
        let id = self.id.get().map(String::as_str);
        let others = (0..self.hosts.len()).filter(|host| Some(*host) != present);
        let ask = |host: usize| async move {
            let (name, options) = &self.hosts[host];
            let answer = check(self.dialect, options, id).await;
            answer.map(|()| host).map_err(|problem| format!("{name}: {problem}"))
        };
        let mut answers = stream::iter(present.into_iter().chain(others)).map(ask).buffered(self.hosts.len());
        let mut problems = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(host) => return Ok(host),
                Err(problem) => problems.push(problem),
            }
        }
        Err(problems.join("; "))
    }

    fn pool_options(&self) -> AnyPoolOptions {
        let (dialect, are_several) = (self.dialect, self.are_several());
        let (before, after) = (Arc::clone(&self.is_doubted), Arc::clone(&self.is_doubted));
        AnyPoolOptions::new()
            .max_connections(if dialect == Dialect::Sqlite { SQLITE_CONNECTIONS_MAX } else { CONNECTIONS_MAX })
            .acquire_timeout(if are_several { ACQUIRE_TIMEOUT_OF_SEVERAL } else { ACQUIRE_TIMEOUT })
            .test_before_acquire(false)
            .before_acquire(move |connection, about| {
                let is_doubted = Arc::clone(&before);
                Box::pin(async move {
                    if about.idle_for < TRUSTED_FOR {
                        return Ok(true);
                    }
                    if !are_several {
                        return connection.ping().await.map(|()| true);
                    }
                    let takes_writes = takes_writes(dialect, connection).await.unwrap_or(false);
                    is_doubted.fetch_or(!takes_writes, Ordering::AcqRel);
                    Ok(takes_writes)
                })
            })
            .after_connect(move |connection, _| {
                let is_doubted = Arc::clone(&after);
                Box::pin(async move {
                    for statement in dialect.on_connect() {
                        connection.execute(*statement).await?;
                    }
                    if are_several && !takes_writes(dialect, connection).await? {
                        is_doubted.store(true, Ordering::Release);
                        return Err(sqlx::Error::Io(std::io::Error::other("the server takes no writes")));
                    }
                    Ok(())
                })
            })
    }
}

impl Chosen {
    fn is_new(&self) -> bool {
        clock::now_us() - self.since_us < POOL_AGE_MIN.as_micros() as u64
    }
}

/// Connects to a host, and asks whether it takes writes, and which directory it has.
async fn check(dialect: Dialect, options: &AnyConnectOptions, id: Option<&str>) -> Result<(), String> {
    let ask = async {
        let mut connection = options.connect().await?;
        let takes_writes = takes_writes(dialect, &mut connection).await?;
        let found: Option<String> = match id {
            Some(_) => sqlx::query_scalar("SELECT id FROM directory_identity").fetch_optional(&mut connection).await?,
            None => None,
        };
        connection.close().await?;
        Ok::<_, sqlx::Error>((takes_writes, found))
    };
    match tokio::time::timeout(CHECK_TIMEOUT, ask).await {
        Ok(Ok((false, _))) => Err("it takes no writes".to_owned()),
        Ok(Ok((true, found))) if found.as_deref() == id => Ok(()),
        Ok(Ok((true, found))) => {
            Err(format!("it has directory {}, not {}", found.unwrap_or_default(), id.unwrap_or_default()))
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

async fn takes_writes(dialect: Dialect, connection: &mut AnyConnection) -> sqlx::Result<bool> {
    let is_read_only: String = sqlx::query_scalar(dialect.read_only_query()).fetch_one(connection).await?;
    Ok(is_read_only == "off")
}

/// Whether an error may mean that the server is gone, ends, or takes no writes any more.
fn is_of_the_host(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(refusal) => {
            // Connection exception, operator intervention, read-only transaction: MySQL has a number for the last one.
            let code = refusal.code().unwrap_or_default();
            let number = refusal.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number);
            code.starts_with("08")
                || code.starts_with("57P")
                || code == "25006"
                || number.is_some_and(|number| MYSQL_READ_ONLY.contains(&number))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::super::dialect::Dialect;
    use super::{Hosts, POOL_AGE_MIN, is_of_the_host};
    use crate::backends::Engine;
    use crate::backends::contract::{Deployment, Place, engine_address};
    use crate::backends::directory::contract::directory_contract;
    use crate::backends::directory::{Directory, SqlDirectory};
    use crate::protocol::UserId;
    use crate::runtime::{Tasks, clock};

    /// A port that nobody listens on.
    const DEAD: &str = "127.0.0.1:1";

    /// Settings of a session of PostgreSQL: no writes, another database.
    const READ_ONLY: &[u8] = b"options\0-c default_transaction_read_only=on\0";
    const ELSEWHERE: &[u8] = b"database\0postgres\0";

    /// A way to a database server, which can be closed, and which can add settings to sessions of PostgreSQL.
    struct Way {
        address: SocketAddr,
        settings: Arc<Mutex<&'static [u8]>>,
        tasks: Tasks,
    }

    impl Way {
        async fn to(server: &str) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let address = listener.local_addr().expect("bound");
            let (settings, tasks) = (Arc::<Mutex<&[u8]>>::default(), Tasks::new());
            let way = Self { address, settings: Arc::clone(&settings), tasks: tasks.clone() };
            let server = server.to_owned();
            tasks.clone().spawn_until_stopped("test.way", async move {
                while let Ok((client, _)) = listener.accept().await {
                    let (server, settings) = (server.clone(), *settings.lock().expect("no panic while held"));
                    tasks.spawn_until_stopped("test.connection", async move {
                        let _ = pass(client, &server, settings).await;
                    });
                }
            });
            way
        }

        fn set(&self, settings: &'static [u8]) {
            *self.settings.lock().expect("no panic while held") = settings;
        }

        async fn close(&self) {
            self.tasks.stop();
            self.tasks.join(Duration::from_secs(5)).await;
        }
    }

    /// Passes bytes on; `settings` are added to the first message of PostgreSQL's protocol.
    async fn pass(mut client: TcpStream, server: &str, settings: &[u8]) -> std::io::Result<()> {
        let mut server = TcpStream::connect(server).await?;
        if !settings.is_empty() {
            let length = client.read_u32().await? as usize;
            let mut start = vec![0; length - 4];
            client.read_exact(&mut start).await?;
            assert!(start.starts_with(&[0, 3, 0, 0]) && start.pop() == Some(0), "no start of a session: {start:?}");
            start.extend(settings);
            start.push(0);
            server.write_u32(start.len() as u32 + 4).await?;
            server.write_all(&start).await?;
        }
        tokio::io::copy_bidirectional(&mut client, &mut server).await.map(|_| ())
    }

    /// The address of a real database with other hosts, and its own host.
    fn with_hosts(variable: &str, hosts: impl FnOnce(&str) -> String) -> String {
        let engine: Engine = engine_address(variable).parse().expect("an address");
        engine.with_host(&hosts(&engine.hosts()[0])).address().expect("not embedded").to_owned()
    }

    fn own_host(variable: &str) -> String {
        engine_address(variable).parse::<Engine>().expect("an address").hosts().remove(0)
    }

    fn behind_a_dead_host(variable: &str) -> impl Place<dyn Directory> + use<> {
        let url = with_hosts(variable, |own| format!("{DEAD},{own}"));
        Deployment(move || {
            let url = url.clone();
            async move { Arc::new(SqlDirectory::open(&url).await.expect("opens")) as Arc<dyn Directory> }
        })
    }

    mod postgres {
        use super::*;
        directory_contract!(behind_a_dead_host("CHATCTL_TEST_POSTGRES"), ignore = "needs CHATCTL_TEST_POSTGRES");
    }

    mod mysql {
        use super::*;
        directory_contract!(behind_a_dead_host("CHATCTL_TEST_MYSQL"), ignore = "needs CHATCTL_TEST_MYSQL");
    }

    /// Calls until one works: the first ones after a loss may fail.
    async fn works_again(directory: &SqlDirectory) {
        let mut result = Ok(());
        for _ in 0..10 {
            result = directory.probe().await;
            if result.is_ok() {
                break;
            }
        }
        result.expect("works again");
        directory.friends(UserId(1)).await.expect("reads");
    }

    async fn the_next_host_is_used_when_one_is_lost(variable: &str) {
        let own = own_host(variable);
        let (first, second) = (Way::to(&own).await, Way::to(&own).await);
        let url = with_hosts(variable, |_| format!("{},{}", first.address, second.address));
        let directory = SqlDirectory::open(&url).await.expect("opens");
        directory.probe().await.expect("works");
        first.close().await;
        works_again(&directory).await;
        second.close().await;
        let error = directory.probe().await.expect_err("both are gone");
        let mut errors = vec![error.to_string()];
        errors.push(directory.probe().await.expect_err("both are gone").to_string());
        let is_named = |host: &Way| errors[1].matches(&host.address.to_string()).count() >= 2;
        assert!(is_named(&first) && is_named(&second), "{errors:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs CHATCTL_TEST_POSTGRES"]
    async fn a_postgres_that_is_lost_is_replaced() {
        the_next_host_is_used_when_one_is_lost("CHATCTL_TEST_POSTGRES").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs CHATCTL_TEST_MYSQL"]
    async fn a_mysql_that_is_lost_is_replaced() {
        the_next_host_is_used_when_one_is_lost("CHATCTL_TEST_MYSQL").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs CHATCTL_TEST_POSTGRES"]
    async fn a_postgres_that_takes_no_writes_is_passed_over() {
        let own = own_host("CHATCTL_TEST_POSTGRES");
        let (replica, primary) = (Way::to(&own).await, Way::to(&own).await);
        replica.set(READ_ONLY);
        let url = with_hosts("CHATCTL_TEST_POSTGRES", |_| format!("{DEAD},{},{}", replica.address, primary.address));
        let directory = SqlDirectory::open(&url).await.expect("opens");
        directory.probe().await.expect("it is the one that takes writes");
        // The primary is lost, and the replica is promoted after a while.
        primary.close().await;
        let mut errors = Vec::new();
        for _ in 0..2 {
            errors.push(directory.probe().await.expect_err("nothing takes writes").to_string());
        }
        assert!(errors[1].contains(&format!("{}: it takes no writes", replica.address)), "{errors:?}");
        replica.set(b"");
        works_again(&directory).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs CHATCTL_TEST_POSTGRES"]
    async fn a_host_without_the_directory_is_no_copy_of_it() {
        let own = own_host("CHATCTL_TEST_POSTGRES");
        let (first, second) = (Way::to(&own).await, Way::to(&own).await);
        let url = with_hosts("CHATCTL_TEST_POSTGRES", |_| format!("{},{}", first.address, second.address));
        let directory = SqlDirectory::open(&url).await.expect("opens");
        second.set(ELSEWHERE);
        first.close().await;
        let mut errors = Vec::new();
        for _ in 0..2 {
            errors.push(directory.probe().await.expect_err("there is no copy").to_string());
        }
        assert!(errors[1].contains("directory_identity"), "{errors:?}");
        second.set(b"");
        works_again(&directory).await;
    }

    /// Takes connections and never answers.
    async fn silent() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        (listener, address)
    }

    #[tokio::test]
    async fn those_who_ask_together_while_no_host_answers_share_one_choice() {
        sqlx::any::install_default_drivers();
        let ((first, at), (_second, behind)) = (silent().await, silent().await);
        let hosts = Hosts::parse(&format!("postgres://u@{at},{behind}/db"), Dialect::Postgres).expect("an address");
        let asked = futures_util::future::join_all((0..20).map(|_| hosts.pool())).await;
        assert!(asked.iter().all(Result::is_err));
        let mut connections = 0;
        while tokio::time::timeout(Duration::from_millis(100), first.accept()).await.is_ok() {
            connections += 1;
        }
        assert_eq!(connections, 1);
    }

    /// A doubt of the host in use while the other one swallows what it gets: nobody waits for that one, and the
    /// connections are new ones, since the old ones may hang.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs CHATCTL_TEST_POSTGRES"]
    async fn a_doubt_costs_no_wait_for_the_other_hosts_and_makes_new_connections() {
        sqlx::any::install_default_drivers();
        let (_standby, behind) = silent().await;
        let url = with_hosts("CHATCTL_TEST_POSTGRES", |own| format!("{own},{behind}"));
        let hosts = Hosts::parse(&url, Dialect::Postgres).expect("an address");
        let (before, mut hanging) = (hosts.pool().await.expect("chooses"), Vec::new());
        for _ in 0..super::CONNECTIONS_MAX {
            hanging.push(before.acquire().await.expect("connects"));
        }
        tokio::time::sleep(POOL_AGE_MIN).await;
        hosts.note(&sqlx::Error::PoolTimedOut);
        let asked_us = clock::now_us();
        let pool = hosts.pool().await.expect("chooses");
        let took = Duration::from_micros(clock::now_us() - asked_us);
        assert!(took < super::CHECK_TIMEOUT / 2, "{took:?}");
        pool.acquire().await.expect("connects");
        // A server that is only slow gets no further ones.
        hosts.note(&sqlx::Error::PoolTimedOut);
        assert_eq!(hosts.pool().await.expect("chooses").size(), 1, "it is the pool of before");
    }

    /// Refusals of MySQL: of a value that is taken and called `read-only`, and of writes.
    #[tokio::test]
    #[ignore = "needs CHATCTL_TEST_MYSQL"]
    async fn a_name_that_is_taken_raises_no_doubt_and_a_read_only_mysql_does() {
        sqlx::any::install_default_drivers();
        let url = engine_address("CHATCTL_TEST_MYSQL");
        let mut connection = <sqlx::AnyConnection as sqlx::Connection>::connect(&url).await.expect("connects");
        let mut refusal =
            async |statement: &'static str| sqlx::Executor::execute(&mut connection, statement).await.map(|_| ()).err();
        assert!(refusal("CREATE TEMPORARY TABLE names (name VARCHAR(20) PRIMARY KEY)").await.is_none());
        assert!(refusal("INSERT INTO names VALUES ('read-only')").await.is_none());
        let taken = refusal("INSERT INTO names VALUES ('read-only')").await.expect("it is taken");
        assert!(taken.to_string().contains("read-only") && !is_of_the_host(&taken), "{taken}");
        for statement in [
            "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1290, MESSAGE_TEXT = 'an option'",
            "SIGNAL SQLSTATE '25006' SET MYSQL_ERRNO = 1792, MESSAGE_TEXT = 'a transaction'",
            "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1836, MESSAGE_TEXT = 'a mode'",
        ] {
            let refused = refusal(statement).await.expect("refused");
            assert!(is_of_the_host(&refused), "{refused}");
        }
    }

    #[tokio::test]
    async fn a_host_without_a_name_is_refused_without_the_password() {
        let error = SqlDirectory::open("postgres://u:secret@a:1,/db").await.err().expect("refused").to_string();
        assert!(error.contains("has no name") && !error.contains("secret"), "{error}");
    }
}
