//! The stable codes of `error` frames and of the API's JSON errors.

use serde::{Deserialize, Serialize};

/// What went wrong, for programs to branch on. The text beside it is for people and may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// A frame or a request body that can't be read.
    BadRequest,
    /// A frame whose `type` is not known.
    UnknownType,
    /// No valid token.
    Unauthorized,
    /// The caller may not do that.
    Forbidden,
    /// The conversation does not exist, or the caller is not a member of it: the two are not told apart.
    NotAMember,
    /// No such user, route or thing.
    NotFound,
    /// The same uuid came with another body, or the name is taken.
    Conflict,
    /// Body, list or name too large.
    TooLarge,
    /// A request's body did not come in time. Nothing was done.
    RequestTimeout,
    /// Too many requests or frames; `retry_after_ms` says when to try again.
    RateLimited,
    /// Too much is pending in this conversation or on this server; `retry_after_ms` says when to try again.
    Overloaded,
    /// An engine is down or slow. Not stored, or perhaps stored: send again with the same uuid.
    Unavailable,
    /// A fault of the server.
    Internal,
}

impl ErrorCode {
    /// Every code, for documents and tests.
    pub const ALL: [Self; 13] = [
        Self::BadRequest,
        Self::UnknownType,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotAMember,
        Self::NotFound,
        Self::Conflict,
        Self::TooLarge,
        Self::RequestTimeout,
        Self::RateLimited,
        Self::Overloaded,
        Self::Unavailable,
        Self::Internal,
    ];

    /// The code as it stands on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::UnknownType => "unknown_type",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotAMember => "not_a_member",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::TooLarge => "too_large",
            Self::RequestTimeout => "request_timeout",
            Self::RateLimited => "rate_limited",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }

    /// The HTTP status that belongs to it.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest | Self::UnknownType => 400,
            Self::Unauthorized => 401,
            Self::Forbidden | Self::NotAMember => 403,
            Self::NotFound => 404,
            Self::RequestTimeout => 408,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::RateLimited => 429,
            Self::Internal => 500,
            Self::Overloaded | Self::Unavailable => 503,
        }
    }

    /// True where the refused thing surely did not happen, and the same try may succeed later.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        matches!(self, Self::RequestTimeout | Self::RateLimited | Self::Overloaded | Self::Unavailable | Self::Internal)
    }

    /// True where the server is busy, or what it needs is: with a time to come back, no fault of it.
    #[must_use]
    pub const fn is_backpressure(self) -> bool {
        matches!(self, Self::RateLimited | Self::Overloaded | Self::Unavailable)
    }

    /// True where the message was surely not stored (a history may call the failure definite).
    #[must_use]
    pub const fn is_definite(self) -> bool {
        !matches!(self, Self::Unavailable | Self::Internal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_written_as_documented() {
        let doc = include_str!("../../docs/protocol.md");
        for code in ErrorCode::ALL {
            assert_eq!(serde_json::to_string(&code).expect("writes"), format!("\"{}\"", code.as_str()));
            assert!(doc.contains(&format!("`{}`", code.as_str())), "{} is not documented", code.as_str());
        }
    }
}
