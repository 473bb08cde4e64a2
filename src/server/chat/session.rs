//! What a client's frame means: one frame in, one action out. No I/O, no clock.

use crate::protocol::frames::{ErrorFrame, FrameError, SendFrame, SendReceiptFrame, SubscribeFrame};
use crate::protocol::{ClientFrame, CloseCode, ConversationId, ErrorCode, Limits, ServerFrame};
use crate::server::access::rate::Bucket;

/// What the connection must do.
#[derive(Debug, PartialEq)]
pub(super) enum Action {
    /// Answer at once.
    Reply(ServerFrame),
    /// Note a heartbeat.
    Beat,
    /// Work that needs engines, done in order within a conversation.
    Do(Request),
    /// End the connection.
    Close(CloseCode),
}

/// Work that needs engines.
#[derive(Debug, PartialEq)]
pub(super) enum Request {
    Send(SendFrame),
    Typing(ConversationId),
    Receipt(SendReceiptFrame),
    Subscribe(SubscribeFrame),
    Unsubscribe(ConversationId),
}

impl Request {
    /// The message that it is, if it is one.
    pub(super) const fn uuid(&self) -> Option<uuid::Uuid> {
        match self {
            Self::Send(SendFrame { uuid, .. }) => Some(*uuid),
            Self::Receipt(_) | Self::Typing(_) | Self::Subscribe(_) | Self::Unsubscribe(_) => None,
        }
    }

    /// Which conversation it is about; those of one are done in order.
    pub(super) const fn conversation(&self) -> ConversationId {
        match self {
            Self::Send(SendFrame { conversation, .. })
            | Self::Receipt(SendReceiptFrame { conversation, .. })
            | Self::Typing(conversation)
            | Self::Subscribe(SubscribeFrame { conversation, .. })
            | Self::Unsubscribe(conversation) => *conversation,
        }
    }
}

/// The part of a connection that only its reader touches.
#[derive(Debug, Default)]
pub(super) struct SessionState {
    rate: Bucket,
    /// Frames refused for their rate since the last one that was not.
    refused: u16,
}

/// Refused frames in a row after which a client is cut: it does not listen.
const REFUSED_MAX: u16 = 1_000;

impl SessionState {
    /// Handles one text message.
    pub(super) fn on_text(&mut self, text: &str, limits: &Limits, now_ms: u32) -> Action {
        let frame = ClientFrame::decode(text);
        if let Err(wait) = self.rate.take(limits.frames_per_second, now_ms) {
            self.refused = self.refused.saturating_add(1);
            if self.refused > REFUSED_MAX {
                return Action::Close(CloseCode::RateLimited);
            }
            let uuid = match &frame {
                Ok(ClientFrame::Send(send)) => Some(send.uuid),
                _ => None,
            };
            let message = format!("more than {} frames per second", limits.frames_per_second);
            return error(uuid, ErrorCode::RateLimited, message, Some(wait.as_millis() as u64));
        }
        self.refused = 0;
        match frame {
            Ok(frame) => on_frame(frame, limits),
            Err(bad) => refuse(&bad, text),
        }
    }
}

fn on_frame(frame: ClientFrame, limits: &Limits) -> Action {
    match frame {
        ClientFrame::Beat => Action::Beat,
        ClientFrame::Ping => Action::Reply(ServerFrame::Pong),
        ClientFrame::Send(send) => check_send(send, limits),
        ClientFrame::Typing(f) => Action::Do(Request::Typing(f.conversation)),
        ClientFrame::Receipt(f) => Action::Do(Request::Receipt(f)),
        ClientFrame::Subscribe(f) => Action::Do(Request::Subscribe(f)),
        ClientFrame::Unsubscribe(f) => Action::Do(Request::Unsubscribe(f.conversation)),
        ClientFrame::Hello(_) => {
            error(None, ErrorCode::BadRequest, "this connection is authenticated already".to_owned(), None)
        }
    }
}

