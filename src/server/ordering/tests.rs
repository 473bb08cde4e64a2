use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::backends::sequence::{EmbeddedSequence, Remembered, Seed};

const TALK: ConversationId = ConversationId(1);
const ALICE: UserId = UserId(1);

struct Bench {
    _folder: tempfile::TempDir,
    backends: Backends,
    metrics: Arc<Metrics>,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = crate::backends::Config {
            data: folder.path().to_owned(),
            partitions: 4,
            engines: crate::backends::Engines::default(),
        };
        let backends = crate::backends::open(&config).await.expect("opens");
        Self { _folder: folder, backends, metrics: Arc::new(Metrics::new("test", "t")) }
    }

    fn ordering(&self) -> Ordering {
        Ordering::new(&self.backends, &self.metrics)
    }

    /// What a Redis with stock settings does on `kill -9`.
    fn forget_everything(&mut self) {
        self.backends.sequence = Arc::new(EmbeddedSequence::default());
    }
}

fn frame(body: &str) -> SendFrame {
    SendFrame {
        uuid: Uuid::new_v4(),
        conversation: TALK,
        kind: "text".to_owned(),
        body: body.to_owned(),
        reply_to: None,
    }
}

/// What a server asks the counter for a frame of Alice's.
fn request_of(frame: &SendFrame) -> Request {
    let digest = digest(&frame.kind, &frame.body, frame.reply_to);
    Request { conversation: frame.conversation, sender: ALICE, uuid: frame.uuid, digest, not_upto: MessageId(0) }
}

#[tokio::test]
async fn a_retry_finds_its_id_and_another_body_is_a_conflict() {
    let bench = Bench::new().await;
    let ordering = bench.ordering();
    let hello = frame("hello");
    let first = ordering.store(ALICE, &hello).await.expect("stores");
    assert_eq!(ordering.store(ALICE, &hello).await.expect("finds"), first);
    let other = SendFrame { body: "other".to_owned(), ..hello };
    assert!(matches!(ordering.store(ALICE, &other).await, Err(OrderingError::Conflict)));
}

#[tokio::test]
async fn a_uuid_whose_fingerprint_is_another_message_s_is_a_message_of_its_own() {
    let bench = Bench::new().await;
    let ordering = bench.ordering();
    let (mine, other) = (frame("mine"), frame("other"));
    let first = ordering.store(ALICE, &other).await.expect("stores");
    // What two uuids of the same fingerprint look like: the counter names the row of the other one.
    let sequence = &bench.backends.sequence;
    let row = StoredMessage { uuid: mine.uuid, ..first.clone() };
    sequence.forget(TALK, 1).await.expect("forgets");
    assert!(sequence.begin_seed(TALK, 1).await.expect("claims"));
    let remembered = Remembered { sender: ALICE, uuid: row.uuid, id: first.id };
    assert!(sequence.remember(TALK, 1, &[remembered]).await.expect("remembers"));
    let seed = Seed { epoch: 1, settled: first.id, block_end: BLOCK_IDS };
    assert!(sequence.seed(TALK, &seed).await.expect("seeds"));
    let stored = ordering.store(ALICE, &mine).await.expect("stores");
    assert_eq!((stored.id, stored.body.as_str()), (MessageId(2), "mine"));
    assert_eq!(ordering.store(ALICE, &mine).await.expect("finds"), stored);
}

#[tokio::test]
async fn a_message_that_the_store_lost_is_stored_again_and_not_acknowledged_from_memory() {
    let bench = Bench::new().await;
    let ordering = bench.ordering();
    let hello = frame("hello");
    let first = ordering.store(ALICE, &hello).await.expect("stores");
    bench.backends.messages.void(TALK, MessageId(0), first.id).await.expect("loses it");
    let second = ordering.store(ALICE, &hello).await.expect("stores");
    assert_eq!(second.id, MessageId(2));
    let (rows, ..) = ordering.read(TALK, MessageId(0), 10, Source::Store).await.expect("reads");
    assert_eq!(rows, [second]);
}

#[tokio::test]
async fn ids_are_not_reused_after_the_counter_forgot_and_uuids_are_remembered() {
    let mut bench = Bench::new().await;
    let hello = frame("hello");
    let first = bench.ordering().store(ALICE, &hello).await.expect("stores");
    bench.forget_everything();
    let ordering = bench.ordering();
    assert_eq!(ordering.store(ALICE, &hello).await.expect("finds").id, first.id);
    let next = ordering.store(ALICE, &frame("next")).await.expect("stores");
    assert!(next.id.0 > BLOCK_IDS, "the rest of the old block is void");
    let (rows, _, progress) = ordering.read(TALK, MessageId(0), 10, Source::Store).await.expect("reads");
    assert_eq!(rows.iter().map(|r| r.id).collect::<Vec<_>>(), [first.id, next.id]);
    assert_eq!(progress.stable, next.id);
}

