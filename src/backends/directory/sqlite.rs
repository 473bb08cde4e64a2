//! The directory in `SQLite`, one file in the data folder.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{QueryBuilder, Row, Sqlite};
use uuid::Uuid;

use super::{ConversationRow, Credentials, Directory, NewConversationRow};
use crate::backends::{BackendError, BackendResult, error::ErrorKind};
use crate::protocol::api::{ConversationKind, Profile, Receipt};
use crate::protocol::frames::ReceiptStatus;
use crate::protocol::{ConversationId, MessageId, UserId};

/// Rows in one statement with many values; `SQLite` allows 32,766 bound values.
const ROWS_PER_STATEMENT: usize = 5_000;

/// Applied in order; `PRAGMA user_version` says how many are. A released one is never changed.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE users (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        display_name TEXT NOT NULL,
        password_hash TEXT NOT NULL
    );
    CREATE TABLE friends (user INTEGER NOT NULL, friend INTEGER NOT NULL, PRIMARY KEY (user, friend)) WITHOUT ROWID;
    CREATE TABLE conversations (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        owner INTEGER NOT NULL,
        pair TEXT UNIQUE
    );
    CREATE TABLE members (
        conversation INTEGER NOT NULL, user INTEGER NOT NULL, PRIMARY KEY (conversation, user)
    ) WITHOUT ROWID;
    CREATE INDEX members_by_user ON members (user, conversation);
    CREATE TABLE receipts (
        conversation INTEGER NOT NULL, user INTEGER NOT NULL, status TEXT NOT NULL, upto INTEGER NOT NULL,
        PRIMARY KEY (conversation, user, status)
    ) WITHOUT ROWID;
    CREATE TABLE revoked_tokens (token TEXT PRIMARY KEY, expires_at INTEGER NOT NULL) WITHOUT ROWID;
"];

/// The directory of a data folder. Clones share the connections.
#[derive(Clone)]
pub struct SqliteDirectory {
    pool: SqlitePool,
}

impl SqliteDirectory {
    /// Opens the file, or makes it, and brings its tables up to date.
    pub async fn open(file: &Path) -> BackendResult<Self> {
        const OPEN: &str = "open directory";
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(4))
            .statement_cache_capacity(64);
        let pool = SqlitePoolOptions::new()
            .max_connections(4)
            .acquire_timeout(Duration::from_secs(4))
            .connect_with(options)
            .await
            .map_err(|e| failed(OPEN, e))?;
        let directory = Self { pool };
        directory.migrate().await.map_err(|e| failed(OPEN, e))?;
        Ok(directory)
    }

    async fn migrate(&self) -> sqlx::Result<()> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let version: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *transaction).await?;
        for migration in MIGRATIONS.iter().skip(usize::try_from(version).unwrap_or(usize::MAX)) {
            sqlx::raw_sql(*migration).execute(&mut *transaction).await?;
        }
        let set_version = format!("PRAGMA user_version = {}", MIGRATIONS.len());
        sqlx::raw_sql(sqlx::AssertSqlSafe(set_version)).execute(&mut *transaction).await?;
        transaction.commit().await
    }

    /// Closes the connections; what was committed is in the file.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// `SQLite` ids are signed; ours stay far below the sign bit.
const fn sql(id: u64) -> i64 {
    id as i64
}

const fn id(value: i64) -> u64 {
    value as u64
}

fn failed(operation: &'static str, error: sqlx::Error) -> BackendError {
    if error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation) {
        return BackendError::not_applied(operation, ErrorKind::Conflict, error);
    }
    match &error {
        sqlx::Error::PoolTimedOut => BackendError::not_applied(operation, ErrorKind::TimedOut, error),
        sqlx::Error::Database(_) => BackendError::not_applied(operation, ErrorKind::Unavailable, error),
        _ => BackendError::unknown(operation, ErrorKind::Unavailable, error),
    }
}

fn kind_text(kind: ConversationKind) -> &'static str {
    match kind {
        ConversationKind::Direct => "direct",
        ConversationKind::Group => "group",
    }
}

