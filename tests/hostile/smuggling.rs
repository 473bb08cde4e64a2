//! Requests that two servers might read differently. A second request inside of one would be answered with 200, or with
//! the figures of the stack; and a connection between gateway and API that is out of step would give somebody else's
//! answer to the next one who asks.

use serde_json::Value;

use crate::bench::{Bench, Siege};
use crate::client::http;
use crate::wire::{get_last, statuses, talk};

/// What is hidden in requests.
const HIDDEN: &str = "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n";

/// The head of a request with a body that is one object of JSON.
const POST: &str = "POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";

/// Sends a request to each port that speaks HTTP: nothing hidden in it is answered, and at most one thing is.
async fn is_one_request(bench: &Bench, what: &str, request: &str) {
    let poll = request.replacen("POST /login", "POST /poll", 1);
    let ports = &bench.ports;
    for (port, request) in
        [(&ports.gateway, request), (&ports.api, request), (&ports.chat, &poll), (&ports.tunnels, &poll)]
    {
        let answer = talk(port, request.as_bytes()).await;
        let answered = statuses(&answer);
        assert!(!answered.contains(&200), "{what} at {port}: {answer}");
        let refused = answered.iter().filter(|status| **status >= 400).count();
        assert!(refused <= 1, "{what} at {port}: {answer}");
        in_step(bench).await;
    }
}

/// Asserts that whoever asks gets the own answer.
async fn in_step(bench: &Bench) {
    let person = bench.sound_user();
    for _ in 0..2 {
        let (status, me) = http(bench, "GET", "/me", &person.token, &Value::Null).await;
        assert_eq!((status, me["user"].as_str()), (200, Some(person.id.as_str())), "{me}");
    }
}

