//! The registry in etcd: one key for each server, bound to a lease that its announcements keep alive.
//!
//! Spoken to through etcd's own JSON gateway (`/v3/…`), which every server has: the gRPC client would need a protobuf compiler
//! wherever chatctl is built (docs/adr/0007).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::{ENTRY_TTL, Registry, Role, ServerEntry};
use crate::backends::deployment::DeploymentId;
use crate::backends::error::{BackendError, BackendResult, ErrorKind};
use crate::backends::json_http::JsonHttp;
use crate::backends::version;
use crate::protocol::ServerName;

/// The first version whose gateway is at `/v3/`.
const VERSION_MIN: version::Version = (3, 4);

/// What etcd says of a token that is not good any more: it has ended, its server does not know it, users or roles have
/// changed since (of one that carries its contents). Some of it comes as a bad request. Source:
/// `api/v3rpc/rpctypes/error.go`.
const STALE_TOKEN: [&str; 3] = ["invalid auth token", "user name is empty", "revision of auth store is old"];

/// Tries of a change that another server got in the way of.
const TRIES: usize = 5;

/// A registry in an etcd cluster. Clones share connections and leases.
#[derive(Clone)]
pub struct EtcdRegistry {
    inner: Arc<Inner>,
}

struct Inner {
    http: JsonHttp,
    /// Of a cluster with authentication.
    account: Option<Account>,
    /// Before each key.
    prefix: String,
    /// The lease of each server that this process announces.
    leases: Mutex<HashMap<ServerName, i64>>,
    /// Product and version, as of the opening.
    version: String,
}

/// A name, a password, and the token that they were exchanged for.
struct Account {
    name: String,
    password: String,
    /// Written by the first call, and by one whose token is not good any more.
    token: tokio::sync::Mutex<Option<String>>,
}

/// A stored entry and the revision of its last change.
struct Stored {
    entry: ServerEntry,
    revision: String,
}

impl EtcdRegistry {
    /// Opens the registry at an address such as `etcd://user:password@host:2379,host:2379/prefix`.
    ///
    /// # Errors
    /// Names the address and the fix.
    pub async fn open(url: &str, deployment: DeploymentId) -> BackendResult<Self> {
        const OPEN: &str = "open registry";
        let rest = url.strip_prefix("etcd://").unwrap_or(url);
        let address = crate::backends::without_password(url);
        let refused = |kind, text: String| BackendError::not_applied(OPEN, kind, format!("{address}: {text}"));
        // A secret may hold anything, slashes too.
        let (account, rest) = rest.rsplit_once('@').map_or((None, rest), |(account, rest)| (Some(account), rest));
        let (hosts, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let account = match account.map(|account| account.split_once(':')) {
            None => None,
            Some(Some((name, password))) if !name.is_empty() => Some(Account {
                name: name.to_owned(),
                password: password.to_owned(),
                token: tokio::sync::Mutex::default(),
            }),
            Some(_) => return Err(refused(ErrorKind::Rejected, "an account of etcd is USER:PASSWORD".to_owned())),
        };
        let Some(http) = JsonHttp::new(hosts) else {
            let valid = "valid is etcd://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…][/PREFIX]";
            return Err(refused(ErrorKind::Rejected, valid.to_owned()));
        };
        let prefix = format!("{}/{deployment}", if prefix.is_empty() { "chatctl" } else { prefix });
        let mut inner = Inner { http, account, prefix, leases: Mutex::default(), version: String::new() };
        let status = inner.call("maintenance/status", &json!({})).await;
        let status = status.map_err(|e| {
            refused(
                ErrorKind::Unavailable,
                format!("{e}; is etcd {} or newer listening there?", version::text(VERSION_MIN)),
            )
        })?;
        let found = status["version"].as_str().unwrap_or_default();
        version::at_least("etcd", found, VERSION_MIN).map_err(|text| refused(ErrorKind::Rejected, text))?;
        // Whether this account may use the prefix is seen here and not at the first server.
        inner.find_all(Role::Chat).await.map_err(|e| {
            refused(ErrorKind::Rejected, format!("{e}; has the account of the address, if any, a role for its prefix?"))
        })?;
        inner.version = format!("etcd {found}");
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Product and version, as of the opening.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.inner.version
    }
}

/// The gateway writes 64-bit integers as text.
fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

/// The answer of the gateway.
fn read(status: StatusCode, answer: &[u8]) -> Result<Value, String> {
    if status.is_success() {
        return serde_json::from_slice(answer).map_err(|e| format!("no JSON in the answer: {e}"));
    }
    let told = serde_json::from_slice::<Value>(answer).ok();
    let message = told.as_ref().and_then(|told| told["message"].as_str()).map(str::to_owned);
    Err(format!("{status}: {}", message.unwrap_or_else(|| String::from_utf8_lossy(answer).into_owned())))
}

/// Whether a call may have been refused for its token alone.
fn is_of_the_token(status: StatusCode, answer: &[u8]) -> bool {
    if status.is_success() || status == StatusCode::UNAUTHORIZED {
        return !status.is_success();
    }
    let text = String::from_utf8_lossy(answer);
    STALE_TOKEN.iter().any(|problem| text.contains(problem))
}

impl Inner {
    /// One request to the gateway. The error says what happened; whether the request had its effect, the caller knows best.
    async fn call(&self, path: &str, body: &Value) -> Result<Value, String> {
        let mut is_repeat = false;
        loop {
            let token = self.token().await?;
            let path = format!("/v3/{path}");
            let answer = self.http.request_as(token.as_deref(), Method::POST, &path, Some(body)).await;
            let (status, answer) = answer.map_err(|e| e.text)?;
            // A token lasts for minutes, and ends with the server that gave it out.
            if let (Some(token), false) = (&token, is_repeat)
                && is_of_the_token(status, &answer)
            {
                self.drop_token(token).await;
                is_repeat = true;
                continue;
            }
            return read(status, &answer);
        }
    }

