//! Requests and answers as bytes.

use std::net::IpAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::client::LIMIT;

/// Bytes that a deaf client's system takes for it.
const DEAF_BYTES: u32 = 4_096;

/// A connection.
pub(crate) async fn connect(address: &str) -> TcpStream {
    let connected = timeout(LIMIT, TcpStream::connect(address)).await.expect("connects in time");
    connected.unwrap_or_else(|error| panic!("connects to {address}: {error}"))
}

/// A connection whose client does not read, nor its system much.
pub(crate) async fn connect_deaf(address: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(DEAF_BYTES).expect("smaller");
    let connecting = socket.connect(address.parse().expect("an address"));
    timeout(LIMIT, connecting).await.expect("connects in time").expect("connects")
}

/// A connection from another address of this machine.
pub(crate) async fn connect_from(source: IpAddr, address: &str) -> std::io::Result<TcpStream> {
    chatctl::runtime::net::connect(address, Some(source)).await
}

/// As many connections, on each of which some bytes are written. That the server ends one is its right.
pub(crate) async fn many(address: &str, count: usize, bytes: &[u8]) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        let mut stream = connect(address).await;
        let _ = stream.write_all(bytes).await;
        streams.push(stream);
    }
    streams
}

/// Everything until the other end closes or resets.
pub(crate) async fn everything(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let reading = timeout(LIMIT, stream.read_to_end(&mut bytes)).await;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    // A reset is an end, too.
    let _ = reading.unwrap_or_else(|_| panic!("it does not end: {text:?}"));
    text
}

/// What an address answers to some bytes, until it closes. Writing and reading go side by side.
pub(crate) async fn talk(address: &str, bytes: &[u8]) -> String {
    let mut stream = connect(address).await;
    let (mut read, mut write) = stream.split();
    let mut answer = Vec::new();
    let writing = async {
        // Refused in the middle is refused.
        let _ = write.write_all(bytes).await;
    };
    let reading = async {
        let _ = read.read_to_end(&mut answer).await;
    };
    let ended = timeout(LIMIT, async { tokio::join!(writing, reading) }).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    assert!(ended.is_ok(), "{address} does not end: {text:.300?}");
    text
}

/// The first bytes of an answer.
pub(crate) async fn first(stream: &mut TcpStream) -> String {
    let mut bytes = vec![0; 4_096];
    let read = timeout(LIMIT, stream.read(&mut bytes)).await.expect("answers in time").unwrap_or(0);
    String::from_utf8_lossy(&bytes[..read]).into_owned()
}

/// Statuses of the answers in a text.
pub(crate) fn statuses(text: &str) -> Vec<u16> {
    let answers = text.split("HTTP/1.1 ").skip(1);
    answers.filter_map(|answer| answer.get(..3)?.parse().ok()).collect()
}

/// A request with a JSON body on a connection of its own.
pub(crate) fn post(path: &str, token: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// A request without a body; the connection goes on.
pub(crate) fn get(path: &str, token: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n")
}

/// The same as the connection's last.
pub(crate) fn get_last(path: &str, token: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n")
}

/// The head of an upgrade.
pub(crate) fn upgrade(path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
    )
}
