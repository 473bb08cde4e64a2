//! In what the databases differ: tables, "insert unless it is there", upserts, the id of a new row.
//!
//! Statements are written once, with `?` for values and words that every dialect takes.

use crate::backends::version;

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
    /// MySQL and MariaDB.
    Mysql,
}

impl Dialect {
    /// The database that an address names.
    pub(super) fn of(url: &str) -> Option<Self> {
        match url.split_once(':')?.0 {
            "sqlite" => Some(Self::Sqlite),
            "postgres" | "postgresql" => Some(Self::Postgres),
            "mysql" | "mariadb" => Some(Self::Mysql),
            _ => None,
        }
    }

    /// A statement with this dialect's placeholders.
    pub(super) fn statement(self, text: &str) -> String {
        if self != Self::Postgres {
            return text.to_owned();
        }
        let mut parts = text.split('?');
        let first = parts.next().unwrap_or_default().to_owned();
        parts.zip(1..).fold(first, |all, (part, n)| format!("{all}${n}{part}"))
    }

    /// `INSERT INTO table (columns) VALUES …` for a number of rows, leaving out those that are there.
    pub(super) fn insert_new(self, table: &str, columns: &[&str], rows: usize) -> String {
        let row = format!("({})", vec!["?"; columns.len()].join(", "));
        let values = vec![row.as_str(); rows].join(", ");
        let columns = columns.join(", ");
        match self {
            Self::Mysql => format!("INSERT IGNORE INTO {table} ({columns}) VALUES {values}"),
            Self::Sqlite | Self::Postgres => {
                format!("INSERT INTO {table} ({columns}) VALUES {values} ON CONFLICT DO NOTHING")
            }
        }
    }

