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
mod tests;
