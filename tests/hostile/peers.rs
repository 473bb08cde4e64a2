//! Strangers on the ports of peer links.

use chatctl::server::access::keys::{KEY_BYTES, Keys, Purpose};
use tokio::io::AsyncWriteExt;

use crate::bench::{Bench, Siege};
use crate::wire::{connect, everything, first, many};

/// More than a server has of strangers at once.
const STRANGERS: usize = 300;

pub(crate) async fn garbage(bench: &Bench) -> Siege {
    assert_eq!(bench.ports.peers.len(), 6, "each server has one: {:?}", bench.ports.peers);
    let random = |length: u32| (0..length).map(|n| (n * 7_919 % 251) as u8).collect::<Vec<u8>>();
    let framed = |bytes: Vec<u8>| [(bytes.len() as u16).to_be_bytes().to_vec(), bytes].concat();
    let cases = [
        random(10_000),
        vec![0; 70_000],
        vec![0xff; 70_000],
        framed(random(48)),
        framed(random(32)),
        framed(Vec::new()),
        framed(random(65_000)),
        b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"{\"id\":1,\"body\":\"metrics\"}\n".to_vec(),
    ];
    let mut streams = Vec::new();
    for port in &bench.ports.peers {
        for bytes in &cases {
            streams.extend(many(port, 4, bytes).await);
        }
    }
    for stream in &mut streams {
        assert_eq!(everything(stream).await, "", "a stranger is told nothing");
    }
    streams.into()
}

pub(crate) async fn half_handshakes(bench: &Bench) -> Siege {
    let mut streams = Vec::new();
    for port in &bench.ports.peers {
        streams.extend(many(port, STRANGERS / 2, b"").await);
        // A hello of 48 bytes, of which half come.
        streams.extend(many(port, STRANGERS / 2, &[&[0, 48][..], &[7; 24]].concat()).await);
    }
    bench.others_are_served().await;
    for stream in &mut streams {
        assert_eq!(everything(stream).await, "");
    }
    streams.into()
}

/// The first message of a link to a server, as one of the deployment writes it.
fn hello(bench: &Bench, to: &str) -> Vec<u8> {
    let secret: [u8; KEY_BYTES] = bench.secret().try_into().expect("a secret");
    let keys = Keys::derive(&secret, &[], Purpose::PeerLinks);
    let (prologue, pattern) = (format!("chatctl peer link 1, to {to}"), "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s");
    let builder = snow::Builder::new(pattern.parse().expect("a pattern")).psk(0, keys.current()).expect("a key");
    let mut state = builder.prologue(prologue.as_bytes()).and_then(snow::Builder::build_initiator).expect("begins");
    let mut message = vec![0; 1_024];
    let written = state.write_message(b"chat-2", &mut message).expect("written");
    message.truncate(written);
    [(written as u16).to_be_bytes().to_vec(), message].concat()
}

pub(crate) async fn relayed_hello(bench: &Bench) -> Siege {
    let hello = hello(bench, "chat-1");
    let mut admitted = Vec::new();
    for port in &bench.ports.peers {
        let mut stream = connect(port).await;
        stream.write_all(&hello).await.expect("writes");
        if !first(&mut stream).await.is_empty() {
            admitted.push(port.as_str());
        }
    }
    let [port] = admitted[..] else { panic!("it is for one server, not for {admitted:?}") };
    // Whoever listened may say it once more, and has no key for what follows.
    for _ in 0..20 {
        let mut stream = connect(port).await;
        stream.write_all(&hello).await.expect("writes");
        assert!(!first(&mut stream).await.is_empty(), "answered");
        stream.write_all(&[&[0, 60][..], &[9; 60]].concat()).await.expect("writes");
        assert_eq!(everything(&mut stream).await, "");
    }
    Siege::default()
}
