//! The directory in a relational database: `SQLite` in the data folder, PostgreSQL, MySQL or MariaDB.

mod queries;
mod rows;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, AnyPool, AssertSqlSafe, Row};
use uuid::Uuid;

use self::rows::{check_texts, conversation_row, id, kind_of, profile, sql, users};

use super::dialect::Dialect;
use super::hosts::Hosts;
use super::schema::migrate;
use super::sql_error::is_collision;
use super::{Audience, ConversationRow, Credentials, Directory, NewConversationRow, NewUser, TokenStanding};
use crate::backends::deployment::DeploymentId;
use crate::backends::{BackendError, BackendResult, error::ErrorKind};
use crate::protocol::api::{Profile, Receipt};
use crate::protocol::frames::ReceiptStatus;
use crate::protocol::limits::{MEMBERS_COUNTED_MAX, MEMBERS_LISTED_MAX};
use crate::protocol::{ConversationId, MessageId, UserId};

/// Rows in one statement with many values; `SQLite` allows 32,766 bound values, the others twice that.
const ROWS_PER_STATEMENT: usize = 5_000;

/// A logged-out token is remembered for so long past its end: a server whose clock is behind the database's still takes it
/// for one that has not expired.
const PURGE_AFTER_S: u64 = 3_600;

/// Tries of a transaction that ran into another one.
const TRIES: usize = 5;

/// A directory. Clones share the connections.
#[derive(Clone)]
pub struct SqlDirectory {
    hosts: Arc<Hosts>,
    /// Without a password, for messages.
    address: String,
    dialect: Dialect,
    /// Product and version, as of the opening.
    version: String,
    /// Made with the tables.
    id: String,
}

impl SqlDirectory {
    /// Opens a file, or makes it, and brings its tables up to date.
    ///
    /// # Errors
    /// Says what is wrong with the file.
    pub async fn open_file(file: &Path) -> BackendResult<Self> {
        Self::open(&format!("sqlite://{}?mode=rwc", file.display())).await
    }

    /// Opens a database at an address such as `postgres://user:password@host:5432,host:5432/database`, and brings its tables up to
    /// date.
    ///
    /// # Errors
    /// Names the address and the fix.
    pub async fn open(url: &str) -> BackendResult<Self> {
        const OPEN: &str = "open directory";
        let address = crate::backends::without_password(url);
        let refused = |kind, text: String| BackendError::not_applied(OPEN, kind, format!("{address}: {text}"));
        let Some(dialect) = Dialect::of(url) else {
            let valid = "valid are postgres://, mysql:// and mariadb:// addresses";
            return Err(refused(ErrorKind::Rejected, format!("no database that is known; {valid}")));
        };
        sqlx::any::install_default_drivers();
        let hosts = Hosts::parse(url, dialect).map_err(|problem| refused(ErrorKind::Rejected, problem))?;
        let mut directory = Self {
            hosts: Arc::new(hosts),
            address: address.clone(),
            dialect,
            version: String::new(),
            id: String::new(),
        };
        let pool = directory.hosts.pool().await.map_err(|problem| {
            let fix = "check address, name and password, and that the database exists";
            refused(ErrorKind::Unavailable, format!("{problem}; {fix}"))
        })?;
        let version: String = sqlx::query_scalar(dialect.version_query())
            .fetch_one(&pool)
            .await
            .map_err(|e| refused(ErrorKind::Unavailable, e.to_string()))?;
        dialect.check_version(&version).map_err(|text| refused(ErrorKind::Rejected, text))?;
        directory.version = dialect.product(&version);
        migrate(&pool, dialect)
            .await
            .map_err(|e| refused(ErrorKind::Unavailable, format!("making the tables: {e}; {}", e.fix())))?;
        directory.id = directory.identity(&pool).await.map_err(|e| refused(ErrorKind::Unavailable, e.to_string()))?;
        directory.hosts.hold_to(&directory.id);
        Ok(directory)
    }

