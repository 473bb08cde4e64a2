//! What handlers of the API take from a request; every refusal is a JSON error. What chat takes, too, is in
//! `http::extract`.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::Json;
use axum::extract::path::ErrorKind;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::ApiServer;
use crate::protocol::ErrorCode;
use crate::server::access::auth::Claims;
use crate::server::http::CLIENT_ADDRESS;
use crate::server::http::extract::{bearer, not_taken, refused, too_much, unauthorized};
use crate::server::http::status::Failure;

/// The authenticated caller.
pub(super) struct Caller(pub(super) Claims);

impl FromRequestParts<Arc<ApiServer>> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, server: &Arc<ApiServer>) -> Result<Self, Failure> {
        let claims = server.deps.tokens.verify(bearer(parts)?).map_err(|_| unauthorized())?;
        server.callers.take(&claims).await.map_err(not_taken)?;
        Ok(Self(claims))
    }
}

/// Whoever a token was made for, also where it was logged out since.
pub(super) struct Signed(pub(super) Claims);

impl FromRequestParts<Arc<ApiServer>> for Signed {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, server: &Arc<ApiServer>) -> Result<Self, Failure> {
        let claims = server.deps.tokens.verify(bearer(parts)?).map_err(|_| unauthorized())?;
        // By the token: who has one that was logged out takes nothing from its owner.
        server.logouts.take(claims.jti).map_err(too_much)?;
        Ok(Self(claims))
    }
}

/// An earlier token that a client may show when it logs in: it may have expired, or have been logged out.
pub(super) struct Earlier(pub(super) Option<Claims>);

impl FromRequestParts<Arc<ApiServer>> for Earlier {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, server: &Arc<ApiServer>) -> Result<Self, Failure> {
        let token = bearer(parts).ok();
        Ok(Self(token.and_then(|token| server.deps.tokens.verify_old(token).ok())))
    }
}

/// The address of who sends a connection's requests.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectedFrom(pub(super) IpAddr);

/// The client's address: what a gateway of the stack saw, where the request comes from one; else the connection's.
pub(super) struct ClientAddress(pub(super) IpAddr);

impl FromRequestParts<Arc<ApiServer>> for ClientAddress {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, server: &Arc<ApiServer>) -> Result<Self, Failure> {
        let connected =
            parts.extensions.get::<ConnectedFrom>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |from| from.0);
        let said = parts.headers.get(CLIENT_ADDRESS).and_then(|value| value.to_str().ok());
        let seen =
            said.and_then(|signed| server.deps.client_keys.signed(signed)).and_then(|address| address.parse().ok());
        Ok(Self(seen.unwrap_or(connected)))
    }
}

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<ApiServer>> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, server: &Arc<ApiServer>) -> Result<Self, Failure> {
        let raw = match Json::<Box<RawValue>>::from_request(request, server).await {
            Ok(Json(raw)) => raw,
            Err(rejection) => return Err(refused(&rejection, rejection.status(), words_of_body(&rejection))),
        };
        let bad = |why: String| Failure::new(ErrorCode::BadRequest, why);
        // A list would be taken for an object's values in their order.
        if !raw.get().starts_with('{') {
            return Err(bad("the body is a JSON object".to_owned()));
        }
        serde_json::from_str(raw.get()).map(Self).map_err(|e| bad(format!("the body can't be read: {e}")))
    }
}

/// What is wrong with a body, in words of ours.
fn words_of_body(rejection: &JsonRejection) -> String {
    let text = rejection.body_text();
    let after = |prefix: &str| text.strip_prefix(prefix).unwrap_or(&text).to_owned();
    match rejection {
        JsonRejection::MissingJsonContentType(_) => "a body needs the header Content-Type: application/json".to_owned(),
        JsonRejection::JsonSyntaxError(_) => {
            format!("the body is no JSON: {}", after("Failed to parse the request body as JSON: "))
        }
        _ => format!("the body can't be read: {}", after("Failed to buffer the request body: ")),
    }
}

/// What is wrong with a path.
fn words_of_path(rejection: &PathRejection) -> String {
    let PathRejection::FailedToDeserializePathParams(error) = rejection else {
        return "the path lacks a part".to_owned();
    };
    match error.kind() {
        ErrorKind::ParseErrorAtKey { key, value, .. } | ErrorKind::DeserializeError { key, value, .. } => {
            format!("{value:?} in the path is no valid {key}")
        }
        ErrorKind::ParseError { value, .. } | ErrorKind::ParseErrorAtIndex { value, .. } => {
            format!("{value:?} in the path is no valid id")
        }
        ErrorKind::InvalidUtf8InPathParam { .. } => "the path is no UTF-8".to_owned(),
        _ => "a part of the path is no valid id".to_owned(),
    }
}

/// Ids in the path.
pub(super) struct InPath<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<ApiServer>> for InPath<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, server: &Arc<ApiServer>) -> Result<Self, Failure> {
        match Path::<T>::from_request_parts(parts, server).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(Failure::new(ErrorCode::BadRequest, words_of_path(&rejection))),
        }
    }
}
