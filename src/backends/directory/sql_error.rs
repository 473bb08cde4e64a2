//! What an error of a database means to callers of the directory.

use crate::backends::{BackendError, error::ErrorKind};

/// The port's error for one of the database.
pub(super) fn failed(operation: &'static str, error: sqlx::Error) -> BackendError {
    if error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation) {
        return BackendError::not_applied(operation, ErrorKind::Conflict, error);
    }
    match &error {
        sqlx::Error::PoolTimedOut => BackendError::not_applied(operation, ErrorKind::TimedOut, error),
        sqlx::Error::Database(refusal) => {
            let kind =
                if is_bad_value(refusal.code().as_deref()) { ErrorKind::Rejected } else { ErrorKind::Unavailable };
            BackendError::not_applied(operation, kind, error)
        }
        sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_) => {
            BackendError::not_applied(operation, ErrorKind::Rejected, error)
        }
        _ => BackendError::unknown(operation, ErrorKind::Unavailable, error),
    }
}

/// Whether a database refused a value, and not the work as such: the same value is refused again. Classes 22 (data exception) and
/// 23 (integrity constraint) of the SQL standard's codes, and `SQLite`'s own for a constraint, a size and a type.
fn is_bad_value(code: Option<&str>) -> bool {
    const SQLITE_TOO_BIG: i64 = 18;
    const SQLITE_CONSTRAINT: i64 = 19;
    const SQLITE_MISMATCH: i64 = 20;
    let Some(code) = code else { return false };
    let is_standard = code.len() == 5 && (code.starts_with("22") || code.starts_with("23"));
    // The low byte is the primary code.
    let primary = code.parse::<i64>().ok().filter(|_| code.len() < 5).map(|code| code & 0xff);
    is_standard || primary.is_some_and(|code| matches!(code, SQLITE_TOO_BIG | SQLITE_CONSTRAINT | SQLITE_MISMATCH))
}

/// True for errors that say "another transaction was in the way": nothing happened, and a new try helps.
pub(super) fn is_collision(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else { return false };
    // PostgreSQL: serialization failure, deadlock. MySQL: lock wait, deadlock share 40001 and HY000.
    error.is_unique_violation()
        || matches!(error.code().as_deref(), Some("40001" | "40P01"))
        || error.message().contains("Deadlock")
}
