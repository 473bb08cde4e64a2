//! What the generator's figures are worth: a client of the tests' own, of plain threads, blocking sockets and absolute sleeps,
//! beside `chatctl load` on the same server at the same time.
//!
//! It prints and judges nothing, since a figure of time is one of this machine in this minute:
//!
//! ```text
//! cargo test --release --test stack -- --ignored --nocapture precision
//! ```

use std::io::{Read, Write};
use std::net::TcpStream;
use std::num::NonZeroU64;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use chatctl::loadgen::result::RunResult;
use chatctl::runtime::Tasks;
use chatctl::telemetry::human::human_us;
use chatctl::telemetry::{Latency, LatencyPath};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::time::{ClockId, Timespec};
use serde_json::{Value, json};

use crate::client::{Person, config, conversation, signup};

/// Pairs of a sender and a recipient.
const PAIRS: usize = 40;

/// Messages per second of each of the two generators.
const RATE: f64 = 300.0;

/// How long both send.
const SECONDS: u64 = 20;

/// Time between two beats of a socket.
const BEAT: Duration = Duration::from_secs(5);

const PREFIX: &str = "precision ";

fn now_ns() -> u64 {
    let time = rustix::time::clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn sleep_until_ns(at_ns: u64) {
    let at = Timespec { tv_sec: (at_ns / 1_000_000_000) as i64, tv_nsec: (at_ns % 1_000_000_000) as i64 };
    while rustix::thread::clock_nanosleep_absolute(ClockId::Monotonic, &at).is_err() {}
}

/// A WebSocket, as little of it as it takes.
fn open(person: &Person) -> TcpStream {
    let (authority, path) = person.url.strip_prefix("ws://").and_then(|url| url.split_once('/')).expect("an address");
    let mut stream = TcpStream::connect(authority).expect("connects");
    stream.set_nodelay(true).expect("can be set");
    let request = format!(
        "GET /{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: chatctl.v1\r\nAuthorization: Bearer {}\r\n\r\n",
        person.token
    );
    stream.write_all(request.as_bytes()).expect("writes");
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("an answer");
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    stream
}

/// Writes a text frame, with a mask that changes nothing.
fn write(mut stream: &TcpStream, text: &str) {
    let mut frame = vec![0x81];
    if let Ok(short @ ..=125) = u8::try_from(text.len()) {
        frame.push(0x80 | short);
    } else {
        frame.push(0x80 | 0x7e);
        frame.extend_from_slice(&u16::try_from(text.len()).expect("short").to_be_bytes());
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(text.as_bytes());
    stream.write_all(&frame).expect("writes");
}

/// Reads a frame; its text, and when it was there. `None` at the end.
fn read(mut stream: &TcpStream) -> Option<(String, u64)> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).ok()?;
    let length = match head[1] {
        126 => {
            let mut long = [0; 2];
            stream.read_exact(&mut long).ok()?;
            usize::from(u16::from_be_bytes(long))
        }
        short => usize::from(short),
    };
    let mut text = vec![0; length];
    stream.read_exact(&mut text).ok()?;
    let at_ns = now_ns();
    Some((String::from_utf8_lossy(&text).into_owned(), at_ns))
}

