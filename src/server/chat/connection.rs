//! One live, authenticated connection.

use std::sync::{Mutex, MutexGuard};

use uuid::Uuid;

use super::Identity;
use super::requests::Requests;
use super::socket::Socket;
use super::unheard::Unheard;
use crate::protocol::{ConversationId, DeviceName, SessionId, UserId};
use crate::server::access::seats::Seat;

/// A live connection. Shared by its reader, the hub and whoever writes to it.
pub(super) struct Connection {
    pub(super) user: UserId,
    pub(super) device: DeviceName,
    pub(super) session: SessionId,
    /// The token's id, to close the connection when it is logged out.
    pub(super) token: Uuid,
    /// When the token expires, in seconds since 1970.
    expires_s: u32,
    pub(super) socket: Socket,
    /// Written by deliveries and by whatever is heard.
    pub(super) unheard: Unheard,
    /// Given back when the last who knows the connection forgets it.
    _seat: Seat,
    /// Requests that wait or are under way; `None` while there are none. Written by [`super::sender`] only.
    requests: Mutex<Option<Box<Requests>>>,
    /// Large channels that this connection subscribes to. Written by [`super::subscriptions`] only.
    subscriptions: Mutex<Vec<ConversationId>>,
}

impl Connection {
    /// The connection of a session that was claimed for an identity.
    pub(super) fn new(identity: Identity, session: SessionId, socket: Socket, seat: Seat) -> Self {
        Self {
            user: identity.sub,
            device: identity.dev,
            session,
            token: identity.jti,
            expires_s: u32::try_from(identity.exp).unwrap_or(u32::MAX),
            socket,
            unheard: Unheard::default(),
            _seat: seat,
            requests: Mutex::default(),
            subscriptions: Mutex::default(),
        }
    }

    pub(super) fn last_heard_ms(&self) -> u32 {
        self.socket.heard_ms()
    }

    /// Whether the token has expired, at a time in milliseconds since 1970.
    pub(super) fn has_expired(&self, now_ms: u64) -> bool {
        u64::from(self.expires_s) <= now_ms / 1_000
    }

    pub(super) fn subscriptions(&self) -> MutexGuard<'_, Vec<ConversationId>> {
        self.subscriptions.lock().expect("no panic while held")
    }

    pub(super) fn requests(&self) -> MutexGuard<'_, Option<Box<Requests>>> {
        self.requests.lock().expect("no panic while held")
    }
}
