//! WebSockets byte by byte.

use std::time::Duration;

use chatctl::protocol::websocket::apply_mask;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::LIMIT;

/// Until a client comes back that was refused for connecting too often.
const AGAIN: Duration = Duration::from_millis(100);

/// The mask of every frame.
pub(crate) const MASK: [u8; 4] = [9, 8, 7, 6];

/// A masked frame with a hand-made first byte.
pub(crate) fn raw(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        n @ 0..126 => out.push(0x80 | n as u8),
        n => {
            out.push(0xfe);
            out.extend_from_slice(&(n as u16).to_be_bytes());
        }
    }
    out.extend_from_slice(&MASK);
    let start = out.len();
    out.extend_from_slice(payload);
    apply_mask(&mut out[start..], MASK);
    out
}

/// The host and port of a `ws://` address.
pub(crate) fn authority(url: &str) -> &str {
    url.strip_prefix("ws://").and_then(|rest| rest.split('/').next()).expect("a ws address")
}

/// A socket that was upgraded at a path.
pub(crate) async fn upgraded(url: &str, path: &str, token: Option<&str>) -> TcpStream {
    loop {
        let (head, stream) = asked_to_upgrade(url, path, token).await;
        if head.starts_with("HTTP/1.1 429") {
            // Too often for one user: it comes back.
            tokio::time::sleep(AGAIN).await;
            continue;
        }
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        // Source of key and answer: RFC 6455 section 1.3.
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
        return stream;
    }
}

/// The head of the answer to an upgrade, and the stream behind it.
async fn asked_to_upgrade(url: &str, path: &str, token: Option<&str>) -> (String, TcpStream) {
    let authority = authority(url);
    let mut stream = TcpStream::connect(authority).await.expect("connects");
    let bearer = token.map(|t| format!("Authorization: Bearer {t}\r\n")).unwrap_or_default();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{bearer}\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("an answer"));
    }
    (String::from_utf8(head).expect("text"), stream)
}

/// Everything until the server ends the socket; a reset is a failure.
pub(crate) async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    tokio::time::timeout(LIMIT, stream.read_to_end(&mut bytes)).await.expect("ends in time").expect("no reset");
    bytes
}

/// The code of the close frame at the end of some frames.
pub(crate) fn close_code_of(bytes: &[u8]) -> Option<u16> {
    let at = bytes.windows(2).rposition(|w| w[0] == 0x88 && w[1] < 126 && w[1] >= 2)?;
    Some(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]))
}
