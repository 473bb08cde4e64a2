//! Does what is due when it is. Everything here works from a list of times, so that a late generator is late by a known amount
//! and never slows the load down to what the server can bear.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::json;
use tokio::sync::Notify;

use super::RunOptions;
use super::agenda::{Agenda, Deed, Due};
use super::audit::{Silence, probe_removed};
use super::calls::{count_failure, in_time};
use super::watch::Watcher;
use crate::loadgen::api::Error;
use crate::loadgen::client::Command;
use crate::loadgen::control::StackControl;
use crate::loadgen::fault_track::FaultTrack;
use crate::loadgen::recorder::LagOf;
use crate::loadgen::retry::Retry;
use crate::loadgen::run::{Shared, history_seconds};
use crate::loadgen::scenario::Churn;
use crate::loadgen::stats::{add, sub};
use crate::protocol::api::ConversationKind;
use crate::runtime::{PacingThread, Tasks, clock};
use crate::telemetry::RunPhase;

/// Longest that membership changes under way at the end of the load may take.
const CHANGES_TIMEOUT: Duration = Duration::from_secs(30);

/// Whoever is to be back so soon after the load is waited for.
const BACK_WITHIN_US: u64 = 10_000_000;

/// Longest that faults under way at the end of the load may take.
const FAULTS_TIMEOUT: Duration = Duration::from_mins(2);

/// Does what is due at its time, in a thread of its own, which also rings the devices' alarms.
pub(super) struct Pacer {
    paced: Arc<Paced>,
    /// Ends when it is dropped.
    _thread: PacingThread,
}

/// What the thread does. Shared with whoever ends it.
#[derive(Default)]
struct Paced {
    /// `None` before the load and when it is over.
    agenda: Mutex<Option<(Agenda, Option<Due>)>>,
    /// Notified when it is.
    over: Notify,
}

impl Pacer {
    /// Starts the thread. Nothing but alarms is due before [`Pacer::begin`].
    pub(super) fn start(shared: &Arc<Shared>) -> std::io::Result<Self> {
        let paced = Arc::new(Paced::default());
        let (own, shared) = (Arc::clone(&paced), Arc::clone(shared));
        let bell = Arc::clone(shared.alarms.bell());
        let thread = PacingThread::start("gen-pacing", bell, move |now_us| {
            let next_us = own.do_due(&shared, now_us);
            shared.alarms.ring(now_us, next_us, |client| shared.mailboxes[client as usize].wake())
        })?;
        Ok(Self { paced, _thread: thread })
    }

    /// From now on what a list says is due.
    fn begin(&self, shared: &Shared, mut agenda: Agenda) {
        let first = agenda.next(&shared.world, |_, _| true);
        *self.paced.agenda.lock().expect("no panic while held") = Some((agenda, first));
        shared.alarms.bell().ring();
    }

    /// From now on nothing is due.
    fn end(&self) {
        *self.paced.agenda.lock().expect("no panic while held") = None;
    }

    /// Waits until everything of the list is done.
    async fn is_over(&self) {
        while self.paced.agenda.lock().expect("no panic while held").is_some() {
            self.paced.over.notified().await;
        }
    }
}

impl Paced {
    /// Does what is due at `now_us`; returns when the next is.
    fn do_due(&self, shared: &Shared, now_us: u64) -> Option<u64> {
        let mut agenda = self.agenda.lock().expect("no panic while held");
        let (list, next) = agenda.as_mut()?;
        let head_start_us = shared.handover.head_start_us();
        // Devices wait for what is left before a message is due; everything else is done in its time.
        let begins_us = |due: &Due| match due.what {
            Deed::Send { .. } => due.at_us.saturating_sub(head_start_us),
            _ => due.at_us,
        };
        while let Some(due) = next.take_if(|due| begins_us(due) <= now_us) {
            act(shared, due);
            // Drawn before it is waited for.
            *next = list
                .next(&shared.world, |conversation, user| shared.ledger.is_member(&shared.world, conversation, user));
        }
        let next_us = next.as_ref().map(begins_us);
        if next_us.is_none() {
            *agenda = None;
            self.over.notify_one();
        }
        next_us
    }
}

/// Hands out one thing that is due.
fn act(shared: &Shared, due: Due) {
    let at_us = due.at_us;
    let come_or_go = |client: u32, online: bool, command: Command| {
        if online {
            add(&shared.stats.wanted, 1);
        } else {
            // What has no time of its own is late by what the thread is.
            shared.recorder.late_by(LagOf::Other, at_us, clock::now_us());
            sub(&shared.stats.wanted, 1);
        }
        shared.mailboxes[client as usize].put(command);
    };
    match due.what {
        Deed::Connect(client) => come_or_go(client, true, Command::Online(at_us)),
        Deed::Leave(client) => come_or_go(client, false, Command::Offline),
        Deed::Vanish(client) => come_or_go(client, false, Command::Vanish),
        Deed::Skip => add(&shared.stats.scheduled, 1),
        Deed::Send { client, conversation, bytes } => {
            add(&shared.stats.scheduled, 1);
            add(&shared.stats.intended, 1);
            shared.recorder.due(at_us);
            shared.mailboxes[client as usize].put(Command::Send { conversation, intended_us: at_us, bytes });
        }
    }
}

