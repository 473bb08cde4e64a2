//! The tables of the directory: made at the first opening, brought up to date at later ones.
//!
//! A change is applied once, by one process at a time. Where the database commits each of its statements by itself, a process may be
//! killed between two: each statement is noted before it is run, so that the next process knows which one may be done already.

use sqlx::mysql::MySqlDatabaseError;
use sqlx::{AnyConnection, AnyPool, AssertSqlSafe, Connection, Executor};

use super::dialect::Dialect;

/// How long another process may take, in seconds.
const LOCK_WAIT_S: u32 = 30;

/// Errors of a MySQL that say that a statement was done before: the table, the column or the index is there.
/// Source: MySQL 8.4, "Server Error Message Reference".
const MYSQL_DONE: [u16; 3] = [1050, 1060, 1061];

/// Why the tables are not up to date.
#[derive(Debug, thiserror::Error)]
pub(super) enum SchemaError {
    /// Somebody else is at it.
    #[error("another process has been making them for {LOCK_WAIT_S} s")]
    Locked,
    /// The database said no.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

impl SchemaError {
    /// What to do about it.
    pub(super) const fn fix(&self) -> &'static str {
        match self {
            Self::Locked => "start again when it is done",
            Self::Sql(_) => "the account must be allowed to create tables",
        }
    }
}

/// Applies the table changes that are missing.
pub(super) async fn migrate(pool: &AnyPool, dialect: Dialect) -> Result<(), SchemaError> {
    let mut connection = pool.acquire().await?;
    lock(&mut connection, dialect, LOCK_WAIT_S).await?;
    let result = apply(&mut connection, dialect).await;
    let unlocked = match dialect.unlock() {
        Some(unlock) => sqlx::query(unlock).execute(&mut *connection).await.map(|_| ()),
        None => Ok(()),
    };
    // What went wrong first is told.
    Ok(result.and(unlocked)?)
}

/// Waits until no other process migrates.
async fn lock(connection: &mut AnyConnection, dialect: Dialect, seconds: u32) -> Result<(), SchemaError> {
    let Some(lock) = dialect.lock(seconds) else { return Ok(()) };
    let answer: Option<i64> = sqlx::query_scalar(AssertSqlSafe(lock)).fetch_one(connection).await?;
    if answer == Some(1) { Ok(()) } else { Err(SchemaError::Locked) }
}

async fn apply(connection: &mut AnyConnection, dialect: Dialect) -> sqlx::Result<()> {
    connection.execute("CREATE TABLE IF NOT EXISTS schema_changes (number BIGINT NOT NULL PRIMARY KEY)").await?;
    let done: i64 = sqlx::query_scalar("SELECT count(*) FROM schema_changes").fetch_one(&mut *connection).await?;
    for (number, statements) in dialect.migrations().into_iter().enumerate().skip(done as usize) {
        let number = number as i64;
        if dialect.commits_each_change() {
            apply_each(connection, dialect, number, statements).await?;
            note_change(connection, dialect, number).await?;
            continue;
        }
        let mut transaction = connection.begin().await?;
        for statement in statements {
            transaction.execute(AssertSqlSafe(statement)).await?;
        }
        note_change(&mut transaction, dialect, number).await?;
        transaction.commit().await?;
    }
    Ok(())
}

async fn note_change(connection: &mut AnyConnection, dialect: Dialect, number: i64) -> sqlx::Result<()> {
    let text = dialect.statement("INSERT INTO schema_changes (number) VALUES (?)");
    sqlx::query(AssertSqlSafe(text)).bind(number).execute(connection).await.map(|_| ())
}

/// Runs statements of which each is committed by itself. One that was noted before may be done; one that was not must not be: a
/// table that is there then is somebody else's.
async fn apply_each(
    connection: &mut AnyConnection,
    dialect: Dialect,
    number: i64,
    statements: Vec<String>,
) -> sqlx::Result<()> {
    let table = "CREATE TABLE IF NOT EXISTS schema_steps (number BIGINT NOT NULL, step BIGINT NOT NULL, \
                 PRIMARY KEY (number, step))";
    connection.execute(table).await?;
    let note = dialect.insert_new("schema_steps", &["number", "step"], 1);
    let forget = "DELETE FROM schema_steps WHERE number = ? AND step = ?";
    for (step, statement) in (0_i64..).zip(statements) {
        let noted = sqlx::query(AssertSqlSafe(note.clone())).bind(number).bind(step);
        let is_first_try = noted.execute(&mut *connection).await?.rows_affected() > 0;
        match connection.execute(AssertSqlSafe(statement)).await {
            Ok(_) => {}
            Err(error) if !is_first_try && says_done(&error) => {}
            Err(error) => {
                if is_first_try {
                    sqlx::query(forget).bind(number).bind(step).execute(&mut *connection).await?;
                }
                return Err(error);
            }
        }
    }
    Ok(())
}

