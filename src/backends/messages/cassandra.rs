//! The message store in Cassandra (or `ScyllaDB`, which speaks the same protocol).
//!
//! A conversation's messages are cut into partitions of [`BUCKET_IDS`] ids, newest first within each; a small table says which
//! buckets there are, so that readers skip the ids that no counter ever gave out. Writes and reads are by quorum, of all data
//! centers or of the one that the address names ([ADR 24](../../../docs/adr/0024-where-the-engines-are.md)). A void id is a
//! tombstone with a time in the future, which a row that lands late can't outrun. Heads change by lightweight transactions only.

mod statements;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session_builder::SessionBuilder;
use scylla::errors::{DbError, ExecutionError, RequestAttemptError};
use scylla::policies::load_balancing::DefaultPolicy;
use scylla::response::query_result::QueryResult;
use scylla::statement::prepared::PreparedStatement;
use uuid::Uuid;

use self::statements::Statements;
use super::cassandra_cluster::{Address, checked_version, datacenter, replicas_of, tables};
use super::{ConversationHead, Messages, Newest, STATUS_SENT, StoredMessage};
use crate::backends::error::{BackendError, BackendResult, ErrorKind};
use crate::backends::{deployment, without_password};
use crate::protocol::{ConversationId, MessageId, UserId};
use crate::runtime::clock;

/// Ids in one partition. At 1 KiB a message this is 5 MiB, far below what Cassandra bears.
const BUCKET_IDS: u64 = 5_000;

/// How far in the future a void is written: further than clocks of servers differ and writes are late.
const VOID_AHEAD: Duration = Duration::from_hours(24);

/// Longest that opening may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(8);

/// Conversations in one question for their newest bucket.
const NEWEST_AT_ONCE: usize = 100;

/// Partitions that one call writes to at the same time.
const AT_ONCE: usize = 8;

/// Mark of the quorum that the store's messages are written and read by: a data center, or all of them.
const QUORUM: &str = "quorum";
const ALL_DATACENTERS: &str = "all data centers";

/// Messages in a keyspace. Clones share the connections.
#[derive(Clone)]
pub struct CassandraMessages {
    inner: Arc<Statements>,
}

impl CassandraMessages {
    /// Opens the store, and makes keyspace and tables that are missing.
    ///
    /// # Errors
    /// Names the address and the fix.
    pub async fn open(url: &str) -> BackendResult<Self> {
        let shown = without_password(url);
        let refused = |kind, text: String| BackendError::not_applied("open messages", kind, format!("{shown}: {text}"));
        let Some(address) = Address::parse(url) else {
            let valid =
                "valid is cassandra://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…][/KEYSPACE][?replicas=1…7&datacenter=NAME]";
            return Err(refused(ErrorKind::Rejected, valid.to_owned()));
        };
        let mut builder = SessionBuilder::new().known_nodes(&address.hosts).connection_timeout(OPEN_TIMEOUT);
        if let Some((user, password)) = &address.user {
            builder = builder.user(user, password);
        }
        if let Some(datacenter) = &address.datacenter {
            let local = DefaultPolicy::builder().prefer_datacenter(datacenter.clone()).build();
            let profile = ExecutionProfile::builder().load_balancing_policy(local).build();
            builder = builder.default_execution_profile_handle(profile.into_handle());
        }
        let unavailable = |e: &dyn std::fmt::Display| {
            refused(ErrorKind::Unavailable, format!("{e}; check address, name and password, and that a node is up"))
        };
        let session = tokio::time::timeout(OPEN_TIMEOUT, builder.build())
            .await
            .map_err(|_| unavailable(&"no node answers"))?
            .map_err(|e| unavailable(&e))?;
        address.check_nodes(&session).map_err(|problem| refused(ErrorKind::Rejected, problem))?;
        let version = checked_version(&session).await.map_err(|text| refused(ErrorKind::Rejected, text))?;
        let datacenter = match &address.datacenter {
            Some(name) => name.clone(),
            None => datacenter(&session).await.map_err(|e| unavailable(&e))?,
        };
        for statement in tables(&address.keyspace, &datacenter, address.replicas.unwrap_or(1)) {
            session
                .query_unpaged(statement, ())
                .await
                .map_err(|e| refused(ErrorKind::Rejected, format!("making the tables: {e}")))?;
        }
        let replicas = replicas_of(&session, &address).await.map_err(|e| unavailable(&e))?;
        if let Some(wanted) = address.replicas.filter(|wanted| u32::from(*wanted) != replicas) {
            let keyspace = &address.keyspace;
            let text = format!(
                "keyspace {keyspace} has {replicas} replicas, the address says {wanted}: ALTER KEYSPACE and repair it, or \
                 leave replicas out of the address"
            );
            return Err(refused(ErrorKind::Rejected, text));
        }
        let inner = Statements::prepare(session, &address, version).await;
        let store = Self { inner: Arc::new(inner.map_err(|e| refused(ErrorKind::Rejected, e.to_string()))?) };
        store.bind_quorum(&address).await?.map_err(|problem| refused(ErrorKind::Rejected, problem))?;
        store.warn_of_late_writes(&shown, replicas).await;
        Ok(store)
    }

