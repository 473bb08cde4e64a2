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

/// Reads the rest of the first head of a connection; false where there is none: it ended, or was refused.
pub(super) async fn read_first(stream: &mut TcpStream, begun: &mut Vec<u8>) -> bool {
    let read = async {
        while !parse(begun)? {
            match stream.read_buf(begun).await {
                Ok(0) | Err(_) => return Ok::<_, Refusal>(false),
                Ok(_) => {}
            }
        }
        Ok(true)
    };
    let refusal: Refusal = match tokio::time::timeout(HEAD_TIMEOUT, read).await {
        Ok(Ok(is_there)) => return is_there,
        Ok(Err(refusal)) => refusal,
        // Who sent nothing waits for nothing.
        Err(_) if begun.is_empty() => return false,
        Err(_) => Failure::new(ErrorCode::RequestTimeout, "the head of a request came too slowly").into(),
    };
    let _ = tokio::time::timeout(LINGER, async {
        // Whether the client still listens does not matter.
        let _ = stream.write_all(&refusal.into_bytes()).await;
        let _ = stream.shutdown().await;
        let mut scratch = [0_u8; 1024];
        while matches!(stream.read(&mut scratch).await, Ok(read) if read > 0) {}
    })
    .await;
    false
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
