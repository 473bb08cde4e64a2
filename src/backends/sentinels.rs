//! Redis behind sentinels: which server is the master is asked anew for each connection.
//!
//! The steps are those that Redis describes for clients of Sentinel: ask a sentinel for the master's address, connect, have the
//! server itself say that it is a master; where one of them fails, go on with the next sentinel.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};
use redis::{RedisError, RedisResult};

/// Longest that one sentinel may take to say where the master is. Two silent ones leave time for the third and the master within
/// the deadline that every call to a port has.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(400);

/// What a valid address looks like.
const VALID: &str = "valid is redis+sentinel://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…]/MASTER-NAME[/DATABASE]";

/// The sentinels of one master.
pub(super) struct Sentinels {
    /// Host and port of each.
    hosts: Vec<(String, u16)>,
    /// What the master is called there.
    master: String,
    /// Account and database, for whichever server is the master.
    account: RedisConnectionInfo,
    /// Which one is asked first: the last that named a master that was one, or the one behind those that failed.
    first: AtomicUsize,
}

impl Sentinels {
    /// Reads an address; `None` where it is that of a single server.
    pub(super) fn parse(url: &str) -> Option<Result<Self, String>> {
        let rest = url.strip_prefix("redis+sentinel://")?;
        Some(Self::parse_rest(rest).map_err(|problem| format!("{problem}; {VALID}")))
    }

    fn parse_rest(rest: &str) -> Result<Self, String> {
        let (account, rest) = rest.rsplit_once('@').map_or((None, rest), |(account, rest)| (Some(account), rest));
        if rest.contains(['?', '#']) {
            return Err("it takes no options".to_owned());
        }
        let mut parts = rest.trim_end_matches('/').split('/');
        let hosts = parts.next().unwrap_or_default().split(',').map(host_and_port).collect::<Option<Vec<_>>>();
        let hosts = hosts.ok_or("each sentinel needs a host and a port")?;
        let master = parts.next().filter(|name| !name.is_empty()).ok_or("the master's name is missing")?;
        let database = parts.next().unwrap_or("0");
        if parts.next().is_some() || database.parse::<u32>().is_err() {
            return Err("the database is no number".to_owned());
        }
        // The account is written as in an address of a single server, so let the same code read it.
        let account = account.map_or_else(String::new, |account| format!("{account}@"));
        let single = format!("redis://{account}single/{database}").into_connection_info();
        let account = single.map_err(|e| e.to_string())?.redis_settings().clone();
        Ok(Self { hosts, master: master.to_owned(), account, first: AtomicUsize::new(0) })
    }

    /// Each sentinel once, beginning with the one that is asked first.
    pub(super) fn order(&self) -> impl Iterator<Item = usize> + use<> {
        let (first, count) = (self.first.load(Ordering::Relaxed), self.hosts.len());
        (0..count).map(move |n| (first + n) % count)
    }

    /// Where a sentinel says that the master is.
    ///
    /// # Errors
    /// Names the sentinel. The next call begins with the one behind it, even if this one is given up halfway.
    pub(super) async fn ask(&self, sentinel: usize) -> Result<ConnectionAddr, String> {
        let (host, port) = &self.hosts[sentinel];
        self.first.store((sentinel + 1) % self.hosts.len(), Ordering::Relaxed);
        let problem = match tokio::time::timeout(ANSWER_TIMEOUT, self.master_by(host, *port)).await {
            Ok(Ok(Some((host, port)))) => return Ok(ConnectionAddr::Tcp(host, port)),
            Ok(Ok(None)) => format!("it knows no master {:?}", self.master),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        Err(format!("sentinel {host}:{port}: {problem}"))
    }

    /// The sentinel named a server that is the master: the next connection begins with it.
    pub(super) fn keep(&self, sentinel: usize) {
        self.first.store(sentinel, Ordering::Relaxed);
    }

    /// A client of the server at an address, with the account and the database.
    ///
    /// # Errors
    /// Those of the driver.
    pub(super) fn client(&self, server: &ConnectionAddr) -> RedisResult<Client> {
        let info = server.clone().into_connection_info()?;
        Client::open(info.set_redis_settings(self.account.clone()))
    }

    /// Asks a sentinel; with the account where it takes nobody without one.
    async fn master_by(&self, host: &str, port: u16) -> RedisResult<Option<(String, u16)>> {
        let sentinel = (host, port).into_connection_info()?;
        match self.question(sentinel.clone()).await {
            Err(error) if is_locked(&error) => {
                // A sentinel has no databases to choose from.
                self.question(sentinel.set_redis_settings(self.account.clone().set_db(0))).await
            }
            answer => answer,
        }
    }

    async fn question(&self, sentinel: ConnectionInfo) -> RedisResult<Option<(String, u16)>> {
        // The question as a whole has a time limit.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let mut connection = Client::open(sentinel)?.get_multiplexed_async_connection_with_config(&config).await?;
        let mut ask = redis::cmd("SENTINEL");
        ask.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.master);
        ask.query_async(&mut connection).await
    }
}

/// Whether a sentinel refused a question that came without an account.
fn is_locked(error: &RedisError) -> bool {
    matches!(error.code(), Some("NOAUTH" | "NOPERM"))
}

/// Takes `host:port` apart; an IPv6 address stands in brackets.
fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some((host.to_owned(), port.parse().ok()?)).filter(|(host, _)| !host.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Sentinels, String> {
        Sentinels::parse(url).expect("an address of sentinels")
    }

    #[test]
    fn an_address_has_sentinels_a_master_an_account_and_a_database() {
        let all = parse("redis+sentinel://me:p%40s@s@a:26379,[::1]:2/chat/3").expect("valid");
        assert_eq!(all.hosts, [("a".to_owned(), 26379), ("::1".to_owned(), 2)]);
        assert_eq!((all.master.as_str(), all.account.db()), ("chat", 3));
        assert_eq!((all.account.username(), all.account.password()), (Some("me"), Some("p@s@s")));
        let least = parse("redis+sentinel://a:1/chat/").expect("valid");
        assert_eq!((least.account.username(), least.account.db()), (None, 0));
        assert!(Sentinels::parse("redis://a:1/").is_none());
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_valid_form_and_without_the_password() {
        for (url, problem) in [
            ("redis+sentinel://u:secret@a:1", "the master's name"),
            ("redis+sentinel://u:secret@a:1//0", "the master's name"),
            ("redis+sentinel://u:secret@a,b:2/chat", "a host and a port"),
            ("redis+sentinel://u:secret@/chat", "a host and a port"),
            ("redis+sentinel://u:secret@a:1/chat/first", "no number"),
            ("redis+sentinel://u:secret@a:1/chat/0/1", "no number"),
            ("redis+sentinel://u:secret@a:1/chat?sentinels=2", "no options"),
        ] {
            let error = parse(url).err().unwrap_or_else(|| panic!("{url} is taken"));
            assert!(error.contains(problem) && error.contains(VALID) && !error.contains("secret"), "{url}: {error}");
        }
    }

    #[test]
    fn the_one_behind_a_sentinel_that_failed_is_asked_first() {
        let sentinels = parse("redis+sentinel://a:1,b:2,c:3/chat").expect("valid");
        let order = || sentinels.order().collect::<Vec<_>>();
        assert_eq!(order(), [0, 1, 2]);
        sentinels.keep(2);
        assert_eq!(order(), [2, 0, 1]);
    }
}
