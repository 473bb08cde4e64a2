//! A stack of processes on real engines, steered from outside as an operator does.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use chatctl::runtime::process::is_running;
use serde_json::Value;

use crate::run;

/// Longest that anything expected may take.
const LIMIT: Duration = Duration::from_mins(1);

fn address(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: run the tests with scripts/test"))
}

/// A stack's settings with names of this test's own, and a Redis of its own.
fn config(redis_port: u16) -> String {
    let own = uuid::Uuid::new_v4().simple().to_string();
    let (kafka, cassandra) = (address("CHATCTL_TEST_KAFKA"), address("CHATCTL_TEST_CASSANDRA"));
    let (etcd, postgres) = (address("CHATCTL_TEST_ETCD"), address("CHATCTL_TEST_POSTGRES"));
    format!(
        "
chat_servers: 2
gateways: 1
partitions: 4
drain_timeout: 2s
api: {{password_cost: {{memory_kib: 64, passes: 1}}}}
engines:
  log: kafka://{kafka}/processes-{own}-
  messages: cassandra://{cassandra}/processes_{own}
  sequence: redis://127.0.0.1:{redis_port}/
  sessions: redis://127.0.0.1:{redis_port}/
  presence: redis://127.0.0.1:{redis_port}/
  registry: etcd://{etcd}/processes-{own}
  directory: {postgres}
"
    )
}

/// A Redis of the test's own.
struct Redis(std::process::Child, u16);

impl Redis {
    fn start(folder: &Path) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let server = std::process::Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--dir"])
            .arg(folder)
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("redis-server is on the PATH: `scripts/engines install redis`");
        wait_until("Redis answers", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self(server, port)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = chatctl::runtime::clock::instant();
    while !holds() {
        assert!(started.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A stack that is ended with the test, however it ends.
struct Up {
    folder: tempfile::TempDir,
    _redis: Redis,
}

impl Up {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let redis = Redis::start(folder.path());
        let file = folder.path().join("stack.yaml");
        std::fs::write(&file, config(redis.1)).expect("writes");
        let up = Self { folder, _redis: redis };
        let file = file.display().to_string();
        let (code, out, err) = run(&["up", "--config", &file, "--processes", "--detach", "--stack", &up.stack()]);
        assert_eq!(code, Some(0), "{out}\n{err}");
        assert!(out.contains("ready at http://"), "{out}");
        up
    }

    fn stack(&self) -> String {
        self.folder.path().join("stack").display().to_string()
    }

    fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        run(&[args, &["--stack", &self.stack()]].concat())
    }

    fn does(&self, args: &[&str]) -> String {
        let (code, out, err) = self.run(args);
        assert_eq!(code, Some(0), "{args:?}: {out}\n{err}");
        out
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.does(&["status", "--output", "json"])).expect("JSON")
    }

    /// Name, phase and number of restarts of each server.
    fn servers(&self) -> Vec<(String, String, u64)> {
        let status = self.status();
        let text = |server: &Value, field: &str| server[field].as_str().expect("a text").to_owned();
        let servers = status["servers"].as_array().expect("servers");
        servers.iter().map(|s| (text(s, "name"), text(s, "phase"), s["restarts"].as_u64().expect("a count"))).collect()
    }

    fn pids(&self) -> Vec<u32> {
        let status = self.status();
        let servers = status["servers"].as_array().expect("servers");
        servers.iter().filter_map(|s| s["pid"].as_u64()).map(|pid| pid.try_into().expect("a process")).collect()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.run(&["down"]);
    }
}

#[test]
#[ignore = "needs CHATCTL_TEST_KAFKA, _CASSANDRA, _ETCD, _POSTGRES and redis-server"]
fn a_stack_of_processes_is_started_changed_and_ended_without_a_trace() {
    let up = Up::start();
    let names: Vec<String> = up.servers().into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["api-1", "chat-1", "chat-2", "gateway-1", "presence-1", "push-1"]);
    let mode = std::fs::metadata(up.stack()).expect("a folder").permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "only its owner may enter");
    let table = up.does(&["status"]);
    for wanted in ["Cassandra 5", "Redis 7", "etcd 3", "Kafka 4", "PostgreSQL 1"] {
        assert!(table.contains(wanted), "{wanted}: {table}");
    }

    let (code, _, err) = up.run(&["fault", "kill", "chat-9"]);
    assert_eq!(code, Some(3));
    assert!(err.contains("chat-9") && err.contains("chat-1"), "{err}");
    up.does(&["fault", "kill", "chat-1"]);
    wait_until("chat-1 is back", || up.servers().contains(&("chat-1".to_owned(), "running".to_owned(), 1)));

    up.does(&["scale", "chat=3"]);
    assert!(up.servers().contains(&("chat-3".to_owned(), "running".to_owned(), 0)));
    up.does(&["drain", "chat-2"]);
    assert!(up.servers().iter().all(|(name, ..)| name != "chat-2"));
    up.does(&["restart", "api-1"]);
    let (code, _, err) = up.run(&["scale", "chat=0"]);
    assert_eq!((code, err.contains("chat=0")), (Some(3), true), "{err}");
    up.does(&["logs", "chat-1"]);
    assert_eq!(up.run(&["logs", "chat-7"]).0, Some(2));

    let scenario = up.folder.path().join("tiny.yaml");
    // Long enough that devices have been there for a while when something is sent: only then a push is owed. The first
    // records of a topic may take longer than a sync.
    let longer = crate::TINY.replace("duration: 1s", "duration: 5s");
    let text = format!("{longer}thresholds: ['pushed_percent >= 50']\n");
    std::fs::write(&scenario, text).expect("writes");
    let target = up.status()["api_url"].as_str().expect("an address").to_owned();
    let scenario = scenario.display().to_string();
    let out = up.does(&["load", &scenario, "--target", &target, "--ui", "none"]);
    assert!(out.contains("PASS") && out.contains("gateway-1"), "{out}");

    let pids = up.pids();
    up.does(&["down"]);
    assert!(pids.iter().all(|pid| !is_running(*pid)));
    let address = target.trim_start_matches("http://");
    assert!(std::net::TcpStream::connect(address).is_err());
    let (code, _, err) = up.run(&["status"]);
    assert_eq!((code, err.contains("chatctl up")), (Some(3), true), "{err}");
}

