//! Who wants to hear of whose presence.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use crate::protocol::UserId;

/// Which users of this server are told of which friends' presence, by either of them.
#[derive(Default)]
pub(super) struct Watches(Mutex<Both>);

#[derive(Default)]
struct Both {
    /// Friend → users here.
    watchers: HashMap<UserId, Vec<UserId>>,
    /// User here → friends.
    watched: HashMap<UserId, Vec<UserId>>,
}

/// Takes `value` out of the list of `key`; returns whether it was there. An empty list is gone.
fn take(lists: &mut HashMap<UserId, Vec<UserId>>, key: UserId, value: UserId) -> bool {
    let Some(list) = lists.get_mut(&key) else { return false };
    let Some(at) = list.iter().position(|one| *one == value) else { return false };
    list.swap_remove(at);
    if list.is_empty() {
        lists.remove(&key);
    }
    true
}

impl Watches {
    fn lock(&self) -> MutexGuard<'_, Both> {
        self.0.lock().expect("no panic while held")
    }

    /// `user` wants to hear of `friend`; returns false if that was so already.
    pub(super) fn add(&self, friend: UserId, user: UserId) -> bool {
        let mut both = self.lock();
        let users = both.watchers.entry(friend).or_default();
        let is_new = !users.contains(&user);
        if is_new {
            users.push(user);
            both.watched.entry(user).or_default().push(friend);
        }
        is_new
    }

    /// `user` does not want to hear of `friend` any more; returns whether that was so.
    pub(super) fn remove(&self, friend: UserId, user: UserId) -> bool {
        let mut both = self.lock();
        let was = take(&mut both.watchers, friend, user);
        if was {
            take(&mut both.watched, user, friend);
        }
        was
    }

    /// Ends all watches of a user; returns the friends that were watched.
    pub(super) fn remove_all(&self, user: UserId) -> Vec<UserId> {
        let mut both = self.lock();
        let friends = both.watched.remove(&user).unwrap_or_default();
        for friend in &friends {
            take(&mut both.watchers, *friend, user);
        }
        friends
    }

    /// Whether `user` is told of `friend`.
    pub(super) fn has(&self, friend: UserId, user: UserId) -> bool {
        self.lock().watchers.get(&friend).is_some_and(|users| users.contains(&user))
    }

    /// The users that are told of a friend.
    pub(super) fn of(&self, friend: UserId) -> Vec<UserId> {
        self.lock().watchers.get(&friend).cloned().unwrap_or_default()
    }

    /// Watched friends, for tests that look for what was left behind.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().watchers.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_watches_of_a_user_end_whoever_its_friends_are_by_then() {
        let watches = Watches::default();
        let (a, b, c, d) = (UserId(1), UserId(2), UserId(3), UserId(4));
        for (friend, user) in [(a, d), (b, d), (b, c)] {
            assert!(watches.add(friend, user));
        }
        assert!(!watches.add(a, d), "it is there already");
        assert!(watches.remove(a, d));
        assert!(!watches.remove(a, d));
        assert_eq!(watches.remove_all(d), [b]);
        assert_eq!((watches.of(b), watches.of(a), watches.remove_all(d)), (vec![c], Vec::new(), Vec::new()));
        assert_eq!(watches.remove_all(c), [b]);
        assert!(watches.lock().watched.is_empty() && watches.len() == 0);
    }
}
