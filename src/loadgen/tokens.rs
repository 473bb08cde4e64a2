//! Tokens that expired during a run, and the ones that replaced them. Clients that never renew take no memory here.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::api::Error;
use super::retry::Retry;
use crate::runtime::clock;

/// Logins at the same time: tokens that were made together expire together.
const LOGINS_AT_ONCE: usize = 16;

/// Failed logins of a client are repeated this long. A run ends before.
const BUDGET: Duration = Duration::from_hours(18);

/// A token may expire so much earlier than it seems here: servers tell whole seconds, by a clock of their own.
const CLOCK_SKEW_US: u64 = 2_000_000;

/// The same as a part of its life, which is longer than it seems where this clock is behind.
const CLOCK_SKEW_PART: u64 = 10;

/// A client's token.
#[derive(Debug, Clone)]
pub(super) enum Token<'a> {
    /// From the setup.
    Initial(&'a str),
    /// From a login during the run.
    Renewed(Arc<str>),
}

impl Deref for Token<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Initial(token) => token,
            Self::Renewed(token) => token,
        }
    }
}

/// The token that a server calls invalid.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stale<'a> {
    /// This one.
    Token(&'a str),
    /// The one that a client had after so many renewals: see [`Tokens::renewals`].
    After(u32),
}

/// One client's renewals.
#[derive(Debug)]
struct Renewal {
    /// `None` until the first login succeeds. Written under `turn`.
    token: Mutex<Option<Issued>>,
    /// Held during a login: others wait for its outcome instead of logging in too.
    turn: tokio::sync::Mutex<Turn>,
}

/// A client's latest token, and how many it got during the run.
#[derive(Debug, Clone)]
struct Issued {
    token: Arc<str>,
    renewals: u32,
    /// On the run's clock.
    at_us: u64,
}

impl Issued {
    fn replaces(&self, stale: Stale<'_>) -> bool {
        match stale {
            Stale::Token(token) => *self.token != *token,
            Stale::After(renewals) => self.renewals > renewals,
        }
    }
}

#[derive(Debug)]
struct Turn {
    retry: Retry,
    /// No login before, on the run's clock.
    next_us: u64,
}

/// Renewed tokens of a run, by client.
#[derive(Debug)]
pub(super) struct Tokens {
    renewals: Mutex<HashMap<u32, Arc<Renewal>>>,
    /// Logins that replaced a token. Zero: no lock is needed to know that nobody has a renewed one.
    renewed: AtomicU64,
    /// Requests that were refused for a token that was good.
    refused: AtomicU64,
    /// When the first login was, on the run's clock.
    first_login_us: AtomicU64,
    /// Shortest life that a login was told of its token.
    life_us: AtomicU64,
    logins: Semaphore,
}

