//! Everything before a connection is live: the HTTP upgrade, the token, the `hello`. Bounded in bytes and in time.
//!
//! The same port answers `GET /health/live`, `/health/ready` and `/metrics` in plain HTTP, for balancers and scrapers.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::connection::{self, Early};
use super::socket::{ReadEnd, Socket};
use super::{ChatServer, Identity};
use crate::backends::directory::TokenStanding;
use crate::protocol::api::ApiError;
use crate::protocol::frames::{ErrorFrame, FrameError};
use crate::protocol::websocket::{self, Decoder, Event, Role};
use crate::protocol::{CHAT_PATH, ClientFrame, CloseCode, ECHO_PATH, ErrorCode, SUBPROTOCOL, ServerFrame, ServerName};
use crate::server::auth;
use crate::telemetry::{Counter, prometheus};

/// Largest HTTP request head.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Most headers of a request.
const HEADERS_MAX: usize = 64;

/// Frames that may come behind the `hello` before the connection is live.
const EARLY_TEXTS_MAX: usize = 64;

/// Pongs that may wait for a client that pings and does not read.
const PONG_BYTES_MAX: usize = 16 * 1024;

/// Told where a token can't be checked.
pub(super) const UNCHECKED: &str = "the token can't be checked now, try again";

/// An HTTP answer that ends the connection.
struct Refusal {
    status: &'static str,
    content_type: &'static str,
    body: String,
}

impl Refusal {
    fn error(status: &'static str, code: ErrorCode, message: &str) -> Self {
        let body = ApiError { code, message: message.to_owned(), retry_after_ms: None };
        let body = serde_json::to_string(&body).expect("plain data");
        Self { status, content_type: "application/json", body }
    }

    fn bad(message: &str) -> Self {
        Self::error("400 Bad Request", ErrorCode::BadRequest, message)
    }
}

/// A good upgrade request.
struct Upgrade {
    is_echo: bool,
    accept_key: String,
    with_subprotocol: bool,
    token: Option<String>,
    /// Bytes that came behind the request head.
    rest: Vec<u8>,
}

/// What came on a fresh socket.
enum Request {
    Upgrade(Upgrade),
    /// A request of the transports without a socket, with the bytes read so far.
    Poll(Vec<u8>),
}

/// Takes a fresh socket to a live connection, or to a clean refusal.
pub(super) async fn run(server: Arc<ChatServer>, mut stream: TcpStream) {
    let limit = server.config.handshake_timeout;
    let started = crate::runtime::clock::instant();
    let upgrade = match tokio::time::timeout(limit, read_upgrade(&server, &mut stream)).await {
        Ok(Some(Ok(Request::Upgrade(upgrade)))) => upgrade,
        Ok(Some(Ok(Request::Poll(begun)))) => {
            // Boxed, so that it takes no memory in the other handshakes.
            Box::pin(super::poll::serve(Arc::clone(&server), stream, begun)).await;
            return server.socket_closed();
        }
        Ok(Some(Err(refusal))) => return refuse(&server, stream, refusal).await,
        Ok(None) => return give_up(&server),
        Err(_) => {
            let late = Refusal::error("408 Request Timeout", ErrorCode::BadRequest, "the request head came too slowly");
            return refuse(&server, stream, late).await;
        }
    };
    let identity = match &upgrade.token {
        Some(token) => match authenticate(&server, token).await {
            Ok(identity) => Some(identity),
            Err(refusal) => return refuse(&server, stream, refusal).await,
        },
        None => None,
    };
    let mut head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n",
        upgrade.accept_key
    );
    if upgrade.with_subprotocol {
        head.push_str(&format!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n"));
    }
    head.push_str("\r\n");
    if stream.write_all(head.as_bytes()).await.is_err() {
        return give_up(&server);
    }
    let socket = Socket::new(stream);
    if upgrade.is_echo {
        let decoder = Decoder::new(Role::Server, server.config.echo_message_bytes_max);
        return connection::echo(server, socket, decoder, upgrade.rest).await;
    }
    let decoder = Decoder::new(Role::Server, server.config.limits.message_bytes_max);
    let mut early = Early { decoder, texts: Vec::new() };
    let time_left = limit.saturating_sub(started.elapsed());
    let hello = tokio::time::timeout(time_left, hello(&server, &socket, identity, &mut early, upgrade.rest)).await;
    match hello.unwrap_or(Err(CloseCode::HelloTimeout)) {
        Ok(identity) => server.go_live(socket, identity, early).await,
        Err(code) => {
            if code == CloseCode::Unauthorized {
                let message = auth::InvalidToken.to_string();
                let error = ErrorFrame { uuid: None, code: ErrorCode::Unauthorized, message, retry_after_ms: None };
                let frame = websocket::text_frame(&ServerFrame::Error(error).encode(), None);
                socket.push(frame.into(), usize::MAX);
            }
            socket.begin_close(websocket::close_frame(Some(code.code()), code.reason(), None).into(), false);
            socket.linger().await;
            give_up(&server);
        }
    }
}