    /// What the account's name and password were exchanged for.
    async fn token(&self) -> Result<Option<String>, String> {
        let Some(account) = &self.account else { return Ok(None) };
        let mut token = account.token.lock().await;
        if token.is_none() {
            let body = json!({"name": account.name, "password": account.password});
            let answer = self.http.request(Method::POST, "/v3/auth/authenticate", Some(&body)).await;
            let (status, answer) = answer.map_err(|e| e.text)?;
            let answer = read(status, &answer)?;
            *token = Some(answer["token"].as_str().ok_or("an answer without a token")?.to_owned());
        }
        Ok(token.clone())
    }

    /// Forgets a token, unless somebody has a new one already.
    async fn drop_token(&self, used: &str) {
        let Some(account) = &self.account else { return };
        account.token.lock().await.take_if(|token| token == used);
    }

    fn key(&self, role: Role, name: &str) -> String {
        BASE64.encode(format!("/{}/servers/{role}/{name}", self.prefix))
    }

    /// A lease for a server's entry: the old one with new life, or a new one.
    async fn lease(&self, name: &ServerName) -> Result<i64, String> {
        let old = self.leases.lock().expect("no panic while held").get(name).copied();
        if let Some(id) = old {
            let answer = self.call("lease/keepalive", &json!({"ID": id})).await?;
            // A lease that has ended has no time to live any more.
            if integer(&answer["result"]["TTL"]).is_some_and(|ttl| ttl > 0) {
                return Ok(id);
            }
        }
        let answer = self.call("lease/grant", &json!({"TTL": ENTRY_TTL.as_secs()})).await?;
        let id = integer(&answer["ID"]).ok_or_else(|| format!("a lease without an id: {answer}"))?;
        self.leases.lock().expect("no panic while held").insert(name.clone(), id);
        Ok(id)
    }

    async fn range(&self, body: &Value) -> Result<Vec<Stored>, String> {
        let answer = self.call("kv/range", body).await?;
        let stored = |kv: &Value| {
            let bytes = BASE64.decode(kv["value"].as_str()?).ok()?;
            let entry = serde_json::from_slice(&bytes).ok()?;
            Some(Stored { entry, revision: kv["mod_revision"].as_str()?.to_owned() })
        };
        let kvs = answer["kvs"].as_array().map_or(&[][..], Vec::as_slice);
        kvs.iter().map(|kv| stored(kv).ok_or_else(|| format!("an entry that can't be read: {kv}"))).collect()
    }

