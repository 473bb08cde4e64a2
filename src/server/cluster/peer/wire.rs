//! The wire of a peer link: a Noise handshake, then sealed frames.
//!
//! The pattern is `NNpsk0`: both ends prove that they have the deployment's key, and agree on keys of their own for the
//! connection. The name of the server that is called goes into the handshake, so that an entry of the registry that points
//! elsewhere leads to nobody: whoever passes bytes on between two servers can neither read them nor send its own.
//! Source: Perrin, "The Noise Protocol Framework", revision 34.
//!
//! A message is cut into chunks of at most 64 KiB, each sealed by itself; the first byte of a chunk says whether more follow. On
//! the socket each has its length before it, in two bytes.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use snow::{Builder, HandshakeState, StatelessTransportState};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::codec::{Framed, FramedParts, FramedRead, FramedWrite, LengthDelimitedCodec};

use super::CALL_TIMEOUT;
use crate::protocol::ServerName;
use crate::runtime::net;
use crate::server::access::keys::Keys;
use crate::server::http::Deadlined;

/// Curve, cipher and hash.
const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";

/// Begins what both ends must agree on.
const PROLOGUE: &str = "chatctl peer link 1, to ";

/// Largest sealed chunk. Source: the Noise specification, section 3.
const CHUNK_BYTES_MAX: usize = 65_535;

/// Largest message of a handshake: a name, a key and a tag. A stranger makes no server keep more.
const HANDSHAKE_BYTES_MAX: usize = 1_024;

/// What sealing adds to a chunk.
const TAG_BYTES: usize = 16;

/// Plain bytes of a chunk behind its first one.
const PLAIN_BYTES_MAX: usize = CHUNK_BYTES_MAX - TAG_BYTES - 1;

/// Largest message: one of 64 KiB, escaped, with its recipients.
pub(super) const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// First byte of a chunk: the last of its message, or one that others follow.
const LAST: u8 = 0;
const MORE: u8 = 1;

/// Both directions of a link whose other end proved that it is one of us.
pub(super) struct Wire {
    pub(super) reader: Reader,
    pub(super) writer: Writer,
}

/// Opens what comes in. One task has it.
pub(super) struct Reader {
    chunks: FramedRead<OwnedReadHalf, LengthDelimitedCodec>,
    keys: Arc<StatelessTransportState>,
    nonce: u64,
    /// The first message, where it was waited for.
    first: Option<Bytes>,
}

/// Seals what goes out, and fails when the other end takes nothing for as long as a call may take. One task has it.
pub(super) struct Writer {
    chunks: FramedWrite<Deadlined<OwnedWriteHalf>, LengthDelimitedCodec>,
    keys: Arc<StatelessTransportState>,
    nonce: u64,
}

fn codec(bytes_max: usize) -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().length_field_length(2).max_frame_length(bytes_max).new_codec()
}

fn broken(error: snow::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn handshake<'a>(key: &'a [u8; 32], prologue: &'a str) -> Result<Builder<'a>, snow::Error> {
    let pattern = PATTERN.parse().expect("a pattern of the library's");
    Builder::new(pattern).psk(0, key)?.prologue(prologue.as_bytes())
}

async fn next(wire: &mut Framed<TcpStream, LengthDelimitedCodec>) -> io::Result<BytesMut> {
    wire.next().await.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))
}

impl Wire {
    /// Calls a server by its name.
    ///
    /// # Errors
    /// When the other end has another name or none of the keys, or the connection ends.
    pub(super) async fn call(stream: TcpStream, from: &ServerName, to: &ServerName, keys: &Keys) -> io::Result<Self> {
        net::set_options(&stream);
        let prologue = format!("{PROLOGUE}{to}");
        let mut state = handshake(keys.current(), &prologue).and_then(Builder::build_initiator).map_err(broken)?;
        let mut wire = Framed::new(stream, codec(HANDSHAKE_BYTES_MAX));
        let mut buffer = vec![0; HANDSHAKE_BYTES_MAX];
        let written = state.write_message(from.as_str().as_bytes(), &mut buffer).map_err(broken)?;
        wire.send(Bytes::copy_from_slice(&buffer[..written])).await?;
        let answer = next(&mut wire).await?;
        state.read_message(&answer, &mut buffer).map_err(broken)?;
        Self::of(wire, state)
    }

