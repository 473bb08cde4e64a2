//! Who is a member of a conversation, cached in each chat and API server. A change of members has every one of them
//! invalidate the conversation.
//!
//! Of a conversation that is fanned out on write the whole list is cached. Of a large one only those are, who were
//! asked for: each is looked up by key, so that a channel of millions costs what those who use it cost. That a user is
//! no member is never cached: the directory is asked by key, the same for a conversation that does not exist.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::single_flight::SingleFlight;
use super::ttl_cache::{TTL, TtlCache};
use crate::backends::BackendResult;
use crate::backends::directory::{Audience, Directory};
use crate::protocol::api::ConversationKind;
use crate::protocol::limits::{FANOUT_ON_WRITE_MEMBERS_MAX, MEMBERS_PER_CALL_MAX};
use crate::protocol::{ConversationId, UserId};

/// Conversations that are cached.
const CONVERSATIONS_MAX: usize = 50_000;

/// Members of one large conversation that are cached; then they are looked up anew.
const CONFIRMED_MAX: usize = 20_000;

/// Longest that a server goes by a list that has changed, where it was not told.
pub(in crate::server) const LIST_TTL: Duration = TTL;

/// The members of one conversation at one moment.
#[derive(Debug)]
pub struct MemberList {
    /// Direct or group.
    pub kind: ConversationKind,
    who: Who,
}

#[derive(Debug)]
enum Who {
    /// Everybody, rising.
    All(Vec<UserId>),
    /// Of a large conversation: those who were looked up and are members. Written by [`Members::of_member`].
    Confirmed(Mutex<HashSet<UserId>>),
}

impl MemberList {
    fn new(audience: Audience) -> Self {
        let who = audience.users.map_or_else(|| Who::Confirmed(Mutex::default()), Who::All);
        Self { kind: audience.kind, who }
    }

    /// Everybody, by id; nobody where the conversation is large.
    #[must_use]
    pub fn users(&self) -> &[UserId] {
        match &self.who {
            Who::All(users) => users,
            Who::Confirmed(_) => &[],
        }
    }

    /// True above the size that is fanned out on write.
    #[must_use]
    pub const fn is_large(&self) -> bool {
        matches!(self.who, Who::Confirmed(_))
    }

    /// Whether a user is known to be a member. Of a large conversation, false says nothing.
    #[must_use]
    pub fn has(&self, user: UserId) -> bool {
        match &self.who {
            Who::All(users) => users.binary_search(&user).is_ok(),
            Who::Confirmed(users) => users.lock().expect("no panic while held").contains(&user),
        }
    }

    fn confirm(&self, user: UserId) {
        if let Who::Confirmed(users) = &self.who {
            let mut users = users.lock().expect("no panic while held");
            if users.len() >= CONFIRMED_MAX {
                users.clear();
            }
            users.insert(user);
        }
    }
}

/// The cache of one server.
pub struct Members {
    directory: Arc<dyn Directory>,
    lists: Arc<TtlCache<ConversationId, Arc<MemberList>>>,
    /// By conversation and generation of the fill.
    fills: SingleFlight<(ConversationId, u64), Option<Arc<MemberList>>>,
}

impl Members {
    /// An empty cache over a directory.
    #[must_use]
    pub fn new(directory: Arc<dyn Directory>) -> Self {
        Self { directory, lists: Arc::new(TtlCache::new(CONVERSATIONS_MAX)), fills: SingleFlight::default() }
    }

    /// The members of a conversation if a user is one of them; `None` when not, or when there is no such conversation.
    pub async fn of_member(
        &self,
        conversation: ConversationId,
        user: UserId,
    ) -> BackendResult<Option<Arc<MemberList>>> {
        if let Ok(list) = self.lists.get(&conversation) {
            if list.has(user) {
                return Ok(Some(list));
            }
            if !self.directory.is_member(conversation, user).await? {
                return Ok(None);
            }
            if list.is_large() {
                list.confirm(user);
                return Ok(Some(list));
            }
            // A member since, and the word of it did not get here.
            self.invalidate(conversation);
        }
        let Some(list) = self.get(conversation).await? else { return Ok(None) };
        if list.is_large() && !list.has(user) && self.directory.is_member(conversation, user).await? {
            list.confirm(user);
        }
        Ok(list.has(user).then_some(list))
    }

    /// Whether a user is a member.
    pub async fn contains(&self, conversation: ConversationId, user: UserId) -> BackendResult<bool> {
        Ok(self.of_member(conversation, user).await?.is_some())
    }

    /// Those of the users that are members.
    pub async fn among(&self, conversation: ConversationId, users: &[UserId]) -> BackendResult<HashSet<UserId>> {
        let list = self.get(conversation).await?;
        let is_known = |user: &UserId| list.as_ref().is_some_and(|list| list.has(*user));
        let (known, unknown): (Vec<UserId>, Vec<UserId>) = users.iter().partition(|user| is_known(user));
        let mut among = HashSet::from_iter(known);
        if list.is_some_and(|list| list.is_large()) && !unknown.is_empty() {
            for some in unknown.chunks(MEMBERS_PER_CALL_MAX) {
                among.extend(self.directory.members_among(conversation, some).await?);
            }
        }
        Ok(among)
    }

    /// The members of a conversation; `None` when there is no such conversation.
    pub async fn get(&self, conversation: ConversationId) -> BackendResult<Option<Arc<MemberList>>> {
        let fill = match self.lists.get(&conversation) {
            Ok(list) => return Ok(Some(list)),
            Err(fill) => fill,
        };
        let (directory, lists) = (Arc::clone(&self.directory), Arc::clone(&self.lists));
        // Inserted by who began the fill: its age counts from there, also for those who joined it.
        let read = move || async move {
            let Some(audience) = directory.audience(conversation, FANOUT_ON_WRITE_MEMBERS_MAX).await? else {
                return Ok(None);
            };
            let list = Arc::new(MemberList::new(audience));
            lists.insert(fill, conversation, Arc::clone(&list));
            Ok(Some(list))
        };
        self.fills.get((conversation, fill.generation()), read).await
    }

    /// Whether the members of a conversation are known now, so that [`Self::get`] answers at once.
    #[must_use]
    pub fn are_known(&self, conversation: ConversationId) -> bool {
        self.lists.get(&conversation).is_ok_and(|list| !list.is_large())
    }

    /// Invalidates a conversation: the next read sees the directory as it is.
    pub fn invalidate(&self, conversation: ConversationId) {
        self.lists.invalidate(&conversation);
    }

    /// Invalidates a conversation whose list has a user who has left; returns whether it did.
    pub fn invalidate_if_member(&self, conversation: ConversationId, user: UserId) -> bool {
        let is_listed = self.lists.get(&conversation).is_ok_and(|list| list.has(user));
        if is_listed {
            self.invalidate(conversation);
        }
        is_listed
    }
}
