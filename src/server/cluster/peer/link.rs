//! The caller's end: links from this server to others, made on the first call and again after a failure.
//!
//! A link reads and writes each by itself, so that neither waits for the other: two ends that both stop reading while they write
//! would wait for each other for ever. An end that takes nothing for as long as a call may take, and a few calls in a row without any answer,
//! end the link; the next call makes a new one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot};

use super::wire::{MESSAGE_BYTES_MAX, Reader, Wire, Writer};
use super::{Answer, CALL_TIMEOUT, Call, Numbered, PeerError, encode};
use crate::backends::registry::ServerEntry;
use crate::protocol::ServerName;
use crate::runtime::{Tasks, clock, queue};
use crate::server::Deps;
use crate::server::access::keys::Keys;

/// Calls that may wait on one link, and their bytes; more fail at once.
const CALLS_WAITING_MAX: usize = 4_096;
const BYTES_WAITING_MAX: usize = 8 * MESSAGE_BYTES_MAX;

/// Calls in a row that time out while nothing at all is answered: then the link is given up.
const SILENT_CALLS_MAX: u32 = 3;

/// How often it is said of a server that there is no link to it: each call tries anew.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// Of which servers it was said lately that there is no link, and when, on [`clock::now_us`].
type SaidOf = Arc<Mutex<HashMap<(ServerName, SocketAddr), u64>>>;

/// Whether to say it of this server now.
fn may_say(said_of: &SaidOf, place: &(ServerName, SocketAddr)) -> bool {
    let now_us = clock::now_us();
    let mut said_of = said_of.lock().expect("no panic while held");
    said_of.retain(|_, at_us| now_us.saturating_sub(*at_us) < SAID_EVERY.as_micros() as u64);
    let is_new = !said_of.contains_key(place);
    if is_new {
        said_of.insert(place.clone(), now_us);
    }
    is_new
}

/// Links from this server to others.
pub struct Peers {
    name: ServerName,
    keys: Arc<Keys>,
    tasks: Tasks,
    links: Mutex<HashMap<(ServerName, SocketAddr), Arc<Link>>>,
    said_of: SaidOf,
}

struct Link {
    calls: queue::Sender<Bytes>,
    state: Arc<State>,
    next_id: AtomicU64,
}

/// What a link's callers share with its task.
#[derive(Default)]
struct State {
    /// Calls without an answer yet. `None` once the link is down.
    waiting: Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>,
    /// Bytes of calls that are not written yet.
    queued_bytes: AtomicUsize,
    /// Calls that timed out since something was answered.
    silent_calls: AtomicU32,
    /// The address took no connection: nobody listens there.
    was_refused: AtomicBool,
    /// Ends the link's task.
    give_up: Notify,
}

impl State {
    /// Notes who waits for an answer; returns whether the link is up.
    fn expect_answer(&self, id: u64, sender: oneshot::Sender<Answer>) -> bool {
        let mut waiting = self.waiting.lock().expect("no panic while held");
        let Some(waiting) = waiting.as_mut() else { return false };
        waiting.insert(id, sender);
        true
    }

    fn forget(&self, id: u64) {
        if let Some(waiting) = self.waiting.lock().expect("no panic while held").as_mut() {
            waiting.remove(&id);
        }
    }

    fn is_up(&self) -> bool {
        self.waiting.lock().expect("no panic while held").is_some()
    }
}

impl Peers {
    /// No links yet.
    #[must_use]
    pub fn new(deps: &Deps) -> Self {
        Self::with(deps.name.clone(), Arc::clone(&deps.peer_keys), deps.tasks.clone())
    }

    /// The same, in tasks that may outlive those of the server.
    pub(in crate::server) fn with(name: ServerName, keys: Arc<Keys>, tasks: Tasks) -> Self {
        Self { name, keys, tasks, links: Mutex::default(), said_of: SaidOf::default() }
    }

