//! Users, friends, conversations and their members, receipts, and tokens that were logged out.

#[cfg(test)]
pub(crate) mod contract;
mod dialect;
mod hosts;
mod schema;
mod sql;
mod sql_error;

use async_trait::async_trait;
use uuid::Uuid;

pub use hosts::CONNECTIONS_MAX;
pub use sql::SqlDirectory;

use super::BackendResult;
use crate::protocol::api::{ConversationKind, Profile, Receipt};
#[cfg(doc)]
use crate::protocol::limits::{MEMBERS_COUNTED_MAX, MEMBERS_LISTED_MAX};
use crate::protocol::{ConversationId, UserId};

/// A user's name and the hash of the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Who.
    pub user: UserId,
    /// PHC string of argon2.
    pub password_hash: String,
}

/// A user who is not there yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewUser {
    /// Unique. The form in which names are compared is the caller's to choose: names that differ in a byte are two names.
    pub name: String,
    /// What the user is shown as.
    pub display_name: String,
    /// PHC string of argon2.
    pub password_hash: String,
}

/// What the directory knows of a token whose signature is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenStanding {
    /// Its user exists, and it was not logged out.
    Good,
    /// It was logged out.
    Revoked,
    /// There is no such user: the signing key was shared with another deployment, or the account is gone.
    NoSuchUser,
}

/// A conversation as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConversationRow {
    /// Which.
    pub conversation: ConversationId,
    /// Direct or group.
    pub kind: ConversationKind,
    /// What it is called.
    pub name: String,
    /// Who made it.
    pub owner: UserId,
    /// How many members it has now, counted up to [`MEMBERS_COUNTED_MAX`], and in a list up to [`MEMBERS_LISTED_MAX`].
    pub members: u64,
}

/// Who is in a conversation, as far as a server needs to know for each message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audience {
    /// Direct or group.
    pub kind: ConversationKind,
    /// Everybody, by id; `None` where they are more than was asked for.
    pub users: Option<Vec<UserId>>,
}

/// What a new conversation starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewConversationRow {
    /// Direct or group. There is one direct conversation per pair: making it again returns the first.
    pub kind: ConversationKind,
    /// What it is called.
    pub name: String,
    /// Who makes it.
    pub owner: UserId,
    /// Everybody, the owner too, each once.
    pub members: Vec<UserId>,
}

/// The relational store. Every change is durable on `Ok`, and every later read of every handle sees it.
///
/// A text with a NUL character is refused by every call, kind `Rejected`: not every database can keep one. Ids that are above
/// what a database can hold (2^63 - 1) are those of nobody.
#[async_trait]
pub trait Directory: Send + Sync {
    /// Adds a user.
    ///
    /// # Errors
    /// Kind `Conflict`: the name is taken.
    async fn add_user(&self, user: &NewUser) -> BackendResult<UserId>;

    /// Adds many users, all of them or none; ids come in the order of the names.
    ///
    /// # Errors
    /// Kind `Conflict`: one of the names is taken, or stands twice in the list.
    async fn add_users(&self, users: &[NewUser]) -> BackendResult<Vec<UserId>>;

    /// What a login checks against.
    async fn credentials(&self, name: &str) -> BackendResult<Option<Credentials>>;

    /// Profiles of those of the users that exist, by id.
    async fn profiles(&self, users: &[UserId]) -> BackendResult<Vec<Profile>>;

    /// The user of a name.
    async fn find_user(&self, name: &str) -> BackendResult<Option<Profile>>;

    /// Changes what a user is shown as.
    async fn set_display_name(&self, user: UserId, display_name: &str) -> BackendResult<()>;

    /// Makes two users friends, or ends it; both directions at once. Returns whether anything changed.
    async fn set_friends(&self, a: UserId, b: UserId, friends: bool) -> BackendResult<bool>;

    /// How many friends a user has, counted up to `most`.
    async fn friend_count(&self, user: UserId, most: usize) -> BackendResult<u64>;

    /// Whether two users are friends.
    async fn are_friends(&self, a: UserId, b: UserId) -> BackendResult<bool>;

    /// A user's friends, by id.
    async fn friends(&self, user: UserId) -> BackendResult<Vec<UserId>>;

    /// Adds a conversation with its members.
    async fn add_conversation(&self, new: &NewConversationRow) -> BackendResult<ConversationId>;

    /// One conversation.
    async fn conversation(&self, conversation: ConversationId) -> BackendResult<Option<ConversationRow>>;

    /// The conversations of a member with ids above `after`, by id, at most `limit`.
    async fn conversations_of(
        &self,
        user: UserId,
        after: ConversationId,
        limit: usize,
    ) -> BackendResult<Vec<ConversationRow>>;

    /// The ids of those conversations, without what is told of each.
    async fn conversation_ids_of(
        &self,
        user: UserId,
        after: ConversationId,
        limit: usize,
    ) -> BackendResult<Vec<ConversationId>>;

    /// Who is in a conversation, listed up to `most`; `None` when there is no such conversation. Reads no more than that,
    /// however many there are.
    async fn audience(&self, conversation: ConversationId, most: usize) -> BackendResult<Option<Audience>>;

    /// The members of a conversation with ids above `after`, by id, at most `limit`.
    async fn members(&self, conversation: ConversationId, after: UserId, limit: usize) -> BackendResult<Vec<UserId>>;

    /// Whether a user is a member.
    async fn is_member(&self, conversation: ConversationId, user: UserId) -> BackendResult<bool>;

    /// Those of the users that are members, by id.
    async fn members_among(&self, conversation: ConversationId, users: &[UserId]) -> BackendResult<Vec<UserId>>;

    /// Adds members; those who are in already stay. Returns how many joined.
    async fn add_members(&self, conversation: ConversationId, users: &[UserId]) -> BackendResult<u64>;

    /// Removes a member; returns whether there was one.
    async fn remove_member(&self, conversation: ConversationId, user: UserId) -> BackendResult<bool>;

    /// Raises a member's receipt; it never goes back. Returns whether it rose.
    async fn raise_receipt(&self, conversation: ConversationId, receipt: &Receipt) -> BackendResult<bool>;

    /// The receipts of a conversation, of users with ids above `after`, by user, at most `limit`.
    async fn receipts(&self, conversation: ConversationId, after: UserId, limit: usize) -> BackendResult<Vec<Receipt>>;

    /// Remembers that a token was logged out, until it would have expired (seconds since 1970).
    async fn revoke_token(&self, token: Uuid, expires_at: u64) -> BackendResult<()>;

    /// Whether a token is still good: whether its user exists, and whether it was logged out.
    async fn token_standing(&self, user: UserId, token: Uuid) -> BackendResult<TokenStanding>;

    /// The tokens that were logged out within the last `seconds`, by the clock of the database.
    async fn revoked_within(&self, seconds: u64) -> BackendResult<Vec<Uuid>>;

    /// Removes logged-out tokens that expired over an hour ago. Returns how many.
    async fn purge_revoked(&self) -> BackendResult<u64>;

    /// Writes something small that nobody reads: whether the engine takes writes now.
    async fn probe(&self) -> BackendResult<()>;
}
