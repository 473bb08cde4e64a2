//! The registry in etcd: one key for each server, bound to a lease that its announcements keep alive.
//!
//! Spoken to through etcd's own JSON gateway (`/v3/…`), which every server has: the gRPC client would need a protobuf compiler
//! wherever chatctl is built (docs/adr/0007).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::Method;
use serde_json::{Value, json};

use super::{ENTRY_TTL, Registry, Role, ServerEntry};
use crate::backends::deployment::DeploymentId;
use crate::backends::error::{BackendError, BackendResult, ErrorKind};
use crate::backends::json_http::JsonHttp;
use crate::backends::version;
use crate::protocol::ServerName;

/// The first version whose gateway is at `/v3/`.
const VERSION_MIN: version::Version = (3, 4);

/// Tries of a change that another server got in the way of.
const TRIES: usize = 5;

/// A registry in an etcd cluster. Clones share connections and leases.
#[derive(Clone)]
pub struct EtcdRegistry {
    inner: Arc<Inner>,
}

struct Inner {
    http: JsonHttp,
    /// Before each key.
    prefix: String,
    /// The lease of each server that this process announces.
    leases: Mutex<HashMap<ServerName, i64>>,
    /// Product and version, as of the opening.
    version: String,
}

/// A stored entry and the revision of its last change.
struct Stored {
    entry: ServerEntry,
    revision: String,
}

impl EtcdRegistry {
    /// Opens the registry at an address such as `etcd://host:2379,host:2379/prefix`.
    ///
    /// # Errors
    /// Names the address and the fix.
    pub async fn open(url: &str, deployment: DeploymentId) -> BackendResult<Self> {
        const OPEN: &str = "open registry";
        let rest = url.strip_prefix("etcd://").unwrap_or(url);
        let address = crate::backends::without_password(url);
        let refused = |kind, text: String| BackendError::not_applied(OPEN, kind, format!("{address}: {text}"));
        let (hosts, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if hosts.contains('@') {
            let text = "an address of etcd has no account: name hosts and ports only";
            return Err(refused(ErrorKind::Rejected, text.to_owned()));
        }
        let Some(http) = JsonHttp::new(hosts) else {
            return Err(refused(ErrorKind::Rejected, "valid is etcd://HOST:PORT[,HOST:PORT…][/PREFIX]".to_owned()));
        };
        let prefix = format!("{}/{deployment}", if prefix.is_empty() { "chatctl" } else { prefix });
        let mut inner = Inner { http, prefix, leases: Mutex::default(), version: String::new() };
        let status = inner.call("maintenance/status", &json!({})).await;
        let status = status.map_err(|e| {
            refused(
                ErrorKind::Unavailable,
                format!("{e}; is etcd {} or newer listening there?", version::text(VERSION_MIN)),
            )
        })?;
        let found = status["version"].as_str().unwrap_or_default();
        version::at_least("etcd", found, VERSION_MIN).map_err(|text| refused(ErrorKind::Rejected, text))?;
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

impl Inner {
    /// One request to the gateway. The error says what happened; whether the request had its effect, the caller knows best.
    async fn call(&self, path: &str, body: &Value) -> Result<Value, String> {
        let (status, answer) =
            self.http.request(Method::POST, &format!("/v3/{path}"), Some(body)).await.map_err(|e| e.text)?;
        if !status.is_success() {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&answer)));
        }
        serde_json::from_slice(&answer).map_err(|e| format!("no JSON in the answer: {e}"))
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
        // Every key that begins with the role's folder: up to the character behind the slash.
        let end = BASE64.encode(format!("/{}/servers/{role}0", self.inner.prefix));
        let body = json!({"key": self.inner.key(role, ""), "range_end": end});
        let stored = self.inner.range(&body).await.map_err(failed("registry.list"))?;
        Ok(stored.into_iter().map(|stored| stored.entry).collect())
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
}
