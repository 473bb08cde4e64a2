//! The registry in ZooKeeper: one ephemeral node for each server, under a folder for each role.
//!
//! A node ends with the session of the process that made it. A process that lives but does not announce any more is noticed
//! too: an entry that has not changed for the life of an entry is left out.
//!
//! Where the address has an account, everything below the deployment's folder is that account's alone: nobody else reads the
//! servers' addresses, or enters a server.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zookeeper_client::{Acl, Acls, AuthId, Client, CreateMode, Error, Permission, Stat};

use super::{ENTRY_TTL, Registry, Role, ServerEntry};
use crate::backends::deployment::DeploymentId;
use crate::backends::error::{BackendError, BackendResult, ErrorKind};
use crate::backends::version;
use crate::protocol::ServerName;
use crate::runtime::clock;

/// Longest that connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Longest that one call may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Oldest version: the ones before reached their end of life in 2020.
const VERSION_MIN: version::Version = (3, 5);

/// Most that is read of an answer to `srvr`.
const ANSWER_BYTES_MAX: u64 = 4 * 1024;

/// Tries of a change that another server got in the way of.
const TRIES: usize = 5;

/// A registry in a ZooKeeper ensemble. Clones share the session.
#[derive(Clone)]
pub struct ZooKeeperRegistry {
    inner: Arc<Inner>,
}

struct Inner {
    /// `host:port,host:port`.
    ensemble: String,
    /// `user:password`, where the address has one.
    account: Option<String>,
    /// Folder of all roles.
    root: String,
    /// The live session. Written by whoever finds none, or one that has ended.
    client: tokio::sync::Mutex<Option<Client>>,
    /// The last change of each entry (its transaction id) and when it was first seen, on [`clock::now_us`].
    changes: Mutex<HashMap<ServerName, (i64, u64)>>,
    /// Product and version, as of the opening.
    version: String,
}

impl ZooKeeperRegistry {
    /// Opens the registry at an address such as `zookeeper://user:password@host:2181,host:2181/prefix`.
    ///
    /// # Errors
    /// Names the address and the fix.
    pub async fn open(url: &str, deployment: DeploymentId) -> BackendResult<Self> {
        const OPEN: &str = "open registry";
        let address = crate::backends::without_password(url);
        let rest = url.strip_prefix("zookeeper://").unwrap_or(url);
        // A secret may hold anything, slashes too.
        let (account, rest) = rest.rsplit_once('@').map_or((None, rest), |(account, rest)| (Some(account), rest));
        let (ensemble, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if account.is_some_and(|account| account.split_once(':').is_none_or(|(user, _)| user.is_empty())) {
            let text = format!("{address}: an account of ZooKeeper is USER:PASSWORD");
            return Err(BackendError::not_applied(OPEN, ErrorKind::Rejected, text));
        }
        if ensemble.is_empty() || !prefix.chars().all(is_name) {
            let text = format!("{address:?}: valid is zookeeper://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…][/PREFIX]");
            return Err(BackendError::not_applied(OPEN, ErrorKind::Rejected, text));
        }
        let prefix = if prefix.is_empty() { "chatctl" } else { prefix };
        let mut inner = Inner {
            ensemble: ensemble.to_owned(),
            account: account.map(str::to_owned),
            root: format!("/{prefix}/{deployment}/servers"),
            client: tokio::sync::Mutex::default(),
            changes: Mutex::default(),
            version: "ZooKeeper".to_owned(),
        };
        let unavailable = |e: Error| {
            let text = format!("{address}: {e}; is ZooKeeper listening there?");
            BackendError::not_applied(OPEN, ErrorKind::Unavailable, text)
        };
        let client = inner.client().await.map_err(unavailable)?;
        // A server that keeps its version to itself is taken as it is.
        if let Some(found) = ask_ensemble(ensemble).await {
            version::at_least("ZooKeeper", &found, VERSION_MIN)
                .map_err(|text| BackendError::not_applied(OPEN, ErrorKind::Rejected, format!("{address}: {text}")))?;
            inner.version = format!("ZooKeeper {found}");
        }
        inner.make_folders(&client).await.map_err(|error| match error {
            Error::NoAuth | Error::AuthFailed => {
                let text = format!("{address}: its folders belong to another account: name that one in the address");
                BackendError::not_applied(OPEN, ErrorKind::Rejected, text)
            }
            error => unavailable(error),
        })?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Product and version, as of the opening; without a version where no server told it.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.inner.version
    }
}

/// The version of the first server that tells it.
async fn ask_ensemble(ensemble: &str) -> Option<String> {
    for server in ensemble.split(',') {
        if let Ok(Some(version)) = tokio::time::timeout(TIMEOUT, ask_version(server)).await {
            return Some(version);
        }
    }
    None
}

/// Source: ZooKeeper administrator's guide, "the four letter words"; `srvr` is the one that is always allowed.
async fn ask_version(server: &str) -> Option<String> {
    let mut stream = TcpStream::connect(server).await.ok()?;
    stream.write_all(b"srvr").await.ok()?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).await.ok()?;
    let version = answer.lines().next()?.strip_prefix("Zookeeper version: ")?;
    Some(version.split(['-', ',', ' ']).next()?.to_owned())
}

