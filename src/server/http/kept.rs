//! Connections that are kept for their next request, at a place that somebody else may need meanwhile.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use hyper::service::{Service, service_fn};
use tokio::net::TcpStream;

use super::serve_until;
use crate::runtime::Tasks;
use crate::server::access::places::Place;

/// Serves one connection as [`super::serve`] does, at a place: it ends when the place is somebody else's, and behind its
/// next answer while places are scarce.
pub(in crate::server) async fn serve_at<S>(place: Place, stream: TcpStream, begun: Vec<u8>, tasks: Tasks, service: S)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    let place = Arc::new(place);
    let holder = Arc::new(Holder { place: Arc::clone(&place), under_way: AtomicUsize::new(0) });
    let service = service_fn(move |request: Request<Body>| {
        let under_way = Arc::new(UnderWay::begin(&holder));
        let answer = service.call(request);
        async move {
            let mut answer = answer.await?;
            if under_way.0.place.is_scarce() {
                end_behind(&mut answer);
            }
            Ok::<_, Infallible>(answer.map(|body| Body::new(Held { body, under_way })))
        }
    });
    serve_until(stream, begun, tasks, place.cut(), service).await;
}

/// A request at a place, also when its task is dropped, until its answer is written.
struct UnderWay(Arc<Holder>);

/// A place and what is under way at it: the next request may begin before the last answer is written.
struct Holder {
    place: Arc<Place>,
    under_way: AtomicUsize,
}

impl UnderWay {
    fn begin(holder: &Arc<Holder>) -> Self {
        holder.under_way.fetch_add(1, Ordering::Relaxed);
        holder.place.begin();
        Self(Arc::clone(holder))
    }
}

/// An answer, which is under way until all of it is written: who reads slowly does not wait for a next request.
struct Held {
    body: Body,
    under_way: Arc<UnderWay>,
}

/// Bytes of an answer, in the hands of whoever writes them.
struct HeldBytes {
    bytes: Bytes,
    _under_way: Arc<UnderWay>,
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        let held = |bytes| Bytes::from_owner(HeldBytes { bytes, _under_way: Arc::clone(&self.under_way) });
        frame.map(|frame| frame.map(|frame| frame.map(|frame| frame.map_data(held))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.0.under_way.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.place.wait();
        }
    }
}

/// Has the connection end behind an answer.
pub(super) fn end_behind(answer: &mut Response<Body>) {
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
}

/// Has the connection end behind an answer that refuses what the client asked for: who has no token, or asks for what is
/// not there, keeps no place by asking again. Who asks too often would only come again sooner.
pub(in crate::server) fn end_if_refused(answer: &mut Response<Body>) {
    if answer.status().is_client_error() && answer.status() != StatusCode::TOO_MANY_REQUESTS {
        end_behind(answer);
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::net::{IpAddr, SocketAddr};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::runtime::net;
    use crate::server::access::places::Places;

    /// Serves `/`, and 404 for anything else, to as many connections as there are places; the others are dropped.
    fn start(tasks: &Tasks, places: Arc<Places>) -> SocketAddr {
        let listener = net::listen("127.0.0.1:0".parse().expect("valid")).expect("binds");
        let (address, group) = (listener.local_addr().expect("bound"), tasks.clone());
        tasks.spawn_until_stopped("test.accept", async move {
            while let Ok((stream, from)) = listener.accept().await {
                let Some(place) = places.enter(from.ip()) else { continue };
                let service = service_fn(|request: Request<Body>| {
                    let mut answer = Response::new(Body::from("here"));
                    if request.uri().path() != "/" {
                        *answer.status_mut() = StatusCode::NOT_FOUND;
                    }
                    end_if_refused(&mut answer);
                    ready(Ok::<_, Infallible>(answer))
                });
                group.spawn("test.serve", serve_at(place, stream, Vec::new(), group.clone(), service));
            }
        });
        address
    }

    async fn ask(client: &mut TcpStream, path: &str) -> String {
        client.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.expect("writes");
        let mut answer = vec![0; 400];
        let read = client.read(&mut answer).await.expect("answers");
        String::from_utf8_lossy(&answer[..read]).into_owned()
    }

    fn is_last(answer: &str) -> bool {
        answer.contains("connection: close")
    }

    #[tokio::test]
    async fn connections_that_ask_now_and_then_keep_nobody_out() {
        let (tasks, places) = (Tasks::new(), Places::new(100, 100));
        let address = start(&tasks, Arc::clone(&places));
        let mut kept = Vec::new();
        for n in 0..300 {
            let mut client = TcpStream::connect(address).await.expect("connects");
            let answer = ask(&mut client, "/").await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{n}: {answer:?}");
            assert!(places.taken() <= 100);
            if n < 50 {
                assert!(!is_last(&answer) && ask(&mut client, "/").await.starts_with("HTTP/1.1 200"), "{n}");
            }
            kept.push(client);
        }
        tasks.stop();
    }

    #[tokio::test]
    async fn a_connection_without_a_request_is_ended_for_the_next_one() {
        let (tasks, places) = (Tasks::new(), Places::new(2, 2));
        let address = start(&tasks, Arc::clone(&places));
        let mut kept = TcpStream::connect(address).await.expect("connects");
        assert!(!is_last(&ask(&mut kept, "/").await));
        let enter = |n| places.enter(IpAddr::from([10, 0, 0, n]));
        let (_one, _two) = (enter(1).expect("free"), enter(2).expect("it makes room"));
        assert_eq!(kept.read(&mut [0]).await.expect("reads"), 0);
        assert!(enter(3).is_none(), "the others have requests under way");
        tasks.stop();
    }

    #[tokio::test]
    async fn who_is_refused_keeps_no_connection() {
        let tasks = Tasks::new();
        let address = start(&tasks, Places::new(100, 100));
        let mut client = TcpStream::connect(address).await.expect("connects");
        assert!(is_last(&ask(&mut client, "/nothing").await));
        assert_eq!(client.read(&mut [0]).await.expect("reads"), 0);
        tasks.stop();
    }
}