    /// Answers a server that calls this one; says who it is.
    ///
    /// # Errors
    /// When the other end wanted another server or has none of the keys, or the connection ends.
    pub(super) async fn answer(stream: TcpStream, own: &ServerName, keys: &Keys) -> io::Result<(Self, ServerName)> {
        net::set_options(&stream);
        // A link may be silent for long: nobody else tells that the other host is gone.
        net::keep_alive(&stream);
        let prologue = format!("{PROLOGUE}{own}");
        let mut wire = Framed::new(stream, codec(HANDSHAKE_BYTES_MAX));
        let mut buffer = vec![0; HANDSHAKE_BYTES_MAX];
        let hello = next(&mut wire).await?;
        let mut refused = None;
        for key in keys.all() {
            let mut state = handshake(key, &prologue).and_then(Builder::build_responder).map_err(broken)?;
            let read = match state.read_message(&hello, &mut buffer) {
                Ok(read) => read,
                Err(error) => {
                    refused = Some(error);
                    continue;
                }
            };
            let name = std::str::from_utf8(&buffer[..read]).ok().and_then(|name| name.parse().ok());
            let from: ServerName = name.ok_or_else(|| io::Error::other("the caller's name can't be read"))?;
            let written = state.write_message(&[], &mut buffer).map_err(broken)?;
            wire.send(Bytes::copy_from_slice(&buffer[..written])).await?;
            return Ok((Self::of(wire, state)?, from));
        }
        Err(refused.map_or_else(|| io::Error::other("no key"), broken))
    }

    fn of(wire: Framed<TcpStream, LengthDelimitedCodec>, state: HandshakeState) -> io::Result<Self> {
        let keys = Arc::new(state.into_stateless_transport_mode().map_err(broken)?);
        let FramedParts { io, read_buf, .. } = wire.into_parts();
        let (input, output) = io.into_split();
        let mut chunks = FramedRead::new(input, codec(CHUNK_BYTES_MAX));
        *chunks.read_buffer_mut() = read_buf;
        let reader = Reader { chunks, keys: Arc::clone(&keys), nonce: 0, first: None };
        let output = Deadlined::new(output, CALL_TIMEOUT);
        let writer = Writer { chunks: FramedWrite::new(output, codec(CHUNK_BYTES_MAX)), keys, nonce: 0 };
        Ok(Self { reader, writer })
    }
}

impl Reader {
    /// Waits for the first message, and keeps it as the next one. Only who took part in the handshake can have sealed it.
    ///
    /// # Errors
    /// Those of [`Self::next`].
    pub(super) async fn wait_for_first(&mut self) -> io::Result<()> {
        self.first = Some(self.next().await?);
        Ok(())
    }

    /// The next message.
    ///
    /// # Errors
    /// When the connection ended, a chunk was not sealed by the other end or comes out of turn, or a message is too long.
    pub(super) async fn next(&mut self) -> io::Result<Bytes> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        let mut message = BytesMut::new();
        loop {
            let sealed = self.chunks.next().await.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))?;
            let mut plain = vec![0; sealed.len()];
            let read = self.keys.read_message(self.nonce, &sealed, &mut plain).map_err(broken)?;
            self.nonce += 1;
            let Some((more, part)) = plain[..read].split_first() else {
                return Err(io::Error::other("an empty chunk"));
            };
            if message.len() + part.len() > MESSAGE_BYTES_MAX {
                return Err(io::Error::other("a message of over 1 MiB"));
            }
            message.extend_from_slice(part);
            if *more == LAST {
                return Ok(message.freeze());
            }
        }
    }
}

impl Writer {
    /// Takes a message into the buffer, and writes the buffer where it is full.
    ///
    /// # Errors
    /// When the connection ended.
    pub(super) async fn feed(&mut self, message: &[u8]) -> io::Result<()> {
        let mut rest = message;
        loop {
            let (part, behind) = rest.split_at(rest.len().min(PLAIN_BYTES_MAX));
            let mut plain = Vec::with_capacity(part.len() + 1);
            plain.push(if behind.is_empty() { LAST } else { MORE });
            plain.extend_from_slice(part);
            let mut sealed = vec![0; plain.len() + TAG_BYTES];
            let written = self.keys.write_message(self.nonce, &plain, &mut sealed).map_err(broken)?;
            self.nonce += 1;
            sealed.truncate(written);
            self.chunks.feed(Bytes::from(sealed)).await?;
            if behind.is_empty() {
                return Ok(());
            }
            rest = behind;
        }
    }

    /// Writes what is in the buffer.
    ///
    /// # Errors
    /// When the connection ended.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        SinkExt::<Bytes>::flush(&mut self.chunks).await
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::server::access::keys::Purpose;

    fn name(text: &str) -> ServerName {
        text.parse().expect("a name")
    }

    fn keys(current: u8, accepted: &[u8]) -> Keys {
        let accepted: Vec<[u8; 32]> = accepted.iter().map(|byte| [*byte; 32]).collect();
        Keys::derive(&[current; 32], &accepted, Purpose::PeerLinks)
    }

    /// Connects a caller that wants `to` with a server that is `own`.
    async fn connect(
        to: &str,
        own: &str,
        caller: Keys,
        server: Keys,
    ) -> (io::Result<Wire>, io::Result<(Wire, ServerName)>) {
        let listener = net::listen("127.0.0.1:0".parse().expect("valid")).expect("binds");
        let address = listener.local_addr().expect("bound");
        let (to, own) = (name(to), name(own));
        let calling = async move {
            Wire::call(TcpStream::connect(address).await.expect("connects"), &name("chat-1"), &to, &caller).await
        };
        let answering = async move {
            let (stream, _) = listener.accept().await.expect("accepts");
            Wire::answer(stream, &own, &server).await
        };
        tokio::join!(calling, answering)
    }

