//! The whole stack on real engines: the same ledger, and a Redis that forgets everything in the middle.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use chatctl::backends::{Engine, Engines};
use chatctl::loadgen::result::{RunResult, Verdict};
use chatctl::stack::Config;

use crate::client::config;
use crate::proofs::run_on;

fn address(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: run the tests with scripts/test"))
}

fn at(address: String) -> Engine {
    address.parse().expect("an address")
}

/// Where messages are.
#[derive(Debug, Clone, Copy)]
enum Store {
    Cassandra,
    HBase,
}

/// Real engines for each port, with names of this test's own where an engine keeps data between tests.
fn engines(store: Store, directory: String, registry: String, redis: &str) -> Engines {
    let own = uuid::Uuid::new_v4().simple().to_string();
    let messages = match store {
        Store::Cassandra => format!("cassandra://{}/stack_{own}", address("CHATCTL_TEST_CASSANDRA")),
        Store::HBase => format!("hbase://{}/stack_{own}", address("CHATCTL_TEST_HBASE")),
    };
    Engines {
        log: at(format!("kafka://{}/stack-{own}-", address("CHATCTL_TEST_KAFKA"))),
        messages: at(messages),
        sequence: at(redis.to_owned()),
        sessions: at(redis.to_owned()),
        presence: at(redis.to_owned()),
        registry: at(format!("{registry}/stack-{own}")),
        directory: at(directory),
        media: at(format!("{}/stack-{own}", address("CHATCTL_TEST_S3"))),
    }
}

/// What Redis forgets, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// Killed with stock settings: comes back with nothing.
    Everything,
    /// Killed: comes back with what it knew some time ago.
    OldSnapshot,
    /// `FLUSHALL`: the same server, without any key.
    Flushed,
    /// The same server, without its counters.
    Evicted,
    /// The same process and connections, with what a copy knew some time ago: a fail-over to a copy that was behind, and a
    /// fail-back in good order.
    FailedBack,
}

/// A Redis of the test's own with stock settings, so that it can be killed.
struct Redis {
    folder: tempfile::TempDir,
    port: u16,
    server: Child,
    /// Another server, that was a copy of this one at some time.
    copy: Option<Box<Self>>,
}

impl Redis {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let server = Self::launch(folder.path(), port);
        Self { folder, port, server, copy: None }
    }

    fn launch(folder: &Path, port: u16) -> Child {
        let server = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--repl-diskless-sync-delay", "0", "--dir"])
            .arg(folder)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is on the PATH: `scripts/engines install redis`");
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Gives a command, in the form for people; the first line of the answer.
    fn say(&self, command: &str) -> String {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.write_all(format!("{command}\r\n").as_bytes()).expect("sent");
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).expect("an answer");
        answer
    }

    /// Takes over the data of another server, and then goes on with them by itself.
    fn copy_from(&self, other: &Self) {
        assert_eq!(self.say(&format!("REPLICAOF 127.0.0.1 {}", other.port)), "+OK\r\n");
        let is_up = r#"EVAL "return string.match(redis.call('INFO', 'replication'), 'master_link_status:(%a+)') == 'up' and 1 or 0" 0"#;
        while self.say(is_up) != ":1\r\n" {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.say("REPLICAOF NO ONE"), "+OK\r\n");
    }

    /// The first half of a loss: what has to happen some time before it.
    fn prepare(&mut self, loss: Loss) {
        match loss {
            Loss::OldSnapshot => assert_eq!(self.say("SAVE"), "+OK\r\n"),
            Loss::FailedBack => {
                let copy = Self::start();
                copy.copy_from(self);
                self.copy = Some(Box::new(copy));
            }
            Loss::Everything | Loss::Flushed | Loss::Evicted => {}
        }
    }

    fn lose(&mut self, loss: Loss) {
        const EVICT: &str = r#"EVAL "local n = 0 for _, key in ipairs(redis.call('KEYS', 'chatctl:*:ids:*')) do n = n + redis.call('DEL', key) end return n" 0"#;
        match loss {
            Loss::Everything | Loss::OldSnapshot => {
                self.end();
                self.server = Self::launch(self.folder.path(), self.port);
            }
            Loss::Flushed => assert_eq!(self.say("FLUSHALL"), "+OK\r\n"),
            Loss::Evicted => assert_ne!(self.say(EVICT), ":0\r\n", "there were counters"),
            Loss::FailedBack => {
                let copy = self.copy.take().expect("it was prepared");
                self.copy_from(&copy);
            }
        }
    }

    fn end(&mut self) {
        self.server.kill().expect("it is ours");
        self.server.wait().expect("it ended");
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.end();
    }
}