    async fn find(&self, role: Role, name: &ServerName) -> Result<Option<Stored>, String> {
        Ok(self.range(&json!({"key": self.key(role, name.as_str())})).await?.pop())
    }

    async fn find_all(&self, role: Role) -> Result<Vec<ServerEntry>, String> {
        // Every key that begins with the role's folder: up to the character behind the slash.
        let end = BASE64.encode(format!("/{}/servers/{role}0", self.prefix));
        let stored = self.range(&json!({"key": self.key(role, ""), "range_end": end})).await?;
        Ok(stored.into_iter().map(|stored| stored.entry).collect())
    }

    /// Does something to a key that has not changed since it was looked at; returns whether it had not.
    async fn change(&self, key: &str, seen: Option<&Stored>, operation: Value) -> Result<bool, String> {
        let revision = seen.map_or("0", |stored| &stored.revision);
        let compare = json!({"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": revision});
        let answer = self.call("kv/txn", &json!({"compare": [compare], "success": [operation]})).await?;
        Ok(answer["succeeded"] == json!(true))
    }
}

fn failed(operation: &'static str) -> impl Fn(String) -> BackendError {
    move |text| BackendError::unknown(operation, ErrorKind::Unavailable, text)
}

fn overtaken(operation: &'static str) -> BackendError {
    BackendError::not_applied(operation, ErrorKind::Unavailable, "the entry keeps changing")
}

#[async_trait]
impl Registry for EtcdRegistry {
    async fn announce(&self, entry: &ServerEntry) -> BackendResult<()> {
        const OPERATION: &str = "registry.announce";
        let (inner, key) = (&self.inner, self.inner.key(entry.role, entry.name.as_str()));
        let lease = inner.lease(&entry.name).await.map_err(failed(OPERATION))?;
        let value = BASE64.encode(serde_json::to_vec(entry).expect("plain data"));
        for _ in 0..TRIES {
            let stored = inner.find(entry.role, &entry.name).await.map_err(failed(OPERATION))?;
            if stored.as_ref().is_some_and(|stored| stored.entry.epoch > entry.epoch) {
                return Ok(());
            }
            let put = json!({"request_put": {"key": key, "value": value, "lease": lease}});
            if inner.change(&key, stored.as_ref(), put).await.map_err(failed(OPERATION))? {
                return Ok(());
            }
        }
        Err(overtaken(OPERATION))
    }

