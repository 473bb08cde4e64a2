//! Serving HTTP/1.1, the same for every role: deadlines for a request's head, its body and the writing of its answer.
//!
//! A client that stops reading, or reads too slowly, or stops in the middle of a request, keeps what it asked for in
//! memory for so long and no longer.
//!
//! | file | what |
//! |---|---|
//! | `deadlined` | a socket whose other end has to read |
//! | `head` | heads of requests that are refused |
//! | `kept` | connections that are kept for their next request, at a place |
//! | `page` | pages that many ask for |
//! | `pages` | pages on their way to clients: how much of them is in memory |
//! | `rewound` | a socket of which the beginning was read already |
//! | `status` | from error codes to HTTP statuses |
//! | `timed_body` | bodies of requests, which have a deadline |
//! | `extract` | what handlers of several roles take from a request |

mod deadlined;
pub(super) mod extract;
mod head;
mod kept;
pub(super) mod page;
pub(super) mod pages;
mod rewound;
pub(super) mod status;
mod timed_body;

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response};
use axum::response::IntoResponse;
use futures_util::future::Either;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

pub(super) use self::deadlined::Deadlined;
pub(super) use self::head::Beginning;
use self::kept::end_behind;
pub(super) use self::kept::{end_if_refused, serve_at};
use self::rewound::Rewound;
use self::status::Failure;
use self::timed_body::TimedBody;
pub(super) use self::timed_body::{SlowBody, is_slow};
use super::access::places::{Place, Places};
use super::access::seats::{Begun, HalfOpen, Lingering, Seat, Seats};
use crate::protocol::ErrorCode;
use crate::runtime::{Tasks, net};

/// The address of a client as a gateway of the stack saw it, with a proof (see
/// [`crate::server::access::keys::Keys::sign`]).
pub(in crate::server) const CLIENT_ADDRESS: &str = "x-chatctl-client";

/// Longest that a client may take nothing of an answer that is being written; for what it takes it gets time back (see
/// [`super::min_rate`]).
const WRITE_STALL_MAX: Duration = Duration::from_secs(10);

/// Time that a connection has which was cut while no request was under way, should one come in that moment, or should its
/// last answer still be on the way.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(4);

/// Serves one connection, of which the beginning may be read already, until it ends, or until the tasks stop and the
/// request under way is answered.
pub(in crate::server) async fn serve<S>(stream: TcpStream, begun: Vec<u8>, tasks: Tasks, service: S)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    serve_until(stream, begun, tasks, std::future::pending(), service).await;
}