    /// Calls a server of the registry and waits for its answer, at most [`CALL_TIMEOUT`].
    ///
    /// # Errors
    /// When the server has no address for peers, can't be reached, is not who the entry says, or does not answer in time. It may
    /// have done what was asked all the same.
    pub async fn call(&self, server: &ServerEntry, call: &Call) -> Result<Answer, PeerError> {
        let failed = |reason| PeerError { server: server.name.clone(), reason, is_gone: false };
        let Some(address) = server.peer else { return Err(failed("it has no address for peers")) };
        let link = self.link(&server.name, address);
        let id = link.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        let is_gone = || link.state.was_refused.load(Ordering::Relaxed);
        let is_up = link.state.expect_answer(id, sender);
        if !is_up {
            return Err(PeerError { is_gone: is_gone(), ..failed("link is down") });
        }
        let encoded = encode(&Numbered { id, body: call });
        let bytes = encoded.len();
        let queued = link.state.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if bytes > MESSAGE_BYTES_MAX || queued > BYTES_WAITING_MAX || link.calls.try_send(encoded).is_err() {
            link.state.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            link.state.forget(id);
            return Err(failed("too much is waiting"));
        }
        match tokio::time::timeout(CALL_TIMEOUT, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(PeerError { is_gone: is_gone(), ..failed("link went down") }),
            Err(_) => {
                link.state.forget(id);
                if link.state.silent_calls.fetch_add(1, Ordering::Relaxed) + 1 >= SILENT_CALLS_MAX {
                    link.state.give_up.notify_one();
                }
                Err(failed("no answer in time"))
            }
        }
    }

    fn link(&self, server: &ServerName, address: SocketAddr) -> Arc<Link> {
        let mut links = self.links.lock().expect("no panic while held");
        let place = (server.clone(), address);
        if let Some(link) = links.get(&place)
            && link.state.is_up()
        {
            return Arc::clone(link);
        }
        // Servers come and go: what is down is not kept.
        links.retain(|_, link| link.state.is_up());
        let (calls, outgoing) = queue::bounded("peer.calls", CALLS_WAITING_MAX);
        let state = Arc::new(State { waiting: Mutex::new(Some(HashMap::new())), ..State::default() });
        let link = Arc::new(Link { calls, state: Arc::clone(&state), next_id: AtomicU64::new(0) });
        links.insert(place.clone(), Arc::clone(&link));
        let said_of = Arc::clone(&self.said_of);
        let (own, server, keys) = (self.name.clone(), server.clone(), Arc::clone(&self.keys));
        self.tasks.spawn_until_stopped("peer.link", async move {
            let connecting = async {
                let stream = TcpStream::connect(address).await.inspect_err(|error| {
                    let is_refused = error.kind() == std::io::ErrorKind::ConnectionRefused;
                    state.was_refused.store(is_refused, Ordering::Relaxed);
                })?;
                Wire::call(stream, &own, &server, &keys).await
            };
            match tokio::time::timeout(CALL_TIMEOUT, connecting).await {
                Ok(Ok(wire)) => run(wire, outgoing, &state).await,
                Ok(Err(error)) if may_say(&said_of, &place) => {
                    tracing::warn!(%server, %address, %error, "no peer link; of this server not said again for 10 s");
                }
                Err(_) if may_say(&said_of, &place) => {
                    tracing::warn!(%server, %address, "no peer link: no answer in time; not said again for 10 s");
                }
                Ok(Err(_)) | Err(_) => {}
            }
            // Whoever waits hears "link went down" by the dropped senders; the next call makes a new link.
            state.waiting.lock().expect("no panic while held").take();
        });
        link
    }
}

/// Moves calls out and answers in, until either end is gone or does not answer any more.
async fn run(wire: Wire, outgoing: mpsc::Receiver<Bytes>, state: &State) {
    let Wire { reader, writer } = wire;
    tokio::select! {
        _ = write_calls(writer, outgoing, state) => {}
        _ = read_answers(reader, state) => {}
        () = state.give_up.notified() => {}
    }
}

/// Writes calls, each with whatever else is waiting then.
async fn write_calls(mut writer: Writer, mut outgoing: mpsc::Receiver<Bytes>, state: &State) -> std::io::Result<()> {
    while let Some(first) = outgoing.recv().await {
        let mut next = Some(first);
        while let Some(call) = next {
            writer.feed(&call).await?;
            state.queued_bytes.fetch_sub(call.len(), Ordering::Relaxed);
            next = outgoing.try_recv().ok();
        }
        writer.flush().await?;
    }
    Ok(())
}

async fn read_answers(mut reader: Reader, state: &State) -> std::io::Result<()> {
    loop {
        let frame = reader.next().await?;
        let answer: Numbered<Answer> = serde_json::from_slice(&frame)?;
        state.silent_calls.store(0, Ordering::Relaxed);
        let mut waiting = state.waiting.lock().expect("no panic while held");
        if let Some(sender) = waiting.as_mut().and_then(|waiting| waiting.remove(&answer.id)) {
            // A caller that gave up does not listen any more.
            let _ = sender.send(answer.body);
        }
    }
}