fn give_up(server: &ChatServer) {
    server.deps.metrics.count(Counter::HandshakesFailed);
    server.socket_closed();
}

async fn refuse(server: &ChatServer, mut stream: TcpStream, refusal: Refusal) {
    let Refusal { status, content_type, body } = refusal;
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let answer = [head.as_bytes(), body.as_bytes()].concat();
    let _ = tokio::time::timeout(super::socket::CLOSE_WAIT, async {
        // Whether the client still listens does not matter.
        let _ = stream.write_all(&answer).await;
        let _ = stream.shutdown().await;
        let mut scratch = [0_u8; 1024];
        while matches!(stream.read(&mut scratch).await, Ok(n) if n > 0) {}
    })
    .await;
    if !status.starts_with("200") {
        server.deps.metrics.count(Counter::HandshakesFailed);
    }
    server.socket_closed();
}

/// Reads the request head. `None`: the client went away.
async fn read_upgrade(server: &ChatServer, stream: &mut TcpStream) -> Option<Result<Request, Refusal>> {
    let mut buffer = Vec::with_capacity(1024);
    loop {
        if stream.read_buf(&mut buffer).await.ok()? == 0 {
            return None;
        }
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(&buffer) {
            Ok(httparse::Status::Complete(_)) if request.path.is_some_and(super::poll::is_poll) => {
                return Some(Ok(Request::Poll(buffer)));
            }
            Ok(httparse::Status::Complete(head_bytes)) => {
                let rest = buffer[head_bytes..].to_vec();
                return Some(check(server, &request, rest).map(Request::Upgrade));
            }
            Ok(httparse::Status::Partial) if buffer.len() < HEAD_BYTES_MAX => {}
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                let status = "431 Request Header Fields Too Large";
                return Some(Err(Refusal::error(status, ErrorCode::TooLarge, "the request head has 8 KiB at most")));
            }
            Err(_) => return Some(Err(Refusal::bad("this is not an HTTP request"))),
        }
    }
}

fn check(server: &ChatServer, request: &httparse::Request<'_, '_>, rest: Vec<u8>) -> Result<Upgrade, Refusal> {
    let header = |name: &str| {
        let found = request.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name));
        found.and_then(|h| std::str::from_utf8(h.value).ok())
    };
    let has_token = |name: &str, wanted: &str| {
        header(name).is_some_and(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case(wanted)))
    };
    if request.method != Some("GET") {
        return Err(Refusal::error("405 Method Not Allowed", ErrorCode::BadRequest, "only GET is answered here"));
    }
    let path = request.path.unwrap_or_default().split('?').next().unwrap_or_default();
    let is_echo = path == ECHO_PATH && server.config.echo;
    if !is_chat(path) && !is_echo {
        return Err(plain_http(server, path));
    }
    if !has_token("connection", "upgrade") || !has_token("upgrade", "websocket") {
        return Err(Refusal::error("426 Upgrade Required", ErrorCode::BadRequest, "this is a WebSocket endpoint"));
    }
    if header("sec-websocket-version") != Some("13") {
        return Err(Refusal::bad("Sec-WebSocket-Version must be 13"));
    }
    let key = header("sec-websocket-key").filter(|key| key.len() == 24);
    let Some(key) = key else { return Err(Refusal::bad("Sec-WebSocket-Key must be 16 bytes in base64")) };
    let offered = request.headers.iter().any(|h| h.name.eq_ignore_ascii_case("sec-websocket-protocol"));
    let with_subprotocol = has_token("sec-websocket-protocol", SUBPROTOCOL);
    if offered && !with_subprotocol && !is_echo {
        return Err(Refusal::bad(&format!("the subprotocol spoken here is {SUBPROTOCOL}")));
    }
    let authorization = header("authorization");
    if !is_echo && authorization.is_some_and(|h| auth::bearer(h).is_none()) {
        return Err(Refusal::error("401 Unauthorized", ErrorCode::Unauthorized, "use Authorization: Bearer TOKEN"));
    }
    if !server.has_room() {
        return Err(Refusal::error("503 Service Unavailable", ErrorCode::Overloaded, "this server is full"));
    }
    if server.is_draining() {
        let message = "this server drains: ask for another placement";
        return Err(Refusal::error("503 Service Unavailable", ErrorCode::Unavailable, message));
    }
    Ok(Upgrade {
        is_echo,
        accept_key: derive_accept_key(key.as_bytes()),
        with_subprotocol: with_subprotocol && !is_echo,
        token: authorization.filter(|_| !is_echo).and_then(auth::bearer).map(str::to_owned),
        rest,
    })
}