    /// Seconds since 1970 by the clock of the database: one clock for all servers.
    pub(super) const fn now_s(self) -> &'static str {
        match self {
            Self::Sqlite => "CAST(strftime('%s', 'now') AS INTEGER)",
            Self::Postgres => "CAST(floor(extract(epoch FROM clock_timestamp())) AS BIGINT)",
            Self::Mysql => "unix_timestamp()",
        }
    }

    /// Whether an insert can return the new row's id. (MariaDB can, MySQL can't; both tell the last one.)
    pub(super) const fn returns_ids(self) -> bool {
        matches!(self, Self::Sqlite | Self::Postgres)
    }

    /// Begins a transaction that will write.
    pub(super) const fn begin(self) -> &'static str {
        match self {
            // A transaction that only later finds out that it writes can't wait for another one.
            Self::Sqlite => "BEGIN IMMEDIATE",
            Self::Postgres | Self::Mysql => "BEGIN",
        }
    }

    /// What every connection begins with.
    pub(super) const fn on_connect(self) -> &'static [&'static str] {
        match self {
            Self::Sqlite => &["PRAGMA busy_timeout = 4000", "PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL"],
            Self::Postgres => &["SET TIME ZONE 'UTC'"],
            // A replacement character instead of an error would be a message changed.
            Self::Mysql => &["SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'"],
        }
    }

    /// Keeps other processes from migrating at the same time, until [`Dialect::unlock`] on the same connection. Answers 1 once it is
    /// held; MySQL gives up after a number of seconds, and answers something else.
    pub(super) fn lock(self, seconds: u32) -> Option<String> {
        match self {
            // A data folder belongs to one process.
            Self::Sqlite => None,
            // The function's own answer is nothing.
            Self::Postgres => {
                Some("SELECT CAST(1 AS BIGINT) FROM (SELECT pg_advisory_lock(6721436212)) held".to_owned())
            }
            Self::Mysql => Some(format!("SELECT CAST(get_lock('chatctl.migrate', {seconds}) AS SIGNED)")),
        }
    }

    /// Whether each change of a table is committed by itself; elsewhere a transaction takes all or nothing.
    pub(super) const fn commits_each_change(self) -> bool {
        matches!(self, Self::Mysql)
    }

    pub(super) const fn unlock(self) -> Option<&'static str> {
        match self {
            Self::Sqlite => None,
            Self::Postgres => Some("SELECT pg_advisory_unlock(6721436212)"),
            Self::Mysql => Some("SELECT release_lock('chatctl.migrate')"),
        }
    }

    /// Asks for the version.
    pub(super) const fn version_query(self) -> &'static str {
        match self {
            Self::Sqlite => "SELECT sqlite_version()",
            Self::Postgres => "SHOW server_version",
            Self::Mysql => "SELECT version()",
        }
    }

    /// Asks whether a server takes writes: the answer is `off` where it does.
    pub(super) const fn read_only_query(self) -> &'static str {
        match self {
            Self::Sqlite => "SELECT 'off'",
            // Also `on` for a standby.
            Self::Postgres => "SHOW transaction_read_only",
            // A number in MySQL, a word in new MariaDBs.
            Self::Mysql => "SELECT IF(@@global.read_only IN ('0', 'OFF'), 'off', 'on')",
        }
    }

    /// Product and version for people. `found` is the answer of [`Dialect::version_query`].
    pub(super) fn product(self, found: &str) -> String {
        let version = found.split(|c: char| c == '-' || c.is_whitespace()).next().unwrap_or(found);
        let product = match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
            Self::Mysql if found.contains("MariaDB") => "MariaDB",
            Self::Mysql => "MySQL",
        };
        format!("{product} {version}")
    }

    /// Refuses what is too old. `found` is the answer of [`Dialect::version_query`].
    pub(super) fn check_version(self, found: &str) -> Result<(), String> {
        let (name, needed) = match self {
            Self::Sqlite => return Ok(()),
            Self::Postgres => ("PostgreSQL", (12, 0)),
            Self::Mysql if found.contains("MariaDB") => ("MariaDB", (10, 5)),
            Self::Mysql => ("MySQL", (8, 0)),
        };
        version::at_least(name, found, needed)
    }

    /// Table changes, applied in order; a released one is never changed. Each is a list of statements.
    pub(super) fn migrations(self) -> Vec<Vec<String>> {
        let (id, name, long, small) = match self {
            Self::Sqlite => ("INTEGER PRIMARY KEY AUTOINCREMENT", "TEXT", "TEXT", "INTEGER"),
            Self::Postgres => ("BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", "TEXT", "TEXT", "BIGINT"),
            // Names are compared byte by byte, as the others do. 191 characters of four bytes fit every index.
            Self::Mysql => (
                "BIGINT AUTO_INCREMENT PRIMARY KEY",
                "VARCHAR(191) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
                "VARCHAR(1000) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
                "BIGINT",
            ),
        };
        vec![
            vec![
                format!(
                    "CREATE TABLE users (id {id}, name {name} NOT NULL UNIQUE, display_name {long} NOT NULL, \
                 password_hash {long} NOT NULL)"
                ),
                format!(
                    "CREATE TABLE friends (user_id {small} NOT NULL, friend_id {small} NOT NULL, \
                 PRIMARY KEY (user_id, friend_id))"
                ),
                format!(
                    "CREATE TABLE conversations (id {id}, kind {name} NOT NULL, name {long} NOT NULL, \
                 owner_id {small} NOT NULL, pair {name} UNIQUE)"
                ),
                format!(
                    "CREATE TABLE members (conversation_id {small} NOT NULL, user_id {small} NOT NULL, \
                 PRIMARY KEY (conversation_id, user_id))"
                ),
                "CREATE INDEX members_by_user ON members (user_id, conversation_id)".to_owned(),
                format!(
                    "CREATE TABLE receipts (conversation_id {small} NOT NULL, user_id {small} NOT NULL, status {name} NOT NULL, \
                 upto {small} NOT NULL, PRIMARY KEY (conversation_id, user_id, status))"
                ),
                format!("CREATE TABLE revoked_tokens (token {name} NOT NULL PRIMARY KEY, expires_at {small} NOT NULL)"),
            ],
            vec![
                format!("ALTER TABLE revoked_tokens ADD COLUMN revoked_at {small} NOT NULL DEFAULT 0"),
                "CREATE INDEX revoked_tokens_by_time ON revoked_tokens (revoked_at)".to_owned(),
                "CREATE INDEX revoked_tokens_by_expiry ON revoked_tokens (expires_at)".to_owned(),
            ],
            vec![format!("CREATE TABLE directory_identity (one {small} NOT NULL PRIMARY KEY, id {name} NOT NULL)")],
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_numbered_where_the_database_wants_it() {
        assert_eq!(Dialect::Postgres.statement("a = ? AND b = ?"), "a = $1 AND b = $2");
        assert_eq!(Dialect::Mysql.statement("a = ?"), "a = ?");
    }

    #[test]
    fn old_servers_are_told() {
        assert_eq!(Dialect::Postgres.check_version("15.18 (Debian 15.18-0+deb12u1)"), Ok(()));
        assert_eq!(Dialect::Mysql.check_version("10.11.14-MariaDB-0+deb12u2"), Ok(()));
        assert!(Dialect::Mysql.check_version("5.7.44-log").is_err_and(|text| text.contains("MySQL 5.7.44-log")));
        assert!(Dialect::Postgres.check_version("9.6.24").is_err_and(|text| text.contains("12.0")));
    }
}
