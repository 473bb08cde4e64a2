//! Which tokens were not logged out, remembered in each API server. A logout has every API server forget the token.

use std::sync::Arc;

use uuid::Uuid;

use super::remembered::Remembered;
use crate::backends::BackendResult;
use crate::backends::directory::Directory;

/// Tokens that are remembered.
const TOKENS_MAX: usize = 100_000;

/// The memory of one server: tokens that were seen to be good.
pub(super) struct Revocations {
    directory: Arc<dyn Directory>,
    good: Remembered<Uuid, ()>,
}

impl Revocations {
    /// An empty memory over a directory.
    pub(super) fn new(directory: Arc<dyn Directory>) -> Self {
        Self { directory, good: Remembered::new(TOKENS_MAX) }
    }

    /// Whether a token was logged out.
    pub(super) async fn is_revoked(&self, token: Uuid) -> BackendResult<bool> {
        let Err(look) = self.good.get(&token) else { return Ok(false) };
        let is_revoked = self.directory.is_revoked(token).await?;
        if !is_revoked {
            self.good.put(look, token, ());
        }
        Ok(is_revoked)
    }

    /// Forgets a token that was logged out.
    pub(super) fn forget(&self, token: Uuid) {
        self.good.forget(&token);
    }
}