pub(crate) async fn lengths(bench: &Bench) -> Siege {
    let body = format!("{{}}{HIDDEN}");
    let whole = body.len();
    for (what, request) in [
        ("two lengths", format!("{POST}Content-Length: 2\r\nContent-Length: {whole}\r\n\r\n{body}")),
        ("two lengths, the larger first", format!("{POST}Content-Length: {whole}\r\nContent-Length: 2\r\n\r\n{body}")),
        ("a list of lengths", format!("{POST}Content-Length: 2, {whole}\r\n\r\n{body}")),
        ("a length with a sign", format!("{POST}Content-Length: +2\r\n\r\n{body}")),
        ("a length in hexadecimal", format!("{POST}Content-Length: 0x2\r\n\r\n{body}")),
        ("a length that is none", format!("{POST}Content-Length: two\r\n\r\n{body}")),
        ("a length below zero", format!("{POST}Content-Length: -1\r\n\r\n{body}")),
        ("a length that is too long", format!("{POST}Content-Length: 18446744073709551618\r\n\r\n{body}")),
    ] {
        is_one_request(bench, what, &request).await;
    }
    // The length counts for one of two servers, the chunks for the other.
    let hidden = format!("0\r\n\r\n{HIDDEN}");
    for (what, lines) in [
        ("length, then chunks", format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", hidden.len())),
        ("chunks, then length", format!("Transfer-Encoding: chunked\r\nContent-Length: {}\r\n", hidden.len())),
    ] {
        both_lengths(bench, what, &format!("{POST}{lines}Connection: close\r\n\r\n{hidden}")).await;
    }
    for (what, line) in [
        ("chunked twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
        ("chunked, not last", "Transfer-Encoding: chunked, gzip\r\n"),
        ("chunked, misspelt", "Transfer-Encoding: xchunked\r\n"),
    ] {
        is_one_request(bench, what, &format!("{POST}{line}\r\n{hidden}")).await;
    }
    Siege::default()
}

/// A request with a length and chunks may be read by its chunks, as long as nothing behind it is read as another one.
/// Source: RFC 9112, 6.1.
async fn both_lengths(bench: &Bench, what: &str, request: &str) {
    for port in bench.ports.http() {
        let answer = talk(port, request.as_bytes()).await;
        assert!(!statuses(&answer).contains(&200), "{what} at {port}: {answer}");
        in_step(bench).await;
    }
}

pub(crate) async fn lines(bench: &Bench) -> Siege {
    for (what, head) in [
        ("a folded line", "X-Folded: a\r\n b: c\r\n"),
        ("a folded length", "Content-Length:\r\n 60\r\n"),
        ("a space before the colon", "Content-Length : 60\r\n"),
        ("a line without a colon", "Content-Length 60\r\n"),
        ("a name with a NUL", "X-\u{0}: 1\r\n"),
        ("a value with a NUL", "X-Nul: a\u{0}b\r\n"),
        ("a bare carriage return", "X-Bare: a\rContent-Length: 60\r\n"),
    ] {
        let request = format!("{POST}{head}Connection: close\r\n\r\n{{}}{HIDDEN}");
        is_one_request(bench, what, &request).await;
    }
    // Line ends may be bare: it is one request all the same, whose answer is the last. Source: RFC 9112, 2.2.
    for port in bench.ports.clients() {
        let bare = "GET /health/live HTTP/1.1\nHost: x\nConnection: close\n\nGET /metrics HTTP/1.1\nHost: x\n\n";
        let answer = talk(port, bare.as_bytes()).await;
        assert!(matches!(statuses(&answer)[..], [200 | 400]) && !answer.contains("chatctl_"), "{port}: {answer}");
    }
    Siege::default()
}

pub(crate) async fn chunks(bench: &Bench) -> Siege {
    let chunked = |body: &str| format!("{POST}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n{body}");
    let extension = "x".repeat(1 << 20);
    for (what, body) in [
        ("an extension of 1 MiB", format!("2;{extension}\r\n{{}}\r\n0\r\n\r\n")),
        ("many extensions", format!("{}0\r\n\r\n", format!("1;{}\r\n \r\n", "x".repeat(1_000)).repeat(1_000))),
        ("trailers of 1 MiB", format!("2\r\n{{}}\r\n0\r\nX-Trailer: {extension}\r\n\r\n")),
        ("a size that is none", format!("zz\r\n{{}}\r\n0\r\n\r\n{HIDDEN}")),
        ("a size with a sign", format!("+2\r\n{{}}\r\n0\r\n\r\n{HIDDEN}")),
        ("a size of 2^64", format!("10000000000000002\r\n{{}}\r\n0\r\n\r\n{HIDDEN}")),
        ("a chunk without its end", format!("2\r\n{{}}0\r\n\r\n{HIDDEN}")),
    ] {
        is_one_request(bench, what, &chunked(&body)).await;
    }
    Siege::default()
}

pub(crate) async fn targets(bench: &Bench) -> Siege {
    let ports = &bench.ports;
    for (target, wanted) in [
        ("GET http://192.0.2.1/health/live", &[200, 400][..]),
        ("GET http://192.0.2.1:81/nowhere", &[400, 404]),
        ("GET //192.0.2.1/me", &[400, 404]),
        ("GET *", &[400, 404, 405]),
        ("OPTIONS *", &[400, 404, 405]),
        ("CONNECT 192.0.2.1:443", &[400, 404, 405]),
        ("GET /health/live/../../metrics", &[404]),
        ("GET /%2e%2e/%2e%2e/etc/passwd", &[404]),
    ] {
        for port in ports.clients() {
            let request = format!("{target} HTTP/1.1\r\nHost: 192.0.2.1\r\nConnection: close\r\n\r\n");
            let answer = talk(port, request.as_bytes()).await;
            assert!(
                matches!(statuses(&answer)[..], [status] if wanted.contains(&status)),
                "{target} at {port}: {answer}"
            );
            in_step(bench).await;
        }
    }
    // What a client says of its own address, and of a gateway, is nobody's word.
    let forged = "X-Forwarded-For: 192.0.2.1\r\nx-chatctl-client: 192.0.2.1 AAAA\r\n";
    for port in ports.http() {
        let request = get_last("/me", &bench.sound_user().token).replacen("\r\n", &format!("\r\n{forged}"), 1);
        assert_eq!(statuses(&talk(port, request.as_bytes()).await), [200]);
    }
    Siege::default()
}
