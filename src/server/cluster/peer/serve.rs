//! The answering end.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::wire::{MESSAGE_BYTES_MAX, Reader, Wire, Writer};
use super::{Answer, CALL_TIMEOUT, Call, Numbered, PeerHandler, encode};
use crate::protocol::ServerName;
use crate::runtime::{Tasks, net};
use crate::server::Deps;
use crate::server::access::keys::Keys;
use crate::server::access::seats::{HalfOpen, TooLate};
use crate::telemetry::{Counter, Metrics, prometheus};

/// Calls of one link that are handled at the same time, and their bytes: beyond it the link is not read.
const CALLS_AT_ONCE: usize = 256;
const BYTES_AT_ONCE: usize = 8 * MESSAGE_BYTES_MAX;

/// Answers that wait to be written.
const ANSWERS_WAITING_MAX: usize = CALLS_AT_ONCE;

/// Connections that have not proved who they are: beyond it the oldest is cut for a new one.
pub(super) const STRANGERS_MAX: usize = 256;

/// Time that each of them has, however many there are: a handshake between servers.
const STRANGER_PATIENCE: Duration = Duration::from_millis(100);

/// Takes calls of other servers in the tasks of `deps`, until these stop.
pub fn serve(listener: TcpListener, deps: &Deps, handler: Arc<dyn PeerHandler>) {
    let handler = Arc::new(EveryRole { metrics: Arc::clone(&deps.metrics), own: handler });
    let (name, keys) = (deps.name.clone(), Arc::clone(&deps.peer_keys));
    let metrics = Arc::clone(&deps.metrics);
    deps.tasks.spawn("peer.listen", listen(listener, name, keys, handler, metrics, deps.tasks.clone()));
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
pub(super) async fn listen(
    listener: TcpListener,
    name: ServerName,
    keys: Arc<Keys>,
    handler: Arc<dyn PeerHandler>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
) {
    let strangers = HalfOpen::new(STRANGERS_MAX, STRANGER_PATIENCE);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = tasks.stopped() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, or the caller is gone: neither ends the listener.
                if !net::is_transient_accept_error(&error) {
                    tracing::warn!(%error, "a peer link was not accepted");
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let stranger = tokio::select! {
            stranger = strangers.admit() => stranger,
            () = tasks.stopped() => return,
        };
        let (name, keys, handler, group) = (name.clone(), Arc::clone(&keys), Arc::clone(&handler), tasks.clone());
        let metrics = Arc::clone(&metrics);
        tasks.spawn_until_stopped("peer.serve", async move {
            let admitted = stranger.within(CALL_TIMEOUT, admit(stream, &name, &keys)).await;
            drop(stranger);
            match admitted {
                Ok(Ok(wire)) => answer_calls(wire, handler, group).await,
                Ok(Err(error)) => tracing::debug!(%error, "a caller was not admitted"),
                Err(TooLate::Slow) => tracing::debug!("a caller did not say who it is"),
                Err(TooLate::Cut) => metrics.count(Counter::ConnectionsDropped),
            }
        });
    }
}

/// Waits until a caller has proved who it is, by its first call: its hello may be one that somebody has recorded.
async fn admit(stream: TcpStream, name: &ServerName, keys: &Keys) -> std::io::Result<Wire> {
    let (mut wire, _) = Wire::answer(stream, name, keys).await?;
    wire.reader.wait_for_first().await?;
    Ok(wire)
}

/// Answers calls, several at a time, until the caller closes or does not read any more. Answers may overtake each other.
async fn answer_calls(wire: Wire, handler: Arc<dyn PeerHandler>, tasks: Tasks) {
    let Wire { reader, writer } = wire;
    let (answers, waiting) = mpsc::channel(ANSWERS_WAITING_MAX);
    tokio::select! {
        () = handle_calls(reader, handler, answers, tasks) => {}
        _ = write_answers(writer, waiting) => {}
    }
}

/// A call with its number, and its share of the bytes that are handled at once.
type Weighed = ((u64, Option<Call>), OwnedSemaphorePermit);

async fn read_call(reader: &mut Reader, room: &Arc<Semaphore>) -> Option<Weighed> {
    let frame = reader.next().await.ok()?;
    let weight = u32::try_from(frame.len()).ok()?;
    let room = Arc::clone(room).acquire_many_owned(weight).await.ok()?;
    // A call that this version does not know is answered too.
    let call = match serde_json::from_slice::<Numbered<Call>>(&frame) {
        Ok(Numbered { id, body }) => (id, Some(body)),
        Err(_) => (serde_json::from_slice::<Numbered<serde::de::IgnoredAny>>(&frame).ok()?.id, None),
    };
    Some((call, room))
}

/// Handles a call that changes what this server knows: to its end, whoever still waits for it. Half of it would be neither the old
/// state nor the new one.
async fn in_a_task(tasks: &Tasks, handler: Arc<dyn PeerHandler>, call: Call) -> Answer {
    let (done, answer) = oneshot::channel();
    tasks.spawn_until_stopped("peer.call", async move {
        // Nobody waits any more where this fails.
        let _ = done.send(handler.handle(call).await);
    });
    match tokio::time::timeout(CALL_TIMEOUT, answer).await {
        Ok(Ok(answer)) => answer,
        _ => Answer::Failed,
    }
}

/// Reads and handles calls, until the reader ends. A call that its caller has given up is given up here too, unless it changes
/// something.
async fn handle_calls(reader: Reader, handler: Arc<dyn PeerHandler>, answers: mpsc::Sender<Bytes>, tasks: Tasks) {
    let room = Arc::new(Semaphore::new(BYTES_AT_ONCE));
    let calls = stream::unfold((reader, room), |(mut reader, room)| async move {
        let call = read_call(&mut reader, &room).await?;
        Some((call, (reader, room)))
    });
    let handle = |((id, call), room): Weighed| {
        let (handler, tasks) = (Arc::clone(&handler), tasks.clone());
        async move {
            let body = match call {
                Some(call) if call.changes_state() => in_a_task(&tasks, handler, call).await,
                Some(call) => tokio::time::timeout(CALL_TIMEOUT, handler.handle(call)).await.unwrap_or(Answer::Failed),
                None => Answer::WrongRole,
            };
            drop(room);
            encode(&Numbered { id, body })
        }
    };
    let mut handled = std::pin::pin!(calls.map(handle).buffer_unordered(CALLS_AT_ONCE));
    while let Some(answer) = handled.next().await {
        if answers.send(answer).await.is_err() {
            return;
        }
    }
}

/// Writes answers, each with whatever else is waiting then.
async fn write_answers(mut writer: Writer, mut answers: mpsc::Receiver<Bytes>) -> std::io::Result<()> {
    while let Some(first) = answers.recv().await {
        let mut next = Some(first);
        while let Some(answer) = next {
            writer.feed(&answer).await?;
            next = answers.try_recv().ok();
        }
        writer.flush().await?;
    }
    Ok(())
}
