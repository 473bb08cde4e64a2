//! A client's WebSocket: the upgrade, masked writes, and reading without a buffer of its own.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::event::LinkError;
use super::poll::PollLink;
use crate::protocol::api::ApiError;
use crate::protocol::frames::{FrameError, WelcomeFrame};
use crate::protocol::websocket::{self, Decoder, Event, Role};
use crate::protocol::{ClientFrame, SUBPROTOCOL, ServerFrame};
use crate::runtime::{clock, net};

/// Longest that connecting may take, each of: TCP, upgrade, welcome.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest that a write may wait for the server to read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest that a refused upgrade's answer may be.
const REFUSAL_BYTES_MAX: usize = 16 * 1024;

/// Largest message that a client takes.
const MESSAGE_BYTES_MAX: u32 = 1 << 20;

const READ_BYTES: usize = 64 * 1024;

thread_local! {
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// What went over the wire. Written by all devices.
#[derive(Default)]
pub(in crate::loadgen) struct Traffic {
    pub(in crate::loadgen) requests: AtomicU64,
    pub(in crate::loadgen) bytes_out: AtomicU64,
    pub(in crate::loadgen) bytes_in: AtomicU64,
}

impl Traffic {
    fn sent(&self, bytes: usize) {
        self.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn got(&self, bytes: usize) {
        self.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// An HTTP request with the bytes that went and came.
    pub(super) fn request(&self, (sent, got): (u64, u64)) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.sent(sent as usize);
        self.got(got as usize);
    }
}

/// A way to the server.
pub(super) enum Link {
    Socket(SocketLink),
    Poll(Box<PollLink>),
}

impl Link {
    /// Reads what there is, appending to `frames`. Ready after each read, whether or not it completed a frame.
    pub(super) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        frames: &mut Vec<ServerFrame>,
        traffic: &Traffic,
    ) -> Poll<Result<(), LinkError>> {
        match self {
            Self::Socket(link) => link.poll_read(context, frames, traffic),
            Self::Poll(link) => link.poll_read(context, frames, traffic),
        }
    }

    /// Takes what is there of a connection that could not be written to; returns the code that the server closed it with,
    /// where it did.
    pub(super) fn drain(
        &mut self,
        context: &mut Context<'_>,
        frames: &mut Vec<ServerFrame>,
        traffic: &Traffic,
    ) -> Option<LinkError> {
        match self {
            Self::Socket(link) => loop {
                match link.poll_read(context, frames, traffic) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return matches!(error, LinkError::Closed(_)).then_some(error),
                    Poll::Pending => return None,
                }
            },
            Self::Poll(link) => {
                frames.append(link.early());
                None
            }
        }
    }

    /// When it is to be looked at, if nothing comes before.
    pub(super) fn due_us(&self, is_reading: bool) -> Option<u64> {
        match self {
            Self::Socket(link) => link.due_us(),
            Self::Poll(link) => link.due_us().filter(|_| is_reading),
        }
    }

    /// Puts a frame behind what is to be written.
    pub(super) fn push(&mut self, frame: &ClientFrame) {
        match self {
            Self::Socket(link) => link.push(frame),
            Self::Poll(link) => link.push(frame),
        }
    }

    /// Whether anything waits to be written.
    pub(super) const fn has_output(&self) -> bool {
        match self {
            Self::Socket(link) => link.has_output(),
            Self::Poll(link) => link.has_output(),
        }
    }

    /// Writes what was pushed, as far as the other end takes it; ready when everything is written.
    pub(super) fn poll_flush(&mut self, context: &mut Context<'_>, traffic: &Traffic) -> Poll<Result<(), LinkError>> {
        match self {
            Self::Socket(link) => link.poll_flush(context, traffic),
            Self::Poll(link) => link.poll_flush(context, traffic),
        }
    }

    /// Says goodbye; what the server answers is not waited for.
    pub(super) async fn close(self, traffic: &Traffic) {
        match self {
            Self::Socket(link) => link.close(traffic).await,
            Self::Poll(link) => link.close().await,
        }
    }
}

/// A live WebSocket.
pub(super) struct SocketLink {
    stream: TcpStream,
    decoder: Decoder,
    outgoing: Vec<u8>,
    /// Since when a write waits for the server to read; 0 where none does.
    blocked_since_us: u64,
}

