//! Much of everything.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

use crate::bench::{Bench, Siege};
use crate::client::{Person, Socket, conversation, crowd, http, login};
use crate::raw::{close_code_of, raw, rest, upgraded};
use crate::wire::{connect, connect_deaf, connect_from, first, get, many, post, statuses, talk, upgrade};

/// More than a server has half-open connections at once.
const HALF_OPEN: usize = 600;

/// More than a server has places for connections of HTTP.
const KEPT: usize = 250;

/// Between two requests on each of them: far less than a connection is kept for.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// Users of a flood.
const USERS: usize = 8;

/// Between two packets of a flood: what is tested is what it costs others, not how busy a machine gets.
const PACKET_INTERVAL: Duration = Duration::from_millis(5);

/// What strangers send.
const BODY_BYTES: usize = 63 << 20;

pub(crate) async fn connects(bench: &Bench) -> Siege {
    let ports = &bench.ports;
    let mut streams = Vec::new();
    for port in [&ports.tunnels, &ports.chat] {
        // Half of them begin, and some take the upgrade and never say who they are.
        streams.extend(many(port, HALF_OPEN / 2, b"").await);
        streams.extend(many(port, HALF_OPEN / 2, b"GET /ws HTTP/1.1\r\nHost: x\r\n").await);
    }
    for _ in 0..40 {
        let mut stream = connect(&ports.chat).await;
        stream.write_all(upgrade("/ws", "").as_bytes()).await.expect("writes");
        let answer = first(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
        streams.push(stream);
    }
    streams.into()
}

/// Asks for little on each of many connections, again and again; those that are cut come again.
async fn asking(port: String) {
    let request = get("/nothing", "");
    let mut streams = many(&port, KEPT, request.as_bytes()).await;
    loop {
        tokio::time::sleep(ASK_INTERVAL).await;
        for stream in &mut streams {
            if stream.write_all(request.as_bytes()).await.is_err() {
                *stream = connect(&port).await;
                let _ = stream.write_all(request.as_bytes()).await;
            }
        }
    }
}

pub(crate) async fn kept(bench: &Bench) -> Siege {
    let siege = Siege::default();
    for port in bench.ports.http() {
        siege.tasks.spawn(asking(port.to_owned()));
    }
    // They are there before others are.
    tokio::time::sleep(ASK_INTERVAL).await;
    for _ in 0..4 {
        bench.others_are_served().await;
        tokio::time::sleep(ASK_INTERVAL).await;
    }
    siege
}

pub(crate) async fn logins(bench: &Bench) -> Siege {
    let (guessed, other) = (bench.name(), bench.name());
    for name in [&guessed, &other] {
        let account = json!({"name": name, "password": "password"});
        assert_eq!(http(bench, "POST", "/signup", "", &account).await.0, 201);
    }
    let siege = Siege::default();
    for n in 0..16_u8 {
        let ports = bench.ports.http();
        let (port, guessed) = (ports[usize::from(n) % ports.len()].to_owned(), guessed.clone());
        let source = IpAddr::from([127, 0, 0, 66 + n % 4]);
        siege.tasks.spawn(async move {
            for tries in 0_u64.. {
                let name = if tries % 2 == 0 { guessed.clone() } else { format!("nobody-{n}-{tries}") };
                let wrong = json!({"name": name, "password": format!("wrong-{tries}"), "device": "phone"});
                let Ok(mut stream) = connect_from(source, &port).await else { continue };
                let _ = stream.write_all(post("/login", "", &wrong.to_string()).as_bytes()).await;
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer).await;
            }
        });
    }
    for n in 0..5 {
        bench.others_are_served().await;
        login(bench, &other, &format!("device-{n}")).await;
    }
    let wrong = json!({"name": guessed, "password": "wrong-again", "device": "phone"});
    let (mut statuses, guesses) = (Vec::new(), 2_000);
    while statuses.len() < guesses && !statuses.contains(&429) {
        statuses.push(http(bench, "POST", "/login", "", &wrong).await.0);
    }
    assert!(statuses.contains(&429), "{guesses} guesses were taken");
    siege
}

