//! What a server looked up lately and may use for some seconds, unless it is told to forget it.
//!
//! A change bites at once: whoever makes it has every server forget, and answers only when they did. A look that began before
//! that is not kept (the generation tells). The age limit is for a word that was lost with its server.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Mutex;
use std::time::Duration;

use crate::runtime::clock;

/// Age at which something is looked up again.
pub(super) const AGE_MAX: Duration = Duration::from_secs(5);

/// Things by key; a full memory starts anew.
pub(super) struct Remembered<K, V> {
    entries_max: usize,
    state: Mutex<State<K, V>>,
}

struct State<K, V> {
    /// Rises with everything that is forgotten.
    generation: u64,
    /// Each with the time of its look, on [`clock::now_us`].
    entries: HashMap<K, (V, u64)>,
}

/// A look that begins: what comes of it is kept only if nothing was forgotten meanwhile.
#[derive(Clone, Copy)]
pub(super) struct Look {
    generation: u64,
    began_us: u64,
}

impl Look {
    /// Which looks may share an answer: one that began before something was forgotten says nothing to those after it.
    pub(super) const fn generation(self) -> u64 {
        self.generation
    }
}

impl<K: Eq + Hash, V: Clone> Remembered<K, V> {
    /// Remembers nothing yet, and never more than `entries_max` things.
    pub(super) fn new(entries_max: usize) -> Self {
        Self { entries_max, state: Mutex::new(State { generation: 0, entries: HashMap::new() }) }
    }

    /// What is remembered under a key, or the begin of a look.
    pub(super) fn get(&self, key: &K) -> Result<V, Look> {
        let now = clock::now_us();
        let state = self.state.lock().expect("no panic while held");
        match state.entries.get(key) {
            Some((value, at)) if now - at < AGE_MAX.as_micros() as u64 => Ok(value.clone()),
            _ => Err(Look { generation: state.generation, began_us: now }),
        }
    }

    /// Keeps what came of a look.
    pub(super) fn put(&self, look: Look, key: K, value: V) {
        let mut state = self.state.lock().expect("no panic while held");
        if state.generation == look.generation {
            if state.entries.len() >= self.entries_max {
                state.entries.clear();
            }
            state.entries.insert(key, (value, look.began_us));
        }
    }

    /// Forgets a key: the next look sees things as they are.
    pub(super) fn forget(&self, key: &K) {
        let mut state = self.state.lock().expect("no panic while held");
        state.generation += 1;
        state.entries.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_began_before_something_was_forgotten_is_not_kept() {
        let memory = Remembered::new(2);
        let early = memory.get(&1).expect_err("unknown");
        memory.forget(&2);
        memory.put(early, 1, "old");
        let look = memory.get(&1).expect_err("not kept");
        memory.put(look, 1, "new");
        assert_eq!(memory.get(&1).ok(), Some("new"));
        memory.forget(&1);
        assert!(memory.get(&1).is_err());
    }

    #[test]
    fn a_full_memory_starts_anew() {
        let memory = Remembered::new(2);
        for key in 0..3 {
            memory.put(memory.get(&key).expect_err("unknown"), key, ());
        }
        assert_eq!((0..3).filter(|key| memory.get(key).is_ok()).collect::<Vec<_>>(), [2]);
    }
}
