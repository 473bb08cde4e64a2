//! Connections that do not become live: what their clients are told, and how long they have to hear it.
//!
//! Whoever is told counts as half open no more, so that clients with wrong tokens keep nobody out who has yet to send one.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::refused::NoSeat;
use super::socket::{CLOSE_WAIT, Socket};
use crate::protocol::api::ApiError;
use crate::protocol::frames::ErrorFrame;
use crate::protocol::{CloseCode, ErrorCode, ServerFrame, websocket};
use crate::server::access::seats::{Begun, LINGERING_MAX, Lingering, Seats};
use crate::telemetry::{Counter, Metrics};

/// Clients that may take a moment to read a page; any more of them have what their sockets take at once.
const READING_MAX: usize = 128;

/// Files that this takes beside those of all other connections.
pub(super) const FILES: usize = READING_MAX + LINGERING_MAX;

/// An HTTP answer that ends the connection.
pub(super) struct Refusal {
    pub(super) status: &'static str,
    pub(super) content_type: &'static str,
    /// Further lines of the head, each with its end.
    pub(super) headers: &'static str,
    pub(super) body: Bytes,
}

impl Refusal {
    pub(super) fn error(status: &'static str, code: ErrorCode, message: &str) -> Self {
        let body = ApiError { code, message: message.to_owned(), retry_after_ms: None };
        let body = serde_json::to_vec(&body).expect("plain data").into();
        Self { status, content_type: "application/json", headers: "", body }
    }

    pub(super) fn full() -> Self {
        Self::no_seat(&NoSeat::Full)
    }

    pub(super) fn no_seat(why: &NoSeat) -> Self {
        let status = match why {
            NoSeat::Full => "503 Service Unavailable",
            NoSeat::TooOften(_) => "429 Too Many Requests",
        };
        let (code, message, after_ms) = why.told();
        let body = ApiError { code, message: message.to_owned(), retry_after_ms: Some(after_ms) };
        let body = serde_json::to_vec(&body).expect("plain data").into();
        Self { status, content_type: "application/json", headers: "Retry-After: 1\r\n", body }
    }

    pub(super) fn bad(message: &str) -> Self {
        Self::error("400 Bad Request", ErrorCode::BadRequest, message)
    }

    /// Whether it is a page that was asked for.
    fn is_page(&self) -> bool {
        self.status.starts_with("200")
    }
}

/// Writes an answer, and waits until the client has closed, at most [`CLOSE_WAIT`].
async fn tell(stream: &mut TcpStream, answer: &mut (impl Buf + Send)) {
    let _ = tokio::time::timeout(CLOSE_WAIT, async {
        // Whether the client still listens does not matter.
        let _ = stream.write_all_buf(answer).await;
        let _ = stream.shutdown().await;
        let mut scratch = [0_u8; 1024];
        while matches!(stream.read(&mut scratch).await, Ok(n) if n > 0) {}
    })
    .await;
}

/// Ends connections that do not become live.
pub(super) struct TurnedAway {
    metrics: Arc<Metrics>,
    refused: Lingering,
    reading: Seats,
}

