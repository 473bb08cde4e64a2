//! What comes from a connection: how it becomes live, how it is read, and how it ends.

use std::sync::Arc;

use super::connection::Connection;
use super::hub::Coming;
use super::session::{Action, SessionState};
use super::socket::{ReadEnd, Socket};
use super::{ChatServer, Identity};
use crate::backends::BackendError;
use crate::backends::sessions::Session;
use crate::protocol::frames::{Deliver, ErrorFrame, WelcomeFrame};
use crate::protocol::limits::HEARTBEAT;
use crate::protocol::websocket::{self, Decoder, Event};
use crate::protocol::{CloseCode, ErrorCode, ServerFrame};
use crate::runtime::clock;
use crate::server::access::seats::Seat;
use crate::telemetry::Counter;

/// What a connection needs to become live.
pub(super) struct Admitted {
    /// As one of its user's.
    pub(super) coming: Coming,
    pub(super) seat: Seat,
}

/// What came with the `hello`, before the connection was live.
pub(super) struct Early {
    pub(super) decoder: Decoder,
    pub(super) texts: Vec<String>,
}

impl ChatServer {
    /// Makes an authenticated socket live: claim the session, fix the inbox position, welcome, then run its reader in a
    /// task of its own, so that nothing of the handshake stays in memory.
    pub(super) async fn go_live(self: Arc<Self>, socket: Socket, identity: Identity, admitted: Admitted, early: Early) {
        let connection = match self.open(socket, identity, admitted).await {
            Ok(opened) => opened,
            Err(connection) => {
                connection.socket.linger().await;
                self.socket_closed();
                return;
            }
        };
        let mut state = SessionState::default();
        let go_on = early.texts.iter().all(|text| self.on_event(&connection, &mut state, Event::Text(text)));
        let reader = Arc::clone(&self).read_loop(Arc::clone(&connection), early.decoder, state, go_on);
        self.deps.tasks.spawn("chat.connection", reader);
        self.presence.greet(&connection).await;
    }

    /// Claims the session, fixes the inbox position and welcomes; returns the connection. Where that fails, the
    /// connection that was told so and is closing. Runs in a task that nobody drops: what it has claimed is undone by
    /// the connection's end.
    pub(super) async fn open(
        &self,
        socket: Socket,
        identity: Identity,
        admitted: Admitted,
    ) -> Result<Arc<Connection>, Arc<Connection>> {
        let mut session = self.rights.new_session(identity.sub, identity.dev.clone());
        let claimed = self.rights.claim(&mut session).await;
        let Admitted { coming, seat } = admitted;
        let connection = Arc::new(Connection::new(identity, session.session, socket, seat));
        let pass = match claimed {
            Ok(pass) => pass,
            Err(error) => {
                self.could_not_open(&connection, &session, &error).await;
                return Err(connection);
            }
        };
        let welcome = WelcomeFrame {
            session: session.session,
            server: self.deps.name.clone(),
            user: session.user,
            device: connection.device.clone(),
            heartbeat_s: HEARTBEAT.as_secs() as u32,
            limits: self.config.limits,
            channels: Deliver::Messages,
        };
        // A client syncs when it is welcomed: what is stored from then on has to find it here.
        self.outbound.enter(&connection, &ServerFrame::Welcome(welcome), || {
            self.outbound.hub.add_coming(Arc::clone(&connection), coming);
            self.rights.came_up(&connection, pass);
            // What ended a right before the connection was in the hub did not find it there.
            if let Some(code) = self.rights.ended(&connection) {
                self.outbound.close(&connection, code);
            } else if self.is_draining() {
                self.outbound.send_elsewhere(&connection);
            }
        });
        Ok(connection)
    }

    /// Tells a client that its session could not be claimed, and closes its connection.
    async fn could_not_open(&self, connection: &Arc<Connection>, session: &Session, error: &BackendError) {
        tracing::warn!(%error, user = %session.user, "a connection could not go live");
        let frame = ErrorFrame {
            uuid: None,
            code: ErrorCode::Unavailable,
            message: "the session could not be opened, try again".to_owned(),
            retry_after_ms: Some(1_000),
        };
        self.outbound.reply(connection, &ServerFrame::Error(frame));
        self.outbound.close(connection, CloseCode::Internal);
        self.rights.release(session).await;
    }