    /// Holds everybody to the quorum that the store was first opened with: what one quorum has acknowledged, another one may not
    /// see.
    async fn bind_quorum(&self, address: &Address) -> BackendResult<Result<(), String>> {
        const OPERATION: &str = "open messages";
        let wanted = address.datacenter.as_deref().unwrap_or(ALL_DATACENTERS);
        let stored = async |name: &str, read: &PreparedStatement| {
            let rows = self.inner.rows::<(Option<String>,)>(OPERATION, read, (name,)).await?;
            Ok::<_, BackendError>(rows.into_iter().find_map(|(value,)| value))
        };
        let bound = if let Some(bound) = stored(QUORUM, &self.inner.read_mark).await? {
            bound
        } else {
            // A store from before the mark has always had the quorum of all; one data center may not have heard of its
            // use.
            let is_used = stored(deployment::DEPLOYMENT, &self.inner.read_mark_of_all).await?.is_some();
            let first = if is_used { ALL_DATACENTERS } else { wanted };
            marked(OPERATION, self.inner.run(OPERATION, &self.inner.mark_of_all, (QUORUM, first)).await?, first)?
        };
        if bound == wanted {
            return Ok(Ok(()));
        }
        let fix = if bound == ALL_DATACENTERS {
            "leave datacenter out of the address".to_owned()
        } else {
            format!("say datacenter={bound}")
        };
        Ok(Err(format!(
            "its messages are written and read by the quorum of {bound}, and the address says that of {wanted}, which may \
             miss them: {fix}"
        )))
    }

    /// Warns of a cluster of one replica that acknowledges writes before they are on disk: a node that is killed loses
    /// messages that were acknowledged, and epochs.
    async fn warn_of_late_writes(&self, address: &str, replicas: u32) {
        const QUERY: &str = "SELECT value FROM system_views.settings WHERE name = 'commitlog_sync'";
        // Versions before 4.0 do not tell.
        let Ok(answer) = self.inner.session.query_unpaged(QUERY, ()).await else { return };
        let setting = answer.into_rows_result().ok().and_then(|rows| rows.single_row::<(String,)>().ok());
        if replicas == 1 && setting.is_some_and(|(value,)| value == "periodic") {
            tracing::warn!(
                "{address} has commitlog_sync periodic and the keyspace one replica: a node that is killed loses messages \
                 that were acknowledged; set commitlog_sync to batch or group, or replicas=3 in the address"
            );
        }
    }

    /// Product and version of a node, as of the opening.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.inner.version
    }
}

/// The database's integers are signed; ids stay far below the sign bit, and "everything" becomes the largest.
fn sql(id: u64) -> i64 {
    i64::try_from(id).unwrap_or(i64::MAX)
}

const fn bucket_of(id: u64) -> u64 {
    id / BUCKET_IDS
}

