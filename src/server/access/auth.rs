//! Tokens (JWT, HS256 and nothing else) and passwords (argon2id).

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use argon2::password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash};
use argon2::{Algorithm, Argon2, Params, Version};
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use super::keys::Keys;
use super::rate::customer_of;
use crate::protocol::{DeviceName, UserId};
use crate::runtime::{Tasks, clock, machine};

/// The one allowed algorithm: a token that names another one is refused, "none" too.
const ALGORITHM: jsonwebtoken::Algorithm = jsonwebtoken::Algorithm::HS256;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Whose.
    pub sub: UserId,
    /// For which device.
    pub dev: DeviceName,
    /// The token's own id, by which it can be revoked.
    pub jti: Uuid,
    /// When it was made, in seconds since 1970.
    pub iat: u64,
    /// When it ends, in seconds since 1970.
    pub exp: u64,
}

impl Claims {
    /// Whether they are over, at a time in milliseconds since 1970.
    #[must_use]
    pub const fn have_expired(&self, now_ms: u64) -> bool {
        self.exp <= now_ms / 1_000
    }
}

/// A token that is not valid. Which of its faults it was is not told to the client.
#[derive(Debug, thiserror::Error)]
#[error("token is missing, forged, expired or logged out: log in again")]
pub struct InvalidToken;

/// Makes and checks tokens.
pub struct Tokens {
    encoding: EncodingKey,
    /// The key in use first, then those that are accepted while another one comes into use.
    decoding: Vec<DecodingKey>,
    validation: Validation,
    lifetime_s: u64,
}

impl Tokens {
    /// Tokens of `lifetime_s` seconds.
    #[must_use]
    pub fn new(keys: &Keys, lifetime_s: u64) -> Self {
        let mut validation = Validation::new(ALGORITHM);
        validation.leeway = 0;
        // Whether a token has expired is asked of our clock, here and while a connection is open.
        validation.validate_exp = false;
        // A token that is not valid yet is not valid.
        validation.validate_nbf = true;
        Self {
            encoding: EncodingKey::from_secret(keys.current()),
            decoding: keys.all().map(|key| DecodingKey::from_secret(key)).collect(),
            validation,
            lifetime_s,
        }
    }

    /// How long a token lives that is issued now.
    pub(in crate::server) const fn lifetime(&self) -> Duration {
        Duration::from_secs(self.lifetime_s)
    }

    /// A new token and its claims.
    #[must_use]
    pub fn issue(&self, user: UserId, device: &DeviceName) -> (String, Claims) {
        let iat = clock::unix_ms() / 1_000;
        let claims = Claims { sub: user, dev: device.clone(), jti: Uuid::new_v4(), iat, exp: iat + self.lifetime_s };
        let token = jsonwebtoken::encode(&Header::new(ALGORITHM), &claims, &self.encoding)
            .expect("plain claims and a key of the algorithm's family");
        (token, claims)
    }

    /// Checks signature, algorithm and expiry.
    pub fn verify(&self, token: &str) -> Result<Claims, InvalidToken> {
        self.verify_old(token).ok().filter(|claims| !claims.have_expired(clock::unix_ms())).ok_or(InvalidToken)
    }

    /// Checks signature and algorithm: who has it was once let in, whatever has become of the token.
    pub fn verify_old(&self, token: &str) -> Result<Claims, InvalidToken> {
        let verify = |key| jsonwebtoken::decode(token, key, &self.validation).map(|data| data.claims).ok();
        self.decoding.iter().find_map(verify).ok_or(InvalidToken)
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("lifetime_s", &self.lifetime_s).finish_non_exhaustive()
    }
}

/// The token in an `Authorization` header, if it is of the Bearer scheme.
#[must_use]
pub fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Cost of a password hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PasswordCost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
}

impl Default for PasswordCost {
    /// 19 MiB, two passes. Source: OWASP password storage cheat sheet, argon2id.
    fn default() -> Self {
        Self { memory_kib: 19 * 1024, passes: 2 }
    }
}

