//! The frames of `chatctl.v1`: JSON objects in WebSocket text messages, told apart by their `type`.
//!
//! Decoding reads the `type` first and then the one struct that belongs to it, so that an error names the frame and no
//! value is buffered. Unknown fields are ignored (a newer client may send them), an unknown `type` is an error.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{ConversationId, DeviceName, ErrorCode, Limits, MessageId, ServerName, SessionId, UserId};

/// A text that is not a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Not a JSON object with a `type`.
    #[error("a frame is a JSON object with a \"type\": {0}")]
    NoType(serde_json::Error),
    /// The `type` is not one of this direction.
    #[error("unknown frame type {found:?}: valid types are {valid}")]
    UnknownType {
        /// What was there.
        found: String,
        /// What could have been there.
        valid: &'static str,
    },
    /// A field is missing or has a wrong value.
    #[error("bad {frame} frame: {source}")]
    BadField {
        /// The frame's type.
        frame: &'static str,
        /// What the reader stumbled on.
        source: serde_json::Error,
    },
}

impl FrameError {
    /// The code for an `error` frame.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::UnknownType { .. } => ErrorCode::UnknownType,
            Self::NoType(_) | Self::BadField { .. } => ErrorCode::BadRequest,
        }
    }
}

#[derive(Deserialize)]
struct TypeOnly<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
}

macro_rules! frames {
    (
        $(#[$doc:meta])* $name:ident {
            $( $(#[$vdoc:meta])* $variant:ident = $text:literal $( ( $payload:ty ) )? ),* $(,)?
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(tag = "type")]
        pub enum $name {
            $( $(#[$vdoc])* #[serde(rename = $text)] $variant $( ($payload) )? ),*
        }

        impl $name {
            /// Valid values of `type`, for error messages and documents.
            pub const TYPES: &'static [&'static str] = &[$($text),*];
            const TYPES_TEXT: &'static str = frames!(@list $($text),*);

            /// Reads one frame from a text message.
            ///
            /// # Errors
            /// [`FrameError`] names the frame and the field.
            pub fn decode(text: &str) -> Result<Self, FrameError> {
                if !text.trim_start().starts_with('{') {
                    // A list would be taken for an object's values in their order.
                    return Err(FrameError::NoType(serde::de::Error::custom("this is no object")));
                }
                let TypeOnly { kind } = serde_json::from_str(text).map_err(FrameError::NoType)?;
                match kind.as_ref() {
                    $( $text => frames!(@read $variant, $text, text $(, $payload)?), )*
                    other => Err(FrameError::UnknownType {
                        found: other.chars().take(40).collect(),
                        valid: Self::TYPES_TEXT,
                    }),
                }
            }

            /// Writes the frame as one text message.
            #[must_use]
            pub fn encode(&self) -> String {
                serde_json::to_string(self).expect("frames have string keys and finite numbers")
            }
        }
    };
    (@list $first:literal $(, $rest:literal)*) => { concat!($first $(, ", ", $rest)*) };
    (@read $variant:ident, $text:literal, $input:ident) => { Ok(Self::$variant) };
    (@read $variant:ident, $text:literal, $input:ident, $payload:ty) => {
        serde_json::from_str::<$payload>($input)
            .map(Self::$variant)
            .map_err(|source| FrameError::BadField { frame: $text, source })
    };
}

frames!(
    /// What a client says.
    ClientFrame {
        /// Authenticates the connection when the `Authorization` header could not.
        Hello = "hello"(HelloFrame),
        /// Sends a message.
        Send = "send"(SendFrame),
        /// "I am here", every `welcome.heartbeat_s` seconds.
        Beat = "beat",
        /// The user is typing; passed on to members that are online, never stored.
        Typing = "typing"(ConversationFrame),
        /// Everything up to an id has been delivered or read.
        Receipt = "receipt"(SendReceiptFrame),
        /// Asks for the messages of a large channel, or for `head` frames of it.
        Subscribe = "subscribe"(SubscribeFrame),
        /// Ends a subscription.
        Unsubscribe = "unsubscribe"(ConversationFrame),
        /// Asks for a `pong`.
        Ping = "ping",
    }
);

frames!(
    /// What a server says.
    ServerFrame {
        /// The connection is authenticated and live.
        Welcome = "welcome"(WelcomeFrame),
        /// A message is stored and on its way.
        Ack = "ack"(AckFrame),
        /// Something was refused or failed.
        Error = "error"(ErrorFrame),
        /// A message for this device.
        Message = "message"(MessageFrame),
        /// A member has delivered or read up to an id.
        Receipt = "receipt"(ReceiptFrame),
        /// A member is typing.
        Typing = "typing"(TypingFrame),
        /// A friend came online or went offline.
        Presence = "presence"(PresenceFrame),
        /// A large channel has news up to this id that were not sent: fetch through sync.
        Head = "head"(HeadFrame),
        /// A conversation has become a large channel, to which the server has subscribed this connection; or is none any more.
        Conversation = "conversation"(ConversationChangeFrame),
        /// The server will close this connection: come back after the time given.
        Moved = "moved"(MovedFrame),
        /// Answer to `ping`.
        Pong = "pong",
    }
);

/// Payload of `hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloFrame {
    /// The token that login returned.
    pub token: String,
}

/// Payload of `send`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendFrame {
    /// Chosen by the client, one per message; a retry carries the same one.
    pub uuid: Uuid,
    /// Where to.
    pub conversation: ConversationId,
    /// What the body is: `text`, `image`, … (1 to 32 characters).
    #[serde(default = "default_kind")]
    pub kind: String,
    /// The message itself.
    pub body: String,
    /// The message that this one answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<MessageId>,
}

/// Longest `kind`, in bytes.
pub const KIND_BYTES_MAX: usize = 32;

fn default_kind() -> String {
    "text".to_owned()
}

/// Payload of the frames that only name a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConversationFrame {
    /// Which one.
    pub conversation: ConversationId,
}

