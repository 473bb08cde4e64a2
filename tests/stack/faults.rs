//! The whole stack over engines that fail, seed by seed: whatever happens, the ledger is clean.

use chatctl::backends::Backends;
use chatctl::loadgen::result::Verdict;

use crate::proofs::run;

/// Calls in a thousand that go wrong.
const FAULTS_PER_MILLE: u32 = 30;

fn scenario(seed: u64) -> String {
    format!(
        "
name: faulty
seed: {seed}
population:
  users: 16
  direct_per_user: 4
  groups: [{{count: 3, members: {{min: 4, max: 10}}}}]
behaviors: {{one-to-one: 2, group-talker: 2, flapper: 1}}
flapper: {{online: 1s, away: 500ms}}
connect_over: 200ms
heartbeat: 1s
phases: [{{phase: steady, duration: 3s, rate: 60}}]
generator_lag_max: 30s
# Engines that fail hold up pushes, and syncs overtake them.
thresholds: ['pushed_percent >= 70', 'http_errors >= 0', 'connects_failed >= 0', 'disconnects >= 0']
"
    )
}

async fn is_clean(seed: u64) {
    let result = run(&scenario(seed), |b: Backends| b.faulty(seed, FAULTS_PER_MILLE), None).await;
    let (reasons, violations) = (&result.reasons, &result.violations);
    assert_eq!(result.verdict, Verdict::Pass, "seed {seed}: {reasons:?} {violations:?}");
    assert!(result.counts.acked > 100, "seed {seed}: {:?}", result.counts);
}

macro_rules! seeds {
    ($($name:ident: $seeds:expr;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                for seed in $seeds {
                    is_clean(seed).await;
                }
            }
        )*
    };
}

seeds! {
    the_ledger_is_clean_over_faulty_engines_seeds_1_to_5: 1..=5;
    the_ledger_is_clean_over_faulty_engines_seeds_6_to_10: 6..=10;
    the_ledger_is_clean_over_faulty_engines_seeds_11_to_15: 11..=15;
    the_ledger_is_clean_over_faulty_engines_seeds_16_to_20: 16..=20;
}
