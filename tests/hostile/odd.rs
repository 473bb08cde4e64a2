//! What can't be meant: texts, tokens, upgrades.

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use crate::bench::{Bench, Siege};
use crate::client::{Person, Socket, conversation, http, sync};
use crate::raw::{raw, upgraded};
use crate::wire::{connect, first, get_last, post, statuses, talk, upgrade};

/// Deeper than any stack is, within what a body may have.
const DEPTH: usize = 30_000;

pub(crate) async fn deep_json(bench: &Bench) -> Siege {
    let eve = bench.person().await;
    let lists = format!("{}{}", "[".repeat(DEPTH), "]".repeat(DEPTH));
    let objects = "{\"a\":".repeat(DEPTH / 3);
    let inside = format!("{{\"name\":{lists},\"password\":\"password\"}}");
    let body = format!("{{\"kind\":\"group\",\"members\":{lists}}}");
    for port in bench.ports.http() {
        for (path, body) in
            [("/signup", &lists), ("/signup", &inside), ("/signup", &objects), ("/conversations", &body)]
        {
            let answer = talk(port, post(path, &eve.token, body).as_bytes()).await;
            assert_eq!(statuses(&answer), [400], "{path}: {answer}");
        }
    }
    let opened = talk(&bench.ports.chat, post("/poll", &eve.token, "").as_bytes()).await;
    let session = opened.split("\"session\":\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a session");
    for frames in [&lists, &format!("[{{\"type\":\"typing\",\"conversation\":{lists}}}]")] {
        let answer = talk(&bench.ports.chat, post(&format!("/poll/{session}"), &eve.token, frames).as_bytes()).await;
        assert!(matches!(statuses(&answer)[..], [200 | 400]) && answer.contains("bad_request"), "{answer}");
    }
    let mut socket = Socket::open(&eve).await;
    for text in [&lists, &objects, &format!("{{\"type\":\"send\",\"uuid\":{lists}}}")] {
        let frame = tokio_tungstenite::tungstenite::Message::text(text.clone());
        socket.say_raw(frame).await;
        assert_eq!(socket.next_of("error").await["code"], "bad_request");
    }
    Siege { sockets: vec![socket], ..Siege::default() }
}

pub(crate) async fn texts(bench: &Bench) -> Siege {
    let eve = bench.person().await;
    for port in bench.ports.http() {
        let request = post("/signup", "", "{\"name\":\"??\",\"password\":\"password\"}");
        let broken: Vec<u8> = request.bytes().map(|byte| if byte == b'?' { 0xff } else { byte }).collect();
        assert_eq!(statuses(&talk(port, &broken).await), [400]);
        assert_eq!(
            statuses(&talk(port, b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await),
            [400]
        );
    }
    let giant = "x".repeat(60_000);
    for (path, body) in [
        ("/signup", json!({"name": giant, "password": "password"})),
        ("/signup", json!({"name": bench.name(), "password": giant})),
        ("/conversations", json!({"kind": "group", "members": [], "name": giant})),
        ("/conversations", json!({"kind": "group", "members": [giant]})),
    ] {
        let (status, answer) = http(bench, "POST", path, &eve.token, &body).await;
        assert_eq!((status, answer["code"].as_str()), (400, Some("bad_request")), "{path}: {answer:.300}");
    }
    let login = json!({"name": giant, "password": "password", "device": "phone"});
    assert_eq!(http(bench, "POST", "/login", "", &login).await.0, 401);
    let login = json!({"name": "eve", "password": "password", "device": giant});
    assert_eq!(http(bench, "POST", "/login", "", &login).await.0, 400);
    let (group, text) = (conversation(bench, &eve, "group", &[]).await, "a\u{0}b\u{202e}c\u{feff}");
    let mut socket = Socket::open(&eve).await;
    socket.send(&group, Uuid::new_v4(), text).await;
    assert_eq!(sync(bench, &eve, &group, 0).await["messages"][0]["body"], text);
    let kind = json!({"type": "send", "uuid": Uuid::new_v4(), "conversation": group, "body": "x", "kind": giant});
    socket.say(kind).await;
    assert_eq!(socket.next_of("error").await["code"], "bad_request");
    Siege { sockets: vec![socket], ..Siege::default() }
}

/// Tokens that are none, each with what is wrong with it.
fn bad_tokens(bench: &Bench, of: &Person) -> Vec<(&'static str, String)> {
    let now = chatctl::runtime::clock::unix_ms() / 1_000;
    let began = now - 60;
    let claims =
        |exp: u64| json!({"sub": of.id, "dev": "phone", "jti": Uuid::new_v4(), "iat": began, "nbf": began, "exp": exp});
    let sign = |secret: &[u8], algorithm, exp| {
        let (header, key) = (jsonwebtoken::Header::new(algorithm), jsonwebtoken::EncodingKey::from_secret(secret));
        jsonwebtoken::encode(&header, &claims(exp), &key).expect("signs")
    };
    let (secret, usual) = (bench.secret(), jsonwebtoken::Algorithm::HS256);
    let part = |value: &Value| {
        use base64::Engine;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string())
    };
    let (_, signature) = of.token.rsplit_once('.').expect("a token");
    let none = format!("{}.{}.", part(&json!({"alg": "none", "typ": "JWT"})), part(&claims(now + 60)));
    let body_of_another = format!("{}.{}.{signature}", part(&json!({"alg": "HS256"})), part(&claims(now + 60)));
    vec![
        ("expired", sign(&secret, usual, now - 30)),
        ("of another secret", sign(&[7; 32], usual, now + 60)),
        ("of an empty secret", sign(b"", usual, now + 60)),
        ("of another algorithm", sign(&secret, jsonwebtoken::Algorithm::HS512, now + 60)),
        ("without a signature", none),
        ("with a signature of another", body_of_another),
        ("cut", of.token[..of.token.len() - 9].to_owned()),
        ("too long", format!("{}{}", of.token, "A".repeat(6_000))),
        ("of nothing", "..".to_owned()),
    ]
}

