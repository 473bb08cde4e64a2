//! The whole stack on real engines: the same ledger, and a Redis that forgets everything in the middle.

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

/// Real engines for each port, with names of this test's own where an engine keeps data between tests.
fn engines(directory: String, registry: String, redis: &str) -> Engines {
    let own = uuid::Uuid::new_v4().simple().to_string();
    Engines {
        log: at(format!("kafka://{}/stack-{own}-", address("CHATCTL_TEST_KAFKA"))),
        messages: at(format!("cassandra://{}/stack_{own}", address("CHATCTL_TEST_CASSANDRA"))),
        sequence: at(redis.to_owned()),
        sessions: at(redis.to_owned()),
        presence: at(redis.to_owned()),
        registry: at(format!("{registry}/stack-{own}")),
        directory: at(directory),
    }
}

/// A Redis of the test's own with stock settings, so that it can be killed.
struct Redis {
    folder: tempfile::TempDir,
    port: u16,
    server: Child,
}

impl Redis {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let server = Self::launch(folder.path(), port);
        Self { folder, port, server }
    }

    fn launch(folder: &Path, port: u16) -> Child {
        let server = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--dir"])
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

    /// Ends the server as a crash would, and starts it again. What was not on its disk is forgotten: everything.
    fn crash(&mut self) {
        self.end();
        self.server = Self::launch(self.folder.path(), self.port);
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
"
    )
}

fn assert_clean(result: &RunResult) {
    assert_eq!(result.verdict, Verdict::Pass, "{:?} {:?}", result.reasons, result.violations);
    assert!(result.counts.acked > 100, "{:?}", result.counts);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs CHATCTL_TEST_KAFKA, _CASSANDRA, _ZOOKEEPER, _POSTGRES and redis-server"]
async fn the_ledger_is_clean_on_kafka_cassandra_redis_zookeeper_and_postgres() {
    let redis = Redis::start();
    let registry = format!("zookeeper://{}", address("CHATCTL_TEST_ZOOKEEPER"));
    let engines = engines(address("CHATCTL_TEST_POSTGRES"), registry, &redis.url());
    let config = Config { chat_servers: 2, partitions: 4, engines, ..config() };
    assert_clean(&run_on(config, &scenario(1)).await);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs CHATCTL_TEST_KAFKA, _CASSANDRA, _ETCD, _MYSQL and redis-server"]
async fn the_ledger_is_clean_when_redis_forgets_everything_seeds_1_to_3() {
    for seed in 1..=3 {
        let mut redis = Redis::start();
        let registry = format!("etcd://{}", address("CHATCTL_TEST_ETCD"));
        let engines = engines(address("CHATCTL_TEST_MYSQL"), registry, &redis.url());
        let config = Config { chat_servers: 2, partitions: 4, engines, ..config() };
        let scenario = scenario(seed);
        let crashes = async {
            for _ in 0..2 {
                tokio::time::sleep(Duration::from_secs(4)).await;
                tokio::task::block_in_place(|| redis.crash());
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            result = run_on(config, &scenario) => assert_clean(&result),
            () = crashes => unreachable!("it never ends"),
        }
    }
}