impl PasswordCost {
    /// Whether passwords can be hashed at this cost.
    ///
    /// # Errors
    /// Names the field and its valid values.
    pub fn check(self) -> Result<(), String> {
        let Self { memory_kib, passes } = self;
        if !(Params::MIN_M_COST..=MEMORY_KIB_MAX).contains(&memory_kib) {
            return Err(format!("memory_kib is {memory_kib}: valid are {} to {MEMORY_KIB_MAX}", Params::MIN_M_COST));
        }
        if !(Params::MIN_T_COST..=PASSES_MAX).contains(&passes) {
            return Err(format!("passes is {passes}: valid are {} to {PASSES_MAX}", Params::MIN_T_COST));
        }
        Ok(())
    }
}

/// Most that one password may cost: a server hashes one on each core.
const MEMORY_KIB_MAX: u32 = 4 << 20;
const PASSES_MAX: u32 = 100;

/// Checks and hashes that wait for a core; more are turned away.
const WAITING_MAX: usize = 200;

/// Of so many of them one address may have any number; of the others only so many are its.
const OPEN_TO_ANYBODY: usize = WAITING_MAX / 2;
const OF_AN_ADDRESS_MAX: usize = 16;

/// How long checks took, kept to answer for unknown names.
const SAMPLES: usize = 64;

/// How old the newest of them may be.
const SAMPLE_AGE_MAX: Duration = Duration::from_secs(10);

/// Why a password was not hashed or checked.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// Too many wait.
    #[error("too many logins and signups at once")]
    Busy,
    /// It failed.
    #[error("{0}")]
    Failed(String),
}

/// Hashes and checks passwords on blocking threads, no more at once than there are cores; signups leave one of them to logins.
///
/// An unknown name takes as long as a known one, and no core: it waits as long as a check took lately.
pub struct Passwords {
    argon2: Argon2<'static>,
    /// Checked where a name is unknown and no check has run lately.
    dummy_hash: String,
    turns: Arc<Semaphore>,
    signups: Arc<Semaphore>,
    /// Hashes and checks that wait or run.
    hashes: Arc<Mutex<Waiting>>,
    checks: Arc<Mutex<Waiting>>,
    /// What checks took, in microseconds, and when the newest ended, on [`clock::now_us`]. Written by each check.
    took: Mutex<(VecDeque<u64>, u64)>,
}

impl Passwords {
    /// Passwords at a cost.
    ///
    /// # Errors
    /// Says what argon2 does not like about the cost.
    pub fn new(cost: PasswordCost) -> Result<Self, String> {
        let params = Params::new(cost.memory_kib, cost.passes, 1, None)
            .map_err(|e| format!("password cost {cost:?} is not valid: {e}"))?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let dummy_hash = hash_now(&argon2, b"nobody's password")?;
        Ok(Self {
            argon2,
            dummy_hash,
            turns: Arc::new(Semaphore::new(machine::cores())),
            signups: Arc::new(Semaphore::new(machine::cores().saturating_sub(1).max(1))),
            hashes: Arc::default(),
            checks: Arc::default(),
            took: Mutex::default(),
        })
    }

    /// The hash of a password, as a PHC string, for somebody at an address.
    pub async fn hash(&self, password: String, from: IpAddr) -> Result<String, PasswordError> {
        let counted = Counted::enter(&self.hashes, from)?;
        let signup = acquire(&self.signups).await?;
        let argon2 = self.argon2.clone();
        let hash = self.run((counted, signup), move || hash_now(&argon2, password.as_bytes())).await?;
        hash.map_err(PasswordError::Failed)
    }

    /// Whether a password fits a hash; `None` stands for an unknown name and never fits.
    pub async fn verify(&self, password: String, hash: Option<String>, from: IpAddr) -> Result<bool, PasswordError> {
        let is_known = hash.is_some();
        if !is_known && let Some(took) = self.took_lately() {
            tokio::time::sleep(took).await;
            return Ok(false);
        }
        let counted = Counted::enter(&self.checks, from)?;
        let began = clock::now_us();
        let argon2 = self.argon2.clone();
        let hash = hash.unwrap_or_else(|| self.dummy_hash.clone());
        let fits = self
            .run(counted, move || {
                PasswordHash::new(&hash).is_ok_and(|h| argon2.verify_password(password.as_bytes(), &h).is_ok())
            })
            .await?;
        self.note_took(clock::now_us() - began);
        Ok(fits && is_known)
    }

    /// What one of the last checks took, waiting included; `None` when there was none lately.
    fn took_lately(&self) -> Option<Duration> {
        let took = self.took.lock().expect("no panic while held");
        let (samples, newest_us) = &*took;
        let is_fresh = clock::now_us().saturating_sub(*newest_us) < SAMPLE_AGE_MAX.as_micros() as u64;
        let any = rand::random_range(0..samples.len().max(1));
        samples.get(any).filter(|_| is_fresh).map(|us| Duration::from_micros(*us))
    }