/// Users who each do something to a socket of theirs, again and again.
fn again_and_again<F>(siege: &Siege, people: &[Person], attack: fn(Person) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    for person in people {
        let Person { id, token, url } = person;
        let (id, token, url) = (id.clone(), token.clone(), url.clone());
        siege.tasks.spawn(async move {
            loop {
                attack(Person { id: id.clone(), token: token.clone(), url: url.clone() }).await;
            }
        });
    }
}

async fn many_frames(person: Person) -> Vec<u8> {
    let stream = upgraded(&person.url, "/ws", Some(&person.token)).await;
    let (mut read, mut write) = stream.into_split();
    let frames = raw(0x81, br#"{"type":"ping"}"#).repeat(3_000);
    let mut answer = Vec::new();
    let writing = async { write.write_all(&frames).await };
    let reading = async { read.read_to_end(&mut answer).await };
    let _ = tokio::join!(writing, reading);
    answer
}

pub(crate) async fn frames(bench: &Bench) -> Siege {
    let people = bench.crowd(USERS).await;
    let siege = Siege::default();
    let one = bench.person().await;
    assert_eq!(close_code_of(&many_frames(one).await), Some(4008));
    again_and_again(&siege, &people, |person| async move { drop(many_frames(person).await) });
    for _ in 0..3 {
        bench.others_are_served().await;
    }
    siege
}

/// Pings until the server takes no more.
async fn many_pings(person: Person) {
    let mut stream = connect_deaf(crate::raw::authority(&person.url)).await;
    let request = upgrade("/ws", &format!("Authorization: Bearer {}\r\n", person.token));
    let pings = raw(0x89, &[b'p'; 125]).repeat(500);
    let mut going_on = stream.write_all(request.as_bytes()).await;
    while going_on.is_ok() {
        going_on = stream.write_all(&pings).await;
        tokio::time::sleep(PACKET_INTERVAL).await;
    }
}

pub(crate) async fn pings(bench: &Bench) -> Siege {
    let people = bench.crowd(USERS).await;
    let siege = Siege::default();
    many_pings(bench.person().await).await;
    again_and_again(&siege, &people, many_pings);
    for _ in 0..3 {
        bench.others_are_served().await;
    }
    siege
}

pub(crate) async fn large_frames(bench: &Bench) -> Siege {
    let mut streams = Vec::new();
    for person in bench.crowd(40).await {
        let mut stream = upgraded(&person.url, "/ws", Some(&person.token)).await;
        let mut frame = vec![0x81, 0xff];
        frame.extend_from_slice(&(4_u64 << 30).to_be_bytes());
        frame.resize(frame.len() + (64 << 10), b'x');
        let _ = stream.write_all(&frame).await;
        assert_eq!(close_code_of(&rest(&mut stream).await), Some(1009));
        streams.push(stream);
    }
    streams.into()
}

/// Empty fragments without end.
async fn empty_fragments(person: Person) {
    let mut stream = upgraded(&person.url, "/ws", Some(&person.token)).await;
    let empty = raw(0x00, b"").repeat(1_000);
    let mut going_on = stream.write_all(&raw(0x01, b"")).await;
    while going_on.is_ok() {
        going_on = stream.write_all(&empty).await;
        tokio::time::sleep(PACKET_INTERVAL).await;
    }
}

pub(crate) async fn fragments(bench: &Bench) -> Siege {
    for person in bench.crowd(40).await {
        let mut stream = upgraded(&person.url, "/ws", Some(&person.token)).await;
        let more = raw(0x00, &[b'x'; 1_000]).repeat(70);
        let _ = stream.write_all(&[raw(0x01, b"x"), more].concat()).await;
        assert_eq!(close_code_of(&rest(&mut stream).await), Some(1009));
    }
    let siege = Siege::default();
    again_and_again(&siege, &bench.crowd(4).await, empty_fragments);
    for _ in 0..3 {
        bench.others_are_served().await;
    }
    siege
}

pub(crate) async fn bodies(bench: &Bench) -> Siege {
    let mut streams = Vec::new();
    for port in bench.ports.http() {
        for _ in 0..16 {
            let mut stream = connect(port).await;
            let request = format!(
                "POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
                 Content-Length: {BODY_BYTES}\r\n\r\n{{"
            );
            stream.write_all(request.as_bytes()).await.expect("writes");
            streams.push(stream);
        }
        let head =
            "POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(65_536));
        let whole = [head, &chunk.repeat(BODY_BYTES >> 16)].concat();
        for _ in 0..4 {
            let answer = talk(port, whole.as_bytes()).await;
            // A client that writes on may lose the answer to the reset.
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");
        }
    }
    // One that waits for the body says that it did not come.
    for stream in &mut streams {
        let answer = first(stream).await;
        assert!(answer.starts_with("HTTP/1.1 413") || answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    let poll = format!("POST /poll HTTP/1.1\r\nHost: x\r\nContent-Length: {BODY_BYTES}\r\n\r\n{{");
    streams.extend(many(&bench.ports.chat, 16, poll.as_bytes()).await);
    streams.into()
}

pub(crate) async fn heads(bench: &Bench) -> Siege {
    let many_lines = format!("GET /me HTTP/1.1\r\nHost: x\r\n{}\r\n", "X-Line: x\r\n".repeat(1_000));
    let long_line = format!("GET /me HTTP/1.1\r\nHost: x\r\nX-Line: {}\r\n\r\n", "x".repeat(1 << 20));
    let long_target = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(1 << 20));
    for port in bench.ports.clients() {
        for request in [&many_lines, &long_line, &long_target] {
            let answer = talk(port, request.as_bytes()).await;
            // A client that writes on may lose the answer to the reset.
            let is_refused = matches!(statuses(&answer)[..], [] | [400 | 404 | 414 | 431]);
            assert!(is_refused, "{port}, {request:.30?}: {answer}");
        }
    }
    Siege::default()
}

pub(crate) async fn lists(bench: &Bench) -> Siege {
    let eve = bench.person().await;
    let group = conversation(bench, &eve, "group", &[]).await;
    let users = |count: u32| (1..=count).map(|n| format!("u{n}")).collect::<Vec<_>>();
    for count in [1_001, 9_000] {
        let body = json!({"kind": "group", "members": users(count)});
        let (status, answer) = http(bench, "POST", "/conversations", &eve.token, &body).await;
        assert_eq!((status, answer["code"].as_str()), (413, Some("too_large")), "{count}: {answer}");
    }
    let path = format!("/conversations/{group}/members");
    let (status, answer) = http(bench, "POST", &path, &eve.token, &json!({"members": users(1_001)})).await;
    assert_eq!((status, answer["code"].as_str()), (413, Some("too_large")), "{answer}");
    let accounts: Vec<Value> = (0..201).map(|n| json!({"name": format!("x{n}"), "password": "password"})).collect();
    let (status, answer) = http(bench, "POST", "/accounts", "", &json!({"accounts": accounts})).await;
    assert_eq!(status, 400, "{answer}");
    // The last of them has its limit in a path.
    let friends = get("/friends/x", &eve.token).replacen("GET", "DELETE", 1).repeat(1_200);
    let last = post("/friends", &eve.token, &json!({"user": "u999999"}).to_string());
    let answer = talk(&bench.ports.gateway, [friends, last].concat().as_bytes()).await;
    let answers = statuses(&answer);
    assert!(answers.contains(&429) && answers.iter().all(|status| matches!(status, 400 | 404 | 429)), "{answers:?}");
    let mut socket = Socket::open(&eve).await;
    for n in 0..200 {
        socket.say(json!({"type": "subscribe", "conversation": format!("c{}", 900_000 + n)})).await;
    }
    let channels = large_channels(bench, &bench.person().await).await;
    socket.send(&group, Uuid::new_v4(), "still here").await;
    Siege { sockets: vec![socket, channels], ..Siege::default() }
}

/// Subscribes to more large channels than a connection may have.
async fn large_channels(bench: &Bench, owner: &Person) -> Socket {
    let members = crowd(bench, &bench.name(), 100).await;
    let mut socket = Socket::open(&members[0]).await;
    let everybody: Vec<&Person> = members.iter().collect();
    for _ in 0..65 {
        let channel = conversation(bench, owner, "group", &everybody).await;
        socket.say(json!({"type": "subscribe", "conversation": channel})).await;
    }
    let refused = socket.next_of("error").await;
    assert!(refused["message"].is_string(), "{refused}");
    socket
}
