//! Clients that are not well: phones that vanish without a word, people who hardly read, and people who are sent away and come
//! back.

use std::time::Duration;

use chatctl::loadgen::result::Verdict;
use chatctl::stack::Stack;
use chatctl::telemetry::LatencyPath;
use uuid::Uuid;

use crate::client::{Socket, config, conversation, signup};
use crate::proofs::run;

const VANISHING: &str = "
name: vanishing
seed: 14
population:
  users: 24
  direct_per_user: 4
  groups: [{count: 4, members: {min: 6, max: 12}}]
behaviors: {half-open: 1, one-to-one: 1, group-talker: 1}
connect_over: 300ms
flapper: {online: 800ms, away: 700ms}
phases: [{phase: steady, duration: 5s, rate: 80}]
generator_lag_max: 10s
";

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_to_a_vanished_phone_is_not_missed() {
    let result = run(VANISHING, |b| b, None).await;
    assert_eq!(result.verdict, Verdict::Pass, "{:?} {:?}", result.reasons, result.violations);
    let counts = &result.counts;
    // A third of 24 users live through three to four rounds of being there and vanishing.
    assert!(counts.reconnects > 12, "{counts:?}");
    let after = result.histograms[LatencyPath::DeliveryAfterReconnect].count();
    assert!(after > 0, "what went into the void is fetched by sync: {counts:?}");
    assert_eq!(counts.lost + counts.duplicated + counts.out_of_order, 0, "{counts:?}");
}

/// 30 messages of 40 KB a second to everybody are more than a reader of one buffer of 64 KiB per second takes.
const FLOOD: &str = "
name: flood
seed: 15
population:
  users: 8
  groups: [{count: 1, members: {min: 8, max: 8}}]
  message_bytes: {min: 40000, max: 40000}
behaviors: {group-talker: 1, slow-reader: 1}
connect_over: 200ms
read_pause: 1s
phases: [{phase: steady, duration: 10s, rate: 30}]
generator_lag_max: 10s
# A server may cut who does not read.
thresholds: ['disconnects >= 0']
";

#[tokio::test(flavor = "multi_thread")]
async fn who_hardly_reads_misses_nothing_and_nobody_else_feels_it() {
    let result = run(FLOOD, |b| b, None).await;
    assert_eq!(result.verdict, Verdict::Pass, "{:?} {:?} {:?}", result.reasons, result.violations, result.errors);
    let (slow, others) =
        (&result.histograms[LatencyPath::DeliverySlowReader], &result.histograms[LatencyPath::DeliveryGroup]);
    assert!(slow.count() > 10 && others.count() > 500, "{} and {}", slow.count(), others.count());
    let (slow_us, others_us) = (slow.percentile_us(50.0), others.percentile_us(99.0));
    assert!(slow_us > others_us, "{slow_us} µs for slow readers, {others_us} µs for others");
    // Most of what was written to them was never read, and came by the last sync. (That such a client is cut when the server
    // holds too much for it is proven in `conformance`.)
    let counts = &result.counts;
    assert!(counts.frames < counts.delivered, "{counts:?}");
}

const COMING_BACK: &str = "
name: coming-back
seed: 16
population:
  users: 110
  groups: [{count: 1, members: {min: 110, max: 110}}]
behaviors: {group-talker: 1}
connect_over: 300ms
churn: {every: 150ms, back_after: 150ms}
phases: [{phase: steady, duration: 9s, rate: 30}]
generator_lag_max: 10s
# A removal between a head and its fetch makes a sync of it.
thresholds: ['pushed_percent >= 80']
";

#[tokio::test(flavor = "multi_thread")]
async fn who_is_added_to_a_large_group_again_hears_of_its_messages_at_once() {
    let result = run(COMING_BACK, |b| b, None).await;
    assert_eq!(result.verdict, Verdict::Pass, "{:?} {:?} {:?}", result.reasons, result.violations, result.errors);
    let channel = &result.histograms[LatencyPath::DeliveryChannel];
    assert!(channel.count() > 10_000, "{:?}", result.counts);
    // Without a subscription a device hears of the others' messages when it sends one itself, every four seconds, or never.
    let (most, few) = (channel.percentile_us(50.0), channel.percentile_us(99.0));
    assert!(few < most + 1_000_000, "1 % of deliveries took over {few} µs, half of them less than {most} µs");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_went_silent_is_notified_of_what_was_written_into_the_dead_socket() {
    let mut config = config();
    config.chat.idle_timeout = Duration::from_secs(1);
    let stack = Stack::start(config).await.expect("starts");
    let (alice, bob) = (signup(&stack, "alice").await, signup(&stack, "bob").await);
    let direct = conversation(&stack, &alice, "direct", &[&bob]).await;
    let group = conversation(&stack, &alice, "group", &[&bob]).await;
    // It looks alive, and nothing comes from it any more.
    let _dead = Socket::open(&bob).await;
    let mut a = Socket::open(&alice).await;
    a.send(&direct, Uuid::new_v4(), "are you there?").await;
    a.send(&group, Uuid::new_v4(), "are you?").await;
    let file = stack.data().join("notifications.jsonl");
    let is_told = |text: &str, conversation: &str| {
        text.lines().any(|line| line.contains(&bob.id) && line.contains(&format!("\"{conversation}\"")))
    };
    tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            if is_told(&text, &direct) && is_told(&text, &group) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("both are told");
    stack.stop().await;
}
