//! Who wants to hear of whose presence.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};

use crate::protocol::UserId;

/// Friend → users here who are told of the friend's presence.
#[derive(Default)]
pub(super) struct Watches(Mutex<HashMap<UserId, Vec<UserId>>>);

impl Watches {
    fn lock(&self) -> MutexGuard<'_, HashMap<UserId, Vec<UserId>>> {
        self.0.lock().expect("no panic while held")
    }

    /// `user` wants to hear of `friend`; returns false if that was so already.
    pub(super) fn add(&self, friend: UserId, user: UserId) -> bool {
        let mut watchers = self.lock();
        let users = watchers.entry(friend).or_default();
        let is_new = !users.contains(&user);
        if is_new {
            users.push(user);
        }
        is_new
    }

    /// `user` does not want to hear of `friend` any more; returns whether that was so.
    pub(super) fn remove(&self, friend: UserId, user: UserId) -> bool {
        let mut watchers = self.lock();
        let Some(users) = watchers.get_mut(&friend) else { return false };
        let before = users.len();
        users.retain(|u| *u != user);
        let removed = users.len() < before;
        if users.is_empty() {
            watchers.remove(&friend);
        }
        removed
    }

    /// Ends a user's watches of some friends; returns those that were watched.
    pub(super) fn remove_all(&self, user: UserId, friends: &[UserId]) -> Vec<UserId> {
        let unique: HashSet<UserId> = friends.iter().copied().collect();
        unique.into_iter().filter(|friend| self.remove(*friend, user)).collect()
    }

    /// Whether `user` is told of `friend`.
    pub(super) fn has(&self, friend: UserId, user: UserId) -> bool {
        self.lock().get(&friend).is_some_and(|users| users.contains(&user))
    }

    /// The users that are told of a friend.
    pub(super) fn of(&self, friend: UserId) -> Vec<UserId> {
        self.lock().get(&friend).cloned().unwrap_or_default()
    }

    /// The friends that a user watches. Walks all watches: for clean-up when the directory can't be asked.
    pub(super) fn by(&self, user: UserId) -> Vec<UserId> {
        self.lock().iter().filter(|(_, users)| users.contains(&user)).map(|(friend, _)| *friend).collect()
    }

    /// Watched friends, for tests that look for what was left behind.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }
}
