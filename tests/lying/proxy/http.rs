//! HTTP/1.1 as far as the generator speaks it, and the calls of the API.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use chatctl::protocol::api::{ApiError, InboxSync, LoggedIn, MadeAccounts, MessagesSync, Placement};
use chatctl::protocol::{ConversationId, ErrorCode, UserId};
use chatctl::runtime::http_client::HttpClient;
use http_body_util::{BodyExt, Full};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::facts::{Facts, Who};

/// Path that leads sockets through the proxy; the server's own host, port and path follow.
const SOCKET_PATH: &str = "/through/";

/// A request as it came.
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(crate) fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    pub(crate) fn token(&self) -> Option<&str> {
        self.header("authorization")?.strip_prefix("Bearer ")
    }

    /// Host, port and path of the chat server, when this is an upgrade.
    pub(crate) fn socket_target(&self) -> Option<String> {
        self.path.strip_prefix(SOCKET_PATH).map(str::to_owned)
    }
}

/// Reads one request; `None` when there is none any more. `buffer` keeps what came behind it.
pub(crate) async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Request> {
    loop {
        if let Some((mut request, head_bytes, body_bytes)) = parse_head(buffer) {
            while buffer.len() < head_bytes + body_bytes {
                if stream.read_buf(buffer).await.ok()? == 0 {
                    return None;
                }
            }
            request.body = buffer[head_bytes..head_bytes + body_bytes].to_vec();
            buffer.drain(..head_bytes + body_bytes);
            return Some(request);
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

/// A whole head with its length and the length of the body behind it.
fn parse_head(bytes: &[u8]) -> Option<(Request, usize, usize)> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head_bytes) = parsed.parse(bytes).expect("the generator writes good HTTP") else {
        return None;
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let request = Request {
        method: parsed.method.unwrap_or_default().to_owned(),
        path: parsed.path.unwrap_or_default().to_owned(),
        headers: parsed.headers.iter().map(|h| (h.name.to_owned(), text(h.value))).collect(),
        body: Vec::new(),
    };
    let body_bytes = request.header("content-length").map_or(0, |length| length.parse().expect("a number"));
    Some((request, head_bytes, body_bytes))
}

pub(crate) async fn write_answer(stream: &mut TcpStream, answer: &Answer) -> std::io::Result<()> {
    let mut head = format!(
        "HTTP/1.1 {} x\r\nContent-Type: {}\r\nContent-Length: {}\r\n",
        answer.status,
        answer.content_type,
        answer.body.len()
    );
    if let Some(ms) = answer.retry_after_ms {
        head.push_str(&format!("Retry-After: {}\r\n", ms.div_ceil(1_000)));
    }
    head.push_str("\r\n");
    stream.write_all(&[head.as_bytes(), &answer.body].concat()).await
}

/// A page of a conversation that is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageQuery {
    pub(crate) conversation: ConversationId,
    pub(crate) after: u64,
    pub(crate) limit: u64,
    /// False for the audit, which wants the store.
    pub(crate) cached: bool,
}

/// What a call is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Endpoint {
    Signup,
    Login,
    Accounts,
    Placement,
    AddFriend,
    NewConversation,
    AddMembers(ConversationId),
    RemoveMember(ConversationId, UserId),
    Messages(PageQuery),
    Inbox,
    Other,
}

impl Endpoint {
    fn of(method: &str, path: &str) -> Self {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let found = match (method, segments.as_slice()) {
            ("POST", ["signup"]) => Some(Self::Signup),
            ("POST", ["login"]) => Some(Self::Login),
            ("POST", ["accounts"]) => Some(Self::Accounts),
            ("GET", ["placement"]) => Some(Self::Placement),
            ("POST", ["friends"]) => Some(Self::AddFriend),
            ("POST", ["conversations"]) => Some(Self::NewConversation),
            ("POST", ["conversations", c, "members"]) => c.parse().ok().map(Self::AddMembers),
            ("DELETE", ["conversations", c, "members", u]) => {
                c.parse().ok().zip(u.parse().ok()).map(|(c, u)| Self::RemoveMember(c, u))
            }
            ("GET", ["messages", "sync"]) => page_query(query).map(Self::Messages),
            ("GET", ["inbox", "sync"]) => Some(Self::Inbox),
            _ => None,
        };
        found.unwrap_or(Self::Other)
    }

    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Signup => "signup",
            Self::Login => "login",
            Self::Accounts => "accounts",
            Self::Placement => "placement",
            Self::AddFriend => "friends",
            Self::NewConversation | Self::AddMembers(_) | Self::RemoveMember(..) => "conversations",
            Self::Messages(page) if page.cached => "messages",
            Self::Messages(_) => "audit",
            Self::Inbox => "inbox",
            Self::Other => "other",
        }
    }
}

fn page_query(query: &str) -> Option<PageQuery> {
    let value = |name: &str| query.split('&').filter_map(|p| p.split_once('=')).find(|p| p.0 == name).map(|p| p.1);
    Some(PageQuery {
        conversation: value("conversation_id")?.parse().ok()?,
        after: value("after_message_id").map_or(Some(0), |n| n.parse().ok())?,
        limit: value("limit").map_or(Some(50), |n| n.parse().ok())?,
        cached: value("cached") != Some("false"),
    })
}

/// A request of the API.
pub(crate) struct Call {
    method: String,
    path: String,
    pub(crate) api: Endpoint,
    pub(crate) token: Option<String>,
    /// Whose token it is.
    pub(crate) who: Option<Who>,
    pub(crate) body: Vec<u8>,
}

