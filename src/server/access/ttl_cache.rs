//! TTL cache with explicit invalidation.
//!
//! A change takes effect at once: whoever makes it has every server invalidate the key, and answers only when they did.
//! A fill that began before an invalidation of its key is discarded (the generation tells). The TTL is for an
//! invalidation that was lost with its server.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::sync::Mutex;
use std::time::Duration;

use crate::runtime::clock;

/// Age at which an entry is read again.
pub(super) const TTL: Duration = Duration::from_secs(5);

/// Keys share this many generations by their hash: whoever invalidates one key all the time discards the fills of few others.
const GENERATIONS: usize = 1_024;

/// Values by key; a full cache is emptied.
pub(super) struct TtlCache<K, V> {
    entries_max: usize,
    hasher: RandomState,
    cached: Mutex<Cached<K, V>>,
}

struct Cached<K, V> {
    /// Each rises with every invalidation of one of its keys.
    generations: Vec<u64>,
    /// Each with the begin of its fill, on [`clock::now_us`].
    entries: HashMap<K, (V, u64)>,
}

/// A fill that begins: its value is kept only if its key is not invalidated meanwhile.
#[derive(Clone, Copy)]
pub(super) struct Fill {
    generation: u64,
    began_us: u64,
}

impl Fill {
    /// Which fills may share a value: one that began before an invalidation is of no use to those after it.
    pub(super) const fn generation(self) -> u64 {
        self.generation
    }
}

impl<K: Eq + Hash, V: Clone> TtlCache<K, V> {
    /// An empty cache of at most `entries_max` entries.
    pub(super) fn new(entries_max: usize) -> Self {
        let cached = Cached { generations: vec![0; GENERATIONS], entries: HashMap::new() };
        Self { entries_max, hasher: RandomState::new(), cached: Mutex::new(cached) }
    }

    /// The number of the generation of a key.
    fn generation_of(&self, key: &K) -> usize {
        self.hasher.hash_one(key) as usize % GENERATIONS
    }

    /// The value of a key, or the begin of a fill.
    pub(super) fn get(&self, key: &K) -> Result<V, Fill> {
        let now = clock::now_us();
        let cached = self.cached.lock().expect("no panic while held");
        match cached.entries.get(key) {
            // Another thread's fill may have begun after the clock was read here.
            Some((value, at)) if now.saturating_sub(*at) < TTL.as_micros() as u64 => Ok(value.clone()),
            _ => Err(Fill { generation: cached.generations[self.generation_of(key)], began_us: now }),
        }
    }

    /// Keeps the value of a fill, or discards it.
    pub(super) fn insert(&self, fill: Fill, key: K, value: V) {
        let mut cached = self.cached.lock().expect("no panic while held");
        if cached.generations[self.generation_of(&key)] == fill.generation {
            if cached.entries.len() >= self.entries_max {
                cached.entries.clear();
            }
            cached.entries.insert(key, (value, fill.began_us));
        }
    }

    /// Removes a key, and discards every fill of it that has begun.
    pub(super) fn invalidate(&self, key: &K) {
        let mut cached = self.cached.lock().expect("no panic while held");
        cached.generations[self.generation_of(key)] += 1;
        cached.entries.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fill_that_began_before_an_invalidation_is_discarded() {
        let cache = TtlCache::new(2);
        let early = cache.get(&1).expect_err("unknown");
        cache.invalidate(&1);
        cache.insert(early, 1, "old");
        let fill = cache.get(&1).expect_err("discarded");
        cache.insert(fill, 1, "new");
        assert_eq!(cache.get(&1).ok(), Some("new"));
        cache.invalidate(&1);
        assert!(cache.get(&1).is_err());
    }

    #[test]
    fn who_invalidates_one_key_all_the_time_leaves_the_fills_of_others() {
        let cache = TtlCache::new(1_000);
        for key in 1..=500 {
            let fill = cache.get(&key).expect_err("unknown");
            cache.invalidate(&0);
            cache.insert(fill, key, "value");
        }
        let kept = (1..=500).filter(|key| cache.get(key).is_ok()).count();
        assert!(kept > 480, "{kept} of 500 fills were kept");
    }

    #[test]
    fn a_fill_that_began_after_the_clock_was_read_is_young() {
        let cache = TtlCache::new(2);
        let fill = cache.get(&1).expect_err("unknown");
        cache.insert(Fill { began_us: fill.began_us + 1_000_000, ..fill }, 1, "new");
        assert_eq!(cache.get(&1).ok(), Some("new"));
    }

    #[test]
    fn a_full_cache_is_emptied() {
        let cache = TtlCache::new(2);
        for key in 0..3 {
            cache.insert(cache.get(&key).expect_err("unknown"), key, ());
        }
        assert_eq!((0..3).filter(|key| cache.get(key).is_ok()).collect::<Vec<_>>(), [2]);
    }
}
