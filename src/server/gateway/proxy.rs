//! HTTP on its way through: each request goes to the API server with the fewest under way. A server that can't be
//! reached, or breaks off a request that only reads, is passed over for the next one. For clients without a socket see `polls`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header, request};
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::stalled::AnswerBody;
use super::{Gateway, health, polls};
use crate::backends::registry::{Role, ServerEntry};
use crate::protocol::{ErrorCode, ServerName};
use crate::runtime::http_client::{ClientConfig, HttpClient};
use crate::runtime::{clock, error_chain};
use crate::server::access::places::Place;
use crate::server::access::seats::Begun;
use crate::server::http::status::Failure;
use crate::server::http::{self, CLIENT_ADDRESS};
use crate::telemetry::{Counter, Timer};

/// What the requests of a connection are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// The API servers.
    Api,
    /// The chat servers: clients without a socket.
    Polls,
}

/// Time for an answer's head; past it the answer is `unavailable`. Source: invariant I9, 5 s.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_millis(4_900);

/// Whose request it is: each proxy on the way adds the address that it saw.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// Bytes of bodies that are kept at once, of all requests.
const BODIES_BYTES_MAX: usize = 64 << 20;

/// The beginning of each body that does not count towards that: no flood of large ones keeps a login out.
const UNCOUNTED_BYTES: usize = 2 * 1024;

/// How connections to servers are made and kept.
const CONNECTIONS: ClientConfig = ClientConfig {
    connect_timeout: Duration::from_millis(500),
    // Well below the 10 s after which a server closes one.
    idle_max: Duration::from_secs(4),
    idle_per_host_max: 64,
};