    /// The id that was made with the tables; a new directory gets one now.
    async fn identity(&self, pool: &AnyPool) -> sqlx::Result<String> {
        let text = self.dialect.insert_new("directory_identity", &["one", "id"], 1);
        let fresh = DeploymentId::fresh().to_string();
        sqlx::query(AssertSqlSafe(self.dialect.statement(&text))).bind(1_i64).bind(fresh).execute(pool).await?;
        sqlx::query_scalar("SELECT id FROM directory_identity").fetch_one(pool).await
    }

    /// Which directory this is: 16 hexadecimal digits that no other has.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Product and version, as of the opening.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Closes the connections; what was committed stays.
    pub async fn close(&self) {
        self.hosts.close().await;
    }
}

const CONVERSATION_COLUMNS: &str = "SELECT c.id, c.kind, c.name, c.owner_id FROM conversations c";

#[async_trait]
impl Directory for SqlDirectory {
    async fn add_user(&self, user: &NewUser) -> BackendResult<UserId> {
        const OPERATION: &str = "directory.add_user";
        check_texts(OPERATION, &[&user.name, &user.display_name])?;
        let NewUser { name, display_name, password_hash } = user.clone();
        let pool = self.pool(OPERATION).await?;
        let add = async {
            let mut connection = pool.acquire().await?;
            let text = "INSERT INTO users (name, display_name, password_hash) VALUES (?, ?, ?)";
            self.insert(&mut connection, text, |query| query.bind(name).bind(display_name).bind(password_hash)).await
        };
        add.await.map(UserId).map_err(|e| self.failed(OPERATION, e))
    }