    fn note_took(&self, us: u64) {
        let mut took = self.took.lock().expect("no panic while held");
        if took.0.len() >= SAMPLES {
            took.0.pop_front();
        }
        took.0.push_back(us);
        took.1 = clock::now_us();
    }

    /// Runs on a core. What is held until then is held until the work is done, also where nobody waits for it any more.
    async fn run<T: Send + 'static>(
        &self,
        held: impl Send + 'static,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PasswordError> {
        let turn = acquire(&self.turns).await?;
        let done = Tasks::block(move || {
            let done = work();
            drop((turn, held));
            done
        });
        done.await.ok_or_else(|| PasswordError::Failed("the work panicked".to_owned()))
    }
}

async fn acquire(turns: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, PasswordError> {
    Arc::clone(turns).acquire_owned().await.map_err(|e| PasswordError::Failed(e.to_string()))
}

/// Those that wait or run.
#[derive(Default)]
struct Waiting {
    all: usize,
    of_addresses: HashMap<IpAddr, usize>,
}

/// One that waits or runs.
struct Counted {
    waiting: Arc<Mutex<Waiting>>,
    from: IpAddr,
}

impl Counted {
    /// Takes a place: no address takes those that are kept for the others.
    fn enter(all: &Arc<Mutex<Waiting>>, from: IpAddr) -> Result<Self, PasswordError> {
        let from = customer_of(from);
        let mut waiting = all.lock().expect("no panic while held");
        let of_address = waiting.of_addresses.get(&from).copied().unwrap_or(0);
        if waiting.all >= WAITING_MAX || (waiting.all >= OPEN_TO_ANYBODY && of_address >= OF_AN_ADDRESS_MAX) {
            return Err(PasswordError::Busy);
        }
        waiting.all += 1;
        waiting.of_addresses.insert(from, of_address + 1);
        drop(waiting);
        Ok(Self { waiting: Arc::clone(all), from })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock().expect("no panic while held");
        waiting.all -= 1;
        if let Some(count) = waiting.of_addresses.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                waiting.of_addresses.remove(&self.from);
            }
        }
    }
}

