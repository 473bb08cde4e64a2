//! Conversations, their members and receipts.

use std::sync::Arc;

use axum::Json;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;

use super::extract::{Body, Caller, InPath};
use super::names;
use super::{ApiServer, App};
use crate::backends::directory::{ConversationRow, NewConversationRow};
use crate::backends::registry::Role;
use crate::protocol::api::{
    AddMembers, Conversation, ConversationKind, Conversations, Members, NewConversation, Receipt, Receipts,
};
use crate::protocol::frames::ReceiptStatus;
use crate::protocol::limits::{FANOUT_ON_WRITE_MEMBERS_MAX, MEMBERS_PER_CALL_MAX};
use crate::protocol::{ConversationId, ErrorCode, UserId};
use crate::server::cluster::peer::Call;
use crate::server::http::extract::Params;
use crate::server::http::status::Failure;

/// Conversations in one answer of the list.
const PAGE: usize = 500;

/// Members in one answer of the list, at most, and when the client does not say.
const MEMBERS_PAGE_MAX: usize = 10_000;

/// Members whose receipts are in one answer, when the client does not say.
const RECEIPTS_PAGE: usize = 1_000;

type Answer<T> = Result<T, Failure>;

fn shown(row: ConversationRow) -> Conversation {
    Conversation {
        conversation: row.conversation,
        kind: row.kind,
        name: row.name,
        owner: row.owner,
        members: row.members,
        large: row.members > FANOUT_ON_WRITE_MEMBERS_MAX as u64,
    }
}

/// Fails unless the user is a member. A conversation that does not exist is not told apart.
pub(super) async fn require_member(server: &ApiServer, conversation: ConversationId, user: UserId) -> Answer<()> {
    if server.members.contains(conversation, user).await? { Ok(()) } else { Err(not_a_member(conversation)) }
}

/// The same once more, behind whatever was read for the user: a removal that was confirmed meanwhile counts.
pub(super) async fn still_member(server: &ApiServer, conversation: ConversationId, user: UserId) -> Answer<()> {
    require_member(server, conversation, user).await
}

fn not_a_member(conversation: ConversationId) -> Failure {
    Failure::new(ErrorCode::NotAMember, format!("you are not a member of {conversation}"))
}

/// The row of a conversation that the user is a member of.
async fn row(server: &ApiServer, conversation: ConversationId, user: UserId) -> Answer<ConversationRow> {
    require_member(server, conversation, user).await?;
    let row = server.deps.backends.directory.conversation(conversation).await?;
    still_member(server, conversation, user).await?;
    row.ok_or_else(|| not_a_member(conversation))
}

/// Checks that all users exist, and returns them rising and once each.
async fn existing(server: &ApiServer, mut users: Vec<UserId>) -> Answer<Vec<UserId>> {
    users.sort_unstable();
    users.dedup();
    if users.len() > MEMBERS_PER_CALL_MAX {
        let message = format!("at most {MEMBERS_PER_CALL_MAX} members in one call");
        return Err(Failure::new(ErrorCode::TooLarge, message));
    }
    let found = server.deps.backends.directory.profiles(&users).await?;
    let missing = users.iter().find(|user| !found.iter().any(|p| p.user == **user));
    match missing {
        Some(user) => Err(Failure::new(ErrorCode::NotFound, format!("there is no user {user}"))),
        None => Ok(users),
    }
}

/// The name of a new conversation, as it is kept; a group may have none.
fn conversation_name(kind: ConversationKind, name: &str) -> Answer<String> {
    if name.is_empty() {
        return Ok(String::new());
    }
    if kind == ConversationKind::Direct {
        let message = "a direct conversation has no name of its own: leave out name";
        return Err(Failure::new(ErrorCode::BadRequest, message));
    }
    names::shown(name, names::CONVERSATION_CHARS_MAX)
        .map_err(|invalid| Failure::new(ErrorCode::BadRequest, format!("name {invalid}")))
}

