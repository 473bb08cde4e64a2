//! What goes wrong in a simulated run, and how often.

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::sim::{MS, S};

/// What a seed decides about the weather: how the network and the server behave while the load lasts. Afterwards both are calm.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weather {
    /// Longest delay of a frame, a call, a commit, a connect.
    pub(super) frame_us: u64,
    pub(super) call_us: u64,
    pub(super) commit_us: u64,
    pub(super) connect_us: u64,
    /// Chances, of 1,000.
    pub(super) duplicate: u32,
    pub(super) dropped_push: u32,
    pub(super) dropped_ack: u32,
    pub(super) error_answer: u32,
    pub(super) failed_call: u32,
    pub(super) refused_connect: u32,
    pub(super) skipped_id: u32,
    /// Mean time between two events that hit somebody's connection; 0 for none.
    pub(super) cut_every_us: u64,
    /// Whether tokens end in the middle of the load.
    pub(super) tokens_end: bool,
    /// For how long the API answers nothing but errors, in the middle of the load.
    pub(super) outage_us: u64,
}

impl Weather {
    pub(super) fn draw(rng: &mut StdRng) -> Self {
        let pick = |rng: &mut StdRng, of: &[u64]| *of.choose(rng).expect("not empty");
        let chance = |rng: &mut StdRng, most: u32| if rng.random_bool(0.5) { 0 } else { rng.random_range(0..=most) };
        Self {
            frame_us: pick(rng, &[MS, 20 * MS, 300 * MS, 2 * S]),
            call_us: pick(rng, &[5 * MS, 100 * MS, 3 * S, 7 * S]),
            commit_us: pick(rng, &[2 * MS, 50 * MS, 4 * S]),
            connect_us: pick(rng, &[5 * MS, 500 * MS, 4 * S]),
            duplicate: chance(rng, 200),
            dropped_push: chance(rng, 300),
            dropped_ack: chance(rng, 200),
            error_answer: chance(rng, 200),
            failed_call: chance(rng, 400),
            refused_connect: chance(rng, 400),
            skipped_id: chance(rng, 200),
            cut_every_us: pick(rng, &[0, 300 * MS, 2 * S, 6 * S]),
            tokens_end: rng.random_bool(0.25),
            outage_us: pick(rng, &[0, 0, 8 * S]),
        }
    }

    pub(super) const fn calm() -> Self {
        Self {
            frame_us: MS,
            call_us: 5 * MS,
            commit_us: 2 * MS,
            connect_us: 5 * MS,
            duplicate: 0,
            dropped_push: 0,
            dropped_ack: 0,
            error_answer: 0,
            failed_call: 0,
            refused_connect: 0,
            skipped_id: 0,
            cut_every_us: 0,
            tokens_end: false,
            outage_us: 0,
        }
    }
}