#[test]
#[ignore = "needs CHATCTL_TEST_KAFKA, _CASSANDRA, _ETCD, _POSTGRES and redis-server"]
fn servers_end_by_themselves_when_their_supervisor_is_killed() {
    let up = Up::start();
    let pids = up.pids();
    let supervisor = up.status()["supervisor_pid"].as_u64().expect("a process");
    let killed = std::process::Command::new("kill").args(["-9", &supervisor.to_string()]).status();
    assert!(killed.expect("kill is there").success());
    wait_until("the servers have ended", || pids.iter().all(|pid| !is_running(*pid)));
}

/// A program that is ended with the test.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_address() -> String {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    free.local_addr().expect("bound").to_string()
}

/// One request on a connection of its own: everything that came back.
fn http(address: &str, method: &str, path: &str, body: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).expect("connects");
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).expect("writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("reads");
    answer
}

/// Upgrades at a path and reads until the name of a server is there.
fn welcomed_by(address: &str, path: &str, token: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).expect("connects");
    stream.set_read_timeout(Some(LIMIT)).expect("a time");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("writes");
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 1024];
        let read = stream.read(&mut buffer).expect("reads");
        assert!(read > 0, "{}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((_, rest)) = text.split_once("\"server\":\"")
            && let Some((server, _)) = rest.split_once('"')
        {
            return server.to_owned();
        }
    }
}

#[test]
#[ignore = "needs CHATCTL_TEST_KAFKA, _CASSANDRA, _ETCD, _POSTGRES, redis-server and haproxy"]
fn a_real_haproxy_takes_the_gateways_place() {
    let up = Up::start();
    let (api, chat) = (free_address(), free_address());
    let config = up.does(&["config", "haproxy", "--http", &api, "--chat", &chat]);
    let file = up.folder.path().join("haproxy.cfg");
    std::fs::write(&file, config).expect("writes");
    // Debian puts it where ordinary users do not look.
    let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
    let haproxy = |arguments: &[&str]| {
        let mut command = std::process::Command::new("haproxy");
        command.env("PATH", &path).args(arguments).arg(&file).stderr(std::process::Stdio::piped());
        command
    };
    let checked = haproxy(&["-c", "-f"]).output().expect("haproxy is there: `scripts/engines install haproxy`");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let _haproxy = Running(haproxy(&["-db", "-f"]).spawn().expect("starts"));
    wait_until("HAProxy finds the API", || {
        std::net::TcpStream::connect(&api).is_ok() && http(&api, "GET", "/health/live", "").contains("200 OK")
    });
    let name = uuid::Uuid::new_v4().simple().to_string();
    let account = format!(r#"{{"name":"{name}","password":"password"}}"#);
    assert!(http(&api, "POST", "/signup", &account).contains("201"));
    let login = http(&api, "POST", "/login", &format!(r#"{{"name":"{name}","password":"password","device":"phone"}}"#));
    let token = login.split_once("\"token\":\"").and_then(|(_, rest)| rest.split_once('"'));
    let token = token.unwrap_or_else(|| panic!("no token: {login}")).0;
    wait_until("HAProxy finds chat-2", || welcomed_by(&chat, "/ws/chat-2", token) == "chat-2");
    assert_eq!(welcomed_by(&chat, "/ws/chat-1", token), "chat-1");
    assert!(welcomed_by(&chat, "/ws/chat-9", token).starts_with("chat-"), "who is not there is stood in for");
}
