//! The transports without a socket: the same ledger, and requests that make no sense.

use std::time::Duration;

use chatctl::loadgen::result::Verdict;
use chatctl::stack::{Config, Stack};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{config, signup};
use crate::proofs::{run, run_on};

const TALK: &str = "
name: polled
seed: 12
population:
  users: 24
  friends_per_user: 2
  direct_per_user: 4
  groups: [{count: 4, members: {min: 6, max: 12}}]
behaviors: {one-to-one: 2, group-talker: 1, flapper: 1}
connect_over: 300ms
poll_interval: 150ms
flapper: {online: 1s, away: 500ms}
churn: {every: 300ms, back_after: 600ms}
phases: [{phase: steady, duration: 4s, rate: 60}]
generator_lag_max: 10s
";

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_is_clean_over_long_poll_and_poll() {
    for transport in ["long-poll", "poll"] {
        let result = run(&format!("{TALK}\ntransport: {transport}\n"), |b| b, None).await;
        assert_eq!(result.verdict, Verdict::Pass, "{transport}: {:?} {:?}", result.reasons, result.violations);
        assert!(result.counts.acked > 150 && result.counts.delivered > result.counts.acked, "{:?}", result.counts);
        assert!(result.counts.poll_requests > 100 && result.counts.bytes_in > 10_000, "{:?}", result.counts);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_is_clean_through_gateways() {
    for transport in ["long-poll", "poll"] {
        let stack = "stack: {gateways: 2, chat_servers: 3}";
        let result = run(&format!("{TALK}\ntransport: {transport}\n{stack}\n"), |b| b, None).await;
        assert_eq!(result.verdict, Verdict::Pass, "{transport}: {:?} {:?}", result.reasons, result.violations);
        assert!(result.counts.acked > 150 && result.counts.poll_requests > 100, "{:?}", result.counts);
    }
}

const SHORT_TOKENS: &str = "
name: short-tokens
seed: 13
population: {users: 16, direct_per_user: 3}
behaviors: {one-to-one: 1}
connect_over: 300ms
poll_interval: 150ms
phases: [{phase: steady, duration: 8s, rate: 30}]
generator_lag_max: 10s
";

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_token_ends_is_opened_again_with_another_token() {
    for transport in ["long-poll", "poll"] {
        let config = Config { token_lifetime: Duration::from_secs(4), ..config() };
        let result = run_on(config, &format!("{SHORT_TOKENS}\ntransport: {transport}\n")).await;
        assert_eq!(result.verdict, Verdict::Pass, "{transport}: {:?} {:?}", result.reasons, result.errors);
        assert_eq!(result.counts.disconnects, 0, "{transport}: {:?}", result.errors);
        assert!(result.counts.tokens_renewed >= 16 && result.counts.reconnects >= 16, "{:?}", result.counts);
    }
}

/// One request on a connection of its own: status and body.
async fn ask(address: &str, method: &str, path: &str, token: Option<&str>, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{authorization}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("reads");
    let status = answer.split_whitespace().nth(1).and_then(|code| code.parse().ok()).expect("a status");
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_lives_by_its_requests_and_refuses_what_makes_no_sense() {
    let stack = Stack::start(config()).await.expect("starts");
    let (alice, bob) = (signup(&stack, "alice").await, signup(&stack, "bob").await);
    let at = |url: &str| url.strip_prefix("ws://").and_then(|u| u.split('/').next()).expect("an address").to_owned();
    let address = at(&alice.url);
    let token = Some(alice.token.as_str());
    let (status, opened) = ask(&address, "POST", "/poll", token, "").await;
    assert_eq!((status, opened["frames"][0]["type"].as_str()), (201, Some("welcome")), "{opened}");
    let session = format!("/poll/{}", opened["session"].as_str().expect("a session"));
    let (status, answer) = ask(&address, "POST", &session, token, "[{\"type\":\"ping\"}]").await;
    assert_eq!((status, answer["frames"][0]["type"].as_str()), (200, Some("pong")), "{answer}");
    let before_us = chatctl::runtime::clock::now_us();
    let (status, answer) = ask(&address, "POST", &format!("{session}?wait_s=1"), token, "").await;
    assert_eq!((status, answer["frames"].as_array().map(Vec::len)), (200, Some(0)), "{answer}");
    assert!(chatctl::runtime::clock::now_us() - before_us > 900_000, "nothing came, so it waited");
    let many = json!(vec![json!({"type": "ping"}); 65]).to_string();
    let large = format!("[\"{}\"]", "x".repeat(300_000));
    let foreign = Some(bob.token.as_str());
    for (method, path, token, body, wanted) in [
        ("POST", "/poll", None, "", 401),
        ("POST", "/poll", Some("forged"), "", 401),
        ("GET", "/poll", token, "", 405),
        ("POST", session.as_str(), None, "", 401),
        ("POST", session.as_str(), foreign, "", 404),
        ("POST", "/poll/nonsense", token, "", 404),
        ("POST", "/poll/00000000-0000-0000-0000-000000000000", token, "", 404),
        ("POST", session.as_str(), token, "no json", 400),
        ("POST", session.as_str(), token, "{}", 400),
        ("POST", session.as_str(), token, many.as_str(), 400),
        ("POST", session.as_str(), token, large.as_str(), 413),
        ("POST", &format!("{session}?wait_s=soon"), token, "", 400),
    ] {
        let (status, answer) = ask(&address, method, path, token, body).await;
        assert_eq!(status, wanted, "{method} {path} {body:.40}: {answer}");
    }
    // A frame that makes no sense is answered like on a socket, and costs nothing.
    let (status, answer) = ask(&address, "POST", &session, token, "[{\"type\":\"nonsense\"}, 7]").await;
    assert_eq!((status, answer["frames"][0]["code"].as_str()), (200, Some("unknown_type")), "{answer}");
    assert_eq!(ask(&address, "DELETE", &session, token, "").await.0, 204);
    assert_eq!(ask(&address, "POST", &session, token, "").await.0, 404);
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn through_a_gateway_a_path_names_the_server_of_its_session() {
    let mut stack = Stack::start(Config { gateways: 1, ..config() }).await.expect("starts");
    let alice = signup(&stack, "alice").await;
    let (address, wanted) =
        alice.url.strip_prefix("ws://").and_then(|url| url.split_once("/ws/")).expect("a gateway's");
    let token = Some(alice.token.as_str());
    let (status, opened) = ask(address, "POST", &format!("/poll/{wanted}"), token, "").await;
    assert_eq!((status, opened["frames"][0]["server"].as_str()), (201, Some(wanted)), "{opened}");
    let session = opened["session"].as_str().expect("a session");
    let path = format!("/poll/{wanted}/{session}");
    let (status, answer) = ask(address, "POST", &format!("{path}?wait_s=0"), token, "[{\"type\":\"ping\"}]").await;
    assert_eq!((status, answer["frames"][0]["type"].as_str()), (200, Some("pong")), "{answer}");
    let other = if wanted == "chat-1" { "chat-2" } else { "chat-1" };
    for (path, token, status) in [
        (format!("/poll/{other}/{session}"), token, 404),
        (format!("/poll/chat-9/{session}"), token, 404),
        (format!("/poll/{wanted}/.."), token, 404),
        (format!("/poll/{wanted}/{session}/x"), token, 404),
        (path.clone(), None, 401),
        (format!("/poll/{wanted}"), Some("forged"), 401),
    ] {
        let (got, answer) = ask(address, "POST", &path, token, "").await;
        assert_eq!(got, status, "{path}: {answer}");
    }
    // Whoever asks for no server gets one.
    assert_eq!(ask(address, "POST", "/poll", token, "").await.0, 201);
    stack.kill(wanted).expect("it runs");
    let (status, answer) = ask(address, "POST", &path, token, "").await;
    assert_eq!((status, answer["code"].as_str()), (503, Some("unavailable")), "{answer}");
    let (status, opened) = ask(address, "POST", &format!("/poll/{wanted}"), token, "").await;
    assert_eq!((status, opened["frames"][0]["server"].as_str()), (201, Some(other)), "{opened}");
    let path = format!("/poll/{other}/{}", opened["session"].as_str().expect("a session"));
    assert_eq!(ask(address, "DELETE", &path, token, "").await.0, 204);
    assert_eq!(ask(address, "POST", &path, token, "").await.0, 404);
    stack.stop().await;
}
