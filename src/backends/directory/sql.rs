//! The directory in a relational database: `SQLite` in the data folder, PostgreSQL, MySQL or MariaDB.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, AnyConnection, AnyPool, AssertSqlSafe, Row};
use uuid::Uuid;

use super::dialect::Dialect;
use super::hosts::Hosts;
use super::schema::migrate;
use super::sql_error::{failed, is_collision};
use super::{Audience, ConversationRow, Credentials, Directory, NewConversationRow, NewUser, TokenStanding};
use crate::backends::deployment::DeploymentId;
use crate::backends::{BackendError, BackendResult, error::ErrorKind};
use crate::protocol::api::{ConversationKind, Profile, Receipt};
use crate::protocol::frames::ReceiptStatus;
use crate::protocol::limits::MEMBERS_COUNTED_MAX;
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

/// Database ids are signed. What a client made up above the sign bit stands for an id that nothing has.
const fn sql(id: u64) -> i64 {
    if id > i64::MAX as u64 { i64::MAX } else { id as i64 }
}

/// Refuses texts that not every database can keep, before any of them sees them.
fn check_texts(operation: &'static str, texts: &[&str]) -> BackendResult<()> {
    if texts.iter().any(|text| text.contains('\0')) {
        return Err(BackendError::not_applied(operation, ErrorKind::Rejected, "a text holds a NUL character"));
    }
    Ok(())
}

const fn id(value: i64) -> u64 {
    value as u64
}

fn kind_text(kind: ConversationKind) -> &'static str {
    match kind {
        ConversationKind::Direct => "direct",
        ConversationKind::Group => "group",
    }
}

fn kind_of(text: &str) -> ConversationKind {
    if text == "direct" { ConversationKind::Direct } else { ConversationKind::Group }
}

fn profile(row: &AnyRow) -> Profile {
    Profile { user: UserId(id(row.get(0))), name: row.get(1), display_name: row.get(2) }
}

/// Without the number of members, which is counted by itself.
fn conversation_row(row: &AnyRow) -> ConversationRow {
    ConversationRow {
        conversation: ConversationId(id(row.get(0))),
        kind: kind_of(&row.get::<String, _>(1)),
        name: row.get(2),
        owner: UserId(id(row.get(3))),
        members: 0,
    }
}

fn users(rows: &[AnyRow]) -> Vec<UserId> {
    rows.iter().map(|row| UserId(id(row.get(0)))).collect()
}

const CONVERSATION_COLUMNS: &str = "SELECT c.id, c.kind, c.name, c.owner_id FROM conversations c";

/// The members of one conversation, counted up to a limit: whoever asks for a row must not pay for a channel of a million.
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
    fn query(&self, text: &str) -> Query<'static, Any, AnyArguments> {
        sqlx::query(AssertSqlSafe(self.dialect.statement(text)))
    }

    /// The connections to the server in use.
    async fn pool(&self, operation: &'static str) -> BackendResult<AnyPool> {
        let pool = self.hosts.pool().await;
        pool.map_err(|problem| {
            let text = format!("{}: {problem}", self.address);
            BackendError::not_applied(operation, ErrorKind::Unavailable, text)
        })
    }

    /// The port's error; the next call chooses another server if this one may be lost.
    fn failed(&self, operation: &'static str, error: sqlx::Error) -> BackendError {
        self.hosts.note(&error);
        failed(operation, error)
    }

    async fn fetch(
        &self,
        operation: &'static str,
        query: Query<'static, Any, AnyArguments>,
    ) -> BackendResult<Vec<AnyRow>> {
        let pool = self.pool(operation).await?;
        query.fetch_all(&pool).await.map_err(|e| self.failed(operation, e))
    }

    /// Runs a change; returns how many rows it touched.
    async fn change(&self, operation: &'static str, query: Query<'static, Any, AnyArguments>) -> BackendResult<u64> {
        let pool = self.pool(operation).await?;
        query.execute(&pool).await.map(|done| done.rows_affected()).map_err(|e| self.failed(operation, e))
    }

    /// Inserts a row and returns its id.
    async fn insert(
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

    async fn insert_members(
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

    /// Fills in how many members conversations have.
    async fn count_members(&self, operation: &'static str, rows: &mut [ConversationRow]) -> BackendResult<()> {
        for chunk in rows.chunks_mut(COUNTS_PER_STATEMENT) {
            let counts: Vec<String> = (0..chunk.len()).map(|n| format!("SELECT {n}, {COUNT_MEMBERS}")).collect();
            let mut query = self.query(&counts.join(" UNION ALL "));
            for row in &*chunk {
                query = query.bind(sql(row.conversation.0)).bind(MEMBERS_COUNTED_MAX as i64);
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

    async fn insert_conversation(&self, pool: &AnyPool, new: &NewConversationRow) -> sqlx::Result<ConversationId> {
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
        self.count_members("directory.conversation", &mut rows).await?;
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
        self.count_members("directory.conversations_of", &mut rows).await?;
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