fn scenario(seed: u64) -> String {
    format!(
        "
name: engines
seed: {seed}
population:
  users: 16
  direct_per_user: 4
  groups: [{{count: 3, members: {{min: 4, max: 10}}}}]
behaviors: {{one-to-one: 2, group-talker: 2, flapper: 1}}
flapper: {{online: 2s, away: 1s}}
connect_over: 200ms
heartbeat: 1s
phases: [{{phase: steady, duration: 6s, rate: 40}}]
generator_lag_max: 30s
# Engines that are killed make errors, and hold up pushes; what must hold is the ledger.
thresholds: ['pushed_percent >= 10', 'http_errors >= 0', 'connects_failed >= 0', 'disconnects >= 0', 'refused >= 0', 'unresolved >= 0']
"
    )
}

fn assert_clean(result: &RunResult) {
    assert_eq!(result.verdict, Verdict::Pass, "{:?} {:?}", result.reasons, result.violations);
    assert!(result.counts.acked > 100, "{:?}", result.counts);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs CHATCTL_TEST_KAFKA, _CASSANDRA, _ZOOKEEPER, _POSTGRES, _S3 and redis-server"]
async fn the_ledger_is_clean_on_kafka_cassandra_redis_zookeeper_and_postgres() {
    let redis = Redis::start();
    let registry = format!("zookeeper://{}", address("CHATCTL_TEST_ZOOKEEPER"));
    let engines = engines(Store::Cassandra, address("CHATCTL_TEST_POSTGRES"), registry, &redis.url());
    let config = Config { chat_servers: 2, partitions: 4, engines, ..config() };
    assert_clean(&run_on(config, &scenario(1)).await);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs CHATCTL_TEST_KAFKA, _CASSANDRA, _ETCD, _MYSQL, _S3 and redis-server"]
async fn the_ledger_is_clean_on_cassandra_whatever_redis_forgets() {
    let losses =
        [Loss::Everything, Loss::OldSnapshot, Loss::Flushed, Loss::Evicted, Loss::FailedBack, Loss::FailedBack];
    for (seed, loss) in (1..).zip(losses) {
        clean_in_spite_of(loss, Store::Cassandra, seed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs CHATCTL_TEST_KAFKA, _HBASE, _ETCD, _MYSQL, _S3 and redis-server"]
async fn the_ledger_is_clean_on_hbase_whatever_redis_forgets() {
    for (seed, loss) in [(11, Loss::Everything), (12, Loss::Flushed), (13, Loss::FailedBack)] {
        clean_in_spite_of(loss, Store::HBase, seed).await;
    }
}

async fn clean_in_spite_of(loss: Loss, store: Store, seed: u64) {
    let mut redis = Redis::start();
    let registry = format!("etcd://{}", address("CHATCTL_TEST_ETCD"));
    let engines = engines(store, address("CHATCTL_TEST_MYSQL"), registry, &redis.url());
    let config = Config { chat_servers: 2, partitions: 4, engines, ..config() };
    let scenario = scenario(seed);
    let losses = async {
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            tokio::task::block_in_place(|| redis.prepare(loss));
            tokio::time::sleep(Duration::from_secs(2)).await;
            tokio::task::block_in_place(|| redis.lose(loss));
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = run_on(config, &scenario) => assert_clean(&result),
        () = losses => unreachable!("it never ends"),
    }
}
