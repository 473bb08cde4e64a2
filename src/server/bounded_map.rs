//! A map with a limit that forgets what was not used while many others were.

use std::collections::HashMap;
use std::hash::Hash;

/// Two halves: when the young one is full it becomes the old one, whose keys come back as they are used. A key is kept as long as
/// fewer than half of `entries_max` others are used between two of its uses.
pub(super) struct BoundedMap<K, V> {
    half_max: usize,
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K: Eq + Hash, V: Default> BoundedMap<K, V> {
    /// An empty map of at most `entries_max` keys.
    pub(super) fn new(entries_max: usize) -> Self {
        Self { half_max: (entries_max / 2).max(1), young: HashMap::new(), old: HashMap::new() }
    }

    /// The value of a key, as it is. Not a use.
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    /// The value of a key, made if it is not there.
    pub(super) fn use_entry(&mut self, key: K) -> &mut V {
        // Taken out before the halves change places.
        let known = self.old.remove(&key);
        if self.young.len() >= self.half_max && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.entry(key).or_insert_with(|| known.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_stays_and_what_nobody_used_for_long_is_forgotten() {
        let mut map = BoundedMap::<u32, u32>::new(100);
        *map.use_entry(1) = 7;
        *map.use_entry(2) = 9;
        for key in 10..10_000 {
            map.use_entry(key);
            if key % 40 == 0 {
                assert_eq!(*map.use_entry(1), 7, "{key}");
            }
        }
        assert_eq!((map.get(&1), map.get(&2)), (Some(&7), None));
        assert!(map.young.len() + map.old.len() <= 100);
    }
}
