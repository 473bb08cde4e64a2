//! Peer links: one authenticated TCP connection from a server to another, with pipelined calls.
//!
//! Frames are a 4-byte big-endian length and JSON. The listener sends a random challenge, the caller answers with its name
//! and the HMAC-SHA256 of the challenge under the deployment's secret. Then calls `{id, call}` and answers `{id, answer}`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use uuid::Uuid;

use super::Deps;
use crate::protocol::{ConversationId, ServerName, SessionId, UserId};
use crate::runtime::{Tasks, net, queue};
use crate::telemetry::{Metrics, prometheus};

/// Longest that a call may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// Calls that may wait on one link; more fail at once.
const CALLS_WAITING_MAX: usize = 4_096;

/// Largest frame: a message of 64 KiB, escaped, with its recipients.
const FRAME_BYTES_MAX: usize = 1 << 20;

/// Calls of one link that are handled at the same time.
const CALLS_AT_ONCE: usize = 256;

/// What a server asks of another.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Write a frame to sessions of this server.
    Deliver {
        /// Where it was said; recipients who are not members (any more) are left out. `None` for frames that need no check.
        conversation: Option<ConversationId>,
        /// To whom.
        sessions: Vec<(UserId, SessionId)>,
        /// A server frame, encoded.
        frame: String,
    },
    /// Users that beat, and when (milliseconds since 1970).
    Beats(Vec<(UserId, u64)>),
    /// Members changed: read them again.
    MembersChanged {
        /// Of which conversation.
        conversation: ConversationId,
        /// How many there are now.
        members: u64,
    },
    /// The device connected elsewhere: close the old connection.
    Replace {
        /// Whose.
        user: UserId,
        /// The old session.
        session: SessionId,
    },
    /// What are your figures? Every role answers it.
    Metrics,
    /// A token was logged out: close its connections.
    LogOut(Uuid),
    /// Two users became friends, or ended it.
    Friends {
        /// One.
        a: UserId,
        /// The other.
        b: UserId,
        /// True when they became friends.
        friends: bool,
    },
}

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Done.
    Done,
    /// The sessions that took the frame.
    Accepted(Vec<SessionId>),
    /// The server's figures in the Prometheus text format.
    Metrics(String),
    /// This server does not do that.
    WrongRole,
    /// It could not be done now: call again.
    Failed,
}

/// Why a call failed. The other side may have done it.
#[derive(Debug, thiserror::Error)]
#[error("peer {address}: {reason}")]
pub struct PeerError {
    /// Who was called.
    pub address: SocketAddr,
    /// What happened.
    pub reason: &'static str,
}

/// What a role does with calls.
#[async_trait]
pub trait PeerHandler: Send + Sync + 'static {
    /// Handles one call of those that a role answers in its own way.
    async fn handle(&self, call: Call) -> Answer;
}

/// A role that answers only what every role answers.
pub struct NothingOfItsOwn;

#[async_trait]
impl PeerHandler for NothingOfItsOwn {
    async fn handle(&self, _: Call) -> Answer {
        Answer::WrongRole
    }
}

#[derive(Serialize, Deserialize)]
struct Hello {
    from: ServerName,
    mac: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Numbered<T> {
    id: u64,
    body: T,
}

type Wire = Framed<TcpStream, LengthDelimitedCodec>;

fn framed(stream: TcpStream) -> Wire {
    net::set_options(&stream);
    LengthDelimitedCodec::builder().max_frame_length(FRAME_BYTES_MAX).new_framed(stream)
}

fn mac(secret: &[u8], challenge: &[u8], from: &ServerName) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(challenge);
    mac.update(from.as_str().as_bytes());
    mac
}

fn encode<T: Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value).expect("plain data").into()
}

/// Takes calls of other servers in the tasks of `deps`, until these stop.
pub fn serve(listener: TcpListener, deps: &Deps, handler: Arc<dyn PeerHandler>) {
    let handler = Arc::new(EveryRole { metrics: Arc::clone(&deps.metrics), own: handler });
    deps.tasks.spawn("peer.listen", listen(listener, Arc::clone(&deps.peer_secret), handler, deps.tasks.clone()));
}

/// Answers what every role answers, and passes the rest on.
struct EveryRole {
    metrics: Arc<Metrics>,
    own: Arc<dyn PeerHandler>,
}

#[async_trait]
impl PeerHandler for EveryRole {
    async fn handle(&self, call: Call) -> Answer {
        match call {
            Call::Metrics => Answer::Metrics(prometheus::render(&[Arc::clone(&self.metrics)])),
            call => self.own.handle(call).await,
        }
    }
}

