//! Who is a member of a conversation, remembered in each chat and API server. A change of members has every one of them
//! forget the conversation.

use std::sync::Arc;
use std::time::Duration;

use super::remembered::{AGE_MAX, Remembered};
use super::single_flight::SingleFlight;
use crate::backends::BackendResult;
use crate::backends::directory::Directory;
use crate::protocol::api::ConversationKind;
use crate::protocol::limits::FANOUT_ON_WRITE_MEMBERS_MAX;
use crate::protocol::{ConversationId, UserId};

/// Conversations that are remembered.
const CONVERSATIONS_MAX: usize = 50_000;

/// Longest that a server goes by a list that has changed, where it was not told.
pub(super) const LIST_TTL: Duration = AGE_MAX;

/// The members of one conversation at one moment.
#[derive(Debug, PartialEq, Eq)]
pub struct MemberList {
    /// Direct or group.
    pub kind: ConversationKind,
    /// Rising.
    pub users: Vec<UserId>,
}

impl MemberList {
    /// Whether a user is a member.
    #[must_use]
    pub fn contains(&self, user: UserId) -> bool {
        self.users.binary_search(&user).is_ok()
    }

    /// True above the size that is fanned out on write.
    #[must_use]
    pub fn is_large(&self) -> bool {
        self.users.len() > FANOUT_ON_WRITE_MEMBERS_MAX
    }
}

/// The memory of one server.
pub struct Members {
    directory: Arc<dyn Directory>,
    lists: Arc<Remembered<ConversationId, Arc<MemberList>>>,
    /// By conversation and generation of the look.
    looks: SingleFlight<(ConversationId, u64), Option<Arc<MemberList>>>,
}

impl Members {
    /// An empty memory over a directory.
    #[must_use]
    pub fn new(directory: Arc<dyn Directory>) -> Self {
        Self { directory, lists: Arc::new(Remembered::new(CONVERSATIONS_MAX)), looks: SingleFlight::default() }
    }

    /// The members of a conversation; `None` when there is no such conversation.
    pub async fn get(&self, conversation: ConversationId) -> BackendResult<Option<Arc<MemberList>>> {
        let look = match self.lists.get(&conversation) {
            Ok(list) => return Ok(Some(list)),
            Err(look) => look,
        };
        let (directory, lists) = (Arc::clone(&self.directory), Arc::clone(&self.lists));
        // Kept by who began the look: its age counts from there, also for those who joined it.
        let read = move || async move {
            let Some(row) = directory.conversation(conversation).await? else { return Ok(None) };
            let users = directory.members(conversation).await?;
            let list = Arc::new(MemberList { kind: row.kind, users });
            lists.put(look, conversation, Arc::clone(&list));
            Ok(Some(list))
        };
        self.looks.get((conversation, look.generation()), read).await
    }

    /// Forgets a conversation: the next read sees the directory as it is.
    pub fn drop_entry(&self, conversation: ConversationId) {
        self.lists.forget(&conversation);
    }
}
