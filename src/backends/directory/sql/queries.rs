//! Statements that several calls of the directory share, and how they are run.

use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, AnyConnection, AnyPool, AssertSqlSafe, Row};

use super::rows::{id, kind_text, sql};
use super::{ROWS_PER_STATEMENT, SqlDirectory};
use crate::backends::directory::sql_error::failed;
use crate::backends::directory::{ConversationRow, NewConversationRow};
use crate::backends::{BackendError, BackendResult, error::ErrorKind};
use crate::protocol::api::ConversationKind;
use crate::protocol::{ConversationId, UserId};

/// The members of one conversation, counted up to a limit: whoever asks for a row must not pay for a channel of a
/// million.
const COUNT_MEMBERS: &str =
    "(SELECT count(*) FROM (SELECT 1 AS one FROM members WHERE conversation_id = ? LIMIT ?) counted)";

/// Conversations whose members are counted in one statement.
const COUNTS_PER_STATEMENT: usize = 50;

/// The pair of a direct conversation, the same from both sides.
fn pair(new: &NewConversationRow) -> Option<String> {
    let mut users = new.members.clone();
    users.sort_unstable();
    (new.kind == ConversationKind::Direct).then(|| users.iter().map(ToString::to_string).collect::<Vec<_>>().join("-"))
}

impl SqlDirectory {
    /// A statement with `?` for values.
    pub(super) fn query(&self, text: &str) -> Query<'static, Any, AnyArguments> {
        sqlx::query(AssertSqlSafe(self.dialect.statement(text)))
    }

    /// The connections to the server in use.
    pub(super) async fn pool(&self, operation: &'static str) -> BackendResult<AnyPool> {
        let pool = self.hosts.pool().await;
        pool.map_err(|problem| {
            let text = format!("{}: {problem}", self.address);
            BackendError::not_applied(operation, ErrorKind::Unavailable, text)
        })
    }

    /// The port's error; the next call chooses another server if this one may be lost.
    pub(super) fn failed(&self, operation: &'static str, error: sqlx::Error) -> BackendError {
        self.hosts.note(&error);
        failed(operation, error)
    }

    pub(super) async fn fetch(
        &self,
        operation: &'static str,
        query: Query<'static, Any, AnyArguments>,
    ) -> BackendResult<Vec<AnyRow>> {
        let pool = self.pool(operation).await?;
        query.fetch_all(&pool).await.map_err(|e| self.failed(operation, e))
    }

    /// Runs a change; returns how many rows it touched.
    pub(super) async fn change(
        &self,
        operation: &'static str,
        query: Query<'static, Any, AnyArguments>,
    ) -> BackendResult<u64> {
        let pool = self.pool(operation).await?;
        query.execute(&pool).await.map(|done| done.rows_affected()).map_err(|e| self.failed(operation, e))
    }

    /// Inserts a row and returns its id.
    pub(super) async fn insert(
        &self,
        connection: &mut AnyConnection,
        text: &str,
        bind: impl FnOnce(Query<'static, Any, AnyArguments>) -> Query<'static, Any, AnyArguments> + Send,
    ) -> sqlx::Result<u64> {
        if self.dialect.returns_ids() {
            let row = bind(self.query(&format!("{text} RETURNING id"))).fetch_one(connection).await?;
            return Ok(id(row.get(0)));
        }
        let done = bind(self.query(text)).execute(connection).await?;
        done.last_insert_id().map(id).ok_or(sqlx::Error::RowNotFound)
    }

    pub(super) async fn insert_members(
        &self,
        connection: &mut AnyConnection,
        conversation: u64,
        users: &[UserId],
    ) -> sqlx::Result<u64> {
        let mut joined = 0;
        for chunk in users.chunks(ROWS_PER_STATEMENT) {
            let text = self.dialect.insert_new("members", &["conversation_id", "user_id"], chunk.len());
            let bind = |query: Query<'static, Any, AnyArguments>, user: &UserId| {
                query.bind(sql(conversation)).bind(sql(user.0))
            };
            joined += chunk.iter().fold(self.query(&text), bind).execute(&mut *connection).await?.rows_affected();
        }
        Ok(joined)
    }

    /// Fills in how many members conversations have, each counted up to `most`.
    pub(super) async fn count_members(
        &self,
        operation: &'static str,
        rows: &mut [ConversationRow],
        most: usize,
    ) -> BackendResult<()> {
        for chunk in rows.chunks_mut(COUNTS_PER_STATEMENT) {
            let counts: Vec<String> = (0..chunk.len()).map(|n| format!("SELECT {n}, {COUNT_MEMBERS}")).collect();
            let mut query = self.query(&counts.join(" UNION ALL "));
            for row in &*chunk {
                query = query.bind(sql(row.conversation.0)).bind(most as i64);
            }
            for counted in self.fetch(operation, query).await? {
                let (n, members): (i64, i64) = (counted.get(0), counted.get(1));
                if let Some(row) = chunk.get_mut(n as usize) {
                    row.members = id(members);
                }
            }
        }
        Ok(())
    }

    pub(super) async fn insert_conversation(
        &self,
        pool: &AnyPool,
        new: &NewConversationRow,
    ) -> sqlx::Result<ConversationId> {
        let pair = pair(new);
        let mut transaction = pool.begin_with(self.dialect.begin()).await?;
        if let Some(pair) = &pair {
            let found = self.query("SELECT id FROM conversations WHERE pair = ?").bind(pair.clone());
            if let Some(found) = found.fetch_optional(&mut *transaction).await? {
                return Ok(ConversationId(id(found.get(0))));
            }
        }
        let text = "INSERT INTO conversations (kind, name, owner_id, pair) VALUES (?, ?, ?, ?)";
        let (kind, name, owner) = (kind_text(new.kind), new.name.clone(), sql(new.owner.0));
        let row_id =
            self.insert(&mut transaction, text, |query| query.bind(kind).bind(name).bind(owner).bind(pair)).await?;
        self.insert_members(&mut transaction, row_id, &new.members).await?;
        transaction.commit().await?;
        Ok(ConversationId(row_id))
    }
}