fn says_done(error: &sqlx::Error) -> bool {
    let error = error.as_database_error().and_then(|error| error.try_downcast_ref::<MySqlDatabaseError>());
    error.is_some_and(|error| MYSQL_DONE.contains(&error.number()))
}

#[cfg(test)]
mod tests {
    use sqlx::any::AnyPoolOptions;

    use super::*;
    use crate::backends::contract::engine_address;

    const MYSQL: Dialect = Dialect::Mysql;

    /// A database of its own on the server of an address, and the statements of the first change.
    async fn empty() -> (AnyPool, Vec<String>) {
        sqlx::any::install_default_drivers();
        let url = engine_address("CHATCTL_TEST_MYSQL");
        let (server, database) = url.rsplit_once('/').expect("an address with a database");
        let name = format!("{database}_{}", uuid::Uuid::new_v4().simple());
        let pool = AnyPoolOptions::new().connect(&url).await.expect("connects");
        pool.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.expect("the account may make databases");
        let pool = AnyPoolOptions::new().connect(&format!("{server}/{name}")).await.expect("connects");
        (pool, MYSQL.migrations().remove(0))
    }

    async fn drop_database(pool: &AnyPool) {
        let name: String =
            sqlx::query_scalar("SELECT CAST(database() AS CHAR)").fetch_one(pool).await.expect("answers");
        pool.execute(AssertSqlSafe(format!("DROP DATABASE {name}"))).await.expect("drops");
    }

    #[tokio::test]
    #[ignore = "needs CHATCTL_TEST_MYSQL"]
    async fn a_start_that_was_killed_between_any_two_statements_is_finished_by_the_next() {
        let changes: Vec<Vec<String>> = MYSQL.migrations();
        for (number, statements) in changes.iter().enumerate() {
            for done in 0..=statements.len() {
                let (pool, _) = empty().await;
                let mut connection = pool.acquire().await.expect("connects");
                // Everything before, and of this change some statements: the last of them is noted, and done or not.
                connection
                    .execute("CREATE TABLE schema_changes (number BIGINT NOT NULL PRIMARY KEY)")
                    .await
                    .expect("makes");
                for (before, statements) in (0_i64..).zip(&changes[..number]) {
                    apply_each(&mut connection, MYSQL, before, statements.clone()).await.expect("applies");
                    note_change(&mut connection, MYSQL, before).await.expect("notes");
                }
                apply_each(&mut connection, MYSQL, number as i64, statements[..done].to_vec()).await.expect("applies");
                if done < statements.len() {
                    let note = "INSERT INTO schema_steps (number, step) VALUES (?, ?)";
                    let note = sqlx::query(note).bind(number as i64).bind(done as i64);
                    note.execute(&mut *connection).await.expect("notes");
                }
                drop(connection);
                for _ in 0..2 {
                    migrate(&pool, MYSQL).await.unwrap_or_else(|e| panic!("{number}, {done}: {e}"));
                }
                drop_database(&pool).await;
            }
        }
    }

    #[tokio::test]
    #[ignore = "needs CHATCTL_TEST_MYSQL"]
    async fn a_table_of_somebody_else_is_not_taken_for_done() {
        let (pool, _) = empty().await;
        pool.execute("CREATE TABLE conversations (subject TEXT)").await.expect("makes");
        for _ in 0..2 {
            let refused = migrate(&pool, MYSQL).await.expect_err("it is not ours").to_string();
            assert!(refused.contains("conversations"), "{refused}");
        }
        drop_database(&pool).await;
    }

    #[tokio::test]
    #[ignore = "needs CHATCTL_TEST_MYSQL"]
    async fn who_does_not_get_the_lock_makes_no_tables() {
        let (pool, _) = empty().await;
        let (mut holder, mut other) =
            (pool.acquire().await.expect("connects"), pool.acquire().await.expect("connects"));
        // Another test may hold it for a moment.
        lock(&mut holder, MYSQL, LOCK_WAIT_S).await.expect("is free");
        assert!(matches!(lock(&mut other, MYSQL, 0).await, Err(SchemaError::Locked)));
        drop((holder, other));
        pool.close().await;
    }
}