impl SocketLink {
    /// Connects, from an address of this machine where one is given, upgrades and waits for `welcome`. Frames that came
    /// behind it are in the returned list.
    pub(super) async fn open(
        url: &str,
        token: &str,
        source: Option<IpAddr>,
        traffic: &Traffic,
    ) -> Result<(Self, WelcomeFrame, Vec<ServerFrame>), LinkError> {
        let (authority, path) = parse_url(url)?;
        let connect = async { net::connect(authority, source).await.map_err(|e| LinkError::of_socket(&e)) };
        let stream = within("TCP connect", connect).await?;
        net::set_options(&stream);
        let rest = within("upgrade", upgrade(&stream, authority, path, token)).await?;
        let decoder = Decoder::new(Role::Client, MESSAGE_BYTES_MAX);
        let mut link = Self { stream, decoder, outgoing: Vec::new(), blocked_since_us: 0 };
        let mut frames = Vec::new();
        let fed = link.feed(rest, &mut frames);
        unless_refused(&frames, fed)?;
        let welcome = within("welcome", link.wait_for_welcome(&mut frames, traffic)).await?;
        Ok((link, welcome, frames))
    }

    async fn wait_for_welcome(
        &mut self,
        frames: &mut Vec<ServerFrame>,
        traffic: &Traffic,
    ) -> Result<WelcomeFrame, LinkError> {
        loop {
            if !frames.is_empty() {
                return welcome(frames.remove(0));
            }
            let read = std::future::poll_fn(|context| self.poll_read(context, frames, traffic)).await;
            unless_refused(frames, read)?;
        }
    }

    fn feed(&mut self, mut bytes: Vec<u8>, frames: &mut Vec<ServerFrame>) -> Result<(), LinkError> {
        decode(&mut self.decoder, &mut self.outgoing, &mut bytes, frames)
    }

    /// Reads what there is, appending to `frames`. Ready after each read, whether or not it completed a frame.
    pub(super) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        frames: &mut Vec<ServerFrame>,
        traffic: &Traffic,
    ) -> Poll<Result<(), LinkError>> {
        let Self { stream, decoder, outgoing, .. } = self;
        loop {
            // One reader: no place in a list of waiters is needed.
            ready!(stream.poll_read_ready(context)).map_err(|e| LinkError::of_socket(&e))?;
            let read = READ_BUFFER.with_borrow_mut(|buffer| match net::try_read(stream, buffer) {
                Ok(0) => Some(Err(LinkError::Lost("the server closed the socket".to_owned()))),
                Ok(read) => {
                    traffic.got(read);
                    Some(decode(decoder, outgoing, &mut buffer[..read], frames))
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => None,
                Err(error) => Some(Err(LinkError::of_socket(&error))),
            });
            if let Some(read) = read {
                return Poll::Ready(read);
            }
        }
    }

    /// Puts a frame behind what is to be written.
    pub(super) fn push(&mut self, frame: &ClientFrame) {
        self.outgoing.extend_from_slice(&websocket::text_frame(&frame.encode(), Some(rand::random())));
    }

    /// Whether anything waits to be written.
    pub(super) const fn has_output(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// When a blocked write is given up.
    fn due_us(&self) -> Option<u64> {
        (self.blocked_since_us > 0).then(|| self.blocked_since_us + WRITE_TIMEOUT.as_micros() as u64)
    }

    /// Writes what was pushed, as far as the kernel takes it; ready when everything is written.
    fn poll_flush(&mut self, context: &mut Context<'_>, traffic: &Traffic) -> Poll<Result<(), LinkError>> {
        while !self.outgoing.is_empty() {
            match self.stream.try_write(&self.outgoing) {
                Ok(written) => {
                    traffic.sent(written);
                    self.outgoing.drain(..written);
                    self.blocked_since_us = 0;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.blocked_since_us =
                        if self.blocked_since_us == 0 { clock::now_us() } else { self.blocked_since_us };
                    if self.due_us().is_some_and(|due_us| clock::now_us() >= due_us) {
                        let what = "write: the server does not read";
                        return Poll::Ready(Err(LinkError::TimedOut { what, limit: WRITE_TIMEOUT }));
                    }
                    ready!(self.stream.poll_write_ready(context)).map_err(|e| LinkError::of_socket(&e))?;
                }
                Err(error) => return Poll::Ready(Err(LinkError::of_socket(&error))),
            }
        }
        // Given back, not kept.
        self.outgoing = Vec::new();
        Poll::Ready(Ok(()))
    }

    /// Says goodbye; what the server answers is not waited for.
    pub(super) async fn close(mut self, traffic: &Traffic) {
        self.outgoing.extend_from_slice(&websocket::close_frame(Some(1000), "", Some(rand::random())));
        let flushed = std::future::poll_fn(|context| self.poll_flush(context, traffic));
        // The connection ends either way.
        let _ = tokio::time::timeout(WRITE_TIMEOUT, flushed).await;
    }
}

async fn within<T>(what: &'static str, step: impl Future<Output = Result<T, LinkError>>) -> Result<T, LinkError> {
    match tokio::time::timeout(STEP_TIMEOUT, step).await {
        Ok(result) => result,
        Err(_) => Err(LinkError::TimedOut { what, limit: STEP_TIMEOUT }),
    }
}

async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> Result<(), LinkError> {
    while !bytes.is_empty() {
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                stream.writable().await.map_err(|e| LinkError::of_socket(&e))?;
            }
            Err(error) => return Err(LinkError::of_socket(&error)),
        }
    }
    Ok(())
}

