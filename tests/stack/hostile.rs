//! Clients that hold what they have no right to: others are served all the same (invariants I10 and I12).

use std::time::Duration;

use chatctl::stack::{Config, Stack};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::client::{Person, Socket, config, conversation, http, signup};

/// The host and port of a `ws://` address.
fn authority(url: &str) -> &str {
    url.strip_prefix("ws://").and_then(|rest| rest.split('/').next()).expect("an address")
}

/// The head and the beginning of the body of an answer to a request, which may stay open.
async fn answer(address: &str, request: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut bytes = vec![0; 4_096];
    let read = stream.read(&mut bytes).await.expect("answers");
    (stream, String::from_utf8_lossy(&bytes[..read]).into_owned())
}

async fn talks(stack: &Stack, alice: &Person, bob: &Person) {
    let talk = conversation(stack, alice, "direct", &[bob]).await;
    let (mut a, mut b) = (Socket::open(alice).await, Socket::open(bob).await);
    a.send(&talk, Uuid::new_v4(), "hello").await;
    assert_eq!(b.next_of("message").await["body"], "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_keep_no_user_out() {
    let mut config = Config { chat_servers: 1, ..config() };
    config.chat.connections_max = 10;
    let stack = Stack::start(config).await.expect("starts");
    let (alice, bob) = (signup(&stack, "alice").await, signup(&stack, "bob").await);
    let mut silent = Vec::new();
    for n in 0..400 {
        let mut stream = TcpStream::connect(authority(&alice.url)).await.expect("connects");
        if n % 2 == 0 {
            // Half of them begin.
            stream.write_all(b"GET /ws HTTP/1.1\r\nHost: x\r\n").await.expect("writes");
        }
        silent.push(stream);
    }
    // And some take the upgrade and never say who they are.
    for _ in 0..40 {
        silent.push(half_upgraded(authority(&alice.url)).await);
    }
    talks(&stack, &alice, &bob).await;
    stack.stop().await;
}

/// A socket that was upgraded and never says who it is.
async fn half_upgraded(address: &str) -> TcpStream {
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    let (stream, head) = answer(address, &request).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn half_sent_polls_of_one_user_keep_nobody_out() {
    let mut config = Config { chat_servers: 1, ..config() };
    config.chat.connections_max = 20;
    let stack = Stack::start(config).await.expect("starts");
    let (alice, bob, eve) = (signup(&stack, "alice").await, signup(&stack, "bob").await, signup(&stack, "eve").await);
    let address = authority(&eve.url).to_owned();
    let bearer = format!("Authorization: Bearer {}", eve.token);
    let open = format!("POST /poll HTTP/1.1\r\nHost: x\r\n{bearer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let (_, opened) = answer(&address, &open).await;
    let session = opened.split("\"session\":\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a session");
    let mut half = Vec::new();
    for _ in 0..50 {
        let mut stream = TcpStream::connect(&address).await.expect("connects");
        let begun = format!("POST /poll/{session} HTTP/1.1\r\nHost: x\r\n{bearer}\r\nContent-Length: 1000\r\n\r\n[");
        stream.write_all(begun.as_bytes()).await.expect("writes");
        half.push(stream);
    }
    talks(&stack, &alice, &bob).await;
    let (_, live) = answer(&address, "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(live.starts_with("HTTP/1.1 200"), "{live}");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_and_answers_that_nobody_reads_leave_health_and_others_alone() {
    let stack = Stack::start(Config { gateways: 1, ..config() }).await.expect("starts");
    let url = stack.api_url().expect("a gateway");
    let address = url.strip_prefix("http://").expect("plain HTTP");
    let mut held = Vec::new();
    for _ in 0..16 {
        let request =
            "POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 66060288\r\n\r\n{";
        let (stream, refused) = answer(address, request).await;
        assert!(refused.starts_with("HTTP/1.1 413"), "{refused}");
        held.push(stream);
    }
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(65_536));
    for _ in 0..4 {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        let head =
            "POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("writes");
        for _ in 0..8 {
            if stream.write_all(chunk.as_bytes()).await.is_err() {
                break;
            }
        }
        let mut bytes = vec![0; 200];
        let read = stream.read(&mut bytes).await.unwrap_or(0);
        let refused = String::from_utf8_lossy(&bytes[..read]).into_owned();
        assert!(read == 0 || refused.starts_with("HTTP/1.1 413"), "{refused}");
    }
    for _ in 0..40 {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        let pipelined = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(200);
        stream.write_all(pipelined.as_bytes()).await.expect("writes");
        held.push(stream);
    }
    for _ in 0..20 {
        assert_eq!(http(&stack, "GET", "/health/live", "", &Value::Null).await.0, 200);
    }
    let (alice, bob) = (signup(&stack, "alice").await, signup(&stack, "bob").await);
    talks(&stack, &alice, &bob).await;
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_went_silent_is_notified_of_what_was_written_into_the_dead_socket() {
    let mut config = config();
    config.chat.idle_timeout = Duration::from_secs(1);
    let stack = Stack::start(config).await.expect("starts");
    let (alice, bob) = (signup(&stack, "alice").await, signup(&stack, "bob").await);
    let direct = conversation(&stack, &alice, "direct", &[&bob]).await;
    let group = conversation(&stack, &alice, "group", &[&bob]).await;
    // It looks alive, and nothing comes from it any more.
    let _dead = Socket::open(&bob).await;
    let mut a = Socket::open(&alice).await;
    a.send(&direct, Uuid::new_v4(), "are you there?").await;
    a.send(&group, Uuid::new_v4(), "are you?").await;
    let file = stack.data().join("notifications.jsonl");
    let is_told = |text: &str, conversation: &str| {
        text.lines().any(|line| line.contains(&bob.id) && line.contains(&format!("\"{conversation}\"")))
    };
    tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            if is_told(&text, &direct) && is_told(&text, &group) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("both are told");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_full_says_so_and_answers_probes() {
    let mut config = Config { gateways: 1, ..config() };
    config.gateway.tunnels_max = 2;
    let stack = Stack::start(config).await.expect("starts");
    let (alice, bob) = (signup(&stack, "alice").await, signup(&stack, "bob").await);
    let address = authority(&alice.url).to_owned();
    let (_a, _b) = (Socket::open(&alice).await, Socket::open(&bob).await);
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(&address).await.expect("connects"));
    }
    for path in ["/health/live", "/health/ready", "/metrics"] {
        let (_, probed) = answer(&address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert!(probed.starts_with("HTTP/1.1 200"), "{path}: {probed}");
    }
    let (_, refused) = answer(&address, "GET /ws HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("as it holds"), "{refused}");
    stack.stop().await;
}
