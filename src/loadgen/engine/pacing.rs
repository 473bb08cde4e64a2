//! What is due when. Every task here works from a plan of times, so that a late generator is late by a known amount and
//! never slows the load down to what the server can bear.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, IteratorRandom};
use rand::{RngExt, SeedableRng};
use serde_json::json;

use super::RunOptions;
use super::watch::Watcher;
use crate::loadgen::client::Command;
use crate::loadgen::control::StackControl;
use crate::loadgen::run::{FaultTrack, Shared, history_seconds};
use crate::loadgen::scenario::schedule::Schedule;
use crate::loadgen::scenario::{Behavior, Churn, PhaseKind};
use crate::loadgen::stats::add;
use crate::protocol::api::ConversationKind;
use crate::runtime::{Tasks, clock};

/// Tries of one membership change.
const CHANGE_TRIES: usize = 20;

/// Longest that membership changes under way at the end of the load may take.
const CHANGES_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest that faults under way at the end of the load may take.
const FAULTS_TIMEOUT: Duration = Duration::from_mins(2);

/// Runs all phases; returns whether the run was interrupted.
pub(super) async fn run_phases(shared: &Arc<Shared>, options: &RunOptions, watcher: &Watcher, started_us: u64) -> bool {
    let beside = Tasks::new();
    let changes = Tasks::new();
    let faults = Tasks::new();
    beside.spawn_until_stopped("load.comings", comings_and_goings(Arc::clone(shared), started_us));
    if let Some(churn) = shared.scenario.churn {
        beside.spawn_until_stopped("load.churn", change_members(Arc::clone(shared), churn, changes.clone()));
    }
    if let Some(control) = &options.control {
        let faults = do_faults(Arc::clone(shared), Arc::clone(control), started_us, faults.clone());
        beside.spawn_until_stopped("load.faults", faults);
    }
    watcher.begin(started_us);
    let talkers = Talkers::of(shared);
    let mut begins_us = started_us;
    let mut was_interrupted = false;
    for (number, phase) in shared.scenario.phases.iter().enumerate() {
        watcher.phase(phase.phase.name());
        shared.recorder.measure(phase.phase != PhaseKind::WarmUp);
        let place = options.part.as_ref().map_or(0.0, |part| f64::from(part.index) / f64::from(part.of));
        let schedule = Schedule::new(phase, shared.scenario.seed.wrapping_add(number as u64 + 1)).shifted(place);
        let ends_us = begins_us + phase.duration.as_micros() as u64;
        let mut rng = StdRng::seed_from_u64(shared.scenario.seed ^ 0x7a1c ^ number as u64);
        let send = async {
            for due in schedule {
                let due_us = begins_us + due;
                clock::sleep_until_us(due_us).await;
                talkers.send(shared, &mut rng, due_us);
            }
            clock::sleep_until_us(ends_us).await;
        };
        tokio::select! {
            () = send => {}
            () = options.interrupt.stopped() => {
                was_interrupted = true;
                break;
            }
        }
        begins_us = ends_us;
    }
    beside.stop();
    beside.join(Duration::from_secs(10)).await;
    // A membership that changes while devices sync for the last time could not be judged.
    changes.join(CHANGES_TIMEOUT).await;
    // Nor could what a fault that goes on takes away.
    faults.join(FAULTS_TIMEOUT).await;
    was_interrupted
}

/// Who may talk: clients that have a conversation of the kind that their user talks in.
struct Talkers {
    clients: Vec<u32>,
}

/// Whether a user talks in a conversation.
fn talks_in(shared: &Shared, user: u32, conversation: u32) -> bool {
    let kind = shared.world.conversations[conversation as usize].kind;
    match shared.world.users[user as usize].behavior {
        Behavior::OneToOne => kind == ConversationKind::Direct,
        Behavior::GroupTalker => kind == ConversationKind::Group,
        other => other.talks(),
    }
}

impl Talkers {
    fn of(shared: &Shared) -> Self {
        let talks = |user: &u32| shared.world.conversations_of(*user).iter().any(|c| talks_in(shared, *user, *c));
        let users = (0..shared.world.users.len() as u32).filter(talks);
        Self { clients: users.flat_map(|user| shared.world.clients_of(user)).collect() }
    }

