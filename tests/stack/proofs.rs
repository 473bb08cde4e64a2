//! The proof that a load test can tell a broken server from a sound one: each breakage is switched on, and the verdict
//! turns, for the right reason.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use chatctl::backends::messages::{ConversationHead, Messages, Newest, StoredMessage};
use chatctl::backends::sequence::{EmbeddedSequence, Progress, Remembered, Request, Reservation, Seed, Sequence, Slot};
use chatctl::backends::{BackendResult, Backends};
use chatctl::loadgen::result::Verdict;
use chatctl::loadgen::{RunOptions, RunResult, Scenario};
use chatctl::protocol::{ConversationId, MessageFrame, MessageId, UserId};
use chatctl::runtime::Tasks;
use chatctl::server::chat::tamper::Tamper;
use chatctl::stack::{Config, Stack};
use chatctl::telemetry::{LiveSnapshot, RunPhase};
use tokio::sync::watch;
use uuid::Uuid;

use crate::client::config;

const SCENARIO: &str = "
name: proof
seed: 11
population:
  users: 24
  direct_per_user: 4
  groups: [{count: 4, members: {min: 6, max: 12}}]
behaviors: {one-to-one: 1, group-talker: 1}
connect_over: 300ms
churn: {every: 300ms, back_after: 600ms}
phases: [{phase: steady, duration: 4s, rate: 100}]
generator_lag_max: 10s
";

pub(crate) async fn run(
    scenario: &str,
    change: impl FnOnce(Backends) -> Backends,
    tamper: Option<Arc<dyn Tamper>>,
) -> RunResult {
    load(Stack::start_changed(config(), change, tamper).await.expect("starts"), scenario).await
}

/// Runs a scenario against a stack of some configuration.
pub(crate) async fn run_on(config: Config, scenario: &str) -> RunResult {
    load(Stack::start(config).await.expect("starts"), scenario).await
}

async fn load(stack: Stack, scenario: &str) -> RunResult {
    let scenario = Scenario::parse(scenario, "proof").expect("valid");
    let (live, _shown) = watch::channel(LiveSnapshot::default());
    let result = chatctl::loadgen::run(&scenario, options(&stack, live, Tasks::new())).await.expect("runs");
    stack.stop().await;
    result
}

fn options(stack: &Stack, live: watch::Sender<LiveSnapshot>, interrupt: Tasks) -> RunOptions {
    RunOptions {
        target: stack.api_url().expect("there is an API"),
        control: None,
        history: None,
        live,
        interrupt,
        stack_threads: None,
        sources: Vec::new(),
        part: None,
    }
}

