//! What handlers of several roles take from a request; every refusal is a JSON error.

use std::time::Duration;

use axum::extract::{FromRequestParts, Query};
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::status::Failure;
use super::{SlowBody, is_slow};
use crate::protocol::ErrorCode;
use crate::server::access::auth;
use crate::server::access::callers::NotTaken;

/// The token of a request.
pub(in crate::server) fn bearer(parts: &Parts) -> Result<&str, Failure> {
    let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    header.and_then(auth::bearer).ok_or_else(unauthorized)
}

/// The answer to a request without a good token.
pub(in crate::server) fn unauthorized() -> Failure {
    Failure::new(ErrorCode::Unauthorized, auth::InvalidToken.to_string())
}

/// The answer to a request that is not taken.
pub(in crate::server) fn not_taken(why: NotTaken) -> Failure {
    match why {
        NotTaken::Revoked => unauthorized(),
        NotTaken::TooMany(wait) => too_much(wait),
        NotTaken::Unknown(error) => error.into(),
    }
}

/// The answer to one request too many of an account.
pub(in crate::server) fn too_much(wait: Duration) -> Failure {
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    Failure::retry_later(ErrorCode::RateLimited, "this account asks for too much at once", wait_ms)
}

/// The answer to a body that was not taken.
pub(in crate::server) fn refused(
    error: &(dyn std::error::Error + 'static),
    status: StatusCode,
    why: String,
) -> Failure {
    if is_slow(error) {
        return Failure::new(ErrorCode::RequestTimeout, SlowBody.to_string());
    }
    let code = match status {
        StatusCode::PAYLOAD_TOO_LARGE => ErrorCode::TooLarge,
        _ => ErrorCode::BadRequest,
    };
    let why = if code == ErrorCode::TooLarge { "the body is larger than the API takes".to_owned() } else { why };
    Failure::new(code, why)
}

/// The query string.
pub(in crate::server) struct Params<T>(pub(in crate::server) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        match Query::<T>::try_from_uri(&parts.uri) {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => {
                let text = rejection.body_text();
                let why = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
                Err(Failure::new(ErrorCode::BadRequest, format!("the query can't be read: {why}")))
            }
        }
    }
}
