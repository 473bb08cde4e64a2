//! The transports without a socket: long-poll and poll, for networks that let no WebSocket through.
//!
//! A session is a [`Connection`] like any other; what would be written to its socket waits until a request fetches it, as
//! bounded as a socket's queue is. A session that nobody asks for ends like a WebSocket that says nothing.
//!
//! | request | what |
//! |---|---|
//! | `POST /poll` | opens a session; the answer holds its id and the first frames, `welcome` among them |
//! | `POST /poll/{session}?wait_s=N` | takes the client's frames, answers with the server's; waits up to `N` seconds for the first |
//! | `DELETE /poll/{session}` | ends the session |

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use bytes::Bytes;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::connection::Connection;
use super::handshake;
use super::inbound::Admitted;
use super::session::SessionState;
use super::socket::Socket;
use super::{ChatServer, Identity};
use crate::protocol::api::PollAnswer;
use crate::protocol::limits::POLL_WAIT_MAX;
use crate::protocol::websocket::{Decoder, Event, Role};
use crate::protocol::{CloseCode, ErrorCode, Limits, POLL_PATH, SessionId, behind_poll_path};
use crate::runtime::clock;
use crate::server::access::callers::Callers;
use crate::server::access::places::{Place, Places};
use crate::server::http::extract::{Params, bearer, not_taken, refused, unauthorized};
use crate::server::http::pages::{Pages, Turn};
use crate::server::http::status::{self, Failure};
use crate::server::{Deps, http};
use crate::telemetry::Counter;

/// Largest request body: a few messages.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// Most frames of one request.
const FRAMES_MAX: usize = 64;

/// What an answer has around its frames.
const ENVELOPE_BYTES: usize = 128;

/// Requests of one account, for each frame that it may send: a client that waits asks again after each frame that comes.
const REQUESTS_PER_FRAME: u32 = 4;

/// HTTP connections of clients that poll, at least; where there are more seats, a tenth of them.
const CONNECTIONS_MIN: usize = 256;

/// Sessions without a socket, and who asks for them.
pub(super) struct Polls {
    /// Until nothing will come from them any more. Written by opening and by the end of each.
    sessions: Mutex<HashMap<SessionId, Arc<Polled>>>,
    /// For HTTP connections.
    pub(super) places: Arc<Places>,
    pub(super) callers: Callers,
    /// Answers that are being written.
    pages: Pages,
}

/// One of them.
struct Polled {
    connection: Arc<Connection>,
    /// What only its requests touch.
    state: Mutex<SessionState>,
}

