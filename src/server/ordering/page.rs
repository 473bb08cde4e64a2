//! How large a page of messages may be: in messages, and in bytes of the server's memory.

use crate::backends::messages::StoredMessage;

/// Bytes of a page. One message more may be over it: a page has at least one.
pub(super) const PAGE_BYTES_MAX: usize = 1 << 20;

/// What a message takes besides its body, about.
const ROW_BYTES: usize = 256;

/// Rows that are read while it is not known how large they are.
const FIRST_ROWS: usize = 64;

/// Bytes of rows in memory, about.
pub(super) fn bytes(rows: &[StoredMessage]) -> usize {
    rows.iter().map(row_bytes).sum()
}

fn row_bytes(row: &StoredMessage) -> usize {
    ROW_BYTES + row.kind.len() + row.body.len()
}

/// How many rows to read behind those that are there, of a page of at most `rows_max`: as many as fit if they are as large as these.
pub(super) fn rows_to_read(rows: &[StoredMessage], rows_max: usize) -> usize {
    let wanted = rows_max.saturating_sub(rows.len()).max(1);
    let fitting = match bytes(rows) {
        0 => FIRST_ROWS,
        bytes => (PAGE_BYTES_MAX.saturating_sub(bytes) / (bytes / rows.len()) + 1).max(FIRST_ROWS / 8),
    };
    wanted.min(fitting)
}

/// How many rows to read of a page after one of these: as many as fit if they are as large.
pub(super) fn rows_of_next(before: &[StoredMessage], rows_max: usize) -> usize {
    match bytes(before) {
        0 => FIRST_ROWS.min(rows_max),
        bytes => (PAGE_BYTES_MAX / (bytes / before.len())).clamp(FIRST_ROWS / 8, rows_max),
    }
}

/// How many of the rows make a page.
pub(super) fn fitting(rows: &[StoredMessage]) -> usize {
    let mut bytes = 0;
    let fits = |row: &&StoredMessage| {
        bytes += row_bytes(row);
        bytes <= PAGE_BYTES_MAX
    };
    rows.iter().take_while(fits).count().max(1)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::protocol::{ConversationId, MessageId, UserId};

    fn rows(count: usize, body_bytes: usize) -> Vec<StoredMessage> {
        let row = |id| StoredMessage {
            conversation: ConversationId(1),
            id: MessageId(id as u64),
            uuid: Uuid::nil(),
            sender: UserId(1),
            kind: "text".to_owned(),
            body: "x".repeat(body_bytes),
            reply_to: None,
            at: 0,
        };
        (1..=count).map(row).collect()
    }

    #[test]
    fn a_page_has_at_least_one_message_and_no_more_than_fit() {
        assert_eq!(fitting(&rows(3, 2 << 20)), 1);
        assert_eq!(fitting(&rows(500, 60_000)), 17);
        assert_eq!(fitting(&rows(500, 100)), 500);
    }

    #[test]
    fn small_messages_are_read_in_two_steps_and_large_ones_never_by_the_hundred() {
        assert_eq!(rows_to_read(&[], 501), FIRST_ROWS);
        assert_eq!(rows_to_read(&rows(FIRST_ROWS, 100), 501), 501 - FIRST_ROWS);
        assert_eq!(rows_to_read(&rows(10, 60_000), 501), FIRST_ROWS / 8);
        assert_eq!(rows_to_read(&[], 3), 3);
        assert_eq!((rows_of_next(&[], 1_000), rows_of_next(&rows(64, 100), 1_000)), (FIRST_ROWS, 1_000));
        assert_eq!(rows_of_next(&rows(64, 60_000), 1_000), 17);
    }
}
