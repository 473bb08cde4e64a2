//! Heads of requests that are refused, so that their clients get a reason: what the HTTP library refuses by itself it
//! answers with a status alone.
//!
//! The first head of a connection is read here and parsed as the library does, which sees only those that it takes. Of
//! the heads behind it the library takes more than is allowed, and what is too much is refused then.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode, Uri};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::status::{Failure, Refusal};
use crate::protocol::ErrorCode;

/// Time for a request's head.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Headers of a request, and bytes of them.
const HEADERS_MAX: usize = 64;
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Bytes of a request's target.
const TARGET_BYTES_MAX: usize = 8 * 1024;

/// What the library takes.
pub(super) const HEADERS_READ_MAX: usize = 4 * HEADERS_MAX;
pub(super) const BUFFER_BYTES_MAX: usize = 4 * HEAD_BYTES_MAX;

/// How long a client that was refused may take to hear it.
const LINGER: Duration = Duration::from_secs(2);

fn too_large() -> Refusal {
    let message = format!("the head of a request has at most {HEADERS_MAX} headers and {} KiB", HEAD_BYTES_MAX / 1_024);
    Failure::new(ErrorCode::TooLarge, message).with_status(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
}

fn too_long() -> Refusal {
    let message = format!("the target of a request has at most {} KiB", TARGET_BYTES_MAX / 1_024);
    Failure::new(ErrorCode::TooLarge, message).with_status(StatusCode::URI_TOO_LONG)
}

fn bad(message: &str) -> Refusal {
    Failure::new(ErrorCode::BadRequest, message).into()
}

/// Why a request's head is refused, if it is.
pub(super) fn check(request: &Request<Body>) -> Result<(), Refusal> {
    let bytes = |headers: &HeaderMap| headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let target_bytes = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    let header_bytes: usize = bytes(request.headers());
    if target_bytes > TARGET_BYTES_MAX {
        Err(too_long())
    } else if request.headers().len() > HEADERS_MAX || header_bytes > HEAD_BYTES_MAX {
        Err(too_large())
    } else {
        Ok(())
    }
}

/// Whether the beginning of a connection is a whole head, or may become one.
fn parse(begun: &[u8]) -> Result<bool, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_READ_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(begun) {
        Ok(httparse::Status::Complete(_)) => match request.path.map(str::parse::<Uri>) {
            Some(Ok(_)) => Ok(true),
            Some(Err(_)) | None => Err(bad("the target of this request can't be read")),
        },
        Ok(httparse::Status::Partial) if begun.len() < BUFFER_BYTES_MAX => Ok(false),
        Ok(httparse::Status::Partial) if !begun.contains(&b'\n') => Err(too_long()),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => Err(too_large()),
        Err(_) => Err(bad("this is not an HTTP request")),
    }
}

/// What is known of the beginning of a connection: it is parsed where that may tell something new. Parsed at every read,
/// what comes byte by byte would be gone through as often as it has bytes.
pub(in crate::server) struct Beginning {
    /// Bytes that a head may have.
    most: usize,
    /// Bytes that were looked at.
    seen: usize,
    /// Bytes of empty lines before the request; the library skips them.
    blank: usize,
    has_line: bool,
}

impl Beginning {
    /// Of a head that may have so many bytes.
    pub(in crate::server) const fn new(most: usize) -> Self {
        Self { most, seen: 0, blank: 0, has_line: false }
    }