fn profile(row: &SqliteRow) -> Profile {
    Profile { user: UserId(id(row.get(0))), name: row.get(1), display_name: row.get(2) }
}

fn conversation_row(row: &SqliteRow) -> ConversationRow {
    ConversationRow {
        conversation: ConversationId(id(row.get(0))),
        kind: if row.get::<&str, _>(1) == "direct" { ConversationKind::Direct } else { ConversationKind::Group },
        name: row.get(2),
        owner: UserId(id(row.get(3))),
        members: id(row.get(4)),
    }
}

fn users(rows: &[SqliteRow]) -> Vec<UserId> {
    rows.iter().map(|row| UserId(id(row.get(0)))).collect()
}

const CONVERSATION_COLUMNS: &str = "SELECT c.id, c.kind, c.name, c.owner, \
     (SELECT count(*) FROM members m WHERE m.conversation = c.id) FROM conversations c";

/// The pair of a direct conversation, the same from both sides.
fn pair(new: &NewConversationRow) -> Option<String> {
    let mut users = new.members.clone();
    users.sort_unstable();
    (new.kind == ConversationKind::Direct).then(|| users.iter().map(ToString::to_string).collect::<Vec<_>>().join("-"))
}

async fn insert_members(
    connection: &mut sqlx::SqliteConnection,
    conversation: u64,
    users: &[UserId],
) -> sqlx::Result<u64> {
    let mut joined = 0;
    for chunk in users.chunks(ROWS_PER_STATEMENT) {
        let mut query = QueryBuilder::<Sqlite>::new("INSERT OR IGNORE INTO members (conversation, user) ");
        query.push_values(chunk, |mut row, user| {
            row.push_bind(sql(conversation)).push_bind(sql(user.0));
        });
        joined += query.build().execute(&mut *connection).await?.rows_affected();
    }
    Ok(joined)
}

impl SqliteDirectory {
    async fn insert_conversation(&self, new: &NewConversationRow) -> sqlx::Result<ConversationId> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let pair = pair(new);
        if pair.is_some() {
            let found: Option<i64> = sqlx::query_scalar("SELECT id FROM conversations WHERE pair = ?")
                .bind(&pair)
                .fetch_optional(&mut *transaction)
                .await?;
            if let Some(found) = found {
                return Ok(ConversationId(id(found)));
            }
        }
        let row_id: i64 =
            sqlx::query_scalar("INSERT INTO conversations (kind, name, owner, pair) VALUES (?, ?, ?, ?) RETURNING id")
                .bind(kind_text(new.kind))
                .bind(&new.name)
                .bind(sql(new.owner.0))
                .bind(&pair)
                .fetch_one(&mut *transaction)
                .await?;
        insert_members(&mut transaction, id(row_id), &new.members).await?;
        transaction.commit().await?;
        Ok(ConversationId(id(row_id)))
    }

    async fn change_friends(&self, a: UserId, b: UserId, friends: bool) -> sqlx::Result<bool> {
        let statement = if friends {
            "INSERT OR IGNORE INTO friends (user, friend) VALUES (?1, ?2), (?2, ?1)"
        } else {
            "DELETE FROM friends WHERE (user = ?1 AND friend = ?2) OR (user = ?2 AND friend = ?1)"
        };
        let done = sqlx::query(statement).bind(sql(a.0)).bind(sql(b.0)).execute(&self.pool).await?;
        Ok(done.rows_affected() > 0)
    }
}

#[async_trait]
impl Directory for SqliteDirectory {
    async fn add_user(&self, name: &str, password_hash: &str) -> BackendResult<UserId> {
        let row: i64 = sqlx::query_scalar(
            "INSERT INTO users (name, display_name, password_hash) VALUES (?1, ?1, ?2) RETURNING id",
        )
        .bind(name)
        .bind(password_hash)
        .fetch_one(&self.pool)
        .await
        .map_err(|e| failed("directory.add_user", e))?;
        Ok(UserId(id(row)))
    }