    async fn withdraw(&self, name: &ServerName, epoch: u64) -> BackendResult<()> {
        const OPERATION: &str = "registry.withdraw";
        for role in Role::ALL {
            let key = self.inner.key(role, name.as_str());
            for _ in 0..TRIES {
                let stored = self.inner.find(role, name).await.map_err(failed(OPERATION))?;
                let Some(stored) = stored.filter(|stored| stored.entry.epoch == epoch) else { break };
                let delete = json!({"request_delete_range": {"key": key}});
                if self.inner.change(&key, Some(&stored), delete).await.map_err(failed(OPERATION))? {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn list(&self, role: Role) -> BackendResult<Vec<ServerEntry>> {
        self.inner.find_all(role).await.map_err(failed("registry.list"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::contract::{Deployment, Place, engine_address};
    use crate::backends::registry::contract::registry_contract;

    fn cluster() -> impl Place<dyn Registry> {
        let url = format!("etcd://{}/test-{}", engine_address("CHATCTL_TEST_ETCD"), uuid::Uuid::new_v4());
        Deployment(move || {
            let url = url.clone();
            async move { Arc::new(EtcdRegistry::open(&url, DeploymentId(7)).await.expect("opens")) as Arc<dyn Registry> }
        })
    }

    registry_contract!(cluster(), ignore = "needs CHATCTL_TEST_ETCD");

    /// A server of the test's own, with authentication.
    struct Guarded {
        _folder: tempfile::TempDir,
        server: std::process::Child,
        port: u16,
    }

    impl Guarded {
        async fn start(tokens: impl FnOnce(&std::path::Path) -> String) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let free = || std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
            let (clients, peers) = (free(), free());
            let [port, peer_port] = [&clients, &peers].map(|port| port.local_addr().expect("bound").port());
            drop((clients, peers));
            let [url, peer_url] = [port, peer_port].map(|port| format!("http://127.0.0.1:{port}"));
            let mut command = std::process::Command::new("etcd");
            command.arg("--data-dir").arg(folder.path()).args(["--logger", "zap", "--log-level", "error"]);
            command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
            command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
            command.args(["--initial-cluster", &format!("default={peer_url}"), "--auth-token", &tokens(folder.path())]);
            let place = Self { _folder: folder, server: command.spawn().expect("etcd is on the PATH"), port };
            let http = JsonHttp::new(&format!("127.0.0.1:{port}")).expect("a host");
            let call = async |path: &str, body: Value| http.request(Method::POST, path, Some(&body)).await.map(|a| a.0);
            for _ in 0..200 {
                if call("/v3/maintenance/status", json!({})).await.is_ok_and(|status| status.is_success()) {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            let everything = json!({"permType": "READWRITE", "key": "AA==", "range_end": "AA=="});
            for (path, body) in [
                ("/v3/auth/role/add", json!({"name": "servers"})),
                ("/v3/auth/role/grant", json!({"name": "servers", "perm": everything})),
                ("/v3/auth/user/add", json!({"name": "us", "password": "se@cret/1"})),
                ("/v3/auth/user/grant", json!({"user": "us", "role": "servers"})),
                ("/v3/auth/user/add", json!({"name": "other", "password": "other"})),
                ("/v3/auth/user/add", json!({"name": "root", "password": "root"})),
                ("/v3/auth/user/grant", json!({"user": "root", "role": "root"})),
                ("/v3/auth/enable", json!({})),
            ] {
                assert_eq!(call(path, body).await.expect(path), StatusCode::OK, "{path}");
            }
            place
        }

        async fn open(&self, account: &str) -> BackendResult<EtcdRegistry> {
            EtcdRegistry::open(&format!("etcd://{account}127.0.0.1:{}/test", self.port), DeploymentId(7)).await
        }
    }

    impl Drop for Guarded {
        fn drop(&mut self) {
            let _ = self.server.kill();
            let _ = self.server.wait();
        }
    }

    #[tokio::test]
    #[ignore = "needs etcd on the PATH"]
    async fn a_cluster_with_authentication_is_used_by_its_account_alone() {
        let etcd = Guarded::start(|_| "simple".to_owned()).await;
        for account in ["", "us:wrong@", "nobody:x@", "other:other@"] {
            let refused = etcd.open(account).await.map(|_| ()).expect_err(account).to_string();
            assert!(!refused.contains("wrong"), "no password is told: {refused}");
        }
        let entry = crate::backends::registry::contract::promises::entry(1, 0);
        let registry = etcd.open("us:se@cret/1@").await.expect("opens");
        registry.announce(&entry).await.expect("announces");
        // A token that is not good any more, as after the server's restart or some minutes.
        *registry.inner.account.as_ref().expect("has one").token.lock().await = Some("stale".to_owned());
        assert_eq!(registry.list(entry.role).await.expect("lists"), std::slice::from_ref(&entry));
    }

    /// A signed token carries the revision of users and roles that it was made for.
    #[tokio::test]
    #[ignore = "needs etcd on the PATH"]
    async fn a_signed_token_is_renewed_when_users_change() {
        let etcd = Guarded::start(|folder| {
            let key = folder.join("key");
            std::fs::write(&key, "a key that is as long as it has to be").expect("written");
            format!("jwt,priv-key={},sign-method=HS256", key.display())
        })
        .await;
        let (ours, root) =
            (etcd.open("us:se@cret/1@").await.expect("opens"), etcd.open("root:root@").await.expect("opens"));
        let entry = crate::backends::registry::contract::promises::entry(1, 0);
        ours.announce(&entry).await.expect("announces");
        root.inner.call("auth/user/add", &json!({"name": "new", "password": "new"})).await.expect("is added");
        assert_eq!(ours.list(entry.role).await.expect("lists"), std::slice::from_ref(&entry));
    }
}
