//! Another client than ours: tokio-tungstenite for the WebSocket, plain HTTP/1.1 for the API.

use std::time::Duration;

use chatctl::stack::{Config, Stack};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// Longest that anything expected may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Time after which nothing is taken to come any more.
pub(crate) const SILENCE: Duration = Duration::from_millis(400);

/// A small stack whose password hashes cost nothing.
pub(crate) fn config() -> Config {
    let mut config =
        Config { chat_servers: 2, partitions: 4, drain_timeout: Duration::from_secs(1), ..Config::default() };
    config.api.password_cost.memory_kib = 64;
    config.api.password_cost.passes = 1;
    config.api.logins_per_second = 100;
    config
}

pub(crate) async fn start() -> Stack {
    Stack::start(config()).await.expect("the stack starts")
}

/// Something with an API.
pub(crate) trait Api {
    /// Its address, as `http://host:port`.
    fn api_url(&self) -> Option<String>;
}

impl Api for Stack {
    fn api_url(&self) -> Option<String> {
        Self::api_url(self)
    }
}

/// One request on a connection of its own; status and body.
pub(crate) async fn http(stack: &impl Api, method: &str, path: &str, token: &str, body: &Value) -> (u16, Value) {
    let (status, body) = exchange(stack, method, path, token, body).await;
    (status, serde_json::from_str(&body).unwrap_or(Value::Null))
}

/// The body of a page that is no JSON.
pub(crate) async fn http_text(stack: &impl Api, path: &str) -> String {
    let (status, body) = exchange(stack, "GET", path, "", &Value::Null).await;
    assert_eq!(status, 200, "{body}");
    body
}

async fn exchange(stack: &impl Api, method: &str, path: &str, token: &str, body: &Value) -> (u16, String) {
    let url = stack.api_url().expect("there is an API");
    let address = url.strip_prefix("http://").expect("plain HTTP");
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut answer = String::new();
    tokio::time::timeout(LIMIT, stream.read_to_string(&mut answer)).await.expect("in time").expect("reads");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
    let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    (status, if is_chunked { unchunked(body) } else { body.to_owned() })
}

/// The text in chunks of HTTP/1.1.
fn unchunked(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        text.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    text
}

/// A user with a token.
pub(crate) struct Person {
    pub(crate) id: String,
    pub(crate) token: String,
    pub(crate) url: String,
}

pub(crate) async fn signup(stack: &impl Api, name: &str) -> Person {
    let account = json!({"name": name, "password": "password"});
    let (status, answer) = http(stack, "POST", "/signup", "", &account).await;
    assert_eq!(status, 201, "{answer}");
    login(stack, name, "phone").await
}

pub(crate) async fn login(stack: &impl Api, name: &str, device: &str) -> Person {
    let credentials = json!({"name": name, "password": "password", "device": device});
    let (status, answer) = http(stack, "POST", "/login", "", &credentials).await;
    assert_eq!(status, 200, "{answer}");
    let text = |field: &str| answer[field].as_str().expect("a text").to_owned();
    Person { id: text("user"), token: text("token"), url: text("url") }
}

/// Many accounts at once, each with a phone. The stack has `api.bulk_accounts`.
pub(crate) async fn crowd(stack: &impl Api, name: &str, count: usize) -> Vec<Person> {
    let mut people = Vec::new();
    for first in (0..count).step_by(50) {
        let names = (first..count.min(first + 50)).map(|n| format!("{name}-{n}"));
        let accounts: Vec<Value> =
            names.map(|name| json!({"name": name, "password": "password", "devices": ["phone"]})).collect();
        let (status, answer) = http(stack, "POST", "/accounts", "", &json!({"accounts": accounts})).await;
        assert_eq!(status, 201, "{answer}");
        for devices in answer["accounts"].as_array().expect("a list") {
            let text = |field: &str| devices[0][field].as_str().expect("a text").to_owned();
            people.push(Person { id: text("user"), token: text("token"), url: text("url") });
        }
    }
    people
}

pub(crate) async fn conversation(stack: &impl Api, owner: &Person, kind: &str, members: &[&Person]) -> String {
    let members: Vec<&str> = members.iter().map(|p| p.id.as_str()).collect();
    let body = json!({"kind": kind, "members": members});
    let (status, answer) = http(stack, "POST", "/conversations", &owner.token, &body).await;
    assert_eq!(status, 201, "{answer}");
    answer["conversation"].as_str().expect("an id").to_owned()
}

