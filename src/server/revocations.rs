//! Which tokens were not logged out, as an API server looked lately.
//!
//! A logout bites at once: the API writes it down, then has every API server forget what it knew of the token, and answers
//! only when they did. A look that began before that is not kept (the generation tells).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use uuid::Uuid;

use crate::backends::BackendResult;
use crate::backends::directory::Directory;
use crate::runtime::clock;

/// Age at which a token is looked up again, should a word have been lost with its server.
const LOOK_AGE_MAX: Duration = Duration::from_secs(5);

/// Tokens that are remembered; a full memory starts anew.
const TOKENS_MAX: usize = 100_000;

/// The memory of one server.
pub(super) struct Revocations {
    directory: Arc<dyn Directory>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Rises with every logout.
    generation: u64,
    /// When a token was seen to be good.
    good: HashMap<Uuid, u64>,
}

impl Revocations {
    /// An empty memory over a directory.
    pub(super) fn new(directory: Arc<dyn Directory>) -> Self {
        Self { directory, state: Mutex::default() }
    }

    /// Whether a token was logged out.
    pub(super) async fn is_revoked(&self, token: Uuid) -> BackendResult<bool> {
        let generation = {
            let state = self.state.lock().expect("no panic while held");
            let is_fresh = |at: &u64| clock::now_us() - at < LOOK_AGE_MAX.as_micros() as u64;
            if state.good.get(&token).is_some_and(is_fresh) {
                return Ok(false);
            }
            state.generation
        };
        let looked_at = clock::now_us();
        if self.directory.is_revoked(token).await? {
            return Ok(true);
        }
        let mut state = self.state.lock().expect("no panic while held");
        if state.generation == generation {
            if state.good.len() >= TOKENS_MAX {
                state.good.clear();
            }
            state.good.insert(token, looked_at);
        }
        Ok(false)
    }

    /// Forgets a token that was logged out.
    pub(super) fn forget(&self, token: Uuid) {
        let mut state = self.state.lock().expect("no panic while held");
        state.generation += 1;
        state.good.remove(&token);
    }
}
