//! Requests that can be read and make no sense, and those that may be repeated: a clear answer, and nothing is kept of them.

use chatctl::stack::Stack;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::client::{Socket, config, conversation, http, login, signup, start, sync};

async fn signed_up(stack: &Stack, name: &str) -> u16 {
    http(stack, "POST", "/signup", "", &json!({"name": name, "password": "password"})).await.0
}

async fn logs_in(stack: &Stack, name: &str, password: &str, earlier: &str) -> u16 {
    let credentials = json!({"name": name, "password": password, "device": "phone"});
    http(stack, "POST", "/login", earlier, &credentials).await.0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_has_one_form_and_nothing_invisible() {
    let stack = start().await;
    let person = signup(&stack, "Zoë Anna").await;
    let (_, me) = http(&stack, "GET", "/me", &person.token, &Value::Null).await;
    assert_eq!((me["name"].as_str(), me["display_name"].as_str()), (Some("zoë anna"), Some("Zoë Anna")));
    for same in ["zoë anna", "ZOË ANNA", "Zoe\u{308} Anna", "ｚoë anna"] {
        assert_eq!(signed_up(&stack, same).await, 409, "{same:?}");
        assert_eq!(logs_in(&stack, same, "password", "").await, 200, "{same:?}");
    }
    for bad in ["", " a", "a ", "a\u{200b}", "a\u{0}b", "\u{202e}a", "раyраl", "👍", &"x".repeat(65)] {
        assert_eq!(signed_up(&stack, bad).await, 400, "{bad:?}");
        assert_eq!(logs_in(&stack, bad, "password", "").await, 401, "{bad:?}");
    }
    for (name, status) in [("Team 🏳\u{fe0f}\u{200d}🌈", 201), ("a\u{0}b", 400), ("a\nb", 400), ("\u{200b}", 400)] {
        let group = json!({"kind": "group", "members": [], "name": name});
        assert_eq!(http(&stack, "POST", "/conversations", &person.token, &group).await.0, status, "{name:?}");
    }
    let odd = "/users?name=a%00b";
    assert_eq!(http(&stack, "GET", odd, &person.token, &Value::Null).await.0, 404);
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_names_what_is_wrong_in_words_of_ours() {
    let stack = start().await;
    let (alice, gone) = (signup(&stack, "alice").await, signup(&stack, "gone").await);
    assert_eq!(http(&stack, "POST", "/logout", &gone.token, &Value::Null).await.0, 204);
    let account = |name: &str| json!({"name": name, "password": "password"});
    for (method, path, token, body, status, wanted) in [
        ("GET", "/conversations/abc", &alice.token, Value::Null, 400, "\"abc\" in the path is no valid"),
        ("GET", "/users/%ff", &alice.token, Value::Null, 400, "the path is no UTF-8"),
        ("GET", "/users", &alice.token, Value::Null, 400, "the query can't be read: missing field"),
        ("POST", "/signup", &alice.token, Value::Null, 400, "the body is no JSON: EOF"),
        ("POST", "/signup", &alice.token, account(""), 400, "name has 1 to 64 characters"),
        ("GET", "/me", &gone.token, Value::Null, 401, "token is missing, forged, expired or logged out: log in again"),
    ] {
        let (was, answer) = http(&stack, method, path, token, &body).await;
        let told = answer.to_string().replace("\\\"", "\"");
        assert_eq!(was, status, "{path}: {told}");
        assert!(told.contains(wanted), "{path}: {told}");
        assert!(!told.contains("Failed to") && !told.contains("Invalid URL"), "a library's words: {told}");
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direct_conversation_has_no_name() {
    let stack = start().await;
    let (alice, bob) = (signup(&stack, "alice").await, signup(&stack, "bob").await);
    let named = json!({"kind": "direct", "members": [bob.id], "name": "us two"});
    assert_eq!(http(&stack, "POST", "/conversations", &alice.token, &named).await.0, 400);
    conversation(&stack, &alice, "direct", &[&bob]).await;
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_guesses_passwords_locks_out_nobody_who_was_here_before() {
    let mut config = config();
    config.api.logins_per_second = 1;
    let stack = Stack::start(config).await.expect("starts");
    let alice = signup(&stack, "alice").await;
    let mut answers = Vec::new();
    for n in 0..30 {
        answers.push(logs_in(&stack, "alice", &format!("password-{n}"), "").await);
    }
    assert!(answers.contains(&401) && answers.ends_with(&[429]), "{answers:?}");
    assert_eq!(logs_in(&stack, "alice", "password", "").await, 429, "this address has had its tries");
    assert_eq!(http(&stack, "POST", "/logout", &alice.token, &Value::Null).await.0, 204);
    assert_eq!(logs_in(&stack, "alice", "password", &alice.token).await, 200, "who shows an earlier token has its own");
    let bob = signup(&stack, "bob").await;
    assert_eq!(logs_in(&stack, "alice", "password", &bob.token).await, 429, "somebody else's token is of no use");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_and_replies_are_of_messages_that_are_there() {
    let stack = start().await;
    let (alice, bob) = (signup(&stack, "alice").await, signup(&stack, "bob").await);
    let talk = conversation(&stack, &alice, "direct", &[&bob]).await;
    let (mut a, mut b) = (Socket::open(&alice).await, Socket::open(&bob).await);
    let mut ids = Vec::new();
    for text in ["one", "two", "three"] {
        ids.push(a.send(&talk, Uuid::new_v4(), text).await);
        b.next_of("message").await;
    }
    let receipt = |upto: u64| json!({"type": "receipt", "conversation": talk, "status": "read", "upto": upto});
    for beyond in [ids[2] + 1, 1 << 63, u64::MAX] {
        b.say(receipt(beyond)).await;
        assert_eq!(b.next_of("error").await["code"], "bad_request", "{beyond}");
    }
    // The middle one is below what is known by then: nobody is told of it.
    for upto in [ids[1], ids[0], ids[2]] {
        b.say(receipt(upto)).await;
    }
    assert_eq!(a.next_of("receipt").await["upto"], ids[1]);
    assert_eq!(a.next_of("receipt").await["upto"], ids[2]);
    let path = format!("/conversations/{talk}/receipts");
    let (_, stored) = http(&stack, "GET", &path, &alice.token, &Value::Null).await;
    assert_eq!(stored["receipts"], json!([{"user": bob.id, "status": "read", "upto": ids[2]}]));

    let reply =
        |to: u64| json!({"type": "send", "uuid": Uuid::new_v4(), "conversation": talk, "body": "x", "reply_to": to});
    for nothing in [0, ids[2] + 1, 1 << 63, u64::MAX] {
        a.say(reply(nothing)).await;
        assert_eq!(a.next_of("error").await["code"], "not_found", "{nothing}");
    }
    a.say(reply(ids[0])).await;
    let id = a.next_of("ack").await["id"].as_u64().expect("an id");
    assert_eq!(b.next_of("message").await["reply_to"], ids[0]);
    let answer = sync(&stack, &bob, &talk, ids[2]).await;
    assert_eq!(
        answer["messages"].as_array().map(|rows| rows.iter().map(|m| m["id"].as_u64()).collect()),
        Some(vec![Some(id)])
    );
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_uuid_belongs_to_one_conversation() {
    let stack = start().await;
    let (alice, bob) = (signup(&stack, "alice").await, signup(&stack, "bob").await);
    let (here, there) =
        (conversation(&stack, &alice, "direct", &[&bob]).await, conversation(&stack, &alice, "group", &[&bob]).await);
    let mut a = Socket::open(&alice).await;
    let uuid = Uuid::new_v4();
    let id = a.send(&here, uuid, "here").await;
    a.say(json!({"type": "send", "uuid": uuid, "conversation": there, "body": "here"})).await;
    let refused = a.next_of("error").await;
    assert_eq!((&refused["code"], &refused["uuid"]), (&json!("conflict"), &json!(uuid)));
    assert_eq!(a.send(&here, uuid, "here").await, id, "a retry is none of it");
    // What was refused is not in use: the client had the wrong conversation.
    let fresh = Uuid::new_v4();
    a.say(json!({"type": "send", "uuid": fresh, "conversation": "c999", "body": "x"})).await;
    assert_eq!(a.next_of("error").await["code"], "not_a_member");
    a.send(&there, fresh, "x").await;
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_and_logging_out_may_be_repeated() {
    let stack = start().await;
    let (alice, bob) = (signup(&stack, "alice").await, signup(&stack, "bob").await);
    let group = conversation(&stack, &alice, "group", &[&bob]).await;
    let leave = format!("/conversations/{group}/members/{}", bob.id);
    for _ in 0..2 {
        assert_eq!(http(&stack, "DELETE", &leave, &bob.token, &Value::Null).await.0, 204);
        assert_eq!(http(&stack, "DELETE", &leave, &alice.token, &Value::Null).await.0, 204, "the owner's word, too");
    }
    let nowhere = format!("/conversations/c999/members/{}", bob.id);
    assert_eq!(http(&stack, "DELETE", &nowhere, &bob.token, &Value::Null).await.0, 204, "not told apart");
    assert_eq!(http(&stack, "DELETE", &nowhere, &alice.token, &Value::Null).await.0, 403, "somebody else's");
    for _ in 0..2 {
        assert_eq!(http(&stack, "POST", "/logout", &bob.token, &Value::Null).await.0, 204);
    }
    assert_eq!(http(&stack, "GET", "/me", &bob.token, &Value::Null).await.0, 401);
    login(&stack, "bob", "phone").await;
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_nothing_has_end_a_list() {
    let stack = start().await;
    let (alice, bob) = (signup(&stack, "alice").await, signup(&stack, "bob").await);
    let talk = conversation(&stack, &alice, "group", &[&bob]).await;
    let mut a = Socket::open(&alice).await;
    a.send(&talk, Uuid::new_v4(), "one").await;
    for beyond in [i64::MAX as u64, 1 << 63, u64::MAX] {
        for (path, list) in [
            (format!("/conversations?after_conversation_id=c{beyond}"), "conversations"),
            (format!("/inbox/sync?after_conversation_id=c{beyond}"), "conversations"),
            (format!("/conversations/{talk}/members?after_user_id=u{beyond}"), "members"),
            (format!("/messages/sync?conversation_id={talk}&after_message_id={beyond}"), "messages"),
        ] {
            let (status, answer) = http(&stack, "GET", &path, &alice.token, &Value::Null).await;
            assert_eq!((status, &answer[list]), (200, &json!([])), "{path}: {answer}");
        }
        let path = format!("/messages/sync?conversation_id=c{beyond}");
        assert_eq!(http(&stack, "GET", &path, &alice.token, &Value::Null).await.0, 403);
        assert_eq!(http(&stack, "GET", &format!("/users/u{beyond}"), &alice.token, &Value::Null).await.0, 404);
    }
    let (_, page) =
        http(&stack, "GET", &format!("/conversations/{talk}/members?limit=1"), &alice.token, &Value::Null).await;
    assert_eq!(page, json!({"members": [alice.id], "has_more": true}));
    stack.stop().await;
}
