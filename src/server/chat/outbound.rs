//! What goes to the sockets: frames, merged writes, closes.
//!
//! Above the hub, and below every other owner of this server: it knows who is connected and nothing of conversations. Whoever has a frame for
//! a client gives it to [`Outbound`], which never waits: what a socket does not take at once is queued, and flushed by
//! a task.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::connection::Connection;
use super::hub::Hub;
use super::socket::{CLOSE_WAIT, Flushed, MERGE_WINDOW_MS, Pushed};
use crate::protocol::frames::MovedFrame;
use crate::protocol::{CloseCode, ServerFrame, websocket};
use crate::runtime::{Tasks, clock};
use crate::telemetry::{Counter, Metrics};

/// Writes to the connections of one server.
pub(super) struct Outbound {
    /// Who is connected.
    pub(super) hub: Hub,
    flushes: Flushes,
    /// Bytes that may wait for one slow reader; then it is cut.
    bytes_max: usize,
    tasks: Tasks,
    metrics: Arc<Metrics>,
}

/// Connections that frames are gathered for before they are written.
const GATHERED_MAX: usize = 4_096;

/// How the messages of some records are written: each at once, or those of all records together.
pub(super) struct Writes {
    gathered: Option<Vec<Arc<Connection>>>,
    /// When the last were written, on [`clock::now_ms_u32`].
    written_ms: u32,
}

impl Writes {
    /// Of so many records. What is gathered must go through [`Outbound::write`] in the end.
    pub(super) fn of_records(count: usize) -> Self {
        Self { gathered: (count > 1).then(Vec::new), written_ms: clock::now_ms_u32() }
    }

    /// Of one record.
    pub(super) const fn direct() -> Self {
        Self { gathered: None, written_ms: 0 }
    }
}

/// Connections with something to flush after the merge window.
#[derive(Default)]
struct Flushes {
    connections: Mutex<Vec<Arc<Connection>>>,
    news: Notify,
}

impl Flushes {
    fn add(&self, connection: &Arc<Connection>) {
        self.connections.lock().expect("no panic while held").push(Arc::clone(connection));
        self.news.notify_one();
    }

    fn take(&self) -> Vec<Arc<Connection>> {
        std::mem::take(&mut *self.connections.lock().expect("no panic while held"))
    }
}

impl Outbound {
    /// Without connections. At most `bytes_max` bytes wait for one of them.
    pub(super) fn new(bytes_max: usize, tasks: Tasks, metrics: Arc<Metrics>) -> Self {
        Self { hub: Hub::default(), flushes: Flushes::default(), bytes_max, tasks, metrics }
    }

    /// Writes a frame to one connection.
    pub(super) fn reply(&self, connection: &Arc<Connection>, frame: &ServerFrame) {
        self.push(connection, websocket::text_frame(&frame.encode(), None).into());
    }

    /// Enters a connection by `enter`, and writes its first frame only then: a client that has read it is told of
    /// whatever happens from there on. What others write meanwhile comes behind it.
    pub(super) fn enter(&self, connection: &Arc<Connection>, first: &ServerFrame, enter: impl FnOnce()) {
        let frame = websocket::text_frame(&first.encode(), None).into();
        let gathered = connection.socket.gather(frame, self.bytes_max);
        enter();
        if gathered == Pushed::Full {
            return self.see_to(connection, gathered);
        }
        // Also where a flush was promised: whoever wrote before this did not keep that.
        if matches!(connection.socket.flush(), Flushed::Blocked(_)) {
            self.flush_when_writable(connection);
        }
    }

    /// Writes an encoded frame to one connection. Never waits; a client that reads too slowly is cut.
    pub(super) fn push(&self, connection: &Arc<Connection>, frame: Bytes) {
        let pushed = connection.socket.push(frame, self.bytes_max);
        self.see_to(connection, pushed);
    }

    /// The same with others of several records.
    pub(super) fn push_with(&self, writes: &mut Writes, connection: &Arc<Connection>, frame: Bytes) {
        let Some(gathered) = &mut writes.gathered else { return self.push(connection, frame) };
        match connection.socket.gather(frame, self.bytes_max) {
            Pushed::Gathered => gathered.push(Arc::clone(connection)),
            pushed => self.see_to(connection, pushed),
        }
        // What others have to say to these connections waits behind it.
        let age_ms = clock::now_ms_u32().wrapping_sub(writes.written_ms);
        if gathered.len() >= GATHERED_MAX || age_ms >= MERGE_WINDOW_MS {
            self.write(writes);
        }
    }

    /// Writes what was gathered.
    pub(super) fn write(&self, writes: &mut Writes) {
        for connection in writes.gathered.iter_mut().flat_map(|gathered| gathered.drain(..)) {
            self.see_to(&connection, Pushed::GatheredEnough);
        }
        writes.written_ms = clock::now_ms_u32();
    }

