//! The real servers under seeded schedules: connects, logouts, expiry, removals, subscriptions, claims, drains and fail-over,
//! several at a time, on one server and on three.
//!
//! Everything of a seed is in one runtime whose clock is paused: engines take as long as the seed says, and the clock goes on
//! only when nothing is left to do at a time (`world::drive`). Sockets are real ones. A schedule comes from the seed alone; what
//! a seed does is nearly always the same, since only threads of engines and the kernel are not in the model's hands.
//!
//! `CHATCTL_MODEL_SEEDS` says how many seeds are tried, `CHATCTL_MODEL_SEED` is one to try alone, and to tell of.

mod client;
mod ledger;
mod play;
mod schedule;
mod truth;
mod weather;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use schedule::Schedule;
use weather::Weather;
use world::{Ground, Stillness, World, drive};

use crate::runtime::{clock, machine};

/// Seeds that are tried where nobody says how many.
const SEEDS: u64 = 100;

/// Seeds that fail until no more are tried.
const FAILURES_MAX: usize = 5;

/// What a seed came to.
struct Outcome {
    seed: u64,
    faults: Vec<String>,
    journal: Vec<String>,
}

impl Outcome {
    fn told(&self) -> String {
        format!(
            "seed {}:\n  {}\n\n{}\n\nto repeat it: CHATCTL_MODEL_SEED={} cargo test --lib stack::model -- --nocapture\n",
            self.seed,
            self.faults.join("\n  "),
            self.journal.join("\n"),
            self.seed
        )
    }
}

/// Plays a seed, on a thread that is in no runtime.
fn play(seed: u64) -> Outcome {
    // The clock of the runtime must not begin before that of the process.
    let _ = clock::now_us();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let _still = Stillness::begin();
        let schedule = Schedule::draw(seed);
        let weather = Arc::new(Weather::draw(seed));
        let ground = Ground::lay().await;
        let world = drive(&weather, || true, World::start(ground, &schedule, Arc::clone(&weather))).await;
        weather.set_calm(false);
        let is_busy = || world.is_busy.load(Ordering::Relaxed);
        drive(&weather, is_busy, async {
            world.play(&schedule).await;
            world.judge(seed).await;
        })
        .await;
        let mut ledger = world.ledger();
        Outcome { seed, faults: std::mem::take(&mut ledger.faults), journal: std::mem::take(&mut ledger.journal) }
    })
}

/// A number of the environment.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Shows what a single seed did, to whoever asked for it.
#[expect(clippy::print_stderr, reason = "it is asked for by name")]
fn tell(text: &str) {
    eprintln!("{text}");
}

#[test]
fn the_servers_keep_their_promises_under_every_schedule() {
    let one = number("CHATCTL_MODEL_SEED");
    let seeds = one.map_or_else(|| 0..number("CHATCTL_MODEL_SEEDS").unwrap_or(SEEDS), |seed| seed..seed + 1);
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    let failures = || failed.lock().expect("no panic while held");
    std::thread::scope(|scope| {
        for _ in 0..machine::cores() {
            scope.spawn(|| {
                while failures().len() < FAILURES_MAX {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = play(seed);
                    if one.is_some() || !outcome.faults.is_empty() {
                        failures().push(outcome);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic while held");
    let told = failed.iter().map(Outcome::told).collect::<Vec<_>>().join("\n");
    if one.is_some() {
        tell(&told);
    }
    assert!(failed.iter().all(|outcome| outcome.faults.is_empty()), "{told}");
}
