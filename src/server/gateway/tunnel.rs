//! A WebSocket on its way through: reads the first line, picks a chat server, then moves bytes and looks at nothing. A
//! connection of a client that polls goes to `polls` by its first line.
//!
//! The path `/ws/NAME`, which the API gives out at login, asks for one server, so that placement holds through the
//! gateway. Any other path, and a server that is gone or drains, goes to the server with the fewest connections.
//! An idle tunnel holds no buffer: bytes pass through one of the thread, and what a slow reader does not take waits in one
//! of its own while the other side is not read. A reader that takes it too slowly ends the tunnel, and so does a side that
//! neither says anything nor closes once the other one has closed.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::lost::Leads;
use super::proxy::{self, Connection};
use super::{Gateway, health, polls};
use crate::protocol::{CHAT_PATH, ErrorCode, ServerName};
use crate::runtime::net;
use crate::server::access::places::Places;
use crate::server::access::seats::Begun;
use crate::server::http;
use crate::server::http::status::{Failure, Refusal};
use crate::server::min_rate::{MinRate, SOCKET_STALL_MAX};
use crate::telemetry::Counter;

/// Longest first line of a request.
const FIRST_LINE_BYTES_MAX: usize = 2 * 1024;

/// Longest that connecting to a chat server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Chat servers tried for one connection.
const TRIES_MAX: usize = 3;

/// Time that a probe has when all seats are taken.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest that one direction may go on, with nothing waiting to be written, once the other one has ended: who neither writes
/// nor closes keeps no tunnel.
const REST_TIMEOUT: Duration = Duration::from_secs(10);

const READ_BYTES: usize = 64 * 1024;

thread_local! {
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// Takes a client to a chat server and serves it until either side ends.
pub(super) async fn run(gateway: &Arc<Gateway>, mut client: TcpStream, begun: Begun, places: &Arc<Places>) {
    let first = begun.within(gateway.config.first_line_timeout, first_line(&mut client)).await;
    let Ok(Ok(first)) = first else {
        gateway.deps.metrics.count(Counter::HandshakesFailed);
        return;
    };
    let place = client.peer_addr().ok().and_then(|from| places.enter(from.ip()));
    let Some(place) = place else {
        // It counts as half open until it is gone.
        return run_full(gateway, client, &first).await;
    };
    drop(begun);
    if polls::are_meant(&first) || health::begins(&first) {
        // Boxed: it is far larger than a tunnel.
        return Box::pin(proxy::serve(Arc::clone(gateway), client, Connection::Polls(first, Some(place)))).await;
    }
    let Some((server, leads)) = connect(gateway, wanted(&first), &first).await else {
        gateway.deps.metrics.count(Counter::HandshakesFailed);
        return refuse(client, "no chat server takes connections now").await;
    };
    // An end that failed takes the other one with it: both sockets close here.
    tokio::select! {
        _ = copy_both(&client, &server) => {}
        () = leads.lost() => {}
    }
}

/// What is left for a connection when all seats are taken: a probe gets its answer, everybody else is told.
async fn run_full(gateway: &Arc<Gateway>, client: TcpStream, first: &[u8]) {
    gateway.deps.metrics.count(Counter::HandshakesFailed);
    if !http::is_probe(first) {
        return refuse(client, "this gateway has as many connections as it holds, or of one address").await;
    }
    let _ = tokio::time::timeout(PROBE_TIMEOUT, async {
        if health::begins(first) {
            let probe = Connection::Polls(first.to_vec(), None);
            return Box::pin(proxy::serve(Arc::clone(gateway), client, probe)).await;
        }
        if let Some((server, _)) = connect(gateway, None, first).await {
            let _ = copy_both(&client, &server).await;
        }
    })
    .await;
}

/// Reads up to the end of the first line, and whatever came with it.
async fn first_line(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(512);
    loop {
        if client.read_buf(&mut bytes).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if bytes.contains(&b'\n') {
            return Ok(bytes);
        }
        if bytes.len() > FIRST_LINE_BYTES_MAX {
            return Err(ErrorKind::InvalidData.into());
        }
    }
}

/// The server that a request line asks for by its path.
fn wanted(first: &[u8]) -> Option<ServerName> {
    let (_, target) = http::first_line(first)?;
    let name = http::path_of(target).strip_prefix(CHAT_PATH)?.strip_prefix('/')?;
    name.parse().ok()
}

/// Connects to the wanted server, or else to the ones with the fewest connections, and hands over what was read.
async fn connect(gateway: &Gateway, wanted: Option<ServerName>, first: &[u8]) -> Option<(TcpStream, Arc<Leads>)> {
    for server in gateway.chat_servers(wanted.as_ref()).await.into_iter().take(TRIES_MAX) {
        let Ok(Ok(mut stream)) = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(server.address)).await else {
            gateway.deps.metrics.count(Counter::PeerFailures);
            continue;
        };
        net::set_options(&stream);
        gateway.cluster.note_placed(&server.name);
        if stream.write_all(first).await.is_ok() {
            return Some((stream, gateway.led.to(&server)));
        }
    }
    None
}

async fn refuse(mut client: TcpStream, message: &str) {
    let refusal = Refusal::from(Failure::retry_later(ErrorCode::Unavailable, message, 1_000));
    // Whether the client still listens does not matter.
    let _ = tokio::time::timeout(CONNECT_TIMEOUT, client.write_all(&refusal.into_bytes())).await;
}