/// Headers of one connection, not of the request. Source: RFC 9110, 7.6.1.
const HOP_BY_HOP: [&str; 7] =
    ["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

/// Connections to servers, and what is under way on those to API servers.
pub(super) struct Proxy {
    client: HttpClient<Body>,
    /// Bytes of bodies that may be kept.
    bodies: Arc<Semaphore>,
    /// Requests under way. Written by each request at its begin and end.
    under_way: Mutex<HashMap<ServerName, u64>>,
}

impl Default for Proxy {
    fn default() -> Self {
        let client = HttpClient::new(CONNECTIONS);
        Self { client, bodies: Arc::new(Semaphore::new(BODIES_BYTES_MAX)), under_way: Mutex::default() }
    }
}

/// Serves one connection of a client until it ends, or until the gateway stops and the request under way is answered.
pub(super) async fn serve(gateway: Arc<Gateway>, stream: TcpStream, begun: Connection) {
    let Ok(from) = stream.peer_addr() else { return };
    let (tasks, metrics) = (gateway.deps.tasks.clone(), Arc::clone(&gateway.deps.metrics));
    let side = match begun {
        Connection::Api(..) => Side::Api,
        Connection::Polls(..) => Side::Polls,
    };
    let service = hyper::service::service_fn(move |request| {
        let gateway = Arc::clone(&gateway);
        async move {
            let mut answer = answer(&gateway, side, from, request).await;
            if side == Side::Polls {
                http::end_if_refused(&mut answer);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    match begun {
        Connection::Api(room, admitted) => {
            if http::serve_in(&room, admitted, stream, tasks, service).await.is_err() {
                metrics.count(Counter::ConnectionsDropped);
            }
        }
        Connection::Polls(bytes, Some(place)) => http::serve_at(place, stream, bytes, tasks, service).await,
        Connection::Polls(bytes, None) => http::serve(stream, bytes, tasks, service).await,
    }
}

/// A connection that carries requests.
pub(super) enum Connection {
    /// For the API servers, admitted to the room for such.
    Api(Arc<http::Room>, Begun),
    /// For the chat servers, with the bytes that were read to tell it from a WebSocket; without a place only for a probe.
    Polls(Vec<u8>, Option<Place>),
}

async fn answer(gateway: &Gateway, side: Side, from: SocketAddr, request: Request<Body>) -> Response {
    let started = clock::now_us();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    if let Some(own) = health::answer(gateway, &method, &path).await {
        return own;
    }
    let answer = match side {
        Side::Api => tokio::time::timeout(ANSWER_TIMEOUT, pass_on(gateway, from, request)).await,
        Side::Polls => tokio::time::timeout(polls::ANSWER_TIMEOUT, polls::pass_on(gateway, from, request)).await,
    };
    let response = answer.unwrap_or_else(|_| unavailable("no server answered in time"));
    let metrics = &gateway.deps.metrics;
    metrics.count(Counter::HttpRequests);
    if side == Side::Api {
        // Clients that poll wait for news: that says nothing of the servers.
        metrics.time_us(Timer::Http, clock::now_us() - started);
    }
    if response.status().is_server_error() {
        metrics.count(Counter::HttpServerErrors);
    }
    response
}

pub(super) fn unavailable(message: &str) -> Response {
    Failure::retry_later(ErrorCode::Unavailable, message, 1_000).into_response()
}

/// A client's request, ready to be sent on.
pub(super) struct Received {
    pub(super) head: request::Parts,
    body: Bytes,
    /// What it takes of the gateway's room for bodies.
    _kept: Option<OwnedSemaphorePermit>,
}

/// Reads a request in full before a server is bothered, and so that it can be sent again; an answer for one that is refused.
///
/// Its body counts towards what the gateway keeps of all bodies, but for a beginning that any login fits into.
pub(super) async fn receive(gateway: &Gateway, from: SocketAddr, request: Request<Body>) -> Result<Received, Response> {
    let (mut head, body) = request.into_parts();
    // Nothing else has a path on a server: not `*`, not the `host:port` of CONNECT.
    if !head.uri.path().starts_with('/') || head.method == Method::CONNECT {
        let message = "the target of a request is a path, such as /login";
        return Err(Failure::new(ErrorCode::BadRequest, message).into_response());
    }
    strip_hop_by_hop(&mut head.headers);
    note_client(&mut head.headers, from);
    // Whatever a client put there itself is replaced.
    if let Ok(signed) = HeaderValue::from_str(&gateway.deps.client_keys.sign(&from.ip().to_canonical().to_string())) {
        head.headers.insert(CLIENT_ADDRESS, signed);
    }
    let most = gateway.config.body_bytes_max;
    let too_large = || Failure::new(ErrorCode::TooLarge, format!("a body has at most {most} bytes")).into_response();
    if body.size_hint().lower() > most as u64 {
        // Said, and not sent yet.
        return Err(too_large());
    }
    let mut body = Limited::new(body, most);
    let (mut bytes, mut kept) = (BytesMut::new(), None::<OwnedSemaphorePermit>);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            if error.is::<LengthLimitError>() {
                too_large()
            } else if http::is_slow(&*error) {
                Failure::new(ErrorCode::RequestTimeout, http::SlowBody.to_string()).into_response()
            } else {
                Failure::new(ErrorCode::BadRequest, "the body broke off").into_response()
            }
        })?;
        // Trailers go with the connection.
        let Ok(data) = frame.into_data() else { continue };
        bytes.extend_from_slice(&data);
        let counted = bytes.len().saturating_sub(UNCOUNTED_BYTES);
        let more = counted - kept.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let Ok(permit) = Arc::clone(&gateway.proxy.bodies).try_acquire_many_owned(more) else {
            let message = "the gateway has as much of requests as it keeps";
            return Err(Failure::retry_later(ErrorCode::Overloaded, message, 1_000).into_response());
        };
        match &mut kept {
            Some(kept) => kept.merge(permit),
            None => kept = Some(permit),
        }
    }
    Ok(Received { head, body: bytes.freeze(), _kept: kept })
}

async fn pass_on(gateway: &Gateway, from: SocketAddr, request: Request<Body>) -> Response {
    let received = match receive(gateway, from, request).await {
        Ok(received) => received,
        Err(refusal) => return refusal,
    };
    let (method, target) = (&received.head.method, received.head.uri.path_and_query());
    let target = target.map_or("/", |target| target.as_str());
    let mut tried = Vec::new();
    while let Some(server) = gateway.choose(&tried).await {
        let _under_way = UnderWay::begin(&gateway.proxy, &server.name);
        match send(gateway, server.address, target, &received).await {
            Ok(response) => return response,
            Err(failed) => {
                gateway.deps.metrics.count(Counter::PeerFailures);
                tracing::warn!(server = %server.name, error = failed.error, "an API server did not answer");
                if failed.may_be_done && !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
                    return unavailable("an API server broke off; the request may have been done");
                }
                tried.push(server.name);
            }
        }
    }
    unavailable("no API server is reachable")
}

/// A server that gave no answer.
pub(super) struct Failed {
    pub(super) may_be_done: bool,
    pub(super) error: String,
}

/// Sends a request to one server, for a path and query there; its answer's body is passed on as it comes.
pub(super) async fn send(
    gateway: &Gateway,
    server: SocketAddr,
    target: &str,
    received: &Received,
) -> Result<Response, Failed> {
    send_body(gateway, server, target, &received.head, received.body.clone()).await
}

/// Sends a request that is not sent again: its body is given up as it goes, and does not count any more.
pub(super) async fn send_once(
    gateway: &Gateway,
    server: SocketAddr,
    target: &str,
    received: Received,
) -> Result<Response, Failed> {
    let Received { head, body, .. } = received;
    send_body(gateway, server, target, &head, body).await
}

async fn send_body(
    gateway: &Gateway,
    server: SocketAddr,
    target: &str,
    head: &request::Parts,
    body: Bytes,
) -> Result<Response, Failed> {
    let not_sent = |error: String| Failed { may_be_done: false, error };
    let uri = Uri::builder().scheme("http").authority(server.to_string()).path_and_query(target).build();
    let uri = uri.map_err(|e| not_sent(e.to_string()))?;
    let mut request = Request::builder().method(head.method.clone()).uri(uri);
    if let Some(headers) = request.headers_mut() {
        headers.clone_from(&head.headers);
    }
    let request = request.body(Body::from(body)).map_err(|e| not_sent(e.to_string()))?;
    let answer = gateway.proxy.client.request(request).await;
    let answer = answer.map_err(|e| Failed { may_be_done: !e.is_connect(), error: error_chain(&e) })?;
    let metrics = Arc::clone(&gateway.deps.metrics);
    let mut response = answer.map(|body| Body::new(AnswerBody::new(body, server, metrics)));
    strip_hop_by_hop(response.headers_mut());
    Ok(response)
}

impl Gateway {
    /// The API server with the fewest requests under way, of those not tried yet.
    async fn choose(&self, tried: &[ServerName]) -> Option<ServerEntry> {
        let servers = self.cluster.look_for(Role::Api).await;
        let under_way = self.proxy.under_way.lock().expect("no panic while held");
        let load = |server: &&ServerEntry| under_way.get(&server.name).copied().unwrap_or(0);
        servers.iter().filter(|s| !tried.contains(&s.name)).min_by_key(load).cloned()
    }
}

/// Counts a request, also when its task is dropped.
struct UnderWay<'a> {
    proxy: &'a Proxy,
    server: ServerName,
}

