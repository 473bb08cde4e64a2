//! Who may send a request by a token, and how often.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::auth::Claims;
use super::rate::Buckets;
use super::revocations::Revocations;
use crate::backends::BackendError;
use crate::backends::directory::Directory;
use crate::protocol::UserId;

/// Accounts, and tokens, whose requests are counted.
const ENTRIES_MAX: usize = 100_000;

/// The callers of one server.
pub(in crate::server) struct Callers {
    revocations: Revocations,
    of_tokens: Buckets<Uuid>,
    of_accounts: Buckets<UserId>,
}

/// Why a request is not taken.
#[derive(Debug)]
pub(in crate::server) enum NotTaken {
    /// Its token was logged out, or its user does not exist.
    Revoked,
    /// There were too many; one may come after a time.
    TooMany(Duration),
    /// Whether the token is good can't be read now.
    Unknown(BackendError),
}

impl Callers {
    /// At most `per_second` requests of an account, over ten seconds.
    pub(in crate::server) fn new(directory: Arc<dyn Directory>, per_second: u32) -> Self {
        Self {
            revocations: Revocations::new(directory),
            of_tokens: Buckets::new(per_second, ENTRIES_MAX),
            of_accounts: Buckets::new(per_second, ENTRIES_MAX),
        }
    }

    /// Takes a request of whom a token was made for.
    ///
    /// # Errors
    /// When the token was logged out, or too many requests came.
    pub(in crate::server) async fn take(&self, claims: &Claims) -> Result<(), NotTaken> {
        // Before anything is looked up, and by the token: who has one that was logged out takes nothing from its owner.
        self.of_tokens.take(claims.jti).map_err(NotTaken::TooMany)?;
        if !self.revocations.is_good(claims).await.map_err(NotTaken::Unknown)? {
            return Err(NotTaken::Revoked);
        }
        self.of_accounts.take(claims.sub).map_err(NotTaken::TooMany)
    }

    /// Invalidates what is known of a token that was logged out.
    pub(in crate::server) fn invalidate(&self, token: Uuid) {
        self.revocations.invalidate(token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::directory::NewUser;
    use crate::backends::layers::Pace;
    use crate::backends::registry::Role;
    use crate::server::bench::{Bench, Gate};

    const PER_SECOND: u32 = 5;
    const AT_ONCE: usize = 50;

    #[tokio::test]
    async fn a_token_that_was_logged_out_costs_few_look_ups_and_its_owner_nothing() {
        let bench = Bench::new(Role::Api, "api-1", |backends| backends).await;
        let gate = Gate::new("directory.token_standing");
        let pace: Arc<dyn Pace> = Arc::clone(&gate) as Arc<dyn Pace>;
        let directory = bench.deps.backends.paced(&pace).directory;
        gate.open();
        let new = NewUser { name: "ann".to_owned(), display_name: "Ann".to_owned(), password_hash: "x".to_owned() };
        let ann = directory.add_user(&new).await.expect("adds");
        let claims = |user| bench.deps.tokens.issue(user, &"phone".parse().expect("a name")).1;
        let (good, old, nobodys) = (claims(ann), claims(ann), claims(UserId(999)));
        directory.revoke_token(old.jti, old.exp).await.expect("logs out");
        let callers = Callers::new(directory, PER_SECOND);
        let (mut revoked, mut too_many) = (0, 0);
        for _ in 0..4 * AT_ONCE {
            match callers.take(&old).await {
                Err(NotTaken::Revoked) => revoked += 1,
                Err(NotTaken::TooMany(_)) => too_many += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!(revoked >= AT_ONCE && too_many > AT_ONCE, "{revoked} and {too_many}");
        assert_eq!(gate.comers(), 1, "that it was logged out is kept");
        for _ in 0..4 * AT_ONCE {
            assert!(callers.take(&nobodys).await.is_err());
        }
        assert!(gate.comers() <= 2 * AT_ONCE, "{}", gate.comers());
        assert!(callers.take(&good).await.is_ok(), "the owner has all requests left");
    }

    #[tokio::test]
    async fn an_account_has_a_rate_with_all_its_tokens() {
        let bench = Bench::new(Role::Api, "api-1", |backends| backends).await;
        let directory = Arc::clone(&bench.deps.backends.directory);
        let new = NewUser { name: "ann".to_owned(), display_name: "Ann".to_owned(), password_hash: "x".to_owned() };
        let ann = directory.add_user(&new).await.expect("adds");
        // A bucket of a thousand, which fills in ten seconds.
        let callers = Callers::new(directory, 100);
        let mut taken = 0;
        for n in 0..10 {
            let claims = bench.deps.tokens.issue(ann, &format!("phone-{n}").parse().expect("a name")).1;
            for _ in 0..900 {
                taken += usize::from(callers.take(&claims).await.is_ok());
            }
        }
        assert!((1_000..9_000).contains(&taken), "{taken}");
    }
}
