//! Serving HTTP/1.1, the same for every role: deadlines for a request's head, its body and the writing of its answer.
//!
//! A client that stops reading, or stops in the middle of a request, keeps what it asked for in memory for so long and
//! no longer.
//!
//! | file | what |
//! |---|---|
//! | `status` | from error codes to HTTP statuses |
//! | `extract` | what handlers of several roles take from a request |

pub(super) mod extract;
pub(super) mod status;

use std::convert::Infallible;
use std::io::{self, Cursor};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderValue, Request, Response, header};
use axum::response::IntoResponse;
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use self::status::Failure;
use super::access::seats::{Seat, Seats};
use crate::protocol::ErrorCode;
use crate::runtime::{Tasks, net};

/// The address of a client as a gateway of the stack saw it, with a proof (see
/// [`crate::server::access::keys::Keys::sign`]).
pub(in crate::server) const CLIENT_ADDRESS: &str = "x-chatctl-client";

/// Time for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for a request's body, from its head on. Below the time that a request has: a slow body is the client's fault,
/// and is told so.
const BODY_TIMEOUT: Duration = Duration::from_secs(4);

/// Longest that a client may take nothing of an answer that is being written.
const WRITE_STALL_MAX: Duration = Duration::from_secs(10);

/// Headers of a request.
const HEADERS_MAX: usize = 64;

/// Bytes of a request's head, and of what is read ahead.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// Serves one connection, of which the beginning may be read already, until it ends, or until the tasks stop and the
/// request under way is answered.
pub(in crate::server) async fn serve<S>(stream: TcpStream, begun: Vec<u8>, tasks: Tasks, service: S)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    net::set_options(&stream);
    let (read, write) = stream.into_split();
    let stream = tokio::io::join(Cursor::new(begun).chain(read), Deadlined::new(write, WRITE_STALL_MAX));
    let service =
        service_fn(move |request: Request<Incoming>| service.call(request.map(|body| Body::new(TimedBody::new(body)))));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // A client that breaks HTTP or goes away ends only its own connection.
        _ = connection.as_mut() => return,
        () = tasks.stopped() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// Connections beyond the limit that are still let in, for what must always be answered.
pub(in crate::server) const RESERVE: usize = 256;

/// Time that such a connection has in all.
const RESERVE_TIMEOUT: Duration = Duration::from_millis(1_500);

/// What is answered on them: the paths of probes.
const ALWAYS: [&str; 3] = ["/health/live", "/health/ready", "/metrics"];

/// Whether a request is one of them, by its first line.
pub(in crate::server) fn is_probe(first: &[u8]) -> bool {
    let line = first.split(|b| *b == b'\n').next().unwrap_or_default();
    let target = line.strip_prefix(b"GET ").and_then(|rest| rest.split(|b| *b == b' ').next()).unwrap_or_default();
    let path = target.split(|b| *b == b'?').next().unwrap_or_default();
    ALWAYS.iter().any(|always| always.as_bytes() == path)
}

/// Room for connections, and a reserve for probes, so that whether a server is well can be asked however many it
/// serves.
pub(in crate::server) struct Room {
    usual: Seats,
    reserve: Seats,
}

/// A connection's place, until it is dropped.
pub(in crate::server) struct Place {
    _seat: Seat,
    is_reserve: bool,
}

impl Room {
    /// For so many connections.
    pub(in crate::server) fn new(connections_max: usize) -> Self {
        Self { usual: Seats::new(connections_max), reserve: Seats::new(RESERVE) }
    }

    /// A place for a connection that has come; `None` where it can only be dropped.
    pub(in crate::server) fn enter(&self) -> Option<Place> {
        let of = |seats: &Seats, is_reserve| seats.take().map(|seat| Place { _seat: seat, is_reserve });
        of(&self.usual, false).or_else(|| of(&self.reserve, true))
    }
}

/// Serves one connection as [`serve`] does; in the reserve only probes, and for a moment.
pub(in crate::server) async fn serve_in<S>(place: Place, stream: TcpStream, tasks: Tasks, service: S)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    if !place.is_reserve {
        return serve(stream, Vec::new(), tasks, service).await;
    }
    let service = Arc::new(service);
    let probes_only = service_fn(move |request: Request<Body>| {
        let service = Arc::clone(&service);
        async move {
            let mut answer = if ALWAYS.contains(&request.uri().path()) {
                service.call(request).await?
            } else {
                let message = "this server has as many connections as it holds";
                Failure::retry_later(ErrorCode::Overloaded, message, 1_000).into_response()
            };
            // The place is for the next one.
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            Ok::<_, Infallible>(answer)
        }
    });
    let _ = tokio::time::timeout(RESERVE_TIMEOUT, serve(stream, Vec::new(), tasks, probes_only)).await;
}

/// A body did not come in time.
#[derive(Debug, thiserror::Error)]
#[error("the body did not come within {} s", BODY_TIMEOUT.as_secs())]
pub(in crate::server) struct SlowBody;

