//! Messages to connections, with the place where tests may tamper.

use std::sync::Arc;

use bytes::Bytes;

use super::connection::Connection;
use super::outbound::{Outbound, Writes};
use super::tamper::Tamper;
use crate::protocol::ServerFrame;
use crate::protocol::websocket::{Decoder, Event, Role};
use crate::runtime::Tasks;

/// Writes message frames to connections. Clones are the same.
#[derive(Clone)]
pub(super) struct Deliverer {
    outbound: Arc<Outbound>,
    tasks: Tasks,
    tamper: Option<Arc<dyn Tamper>>,
}

impl Deliverer {
    /// To the connections of one server.
    pub(super) const fn new(outbound: Arc<Outbound>, tasks: Tasks, tamper: Option<Arc<dyn Tamper>>) -> Self {
        Self { outbound, tasks, tamper }
    }

    /// Whether a test has users go on getting what they have no right to any more.
    pub(super) fn ignores_removals(&self) -> bool {
        self.tamper.as_ref().is_some_and(|tamper| tamper.ignores_removals())
    }

    /// Writes an encoded message frame to one connection.
    pub(super) fn deliver(&self, writes: &mut Writes, connection: &Arc<Connection>, frame: &Bytes) {
        let Some(tamper) = &self.tamper else {
            return self.outbound.push_with(writes, connection, frame.clone());
        };
        let delay = tamper.delay();
        if delay.is_zero() {
            return deliver_tampered(&self.outbound, &**tamper, connection, frame);
        }
        let (outbound, tamper) = (Arc::clone(&self.outbound), Arc::clone(tamper));
        let (connection, frame) = (Arc::clone(connection), frame.clone());
        self.tasks.spawn("chat.delayed", async move {
            tokio::time::sleep(delay).await;
            deliver_tampered(&outbound, &*tamper, &connection, &frame);
        });
    }
}

fn deliver_tampered(outbound: &Outbound, tamper: &dyn Tamper, connection: &Arc<Connection>, frame: &Bytes) {
    let mut message = None;
    let mut copy = frame.to_vec();
    let read = Decoder::new(Role::Client, u32::MAX).feed(&mut copy, &mut |event| {
        if let Event::Text(text) = event
            && let Ok(ServerFrame::Message(frame)) = ServerFrame::decode(text)
        {
            message = Some(frame);
        }
    });
    match (read, message) {
        (Ok(()), Some(message)) => {
            for message in tamper.outgoing(connection.user, &message) {
                outbound.reply(connection, &ServerFrame::Message(message));
            }
        }
        _ => outbound.push(connection, frame.clone()),
    }
}
