//! Requests that begin and do not go on.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::bench::{Bench, Siege};
use crate::wire::{connect, everything, first, many, post, talk};

/// Connections to each port.
const COUNT: usize = 60;

/// Connections to each port of the many that are slow.
const SLOW: usize = 500;

/// More than the gateway has tunnels.
const TUNNELS: usize = 800;

/// Between two bytes of who is slow.
const BYTE_INTERVAL: Duration = Duration::from_secs(1);

async fn begun(ports: impl IntoIterator<Item = &str>, bytes: &[u8]) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for port in ports {
        streams.extend(many(port, COUNT, bytes).await);
    }
    streams
}

pub(crate) async fn request_line(bench: &Bench) -> Siege {
    begun(bench.ports.clients(), b"POST /log").await.into()
}

pub(crate) async fn head(bench: &Bench) -> Siege {
    begun(bench.ports.clients(), b"POST /login HTTP/1.1\r\nHost: x\r\nX-Half: y").await.into()
}

const HALF_BODY: &[u8] =
    b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{\"name\":";

pub(crate) async fn body(bench: &Bench) -> Siege {
    let mut streams = begun(bench.ports.http(), HALF_BODY).await;
    bench.others_are_served().await;
    for stream in &mut streams {
        let answer = first(stream).await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    streams.into()
}

pub(crate) async fn poll_body(bench: &Bench) -> Siege {
    let ports = &bench.ports;
    let opened = talk(&ports.chat, post("/poll", &bench.eve.token, "").as_bytes()).await;
    let session = opened.split("\"session\":\"").nth(1).and_then(|rest| rest.split('"').next());
    let session = session.unwrap_or_else(|| panic!("no session: {opened}")).to_owned();
    let mut streams = Vec::new();
    for (port, path) in [(&ports.chat, format!("/poll/{session}")), (&ports.tunnels, format!("/poll/chat-1/{session}"))]
    {
        let whole = post(&path, &bench.eve.token, &" ".repeat(1_000));
        streams.extend(many(port, COUNT, &whole.as_bytes()[..whole.len() - 900]).await);
    }
    bench.others_are_served().await;
    let closed = post(&format!("/poll/{session}"), &bench.eve.token, "").replacen("POST", "DELETE", 1);
    let answer = talk(&ports.chat, closed.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    streams.into()
}

/// The first message of TLS 1.3, without what it says.
fn client_hello() -> Vec<u8> {
    // A record of 512 bytes, a handshake of 508, version, and any bytes.
    let head = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    head.into_iter().chain((0..506_u32).map(|n| (n * 131 % 251) as u8)).collect()
}

pub(crate) async fn tls(bench: &Bench) -> Siege {
    let hello = client_hello();
    let peers = bench.ports.peers.iter().map(String::as_str);
    let ports: Vec<&str> = bench.ports.clients().into_iter().chain(peers).collect();
    let mut whole = Vec::new();
    for port in &ports {
        whole.extend(many(port, 4, &hello).await);
    }
    for stream in &mut whole {
        let answer = everything(stream).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer:?}");
    }
    let mut half = Vec::new();
    for port in &ports {
        half.extend(many(port, COUNT / 4, &hello[..7]).await);
    }
    half.into()
}

pub(crate) async fn slow_body(bench: &Bench) -> Siege {
    let siege = Siege::default();
    let mut answers = Vec::new();
    for port in bench.ports.http() {
        for mut stream in begun([port], HALF_BODY).await {
            let (done, answer) = tokio::sync::oneshot::channel();
            siege.tasks.spawn(async move {
                let mut answer = String::new();
                while answer.is_empty() {
                    // Refused is what it waits for.
                    let _ = stream.write_all(b"a").await;
                    let reading = tokio::time::timeout(BYTE_INTERVAL, first(&mut stream)).await;
                    answer = reading.unwrap_or_default();
                }
                let _ = done.send(answer);
            });
            answers.push(answer);
        }
    }
    bench.others_are_served().await;
    for answer in answers {
        let answer = answer.await.expect("each is answered");
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    siege
}

/// Heads that go on by a byte a second; those that are cut come again.
async fn slow(port: String, count: usize) {
    let begun = b"GET /ws HTTP/1.1\r\nX-Slow: ";
    let mut streams = many(&port, count, begun).await;
    loop {
        for stream in &mut streams {
            if stream.write_all(b"a").await.is_err() {
                *stream = connect(&port).await;
                let _ = stream.write_all(begun).await;
            }
        }
        tokio::time::sleep(BYTE_INTERVAL).await;
    }
}

pub(crate) async fn tunnels(bench: &Bench) -> Siege {
    let siege = Siege::default();
    siege.tasks.spawn(slow(bench.ports.tunnels.clone(), TUNNELS));
    tokio::time::sleep(BYTE_INTERVAL * 2).await;
    for _ in 0..3 {
        bench.others_are_served().await;
        tokio::time::sleep(BYTE_INTERVAL).await;
    }
    siege
}

/// Has its answer, and neither says anything more nor closes.
pub(crate) async fn answered(bench: &Bench) -> Siege {
    many(&bench.ports.tunnels, TUNNELS, b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n").await.into()
}

pub(crate) async fn slow_heads(bench: &Bench) -> Siege {
    let siege = Siege::default();
    for port in bench.ports.clients() {
        siege.tasks.spawn(slow(port.to_owned(), SLOW));
    }
    // They are there before others are.
    tokio::time::sleep(BYTE_INTERVAL * 2).await;
    for _ in 0..4 {
        bench.others_are_served().await;
        tokio::time::sleep(BYTE_INTERVAL).await;
    }
    siege
}