    fn see_to(&self, connection: &Arc<Connection>, pushed: Pushed) {
        match pushed {
            Pushed::Written | Pushed::Queued | Pushed::Closed => {}
            Pushed::Gathered | Pushed::GatheredEnough => {
                if matches!(connection.socket.flush_gathered(), Flushed::Blocked(_)) {
                    self.flush_when_writable(connection);
                }
            }
            Pushed::FlushSoon => self.flushes.add(connection),
            Pushed::FlushWhenWritable => self.flush_when_writable(connection),
            Pushed::Full => {
                self.metrics.count(Counter::SlowConsumers);
                self.close(connection, CloseCode::SlowConsumer);
            }
        }
    }

    /// Whether a frame of so many bytes finds room in a part of what may wait for a connection, one of `share`.
    pub(super) fn has_room(&self, connection: &Connection, bytes: usize, share: usize) -> bool {
        connection.socket.waiting_bytes() + bytes <= self.bytes_max / share
    }

    /// Sends a close frame and ends the connection when the other end has answered, or after a moment.
    pub(super) fn close(&self, connection: &Arc<Connection>, code: CloseCode) {
        if begin_close(connection, code) {
            self.tasks.spawn("chat.close", end_close(Arc::clone(connection)));
        }
    }

    /// Asks a client to connect to another server, and closes its connection.
    pub(super) fn send_elsewhere(&self, connection: &Arc<Connection>) {
        let retry_after_ms = rand::random_range(50..500);
        let moved = MovedFrame { reason: "drain".to_owned(), retry_after_ms };
        self.reply(connection, &ServerFrame::Moved(moved));
        self.close(connection, CloseCode::Moved);
    }

    fn flush_when_writable(&self, connection: &Arc<Connection>) {
        let shared = Arc::clone(connection);
        let metrics = Arc::clone(&self.metrics);
        self.tasks.spawn("chat.flush", async move {
            if !shared.socket.flush_all().await && begin_close(&shared, CloseCode::SlowConsumer) {
                metrics.count(Counter::SlowConsumers);
                end_close(shared).await;
            }
        });
    }

    /// Flushes what gathered in a merge window. Inputs: the list of connections.
    pub(super) async fn flush_loop(self: Arc<Self>) {
        loop {
            self.flushes.news.notified().await;
            tokio::time::sleep(Duration::from_millis(MERGE_WINDOW_MS.into())).await;
            for connection in self.flushes.take() {
                if matches!(connection.socket.flush(), Flushed::Blocked(_)) {
                    self.flush_when_writable(&connection);
                }
            }
        }
    }
}

/// Queues a close frame; returns false when the connection was closing already.
fn begin_close(connection: &Connection, code: CloseCode) -> bool {
    let frame = websocket::close_frame(Some(code.code()), code.reason(), None);
    connection.socket.begin_close(frame.into(), code == CloseCode::SlowConsumer)
}

