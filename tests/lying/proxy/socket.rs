//! One WebSocket through the proxy: the upgrade, decoded frames both ways, and output at its time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use chatctl::protocol::websocket::{self, Decoder, Event, Role};
use chatctl::protocol::{ClientFrame, ErrorCode, ServerFrame};
use chatctl::runtime::clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, OpCode};

use super::facts::Who;
use super::http::{self, Answer, Request};
use super::{Proxy, Wire};

/// Largest message that the proxy takes.
const MESSAGE_BYTES_MAX: u32 = 1 << 20;

/// Things on their way to one client.
const OUTGOING_MAX: usize = 16_384;

/// Most bytes in one write of [`Wire::Crumbs`].
const CRUMB_BYTES: u64 = 64;

/// What becomes of a device's wish to connect.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Upgrade {
    /// It goes to the stack.
    Through,
    /// The same after a while.
    Slow(Duration),
    /// It is refused with this status.
    Refuse(u16),
    /// It is accepted and never answered.
    Silent,
    /// It goes to the stack, and nothing of what the server says comes back.
    Deaf,
    /// The answer has a wrong key.
    WrongKey,
}

/// Something for a client.
#[derive(Debug)]
enum What {
    Bytes(Vec<u8>),
    /// A close frame, and nothing after it.
    Close(u16),
    /// The connection ends without a word.
    Cut,
    /// The connection stays open, and nothing passes any more.
    Blackhole,
    /// The server has ended the connection.
    End,
}

/// Something for a client, perhaps later.
#[derive(Debug)]
pub(crate) struct Out {
    what: What,
    after: Duration,
    acks: Option<uuid::Uuid>,
}

impl Out {
    const fn new(what: What) -> Self {
        Self { what, after: Duration::ZERO, acks: None }
    }

    /// A frame as it is, alone.
    pub(crate) fn pass(frame: ServerFrame) -> Vec<Self> {
        vec![Self::frame(&frame)]
    }

    pub(crate) fn frame(frame: &ServerFrame) -> Self {
        let acks = if let ServerFrame::Ack(ack) = frame { Some(ack.uuid) } else { None };
        Self { acks, ..Self::text(&frame.encode()) }
    }

    /// A text message, whatever is in it.
    pub(crate) fn text(text: &str) -> Self {
        Self::bytes(websocket::text_frame(text, None))
    }

    /// Bytes as they are.
    pub(crate) const fn bytes(bytes: Vec<u8>) -> Self {
        Self::new(What::Bytes(bytes))
    }

    /// The server closes; counted as `closed` when the client has not.
    pub(crate) const fn close(code: u16) -> Self {
        Self::new(What::Close(code))
    }

    /// The connection breaks; counted as `cut` when the client has not closed it.
    pub(crate) const fn cut() -> Self {
        Self::new(What::Cut)
    }

    /// The connection stays open and carries nothing any more; counted as `blackholed`.
    pub(crate) const fn blackhole() -> Self {
        Self::new(What::Blackhole)
    }

    /// The same after a while. What is due at the same time keeps its order.
    pub(crate) fn after(self, wait: Duration) -> Self {
        Self { after: wait, ..self }
    }
}

/// An entry of the writer's queue, the earliest first.
struct Due {
    at_us: u64,
    number: u64,
    what: What,
}