/// What a reader saw: (kind, number of the message, when).
type Heard = (&'static str, usize, u64);

/// Reads a socket to its end.
fn listen(stream: &TcpStream, heard: &mpsc::SyncSender<Heard>) {
    while let Some((text, at_ns)) = read(stream) {
        let Ok(frame) = serde_json::from_str::<Value>(&text) else { continue };
        let number = match frame["type"].as_str() {
            Some("ack") => {
                let uuid: uuid::Uuid = frame["uuid"].as_str().and_then(|text| text.parse().ok()).expect("a uuid");
                ("ack", (uuid.as_u128() & 0xffff_ffff) as usize)
            }
            Some("message") => {
                let body = frame["body"].as_str().expect("a body");
                (
                    "delivery",
                    body.strip_prefix(PREFIX).and_then(|n| n.trim_end_matches('.').parse().ok()).expect("ours"),
                )
            }
            _ => continue,
        };
        if heard.send((number.0, number.1, at_ns)).is_err() {
            return;
        }
    }
}

/// Sends at its times; the times at which messages were due.
fn send(pairs: &[(TcpStream, String)], listeners: &[TcpStream]) -> Vec<u64> {
    let slack = NonZeroU64::new(1_000).expect("is not 0");
    rustix::thread::set_current_timer_slack(Some(slack)).expect("can be set");
    let mut rng = StdRng::seed_from_u64(7);
    let start_ns = now_ns() + 1_000_000;
    let mut due_ns = start_ns;
    let mut due = Vec::new();
    let mut beat_ns = start_ns;
    let mut lag = Latency::default();
    while due_ns < start_ns + SECONDS * 1_000_000_000 {
        due_ns += (-(1.0 - rng.random::<f64>()).ln() / RATE * 1e9) as u64;
        let number = due.len();
        // Whoever it falls to, as in the scenario: a server merges what comes for one connection in the same moment.
        let (stream, talk) = &pairs[rng.random_range(0..pairs.len())];
        let uuid = uuid::Uuid::from_u128(0x1111_2222_3333_4444_8555_6666_0000_0000 | number as u128);
        // As long as those of the scenario, about.
        let body = format!("{PREFIX}{number}{}", ".".repeat(110));
        let text =
            json!({"type": "send", "uuid": uuid, "conversation": talk, "kind": "text", "body": body}).to_string();
        sleep_until_ns(due_ns);
        lag.record_us((now_ns() - due_ns) / 1_000);
        write(stream, &text);
        due.push(due_ns);
        if now_ns() > beat_ns + BEAT.as_nanos() as u64 {
            beat_ns = now_ns();
            for stream in pairs.iter().map(|(stream, _)| stream).chain(listeners) {
                write(stream, r#"{"type":"beat"}"#);
            }
        }
    }
    println!(
        "lag of the own client: p50 {}, p99 {}",
        human_us(lag.percentile_us(50.0)),
        human_us(lag.percentile_us(99.0))
    );
    due
}

/// Latencies of ACKs and deliveries of the tests' own client, from the due time.
fn measure(people: &[(Person, Person, String)]) -> (Latency, Latency) {
    let (heard, hears) = mpsc::sync_channel(1 << 16);
    let pairs: Vec<(TcpStream, String)> = people.iter().map(|(from, _, talk)| (open(from), talk.clone())).collect();
    let listeners: Vec<TcpStream> = people.iter().map(|(_, to, _)| open(to)).collect();
    let all = || pairs.iter().map(|(stream, _)| stream).chain(&listeners);
    let (mut acks, mut deliveries) = (Latency::default(), Latency::default());
    std::thread::scope(|scope| {
        for stream in all() {
            let heard = heard.clone();
            scope.spawn(move || listen(stream, &heard));
        }
        drop(heard);
        let due = send(&pairs, &listeners);
        std::thread::sleep(Duration::from_secs(1));
        for stream in all() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        for (kind, number, at_ns) in hears {
            let us = at_ns.saturating_sub(due[number]) / 1_000;
            if kind == "ack" { acks.record_us(us) } else { deliveries.record_us(us) }
        }
        assert_eq!((acks.count(), deliveries.count()), (due.len() as u64, due.len() as u64), "nothing is lost");
    });
    (acks, deliveries)
}

/// Starts `chatctl load` against a stack; its result once it has ended.
fn load(url: &str, folder: &std::path::Path) -> std::process::Child {
    let scenario = folder.join("precision.yaml");
    let text = format!(
        "{{name: precision, population: {{users: {}, direct_per_user: 2}}, behaviors: {{one-to-one: 1}}, \
         connect_over: 1s, phases: [{{phase: warm-up, duration: 2s, rate: {RATE}}}, \
         {{phase: steady, duration: {SECONDS}s, rate: {RATE}}}], thresholds: ['ack_ms.p99 < 1000']}}",
        2 * PAIRS
    );
    std::fs::write(&scenario, text).expect("writes");
    Command::new(env!("CARGO_BIN_EXE_chatctl"))
        .args(["load", scenario.to_str().expect("text"), "--target", url, "--ui", "none", "--out"])
        .arg(folder)
        .stdout(Stdio::inherit())
        .spawn()
        .expect("starts")
}

#[ignore = "measures: run it alone, on a quiet machine, with --release"]
#[tokio::test(flavor = "multi_thread")]
async fn precision_of_the_generator_beside_a_client_of_plain_threads() {
    let stack = chatctl::stack::Stack::start(config()).await.expect("starts");
    let mut people = Vec::new();
    for n in 0..PAIRS {
        let (from, to) = (signup(&stack, &format!("from-{n}")).await, signup(&stack, &format!("to-{n}")).await);
        let talk = conversation(&stack, &from, "direct", &[&to]).await;
        people.push((from, to, talk));
    }
    let people = Arc::new(people);
    let folder = tempfile::tempdir().expect("a folder");
    let mut child = load(&stack.api_url().expect("has an API"), folder.path());
    // Accounts are made, everybody connects.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let own = Tasks::block(move || measure(&people)).await.expect("measures");
    let ended = Tasks::block(move || child.wait()).await.expect("waits").expect("ends");
    let result: RunResult = chatctl::report::read(folder.path()).expect("a result");
    println!("\n{:<10}{:>14}{:>14}{:>10}", "", "own client", "chatctl", "apart");
    for (path, own) in [(LatencyPath::Ack, &own.0), (LatencyPath::Delivery, &own.1)] {
        for percent in [50.0, 99.0] {
            let (own_us, our_us) = (own.percentile_us(percent), result.histograms[path].percentile_us(percent));
            let apart = (our_us as f64 / own_us as f64 - 1.0) * 100.0;
            println!(
                "{:<10}{:>14}{:>14}{apart:>+8.1} %",
                format!("{path} p{percent}"),
                human_us(own_us),
                human_us(our_us)
            );
        }
    }
    let lag = result.latency[LatencyPath::SendLag];
    println!("lag of chatctl: p50 {}, p99 {} over {} messages", human_us(lag.p50_us), human_us(lag.p99_us), lag.count);
    assert!(ended.success(), "{:?}", result.reasons);
    stack.stop().await;
}
