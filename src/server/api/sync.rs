//! Catching up: messages of one conversation, and which conversations have news.

use axum::Json;
use axum::response::Response;
use serde::Deserialize;

use super::App;
use super::conversations::{require_member, still_member};
use super::extract::Caller;
use crate::protocol::api::{InboxEntry, InboxSync, MessagesSync};
use crate::protocol::limits::{SYNC_LIMIT_DEFAULT, SYNC_LIMIT_MAX};
use crate::protocol::{ConversationId, ErrorCode, MessageId};
use crate::server::http::extract::Params;
use crate::server::http::status::Failure;
use crate::server::ordering::{Source, VOID_AFTER_MS};

/// A message is dated when its id is given out, and is stored later: one that came just after a client's last look may bear an
/// older time. No id is pending for longer than this.
const SINCE_SLACK_MS: u64 = 2 * VOID_AFTER_MS;

/// Conversations in one answer of the inbox, when the client does not say.
const INBOX_LIMIT_DEFAULT: usize = 100;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MessagesQuery {
    conversation_id: ConversationId,
    #[serde(default)]
    after_message_id: MessageId,
    limit: Option<usize>,
    /// False to have everything read from the store, whatever this server remembers.
    #[serde(default = "yes")]
    cached: bool,
}

const fn yes() -> bool {
    true
}

fn check_limit(limit: Option<usize>, default: usize) -> Result<usize, Failure> {
    match limit {
        None => Ok(default),
        Some(limit) if (1..=SYNC_LIMIT_MAX).contains(&limit) => Ok(limit),
        Some(_) => Err(Failure::new(ErrorCode::BadRequest, format!("limit is 1 to {SYNC_LIMIT_MAX}"))),
    }
}

pub(super) async fn messages(
    server: App,
    Caller(claims): Caller,
    Params(query): Params<MessagesQuery>,
) -> Result<Response, Failure> {
    let limit = check_limit(query.limit, SYNC_LIMIT_DEFAULT)?;
    let turn = server.pages.turn(claims.sub)?;
    require_member(&server, query.conversation_id, claims.sub).await?;
    let (conversation, after) = (query.conversation_id, query.after_message_id);
    let source = if query.cached { Source::Memory } else { Source::Store };
    let (messages, has_more, progress) = server.ordering.read(conversation, after, limit, source).await?;
    // Reading may have waited: who was removed meanwhile must not see what was said since.
    still_member(&server, conversation, claims.sub).await?;
    server.pages.answer(turn, &MessagesSync { messages, has_more, stable: progress.stable })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InboxQuery {
    after_conversation_id: Option<ConversationId>,
    /// Only conversations whose newest message is younger than this, in milliseconds since 1970.
    #[serde(default)]
    since: u64,
    limit: Option<usize>,
}

pub(super) async fn inbox(
    server: App,
    Caller(claims): Caller,
    Params(query): Params<InboxQuery>,
) -> Result<Json<InboxSync>, Failure> {
    let limit = check_limit(query.limit, INBOX_LIMIT_DEFAULT)?;
    let backends = &server.deps.backends;
    let mut after = query.after_conversation_id.unwrap_or(ConversationId(0));
    let mut out = Vec::new();
    loop {
        let conversations = backends.directory.conversation_ids_of(claims.sub, after, limit + 1).await?;
        let is_last = conversations.len() <= limit;
        let newest = server.ordering.newest(&conversations).await?;
        for (conversation, newest) in conversations.into_iter().zip(newest) {
            if out.len() == limit {
                return Ok(Json(InboxSync { conversations: out, has_more: true }));
            }
            after = conversation;
            if let Some(newest) = newest.filter(|newest| newest.at_ms.saturating_add(SINCE_SLACK_MS) > query.since) {
                out.push(InboxEntry { conversation, head: newest.id, at: newest.at_ms });
            }
        }
        if is_last {
            return Ok(Json(InboxSync { conversations: out, has_more: false }));
        }
    }
}
