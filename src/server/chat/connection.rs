//! One live, authenticated connection: its reader, its worker, and how frames get to its socket.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::Notify;
use uuid::Uuid;

use super::requests::{Requests, Waiting};
use super::send::retry_after_ms;
use super::session::{Action, Request, SessionState};
use super::socket::{Flushed, MERGE_WINDOW_MS, Pushed, ReadEnd, Socket};
use super::unheard::Unheard;
use super::{ChatServer, Identity};
use crate::backends::BackendResult;
use crate::backends::log::Topic;
use crate::backends::sessions::Session;
use crate::protocol::frames::{ErrorFrame, WelcomeFrame};
use crate::protocol::limits::HEARTBEAT;
use crate::protocol::websocket::{self, Decoder, Event};
use crate::protocol::{CloseCode, ConversationId, DeviceName, ErrorCode, ServerFrame, SessionId, UserId};
use crate::runtime::clock;
use crate::server::access::seats::Seat;
use crate::telemetry::Counter;

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
    /// Requests that wait or are under way; `None` while there are none. Written by reader and workers.
    requests: Mutex<Option<Box<Requests>>>,
    /// Large channels that this connection subscribes to. Written by [`super::subscriptions`] only.
    subscriptions: Mutex<Vec<ConversationId>>,
}

impl Connection {
    pub(super) fn last_heard_ms(&self) -> u32 {
        self.socket.heard_ms()
    }

    /// Whether the token has expired, at a time in milliseconds since 1970.
    pub(super) fn has_expired(&self, now_ms: u64) -> bool {
        u64::from(self.expires_s) <= now_ms / 1_000
    }

    pub(super) fn subscriptions(&self) -> std::sync::MutexGuard<'_, Vec<ConversationId>> {
        self.subscriptions.lock().expect("no panic while held")
    }

    fn requests(&self) -> std::sync::MutexGuard<'_, Option<Box<Requests>>> {
        self.requests.lock().expect("no panic while held")
    }
}

/// Connections with something to flush after the merge window.
#[derive(Default)]
pub(super) struct Flushes {
    connections: Mutex<Vec<Arc<Connection>>>,
    news: Notify,
}

/// What came with the `hello`, before the connection was live.
pub(super) struct Early {
    pub(super) decoder: Decoder,
    pub(super) texts: Vec<String>,
}

