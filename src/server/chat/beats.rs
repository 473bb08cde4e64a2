//! Beats that are not passed on yet: the newest of each user, for a bounded number of users.

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

    /// Takes a beat; returns whether there was room.
    pub(super) fn add(&self, user: UserId, at_us: u64) -> bool {
        let mut beats = self.lock();
        let has_room = beats.len() < self.users_max || beats.contains_key(&user);
        if has_room {
            beats.insert(user, at_us);
        }
        has_room
    }

    /// Puts beats back that could not be passed on, unless a newer one came. Returns how many found no room.
    pub(super) fn put_back(&self, kept: &[(UserId, u64)]) -> u64 {
        let mut beats = self.lock();
        let mut dropped = 0;
        for (user, at_us) in kept {
            if beats.len() < self.users_max {
                beats.entry(*user).or_insert(*at_us);
            } else {
                dropped += 1;
            }
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
        assert!(beats.add(one, 10) && beats.add(two, 11));
        assert!(!beats.add(three, 12), "there is no room");
        assert!(beats.add(one, 13), "a newer one replaces the older one");
        assert_eq!(beats.take(), HashMap::from([(one, 13), (two, 11)]));
        assert!(beats.add(one, 20));
        assert_eq!(beats.put_back(&[(one, 13), (two, 11), (three, 12)]), 1);
        assert_eq!(beats.take(), HashMap::from([(one, 20), (two, 11)]), "what is put back replaces nothing newer");
    }
}
