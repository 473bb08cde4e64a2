//! Which tokens are good, cached in each server that takes requests. A logout has every such server invalidate the token.

use std::sync::Arc;

use uuid::Uuid;

use super::auth::Claims;
use super::ttl_cache::TtlCache;
use crate::backends::BackendResult;
use crate::backends::directory::{Directory, TokenStanding};

/// Tokens that are cached.
const TOKENS_MAX: usize = 100_000;

/// The cache of one server: tokens that were seen to be good, or to be logged out.
pub(super) struct Revocations {
    directory: Arc<dyn Directory>,
    are_good: TtlCache<Uuid, bool>,
}

impl Revocations {
    /// An empty cache over a directory.
    pub(super) fn new(directory: Arc<dyn Directory>) -> Self {
        Self { directory, are_good: TtlCache::new(TOKENS_MAX) }
    }

    /// Whether a token whose signature is good is good: its user exists, and it was not logged out.
    pub(super) async fn is_good(&self, claims: &Claims) -> BackendResult<bool> {
        let fill = match self.are_good.get(&claims.jti) {
            Ok(is_good) => return Ok(is_good),
            Err(fill) => fill,
        };
        let standing = self.directory.token_standing(claims.sub, claims.jti).await?;
        let is_good = standing == TokenStanding::Good;
        // What was logged out stays so; a user who is not known may be in a moment.
        if is_good || standing == TokenStanding::Revoked {
            self.are_good.insert(fill, claims.jti, is_good);
        }
        Ok(is_good)
    }

    /// Invalidates a token that was logged out.
    pub(super) fn invalidate(&self, token: Uuid) {
        self.are_good.invalidate(&token);
    }
}