/// Serves one connection until it ends; once the tasks stop, until the request under way is answered, and once it is cut,
/// for a moment.
async fn serve_until<S>(
    mut stream: TcpStream,
    mut begun: Vec<u8>,
    tasks: Tasks,
    cut: impl Future<Output = ()> + Send,
    service: S,
) where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    net::set_options(&stream);
    let first = async {
        match head::read_first(&mut stream, &mut begun).await {
            Ok(is_there) => is_there,
            Err(refusal) => {
                head::refuse(&mut stream, refusal).await;
                false
            }
        }
    };
    let is_there = tokio::select! {
        is_there = first => is_there,
        () = tasks.stopped() => false,
    };
    if !is_there {
        return;
    }
    let (read, write) = stream.into_split();
    let stream = tokio::io::join(Rewound::new(begun.into(), read), Deadlined::new(write, WRITE_STALL_MAX));
    let service = service_fn(move |request: Request<Incoming>| {
        let request = request.map(|body| Body::new(TimedBody::new(body)));
        match head::check(&request) {
            Ok(()) => Either::Left(service.call(request)),
            Err(refusal) => Either::Right(std::future::ready(Ok(refusal.into_response()))),
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head::HEAD_TIMEOUT)
        .max_headers(head::HEADERS_READ_MAX)
        .max_buf_size(head::BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let left = tokio::select! {
        // A client that breaks HTTP or goes away ends only its own connection.
        _ = connection.as_mut() => return,
        () = tasks.stopped() => Duration::MAX,
        () = cut => LEAVE_TIMEOUT,
    };
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(left, connection).await;
}

/// Connections beyond the limit that are still let in, for what must always be answered.
pub(in crate::server) const RESERVE: usize = 256;

/// Time that such a connection has in all.
const RESERVE_TIMEOUT: Duration = Duration::from_millis(1_500);

/// What is answered on them: the paths of probes.
const ALWAYS: [&str; 3] = ["/health/live", "/health/ready", "/metrics"];

/// Whether a request is one of them, by its first line.
pub(in crate::server) fn is_probe(first: &[u8]) -> bool {
    matches!(first_line(first), Some(("GET", target)) if ALWAYS.contains(&path_of(target)))
}

/// The method and the target of a request of which at least the first line is there; `None` where that is no request.
pub(in crate::server) fn first_line(first: &[u8]) -> Option<(&str, &str)> {
    let line = std::str::from_utf8(first.split(|b| *b == b'\n').next()?).ok()?;
    let mut words = line.split(' ');
    Some((words.next()?, words.next()?))
}

/// A target without its query.
pub(in crate::server) fn path_of(target: &str) -> &str {
    target.split('?').next().unwrap_or_default()
}

/// Room for connections, and a reserve for probes, so that whether a server is well can be asked however many it
/// serves. A place is taken once the first head is there: who only holds a connection is cut when others want in, before
/// that head and between two requests.
pub(in crate::server) struct Room {
    usual: Arc<Places>,
    reserve: Seats,
    half_open: Arc<HalfOpen>,
    /// Whose head is refused: they take nothing of the reserve.
    lingering: Lingering,
}

/// Where a connection is served.
enum Entered {
    Usual(Place),
    Reserve(Seat),
}

/// There is no place for a connection: it was dropped.
#[derive(Debug)]
pub(in crate::server) struct NoPlace;

impl Room {
    /// For so many connections, so many of one address at most, and a tenth as many whose first head is not there yet.
    pub(in crate::server) fn new(connections_max: usize, of_an_address: usize) -> Self {
        let half_open = HalfOpen::beside(connections_max);
        let (usual, reserve) = (Places::new(connections_max, of_an_address), Seats::new(RESERVE));
        Self { usual, reserve, half_open, lingering: Lingering::default() }
    }

    /// Waits until a connection that has come may begin.
    pub(in crate::server) async fn admit(&self) -> Begun {
        self.half_open.admit().await
    }

    fn enter(&self, from: IpAddr) -> Option<Entered> {
        self.usual.enter(from).map(Entered::Usual).or_else(|| self.reserve.take().map(Entered::Reserve))
    }
}

/// Serves one connection that was admitted as [`serve`] does; in the reserve only probes, and for a moment.
///
/// # Errors
/// When its first head has come, and even the reserve is taken.
pub(in crate::server) async fn serve_in<S>(
    room: &Room,
    admitted: Begun,
    mut stream: TcpStream,
    tasks: Tasks,
    service: S,
) -> Result<(), NoPlace>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    let mut head = Vec::new();
    let first = tokio::select! {
        // The limit is the head's own.
        first = admitted.within(Duration::MAX, head::read_first(&mut stream, &mut head)) => first,
        () = tasks.stopped() => return Ok(()),
    };
    match first {
        Ok(Ok(true)) => {}
        Ok(Err(refusal)) => {
            // Who is told why holds nobody up who has yet to send a head.
            drop(admitted);
            tokio::select! {
                () = room.lingering.refuse(head::refuse(&mut stream, refusal)) => {}
                () = tasks.stopped() => {}
            }
            return Ok(());
        }
        Ok(Ok(false)) | Err(_) => return Ok(()),
    }
    let Ok(from) = stream.peer_addr() else { return Ok(()) };
    let entered = room.enter(from.ip()).ok_or(NoPlace)?;
    drop(admitted);
    let _seat = match entered {
        Entered::Usual(place) => {
            serve_at(place, stream, head, tasks, service).await;
            return Ok(());
        }
        Entered::Reserve(seat) => seat,
    };
    let service = Arc::new(service);
    let probes_only = service_fn(move |request: Request<Body>| {
        let service = Arc::clone(&service);
        async move {
            let mut answer = if ALWAYS.contains(&request.uri().path()) {
                service.call(request).await?
            } else {
                let message = "this server has as many connections as it holds";
                Failure::retry_later(ErrorCode::Overloaded, message, 1_000).into_response()
            };
            // The place is for the next one.
            end_behind(&mut answer);
            Ok::<_, Infallible>(answer)
        }
    });
    let _ = tokio::time::timeout(RESERVE_TIMEOUT, serve(stream, head, tasks, probes_only)).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::routing::{get, post};
    use bytes::Bytes;
    use futures_util::StreamExt;
    use hyper_util::service::TowerToHyperService;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::server::access::seats::{HALF_OPEN_MIN, LINGERING_MAX};

    /// A server whose answers are larger than what the sockets' buffers hold, and the answers that it still has in
    /// memory.
    fn start(tasks: &Tasks) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
        struct Counted(Arc<AtomicUsize>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let open = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&open);
        let large = move || {
            counter.fetch_add(1, Ordering::Relaxed);
            let counted = Counted(Arc::clone(&counter));
            let part = Bytes::from(vec![b'x'; 1 << 20]);
            let parts = futures_util::stream::iter(0..32).map(move |_| {
                let _kept = &counted;
                Ok::<_, Infallible>(part.clone())
            });
            std::future::ready(Body::from_stream(parts))
        };
        let read = |body: axum::body::Bytes| std::future::ready(body.len().to_string());
        let router = Router::new().route("/large", get(large)).route("/read", post(read));
        (listen(tasks, router, Room::new(1_000, 1_000)), open)
    }

    /// Serves a router, to as many connections as there is room for.
    fn listen(tasks: &Tasks, router: Router, room: impl Into<Arc<Room>>) -> std::net::SocketAddr {
        let listener = net::listen("127.0.0.1:0".parse().expect("valid")).expect("binds");
        let address = listener.local_addr().expect("bound");
        let (group, room) = (tasks.clone(), room.into());
        tasks.spawn_until_stopped("test.accept", async move {
            loop {
                let (stream, _) = listener.accept().await.expect("accepts");
                let (room, admitted) = (Arc::clone(&room), room.admit().await);
                let (service, tasks) = (TowerToHyperService::new(router.clone()), group.clone());
                group.spawn("test.serve", async move {
                    _ = serve_in(&room, admitted, stream, tasks, service).await;
                });
            }
        });
        address
    }

    #[test]
    fn requests_are_told_apart_by_their_first_line() {
        assert_eq!(first_line(b"GET /a?b HTTP/1.1\r\nHost: x\r\n"), Some(("GET", "/a?b")));
        for none in [&b""[..], b"\n", b"GET\n", b"\xff \xff \xff\n"] {
            assert_eq!(first_line(none), None, "{none:?}");
        }
        assert!(is_probe(b"GET /health/live HTTP/1.1\r\n") && is_probe(b"GET /metrics?x HTTP/1.1\r\n"));
        assert!(!is_probe(b"POST /health/live HTTP/1.1\r\n") && !is_probe(b"GET /health HTTP/1.1\r\n"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_its_answer_is_left() {
        let tasks = Tasks::new();
        let (address, open) = start(&tasks);
        let mut clients = Vec::new();
        for _ in 0..4 {
            let mut client = TcpStream::connect(address).await.expect("connects");
            client.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("writes");
            clients.push(client);
        }
        while open.load(Ordering::Relaxed) < clients.len() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(WRITE_STALL_MAX * 2).await;
        assert_eq!(open.load(Ordering::Relaxed), 0);
        tasks.stop();
    }

    #[tokio::test]
    async fn who_comes_when_all_places_are_taken_is_told_and_probes_are_answered() {
        let tasks = Tasks::new();
        let live = || std::future::ready("live");
        let has_come = Arc::new(tokio::sync::Notify::new());
        let comes = Arc::clone(&has_come);
        let wait = move || {
            comes.notify_one();
            std::future::pending::<String>()
        };
        let router = Router::new().route("/health/live", get(live)).route("/me", get(live)).route("/wait", get(wait));
        let address = listen(&tasks, router, Room::new(1, 1));
        let ask = |path: &'static str| async move {
            let mut client = TcpStream::connect(address).await.expect("connects");
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
            client.write_all(request.as_bytes()).await.expect("writes");
            let mut answer = vec![0; 200];
            let read = client.read(&mut answer).await.expect("answers");
            (client, String::from_utf8_lossy(&answer[..read]).into_owned())
        };
        let mut holds_the_place = TcpStream::connect(address).await.expect("connects");
        holds_the_place.write_all(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("writes");
        has_come.notified().await;
        let (_, refused) = ask("/me").await;
        assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
        for _ in 0..RESERVE + 5 {
            let (_, probed) = ask("/health/live").await;
            assert!(probed.starts_with("HTTP/1.1 200"), "{probed}");
        }
        tasks.stop();
    }

    #[tokio::test]
    async fn half_heads_that_come_again_and_again_keep_nobody_out() {
        let tasks = Tasks::new();
        let router = Router::new().route("/me", get(|| std::future::ready("here")));
        let address = listen(&tasks, router, Room::new(1, 1));
        let half_head = || async move {
            let mut client = TcpStream::connect(address).await.expect("connects");
            client.write_all(b"GET /me HTTP/1.1\r\nX: ").await.expect("writes");
            client
        };
        let mut held = Vec::new();
        for _ in 0..HALF_OPEN_MIN + RESERVE + 2 {
            held.push(half_head().await);
        }
        let mut client = TcpStream::connect(address).await.expect("connects");
        client.write_all(b"GET /me HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("writes");
        let mut answer = [0; 15];
        client.read_exact(&mut answer).await.expect("is answered");
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        tasks.stop();
    }

    #[tokio::test]
    async fn who_is_told_why_its_head_is_refused_holds_nobody_up() {
        let (tasks, room) = (Tasks::new(), Arc::new(Room::new(0, 0)));
        let router = Router::new().route("/health/live", get(|| std::future::ready("live")));
        let address = listen(&tasks, router, Arc::clone(&room));
        let refused = || async move {
            let mut client = TcpStream::connect(address).await.expect("connects");
            client.write_all(b"\x01\n").await.expect("writes");
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("answers");
            assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
            client
        };
        // The clients do not close: they are waited for.
        let mut lingering = Vec::new();
        for _ in 0..LINGERING_MAX.max(RESERVE) + 5 {
            lingering.push(refused().await);
            assert_eq!(room.half_open.len(), 0);
        }
        let mut client = TcpStream::connect(address).await.expect("connects");
        client.write_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("writes");
        let mut answer = [0; 15];
        client.read_exact(&mut answer).await.expect("is answered");
        assert_eq!(&answer, b"HTTP/1.1 200 OK", "the reserve is for probes");
        tasks.stop();
    }

    #[tokio::test]
    async fn what_is_no_request_and_what_is_too_much_of_one_is_told_in_json() {
        let tasks = Tasks::new();
        let (address, _) = start(&tasks);
        let (good, many) = ("GET /read HTTP/1.1\r\nHost: x\r\n\r\n", "X: y\r\n".repeat(100));
        let cases = [
            ("\u{1}\u{2}\u{3} nonsense\r\n\r\n".to_owned(), "400 Bad Request", "bad_request"),
            (format!("GET / HTTP/1.1\r\n{many}Connection: close\r\n\r\n"), "431 ", "too_large"),
            // Behind a request that is answered.
            (format!("{good}GET / HTTP/1.1\r\n{many}Connection: close\r\n\r\n"), "431 ", "too_large"),
            (format!("GET /{} HTTP/1.1\r\nConnection: close\r\n\r\n", "x".repeat(10_000)), "414 ", "too_large"),
        ];
        for (request, status, code) in cases {
            let mut client = TcpStream::connect(address).await.expect("connects");
            client.write_all(request.as_bytes()).await.expect("writes");
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("answers");
            assert!(answer.contains(&format!("HTTP/1.1 {status}")), "{answer}");
            assert!(
                answer.contains("application/json") && answer.contains(&format!("{{\"code\":\"{code}\"")),
                "{answer}"
            );
        }
        tasks.stop();
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_the_clients_fault() {
        let tasks = Tasks::new();
        let (address, _) = start(&tasks);
        let mut client = TcpStream::connect(address).await.expect("connects");
        client.write_all(b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf").await.expect("writes");
        let mut answer = vec![0; 200];
        let read = client.read(&mut answer).await.expect("answers");
        let text = String::from_utf8_lossy(&answer[..read]);
        assert!(text.starts_with("HTTP/1.1 4"), "{text}");
        tasks.stop();
    }
}
