//! The record of an inbox: what a chat server writes to the log for recipients on other servers, and what chat and push
//! read.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::protocol::{ConversationId, MessageFrame, MessageId, ServerFrame, SessionId, UserId, websocket};

/// First line of an inbox record; the rest is the `message` frame as it goes to the sockets, encoded once by the server
/// that took the message in.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct InboxHeader {
    /// Where it was said.
    #[serde(rename = "c")]
    pub(super) conversation: ConversationId,
    /// Which message.
    #[serde(rename = "i")]
    pub(super) id: MessageId,
    /// By whom.
    #[serde(rename = "s")]
    pub(super) sender: UserId,
    /// The session that sent it and needs no copy.
    #[serde(rename = "x", default, skip_serializing_if = "Option::is_none")]
    pub(super) except: Option<SessionId>,
}

impl InboxHeader {
    /// An inbox record's payload.
    pub(super) fn payload(message: &MessageFrame, except: Option<SessionId>) -> Bytes {
        let header = Self { conversation: message.conversation, id: message.id, sender: message.sender, except };
        let mut out = serde_json::to_vec(&header).expect("plain data");
        out.push(b'\n');
        out.extend_from_slice(&websocket::text_frame(&ServerFrame::Message(message.clone()).encode(), None));
        out.into()
    }

    /// The header, and the WebSocket frame, which shares the payload's memory.
    pub(super) fn parse(payload: &Bytes) -> Option<(Self, Bytes)> {
        let end = payload.iter().position(|b| *b == b'\n')?;
        let header = serde_json::from_slice(&payload[..end]).ok()?;
        Some((header, payload.slice(end + 1..)))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_other_bytes_are_none() {
        let message = MessageFrame {
            conversation: ConversationId(1),
            id: MessageId(2),
            uuid: Uuid::from_u128(3),
            sender: UserId(4),
            kind: "text".to_owned(),
            body: "two\nlines".to_owned(),
            reply_to: None,
            at: 5,
        };
        let except = Some(SessionId(Uuid::from_u128(6)));
        let payload = InboxHeader::payload(&message, except);
        let (header, frame) = InboxHeader::parse(&payload).expect("it is one");
        assert_eq!((header.conversation, header.id, header.sender), (message.conversation, message.id, message.sender));
        assert_eq!(header.except, except);
        assert_eq!(frame[..], websocket::text_frame(&ServerFrame::Message(message).encode(), None)[..]);
        assert!(InboxHeader::parse(&Bytes::from_static(b"{}\nframe")).is_none());
        assert!(InboxHeader::parse(&payload.slice(..10)).is_none());
    }
}