fn hash_now(argon2: &Argon2<'_>, password: &[u8]) -> Result<String, String> {
    let hash: PasswordHash = argon2.hash_password(password).map_err(|e| format!("hashing failed: {e}"))?;
    Ok(hash.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::access::keys::Purpose;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn tokens() -> Tokens {
        with_secrets(7, &[])
    }

    fn with_secrets(current: u8, accepted: &[u8]) -> Tokens {
        let accepted: Vec<[u8; 32]> = accepted.iter().map(|byte| [*byte; 32]).collect();
        Tokens::new(&Keys::derive(&[current; 32], &accepted, Purpose::Tokens), 60)
    }

    fn device() -> DeviceName {
        "phone".parse().expect("valid")
    }

    #[test]
    fn a_token_is_read_back_and_a_forged_one_refused() {
        let (token, claims) = tokens().issue(UserId(5), &device());
        assert_eq!(tokens().verify(&token).expect("valid"), claims);
        assert!(with_secrets(8, &[]).verify(&token).is_err());
        assert_eq!(with_secrets(8, &[9, 7]).verify(&token).expect("accepted until it ends"), claims);
        let mut tampered = token.clone();
        tampered.replace_range(token.len() - 2.., "AA");
        assert!(tokens().verify(&tampered).is_err() || tampered == token);
        assert!(tokens().verify("").is_err());
    }

    #[test]
    fn another_algorithm_is_refused() {
        let (_, claims) = tokens().issue(UserId(5), &device());
        let key = EncodingKey::from_secret(&[7; 32]);
        let other = jsonwebtoken::encode(&Header::new(jsonwebtoken::Algorithm::HS512), &claims, &key).expect("signs");
        assert!(tokens().verify(&other).is_err());
        // {"alg":"none"} and {"sub":"u5","dev":"phone",…} without a signature.
        assert!(tokens().verify("eyJhbGciOiJub25lIn0.eyJzdWIiOiJ1NSJ9.").is_err());
    }

    #[test]
    fn an_expired_token_is_refused() {
        let (_, mut claims) = tokens().issue(UserId(5), &device());
        // In the second in which it ends it has ended: as for connections that are open.
        claims.exp = claims.iat;
        let token =
            jsonwebtoken::encode(&Header::new(ALGORITHM), &claims, &EncodingKey::from_secret(&[7; 32])).expect("signs");
        assert!(tokens().verify(&token).is_err());
    }

    #[test]
    fn a_token_of_the_future_is_refused() {
        #[derive(Serialize)]
        struct Early {
            #[serde(flatten)]
            claims: Claims,
            nbf: u64,
        }
        let (_, claims) = tokens().issue(UserId(5), &device());
        let key = EncodingKey::from_secret(&[7; 32]);
        let sign = |nbf| {
            let early = Early { claims: claims.clone(), nbf };
            jsonwebtoken::encode(&Header::new(ALGORITHM), &early, &key).expect("signs")
        };
        assert!(tokens().verify(&sign(claims.iat + 3_600)).is_err());
        assert_eq!(tokens().verify(&sign(claims.iat - 1)).expect("valid"), claims);
    }

    #[test]
    fn only_the_bearer_scheme_is_read() {
        assert_eq!(bearer("Bearer abc"), Some("abc"));
        assert_eq!(bearer("bearer  abc "), Some("abc"));
        assert_eq!(bearer("Basic abc"), None);
        assert_eq!(bearer("abc"), None);
    }

    #[tokio::test]
    async fn a_password_fits_its_own_hash_only() {
        let passwords = Passwords::new(PasswordCost { memory_kib: 64, passes: 1 }).expect("valid");
        let hash = passwords.hash("correct horse".to_owned(), HERE).await.expect("hashes");
        assert!(passwords.verify("correct horse".to_owned(), Some(hash.clone()), HERE).await.expect("checks"));
        assert!(!passwords.verify("battery staple".to_owned(), Some(hash), HERE).await.expect("checks"));
        assert!(!passwords.verify("nobody's password".to_owned(), None, HERE).await.expect("checks"));
    }

    #[tokio::test]
    async fn unknown_names_take_no_core_from_known_ones_and_too_many_are_turned_away() {
        let passwords = Passwords::new(PasswordCost { memory_kib: 64, passes: 1 }).expect("valid");
        let hash = passwords.hash("correct horse".to_owned(), HERE).await.expect("hashes");
        assert!(passwords.verify("correct horse".to_owned(), Some(hash), HERE).await.expect("checks"));
        // Nobody gets a core any more: only who needs none is answered.
        passwords.turns.forget_permits(usize::MAX);
        assert!(!passwords.verify("x".to_owned(), None, HERE).await.expect("answers without a core"));
        let mut login = Box::pin(passwords.verify("x".to_owned(), Some(passwords.dummy_hash.clone()), HERE));
        let tries = (0..WAITING_MAX as u32 + 5)
            .map(|n| passwords.hash("correct horse".to_owned(), IpAddr::from(n.to_be_bytes())));
        let mut tries: Vec<_> = tries.map(Box::pin).collect();
        let busy = tries.iter_mut().filter_map(futures_util::FutureExt::now_or_never).count();
        assert_eq!(busy, 5);
        let waits = futures_util::FutureExt::now_or_never(login.as_mut());
        assert!(waits.is_none(), "signups don't take the places of logins");
        drop((tries, login));
        for waiting in [&passwords.hashes, &passwords.checks] {
            let waiting = waiting.lock().expect("no panic while held");
            assert!(waiting.all == 0 && waiting.of_addresses.is_empty());
        }
    }

    #[test]
    fn one_address_leaves_half_of_the_places_to_the_others() {
        let all = Arc::new(Mutex::new(Waiting::default()));
        let enter = |n: u8| Counted::enter(&all, IpAddr::from([10, 0, 0, n]));
        let greedy: Vec<Counted> = (0..WAITING_MAX).map_while(|_| enter(1).ok()).collect();
        assert_eq!(greedy.len(), OPEN_TO_ANYBODY);
        let another: Vec<Counted> = (0..WAITING_MAX).map_while(|_| enter(2).ok()).collect();
        assert_eq!(another.len(), OF_AN_ADDRESS_MAX);
        assert!(enter(3).is_ok() && enter(1).is_err());
        drop((greedy, another));
        assert!(enter(1).is_ok());
    }
}