impl Call {
    pub(super) fn of(request: Request, facts: &Facts) -> Self {
        let token = request.token().map(str::to_owned);
        let who = token.as_deref().and_then(|token| facts.who(token));
        let api = Endpoint::of(&request.method, &request.path);
        Self { method: request.method, path: request.path, api, token, who, body: request.body }
    }

    /// The page that is asked for, by a device or the audit, and who asks.
    pub(crate) fn page(&self) -> Option<(PageQuery, UserId)> {
        let Endpoint::Messages(page) = self.api else { return None };
        Some((page, self.who.as_ref()?.user))
    }

    /// The page that a device asks for.
    pub(crate) fn device_page(&self) -> Option<(PageQuery, UserId)> {
        self.page().filter(|(page, _)| page.cached)
    }

    /// The page that the audit asks for.
    pub(crate) fn audit_page(&self) -> Option<(PageQuery, UserId)> {
        self.page().filter(|(page, _)| !page.cached)
    }

    /// Asks the stack for what is behind another id.
    pub(crate) fn ask_after(&mut self, after: u64) {
        let Endpoint::Messages(page) = self.api else { return };
        let PageQuery { conversation, limit, cached, .. } = page;
        self.path = format!(
            "/messages/sync?conversation_id={conversation}&after_message_id={after}&limit={limit}&cached={cached}"
        );
    }
}

/// What happens to a request.
pub(crate) enum Reply {
    /// It goes to the stack.
    Pass,
    /// It goes to the stack after a while.
    Later(Duration),
    /// It goes to the stack with another token.
    As(String),
    /// It is answered without the stack.
    Answer(Answer),
    /// It is never answered.
    Hang,
}

/// An answer on its way to the generator.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    content_type: &'static str,
    retry_after_ms: Option<u64>,
    /// How long it is held back.
    pub(crate) delay: Duration,
}

impl Answer {
    fn new(status: u16, body: Vec<u8>) -> Self {
        Self { status, body, content_type: "application/json", retry_after_ms: None, delay: Duration::ZERO }
    }

    /// An error of the API.
    pub(crate) fn error(status: u16, code: ErrorCode, retry_after_ms: Option<u64>) -> Self {
        let error = ApiError { code, message: "so says the proxy".to_owned(), retry_after_ms };
        Self { retry_after_ms, ..Self::new(status, serde_json::to_vec(&error).expect("plain data")) }
    }

    /// "Come back later", in header and body.
    pub(crate) fn throttled(retry_after_ms: u64) -> Self {
        Self::error(503, ErrorCode::Overloaded, Some(retry_after_ms))
    }

    /// A fault of the server.
    pub(crate) fn internal() -> Self {
        Self::error(500, ErrorCode::Internal, None)
    }

    pub(super) async fn waited(self) -> Self {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        self
    }

    pub(crate) const fn is_good(&self) -> bool {
        self.status >= 200 && self.status < 300
    }

    pub(crate) fn read<T: DeserializeOwned>(&self) -> Option<T> {
        if self.is_good() { serde_json::from_slice(&self.body).ok() } else { None }
    }

    fn edit<T: DeserializeOwned + Serialize>(&mut self, change: impl FnOnce(&mut T)) {
        if let Some(mut value) = self.read::<T>() {
            change(&mut value);
            self.body = serde_json::to_vec(&value).expect("plain data");
        }
    }

    /// Changes a page of messages; an error stays as it is.
    pub(crate) fn edit_page(&mut self, change: impl FnOnce(&mut MessagesSync)) {
        self.edit(change);
    }

    /// Changes a page of the inbox.
    pub(crate) fn edit_inbox(&mut self, change: impl FnOnce(&mut InboxSync)) {
        self.edit(change);
    }

    /// Sends sockets through the proxy.
    pub(super) fn send_sockets_to(&mut self, call: &Call, proxy: SocketAddr) {
        let through = |placement: &mut Placement| {
            let there = placement.url.strip_prefix("ws://").expect("plain WebSockets");
            placement.url = format!("ws://{proxy}{SOCKET_PATH}{there}");
        };
        match call.api {
            Endpoint::Login => self.edit::<LoggedIn>(|login| through(&mut login.placement)),
            Endpoint::Placement => self.edit::<Placement>(through),
            Endpoint::Accounts => self.edit::<MadeAccounts>(|made| {
                made.accounts.iter_mut().flatten().for_each(|login| through(&mut login.placement));
            }),
            _ => {}
        }
    }
}

/// Asks the stack.
pub(super) async fn forward(
    client: &HttpClient<Full<Bytes>>,
    upstream: &str,
    call: &Call,
    token: Option<&str>,
) -> Answer {
    let mut request = hyper::Request::builder()
        .method(call.method.as_str())
        .uri(format!("http://{upstream}{}", call.path))
        .header("content-type", "application/json");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(Full::new(Bytes::from(call.body.clone()))).expect("a good request");
    let exchange = async {
        let answer = client.request(request).await.ok()?;
        let status = answer.status().as_u16();
        let retry_after = answer.headers().get("retry-after").and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        let body = answer.into_body().collect().await.ok()?.to_bytes().to_vec();
        Some(Answer { retry_after_ms: retry_after.map(|s| s * 1_000), ..Answer::new(status, body) })
    };
    exchange.await.unwrap_or_else(|| Answer::error(502, ErrorCode::Unavailable, None))
}
