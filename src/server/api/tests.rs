use axum::body::to_bytes;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::Value;

use super::extract::{Caller, InPath};
use super::*;
use crate::backends::directory::{NewConversationRow, NewUser};
use crate::backends::layers::Pace;
use crate::protocol::api::ConversationKind;
use crate::protocol::frames::SendFrame;
use crate::protocol::{ConversationId, UserId};
use crate::server::bench::{Bench, Gate};
use crate::server::http::extract::Params;

/// An API server without listeners, with calls of one operation held up.
pub(super) struct Place {
    pub(super) server: Arc<ApiServer>,
    pub(super) gate: Arc<Gate>,
    _bench: Bench,
}

impl Place {
    pub(super) async fn new(held_up: &'static str) -> Self {
        let bench = Bench::new(Role::Api, "api-1", |backends| backends).await;
        let gate = Gate::new(held_up);
        let pace: Arc<dyn Pace> = Arc::clone(&gate) as Arc<dyn Pace>;
        let deps = Deps { backends: bench.deps.backends.paced(&pace), ..bench.deps.clone() };
        let server = ApiServer::new(deps, Config::default()).await.expect("starts");
        Self { server: Arc::new(server), gate, _bench: bench }
    }

    pub(super) async fn user(&self, name: &str) -> UserId {
        let new = NewUser { name: name.to_owned(), display_name: name.to_owned(), password_hash: "x".to_owned() };
        self.server.deps.backends.directory.add_user(&new).await.expect("adds")
    }

    pub(super) async fn group(&self, members: &[UserId]) -> ConversationId {
        let (kind, members) = (ConversationKind::Group, members.to_vec());
        let new = NewConversationRow { kind, name: "g".to_owned(), owner: members[0], members };
        self.server.deps.backends.directory.add_conversation(&new).await.expect("adds")
    }

    pub(super) async fn says(&self, user: UserId, conversation: ConversationId, body: &str) {
        let text = serde_json::json!({"uuid": Uuid::new_v4(), "conversation": conversation, "body": body});
        let frame: SendFrame = serde_json::from_value(text).expect("a frame");
        self.server.ordering.store(user, &frame).await.expect("stores");
    }

    pub(super) fn caller(&self, user: UserId) -> Caller {
        Caller(self.server.deps.tokens.issue(user, &"phone".parse().expect("a name")).1)
    }

    pub(super) fn app(&self) -> App {
        State(Arc::clone(&self.server))
    }
}

/// What was answered.
pub(super) async fn read(answer: impl IntoResponse) -> (StatusCode, Value) {
    let response = answer.into_response();
    let status = response.status();
    let bytes = to_bytes(response.into_body(), usize::MAX).await.expect("a body");
    (status, serde_json::from_slice(&bytes).expect("JSON"))
}

fn query<T: serde::de::DeserializeOwned>(value: Value) -> Params<T> {
    Params(serde_json::from_value(value).expect("a query"))
}

/// Removes a user while a request of theirs is held up, has something said, and lets the request go on.
async fn remove_meanwhile(place: &Place, owner: UserId, user: UserId, conversation: ConversationId) {
    place.gate.reached().await;
    let removed = conversations::remove_member(place.app(), place.caller(owner), InPath((conversation, user))).await;
    assert_eq!(removed.ok(), Some(StatusCode::NO_CONTENT));
    // What the registry has every API server do, this one too.
    place.server.handle(Call::MembersChanged { conversation, members: 1 }).await;
}

