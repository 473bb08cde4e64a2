//! The HTTP API as a client sees it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::RETRY_AFTER;
use hyper::{HeaderMap, Method, Request, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use super::call_lag::{self, CallSlots, SlotWait};
use super::retry::Retry;
use super::target::Target;
use crate::protocol::api::{
    AddMembers, ApiError, Conversation, InboxSync, LoggedIn, Login, MadeAccounts, MessagesSync, NewAccount,
    NewAccounts, NewConversation, Placement, Signup, UserRef,
};
use crate::protocol::{ConversationId, DeviceName, ErrorCode, MessageId, ServerName, UserId};
use crate::runtime::http_client::{ClientConfig, HttpClient};
use crate::runtime::{clock, error_chain, is_local_cause};
use crate::telemetry::printable;

/// Longest that a request may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Longest that a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Longest that a connection without a request is kept: below the 10 s after which a server of ours closes it.
const IDLE_MAX: Duration = Duration::from_secs(8);

/// Requests at the same time.
pub(super) const REQUESTS_AT_ONCE: usize = 128;

/// The same of those that look at the stack. They wait for no device's.
const LOOKS_AT_ONCE: usize = 2;

/// Largest answer.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Characters of an answer's text that stand in an error.
const TEXT_CHARS_MAX: usize = 300;

/// A request that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// There was no answer.
    #[error("{text}")]
    Transport {
        /// Why, with all causes.
        text: String,
        /// This machine is the cause: it had no descriptor, port or memory left.
        is_local: bool,
    },
    /// The server claims success in a form that can't be read.
    #[error("{0}")]
    Unreadable(String),
    /// The stack answers, and says that it is not ready.
    #[error("it is not ready: {0}")]
    NotReady(String),
    /// The server refused.
    #[error("{status}: {text}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// The server's code, where the answer has one: a proxy's has none.
        code: Option<ErrorCode>,
        /// The server's own words.
        text: String,
        /// When it asks to be asked again.
        retry_after: Option<Duration>,
    },
}

impl Error {
    /// A failure without an answer that is not this machine's.
    pub(super) fn transport(text: impl Into<String>) -> Self {
        Self::Transport { text: text.into(), is_local: false }
    }

    fn failed(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::Transport { text: printable(&error_chain(error)).into_owned(), is_local: is_local_cause(error) }
    }

    fn refused(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let error: Option<ApiError> = serde_json::from_slice(body).ok();
        let header = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let header = header.map(Duration::from_secs);
        let own = error.as_ref().and_then(|error| error.retry_after_ms).map(Duration::from_millis);
        let text = match &error {
            Some(error) => format!("{} ({})", clipped(&error.message), error.code.as_str()),
            None => clipped(&String::from_utf8_lossy(body)),
        };
        Self::Refused { status, code: error.map(|error| error.code), text, retry_after: header.max(own) }
    }

    /// The server's code, where there is one.
    pub(super) const fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused { code, .. } => *code,
            Self::Transport { .. } | Self::Unreadable(_) | Self::NotReady(_) => None,
        }
    }

    /// The HTTP status, where there was an answer that is a refusal.
    pub(super) const fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Transport { .. } | Self::Unreadable(_) | Self::NotReady(_) => None,
        }
    }

    /// When the server asks to be asked again: `retry_after_ms` of the body or the header `Retry-After` in seconds, whichever is
    /// later. A date in the header is ignored: it would need this machine's clock to be the server's.
    pub(super) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            Self::Transport { .. } | Self::Unreadable(_) | Self::NotReady(_) => None,
        }
    }

    /// The server knows nothing of accounts: whoever answers is no API.
    pub(super) fn is_no_api(&self) -> bool {
        matches!(
            self.status(),
            Some(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED)
        )
    }

    /// The token is not good any more.
    pub(super) fn is_unauthorized(&self) -> bool {
        self.status() == Some(StatusCode::UNAUTHORIZED) || self.code() == Some(ErrorCode::Unauthorized)
    }

    /// Backpressure: too many requests, or a busy server, with a time to come back. No failure of the server.
    pub(super) fn is_throttled(&self) -> bool {
        let is_busy = matches!(self.status(), Some(StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE));
        is_busy && self.retry_after().is_some()
    }

    /// This machine is the cause, not the server.
    pub(super) const fn is_local(&self) -> bool {
        matches!(self, Self::Transport { is_local: true, .. })
    }

    /// Whether the same request may succeed later. Without an answer it may have been done all the same.
    pub(super) fn is_retryable(&self) -> bool {
        match self {
            Self::Transport { .. } | Self::NotReady(_) => true,
            Self::Unreadable(_) => false,
            Self::Refused { status, code, retry_after, .. } => {
                let is_passing = matches!(
                    *status,
                    StatusCode::TOO_MANY_REQUESTS
                        | StatusCode::BAD_GATEWAY
                        | StatusCode::SERVICE_UNAVAILABLE
                        | StatusCode::GATEWAY_TIMEOUT
                );
                is_passing || retry_after.is_some() || code.is_some_and(ErrorCode::is_retryable)
            }
        }
    }
}

