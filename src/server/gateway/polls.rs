//! Clients without a socket on their way through: each of their requests goes to the chat server that holds the session, which
//! its path names. See `server/chat/poll.rs` for what the server makes of them.
//!
//! | here | at the chat server |
//! |---|---|
//! | `POST /poll/NAME` | `POST /poll`, at NAME or, when it is gone or drains, at the one with the fewest connections |
//! | `POST /poll/NAME/{session}`, `DELETE …` | `POST /poll/{session}`, `DELETE …`, at NAME |

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use axum::response::{IntoResponse, Response};

use super::Gateway;
use super::proxy::{Received, receive, send, send_once, unavailable};
use crate::backends::registry::Role;
use crate::protocol::limits::POLL_WAIT_MAX;
use crate::protocol::{ErrorCode, POLL_PATH, ServerName, behind_poll_path};
use crate::server::http;
use crate::server::http::status::Failure;
use crate::telemetry::Counter;

/// Time for an answer's head: what a request may wait for news, and what any request may take.
pub(super) const ANSWER_TIMEOUT: Duration = POLL_WAIT_MAX.saturating_add(super::proxy::ANSWER_TIMEOUT);

/// Chat servers tried for one session.
const TRIES_MAX: usize = 3;

/// Whether a connection that begins with this line carries such requests.
pub(super) fn are_meant(first: &[u8]) -> bool {
    http::first_line(first).is_some_and(|(_, target)| behind_poll_path(target).is_some())
}

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
enum Target<'a> {
    /// A new session, at a server or anywhere.
    New(Option<ServerName>),
    /// A session at a server.
    Session(ServerName, &'a str),
}

impl<'a> Target<'a> {
    fn of(path: &'a str) -> Option<Self> {
        let Some(place) = behind_poll_path(path)?.strip_prefix('/') else { return Some(Self::New(None)) };
        let Some((server, session)) = place.split_once('/') else { return Some(Self::New(Some(place.parse().ok()?))) };
        // It becomes a part of a path.
        let is_plain = !session.is_empty() && session.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        is_plain.then_some(Self::Session(server.parse().ok()?, session))
    }
}

/// Passes a request on and its answer back.
pub(super) async fn pass_on(gateway: &Gateway, from: SocketAddr, request: Request<Body>) -> Response {
    let received = match receive(gateway, from, request).await {
        Ok(received) => received,
        Err(refusal) => return refusal,
    };
    match Target::of(received.head.uri.path()) {
        Some(Target::New(wanted)) => open(gateway, wanted, &received).await,
        Some(Target::Session(server, session)) => {
            let session = session.to_owned();
            exchange(gateway, &server, &session, received).await
        }
        None => not_found("there is nothing at this path, see docs/protocol.md"),
    }
}

fn not_found(message: &str) -> Response {
    Failure::new(ErrorCode::NotFound, message).into_response()
}

async fn open(gateway: &Gateway, wanted: Option<ServerName>, received: &Received) -> Response {
    for server in gateway.chat_servers(wanted.as_ref()).await.into_iter().take(TRIES_MAX) {
        match send(gateway, server.address, POLL_PATH, received).await {
            Ok(response) => {
                gateway.cluster.note_placed(&server.name);
                return response;
            }
            Err(failed) => {
                gateway.deps.metrics.count(Counter::PeerFailures);
                // Also where it may have been done: a session that nobody knows of ends by itself.
                tracing::warn!(server = %server.name, error = failed.error, "a chat server did not answer");
            }
        }
    }
    unavailable("no chat server takes connections now")
}

async fn exchange(gateway: &Gateway, name: &ServerName, session: &str, received: Received) -> Response {
    let Some(server) = gateway.cluster.look_up(Role::Chat, name).await else {
        return not_found("the server of this session is gone: open another session");
    };
    let query = received.head.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    match send_once(gateway, server.address, &format!("{POLL_PATH}/{session}{query}"), received).await {
        Ok(response) => response,
        Err(failed) => {
            gateway.deps.metrics.count(Counter::PeerFailures);
            tracing::warn!(server = %server.name, error = failed.error, "a chat server did not answer");
            unavailable("the chat server of this session does not answer; the frames may have been taken")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_a_server_and_a_session() {
        let server = |name: &str| name.parse().expect("valid");
        assert_eq!(Target::of("/poll"), Some(Target::New(None)));
        assert_eq!(Target::of("/poll/chat-1"), Some(Target::New(Some(server("chat-1")))));
        assert_eq!(Target::of("/poll/chat-1/0ab-9"), Some(Target::Session(server("chat-1"), "0ab-9")));
        for path in ["/polls", "/poll/", "/poll/chat-1/", "/poll/chat-1/a/b", "/poll/chat-1/..", "/poll/%2e/a", "/"] {
            assert_eq!(Target::of(path), None, "{path}");
        }
    }

    #[test]
    fn connections_are_told_apart_by_their_first_line() {
        assert!(are_meant(b"POST /poll/chat-1?x HTTP/1.1\r\nHost: x\r\n"));
        assert!(are_meant(b"POST /poll HTTP/1.1\r\n") && are_meant(b"GET /poll?x HTTP/1.1\r\n"));
        for other in
            [&b"GET /ws/chat-1 HTTP/1.1\r\n"[..], b"GET /polls HTTP/1.1\r\n", b"\n", b"POST\n", b"\xff \xff \xff\n"]
        {
            assert!(!are_meant(other));
        }
    }
}
