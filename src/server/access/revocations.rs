//! Which tokens are good, cached in each API server. A logout has every API server drop the token.

use std::sync::Arc;

use uuid::Uuid;

use super::auth::Claims;
use super::ttl_cache::Remembered;
use crate::backends::BackendResult;
use crate::backends::directory::{Directory, TokenStanding};

/// Tokens that are remembered.
const TOKENS_MAX: usize = 100_000;

/// The memory of one server: tokens that were seen to be good.
pub(in crate::server) struct Revocations {
    directory: Arc<dyn Directory>,
    good: Remembered<Uuid, ()>,
}

impl Revocations {
    /// An empty memory over a directory.
    pub(in crate::server) fn new(directory: Arc<dyn Directory>) -> Self {
        Self { directory, good: Remembered::new(TOKENS_MAX) }
    }

    /// Whether a token whose signature is good is good: its user exists, and it was not logged out.
    pub(in crate::server) async fn is_good(&self, claims: &Claims) -> BackendResult<bool> {
        let Err(look) = self.good.get(&claims.jti) else { return Ok(true) };
        let is_good = self.directory.token_standing(claims.sub, claims.jti).await? == TokenStanding::Good;
        if is_good {
            self.good.put(look, claims.jti, ());
        }
        Ok(is_good)
    }

    /// Forgets a token that was logged out.
    pub(in crate::server) fn forget(&self, token: Uuid) {
        self.good.forget(&token);
    }
}
