//! Requests to engines that speak JSON over HTTP/1.1: connections that are kept, an end to waiting, the next host when one
//! does not take a connection.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use hyper::{Method, Request, StatusCode, Uri};
use serde_json::Value;

use crate::runtime::error_chain;
use crate::runtime::http_client::{ClientConfig, HttpClient};

/// Longest that one request may take. Under the deadline that every call to a port has.
pub(super) const TIMEOUT: Duration = Duration::from_secs(2);

/// How connections are made and kept.
const CONNECTIONS: ClientConfig = ClientConfig {
    connect_timeout: Duration::from_millis(500),
    // Below the 30 s after which HBase's gateway closes one.
    idle_max: Duration::from_secs(20),
    idle_per_host_max: usize::MAX,
};

/// Largest answer that is taken.
const ANSWER_BYTES_MAX: usize = 64 << 20;

const JSON: &str = "application/json";

/// A client of one service on one or more hosts.
pub(super) struct JsonHttp {
    client: HttpClient<Full<Bytes>>,
    bases: Vec<String>,
    /// Index of the host that is asked.
    current: AtomicUsize,
}

/// A request without an answer.
#[derive(Debug)]
pub(super) struct NoAnswer {
    pub(super) text: String,
    /// False when the request surely never arrived.
    pub(super) may_have_arrived: bool,
    pub(super) timed_out: bool,
}

impl JsonHttp {
    /// A client of `host:port,host:port`; `None` where that is no list of hosts.
    pub(super) fn new(hosts: &str) -> Option<Self> {
        let bases: Vec<String> = hosts.split(',').map(|host| format!("http://{host}")).collect();
        let is_host = |base: &String| base.parse::<Uri>().is_ok_and(|uri| uri.host().is_some_and(|h| !h.is_empty()));
        if !bases.iter().all(is_host) {
            return None;
        }
        Some(Self { client: HttpClient::new(CONNECTIONS), bases, current: AtomicUsize::new(0) })
    }

    /// One request; an answer is an answer whatever its status. `path` begins with a slash.
    pub(super) async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Bytes), NoAnswer> {
        self.request_as(None, method, path, body).await
    }

    /// The same with what the header `Authorization` is to say.
    pub(super) async fn request_as(
        &self,
        authorization: Option<&str>,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Bytes), NoAnswer> {
        let body = body.map(|body| Bytes::from(body.to_string()));
        let exchange = async {
            let mut tries = self.bases.len();
            loop {
                let at = self.current.load(Ordering::Relaxed) % self.bases.len();
                let answer =
                    self.once(authorization, method.clone(), &format!("{}{path}", self.bases[at]), body.clone()).await;
                tries -= 1;
                match answer {
                    Err(NoAnswer { may_have_arrived: false, .. }) if tries > 0 => self.leave(at),
                    answer => return answer,
                }
            }
        };
        tokio::time::timeout(TIMEOUT, exchange).await.unwrap_or_else(|_| {
            self.leave(self.current.load(Ordering::Relaxed));
            Err(NoAnswer { text: "no answer in time".to_owned(), may_have_arrived: true, timed_out: true })
        })
    }

    /// Turns to the next host, unless someone else did.
    fn leave(&self, host: usize) {
        let next = (host + 1) % self.bases.len();
        let _ = self.current.compare_exchange(host, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    async fn once(
        &self,
        authorization: Option<&str>,
        method: Method,
        uri: &str,
        body: Option<Bytes>,
    ) -> Result<(StatusCode, Bytes), NoAnswer> {
        let failed = |may_have_arrived, text: String| NoAnswer { text, may_have_arrived, timed_out: false };
        let mut request = Request::builder().method(method).uri(uri).header(ACCEPT, JSON);
        if body.is_some() {
            request = request.header(CONTENT_TYPE, JSON);
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(Full::new(body.unwrap_or_default())).map_err(|e| failed(false, e.to_string()))?;
        let answer = self.client.request(request).await.map_err(|e| failed(!e.is_connect(), error_chain(&e)))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok((status, body.map_err(|e| failed(true, e.to_string()))?.to_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hosts_are_taken() {
        assert!(JsonHttp::new("a:1,b:2").is_some());
        for bad in ["", "a:1,", "a b", ":1"] {
            assert!(JsonHttp::new(bad).is_none(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_host_that_takes_no_connection_is_passed_over() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let there = server.local_addr().expect("bound");
        let app = axum::Router::new().route("/x", axum::routing::get(async || "1"));
        let serving = axum::serve(server, app).into_future();
        // Nobody listens on port 1.
        let client = JsonHttp::new(&format!("127.0.0.1:1,{there}")).expect("hosts");
        let asked = async { client.request(Method::GET, "/x", None).await.expect("an answer") };
        let (status, body) = tokio::select! { answer = asked => answer, _ = serving => unreachable!("it serves on") };
        assert_eq!((status, &body[..]), (StatusCode::OK, &b"1"[..]));
    }

    #[tokio::test]
    async fn where_nobody_listens_nothing_has_arrived() {
        let client = JsonHttp::new("127.0.0.1:1").expect("a host");
        let error = client.request(Method::GET, "/", None).await.expect_err("nobody is there");
        assert!(!error.may_have_arrived, "{error:?}");
    }
}
