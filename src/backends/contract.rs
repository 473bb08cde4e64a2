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
            let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let port = free.local_addr().expect("bound").port();
            drop(free);
            let server = Mutex::new(start(folder.path(), port));
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

    fn start(folder: &std::path::Path, port: u16) -> Child {
        // Stock settings, but for the folder, the port and no wait before a copy begins.
        Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--repl-diskless-sync-delay", "0", "--dir"])
            .arg(folder)
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
            *self.server.lock().expect("no panic while held") = start(self.folder.path(), self.port);
            self.wait().await;
        }
    }
}
