//! What is due when, from the scenario and its seed: sends, connects, leaves. No clock, no I/O: whether things are done late or
//! in time, the list is the same.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, IteratorRandom};
use rand::{RngExt, SeedableRng};

use crate::loadgen::behavior::Leave;
use crate::loadgen::scenario::Scenario;
use crate::loadgen::scenario::schedule::Schedule;
use crate::loadgen::world::World;

/// Talkers drawn at random for a message before the next one in order who is online is taken.
const TRIES: usize = 20;

/// Talkers looked at in order after that.
const LOOKS: usize = 4_096;

/// Something that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    /// On the run's clock, in µs.
    pub(super) at_us: u64,
    pub(super) what: Deed,
}

/// What.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    /// A client sends a message.
    Send { client: u32, conversation: u32, bytes: u32 },
    /// The rate asks for a message, and nobody who could send one is online by plan.
    Skip,
    /// A client connects.
    Connect(u32),
    /// A client leaves.
    Leave(u32),
    /// A client is gone without a close.
    Vanish(u32),
}

/// The list of what is due, made as it is read. In order of time.
pub(super) struct Agenda {
    sends: Sends,
    comings: Comings,
    talkers: Talkers,
    ends_us: u64,
}

impl Agenda {
    /// The list of a scenario that begins at `started_us`. `place`: where equal gaps begin, as a share of one (see
    /// [`Schedule::shifted`]).
    pub(super) fn new(scenario: &Scenario, world: &World, started_us: u64, place: f64) -> Self {
        let mut sends = Sends {
            scenario: scenario.clone(),
            place,
            phases_begun: 0,
            ends_us: started_us,
            begins_us: started_us,
            schedule: None,
            next_us: None,
            number: 0,
        };
        sends.advance();
        Self {
            sends,
            comings: Comings::new(scenario, world.clients.len() as u32, started_us),
            talkers: Talkers::of(world),
            ends_us: started_us + scenario.duration().as_micros() as u64,
        }
    }

    /// The next thing that is due; `None` at the end of the load. `may_send`: whether a user may write in a conversation now.
    pub(super) fn next(&mut self, world: &World, may_send: impl Fn(u32, u32) -> bool) -> Option<Due> {
        let (send_us, coming_us) = (self.sends.next_us, self.comings.next_us());
        let is_coming = coming_us.is_some_and(|coming| send_us.is_none_or(|send| coming <= send));
        if is_coming {
            let due = self.comings.next(world, &mut self.talkers.is_online).filter(|due| due.at_us < self.ends_us);
            // What would come after the end has no place before a message.
            return due.or_else(|| self.next_send(world, may_send));
        }
        self.next_send(world, may_send)
    }

    fn next_send(&mut self, world: &World, may_send: impl Fn(u32, u32) -> bool) -> Option<Due> {
        let at_us = self.sends.next_us?;
        // Of each message's own: what one draw depends on shifts none of the others.
        let mut rng = self.sends.rng();
        let what = match self.talkers.choose(world, &mut rng, may_send) {
            Some((client, conversation)) => {
                let sizes = self.sends.scenario.population.message_bytes;
                Deed::Send { client, conversation, bytes: rng.random_range(sizes.min..=sizes.max) }
            }
            None => Deed::Skip,
        };
        self.sends.advance();
        Some(Due { at_us, what })
    }
}

/// When messages are due, over all phases.
struct Sends {
    scenario: Scenario,
    place: f64,
    phases_begun: usize,
    /// When the last of these begins and ends.
    begins_us: u64,
    ends_us: u64,
    schedule: Option<Schedule>,
    /// When the next message is due.
    next_us: Option<u64>,
    /// Messages so far.
    number: u64,
}

impl Sends {
    fn advance(&mut self) {
        self.number += 1;
        loop {
            if let Some(due_us) = self.schedule.as_mut().and_then(Iterator::next) {
                self.next_us = Some(self.begins_us + due_us);
                return;
            }
            let Some(phase) = self.scenario.phases.get(self.phases_begun) else {
                self.next_us = None;
                return;
            };
            self.phases_begun += 1;
            self.begins_us = self.ends_us;
            self.ends_us += phase.duration.as_micros() as u64;
            let seed = self.scenario.seed.wrapping_add(self.phases_begun as u64);
            self.schedule = Some(Schedule::new(phase, seed).shifted(self.place));
        }
    }