impl Default for Tokens {
    fn default() -> Self {
        let (first_login_us, life_us) = (AtomicU64::new(u64::MAX), AtomicU64::new(u64::MAX));
        let (renewed, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        let logins = Semaphore::new(LOGINS_AT_ONCE);
        Self { renewals: Mutex::default(), renewed, refused, first_login_us, life_us, logins }
    }
}

impl Tokens {
    /// A client's token: the latest renewed one, or `initial`.
    pub(super) fn get<'a>(&self, client: u32, initial: &'a str) -> Token<'a> {
        self.issued(client).map_or(Token::Initial(initial), |issued| Token::Renewed(issued.token))
    }

    /// How often a client's token was replaced so far.
    pub(super) fn renewals(&self, client: u32) -> u32 {
        self.issued(client).map_or(0, |issued| issued.renewals)
    }

    /// A login was answered with a token that expires at a time in seconds since 1970.
    pub(super) fn note_login(&self, expires_s: u64) {
        let life_us = expires_s.saturating_mul(1_000_000).saturating_sub(clock::unix_us());
        self.life_us.fetch_min(life_us, Ordering::Relaxed);
        self.first_login_us.fetch_min(clock::now_us(), Ordering::Relaxed);
    }

    /// When the token was issued that a client has now, on the run's clock.
    pub(super) fn issued_us(&self, client: u32) -> u64 {
        let first_us = self.first_login_us.load(Ordering::Relaxed);
        self.issued(client).map_or(first_us, |issued| issued.at_us)
    }

    /// Whether a token that was issued at a time may have come to its end: then a server that closes the connection that was
    /// opened with it does what it has to.
    pub(super) fn may_have_expired(&self, issued_us: u64, now_us: u64) -> bool {
        let life_us = self.life_us.load(Ordering::Relaxed);
        if life_us == u64::MAX {
            return false;
        }
        let skew_us = CLOCK_SKEW_US.max(life_us / CLOCK_SKEW_PART);
        now_us.saturating_add(skew_us) >= issued_us.saturating_add(life_us)
    }

    /// A server has called a token invalid that can't have come to its end.
    pub(super) fn note_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// How often that was so far.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn issued(&self, client: u32) -> Option<Issued> {
        if self.renewed() == 0 {
            return None;
        }
        let renewal = self.renewals.lock().expect("no panic while held").get(&client).cloned()?;
        renewal.token.lock().expect("no panic while held").clone()
    }

    /// Logins that replaced a token so far.
    pub(super) fn renewed(&self) -> u64 {
        self.renewed.load(Ordering::Relaxed)
    }

    /// Replaces a client's token that the server calls invalid. Of several callers with the same stale token one logs in, and
    /// the others get what it got. After a failed login the next one waits: exponentially, with jitter, and as long as the server
    /// asks for.
    ///
    /// # Errors
    /// That of this login.
    pub(super) async fn renew<F>(
        &self,
        client: u32,
        stale: Stale<'_>,
        login: impl FnOnce() -> F,
    ) -> Result<Token<'static>, Error>
    where
        F: Future<Output = Result<Box<str>, Error>>,
    {
        let renewal = self.renewal(client);
        let mut turn = renewal.turn.lock().await;
        let current = renewal.token.lock().expect("no panic while held").clone();
        let renewals = current.as_ref().map_or(0, |current| current.renewals);
        if let Some(current) = current.filter(|current| current.replaces(stale)) {
            return Ok(Token::Renewed(current.token));
        }
        clock::sleep_until_us(turn.next_us).await;
        // How long that takes is up to the target, which hashes the passwords of those before: it is no lag of the generator.
        let permit = self.logins.acquire().await.map_err(|e| Error::transport(e.to_string()))?;
        let answer = login().await;
        drop(permit);
        match answer {
            Ok(token) => {
                let token: Arc<str> = token.into();
                let at_us = clock::now_us();
                let issued = Issued { token: Arc::clone(&token), renewals: renewals + 1, at_us };
                *renewal.token.lock().expect("no panic while held") = Some(issued);
                turn.retry.reset();
                turn.next_us = 0;
                self.renewed.fetch_add(1, Ordering::Relaxed);
                Ok(Token::Renewed(token))
            }
            Err(error) => {
                let now_us = clock::now_us();
                // Past the budget no login is worth another try.
                let wait = turn.retry.next(now_us, error.retry_after()).unwrap_or(BUDGET);
                turn.next_us = now_us + wait.as_micros() as u64;
                Err(error)
            }
        }
    }

    fn renewal(&self, client: u32) -> Arc<Renewal> {
        let mut renewals = self.renewals.lock().expect("no panic while held");
        Arc::clone(renewals.entry(client).or_insert_with(|| {
            Arc::new(Renewal { token: Mutex::default(), turn: tokio::sync::Mutex::new(Turn::new(client)) })
        }))
    }
}

