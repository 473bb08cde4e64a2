//! Catching up: messages of one conversation, and which conversations have news.

use std::collections::HashSet;

use axum::response::Response;
use serde::Deserialize;

use super::conversations::{require_member, still_member};
use super::extract::Caller;
use super::{ApiServer, App};
use crate::backends::sequence::Slot;
use crate::protocol::api::{InboxEntry, InboxSync, MessagesSync};
use crate::protocol::limits::{SYNC_LIMIT_DEFAULT, SYNC_LIMIT_MAX};
use crate::protocol::{ConversationId, ErrorCode, MessageId, UserId};
use crate::server::http::extract::Params;
use crate::server::http::status::Failure;
use crate::server::ordering::{Source, VOID_AFTER_MS};

/// A message is dated when its id is given out, and is stored later: one that came just after a client's last look may bear an
/// older time. No id is pending for longer than this.
const SINCE_SLACK_MS: u64 = 2 * VOID_AFTER_MS;

/// Conversations in one answer of the inbox, when the client does not say.
const INBOX_LIMIT_DEFAULT: usize = 100;

/// Conversations that are looked at together, at least, and how often in one request: with a `since` most of them are not shown.
const INBOX_ROUND: usize = 100;
const INBOX_ROUNDS_MAX: usize = 5;

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
) -> Result<Response, Failure> {
    let limit = check_limit(query.limit, INBOX_LIMIT_DEFAULT)?;
    let turn = server.pages.turn(claims.sub)?;
    let mut inbox = InboxSync { conversations: Vec::new(), has_more: true, after_conversation_id: None };
    let mut after = query.after_conversation_id.unwrap_or(ConversationId(0));
    'rounds: for _ in 0..INBOX_ROUNDS_MAX {
        let (conversations, is_last) = look(&server, claims.sub, after, limit.max(INBOX_ROUND)).await?;
        for (conversation, newest) in conversations {
            if let Some(newest) = newest.filter(|newest| newest.at_ms.saturating_add(SINCE_SLACK_MS) > query.since) {
                if inbox.conversations.len() == limit {
                    break 'rounds;
                }
                inbox.conversations.push(InboxEntry { conversation, head: newest.id, at: newest.at_ms });
            }
            after = conversation;
        }
        if is_last {
            inbox.has_more = false;
            break;
        }
    }
    inbox.after_conversation_id = inbox.has_more.then_some(after);
    server.pages.answer(turn, &inbox)
}

/// Some conversations of a user, with the newest message of each; nothing of those that the user was removed from meanwhile. Also
/// whether these are the last ones.
async fn look(
    server: &ApiServer,
    user: UserId,
    after: ConversationId,
    limit: usize,
) -> Result<(Vec<(ConversationId, Option<Slot>)>, bool), Failure> {
    let directory = &server.deps.backends.directory;
    let mut conversations = directory.conversation_ids_of(user, after, limit + 1).await?;
    let is_last = conversations.len() <= limit;
    conversations.truncate(limit);
    let newest = server.ordering.newest(&conversations).await?;
    let Some(last) = conversations.last().copied() else { return Ok((Vec::new(), is_last)) };
    // Reading may have waited: what was said since a removal must not show.
    let still = directory.conversation_ids_of(user, after, limit + 1).await?;
    let still: HashSet<ConversationId> = still.into_iter().take_while(|conversation| *conversation <= last).collect();
    let shown = conversations.into_iter().zip(newest);
    Ok((shown.map(|(c, newest)| (c, newest.filter(|_| still.contains(&c)))).collect(), is_last))
}
