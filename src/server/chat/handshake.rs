//! Everything before a connection is live: the HTTP upgrade, the token, the `hello`. Bounded in bytes and in time.
//!
//! The same port answers `GET /health/live`, `/health/ready` and `/metrics` in plain HTTP, for balancers and scrapers.

use std::sync::Arc;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::echo;
use super::inbound::{Admitted, Early};
use super::refused::NoSeat;
use super::socket::{ReadEnd, Socket};
use super::turned_away::Refusal;
use super::{ChatServer, Identity};
use crate::backends::directory::TokenStanding;
use crate::protocol::frames::{ErrorFrame, FrameError};
use crate::protocol::websocket::{self, Decoder, Event, Role};
use crate::protocol::{CHAT_PATH, ClientFrame, CloseCode, ECHO_PATH, ErrorCode, SUBPROTOCOL, ServerName};
use crate::server::access::auth;
use crate::server::access::seats::{Begun, TooLate};
use crate::server::http::Beginning;
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
const UNCHECKED: &str = "the token can't be checked now, try again";

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
pub(super) async fn run(server: Arc<ChatServer>, mut stream: TcpStream, mut begun: Begun) {
    let limit = server.config.handshake_timeout;
    let started = crate::runtime::clock::instant();
    let upgrade = match begun.within(limit, read_upgrade(&server, &mut stream)).await {
        Ok(Some(Ok(Request::Upgrade(upgrade)))) => upgrade,
        Ok(Some(Ok(Request::Poll(head)))) => {
            let place = stream.peer_addr().ok().and_then(|from| server.polls.places.enter(from.ip()));
            let Some(place) = place else {
                return server.turned_away.refuse(begun, stream, Refusal::full()).await;
            };
            drop(begun);
            // Boxed, so that it takes no memory in the other handshakes.
            Box::pin(super::poll::serve(Arc::clone(&server), place, stream, head)).await;
            return server.socket_closed();
        }
        Ok(Some(Err(refusal))) => return server.turned_away.refuse(begun, stream, refusal).await,
        Ok(None) | Err(TooLate::Cut) => return server.turned_away.give_up(),
        Err(TooLate::Slow) => {
            let late = Refusal::error("408 Request Timeout", ErrorCode::BadRequest, "the request head came too slowly");
            return server.turned_away.refuse(begun, stream, late).await;
        }
    };
    let (mut identity, mut admitted) = (None, None);
    if let Some(token) = &upgrade.token {
        begun.has_token();
        let known = match authenticate(&server, token).await {
            Ok(known) => known,
            Err(refusal) => return server.turned_away.refuse(begun, stream, refusal).await,
        };
        match seat_for(&server, &known) {
            Ok(free) => (identity, admitted) = (Some(known), Some(free)),
            Err(why) => return server.turned_away.refuse(begun, stream, Refusal::no_seat(&why)).await,
        }
    }
    let mut head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n",
        upgrade.accept_key
    );
    if upgrade.with_subprotocol {
        head.push_str(&format!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n"));
    }
    head.push_str("\r\n");
    if stream.write_all(head.as_bytes()).await.is_err() {
        return server.turned_away.give_up();
    }
    let socket = Socket::new(stream);
    if upgrade.is_echo {
        let Some(_seat) = server.seats.take() else { return server.turned_away.give_up() };
        drop(begun);
        let decoder = Decoder::new(Role::Server, server.config.echo_message_bytes_max);
        return echo::serve(server, socket, decoder, upgrade.rest).await;
    }
    let decoder = Decoder::new(Role::Server, server.config.limits.message_bytes_max);
    let mut early = Early { decoder, texts: Vec::new() };
    let time_left = limit.saturating_sub(started.elapsed());
    let needs_hello = identity.is_none();
    let said = begun.within(time_left, hello(&socket, needs_hello, &mut early, upgrade.rest)).await;
    let identified = match (said, identity) {
        // Nobody counts it any more: it is gone at once.
        (Err(TooLate::Cut), _) => return server.turned_away.give_up(),
        (Err(TooLate::Slow), _) => Err(CloseCode::HelloTimeout),
        (Ok(Err(code)), _) => Err(code),
        (Ok(Ok(_)), Some(identity)) => Ok(identity),
        (Ok(Ok(Some(Ok(ClientFrame::Hello(frame))))), None) => {
            begun.has_token();
            authenticate(&server, &frame.token).await.map_err(|refusal| {
                if refusal.status.starts_with("503") { CloseCode::Internal } else { CloseCode::Unauthorized }
            })
        }
        (Ok(Ok(_)), None) => Err(CloseCode::Unauthorized),
    };
    let seated = identified.map(|identity| (admitted.map_or_else(|| seat_for(&server, &identity), Ok), identity));
    match seated {
        Ok((Ok(admitted), identity)) => {
            drop(begun);
            server.go_live(socket, identity, admitted, early).await;
        }
        Ok((Err(why), _)) => {
            let (code, message, after_ms) = why.told();
            let (message, retry_after_ms) = (message.to_owned(), Some(after_ms));
            let error = ErrorFrame { uuid: None, code, message, retry_after_ms };
            server.turned_away.end(begun, socket, CloseCode::Internal, Some(error)).await;
        }
        Err(code) => {
            let unauthorized = || ErrorFrame {
                uuid: None,
                code: ErrorCode::Unauthorized,
                message: auth::InvalidToken.to_string(),
                retry_after_ms: None,
            };
            let error = (code == CloseCode::Unauthorized).then(unauthorized);
            server.turned_away.end(begun, socket, code, error).await;
        }
    }
}

