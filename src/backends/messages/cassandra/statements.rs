//! The statements of a store, prepared, and how they are run.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use scylla::client::session::Session;
use scylla::deserialize::row::DeserializeRow;
use scylla::errors::PrepareError;
use scylla::frame::types::{Consistency, SerialConsistency};
use scylla::response::query_result::QueryResult;
use scylla::serialize::row::SerializeRow;
use scylla::statement::prepared::PreparedStatement;

use super::{failed, sql};
use crate::backends::error::{BackendError, BackendResult, ErrorKind};
use crate::backends::messages::cassandra_cluster::Address;

/// Longest that one statement may take. Under the deadline that every call to a port has.
const STATEMENT_TIMEOUT: Duration = Duration::from_millis(2_200);

/// Buckets that are remembered as known; a full memory starts anew.
const KNOWN_BUCKETS_MAX: usize = 100_000;

/// A session and its statements.
pub(super) struct Statements {
    pub(super) session: Session,
    pub(super) insert: PreparedStatement,
    pub(super) insert_bucket: PreparedStatement,
    pub(super) read: PreparedStatement,
    pub(super) read_back: PreparedStatement,
    pub(super) buckets: PreparedStatement,
    pub(super) buckets_back: PreparedStatement,
    pub(super) void: PreparedStatement,
    pub(super) head: PreparedStatement,
    pub(super) newest_buckets: PreparedStatement,
    pub(super) first_head: PreparedStatement,
    pub(super) raise_head: PreparedStatement,
    pub(super) mark: PreparedStatement,
    /// The same, by a transaction over all data centers.
    pub(super) mark_of_all: PreparedStatement,
    pub(super) read_mark: PreparedStatement,
    /// The same, of all data centers.
    pub(super) read_mark_of_all: PreparedStatement,
    pub(super) probe: PreparedStatement,
    /// Buckets that are listed already. Written by `append`.
    pub(super) known_buckets: Mutex<HashSet<(u64, u64)>>,
    /// Product and version of a node, as of the opening.
    pub(super) version: String,
}

/// Prepares a statement, with the quorum that counts.
async fn prepared(session: &Session, address: &Address, text: String) -> Result<PreparedStatement, PrepareError> {
    let (quorum, serial) = if address.datacenter.is_some() {
        (Consistency::LocalQuorum, SerialConsistency::LocalSerial)
    } else {
        (Consistency::Quorum, SerialConsistency::Serial)
    };
    let mut statement = session.prepare(text).await?;
    statement.set_consistency(quorum);
    statement.set_serial_consistency(Some(serial));
    statement.set_request_timeout(Some(STATEMENT_TIMEOUT));
    Ok(statement)
}

/// The same statement, with the quorum of all data centers.
fn over_all_datacenters(mut statement: PreparedStatement) -> PreparedStatement {
    statement.set_consistency(Consistency::Quorum);
    statement.set_serial_consistency(Some(SerialConsistency::Serial));
    statement
}