    async fn add_users(&self, users: &[NewUser]) -> BackendResult<Vec<UserId>> {
        const OPERATION: &str = "directory.add_users";
        if users.is_empty() {
            return Ok(Vec::new());
        }
        for user in users {
            check_texts(OPERATION, &[&user.name, &user.display_name])?;
        }
        let pool = self.pool(OPERATION).await?;
        let add = async {
            let mut transaction = pool.begin_with(self.dialect.begin()).await?;
            for chunk in users.chunks(ROWS_PER_STATEMENT) {
                let rows = vec!["(?, ?, ?)"; chunk.len()].join(", ");
                let text = format!("INSERT INTO users (name, display_name, password_hash) VALUES {rows}");
                let bind = |query: Query<'static, Any, AnyArguments>, user: &NewUser| {
                    query.bind(user.name.clone()).bind(user.display_name.clone()).bind(user.password_hash.clone())
                };
                chunk.iter().fold(self.query(&text), bind).execute(&mut *transaction).await?;
            }
            // Not every database tells the ids of many rows, and none promises their order.
            let mut ids = HashMap::new();
            for chunk in users.chunks(ROWS_PER_STATEMENT) {
                let list = vec!["?"; chunk.len()].join(", ");
                let query = self.query(&format!("SELECT id, name FROM users WHERE name IN ({list})"));
                let query = chunk.iter().fold(query, |query, user| query.bind(user.name.clone()));
                let rows = query.fetch_all(&mut *transaction).await?;
                ids.extend(rows.iter().map(|row| (row.get::<String, _>(1), UserId(id(row.get(0))))));
            }
            transaction.commit().await?;
            let found = users.iter().map(|user| ids.get(&user.name).copied().ok_or(sqlx::Error::RowNotFound));
            found.collect::<sqlx::Result<Vec<_>>>()
        };
        add.await.map_err(|e| self.failed(OPERATION, e))
    }

    async fn credentials(&self, name: &str) -> BackendResult<Option<Credentials>> {
        const OPERATION: &str = "directory.credentials";
        check_texts(OPERATION, &[name])?;
        let query = self.query("SELECT id, password_hash, name FROM users WHERE name = ?").bind(name.to_owned());
        let rows = self.fetch(OPERATION, query).await?;
        // MySQL and MariaDB hold texts for equal that differ in blanks at their end.
        let found = rows.first().filter(|row| row.get::<String, _>(2) == name);
        Ok(found.map(|row| Credentials { user: UserId(id(row.get(0))), password_hash: row.get(1) }))
    }

    async fn profiles(&self, users: &[UserId]) -> BackendResult<Vec<Profile>> {
        let mut out = Vec::new();
        for chunk in users.chunks(ROWS_PER_STATEMENT) {
            let list = vec!["?"; chunk.len()].join(", ");
            let text = format!("SELECT id, name, display_name FROM users WHERE id IN ({list}) ORDER BY id");
            let query = chunk.iter().fold(self.query(&text), |query, user| query.bind(sql(user.0)));
            out.extend(self.fetch("directory.profiles", query).await?.iter().map(profile));
        }
        Ok(out)
    }

    async fn find_user(&self, name: &str) -> BackendResult<Option<Profile>> {
        const OPERATION: &str = "directory.find_user";
        check_texts(OPERATION, &[name])?;
        let query = self.query("SELECT id, name, display_name FROM users WHERE name = ?").bind(name.to_owned());
        // As above: a name with blanks behind it is another one.
        Ok(self.fetch(OPERATION, query).await?.first().map(profile).filter(|found| found.name == name))
    }

    async fn set_display_name(&self, user: UserId, display_name: &str) -> BackendResult<()> {
        const OPERATION: &str = "directory.set_display_name";
        check_texts(OPERATION, &[display_name])?;
        let query = self.query("UPDATE users SET display_name = ? WHERE id = ?");
        let query = query.bind(display_name.to_owned()).bind(sql(user.0));
        self.change(OPERATION, query).await.map(|_| ())
    }

    async fn set_friends(&self, a: UserId, b: UserId, friends: bool) -> BackendResult<bool> {
        let text = if friends {
            self.dialect.insert_new("friends", &["user_id", "friend_id"], 2)
        } else {
            "DELETE FROM friends WHERE (user_id = ? AND friend_id = ?) OR (user_id = ? AND friend_id = ?)".to_owned()
        };
        // Always in the same order, so that two who befriend each other don't lock each other out.
        let (a, b) = (sql(a.0.min(b.0)), sql(a.0.max(b.0)));
        let query = self.query(&text).bind(a).bind(b).bind(b).bind(a);
        Ok(self.change("directory.set_friends", query).await? > 0)
    }

    async fn friend_count(&self, user: UserId, most: usize) -> BackendResult<u64> {
        let text = "SELECT count(*) FROM (SELECT 1 AS one FROM friends WHERE user_id = ? LIMIT ?) counted";
        let rows = self.fetch("directory.friend_count", self.query(text).bind(sql(user.0)).bind(most as i64)).await?;
        Ok(rows.first().map_or(0, |row| id(row.get(0))))
    }

    async fn are_friends(&self, a: UserId, b: UserId) -> BackendResult<bool> {
        let query = self.query("SELECT 1 AS one FROM friends WHERE user_id = ? AND friend_id = ?");
        let rows = self.fetch("directory.are_friends", query.bind(sql(a.0)).bind(sql(b.0))).await?;
        Ok(!rows.is_empty())
    }

    async fn friends(&self, user: UserId) -> BackendResult<Vec<UserId>> {
        let query = self.query("SELECT friend_id FROM friends WHERE user_id = ? ORDER BY friend_id");
        Ok(users(&self.fetch("directory.friends", query.bind(sql(user.0))).await?))
    }

    async fn add_conversation(&self, new: &NewConversationRow) -> BackendResult<ConversationId> {
        const OPERATION: &str = "directory.add_conversation";
        check_texts(OPERATION, &[&new.name])?;
        let pool = self.pool(OPERATION).await?;
        let mut tries = 0;
        loop {
            tries += 1;
            match self.insert_conversation(&pool, new).await {
                // Somebody else made the pair's conversation in the same moment: the next try finds it.
                Err(error) if tries < TRIES && is_collision(&error) => {}
                result => return result.map_err(|e| self.failed(OPERATION, e)),
            }
        }
    }

    async fn conversation(&self, conversation: ConversationId) -> BackendResult<Option<ConversationRow>> {
        let query = self.query(&format!("{CONVERSATION_COLUMNS} WHERE c.id = ?")).bind(sql(conversation.0));
        let mut rows: Vec<ConversationRow> =
            self.fetch("directory.conversation", query).await?.iter().map(conversation_row).collect();
        self.count_members("directory.conversation", &mut rows, MEMBERS_COUNTED_MAX).await?;
        Ok(rows.pop())
    }

    async fn conversations_of(
        &self,
        user: UserId,
        after: ConversationId,
        limit: usize,
    ) -> BackendResult<Vec<ConversationRow>> {
        let text = format!(
            "{CONVERSATION_COLUMNS} JOIN members me ON me.conversation_id = c.id \
             WHERE me.user_id = ? AND me.conversation_id > ? ORDER BY c.id LIMIT ?"
        );
        let query = self.query(&text).bind(sql(user.0)).bind(sql(after.0)).bind(limit as i64);
        let mut rows: Vec<ConversationRow> =
            self.fetch("directory.conversations_of", query).await?.iter().map(conversation_row).collect();
        self.count_members("directory.conversations_of", &mut rows, MEMBERS_LISTED_MAX).await?;
        Ok(rows)
    }

    async fn conversation_ids_of(
        &self,
        user: UserId,
        after: ConversationId,
        limit: usize,
    ) -> BackendResult<Vec<ConversationId>> {
        let text = "SELECT conversation_id FROM members WHERE user_id = ? AND conversation_id > ? \
                    ORDER BY conversation_id LIMIT ?";
        let query = self.query(text).bind(sql(user.0)).bind(sql(after.0)).bind(limit as i64);
        let rows = self.fetch("directory.conversation_ids_of", query).await?;
        Ok(rows.iter().map(|row| ConversationId(id(row.get(0)))).collect())
    }

    async fn audience(&self, conversation: ConversationId, most: usize) -> BackendResult<Option<Audience>> {
        let text = "SELECT c.kind, m.user_id FROM conversations c LEFT JOIN members m ON m.conversation_id = c.id \
                    WHERE c.id = ? ORDER BY m.user_id LIMIT ?";
        let query = self.query(text).bind(sql(conversation.0)).bind(most as i64 + 1);
        let rows = self.fetch("directory.audience", query).await?;
        let Some(first) = rows.first() else { return Ok(None) };
        let kind = kind_of(&first.get::<String, _>(0));
        // A conversation that everybody has left is one row without a user.
        let users: Vec<UserId> =
            rows.iter().filter_map(|row| row.get::<Option<i64>, _>(1)).map(|u| UserId(id(u))).collect();
        Ok(Some(Audience { kind, users: (users.len() <= most).then_some(users) }))
    }

    async fn members(&self, conversation: ConversationId, after: UserId, limit: usize) -> BackendResult<Vec<UserId>> {
        let text = "SELECT user_id FROM members WHERE conversation_id = ? AND user_id > ? ORDER BY user_id LIMIT ?";
        let query = self.query(text).bind(sql(conversation.0)).bind(sql(after.0)).bind(limit as i64);
        Ok(users(&self.fetch("directory.members", query).await?))
    }

    async fn members_among(&self, conversation: ConversationId, among: &[UserId]) -> BackendResult<Vec<UserId>> {
        let mut found = Vec::new();
        for chunk in among.chunks(ROWS_PER_STATEMENT) {
            let list = vec!["?"; chunk.len()].join(", ");
            let text = format!(
                "SELECT user_id FROM members WHERE conversation_id = ? AND user_id IN ({list}) ORDER BY user_id"
            );
            let query = self.query(&text).bind(sql(conversation.0));
            let query = chunk.iter().fold(query, |query, user| query.bind(sql(user.0)));
            found.extend(users(&self.fetch("directory.members_among", query).await?));
        }
        found.sort_unstable();
        Ok(found)
    }

    async fn is_member(&self, conversation: ConversationId, user: UserId) -> BackendResult<bool> {
        let query = self.query("SELECT user_id FROM members WHERE conversation_id = ? AND user_id = ?");
        let rows = self.fetch("directory.is_member", query.bind(sql(conversation.0)).bind(sql(user.0))).await?;
        Ok(!rows.is_empty())
    }

    async fn add_members(&self, conversation: ConversationId, users: &[UserId]) -> BackendResult<u64> {
        const OPERATION: &str = "directory.add_members";
        let pool = self.pool(OPERATION).await?;
        let add = async {
            let mut transaction = pool.begin_with(self.dialect.begin()).await?;
            let joined = self.insert_members(&mut transaction, conversation.0, users).await?;
            transaction.commit().await?;
            Ok(joined)
        };
        add.await.map_err(|e| self.failed(OPERATION, e))
    }

    async fn remove_member(&self, conversation: ConversationId, user: UserId) -> BackendResult<bool> {
        let query = self.query("DELETE FROM members WHERE conversation_id = ? AND user_id = ?");
        let query = query.bind(sql(conversation.0)).bind(sql(user.0));
        Ok(self.change("directory.remove_member", query).await? > 0)
    }

    async fn raise_receipt(&self, conversation: ConversationId, receipt: &Receipt) -> BackendResult<bool> {
        const OPERATION: &str = "directory.raise_receipt";
        let status = match receipt.status {
            ReceiptStatus::Delivered => "delivered",
            ReceiptStatus::Read => "read",
        };
        let (place, user, upto) = (sql(conversation.0), sql(receipt.user.0), sql(receipt.upto.0));
        let raise = || {
            let text =
                "UPDATE receipts SET upto = ? WHERE conversation_id = ? AND user_id = ? AND status = ? AND upto < ?";
            self.query(text).bind(upto).bind(place).bind(user).bind(status).bind(upto)
        };
        if self.change(OPERATION, raise()).await? > 0 {
            return Ok(true);
        }
        let text = self.dialect.insert_new("receipts", &["conversation_id", "user_id", "status", "upto"], 1);
        let query = self.query(&text).bind(place).bind(user).bind(status).bind(upto);
        if self.change(OPERATION, query).await? > 0 {
            return Ok(true);
        }
        // There is one that is as high, or somebody has made a lower one just now.
        Ok(self.change(OPERATION, raise()).await? > 0)
    }

    async fn receipts(&self, conversation: ConversationId, after: UserId, limit: usize) -> BackendResult<Vec<Receipt>> {
        let text = "SELECT user_id, status, upto FROM receipts WHERE conversation_id = ? AND user_id > ? \
                    ORDER BY user_id, status LIMIT ?";
        let query = self.query(text).bind(sql(conversation.0)).bind(sql(after.0)).bind(limit as i64);
        let rows = self.fetch("directory.receipts", query).await?;
        let receipt = |row: &AnyRow| Receipt {
            user: UserId(id(row.get(0))),
            status: if row.get::<String, _>(1) == "read" { ReceiptStatus::Read } else { ReceiptStatus::Delivered },
            upto: MessageId(id(row.get(2))),
        };
        Ok(rows.iter().map(receipt).collect())
    }

    async fn revoke_token(&self, token: Uuid, expires_at: u64) -> BackendResult<()> {
        let text = self.dialect.insert_new("revoked_tokens", &["token", "expires_at", "revoked_at"], 1);
        // The last value is the database's own time.
        let text = text.replacen("(?, ?, ?)", &format!("(?, ?, {})", self.dialect.now_s()), 1);
        let query = self.query(&text).bind(token.to_string()).bind(sql(expires_at));
        self.change("directory.revoke_token", query).await.map(|_| ())
    }

    async fn token_standing(&self, user: UserId, token: Uuid) -> BackendResult<TokenStanding> {
        let text = "SELECT (SELECT count(*) FROM users WHERE id = ?), \
                    (SELECT count(*) FROM revoked_tokens WHERE token = ?)";
        let query = self.query(text).bind(sql(user.0)).bind(token.to_string());
        let rows = self.fetch("directory.token_standing", query).await?;
        let counts = rows.first().map(|row| (row.get::<i64, _>(0), row.get::<i64, _>(1)));
        Ok(match counts {
            Some((_, 1..)) => TokenStanding::Revoked,
            Some((1.., _)) => TokenStanding::Good,
            _ => TokenStanding::NoSuchUser,
        })
    }

    async fn revoked_within(&self, seconds: u64) -> BackendResult<Vec<Uuid>> {
        let text = format!("SELECT token FROM revoked_tokens WHERE revoked_at >= {} - ?", self.dialect.now_s());
        let rows = self.fetch("directory.revoked_within", self.query(&text).bind(sql(seconds))).await?;
        Ok(rows.iter().filter_map(|row| row.get::<String, _>(0).parse().ok()).collect())
    }

    async fn purge_revoked(&self) -> BackendResult<u64> {
        let text = format!("DELETE FROM revoked_tokens WHERE expires_at < {} - ?", self.dialect.now_s());
        self.change("directory.purge_revoked", self.query(&text).bind(sql(PURGE_AFTER_S))).await
    }

    async fn probe(&self) -> BackendResult<()> {
        const OPERATION: &str = "directory.probe";
        // A row of nobody, which changes each time: a database that only reads refuses it, and so does a full disk.
        let raise =
            "UPDATE receipts SET upto = upto + 1 WHERE conversation_id = 0 AND user_id = 0 AND status = 'probe'";
        if self.change(OPERATION, self.query(raise)).await? > 0 {
            return Ok(());
        }
        let text = self.dialect.insert_new("receipts", &["conversation_id", "user_id", "status", "upto"], 1);
        let query = self.query(&text).bind(0_i64).bind(0_i64).bind("probe").bind(0_i64);
        self.change(OPERATION, query).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::contract::{Deployment, Place, engine_address};
    use crate::backends::directory::contract::directory_contract;

    fn server(variable: &str) -> impl Place<dyn Directory> + use<> {
        let url = engine_address(variable);
        Deployment(move || {
            let url = url.clone();
            async move { Arc::new(SqlDirectory::open(&url).await.expect("opens")) as Arc<dyn Directory> }
        })
    }

    mod sqlite {
        use super::*;

        fn file() -> impl Place<dyn Directory> {
            let folder = tempfile::tempdir().expect("a temporary folder");
            Deployment(move || {
                let url = format!("sqlite://{}/directory.db?mode=rwc", folder.path().display());
                async move { Arc::new(SqlDirectory::open(&url).await.expect("opens")) as Arc<dyn Directory> }
            })
        }

        directory_contract!(file());
    }

    mod postgres {
        use super::*;
        directory_contract!(server("CHATCTL_TEST_POSTGRES"), ignore = "needs CHATCTL_TEST_POSTGRES");
    }

    mod mysql {
        use super::*;
        directory_contract!(server("CHATCTL_TEST_MYSQL"), ignore = "needs CHATCTL_TEST_MYSQL");
    }

    #[tokio::test]
    async fn an_address_that_is_no_database_is_refused_with_the_valid_ones() {
        let error = SqlDirectory::open("oracle://u:secret@host/db").await.err().expect("refused").to_string();
        assert!(
            error.contains("postgres://") && error.contains("oracle://host") && !error.contains("secret"),
            "{error}"
        );
    }
}
