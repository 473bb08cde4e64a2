//! Identifiers. Each is a newtype, so that a user can't be passed where a conversation is meant.
//!
//! On the wire, users and conversations are strings with a letter in front (`"u17"`, `"c42"`): 64-bit integers do not
//! survive every JSON reader, and the letter makes a mix-up visible. Message ids are plain integers that rise by one
//! sequence per conversation.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A text that is not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a {kind}: expected {expected}")]
pub struct InvalidId {
    kind: &'static str,
    expected: &'static str,
    value: String,
}

impl InvalidId {
    fn new(kind: &'static str, expected: &'static str, value: &str) -> Self {
        Self { kind, expected, value: value.chars().take(80).collect() }
    }
}

macro_rules! prefixed_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $kind:literal, $example:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                text.strip_prefix($prefix)
                    .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
                    .and_then(|digits| digits.parse().ok())
                    .map(Self)
                    .ok_or_else(|| InvalidId::new($kind, $example, text))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                parse_text(deserializer)
            }
        }
    };
}

prefixed_id!(
    /// A person. Assigned by the directory, never reused.
    UserId, "u", "user id", "the letter u and a number, such as \"u17\""
);
prefixed_id!(
    /// A one-to-one talk, a group or a large channel. Assigned by the directory, never reused.
    ConversationId, "c", "conversation id", "the letter c and a number, such as \"c42\""
);

/// Reads a string and parses it, without allocating when the input is borrowed.
fn parse_text<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = InvalidId>,
{
    struct TextVisitor<T>(std::marker::PhantomData<T>);
    impl<T: FromStr<Err = InvalidId>> de::Visitor<'_> for TextVisitor<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an id as a string")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }
    deserializer.deserialize_str(TextVisitor(std::marker::PhantomData))
}

/// Position of a message in its conversation: 1, 2, 3 … with holes, never reused. 0 means "before the first".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct MessageId(pub u64);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl MessageId {
    /// The id behind this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// One connection's life. A new one is made for every connect, so that an old server's clean-up can't end a new route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub uuid::Uuid);

impl SessionId {
    /// An id made at a time, in milliseconds since 1970: a UUID of version 7.
    #[must_use]
    pub fn made_at(ms: u64, random: [u8; 10]) -> Self {
        Self(uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid())
    }

    /// An id made at a time, or as soon behind another one as ids tell apart.
    #[must_use]
    pub fn made_behind(other: Self, ms: u64, random: [u8; 10]) -> Self {
        Self::made_at(other.made_ms().map_or(ms, |other_ms| ms.max(other_ms + 1)), random)
    }

    /// Whether it comes behind another one. Of ids that do not say when they were made none does, and all others do.
    #[must_use]
    pub fn is_behind(&self, other: &Self) -> bool {
        let place = |id: &Self| (id.0.get_version_num() == 7).then_some(id.0);
        place(self) > place(other)
    }

    /// When it was made, in milliseconds since 1970; `None` for an id that does not say.
    #[must_use]
    pub fn made_ms(&self) -> Option<u64> {
        let (seconds, nanoseconds) = self.0.get_timestamp().filter(|_| self.0.get_version_num() == 7)?.to_unix();
        Some(seconds * 1_000 + u64::from(nanoseconds) / 1_000_000)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let valid = !text.is_empty()
                    && text.len() <= NAME_BYTES_MAX
                    && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
                if valid { Ok(Self(text.into())) } else { Err(InvalidId::new($kind, NAME_EXPECTED, text)) }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                parse_text(deserializer)
            }
        }
    };
}

/// Longest device or server name.
pub const NAME_BYTES_MAX: usize = 64;
const NAME_EXPECTED: &str = "1 to 64 letters, digits, dots, dashes or underscores";

name_type!(
    /// One of a user's devices, named by the client: `phone`, `laptop-2`. At most one session is live per device.
    DeviceName, "device name"
);
name_type!(
    /// A server of the stack: `chat-1`, `presence-2`.
    ServerName, "server name"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_what_it_writes() {
        let user: UserId = serde_json::from_str("\"u17\"").expect("valid");
        assert_eq!(user, UserId(17));
        assert_eq!(serde_json::to_string(&user).expect("writes"), "\"u17\"");
    }

    #[test]
    fn an_id_of_the_wrong_kind_is_refused_with_an_example() {
        let error = "c17".parse::<UserId>().expect_err("wrong letter").to_string();
        assert!(error.contains("\"u17\""), "{error}");
        for bad in ["", "u", "17", "u-1", "u+1", "u99999999999999999999"] {
            assert!(bad.parse::<UserId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_device_name_has_no_spaces_and_an_end() {
        assert!("phone-1".parse::<DeviceName>().is_ok());
        assert!("my phone".parse::<DeviceName>().is_err());
        assert!("x".repeat(65).parse::<DeviceName>().is_err());
    }

    #[test]
    fn a_session_tells_when_it_was_made() {
        let session = SessionId::made_at(1_700_000_000_123, [255; 10]);
        assert_eq!(session.made_ms(), Some(1_700_000_000_123));
        assert_ne!(session, SessionId::made_at(1_700_000_000_123, [254; 10]));
        let unknown = SessionId(uuid::Uuid::nil());
        assert_eq!(unknown.made_ms(), None);
        let behind = SessionId::made_behind(session, 5, [0; 10]);
        assert_eq!(behind.made_ms(), Some(1_700_000_000_124), "whatever the clock says");
        assert_eq!(SessionId::made_behind(unknown, 5, [0; 10]).made_ms(), Some(5));
        assert!(behind.is_behind(&session) && session.is_behind(&unknown));
        assert!(!session.is_behind(&behind) && !session.is_behind(&session) && !unknown.is_behind(&unknown));
    }
}