/// The beginning of a server's words, fit for a terminal.
fn clipped(text: &str) -> String {
    let mut beginning: String = text.trim().chars().take(TEXT_CHARS_MAX).collect();
    if beginning.len() < text.trim().len() {
        beginning.push('…');
    }
    printable(&beginning).into_owned()
}

/// What happened to requests, over a run. Written by all requests.
#[derive(Debug, Default)]
pub(super) struct ApiCounts {
    /// Requests that were sent again after a failure.
    pub(super) retries: AtomicU64,
    /// Answers that were backpressure.
    pub(super) throttled: AtomicU64,
    /// Requests that failed by a local cause.
    pub(super) local_errors: AtomicU64,
}

/// An answer that names a user. A newer server may say more.
#[derive(Debug, serde::Deserialize)]
pub(super) struct NamedUser {
    pub(super) user: UserId,
}

/// Where messages are to come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Wherever the server has them.
    Any,
    /// The store, so that what it lost is not covered by what a server remembers.
    Store,
}

/// Is told what a request waited for its turn.
type HadTurn = Box<dyn Fn(SlotWait) + Send + Sync>;

/// One API, through pooled connections. Clones share them.
#[derive(Clone)]
pub(super) struct Api {
    client: HttpClient<Full<Bytes>>,
    /// The same without a pool: each request has a connection of its own.
    fresh: HttpClient<Full<Bytes>>,
    base: Arc<str>,
    turns: Arc<CallSlots>,
    looks: Arc<Semaphore>,
    had_turn: Arc<OnceLock<HadTurn>>,
    counts: Arc<ApiCounts>,
}

/// Why there is no answer.
enum Failure {
    /// The connection had been used before, and was closed before the request reached anybody.
    OfIdle(Error),
    Other(Error),
}

impl Failure {
    fn into_error(self) -> Error {
        match self {
            Self::OfIdle(error) | Self::Other(error) => error,
        }
    }
}

/// Whether a request does the same when it is made twice.
fn may_be_repeated(request: &Request<Full<Bytes>>) -> bool {
    let path = request.uri().path();
    let is_safe_post = || path == "/login" || path == "/friends" || path.ends_with("/members");
    request.method().is_idempotent() || is_safe_post()
}

/// What a server answered, whatever the status.
type Answer = (StatusCode, HeaderMap, Bytes);

/// Sends a request and reads the whole answer.
async fn exchange_once(client: &HttpClient<Full<Bytes>>, request: Request<Full<Bytes>>) -> Result<Answer, Failure> {
    let answer = client.request(request).await.map_err(|error| {
        let failure = if error.is_of_idle() { Failure::OfIdle } else { Failure::Other };
        failure(Error::failed(&error))
    })?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|e| Failure::Other(Error::failed(&*e)))?;
    Ok((head.status, head.headers, body.to_bytes()))
}

impl Api {
    /// An API at an address such as `http://127.0.0.1:7100`.
    pub(super) fn new(base: &str) -> Result<Self, String> {
        let target = Target::parse(base)?;
        let client = |idle_per_host_max| {
            let (connect_timeout, idle_max) = (CONNECT_TIMEOUT, IDLE_MAX);
            HttpClient::new(ClientConfig { connect_timeout, idle_max, idle_per_host_max })
        };
        let (client, fresh) = (client(REQUESTS_AT_ONCE), client(0));
        let turns = Arc::new(CallSlots::new(REQUESTS_AT_ONCE));
        let looks = Arc::new(Semaphore::new(LOOKS_AT_ONCE));
        let (had_turn, counts) = (Arc::default(), Arc::default());
        Ok(Self { client, fresh, base: target.as_str().into(), turns, looks, had_turn, counts })
    }