/// Runs all phases; returns whether the run was interrupted.
pub(super) async fn run_phases(
    shared: &Arc<Shared>,
    pacer: &Pacer,
    options: &RunOptions,
    watcher: &Watcher,
    started_us: u64,
) -> bool {
    let beside = Tasks::new();
    let changes = Tasks::new();
    let faults = Tasks::new();
    if let Some(churn) = shared.scenario.churn {
        let changing = change_members(Arc::clone(shared), churn, started_us, changes.clone(), beside.clone());
        beside.spawn_until_stopped("load.churn", changing);
    }
    if let Some(control) = &options.control {
        let faults = do_faults(Arc::clone(shared), Arc::clone(control), started_us, faults.clone());
        beside.spawn_until_stopped("load.faults", faults);
    }
    watcher.begin(started_us);
    let place = options.part.as_ref().map_or(0.0, |part| f64::from(part.index) / f64::from(part.of));
    pacer.begin(shared, Agenda::new(&shared.scenario, &shared.world, started_us, place));
    let mut ends_us = started_us;
    let mut was_interrupted = false;
    for phase in &shared.scenario.phases {
        watcher.phase(RunPhase::Load(phase.phase));
        ends_us += phase.duration.as_micros() as u64;
        tokio::select! {
            () = shared.alarms.sleep_until_us(ends_us) => {}
            () = options.interrupt.stopped() => {
                was_interrupted = true;
                break;
            }
        }
    }
    if was_interrupted {
        pacer.end();
    } else {
        pacer.is_over().await;
    }
    beside.stop();
    beside.join(Duration::from_secs(10)).await;
    // A membership that changes while devices sync for the last time could not be judged. What is still under way then never
    // ends: nobody can say whether the user is a member. Who interrupts a run does not wait for it.
    if !was_interrupted {
        let left = changes.join(CHANGES_TIMEOUT).await;
        add(&shared.stats.changes_failed, left as u64);
    }
    changes.stop();
    changes.join(Duration::from_secs(1)).await;
    // Nor could what a fault that goes on takes away.
    faults.join(FAULTS_TIMEOUT).await;
    was_interrupted
}

/// Waits for what is due at a time and is done by a task; counts how late it is.
async fn wait_for(shared: &Shared, due_us: u64) {
    shared.alarms.sleep_until_us(due_us).await;
    shared.recorder.late_by(LagOf::Other, due_us, clock::now_us());
}

/// Removes members of groups and adds them again, one after the other.
async fn change_members(shared: Arc<Shared>, churn: Churn, started_us: u64, changes: Tasks, load: Tasks) {
    let mut rng = StdRng::seed_from_u64(shared.scenario.seed ^ 0xc4u64);
    let groups: Vec<u32> = (0_u32..)
        .zip(&shared.world.conversations)
        .filter(|(n, c)| c.kind == ConversationKind::Group && shared.world.members(*n).len() > 2)
        .map(|(n, _)| n)
        .collect();
    let mut due_us = started_us;
    loop {
        due_us += churn.every.as_micros() as u64;
        wait_for(&shared, due_us).await;
        let Some(group) = groups.choose(&mut rng).copied() else { return };
        let spec = &shared.world.conversations[group as usize];
        let Some(member) = shared.world.members(group).choose(&mut rng).copied().filter(|m| *m != spec.owner) else {
            continue;
        };
        if shared.ledger.is_member(&shared.world, group, member) {
            let shared = Arc::clone(&shared);
            let load = load.clone();
            let change = async move { change_member(&shared, group, member, churn, &load).await };
            changes.spawn_until_stopped("load.change_member", change);
        }
    }
}