/// What a subscription to a large channel brings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deliver {
    /// A `head` frame now and then, which says up to which id there is news.
    #[default]
    Heads,
    /// Each message; a [`HeadFrame`] in place of those that the server does not send: past the channel's rate, while the
    /// server is behind, or while the connection reads slowly.
    Messages,
}

/// Payload of `subscribe`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscribeFrame {
    /// To which channel.
    pub conversation: ConversationId,
    /// What is wanted of it. Once more with another value changes it.
    #[serde(default)]
    pub deliver: Deliver,
}

/// How far a message got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReceiptStatus {
    /// It is on the device.
    Delivered,
    /// The person saw it.
    Read,
}

impl ReceiptStatus {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Delivered, Self::Read];
}

/// Payload of a client's `receipt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendReceiptFrame {
    /// Which conversation.
    pub conversation: ConversationId,
    /// Delivered or read.
    pub status: ReceiptStatus,
    /// Every id up to this one.
    pub upto: MessageId,
}

/// Payload of `welcome`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WelcomeFrame {
    /// This connection.
    pub session: SessionId,
    /// The server that holds it.
    pub server: ServerName,
    /// Who the token belongs to.
    pub user: UserId,
    /// Which device the token was made for.
    pub device: DeviceName,
    /// Seconds between two `beat` frames.
    pub heartbeat_s: u32,
    /// What this connection may do.
    pub limits: Limits,
    /// The most that a `subscribe` can ask for. A server that does not say it knows heads only.
    #[serde(default)]
    pub channels: Deliver,
}

/// Payload of `ack`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckFrame {
    /// The message's uuid.
    pub uuid: Uuid,
    /// The conversation that it was sent to.
    pub conversation: ConversationId,
    /// Its id in the conversation.
    pub id: MessageId,
    /// When the server took it, in milliseconds since 1970.
    pub at: u64,
}