impl Statements {
    pub(super) async fn prepare(session: Session, address: &Address, version: String) -> Result<Self, PrepareError> {
        const ROW: &str = "message_id, sender_id, uuid, content_type, content, reply_to, timestamp";
        let keyspace = &address.keyspace;
        let prepare = async |text: String| prepared(&session, address, text).await;
        let mark = format!("INSERT INTO {keyspace}.store_marks (name, value) VALUES (?, ?) IF NOT EXISTS");
        let read_mark = format!("SELECT value FROM {keyspace}.store_marks WHERE name = ?");
        let in_bucket = format!("{keyspace}.messages WHERE conversation_id = ? AND bucket = ?");
        Ok(Self {
            insert: prepare(format!(
                "INSERT INTO {keyspace}.messages (conversation_id, bucket, {ROW}, status) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            ))
            .await?,
            insert_bucket: prepare(format!(
                "INSERT INTO {keyspace}.message_buckets (conversation_id, bucket) VALUES (?, ?)"
            ))
            .await?,
            read: prepare(format!(
                "SELECT {ROW} FROM {in_bucket} AND message_id > ? AND message_id <= ? ORDER BY message_id ASC LIMIT ?"
            ))
            .await?,
            read_back: prepare(format!("SELECT {ROW} FROM {in_bucket} AND message_id < ? LIMIT ?")).await?,
            buckets: prepare(format!(
                "SELECT bucket FROM {keyspace}.message_buckets WHERE conversation_id = ? \
                 AND bucket >= ? AND bucket <= ? ORDER BY bucket ASC"
            ))
            .await?,
            buckets_back: prepare(format!(
                "SELECT bucket FROM {keyspace}.message_buckets WHERE conversation_id = ? AND bucket <= ?"
            ))
            .await?,
            void: prepare(format!(
                "DELETE FROM {keyspace}.messages USING TIMESTAMP ? WHERE conversation_id = ? AND bucket = ? \
                 AND message_id > ? AND message_id <= ?"
            ))
            .await?,
            // A quorum has seen every transaction that was answered.
            head: prepare(format!(
                "SELECT epoch, block_end FROM {keyspace}.conversation_heads WHERE conversation_id = ?"
            ))
            .await?,
            newest_buckets: prepare(format!(
                "SELECT conversation_id, bucket FROM {keyspace}.message_buckets WHERE conversation_id IN ? \
                 PER PARTITION LIMIT 1"
            ))
            .await?,
            first_head: prepare(format!(
                "INSERT INTO {keyspace}.conversation_heads (conversation_id, epoch, block_end) VALUES (?, ?, ?) \
                 IF NOT EXISTS"
            ))
            .await?,
            raise_head: prepare(format!(
                "UPDATE {keyspace}.conversation_heads SET epoch = ?, block_end = ? WHERE conversation_id = ? \
                 IF epoch = ? AND block_end = ?"
            ))
            .await?,
            mark: prepare(mark.clone()).await?,
            mark_of_all: over_all_datacenters(prepare(mark).await?),
            read_mark: prepare(read_mark.clone()).await?,
            read_mark_of_all: over_all_datacenters(prepare(read_mark).await?),
            probe: prepare(format!("INSERT INTO {keyspace}.store_marks (name, value) VALUES ('probe', '')")).await?,
            known_buckets: Mutex::default(),
            version,
            session,
        })
    }

    pub(super) async fn run(
        &self,
        operation: &'static str,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> BackendResult<QueryResult> {
        self.session.execute_unpaged(statement, values).await.map_err(|e| failed(operation, e))
    }

    pub(super) async fn rows<R>(
        &self,
        operation: &'static str,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> BackendResult<Vec<R>>
    where
        R: for<'f, 'm> DeserializeRow<'f, 'm>,
    {
        let corrupt =
            |e: &dyn std::fmt::Display| BackendError::not_applied(operation, ErrorKind::Corrupt, e.to_string());
        let rows = self.run(operation, statement, values).await?.into_rows_result().map_err(|e| corrupt(&e))?;
        let rows = rows.rows::<R>().map_err(|e| corrupt(&e))?;
        rows.collect::<Result<_, _>>().map_err(|e| corrupt(&e))
    }

    /// Lists a bucket before the first message goes there.
    pub(super) async fn list_bucket(&self, conversation: u64, bucket: u64) -> BackendResult<()> {
        let is_known = self.known_buckets.lock().expect("no panic while held").contains(&(conversation, bucket));
        if is_known {
            return Ok(());
        }
        self.run("messages.append", &self.insert_bucket, (sql(conversation), sql(bucket))).await?;
        let mut known = self.known_buckets.lock().expect("no panic while held");
        if known.len() >= KNOWN_BUCKETS_MAX {
            known.clear();
        }
        known.insert((conversation, bucket));
        Ok(())
    }
}