#[tokio::test]
async fn a_row_that_lands_late_from_an_old_epoch_is_never_seen() {
    let mut bench = Bench::new().await;
    let first = bench.ordering().store(ALICE, &frame("one")).await.expect("stores");
    bench.forget_everything();
    bench.ordering().progress(TALK).await.expect("seeds");
    let late = StoredMessage { id: first.id.next(), uuid: Uuid::new_v4(), ..first.clone() };
    bench.backends.messages.append(&late).await.expect("says ok");
    let (rows, ..) = bench.ordering().read(TALK, MessageId(0), 10, Source::Store).await.expect("reads");
    assert_eq!(rows, [first]);
}

#[tokio::test]
async fn stable_never_passes_a_pending_id_and_a_sync_hides_uncommitted_rows() {
    let bench = Bench::new().await;
    let ordering = bench.ordering();
    ordering.store(ALICE, &frame("one")).await.expect("stores");
    let slow = frame("slow");
    let request = request_of(&slow);
    let Reservation::Fresh(slot, _) = bench.backends.sequence.reserve(&request).await.expect("reserves") else {
        panic!("not fresh")
    };
    bench.backends.messages.append(&message(ALICE, &slow, slot)).await.expect("appends");
    let three = ordering.store(ALICE, &frame("three")).await.expect("stores");
    let (rows, _, progress) = ordering.read(TALK, MessageId(0), 10, Source::Store).await.expect("reads");
    assert_eq!((progress.stable.0, rows.len()), (1, 2), "the pending row is not shown");
    assert_eq!(rows[1], three);
    let retried = ordering.store(ALICE, &slow).await.expect("completes");
    assert_eq!((retried.id, retried.at), (slot.id, slot.at_ms));
    assert_eq!(ordering.progress(TALK).await.expect("reads").stable, three.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_counters_that_are_alive_only_one_acknowledges_and_nothing_is_lost() {
    let bench = Bench::new().await;
    let side = || {
        let sequence = Arc::new(EmbeddedSequence::split());
        Ordering::new(&Backends { sequence, ..bench.backends.clone() }, &bench.metrics)
    };
    let (old, young) = (side(), side());
    let mut acked = vec![old.store(ALICE, &frame("before")).await.expect("stores")];
    // The look of the old side holds while the young one seeds and waits; what it stores by then is found.
    let first_young = frame("young");
    let seeding = young.store(ALICE, &first_young);
    let meanwhile = async {
        let mut acked = Vec::new();
        for n in 0..40 {
            acked.extend(old.store(ALICE, &frame(&format!("meanwhile {n}"))).await.ok());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        acked
    };
    let (seeded, meanwhile) = tokio::join!(seeding, meanwhile);
    assert!(!meanwhile.is_empty() && meanwhile.len() < 40, "{} were acknowledged", meanwhile.len());
    acked.extend(meanwhile);
    acked.push(seeded.expect("stores"));
    assert!(old.store(ALICE, &frame("fenced")).await.is_err());
    acked.push(young.store(ALICE, &frame("after")).await.expect("stores"));
    let stored = bench.backends.messages.read(TALK, MessageId(0), MessageId(u64::MAX), 100).await.expect("reads");
    for message in &acked {
        assert!(stored.contains(message), "{message:?} was acknowledged and is not stored");
    }
}

#[tokio::test]
async fn an_id_that_is_overdue_on_a_counter_that_was_overtaken_is_not_void() {
    let bench = Bench::new().await;
    let side = |counters: &EmbeddedSequence| {
        let sequence = Arc::new(counters.clone());
        Ordering::new(&Backends { sequence, ..bench.backends.clone() }, &bench.metrics)
    };
    let counters = EmbeddedSequence::split();
    let (old, young) = (side(&counters), side(&EmbeddedSequence::split()));
    old.store(ALICE, &frame("before")).await.expect("stores");
    // It reserves and stores, and has no time to look or to commit any more.
    let late = frame("late");
    let Ok(Reservation::Fresh(slot, _)) = counters.reserve(&request_of(&late)).await else { panic!("an id") };
    bench.backends.messages.append(&message(ALICE, &late, slot)).await.expect("appends");
    let acked = young.store(ALICE, &late).await.expect("finds it");
    assert_eq!(acked.id, slot.id);
    counters.advance(Duration::from_millis(VOID_AFTER_MS + 1));
    old.sweep().await;
    assert!(old.progress(TALK).await.is_err(), "it leaves the conversation to the other side");
    let stored = bench.backends.messages.read(TALK, MessageId(0), MessageId(u64::MAX), 100).await.expect("reads");
    assert!(stored.contains(&acked), "{stored:?}");
}

#[tokio::test]
async fn what_is_remembered_is_what_the_store_has() {
    let bench = Bench::new().await;
    let ordering = bench.ordering();
    for n in 0..30 {
        ordering.store(ALICE, &frame(&n.to_string())).await.expect("stores");
        for (after, limit) in [(0, 100), (n / 2, 3), (n, 10), (n + 5, 10)] {
            let read = async |source| {
                let (rows, has_more, progress) =
                    ordering.read(TALK, MessageId(after), limit, source).await.expect("reads");
                (rows, has_more, progress.stable, progress.head)
            };
            assert_eq!(read(Source::Memory).await, read(Source::Store).await);
        }
    }
    let newest = ordering.newest(&[TALK, ConversationId(2)]).await.expect("reads");
    assert_eq!(newest.iter().map(|slot| slot.map(|s| s.id.0)).collect::<Vec<_>>(), [Some(30), None]);
}

#[tokio::test]
async fn an_id_whose_writer_died_becomes_void_and_its_retry_gets_a_fresh_one() {
    let mut bench = Bench::new().await;
    let counters = EmbeddedSequence::default();
    bench.backends.sequence = Arc::new(counters.clone());
    let ordering = bench.ordering();
    ordering.store(ALICE, &frame("one")).await.expect("stores");
    let dead = frame("dead");
    bench.backends.sequence.reserve(&request_of(&dead)).await.expect("reserves");
    counters.advance(Duration::from_millis(VOID_AFTER_MS + 1));
    let progress = ordering.progress(TALK).await.expect("voids");
    assert_eq!((progress.stable.0, progress.pending.len()), (2, 0));
    assert_eq!(bench.metrics.counted(Counter::IdsVoided), 1);
    assert_eq!(ordering.store(ALICE, &dead).await.expect("stores").id, MessageId(3));
}

#[tokio::test]
async fn a_block_is_raised_when_it_is_used_up() {
    let bench = Bench::new().await;
    let ordering = bench.ordering();
    ordering.store(ALICE, &frame("one")).await.expect("stores");
    let sequence = &bench.backends.sequence;
    // A second block begins where the first ends; use up the first without 10,000 writes.
    sequence.forget(TALK, 1).await.expect("forgets");
    assert!(sequence.begin_seed(TALK, 1).await.expect("claims"));
    let seed = Seed { epoch: 1, settled: MessageId(BLOCK_IDS), block_end: BLOCK_IDS };
    assert!(sequence.seed(TALK, &seed).await.expect("seeds"));
    assert_eq!(ordering.store(ALICE, &frame("two")).await.expect("stores").id, MessageId(BLOCK_IDS + 1));
    let head = bench.backends.messages.head(TALK).await.expect("reads");
    assert_eq!(head, ConversationHead { epoch: 1, block_end: 2 * BLOCK_IDS });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_servers_that_seed_at_once_agree() {
    let bench = Bench::new().await;
    let frames: Vec<SendFrame> = (0..40).map(|n| frame(&n.to_string())).collect();
    let stores = frames.iter().map(|frame| {
        let ordering = bench.ordering();
        async move { ordering.store(ALICE, frame).await.expect("stores").id }
    });
    let ids: HashSet<MessageId> = futures_util::future::join_all(stores).await.into_iter().collect();
    assert_eq!(ids.len(), 40);
    let (rows, _, progress) = bench.ordering().read(TALK, MessageId(0), 100, Source::Store).await.expect("reads");
    assert_eq!((rows.len(), progress.pending.len()), (40, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_fails_an_acknowledged_message_is_stored_once() {
    for seed in 0..20 {
        let mut bench = Bench::new().await;
        let sound = bench.backends.clone();
        bench.backends = sound.faulty(seed, 150);
        let ordering = bench.ordering();
        let mut acked = Vec::new();
        for n in 0..60 {
            let frame = frame(&n.to_string());
            let mut stored = ordering.store(ALICE, &frame).await;
            for _ in 0..20 {
                if stored.is_ok() {
                    break;
                }
                stored = ordering.store(ALICE, &frame).await;
            }
            acked.push(stored.unwrap_or_else(|e| panic!("seed {seed}: never stored: {e}")));
        }
        bench.backends = sound;
        let (rows, _, progress) = bench.ordering().read(TALK, MessageId(0), 1_000, Source::Store).await.expect("reads");
        assert_eq!(rows, acked, "seed {seed}");
        assert!(progress.pending.is_empty(), "seed {seed}");
    }
}

/// Stores messages 1 to 5, and then restores the counters as they were after 3.
async fn restored(ordering: &Ordering, counters: &EmbeddedSequence) -> Vec<StoredMessage> {
    let mut stored = Vec::new();
    for n in 0..3 {
        stored.push(ordering.store(ALICE, &frame(&n.to_string())).await.expect("stores"));
    }
    let backup = counters.backup();
    for n in 3..5 {
        stored.push(ordering.store(ALICE, &frame(&n.to_string())).await.expect("stores"));
    }
    counters.restore(&backup);
    stored
}

#[tokio::test]
async fn an_id_is_not_given_out_again_by_counters_that_went_back_in_time() {
    let mut bench = Bench::new().await;
    let counters = EmbeddedSequence::default();
    bench.backends.sequence = Arc::new(counters.clone());
    let ordering = bench.ordering();
    let mut stored = restored(&ordering, &counters).await;
    stored.push(ordering.store(ALICE, &frame("afterwards")).await.expect("stores"));
    let (rows, _, progress) = ordering.read(TALK, MessageId(0), 10, Source::Store).await.expect("reads");
    assert_eq!(rows, stored, "nothing was overwritten");
    assert!(progress.head.0 > BLOCK_IDS, "the counter was rebuilt from the store");
    assert_eq!(bench.metrics.counted(Counter::SequenceRollbacks), 1);
}

#[tokio::test]
async fn counters_that_went_back_in_time_hide_nothing_from_a_reader() {
    let mut bench = Bench::new().await;
    let counters = EmbeddedSequence::default();
    bench.backends.sequence = Arc::new(counters.clone());
    let ordering = bench.ordering();
    let stored = restored(&ordering, &counters).await;
    let (rows, _, progress) = ordering.read(TALK, MessageId(0), 10, Source::Store).await.expect("reads");
    assert_eq!(rows, stored);
    assert!(progress.stable >= MessageId(5), "{progress:?}");
}

#[tokio::test]
async fn a_seed_goes_on_when_the_request_that_wanted_it_has_ended() {
    const ROWS: u64 = 2_500;
    let mut bench = Bench::new().await;
    let first = bench.ordering().store(ALICE, &frame("first")).await.expect("stores");
    for id in 2..=ROWS {
        let row = StoredMessage { id: MessageId(id), uuid: Uuid::from_u64_pair(7, id), ..first.clone() };
        bench.backends.messages.append(&row).await.expect("appends");
    }
    bench.forget_everything();
    bench.backends = bench.backends.late(&["messages.read_back"], Duration::from_millis(100));
    let ordering = bench.ordering();
    let hello = frame("hello");
    let mut tries = 0;
    let stored = loop {
        tries += 1;
        match tokio::time::timeout(Duration::from_millis(40), ordering.store(ALICE, &hello)).await {
            Ok(stored) => break stored.expect("stores"),
            Err(_) => assert!(tries < 500, "the seed never ends"),
        }
    };
    assert!(tries > 3, "each request was shorter than the seed");
    assert_eq!(stored.id, MessageId(BLOCK_IDS + 1));
    let head = bench.backends.messages.head(TALK).await.expect("reads");
    assert_eq!(head, ConversationHead { epoch: 2, block_end: 2 * BLOCK_IDS }, "one seed, one block");
    let retried = SendFrame { uuid: Uuid::from_u64_pair(7, 2), body: first.body.clone(), ..frame("first") };
    assert_eq!(ordering.store(ALICE, &retried).await.expect("finds").id, MessageId(2), "every page was remembered");
}

#[tokio::test]
async fn a_page_that_does_not_come_does_not_begin_a_seed_anew() {
    let mut bench = Bench::new().await;
    let first = bench.ordering().store(ALICE, &frame("first")).await.expect("stores");
    for id in 2..=2_500 {
        let row = StoredMessage { id: MessageId(id), uuid: Uuid::from_u64_pair(7, id), ..first.clone() };
        bench.backends.messages.append(&row).await.expect("appends");
    }
    let sound = bench.backends.clone();
    for seed in 0..5 {
        bench.backends = sound.clone();
        bench.forget_everything();
        let before = sound.messages.head(TALK).await.expect("reads").epoch;
        bench.backends = bench.backends.faulty(seed, 250);
        let ordering = bench.ordering();
        let progress = loop {
            if let Ok(progress) = ordering.progress(TALK).await {
                break progress;
            }
        };
        assert!(progress.stable >= MessageId(2_500));
        // Of the steps that are not repeated every second seed or so fails; were a page one of them, hardly any would end.
        let seeds = sound.messages.head(TALK).await.expect("reads").epoch - before;
        assert!(seeds <= 12, "{seeds} seeds were begun");
    }
}