impl TurnedAway {
    /// Counts in a server's figures.
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, refused: Lingering::default(), reading: Seats::new(READING_MAX) }
    }

    /// Counts one that is gone, or is to be gone at once.
    pub(super) fn give_up(&self) {
        self.metrics.count(Counter::HandshakesFailed);
        self.metrics.count(Counter::ConnectionsClosed);
    }

    /// Answers a request, and ends its connection once the client has closed, or after a moment.
    pub(super) async fn refuse(&self, begun: Begun, mut stream: TcpStream, refusal: Refusal) {
        drop(begun);
        let is_page = refusal.is_page();
        let Refusal { status, content_type, headers, body } = refusal;
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{headers}Connection: close\r\n\r\n",
            body.len()
        );
        let mut answer = Buf::chain(head.as_bytes(), body);
        if !is_page {
            self.refused.refuse(tell(&mut stream, &mut answer)).await;
        } else if let Some(_seat) = self.reading.take() {
            tell(&mut stream, &mut answer).await;
        } else {
            // What the socket takes at once is all of it, but for a large page: nothing was written before.
            let _ = stream.try_write(&answer.copy_to_bytes(answer.remaining()));
        }
        self.metrics.count(Counter::ConnectionsClosed);
        if !is_page {
            self.metrics.count(Counter::HandshakesFailed);
        }
    }

    /// Ends a WebSocket, once the client has closed, or after a moment.
    pub(super) async fn end(&self, begun: Begun, socket: Socket, code: CloseCode, error: Option<ErrorFrame>) {
        drop(begun);
        if let Some(error) = error {
            socket.push(websocket::text_frame(&ServerFrame::Error(error).encode(), None).into(), usize::MAX);
        }
        socket.begin_close(websocket::close_frame(Some(code.code()), code.reason(), None).into(), false);
        self.refused.refuse(socket.linger()).await;
        self.give_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::websocket::{Decoder, Event, Role};
    use crate::runtime::net;
    use crate::server::access::seats::HalfOpen;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = net::listen("127.0.0.1:0".parse().expect("valid")).expect("binds");
        let address = listener.local_addr().expect("bound");
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.expect("connects"), far.expect("accepted").0)
    }

    /// Has somebody turned away who does not close; what was read until the server's end closed.
    async fn told<F: Future<Output = ()>>(all: &Arc<HalfOpen>, end: impl FnOnce(Begun, TcpStream) -> F) -> Vec<u8> {
        let (mut client, stream) = pair().await;
        // As after a request that was read.
        stream.writable().await.expect("is open");
        let mut begun = all.admit().await;
        begun.has_token();
        assert_eq!(all.len(), 1);
        let mut bytes = Vec::new();
        let reading = async {
            client.read_to_end(&mut bytes).await.expect("reads");
            assert_eq!(all.len(), 0, "who is told is half open no more");
        };
        tokio::join!(end(begun, stream), reading);
        bytes
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_told_why_it_is_refused_is_half_open_no_more_whether_it_lingers_or_not() {
        let (all, metrics) = (HalfOpen::beside(0), Arc::new(Metrics::new("chat", "chat-1")));
        let turned_away = TurnedAway::new(Arc::clone(&metrics));
        for _ in 0..2 {
            let refusal = Refusal::error("401 Unauthorized", ErrorCode::Unauthorized, "who?");
            let answer = told(&all, |begun, stream| turned_away.refuse(begun, stream, refusal)).await;
            let answer = String::from_utf8(answer).expect("text");
            assert!(answer.starts_with("HTTP/1.1 401") && answer.ends_with('}'), "{answer}");
            let code = CloseCode::Unauthorized;
            let frames = told(&all, |begun, stream| turned_away.end(begun, Socket::new(stream), code, None)).await;
            let (mut frames, mut closed) = (frames, None);
            let fed = Decoder::new(Role::Client, 1 << 10).feed(&mut frames, &mut |event| {
                if let Event::Close(code) = event {
                    closed = code;
                }
            });
            assert!(fed.is_ok() && closed == Some(code.code()), "{closed:?}");
        }
        assert_eq!(metrics.counted(Counter::HandshakesFailed), 4);
        assert_eq!(metrics.counted(Counter::ConnectionsClosed), 4);
        // Whoever asks for a page where others read one gets it without a wait.
        let _others: Vec<_> = std::iter::from_fn(|| turned_away.reading.take()).collect();
        let page =
            Refusal { status: "200 OK", content_type: "text/plain", headers: "", body: Bytes::from_static(b"page") };
        let answer = told(&all, |begun, stream| turned_away.refuse(begun, stream, page)).await;
        assert!(answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(b"page"));
    }
}