/// One direction of a tunnel.
#[derive(Default)]
struct Flow {
    /// Read and not written yet; nothing more is read while there is any.
    waiting: Vec<u8>,
    /// How slowly that may be taken; while there is any.
    rate: Option<Box<MinRate>>,
    has_ended: bool,
}

/// Moves bytes both ways until both directions have ended, or one has failed, or one goes on for too long after the other.
async fn copy_both(client: &TcpStream, server: &TcpStream) -> io::Result<()> {
    let (mut up, mut down) = (Flow::default(), Flow::default());
    let mut deadline = None::<Pin<Box<Sleep>>>;
    poll_fn(|context| {
        let has_ended = (up.poll(context, client, server)?, down.poll(context, server, client)?);
        match has_ended {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            (Poll::Pending, Poll::Pending) => Poll::Pending,
            // What waits to be written has a time of its own.
            _ if !up.waiting.is_empty() || !down.waiting.is_empty() => Poll::Pending,
            _ => {
                let deadline = deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(REST_TIMEOUT)));
                deadline.as_mut().poll(context).map(|()| Err(ErrorKind::TimedOut.into()))
            }
        }
    })
    .await
}

impl Flow {
    /// Moves what there is; ready once the source has ended and everything is written. One task polls each direction, so
    /// that the one place for a waker that a socket has per direction is enough.
    fn poll(&mut self, context: &mut Context<'_>, from: &TcpStream, to: &TcpStream) -> Poll<io::Result<()>> {
        loop {
            if !self.waiting.is_empty() {
                let rate = self.rate.get_or_insert_with(|| Box::new(MinRate::new(SOCKET_STALL_MAX)));
                if to.poll_write_ready(context)?.is_pending() {
                    return rate.poll_too_slow(context).map(|()| Err(ErrorKind::TimedOut.into()));
                }
                let written = write(to, &self.waiting)?;
                if written > 0 {
                    rate.took(written);
                }
                self.waiting.drain(..written);
                if self.waiting.is_empty() {
                    (self.waiting, self.rate) = (Vec::new(), None);
                }
                continue;
            }
            if self.has_ended {
                return Poll::Ready(Ok(()));
            }
            ready!(from.poll_read_ready(context))?;
            READ_BUFFER.with_borrow_mut(|buffer| match net::try_read(from, buffer) {
                Ok(0) => {
                    self.has_ended = true;
                    net::finish_writing(to);
                    Ok(())
                }
                Ok(read) => {
                    let written = write(to, &buffer[..read])?;
                    self.waiting.extend_from_slice(&buffer[written..read]);
                    Ok(())
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
                Err(error) => Err(error),
            })?;
        }
    }
}

/// Writes what fits now.
fn write(to: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match to.try_write(bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_names_the_server() {
        let name = |line: &str| wanted(line.as_bytes()).map(|name| name.to_string());
        assert_eq!(name("GET /ws/chat-2 HTTP/1.1\r\nHost: x\r\n").as_deref(), Some("chat-2"));
        assert_eq!(name("GET /ws/chat-2?x=1 HTTP/1.1\r\n").as_deref(), Some("chat-2"));
        for other in ["GET /ws HTTP/1.1\r\n", "GET /ws/ HTTP/1.1\r\n", "GET /x/chat-2 HTTP/1.1\r\n", "\n", "GET\n"] {
            assert_eq!(name(other), None, "{other:?}");
        }
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = net::listen("127.0.0.1:0".parse().expect("valid")).expect("binds");
        let address = listener.local_addr().expect("bound");
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.expect("connects"), far.expect("accepted").0)
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_ends_the_tunnel() {
        let (client, inner) = pair().await;
        let (outer, mut server) = pair().await;
        // More than the kernel takes.
        let sent = vec![7; 64 << 20];
        let copied = tokio::select! {
            copied = tokio::time::timeout(SOCKET_STALL_MAX * 2, copy_both(&inner, &outer)) => copied,
            _ = server.write_all(&sent) => panic!("nobody reads it"),
        };
        let error = copied.expect("it ends").expect_err("too slow");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        drop(client);
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_on_when_the_other_side_has_closed_has_a_time() {
        for is_client in [true, false] {
            let (client, inner) = pair().await;
            let (outer, server) = pair().await;
            let (closes, mut stays) = if is_client { (client, server) } else { (server, client) };
            drop(closes);
            let copied = tokio::time::timeout(REST_TIMEOUT * 100, copy_both(&inner, &outer)).await;
            assert_eq!(copied.expect("it ends").expect_err("it was left").kind(), ErrorKind::TimedOut);
            assert_eq!(stays.read(&mut [0]).await.expect("reads"), 0, "it is told of the end");
        }
    }

    #[tokio::test]
    async fn a_reader_that_takes_its_time_gets_every_byte() {
        let (mut client, inner) = pair().await;
        let (outer, mut server) = pair().await;
        let sent: Vec<u8> = (0..8_u32 << 20).map(|n| (n % 251) as u8).collect();
        let got = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.expect("reads");
            server.write_all(b"thanks").await.expect("writes");
            drop(server);
            got
        };
        let talk = async {
            client.write_all(&sent).await.expect("writes");
            client.shutdown().await.expect("ends");
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.expect("reads");
            answer
        };
        let (got, answer, copied) = tokio::join!(got, talk, copy_both(&inner, &outer));
        copied.expect("both ended");
        assert!(got == sent && answer == b"thanks");
    }
}