/// What an error means, for reads and writes alike: only what surely was not applied says so.
fn failed(operation: &'static str, error: ExecutionError) -> BackendError {
    use ErrorKind::{Rejected, TimedOut, Unavailable};
    match &error {
        ExecutionError::BadQuery(_) | ExecutionError::PrepareError(_) => {
            BackendError::not_applied(operation, Rejected, error)
        }
        ExecutionError::EmptyPlan | ExecutionError::ConnectionPoolError(_) => {
            BackendError::not_applied(operation, Unavailable, error)
        }
        ExecutionError::RequestTimeout(_) => BackendError::unknown(operation, TimedOut, error),
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(db, _)) => match db {
            DbError::Unavailable { .. } | DbError::Overloaded | DbError::IsBootstrapping => {
                BackendError::not_applied(operation, Unavailable, error)
            }
            DbError::WriteTimeout { .. } | DbError::ReadTimeout { .. } => {
                BackendError::unknown(operation, TimedOut, error)
            }
            DbError::SyntaxError | DbError::Invalid | DbError::Unauthorized => {
                BackendError::not_applied(operation, Rejected, error)
            }
            _ => BackendError::unknown(operation, Unavailable, error),
        },
        _ => BackendError::unknown(operation, Unavailable, error),
    }
}

/// The columns of a message, in the order in which they are read.
type Row = (i64, i64, Uuid, String, String, Option<i64>, i64);

fn message(conversation: ConversationId, row: Row) -> StoredMessage {
    let (id, sender, uuid, kind, body, reply_to, at) = row;
    StoredMessage {
        conversation,
        id: MessageId(id as u64),
        uuid,
        sender: UserId(sender as u64),
        kind,
        body,
        reply_to: reply_to.map(|id| MessageId(id as u64)),
        at: at as u64,
    }
}

/// Whether a transaction was applied, and the row as it was when not.
fn transaction(
    operation: &'static str,
    result: QueryResult,
) -> BackendResult<(bool, Vec<Option<scylla::value::CqlValue>>)> {
    let corrupt = |text: String| BackendError::not_applied(operation, ErrorKind::Corrupt, text);
    let rows = result.into_rows_result().map_err(|e| corrupt(e.to_string()))?;
    let row = rows.first_row::<scylla::value::Row>().map_err(|e| corrupt(e.to_string()))?;
    let applied = row.columns.first().and_then(|column| column.as_ref()?.as_boolean());
    let applied = applied.ok_or_else(|| corrupt("a transaction's answer has a wrong shape".to_owned()))?;
    Ok((applied, row.columns))
}

/// The value of a mark after a transaction that wanted it to be `value`.
fn marked(operation: &'static str, result: QueryResult, value: &str) -> BackendResult<String> {
    let (applied, found) = transaction(operation, result)?;
    if applied {
        return Ok(value.to_owned());
    }
    // Which columns come, and in which order, is the product's; the value is the last one.
    let text = found.last().and_then(|column| Some(column.as_ref()?.as_text()?.clone()));
    text.ok_or_else(|| BackendError::not_applied(operation, ErrorKind::Corrupt, "a mark without a value"))
}

#[async_trait]
impl Messages for CassandraMessages {
    async fn append(&self, message: &StoredMessage) -> BackendResult<()> {
        let StoredMessage { conversation, id, uuid, sender, kind, body, reply_to, at } = message;
        let bucket = bucket_of(id.0);
        self.inner.list_bucket(conversation.0, bucket).await?;
        let (conversation, bucket, id, sender) = (sql(conversation.0), sql(bucket), sql(id.0), sql(sender.0));
        let (reply_to, at) = (reply_to.map(|id| sql(id.0)), sql(*at));
        let values = (conversation, bucket, id, sender, uuid, kind, body, reply_to, at, STATUS_SENT);
        self.inner.run("messages.append", &self.inner.insert, values).await.map(|_| ())
    }

