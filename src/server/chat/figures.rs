//! What a chat server holds, for tests that look for what was left behind.

use super::ChatServer;
use crate::protocol::SessionId;
use crate::telemetry::Counter;

/// How much of what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Figures {
    pub(crate) connections: usize,
    pub(crate) users: usize,
    pub(crate) subscriptions: usize,
    pub(crate) watched: usize,
    pub(crate) seats: usize,
    pub(crate) half_open: usize,
    pub(crate) under_way: usize,
    /// Sockets that were accepted and have not ended.
    pub(crate) sockets: u64,
}

impl ChatServer {
    pub(crate) fn figures(&self) -> Figures {
        let counted = |counter| self.deps.metrics.counted(counter);
        Figures {
            connections: self.outbound.hub.len(),
            users: self.outbound.hub.users(),
            subscriptions: self.subscriptions.len(),
            watched: self.presence.watched(),
            seats: self.seats.taken(),
            half_open: self.half_open.len(),
            under_way: self.sender.under_way(),
            sockets: counted(Counter::ConnectionsOpened) - counted(Counter::ConnectionsClosed),
        }
    }

    /// The sessions of the connections, and how many channels each subscribes to by its own list.
    pub(crate) fn live(&self) -> Vec<(SessionId, usize)> {
        self.outbound
            .hub
            .all()
            .iter()
            .map(|connection| (connection.session, connection.subscriptions().len()))
            .collect()
    }
}
