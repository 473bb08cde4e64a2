//! Whether this gateway is alive and can do its work: its own answer, which no server behind it gives for it.

use axum::Json;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Gateway;
use crate::backends::registry::Role;
use crate::server::http;

/// What is needed behind a gateway, as it last saw the registry.
#[derive(Serialize)]
struct Report {
    status: &'static str,
    /// Chat servers that take users.
    chat_servers: usize,
    api_servers: usize,
}

/// The paths that a gateway answers itself.
pub(super) fn is_meant(path: &str) -> bool {
    matches!(path, "/health/live" | "/health/ready")
}

/// Whether a connection begins with a request for one of them.
pub(super) fn begins(first: &[u8]) -> bool {
    matches!(http::first_line(first), Some(("GET", target)) if is_meant(http::path_of(target)))
}

/// The answer to a request for one of them; `None` for any other.
pub(super) async fn answer(gateway: &Gateway, method: &Method, path: &str) -> Option<Response> {
    if !is_meant(path) || !matches!(*method, Method::GET | Method::HEAD) {
        return None;
    }
    if path == "/health/live" {
        return Some(Json(serde_json::json!({ "status": "live" })).into_response());
    }
    let chat_servers = gateway.cluster.look_for(Role::Chat).await.iter().filter(|server| !server.draining).count();
    let api_servers = gateway.cluster.look_for(Role::Api).await.len();
    let status = if gateway.is_draining() {
        "draining"
    } else if chat_servers == 0 || api_servers == 0 {
        "not ready"
    } else {
        "ready"
    };
    let code = if status == "ready" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Some((code, Json(Report { status, chat_servers, api_servers })).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_two_paths_are_its_own() {
        assert!(begins(b"GET /health/live HTTP/1.1\r\n") && begins(b"GET /health/ready?x HTTP/1.1\r\n"));
        for other in [&b"POST /health/live HTTP/1.1\r\n"[..], b"GET /health HTTP/1.1\r\n", b"GET /ws\n", b"\n", b"\xff"]
        {
            assert!(!begins(other));
        }
    }
}