    fn rng(&self) -> StdRng {
        StdRng::seed_from_u64(self.scenario.seed ^ 0x7a1c ^ self.number << 16)
    }
}

/// Who may talk: clients that have a conversation of the kind that their user talks in.
struct Talkers {
    clients: Vec<u32>,
    /// By client. Who is away by plan does not write. (Who lost the connection does, and is late for it.)
    is_online: Online,
}

/// Whether a user talks in a conversation.
fn talks_in(world: &World, user: u32, conversation: u32) -> bool {
    let kind = world.conversations[conversation as usize].kind;
    world.users[user as usize].behavior.spec().talks.talks_in(kind)
}

impl Talkers {
    fn of(world: &World) -> Self {
        let talks = |user: &u32| world.conversations_of(*user).iter().any(|c| talks_in(world, *user, *c));
        let users = (0..world.users.len() as u32).filter(talks);
        let clients = users.flat_map(|user| world.clients_of(user)).collect();
        Self { clients, is_online: Online::none_of(world.clients.len()) }
    }

    /// A client and a conversation that it may write in.
    fn choose(&self, world: &World, rng: &mut StdRng, may_send: impl Fn(u32, u32) -> bool) -> Option<(u32, u32)> {
        let conversation_for = |client: u32, rng: &mut StdRng| {
            if !self.is_online.get(client) {
                return None;
            }
            let user = world.clients[client as usize].user;
            // Who was removed knows it, and does not write there.
            let may_write = |c: &&u32| talks_in(world, user, **c) && may_send(**c, user);
            let conversation = world.conversations_of(user).iter().filter(may_write).choose(rng)?;
            Some((client, *conversation))
        };
        if let Some(chosen) = (0..TRIES).find_map(|_| conversation_for(*self.clients.choose(rng)?, rng)) {
            return Some(chosen);
        }
        let from = (0..self.clients.len()).choose(rng)?;
        let in_order = self.clients.iter().cycle().skip(from).take(self.clients.len().min(LOOKS));
        in_order.copied().find_map(|client| conversation_for(client, rng))
    }
}

/// A bit for each client.
struct Online(Vec<u64>);

impl Online {
    fn none_of(clients: usize) -> Self {
        Self(vec![0; clients.div_ceil(64)])
    }

    fn get(&self, client: u32) -> bool {
        self.0[client as usize / 64] & (1 << (client % 64)) != 0
    }

    fn set(&mut self, client: u32, is_online: bool) {
        let (word, bit) = (&mut self.0[client as usize / 64], 1 << (client % 64));
        if is_online { *word |= bit } else { *word &= !bit }
    }
}

/// Everybody connects over `connect_over`; some go and come again.
struct Comings {
    scenario: Scenario,
    started_us: u64,
    clients: u32,
    /// Clients that have connected for the first time.
    connected: u32,
    /// (when, client, whether to be online) of those who go and come.
    again: BinaryHeap<Reverse<(u64, u32, bool)>>,
    rng: StdRng,
}

impl Comings {
    fn new(scenario: &Scenario, clients: u32, started_us: u64) -> Self {
        let rng = StdRng::seed_from_u64(scenario.seed ^ 0xf1a9);
        Self { scenario: scenario.clone(), started_us, clients, connected: 0, again: BinaryHeap::new(), rng }
    }

    /// When the next client connects for the first time.
    fn first_us(&self) -> Option<u64> {
        let over_us = self.scenario.connect_over.as_micros() as u64;
        let at_us = || self.started_us + over_us * u64::from(self.connected) / u64::from(self.clients);
        (self.connected < self.clients).then(at_us)
    }

    fn next_us(&self) -> Option<u64> {
        let again = self.again.peek().map(|Reverse((at_us, _, _))| *at_us);
        [self.first_us(), again].into_iter().flatten().min()
    }

