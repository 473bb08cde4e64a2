//! What the contract suites share: a place that can be opened twice and restarted, and the macro that makes tests.

/// Makes one `#[tokio::test]` per promise. With `ignore = "needs …"` they run only where the engine is.
macro_rules! contract_tests {
    ($place:expr; $module:path; $($name:ident),* $(,)?) => {
        $($crate::backends::contract::contract_tests!(@one [] $place; $module; $name);)*
    };
    ($place:expr, ignore = $needs:literal; $module:path; $($name:ident),* $(,)?) => {
        $($crate::backends::contract::contract_tests!(@one [#[ignore = $needs]] $place; $module; $name);)*
    };
    (@one [$($attribute:tt)*] $place:expr; $module:path; $name:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        $($attribute)*
        async fn $name() {
            use $module as promises;
            promises::$name($place).await;
        }
    };
}

pub(crate) use contract_tests;

/// One deployment of an engine, as two servers see it.
#[async_trait::async_trait]
pub(crate) trait Place<P: ?Sized + Send + Sync>: Send + Sync {
    /// Another handle on the same place, as another server would have.
    async fn open(&self) -> std::sync::Arc<P>;

    /// Ends the engine's process and starts it again on the same data. Handles from before are of no use.
    async fn restart(&self);
}

/// The address of a real engine for tests. `scripts/test` sets all of them.
pub(crate) fn engine_address(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: run the tests with scripts/test"))
}

/// A deployment that tests connect to and never end: a restart means a new client. (Engines that stop in the middle are the
/// business of scenarios.) Holds what makes a client.
pub(crate) struct Deployment<F>(pub(crate) F);

#[async_trait::async_trait]
impl<P, F, C> Place<P> for Deployment<F>
where
    P: ?Sized + Send + Sync + 'static,
    F: Fn() -> C + Send + Sync,
    C: Future<Output = std::sync::Arc<P>> + Send,
{
    async fn open(&self) -> std::sync::Arc<P> {
        (self.0)().await
    }

    async fn restart(&self) {}
}

pub(crate) use embedded::EmbeddedPlace;
pub(crate) use redis::RedisPlace;
pub(crate) use sentinels::SentinelPlace;

mod embedded {
    use std::sync::{Arc, Mutex};

    use super::Place;
    use crate::backends::store::EmbeddedStore;

    type Open<P> = Box<dyn Fn(&EmbeddedStore) -> Arc<P> + Send + Sync>;

    /// A temporary data folder.
    pub(crate) struct EmbeddedPlace<P: ?Sized> {
        folder: tempfile::TempDir,
        make: Open<P>,
        opened: Mutex<Option<(EmbeddedStore, Arc<P>)>>,
    }

    impl<P: ?Sized> EmbeddedPlace<P> {
        pub(crate) fn new(make: impl Fn(&EmbeddedStore) -> Arc<P> + Send + Sync + 'static) -> Self {
            let folder = tempfile::tempdir().expect("a temporary folder");
            Self { folder, make: Box::new(make), opened: Mutex::default() }
        }
    }

    #[async_trait::async_trait]
    impl<P: ?Sized + Send + Sync> Place<P> for EmbeddedPlace<P> {
        async fn open(&self) -> Arc<P> {
            let mut opened = self.opened.lock().expect("no panic while held");
            let (_, port) = opened.get_or_insert_with(|| {
                let store = EmbeddedStore::open(self.folder.path()).expect("opens");
                let port = (self.make)(&store);
                (store, port)
            });
            Arc::clone(port)
        }

        async fn restart(&self) {
            *self.opened.lock().expect("no panic while held") = None;
        }
    }
}

mod redis {
    use std::net::TcpListener;
    use std::process::{Child, Command, Stdio};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::Place;
    use crate::backends::BackendResult;
    use crate::backends::deployment::DeploymentId;
    use crate::backends::redis::Redis;

    type Open<P> = Box<dyn Fn(Redis) -> Arc<P> + Send + Sync>;

    /// A Redis server of the test's own, so that it can be killed.
    pub(crate) struct RedisPlace<P: ?Sized> {
        folder: tempfile::TempDir,
        port: u16,
        server: Mutex<Child>,
        make: Open<P>,
    }

    impl<P: ?Sized> RedisPlace<P> {
        pub(crate) async fn new(make: impl Fn(Redis) -> Arc<P> + Send + Sync + 'static) -> Self {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let [port] = free_ports();
            let server = Mutex::new(start(folder.path(), port, &[]));
            let place = Self { folder, port, server, make: Box::new(make) };
            place.wait().await;
            place
        }

        fn url(&self) -> String {
            format!("redis://127.0.0.1:{}/", self.port)
        }

        async fn redis(&self) -> BackendResult<Redis> {
            Redis::open(&self.url(), DeploymentId(7)).await
        }

        /// The server, as another deployment sees it.
        pub(crate) async fn redis_of(&self, deployment: DeploymentId) -> Redis {
            Redis::open(&self.url(), deployment).await.expect("opens")
        }

        async fn replica_of(&self, host: &str, port: &str) -> redis::aio::MultiplexedConnection {
            let client = redis::Client::open(self.url()).expect("an address");
            let mut connection = client.get_multiplexed_async_connection().await.expect("connects");
            let set = redis::cmd("REPLICAOF").arg(host).arg(port).query_async::<()>(&mut connection).await;
            set.expect("a new role");
            connection
        }

        /// Becomes a copy of another server, and waits until it is one.
        pub(crate) async fn follow(&self, leader: &Self) {
            let mut connection = self.replica_of("127.0.0.1", &leader.port.to_string()).await;
            for _ in 0..400 {
                let info: String =
                    redis::cmd("INFO").arg("replication").query_async(&mut connection).await.expect("answers");
                if info.contains("master_link_status:up") {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            panic!("port {} does not follow {}", self.port, leader.port);
        }

        /// Sends the server's process a signal.
        pub(crate) fn signal(&self, name: &str) {
            let id = self.server.lock().expect("no panic while held").id().to_string();
            let sent = Command::new("kill").args(["-s", name, &id]).status().expect("kill is on the PATH");
            assert!(sent.success());
        }

        /// Takes writes again, with the data that it has.
        pub(crate) async fn lead(&self) {
            self.replica_of("NO", "ONE").await;
        }

        /// Waits until the server answers.
        async fn wait(&self) {
            for _ in 0..200 {
                if self.redis().await.is_ok() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            panic!("redis-server on port {} does not answer", self.port);
        }

        /// Ends the server at once.
        fn kill(&self) {
            let mut server = self.server.lock().expect("no panic while held");
            server.kill().expect("it is ours");
            server.wait().expect("it ended");
        }
    }

    /// Ports that nobody listens on.
    pub(super) fn free_ports<const COUNT: usize>() -> [u16; COUNT] {
        let bound = [(); COUNT].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
        bound.map(|listener| listener.local_addr().expect("bound").port())
    }

    /// Starts a server with stock settings, but for the folder, the port, no wait before a copy begins, and `more`.
    pub(super) fn start(folder: &std::path::Path, port: u16, more: &[&str]) -> Child {
        Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--repl-diskless-sync-delay", "0", "--dir"])
            .arg(folder)
            .args(more)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is on the PATH: `scripts/engines install redis`")
    }

    impl<P: ?Sized> Drop for RedisPlace<P> {
        fn drop(&mut self) {
            self.kill();
        }
    }

    #[async_trait::async_trait]
    impl<P: ?Sized + Send + Sync> Place<P> for RedisPlace<P> {
        async fn open(&self) -> Arc<P> {
            (self.make)(self.redis().await.expect("opens"))
        }

        async fn restart(&self) {
            self.kill();
            *self.server.lock().expect("no panic while held") = start(self.folder.path(), self.port, &[]);
            self.wait().await;
        }
    }
}

mod sentinels {
    use std::fmt::Write;
    use std::path::Path;
    use std::process::{Child, Command, Stdio};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::Place;
    use super::redis::{free_ports, start};
    use crate::backends::BackendResult;
    use crate::backends::deployment::DeploymentId;
    use crate::backends::redis::Redis;

    type Open<P> = Box<dyn Fn(Redis) -> Arc<P> + Send + Sync>;

    /// Port and process of each server or sentinel.
    type Processes = Mutex<Vec<(u16, Child)>>;

    /// A master, two replicas and three sentinels of the test's own. A restart kills the master, waits until a replica is in its
    /// place, and starts it again.
    pub(crate) struct SentinelPlace<P: ?Sized> {
        folder: tempfile::TempDir,
        /// Of servers and sentinels.
        password: Option<&'static str>,
        servers: Processes,
        sentinels: Processes,
        make: Open<P>,
    }

    impl<P: ?Sized> SentinelPlace<P> {
        pub(crate) async fn new(
            password: Option<&'static str>,
            make: impl Fn(Redis) -> Arc<P> + Send + Sync + 'static,
        ) -> Self {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let (servers, sentinels) = (Processes::default(), Processes::default());
            let place = Self { folder, password, servers, sentinels, make: Box::new(make) };
            let ports: [u16; 6] = free_ports();
            for port in &ports[..3] {
                place.start_server(*port, ports[0]);
            }
            for port in &ports[..3] {
                let role = if *port == ports[0] { "connected_slaves:2" } else { "master_link_status:up" };
                place.wait_for("INFO replication", *port, |info| info.contains(role)).await;
            }
            for port in &ports[3..] {
                let sentinel = start_sentinel(place.folder.path(), *port, ports[0], password);
                place.sentinels.lock().expect("no panic while held").push((*port, sentinel));
            }
            for port in &ports[3..] {
                place
                    .wait_for("SENTINEL MASTERS", *port, |answer| answer.contains("num-slaves=2 num-other-sentinels=2"))
                    .await;
            }
            place
        }

        fn start_server(&self, port: u16, master: u16) {
            let folder = self.folder.path().join(port.to_string());
            std::fs::create_dir_all(&folder).expect("a folder");
            let leader = format!("127.0.0.1 {master}");
            let mut more = Vec::new();
            if port != master {
                more.extend(["--replicaof", leader.as_str()]);
            }
            if let Some(password) = self.password {
                more.extend(["--requirepass", password, "--masterauth", password]);
            }
            let server = start(&folder, port, &more);
            self.servers.lock().expect("no panic while held").push((port, server));
        }

        /// The address of the sentinels, for a master of some name.
        pub(crate) fn url(&self, master: &str) -> String {
            let account = self.password.map_or_else(String::new, |password| format!(":{password}@"));
            let sentinels = self.sentinels.lock().expect("no panic while held");
            let hosts: Vec<String> = sentinels.iter().map(|(port, _)| format!("127.0.0.1:{port}")).collect();
            format!("redis+sentinel://{account}{}/{master}/1", hosts.join(","))
        }

        /// Adds a sentinel before the others, which calls a server the master that is none.
        pub(crate) fn add_stale_sentinel(&self) {
            const NOBODY: u16 = 1;
            let [port] = free_ports();
            let sentinel = start_sentinel(self.folder.path(), port, NOBODY, self.password);
            self.sentinels.lock().expect("no panic while held").insert(0, (port, sentinel));
        }

        /// The deployment, by the sentinels' address for a master of some name.
        pub(crate) async fn redis(&self, master: &str) -> BackendResult<Redis> {
            Redis::open(&self.url(master), DeploymentId(7)).await
        }

        /// Kills the master.
        pub(crate) async fn kill_master(&self) -> u16 {
            let master = self.master().await;
            let mut servers = self.servers.lock().expect("no panic while held");
            let at = servers.iter().position(|(port, _)| *port == master).expect("it is ours");
            end(&mut servers.remove(at).1);
            master
        }

        /// Sends the process of a sentinel a signal.
        pub(crate) fn signal_sentinel(&self, index: usize, name: &str) {
            let id = self.sentinels.lock().expect("no panic while held")[index].1.id().to_string();
            let sent = Command::new("kill").args(["-s", name, &id]).status().expect("kill is on the PATH");
            assert!(sent.success());
        }

        /// The master's port, as the last sentinel says.
        async fn master(&self) -> u16 {
            let sentinel = self.sentinels.lock().expect("no panic while held").last().expect("there are three").0;
            let answer = self.ask("SENTINEL GET-MASTER-ADDR-BY-NAME chat", sentinel).await.expect("it answers");
            answer
                .trim()
                .rsplit('=')
                .next()
                .and_then(|port| port.parse().ok())
                .unwrap_or_else(|| panic!("no port: {answer}"))
        }

        /// The answer to a command: a text, or `name=value` for each pair of a list.
        async fn ask(&self, command: &str, port: u16) -> redis::RedisResult<String> {
            let account = self.password.map_or_else(String::new, |password| format!(":{password}@"));
            let client = redis::Client::open(format!("redis://{account}127.0.0.1:{port}/"))?;
            let mut connection = client.get_multiplexed_async_connection().await?;
            let mut words = command.split(' ');
            let mut ask = redis::cmd(words.next().unwrap_or_default());
            for word in words {
                ask.arg(word);
            }
            let answer: redis::Value = ask.query_async(&mut connection).await?;
            let mut text = String::new();
            flatten(&answer, &mut text);
            Ok(text)
        }

        async fn wait_for(&self, command: &str, port: u16, is_so: impl Fn(&str) -> bool) {
            let mut last = Ok(String::new());
            for _ in 0..800 {
                last = self.ask(command, port).await;
                if last.as_deref().is_ok_and(&is_so) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            panic!("port {port}, {command}: {last:?}");
        }
    }

    /// Texts as they are, lists as pairs of name and value.
    fn flatten(value: &redis::Value, text: &mut String) {
        match value {
            redis::Value::Array(values) if values.iter().all(|value| matches!(value, redis::Value::BulkString(_))) => {
                for pair in values.chunks(2) {
                    let words: Vec<String> =
                        pair.iter().map(|v| redis::from_redis_value_ref(v).unwrap_or_default()).collect();
                    write!(text, "{} ", words.join("=")).expect("into memory");
                }
            }
            redis::Value::Array(values) => values.iter().for_each(|value| flatten(value, text)),
            value => text.push_str(&redis::from_redis_value_ref::<String>(value).unwrap_or_default()),
        }
    }

    fn start_sentinel(folder: &Path, port: u16, master: u16, password: Option<&str>) -> Child {
        let mut text = format!(
            "bind 127.0.0.1\nport {port}\ndir {}\nsentinel monitor chat 127.0.0.1 {master} 2\n\
             sentinel down-after-milliseconds chat 1000\nsentinel failover-timeout chat 5000\n",
            folder.display()
        );
        if let Some(password) = password {
            write!(
                text,
                "requirepass {password}\nsentinel sentinel-pass {password}\nsentinel auth-pass chat {password}\n"
            )
            .expect("into memory");
        }
        let file = folder.join(format!("sentinel-{port}.conf"));
        std::fs::write(&file, text).expect("written");
        let mut command = Command::new("redis-server");
        command.arg(file).arg("--sentinel").stdout(Stdio::null()).spawn().expect("redis-server is on the PATH")
    }

    fn end(process: &mut Child) {
        process.kill().expect("it is ours");
        process.wait().expect("it ended");
    }

    impl<P: ?Sized> Drop for SentinelPlace<P> {
        fn drop(&mut self) {
            for processes in [&self.sentinels, &self.servers] {
                processes.lock().expect("no panic while held").iter_mut().for_each(|(_, process)| end(process));
            }
        }
    }

    #[async_trait::async_trait]
    impl<P: ?Sized + Send + Sync> Place<P> for SentinelPlace<P> {
        async fn open(&self) -> Arc<P> {
            (self.make)(self.redis("chat").await.expect("opens"))
        }

        async fn restart(&self) {
            let old = self.kill_master().await;
            let mut new = old;
            for _ in 0..400 {
                new = self.master().await;
                if new != old {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert_ne!(new, old, "no replica was promoted");
            self.wait_for("INFO replication", new, |info| info.contains("role:master")).await;
            // It comes back as a master, with the data that it had, until the sentinels see it.
            self.start_server(old, old);
        }
    }
}