    /// From now on `told` is told what every request of a device waited for its turn, and what of that is the generator's.
    pub(super) fn on_turn(&self, told: impl Fn(SlotWait) + Send + Sync + 'static) {
        let is_first = self.had_turn.set(Box::new(told)).is_ok();
        debug_assert!(is_first, "a run begins once");
    }

    /// What happened to requests so far.
    pub(super) fn counts(&self) -> &ApiCounts {
        &self.counts
    }

    /// Makes a request of a device, when it is its turn.
    async fn send(&self, method: Method, path: &str, token: Option<&str>, body: Bytes) -> Result<Answer, Error> {
        let turn = self.turns.take().await.map_err(|e| Error::failed(&e))?;
        call_lag::waited(turn.wait.lag_us);
        if let Some(told) = self.had_turn.get() {
            told(turn.wait);
        }
        self.send_now(method, path, token, body).await
    }

    /// Looks at the stack.
    async fn look(&self, path: &str) -> Result<Answer, Error> {
        let _turn = self.looks.acquire().await.map_err(|e| Error::failed(&e))?;
        self.send_now(Method::GET, path, None, Bytes::new()).await
    }

    async fn send_now(&self, method: Method, path: &str, token: Option<&str>, body: Bytes) -> Result<Answer, Error> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        let request = request.body(Full::new(body)).map_err(|e| Error::failed(&e))?;
        let late = || Error::transport(format!("no answer from {} within {TIMEOUT:?}", self.base));
        let answer = tokio::time::timeout(TIMEOUT, self.exchange(request)).await.unwrap_or_else(|_| Err(late()));
        if answer.as_ref().is_err_and(Error::is_local) {
            self.counts.local_errors.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    /// Sends a request and reads the whole answer. A server may close a connection that is idle whenever it likes, also while
    /// the next request is on its way: one that can be repeated without harm is, at once and once, on a fresh connection.
    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, Error> {
        let again = may_be_repeated(&request).then(|| request.clone());
        match exchange_once(&self.client, request).await {
            Err(Failure::OfIdle(error)) => match again {
                Some(again) => {
                    self.counts.retries.fetch_add(1, Ordering::Relaxed);
                    exchange_once(&self.fresh, again).await.map_err(Failure::into_error)
                }
                None => Err(error),
            },
            answer => answer.map_err(Failure::into_error),
        }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Bytes,
    ) -> Result<T, Error> {
        let (status, headers, body) = self.send(method, path, token, body).await?;
        if status.is_success() {
            // 204 has no body; `null` reads as `()`.
            let body = if body.is_empty() { Bytes::from_static(b"null") } else { body };
            let path = path.split('?').next().unwrap_or_default();
            let unreadable = |e| Error::Unreadable(format!("{path} answered {status} with something unreadable: {e}"));
            return serde_json::from_slice(&body).map_err(unreadable);
        }
        let error = Error::refused(status, &headers, &body);
        if error.is_throttled() {
            self.counts.throttled.fetch_add(1, Ordering::Relaxed);
        }
        Err(error)
    }

    /// Repeats a call while that may help and the budget of retries lasts. The call gets the number of the try, from 0: a later
    /// one may find that an earlier one, whose answer was lost, was done.
    pub(super) async fn retrying<T, F>(&self, seed: u64, call: impl Fn(u16) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut retry = Retry::new(seed);
        loop {
            let error = match call(retry.tries()).await {
                Err(error) if error.is_retryable() => error,
                result => return result,
            };
            let Some(wait) = retry.next(clock::now_us(), error.retry_after()) else { return Err(error) };
            self.counts.retries.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(wait).await;
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, token: &str) -> Result<T, Error> {
        self.call(Method::GET, path, Some(token), Bytes::new()).await
    }

    async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        token: Option<&str>,
        body: &B,
    ) -> Result<T, Error> {
        let body = serde_json::to_vec(body).expect("plain data");
        self.call(Method::POST, path, token, body.into()).await
    }

    /// Whether the API and its engines are ready.
    pub(super) async fn ready(&self) -> Result<(), Error> {
        let (status, _, body) = self.look("/health/ready").await?;
        if matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED) {
            // Each server of a stack knows this path.
            return Err(Error::Unreadable(format!("{status} at /health/ready: this is no stack of chatctl")));
        }
        if !status.is_success() {
            return Err(Error::NotReady(clipped(&String::from_utf8_lossy(&body))));
        }
        // A gateway says whether it is ready itself. Whoever does not know this path says nothing of engines.
        let (status, _, body) = self.look("/health/engines").await?;
        let tells =
            serde_json::from_slice::<serde_json::Value>(&body).is_ok_and(|report| report["engines"].is_object());
        if status.is_success() || !tells {
            return Ok(());
        }
        Err(Error::NotReady(clipped(&String::from_utf8_lossy(&body))))
    }