/// Whether a body was refused for its slowness.
pub(in crate::server) fn is_slow(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<SlowBody>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// A request's body with a deadline.
struct TimedBody {
    body: Incoming,
    /// Made when the body is first waited for.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl TimedBody {
    const fn new(body: Incoming) -> Self {
        Self { body, deadline: None }
    }
}

impl HttpBody for TimedBody {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let deadline = this.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(BODY_TIMEOUT)));
        deadline.as_mut().poll(context).map(|()| Some(Err(SlowBody.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket that fails when nothing can be written to it for a time.
pub(in crate::server) struct Deadlined<T> {
    inner: T,
    stall_max: Duration,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<T> Deadlined<T> {
    pub(in crate::server) const fn new(inner: T, stall_max: Duration) -> Self {
        Self { inner, stall_max, stalled: None }
    }

    /// Passes progress on; without it, fails once it is too long ago.
    fn or_stalled<R>(&mut self, context: &mut Context<'_>, progress: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if progress.is_ready() {
            self.stalled = None;
            return progress;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.stall_max)));
        stalled.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Deadlined<T> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let progress = Pin::new(&mut this.inner).poll_write(context, bytes);
        this.or_stalled(context, progress)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let progress = Pin::new(&mut this.inner).poll_write_vectored(context, bytes);
        this.or_stalled(context, progress)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let progress = Pin::new(&mut this.inner).poll_flush(context);
        this.or_stalled(context, progress)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let progress = Pin::new(&mut this.inner).poll_shutdown(context);
        this.or_stalled(context, progress)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Deadlined<T> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(context, into)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::routing::{get, post};
    use futures_util::StreamExt;
    use hyper_util::service::TowerToHyperService;
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stops_is_given_up_and_one_that_is_slow_is_not() {
        let (near, mut far) = tokio::io::duplex(100);
        let mut near = Deadlined::new(near, Duration::from_secs(10));
        let slow = async {
            let mut part = [0; 100];
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(9)).await;
                far.read_exact(&mut part).await.expect("reads");
            }
        };
        let (written, ()) = tokio::join!(near.write_all(&[7; 500]), slow);
        written.expect("each part came within the time");
        let error = near.write_all(&[7; 500]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    /// A server whose answers are larger than what the sockets' buffers hold, and the answers that it still has in
    /// memory.
    fn start(tasks: &Tasks) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
        struct Counted(Arc<AtomicUsize>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let open = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&open);
        let large = move || {
            counter.fetch_add(1, Ordering::Relaxed);
            let counted = Counted(Arc::clone(&counter));
            let part = Bytes::from(vec![b'x'; 1 << 20]);
            let parts = futures_util::stream::iter(0..32).map(move |_| {
                let _kept = &counted;
                Ok::<_, Infallible>(part.clone())
            });
            std::future::ready(Body::from_stream(parts))
        };
        let read = |body: axum::body::Bytes| std::future::ready(body.len().to_string());
        let router = Router::new().route("/large", get(large)).route("/read", post(read));
        (listen(tasks, router, Room::new(1_000)), open)
    }

    /// Serves a router, to as many connections as there is room for.
    fn listen(tasks: &Tasks, router: Router, room: Room) -> std::net::SocketAddr {
        let listener = net::listen("127.0.0.1:0".parse().expect("valid")).expect("binds");
        let address = listener.local_addr().expect("bound");
        let group = tasks.clone();
        tasks.spawn_until_stopped("test.accept", async move {
            loop {
                let (stream, _) = listener.accept().await.expect("accepts");
                let Some(place) = room.enter() else { continue };
                let service = TowerToHyperService::new(router.clone());
                group.spawn("test.serve", serve_in(place, stream, group.clone(), service));
            }
        });
        address
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_its_answer_is_left() {
        let tasks = Tasks::new();
        let (address, open) = start(&tasks);
        let mut clients = Vec::new();
        for _ in 0..4 {
            let mut client = TcpStream::connect(address).await.expect("connects");
            client.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("writes");
            clients.push(client);
        }
        while open.load(Ordering::Relaxed) < clients.len() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(WRITE_STALL_MAX * 2).await;
        assert_eq!(open.load(Ordering::Relaxed), 0);
        tasks.stop();
    }

    #[tokio::test]
    async fn who_comes_when_all_places_are_taken_is_told_and_probes_are_answered() {
        let tasks = Tasks::new();
        let live = || std::future::ready("live");
        let router = Router::new().route("/health/live", get(live)).route("/me", get(live));
        let address = listen(&tasks, router, Room::new(1));
        let ask = |path: &'static str| async move {
            let mut client = TcpStream::connect(address).await.expect("connects");
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
            client.write_all(request.as_bytes()).await.expect("writes");
            let mut answer = vec![0; 200];
            let read = client.read(&mut answer).await.expect("answers");
            (client, String::from_utf8_lossy(&answer[..read]).into_owned())
        };
        let (_holds_the_place, first) = ask("/me").await;
        assert!(first.starts_with("HTTP/1.1 200"), "{first}");
        let (_, refused) = ask("/me").await;
        assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
        for _ in 0..RESERVE + 5 {
            let (_, probed) = ask("/health/live").await;
            assert!(probed.starts_with("HTTP/1.1 200"), "{probed}");
        }
        tasks.stop();
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_the_clients_fault() {
        let tasks = Tasks::new();
        let (address, _) = start(&tasks);
        let mut client = TcpStream::connect(address).await.expect("connects");
        client.write_all(b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf").await.expect("writes");
        let mut answer = vec![0; 200];
        let read = client.read(&mut answer).await.expect("answers");
        let text = String::from_utf8_lossy(&answer[..read]);
        assert!(text.starts_with("HTTP/1.1 4"), "{text}");
        tasks.stop();
    }
}
