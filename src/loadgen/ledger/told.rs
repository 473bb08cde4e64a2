//! What the judgement of presence found, counted and described.

use super::presence::Finding;
use super::{Kind, Ledger, user_name};
use crate::loadgen::stats::add;
use crate::loadgen::world::World;
use crate::protocol::UserId;
use crate::protocol::frames::PresenceState;
use crate::telemetry::LatencyPath;

impl Ledger {
    /// Counts findings. Returns the latency to record, where a change was told.
    pub(in crate::loadgen) fn on_presence(&self, world: &World, findings: Vec<Finding>) -> Option<(LatencyPath, u64)> {
        let mut latency = None;
        for finding in findings {
            match finding {
                Finding::Seen => {
                    add(&self.tallies.presence_expected, 1);
                    add(&self.tallies.presence_seen, 1);
                }
                Finding::Missed(watcher, friend, state) => {
                    add(&self.tallies.presence_expected, 1);
                    self.violation(Kind::PresenceMissed, || {
                        let (watcher, friend) = (user_name(world, watcher), user_name(world, friend));
                        format!("{watcher} was not told in time that {friend} is {}", word(state))
                    });
                }
                Finding::Wrong(watcher, friend, state, silence_us) => self.violation(Kind::PresenceWrong, || {
                    let (watcher, friend) = (user_name(world, watcher), user_name(world, friend));
                    let since = match silence_us {
                        Some(us) => format!("{:.1} s after the last beat", us as f64 / 1e6),
                        None => "who never beat".to_owned(),
                    };
                    format!("{watcher} was told that {friend} is {}, {since}", word(state))
                }),
                Finding::Leaked => {}
                Finding::Took(PresenceState::Online, us) => latency = Some((LatencyPath::PresenceOnline, us)),
                Finding::Took(PresenceState::Offline, us) => latency = Some((LatencyPath::PresenceOffline, us)),
                Finding::Unsure => add(&self.tallies.presence_unsure, 1),
                Finding::Late => add(&self.tallies.presence_late, 1),
            }
        }
        latency
    }

    /// A device of `watcher` was told of a user. Returns the latency to record, where that was a change.
    pub(in crate::loadgen) fn on_presence_notice(
        &self,
        world: &World,
        watcher: u32,
        (friend, state): (UserId, PresenceState),
        now_us: u64,
    ) -> Option<(LatencyPath, u64)> {
        add(&self.tallies.presence_notices, 1);
        if world.user_index(friend) == Some(watcher) {
            self.violation(Kind::PresenceWrong, || {
                format!("{friend} was told that {friend} itself is {}: nobody is a friend of oneself", word(state))
            });
            return None;
        }
        let findings = self.presence.on_notice(watcher, world.user_index(friend), state, now_us);
        if findings.contains(&Finding::Leaked) {
            self.violation(Kind::PresenceLeaked, || {
                format!("{} was told of {friend}, who is no friend", user_name(world, watcher))
            });
        }
        self.on_presence(world, findings)
    }
}

const fn word(state: PresenceState) -> &'static str {
    match state {
        PresenceState::Online => "online",
        PresenceState::Offline => "offline",
    }
}