/// Accepts links until the tasks stop.
async fn listen(listener: TcpListener, secret: Arc<[u8]>, handler: Arc<dyn PeerHandler>, tasks: Tasks) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = tasks.stopped() => return,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, or the caller is gone: neither ends the listener.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let (secret, handler) = (Arc::clone(&secret), Arc::clone(&handler));
        tasks.spawn_until_stopped("peer.serve", async move {
            let mut wire = framed(stream);
            let admitted = tokio::time::timeout(CALL_TIMEOUT, admit(&mut wire, &secret)).await;
            if admitted == Ok(true) {
                answer_calls(wire, handler).await;
            }
        });
    }
}

/// Checks who calls.
async fn admit(wire: &mut Wire, secret: &[u8]) -> bool {
    let challenge = Uuid::new_v4();
    if wire.send(Bytes::copy_from_slice(challenge.as_bytes())).await.is_err() {
        return false;
    }
    let Some(Ok(frame)) = wire.next().await else { return false };
    let Ok(hello) = serde_json::from_slice::<Hello>(&frame) else { return false };
    mac(secret, challenge.as_bytes(), &hello.from).verify_slice(&hello.mac).is_ok()
}

/// Answers calls, several at a time, until the caller closes. Answers may overtake each other.
async fn answer_calls(wire: Wire, handler: Arc<dyn PeerHandler>) {
    let (mut sink, stream) = wire.split();
    let mut answers = stream
        .filter_map(|frame| async { serde_json::from_slice::<Numbered<Call>>(&frame.ok()?).ok() })
        .map(|call| {
            let handler = Arc::clone(&handler);
            async move { encode(&Numbered { id: call.id, body: handler.handle(call.body).await }) }
        })
        .buffer_unordered(CALLS_AT_ONCE)
        .boxed();
    while let Some(answer) = answers.next().await {
        if sink.send(answer).await.is_err() {
            return;
        }
    }
}

/// Links from this server to others, made on the first call and again after a failure.
pub struct Peers {
    name: ServerName,
    secret: Arc<[u8]>,
    tasks: Tasks,
    links: Mutex<HashMap<SocketAddr, Arc<Link>>>,
}

struct Link {
    calls: queue::Sender<Bytes>,
    waiting: Waiting,
    next_id: AtomicU64,
}

/// Calls without an answer yet. `None` once the link is down.
type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>>;

impl Peers {
    /// No links yet.
    #[must_use]
    pub fn new(deps: &Deps) -> Self {
        Self {
            name: deps.name.clone(),
            secret: Arc::clone(&deps.peer_secret),
            tasks: deps.tasks.clone(),
            links: Mutex::default(),
        }
    }

    /// Calls a server and waits for its answer, at most [`CALL_TIMEOUT`].
    pub async fn call(&self, address: SocketAddr, call: &Call) -> Result<Answer, PeerError> {
        let failed = |reason| PeerError { address, reason };
        let link = self.link(address);
        let id = link.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        match link.waiting.lock().expect("no panic while held").as_mut() {
            Some(waiting) => waiting.insert(id, sender),
            None => return Err(failed("link is down")),
        };
        if link.calls.try_send(encode(&Numbered { id, body: call })).is_err() {
            forget_call(&link.waiting, id);
            return Err(failed("too many calls are waiting"));
        }
        match tokio::time::timeout(CALL_TIMEOUT, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(failed("link went down")),
            Err(_) => {
                forget_call(&link.waiting, id);
                Err(failed("no answer in time"))
            }
        }
    }

    fn link(&self, address: SocketAddr) -> Arc<Link> {
        let mut links = self.links.lock().expect("no panic while held");
        if let Some(link) = links.get(&address)
            && link.waiting.lock().expect("no panic while held").is_some()
        {
            return Arc::clone(link);
        }
        let (calls, outgoing) = queue::bounded("peer.calls", CALLS_WAITING_MAX);
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let link = Arc::new(Link { calls, waiting: Arc::clone(&waiting), next_id: AtomicU64::new(0) });
        links.insert(address, Arc::clone(&link));
        let (name, secret) = (self.name.clone(), Arc::clone(&self.secret));
        self.tasks.spawn_until_stopped("peer.link", async move {
            if let Ok(Some(wire)) = tokio::time::timeout(CALL_TIMEOUT, connect(address, &name, &secret)).await {
                drive(wire, outgoing, &waiting).await;
            }
            // Whoever waits hears "link went down" by the dropped senders; the next call makes a new link.
            waiting.lock().expect("no panic while held").take();
        });
        link
    }
}

