//! WebSocket close codes that chatctl sends, each with whether a client should come back. Numbers are never reused.

/// Why a server closed a connection.
///
/// 1000–1015 are from RFC 6455 section 7.4.1, 4000–4999 are the application's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum CloseCode {
    /// Answer to a close of the client.
    Normal = 1000,
    /// The client broke the WebSocket protocol.
    Protocol = 1002,
    /// The client sent a binary message where only text is spoken.
    Unsupported = 1003,
    /// A text message was not UTF-8.
    InvalidText = 1007,
    /// A message was larger than `welcome.limits.message_bytes_max`.
    TooBig = 1009,
    /// The server failed; what was not acknowledged may or may not have happened.
    Internal = 1011,
    /// The token is missing, forged, expired or logged out.
    Unauthorized = 4001,
    /// No `hello` came in time.
    HelloTimeout = 4002,
    /// The session was logged out.
    LoggedOut = 4003,
    /// The same device connected again; this is the old connection.
    Replaced = 4004,
    /// The client reads too slowly: its outgoing queue was full.
    SlowConsumer = 4005,
    /// The server drains; `moved` said when to come back.
    Moved = 4006,
    /// Nothing was heard from the client for too long.
    IdleTimeout = 4007,
    /// The client keeps sending far above its limits.
    RateLimited = 4008,
}

/// What a client should do after a close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reconnect {
    /// Come back with jittered backoff, through a new placement.
    Yes,
    /// Coming back with the same token or the same behaviour fails again.
    No,
}

impl CloseCode {
    /// Every code, for documents and tests.
    pub const ALL: [Self; 14] = [
        Self::Normal,
        Self::Protocol,
        Self::Unsupported,
        Self::InvalidText,
        Self::TooBig,
        Self::Internal,
        Self::Unauthorized,
        Self::HelloTimeout,
        Self::LoggedOut,
        Self::Replaced,
        Self::SlowConsumer,
        Self::Moved,
        Self::IdleTimeout,
        Self::RateLimited,
    ];

    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The code with this number, if chatctl sends it.
    #[must_use]
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.code() == code)
    }

    /// Whether a client should come back after it.
    #[must_use]
    pub const fn reconnect(self) -> Reconnect {
        match self {
            Self::Internal
            | Self::HelloTimeout
            | Self::SlowConsumer
            | Self::Moved
            | Self::IdleTimeout
            | Self::RateLimited => Reconnect::Yes,
            Self::Normal
            | Self::Protocol
            | Self::Unsupported
            | Self::InvalidText
            | Self::TooBig
            | Self::Unauthorized
            | Self::LoggedOut
            | Self::Replaced => Reconnect::No,
        }
    }

    /// The reason text that goes with the code, at most 123 bytes.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Normal => "bye",
            Self::Protocol => "websocket protocol broken",
            Self::Unsupported => "only text messages are spoken here",
            Self::InvalidText => "text is not UTF-8",
            Self::TooBig => "message too big, see welcome.limits",
            Self::Internal => "server error",
            Self::Unauthorized => "token missing, invalid or expired: log in",
            Self::HelloTimeout => "no hello in time",
            Self::LoggedOut => "logged out",
            Self::Replaced => "this device connected again",
            Self::SlowConsumer => "reading too slowly",
            Self::Moved => "server drains: connect again",
            Self::IdleTimeout => "nothing heard for too long",
            Self::RateLimited => "too many frames, see welcome.limits",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_read_back() {
        for code in CloseCode::ALL {
            assert_eq!(CloseCode::from_code(code.code()), Some(code));
            assert!(code.reason().len() <= 123);
        }
    }

    #[test]
    fn every_code_is_in_the_protocol_document() {
        let doc = include_str!("../../docs/protocol.md");
        for code in CloseCode::ALL {
            assert!(doc.contains(&format!("| {} |", code.code())), "{} is not documented", code.code());
        }
    }
}
