//! How messages, heads and voids are rows and cells, and back.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::backends::messages::{ConversationHead, StoredMessage};
use crate::protocol::{ConversationId, MessageId, UserId};

/// Conversations are spread over this many key ranges, so that new ones, whose ids are neighbours, do not all go to one
/// region.
const SALTS: u64 = 16;

/// Family of a message's columns.
pub(super) const MESSAGE: &str = "m";

/// Family of a conversation's voids: one column for each range.
pub(super) const VOID: &str = "v";

/// A row as the gateway gives it: everything is Base64.
#[derive(Deserialize)]
pub(super) struct Row {
    pub(super) key: String,
    #[serde(rename = "Cell")]
    pub(super) cells: Vec<Cell>,
}

#[derive(Deserialize)]
pub(super) struct Cell {
    pub(super) column: String,
    #[serde(rename = "$", default)]
    pub(super) value: String,
}

#[derive(Deserialize)]
pub(super) struct Rows {
    #[serde(rename = "Row", default)]
    pub(super) rows: Vec<Row>,
}

/// A row's cells by column.
pub(super) type Cells = HashMap<String, Vec<u8>>;

/// `{salt}_{conversation}`, in hexadecimal digits.
pub(super) fn conversation_row(conversation: u64) -> String {
    // Multiplicative hashing: the high bits depend on all of the id's.
    let salt = conversation.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60;
    format!("{:x}_{conversation:016x}", salt % SALTS)
}

/// `{salt}_{conversation}_{reversed id}`: a larger id comes first.
pub(super) fn message_row(conversation: u64, id: u64) -> String {
    format!("{}_{:016x}", conversation_row(conversation), !id)
}

pub(super) fn id_of(row: &str) -> Option<u64> {
    let (_, reversed) = row.rsplit_once('_')?;
    u64::from_str_radix(reversed, 16).ok().map(|reversed| !reversed)
}

/// The column of a void range; `first` and `last` are void themselves.
pub(super) fn void_column(first: u64, last: u64) -> String {
    format!("{VOID}:{last:016x}-{first:016x}")
}

pub(super) fn void_range(column: &str) -> Option<RangeInclusive<u64>> {
    let (last, first) = column.strip_prefix("v:")?.split_once('-')?;
    Some(u64::from_str_radix(first, 16).ok()?..=u64::from_str_radix(last, 16).ok()?)
}

pub(super) fn head_text(head: ConversationHead) -> String {
    format!("{:016x}-{:016x}", head.epoch, head.block_end)
}

pub(super) fn parse_head(text: &[u8]) -> Option<ConversationHead> {
    let (epoch, block_end) = std::str::from_utf8(text).ok()?.split_once('-')?;
    Some(ConversationHead {
        epoch: u64::from_str_radix(epoch, 16).ok()?,
        block_end: u64::from_str_radix(block_end, 16).ok()?,
    })
}

/// A body that writes cells to a row, in their order.
pub(super) fn row_body(row: &str, cells: &[(&str, &[u8])]) -> Value {
    let cell = |(column, value): &(&str, &[u8])| json!({"column": BASE64.encode(column), "$": BASE64.encode(value)});
    json!({"Row": [{"key": BASE64.encode(row), "Cell": cells.iter().map(cell).collect::<Vec<_>>()}]})
}

pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text).ok()
}

/// A row's key and cells.
pub(super) fn decode_row(row: &Row) -> Option<(String, Cells)> {
    let key = String::from_utf8(decode(&row.key)?).ok()?;
    let cell = |cell: &Cell| Some((String::from_utf8(decode(&cell.column)?).ok()?, decode(&cell.value)?));
    Some((key, row.cells.iter().map(cell).collect::<Option<_>>()?))
}

pub(super) fn message_of(conversation: ConversationId, row: &str, mut cells: Cells) -> Option<StoredMessage> {
    let mut text = |column: &str| String::from_utf8(cells.remove(&format!("{MESSAGE}:{column}"))?).ok();
    Some(StoredMessage {
        conversation,
        id: MessageId(id_of(row)?),
        uuid: text("uuid")?.parse::<Uuid>().ok()?,
        sender: UserId(text("sender_id")?.parse().ok()?),
        kind: text("content_type")?,
        body: text("content")?,
        reply_to: match text("reply_to") {
            Some(id) => Some(MessageId(id.parse().ok()?)),
            None => None,
        },
        at: text("timestamp")?.parse().ok()?,
    })
}

/// Which way a scan goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    NewestFirst,
    OldestFirst,
}

/// A conversation's ids from the first to the last, in an order.
pub(super) struct Span {
    pub(super) conversation: ConversationId,
    pub(super) ids: RangeInclusive<u64>,
    pub(super) order: Order,
}

impl Span {
    pub(super) fn newest_first(conversation: ConversationId, ids: RangeInclusive<u64>) -> Self {
        Self { conversation, ids, order: Order::NewestFirst }
    }

    pub(super) fn oldest_first(conversation: ConversationId, ids: RangeInclusive<u64>) -> Self {
        Self { conversation, ids, order: Order::OldestFirst }
    }

    /// The row where a scan starts, which it includes, and the one where it stops, which it does not. Behind the last
    /// row of a conversation comes none that a tilde does not follow, before the first one none at all.
    pub(super) fn rows(&self) -> (String, String) {
        let row = |id: u64| message_row(self.conversation.0, id);
        let (first, last) = (*self.ids.start(), *self.ids.end());
        match self.order {
            Order::NewestFirst => (row(last), first.checked_sub(1).map_or_else(|| row(0) + "~", row)),
            Order::OldestFirst => {
                (row(first), last.checked_add(1).map_or_else(|| conversation_row(self.conversation.0) + "_", row))
            }
        }
    }

    /// What comes behind an id of it, if there is anything.
    pub(super) fn behind(self, id: MessageId) -> Option<Self> {
        let ids = match self.order {
            Order::NewestFirst => *self.ids.start()..=id.0.checked_sub(1)?,
            Order::OldestFirst => id.0.checked_add(1)?..=*self.ids.end(),
        };
        Some(Self { ids, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_newest_first_and_tell_their_id() {
        let rows: Vec<String> = [u64::MAX, 30_000, 2, 1, 0].map(|id| message_row(7, id)).to_vec();
        assert!(rows.is_sorted(), "{rows:?}");
        assert!(rows.iter().all(|row| row.starts_with(&conversation_row(7))));
        assert_eq!(id_of(&rows[1]), Some(30_000));
    }

    #[test]
    fn neighbours_go_to_many_key_ranges() {
        let salts: std::collections::HashSet<u8> = (1..=64).map(|c| conversation_row(c).as_bytes()[0]).collect();
        assert!(salts.len() >= 12, "{salts:?}");
    }

    #[test]
    fn voids_and_heads_are_read_back_as_they_were_written() {
        assert_eq!(void_range(&void_column(5, 10_000)), Some(5..=10_000));
        assert_eq!(void_range("h:head"), None);
        let head = ConversationHead { epoch: 3, block_end: u64::MAX };
        assert_eq!(parse_head(head_text(head).as_bytes()), Some(head));
    }
}