    /// Reads one connection until it ends. Inputs: the socket.
    ///
    /// This future is most of what an idle connection costs: nothing is in it that is not needed while waiting.
    async fn read_loop(
        self: Arc<Self>,
        connection: Arc<Connection>,
        mut decoder: Decoder,
        mut state: SessionState,
        mut go_on: bool,
    ) {
        while go_on {
            let mut ended = false;
            let result = connection
                .socket
                .read(&mut decoder, &mut |event| ended = ended || !self.on_event(&connection, &mut state, event))
                .await;
            go_on = !ended;
            match result {
                Ok(()) => {}
                Err(ReadEnd::Gone) => go_on = false,
                Err(ReadEnd::Violation(violation)) => {
                    self.deps.metrics.count(Counter::ProtocolViolations);
                    self.outbound.close(&connection, violation.code);
                    go_on = false;
                }
            }
        }
        // Boxed, so that the end of a connection takes no memory during its life.
        Box::pin(self.end(connection)).await;
    }

    pub(super) async fn end(self: Arc<Self>, connection: Arc<Connection>) {
        self.disconnected(&connection).await;
        connection.socket.linger().await;
        self.socket_closed();
    }

    /// Handles one message; returns false when reading should end.
    pub(super) fn on_event(&self, connection: &Arc<Connection>, state: &mut SessionState, event: Event<'_>) -> bool {
        if !connection.socket.is_open() {
            // Closing: only the other end's close matters, and it ends the reading anyway.
            let is_goodbye = matches!(event, Event::Close(_));
            if is_goodbye {
                connection.note_heard();
            }
            return !is_goodbye;
        }
        connection.note_heard();
        match event {
            Event::Text(text) => {
                self.deps.metrics.count(Counter::FramesIn);
                let action = state.on_text(text, &self.config.limits, clock::now_ms_u32());
                self.act(connection, action);
            }
            Event::Ping(payload) => self.outbound.push(connection, websocket::pong_frame(payload, None).into()),
            Event::Pong(_) => {}
            Event::Binary(_) => self.outbound.close(connection, CloseCode::Unsupported),
            Event::Close(code) => {
                let code = code.unwrap_or(CloseCode::Normal.code());
                connection.socket.begin_close(websocket::close_frame(Some(code), "", None).into(), false);
                return false;
            }
        }
        true
    }

    fn act(&self, connection: &Arc<Connection>, action: Action) {
        match action {
            Action::Reply(frame) => self.outbound.reply(connection, &frame),
            Action::Beat => self.presence.beat(connection.user),
            Action::Do(request) => self.sender.enqueue(connection, request),
            Action::Close(code) => self.outbound.close(connection, code),
        }
    }

    /// Takes a connection out of everything. Done once; a second call changes nothing.
    pub(super) async fn disconnected(&self, connection: &Arc<Connection>) {
        if let Some(was_last) = self.leave(connection) {
            self.clean_up(connection, was_last).await;
        }
    }

    /// Takes a connection out of the hub; returns whether it was its user's last, and `None` where it was out already.
    pub(super) fn leave(&self, connection: &Arc<Connection>) -> Option<bool> {
        let was_last = self.outbound.hub.remove(connection.user, connection.session)?;
        let missed = connection.note_ended();
        // Who is sent elsewhere by a drain is back at once.
        if let Some(missed) = missed.filter(|_| !self.is_draining()) {
            self.lost.note_missed(connection, missed);
        }
        Some(was_last)
    }

    /// Undoes what a connection that has left the hub had entered elsewhere.
    pub(super) async fn clean_up(&self, connection: &Arc<Connection>, was_last: bool) {
        self.subscriptions.remove_all(connection).await;
        self.rights.give_up(connection).await;
        if was_last {
            self.presence.stop_watching(connection.user).await;
        }
    }
}