impl<'a> UnderWay<'a> {
    fn begin(proxy: &'a Proxy, server: &ServerName) -> Self {
        *proxy.under_way.lock().expect("no panic while held").entry(server.clone()).or_default() += 1;
        Self { proxy, server: server.clone() }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut under_way = self.proxy.under_way.lock().expect("no panic while held");
        if let Some(count) = under_way.get_mut(&self.server) {
            *count -= 1;
            if *count == 0 {
                under_way.remove(&self.server);
            }
        }
    }
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Adds the client's address behind those of proxies in front of us.
fn note_client(headers: &mut HeaderMap, from: SocketAddr) {
    let before = headers.get(FORWARDED_FOR).and_then(|value| value.to_str().ok());
    let all = before.map_or_else(|| from.ip().to_string(), |before| format!("{before}, {}", from.ip()));
    if let Ok(value) = HeaderValue::from_str(&all) {
        headers.insert(FORWARDED_FOR, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_the_connection_stay_behind() {
        let mut headers = HeaderMap::new();
        headers.insert("connection", HeaderValue::from_static("close, X-Secret"));
        headers.insert("x-secret", HeaderValue::from_static("1"));
        headers.insert("transfer-encoding", HeaderValue::from_static("chunked"));
        headers.insert("authorization", HeaderValue::from_static("Bearer t"));
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["authorization"]);
        note_client(&mut headers, "127.0.0.9:1".parse().expect("valid"));
        note_client(&mut headers, "127.0.0.8:1".parse().expect("valid"));
        assert_eq!(headers["x-forwarded-for"], "127.0.0.9, 127.0.0.8");
    }
}