    /// Somebody who is online by plan: who is away does not write. (Who lost the connection does, and is late for it.)
    fn choose(&self, shared: &Shared, rng: &mut StdRng) -> Option<u32> {
        const TRIES: usize = 20;
        (0..TRIES).find_map(|_| {
            let chosen = self.clients.choose(rng)?;
            shared.mailboxes[*chosen as usize].is_online_by_plan().then_some(*chosen)
        })
    }

    /// Has somebody send a message that is due now.
    fn send(&self, shared: &Shared, rng: &mut StdRng, due_us: u64) {
        let Some(client) = self.choose(shared, rng) else { return };
        let user = shared.world.clients[client as usize].user;
        let conversations = shared.world.conversations_of(user).iter().filter(|c| talks_in(shared, user, **c));
        let Some(conversation) = conversations.choose(rng).copied() else { return };
        let sizes = shared.scenario.population.message_bytes;
        let bytes = rng.random_range(sizes.min..=sizes.max);
        // Who was removed knows it, and does not write there.
        if shared.ledger.is_member(&shared.world, conversation, user) {
            add(&shared.stats.intended, 1);
            shared.mailboxes[client as usize].put(Command::Send { conversation, intended_us: due_us, bytes });
        }
    }
}

/// Connects everybody over `connect_over`, then has flappers and the presence-only go and come.
async fn comings_and_goings(shared: Arc<Shared>, started_us: u64) {
    let mut rng = StdRng::seed_from_u64(shared.scenario.seed ^ 0xf1a9);
    let total = shared.mailboxes.len() as u64;
    let over_us = shared.scenario.connect_over.as_micros() as u64;
    // (when, client, whether to be online), the earliest last.
    let mut plan: Vec<(u64, u32, bool)> =
        (0..total).map(|n| (started_us + over_us * n / total, n as u32, true)).collect();
    plan.sort_unstable_by(|a, b| b.cmp(a));
    while let Some((due_us, client, online)) = plan.pop() {
        clock::sleep_until_us(due_us).await;
        shared.recorder.late_by(clock::now_us().saturating_sub(due_us));
        let user = shared.world.clients[client as usize].user;
        let behavior = shared.world.users[user as usize].behavior;
        let command = match (online, behavior) {
            (true, _) => Command::Online(due_us),
            (false, Behavior::HalfOpen) => Command::Vanish,
            (false, _) => Command::Offline,
        };
        shared.mailboxes[client as usize].plan(online);
        shared.mailboxes[client as usize].put(command);
        if online {
            add(&shared.stats.wanted, 1);
        } else {
            crate::loadgen::stats::sub(&shared.stats.wanted, 1);
        }
        let flapper = shared.scenario.flapper;
        let stay = match (behavior, online) {
            (Behavior::Flapper | Behavior::PresenceOnly | Behavior::HalfOpen, true) => flapper.online,
            (Behavior::Flapper | Behavior::HalfOpen, false) => flapper.away,
            (Behavior::PresenceOnly, false) => flapper.presence_away,
            _ => continue,
        };
        let next_us = due_us + (stay.as_micros() as f64 * rng.random_range(0.7..1.3)) as u64;
        let at = plan.partition_point(|entry| entry.0 > next_us);
        plan.insert(at, (next_us, client, !online));
    }
}

/// Removes members of groups and adds them again, one after the other.
async fn change_members(shared: Arc<Shared>, churn: Churn, changes: Tasks) {
    let mut rng = StdRng::seed_from_u64(shared.scenario.seed ^ 0xc4u64);
    let groups: Vec<u32> = (0_u32..)
        .zip(&shared.world.conversations)
        .filter(|(n, c)| c.kind == ConversationKind::Group && shared.world.members(*n).len() > 2)
        .map(|(n, _)| n)
        .collect();
    let mut due_us = clock::now_us();
    loop {
        due_us += churn.every.as_micros() as u64;
        clock::sleep_until_us(due_us).await;
        let Some(group) = groups.choose(&mut rng).copied() else { return };
        let spec = &shared.world.conversations[group as usize];
        let Some(member) = shared.world.members(group).choose(&mut rng).copied().filter(|m| *m != spec.owner) else {
            continue;
        };
        if shared.ledger.is_member(&shared.world, group, member) {
            let shared = Arc::clone(&shared);
            changes.spawn("load.change_member", async move { change_member(&shared, group, member, churn).await });
        }
    }
}