impl Polls {
    /// For a server with so many seats.
    pub(super) fn new(deps: &Deps, limits: &Limits, seats: usize) -> Self {
        let per_second = limits.frames_per_second.saturating_mul(REQUESTS_PER_FRAME);
        Self {
            sessions: Mutex::default(),
            // All may be of one address: a gateway's.
            places: Places::new((seats / 10).max(CONNECTIONS_MIN), usize::MAX),
            callers: Callers::new(Arc::clone(&deps.backends.directory), per_second),
            pages: Pages::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Arc<Polled>>> {
        self.sessions.lock().expect("no panic while held")
    }
}

/// Whether a request's target belongs here.
pub(super) fn is_poll(target: &str) -> bool {
    behind_poll_path(target).is_some()
}

/// Serves one HTTP connection, of which the beginning is read already, until it ends. Who has no good token keeps no place:
/// the connection ends behind the answer that says so.
pub(super) async fn serve(server: Arc<ChatServer>, place: Place, stream: TcpStream, begun: Vec<u8>) {
    let tasks = server.deps.tasks.clone();
    let router = Router::new()
        .route(POLL_PATH, post(open))
        .route("/poll/{session}", post(exchange).delete(close))
        .fallback(|| async { Failure::new(ErrorCode::NotFound, "there is nothing at this path, see docs/protocol.md") })
        .method_not_allowed_fallback(|| async { status::method_not_allowed() })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(map_response(|mut answer: Response| {
            http::end_if_refused(&mut answer);
            std::future::ready(answer)
        }))
        .with_state(server);
    http::serve_at(place, stream, begun, tasks, TowerToHyperService::new(router)).await;
}

/// The authenticated caller.
struct Caller(Identity);

impl FromRequestParts<Arc<ChatServer>> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, server: &Arc<ChatServer>) -> Result<Self, Failure> {
        let identity = server.deps.tokens.verify(bearer(parts)?).map_err(|_| unauthorized())?;
        server.polls.callers.take(&identity).await.map_err(not_taken)?;
        Ok(Self(identity))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wait {
    /// Seconds to wait for the first frame; 0 answers at once.
    #[serde(default)]
    wait_s: u64,
}

type Answer = Result<Response, Failure>;

async fn open(State(server): State<Arc<ChatServer>>, Caller(identity): Caller) -> Answer {
    let turn = server.polls.pages.turn(identity.sub)?;
    let admitted = handshake::seat_for(&server, &identity).map_err(|why| {
        let (code, message, after_ms) = why.told();
        Failure::retry_later(code, message, after_ms)
    })?;
    if server.is_draining() {
        let message = "this server drains: ask for another placement";
        return Err(Failure::retry_later(ErrorCode::Unavailable, message, 1_000));
    }
    server.deps.metrics.count(Counter::ConnectionsOpened);
    let (answer, opened) = oneshot::channel();
    let opening = Arc::clone(&server);
    // Not here: a request that is given up is dropped wherever it waits, and what it had entered would stay.
    server.deps.tasks.spawn("chat.poll_open", async move {
        // Where nobody takes it the session ends with this.
        let _ = answer.send(open_session(&opening, identity, admitted).await);
    });
    let Some(mut opened) = opened.await.ok().flatten() else {
        return Err(Failure::retry_later(ErrorCode::Unavailable, "the session could not be opened, try again", 1_000));
    };
    // A session that its client never hears of is of no use: it ends where there is no room for the answer.
    let answer = fetched(&server.polls.pages, turn, &opened.connection)?;
    opened.is_taken = true;
    Ok((StatusCode::CREATED, answer).into_response())
}

/// A session that was opened just now. It ends where nobody takes it.
struct Opened {
    connection: Arc<Connection>,
    is_taken: bool,
}

impl Drop for Opened {
    fn drop(&mut self) {
        if !self.is_taken {
            self.connection.socket.abort();
        }
    }
}

/// Opens a session; `None` where that fails.
async fn open_session(server: &Arc<ChatServer>, identity: Identity, admitted: Admitted) -> Option<Opened> {
    let connection = match server.open(Socket::polled(), identity, admitted).await {
        Ok(connection) => connection,
        Err(failed) => {
            failed.socket.abort();
            server.socket_closed();
            return None;
        }
    };
    let polled = Polled { connection: Arc::clone(&connection), state: Mutex::default() };
    server.polls.lock().insert(connection.session, Arc::new(polled));
    let (ending, shared) = (Arc::clone(server), Arc::clone(&connection));
    server.deps.tasks.spawn("chat.polled", async move {
        shared.socket.dead().await;
        ending.polls.lock().remove(&shared.session);
        ending.end(shared).await;
    });
    server.presence.greet(&connection).await;
    Some(Opened { connection, is_taken: false })
}

/// The session of an id, if it is the caller's device's.
fn find(server: &ChatServer, identity: &Identity, session: &str) -> Result<Arc<Polled>, Failure> {
    let found = session.parse().ok().and_then(|session| server.polls.lock().get(&SessionId(session)).cloned());
    let is_own = |polled: &Arc<Polled>| {
        let connection = &polled.connection;
        connection.user == identity.sub && connection.device == identity.dev
    };
    found.filter(is_own).ok_or_else(|| {
        Failure::new(ErrorCode::NotFound, "there is no such session (any more): open one with POST /poll")
    })
}

async fn exchange(
    State(server): State<Arc<ChatServer>>,
    Caller(identity): Caller,
    Path(session): Path<String>,
    Params(wait): Params<Wait>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let polled = find(&server, &identity, &session)?;
    let connection = &polled.connection;
    let body = body.map_err(|e| refused(&e, e.status(), e.body_text()))?;
    let frames: Vec<Box<RawValue>> = if body.is_empty() {
        Vec::new()
    } else {
        let refused = |e| Failure::new(ErrorCode::BadRequest, format!("the body is a JSON array of frames: {e}"));
        serde_json::from_slice(&body).map_err(refused)?
    };
    if frames.len() > FRAMES_MAX {
        let message = format!("{} frames: at most {FRAMES_MAX} in one request", frames.len());
        return Err(Failure::new(ErrorCode::BadRequest, message));
    }
    connection.socket.heard();
    connection.note_heard();
    {
        let mut state = polled.state.lock().expect("no panic while held");
        for frame in &frames {
            server.on_event(connection, &mut state, Event::Text(frame.get()));
        }
    }
    let wait = Duration::from_secs(wait.wait_s).min(POLL_WAIT_MAX);
    if !wait.is_zero() {
        // Nothing to say is an answer, too.
        let _ = tokio::time::timeout(wait, connection.socket.news()).await;
        connection.socket.heard();
        // Another token of the device than the session's, whose end the session does not know.
        let has_ended = || server.rights.has_logged_out(identity.jti) || identity.have_expired(clock::unix_ms());
        if identity.jti != connection.token && has_ended() {
            return Err(unauthorized());
        }
    }
    let turn = server.polls.pages.turn(identity.sub);
    match turn.and_then(|turn| fetched(&server.polls.pages, turn, connection)) {
        // The client's frames were taken. What waits for it goes on to wait.
        Err(_) if !frames.is_empty() => {
            Ok(Json(PollAnswer { session: connection.session, frames: Vec::new(), closed: None }).into_response())
        }
        answer => answer,
    }
}

/// What waits for a session, as an answer that counts until it is written. Where there is no room for it, it goes on to
/// wait.
fn fetched(pages: &Pages, turn: Turn, connection: &Connection) -> Answer {
    let room = pages.room_for(turn, connection.socket.waiting_bytes() + ENVELOPE_BYTES)?;
    room.answer(&taken(connection))
}

async fn close(
    State(server): State<Arc<ChatServer>>,
    Caller(identity): Caller,
    Path(session): Path<String>,
) -> Result<StatusCode, Failure> {
    let polled = find(&server, &identity, &session)?;
    server.polls.lock().remove(&polled.connection.session);
    // The rest of its end follows from that, as from a lost socket's.
    polled.connection.socket.abort();
    Ok(StatusCode::NO_CONTENT)
}

/// What waits for a session, as an answer.
pub(super) fn taken(connection: &Connection) -> PollAnswer {
    let (queue, is_over) = connection.socket.take();
    let mut answer = PollAnswer { session: connection.session, frames: Vec::with_capacity(queue.len()), closed: None };
    read(queue, &mut answer);
    if is_over && answer.closed.is_none() {
        answer.closed = Some(CloseCode::Normal.code());
    }
    answer
}

/// Reads the texts out of encoded frames.
fn read(queue: VecDeque<Bytes>, answer: &mut PollAnswer) {
    let mut decoder = Decoder::new(Role::Client, u32::MAX);
    for frame in queue {
        let mut bytes = frame.to_vec();
        let fed = decoder.feed(&mut bytes, &mut |event| match event {
            Event::Text(text) => answer.frames.extend(RawValue::from_string(text.to_owned()).ok()),
            Event::Close(code) => answer.closed = Some(code.unwrap_or(CloseCode::Normal.code())),
            Event::Binary(_) | Event::Ping(_) | Event::Pong(_) => {}
        });
        debug_assert!(fed.is_ok(), "these are our own frames");
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::backends::Backends;
    use crate::backends::layers::{Layer, Layered, Pace};
    use crate::backends::registry::Role as ServerRole;
    use crate::backends::sessions::Sessions;
    use crate::protocol::{UserId, websocket};
    use crate::server::Listeners;
    use crate::server::bench::{Bench, Gate};
    use crate::server::chat::{Config, Figures};

    #[test]
    fn targets_are_told_apart() {
        assert!(is_poll("/poll") && is_poll("/poll/abc?wait_s=3") && is_poll("/poll?x"));
        assert!(!is_poll("/polls") && !is_poll("/ws") && !is_poll("/"));
    }

    #[tokio::test]
    async fn what_finds_no_room_among_the_answers_of_a_user_waits_for_the_next_request() {
        let (pages, connection) = (Pages::default(), super::super::bench::connection(UserId(1)));
        let push = || {
            let frame = websocket::text_frame("{\"type\":\"pong\"}", None);
            connection.socket.push(frame.into(), usize::MAX);
        };
        let fetch = || pages.turn(UserId(1)).and_then(|turn| fetched(&pages, turn, &connection));
        let mut unread = Vec::new();
        loop {
            push();
            match fetch() {
                Ok(answer) => unread.push(answer),
                Err(_) => break,
            }
            assert!(unread.len() < 1_000, "there is no end to it");
        }
        unread.remove(0);
        let answer = fetch().expect("one was read");
        let body = axum::body::to_bytes(answer.into_body(), usize::MAX).await.expect("a body");
        let answer: PollAnswer = serde_json::from_slice(&body).expect("an answer");
        assert_eq!(answer.frames.len(), 1, "it was not lost");
    }

    #[test]
    fn encoded_frames_become_json_again() {
        let queue = [websocket::text_frame("{\"type\":\"pong\"}", None), websocket::close_frame(Some(4_001), "", None)];
        let mut answer = PollAnswer { session: SessionId(uuid::Uuid::nil()), frames: Vec::new(), closed: None };
        read(queue.into_iter().map(Bytes::from).collect(), &mut answer);
        assert_eq!((answer.frames[0].get(), answer.closed), ("{\"type\":\"pong\"}", Some(4_001)));
    }

    async fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").await.expect("binds")
    }

    #[tokio::test]
    async fn a_session_whose_client_gave_up_while_it_was_opened_ends_with_all_that_it_had() {
        let gate = Gate::new("sessions.claim");
        let layer = Layer::Paced(Arc::clone(&gate) as Arc<dyn Pace>);
        let held_up = |backends: Backends| {
            let sessions: Arc<dyn Sessions> =
                Arc::new(Layered::<dyn Sessions>::new(Arc::clone(&backends.sessions), layer));
            Backends { sessions, ..backends }
        };
        let bench = Bench::new(ServerRole::Chat, "chat-1", held_up).await;
        let listeners = Listeners { clients: listener().await, peers: listener().await };
        let started = super::super::start(listeners, bench.deps.clone(), Config::default(), None).await;
        let server = started.expect("starts");
        let sessions = &bench.deps.backends.sessions;
        let (user, device) = (UserId(1), "phone".parse().expect("a name"));
        let identity = Identity { sub: user, dev: device, jti: uuid::Uuid::nil(), iat: 0, exp: u64::MAX };
        let open = || open(State(Arc::clone(&server)), Caller(identity.clone()));
        tokio::select! {
            _ = open() => panic!("the claim is held up"),
            () = gate.reached() => {}
        }
        assert_eq!(server.figures(), Figures { seats: 1, sockets: 1, ..Figures::default() });
        gate.open();
        let ended = async {
            while server.figures() != Figures::default() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(1), ended).await.expect("it ends");
        assert_eq!(sessions.lookup(&[user]).await.expect("reads"), []);
        assert!(server.polls.lock().is_empty());
        // One whose answer is taken stays.
        assert!(open().await.is_ok());
        let session = sessions.lookup(&[user]).await.expect("reads")[0].session;
        assert!(server.polls.lock().get(&session).is_some_and(|polled| polled.connection.socket.is_open()));
        assert_eq!(server.figures().connections, 1);
    }
}