fn forget_call(waiting: &Waiting, id: u64) {
    if let Some(waiting) = waiting.lock().expect("no panic while held").as_mut() {
        waiting.remove(&id);
    }
}

async fn connect(address: SocketAddr, name: &ServerName, secret: &[u8]) -> Option<Wire> {
    let mut wire = framed(TcpStream::connect(address).await.ok()?);
    let challenge = wire.next().await?.ok()?;
    let mac = mac(secret, &challenge, name).finalize().into_bytes().to_vec();
    wire.send(encode(&Hello { from: name.clone(), mac })).await.ok()?;
    Some(wire)
}

/// Moves calls out and answers in, until either end is gone.
async fn drive(wire: Wire, mut outgoing: mpsc::Receiver<Bytes>, waiting: &Waiting) {
    let (mut sink, mut stream) = wire.split();
    loop {
        tokio::select! {
            call = outgoing.recv() => {
                let Some(call) = call else { return };
                if send_all(&mut sink, call, &mut outgoing).await.is_err() {
                    return;
                }
            }
            frame = stream.next() => {
                let Some(Ok(frame)) = frame else { return };
                let Ok(answer) = serde_json::from_slice::<Numbered<Answer>>(&frame) else { return };
                let sender = waiting.lock().expect("no panic while held").as_mut().and_then(|w| w.remove(&answer.id));
                if let Some(sender) = sender {
                    // A caller that gave up does not listen any more.
                    let _ = sender.send(answer.body);
                }
            }
        }
    }
}

/// Writes a call and whatever else is waiting with it.
async fn send_all(
    sink: &mut futures_util::stream::SplitSink<Wire, Bytes>,
    first: Bytes,
    outgoing: &mut mpsc::Receiver<Bytes>,
) -> std::io::Result<()> {
    sink.feed(first).await?;
    while let Ok(call) = outgoing.try_recv() {
        sink.feed(call).await?;
    }
    sink.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;

    #[async_trait]
    impl PeerHandler for Echo {
        async fn handle(&self, call: Call) -> Answer {
            match call {
                Call::Deliver { sessions, .. } => Answer::Accepted(sessions.into_iter().map(|(_, s)| s).collect()),
                _ => Answer::Done,
            }
        }
    }

    fn peers(secret: &[u8], tasks: &Tasks) -> Peers {
        Peers {
            name: "chat-1".parse().expect("valid"),
            secret: secret.into(),
            tasks: tasks.clone(),
            links: Mutex::default(),
        }
    }

    fn start(tasks: &Tasks) -> SocketAddr {
        let listener = net::listen("127.0.0.1:0".parse().expect("valid")).expect("binds");
        let address = listener.local_addr().expect("bound");
        tasks.spawn("test.peer", super::listen(listener, b"secret".as_slice().into(), Arc::new(Echo), tasks.clone()));
        address
    }

    #[tokio::test]
    async fn calls_are_answered_each_with_its_own() {
        let tasks = Tasks::new();
        let address = start(&tasks);
        let peers = peers(b"secret", &tasks);
        let calls = (0..100_u128).map(|n| {
            let session = SessionId(Uuid::from_u128(n));
            let call = Call::Deliver { conversation: None, sessions: vec![(UserId(1), session)], frame: String::new() };
            let peers = &peers;
            async move { peers.call(address, &call).await.expect("answers") == Answer::Accepted(vec![session]) }
        });
        assert!(futures_util::future::join_all(calls).await.into_iter().all(|fits| fits));
        tasks.stop();
    }

    #[tokio::test]
    async fn a_wrong_secret_gets_no_answer() {
        let tasks = Tasks::new();
        let address = start(&tasks);
        assert!(peers(b"guess", &tasks).call(address, &Call::LogOut(Uuid::nil())).await.is_err());
        tasks.stop();
    }

    #[tokio::test]
    async fn a_link_comes_back_after_the_server_did() {
        let tasks = Tasks::new();
        let peers = peers(b"secret", &tasks);
        let free = net::listen("127.0.0.1:0".parse().expect("valid")).expect("binds");
        let address = free.local_addr().expect("bound");
        drop(free);
        assert!(peers.call(address, &Call::LogOut(Uuid::nil())).await.is_err());
        let listener = net::listen(address).expect("binds");
        tasks.spawn("test.peer", super::listen(listener, b"secret".as_slice().into(), Arc::new(Echo), tasks.clone()));
        assert_eq!(peers.call(address, &Call::LogOut(Uuid::nil())).await.expect("answers"), Answer::Done);
        tasks.stop();
    }
}
