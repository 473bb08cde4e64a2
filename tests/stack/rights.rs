//! Rights that end while a connection is open, or while it comes up (invariants I7 and I13).

use std::time::Duration;

use chatctl::backends::registry::Role;
use chatctl::stack::Stack;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite;
use uuid::Uuid;

use crate::client::{Person, Socket, config, conversation, crowd, http, signup, start};

/// Close codes.
const UNAUTHORIZED: u16 = 4001;
const LOGGED_OUT: u16 = 4003;
const REPLACED: u16 = 4004;

async fn add_members(stack: &Stack, owner: &Person, group: &str, members: &[&Person]) {
    let members: Vec<&str> = members.iter().map(|p| p.id.as_str()).collect();
    let path = format!("/conversations/{group}/members");
    let (status, answer) = http(stack, "POST", &path, &owner.token, &json!({"members": members})).await;
    assert_eq!(status, 200, "{answer}");
}

async fn remove_member(stack: &Stack, owner: &Person, group: &str, member: &Person) {
    let path = format!("/conversations/{group}/members/{}", member.id);
    let (status, answer) = http(stack, "DELETE", &path, &owner.token, &Value::Null).await;
    assert_eq!(status, 204, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_ends_with_its_token() {
    let mut config = config();
    config.token_lifetime = Duration::from_secs(3);
    let stack = Stack::start(config).await.expect("starts");
    let alice = signup(&stack, "alice").await;
    let mut socket = Socket::open(&alice).await;
    assert_eq!(socket.close_code().await, Some(UNAUTHORIZED));
    stack.stop().await;
}

/// How late an answer is, and when something happens before it.
const LATE: Duration = Duration::from_millis(500);
const MEANWHILE: Duration = Duration::from_millis(150);

/// A stack whose engine answers an operation late: what it said is not true any more.
async fn late(operations: &'static [&'static str]) -> Stack {
    Stack::start_changed(config(), |backends| backends.late(operations, LATE), None).await.expect("starts")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_ends_sockets_that_are_coming_up() {
    // The token was good when it was looked at; the session is claimed, and not in the hub yet.
    let stack = late(&["sessions.claim"]).await;
    let alice = signup(&stack, "alice").await;
    let logout = async {
        tokio::time::sleep(MEANWHILE).await;
        http(&stack, "POST", "/logout", &alice.token, &Value::Null).await.0
    };
    let (socket, status) = tokio::join!(Socket::try_open(&alice), logout);
    assert_eq!(status, 204);
    let mut socket = socket.expect("the connection came up, since its token was good");
    assert_eq!(socket.close_code().await, Some(LOGGED_OUT));
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_connects_of_one_device_one_is_left() {
    // Each claim is told of the one before it, which is not in the hub yet.
    let stack = late(&["sessions.claim"]).await;
    let (alice, bob) = (signup(&stack, "alice").await, signup(&stack, "bob").await);
    let talk = conversation(&stack, &alice, "direct", &[&bob]).await;
    let mut b = Socket::open(&bob).await;
    for round in 0..3 {
        let mut sockets: Vec<Socket> = Vec::new();
        // A device has few connections at once, and those of the last round may not have ended yet.
        while sockets.len() < 2 {
            let connects = (0..4).map(|_| Socket::try_open(&alice));
            sockets = futures_util::future::join_all(connects).await.into_iter().flatten().collect();
        }
        // Whoever stays hears what bob says; every other one is closed, and nothing else.
        let said = format!("round {round}");
        tokio::time::sleep(Duration::from_millis(300)).await;
        b.send(&talk, Uuid::new_v4(), &said).await;
        let outcomes = futures_util::future::join_all(sockets.into_iter().map(|mut socket| {
            let said = said.clone();
            async move {
                match socket.next_or_close().await {
                    Ok(frame) => {
                        assert_eq!((&frame["type"], &frame["body"]), (&json!("message"), &json!(said)));
                        true
                    }
                    Err(code) => {
                        assert_eq!(code, Some(REPLACED));
                        false
                    }
                }
            }
        }))
        .await;
        assert_eq!(outcomes.iter().filter(|is_left| **is_left).count(), 1, "round {round}: {outcomes:?}");
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_nobody_and_one_of_the_future_are_refused() {
    let stack = start().await;
    let alice = signup(&stack, "alice").await;
    let secret = std::fs::read(stack.data().join("secret")).expect("the deployment's secret");
    let now = chatctl::runtime::clock::unix_ms() / 1_000;
    let sign = |sub: &str, nbf: u64| {
        let claims =
            json!({"sub": sub, "dev": "phone", "jti": Uuid::new_v4(), "iat": now, "nbf": nbf, "exp": now + 60});
        let key = jsonwebtoken::EncodingKey::from_secret(&secret);
        jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("signs")
    };
    let person = |token: String| Person { id: alice.id.clone(), token, url: alice.url.clone() };
    let status = |error: tungstenite::Error| match error {
        tungstenite::Error::Http(answer) => answer.status().as_u16(),
        other => panic!("{other}"),
    };
    for (token, what) in [(sign("u999999", now), "of nobody"), (sign(&alice.id, now + 3_600), "of the future")] {
        let refused = Socket::upgrade(&person(token.clone())).await.err().map(status);
        assert_eq!(refused, Some(401), "a token {what}");
        assert_eq!(http(&stack, "GET", "/me", &token, &Value::Null).await.0, 401, "a token {what}");
    }
    assert_eq!(
        http(&stack, "GET", "/me", &sign(&alice.id, now), &Value::Null).await.0,
        200,
        "the key is the right one"
    );
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_friendship_that_ends_while_a_connection_comes_up_is_not_told() {
    // The list of friends was read before the friendship ended, and is used after.
    let stack = late(&["directory.friends"]).await;
    let (alice, bob, carol) =
        (signup(&stack, "alice").await, signup(&stack, "bob").await, signup(&stack, "carol").await);
    let befriend = async |person: &Person| {
        let (status, _) = http(&stack, "POST", "/friends", &person.token, &json!({"user": bob.id})).await;
        assert_eq!(status, 201);
    };
    befriend(&alice).await;
    befriend(&carol).await;
    let mut control = Socket::open(&carol).await;
    let end = async {
        tokio::time::sleep(MEANWHILE).await;
        http(&stack, "DELETE", &format!("/friends/{}", bob.id), &alice.token, &Value::Null).await.0
    };
    let (mut socket, status) = tokio::join!(Socket::open(&alice), end);
    assert_eq!(status, 204);
    // Whatever the late answer brings about has been done by then.
    tokio::time::sleep(2 * LATE).await;
    let mut b = Socket::open(&bob).await;
    b.say(json!({"type": "beat"})).await;
    assert_eq!(control.next_of("presence").await["user"], bob.id.as_str(), "a friend is told");
    let told = socket.frames_for(Duration::from_millis(300)).await;
    assert!(told.iter().all(|frame| frame["type"] != "presence"), "{told:?}");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_grows_past_the_limit_keeps_its_connected_members_and_so_when_it_shrinks() {
    let mut config = config();
    config.api.bulk_accounts = true;
    let stack = Stack::start(config).await.expect("starts");
    let people = crowd(&stack, "crowd", 102).await;
    let members: Vec<&Person> = people[1..100].iter().collect();
    let group = conversation(&stack, &people[0], "group", &members).await;
    let mut owner = Socket::open(&people[0]).await;
    let mut readers = [Socket::open(&people[1]).await, Socket::open(&people[2]).await];
    let first = owner.send(&group, Uuid::new_v4(), "one hundred of us").await;
    for reader in &mut readers {
        assert_eq!(reader.next_of("message").await["id"].as_u64(), Some(first));
    }
    add_members(&stack, &people[0], &group, &[&people[100]]).await;
    for reader in readers.iter_mut().chain([&mut owner]) {
        let told = reader.next_of("conversation").await;
        assert_eq!((&told["conversation"], &told["large"]), (&json!(group), &json!(true)));
        assert_eq!(reader.next_of("head").await["id"].as_u64(), Some(first), "where it stands");
    }
    let second = owner.send(&group, Uuid::new_v4(), "one hundred and one").await;
    for reader in &mut readers {
        assert_eq!(reader.next_of("head").await["id"].as_u64(), Some(second));
    }
    // A reader who is removed hears no more; the others get messages by themselves again.
    remove_member(&stack, &people[0], &group, &people[2]).await;
    let [stays, left] = &mut readers;
    assert_eq!(stays.next_of("conversation").await["large"], false);
    let third = owner.send(&group, Uuid::new_v4(), "one hundred again").await;
    assert_eq!(stays.next_of("message").await["id"].as_u64(), Some(third));
    let heard = left.frames_for(Duration::from_secs(1)).await;
    assert!(
        heard.iter().all(|frame| frame["type"] == "conversation" || frame["id"].as_u64() < Some(third)),
        "{heard:?}"
    );
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_removed_member_has_under_way_is_there_when_the_removal_is_answered_or_never() {
    // The member's message passed the door and is on its way to the store.
    let stack = late(&["messages.append"]).await;
    let (alice, bob) = (signup(&stack, "alice").await, signup(&stack, "bob").await);
    let group = conversation(&stack, &alice, "group", &[&bob]).await;
    let mut b = Socket::open(&bob).await;
    b.say(json!({"type": "send", "uuid": Uuid::new_v4(), "conversation": group, "body": "just before"})).await;
    tokio::time::sleep(MEANWHILE).await;
    remove_member(&stack, &alice, &group, &bob).await;
    let stored = async || {
        let answer = crate::client::sync(&stack, &alice, &group, 0).await;
        answer["messages"].as_array().expect("a list").len()
    };
    let at_the_answer = stored().await;
    tokio::time::sleep(2 * LATE).await;
    assert_eq!(stored().await, at_the_answer);
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_the_registry_leaves_out_for_a_moment_are_told_of_a_removal() {
    let mut config = config();
    config.api.bulk_accounts = true;
    let stack = Stack::start(config).await.expect("starts");
    let people = crowd(&stack, "crowd", 103).await;
    let channel = conversation(&stack, &people[0], "group", &people[1..].iter().collect::<Vec<_>>()).await;
    let mut owner = Socket::open(&people[0]).await;
    let mut reader = Socket::open(&people[1]).await;
    reader.say(json!({"type": "subscribe", "conversation": channel})).await;
    let first = owner.send(&channel, Uuid::new_v4(), "for all").await;
    while reader.next_of("head").await["id"].as_u64() != Some(first) {}
    // As after an outage of it: nobody is listed until the servers announce themselves again.
    let registry = &stack.backends().registry;
    for entry in registry.list(Role::Chat).await.expect("answers") {
        registry.withdraw(&entry.name, entry.epoch).await.expect("withdraws");
    }
    remove_member(&stack, &people[0], &channel, &people[1]).await;
    let second = owner.send(&channel, Uuid::new_v4(), "for those who are left").await;
    let heard = reader.frames_for(Duration::from_secs(1)).await;
    assert!(heard.iter().all(|frame| frame["id"].as_u64() < Some(second)), "{heard:?}");
    stack.stop().await;
}