/// Removes a member and adds the member again a while later.
async fn change_member(shared: &Shared, group: u32, member: u32, churn: Churn, load: &Tasks) {
    let spec = &shared.world.conversations[group as usize];
    let (api, user) = (&shared.api, shared.world.users[member as usize].id);
    let owner = shared.world.first_client(spec.owner);
    let mut retry = Retry::new(shared.scenario.seed ^ (u64::from(group) << 32 | u64::from(member)));
    loop {
        let began_us = clock::now_us();
        shared.ledger.leaving(&shared.world, group, member, began_us);
        // What was on its way to the member need not be pushed any more.
        let cut = |client| shared.ledger.unpushed.cut_conversation(client, group, began_us);
        shared.excuse_pushes(shared.world.clients_of(member).map(cut).sum());
        let removed =
            shared.world.authorized(owner, api, |token| async move { api.remove_member(&token, spec.id, user).await });
        match in_time(removed).await {
            Ok(()) => {
                shared.ledger.left(&shared.world, group, member, clock::now_us());
                add(&shared.stats.removals, 1);
                note_change(shared, "leave", group, member, began_us);
                break;
            }
            Err(error) => {
                if !wait_for_retry(shared, "remove_member", &mut retry, error).await {
                    return;
                }
            }
        }
    }
    let back_us = clock::now_us() + churn.back_after.as_micros() as u64;
    let removed_us = clock::now_us();
    // Who is away when the load ends is looked at in the audit.
    let was_answered = probe_removed(shared, (group, member), &Silence::default(), load.stopped()).await;
    if !was_answered && !shared.ledger.presence.may_have_lost_push(removed_us, clock::now_us()) {
        add(&shared.stats.unprobed, 1);
    }
    try_to_send(shared, group, member);
    // Where the API took longer than that, it is not this machine that is late.
    if clock::now_us() < back_us {
        tokio::select! {
            () = wait_for(shared, back_us) => {}
            () = load.stopped() => {
                // Who is away at the end stays away, unless that is for a moment.
                if back_us > clock::now_us() + BACK_WITHIN_US {
                    return;
                }
                wait_for(shared, back_us).await;
            }
        }
    }
    retry.reset();
    loop {
        let began_us = clock::now_us();
        shared.ledger.joining(&shared.world, group, member, began_us);
        let added = shared
            .world
            .authorized(owner, api, |token| async move { api.add_members(&token, spec.id, vec![user]).await });
        let added = in_time(added).await;
        note_change(shared, "join", group, member, began_us);
        match added {
            Ok(_) => break,
            Err(error) => {
                if !wait_for_retry(shared, "add_member", &mut retry, error).await {
                    return;
                }
            }
        }
    }
    shared.ledger.joined(&shared.world, group, member, clock::now_us());
    add(&shared.stats.additions, 1);
    for client in shared.world.clients_of(member) {
        shared.mailboxes[client as usize].put(Command::Joined(group));
    }
}

/// Has a device of a removed member try to send, where one is connected.
fn try_to_send(shared: &Shared, group: u32, member: u32) {
    let connected = shared.world.clients_of(member).find(|client| shared.places.server_of(*client).is_some());
    if let Some(client) = connected {
        shared.mailboxes[client as usize].put(Command::TryToSend(group));
    }
}

/// Counts a change of membership that failed, and waits until it is to be tried again; false where it is given up.
async fn wait_for_retry(shared: &Shared, call: &'static str, retry: &mut Retry, error: Error) -> bool {
    let wait = retry.next(clock::now_us(), error.retry_after());
    count_failure(shared, call, error);
    match wait {
        Some(wait) => {
            tokio::time::sleep(wait).await;
            add(&shared.stats.retries, 1);
        }
        None => add(&shared.stats.changes_failed, 1),
    }
    wait.is_some()
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
        wait_for(&shared, started_us + fault.at.as_micros() as u64).await;
        let at_us = clock::now_us();
        let index = {
            let mut tracks = shared.faults.lock().expect("no panic while held");
            let what = fault.action.to_string();
            let planned_us = fault.action.lasts().as_micros() as u64;
            if let Some(track) = tracks.last_mut().filter(|_| last_at == Some(fault.at)) {
                track.what = format!("{} + {what}", track.what);
                track.planned_us = track.planned_us.max(planned_us);
            } else {
                let at_s = (at_us - started_us) as f64 / 1e6;
                tracks.push(FaultTrack { what, at_us, at_s, planned_us, ..FaultTrack::default() });
            }
            tracks.len() - 1
        };
        last_at = Some(fault.at);
        let (shared, control) = (Arc::clone(&shared), Arc::clone(&control));
        under_way.spawn("load.fault", async move {
            shared.event(format!("fault: {}", fault.action));
            let breaks_us = fault.action.breaks_after().map(|after| at_us + after.as_micros() as u64);
            // Nothing is excused before anything is broken.
            let excuses = async {
                let Some(breaks_us) = breaks_us else { return };
                wait_for(&shared, breaks_us).await;
                shared.ledger.presence.fault_began(breaks_us);
                shared.excuse_pushes(shared.ledger.unpushed.cut_all(breaks_us));
            };
            let ((), done) = tokio::join!(excuses, control.do_fault(&fault.action));
            let what = fault.action.to_string();
            shared.note("fault", || json!({"what": what, "te": clock::boot_seconds()}));
            if !fault.action.lasts().is_zero() {
                shared.event(format!("over: {what}"));
            }
            let mut tracks = shared.faults.lock().expect("no panic while held");
            tracks[index].end(clock::now_us(), shared.stats.answers());
            if let Some(breaks_us) = breaks_us {
                shared.ledger.presence.fault_ended(breaks_us, tracks[index].ended_us);
            }
            if let Err(error) = done {
                tracks[index].error.get_or_insert_with(|| error.clone());
                drop(tracks);
                shared.event(format!("fault failed: {error}"));
            }
        });
    }
}
