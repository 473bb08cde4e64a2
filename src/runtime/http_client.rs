//! A pooled HTTP/1.1 client whose requests end with their connection.
//!
//! A server may close a connection that is idle whenever it likes, also while the next request is on its way. The pool's
//! library then forgets a request now and then, when the connection's task ends at the very moment at which the request is
//! handed to it: it has no answer and no error for as long as its caller waits (hyper issue 4122). So each connection
//! cancels a token when its socket is dropped, and a request that has neither an answer nor an error a while after that
//! fails.

use std::error::Error as StdError;
use std::fmt;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use futures_util::future::BoxFuture;
use hyper::body::{Body, Incoming};
use hyper::http::Extensions;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy::connect::{
    CaptureConnection, Connected, Connection, HttpConnector, capture_connection,
};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower_service::Service;

/// How long the answer or the error may take to come after a connection's end, beside the time to connect: a request that was
/// not written yet goes on to another connection.
const GRACE: Duration = Duration::from_secs(1);

/// How connections are made and kept.
#[derive(Debug, Clone, Copy)]
pub struct ClientConfig {
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Longest that a connection without a request is kept.
    pub idle_max: Duration,
    /// Connections without a request that are kept for each host; 0 makes one for each request.
    pub idle_per_host_max: usize,
}

/// A client. Clones share its connections.
#[derive(Clone)]
pub struct HttpClient<B> {
    client: Client<Connector, B>,
    /// From a connection's end until a request on it is given up.
    grace: Duration,
}

/// A request without an answer.
#[derive(Debug)]
pub struct RequestError {
    cause: Cause,
    was_answering: bool,
}

#[derive(Debug)]
enum Cause {
    Failed(legacy::Error),
    Forgotten,
}

impl<B> HttpClient<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Buf + Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    /// A client without connections yet.
    #[must_use]
    pub fn new(config: ClientConfig) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(config.connect_timeout));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(config.idle_max)
            .pool_max_idle_per_host(config.idle_per_host_max)
            .build(Connector(connector));
        Self { client, grace: GRACE + config.connect_timeout }
    }

    /// Sends a request and waits for the answer's head, for as long as the connection lives.
    ///
    /// # Errors
    /// No connection, or one that ended or could not be read before the answer came.
    pub async fn request(&self, mut request: Request<B>) -> Result<Response<Incoming>, RequestError> {
        let mut captured = capture_connection(&mut request);
        let answer = tokio::select! {
            biased;
            answer = self.client.request(request) => answer.map_err(Cause::Failed),
            () = has_ended(&mut captured, self.grace) => Err(Cause::Forgotten),
        };
        let state = state_of(&captured);
        let was_answering = state.as_ref().is_some_and(|state| state.has_answered.load(Ordering::Relaxed));
        if let Some(state) = state.filter(|_| answer.is_ok()) {
            state.has_answered.store(true, Ordering::Relaxed);
        }
        answer.map_err(|cause| RequestError { cause, was_answering })
    }
}

/// Returns some time after the end of the connection that a request is on, unless the request went on to another one.
async fn has_ended(captured: &mut CaptureConnection, grace: Duration) {
    let mut state = captured.wait_for_connection_metadata().await.as_ref().and_then(state_in);
    while let Some(current) = state {
        current.ended.cancelled().await;
        tokio::time::sleep(grace).await;
        match state_of(captured) {
            Some(next) if !Arc::ptr_eq(&current, &next) => state = Some(next),
            _ => return,
        }
    }
    std::future::pending::<()>().await;
}

fn state_of(captured: &CaptureConnection) -> Option<Arc<ConnectionState>> {
    captured.connection_metadata().as_ref().and_then(state_in)
}

fn state_in(connected: &Connected) -> Option<Arc<ConnectionState>> {
    let mut extensions = Extensions::new();
    connected.get_extras(&mut extensions);
    extensions.remove()
}

impl RequestError {
    /// No connection was made: the request surely reached nobody.
    #[must_use]
    pub fn is_connect(&self) -> bool {
        matches!(&self.cause, Cause::Failed(error) if error.is_connect())
    }

    /// The connection had carried an answer before and was closed before this one came: its server may have closed it while it
    /// was idle.
    #[must_use]
    pub fn is_of_idle(&self) -> bool {
        let is_of_closed = match &self.cause {
            Cause::Failed(error) => is_of_closed(error),
            Cause::Forgotten => true,
        };
        self.was_answering && is_of_closed
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Failed(error) => error.fmt(f),
            Cause::Forgotten => f.write_str("the connection ended before an answer"),
        }
    }
}

