//! Bodies of the HTTP API, as JSON. The paths and their statuses are in `docs/protocol.md`.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::frames::{MessageFrame, ReceiptStatus};
use super::{ConversationId, DeviceName, ErrorCode, MessageId, ServerName, SessionId, UserId};

/// Answer of every request that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
    /// When to try again, if trying again can help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// Body of `POST /signup`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signup {
    /// Unique, 1 to 64 characters.
    pub name: String,
    /// 8 to 256 bytes.
    pub password: String,
}

/// Body of `POST /login`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// The name given at signup.
    pub name: String,
    /// The password given at signup.
    pub password: String,
    /// Which device asks; the token belongs to it.
    pub device: DeviceName,
}

/// Answer of `POST /poll` and `POST /poll/{session}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PollAnswer {
    /// The session, for the next request.
    pub session: SessionId,
    /// Frames as a WebSocket would have carried them, in order.
    pub frames: Vec<Box<RawValue>>,
    /// The close code, once the session is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<u16>,
}

/// Most accounts of one `POST /accounts`.
pub const ACCOUNTS_PER_CALL_MAX: usize = 200;

/// Body of `POST /accounts`: many signups with their first logins, for load tests.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewAccounts {
    /// Up to 200; all of them are made, or none.
    pub accounts: Vec<NewAccount>,
}

/// One of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewAccount {
    /// As at signup.
    pub name: String,
    /// As at signup.
    pub password: String,
    /// Devices to log in, up to 8.
    pub devices: Vec<DeviceName>,
}

/// Answer of `POST /accounts`, in the order of the accounts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MadeAccounts {
    /// The logins of each account's devices, in their order.
    pub accounts: Vec<Vec<LoggedIn>>,
}

/// Where to connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The chat server's name.
    pub server: ServerName,
    /// Its WebSocket address, such as `ws://127.0.0.1:7101/ws`.
    pub url: String,
}

/// Answer of `POST /login`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedIn {
    /// Who logged in.
    pub user: UserId,
    /// The device that the token belongs to.
    pub device: DeviceName,
    /// For the `Authorization: Bearer` header.
    pub token: String,
    /// End of the token's life, in seconds since 1970.
    pub expires_at: u64,
    /// The chat server to connect to.
    #[serde(flatten)]
    pub placement: Placement,
}

/// A user as others see one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Who.
    pub user: UserId,
    /// The unique name.
    pub name: String,
    /// What the user wants to be shown as.
    pub display_name: String,
}

/// Body of `PATCH /me`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileChange {
    /// 1 to 64 characters.
    pub display_name: String,
}

/// Body of `POST /friends` and `POST /conversations/{id}/members` for one user, and answer of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserRef {
    /// Who.
    pub user: UserId,
}

/// Answer of `GET /friends`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Friends {
    /// All friends, by id.
    pub friends: Vec<UserId>,
}

/// What kind of talk it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConversationKind {
    /// Two people. There is one per pair.
    Direct,
    /// Any number of people. Above 100 members it is fanned out on read.
    Group,
}

/// Body of `POST /conversations`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewConversation {
    /// Direct or group.
    pub kind: ConversationKind,
    /// The members beside the caller, who becomes the owner.
    #[serde(default)]
    pub members: Vec<UserId>,
    /// What a group is called, up to 128 characters.
    #[serde(default)]
    pub name: String,
}

/// A conversation as its members see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    /// Which.
    pub conversation: ConversationId,
    /// Direct or group.
    pub kind: ConversationKind,
    /// What it is called; empty for a direct one.
    pub name: String,
    /// Who made it and may remove others.
    pub owner: UserId,
    /// How many members it has.
    pub members: u64,
    /// True above 100 members: subscribe for `head` frames and fetch through sync.
    pub large: bool,
}

/// Answer of `GET /conversations`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversations {
    /// The caller's conversations, by id.
    pub conversations: Vec<Conversation>,
}

/// Body of `POST /conversations/{id}/members`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddMembers {
    /// Who joins.
    pub members: Vec<UserId>,
}

/// Answer of `GET /conversations/{id}/members`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// By id.
    pub members: Vec<UserId>,
    /// True when there are more: ask again with `after_user_id` set to the last one.
    #[serde(default)]
    pub has_more: bool,
}

/// One row of `GET /conversations/{id}/receipts`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Whose.
    pub user: UserId,
    /// Delivered or read.
    pub status: ReceiptStatus,
    /// Every id up to this one.
    pub upto: MessageId,
}

/// Answer of `GET /conversations/{id}/receipts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipts {
    /// The newest of each member and status.
    pub receipts: Vec<Receipt>,
    /// True when there are more: ask again with `after_user_id` set to the last one's.
    #[serde(default)]
    pub has_more: bool,
}

/// Answer of `GET /messages/sync`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessagesSync {
    /// In id order, each id above `after_message_id`.
    pub messages: Vec<MessageFrame>,
    /// True when the limit cut the answer short: ask again after the last id.
    pub has_more: bool,
    /// Every id up to this one is in the store or will never exist. A cursor moves only over ids that the client has
    /// or that `stable` explains.
    pub stable: MessageId,
}

/// One row of `GET /inbox/sync`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboxEntry {
    /// Which conversation.
    pub conversation: ConversationId,
    /// The newest stored id, 0 when nothing was said.
    pub head: MessageId,
    /// When it was said, in milliseconds since 1970, 0 when nothing was.
    pub at: u64,
}

/// Answer of `GET /inbox/sync`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboxSync {
    /// Conversations of the caller with news, by id.
    pub conversations: Vec<InboxEntry>,
    /// True when there may be more: ask again with `after_conversation_id` set to the one below, or to the last row's.
    pub has_more: bool,
    /// Where to go on, when there may be more: also where no row is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_conversation_id: Option<ConversationId>,
}
