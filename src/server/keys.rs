//! Keys of a deployment, one for each use, from its secrets.
//!
//! Every server of a deployment has the same secrets: the one that is used, and others that are accepted while a new one comes
//! into use. The secret itself signs tokens, as any tool of JWT can; the key of peer links is derived from it, and tells nothing
//! of it.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Bytes of a secret and of a key.
pub const KEY_BYTES: usize = 32;

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Signs and checks tokens.
    Tokens,
    /// Authenticates both ends of a peer link.
    PeerLinks,
}

impl Purpose {
    fn key(self, secret: &[u8; KEY_BYTES]) -> [u8; KEY_BYTES] {
        match self {
            Self::Tokens => *secret,
            Self::PeerLinks => {
                let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
                mac.update(b"chatctl peer links 1");
                mac.finalize().into_bytes().into()
            }
        }
    }
}

/// The keys of one use: the one in use first, then those that are accepted. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys(Vec<[u8; KEY_BYTES]>);

impl Keys {
    /// The keys of a use, of a deployment's secrets.
    #[must_use]
    pub fn derive(current: &[u8; KEY_BYTES], accepted: &[[u8; KEY_BYTES]], purpose: Purpose) -> Self {
        Self(std::iter::once(current).chain(accepted).map(|secret| purpose.key(secret)).collect())
    }

    /// The one in use.
    #[must_use]
    pub fn current(&self) -> &[u8; KEY_BYTES] {
        &self.0[0]
    }

    /// All that are accepted, the one in use first.
    pub fn all(&self) -> impl Iterator<Item = &[u8; KEY_BYTES]> {
        self.0.iter()
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_use_and_each_secret_has_a_key_of_its_own() {
        let (one, two) = ([1; KEY_BYTES], [2; KEY_BYTES]);
        let keys = |purpose| Keys::derive(&one, &[two], purpose);
        let (tokens, peers) = (keys(Purpose::Tokens), keys(Purpose::PeerLinks));
        let all: std::collections::HashSet<_> = tokens.all().chain(peers.all()).collect();
        assert_eq!((all.len(), tokens.current()), (4, &one));
        assert_eq!(tokens.current(), Keys::derive(&one, &[], Purpose::Tokens).current());
        assert_eq!(format!("{tokens:?}"), "Keys(2)");
    }
}
