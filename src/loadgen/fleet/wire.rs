//! What coordinator and worker say: JSON values with their length in front, over a pipe or TCP.
//!
//! Over TCP each side first proves that it knows the shared secret, by an HMAC over both sides' random numbers, without
//! sending it. What follows is neither encrypted nor signed: it is for networks that the user trusts, or a tunnel.

use std::io;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::{SinkExt, StreamExt};
use hmac::{Hmac, KeyInit, Mac};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use crate::loadgen::ledger::Tallied;
use crate::loadgen::{RunResult, Scenario};
use crate::telemetry::{ByPath, Latency, LiveSnapshot};

/// Version of this protocol. Both sides must have the same.
const VERSION: u32 = 4;

/// Largest value. A result holds some twenty histograms of up to 100 KB.
const FRAME_BYTES_MAX: usize = 64 << 20;

/// Largest value before the other side has proved itself.
const HELLO_BYTES_MAX: usize = 1_024;

/// Longest that each step of the handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Fewest bytes of a secret.
const SECRET_BYTES_MIN: usize = 16;

/// Why there is no conversation (any more).
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection failed or ended.
    #[error("connection lost: {0}")]
    Lost(String),
    /// The other side said something else than it should.
    #[error("{0}")]
    Broken(String),
    /// The other side does not know the secret, or refuses ours.
    #[error("the secrets differ: give both sides the same file with --secret-file")]
    Secret,
    /// The worker works for somebody else.
    #[error("the worker is busy with another run")]
    Busy,
}

/// What coordinator and worker share.
#[derive(Clone)]
pub struct Secret(Box<[u8]>);

impl Secret {
    /// A secret of at least 16 bytes; white space around it does not count.
    ///
    /// # Errors
    /// When it is shorter.
    pub fn new(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.len() < SECRET_BYTES_MIN {
            return Err(format!("a secret has at least {SECRET_BYTES_MIN} characters, this one {}", text.len()));
        }
        Ok(Self(text.as_bytes().into()))
    }

    /// A new secret and its text.
    #[must_use]
    pub fn generate() -> (Self, String) {
        let text = BASE64.encode(rand::random::<[u8; 32]>());
        (Self(text.as_bytes().into()), text)
    }

    fn mac(&self, who: &str, first: &[u8], second: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(who.as_bytes());
        mac.update(first);
        mac.update(second);
        mac
    }

    fn prove(&self, who: &str, first: &[u8], second: &[u8]) -> Vec<u8> {
        self.mac(who, first, second).finalize().into_bytes().to_vec()
    }

    fn check(&self, who: &str, first: &[u8], second: &[u8], proof: &[u8]) -> Result<(), WireError> {
        self.mac(who, first, second).verify_slice(proof).map_err(|_| WireError::Secret)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What a worker is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) scenario: Scenario,
    /// API address of the stack.
    pub(super) target: String,
    /// Place of this part among all, from 0, and how many there are.
    pub(super) part: (u32, u32),
    /// Addresses that connections come from; the system chooses where there is none.
    pub(super) sources: Vec<std::net::IpAddr>,
    /// File for this part's history, on the worker's machine.
    pub(super) history: Option<std::path::PathBuf>,
}

/// From coordinator to worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(super) enum ToWorker {
    /// What does your clock say?
    Ping,
    /// Make accounts and conversations, then say `ready`.
    Job(Box<Job>),
    /// Begin the load at this time of your clock, in µs.
    Start { at_us: u64 },
    /// A fault that you know from the scenario is over.
    FaultOver { what: String, error: Option<String> },
    /// Stop, and send what there is.
    Interrupt,
}

/// From worker to coordinator.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(super) enum FromWorker {
    /// My clock, in µs, and the machine's, in µs since 1970; what I take in memory.
    Pong { now_us: u64, unix_us: u64, resident_bytes: u64 },
    /// Everything is set up.
    Ready,
    /// How it looks.
    Snapshot { snapshot: Box<LiveSnapshot>, histograms: ByPath<Latency>, unmeasured: ByPath<Latency> },
    /// What came of it.
    Done { result: Box<RunResult>, tallied: Tallied },
    /// There is no result. `usage`: what was asked for can't be done here.
    Failed { usage: bool, message: String },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hello {
    chatctl: u32,
    nonce: [u8; 16],
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Challenge {
    chatctl: u32,
    is_busy: bool,
    nonce: [u8; 16],
    proof: Vec<u8>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Proof {
    proof: Vec<u8>,
}

/// Something to read from.
pub(super) type Input = Box<dyn AsyncRead + Send + Unpin>;
/// Something to write to.
pub(super) type Output = Box<dyn AsyncWrite + Send + Unpin>;

/// The reading end.
pub(super) struct Reader(FramedRead<Input, LengthDelimitedCodec>);
/// The writing end.
pub(super) struct Writer(FramedWrite<Output, LengthDelimitedCodec>);

fn codec(bytes_max: usize) -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(bytes_max).new_codec()
}

impl Reader {
    pub(super) fn new(input: Input) -> Self {
        Self(FramedRead::new(input, codec(FRAME_BYTES_MAX)))
    }

    /// The next value. Cancel-safe.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Result<T, WireError> {
        let frame = match self.0.next().await {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Err(lost(&error)),
            None => return Err(WireError::Lost("the other side ended".to_owned())),
        };
        serde_json::from_slice(&frame).map_err(|e| WireError::Broken(format!("not of this protocol: {e}")))
    }
}

