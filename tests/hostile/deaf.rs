//! Clients that do not read.

use chatctl::telemetry::Counter;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::bench::{Bench, Siege};
use crate::client::{Socket, conversation};
use crate::wire::{connect_deaf, first, get, get_last, statuses, talk, upgrade};

/// Sockets that do not read.
const COUNT: usize = 40;

/// A large message.
const BODY_BYTES: usize = 60_000;

/// Writes as much of some requests as is taken.
async fn ask(address: &str, requests: &str) -> TcpStream {
    let mut stream = connect_deaf(address).await;
    let writing = stream.write_all(requests.as_bytes());
    // A server that does not read on is right to do so.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), writing).await;
    stream
}

pub(crate) async fn metrics(bench: &Bench) -> Siege {
    let requests = get("/metrics", "").repeat(200);
    let mut streams = Vec::new();
    for port in bench.ports.http() {
        for _ in 0..COUNT {
            streams.push(ask(port, &requests).await);
        }
    }
    for _ in 0..5 {
        bench.others_are_served().await;
    }
    streams.into()
}

pub(crate) async fn pages(bench: &Bench) -> Siege {
    let eve = bench.person().await;
    let group = conversation(bench, &eve, "group", &[]).await;
    let mut socket = Socket::open(&eve).await;
    let body = "x".repeat(BODY_BYTES);
    for _ in 0..30 {
        socket.send(&group, Uuid::new_v4(), &body).await;
    }
    drop(socket);
    let page = format!("/messages/sync?conversation_id={group}&after_message_id=0&limit=500");
    let whole = talk(&bench.ports.gateway, get_last(&page, &eve.token).as_bytes()).await;
    assert!(whole.len() > 1_000_000, "{} bytes", whole.len());
    let requests = get(&page, &eve.token).repeat(20);
    let mut streams = Vec::new();
    for port in bench.ports.http() {
        for _ in 0..COUNT / 2 {
            streams.push(ask(port, &requests).await);
        }
    }
    bench.others_are_served().await;
    // Somebody else's pages come.
    let other = bench.person().await;
    let own = conversation(bench, &other, "group", &[]).await;
    let page = format!("/messages/sync?conversation_id={own}");
    for port in bench.ports.http() {
        assert_eq!(statuses(&talk(port, get_last(&page, &other.token).as_bytes()).await), [200]);
    }
    streams.into()
}

pub(crate) async fn subscribers(bench: &Bench) -> Siege {
    let sender = bench.person().await;
    let deaf = bench.crowd(COUNT / 2).await;
    let group = conversation(bench, &sender, "group", &deaf.iter().collect::<Vec<_>>()).await;
    let mut streams = Vec::new();
    for (n, person) in deaf.iter().enumerate() {
        let (port, path) = if n % 2 == 0 { (&bench.ports.chat, "/ws") } else { (&bench.ports.tunnels, "/ws/chat-1") };
        let request = upgrade(path, &format!("Authorization: Bearer {}\r\n", person.token));
        let mut stream = connect_deaf(port).await;
        stream.write_all(request.as_bytes()).await.expect("writes");
        assert!(first(&mut stream).await.starts_with("HTTP/1.1 101"));
        streams.push(stream);
    }
    let before = bench.counted(Counter::SlowConsumers).await;
    let mut socket = Socket::open(&sender).await;
    let body = "x".repeat(BODY_BYTES);
    loop {
        for _ in 0..20 {
            socket.send(&group, Uuid::new_v4(), &body).await;
        }
        bench.others_are_served().await;
        // The case's own deadline ends this where they are not cut.
        if bench.counted(Counter::SlowConsumers).await >= before + deaf.len() as f64 {
            return streams.into();
        }
    }
}