fn decode(
    decoder: &mut Decoder,
    outgoing: &mut Vec<u8>,
    bytes: &mut [u8],
    frames: &mut Vec<ServerFrame>,
) -> Result<(), LinkError> {
    let mut closed = None;
    let mut broken: Option<FrameError> = None;
    let mut is_binary = false;
    let fed = decoder.feed(bytes, &mut |event| match event {
        Event::Text(text) => match ServerFrame::decode(text) {
            Ok(frame) => frames.push(frame),
            Err(error) => broken = Some(error),
        },
        Event::Ping(payload) => outgoing.extend_from_slice(&websocket::pong_frame(payload, Some([0; 4]))),
        Event::Pong(_) => {}
        Event::Binary(_) => is_binary = true,
        Event::Close(code) => closed = Some(code.unwrap_or(1005)),
    });
    fed.map_err(|violation| LinkError::Broken(violation.to_string()))?;
    if let Some(error) = broken {
        return Err(LinkError::Broken(error.to_string()));
    }
    if is_binary {
        return Err(LinkError::Broken("a binary message".to_owned()));
    }
    closed.map_or(Ok(()), |code| Err(LinkError::Closed(code)))
}

fn parse_url(url: &str) -> Result<(&str, &str), LinkError> {
    let rest = url.strip_prefix("ws://").ok_or_else(|| LinkError::Broken(format!("{url:?} is not a ws:// address")))?;
    let slash = rest.find('/').unwrap_or(rest.len());
    Ok((&rest[..slash], if slash < rest.len() { &rest[slash..] } else { "/" }))
}

/// Sends the upgrade request and reads the answer; returns the bytes behind it.
async fn upgrade(stream: &TcpStream, authority: &str, path: &str, token: &str) -> Result<Vec<u8>, LinkError> {
    let key = generate_key();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\
         Authorization: Bearer {token}\r\n\r\n"
    );
    write_all(stream, request.as_bytes()).await?;
    let mut answer = Vec::with_capacity(512);
    loop {
        stream.readable().await.map_err(|e| LinkError::of_socket(&e))?;
        match stream.try_read_buf(&mut answer) {
            Ok(0) => return Err(LinkError::Lost("closed during the upgrade".to_owned())),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(LinkError::of_socket(&error)),
        }
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(&answer).map_err(|e| LinkError::Broken(format!("upgrade answer: {e}")))?;
        let httparse::Status::Complete(head) = parsed else {
            if answer.len() > REFUSAL_BYTES_MAX {
                return Err(LinkError::Broken("the answer to the upgrade has no end".to_owned()));
            }
            continue;
        };
        if response.code != Some(101) {
            return Err(refusal(&response, &answer[head..]));
        }
        let accept = response.headers.iter().find(|h| h.name.eq_ignore_ascii_case("sec-websocket-accept"));
        if accept.map(|h| h.value) != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
            return Err(LinkError::Broken("wrong Sec-WebSocket-Accept".to_owned()));
        }
        return Ok(answer.split_off(head));
    }
}

