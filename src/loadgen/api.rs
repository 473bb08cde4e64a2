//! The HTTP API as a client sees it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use crate::protocol::api::{
    AddMembers, ApiError, Conversation, InboxSync, LoggedIn, Login, MadeAccounts, MessagesSync, NewAccount,
    NewAccounts, NewConversation, Placement, Signup, UserRef,
};
use crate::protocol::{ConversationId, DeviceName, ErrorCode, MessageId, ServerName, UserId};
use crate::runtime::error_chain;

/// Longest that a request may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Requests at the same time.
const REQUESTS_AT_ONCE: usize = 128;

/// Largest answer.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A request that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// No answer, or none that can be read.
    #[error("{0}")]
    Transport(String),
    /// The stack answers, and says that it is not ready.
    #[error("it is not ready: {0}")]
    NotReady(String),
    /// The server refused.
    #[error("{status}: {} ({})", error.message, error.code.as_str())]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// The server's own words.
        error: ApiError,
    },
}

impl Error {
    pub(super) const fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Transport(_) | Self::NotReady(_) => None,
            Self::Refused { error, .. } => Some(error.code),
        }
    }
}

/// Where messages are to come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Wherever the server has them.
    Any,
    /// The store, so that what it lost is not covered by what a server remembers.
    Store,
}

/// One API, through pooled connections. Clones share them.
#[derive(Clone)]
pub(super) struct Api {
    client: Client<HttpConnector, Full<Bytes>>,
    base: Arc<str>,
    turns: Arc<Semaphore>,
}

impl Api {
    /// An API at an address such as `http://127.0.0.1:7100`.
    pub(super) fn new(base: &str) -> Result<Self, String> {
        let base = base.trim_end_matches('/');
        let uri: Uri = base.parse().map_err(|e| format!("{base:?} is not an address: {e}"))?;
        if uri.scheme_str() != Some("http") || uri.host().is_none() {
            return Err(format!("{base:?} is not an address of the form http://host:port"));
        }
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(3)));
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(REQUESTS_AT_ONCE).build(connector);
        Ok(Self { client, base: base.into(), turns: Arc::new(Semaphore::new(REQUESTS_AT_ONCE)) })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), Error> {
        let transport = |e: &dyn std::error::Error| Error::Transport(error_chain(e));
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        let request = request.body(Full::new(body)).map_err(|e| transport(&e))?;
        let _turn = self.turns.acquire().await.map_err(|e| transport(&e))?;
        let exchange = async {
            let answer = self.client.request(request).await.map_err(|e| transport(&e))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|e| Error::Transport(e.to_string()))?;
            Ok((status, body.to_bytes()))
        };
        tokio::time::timeout(TIMEOUT, exchange)
            .await
            .unwrap_or_else(|_| Err(Error::Transport(format!("no answer from {} within {TIMEOUT:?}", self.base))))
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Bytes,
    ) -> Result<T, Error> {
        let (status, body) = self.send(method, path, token, body).await?;
        let unreadable = |e| Error::Transport(format!("{path} answered {status} with something unreadable: {e}"));
        if status.is_success() {
            // 204 has no body; `null` reads as `()`.
            let body = if body.is_empty() { Bytes::from_static(b"null") } else { body };
            return serde_json::from_slice(&body).map_err(unreadable);
        }
        let error = serde_json::from_slice(&body).map_err(unreadable)?;
        Err(Error::Refused { status, error })
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
        let (status, body) = self.send(Method::GET, "/health/ready", None, Bytes::new()).await?;
        if status.is_success() {
            return Ok(());
        }
        Err(Error::NotReady(String::from_utf8_lossy(&body).into_owned()))
    }

    /// The figures of every server; of one process, where the stack is of an older version.
    pub(super) async fn metrics(&self) -> Result<String, Error> {
        for path in ["/metrics/cluster", "/metrics"] {
            let (status, body) = self.send(Method::GET, path, None, Bytes::new()).await?;
            if status.is_success() {
                return Ok(String::from_utf8_lossy(&body).into_owned());
            }
        }
        Ok(String::new())
    }

    pub(super) async fn signup(&self, name: &str, password: &str) -> Result<UserRef, Error> {
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

    pub(super) async fn add_friend(&self, token: &str, user: UserId) -> Result<UserRef, Error> {
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