    /// The figures of every server; of one process, where the stack is of an older version.
    pub(super) async fn metrics(&self) -> Result<String, Error> {
        for path in ["/metrics/cluster", "/metrics"] {
            let (status, _, body) = self.look(path).await?;
            if status.is_success() {
                return Ok(String::from_utf8_lossy(&body).into_owned());
            }
        }
        Ok(String::new())
    }

    pub(super) async fn signup(&self, name: &str, password: &str) -> Result<NamedUser, Error> {
        let body = Signup { name: name.to_owned(), password: password.to_owned() };
        self.post("/signup", None, &body).await
    }

    /// Makes many accounts with their logins; `None` where the deployment does not do that.
    pub(super) async fn accounts(&self, accounts: Vec<NewAccount>) -> Result<Option<MadeAccounts>, Error> {
        match self.post("/accounts", None, &NewAccounts { accounts }).await {
            Ok(made) => Ok(Some(made)),
            Err(Error::Refused { status, .. }) if status == StatusCode::NOT_FOUND => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn login(&self, name: &str, password: &str, device: &DeviceName) -> Result<LoggedIn, Error> {
        let body = Login { name: name.to_owned(), password: password.to_owned(), device: device.clone() };
        self.post("/login", None, &body).await
    }

    pub(super) async fn placement(&self, token: &str, avoid: Option<&ServerName>) -> Result<Placement, Error> {
        let avoid = avoid.map(|server| format!("?avoid={server}")).unwrap_or_default();
        self.get(&format!("/placement{avoid}"), token).await
    }

    pub(super) async fn add_friend(&self, token: &str, user: UserId) -> Result<NamedUser, Error> {
        self.post("/friends", Some(token), &UserRef { user }).await
    }

    pub(super) async fn create(&self, token: &str, new: &NewConversation) -> Result<Conversation, Error> {
        self.post("/conversations", Some(token), new).await
    }

    pub(super) async fn add_members(
        &self,
        token: &str,
        conversation: ConversationId,
        members: Vec<UserId>,
    ) -> Result<Conversation, Error> {
        self.post(&format!("/conversations/{conversation}/members"), Some(token), &AddMembers { members }).await
    }

    pub(super) async fn remove_member(
        &self,
        token: &str,
        conversation: ConversationId,
        user: UserId,
    ) -> Result<(), Error> {
        let path = format!("/conversations/{conversation}/members/{user}");
        self.call(Method::DELETE, &path, Some(token), Bytes::new()).await
    }

    pub(super) async fn messages_sync(
        &self,
        token: &str,
        conversation: ConversationId,
        after: MessageId,
        limit: usize,
        source: Source,
    ) -> Result<MessagesSync, Error> {
        let mut path = format!("/messages/sync?conversation_id={conversation}&after_message_id={after}&limit={limit}");
        if source == Source::Store {
            path.push_str("&cached=false");
        }
        self.get(&path, token).await
    }

    pub(super) async fn inbox_sync(
        &self,
        token: &str,
        after: Option<ConversationId>,
        limit: usize,
    ) -> Result<InboxSync, Error> {
        let after = after.map(|c| format!("&after_conversation_id={c}")).unwrap_or_default();
        self.get(&format!("/inbox/sync?limit={limit}{after}"), token).await
    }
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
