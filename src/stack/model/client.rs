//! Devices: sockets by another client's WebSocket, requests by plain HTTP/1.1.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::ledger::{Sock, Token, Word};
use super::schedule::user_of;
use super::world::{World, device_name, token};
use crate::protocol::frames::WelcomeFrame;
use crate::protocol::{ClientFrame, ServerFrame};
use crate::runtime::clock;

/// Longest that a request, or a connect up to its welcome, may take.
const LIMIT: Duration = Duration::from_secs(12);

/// How often a device beats.
const BEAT: Duration = Duration::from_secs(4);

type Ws = WebSocketStream<TcpStream>;

/// Connects, and leaves nothing behind in the kernel when it ends.
async fn tcp(address: &str) -> Option<TcpStream> {
    let stream = TcpStream::connect(address).await.ok()?;
    // A reset takes the place of the minute that the kernel would keep the connection for.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).ok()?;
    stream.set_nodelay(true).ok()?;
    Some(stream)
}

impl World {
    /// One request; status and body. `None` where no whole answer came.
    pub(super) async fn http(&self, method: &str, path: &str, token: &str, body: &str) -> Option<(u16, Value)> {
        tokio::time::timeout(LIMIT, self.exchange(method, path, token, body)).await.ok().flatten()
    }

    async fn exchange(&self, method: &str, path: &str, token: &str, body: &str) -> Option<(u16, Value)> {
        let mut stream = tcp(&self.api).await?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: model\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&answer[..end]).ok()?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let is_chunked = head.to_ascii_lowercase().contains("chunked");
        let body = if is_chunked { unchunked(&answer[end + 4..]) } else { answer[end + 4..].to_vec() };
        Some((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }

    /// The same until a server takes it: what is answered then. `None` where none did, a few times over.
    pub(super) async fn insist(&self, method: &str, path: &str, token: &str, body: &str) -> Option<u16> {
        for _ in 0..8 {
            match self.http(method, path, token, body).await {
                Some((status, _)) if status < 500 && status != 429 => return Some(status),
                _ => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
        None
    }

    /// A new token for a device.
    pub(super) fn sign_in(&self, device: usize, lives_s: u64) -> usize {
        let (text, expires_ms) = token(self.users[user_of(device)], &device_name(device), lives_s);
        let mut ledger = self.ledger();
        ledger.tokens.push(Token { text, device, expires_ms, logged_out_ms: None });
        let token = ledger.tokens.len() - 1;
        ledger.token_of.insert(device, token);
        token
    }

    /// Ends a token.
    pub(super) async fn log_out(&self, token: usize) {
        let text = self.ledger().tokens[token].text.clone();
        if self.insist("POST", "/logout", &text, "").await == Some(204) {
            let mut ledger = self.ledger();
            let logged_out_ms = &mut ledger.tokens[token].logged_out_ms;
            *logged_out_ms = Some(logged_out_ms.unwrap_or_else(clock::unix_ms));
        }
    }

    /// Connects a device with a token; returns the socket once it was welcomed.
    pub(super) async fn connect(self: &Arc<Self>, device: usize, token: usize) -> Option<usize> {
        let (text, was_over) = {
            let ledger = self.ledger();
            let token = &ledger.tokens[token];
            assert_eq!(token.device, device, "a device has its own tokens");
            (token.text.clone(), token.ends_ms() <= clock::unix_ms())
        };
        let api_token = &self.api_tokens[user_of(device)];
        let placed = self.http("GET", "/placement", api_token, "").await?;
        let url = placed.1["url"].as_str()?.to_owned();
        let opened = tokio::time::timeout(LIMIT, open(&url, &text)).await.ok().flatten();
        let Some((ws, welcome)) = opened else {
            self.note(&format!("  device {device} was not let in"));
            return None;
        };
        let (words, heard) = mpsc::channel(64);
        let socket = {
            let mut ledger = self.ledger();
            ledger.sockets.push(Sock {
                device,
                token,
                server: welcome.server.to_string(),
                life: self.life_of(welcome.server.as_str()),
                was_cut: false,
                session: welcome.session,
                words,
                ended: None,
                heard: Vec::new(),
                subscribed: None,
                told: std::collections::BTreeMap::new(),
            });
            if was_over {
                ledger.fault(format!("device {device} was let in with a token that had ended"));
            }
            ledger.sockets.len() - 1
        };
        self.note(&format!("  device {device} has socket {socket} on {}", welcome.server));
        let world = Arc::clone(self);
        self.tasks.spawn("model.line", async move {
            let code = world.line(socket, ws, heard).await;
            world.ledger().ended(socket, code);
            world.check_goodbye(socket);
            world.note(&format!("  socket {socket} ended: {code:?}"));
        });
        Some(socket)
    }

    /// Reads and writes a socket until it ends; the code with which the server closed it, if it did.
    async fn line(&self, socket: usize, mut ws: Ws, mut words: mpsc::Receiver<Word>) -> Option<u16> {
        let mut beat = tokio::time::interval(BEAT);
        let mut code = None;
        loop {
            tokio::select! {
                word = words.recv() => match word {
                    Some(Word::Say(frame)) => {
                        // What can't be written is noticed by the reader.
                        let _ = ws.send(Message::text(frame.encode())).await;
                    }
                    Some(Word::Goodbye) => {
                        let _ = ws.close(None).await;
                    }
                    Some(Word::Cut) | None => return code,
                },
                _ = beat.tick() => {
                    let _ = ws.send(Message::text(ClientFrame::Beat.encode())).await;
                }
                message = ws.next() => match message {
                    Some(Ok(Message::Text(text))) => self.heard(socket, &text),
                    Some(Ok(Message::Close(frame))) => {
                        code = frame.map(|frame| frame.code.into());
                        self.ledger().ended(socket, code);
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return code,
                },
            }
        }
    }

    /// A server that lives ends no socket without a word.
    fn check_goodbye(&self, socket: usize) {
        let was_killed = |life| self.killed.lock().expect("no panic while held").contains(&life);
        let mut ledger = self.ledger();
        let sock = &ledger.sockets[socket];
        if matches!(sock.ended, Some((_, None))) && !sock.was_cut && !was_killed(sock.life) {
            ledger.fault(format!("socket {socket} was ended without a word"));
        }
    }

    fn heard(&self, socket: usize, text: &str) {
        match ServerFrame::decode(text) {
            Ok(frame) => self.ledger().hear(socket, frame, clock::unix_ms(), |id| self.conversation_of(id)),
            Err(error) => self.ledger().fault(format!("a frame can't be read: {error}: {text}")),
        }
    }

    /// Tells a socket's task something, if it is there.
    pub(super) fn tell(&self, socket: usize, word: Word) {
        let words = {
            let mut ledger = self.ledger();
            let sock = &mut ledger.sockets[socket];
            sock.was_cut = sock.was_cut || matches!(word, Word::Cut);
            sock.words.clone()
        };
        let _ = words.try_send(word);
    }
}

/// Opens a socket, up to its welcome.
async fn open(url: &str, token: &str) -> Option<(Ws, WelcomeFrame)> {
    let mut request = url.into_client_request().ok()?;
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse().ok()?);
    request.headers_mut().insert("sec-websocket-protocol", "chatctl.v1".parse().ok()?);
    let stream = tcp(url.strip_prefix("ws://")?.split('/').next()?).await?;
    let (mut ws, _): (Ws, tungstenite::handshake::client::Response) = client_async(request, stream).await.ok()?;
    match ws.next().await?.ok()? {
        Message::Text(text) => match ServerFrame::decode(&text).ok()? {
            ServerFrame::Welcome(welcome) => Some((ws, welcome)),
            _ => None,
        },
        _ => None,
    }
}

/// The bytes in chunks of HTTP/1.1.
fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(line) = body.windows(2).position(|two| two == b"\r\n") {
        let size = std::str::from_utf8(&body[..line]).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
        let Some(size) = size.filter(|size| *size > 0 && line + 4 + size <= body.len()) else { break };
        out.extend_from_slice(&body[line + 2..line + 2 + size]);
        body = &body[line + 4 + size..];
    }
    out
}
