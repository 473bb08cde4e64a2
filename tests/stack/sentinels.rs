//! A stack whose Redis is behind sentinels, and loses its master in the middle of a run.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use chatctl::backends::{Engine, Engines};
use chatctl::loadgen::result::Verdict;
use chatctl::stack::Config;

use crate::client::config;
use crate::proofs::run_on;

const SCENARIO: &str = "
name: failover
seed: 21
population:
  users: 16
  direct_per_user: 4
  groups: [{count: 3, members: {min: 4, max: 10}}]
behaviors: {one-to-one: 2, group-talker: 2, flapper: 1}
flapper: {online: 2s, away: 1s}
connect_over: 200ms
heartbeat: 1s
phases: [{phase: steady, duration: 16s, rate: 40}]
generator_lag_max: 30s
# Until the replica is promoted there are errors, and pushes wait; what must hold is the ledger.
thresholds: ['pushed_percent >= 10', 'http_errors >= 0', 'connects_failed >= 0', 'disconnects >= 0', 'refused >= 0', 'unresolved >= 0']
";

/// A master, two replicas and three sentinels of the test's own.
struct Redis {
    /// Port and process; the first is the master that the stack begins with.
    processes: Vec<(u16, Child)>,
    folder: tempfile::TempDir,
}

impl Redis {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let free = [(); 6].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
        let ports = free.map(|listener| listener.local_addr().expect("bound").port());
        let mut redis = Self { processes: Vec::new(), folder };
        let path = redis.folder.path().to_owned();
        for port in &ports[..3] {
            redis.processes.push((*port, server(&path, *port, ports[0])));
            wait_for("PING", *port, |answer| answer.contains("PONG"));
        }
        wait_for("INFO replication", ports[0], |answer| answer.matches("state=online").count() == 2);
        for port in &ports[3..] {
            redis.processes.push((*port, sentinel(&path, *port, ports[0])));
        }
        for port in &ports[3..] {
            let knows = |answer: &str| answer.contains("slaves=2,sentinels=3");
            wait_for("INFO sentinel", *port, knows);
        }
        redis
    }

    fn address(&self) -> Engine {
        let hosts: Vec<String> = self.processes[3..].iter().map(|(port, _)| format!("127.0.0.1:{port}")).collect();
        format!("redis+sentinel://{}/chat", hosts.join(",")).parse().expect("an address")
    }

    /// Kills the master; the sentinels promote a replica within some seconds.
    fn kill_the_master(&mut self) {
        end(&mut self.processes[0].1);
    }

    /// Whether a replica is in the master's place.
    fn is_failed_over(&self) -> bool {
        let answer = ask("SENTINEL GET-MASTER-ADDR-BY-NAME chat", self.processes[5].0);
        !answer.contains(&self.processes[0].0.to_string())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.processes.iter_mut().rev().for_each(|(_, process)| end(process));
    }
}

fn end(process: &mut Child) {
    // The master may have been ended before.
    let _ = process.kill();
    process.wait().expect("it ended");
}

fn launch(command: &mut Command) -> Child {
    command.stdout(Stdio::null()).spawn().expect("redis-server is on the PATH: `scripts/engines install redis`")
}

fn server(folder: &Path, port: u16, master: u16) -> Child {
    let folder = folder.join(port.to_string());
    std::fs::create_dir(&folder).expect("a folder");
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--repl-diskless-sync-delay", "0", "--dir"]);
    command.arg(folder);
    if port != master {
        command.args(["--replicaof", &format!("127.0.0.1 {master}")]);
    }
    launch(&mut command)
}

fn sentinel(folder: &Path, port: u16, master: u16) -> Child {
    let file = folder.join(format!("sentinel-{port}.conf"));
    let text = format!(
        "bind 127.0.0.1\nport {port}\ndir {}\nsentinel monitor chat 127.0.0.1 {master} 2\n\
         sentinel down-after-milliseconds chat 1000\nsentinel failover-timeout chat 5000\n",
        folder.display()
    );
    std::fs::write(&file, text).expect("written");
    launch(Command::new("redis-server").arg(file).arg("--sentinel"))
}

/// The whole answer to a command in the form for people; empty where nobody listens.
fn ask(command: &str, port: u16) -> String {
    use std::io::{Read, Write};
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return String::new() };
    let mut answer = String::new();
    // The server answers what it has read before it sees the end.
    let sent = stream.write_all(format!("{command}\r\n").as_bytes()).and_then(|()| stream.shutdown(Shutdown::Write));
    let _ = sent.and_then(|()| stream.read_to_string(&mut answer));
    answer
}

fn wait_for(command: &str, port: u16, is_so: impl Fn(&str) -> bool) {
    for _ in 0..800 {
        if is_so(&ask(command, port)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("port {port}, {command}: {}", ask(command, port));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server"]
async fn the_ledger_is_clean_when_sentinels_replace_the_master() {
    let mut redis = tokio::task::block_in_place(Redis::start);
    let at = || redis.address();
    let engines = Engines { sequence: at(), sessions: at(), presence: at(), ..Engines::default() };
    let config = Config { chat_servers: 2, partitions: 4, engines, ..config() };
    let loss = async {
        tokio::time::sleep(Duration::from_secs(4)).await;
        tokio::task::block_in_place(|| redis.kill_the_master());
        std::future::pending::<()>().await;
    };
    let result = tokio::select! {
        result = run_on(config, SCENARIO) => result,
        () = loss => unreachable!("it never ends"),
    };
    assert!(redis.is_failed_over(), "the master was not replaced");
    assert_eq!(result.verdict, Verdict::Pass, "{:?} {:?}", result.reasons, result.violations);
    assert!(result.counts.acked > 200, "{:?}", result.counts);
}
