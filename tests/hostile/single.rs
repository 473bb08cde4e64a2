//! One user with a token against the rest.

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::bench::{Bench, Siege};
use crate::client::{Person, Socket, conversation, crowd, http};
use crate::raw::{raw, upgraded};
use crate::wire::{connect, get, statuses, talk};

/// Devices of one user: more than a server has seats.
const DEVICES: usize = 440;

/// Devices of an account that one call makes.
const PER_CALL: usize = 8;

pub(crate) async fn sockets(bench: &Bench) -> Siege {
    let name = bench.name();
    let devices: Vec<String> = (0..PER_CALL).map(|n| format!("device-{n}")).collect();
    let account = json!({"accounts": [{"name": name, "password": "password", "devices": devices}]});
    assert_eq!(http(bench, "POST", "/accounts", "", &account).await.0, 201);
    let mut sockets = Vec::new();
    for n in 0..DEVICES {
        let person = bench.device(&name, &format!("device-{n}")).await;
        sockets.extend(Socket::try_open(&person).await);
    }
    assert!(sockets.len() >= PER_CALL, "only {} devices are connected", sockets.len());
    Siege { sockets, ..Siege::default() }
}

pub(crate) async fn calls(bench: &Bench) -> Siege {
    let eve = bench.person().await;
    let group = conversation(bench, &eve, "group", &[]).await;
    let paths = [
        "/conversations".to_owned(),
        "/inbox/sync?limit=500".to_owned(),
        format!("/messages/sync?conversation_id={group}&limit=500&cached=false"),
        format!("/conversations/{group}/members"),
        "/friends".to_owned(),
        "/placement?avoid=chat-1".to_owned(),
        "/users?name=nobody".to_owned(),
    ];
    let requests: String = paths.iter().map(|path| get(path, &eve.token)).collect::<String>().repeat(5);
    let mut streams = Vec::new();
    for n in 0..64 {
        let mut stream = connect(bench.ports.http()[n % 2]).await;
        stream.write_all(requests.as_bytes()).await.expect("writes");
        streams.push(stream);
    }
    for _ in 0..3 {
        bench.others_are_served().await;
    }
    let last = get("/me", &eve.token).replacen("Host", "Connection: close\r\nHost", 1);
    let answer = talk(&bench.ports.gateway, [get("/me", &eve.token).repeat(200), last].concat().as_bytes()).await;
    assert!(statuses(&answer).contains(&429), "{:?}", statuses(&answer));
    streams.into()
}

/// Subscribes and closes in one packet, so many times.
async fn subscribes_and_closes(person: &Person, group: &str, times: usize) {
    let frame = json!({"type": "subscribe", "conversation": group}).to_string();
    let packet = [raw(0x81, frame.as_bytes()), raw(0x88, b"")].concat();
    for _ in 0..times {
        let mut stream = upgraded(&person.url, "/ws", Some(&person.token)).await;
        stream.write_all(&packet).await.expect("writes");
    }
}

pub(crate) async fn subscriptions(bench: &Bench) -> Siege {
    let people = bench.crowd(102).await;
    let group = conversation(bench, &people[0], "group", &people[1..].iter().collect::<Vec<_>>()).await;
    join_all(people[1..=40].iter().map(|person| subscribes_and_closes(person, &group, 25))).await;
    // Who is left is told of what is said.
    let (mut one, mut other) = (Socket::open(&people[0]).await, Socket::open(&people[1]).await);
    other.say(json!({"type": "subscribe", "conversation": group})).await;
    let id = one.send(&group, uuid::Uuid::new_v4(), "to those who are left").await;
    while other.next_of("head").await["id"].as_u64() != Some(id) {}
    Siege { sockets: vec![one, other], ..Siege::default() }
}

/// Connects while the token is logged out: refused, or closed soon.
async fn connects_and_logs_out(bench: &Bench, person: Person) {
    let logout = async { http(bench, "POST", "/logout", &person.token, &Value::Null).await.0 };
    let (socket, status) = tokio::join!(Socket::upgrade(&person), logout);
    assert_eq!(status, 204);
    if let Ok(mut socket) = socket {
        let code = socket.close_code().await;
        assert!(matches!(code, Some(4001 | 4003)), "{code:?}");
    }
}

pub(crate) async fn logouts(bench: &Bench) -> Siege {
    let mut people = crowd(bench, &bench.name(), 60).await;
    for (n, person) in people.iter_mut().enumerate() {
        let ports = &bench.ports;
        person.url =
            if n % 2 == 0 { format!("ws://{}/ws", ports.chat) } else { format!("ws://{}/ws/chat-2", ports.tunnels) };
    }
    join_all(people.into_iter().map(|person| connects_and_logs_out(bench, person))).await;
    Siege::default()
}