/// A call with a deadline.
async fn within<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(TIMEOUT, call).await.unwrap_or(Err(Error::Timeout))
}

fn failed(operation: &'static str, error: Error) -> BackendError {
    match error {
        Error::NoAuth | Error::AuthFailed | Error::InvalidAcl => {
            BackendError::not_applied(operation, ErrorKind::Rejected, error)
        }
        Error::NoHosts => BackendError::not_applied(operation, ErrorKind::Unavailable, error),
        _ => BackendError::unknown(operation, ErrorKind::Unavailable, error),
    }
}

/// Whether anyone has a right to a node.
async fn is_open(client: &Client, path: &str) -> Result<bool, Error> {
    let (acls, _) = within(client.get_acl(path)).await?;
    Ok(acls.iter().any(|acl| acl.auth_id() == &AuthId::anyone()))
}

/// Deletes an entry that was made before its folder was closed, if anyone, or only somebody else, has a right to it.
async fn delete_open(client: &Client, path: &str) -> Result<(), Error> {
    match is_open(client, path).await {
        Ok(true) | Err(Error::NoAuth) => {}
        Ok(false) | Err(Error::NoNode) => return Ok(()),
        Err(error) => return Err(error),
    }
    match within(client.delete(path, None)).await {
        Ok(()) | Err(Error::NoNode) => Ok(()),
        Err(error) => Err(error),
    }
}