pub(crate) async fn tokens(bench: &Bench) -> Siege {
    let eve = bench.person().await;
    let ports = &bench.ports;
    for (what, token) in bad_tokens(bench, &eve) {
        for port in ports.http() {
            assert_eq!(statuses(&talk(port, get_last("/me", &token).as_bytes()).await), [401], "{what} at {port}");
        }
        let upgrading = upgrade("/ws", &format!("Authorization: Bearer {token}\r\n"));
        assert_eq!(statuses(&talk(&ports.chat, upgrading.as_bytes()).await), [401], "{what}");
        assert_eq!(statuses(&talk(&ports.chat, post("/poll", &token, "").as_bytes()).await), [401], "{what}");
        let mut socket = Socket::open_bare(&eve.url).await;
        socket.say(json!({"type": "hello", "token": token})).await;
        assert_eq!(socket.close_code().await, Some(4001), "{what}");
    }
    for path in [format!("/me?token={}", eve.token), format!("/me?access_token={}", eve.token)] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        for port in ports.http() {
            assert_eq!(statuses(&talk(port, request.as_bytes()).await), [401], "{path}");
        }
    }
    // The upgrade is taken, and the connection is nobody's.
    let mut stream = upgraded(&eve.url, &format!("/ws?token={}", eve.token), None).await;
    stream.write_all(&raw(0x81, br#"{"type":"beat"}"#)).await.expect("writes");
    assert_eq!(crate::raw::close_code_of(&crate::raw::rest(&mut stream).await), Some(4001));
    Siege::default()
}

pub(crate) async fn upgrades(bench: &Bench) -> Siege {
    let ports = &bench.ports;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    for port in ports.clients() {
        let answer = talk(port, preface).await;
        assert!(!answer.contains(" 200") && !answer.contains(" 101"), "{port}: {answer}");
    }
    let h2c = "GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
               HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n";
    for port in ports.clients() {
        assert_eq!(statuses(&talk(port, h2c.as_bytes()).await), [200], "{port}");
    }
    for port in ports.http() {
        let answer = talk(port, upgrade("/ws", "Connection: close\r\n").as_bytes()).await;
        assert!(matches!(statuses(&answer)[..], [404]), "{port}: {answer}");
    }
    let offers =
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\nOrigin: null\r\nCookie: a=b\r\n";
    let mut stream = connect(&ports.chat).await;
    stream.write_all(upgrade("/ws", offers).as_bytes()).await.expect("writes");
    let answer = first(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 101") && !answer.to_ascii_lowercase().contains("extensions"), "{answer}");
    // A body that is promised and waits to be asked for.
    let mut waits = Vec::new();
    for port in ports.http() {
        let mut stream = connect(port).await;
        let expects = "POST /signup HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
                       Content-Length: 60000000\r\nExpect: 100-continue\r\n\r\n";
        stream.write_all(expects.as_bytes()).await.expect("writes");
        let answer = first(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 413") || answer.starts_with("HTTP/1.1 100"), "{port}: {answer}");
        waits.push(stream);
    }
    waits.push(stream);
    waits.into()
}
