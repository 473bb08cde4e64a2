//! The paths that every message takes, one by one: `cargo bench --bench hot_paths`.

use std::hint::black_box;
use std::sync::Arc;

use chatctl::backends::log::partition_of;
use chatctl::backends::sequence::{EmbeddedSequence, Request, Seed, Sequence};
use chatctl::protocol::websocket::{Decoder, Role, text_frame};
use chatctl::protocol::{ClientFrame, ConversationId, MessageFrame, MessageId, ServerFrame, UserId};
use chatctl::server::ordering::Ordering;
use chatctl::telemetry::{Latency, Metrics};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use uuid::Uuid;

fn message() -> ServerFrame {
    ServerFrame::Message(MessageFrame {
        conversation: ConversationId(42),
        id: MessageId(1_000_000),
        uuid: Uuid::from_u128(7),
        sender: UserId(17),
        kind: "text".to_owned(),
        body: "x".repeat(128),
        reply_to: None,
        at: 1_795_512_301_313,
    })
}

fn framing(c: &mut Criterion) {
    let mut group = c.benchmark_group("websocket");
    let text = message().encode();
    group.throughput(Throughput::Elements(1));
    group.bench_function("encode a frame", |b| b.iter(|| text_frame(black_box(&text), None)));
    let masked = text_frame(&text, Some([1, 2, 3, 4]));
    let mut buffer = masked.clone();
    let mut decoder = Decoder::new(Role::Server, 65_536);
    group.bench_function("decode a masked frame", |b| {
        b.iter(|| {
            buffer.copy_from_slice(&masked);
            decoder.feed(&mut buffer, &mut |event| {
                black_box(&event);
            })
        });
    });
    group.finish();
}

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("json");
    let frame = message();
    let text = frame.encode();
    group.bench_function("encode a message", |b| b.iter(|| black_box(&frame).encode()));
    group.bench_function("decode a message", |b| b.iter(|| ServerFrame::decode(black_box(&text))));
    let send = format!(
        r#"{{"type":"send","uuid":"{}","conversation":"c42","kind":"text","body":"{}"}}"#,
        Uuid::from_u128(7),
        "x".repeat(128)
    );
    group.bench_function("decode a send", |b| b.iter(|| ClientFrame::decode(black_box(&send))));
    group.finish();
}

fn small_parts(c: &mut Criterion) {
    let mut group = c.benchmark_group("parts");
    group.bench_function("partition of a key", |b| b.iter(|| partition_of(black_box(123_456), 16)));
    let mut latency = Latency::default();
    group.bench_function("record a latency", |b| b.iter(|| latency.record_us(black_box(1_234))));
    group.finish();
}

/// Reserve and commit in the embedded sequence, and the whole of storing a message durably.
fn storing(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("starts");
    let mut group = c.benchmark_group("store");
    let sequence = EmbeddedSequence::default();
    let talk = ConversationId(1);
    runtime.block_on(async {
        sequence.begin_seed(talk, 1).await.expect("claims");
        let seed = Seed { epoch: 1, settled: MessageId(0), block_end: u64::MAX };
        sequence.seed(talk, &seed).await.expect("seeds");
    });
    let mut n = 0_u128;
    group.bench_function("reserve and commit an id", |b| {
        b.iter(|| {
            n += 1;
            let uuid = Uuid::from_u128(n);
            let request = Request { conversation: talk, sender: UserId(1), uuid, digest: 1, not_upto: MessageId(0) };
            runtime.block_on(async {
                let reserved = sequence.reserve(&request).await;
                sequence.commit(talk, UserId(1), uuid, MessageId(n as u64)).await.map(|_| reserved)
            })
        });
    });
    let folder = tempfile::tempdir().expect("a folder");
    let config = chatctl::backends::Config {
        data: folder.path().to_owned(),
        partitions: 4,
        engines: chatctl::backends::Engines::default(),
    };
    let backends = runtime.block_on(chatctl::backends::open(&config)).expect("opens");
    let ordering = Ordering::new(&backends, &Arc::new(Metrics::new("bench", "bench")));
    group.sample_size(30);
    group.bench_function("store a message durably", |b| {
        b.iter(|| {
            let frame = chatctl::protocol::frames::SendFrame {
                uuid: Uuid::new_v4(),
                conversation: talk,
                kind: "text".to_owned(),
                body: "x".repeat(128),
                reply_to: None,
            };
            runtime.block_on(ordering.store(UserId(1), &frame))
        });
    });
    group.finish();
}

criterion_group!(benches, framing, frames, small_parts, storing);
criterion_main!(benches);