    async fn credentials(&self, name: &str) -> BackendResult<Option<Credentials>> {
        let row = sqlx::query("SELECT id, password_hash FROM users WHERE name = ?")
            .bind(name)
            .fetch_optional(&self.pool)
            .await
            .map_err(|e| failed("directory.credentials", e))?;
        Ok(row.map(|row| Credentials { user: UserId(id(row.get(0))), password_hash: row.get(1) }))
    }

    async fn profiles(&self, users: &[UserId]) -> BackendResult<Vec<Profile>> {
        let mut out = Vec::new();
        for chunk in users.chunks(ROWS_PER_STATEMENT) {
            let mut query = QueryBuilder::<Sqlite>::new("SELECT id, name, display_name FROM users WHERE id IN (");
            let mut list = query.separated(", ");
            for user in chunk {
                list.push_bind(sql(user.0));
            }
            query.push(") ORDER BY id");
            let rows = query.build().fetch_all(&self.pool).await.map_err(|e| failed("directory.profiles", e))?;
            out.extend(rows.iter().map(profile));
        }
        Ok(out)
    }

    async fn find_user(&self, name: &str) -> BackendResult<Option<Profile>> {
        let row = sqlx::query("SELECT id, name, display_name FROM users WHERE name = ?")
            .bind(name)
            .fetch_optional(&self.pool)
            .await
            .map_err(|e| failed("directory.find_user", e))?;
        Ok(row.as_ref().map(profile))
    }

    async fn set_display_name(&self, user: UserId, display_name: &str) -> BackendResult<()> {
        sqlx::query("UPDATE users SET display_name = ? WHERE id = ?")
            .bind(display_name)
            .bind(sql(user.0))
            .execute(&self.pool)
            .await
            .map_err(|e| failed("directory.set_display_name", e))?;
        Ok(())
    }

    async fn set_friends(&self, a: UserId, b: UserId, friends: bool) -> BackendResult<bool> {
        self.change_friends(a, b, friends).await.map_err(|e| failed("directory.set_friends", e))
    }

    async fn friends(&self, user: UserId) -> BackendResult<Vec<UserId>> {
        let rows = sqlx::query("SELECT friend FROM friends WHERE user = ? ORDER BY friend")
            .bind(sql(user.0))
            .fetch_all(&self.pool)
            .await
            .map_err(|e| failed("directory.friends", e))?;
        Ok(users(&rows))
    }

    async fn add_conversation(&self, new: &NewConversationRow) -> BackendResult<ConversationId> {
        self.insert_conversation(new).await.map_err(|e| failed("directory.add_conversation", e))
    }

    async fn conversation(&self, conversation: ConversationId) -> BackendResult<Option<ConversationRow>> {
        let row = QueryBuilder::<Sqlite>::new(CONVERSATION_COLUMNS)
            .push(" WHERE c.id = ")
            .push_bind(sql(conversation.0))
            .build()
            .fetch_optional(&self.pool)
            .await
            .map_err(|e| failed("directory.conversation", e))?;
        Ok(row.as_ref().map(conversation_row))
    }

    async fn conversations_of(
        &self,
        user: UserId,
        after: ConversationId,
        limit: usize,
    ) -> BackendResult<Vec<ConversationRow>> {
        let rows = QueryBuilder::<Sqlite>::new(CONVERSATION_COLUMNS)
            .push(" JOIN members me ON me.conversation = c.id WHERE me.user = ")
            .push_bind(sql(user.0))
            .push(" AND me.conversation > ")
            .push_bind(sql(after.0))
            .push(" ORDER BY c.id LIMIT ")
            .push_bind(limit as i64)
            .build()
            .fetch_all(&self.pool)
            .await
            .map_err(|e| failed("directory.conversations_of", e))?;
        Ok(rows.iter().map(conversation_row).collect())
    }

    async fn members(&self, conversation: ConversationId) -> BackendResult<Vec<UserId>> {
        let rows = sqlx::query("SELECT user FROM members WHERE conversation = ? ORDER BY user")
            .bind(sql(conversation.0))
            .fetch_all(&self.pool)
            .await
            .map_err(|e| failed("directory.members", e))?;
        Ok(users(&rows))
    }

