//! Users, friends, conversations and their members, receipts, and tokens that were logged out.

#[cfg(test)]
pub(crate) mod contract;
mod dialect;
mod sql;

use async_trait::async_trait;
use uuid::Uuid;

pub use sql::SqlDirectory;

use super::BackendResult;
use crate::protocol::api::{ConversationKind, Profile, Receipt};
use crate::protocol::{ConversationId, UserId};

/// A user's name and the hash of the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Who.
    pub user: UserId,
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
    /// How many members it has now.
    pub members: u64,
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
#[async_trait]
pub trait Directory: Send + Sync {
    /// Adds a user.
    ///
    /// # Errors
    /// Kind `Conflict`: the name is taken.
    async fn add_user(&self, name: &str, password_hash: &str) -> BackendResult<UserId>;

    /// Adds many users, all of them or none; ids come in the order of the names.
    ///
    /// # Errors
    /// Kind `Conflict`: one of the names is taken, or stands twice in the list.
    async fn add_users(&self, users: &[(String, String)]) -> BackendResult<Vec<UserId>>;

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

    /// The members of a conversation, by id.
    async fn members(&self, conversation: ConversationId) -> BackendResult<Vec<UserId>>;

    /// Whether a user is a member.
    async fn is_member(&self, conversation: ConversationId, user: UserId) -> BackendResult<bool>;

    /// Adds members; those who are in already stay. Returns how many joined.
    async fn add_members(&self, conversation: ConversationId, users: &[UserId]) -> BackendResult<u64>;

    /// Removes a member; returns whether there was one.
    async fn remove_member(&self, conversation: ConversationId, user: UserId) -> BackendResult<bool>;

    /// Raises a member's receipt; it never goes back.
    async fn raise_receipt(&self, conversation: ConversationId, receipt: &Receipt) -> BackendResult<()>;

    /// The receipts of a conversation, by user.
    async fn receipts(&self, conversation: ConversationId) -> BackendResult<Vec<Receipt>>;

    /// Remembers that a token was logged out, until it would have expired (seconds since 1970).
    async fn revoke_token(&self, token: Uuid, expires_at: u64) -> BackendResult<()>;

    /// Whether a token is still good: whether its user exists, and whether it was logged out.
    async fn token_standing(&self, user: UserId, token: Uuid) -> BackendResult<TokenStanding>;

    /// The tokens that were logged out within the last `seconds`, by the clock of the database.
    async fn revoked_within(&self, seconds: u64) -> BackendResult<Vec<Uuid>>;

    /// Removes logged-out tokens that expired over an hour ago. Returns how many.
    async fn purge_revoked(&self) -> BackendResult<u64>;
}
