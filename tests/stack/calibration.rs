//! The instrument itself: what it tells of a server that is slow by a known amount, and whether it finds one message in ten
//! million (that one is beside the ledger's code).

use std::sync::Arc;
use std::time::Duration;

use chatctl::loadgen::RunResult;
use chatctl::loadgen::result::Verdict;
use chatctl::runtime::clock;
use chatctl::server::chat::tamper::Tamper;

use crate::proofs::run;
use chatctl::telemetry::LatencyPath;

/// One person writes to another at an even pace, so that every second weighs the same.
const EVEN: &str = "
name: calibration
seed: 5
population: {users: 20, groups: [{count: 10, members: {min: 10, max: 10}}]}
behaviors: {group-talker: 1}
connect_over: 200ms
phases:
  - {phase: warm-up, duration: 1s, rate: 20}
  - {phase: steady, duration: 10s, rate: 50, arrivals: constant}
generator_lag_max: 10s
";

/// Holds every delivery back for as long.
struct Late(Duration);

impl Tamper for Late {
    fn delay(&self) -> Duration {
        self.0
    }
}

fn p50_us(result: &RunResult) -> u64 {
    assert_eq!(result.verdict, Verdict::Pass, "{:?} {:?}", result.reasons, result.violations);
    result.histograms[LatencyPath::DeliveryGroup].percentile_us(50.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_late_by_a_known_time_is_told_to_be_within_two_percent() {
    const LATE: Duration = Duration::from_millis(300);
    let usual_us = p50_us(&run(EVEN, |b| b, None).await);
    let late_us = p50_us(&run(EVEN, |b| b, Some(Arc::new(Late(LATE)))).await);
    let told_us = late_us.saturating_sub(usual_us);
    let error_us = told_us.abs_diff(LATE.as_micros() as u64);
    assert!(error_us < LATE.as_micros() as u64 / 50, "{told_us} µs instead of {LATE:?}; without it {usual_us} µs");
}

/// Delivers nothing for a second, four seconds after the first message.
struct Stalls(std::sync::OnceLock<u64>);

const STALL_US: u64 = 1_000_000;

impl Tamper for Stalls {
    fn delay(&self) -> Duration {
        let now = clock::now_us();
        let begins = self.0.get_or_init(|| now + 4_000_000);
        let is_within = (*begins..begins + STALL_US).contains(&now);
        if is_within { Duration::from_micros(begins + STALL_US - now) } else { Duration::ZERO }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stall_of_a_second_shows_with_its_true_weight() {
    let result = run(EVEN, |b| b, Some(Arc::new(Stalls(std::sync::OnceLock::new())))).await;
    assert_eq!(result.verdict, Verdict::Pass, "{:?} {:?}", result.reasons, result.violations);
    let delivery = &result.histograms[LatencyPath::DeliveryGroup];
    // One second in ten: a tenth of the messages waited, evenly between nothing and a second. Half of those over half a
    // second, so a twentieth of all; a generator that waits for the server would have seen one message wait.
    let share = delivery.count_above_us(STALL_US / 2) as f64 / delivery.count() as f64;
    assert!((0.035..0.065).contains(&share), "{share} of {} waited over half a second", delivery.count());
    assert!(delivery.percentile_us(99.9) > 900_000, "{} µs", delivery.percentile_us(99.9));
}