/// Sends the close frame, and ends the socket a moment later.
async fn end_close(connection: Arc<Connection>) {
    let _ = tokio::time::timeout(CLOSE_WAIT, connection.socket.flush_all()).await;
    // Not held meanwhile: its seat is free once its reader has ended.
    let closing = Arc::downgrade(&connection);
    drop(connection);
    tokio::time::sleep(CLOSE_WAIT).await;
    if let Some(connection) = closing.upgrade() {
        connection.socket.abort();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::super::bench::{connection, connection_over, written};
    use super::super::socket::Socket;
    use super::*;
    use crate::protocol::UserId;
    use crate::server::min_rate::SOCKET_STALL_MAX;

    const ALICE: UserId = UserId(1);

    fn outbound(bytes_max: usize) -> (Arc<Outbound>, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new("chat", "chat-1"));
        (Arc::new(Outbound::new(bytes_max, Tasks::new(), Arc::clone(&metrics))), metrics)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_too_slowly_is_cut_and_counted_once() {
        let (outbound, metrics) = outbound(100);
        let (slow, other) = (connection(ALICE), connection(ALICE));
        for _ in 0..20 {
            outbound.reply(&slow, &ServerFrame::Pong);
        }
        outbound.reply(&other, &ServerFrame::Pong);
        assert_eq!(metrics.counted(Counter::SlowConsumers), 1);
        assert_eq!(
            written(&slow),
            (Vec::new(), Some(CloseCode::SlowConsumer.code())),
            "nothing is sent before the close"
        );
        assert_eq!(written(&other), (vec![ServerFrame::Pong], None));
        // Whether its client answers or not.
        slow.socket.dead().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_of_what_waits_is_cut_in_time() {
        let (outbound, metrics) = outbound(usize::MAX);
        let (client, connection) = connected(&outbound).await;
        // More than the kernel takes.
        outbound.push(&connection, vec![0; 64 << 20].into());
        tokio::time::sleep(SOCKET_STALL_MAX / 2).await;
        assert!(connection.socket.is_open());
        tokio::time::sleep(SOCKET_STALL_MAX).await;
        assert!(!connection.socket.is_open());
        assert_eq!(metrics.counted(Counter::SlowConsumers), 1);
        drop(client);
    }

    /// A client and what will be its connection.
    async fn pair() -> (TcpStream, Arc<Connection>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connects");
        let (stream, _) = listener.accept().await.expect("accepts");
        (client, connection_over(Socket::new(stream), ALICE))
    }

    /// A client and its connection.
    async fn connected(outbound: &Outbound) -> (TcpStream, Arc<Connection>) {
        let (client, connection) = pair().await;
        outbound.hub.add(Arc::clone(&connection));
        (client, connection)
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_its_first_frame_is_here_and_what_comes_meanwhile_is_behind_it() {
        let (outbound, _) = outbound(1_000);
        let (mut client, connection) = pair().await;
        let (first, meanwhile) = (ServerFrame::Pong, websocket::text_frame("meanwhile", None));
        // Pings before: the answers to the last of them wait for a flush that nobody makes.
        let pong: Bytes = websocket::pong_frame(b"early", None).into();
        let mut expected = pong.repeat(20);
        for _ in 0..20 {
            connection.socket.push(pong.clone(), 1_000);
        }
        let waiting = connection.socket.waiting_bytes();
        assert!(waiting > 0, "it is busy");
        outbound.enter(&connection, &first, || {
            assert!(connection.socket.waiting_bytes() > waiting, "the first frame is not written");
            outbound.hub.add(Arc::clone(&connection));
            outbound.push(&connection, meanwhile.clone().into());
        });
        expected.extend(websocket::text_frame(&first.encode(), None));
        expected.extend(meanwhile);
        let mut read = vec![0; expected.len()];
        client.read_exact(&mut read).await.expect("reads");
        assert_eq!(read, expected);
    }

    #[tokio::test]
    async fn nothing_follows_a_close_and_its_first_code_stands() {
        let (outbound, _) = outbound(1_000);
        let connection = connection(ALICE);
        outbound.send_elsewhere(&connection);
        outbound.close(&connection, CloseCode::LoggedOut);
        outbound.reply(&connection, &ServerFrame::Pong);
        let (frames, closed) = written(&connection);
        assert!(matches!(frames[..], [ServerFrame::Moved(_)]), "{frames:?}");
        assert_eq!(closed, Some(CloseCode::Moved.code()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_closing_connection_is_held_by_who_reads_it_only() {
        let (outbound, _) = outbound(1_000);
        let connection = connection(ALICE);
        outbound.close(&connection, CloseCode::Replaced);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(Arc::strong_count(&connection), 1);
        // Its client says nothing: it ends in time all the same.
        connection.socket.dead().await;
    }

    #[tokio::test]
    async fn frames_of_several_records_are_written_together_and_in_order() {
        const ROUNDS: usize = 3;
        let (outbound, _) = outbound(1 << 20);
        outbound.tasks.spawn_until_stopped("test.flush_loop", Arc::clone(&outbound).flush_loop());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connects");
        let (stream, _) = listener.accept().await.expect("accepts");
        let connection = connection_over(Socket::new(stream), ALICE);
        // More than a connection gathers, and between them what somebody else has to say.
        let frames: Vec<Bytes> =
            (0..200).map(|n| websocket::text_frame(&format!("{n} {}", "x".repeat(600)), None).into()).collect();
        for _ in 0..ROUNDS {
            let mut writes = Writes::of_records(frames.len());
            for (n, frame) in frames.iter().enumerate() {
                if n == 3 {
                    outbound.push(&connection, frame.clone());
                } else {
                    outbound.push_with(&mut writes, &connection, frame.clone());
                }
            }
            outbound.write(&mut writes);
            assert!(writes.gathered.is_some_and(|gathered| gathered.is_empty()));
        }
        let mut read = vec![0; ROUNDS * frames.concat().len()];
        client.read_exact(&mut read).await.expect("reads");
        assert_eq!(read, frames.concat().repeat(ROUNDS));
        outbound.tasks.stop();
    }

    #[tokio::test]
    async fn frames_that_follow_each_other_closely_all_arrive_in_order() {
        let (outbound, _) = outbound(1_000);
        outbound.tasks.spawn_until_stopped("test.flush_loop", Arc::clone(&outbound).flush_loop());
        let (mut client, connection) = connected(&outbound).await;
        let frames: Vec<Bytes> = (0..5).map(|n| websocket::text_frame(&format!("frame {n}"), None).into()).collect();
        for frame in &frames {
            outbound.push(&connection, frame.clone());
        }
        let mut read = vec![0; frames.concat().len()];
        client.read_exact(&mut read).await.expect("reads");
        assert_eq!(read, frames.concat());
        outbound.tasks.stop();
    }
}
