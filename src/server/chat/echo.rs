//! `/echo`: a WebSocket that gets back what it sends.

use std::sync::Arc;

use super::ChatServer;
use super::socket::{ReadEnd, Socket};
use crate::protocol::websocket::{self, Decoder, Event};

/// Sends every message back, through the same socket code as the chat. For conformance suites.
pub(super) async fn serve(server: Arc<ChatServer>, socket: Socket, mut decoder: Decoder, mut rest: Vec<u8>) {
    const OUTGOING_BYTES_MAX: usize = 256 << 20;
    let answer = |event: Event<'_>| {
        let (frame, is_close) = match event {
            Event::Text(text) => (websocket::text_frame(text, None), false),
            Event::Binary(data) => (websocket::binary_frame(data, None), false),
            Event::Ping(payload) => (websocket::pong_frame(payload, None), false),
            Event::Pong(_) => return true,
            Event::Close(code) => (websocket::close_frame(code, "", None), true),
        };
        if is_close {
            socket.begin_close(frame.into(), false);
        } else {
            socket.push(frame.into(), OUTGOING_BYTES_MAX);
        }
        !is_close
    };
    let mut go_on = true;
    let mut result = decoder.feed(&mut rest, &mut |event| go_on = go_on && answer(event)).map_err(ReadEnd::Violation);
    while go_on && result.is_ok() {
        if !socket.flush_all().await {
            break;
        }
        result = socket.read(&mut decoder, &mut |event| go_on = go_on && answer(event)).await;
    }
    if let Err(ReadEnd::Violation(violation)) = result {
        let close = websocket::close_frame(Some(violation.code.code()), violation.what, None);
        socket.begin_close(close.into(), false);
    }
    socket.linger().await;
    server.socket_closed();
}