/// Removes a member and adds the member again a while later.
async fn change_member(shared: &Shared, group: u32, member: u32, churn: Churn) {
    let spec = &shared.world.conversations[group as usize];
    let (api, user) = (&shared.api, shared.world.users[member as usize].id);
    let owner = shared.world.first_client(spec.owner);
    for _ in 0..CHANGE_TRIES {
        let began_us = clock::now_us();
        if shared
            .world
            .authorized(owner, api, |token| async move { api.remove_member(&token, spec.id, user).await })
            .await
            .is_err()
        {
            shared.stats.error("remove_member");
            tokio::time::sleep(Duration::from_millis(500)).await;
            continue;
        }
        shared.ledger.left(group, member, clock::now_us());
        note_change(shared, "leave", group, member, began_us);
        break;
    }
    tokio::time::sleep(churn.back_after).await;
    if shared.ledger.is_member(&shared.world, group, member) {
        return;
    }
    for _ in 0..CHANGE_TRIES {
        let began_us = clock::now_us();
        shared.ledger.joins(group, member, began_us);
        let added = shared
            .world
            .authorized(owner, api, |token| async move { api.add_members(&token, spec.id, vec![user]).await })
            .await;
        note_change(shared, "join", group, member, began_us);
        if added.is_ok() {
            for client in shared.world.clients_of(member) {
                shared.mailboxes[client as usize].put(Command::Joined(group));
            }
            return;
        }
        shared.stats.error("add_member");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn note_change(shared: &Shared, event: &'static str, group: u32, member: u32, began_us: u64) {
    if let Some(history) = &shared.history {
        let (conversation, user) =
            (shared.world.conversations[group as usize].id, shared.world.users[member as usize].id);
        let fields = json!({"conv": conversation, "user": user, "te": clock::boot_seconds()});
        history.write_at(event, history_seconds(began_us), fields);
    }
}

/// Does the scenario's faults at their times; one that lasts holds up none behind it. Those of the same time are one in what is
/// counted: nobody can tell whose consequence something was.
async fn do_faults(shared: Arc<Shared>, control: Arc<dyn StackControl>, started_us: u64, under_way: Tasks) {
    let mut faults = shared.scenario.faults.clone();
    faults.sort_by_key(|fault| fault.at);
    let mut last_at = None;
    for fault in faults {
        clock::sleep_until_us(started_us + fault.at.as_micros() as u64).await;
        let at_us = clock::now_us();
        let index = {
            let mut tracks = shared.faults.lock().expect("no panic while held");
            let what = fault.action.to_string();
            if let Some(track) = tracks.last_mut().filter(|_| last_at == Some(fault.at)) {
                track.what = format!("{} + {what}", track.what);
            } else {
                let at_s = (at_us - started_us) as f64 / 1e6;
                tracks.push(FaultTrack { what, at_us, at_s, ..FaultTrack::default() });
            }
            tracks.len() - 1
        };
        last_at = Some(fault.at);
        let (shared, control) = (Arc::clone(&shared), Arc::clone(&control));
        under_way.spawn("load.fault", async move {
            shared.event(format!("fault: {}", fault.action));
            let done = control.do_fault(&fault.action).await;
            let what = fault.action.to_string();
            shared.note("fault", || json!({"what": what, "te": clock::boot_seconds()}));
            if !fault.action.lasts().is_zero() {
                shared.event(format!("over: {what}"));
            }
            let mut tracks = shared.faults.lock().expect("no panic while held");
            tracks[index].ended_us = clock::now_us();
            if let Err(error) = done {
                tracks[index].error.get_or_insert_with(|| error.clone());
                drop(tracks);
                shared.event(format!("fault failed: {error}"));
            }
        });
    }
}