impl Inner {
    /// Who may do what with what this server makes.
    const fn acls(&self) -> Acls<'static> {
        if self.account.is_some() { Acls::creator_all() } else { Acls::anyone_all() }
    }

    /// Makes the folder of each role, and the one above them. With an account, one that was open to anyone is closed;
    /// and whether this account may use it is seen here and not at the first server.
    async fn make_folders(&self, client: &Client) -> Result<(), Error> {
        let parent = self.root.rsplit_once('/').map_or("/", |(parent, _)| parent);
        within(client.mkdir(parent, &CreateMode::Persistent.with_acls(Acls::anyone_all()))).await?;
        // Whoever may delete in a folder could make the ones below it their own.
        self.make_folder(client, &self.root).await?;
        for role in Role::ALL {
            let folder = self.folder(role);
            self.make_folder(client, &folder).await?;
            let names = within(client.list_children(&folder)).await?;
            if self.account.is_some() {
                let paths: Vec<String> = names.iter().map(|name| format!("{folder}/{name}")).collect();
                try_join_all(paths.iter().map(|path| delete_open(client, path))).await?;
            }
        }
        Ok(())
    }

    /// Makes a folder that is missing; with an account, closes one that is open.
    async fn make_folder(&self, client: &Client, folder: &str) -> Result<(), Error> {
        match within(client.create(folder, &[], &CreateMode::Persistent.with_acls(self.acls()))).await {
            Ok(_) | Err(Error::NodeExists) => {}
            Err(error) => return Err(error),
        }
        if self.account.is_some() && is_open(client, folder).await? {
            let own = Acl::new(Permission::ALL, AuthId::authed());
            within(client.set_acl(folder, &[own], None)).await?;
        }
        Ok(())
    }

    fn folder(&self, role: Role) -> String {
        format!("{}/{role}", self.root)
    }

    fn path(&self, role: Role, name: &ServerName) -> String {
        format!("{}/{role}/{name}", self.root)
    }

    /// The live session, or a new one: after an expiry the old one never comes back.
    async fn client(&self) -> Result<Client, Error> {
        let mut slot = self.client.lock().await;
        if let Some(client) = slot.as_ref().filter(|client| !client.state().is_terminated()) {
            return Ok(client.clone());
        }
        let connect = async {
            let mut connector =
                Client::connector().with_session_timeout(ENTRY_TTL).with_connection_timeout(CONNECT_TIMEOUT);
            if let Some(account) = &self.account {
                connector = connector.with_auth("digest", account.as_bytes());
            }
            connector.connect(&self.ensemble).await
        };
        let client = tokio::time::timeout(CONNECT_TIMEOUT, connect).await.unwrap_or(Err(Error::Timeout))?;
        *slot = Some(client.clone());
        Ok(client)
    }

    async fn find(&self, client: &Client, path: &str) -> Result<Option<(ServerEntry, Stat)>, Error> {
        match within(client.get_data(path)).await {
            Ok((data, stat)) => Ok(serde_json::from_slice(&data).ok().map(|entry| (entry, stat))),
            Err(Error::NoNode) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Notes an entry's last change; returns whether it is young enough to count.
    fn is_fresh(&self, name: &ServerName, change: i64) -> bool {
        let now = clock::now_us();
        let mut changes = self.changes.lock().expect("no panic while held");
        let seen = changes.entry(name.clone()).or_insert((change, now));
        if seen.0 != change {
            *seen = (change, now);
        }
        is_young(seen.1, now)
    }

    /// One try to write an entry; returns whether nobody got in the way.
    async fn try_announce(&self, client: &Client, path: &str, entry: &ServerEntry) -> Result<bool, Error> {
        let data = serde_json::to_vec(entry).expect("plain data");
        let Some((stored, stat)) = self.find(client, path).await? else {
            let ephemeral = CreateMode::Ephemeral.with_acls(self.acls());
            return match within(client.create(path, &data, &ephemeral)).await {
                Ok((stat, _)) => {
                    self.is_fresh(&entry.name, stat.mzxid);
                    Ok(true)
                }
                Err(Error::NodeExists) => Ok(false),
                Err(error) => Err(error),
            };
        };
        if stored.epoch > entry.epoch {
            return Ok(true);
        }
        if stat.ephemeral_owner != client.session_id().0 {
            // Of a session before this one: it would end with that one.
            return match within(client.delete(path, Some(stat.version))).await {
                Ok(()) | Err(Error::NoNode | Error::BadVersion) => Ok(false),
                Err(error) => Err(error),
            };
        }
        match within(client.set_data(path, &data, Some(stat.version))).await {
            Ok(stat) => {
                self.is_fresh(&entry.name, stat.mzxid);
                Ok(true)
            }
            Err(Error::NoNode | Error::BadVersion) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Whether an entry that was seen to change at one time counts at another. Who read the clock first may get to the entry last.
const fn is_young(seen_us: u64, now_us: u64) -> bool {
    now_us.saturating_sub(seen_us) < ENTRY_TTL.as_micros() as u64
}

#[async_trait]
impl Registry for ZooKeeperRegistry {
    async fn announce(&self, entry: &ServerEntry) -> BackendResult<()> {
        const OPERATION: &str = "registry.announce";
        let announce = async {
            let client = self.inner.client().await?;
            let path = self.inner.path(entry.role, &entry.name);
            for _ in 0..TRIES {
                if self.inner.try_announce(&client, &path, entry).await? {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        match announce.await {
            Ok(true) => Ok(()),
            Ok(false) => Err(BackendError::not_applied(OPERATION, ErrorKind::Unavailable, "the entry keeps changing")),
            Err(error) => Err(failed(OPERATION, error)),
        }
    }

    async fn withdraw(&self, name: &ServerName, epoch: u64) -> BackendResult<()> {
        let withdraw = async {
            let client = self.inner.client().await?;
            for role in Role::ALL {
                let path = self.inner.path(role, name);
                let Some((stored, stat)) = self.inner.find(&client, &path).await? else { continue };
                if stored.epoch != epoch {
                    continue;
                }
                match within(client.delete(&path, Some(stat.version))).await {
                    // Changed meanwhile: by its successor.
                    Ok(()) | Err(Error::NoNode | Error::BadVersion) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        withdraw.await.map_err(|e| failed("registry.withdraw", e))
    }

    async fn list(&self, role: Role) -> BackendResult<Vec<ServerEntry>> {
        let list = async {
            let client = self.inner.client().await?;
            let mut names = within(client.list_children(&self.inner.folder(role))).await?;
            names.sort();
            let paths: Vec<String> = names.iter().map(|name| format!("{}/{name}", self.inner.folder(role))).collect();
            let found = paths.iter().map(|path| self.inner.find(&client, path));
            let found = try_join_all(found).await?;
            let fresh = found.into_iter().flatten().filter(|(e, stat)| self.inner.is_fresh(&e.name, stat.mzxid));
            Ok(fresh.map(|(entry, _)| entry).collect())
        };
        list.await.map_err(|e| failed("registry.list", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::contract::{Place, engine_address};
    use crate::backends::registry::contract::registry_contract;

    /// A folder of a running ensemble, and the process that opens it.
    struct Ensemble {
        url: String,
        opened: tokio::sync::OnceCell<Arc<dyn Registry>>,
    }

    #[async_trait]
    impl Place<dyn Registry> for Ensemble {
        /// Handles of one process share its session.
        async fn open(&self) -> Arc<dyn Registry> {
            let open = || async {
                Arc::new(ZooKeeperRegistry::open(&self.url, DeploymentId(7)).await.expect("opens")) as Arc<dyn Registry>
            };
            Arc::clone(self.opened.get_or_init(open).await)
        }

        async fn restart(&self) {}
    }

    fn ensemble() -> Ensemble {
        let url = format!("zookeeper://{}/test-{}", engine_address("CHATCTL_TEST_ZOOKEEPER"), uuid::Uuid::new_v4());
        Ensemble { url, opened: tokio::sync::OnceCell::new() }
    }

    registry_contract!(ensemble(), ignore = "needs CHATCTL_TEST_ZOOKEEPER");

    #[tokio::test]
    #[ignore = "needs CHATCTL_TEST_ZOOKEEPER"]
    async fn with_an_account_nobody_else_reads_or_enters_servers() {
        let (Ensemble { url, .. }, entry) = (ensemble(), crate::backends::registry::contract::promises::entry(1, 0));
        let as_account = |account: &str| url.replace("://", &format!("://{account}@"));
        // Made before there was an account: it is closed, and what was entered is gone.
        let open = ZooKeeperRegistry::open(&url, DeploymentId(7)).await.expect("opens");
        open.announce(&entry).await.expect("announces");
        let ours = ZooKeeperRegistry::open(&as_account("us:se@cret/1"), DeploymentId(7)).await.expect("opens");
        let (forged, reads) = (open.announce(&entry).await, open.list(entry.role).await);
        for refused in [forged, reads.map(|_| ())] {
            assert_eq!(refused.expect_err("is refused").kind, ErrorKind::Rejected);
        }
        assert_eq!(ours.list(entry.role).await.expect("lists"), []);
        let client = open.inner.client().await.expect("is connected");
        for folder in Role::ALL.map(|role| open.inner.folder(role)) {
            assert_eq!(client.delete(&folder, None).await.expect_err("is refused"), Error::NoAuth, "{folder}");
        }
        ours.announce(&entry).await.expect("announces");
        let second = ZooKeeperRegistry::open(&as_account("us:se@cret/1"), DeploymentId(7)).await.expect("opens");
        assert_eq!(second.list(entry.role).await.expect("lists"), std::slice::from_ref(&entry));
        let wrong = as_account("us:wrong");
        for address in [&url, &wrong] {
            let refused = ZooKeeperRegistry::open(address, DeploymentId(7)).await.map(|_| ()).expect_err("is refused");
            assert!(refused.to_string().contains("belong to another account"), "{refused}");
            assert!(!refused.to_string().contains("wrong"), "no password is told: {refused}");
        }
        ours.withdraw(&entry.name, entry.epoch).await.expect("withdraws");
        assert_eq!(second.list(entry.role).await.expect("lists"), []);
    }

    #[tokio::test]
    #[ignore = "needs CHATCTL_TEST_ZOOKEEPER"]
    async fn an_entry_ends_with_the_session_of_its_process() {
        let (Ensemble { url, .. }, entry) = (ensemble(), crate::backends::registry::contract::promises::entry(1, 0));
        let gone = ZooKeeperRegistry::open(&url, DeploymentId(7)).await.expect("opens");
        let here = ZooKeeperRegistry::open(&url, DeploymentId(7)).await.expect("opens");
        gone.announce(&entry).await.expect("announces");
        assert_eq!(here.list(entry.role).await.expect("lists"), std::slice::from_ref(&entry));
        drop(gone);
        for _ in 0..100 {
            if here.list(entry.role).await.expect("lists").is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the entry outlived its process");
    }

    #[test]
    fn a_change_that_was_seen_after_the_clock_was_read_is_young() {
        let life_us = ENTRY_TTL.as_micros() as u64;
        assert!(is_young(9, 8) && is_young(9, 8 + life_us) && !is_young(9, 9 + life_us));
    }
}
