//! A client's session without a socket: requests that fetch what there is, waiting for it (long-poll) or not (poll).

use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request};

use super::event::LinkError;
use super::link::{Traffic, retry_after, welcome};
use crate::protocol::api::{ApiError, PollAnswer};
use crate::protocol::frames::WelcomeFrame;
use crate::protocol::limits::POLL_WAIT_MAX;
use crate::protocol::{ClientFrame, POLL_PATH, ServerFrame};
use crate::runtime::clock;
use crate::runtime::http_client::{ClientConfig, HttpClient};

/// Longest that a request may take beyond what it waits.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Longest that a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Longest that a connection without a request is kept: well below the 10 s after which a server closes it.
const IDLE_MAX: Duration = Duration::from_secs(4);

/// How connections are made and kept.
const CONNECTIONS: ClientConfig =
    ClientConfig { connect_timeout: CONNECT_TIMEOUT, idle_max: IDLE_MAX, idle_per_host_max: usize::MAX };

/// Most frames of one request. Source: docs/protocol.md, "Without a WebSocket".
const FRAMES_MAX: usize = 64;

/// Largest answer.
const ANSWER_BYTES_MAX: usize = 8 << 20;

type Http = HttpClient<Full<Bytes>>;

/// Connections for polling, shared by all devices.
pub(in crate::loadgen) struct Pollers(Http);

impl Default for Pollers {
    fn default() -> Self {
        Self(HttpClient::new(CONNECTIONS))
    }
}

/// A session.
pub(super) struct PollLink {
    http: Http,
    /// `http://host:port/poll/SESSION`, or `/poll/SERVER/SESSION` through a gateway.
    url: String,
    token: String,
    /// Time between two requests; `None` waits for news instead.
    interval: Option<Duration>,
    outgoing: Vec<String>,
    /// Frames that came in answer to frames of ours.
    early: Vec<ServerFrame>,
    /// The request under way that fetches.
    fetching: Option<BoxFuture<'static, Result<Got, LinkError>>>,
    /// The request under way that sends.
    sending: Option<BoxFuture<'static, Result<Got, LinkError>>>,
    /// When the next one is due.
    next_us: u64,
}

/// An answer, with the bytes that went and came.
struct Got {
    answer: PollAnswer,
    bytes: (u64, u64),
}

fn broken(error: impl std::fmt::Display) -> LinkError {
    LinkError::Broken(error.to_string())
}

async fn exchange(http: Http, url: String, token: String, body: String, limit: Duration) -> Result<Got, LinkError> {
    let sent = (url.len() + token.len() + body.len() + 120) as u64;
    let request = Request::builder()
        .method(Method::POST)
        .uri(url)
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(broken)?;
    let exchange = async {
        let answer = http.request(request).await.map_err(|e| LinkError::of_request(&e))?;
        let status = answer.status();
        let header =
            retry_after(answer.headers().get(hyper::header::RETRY_AFTER).map(hyper::header::HeaderValue::as_bytes));
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|e| LinkError::of_request(&*e))?.to_bytes();
        if !status.is_success() {
            let error = serde_json::from_slice::<ApiError>(&body).ok();
            let asked = error.as_ref().and_then(|e| e.retry_after_ms).map(Duration::from_millis);
            let retry_after = header.max(asked);
            let text = error.map_or_else(|| status.to_string(), |e| e.message);
            // The session is gone: as a socket that was closed without a close frame.
            let is_gone = status == hyper::StatusCode::NOT_FOUND;
            let refused = |text| LinkError::Refused { status: status.as_u16(), text, retry_after };
            return Err(if is_gone { LinkError::Lost(text) } else { refused(text) });
        }
        let answer = serde_json::from_slice(&body).map_err(broken)?;
        Ok(Got { answer, bytes: (sent, body.len() as u64 + 120) })
    };
    let late = |_| Err(LinkError::TimedOut { what: "answer to a poll", limit });
    tokio::time::timeout(limit, exchange).await.unwrap_or_else(late)
}

/// The frames of an answer; an error where the session is over.
fn decode(answer: &PollAnswer, frames: &mut Vec<ServerFrame>) -> Result<(), LinkError> {
    for frame in &answer.frames {
        frames.push(ServerFrame::decode(frame.get()).map_err(broken)?);
    }
    answer.closed.map_or(Ok(()), |code| Err(LinkError::Closed(code)))
}

/// Where requests go for a WebSocket address: `http://host:port/poll`, and the server that a gateway's address names.
fn address(url: &str) -> Result<(String, Option<&str>), LinkError> {
    let wrong = || LinkError::Broken(format!("{url:?} is not a ws:// address"));
    let (authority, path) = url.strip_prefix("ws://").and_then(|rest| rest.split_once('/')).ok_or_else(wrong)?;
    let server = path.split_once('/').map(|(_, server)| server).filter(|server| !server.is_empty());
    Ok((format!("http://{authority}{POLL_PATH}"), server))
}