    async fn is_member(&self, conversation: ConversationId, user: UserId) -> BackendResult<bool> {
        let found: Option<i64> = sqlx::query_scalar("SELECT 1 FROM members WHERE conversation = ? AND user = ?")
            .bind(sql(conversation.0))
            .bind(sql(user.0))
            .fetch_optional(&self.pool)
            .await
            .map_err(|e| failed("directory.is_member", e))?;
        Ok(found.is_some())
    }

    async fn add_members(&self, conversation: ConversationId, users: &[UserId]) -> BackendResult<u64> {
        let add = async {
            let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
            let joined = insert_members(&mut transaction, conversation.0, users).await?;
            transaction.commit().await?;
            Ok(joined)
        };
        add.await.map_err(|e| failed("directory.add_members", e))
    }

    async fn remove_member(&self, conversation: ConversationId, user: UserId) -> BackendResult<bool> {
        let done = sqlx::query("DELETE FROM members WHERE conversation = ? AND user = ?")
            .bind(sql(conversation.0))
            .bind(sql(user.0))
            .execute(&self.pool)
            .await
            .map_err(|e| failed("directory.remove_member", e))?;
        Ok(done.rows_affected() > 0)
    }

    async fn raise_receipt(&self, conversation: ConversationId, receipt: &Receipt) -> BackendResult<()> {
        let status = match receipt.status {
            ReceiptStatus::Delivered => "delivered",
            ReceiptStatus::Read => "read",
        };
        sqlx::query(
            "INSERT INTO receipts (conversation, user, status, upto) VALUES (?, ?, ?, ?)
             ON CONFLICT (conversation, user, status) DO UPDATE SET upto = max(upto, excluded.upto)",
        )
        .bind(sql(conversation.0))
        .bind(sql(receipt.user.0))
        .bind(status)
        .bind(sql(receipt.upto.0))
        .execute(&self.pool)
        .await
        .map_err(|e| failed("directory.raise_receipt", e))?;
        Ok(())
    }

    async fn receipts(&self, conversation: ConversationId) -> BackendResult<Vec<Receipt>> {
        let rows = sqlx::query("SELECT user, status, upto FROM receipts WHERE conversation = ? ORDER BY user, status")
            .bind(sql(conversation.0))
            .fetch_all(&self.pool)
            .await
            .map_err(|e| failed("directory.receipts", e))?;
        let receipt = |row: &SqliteRow| Receipt {
            user: UserId(id(row.get(0))),
            status: if row.get::<&str, _>(1) == "read" { ReceiptStatus::Read } else { ReceiptStatus::Delivered },
            upto: MessageId(id(row.get(2))),
        };
        Ok(rows.iter().map(receipt).collect())
    }

    async fn revoke_token(&self, token: Uuid, expires_at: u64) -> BackendResult<()> {
        sqlx::query("INSERT OR IGNORE INTO revoked_tokens (token, expires_at) VALUES (?, ?)")
            .bind(token.to_string())
            .bind(sql(expires_at))
            .execute(&self.pool)
            .await
            .map_err(|e| failed("directory.revoke_token", e))?;
        Ok(())
    }

    async fn is_revoked(&self, token: Uuid) -> BackendResult<bool> {
        let found: Option<i64> = sqlx::query_scalar("SELECT 1 FROM revoked_tokens WHERE token = ?")
            .bind(token.to_string())
            .fetch_optional(&self.pool)
            .await
            .map_err(|e| failed("directory.is_revoked", e))?;
        Ok(found.is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backends::contract::Place;
    use crate::backends::directory::contract::directory_contract;

    struct FilePlace(tempfile::TempDir);

    #[async_trait]
    impl Place<dyn Directory> for FilePlace {
        async fn open(&self) -> Arc<dyn Directory> {
            Arc::new(SqliteDirectory::open(&self.0.path().join("directory.db")).await.expect("opens"))
        }

        async fn restart(&self) {}
    }

    fn place() -> FilePlace {
        FilePlace(tempfile::tempdir().expect("a temporary folder"))
    }

    directory_contract!(place());
}