/// A seat for a user, where one is free and the user has not as many as a user may, those that come up included.
pub(super) fn seat_for(server: &ChatServer, identity: &Identity) -> Result<Admitted, NoSeat> {
    let coming = server.outbound.hub.begin(identity.sub, &identity.dev).ok_or(NoSeat::Full)?;
    let of_device = server.connects.take(identity.sub, &identity.dev).map_err(|wait| {
        server.deps.metrics.count(Counter::RateLimited);
        NoSeat::TooOften(wait)
    })?;
    let seat = server.seats.take_for(of_device).ok_or(NoSeat::Full)?;
    Ok(Admitted { coming, seat })
}

/// Reads the request head. `None`: the client went away.
async fn read_upgrade(server: &ChatServer, stream: &mut TcpStream) -> Option<Result<Request, Refusal>> {
    let (mut buffer, mut beginning) = (Vec::with_capacity(1024), Beginning::new(HEAD_BYTES_MAX));
    loop {
        if stream.read_buf(&mut buffer).await.ok()? == 0 {
            return None;
        }
        if !beginning.may_tell_more(&buffer) {
            continue;
        }
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(&buffer) {
            Ok(httparse::Status::Complete(_)) if request.path.is_some_and(super::poll::is_poll) => {
                return Some(Ok(Request::Poll(buffer)));
            }
            Ok(httparse::Status::Complete(head_bytes)) => {
                let rest = buffer[head_bytes..].to_vec();
                let path = request.path.and_then(|path| path.split('?').next());
                if request.method == Some("GET") && path == Some("/health/ready") {
                    return Some(Err(ready(server).await));
                }
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
    let head = Head(request.headers);
    if request.method != Some("GET") {
        return Err(Refusal::error("405 Method Not Allowed", ErrorCode::BadRequest, "only GET is answered here"));
    }
    let target = request.path.unwrap_or_default();
    // A target may name the host as well. Source: RFC 9112, 3.2.2.
    let target = target.strip_prefix("http://").map_or(target, |rest| rest.find('/').map_or("/", |at| &rest[at..]));
    let path = target.split('?').next().unwrap_or_default();
    let is_echo = path == ECHO_PATH && server.config.echo;
    if !is_chat(path) && !is_echo {
        return Err(plain_http(server, path));
    }
    if request.version != Some(1) {
        let status = "505 HTTP Version Not Supported";
        return Err(Refusal::error(status, ErrorCode::BadRequest, "a WebSocket begins with HTTP/1.1"));
    }
    if !head.single("host").is_ok_and(|host| host.is_some_and(|host| !host.is_empty())) {
        return Err(Refusal::bad("there is one Host header"));
    }
    if !head.lists("connection", "upgrade") || !head.lists("upgrade", "websocket") {
        let refusal = Refusal::error("426 Upgrade Required", ErrorCode::BadRequest, "this is a WebSocket endpoint");
        return Err(Refusal { headers: "Upgrade: websocket\r\n", ..refusal });
    }
    if head.single("sec-websocket-version") != Ok(Some("13")) {
        let refusal = Refusal::error("426 Upgrade Required", ErrorCode::BadRequest, "Sec-WebSocket-Version must be 13");
        return Err(Refusal { headers: "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n", ..refusal });
    }
    let key = head.single("sec-websocket-key").ok().flatten().filter(|key| is_key(key));
    let Some(key) = key else { return Err(Refusal::bad("there is one Sec-WebSocket-Key: 16 bytes in base64")) };
    let offered = head.values("sec-websocket-protocol").next().is_some();
    let with_subprotocol = head.lists("sec-websocket-protocol", SUBPROTOCOL);
    if offered && !with_subprotocol && !is_echo {
        return Err(Refusal::bad(&format!("the subprotocol spoken here is {SUBPROTOCOL}")));
    }
    let Ok(authorization) = head.single("authorization") else {
        return Err(Refusal::bad("a request has at most one Authorization header"));
    };
    if !is_echo && authorization.is_some_and(|h| auth::bearer(h).is_none()) {
        return Err(Refusal::error("401 Unauthorized", ErrorCode::Unauthorized, "use Authorization: Bearer TOKEN"));
    }
    if server.seats.are_taken() {
        return Err(Refusal::no_seat(&NoSeat::Full));
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

/// The headers of a request.
struct Head<'a>(&'a [httparse::Header<'a>]);

/// A header that stands there twice, or is no text.
#[derive(Debug, PartialEq, Eq)]
struct NotOne;

impl<'a> Head<'a> {
    fn values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    }

    /// The value of a header that stands there once, or not at all.
    fn single(&self, name: &str) -> Result<Option<&'a str>, NotOne> {
        let mut values = self.values(name);
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => std::str::from_utf8(value).map(|text| Some(text.trim())).map_err(|_| NotOne),
            (Some(_), Some(_)) => Err(NotOne),
        }
    }

    /// Whether a list, which may stand on several lines, has an element.
    fn lists(&self, name: &str, wanted: &str) -> bool {
        let mut texts = self.values(name).filter_map(|value| std::str::from_utf8(value).ok());
        texts.any(|text| text.split(',').any(|element| element.trim().eq_ignore_ascii_case(wanted)))
    }
}

/// Whether a text is 16 bytes in base64. Source: RFC 6455, 4.1.
fn is_key(text: &str) -> bool {
    // Some clients leave bits behind the last byte.
    const LENIENT: GeneralPurpose =
        GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));
    LENIENT.decode(text).is_ok_and(|bytes| bytes.len() == 16)
}

/// Whether a path is the chat's: `/ws`, or `/ws/NAME` as a balancer gets it to find this server.
fn is_chat(path: &str) -> bool {
    let name = path.strip_prefix(CHAT_PATH).map(|rest| rest.strip_prefix('/').unwrap_or(rest));
    name.is_some_and(|name| path == CHAT_PATH || name.parse::<ServerName>().is_ok())
}

/// The few paths that are answered without an upgrade.
fn plain_http(server: &ChatServer, path: &str) -> Refusal {
    let ok = |content_type, body| Refusal { status: "200 OK", content_type, headers: "", body };
    let figures = || prometheus::render(&server.deps.registry.all());
    match path {
        "/health/live" => ok("application/json", Bytes::from_static(br#"{"status":"live"}"#)),
        "/metrics" => ok(prometheus::CONTENT_TYPE, server.metrics_page.get(figures)),
        _ => Refusal::error("404 Not Found", ErrorCode::NotFound, "the chat is at /ws"),
    }
}

/// Whether this server can do its work: it does not drain, and its engines take writes.
async fn ready(server: &ChatServer) -> Refusal {
    const NOT_NOW: &str = "503 Service Unavailable";
    if server.is_draining() {
        return Refusal::error(NOT_NOW, ErrorCode::Unavailable, "this server drains");
    }
    let report = server.readiness.check(&server.deps.backends).await;
    let status = if report.is_ready() { "200 OK" } else { NOT_NOW };
    let body = serde_json::to_vec(&report).expect("plain data").into();
    Refusal { status, content_type: "application/json", headers: "", body }
}

/// Why nobody is known by a token.
enum Unidentified {
    /// It is not good, or was logged out.
    Invalid,
    /// It can't be checked now.
    Unknown,
}

/// Checks a token, that its user exists, and that it was not logged out.
async fn identify(server: &ChatServer, token: &str) -> Result<Identity, Unidentified> {
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

/// The first frame of a client whose header had no token.
type Hello = Option<Result<ClientFrame, FrameError>>;

/// Waits for the `hello` if the header had no token; keeps what comes behind it.
async fn hello(socket: &Socket, needs_hello: bool, early: &mut Early, mut rest: Vec<u8>) -> Result<Hello, CloseCode> {
    let mut greeting = Greeting::default();
    let fed = early.decoder.feed(&mut rest, &mut |event| greeting.on_event(socket, needs_hello, event));
    fed.map_err(|violation| violation.code)?;
    loop {
        if let Some(code) = greeting.ended {
            return Err(code);
        }
        if !needs_hello || greeting.hello.is_some() {
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
    Ok(greeting.hello)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_on_several_lines_are_one_list_and_what_is_single_stands_once() {
        let header = |name, value: &'static str| httparse::Header { name, value: value.as_bytes() };
        let headers = [
            header("Connection", "keep-alive"),
            header("connection", "close, UPGRADE"),
            header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            header("Host", "a"),
            header("host", "a"),
        ];
        let head = Head(&headers);
        assert!(head.lists("connection", "upgrade") && !head.lists("upgrade", "websocket"));
        assert_eq!(head.single("sec-websocket-key"), Ok(Some("dGhlIHNhbXBsZSBub25jZQ==")));
        assert_eq!((head.single("host"), head.single("origin")), (Err(NotOne), Ok(None)));
    }

    #[test]
    fn a_key_is_sixteen_bytes() {
        assert!(is_key("dGhlIHNhbXBsZSBub25jZQ==") && is_key("AAAAAAAAAAAAAAAAAAAAAB=="));
        for bad in ["", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZQ=!", "AAAAAAAAAAAAAAAAAAAAAAAA", "AAAA"] {
            assert!(!is_key(bad), "{bad:?}");
        }
    }
}