impl ChatServer {
    /// Makes an authenticated socket live: claim the session, fix the inbox position, welcome, then run its reader in a
    /// task of its own, so that nothing of the handshake stays in memory.
    pub(super) async fn go_live(self: Arc<Self>, socket: Socket, identity: Identity, seat: Seat, early: Early) {
        let (connection, is_first) = match self.open(socket, identity, seat).await {
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
        self.greet_with_presence(&connection, is_first).await;
    }

    /// Claims the session, fixes the inbox position and welcomes; returns the connection and whether it is the user's first
    /// here. Where that fails, the connection that was told so and is closing.
    pub(super) async fn open(
        self: &Arc<Self>,
        socket: Socket,
        identity: Identity,
        seat: Seat,
    ) -> Result<(Arc<Connection>, bool), Arc<Connection>> {
        let session = Session {
            user: identity.sub,
            device: identity.dev.clone(),
            // Never older than this life of the server, whatever the clock says: the push server compares them.
            session: SessionId::made_at(clock::unix_ms().max(self.epoch), rand::random()),
            server: self.deps.name.clone(),
        };
        let claimed = self.claim(&session).await;
        let connection = Arc::new(Connection {
            user: session.user,
            device: identity.dev,
            session: session.session,
            token: identity.jti,
            expires_s: u32::try_from(identity.exp).unwrap_or(u32::MAX),
            socket,
            unheard: Unheard::default(),
            _seat: seat,
            requests: Mutex::default(),
            subscriptions: Mutex::default(),
        });
        if let Err(error) = claimed {
            tracing::warn!(%error, user = %session.user, "a connection could not go live");
            let frame = ErrorFrame {
                uuid: None,
                code: ErrorCode::Unavailable,
                message: "the session could not be opened, try again".to_owned(),
                retry_after_ms: Some(1_000),
            };
            self.reply(&connection, &ServerFrame::Error(frame));
            self.close(&connection, CloseCode::Internal);
            // The claim may have worked without telling; the release compares the session.
            let _ = self.deps.backends.sessions.release(&session).await;
            return Err(connection);
        }
        let welcome = WelcomeFrame {
            session: session.session,
            server: self.deps.name.clone(),
            user: session.user,
            device: connection.device.clone(),
            heartbeat_s: HEARTBEAT.as_secs() as u32,
            limits: self.config.limits,
        };
        self.reply(&connection, &ServerFrame::Welcome(welcome));
        let is_first = self.hub.add(Arc::clone(&connection));
        // What ended a right before the connection was in the hub did not find it there.
        if let Some(code) = self.ended_right(&connection) {
            self.close(&connection, code);
        } else if self.is_draining() {
            self.send_elsewhere(&connection);
        }
        Ok((connection, is_first))
    }

    /// Subscribes to the user's inbox and claims the device's session; sends the connection that it replaces away.
    async fn claim(self: &Arc<Self>, session: &Session) -> BackendResult<()> {
        // A drain waits for what follows from it.
        let under_way = self.claims.token();
        // In this order, so that nothing was replaced where either fails.
        self.reader.subscribe(Topic::Inbox, session.user.0).await?;
        match self.deps.backends.sessions.claim(session).await {
            Ok(replaced) => {
                if let Some(old) = replaced {
                    self.send_away(old, under_way);
                }
                Ok(())
            }
            Err(error) => {
                // The reader only reads too much if this fails.
                let _ = self.reader.unsubscribe(Topic::Inbox, session.user.0).await;
                Err(error)
            }
        }
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
                    self.close(&connection, violation.code);
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
    pub(super) fn on_event(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        state: &mut SessionState,
        event: Event<'_>,
    ) -> bool {
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
            Event::Ping(payload) => self.push(connection, websocket::pong_frame(payload, None).into()),
            Event::Pong(_) => {}
            Event::Binary(_) => self.close(connection, CloseCode::Unsupported),
            Event::Close(code) => {
                let code = code.unwrap_or(CloseCode::Normal.code());
                connection.socket.begin_close(websocket::close_frame(Some(code), "", None).into(), false);
                return false;
            }
        }
        true
    }

    fn act(self: &Arc<Self>, connection: &Arc<Connection>, action: Action) {
        match action {
            Action::Reply(frame) => self.reply(connection, &frame),
            Action::Beat => self.beat(connection.user),
            Action::Do(request) => self.enqueue(connection, request),
            Action::Close(code) => self.close(connection, code),
        }
    }

    /// Gives a request to a worker, which lives only while there is work; reading never waits for it.
    fn enqueue(self: &Arc<Self>, connection: &Arc<Connection>, request: Request) {
        let mut slot = connection.requests();
        let requests = slot.get_or_insert_with(Box::default);
        if requests.len() >= self.config.limits.sends_pending_max as usize {
            let room_after_ms = requests.refuse(clock::now_us()).as_millis() as u64;
            drop(slot);
            let uuid = if let Request::Send(send) = &request { Some(send.uuid) } else { None };
            let frame = ErrorFrame {
                uuid,
                code: ErrorCode::Overloaded,
                message: "too many requests of this connection are waiting".to_owned(),
                // Not all at once: those that were refused together differ by what is drawn.
                retry_after_ms: Some(room_after_ms + retry_after_ms()),
            };
            return self.reply(connection, &ServerFrame::Error(frame));
        }
        let begun = requests.take(Waiting { request, arrived_us: clock::now_us() });
        drop(slot);
        if let Some(first) = begun {
            let (server, shared) = (Arc::clone(self), Arc::clone(connection));
            self.deps.tasks.spawn("chat.worker", async move { server.work(shared, first).await });
        }
    }

    async fn work(self: Arc<Self>, connection: Arc<Connection>, first: Waiting) {
        let mut next = Some(first);
        while let Some(waiting) = next {
            let conversation = waiting.request.conversation();
            self.handle_request(&connection, waiting).await;
            let mut slot = connection.requests();
            next = slot.as_mut().and_then(|requests| requests.next(conversation));
            slot.take_if(|requests| requests.is_idle());
        }
    }

    /// Takes a connection out of everything. Done once; a second call changes nothing.
    pub(super) async fn disconnected(&self, connection: &Arc<Connection>) {
        let Some(was_last) = self.hub.remove(connection.user, connection.session) else { return };
        self.note_lost(connection);
        self.remove_subscriptions(connection).await;
        // Failures here cost nothing: the session ends by its time to live, the reader only reads too much.
        let _ = self.reader.unsubscribe(Topic::Inbox, connection.user.0).await;
        let _ = self.deps.backends.sessions.release(&self.session_of(connection)).await;
        if was_last {
            self.stop_watching(connection.user).await;
        }
    }

    /// Writes a frame to one connection.
    pub(super) fn reply(self: &Arc<Self>, connection: &Arc<Connection>, frame: &ServerFrame) {
        self.push(connection, websocket::text_frame(&frame.encode(), None).into());
    }

    /// Writes an encoded frame to one connection. Never waits; a client that reads too slowly is cut.
    pub(super) fn push(self: &Arc<Self>, connection: &Arc<Connection>, frame: Bytes) {
        match connection.socket.push(frame, self.config.outgoing_bytes_max) {
            Pushed::Written | Pushed::Queued | Pushed::Closed => {}
            Pushed::FlushSoon => self.flushes.add(connection),
            Pushed::FlushWhenWritable => self.flush_when_writable(connection),
            Pushed::Full => {
                self.deps.metrics.count(Counter::SlowConsumers);
                self.close(connection, CloseCode::SlowConsumer);
            }
        }
    }

    /// Sends a close frame and ends the connection when the other end has answered, or after a moment.
    pub(super) fn close(self: &Arc<Self>, connection: &Arc<Connection>, code: CloseCode) {
        let frame = websocket::close_frame(Some(code.code()), code.reason(), None);
        if !connection.socket.begin_close(frame.into(), code == CloseCode::SlowConsumer) {
            return;
        }
        let shared = Arc::clone(connection);
        self.deps.tasks.spawn("chat.close", async move {
            let flushed =
                async { while shared.socket.flush() == Flushed::Blocked && shared.socket.writable().await.is_ok() {} };
            let _ = tokio::time::timeout(super::socket::CLOSE_WAIT, flushed).await;
            tokio::time::sleep(super::socket::CLOSE_WAIT).await;
            shared.socket.abort();
        });
    }

    fn flush_when_writable(self: &Arc<Self>, connection: &Arc<Connection>) {
        let shared = Arc::clone(connection);
        self.deps.tasks.spawn("chat.flush", async move {
            while shared.socket.flush() == Flushed::Blocked && shared.socket.writable().await.is_ok() {}
        });
    }

    /// Flushes what gathered in a merge window. Inputs: the list of connections.
    pub(super) async fn flush_loop(self: Arc<Self>) {
        loop {
            self.flushes.news.notified().await;
            tokio::time::sleep(std::time::Duration::from_millis(MERGE_WINDOW_MS.into())).await;
            let connections = std::mem::take(&mut *self.flushes.connections.lock().expect("no panic while held"));
            for connection in connections {
                if connection.socket.flush() == Flushed::Blocked {
                    self.flush_when_writable(&connection);
                }
            }
        }
    }
}

impl Flushes {
    fn add(&self, connection: &Arc<Connection>) {
        self.connections.lock().expect("no panic while held").push(Arc::clone(connection));
        self.news.notify_one();
    }
}

/// Sends every message back, through the same socket code as the chat. For conformance suites.
pub(super) async fn echo(server: Arc<ChatServer>, socket: Socket, mut decoder: Decoder, mut rest: Vec<u8>) {
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
        while socket.flush() == Flushed::Blocked {
            if socket.writable().await.is_err() {
                break;
            }
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