/// Whether a path is the chat's: `/ws`, or `/ws/NAME` as a balancer gets it to find this server.
fn is_chat(path: &str) -> bool {
    let name = path.strip_prefix(CHAT_PATH).map(|rest| rest.strip_prefix('/').unwrap_or(rest));
    name.is_some_and(|name| path == CHAT_PATH || name.parse::<ServerName>().is_ok())
}

/// The few paths that are answered without an upgrade.
fn plain_http(server: &ChatServer, path: &str) -> Refusal {
    let ok = |content_type, body| Refusal { status: "200 OK", content_type, body };
    match path {
        "/health/live" => ok("application/json", r#"{"status":"live"}"#.to_owned()),
        "/health/ready" if !server.is_draining() => ok("application/json", r#"{"status":"ready"}"#.to_owned()),
        "/health/ready" => Refusal::error("503 Service Unavailable", ErrorCode::Unavailable, "this server drains"),
        "/metrics" => ok(prometheus::CONTENT_TYPE, prometheus::render(&server.deps.registry.all())),
        _ => Refusal::error("404 Not Found", ErrorCode::NotFound, "the chat is at /ws"),
    }
}

/// Why nobody is known by a token.
pub(super) enum Unidentified {
    /// It is not good, or was logged out.
    Invalid,
    /// It can't be checked now.
    Unknown,
}

/// Checks a token, that its user exists, and that it was not logged out.
pub(super) async fn identify(server: &ChatServer, token: &str) -> Result<Identity, Unidentified> {
    let claims = server.deps.tokens.verify(token).map_err(|_| Unidentified::Invalid)?;
    match server.deps.backends.directory.token_standing(claims.sub, claims.jti).await {
        Ok(TokenStanding::Good) => Ok(claims),
        Ok(TokenStanding::Revoked | TokenStanding::NoSuchUser) => Err(Unidentified::Invalid),
        Err(_) => Err(Unidentified::Unknown),
    }
}

async fn authenticate(server: &ChatServer, token: &str) -> Result<Identity, Refusal> {
    identify(server, token).await.map_err(|why| match why {
        Unidentified::Invalid => {
            Refusal::error("401 Unauthorized", ErrorCode::Unauthorized, &auth::InvalidToken.to_string())
        }
        Unidentified::Unknown => Refusal::error("503 Service Unavailable", ErrorCode::Unavailable, UNCHECKED),
    })
}

/// What came before the connection is live.
#[derive(Default)]
struct Greeting {
    /// The first frame, where the token is expected in it.
    hello: Option<Result<ClientFrame, FrameError>>,
    /// The frames behind it.
    texts: Vec<String>,
    ended: Option<CloseCode>,
}

impl Greeting {
    fn on_event(&mut self, socket: &Socket, needs_hello: bool, event: Event<'_>) {
        match event {
            Event::Text(text) if needs_hello && self.hello.is_none() => {
                self.hello = Some(ClientFrame::decode(text));
            }
            Event::Text(text) if self.texts.len() < EARLY_TEXTS_MAX => self.texts.push(text.to_owned()),
            Event::Text(_) => self.ended = Some(CloseCode::RateLimited),
            Event::Binary(_) => self.ended = Some(CloseCode::Unsupported),
            Event::Ping(payload) => {
                socket.push(websocket::pong_frame(payload, None).into(), PONG_BYTES_MAX);
            }
            Event::Pong(_) => {}
            Event::Close(_) => self.ended = Some(CloseCode::Normal),
        }
    }
}

/// Waits for the `hello` if the header had no token; keeps what comes behind it.
async fn hello(
    server: &ChatServer,
    socket: &Socket,
    identity: Option<Identity>,
    early: &mut Early,
    mut rest: Vec<u8>,
) -> Result<Identity, CloseCode> {
    let needs_hello = identity.is_none();
    let mut greeting = Greeting::default();
    let fed = early.decoder.feed(&mut rest, &mut |event| greeting.on_event(socket, needs_hello, event));
    fed.map_err(|violation| violation.code)?;
    loop {
        if let Some(code) = greeting.ended {
            return Err(code);
        }
        if identity.is_some() || greeting.hello.is_some() {
            break;
        }
        let mut on_event = |event: Event<'_>| greeting.on_event(socket, needs_hello, event);
        match socket.read(&mut early.decoder, &mut on_event).await {
            Ok(()) => {}
            Err(ReadEnd::Gone) => return Err(CloseCode::Normal),
            Err(ReadEnd::Violation(violation)) => return Err(violation.code),
        }
    }
    early.texts = greeting.texts;
    match (identity, greeting.hello) {
        (Some(identity), _) => Ok(identity),
        (None, Some(Ok(ClientFrame::Hello(frame)))) => authenticate(server, &frame.token).await.map_err(|refusal| {
            if refusal.status.starts_with("503") { CloseCode::Internal } else { CloseCode::Unauthorized }
        }),
        (None, _) => Err(CloseCode::Unauthorized),
    }
}