impl Turn {
    const fn new(client: u32) -> Self {
        Self { retry: Retry::with_budget(client as u64, BUDGET), next_us: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadgen::api::Api;
    use crate::loadgen::call_lag;
    use crate::runtime::clock;

    /// A login that gives `token-1`, `token-2`, … and takes a while.
    struct Logins(AtomicU64);

    impl Logins {
        async fn one(&self) -> Result<Box<str>, Error> {
            let number = self.0.fetch_add(1, Ordering::Relaxed) + 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
            Ok(format!("token-{number}").into())
        }
    }

    #[tokio::test]
    async fn of_many_who_renew_one_logs_in() {
        let (tokens, logins) = (Tokens::default(), Logins(AtomicU64::new(0)));
        assert_eq!(&*tokens.get(7, "initial"), "initial");
        let renewals = (0..50).map(|_| tokens.renew(7, Stale::Token("initial"), || logins.one()));
        for token in futures_util::future::join_all(renewals).await {
            assert_eq!(&*token.expect("logs in"), "token-1");
        }
        assert_eq!((tokens.renewed(), &*tokens.get(7, "initial")), (1, "token-1"));
        assert_eq!(&*tokens.get(8, "initial"), "initial", "others keep theirs");
        assert_eq!(&*tokens.renew(7, Stale::Token("token-1"), || logins.one()).await.expect("logs in"), "token-2");
        assert_eq!(
            &*tokens.renew(7, Stale::Token("token-1"), || logins.one()).await.expect("is there"),
            "token-2",
            "a late caller"
        );
        assert_eq!((tokens.renewed(), tokens.renewals.lock().expect("free").len()), (2, 1));
        // A connection was refused that was made with the first renewed token, and one made with the second.
        assert_eq!(&*tokens.renew(7, Stale::After(1), || logins.one()).await.expect("is there"), "token-2");
        assert_eq!(&*tokens.renew(7, Stale::After(2), || logins.one()).await.expect("logs in"), "token-3");
        assert_eq!([7, 8].map(|client| tokens.renewals(client)), [3, 0]);
    }

    #[tokio::test]
    async fn a_token_may_have_expired_after_the_life_that_its_login_was_told() {
        let tokens = Tokens::default();
        let second = 1_000_000;
        assert!(!tokens.may_have_expired(tokens.issued_us(1), 3_600_000 * second), "no login told of a life");
        tokens.note_login(clock::unix_ms() / 1_000 + 60);
        let (now_us, first_us) = (clock::now_us(), tokens.issued_us(1));
        assert!(!tokens.may_have_expired(first_us, now_us + 50 * second));
        assert!(tokens.may_have_expired(first_us, now_us + 60 * second));
        assert!(tokens.may_have_expired(first_us, now_us + 55 * second), "the server's clock may be ahead");
        let login = || async { Ok("new".into()) };
        tokio::time::sleep(Duration::from_millis(20)).await;
        tokens.renew(1, Stale::Token("initial"), login).await.expect("logs in");
        let renewed_us = clock::now_us();
        let second_us = tokens.issued_us(1);
        assert!(second_us > first_us && !tokens.may_have_expired(second_us, renewed_us + 50 * second));
        assert!(tokens.may_have_expired(second_us, renewed_us + 60 * second));
    }

    #[tokio::test]
    async fn a_failed_login_is_not_repeated_at_once() {
        let tokens = Tokens::default();
        let failing = || async { Err(Error::transport("down")) };
        assert!(tokens.renew(1, Stale::Token("initial"), failing).await.is_err());
        let before_us = clock::now_us();
        assert!(tokens.renew(1, Stale::Token("initial"), failing).await.is_err());
        assert!(clock::now_us() - before_us >= 90_000, "half of the first ceiling at least");
        assert_eq!(&*tokens.get(1, "initial"), "initial");
        let works = || async { Ok("new".into()) };
        assert_eq!(&*tokens.renew(1, Stale::Token("initial"), works).await.expect("logs in"), "new");
        let before_us = clock::now_us();
        assert_eq!(
            &*tokens.renew(1, Stale::Token("new"), || async { Ok("newer".into()) }).await.expect("logs in"),
            "newer"
        );
        assert!(clock::now_us() - before_us < 90_000, "a success ends the waiting");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_login_waited_for_those_before_it_is_no_lag_of_the_generator() {
        // Nobody listens there: what matters is when the call has its turn.
        let (tokens, api) = (Tokens::default(), Api::new("http://127.0.0.1:1").expect("an address"));
        let turns: Arc<Mutex<Vec<call_lag::SlotWait>>> = Arc::default();
        let told = Arc::clone(&turns);
        api.on_turn(move |wait| told.lock().expect("no panic").push(wait));
        let began_us = clock::now_us();
        let slow = || async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok("token".into())
        };
        let before = (0..LOGINS_AT_ONCE as u32).map(|client| tokens.renew(client, Stale::Token("old"), slow));
        let login =
            || async { api.login("user", "password", &"phone".parse().expect("a name")).await.map(|l| l.token.into()) };
        let late = call_lag::with_wait(tokens.renew(1_000, Stale::Token("old"), login));
        let (_, (_, waited_us)) = futures_util::future::join(futures_util::future::join_all(before), late).await;
        let turns = turns.lock().expect("no panic").clone();
        assert!(matches!(*turns, [wait] if wait.us() == 0 && wait.asked_us >= began_us + 1_000_000), "{turns:?}");
        assert_eq!(waited_us, 0, "nor is it of the fetch that needs the token");
    }
}
