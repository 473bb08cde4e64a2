use axum::body::to_bytes;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::Value;

use super::extract::{Caller, InPath};
use super::*;
use crate::backends::directory::{NewConversationRow, NewUser};
use crate::backends::layers::Pace;
use crate::protocol::ConversationId;
use crate::protocol::api::ConversationKind;
use crate::protocol::frames::SendFrame;
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
                _ => read(conversations::receipts(app, eve, here).await).await,
            }
        };
        let (answer, ()) = tokio::join!(asked, meanwhile);
        assert_eq!(answer.0, StatusCode::FORBIDDEN, "{held_up}");
    }
}
