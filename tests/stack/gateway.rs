//! Everything through the gateway: requests, WebSockets, and servers behind it that die.

use chatctl::stack::{Config, Stack};
use serde_json::Value;
use uuid::Uuid;

use crate::client::{Socket, config, conversation, http, login, signup, sync};

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
