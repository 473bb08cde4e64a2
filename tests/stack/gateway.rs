//! Everything through the gateway: requests, WebSockets, and servers behind it that die.

use std::time::Duration;

use chatctl::backends::registry::{ENTRY_TTL, Role, ServerEntry};
use chatctl::runtime::clock;
use chatctl::stack::{Config, Stack};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::client::{Socket, config, conversation, http, login, signup, sync};
use crate::raw::authority;

async fn start() -> Stack {
    let config = Config { gateways: 1, api_servers: 2, ..config() };
    Stack::start(config).await.expect("the stack starts")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_talk_goes_through_the_gateway_to_the_server_that_the_login_chose() {
    let stack = start().await;
    let gateway = stack.nodes().into_iter().find(|n| n.websocket_address.is_some()).expect("a gateway");
    let (alice, bob) = (signup(&stack, "alice").await, signup(&stack, "bob").await);
    let prefix = format!("ws://{}/ws/chat-", gateway.websocket_address.expect("bound"));
    assert!(alice.url.starts_with(&prefix), "{}", alice.url);
    let talk = conversation(&stack, &alice, "direct", &[&bob]).await;
    let (mut a, mut b) = (Socket::open(&alice).await, Socket::open(&bob).await);
    assert_eq!(a.server, alice.url[alice.url.len() - 6..]);
    a.send(&talk, Uuid::new_v4(), "through").await;
    assert_eq!(b.next_of("message").await["body"], "through");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_api_server_costs_nobody_a_request() {
    let mut stack = start().await;
    let alice = signup(&stack, "alice").await;
    stack.kill("api-1").expect("it runs");
    for _ in 0..20 {
        let (status, answer) = http(&stack, "GET", "/me", &alice.token, &Value::Null).await;
        assert_eq!(status, 200, "{answer}");
    }
    stack.kill("api-2").expect("it runs");
    let (status, answer) = http(&stack, "GET", "/me", &alice.token, &Value::Null).await;
    assert_eq!((status, answer["code"].as_str()), (503, Some("unavailable")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_says_itself_whether_it_is_well() {
    let mut stack = start().await;
    let sockets = stack.nodes().into_iter().find_map(|node| node.websocket_address).expect("a gateway").to_string();
    let own = async |stack: &Stack, path: &str| http(stack, "GET", path, "", &Value::Null).await;
    let (status, ready) = own(&stack, "/health/ready").await;
    assert_eq!((status, ready["status"].as_str(), ready["api_servers"].as_u64()), (200, Some("ready"), Some(2)));
    assert!(own(&stack, "/health/engines").await.1["engines"].is_object(), "the answer of an API server");
    for server in ["api-1", "api-2"] {
        stack.kill(server).expect("it runs");
    }
    tokio::time::timeout(Duration::from_secs(20), async {
        while own(&stack, "/health/ready").await.0 == 200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("nobody is behind it any more");
    assert_eq!(own(&stack, "/health/live").await.0, 200);
    let mut probe = TcpStream::connect(sockets).await.expect("connects");
    let request = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    probe.write_all(request).await.expect("writes");
    let mut live = String::new();
    probe.read_to_string(&mut live).await.expect("answers");
    assert!(live.starts_with("HTTP/1.1 200"), "{live}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_dead_chat_server_find_another_one_at_the_same_address() {
    let mut stack = start().await;
    let (alice, bob) = (signup(&stack, "alice").await, login_after_signup(&stack, "bob").await);
    let talk = conversation(&stack, &alice, "direct", &[&bob]).await;
    let mut before = Socket::open(&alice).await;
    stack.kill(&before.server).expect("it runs");
    assert_eq!(before.close_code().await, None);
    let mut after = Socket::open(&alice).await;
    assert_ne!(after.server, before.server);
    let id = after.send(&talk, Uuid::new_v4(), "still here").await;
    assert_eq!(sync(&stack, &bob, &talk, 0).await["messages"][0]["id"].as_u64(), Some(id));
    stack.stop().await;
}

/// Takes connections and answers nothing, as a process that was stopped.
#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_chat_server_that_hangs_are_free_within_fifteen_seconds() {
    let stack = start().await;
    let gateway = stack.nodes().into_iter().find_map(|node| node.websocket_address).expect("a gateway");
    let alice = signup(&stack, "alice").await;
    let talk = conversation(&stack, &alice, "group", &[]).await;
    let mut well = Socket::open(&alice).await;
    let hung = chatctl::runtime::net::listen("127.0.0.1:0".parse().expect("valid")).expect("binds");
    let address = hung.local_addr().expect("bound");
    let entry = ServerEntry {
        name: "chat-9".parse().expect("a name"),
        role: Role::Chat,
        address,
        peer: Some(address),
        load: 0,
        seats: 0,
        draining: false,
        epoch: 1,
    };
    stack.backends().registry.announce(&entry).await.expect("announces");
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    stack.backends().registry.announce(&entry).await.expect("announces");
    let mut client = TcpStream::connect(gateway).await.expect("connects");
    client.write_all(b"GET /ws/chat-9 HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("writes");
    let _held = tokio::time::timeout(Duration::from_secs(3), hung.accept()).await.expect("it was sent there");
    let mut byte = [0];
    let ended = tokio::time::timeout(Duration::from_secs(20), client.read(&mut byte)).await.expect("it is let go");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    well.send(&talk, Uuid::new_v4(), "not concerned").await;
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_client_could_not_reach_is_tried_and_no_other_is_sent_there() {
    let config = Config { gateways: 2, chat_servers: 4, ..config() };
    let mut stack = Stack::start(config).await.expect("the stack starts");
    let (alice, bob) = (signup(&stack, "alice").await, signup(&stack, "bob").await);
    let dead = ["chat-1", "chat-2", "gateway-2"];
    for name in dead {
        stack.kill(name).expect("it runs");
    }
    let gateway = stack.nodes().into_iter().find(|n| n.name.as_str() == "gateway-1").expect("runs");
    let address = gateway.websocket_address.expect("bound").to_string();
    let started = clock::instant();
    for server in ["chat-1", "chat-2"] {
        http(&stack, "GET", &format!("/placement?avoid={server}"), &alice.token, &Value::Null).await;
    }
    // They are tried meanwhile, which takes as long as the machine lets it.
    let mut places = Vec::new();
    while places.is_empty() || clock::instant() - started < ENTRY_TTL / 4 {
        places.clear();
        for _ in 0..50 {
            let (status, place) = http(&stack, "GET", "/placement", &bob.token, &Value::Null).await;
            assert_eq!(status, 200, "{place}");
            places.push((place["server"].to_string(), place["url"].to_string()));
        }
        let is_alive = |server: &str| dead.iter().all(|name| !server.contains(name));
        if places.iter().all(|(server, url)| is_alive(server) && url.contains(&address)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(clock::instant() - started < ENTRY_TTL / 2, "the registry had forgotten them: the test says nothing");
    for (server, url) in places {
        assert!(dead.iter().all(|name| !server.contains(name)), "sent to {server}");
        assert!(url.contains(&address), "sent through {url}");
    }
    // A word against a live server takes nobody away from it.
    for server in ["chat-3", "chat-4"] {
        http(&stack, "GET", &format!("/placement?avoid={server}"), &alice.token, &Value::Null).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let (_, elsewhere) = http(&stack, "GET", "/placement?avoid=chat-3", &bob.token, &Value::Null).await;
    assert_eq!(elsewhere["server"], "chat-4");
    stack.stop().await;
}

async fn login_after_signup(stack: &Stack, name: &str) -> crate::client::Person {
    signup(stack, name).await;
    login(stack, name, "laptop").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_figures_of_every_server_can_be_had_at_one_address() {
    let stack = start().await;
    let text = crate::client::http_text(&stack, "/metrics/cluster").await;
    let servers = chatctl::telemetry::prometheus::parse(&text);
    let names: Vec<_> = servers.keys().map(String::as_str).collect();
    assert_eq!(names, ["api-1", "api-2", "chat-1", "chat-2", "gateway-1", "presence-1", "push-1"]);
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_drains_ends_its_tunnels_one_by_one_and_the_other_one_takes_over() {
    let gateway = chatctl::server::gateway::Config { drain_per_second: 20, ..Default::default() };
    let config = Config { gateways: 2, gateway, ..config() };
    let mut stack = Stack::start(config).await.expect("the stack starts");
    let gateways: Vec<String> =
        stack.nodes().into_iter().filter_map(|n| n.websocket_address).map(|address| address.to_string()).collect();
    let [going, staying] = &gateways[..] else { panic!("two gateways, not {gateways:?}") };
    let (mut there, mut elsewhere) = (Vec::new(), Vec::new());
    for n in 0..10 {
        let mut person = signup(&stack, &format!("user-{n}")).await;
        let (gateway, list) = if n % 2 == 0 { (going, &mut there) } else { (staying, &mut elsewhere) };
        person.url = format!("ws://{gateway}/ws");
        list.push(Socket::open(&person).await);
    }
    let begin = clock::instant();
    stack.drain("gateway-1").await.expect("it runs");
    // One tunnel every 50 ms: it can't have been quicker.
    assert!(begin.elapsed().as_millis() as usize >= 50 * (there.len() - 1), "{:?}", begin.elapsed());
    for socket in &mut there {
        assert_eq!(socket.close_code().await, None);
    }
    // Whoever asks before the API's next look at the registry is sent there once more.
    let mut late = signup(&stack, "late").await;
    for _ in 0..9 {
        if !late.url.contains(going) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        late = login(&stack, "late", "phone").await;
    }
    assert!(!late.url.contains(going), "{}", late.url);
    let bob = signup(&stack, "bob").await;
    let talk = conversation(&stack, &late, "direct", &[&bob]).await;
    Socket::open(&late).await.send(&talk, Uuid::new_v4(), "goes on").await;
    for socket in &mut elsewhere {
        socket.hears_no_message().await;
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_full_says_so_and_answers_probes() {
    let mut config = Config { gateways: 1, ..config() };
    config.gateway.tunnels_max = 2;
    let stack = Stack::start(config).await.expect("starts");
    let (alice, bob) = (signup(&stack, "alice").await, signup(&stack, "bob").await);
    let address = authority(&alice.url).to_owned();
    let answer = async |request: &str| {
        let mut stream = TcpStream::connect(&address).await.expect("connects");
        stream.write_all(request.as_bytes()).await.expect("writes");
        let mut bytes = vec![0; 4_096];
        let read = stream.read(&mut bytes).await.expect("answers");
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    };
    let (_a, _b) = (Socket::open(&alice).await, Socket::open(&bob).await);
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(&address).await.expect("connects"));
    }
    for path in ["/health/live", "/health/ready", "/metrics"] {
        let probed = answer(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert!(probed.starts_with("HTTP/1.1 200"), "{path}: {probed}");
    }
    let refused = answer("GET /ws HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("as it holds"), "{refused}");
    stack.stop().await;
}
