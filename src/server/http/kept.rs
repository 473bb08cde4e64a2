//! Connections that are kept for their next request, at a place that somebody else may need meanwhile.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
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
    let holder = Arc::clone(&place);
    let service = service_fn(move |request: Request<Body>| {
        holder.begin();
        let under_way = UnderWay(Arc::clone(&holder));
        let answer = service.call(request);
        async move {
            let mut answer = answer.await?;
            if under_way.0.is_scarce() {
                end_behind(&mut answer);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    serve_until(stream, begun, tasks, place.cut(), service).await;
}

/// A request at a place, also when its task is dropped.
struct UnderWay(Arc<Place>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.wait();
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