fn same(backends: Backends) -> Backends {
    backends
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_server_passes() {
    let result = run(SCENARIO, same, None).await;
    assert_eq!(result.verdict, Verdict::Pass, "{:?} {:?}", result.reasons, result.violations);
    assert!(result.counts.acked > 250 && result.counts.delivered > result.counts.acked);
    assert_eq!((result.counts.unaudited, result.counts.undrained), (0, 0));
    // Of those who were removed, too: it was tried, and refused.
    assert!(result.counts.access_probes > 0 && result.counts.write_probes > 0, "{:?}", result.counts);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stops_a_run_that_waits_for_a_stack_that_is_gone_gets_what_is_known() {
    let stack = Stack::start(config()).await.expect("starts");
    let scenario = Scenario::parse(SCENARIO, "proof").expect("valid");
    let (live, mut shown) = watch::channel(LiveSnapshot::default());
    let interrupt = Tasks::new();
    let running = chatctl::loadgen::run(&scenario, options(&stack, live, interrupt.clone()));
    let stopping = async {
        shown.wait_for(|s| s.totals.acked > 50.0).await.expect("it runs");
        stack.stop().await;
        shown.wait_for(|s| s.phase == RunPhase::Drain).await.expect("it runs");
        interrupt.stop();
    };
    let (result, ()) = tokio::join!(running, stopping);
    let result = result.expect("there are results");
    assert_eq!(result.verdict, Verdict::Interrupted, "{:?} {:?}", result.reasons, result.violations);
    assert!(result.counts.acked > 50 && result.counts.audited == 0 && result.counts.unaudited > 0);
    assert_eq!(result.counts.never_connected, 0, "who could not be waited for was connected all the same");
    assert_eq!(result.violations, [""; 0]);
}

/// Counts messages, and says yes to one in `every`.
struct OneIn {
    every: u64,
    seen: AtomicU64,
}

impl OneIn {
    const fn new(every: u64) -> Self {
        Self { every, seen: AtomicU64::new(0) }
    }

    fn hits(&self) -> bool {
        self.seen.fetch_add(1, Ordering::Relaxed) % self.every == self.every - 1
    }
}

/// Leaves out deliveries to sockets.
struct DropsDeliveries(OneIn);

impl Tamper for DropsDeliveries {
    fn outgoing(&self, _: UserId, message: &MessageFrame) -> Vec<MessageFrame> {
        if self.0.hits() { Vec::new() } else { vec![message.clone()] }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_deliveries_are_repaired_by_sync_and_counted() {
    let text = format!("{SCENARIO}\nthresholds: ['gaps_synced == 0']\n");
    let result = run(&text, same, Some(Arc::new(DropsDeliveries(OneIn::new(100))))).await;
    assert_eq!(result.verdict, Verdict::ThresholdFailed, "{:?}", result.violations);
    assert!(result.counts.gaps_synced > 0 && result.counts.lost == 0);
}

/// A message store that lies.
struct Lies {
    inner: Arc<dyn Messages>,
    /// Says "stored" and stores nothing: an ACK before the store.
    forgets: Option<OneIn>,
    /// Hides one message in so many from devices that sync from where they are. The audit reads from the beginning and sees it.
    hides_one_in: Option<u64>,
}

#[async_trait]
impl Messages for Lies {
    async fn append(&self, message: &StoredMessage) -> BackendResult<()> {
        if self.forgets.as_ref().is_some_and(OneIn::hits) { Ok(()) } else { self.inner.append(message).await }
    }
    async fn read(
        &self,
        c: ConversationId,
        after: MessageId,
        upto: MessageId,
        limit: usize,
    ) -> BackendResult<Vec<StoredMessage>> {
        let mut rows = self.inner.read(c, after, upto, limit).await?;
        if let Some(every) = self.hides_one_in.filter(|_| after > MessageId(0)) {
            rows.retain(|row| !is_hidden(row, every));
        }
        Ok(rows)
    }
    async fn read_back(&self, c: ConversationId, before: MessageId, limit: usize) -> BackendResult<Vec<StoredMessage>> {
        self.inner.read_back(c, before, limit).await
    }
    async fn void(&self, c: ConversationId, after: MessageId, upto: MessageId) -> BackendResult<()> {
        self.inner.void(c, after, upto).await
    }
    async fn head(&self, c: ConversationId) -> BackendResult<ConversationHead> {
        self.inner.head(c).await
    }
    async fn newest(&self, c: &[ConversationId]) -> BackendResult<Vec<Option<Newest>>> {
        self.inner.newest(c).await
    }
    async fn mark(&self, name: &str, value: &str) -> BackendResult<String> {
        self.inner.mark(name, value).await
    }
    async fn probe(&self) -> BackendResult<()> {
        self.inner.probe().await
    }
    async fn raise_head(&self, c: ConversationId, from: ConversationHead, to: ConversationHead) -> BackendResult<bool> {
        self.inner.raise_head(c, from, to).await
    }
}

fn is_hidden(message: &MessageFrame, every: u64) -> bool {
    (message.uuid.as_u128() as u64 ^ message.conversation.0).is_multiple_of(every)
}

/// Leaves the same messages out on sockets.
struct DropsHidden(u64);

impl Tamper for DropsHidden {
    fn outgoing(&self, _: UserId, message: &MessageFrame) -> Vec<MessageFrame> {
        if is_hidden(message, self.0) { Vec::new() } else { vec![message.clone()] }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_never_reaches_a_device_is_lost() {
    let hide = |b: Backends| Backends {
        messages: Arc::new(Lies { inner: Arc::clone(&b.messages), forgets: None, hides_one_in: Some(50) }),
        ..b
    };
    let result = run(SCENARIO, hide, Some(Arc::new(DropsHidden(50)))).await;
    assert_eq!(result.verdict, Verdict::LedgerViolated);
    assert!(result.counts.lost > 0, "{:?}", result.counts);
    assert!(
        result.violations.iter().any(|v| v.starts_with("lost") && v.contains("never reached")),
        "{:?}",
        result.violations
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ack_before_the_store_is_lost() {
    let forget = |b: Backends| Backends {
        messages: Arc::new(Lies { inner: Arc::clone(&b.messages), forgets: Some(OneIn::new(40)), hides_one_in: None }),
        ..b
    };
    let result = run(SCENARIO, forget, None).await;
    assert_eq!(result.verdict, Verdict::LedgerViolated);
    assert!(result.violations.iter().any(|v| v.contains("acknowledged and is not stored")), "{:?}", result.violations);
}

/// Shows a message a second time, under the next id, so that a client's own dedup can't help.
struct DeliversTwice(OneIn);

impl Tamper for DeliversTwice {
    fn outgoing(&self, _: UserId, message: &MessageFrame) -> Vec<MessageFrame> {
        let again = MessageFrame { id: message.id.next(), ..message.clone() };
        if self.0.hits() { vec![message.clone(), again] } else { vec![message.clone()] }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_shown_twice_is_a_duplicate() {
    let result = run(SCENARIO, same, Some(Arc::new(DeliversTwice(OneIn::new(50))))).await;
    assert_eq!(result.verdict, Verdict::LedgerViolated);
    assert!(result.counts.duplicated > 0, "{:?} {:?}", result.counts, result.violations);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeats_on_the_wire_are_counted_and_are_no_violation() {
    struct Repeats;
    impl Tamper for Repeats {
        fn outgoing(&self, _: UserId, message: &MessageFrame) -> Vec<MessageFrame> {
            vec![message.clone(), message.clone()]
        }
    }
    let result = run(SCENARIO, same, Some(Arc::new(Repeats))).await;
    assert_eq!(result.verdict, Verdict::Pass, "{:?}", result.violations);
    assert!(result.counts.repeated_on_wire > 100);
}

/// Exchanges the ids of neighbours.
struct SwapsIds;

impl Tamper for SwapsIds {
    fn outgoing(&self, _: UserId, message: &MessageFrame) -> Vec<MessageFrame> {
        vec![MessageFrame { id: MessageId(((message.id.0 - 1) ^ 1) + 1), ..message.clone() }]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn swapped_ids_are_seen() {
    let result = run(SCENARIO, same, Some(Arc::new(SwapsIds))).await;
    assert_eq!(result.verdict, Verdict::LedgerViolated);
    assert!(result.counts.id_reuse > 0, "{:?}", result.counts);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_body_is_seen() {
    struct Alters;
    impl Tamper for Alters {
        fn outgoing(&self, _: UserId, message: &MessageFrame) -> Vec<MessageFrame> {
            vec![MessageFrame { body: message.body.replacen('a', "A", 1), ..message.clone() }]
        }
    }
    let result = run(SCENARIO, same, Some(Arc::new(Alters))).await;
    assert_eq!(result.verdict, Verdict::LedgerViolated);
    assert!(result.counts.altered > 0);
}

/// Goes on delivering to members who were removed.
struct Leaks;

impl Tamper for Leaks {
    fn ignores_removals(&self) -> bool {
        true
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leak_to_a_removed_member_is_seen() {
    let result = run(&SCENARIO.replace("back_after: 600ms", "back_after: 3s"), same, Some(Arc::new(Leaks))).await;
    assert_eq!(result.verdict, Verdict::LedgerViolated);
    assert!(result.counts.leaked > 0, "{:?}", result.counts);
}

/// A counter that forgets everything after a while and starts again at 1, without asking the message store.
struct StartsAgain {
    inner: EmbeddedSequence,
    naive: EmbeddedSequence,
    reserved: AtomicU64,
    seeded: Mutex<HashSet<ConversationId>>,
}

impl StartsAgain {
    const FORGETS_AFTER: u64 = 120;

    async fn now(&self, conversation: ConversationId) -> &EmbeddedSequence {
        if self.reserved.load(Ordering::Relaxed) < Self::FORGETS_AFTER {
            return &self.inner;
        }
        let is_new = self.seeded.lock().expect("no panic while held").insert(conversation);
        if is_new {
            let seed = Seed { epoch: 1, settled: MessageId(0), block_end: 10_000 };
            self.naive.begin_seed(conversation, 1).await.expect("claims");
            self.naive.seed(conversation, &seed).await.expect("seeds");
        }
        &self.naive
    }
}

#[async_trait]
impl Sequence for StartsAgain {
    async fn reserve(&self, request: &Request) -> BackendResult<Reservation> {
        self.reserved.fetch_add(1, Ordering::Relaxed);
        self.now(request.conversation).await.reserve(request).await
    }
    async fn commit(&self, c: ConversationId, sender: UserId, uuid: Uuid, id: MessageId) -> BackendResult<bool> {
        self.now(c).await.commit(c, sender, uuid, id).await
    }
    async fn progress(&self, c: ConversationId) -> BackendResult<Option<Progress>> {
        self.now(c).await.progress(c).await
    }
    async fn newest(&self, c: &[ConversationId]) -> BackendResult<Vec<Option<Slot>>> {
        self.inner.newest(c).await
    }
    async fn begin_void(&self, c: ConversationId, id: MessageId) -> BackendResult<bool> {
        self.now(c).await.begin_void(c, id).await
    }
    async fn end_void(&self, c: ConversationId, id: MessageId) -> BackendResult<()> {
        self.now(c).await.end_void(c, id).await
    }
    async fn begin_seed(&self, c: ConversationId, epoch: u64) -> BackendResult<bool> {
        self.now(c).await.begin_seed(c, epoch).await
    }
    async fn remember(&self, c: ConversationId, epoch: u64, messages: &[Remembered]) -> BackendResult<bool> {
        self.now(c).await.remember(c, epoch, messages).await
    }
    async fn seed(&self, c: ConversationId, seed: &Seed) -> BackendResult<bool> {
        self.now(c).await.seed(c, seed).await
    }
    async fn extend(&self, c: ConversationId, epoch: u64, to: ConversationHead) -> BackendResult<()> {
        self.now(c).await.extend(c, epoch, to).await
    }
    async fn forget(&self, c: ConversationId, epoch: u64) -> BackendResult<()> {
        self.now(c).await.forget(c, epoch).await
    }
    async fn probe(&self) -> BackendResult<()> {
        self.inner.probe().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reused_id_is_seen() {
    let naive = |b: Backends| {
        let sequence = StartsAgain {
            inner: EmbeddedSequence::default(),
            naive: EmbeddedSequence::default(),
            reserved: AtomicU64::new(0),
            seeded: Mutex::default(),
        };
        Backends { sequence: Arc::new(sequence), ..b }
    };
    let result = run(SCENARIO, naive, None).await;
    assert_eq!(result.verdict, Verdict::LedgerViolated);
    assert!(result.counts.id_reuse > 0 || result.counts.lost > 0, "{:?}", result.counts);
    assert!(!result.violations.is_empty());
}
