//! Answers of requests that failed: body, status and headers of an error code. The only place that makes them.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::backends::error::{BackendError, ErrorKind};
use crate::protocol::ErrorCode;
use crate::protocol::api::ApiError;

/// A request that failed.
#[derive(Debug)]
pub(in crate::server) struct Failure(ApiError);

impl Failure {
    pub(in crate::server) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(ApiError { code, message: message.into(), retry_after_ms: None })
    }

    pub(in crate::server) fn retry_later(code: ErrorCode, message: impl Into<String>, retry_after_ms: u64) -> Self {
        Self(ApiError { code, message: message.into(), retry_after_ms: Some(retry_after_ms) })
    }

    /// With a status that its code does not say.
    pub(in crate::server) const fn with_status(self, status: StatusCode) -> Refusal {
        Refusal { status, failure: self }
    }

    /// Whether it is of a code.
    pub(in crate::server) fn is(&self, code: ErrorCode) -> bool {
        self.0.code == code
    }
}

/// A failure and its status.
#[derive(Debug)]
pub(in crate::server) struct Refusal {
    status: StatusCode,
    failure: Failure,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self { status: status(failure.0.code), failure }
    }
}

impl Refusal {
    /// Its status.
    #[cfg(test)]
    pub(in crate::server) const fn status(&self) -> StatusCode {
        self.status
    }

    /// The whole answer, for a connection that nobody serves and that ends behind it.
    pub(in crate::server) fn into_bytes(self) -> Vec<u8> {
        let body = serde_json::to_string(&self.failure.0).expect("plain data");
        let retry_after_s = self.failure.0.retry_after_ms.map(|ms| ms.div_ceil(1_000));
        let retry_after = retry_after_s.map(|seconds| format!("Retry-After: {seconds}\r\n")).unwrap_or_default();
        format!(
            "HTTP/1.1 {}\r\nContent-Type: application/json\r\n{retry_after}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.status,
            body.len()
        )
        .into_bytes()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.failure.into_response();
        *response.status_mut() = self.status;
        response
    }
}

/// The status that belongs to a code.
fn status(code: ErrorCode) -> StatusCode {
    StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let retry_after_s = self.0.retry_after_ms.map(|ms| HeaderValue::from(ms.div_ceil(1_000)));
        let mut response = (status(self.0.code), Json(&self.0)).into_response();
        if let Some(seconds) = retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        if self.0.code == ErrorCode::Unauthorized {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        if error.kind == ErrorKind::Conflict {
            return Self::new(ErrorCode::Conflict, "already taken");
        }
        if error.kind == ErrorKind::Rejected && error.operation.starts_with("directory.") {
            tracing::warn!(%error, "the directory refused a value of a request");
            return Self::new(ErrorCode::BadRequest, "a value of this request can't be stored");
        }
        tracing::warn!(%error, "a request failed on an engine");
        let operation = error.operation.split('.').next().unwrap_or_default();
        Self::retry_later(ErrorCode::Unavailable, format!("the {operation} engine is not available"), 1_000)
    }
}

/// The path exists, the method does not.
pub(in crate::server) fn method_not_allowed() -> Response {
    let failure = Failure::new(ErrorCode::BadRequest, "this path has other methods, see docs/protocol.md");
    failure.with_status(StatusCode::METHOD_NOT_ALLOWED).into_response()
}
