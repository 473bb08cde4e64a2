//! A TCP relay between a server and an engine, which can be cut as a network is: no byte passes either way, and no
//! connection ends.
//!
//! A Kafka broker tells its clients where to connect; on its way through a relay that address becomes the relay's.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::runtime::{Tasks, net};

const BUFFER_BYTES: usize = 32 * 1024;

/// Answers up to this size are looked through for addresses; larger ones hold records.
const REWRITTEN_BYTES_MAX: usize = 1 << 20;

/// A running relay.
pub(super) struct Relay {
    /// Where the server connects.
    pub(super) address: SocketAddr,
    is_cut: watch::Sender<bool>,
}

/// Bytes that stand for an address in a broker's answers, and what replaces them; of the same length.
#[derive(Clone)]
struct Rewrite {
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Relay {
    /// Starts a relay to `upstream` (`host:port`) in `tasks`. `speaks_kafka`: addresses in answers are rewritten.
    pub(super) fn start(upstream: &str, speaks_kafka: bool, tasks: &Tasks) -> io::Result<Self> {
        let listener = net::listen(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = listener.local_addr()?;
        let rewrite = if speaks_kafka { Rewrite::new(upstream, address) } else { None };
        let is_cut = watch::Sender::new(false);
        let cut = is_cut.subscribe();
        tasks.spawn_until_stopped(
            "relay.accept",
            accept(listener, upstream.to_owned(), rewrite.map(Arc::new), cut, tasks.clone()),
        );
        Ok(Self { address, is_cut })
    }

    pub(super) fn set_cut(&self, is_cut: bool) {
        self.is_cut.send_replace(is_cut);
    }
}

impl Rewrite {
    /// An address in the Kafka protocol is the host's text, then the port as four bytes.
    fn new(upstream: &str, relay: SocketAddr) -> Option<Self> {
        let (host, port) = upstream.rsplit_once(':')?;
        let port: u32 = port.parse().ok()?;
        let bytes = |port: u32| [host.as_bytes(), &port.to_be_bytes()].concat();
        Some(Self { from: bytes(port), to: bytes(relay.port().into()) })
    }

    fn apply(&self, bytes: &mut [u8]) {
        let mut at = 0;
        while let Some(found) = bytes[at..].windows(self.from.len()).position(|window| window == self.from) {
            let start = at + found;
            at = start + self.from.len();
            bytes[start..at].copy_from_slice(&self.to);
        }
    }
}

async fn accept(
    listener: TcpListener,
    upstream: String,
    rewrite: Option<Arc<Rewrite>>,
    cut: watch::Receiver<bool>,
    tasks: Tasks,
) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            continue;
        };
        let (upstream, rewrite, mut cut) = (upstream.clone(), rewrite.clone(), cut.clone());
        tasks.spawn_until_stopped("relay.connection", async move {
            if open(&mut cut).await.is_err() {
                return;
            }
            let Ok(server) = TcpStream::connect(&upstream).await else { return };
            net::set_options(&client);
            net::set_options(&server);
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            let up = copy(from_client, to_server, cut.clone());
            let down = async {
                match rewrite {
                    Some(rewrite) => copy_frames(from_server, to_client, cut, &rewrite).await,
                    None => copy(from_server, to_client, cut).await,
                }
            };
            // An end that failed takes the other one with it, by dropping both sockets.
            let _ = tokio::try_join!(up, down);
        });
    }
}

/// Waits until the relay is not cut.
async fn open(cut: &mut watch::Receiver<bool>) -> io::Result<()> {
    cut.wait_for(|is_cut| !is_cut).await.map(|_| ()).map_err(|_| io::ErrorKind::BrokenPipe.into())
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut cut: watch::Receiver<bool>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = from.read(&mut buffer).await?;
        open(&mut cut).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
    }
}

/// Copies answers of a broker, each behind its length in four bytes.
async fn copy_frames(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut cut: watch::Receiver<bool>,
    rewrite: &Rewrite,
) -> io::Result<()> {
    loop {
        let Ok(length) = from.read_u32().await else { return to.shutdown().await };
        let mut left = length as usize;
        let is_small = left <= REWRITTEN_BYTES_MAX;
        let mut frame = length.to_be_bytes().to_vec();
        while left > 0 {
            let before = frame.len();
            frame.resize(before + left.min(if is_small { REWRITTEN_BYTES_MAX } else { BUFFER_BYTES }), 0);
            from.read_exact(&mut frame[before..]).await?;
            left -= frame.len() - before;
            if !is_small {
                open(&mut cut).await?;
                to.write_all(&frame).await?;
                frame.clear();
            }
        }
        if is_small {
            rewrite.apply(&mut frame);
            open(&mut cut).await?;
            to.write_all(&frame).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn echo() -> String {
        let listener = net::listen("127.0.0.1:0".parse().expect("valid")).expect("binds");
        let address = listener.local_addr().expect("bound");
        Tasks::new().spawn("test.echo", async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut byte = [0];
                while stream.read_exact(&mut byte).await.is_ok() {
                    let _ = stream.write_all(&byte).await;
                }
            }
        });
        address.to_string()
    }

    #[tokio::test]
    async fn a_cut_holds_bytes_back_and_healing_lets_them_through() {
        let tasks = Tasks::new();
        let relay = Relay::start(&echo(), false, &tasks).expect("starts");
        let mut stream = TcpStream::connect(relay.address).await.expect("connects");
        let mut byte = [0];
        stream.write_all(b"a").await.expect("writes");
        stream.read_exact(&mut byte).await.expect("passes");
        relay.set_cut(true);
        stream.write_all(b"b").await.expect("writes");
        assert!(tokio::time::timeout(Duration::from_millis(200), stream.read_exact(&mut byte)).await.is_err());
        relay.set_cut(false);
        stream.read_exact(&mut byte).await.expect("passes");
        assert_eq!(byte, *b"b");
        tasks.stop();
    }

    #[test]
    fn a_brokers_address_becomes_the_relays() {
        let rewrite = Rewrite::new("127.0.0.1:19092", "127.0.0.1:5".parse().expect("valid")).expect("an address");
        let mut answer = [b"x127.0.0.1", &19_092_u32.to_be_bytes()[..], b"127.0.0.1\0\0\0\x01"].concat();
        rewrite.apply(&mut answer);
        assert_eq!(answer, [b"x127.0.0.1", &5_u32.to_be_bytes()[..], b"127.0.0.1\0\0\0\x01"].concat());
    }
}