    #[tokio::test]
    async fn messages_of_every_length_come_through_whole_and_in_order() {
        let (caller, server) = connect("chat-2", "chat-2", keys(1, &[]), keys(1, &[])).await;
        let (mut caller, (mut server, from)) = (caller.expect("connects"), server.expect("admits"));
        assert_eq!(from, name("chat-1"));
        let lengths = [0, 1, PLAIN_BYTES_MAX - 1, PLAIN_BYTES_MAX, PLAIN_BYTES_MAX + 1, 200_000, MESSAGE_BYTES_MAX];
        let message = |length: usize| (0..length).map(|n| (n % 251) as u8).collect::<Vec<u8>>();
        let writing = async {
            for length in lengths {
                caller.writer.feed(&message(length)).await.expect("writes");
            }
            caller.writer.flush().await.expect("writes");
        };
        let reading = async {
            for length in lengths {
                assert_eq!(server.reader.next().await.expect("reads"), message(length), "{length}");
            }
        };
        tokio::join!(writing, reading);
        server.writer.feed(b"and back").await.expect("writes");
        server.writer.flush().await.expect("writes");
        assert_eq!(caller.reader.next().await.expect("reads"), "and back");
    }

    #[tokio::test]
    async fn neither_end_is_taken_for_another_server_or_without_a_key() {
        for (to, own, caller, server) in [
            ("chat-2", "chat-3", keys(1, &[]), keys(1, &[])),
            ("chat-2", "chat-2", keys(2, &[]), keys(1, &[])),
            ("chat-2", "chat-2", keys(2, &[1]), keys(1, &[])),
        ] {
            let (caller, server) = connect(to, own, caller, server).await;
            assert!(caller.is_err() && server.is_err(), "{to} {own}");
        }
        let (caller, server) = connect("chat-2", "chat-2", keys(2, &[]), keys(1, &[2])).await;
        assert!(caller.is_ok() && server.is_ok(), "a secret that comes into use");
    }

    #[tokio::test]
    async fn a_stranger_with_a_long_hello_is_left_at_its_length() {
        let listener = net::listen("127.0.0.1:0".parse().expect("valid")).expect("binds");
        let address = listener.local_addr().expect("bound");
        let mut stranger = TcpStream::connect(address).await.expect("connects");
        stranger.write_all(&(HANDSHAKE_BYTES_MAX as u16 + 1).to_be_bytes()).await.expect("writes");
        let (stream, _) = listener.accept().await.expect("accepts");
        // Nothing more comes, and nothing ends.
        let refused = Wire::answer(stream, &name("chat-1"), &keys(1, &[])).await.err().expect("refused");
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{refused}");
    }

    #[tokio::test]
    async fn what_was_changed_or_repeated_on_the_way_ends_the_link() {
        for repeats in [false, true] {
            let server = net::listen("127.0.0.1:0".parse().expect("valid")).expect("binds");
            let relay = net::listen("127.0.0.1:0".parse().expect("valid")).expect("binds");
            let (to_server, to_relay) = (server.local_addr().expect("bound"), relay.local_addr().expect("bound"));
            // Passes the handshake on, and of what follows the first frame changed, or twice.
            let passing = async move {
                let (mut caller, _) = relay.accept().await.expect("accepts");
                let mut server = TcpStream::connect(to_server).await.expect("connects");
                let frame = async |from: &mut TcpStream| {
                    let length = from.read_u16().await.expect("reads");
                    let mut frame = vec![0; usize::from(length)];
                    from.read_exact(&mut frame).await.expect("reads");
                    [&length.to_be_bytes()[..], &frame].concat()
                };
                let hello = frame(&mut caller).await;
                server.write_all(&hello).await.expect("writes");
                let answer = frame(&mut server).await;
                caller.write_all(&answer).await.expect("writes");
                let mut first = frame(&mut caller).await;
                if repeats {
                    server.write_all(&first).await.expect("writes");
                } else {
                    first[4] ^= 1;
                }
                server.write_all(&first).await.expect("writes");
                (caller, server)
            };
            let calling = async {
                let stream = TcpStream::connect(to_relay).await.expect("connects");
                let mut wire =
                    Wire::call(stream, &name("chat-1"), &name("chat-2"), &keys(1, &[])).await.expect("connects");
                wire.writer.feed(b"hello").await.expect("writes");
                wire.writer.flush().await.expect("writes");
                wire
            };
            let answering = async {
                let (stream, _) = server.accept().await.expect("accepts");
                let (mut wire, _) = Wire::answer(stream, &name("chat-2"), &keys(1, &[])).await.expect("admits");
                if repeats {
                    assert_eq!(wire.reader.next().await.expect("reads"), "hello");
                }
                assert!(wire.reader.next().await.is_err(), "repeats: {repeats}");
            };
            let _ = tokio::join!(passing, calling, answering);
        }
    }
}
