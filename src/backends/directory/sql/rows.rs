//! Values of the directory as columns, and rows of its tables as values.

use sqlx::Row;
use sqlx::any::AnyRow;

use crate::backends::directory::ConversationRow;
use crate::backends::{BackendError, BackendResult, error::ErrorKind};
use crate::protocol::api::{ConversationKind, Profile};
use crate::protocol::{ConversationId, UserId};

/// Database ids are signed. What a client made up above the sign bit stands for an id that nothing has.
pub(super) const fn sql(id: u64) -> i64 {
    if id > i64::MAX as u64 { i64::MAX } else { id as i64 }
}

/// Refuses texts that not every database can keep, before any of them sees them.
pub(super) fn check_texts(operation: &'static str, texts: &[&str]) -> BackendResult<()> {
    if texts.iter().any(|text| text.contains('\0')) {
        return Err(BackendError::not_applied(operation, ErrorKind::Rejected, "a text holds a NUL character"));
    }
    Ok(())
}

pub(super) const fn id(value: i64) -> u64 {
    value as u64
}

pub(super) fn kind_text(kind: ConversationKind) -> &'static str {
    match kind {
        ConversationKind::Direct => "direct",
        ConversationKind::Group => "group",
    }
}

pub(super) fn kind_of(text: &str) -> ConversationKind {
    if text == "direct" { ConversationKind::Direct } else { ConversationKind::Group }
}

pub(super) fn profile(row: &AnyRow) -> Profile {
    Profile { user: UserId(id(row.get(0))), name: row.get(1), display_name: row.get(2) }
}

/// Without the number of members, which is counted by itself.
pub(super) fn conversation_row(row: &AnyRow) -> ConversationRow {
    ConversationRow {
        conversation: ConversationId(id(row.get(0))),
        kind: kind_of(&row.get::<String, _>(1)),
        name: row.get(2),
        owner: UserId(id(row.get(3))),
        members: 0,
    }
}

pub(super) fn users(rows: &[AnyRow]) -> Vec<UserId> {
    rows.iter().map(|row| UserId(id(row.get(0)))).collect()
}
