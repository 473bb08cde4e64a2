//! For tests of this server's owners: connections whose other end is the test.

use std::sync::Arc;

use uuid::Uuid;

use super::Identity;
use super::connection::Connection;
use super::poll;
use super::socket::Socket;
use crate::protocol::{ServerFrame, SessionId, UserId};
use crate::server::access::seats::Seats;

/// A connection of a user's, over a socket.
pub(super) fn connection_over(socket: Socket, user: UserId) -> Arc<Connection> {
    let device = "phone".parse().expect("a name");
    let identity = Identity { sub: user, dev: device, jti: Uuid::new_v4(), iat: 0, exp: u64::MAX };
    let seat = Seats::new(1).take().expect("a free seat");
    Arc::new(Connection::new(identity, SessionId(Uuid::new_v4()), socket, seat))
}

/// A connection of a user's that keeps what it is sent until [`written`] asks.
pub(super) fn connection(user: UserId) -> Arc<Connection> {
    connection_over(Socket::polled(), user)
}

/// What a connection was sent since this was last asked, and the code that it was closed with.
pub(super) fn written(connection: &Connection) -> (Vec<ServerFrame>, Option<u16>) {
    let answer = poll::taken(connection);
    let frames = answer.frames.iter().map(|text| ServerFrame::decode(text.get()).expect("a frame of ours"));
    (frames.collect(), answer.closed)
}