    fn next(&mut self, world: &World, is_online: &mut Online) -> Option<Due> {
        let first = self.first_us().map(|at_us| (at_us, self.connected, true));
        let again = self.again.peek().map(|Reverse(again)| *again);
        let next = [first, again].into_iter().flatten().min()?;
        if first == Some(next) {
            self.connected += 1;
        } else {
            self.again.pop();
        }
        let (at_us, client, online) = next;
        is_online.set(client, online);
        let behavior = world.users[world.clients[client as usize].user as usize].behavior;
        let attendance = behavior.spec().attendance;
        if let Some(stay) = attendance.stay(online, &self.scenario.flapper) {
            let next_us = at_us + (stay.as_micros() as f64 * self.rng.random_range(0.7..1.3)) as u64;
            self.again.push(Reverse((next_us, client, !online)));
        }
        let what = match (online, attendance.leave()) {
            (true, Leave::Close | Leave::Vanish) => Deed::Connect(client),
            (false, Leave::Close) => Deed::Leave(client),
            (false, Leave::Vanish) => Deed::Vanish(client),
        };
        Some(Due { at_us, what })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn scenario(seed: u64, behaviors: &str) -> Scenario {
        let text = format!(
            "{{name: t, seed: {seed}, population: {{users: 40, direct_per_user: 2}}, behaviors: {{{behaviors}}}, \
             connect_over: 1s, flapper: {{online: 2s, away: 2s}}, \
             phases: [{{phase: warm-up, duration: 2s, rate: 50}}, {{phase: steady, duration: 6s, rate: 100}}]}}"
        );
        Scenario::parse(&text, "t").expect("valid")
    }

    fn list(scenario: &Scenario, may_send: impl Fn(u32, u32) -> bool) -> Vec<Due> {
        let world = World::draw(scenario, 1);
        let mut agenda = Agenda::new(scenario, &world, 1_000, 0.0);
        std::iter::from_fn(|| agenda.next(&world, &may_send)).collect()
    }

    #[test]
    fn a_seed_is_one_list_and_another_seed_another() {
        let of = |seed| list(&scenario(seed, "one-to-one: 1, flapper: 1"), |_, _| true);
        let first = of(1);
        assert!(first.len() > 500 && first.windows(2).all(|w| w[0].at_us <= w[1].at_us), "{}", first.len());
        assert!(first.iter().all(|due| (1_000..8_001_000).contains(&due.at_us)));
        assert_eq!(first, of(1));
        assert_ne!(first, of(2));
    }

    #[test]
    fn who_is_away_by_plan_does_not_write() {
        let mut online = HashSet::new();
        let mut sent = 0;
        for due in list(&scenario(3, "flapper: 1"), |_, _| true) {
            match due.what {
                Deed::Connect(client) => assert!(online.insert(client)),
                Deed::Leave(client) => assert!(online.remove(&client)),
                Deed::Send { client, .. } => {
                    assert!(online.contains(&client), "{due:?}");
                    sent += 1;
                }
                Deed::Skip => assert!(online.is_empty(), "{due:?}"),
                Deed::Vanish(_) => unreachable!("nobody's connection is half open"),
            }
        }
        assert!(sent > 500, "{sent}");
    }

    #[test]
    fn what_one_may_not_send_another_sends_and_the_rest_is_skipped() {
        let scenario = scenario(1, "one-to-one: 1");
        let sends = |due: &&Due| matches!(due.what, Deed::Send { .. });
        let all = list(&scenario, |_, _| true);
        let some = list(&scenario, |conversation, _| conversation % 2 == 0);
        assert_eq!(all.iter().filter(sends).count(), some.iter().filter(sends).count());
        assert_eq!(all.len(), some.len());
        let none = list(&scenario, |_, _| false);
        assert_eq!(none.len(), all.len());
        assert!(!none.iter().any(|due| sends(&due)) && none.iter().any(|due| due.what == Deed::Skip));
    }

    #[test]
    fn everybody_connects_evenly_over_the_time_given() {
        let due = list(&scenario(1, "one-to-one: 1"), |_, _| true);
        let connects: Vec<u64> =
            due.iter().filter(|due| matches!(due.what, Deed::Connect(_))).map(|due| due.at_us).collect();
        assert_eq!(connects.len(), 40);
        assert!(connects.windows(2).all(|w| w[1] - w[0] == 25_000), "{connects:?}");
    }
}