impl Due {
    const fn key(&self) -> (u64, u64) {
        (self.at_us, self.number)
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

/// An open connection of a device.
pub(crate) struct Socket {
    pub(crate) who: Who,
    outgoing: mpsc::Sender<Due>,
    outs: AtomicU64,
    is_closed_by_client: AtomicBool,
    is_blackholed: AtomicBool,
}

impl Socket {
    /// Sends something to the client.
    pub(crate) fn put(&self, out: Out) {
        let at_us = clock::now_us() + out.after.as_micros() as u64;
        let number = self.outs.fetch_add(1, Ordering::Relaxed);
        // Who is gone gets nothing.
        let _ = self.outgoing.try_send(Due { at_us, number, what: out.what });
    }
}

/// Serves a connection that wants to be a WebSocket to `target`, which is `host:port/path`.
pub(super) async fn serve(proxy: Arc<Proxy>, mut stream: TcpStream, request: &Request, target: &str) {
    let who = request.token().and_then(|token| proxy.facts().who(token)).expect("devices name their token");
    let upgrade = (proxy.lie.connect)(&proxy, &who);
    match upgrade {
        Upgrade::Through | Upgrade::Deaf | Upgrade::WrongKey => {}
        Upgrade::Slow(wait) => tokio::time::sleep(wait).await,
        Upgrade::Refuse(status) => {
            let code = if status == 401 { ErrorCode::Unauthorized } else { ErrorCode::Unavailable };
            let _ = http::write_answer(&mut stream, &Answer::error(status, code, None)).await;
            let _ = stream.shutdown().await;
            return;
        }
        Upgrade::Silent => {
            let mut scratch = [0; 1024];
            while matches!(stream.read(&mut scratch).await, Ok(n) if n > 0) {}
            return;
        }
    }
    let Some((server, head, rest)) = open(request, target).await else { return };
    let head = if matches!(upgrade, Upgrade::WrongKey) { head.replace("ccept: ", "ccept: x") } else { head };
    if stream.write_all(head.as_bytes()).await.is_err() || !head.starts_with("HTTP/1.1 101") {
        let _ = stream.write_all(&rest).await;
        return;
    }
    let (outgoing, queue) = mpsc::channel(OUTGOING_MAX);
    let number = proxy.sockets_made.fetch_add(1, Ordering::Relaxed);
    let socket = Arc::new(Socket {
        who,
        outgoing,
        outs: AtomicU64::new(0),
        is_closed_by_client: AtomicBool::new(false),
        is_blackholed: AtomicBool::new(matches!(upgrade, Upgrade::Deaf)),
    });
    proxy.sockets.lock().expect("no panic while held").insert(number, Arc::clone(&socket));
    let (client_read, client_write) = stream.into_split();
    let (server_read, server_write) = server.into_split();
    let writer = Writer { proxy: &proxy, socket: &socket, queue, waiting: BinaryHeap::new(), to: client_write };
    // Whichever ends first ends the connection; the server's end goes through the writer, behind what was said before.
    tokio::select! {
        () = client_to_server(&proxy, &socket, client_read, server_write) => {}
        () = server_to_client(&proxy, &socket, server_read, rest) => {}
        () = writer.run() => {}
    }
    proxy.sockets.lock().expect("no panic while held").remove(&number);
}

/// Upgrades at the chat server; the answer's head and what came behind it.
async fn open(request: &Request, target: &str) -> Option<(TcpStream, String, Vec<u8>)> {
    let (authority, path) = target.split_once('/').expect("host:port/path");
    let mut stream = TcpStream::connect(authority).await.ok()?;
    let mut head = format!("GET /{path} HTTP/1.1\r\n");
    for (name, value) in request.headers() {
        let value = if name.eq_ignore_ascii_case("host") { authority } else { value };
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    loop {
        if let Some(end) = answer.windows(4).position(|w| w == b"\r\n\r\n") {
            let rest = answer.split_off(end + 4);
            return Some((stream, String::from_utf8_lossy(&answer).into_owned(), rest));
        }
        if stream.read_buf(&mut answer).await.ok()? == 0 {
            return None;
        }
    }
}

async fn client_to_server(proxy: &Proxy, socket: &Socket, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let mut decoder = Decoder::new(Role::Server, MESSAGE_BYTES_MAX);
    let mut buffer = Vec::with_capacity(4096);
    loop {
        buffer.clear();
        match from.read_buf(&mut buffer).await {
            Ok(n) if n > 0 => {}
            _ => break,
        }
        let mut out = Vec::new();
        let is_lost = socket.is_blackholed.load(Ordering::Relaxed);
        let fed = decoder.feed(&mut buffer, &mut |event| match event {
            _ if is_lost => {}
            Event::Text(text) => {
                let frame = ClientFrame::decode(text).expect("the generator sends good frames");
                for frame in from_client(proxy, socket, frame) {
                    out.extend(websocket::text_frame(&frame.encode(), Some([7; 4])));
                }
            }
            Event::Binary(_) => panic!("the generator sends text"),
            Event::Ping(payload) => {
                proxy.tally.add("pings", 1);
                websocket::encode(OpCode::Control(Control::Ping), payload, Some([7; 4]), &mut out);
            }
            Event::Pong(payload) => out.extend(websocket::pong_frame(payload, Some([7; 4]))),
            Event::Close(code) => {
                socket.is_closed_by_client.store(true, Ordering::Relaxed);
                out.extend(websocket::close_frame(code, "", Some([7; 4])));
            }
        });
        fed.expect("the generator speaks WebSocket");
        if !out.is_empty() && to.write_all(&out).await.is_err() {
            // The server is gone: what it said before still goes to the client.
            std::future::pending::<()>().await;
        }
    }
    socket.is_closed_by_client.store(true, Ordering::Relaxed);
}

fn from_client(proxy: &Proxy, socket: &Socket, frame: ClientFrame) -> Vec<ClientFrame> {
    match &frame {
        ClientFrame::Send(send) => proxy.facts().sends(&socket.who, send.uuid),
        ClientFrame::Beat => proxy.facts().beat(&socket.who),
        _ => {}
    }
    (proxy.lie.client)(proxy, socket, frame)
}

async fn server_to_client(proxy: &Proxy, socket: &Socket, mut from: OwnedReadHalf, begun: Vec<u8>) {
    let mut decoder = Decoder::new(Role::Client, MESSAGE_BYTES_MAX);
    let mut buffer = begun;
    buffer.reserve(4096);
    loop {
        let fed = decoder.feed(&mut buffer, &mut |event| match event {
            _ if socket.is_blackholed.load(Ordering::Relaxed) => {}
            Event::Text(text) => {
                let frame = ServerFrame::decode(text).expect("the stack sends good frames");
                from_server(proxy, socket, frame);
            }
            Event::Binary(_) => panic!("the stack sends text"),
            Event::Ping(payload) => {
                let mut bytes = Vec::new();
                websocket::encode(OpCode::Control(Control::Ping), payload, None, &mut bytes);
                socket.put(Out::bytes(bytes));
            }
            Event::Pong(payload) => socket.put(Out::bytes(websocket::pong_frame(payload, None))),
            Event::Close(code) => socket.put(Out::bytes(websocket::close_frame(code, "", None))),
        });
        fed.expect("the stack speaks WebSocket");
        buffer.clear();
        match from.read_buf(&mut buffer).await {
            Ok(n) if n > 0 => {}
            _ => break,
        }
    }
    if !socket.is_blackholed.load(Ordering::Relaxed) {
        socket.put(Out::new(What::End));
    }
    std::future::pending::<()>().await;
}

fn from_server(proxy: &Proxy, socket: &Socket, frame: ServerFrame) {
    match &frame {
        ServerFrame::Welcome(_) => {
            let now_us = clock::now_us();
            let _ = proxy.first_welcome_us.compare_exchange(0, now_us, Ordering::Relaxed, Ordering::Relaxed);
            proxy.facts().welcomed(&socket.who);
        }
        ServerFrame::Ack(ack) => proxy.facts().acks(ack),
        _ => {}
    }
    for out in (proxy.lie.server)(proxy, socket, frame) {
        if let Some(uuid) = out.acks {
            proxy.facts().told_ack(uuid);
        }
        socket.put(out);
    }
}

/// Writes what is due, until the connection ends.
struct Writer<'a> {
    proxy: &'a Proxy,
    socket: &'a Socket,
    queue: mpsc::Receiver<Due>,
    waiting: BinaryHeap<Reverse<Due>>,
    to: OwnedWriteHalf,
}

impl Writer<'_> {
    async fn run(mut self) {
        loop {
            let next_us = self.waiting.peek().map(|due| due.0.at_us);
            tokio::select! {
                biased;
                due = self.queue.recv() => match due {
                    Some(due) => self.waiting.push(Reverse(due)),
                    None => return,
                },
                () = clock::sleep_until_us(next_us.unwrap_or(0)), if next_us.is_some() => {
                    if !self.write_next().await {
                        return;
                    }
                }
            }
        }
    }

    /// Returns whether the connection goes on.
    async fn write_next(&mut self) -> bool {
        let Some(Reverse(due)) = self.waiting.pop() else { return true };
        if self.socket.is_blackholed.load(Ordering::Relaxed) {
            return true;
        }
        match due.what {
            What::Bytes(bytes) => self.bytes(bytes).await,
            What::Close(code) => {
                self.count("closed");
                let _ = self.to.write_all(&websocket::close_frame(Some(code), "", None)).await;
                let _ = self.to.shutdown().await;
                // The client's answer ends it.
                std::future::pending().await
            }
            What::Cut => {
                self.count("cut");
                false
            }
            What::Blackhole => {
                self.count("blackholed");
                self.socket.is_blackholed.store(true, Ordering::Relaxed);
                true
            }
            What::End => false,
        }
    }

    /// Counts what was done to a connection that the client did not want to end.
    fn count(&self, name: &'static str) {
        if !self.socket.is_closed_by_client.load(Ordering::Relaxed) {
            self.proxy.tally.add(name, 1);
        }
    }

    async fn bytes(&mut self, mut bytes: Vec<u8>) -> bool {
        match self.proxy.lie.wire {
            Wire::Plain => self.to.write_all(&bytes).await.is_ok(),
            Wire::Crumbs => {
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    let size = 1 + self.proxy.below(CRUMB_BYTES) as usize;
                    let (crumb, more) = rest.split_at(size.min(rest.len()));
                    if self.to.write_all(crumb).await.is_err() {
                        return false;
                    }
                    tokio::task::yield_now().await;
                    rest = more;
                }
                true
            }
            Wire::Lumps(wait) => {
                tokio::time::sleep(wait).await;
                while let Ok(due) = self.queue.try_recv() {
                    self.waiting.push(Reverse(due));
                }
                let now_us = clock::now_us();
                let joins = |due: &Due| due.at_us <= now_us && matches!(due.what, What::Bytes(_));
                while self.waiting.peek().is_some_and(|due| joins(&due.0)) {
                    if let Some(Reverse(Due { what: What::Bytes(more), .. })) = self.waiting.pop() {
                        bytes.extend(more);
                    }
                }
                self.to.write_all(&bytes).await.is_ok()
            }
        }
    }
}
