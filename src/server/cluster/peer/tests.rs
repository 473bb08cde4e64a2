use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::backends::registry::{Role, ServerEntry};
use crate::runtime::{Tasks, net};
use crate::server::access::keys::{Keys, Purpose};
use crate::telemetry::{Counter, Metrics};

/// Accepts for every session that it is asked for; a log-out takes for ever.
#[derive(Default)]
struct Echo {
    open: AtomicUsize,
}

#[async_trait]
impl PeerHandler for Echo {
    async fn handle(&self, call: Call) -> Answer {
        match call {
            Call::Deliver { sessions, .. } => Answer::Accepted(sessions.into_iter().map(|(_, s)| s).collect()),
            Call::LogOut(_) => {
                self.open.fetch_add(1, Ordering::Relaxed);
                std::future::pending().await
            }
            _ => Answer::Done,
        }
    }
}

const FRIENDS: Call = Call::Friends { a: UserId(1), b: UserId(2), friends: true };

fn keys(secret: u8) -> Arc<Keys> {
    Arc::new(Keys::derive(&[secret; 32], &[], Purpose::PeerLinks))
}

fn peers(secret: u8, tasks: &Tasks) -> Peers {
    Peers::with("chat-1".parse().expect("a name"), keys(secret), tasks.clone())
}

fn entry(name: &str, address: SocketAddr) -> ServerEntry {
    let name = name.parse().expect("a name");
    ServerEntry { name, role: Role::Chat, address, peer: Some(address), load: 0, seats: 0, draining: false, epoch: 1 }
}

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new("chat", "chat-2"))
}

fn any_port() -> TcpListener {
    net::listen("127.0.0.1:0".parse().expect("valid")).expect("binds")
}

/// A server with this name.
fn start(listener: TcpListener, name: &str, tasks: &Tasks) -> (ServerEntry, Arc<Echo>) {
    let entry = entry(name, listener.local_addr().expect("bound"));
    let echo = Arc::new(Echo::default());
    let listen = serve::listen(listener, entry.name.clone(), keys(1), Arc::clone(&echo) as _, metrics(), tasks.clone());
    tasks.spawn("test.peer", listen);
    (entry, echo)
}

fn deliver(n: u128, frame_bytes: usize) -> (Call, Answer) {
    let session = SessionId(Uuid::from_u128(n));
    let call = Call::Deliver {
        conversation: None,
        message: None,
        sessions: vec![(UserId(1), session)],
        frame: "x".repeat(frame_bytes),
    };
    (call, Answer::Accepted(vec![session]))
}

#[tokio::test]
async fn calls_are_answered_each_with_its_own() {
    let tasks = Tasks::new();
    let (server, _) = start(any_port(), "chat-2", &tasks);
    let peers = peers(1, &tasks);
    let calls = (0..200_u128).map(|n| {
        let (peers, server) = (&peers, &server);
        async move {
            let (call, answer) = deliver(n, if n % 50 == 0 { 300_000 } else { 10 });
            peers.call(server, &call).await.expect("answers") == answer
        }
    });
    assert!(futures_util::future::join_all(calls).await.into_iter().all(|fits| fits));
    tasks.stop();
}

#[tokio::test]
async fn a_wrong_secret_and_a_server_of_another_name_get_no_answer() {
    let tasks = Tasks::new();
    let (server, _) = start(any_port(), "chat-2", &tasks);
    assert!(peers(2, &tasks).call(&server, &FRIENDS).await.is_err());
    // An entry that somebody else made: it points to a real server.
    let forged = entry("chat-9", server.address);
    assert!(peers(1, &tasks).call(&forged, &FRIENDS).await.is_err());
    assert_eq!(peers(1, &tasks).call(&server, &FRIENDS).await.expect("answers"), Answer::Done);
    tasks.stop();
}

#[tokio::test]
async fn a_link_comes_back_after_the_server_did() {
    let tasks = Tasks::new();
    let peers = peers(1, &tasks);
    let free = any_port();
    let address = free.local_addr().expect("bound");
    drop(free);
    assert!(peers.call(&entry("chat-2", address), &FRIENDS).await.is_err());
    let (server, _) = start(net::listen(address).expect("binds"), "chat-2", &tasks);
    assert_eq!(peers.call(&server, &FRIENDS).await.expect("answers"), Answer::Done);
    tasks.stop();
}

/// Both ends have more to write than the sockets' buffers hold: each must read meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_ends_that_both_write_much_do_not_wait_for_each_other() {
    /// Answers with as much as it was asked with.
    struct Mirror;

    #[async_trait]
    impl PeerHandler for Mirror {
        async fn handle(&self, call: Call) -> Answer {
            let Call::Deliver { frame, .. } = call else { return Answer::WrongRole };
            Answer::Metrics(frame)
        }
    }

    let tasks = Tasks::new();
    let listener = any_port();
    let server = entry("chat-2", listener.local_addr().expect("bound"));
    let handler: Arc<dyn PeerHandler> = Arc::new(Mirror);
    let listen = serve::listen(listener, server.name.clone(), keys(1), handler, metrics(), tasks.clone());
    tasks.spawn("test.peer", listen);
    let peers = peers(1, &tasks);
    for round in 0..8 {
        let calls = (0..7_u128).map(|n| {
            let (peers, server) = (&peers, &server);
            let (call, _) = deliver(n, 1_000_000);
            async move { peers.call(server, &call).await }
        });
        for answer in futures_util::future::join_all(calls).await {
            let Ok(Answer::Metrics(text)) = answer else { panic!("round {round}: {answer:?}") };
            assert_eq!(text.len(), 1_000_000);
        }
    }
    tasks.stop();
}

