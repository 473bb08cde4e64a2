//! Who is a member of a conversation, cached in each chat and API server.
//!
//! A removal bites at once: the API changes the directory, then has every chat and API server drop its entry, and answers only
//! when they did. A read that began before the drop is not cached (the generation tells).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::backends::BackendResult;
use crate::backends::directory::Directory;
use crate::protocol::api::ConversationKind;
use crate::protocol::limits::FANOUT_ON_WRITE_MEMBERS_MAX;
use crate::protocol::{ConversationId, UserId};
use crate::runtime::clock;

/// Age at which an entry is read again, should a drop have been lost with its server.
const ENTRY_AGE_MAX: Duration = Duration::from_secs(5);

/// Conversations in the cache; a full cache starts anew.
const ENTRIES_MAX: usize = 50_000;

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

/// The cache of one server.
pub struct Members {
    directory: Arc<dyn Directory>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Rises with every drop.
    generation: u64,
    entries: HashMap<ConversationId, (Arc<MemberList>, u64)>,
}

impl Members {
    /// An empty cache over a directory.
    #[must_use]
    pub fn new(directory: Arc<dyn Directory>) -> Self {
        Self { directory, state: Mutex::default() }
    }

    /// The members of a conversation; `None` when there is no such conversation.
    pub async fn get(&self, conversation: ConversationId) -> BackendResult<Option<Arc<MemberList>>> {
        let generation = {
            let state = self.state.lock().expect("no panic while held");
            if let Some((list, read_us)) = state.entries.get(&conversation)
                && clock::now_us() - read_us < ENTRY_AGE_MAX.as_micros() as u64
            {
                return Ok(Some(Arc::clone(list)));
            }
            state.generation
        };
        let Some(row) = self.directory.conversation(conversation).await? else { return Ok(None) };
        let users = self.directory.members(conversation).await?;
        let list = Arc::new(MemberList { kind: row.kind, users });
        let mut state = self.state.lock().expect("no panic while held");
        if state.generation == generation {
            if state.entries.len() >= ENTRIES_MAX {
                state.entries.clear();
            }
            state.entries.insert(conversation, (Arc::clone(&list), clock::now_us()));
        }
        Ok(Some(list))
    }

    /// Forgets a conversation: the next read sees the directory as it is.
    pub fn drop_entry(&self, conversation: ConversationId) {
        let mut state = self.state.lock().expect("no panic while held");
        state.generation += 1;
        state.entries.remove(&conversation);
    }
}
