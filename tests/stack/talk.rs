//! What people expect of a chat.

use chatctl::stack::Stack;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::client::{Socket, config, conversation, http, login, signup, start, sync};

#[tokio::test(flavor = "multi_thread")]
async fn a_message_goes_each_way_and_a_retry_changes_nothing() {
    let stack = start().await;
    let (alice, bob) = (signup(&stack, "alice").await, signup(&stack, "bob").await);
    let talk = conversation(&stack, &alice, "direct", &[&bob]).await;
    let (mut a, mut b) = (Socket::open(&alice).await, Socket::open(&bob).await);
    let uuid = Uuid::new_v4();
    let id = a.send(&talk, uuid, "hello").await;
    let message = b.next_of("message").await;
    assert_eq!((message["id"].as_u64(), message["body"].as_str()), (Some(id), Some("hello")));
    assert_eq!(a.send(&talk, uuid, "hello").await, id);
    a.say(json!({"type": "send", "uuid": uuid, "conversation": talk, "body": "other"})).await;
    assert_eq!(a.next_of("error").await["code"], "conflict");
    assert_eq!(b.send(&talk, Uuid::new_v4(), "hi yourself").await, id + 1);
    assert_eq!(a.next_of("message").await["body"], "hi yourself");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offline_message_is_fetched_by_sync_and_notified_without_its_text() {
    let stack = start().await;
    let (alice, bob) = (signup(&stack, "alice").await, signup(&stack, "bob").await);
    let talk = conversation(&stack, &alice, "direct", &[&bob]).await;
    let mut a = Socket::open(&alice).await;
    let id = a.send(&talk, Uuid::new_v4(), "are you there?").await;
    let answer = sync(&stack, &bob, &talk, 0).await;
    assert_eq!((answer["messages"][0]["id"].as_u64(), answer["stable"].as_u64()), (Some(id), Some(id)));
    assert_eq!(answer["has_more"], false);
    let (_, inbox) = http(&stack, "GET", "/inbox/sync", &bob.token, &Value::Null).await;
    assert_eq!(inbox["conversations"][0]["head"].as_u64(), Some(id));
    let file = stack.data().join("notifications.jsonl");
    let line = loop {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        if let Some(line) = text.lines().next() {
            break line.to_owned();
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert!(line.contains(&bob.id) && !line.contains("there?"), "{line}");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_senders_other_device_gets_the_message_and_the_sending_one_does_not() {
    let stack = start().await;
    let (alice, bob) = (signup(&stack, "alice").await, signup(&stack, "bob").await);
    let laptop = login(&stack, "alice", "laptop").await;
    for kind in ["direct", "group"] {
        let talk = conversation(&stack, &alice, kind, &[&bob]).await;
        let (mut a, mut l) = (Socket::open(&alice).await, Socket::open(&laptop).await);
        a.send(&talk, Uuid::new_v4(), "from the phone").await;
        assert_eq!(l.next_of("message").await["body"], "from the phone", "{kind}");
        a.hears_no_message().await;
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_bites_at_once_on_open_sockets_and_on_sync() {
    let stack = start().await;
    let (alice, bob, carol) =
        (signup(&stack, "alice").await, signup(&stack, "bob").await, signup(&stack, "carol").await);
    let group = conversation(&stack, &alice, "group", &[&bob, &carol]).await;
    let (mut a, mut b, mut c) = (Socket::open(&alice).await, Socket::open(&bob).await, Socket::open(&carol).await);
    a.send(&group, Uuid::new_v4(), "one").await;
    b.next_of("message").await;
    c.next_of("message").await;
    let path = format!("/conversations/{group}/members/{}", bob.id);
    let (status, answer) = http(&stack, "DELETE", &path, &bob.token, &Value::Null).await;
    assert_eq!(status, 204, "{answer}");
    a.send(&group, Uuid::new_v4(), "two").await;
    assert_eq!(c.next_of("message").await["body"], "two");
    b.hears_no_message().await;
    b.say(json!({"type": "send", "uuid": Uuid::new_v4(), "conversation": group, "body": "let me in"})).await;
    assert_eq!(b.next_of("error").await["code"], "not_a_member");
    let path = format!("/messages/sync?conversation_id={group}");
    let (status, answer) = http(&stack, "GET", &path, &bob.token, &Value::Null).await;
    assert_eq!((status, answer["code"].as_str()), (403, Some("not_a_member")));
    let add = json!({"members": [bob.id]});
    let (status, _) = http(&stack, "POST", &format!("/conversations/{group}/members"), &alice.token, &add).await;
    assert_eq!(status, 200);
    b.send(&group, Uuid::new_v4(), "thanks").await;
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_neither_read_nor_change_a_group() {
    let stack = start().await;
    let (alice, bob, eve) = (signup(&stack, "alice").await, signup(&stack, "bob").await, signup(&stack, "eve").await);
    let group = conversation(&stack, &alice, "group", &[&bob]).await;
    let base = format!("/conversations/{group}");
    let members = format!("{base}/members");
    let receipts = format!("{base}/receipts");
    for path in [&base, &members, &receipts] {
        assert_eq!(http(&stack, "GET", path, &eve.token, &Value::Null).await.0, 403, "{path}");
        assert_eq!(http(&stack, "GET", path, "forged.token.here", &Value::Null).await.0, 401, "{path}");
    }
    let join = json!({"members": [eve.id]});
    assert_eq!(http(&stack, "POST", &members, &eve.token, &join).await.0, 403);
    assert_eq!(http(&stack, "POST", &members, &bob.token, &join).await.0, 403, "a member is not the owner");
    let mut e = Socket::open(&eve).await;
    for kind in ["typing", "subscribe"] {
        e.say(json!({"type": kind, "conversation": group})).await;
        assert_eq!(e.next_of("error").await["code"], "not_a_member");
    }
    e.say(json!({"type": "receipt", "conversation": group, "status": "read", "upto": 1})).await;
    assert_eq!(e.next_of("error").await["code"], "not_a_member");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_closes_the_socket_and_voids_the_token() {
    let stack = start().await;
    let alice = signup(&stack, "alice").await;
    let mut a = Socket::open(&alice).await;
    assert_eq!(http(&stack, "POST", "/logout", &alice.token, &Value::Null).await.0, 204);
    assert_eq!(a.close_code().await, Some(4003));
    assert_eq!(http(&stack, "GET", "/me", &alice.token, &Value::Null).await.0, 401);
    let mut late = Socket::open_bare(&alice.url).await;
    late.say(json!({"type": "hello", "token": alice.token})).await;
    assert_eq!(late.next().await["code"], "unauthorized");
    assert_eq!(late.close_code().await, Some(4001));
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_has_one_connection_and_the_old_one_is_told() {
    let stack = start().await;
    let alice = signup(&stack, "alice").await;
    let mut old = Socket::open(&alice).await;
    let mut new = Socket::open(&alice).await;
    assert_eq!(old.close_code().await, Some(4004));
    new.say(json!({"type": "ping"})).await;
    new.next_of("pong").await;
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn friends_see_each_other_come_online_and_typing_and_receipts_pass() {
    let stack = start().await;
    let (alice, bob) = (signup(&stack, "alice").await, signup(&stack, "bob").await);
    let stranger = signup(&stack, "stranger").await;
    assert_eq!(http(&stack, "POST", "/friends", &alice.token, &json!({"user": bob.id})).await.0, 201);
    let talk = conversation(&stack, &alice, "direct", &[&bob]).await;
    let (mut a, mut s) = (Socket::open(&alice).await, Socket::open(&stranger).await);
    let mut b = Socket::open(&bob).await;
    b.say(json!({"type": "beat"})).await;
    let presence = a.next_of("presence").await;
    assert_eq!((presence["user"].as_str(), presence["state"].as_str()), (Some(bob.id.as_str()), Some("online")));
    a.say(json!({"type": "beat"})).await;
    assert_eq!(b.next_of("presence").await["user"], alice.id);
    b.say(json!({"type": "typing", "conversation": talk})).await;
    assert_eq!(a.next_of("typing").await["user"], bob.id);
    let id = a.send(&talk, Uuid::new_v4(), "read me").await;
    b.say(json!({"type": "receipt", "conversation": talk, "status": "read", "upto": id})).await;
    assert_eq!(a.next_of("receipt").await["upto"].as_u64(), Some(id));
    let path = format!("/conversations/{talk}/receipts");
    let (_, receipts) = http(&stack, "GET", &path, &alice.token, &Value::Null).await;
    assert_eq!(receipts["receipts"][0]["status"], "read");
    s.say(json!({"type": "ping"})).await;
    assert_eq!(s.next().await["type"], "pong", "a stranger hears of nobody");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_acknowledged_is_there_after_the_process_was_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = chatctl::stack::Config { data: Some(folder.path().to_owned()), ..config() };
    let uuid = Uuid::new_v4();
    let (talk, first) = {
        let stack = Stack::start(config.clone()).await.expect("starts");
        let (alice, bob) = (signup(&stack, "alice").await, signup(&stack, "bob").await);
        let talk = conversation(&stack, &alice, "direct", &[&bob]).await;
        let mut a = Socket::open(&alice).await;
        (talk.clone(), a.send(&talk, uuid, "before").await)
        // Dropped without a stop: every server is killed.
    };
    let stack = start_again(config).await;
    let (alice, bob) = (login(&stack, "alice", "phone").await, login(&stack, "bob", "phone").await);
    let mut a = Socket::open(&alice).await;
    assert_eq!(a.send(&talk, uuid, "before").await, first, "the uuid is remembered");
    let second = a.send(&talk, Uuid::new_v4(), "after").await;
    assert!(second > first, "{second} after {first}");
    let answer = sync(&stack, &bob, &talk, 0).await;
    let bodies: Vec<&str> =
        answer["messages"].as_array().expect("rows").iter().filter_map(|m| m["body"].as_str()).collect();
    assert_eq!((bodies, answer["stable"].as_u64()), (vec!["before", "after"], Some(second)));
    stack.stop().await;
}

/// The killed servers' threads let go of the folder a moment later.
async fn start_again(config: chatctl::stack::Config) -> Stack {
    let started = crate::client::LIMIT;
    tokio::time::timeout(started, async {
        loop {
            if let Ok(stack) = Stack::start(config.clone()).await {
                return stack;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("starts again")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_tells_clients_to_move_and_where_to_go_is_elsewhere() {
    let mut stack = start().await;
    let alice = signup(&stack, "alice").await;
    let mut a = Socket::open(&alice).await;
    let port = alice.url.split(':').nth(2).and_then(|rest| rest.split('/').next()).expect("a port").to_owned();
    let nodes = stack.nodes();
    let held = nodes.iter().find(|n| n.address.is_some_and(|a| a.port().to_string() == port)).expect("is listed");
    let name = held.name.to_string();
    let drained = stack.drain(&name);
    let told = async {
        assert_eq!(a.next_of("moved").await["reason"], "drain");
        assert_eq!(a.close_code().await, Some(4006));
    };
    let (result, ()) = tokio::join!(drained, told);
    result.expect("drains");
    let (status, placement) = http(&stack, "GET", "/placement", &alice.token, &Value::Null).await;
    assert_eq!(status, 200, "{placement}");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_group_gets_heads_and_fetches() {
    let stack = start().await;
    let alice = signup(&stack, "alice").await;
    let mut others = Vec::new();
    for n in 0..101 {
        others.push(signup(&stack, &format!("member-{n}")).await);
    }
    let members: Vec<_> = others.iter().collect();
    let channel = conversation(&stack, &alice, "group", &members).await;
    let (mut a, mut b) = (Socket::open(&alice).await, Socket::open(&others[0]).await);
    b.say(json!({"type": "subscribe", "conversation": channel})).await;
    b.say(json!({"type": "ping"})).await;
    b.next_of("pong").await;
    let id = loop {
        // The subscription is done in the background of the ping.
        let id = a.send(&channel, Uuid::new_v4(), "news").await;
        if let Ok(head) = tokio::time::timeout(std::time::Duration::from_secs(1), b.next_of("head")).await {
            assert_eq!(head["conversation"], channel);
            break id;
        }
    };
    let answer = sync(&stack, &others[0], &channel, 0).await;
    assert!(answer["stable"].as_u64() >= Some(id) || !answer["messages"].as_array().expect("rows").is_empty());
    stack.stop().await;
}