    async fn read(
        &self,
        conversation: ConversationId,
        after: MessageId,
        upto: MessageId,
        limit: usize,
    ) -> BackendResult<Vec<StoredMessage>> {
        const OPERATION: &str = "messages.read";
        if upto <= after {
            return Ok(Vec::new());
        }
        let (first, last) = (bucket_of(after.0 + 1), bucket_of(upto.0));
        let buckets = if first == last {
            vec![(sql(first),)]
        } else {
            let values = (sql(conversation.0), sql(first), sql(last));
            self.inner.rows::<(i64,)>(OPERATION, &self.inner.buckets, values).await?
        };
        let mut out = Vec::new();
        for (bucket,) in buckets {
            let wanted = i32::try_from(limit - out.len()).unwrap_or(i32::MAX);
            if wanted == 0 {
                break;
            }
            let values = (sql(conversation.0), bucket, sql(after.0), sql(upto.0), wanted);
            let rows = self.inner.rows::<Row>(OPERATION, &self.inner.read, values).await?;
            out.extend(rows.into_iter().map(|row| message(conversation, row)));
        }
        Ok(out)
    }

    async fn read_back(
        &self,
        conversation: ConversationId,
        before: MessageId,
        limit: usize,
    ) -> BackendResult<Vec<StoredMessage>> {
        const OPERATION: &str = "messages.read_back";
        let values = (sql(conversation.0), sql(bucket_of(before.0)));
        let buckets = self.inner.rows::<(i64,)>(OPERATION, &self.inner.buckets_back, values).await?;
        let mut out = Vec::new();
        for (bucket,) in buckets {
            let wanted = i32::try_from(limit - out.len()).unwrap_or(i32::MAX);
            if wanted == 0 {
                break;
            }
            let values = (sql(conversation.0), bucket, sql(before.0), wanted);
            let rows = self.inner.rows::<Row>(OPERATION, &self.inner.read_back, values).await?;
            out.extend(rows.into_iter().map(|row| message(conversation, row)));
        }
        Ok(out)
    }

    /// One question for the newest bucket of many, then one for each that has any.
    async fn newest(&self, conversations: &[ConversationId]) -> BackendResult<Vec<Option<Newest>>> {
        const OPERATION: &str = "messages.newest";
        let mut used = HashSet::new();
        for chunk in conversations.chunks(NEWEST_AT_ONCE) {
            let ids: Vec<i64> = chunk.iter().map(|conversation| sql(conversation.0)).collect();
            let rows = self.inner.rows::<(i64, i64)>(OPERATION, &self.inner.newest_buckets, (ids,)).await?;
            used.extend(rows.into_iter().map(|(conversation, _)| conversation));
        }
        stream::iter(conversations.iter().copied())
            .map(|conversation| {
                let is_used = used.contains(&sql(conversation.0));
                async move {
                    if !is_used {
                        return Ok(None);
                    }
                    Ok(self.read_back(conversation, MessageId(u64::MAX), 1).await?.pop().map(Newest::from))
                }
            })
            .buffered(AT_ONCE)
            .try_collect()
            .await
    }

    async fn void(&self, conversation: ConversationId, after: MessageId, upto: MessageId) -> BackendResult<()> {
        if upto <= after {
            return Ok(());
        }
        // In microseconds since 1970, as Cassandra times its writes.
        let at_us = sql((clock::unix_ms() + VOID_AHEAD.as_millis() as u64) * 1_000);
        let buckets = bucket_of(after.0 + 1)..=bucket_of(upto.0);
        stream::iter(buckets)
            .map(|bucket| {
                let values = (at_us, sql(conversation.0), sql(bucket), sql(after.0), sql(upto.0));
                self.inner.run("messages.void", &self.inner.void, values)
            })
            .buffer_unordered(AT_ONCE)
            .try_for_each(|_| async { Ok(()) })
            .await
    }

    async fn head(&self, conversation: ConversationId) -> BackendResult<ConversationHead> {
        let values = (sql(conversation.0),);
        let rows = self.inner.rows::<(i64, i64)>("messages.head", &self.inner.head, values).await?;
        let head =
            |(epoch, block_end): &(i64, i64)| ConversationHead { epoch: *epoch as u64, block_end: *block_end as u64 };
        Ok(rows.first().map(head).unwrap_or_default())
    }