#[tokio::test]
async fn a_sync_that_waited_shows_a_removed_member_nothing() {
    let place = Place::new("messages.head").await;
    let (ann, eve) = (place.user("ann").await, place.user("eve").await);
    let group = place.group(&[ann, eve]).await;
    let page = sync::messages(place.app(), place.caller(eve), query(serde_json::json!({"conversation_id": group})));
    let meanwhile = async {
        remove_meanwhile(&place, ann, eve, group).await;
        place.gate.open();
        place.says(ann, group, "eve is gone").await;
    };
    let (page, ()) = tokio::join!(page, meanwhile);
    assert_eq!(read(page).await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn members_receipts_and_the_row_are_not_shown_to_who_was_removed_meanwhile() {
    for held_up in ["directory.members", "directory.receipts"] {
        let place = Place::new(held_up).await;
        let (ann, eve) = (place.user("ann").await, place.user("eve").await);
        let group = place.group(&[ann, eve]).await;
        let meanwhile = async {
            remove_meanwhile(&place, ann, eve, group).await;
            place.gate.open();
        };
        let (app, eve, here) = (place.app(), place.caller(eve), InPath(group));
        let asked = async {
            match held_up {
                "directory.members" => {
                    read(conversations::members(app, eve, here, query(serde_json::json!({}))).await).await
                }
                _ => read(conversations::receipts(app, eve, here, query(serde_json::json!({}))).await).await,
            }
        };
        let (answer, ()) = tokio::join!(asked, meanwhile);
        assert_eq!(answer.0, StatusCode::FORBIDDEN, "{held_up}");
    }
}

#[tokio::test]
async fn an_inbox_is_looked_through_bit_by_bit_and_goes_on_where_it_stopped() {
    let place = Place::new("nothing").await;
    let ann = place.user("ann").await;
    let mut groups = Vec::new();
    for _ in 0..730 {
        groups.push(place.group(&[ann]).await);
    }
    for n in [711, 720] {
        place.says(ann, groups[n], "news").await;
    }
    let (mut listed, mut after, mut requests) = (Vec::new(), None, 0);
    loop {
        let asked = serde_json::json!({"limit": 1, "after_conversation_id": after});
        let (status, page) = read(sync::inbox(place.app(), place.caller(ann), query(asked)).await).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        listed.extend(page["conversations"].as_array().expect("a list").iter().map(|row| row["conversation"].clone()));
        requests += 1;
        if page["has_more"] == false {
            assert!(page["after_conversation_id"].is_null());
            break;
        }
        assert_ne!(page["after_conversation_id"], serde_json::json!(after));
        after = Some(page["after_conversation_id"].as_str().expect("where to go on").to_owned());
    }
    let wanted: Vec<Value> = [711, 720].iter().map(|n| serde_json::json!(groups[*n])).collect();
    assert_eq!((listed, requests), (wanted, 3), "the first one found nothing");
}

#[tokio::test]
async fn an_inbox_shows_nothing_of_a_conversation_that_the_user_was_removed_from_meanwhile() {
    let place = Place::new("sequence.newest").await;
    let (ann, eve) = (place.user("ann").await, place.user("eve").await);
    let (group, other) = (place.group(&[ann, eve]).await, place.group(&[ann, eve]).await);
    for conversation in [group, other] {
        place.says(ann, conversation, "hello").await;
    }
    let page = sync::inbox(place.app(), place.caller(eve), query(serde_json::json!({})));
    let meanwhile = async {
        remove_meanwhile(&place, ann, eve, group).await;
        place.gate.open();
    };
    let (page, ()) = tokio::join!(page, meanwhile);
    let (_, page) = read(page).await;
    assert_eq!(page["conversations"].as_array().map(Vec::len), Some(1), "{page}");
    assert_eq!(page["conversations"][0]["conversation"], serde_json::json!(other));
}

#[tokio::test]
async fn receipts_come_in_pages_of_members() {
    use crate::protocol::frames::ReceiptStatus;
    use crate::protocol::{MessageId, api::Receipt};
    let place = Place::new("nothing").await;
    let ann = place.user("ann").await;
    let group = place.group(&[ann]).await;
    for (user, statuses) in [(7, 1), (8, 2), (9, 2), (10, 1)] {
        for status in &ReceiptStatus::ALL[..statuses] {
            let receipt = Receipt { user: UserId(user), status: *status, upto: MessageId(5) };
            place.server.deps.backends.directory.raise_receipt(group, &receipt).await.expect("raises");
        }
    }
    let page = async |asked: Value| {
        let page = conversations::receipts(place.app(), place.caller(ann), InPath(group), query(asked)).await;
        let (_, page) = read(page).await;
        let users = page["receipts"].as_array().expect("a list").iter().map(|row| row["user"].to_string());
        (users.collect::<Vec<_>>().join(" ").replace('"', ""), page["has_more"] == true)
    };
    assert_eq!(page(serde_json::json!({})).await, ("u7 u8 u8 u9 u9 u10".to_owned(), false));
    assert_eq!(page(serde_json::json!({"limit": 2})).await, ("u7 u8 u8".to_owned(), true));
    assert_eq!(page(serde_json::json!({"limit": 1, "after_user_id": "u7"})).await, ("u8 u8".to_owned(), true));
    assert_eq!(page(serde_json::json!({"limit": 2, "after_user_id": "u8"})).await, ("u9 u9 u10".to_owned(), false));
}

#[tokio::test]
async fn a_user_has_a_number_of_friends() {
    const MOST: usize = 2;
    let place = Place::new("nothing").await;
    let mut users = Vec::new();
    for name in ["ann", "bob", "cleo", "dan"] {
        users.push(place.user(name).await);
    }
    for friend in &users[1..=MOST] {
        assert!(accounts::check_friends(&place.server, users[0], *friend, MOST).await.is_ok(), "there is room");
        place.server.deps.backends.directory.set_friends(users[0], *friend, true).await.expect("sets");
    }
    for (a, b, whose) in [(0, 3, "you have 2 friends"), (3, 0, "the other one has 2 friends")] {
        let refused = accounts::check_friends(&place.server, users[a], users[b], MOST).await.expect_err("too many");
        let (status, answer) = read(refused).await;
        let message = answer["message"].as_str().expect("a message");
        assert!(status == StatusCode::PAYLOAD_TOO_LARGE && message.starts_with(whose), "{answer}");
    }
    assert!(accounts::check_friends(&place.server, users[1], users[0], MOST).await.is_ok(), "they are friends already");
}

#[tokio::test]
async fn an_address_has_a_rate_of_signups() {
    let place = Place::new("nothing").await;
    let address = |n: u8| IpAddr::from([10, 0, 0, n]);
    let most = place.server.config.signups_per_second * crate::server::access::rate::BURST_S;
    for _ in 0..most {
        assert!(place.server.signups.take(address(1)).is_ok());
    }
    for (from, wanted) in [(1, StatusCode::TOO_MANY_REQUESTS), (2, StatusCode::CREATED)] {
        let body = serde_json::json!({"name": "onemore", "password": "long enough"});
        let body = extract::Body(serde_json::from_value(body).expect("a body"));
        let from = extract::ClientAddress(address(from));
        assert_eq!(read(accounts::signup(place.app(), from, body).await).await.0, wanted);
    }
}

#[tokio::test]
async fn a_change_is_made_to_its_end_also_where_its_client_hangs_up() {
    let place = Place::new("directory.remove_member").await;
    let (ann, eve) = (place.user("ann").await, place.user("eve").await);
    let group = place.group(&[ann, eve]).await;
    tokio::select! {
        answer = conversations::remove_member(place.app(), place.caller(ann), InPath((group, eve))) => {
            panic!("it is held up: {:?}", answer.ok());
        }
        () = place.gate.reached() => {}
    }
    // The request is dropped by now.
    place.gate.open();
    let is_removed = async {
        while place.server.deps.backends.directory.is_member(group, eve).await.expect("reads") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), is_removed).await.expect("is carried out");
}