impl StdError for RequestError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.cause {
            Cause::Failed(error) => error.source(),
            Cause::Forgotten => None,
        }
    }
}

/// Whether a request found its connection closed, rather than an answer that can't be read.
fn is_of_closed(error: &(dyn StdError + 'static)) -> bool {
    let is_closed = |error: &(dyn StdError + 'static)| {
        let by_http = error.downcast_ref::<hyper::Error>();
        let by_socket = error.downcast_ref::<io::Error>();
        by_http.is_some_and(|e| e.is_incomplete_message() || e.is_closed() || e.is_canceled())
            || by_socket.is_some_and(|e| matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe))
    };
    std::iter::successors(Some(error), |&error| error.source()).any(is_closed)
}

/// What is known of a connection.
#[derive(Debug)]
struct ConnectionState {
    /// Cancelled when the socket is dropped.
    ended: CancellationToken,
    /// Set by each request that got an answer.
    has_answered: AtomicBool,
}

/// Makes connections that tell their end.
#[derive(Clone)]
struct Connector(HttpConnector);

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = BoxFuture<'static, Result<Stream, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.0.call(uri);
        Box::pin(async move {
            let ended = CancellationToken::new();
            let state = Arc::new(ConnectionState { ended: ended.clone(), has_answered: AtomicBool::new(false) });
            Ok(Stream { io: connecting.await?, state, _ends: ended.drop_guard() })
        })
    }
}

/// A socket that tells its end.
struct Stream {
    io: TokioIo<TcpStream>,
    state: Arc<ConnectionState>,
    _ends: DropGuard,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.io.connected().extra(Arc::clone(&self.state))
    }
}

impl Read for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::runtime::{Tasks, net};

    const CONFIG: ClientConfig = ClientConfig {
        connect_timeout: Duration::from_secs(1),
        idle_max: Duration::from_secs(10),
        idle_per_host_max: 16,
    };

    /// Answers one request on each connection, and closes it a moment after.
    async fn answer_once(mut stream: TcpStream, spins: u32) {
        let mut request = [0; 1_024];
        if stream.read(&mut request).await.is_ok_and(|bytes| bytes > 0) {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            (0..spins).for_each(|_| std::hint::spin_loop());
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_request_is_forgotten_by_a_connection_that_closes() {
        let listener = net::listen(([127, 0, 0, 1], 0).into()).expect("a free port");
        let url = format!("http://{}/", listener.local_addr().expect("bound"));
        let tasks = Tasks::new();
        tasks.spawn_until_stopped("accept", {
            let tasks = tasks.clone();
            async move {
                for spins in (0..3_000).step_by(50).cycle() {
                    let Ok((stream, _)) = listener.accept().await else { return };
                    tasks.spawn_until_stopped("answer", answer_once(stream, spins));
                }
            }
        });
        let client = HttpClient::<Full<Bytes>>::new(CONFIG);
        let requests = (0..8).map(|_| async {
            let mut failed = 0;
            for _ in 0..2_000 {
                let request = Request::get(&url).body(Full::default()).expect("a request");
                let answered = tokio::time::timeout(Duration::from_secs(5), client.request(request));
                match answered.await.expect("an answer or an error") {
                    Ok(answer) => {
                        // The end of the connection may cut nothing: the answer was written as a whole.
                        assert_eq!(answer.into_body().collect().await.expect("a body").to_bytes(), "ok");
                    }
                    Err(error) => {
                        assert!(error.is_of_idle(), "{error:?}");
                        failed += 1;
                    }
                }
            }
            failed
        });
        let failed = futures_util::future::join_all(requests).await.into_iter().sum::<u32>();
        tasks.stop();
        assert!(failed < 16_000, "some were answered");
    }

    #[test]
    fn an_answer_that_can_not_be_read_is_no_closed_connection() {
        let io = |kind: ErrorKind| io::Error::from(kind);
        assert!(is_of_closed(&io(ErrorKind::ConnectionReset)) && is_of_closed(&io(ErrorKind::BrokenPipe)));
        assert!(!is_of_closed(&io(ErrorKind::InvalidData)) && !is_of_closed(&io(ErrorKind::TimedOut)));
    }
}