pub(crate) async fn sync(stack: &impl Api, person: &Person, conversation: &str, after: u64) -> Value {
    let path = format!("/messages/sync?conversation_id={conversation}&after_message_id={after}");
    let (status, answer) = http(stack, "GET", &path, &person.token, &Value::Null).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

pub(crate) struct Socket {
    /// The chat server at the other end, by its `welcome`.
    pub(crate) server: String,
    inner: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Socket {
    /// Connects with the token in the header; nothing is waited for.
    pub(crate) async fn upgrade(person: &Person) -> Result<Self, tungstenite::Error> {
        let mut request = person.url.as_str().into_client_request().expect("a valid address");
        let bearer = format!("Bearer {}", person.token).parse().expect("a valid header");
        request.headers_mut().insert("authorization", bearer);
        request.headers_mut().insert("sec-websocket-protocol", "chatctl.v1".parse().expect("valid"));
        let (inner, _) = connect_async(request).await?;
        Ok(Self { inner, server: String::new() })
    }

    /// The same, up to `welcome`; `None` where the server refuses or closes before that.
    pub(crate) async fn try_open(person: &Person) -> Option<Self> {
        let mut socket = Self::upgrade(person).await.ok()?;
        let welcome = socket.next_or_close().await.ok()?;
        (welcome["type"] == "welcome").then_some(socket)
    }

    /// Connects with the token in the header and waits for `welcome`.
    pub(crate) async fn open(person: &Person) -> Self {
        let mut socket = Self::upgrade(person).await.expect("upgrades");
        let welcome = socket.next().await;
        assert_eq!(welcome["type"], "welcome");
        welcome["server"].as_str().expect("a name").clone_into(&mut socket.server);
        socket
    }

    /// Connects without a token; nothing is waited for.
    pub(crate) async fn open_bare(url: &str) -> Self {
        let (inner, _) = connect_async(url).await.expect("upgrades");
        Self { inner, server: String::new() }
    }

    pub(crate) async fn say(&mut self, frame: Value) {
        self.inner.send(Message::text(frame.to_string())).await.expect("sends");
    }

    pub(crate) async fn say_raw(&mut self, message: Message) {
        self.inner.send(message).await.expect("sends");
    }

    /// The next frame.
    pub(crate) async fn next(&mut self) -> Value {
        loop {
            let message = tokio::time::timeout(LIMIT, self.inner.next()).await.expect("a frame in time");
            match message.expect("still open").expect("a good frame") {
                Message::Text(text) => return serde_json::from_str(&text).expect("JSON"),
                Message::Close(frame) => panic!("closed: {frame:?}"),
                _ => {}
            }
        }
    }

    /// The next frame, or the code with which the server closes before one comes.
    pub(crate) async fn next_or_close(&mut self) -> Result<Value, Option<u16>> {
        loop {
            match tokio::time::timeout(LIMIT, self.inner.next()).await.expect("a frame or a close in time") {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).expect("JSON")),
                Some(Ok(Message::Close(frame))) => return Err(frame.map(|f| f.code.into())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(None),
            }
        }
    }

    /// Takes what comes for a while.
    pub(crate) async fn frames_for(&mut self, time: Duration) -> Vec<Value> {
        let mut frames = Vec::new();
        let _ = tokio::time::timeout(time, async {
            loop {
                frames.push(self.next().await);
            }
        })
        .await;
        frames
    }

    /// The next frame of a type; others are passed over.
    pub(crate) async fn next_of(&mut self, kind: &str) -> Value {
        loop {
            let frame = self.next().await;
            if frame["type"] == kind {
                return frame;
            }
        }
    }

    /// Asserts that no message frame comes for a while.
    pub(crate) async fn hears_no_message(&mut self) {
        let wait = async {
            loop {
                let frame = self.next().await;
                assert_ne!(frame["type"], "message", "{frame}");
            }
        };
        assert!(tokio::time::timeout(SILENCE, wait).await.is_err());
    }

    /// Reads until the server closes; its code.
    pub(crate) async fn close_code(&mut self) -> Option<u16> {
        loop {
            match tokio::time::timeout(LIMIT, self.inner.next()).await.expect("closes in time") {
                Some(Ok(Message::Close(frame))) => return frame.map(|f| f.code.into()),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    }

    /// Sends a message and waits for its ACK; the id.
    pub(crate) async fn send(&mut self, conversation: &str, uuid: uuid::Uuid, body: &str) -> u64 {
        self.say(json!({"type": "send", "uuid": uuid, "conversation": conversation, "body": body})).await;
        let ack = self.next_of("ack").await;
        assert_eq!(ack["uuid"], uuid.to_string());
        ack["id"].as_u64().expect("an id")
    }
}