pub(super) async fn create(
    server: App,
    Caller(claims): Caller,
    Body(body): Body<NewConversation>,
) -> Answer<(StatusCode, Json<Conversation>)> {
    let name = conversation_name(body.kind, &body.name)?;
    let mut members = body.members;
    members.push(claims.sub);
    let members = existing(&server, members).await?;
    if body.kind == ConversationKind::Direct && members.len() != 2 {
        return Err(Failure::new(ErrorCode::BadRequest, "a direct conversation has one other member"));
    }
    let new = NewConversationRow { kind: body.kind, name, owner: claims.sub, members };
    let conversation = server.deps.backends.directory.add_conversation(&new).await?;
    let row = row(&server, conversation, claims.sub).await?;
    Ok((StatusCode::CREATED, Json(shown(row))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct After {
    after_conversation_id: Option<ConversationId>,
}

pub(super) async fn list(server: App, Caller(claims): Caller, Params(params): Params<After>) -> Answer<Response> {
    let after = params.after_conversation_id.unwrap_or(ConversationId(0));
    let turn = server.pages.turn(claims.sub)?;
    let rows = server.deps.backends.directory.conversations_of(claims.sub, after, PAGE).await?;
    server.pages.answer(turn, &Conversations { conversations: rows.into_iter().map(shown).collect() })
}

pub(super) async fn get(
    server: App,
    Caller(claims): Caller,
    InPath(conversation): InPath<ConversationId>,
) -> Answer<Json<Conversation>> {
    row(&server, conversation, claims.sub).await.map(|row| Json(shown(row)))
}

pub(super) async fn members(
    server: App,
    Caller(claims): Caller,
    InPath(conversation): InPath<ConversationId>,
    Params(params): Params<MembersPage>,
) -> Answer<Response> {
    let (after, limit) = params.check(MEMBERS_PAGE_MAX)?;
    let turn = server.pages.turn(claims.sub)?;
    require_member(&server, conversation, claims.sub).await?;
    let mut members = server.deps.backends.directory.members(conversation, after, limit + 1).await?;
    still_member(&server, conversation, claims.sub).await?;
    let has_more = members.len() > limit;
    members.truncate(limit);
    server.pages.answer(turn, &Members { members, has_more })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MembersPage {
    after_user_id: Option<UserId>,
    limit: Option<usize>,
}

impl MembersPage {
    /// Behind whom, and how many; so many when the client does not say.
    fn check(&self, default: usize) -> Answer<(UserId, usize)> {
        let limit = self.limit.unwrap_or(default);
        if !(1..=MEMBERS_PAGE_MAX).contains(&limit) {
            return Err(Failure::new(ErrorCode::BadRequest, format!("limit is 1 to {MEMBERS_PAGE_MAX}")));
        }
        Ok((self.after_user_id.unwrap_or(UserId(0)), limit))
    }
}

/// Whether a user may change the members of a conversation.
fn require_owner(row: &ConversationRow, user: UserId) -> Answer<()> {
    if row.kind == ConversationKind::Direct {
        return Err(Failure::new(ErrorCode::Forbidden, "the members of a direct conversation do not change"));
    }
    if row.owner != user {
        return Err(Failure::new(ErrorCode::Forbidden, "only the owner changes the members"));
    }
    Ok(())
}

pub(super) async fn add_members(
    server: App,
    Caller(claims): Caller,
    InPath(conversation): InPath<ConversationId>,
    Body(body): Body<AddMembers>,
) -> Answer<Json<Conversation>> {
    require_owner(&row(&server, conversation, claims.sub).await?, claims.sub)?;
    let members = existing(&server, body.members).await?;
    let row = server.carry_out(async move |server: Arc<ApiServer>| {
        server.deps.backends.directory.add_members(conversation, &members).await?;
        members_changed(&server, conversation).await
    });
    let row = row.await?;
    row.map(|row| Json(shown(row))).ok_or_else(|| not_a_member(conversation))
}

/// Tells every server that the members of a conversation are others now; returns the row as it is after the change.
async fn members_changed(server: &Arc<ApiServer>, conversation: ConversationId) -> Answer<Option<ConversationRow>> {
    let row = server.deps.backends.directory.conversation(conversation).await;
    // Servers are told also where the number can't be read: the members are others already.
    let members = row.as_ref().ok().and_then(Option::as_ref).map_or(0, |row| row.members);
    server.tell(&[Role::Chat, Role::Api], Call::MembersChanged { conversation, members }).await?;
    Ok(row?)
}

/// Removes a member. The answer comes when no server delivers to the user any more; repeating it is safe.
pub(super) async fn remove_member(
    server: App,
    Caller(claims): Caller,
    InPath((conversation, user)): InPath<(ConversationId, UserId)>,
) -> Answer<StatusCode> {
    let row = match row(&server, conversation, claims.sub).await {
        Ok(row) => row,
        // Nobody, or nobody any more, as by an earlier try of this. A removal that not every server had confirmed is
        // confirmed now.
        Err(failure) if user == claims.sub && failure.is(ErrorCode::NotAMember) => {
            server.tell(&[Role::Chat, Role::Api], Call::MemberGone { conversation, user }).await?;
            return Ok(StatusCode::NO_CONTENT);
        }
        Err(failure) => return Err(failure),
    };
    if row.owner == user {
        return Err(Failure::new(ErrorCode::Forbidden, "the owner can't leave the group"));
    }
    if user != claims.sub || row.kind == ConversationKind::Direct {
        require_owner(&row, claims.sub)?;
    }
    let removed = server.carry_out(async move |server: Arc<ApiServer>| {
        server.deps.backends.directory.remove_member(conversation, user).await?;
        members_changed(&server, conversation).await
    });
    removed.await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn receipts(
    server: App,
    Caller(claims): Caller,
    InPath(conversation): InPath<ConversationId>,
    Params(params): Params<MembersPage>,
) -> Answer<Response> {
    let (after, limit) = params.check(RECEIPTS_PAGE)?;
    let turn = server.pages.turn(claims.sub)?;
    require_member(&server, conversation, claims.sub).await?;
    let rows = limit * ReceiptStatus::ALL.len() + 1;
    let mut receipts = server.deps.backends.directory.receipts(conversation, after, rows).await?;
    still_member(&server, conversation, claims.sub).await?;
    let has_more = cut_behind_members(&mut receipts, limit);
    server.pages.answer(turn, &Receipts { receipts, has_more })
}

/// Cuts a list of receipts, by user, behind so many users; returns whether there were more.
fn cut_behind_members(receipts: &mut Vec<Receipt>, members: usize) -> bool {
    let mut seen = 0;
    let mut last = None;
    let end = receipts.iter().position(|receipt| {
        seen += usize::from(last.replace(receipt.user) != Some(receipt.user));
        seen > members
    });
    receipts.truncate(end.unwrap_or(receipts.len()));
    end.is_some()
}