    /// Whether a parse may tell more than the last one: something has come, or the first line, or the end of a head, or
    /// as much as a head may have.
    pub(in crate::server) fn may_tell_more(&mut self, begun: &[u8]) -> bool {
        let seen = std::mem::replace(&mut self.seen, begun.len());
        let is_first = self.blank == seen && begun.len() > seen;
        if is_first {
            self.blank += begun[seen..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        }
        let is_begun = is_first && self.blank < begun.len();
        // The end of a head may have begun in what came before.
        let tail = &begun[self.blank.max(seen.saturating_sub(3))..];
        let is_end = tail.windows(2).any(|end| end == b"\n\n") || tail.windows(3).any(|end| end == b"\n\r\n");
        let is_line = !self.has_line && tail.contains(&b'\n');
        self.has_line |= is_line;
        is_begun || is_line || is_end || begun.len() >= self.most
    }
}

/// Reads the rest of the first head of a connection; false where there is none, since it ended.
///
/// # Errors
/// When the head is refused: the client is to be told.
pub(super) async fn read_first(stream: &mut TcpStream, begun: &mut Vec<u8>) -> Result<bool, Refusal> {
    let mut beginning = Beginning::new(BUFFER_BYTES_MAX);
    let read = async {
        loop {
            if beginning.may_tell_more(begun) && parse(begun)? {
                return Ok(true);
            }
            match stream.read_buf(begun).await {
                Ok(0) => return parse(begun),
                Err(_) => return Ok(false),
                Ok(_) => {}
            }
        }
    };
    match tokio::time::timeout(HEAD_TIMEOUT, read).await {
        Ok(read) => read,
        // Who sent nothing waits for nothing.
        Err(_) if begun.is_empty() => Ok(false),
        Err(_) => {
            parse(begun)?;
            Err(Failure::new(ErrorCode::RequestTimeout, "the head of a request came too slowly").into())
        }
    }
}

/// Tells a client why its head is refused, and waits for a moment until it has heard it.
pub(super) async fn refuse(stream: &mut TcpStream, refusal: Refusal) {
    let _ = tokio::time::timeout(LINGER, async {
        // Whether the client still listens does not matter.
        let _ = stream.write_all(&refusal.into_bytes()).await;
        let _ = stream.shutdown().await;
        let mut scratch = [0_u8; 1024];
        while matches!(stream.read(&mut scratch).await, Ok(read) if read > 0) {}
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(begun: &str) -> Option<u16> {
        parse(begun.as_bytes()).err().map(|refusal| refusal.status().as_u16())
    }

    #[test]
    fn a_first_head_is_whole_or_begun_or_refused() {
        assert!(parse(b"GET /a?b HTTP/1.1\r\nHost: x\r\n\r\n{").is_ok_and(|is_whole| is_whole));
        assert!(parse(b"").is_ok_and(|is_whole| !is_whole) && parse(b"GET /a HT").is_ok_and(|is_whole| !is_whole));
        for bad in
            ["\u{1}\u{2} nonsense\r\n\r\n", "GET\r\n\r\n", "GET /a HTTP/9.9\r\n\r\n", "GET /a|\u{7f} HTTP/1.1\r\n\r\n"]
        {
            assert_eq!(refused(bad), Some(400), "{bad:?}");
        }
        let large = "x".repeat(BUFFER_BYTES_MAX);
        assert_eq!(refused(&format!("GET /{large}")), Some(414));
        assert_eq!(refused(&format!("GET / HTTP/1.1\r\nX: {large}")), Some(431));
        assert_eq!(refused(&format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(HEADERS_READ_MAX + 1))), Some(431));
    }

    #[test]
    fn what_comes_byte_by_byte_is_parsed_a_few_times_and_to_the_same_end() {
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(10_000));
        let many = format!("GET / HTTP/1.1\n{}\n", "X: y\n".repeat(HEADERS_READ_MAX));
        let blank = format!("{}GET / HTTP/1.1\r\n\r\n", "\r\n\n".repeat(5_000));
        for whole in
            [long.as_str(), &many, &blank, "\u{1}\n", "SSH-2.0-x\r\n", "GET / HTTP/1.1\r\n\u{1}: \r\n\r\n", "\rX"]
        {
            let (mut beginning, mut parses) = (Beginning::new(BUFFER_BYTES_MAX), 0);
            let mut told = (0..=whole.len()).filter_map(|length| {
                let begun = &whole.as_bytes()[..length];
                let is_due = beginning.may_tell_more(begun);
                parses += u32::from(is_due);
                let outcome = is_due.then(|| parse(begun));
                outcome.filter(|outcome| !matches!(outcome, Ok(false)))
            });
            let (told, at_once) = (told.next().expect("it is told before the time is over"), parse(whole.as_bytes()));
            assert_eq!(told.ok(), at_once.ok(), "{:?}", &whole[..whole.len().min(30)]);
            assert!(parses <= 3, "{parses} parses");
        }
        let nothing_ends = format!("\r\n{}", "x".repeat(BUFFER_BYTES_MAX - 2));
        let parses = |most| {
            let mut beginning = Beginning::new(most);
            (0..=most).filter(|n| beginning.may_tell_more(&nothing_ends.as_bytes()[..*n])).count()
        };
        let limits = [BUFFER_BYTES_MAX, TARGET_BYTES_MAX];
        assert_eq!(limits.map(parses), [2, 2], "as it begins, and at the limit");
    }

    #[test]
    fn a_head_that_the_library_takes_may_be_too_much() {
        let status = |request: Request<Body>| check(&request).err().map(|refusal| refusal.status().as_u16());
        let with = |headers: usize, bytes: usize| {
            let name = |n| format!("x-{n}");
            let request = (0..headers).fold(Request::builder(), |all, n| all.header(name(n), "y".repeat(bytes)));
            request.body(Body::empty()).expect("valid")
        };
        assert_eq!((status(with(HEADERS_MAX, 9)), status(with(HEADERS_MAX + 1, 9))), (None, Some(431)));
        assert_eq!(status(with(1, HEAD_BYTES_MAX)), Some(431));
        let long = Request::builder().uri(format!("/{}", "x".repeat(TARGET_BYTES_MAX))).body(Body::empty());
        assert_eq!(status(long.expect("valid")), Some(414));
    }
}
