//! Which tokens are good, cached in each API server. A logout has every API server invalidate the token.

use std::sync::Arc;

use uuid::Uuid;

use super::auth::Claims;
use super::ttl_cache::TtlCache;
use crate::backends::BackendResult;
use crate::backends::directory::{Directory, TokenStanding};

/// Tokens that are cached.
const TOKENS_MAX: usize = 100_000;

/// The cache of one server: tokens that were seen to be good.
pub(in crate::server) struct Revocations {
    directory: Arc<dyn Directory>,
    good: TtlCache<Uuid, ()>,
}

impl Revocations {
    /// An empty cache over a directory.
    pub(in crate::server) fn new(directory: Arc<dyn Directory>) -> Self {
        Self { directory, good: TtlCache::new(TOKENS_MAX) }
    }

    /// Whether a token whose signature is good is good: its user exists, and it was not logged out.
    pub(in crate::server) async fn is_good(&self, claims: &Claims) -> BackendResult<bool> {
        let Err(fill) = self.good.get(&claims.jti) else { return Ok(true) };
        let is_good = self.directory.token_standing(claims.sub, claims.jti).await? == TokenStanding::Good;
        if is_good {
            self.good.insert(fill, claims.jti, ());
        }
        Ok(is_good)
    }

    /// Invalidates a token that was logged out.
    pub(in crate::server) fn invalidate(&self, token: Uuid) {
        self.good.invalidate(&token);
    }
}
