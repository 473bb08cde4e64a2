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
