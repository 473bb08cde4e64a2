//! Beats that are not passed on yet: the newest of each user, for a bounded number of users. Chat servers keep those
//! for presence servers, and these keep those for the store.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use crate::protocol::UserId;

/// Newest beat of each user, on [`crate::runtime::clock::now_us`]. Written by readers, taken by the loop.
pub(super) struct BeatBuffer {
    users_max: usize,
    beats: Mutex<HashMap<UserId, u64>>,
}

impl BeatBuffer {
    /// For so many users at most; a newer beat of a user replaces the older one.
    pub(super) fn new(users_max: usize) -> Self {
        Self { users_max, beats: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<UserId, u64>> {
        self.beats.lock().expect("no panic while held")
    }

    /// Takes beats, also such as could not be passed on before, each unless a newer one of its user is there. Returns
    /// how many users there was no room for.
    pub(super) fn add(&self, beats: impl IntoIterator<Item = (UserId, u64)>) -> u64 {
        let mut kept = self.lock();
        let mut dropped = 0;
        for (user, at_us) in beats {
            if kept.len() >= self.users_max && !kept.contains_key(&user) {
                dropped += 1;
                continue;
            }
            let newest = kept.entry(user).or_insert(at_us);
            *newest = at_us.max(*newest);
        }
        dropped
    }

    /// Takes all of them out.
    pub(super) fn take(&self) -> HashMap<UserId, u64> {
        std::mem::take(&mut *self.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_beat_of_each_user_and_of_so_many_users() {
        let (beats, [one, two, three]) = (BeatBuffer::new(2), [1, 2, 3].map(UserId));
        assert_eq!(beats.add([(one, 10), (two, 11), (three, 12)]), 1, "there is no room for the last one");
        assert_eq!(beats.add([(one, 13)]), 0, "a newer one replaces the older one");
        assert_eq!(beats.take(), HashMap::from([(one, 13), (two, 11)]));
        assert_eq!(beats.add([(one, 20), (one, 13), (two, 11), (three, 12)]), 1);
        assert_eq!(beats.take(), HashMap::from([(one, 20), (two, 11)]), "an older one replaces nothing");
    }
}