/// How a read ended. A first frame that is an error says more than the close behind it.
fn unless_refused(frames: &[ServerFrame], read: Result<(), LinkError>) -> Result<(), LinkError> {
    if matches!(frames.first(), Some(ServerFrame::Error(_))) { Ok(()) } else { read }
}

/// What the first frame of a connection says: `welcome`, or why there is none.
pub(super) fn welcome(first: ServerFrame) -> Result<WelcomeFrame, LinkError> {
    match first {
        ServerFrame::Welcome(welcome) => Ok(welcome),
        ServerFrame::Error(error) => Err(LinkError::Refused {
            status: error.code.status(),
            text: error.message,
            retry_after: error.retry_after_ms.map(Duration::from_millis),
        }),
        other => Err(LinkError::Broken(format!("{} before welcome", other.encode()))),
    }
}

/// What a refused upgrade says, and when to try again.
fn refusal(response: &httparse::Response<'_, '_>, body: &[u8]) -> LinkError {
    let header = response.headers.iter().find(|h| h.name.eq_ignore_ascii_case("retry-after"));
    let header = retry_after(header.map(|header| header.value));
    let parsed = serde_json::from_slice::<ApiError>(body).ok();
    let asked = parsed.as_ref().and_then(|error| error.retry_after_ms).map(Duration::from_millis);
    LinkError::Refused {
        status: response.code.unwrap_or(0),
        text: parsed.map_or_else(|| String::from_utf8_lossy(body).into_owned(), |error| error.message),
        retry_after: header.max(asked),
    }
}

/// What a header `Retry-After` asks for, in seconds.
pub(super) fn retry_after(header: Option<&[u8]>) -> Option<Duration> {
    std::str::from_utf8(header?).ok()?.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadgen::client::ConnectError;
    use crate::loadgen::stats::{Stats, get};
    use crate::protocol::ErrorCode;
    use crate::protocol::frames::ErrorFrame;

    #[test]
    fn an_error_instead_of_welcome_is_refused_as_its_code_says() {
        let refused = |code, retry_after_ms| {
            let frame = ErrorFrame { uuid: None, code, message: "no".to_owned(), retry_after_ms };
            welcome(ServerFrame::Error(frame)).expect_err("no welcome")
        };
        // Backpressure, failed connects, and whether another token is needed.
        let counted = |code, retry_after_ms| {
            let cause = refused(code, retry_after_ms);
            let LinkError::Refused { retry_after, .. } = cause else { panic!("{cause}") };
            let (stats, is_unauthorized) = (Stats::default(), cause.is_unauthorized());
            stats.connect_failed(&ConnectError { cause, server: None, retry_after }, true);
            (get(&stats.throttled), get(&stats.connects_failed), is_unauthorized)
        };
        for code in [ErrorCode::Overloaded, ErrorCode::Unavailable, ErrorCode::RateLimited] {
            assert_eq!(counted(code, Some(500)), (1, 0, false), "{code:?}");
            assert_eq!(counted(code, None), (0, 1, false), "{code:?} without a time to come back");
        }
        for code in [ErrorCode::Internal, ErrorCode::Forbidden, ErrorCode::BadRequest] {
            assert_eq!(counted(code, Some(500)), (0, 1, false), "{code:?}");
        }
        assert_eq!(counted(ErrorCode::Unauthorized, Some(500)), (0, 0, true), "a login helps");
        assert_eq!(refused(ErrorCode::Internal, None).name(), "refused_500");
        assert!(matches!(welcome(ServerFrame::Pong), Err(LinkError::Broken(_))));
        let error = ErrorFrame { uuid: None, code: ErrorCode::Internal, message: String::new(), retry_after_ms: None };
        assert!(unless_refused(&[ServerFrame::Error(error)], Err(LinkError::Closed(1011))).is_ok());
        assert!(unless_refused(&[ServerFrame::Pong], Err(LinkError::Closed(1011))).is_err());
    }
}