fn check_send(send: SendFrame, limits: &Limits) -> Action {
    let too_large = send.body.len() > limits.body_bytes_max as usize;
    if too_large {
        let message = format!("body has {} bytes, the limit is {}", send.body.len(), limits.body_bytes_max);
        return error(Some(send.uuid), ErrorCode::TooLarge, message, None);
    }
    let kind_fits = (1..=crate::protocol::frames::KIND_BYTES_MAX).contains(&send.kind.len());
    if !kind_fits {
        let message = "kind has 1 to 32 bytes, such as \"text\"".to_owned();
        return error(Some(send.uuid), ErrorCode::BadRequest, message, None);
    }
    Action::Do(Request::Send(send))
}

/// An error for a frame that could not be read; it names the message when at least the uuid could.
fn refuse(bad: &FrameError, text: &str) -> Action {
    #[derive(serde::Deserialize)]
    struct UuidOnly {
        uuid: uuid::Uuid,
    }
    let uuid = serde_json::from_str::<UuidOnly>(text).ok().map(|f| f.uuid);
    error(uuid, bad.code(), bad.to_string(), None)
}

fn error(uuid: Option<uuid::Uuid>, code: ErrorCode, message: String, retry_after_ms: Option<u64>) -> Action {
    Action::Reply(ServerFrame::Error(ErrorFrame { uuid, code, message, retry_after_ms }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(text: &str) -> Action {
        SessionState::default().on_text(text, &Limits::default(), 1_000)
    }

    fn code(action: Action) -> ErrorCode {
        match action {
            Action::Reply(ServerFrame::Error(e)) => e.code,
            other => panic!("not an error: {other:?}"),
        }
    }

    const UUID: &str = "6f2c3c7e-0f5b-4f0e-9a8a-1c1f1e1d1c1b";

    #[test]
    fn frames_become_actions() {
        assert_eq!(on(r#"{"type":"beat"}"#), Action::Beat);
        assert_eq!(on(r#"{"type":"ping"}"#), Action::Reply(ServerFrame::Pong));
        assert_eq!(on(r#"{"type":"typing","conversation":"c3"}"#), Action::Do(Request::Typing(ConversationId(3))));
    }

    #[test]
    fn bad_frames_get_an_error_and_keep_the_connection() {
        assert_eq!(code(on("nonsense")), ErrorCode::BadRequest);
        assert_eq!(code(on(r#"{"type":"nonsense"}"#)), ErrorCode::UnknownType);
        assert_eq!(code(on(r#"{"type":"hello","token":"x"}"#)), ErrorCode::BadRequest);
    }

    #[test]
    fn a_refused_send_names_its_uuid() {
        let text = format!(r#"{{"type":"send","uuid":"{UUID}","conversation":"nowhere","body":"x"}}"#);
        let Action::Reply(ServerFrame::Error(e)) = on(&text) else { panic!("not an error") };
        assert_eq!(e.uuid.map(|u| u.to_string()).as_deref(), Some(UUID));
        let big = "x".repeat(65_000);
        let text = format!(r#"{{"type":"send","uuid":"{UUID}","conversation":"c1","body":"{big}"}}"#);
        assert_eq!(code(on(&text)), ErrorCode::TooLarge);
        let text = format!(r#"{{"type":"send","uuid":"{UUID}","conversation":"c1","body":"x","kind":""}}"#);
        assert_eq!(code(on(&text)), ErrorCode::BadRequest);
    }

    #[test]
    fn too_many_frames_are_refused_and_then_cut() {
        let mut state = SessionState::default();
        let limits = Limits { frames_per_second: 1, ..Limits::default() };
        let mut on = || state.on_text(r#"{"type":"beat"}"#, &limits, 1_000);
        assert_eq!((0..10).filter(|_| on() == Action::Beat).count(), 10);
        assert_eq!(code(on()), ErrorCode::RateLimited);
        assert!((0..2_000).any(|_| on() == Action::Close(CloseCode::RateLimited)));
    }
}