/// Payload of `error`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorFrame {
    /// The message that was refused, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
    /// When to try again, if trying again can help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// Payload of `message`, and one row of `GET /messages/sync`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageFrame {
    /// Where it was said.
    pub conversation: ConversationId,
    /// Its place in the conversation.
    pub id: MessageId,
    /// The uuid that its sender gave it.
    pub uuid: Uuid,
    /// Who said it.
    pub sender: UserId,
    /// What the body is.
    pub kind: String,
    /// The message itself.
    pub body: String,
    /// The message that this one answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<MessageId>,
    /// When the server took it, in milliseconds since 1970.
    pub at: u64,
}

/// Payload of a server's `receipt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptFrame {
    /// Which conversation.
    pub conversation: ConversationId,
    /// Whose receipt.
    pub user: UserId,
    /// Delivered or read.
    pub status: ReceiptStatus,
    /// Every id up to this one.
    pub upto: MessageId,
}

/// Payload of a server's `typing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypingFrame {
    /// Where.
    pub conversation: ConversationId,
    /// Who.
    pub user: UserId,
}

/// Whether somebody is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PresenceState {
    /// At least one device beats.
    Online,
    /// No device has beaten for 30 s.
    Offline,
}

/// Payload of `presence`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresenceFrame {
    /// The friend.
    pub user: UserId,
    /// Now.
    pub state: PresenceState,
    /// The friend's last beat, in milliseconds since 1970.
    pub at: u64,
}

/// Payload of `head`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadFrame {
    /// Which channel.
    pub conversation: ConversationId,
    /// The newest id that was not sent.
    pub id: MessageId,
}

/// Payload of a server's `conversation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConversationChangeFrame {
    /// Which one.
    pub conversation: ConversationId,
    /// True above 100 members: news come as `head` frames, or as messages once the client asks for them.
    pub large: bool,
}

/// Payload of `moved`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedFrame {
    /// Why.
    pub reason: String,
    /// When to come back.
    pub retry_after_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_send_reads_with_defaults() {
        let text = r#"{"type":"send","uuid":"6f2c3c7e-0f5b-4f0e-9a8a-1c1f1e1d1c1b","conversation":"c1","body":"hi"}"#;
        let ClientFrame::Send(send) = ClientFrame::decode(text).expect("valid") else { panic!("not a send") };
        assert_eq!((send.kind.as_str(), send.body.as_str(), send.reply_to), ("text", "hi", None));
    }

    #[test]
    fn an_unknown_type_lists_the_valid_ones() {
        let error = ClientFrame::decode(r#"{"type":"sent"}"#).expect_err("unknown");
        assert_eq!(error.code(), ErrorCode::UnknownType);
        assert!(error.to_string().contains("hello, send, beat"), "{error}");
    }

    #[test]
    fn a_missing_field_is_named() {
        let error = ClientFrame::decode(r#"{"type":"typing"}"#).expect_err("no conversation").to_string();
        assert!(error.contains("typing") && error.contains("conversation"), "{error}");
    }

    #[test]
    fn what_is_not_an_object_is_refused() {
        for text in ["", "[]", "[\"ping\"]", "1", "{", "{\"type\":1}", "null"] {
            assert_eq!(ClientFrame::decode(text).expect_err("bad").code(), ErrorCode::BadRequest, "{text}");
        }
    }

    #[test]
    fn every_frame_is_in_the_protocol_document() {
        let doc = include_str!("../../docs/protocol.md");
        for name in ClientFrame::TYPES.iter().chain(ServerFrame::TYPES) {
            assert!(doc.contains(&format!("\"type\":\"{name}\"")), "{name} has no example in docs/protocol.md");
        }
    }

    #[test]
    fn server_frames_read_back_what_they_write() {
        let frame = ServerFrame::Head(HeadFrame { conversation: ConversationId(7), id: MessageId(9) });
        assert_eq!(ServerFrame::decode(&frame.encode()).expect("valid"), frame);
        assert_eq!(ServerFrame::decode(&ServerFrame::Pong.encode()).expect("valid"), ServerFrame::Pong);
    }
}