impl PollLink {
    /// Opens a session at the server of a `ws://host:port/ws` address, or through the gateway of a `/ws/SERVER` one. Frames behind `welcome` are in the returned list.
    pub(super) async fn open(
        pollers: &Pollers,
        url: &str,
        token: &str,
        interval: Option<Duration>,
        traffic: &Traffic,
    ) -> Result<(Self, WelcomeFrame, Vec<ServerFrame>), LinkError> {
        let (base, server) = address(url)?;
        let place = server.map(|server| format!("/{server}")).unwrap_or_default();
        let got =
            exchange(pollers.0.clone(), format!("{base}{place}"), token.to_owned(), String::new(), TIMEOUT).await?;
        traffic.request(got.bytes);
        let mut frames = Vec::new();
        let decoded = decode(&got.answer, &mut frames);
        if frames.is_empty() {
            return Err(decoded.err().unwrap_or_else(|| LinkError::Broken("no welcome".to_owned())));
        }
        // An error frame says more than the close behind it.
        let welcome = welcome(frames.remove(0))?;
        decoded?;
        // A gateway may have found another server than the wanted one.
        let place = server.map(|_| format!("/{}", welcome.server)).unwrap_or_default();
        let link = Self {
            http: pollers.0.clone(),
            url: format!("{base}{place}/{}", got.answer.session),
            token: token.to_owned(),
            interval,
            outgoing: Vec::new(),
            early: Vec::new(),
            fetching: None,
            sending: None,
            next_us: 0,
        };
        Ok((link, welcome, frames))
    }

    fn request(&self, wait: Duration, body: String) -> BoxFuture<'static, Result<Got, LinkError>> {
        let url = format!("{}?wait_s={}", self.url, wait.as_secs());
        Box::pin(exchange(self.http.clone(), url, self.token.clone(), body, TIMEOUT + wait))
    }

    /// When it wants to be polled at the latest, if that is not when something comes.
    pub(super) fn due_us(&self) -> Option<u64> {
        (self.interval.is_some() && self.fetching.is_none()).then_some(self.next_us)
    }

    /// Frames that came in answer to frames of ours, and are not read yet.
    pub(super) const fn early(&mut self) -> &mut Vec<ServerFrame> {
        &mut self.early
    }

    /// Fetches what there is, appending to `frames`. Ready after each answer.
    pub(super) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        frames: &mut Vec<ServerFrame>,
        traffic: &Traffic,
    ) -> Poll<Result<(), LinkError>> {
        if !self.early.is_empty() {
            frames.append(&mut self.early);
            return Poll::Ready(Ok(()));
        }
        if self.fetching.is_none() {
            let wait = match self.interval {
                Some(_) if clock::now_us() < self.next_us => return Poll::Pending,
                Some(_) => Duration::ZERO,
                None => POLL_WAIT_MAX,
            };
            self.fetching = Some(self.request(wait, String::new()));
        }
        let Some(fetching) = &mut self.fetching else { return Poll::Pending };
        let got = ready!(fetching.as_mut().poll(context));
        self.fetching = None;
        self.next_us = clock::now_us() + self.interval.map_or(0, |interval| interval.as_micros() as u64);
        Poll::Ready(got.and_then(|got| {
            traffic.request(got.bytes);
            decode(&got.answer, frames)
        }))
    }

    pub(super) fn push(&mut self, frame: &ClientFrame) {
        self.outgoing.push(frame.encode());
    }

    pub(super) const fn has_output(&self) -> bool {
        !self.outgoing.is_empty() || self.sending.is_some()
    }

    /// Sends what was pushed, in one request after the other; ready when everything is sent.
    pub(super) fn poll_flush(&mut self, context: &mut Context<'_>, traffic: &Traffic) -> Poll<Result<(), LinkError>> {
        loop {
            if let Some(sending) = &mut self.sending {
                let got = ready!(sending.as_mut().poll(context));
                self.sending = None;
                let got = got?;
                traffic.request(got.bytes);
                decode(&got.answer, &mut self.early)?;
            }
            if self.outgoing.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let count = self.outgoing.len().min(FRAMES_MAX);
            let body = format!("[{}]", self.outgoing.drain(..count).collect::<Vec<_>>().join(","));
            self.sending = Some(self.request(Duration::ZERO, body));
        }
    }

    /// Ends the session; what the server answers does not matter.
    pub(super) async fn close(self) {
        let request = Request::builder()
            .method(Method::DELETE)
            .uri(self.url)
            .header("authorization", format!("Bearer {}", self.token))
            .body(Full::default());
        let Ok(request) = request else { return };
        let _ = tokio::time::timeout(TIMEOUT, self.http.request(request)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placement_is_a_server_or_a_gateway_with_one() {
        let at = |url: &'static str| address(url).ok();
        assert_eq!(at("ws://a:1/ws"), Some(("http://a:1/poll".to_owned(), None)));
        assert_eq!(at("ws://a:1/ws/chat-2"), Some(("http://a:1/poll".to_owned(), Some("chat-2"))));
        assert_eq!(at("http://a:1/ws"), None);
    }
}