#[tokio::test(start_paused = true)]
async fn a_call_that_its_server_never_ends_is_given_up_by_both() {
    let tasks = Tasks::new();
    let (server, echo) = start(any_port(), "chat-2", &tasks);
    let peers = peers(1, &tasks);
    let call = Call::LogOut(Uuid::nil());
    let calls = (0..300).map(|_| peers.call(&server, &call));
    let answers = futures_util::future::join_all(calls).await;
    assert!(answers.iter().all(|answer| !matches!(answer, Ok(Answer::Done))));
    assert!(echo.open.load(Ordering::Relaxed) >= 256, "the server was busy with them");
    assert_eq!(peers.call(&server, &FRIENDS).await.expect("answers"), Answer::Done, "it is free again");
    tasks.stop();
}

/// Takes the connection and answers nothing: as a process that hangs.
#[tokio::test(start_paused = true)]
async fn a_server_that_hangs_is_left_and_found_again() {
    let tasks = Tasks::new();
    let hung = any_port();
    let address = hung.local_addr().expect("bound");
    let server = entry("chat-2", address);
    let peers = peers(1, &tasks);
    let hanging = async {
        let mut kept: Vec<TcpStream> = Vec::new();
        loop {
            kept.push(hung.accept().await.expect("accepts").0);
        }
    };
    tokio::select! {
        () = hanging => {}
        () = async { for _ in 0..5 { assert!(peers.call(&server, &FRIENDS).await.is_err()); } } => {}
    }
    drop(hung);
    let (server, _) = start(net::listen(address).expect("binds"), "chat-2", &tasks);
    // A call may find the link just as it goes down.
    let mut answer = peers.call(&server, &FRIENDS).await;
    for _ in 0..5 {
        if answer.is_ok() {
            break;
        }
        tokio::time::sleep(CALL_TIMEOUT).await;
        answer = peers.call(&server, &FRIENDS).await;
    }
    assert_eq!(answer.expect("answers"), Answer::Done);
    tasks.stop();
}

#[tokio::test]
async fn of_those_who_do_not_say_who_they_are_the_oldest_make_room_and_are_counted() {
    let (tasks, listener, metrics) = (Tasks::new(), any_port(), metrics());
    let server = entry("chat-2", listener.local_addr().expect("bound"));
    let handler = Arc::new(Echo::default()) as _;
    let listen = serve::listen(listener, server.name.clone(), keys(1), handler, Arc::clone(&metrics), tasks.clone());
    tasks.spawn("test.peer", listen);
    let mut strangers = Vec::new();
    for _ in 0..serve::STRANGERS_MAX {
        strangers.push(TcpStream::connect(server.address).await.expect("connects"));
    }
    assert_eq!(peers(1, &tasks).call(&server, &FRIENDS).await.expect("a server gets in"), Answer::Done);
    assert_eq!(strangers[0].read(&mut [0]).await.unwrap_or(0), 0);
    assert_eq!(metrics.counted(Counter::ConnectionsDropped), 1);
    tasks.stop();
}

/// As who says a hello once more that it has heard: it can go on to nothing.
#[tokio::test(start_paused = true)]
async fn a_caller_that_seals_nothing_is_left() {
    let tasks = Tasks::new();
    let (server, _) = start(any_port(), "chat-2", &tasks);
    let stream = TcpStream::connect(server.address).await.expect("connects");
    let name = "chat-1".parse().expect("a name");
    let mut wire = wire::Wire::call(stream, &name, &server.name, &keys(1)).await.expect("the hello is answered");
    let ended = tokio::time::timeout(CALL_TIMEOUT * 100, wire.reader.next()).await;
    assert!(ended.expect("it ends").is_err());
    tasks.stop();
}

#[tokio::test]
async fn more_bytes_than_may_wait_are_refused_at_once() {
    let tasks = Tasks::new();
    let hung = any_port();
    let server = entry("chat-2", hung.local_addr().expect("bound"));
    let peers = peers(1, &tasks);
    let calls = (0..12_u128).map(|n| {
        let (peers, server) = (&peers, &server);
        let (call, _) = deliver(n, 1_000_000);
        async move { peers.call(server, &call).await.map_err(|error| error.reason) }
    });
    let answers = futures_util::future::join_all(calls).await;
    let refused = answers.iter().filter(|answer| **answer == Err("too much is waiting")).count();
    assert!((3..=5).contains(&refused), "{answers:?}");
    tasks.stop();
}
