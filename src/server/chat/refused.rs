//! Why a client's request or connection was refused, as it is told.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::backends::error::{BackendError, Effect};
use crate::protocol::frames::ErrorFrame;
use crate::protocol::{ConversationId, ErrorCode, ServerFrame, UserId};
use crate::server::access::members::{MemberList, Members};
use crate::server::ordering::OrderingError;

/// When a client should retry after an engine failed, in ms; drawn at random, so that those who failed together do not
/// come back together.
pub(super) fn retry_after_ms() -> u64 {
    rand::random_range(800..2_500)
}

/// Why a user gets no seat now.
pub(super) enum NoSeat {
    /// None is free, or the user has as many connections as one may have.
    Full,
    /// The user connects too often, or has too many connections of this device. When to come back.
    TooOften(Duration),
}

impl NoSeat {
    /// As a client is told: the code, a message, and when to come back, in ms.
    pub(super) fn told(&self) -> (ErrorCode, &'static str, u64) {
        match self {
            Self::Full => {
                let message = "this server is full, or has as many connections of this user as it takes";
                (ErrorCode::Overloaded, message, retry_after_ms())
            }
            Self::TooOften(wait) => {
                let message = "this user connects too often, or this device has connections that have not ended yet";
                (ErrorCode::RateLimited, message, wait.as_millis() as u64)
            }
        }
    }
}

/// Why a request was refused.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) code: ErrorCode,
    message: String,
    retry_after_ms: Option<u64>,
}

impl Refused {
    pub(super) fn not_a_member(conversation: ConversationId) -> Self {
        Self::definite(ErrorCode::NotAMember, format!("you are not a member of {conversation}"))
    }

    pub(super) const fn definite(code: ErrorCode, message: String) -> Self {
        Self { code, message, retry_after_ms: None }
    }

    /// A look-up before anything was stored failed, however it did.
    pub(super) fn unread(error: BackendError) -> Self {
        BackendError { effect: Effect::NotApplied, ..error }.into()
    }

    /// A message is stored, and its recipients were not told.
    pub(super) fn unannounced(error: BackendError) -> Self {
        let message = "the message is stored, and an engine that tells its recipients did not answer: send it again with \
                       the same uuid";
        Self { message: message.to_owned(), ..error.into() }
    }

    /// Its time was over before it was begun.
    pub(super) fn too_late() -> Self {
        Self {
            code: ErrorCode::Unavailable,
            message: "requests before it in this conversation took too long; nothing was done for this one".to_owned(),
            retry_after_ms: Some(retry_after_ms()),
        }
    }

    /// Its time is over, and it is not done yet.
    pub(super) fn unanswered() -> Self {
        Self {
            code: ErrorCode::Unavailable,
            message: "an engine did not answer in time; what was asked for may be done still".to_owned(),
            retry_after_ms: Some(retry_after_ms()),
        }
    }

    pub(super) fn uuid_elsewhere() -> Self {
        let message = "this uuid belongs to a message of another conversation: each message has its own".to_owned();
        Self::definite(ErrorCode::Conflict, message)
    }

    /// The frame that says so, of a request with a uuid or without.
    pub(super) fn into_frame(self, uuid: Option<Uuid>) -> ServerFrame {
        let Self { code, message, retry_after_ms } = self;
        ServerFrame::Error(ErrorFrame { uuid, code, message, retry_after_ms })
    }
}

impl From<BackendError> for Refused {
    fn from(error: BackendError) -> Self {
        tracing::warn!(%error, "a request failed on an engine");
        let message = match error.effect {
            Effect::NotApplied => "an engine is not available; nothing was stored",
            Effect::Unknown => "an engine did not answer; the message may be stored: send it again with the same uuid",
        };
        Self {
            code: ErrorCode::Unavailable,
            message: message.to_owned(),
            retry_after_ms: Some(error.retry_after.map_or_else(retry_after_ms, |d| d.as_millis() as u64)),
        }
    }
}

impl From<OrderingError> for Refused {
    fn from(error: OrderingError) -> Self {
        match error {
            OrderingError::Backend(error) => error.into(),
            OrderingError::Conflict => Self::definite(ErrorCode::Conflict, error.to_string()),
            OrderingError::Overloaded => {
                Self { code: ErrorCode::Overloaded, message: error.to_string(), retry_after_ms: Some(retry_after_ms()) }
            }
        }
    }
}

/// The members of a conversation, if the user is one of them.
pub(super) async fn members_for(
    members: &Members,
    user: UserId,
    conversation: ConversationId,
) -> Result<Arc<MemberList>, Refused> {
    let members = members.of_member(conversation, user).await.map_err(Refused::unread)?;
    members.ok_or_else(|| Refused::not_a_member(conversation))
}
