//! What client and server say to each other: ids, frames, close codes, limits, and the WebSocket framing.
//!
//! What tools say to a supervisor about faults ([`fault`]) is here as well. Nothing does I/O or reads a clock. Both ends of the wire (the chat servers and the simulated clients) use
//! these types, and `docs/protocol.md` describes the same thing for other people's clients.

pub mod api;
pub mod close_code;
pub mod error_code;
pub mod fault;
pub mod frames;
pub mod ids;
pub mod limits;
pub mod websocket;

pub use close_code::CloseCode;
pub use error_code::ErrorCode;
pub use fault::Fault;
pub use frames::{ClientFrame, MessageFrame, ServerFrame};
pub use ids::{ConversationId, DeviceName, MessageId, ServerName, SessionId, UserId};
pub use limits::Limits;

/// The WebSocket subprotocol that both sides must name. A breaking change of the frames gets a new number.
pub const SUBPROTOCOL: &str = "chatctl.v1";

/// Path of the chat WebSocket on every chat server.
pub const CHAT_PATH: &str = "/ws";

/// Path of the transports without a socket on a chat server.
pub const POLL_PATH: &str = "/poll";

/// What a request's target has behind [`POLL_PATH`], without the query; `None` for any other target.
#[must_use]
pub fn behind_poll_path(target: &str) -> Option<&str> {
    let rest = target.split('?').next()?.strip_prefix(POLL_PATH)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

/// Path of the echo WebSocket, served only where the configuration switches it on.
pub const ECHO_PATH: &str = "/echo";