    async fn raise_head(
        &self,
        conversation: ConversationId,
        from: ConversationHead,
        to: ConversationHead,
    ) -> BackendResult<bool> {
        const OPERATION: &str = "messages.raise_head";
        let (epoch, block_end) = (sql(to.epoch), sql(to.block_end));
        let result = if from == ConversationHead::default() {
            self.inner.run(OPERATION, &self.inner.first_head, (sql(conversation.0), epoch, block_end)).await?
        } else {
            let values = (epoch, block_end, sql(conversation.0), sql(from.epoch), sql(from.block_end));
            self.inner.run(OPERATION, &self.inner.raise_head, values).await?
        };
        Ok(transaction(OPERATION, result)?.0)
    }

    async fn mark(&self, name: &str, value: &str) -> BackendResult<String> {
        const OPERATION: &str = "messages.mark";
        marked(OPERATION, self.inner.run(OPERATION, &self.inner.mark, (name, value)).await?, value)
    }

    async fn probe(&self) -> BackendResult<()> {
        self.inner.run("messages.probe", &self.inner.probe, ()).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::contract::{Deployment, Place, engine_address};
    use crate::backends::messages::contract::messages_contract;

    fn keyspace() -> impl Place<dyn Messages> {
        let url = format!("cassandra://{}/chatctl_test", engine_address("CHATCTL_TEST_CASSANDRA"));
        Deployment(move || {
            let url = url.clone();
            async move { Arc::new(CassandraMessages::open(&url).await.expect("opens")) as Arc<dyn Messages> }
        })
    }

    messages_contract!(keyspace(), ignore = "needs CHATCTL_TEST_CASSANDRA");

    mod local {
        use super::*;

        /// The same with the quorum of one data center; its name is that of a node that knows no other.
        fn keyspace() -> impl Place<dyn Messages> {
            let address = engine_address("CHATCTL_TEST_CASSANDRA");
            let url = format!("cassandra://{address}/chatctl_test_local?datacenter=datacenter1");
            Deployment(move || {
                let url = url.clone();
                async move { Arc::new(CassandraMessages::open(&url).await.expect("opens")) as Arc<dyn Messages> }
            })
        }

        messages_contract!(keyspace(), ignore = "needs CHATCTL_TEST_CASSANDRA");
    }

    #[tokio::test]
    #[ignore = "needs CHATCTL_TEST_CASSANDRA"]
    async fn a_store_keeps_the_quorum_that_it_was_first_opened_with() {
        let address = engine_address("CHATCTL_TEST_CASSANDRA");
        let own = uuid::Uuid::new_v4().simple().to_string();
        let url = |keyspace: &str, options: &str| format!("cassandra://{address}/{keyspace}_{own}{options}");
        let refusal = async |url: String| CassandraMessages::open(&url).await.err().expect("refused").to_string();
        let error = refusal(url("q", "?datacenter=mars")).await;
        assert!(error.contains("no data center mars: valid are datacenter1"), "{error}");
        for _ in 0..2 {
            CassandraMessages::open(&url("q", "?datacenter=datacenter1")).await.expect("opens");
        }
        let error = refusal(url("q", "")).await;
        assert!(error.ends_with("say datacenter=datacenter1"), "{error}");
        // A store that was in use before there was the mark.
        let old = CassandraMessages::open(&url("old", "")).await.expect("opens");
        old.mark(deployment::DEPLOYMENT, "0000000000000007").await.expect("marks");
        let forget = format!("DELETE FROM old_{own}.store_marks WHERE name = '{QUORUM}'");
        old.inner.session.query_unpaged(forget, ()).await.expect("forgets");
        let error = refusal(url("old", "?datacenter=datacenter1")).await;
        assert!(error.contains("leave datacenter out"), "{error}");
        for keyspace in ["q", "old"] {
            let drop = format!("DROP KEYSPACE {keyspace}_{own}");
            old.inner.session.query_unpaged(drop, ()).await.expect("dropped");
        }
    }
}
