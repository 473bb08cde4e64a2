//! Keys of a deployment, one for each use, from its secrets.
//!
//! Every server of a deployment has the same secrets: the one that is used, and others that are accepted while a new one comes
//! into use. The secret itself signs tokens, as any tool of JWT can; the key of peer links is derived from it, and tells nothing
//! of it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
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
    /// Authenticates what a gateway says of a client.
    Clients,
}

impl Purpose {
    fn key(self, secret: &[u8; KEY_BYTES]) -> [u8; KEY_BYTES] {
        match self {
            Self::Tokens => *secret,
            Self::PeerLinks => hmac(secret, b"chatctl peer links 1"),
            Self::Clients => hmac(secret, b"chatctl clients 1"),
        }
    }
}

fn hmac(key: &[u8; KEY_BYTES], text: &[u8]) -> [u8; KEY_BYTES] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text);
    mac.finalize().into_bytes().into()
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

    /// A text with a proof that a holder of the key wrote it.
    #[must_use]
    pub fn sign(&self, text: &str) -> String {
        let proof = hmac(self.current(), text.as_bytes());
        format!("{text} {}", STANDARD_NO_PAD.encode(proof))
    }

    /// The text of [`Keys::sign`], if a holder of one of the keys wrote it.
    #[must_use]
    pub fn signed<'a>(&self, signed: &'a str) -> Option<&'a str> {
        let (text, proof) = signed.rsplit_once(' ')?;
        let proof = STANDARD_NO_PAD.decode(proof).ok()?;
        let is_of = |key: &[u8; KEY_BYTES]| {
            let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
            mac.update(text.as_bytes());
            mac.verify_slice(&proof).is_ok()
        };
        self.0.iter().any(is_of).then_some(text)
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

    #[test]
    fn what_is_signed_is_read_by_who_has_the_key_and_nothing_else_is() {
        let keys =
            |current: u8, accepted: u8| Keys::derive(&[current; KEY_BYTES], &[[accepted; KEY_BYTES]], Purpose::Clients);
        let signed = keys(1, 2).sign("127.0.0.9");
        assert_eq!(keys(3, 1).signed(&signed), Some("127.0.0.9"));
        assert_eq!(keys(3, 4).signed(&signed), None);
        for forged in
            [signed.replace(".9", ".8"), "127.0.0.9".to_owned(), "127.0.0.9 ".to_owned(), "127.0.0.9 AA".to_owned()]
        {
            assert_eq!(keys(1, 2).signed(&forged), None, "{forged}");
        }
    }
}
