//! Keys that were noted within the last half minute or so.
//!
//! For the pattern "register, then check": what ends a right notes it and then looks for those who have it; who gets the
//! right registers and then looks for the note. One of the two sees the other, whatever the order.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Mutex;

use crate::runtime::clock;

/// Shortest life of a note; the longest is twice that. Longer than what it guards: a handshake with its engines' timeouts.
const LIFE_US: u64 = 30_000_000;

/// Notes of one life; beyond it the oldest go early.
const KEYS_MAX: usize = 200_000;

/// A set that forgets.
pub(super) struct RecentSet<K>(Mutex<Generations<K>>);

struct Generations<K> {
    young: HashSet<K>,
    old: HashSet<K>,
    began_us: u64,
    /// Notes that went early, and are not told yet.
    dropped: u64,
}

impl<K> Default for RecentSet<K> {
    fn default() -> Self {
        Self(Mutex::new(Generations {
            young: HashSet::new(),
            old: HashSet::new(),
            began_us: clock::now_us(),
            dropped: 0,
        }))
    }
}

impl<K: Eq + Hash> RecentSet<K> {
    fn with<T>(&self, now_us: u64, work: impl FnOnce(&mut Generations<K>) -> T) -> T {
        let mut generations = self.0.lock().expect("no panic while held");
        let age_us = now_us.saturating_sub(generations.began_us);
        if age_us >= LIFE_US || generations.young.len() >= KEYS_MAX {
            if age_us < LIFE_US {
                generations.dropped += generations.old.len() as u64;
            }
            let young = std::mem::take(&mut generations.young);
            generations.old = if age_us < 2 * LIFE_US { young } else { HashSet::new() };
            generations.began_us = now_us;
        }
        work(&mut generations)
    }

    /// Notes a key. Returns how many notes went early since this was last called.
    #[must_use]
    pub(super) fn insert(&self, key: K) -> u64 {
        self.with(clock::now_us(), |generations| {
            generations.young.insert(key);
            std::mem::take(&mut generations.dropped)
        })
    }

    /// Takes a note back.
    pub(super) fn remove(&self, key: &K) {
        self.with(clock::now_us(), |generations| {
            generations.young.remove(key);
            generations.old.remove(key);
        });
    }

    /// Whether a key was noted lately.
    pub(super) fn contains(&self, key: &K) -> bool {
        self.with(clock::now_us(), |generations| generations.young.contains(key) || generations.old.contains(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_lives_for_one_to_two_lives() {
        let set = RecentSet::default();
        let start = clock::now_us();
        let has = |at_us| set.with(at_us, |g| g.young.contains(&7) || g.old.contains(&7));
        set.with(start, |g| g.young.insert(7));
        assert!(has(start + LIFE_US - 1));
        assert!(has(start + LIFE_US), "it is an old one now");
        assert!(!has(start + 2 * LIFE_US));
    }

    #[test]
    fn a_note_does_not_outlive_a_pause() {
        let set = RecentSet::default();
        let start = clock::now_us();
        set.with(start, |g| g.young.insert(7));
        assert!(!set.with(start + 3 * LIFE_US, |g| g.young.contains(&7) || g.old.contains(&7)));
    }

    #[tokio::test(start_paused = true)]
    async fn notes_that_go_early_are_counted() {
        let set = RecentSet::default();
        let dropped: u64 = (0..2 * KEYS_MAX).map(|key| set.insert(key)).sum();
        assert_eq!(dropped, 0, "two generations have room for them");
        assert_eq!((set.insert(2 * KEYS_MAX), set.contains(&0)), (KEYS_MAX as u64, false));
    }

    #[test]
    fn a_note_can_be_taken_back() {
        let set = RecentSet::default();
        assert_eq!(set.insert(7), 0);
        assert!(set.contains(&7));
        set.remove(&7);
        assert!(!set.contains(&7));
    }
}