impl Writer {
    pub(super) fn new(output: Output) -> Self {
        Self(FramedWrite::new(output, codec(FRAME_BYTES_MAX)))
    }

    /// Writes a value.
    pub(super) async fn send<T: Serialize + Sync>(&mut self, value: &T) -> Result<(), WireError> {
        let text = serde_json::to_vec(value).map_err(|e| WireError::Broken(e.to_string()))?;
        self.0.send(bytes::Bytes::from(text)).await.map_err(|e| lost(&e))
    }
}

fn lost(error: &io::Error) -> WireError {
    WireError::Lost(error.to_string())
}

async fn in_time<T>(step: impl Future<Output = Result<T, WireError>>) -> Result<T, WireError> {
    tokio::time::timeout(HANDSHAKE_TIMEOUT, step)
        .await
        .unwrap_or_else(|_| Err(WireError::Lost(format!("no answer within {HANDSHAKE_TIMEOUT:?}; is it a worker?"))))
}

fn check_version(other: u32) -> Result<(), WireError> {
    if other == VERSION {
        return Ok(());
    }
    Err(WireError::Broken(format!("the other side speaks version {other} of the protocol, this one {VERSION}")))
}

/// The coordinator's side of the handshake.
pub(super) async fn greet(reader: &mut Reader, writer: &mut Writer, secret: &Secret) -> Result<(), WireError> {
    let nonce: [u8; 16] = rand::random();
    reader.0.decoder_mut().set_max_frame_length(HELLO_BYTES_MAX);
    writer.send(&Hello { chatctl: VERSION, nonce }).await?;
    let challenge: Challenge = in_time(reader.next()).await?;
    check_version(challenge.chatctl)?;
    if challenge.is_busy {
        return Err(WireError::Busy);
    }
    secret.check("worker", &nonce, &challenge.nonce, &challenge.proof)?;
    writer.send(&Proof { proof: secret.prove("coordinator", &challenge.nonce, &nonce) }).await?;
    reader.0.decoder_mut().set_max_frame_length(FRAME_BYTES_MAX);
    Ok(())
}

/// The worker's side of the handshake.
pub(super) async fn answer(
    reader: &mut Reader,
    writer: &mut Writer,
    secret: &Secret,
    is_busy: bool,
) -> Result<(), WireError> {
    let nonce: [u8; 16] = rand::random();
    reader.0.decoder_mut().set_max_frame_length(HELLO_BYTES_MAX);
    let hello: Hello = in_time(reader.next()).await?;
    let proof = secret.prove("worker", &hello.nonce, &nonce);
    writer.send(&Challenge { chatctl: VERSION, is_busy, nonce, proof }).await?;
    check_version(hello.chatctl)?;
    if is_busy {
        return Err(WireError::Busy);
    }
    let proof: Proof = in_time(reader.next()).await?;
    secret.check("coordinator", &nonce, &hello.nonce, &proof.proof)?;
    reader.0.decoder_mut().set_max_frame_length(FRAME_BYTES_MAX);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> ((Reader, Writer), (Reader, Writer)) {
        let (a, b) = tokio::io::duplex(64 << 10);
        let side = |stream: tokio::io::DuplexStream| {
            let (read, write) = tokio::io::split(stream);
            (Reader::new(Box::new(read)), Writer::new(Box::new(write)))
        };
        (side(a), side(b))
    }

    async fn shake(ours: &Secret, theirs: &Secret, is_busy: bool) -> (Result<(), WireError>, Result<(), WireError>) {
        let ((mut r1, mut w1), (mut r2, mut w2)) = ends();
        tokio::join!(greet(&mut r1, &mut w1, ours), async {
            let answered = answer(&mut r2, &mut w2, theirs, is_busy).await;
            drop((r2, w2));
            answered
        })
    }

    #[tokio::test]
    async fn both_sides_prove_the_secret_without_sending_it() {
        let secret = Secret::new("0123456789abcdef").expect("long enough");
        assert!(matches!(shake(&secret, &secret, false).await, (Ok(()), Ok(()))));
        let other = Secret::new("another secret, as long").expect("long enough");
        let (ours, theirs) = shake(&secret, &other, false).await;
        assert!(matches!(ours, Err(WireError::Secret)), "the worker must prove itself first: {ours:?}");
        assert!(theirs.is_err());
        assert!(matches!(shake(&secret, &secret, true).await.0, Err(WireError::Busy)));
        assert!(Secret::new("short").is_err());
        assert!(!format!("{secret:?}").contains("0123"));
    }

    #[tokio::test]
    async fn a_stranger_can_not_make_a_worker_hold_much() {
        let (secret, long) = (Secret::generate().0, "x".repeat(HELLO_BYTES_MAX + 1));
        let ((_r1, mut w1), (mut r2, mut w2)) = ends();
        let (sent, answered) = tokio::join!(w1.send(&long), answer(&mut r2, &mut w2, &secret, false));
        assert!(sent.is_ok());
        assert!(matches!(answered, Err(WireError::Lost(_))), "{answered:?}");
    }
}
