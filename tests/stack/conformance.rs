//! WebSocket conformance and hostile input, byte by byte.

use std::time::Duration;

use chatctl::protocol::websocket::{close_frame, text_frame};
use chatctl::stack::Stack;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::client::{Person, Socket, config, http, signup, start};
use crate::raw::{MASK, authority, close_code_of, raw, rest, upgraded};

async fn echo_stack() -> (Stack, Person) {
    let mut config = config();
    config.chat.echo = true;
    config.chat.echo_message_bytes_max = 1 << 20;
    let stack = Stack::start(config).await.expect("starts");
    let person = signup(&stack, "alice").await;
    (stack, person)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_violation_is_answered_with_its_code_before_the_socket_ends() {
    let (stack, alice) = echo_stack().await;
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        ("reserved bit", raw(0xc1, b"x"), 1002),
        ("reserved opcode 3", raw(0x83, b"x"), 1002),
        ("reserved opcode 11", raw(0x8b, b"x"), 1002),
        ("fragmented ping", raw(0x09, b"x"), 1002),
        ("long ping", raw(0x89, &[b'x'; 126]), 1002),
        ("lone continuation", raw(0x80, b"x"), 1002),
        ("text inside a fragmented text", [raw(0x01, b"a"), raw(0x81, b"b")].concat(), 1002),
        ("unmasked", text_frame("x", None), 1002),
        ("close with one byte", raw(0x88, &[3]), 1002),
        ("close 1006", raw(0x88, &1006_u16.to_be_bytes()), 1002),
        ("invalid text", raw(0x81, &[0xce, 0xba, 0xff]), 1007),
        ("text broken over fragments", [raw(0x01, &[0xce]), raw(0x80, &[0xff])].concat(), 1007),
    ];
    for path in ["/echo", "/ws"] {
        for (name, bytes, code) in &cases {
            let mut stream = upgraded(&alice.url, path, Some(&alice.token)).await;
            stream.write_all(bytes).await.expect("writes");
            // More that is on its way must not turn the close into a reset.
            let _ = stream.write_all(&raw(0x81, &[b'y'; 1000])).await;
            assert_eq!(close_code_of(&rest(&mut stream).await), Some(*code), "{name} on {path}");
        }
    }
    let mut stream = upgraded(&alice.url, "/ws", Some(&alice.token)).await;
    stream.write_all(&raw(0x81, &vec![b'x'; 65_535])).await.expect("writes");
    stream.write_all(&[0x81, 0xff, 0, 0, 0, 0, 0, 1, 0, 1, 1, 2, 3, 4]).await.expect("writes");
    assert_eq!(close_code_of(&rest(&mut stream).await), Some(1009), "65,537 bytes");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_echo_echoes_fragments_pings_and_closes() {
    let (stack, alice) = echo_stack().await;
    let mut stream = upgraded(&alice.url, "/echo", None).await;
    let talk = [raw(0x01, "κό".as_bytes()), raw(0x89, b"ping"), raw(0x00, b""), raw(0x80, "σμε".as_bytes())].concat();
    for byte in talk {
        stream.write_all(&[byte]).await.expect("writes one byte");
    }
    stream.write_all(&raw(0x82, &[0, 255, 7])).await.expect("writes");
    stream.write_all(&close_frame(Some(3_500), "done", Some(MASK))).await.expect("writes");
    let expected = [
        vec![0x8a, 4, b'p', b'i', b'n', b'g'],
        text_frame("κόσμε", None),
        vec![0x82, 3, 0, 255, 7],
        close_frame(Some(3_500), "", None),
    ]
    .concat();
    assert_eq!(rest(&mut stream).await, expected);
    let mut socket = Socket::open_bare(&alice.url.replace("/ws", "/echo")).await;
    let big = "x".repeat(900_000);
    socket.say_raw(Message::text(format!("\"{big}\""))).await;
    assert_eq!(socket.next().await.as_str().map(str::len), Some(900_000));
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_echo_is_off_unless_configured() {
    let stack = start().await;
    let alice = signup(&stack, "alice").await;
    let answer = plain(&alice.url, "GET /echo HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    stack.stop().await;
}

/// What the chat port answers to some bytes.
async fn plain(url: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(authority(url)).await.expect("connects");
    stream.write_all(request.as_bytes()).await.expect("writes");
    String::from_utf8_lossy(&rest(&mut stream).await).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_upgrades_get_an_http_answer() {
    let stack = start().await;
    let alice = signup(&stack, "alice").await;
    let ws = "Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
    let version = "Sec-WebSocket-Version: 13\r\n";
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let huge = "X-Filler: ".to_owned() + &"a".repeat(9_000);
    let get = |headers: &str| format!("GET /ws HTTP/1.1\r\n{headers}\r\n");
    let cases = [
        (get("Host: x\r\n"), "426"),
        (format!("POST /ws HTTP/1.1\r\n{ws}{version}{key}\r\n"), "405"),
        (get(&format!("{ws}{key}Sec-WebSocket-Version: 8\r\n")), "426"),
        (get(&format!("{ws}{key}")), "426"),
        (get(&format!("{ws}{version}")), "400"),
        (get(&format!("{ws}{version}{key}{key}")), "400"),
        (get(&format!("{ws}{version}Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAAAA\r\n")), "400"),
        (get(&format!("Host: y\r\n{ws}{version}{key}")), "400"),
        (get(&format!("{}{version}{key}", ws.replace("Host: x\r\n", ""))), "400"),
        (get(&format!("{ws}{version}{key}")).replace("HTTP/1.1", "HTTP/1.0"), "505"),
        (get(&format!("{ws}{version}{key}Sec-WebSocket-Protocol: soap\r\n")), "400"),
        (get(&format!("{ws}{version}{key}Authorization: Bearer forged\r\n")), "401"),
        (get(&format!("{ws}{version}{key}Authorization: Basic x\r\n")), "401"),
        (format!("GET /ws HTTP/1.1\r\n{huge}\r\n\r\n"), "431"),
        ("\u{1}\u{2}\u{3} nonsense\r\n\r\n".to_owned(), "400"),
        ("GET /health/live HTTP/1.1\r\n\r\n".to_owned(), "200"),
        ("GET /metrics HTTP/1.1\r\n\r\n".to_owned(), "200"),
    ];
    for (request, status) in cases {
        let answer = plain(&alice.url, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request:?} got {answer:?}");
        assert_eq!(answer.contains("\r\nUpgrade: websocket\r\n"), status == "426", "{answer:?}");
    }
    let other_version = get(&format!("{ws}{key}Sec-WebSocket-Version: 8\r\n"));
    assert!(plain(&alice.url, &other_version).await.contains("\r\nSec-WebSocket-Version: 13\r\n"));
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_on_several_lines_are_read_as_one_list() {
    let stack = start().await;
    let alice = signup(&stack, "alice").await;
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: soap\r\nSec-WebSocket-Protocol: chatctl.v1\r\nAuthorization: Bearer {}\r\n\r\n",
        alice.token
    );
    let mut stream = TcpStream::connect(authority(&alice.url)).await.expect("connects");
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("an answer"));
    }
    let head = String::from_utf8(head).expect("text");
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("Sec-WebSocket-Protocol: chatctl.v1"), "{head}");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_slow_to_say_who_it_is_is_cut() {
    let mut config = config();
    config.chat.handshake_timeout = Duration::from_millis(600);
    let stack = Stack::start(config).await.expect("starts");
    let alice = signup(&stack, "alice").await;
    let answer = plain(&alice.url, "GET /ws HTTP/1.1\r\nHost:").await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    let mut silent = Socket::open_bare(&alice.url).await;
    assert_eq!(silent.close_code().await, Some(4002));
    let mut rude = Socket::open_bare(&alice.url).await;
    rude.say(json!({"type": "beat"})).await;
    assert_eq!(rude.next().await["code"], "unauthorized");
    assert_eq!(rude.close_code().await, Some(4001));
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_cut_and_holds_up_nobody() {
    let mut config = config();
    config.chat.outgoing_bytes_max = 64 * 1024;
    let stack = Stack::start(config).await.expect("starts");
    let (alice, bob, carol) =
        (signup(&stack, "alice").await, signup(&stack, "bob").await, signup(&stack, "carol").await);
    let group = crate::client::conversation(&stack, &alice, "group", &[&bob, &carol]).await;
    let (mut a, mut b) = (Socket::open(&alice).await, Socket::open(&bob).await);
    // Upgraded, and never read again.
    let _deaf = upgraded(&carol.url, "/ws", Some(&carol.token)).await;
    let body = "x".repeat(60_000);
    let cut = async {
        loop {
            let (_, text) = metrics(&stack).await;
            if text.lines().any(|l| l.starts_with("chatctl_slow_consumers_total") && !l.ends_with(" 0")) {
                return;
            }
            a.send(&group, uuid::Uuid::new_v4(), &body).await;
            assert_eq!(b.next_of("message").await["body"].as_str().map(str::len), Some(60_000));
        }
    };
    tokio::time::timeout(Duration::from_mins(1), cut).await.expect("the deaf client is cut");
    stack.stop().await;
}

async fn metrics(stack: &Stack) -> (u16, String) {
    let url = stack.api_url().expect("there is an API");
    let address = url.strip_prefix("http://").expect("plain HTTP").to_owned();
    let mut stream = TcpStream::connect(&address).await.expect("connects");
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("writes");
    let text = String::from_utf8_lossy(&rest(&mut stream).await).into_owned();
    (200, text)
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_get_a_json_error_and_never_a_5xx() {
    let stack = start().await;
    let alice = signup(&stack, "alice").await;
    let long = "x".repeat(300);
    let cases = [
        ("POST", "/signup", json!({"name": "", "password": "password"}), 400),
        ("POST", "/signup", json!({"name": "a\nb", "password": "password"}), 400),
        ("POST", "/signup", json!({"name": "bob", "password": "short"}), 400),
        ("POST", "/signup", json!({"name": long, "password": "password"}), 400),
        ("POST", "/signup", json!({"name": "alice", "password": "password"}), 409),
        ("POST", "/signup", json!({"name": "bob"}), 400),
        ("POST", "/signup", json!([1, 2]), 400),
        ("POST", "/login", json!({"name": "alice", "password": "wrong one", "device": "phone"}), 401),
        ("POST", "/login", json!({"name": "nobody", "password": "wrong one", "device": "phone"}), 401),
        ("POST", "/login", json!({"name": "alice", "password": "password", "device": "my phone"}), 400),
        ("POST", "/friends", json!({"user": "u999999"}), 404),
        ("POST", "/friends", json!({"user": alice.id}), 400),
        ("POST", "/conversations", json!({"kind": "direct", "members": []}), 400),
        ("POST", "/conversations", json!({"kind": "group", "members": ["u999999"]}), 404),
        ("POST", "/conversations", json!({"kind": "chorus"}), 400),
        ("GET", "/messages/sync", Value::Null, 400),
        ("GET", "/messages/sync?conversation_id=c1&limit=0", Value::Null, 400),
        ("GET", "/messages/sync?conversation_id=c1&after_message_id=-1", Value::Null, 400),
        ("GET", "/messages/sync?conversation_id=u1", Value::Null, 400),
        ("GET", "/messages/sync?conversation_id=c1", Value::Null, 403),
        ("GET", "/conversations/c99", Value::Null, 403),
        ("GET", "/conversations/nonsense", Value::Null, 400),
        ("GET", "/users/u99", Value::Null, 404),
        ("GET", "/nowhere", Value::Null, 404),
        ("DELETE", "/me", Value::Null, 405),
        ("PATCH", "/me", json!({"display_name": "x".repeat(70_000)}), 413),
    ];
    for (method, path, body, status) in cases {
        let (got, answer) = http(&stack, method, path, &alice.token, &body).await;
        assert_eq!(got, status, "{method} {path} {answer}");
        assert!(answer["code"].is_string() && answer["message"].is_string(), "{method} {path} {answer}");
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_of_one_name_are_limited() {
    let mut config = config();
    config.api.logins_per_second = 1;
    let stack = Stack::start(config).await.expect("starts");
    let wrong = json!({"name": "alice", "password": "guess again", "device": "phone"});
    let mut statuses = Vec::new();
    for _ in 0..12 {
        statuses.push(http(&stack, "POST", "/login", "", &wrong).await.0);
    }
    assert_eq!(statuses.iter().filter(|s| **s == 401).count(), 10, "{statuses:?}");
    assert_eq!(statuses.last(), Some(&429));
    stack.stop().await;
}
