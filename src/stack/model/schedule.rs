//! What is done to the servers, and when: drawn from the seed alone.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

/// Users who do something; the first owns the group and the channel, and only looks on.
pub(super) const USERS: usize = 5;

/// Devices of each of them.
pub(super) const DEVICES_PER_USER: usize = 2;

/// Conversations: a group, a channel, and direct ones of these pairs.
pub(super) const GROUP: usize = 0;
pub(super) const CHANNEL: usize = 1;
pub(super) const PAIRS: [[usize; 2]; 3] = [[1, 2], [3, 4], [1, 3]];

/// Something that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A new token for a device, for so many seconds.
    SignIn {
        device: usize,
        lives_s: u64,
    },
    /// So many connects of one device at once; with the token that it has, however good, or with a good one.
    Connect {
        device: usize,
        times: usize,
        any_token: bool,
    },
    LogOut {
        device: usize,
    },
    /// The newest socket breaks.
    Cut {
        device: usize,
    },
    /// The newest socket says goodbye.
    Goodbye {
        device: usize,
    },
    Send {
        device: usize,
        conversation: usize,
        uuid: Uuid,
    },
    /// A message that was sent is sent once more.
    Again {
        device: usize,
        uuid: Uuid,
    },
    Remove {
        user: usize,
        conversation: usize,
    },
    /// A member removes itself.
    Leave {
        user: usize,
        conversation: usize,
    },
    Add {
        user: usize,
        conversation: usize,
    },
    Subscribe {
        device: usize,
    },
    Unsubscribe {
        device: usize,
    },
    Drain {
        server: usize,
    },
    Kill {
        server: usize,
    },
    Start {
        server: usize,
    },
}

/// A seed's schedule.
pub(super) struct Schedule {
    pub(super) servers: usize,
    /// Each with the milliseconds to wait before it.
    pub(super) steps: Vec<(u64, Step)>,
}

/// Whose a device is.
pub(super) const fn user_of(device: usize) -> usize {
    device / DEVICES_PER_USER
}

/// The conversations that a user is in, or once was.
fn conversations_of(user: usize) -> Vec<usize> {
    let pairs = PAIRS.iter().enumerate().filter(|(_, pair)| pair.contains(&user)).map(|(n, _)| n + 2);
    [GROUP, CHANNEL].into_iter().chain(pairs).collect()
}

impl Schedule {
    pub(super) fn draw(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let servers = if seed.is_multiple_of(2) { 1 } else { 3 };
        let count = rng.random_range(20..60);
        let longest_ms = *[5, 60, 400].choose(&mut rng).expect("not empty");
        let mut steps = Vec::new();
        for device in DEVICES_PER_USER..USERS * DEVICES_PER_USER {
            if rng.random_bool(0.7) {
                steps.push((1, Step::Connect { device, times: 1, any_token: false }));
            }
        }
        let mut sent = Vec::new();
        for _ in 0..count {
            // Several at once, now and then.
            let wait_ms = if rng.random_bool(0.3) { 0 } else { rng.random_range(0..=longest_ms) };
            let step = Self::step(&mut rng, servers, &mut sent);
            steps.push((wait_ms, step));
            if let Some(follow) = follow(&mut rng, step) {
                steps.push((rng.random_range(0..=longest_ms / 2), follow));
            }
        }
        Self { servers, steps }
    }

    fn step(rng: &mut StdRng, servers: usize, sent: &mut Vec<(usize, Uuid)>) -> Step {
        let user = rng.random_range(1..USERS);
        let device = user * DEVICES_PER_USER + rng.random_range(0..DEVICES_PER_USER);
        let server = rng.random_range(0..servers);
        let conversation = if rng.random_bool(0.5) { GROUP } else { CHANNEL };
        match rng.random_range(0..100) {
            0..5 => Step::SignIn { device, lives_s: *[2, 4, 3_600].choose(rng).expect("not empty") },
            5..22 => Step::Connect { device, times: rng.random_range(1..4), any_token: rng.random_bool(0.3) },
            22..32 => Step::LogOut { device },
            32..38 => Step::Cut { device },
            38..41 => Step::Goodbye { device },
            41..58 => {
                let uuid = Uuid::from_u128(rng.random());
                sent.push((user, uuid));
                let conversation = *conversations_of(user).choose(rng).expect("not empty");
                Step::Send { device, conversation, uuid }
            }
            58..63 => match sent.choose(rng) {
                Some((user, uuid)) => {
                    let device = user * DEVICES_PER_USER + rng.random_range(0..DEVICES_PER_USER);
                    Step::Again { device, uuid: *uuid }
                }
                None => Step::Subscribe { device },
            },
            63..69 => Step::Remove { user, conversation },
            69..71 => Step::Leave { user, conversation },
            71..77 => Step::Add { user, conversation },
            77..90 => Step::Subscribe { device },
            90..93 => Step::Unsubscribe { device },
            93..95 => Step::Drain { server },
            95..97 => Step::Kill { server },
            _ => Step::Start { server },
        }
    }
}

/// What often comes right behind a step: the other half of a race.
fn follow(rng: &mut StdRng, step: Step) -> Option<Step> {
    if rng.random_bool(0.5) {
        return None;
    }
    Some(match step {
        Step::Connect { device, .. } if rng.random_bool(0.3) => Step::Subscribe { device },
        Step::Connect { device, .. } => Step::LogOut { device },
        Step::Subscribe { device } if rng.random_bool(0.3) => {
            Step::Remove { user: user_of(device), conversation: CHANNEL }
        }
        Step::Subscribe { device } if rng.random_bool(0.5) => Step::Goodbye { device },
        Step::Subscribe { device } => Step::Cut { device },
        Step::Remove { user, .. } => {
            Step::Subscribe { device: user * DEVICES_PER_USER + rng.random_range(0..DEVICES_PER_USER) }
        }
        Step::Send { device, .. } if rng.random_bool(0.5) => {
            Step::Remove { user: user_of(device), conversation: GROUP }
        }
        Step::Send { device, uuid, .. } => Step::Again { device: device ^ 1, uuid },
        Step::Drain { server } | Step::Kill { server } => Step::Start { server },
        Step::LogOut { device } => Step::Connect { device, times: 2, any_token: true },
        _ => return None,
    })
}
