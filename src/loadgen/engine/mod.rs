//! The run: setup, phases, faults, draining, audit, verdict.
//!
//! | file | what |
//! |---|---|
//! | `audit` | every conversation read back at the end |
//! | `calls` | the API calls that audit and membership changes make |
//! | `agenda` | what is due when: arrivals, coming and going |
//! | `pacing` | does it then; membership changes, faults |
//! | `watch` | the live snapshot |
//! | `machine_load` | whose the machine's processor time is |
//! | `blame` | what of the outcome is the generator's or its machine's |
//! | `verdict` | from counts to a word |

mod agenda;
mod audit;
mod blame;
mod calls;
pub(super) mod machine_load;
mod pacing;
pub(super) mod verdict;
mod watch;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use tokio::sync::watch::Sender;

use self::pacing::Pacer;
pub(super) use self::watch::Scraper;
use self::watch::Watcher;
use super::api::Api;
use super::client::{self, Alarms, Command, Handover, Mailbox, Pollers, Traffic};
use super::control::StackControl;
use super::fault_track::FaultTrack;
use super::history::History;
use super::ledger::checks;
use super::recorder::Recorder;
use super::result::{FaultRecord, GeneratorHealth, ProcessUsage, RunResult};
use super::run::{Run, Shared};
use super::scenario::Scenario;
use super::world::{Progress, World};
use crate::protocol::Fault;
use crate::protocol::api::Placement;
use crate::runtime::{Tasks, clock, machine};
use crate::telemetry::{LiveSnapshot, PathName, RunPhase};

/// Longest that a stack which answers may take to become ready.
const READY_WAIT: Duration = Duration::from_secs(10);

/// Longest that devices may take to get answers for what they sent, once the load is over.
const SETTLE: Duration = Duration::from_secs(20);

/// The same after an interruption.
const SETTLE_INTERRUPTED: Duration = Duration::from_secs(3);

/// Time in which nothing is sent, so that live frames arrive before devices sync for the last time.
const QUIET: Duration = Duration::from_millis(700);

/// Longest that the last sync of a device may take, with [`FINISH_MAX_EACH`] for each device.
const FINAL_SYNC: Duration = Duration::from_secs(40);

/// Longest that devices may take to end, with [`FINISH_MAX_EACH`] for each. One that does not counts as not drained.
const FINISH_MAX: Duration = Duration::from_mins(3);

/// Fifty generators of one machine end together.
const FINISH_MAX_EACH: Duration = Duration::from_millis(20);

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The deployment does not answer, or does not do what the setup needs.
    #[error("{0}")]
    Environment(String),
    /// The scenario asks for what can't be done here.
    #[error("{0}")]
    Usage(String),
}

/// What a run needs beside its scenario.
pub struct RunOptions {
    /// Address of an API server, `http://host:port`.
    pub target: String,
    /// Hands on the stack, when whoever starts the run started it.
    pub control: Option<Arc<dyn StackControl>>,
    /// File for every event, as lines of JSON.
    pub history: Option<PathBuf>,
    /// Gets a snapshot per interval.
    pub live: Sender<LiveSnapshot>,
    /// Stopped to interrupt the run; its results are made all the same.
    pub interrupt: Tasks,
    /// Names the threads of the stack when they are in this process, to tell its processor time apart.
    pub stack_threads: Option<&'static [&'static str]>,
    /// Addresses that connections come from, in turn; the system chooses where there is none.
    pub sources: Vec<IpAddr>,
    /// Set where this run is one of several that together are a larger one.
    pub part: Option<Part>,
}

/// A run's place in a larger one.
pub struct Part {
    /// Which, from 0.
    pub index: u32,
    /// Of how many.
    pub of: u32,
    /// Where it waits for the others.
    pub gate: Box<dyn Gate>,
}

/// Where the parts of a run wait for each other.
#[async_trait]
pub trait Gate: Send + Sync {
    /// Says that everything is set up, and waits for the word to begin: a time on this process's clock in µs. `None` when
    /// it will not come.
    async fn ready(&self) -> Option<u64>;
}

/// How the reason begins that is given where a history could not be written to its end.
pub const HISTORY_INCOMPLETE: &str = "the history is incomplete";

/// Runs a scenario.
///
/// # Errors
/// Only where there is nothing to report: the target does not answer, the setup fails, a file can't be made.
pub async fn run(scenario: &Scenario, options: RunOptions) -> Result<RunResult, RunError> {
    let api = tokio::select! {
        api = reach(scenario, &options.target, options.control.as_deref()) => api?,
        () = options.interrupt.stopped() => return Err(RunError::Environment("interrupted before the setup".to_owned())),
    };
    let history = match &options.history {
        Some(path) => {
            let failed = |e| RunError::Environment(format!("can't write the history {}: {e}", path.display()));
            Some(History::create(path).map_err(failed)?)
        }
        None => None,
    };
    let run: u32 = rand::random();
    let mut world = World::draw(scenario, run);
    let recorder = Recorder::new();
    let placements = set_up(scenario, &api, &mut world, &recorder, &options).await?;
    let run = Run::new(run, scenario.clone(), world, recorder, history);
    let shared = Arc::new(share(run, api, options.sources.clone()));
    note_members(&shared);
    let no_thread = |e| RunError::Environment(format!("can't start the thread that paces the load: {e}"));
    let pacer = Pacer::start(&shared).map_err(no_thread)?;
    let watcher = Watcher::start(Arc::clone(&shared), &options);
    let started_us = match &options.part {
        Some(part) => wait_for_others(part, &options.interrupt).await?,
        None => clock::now_us(),
    };
    let mut result = load(&shared, placements, &options, (&watcher, &pacer), started_us).await;
    let (requests, tokens_renewed) = (shared.api.counts(), shared.world.tokens_renewed());
    tracing::debug!(?requests, tokens_renewed, "the API's client");
    watcher.finish(result.verdict);
    shared.tasks.stop();
    if let Some(Err(error)) = shared.history.as_ref().map(History::close) {
        result.reasons.push(format!("{HISTORY_INCOMPLETE}: {error}"));
    }
    result.target = options.target;
    Ok(result)
}

/// The API of a stack that is ready and can have done to it what the scenario does.
pub(super) async fn reach(
    scenario: &Scenario,
    target: &str,
    control: Option<&dyn StackControl>,
) -> Result<Api, RunError> {
    let api = Api::new(target).map_err(RunError::Usage)?;
    check_faults(scenario, control).await?;
    let unreachable = |e| {
        let advice = "start one with `chatctl up`, or leave --target out";
        RunError::Environment(format!("no stack answers at {target}: {e}; {advice}"))
    };
    wait_until_ready(&api).await.map_err(unreachable)?;
    Ok(api)
}

/// Waits at the gate; returns when the load begins.
async fn wait_for_others(part: &Part, interrupt: &Tasks) -> Result<u64, RunError> {
    let stopped = |why: &str| Err(RunError::Environment(why.to_owned()));
    tokio::select! {
        started_us = part.gate.ready() => match started_us {
            Some(started_us) => {
                clock::sleep_until_us(started_us).await;
                Ok(started_us)
            }
            None => stopped("the coordinator is gone"),
        },
        () = interrupt.stopped() => stopped("interrupted before the load"),
    }
}

/// Finds out before the load whether every fault can be done.
async fn check_faults(scenario: &Scenario, control: Option<&dyn StackControl>) -> Result<(), RunError> {
    for fault in &scenario.faults {
        check_fault(&fault.action, control).await?;
    }
    Ok(())
}

/// Finds out whether a fault can be done by whoever has hands on the stack, if anybody has.
///
/// # Errors
/// [`RunError::Usage`] where it can't, with the fix.
pub async fn check_fault(fault: &Fault, control: Option<&dyn StackControl>) -> Result<(), RunError> {
    let checked = match control {
        Some(control) => control.check(fault).await,
        None => Err("this stack was not started by chatctl: run it without --target, or remove the faults".to_owned()),
    };
    checked.map_err(|problem| RunError::Usage(format!("fault {:?}: {problem}", fault.to_string())))
}

/// Waits for a stack that answers and is not ready yet; one that does not answer at all is not waited for.
async fn wait_until_ready(api: &Api) -> Result<(), super::api::Error> {
    let deadline = clock::instant() + READY_WAIT;
    loop {
        match api.ready().await {
            Err(super::api::Error::NotReady(_)) if clock::instant() < deadline => {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            result => return result,
        }
    }
}

/// Makes accounts and conversations, with progress.
async fn set_up(
    scenario: &Scenario,
    api: &Api,
    world: &mut World,
    recorder: &Recorder,
    options: &RunOptions,
) -> Result<Vec<Placement>, RunError> {
    let progress = Progress::default();
    let show = async {
        loop {
            let (share, text) = progress.show();
            options.live.send_modify(|snapshot| {
                snapshot.scenario.clone_from(&scenario.name);
                snapshot.phase = RunPhase::Setup;
                "running".clone_into(&mut snapshot.verdict);
                snapshot.planned_s = scenario.duration().as_secs_f64();
                snapshot.progress = share;
                snapshot.progress_text = text;
            });
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::select! {
        made = world.create(api, recorder, &progress) => {
            made.map_err(|e| {
                let hint = if e.is_no_api() {
                    "; this is no API of a stack: give the address of an API server, or of a gateway's API port, as \
                     `chatctl up` and `chatctl status` show them"
                } else {
                    ""
                };
                RunError::Environment(format!("setting up accounts at {}: {e}{hint}", options.target))
            })
        }
        () = options.interrupt.stopped() => Err(RunError::Environment("interrupted during the setup".to_owned())),
        () = show => unreachable!("it never ends"),
    }
}

/// What a run does I/O with.
pub(super) fn share(run: Run, api: Api, sources: Vec<IpAddr>) -> Shared {
    let run = Arc::new(run);
    let told = Arc::clone(&run);
    api.on_turn(move |wait| {
        told.recorder.call_had_turn(wait);
        told.stats.call_lags.note(wait.asked_us, wait.turn_us);
        told.stats.own_call_lags.note(wait.turn_us.saturating_sub(wait.lag_us), wait.turn_us);
    });
    Shared {
        api,
        alarms: Alarms::default(),
        handover: Handover::default(),
        mailboxes: run.world.clients.iter().map(|_| Mailbox::default()).collect(),
        tasks: Tasks::new(),
        devices: Tasks::new(),
        ended: std::sync::Mutex::default(),
        traffic: Traffic::default(),
        pollers: Pollers::default(),
        sources,
        run,
    }
}

/// Tells the history who is a member and a friend before anything is sent.
fn note_members(shared: &Shared) {
    if shared.history.is_none() {
        return;
    }
    let world = &shared.world;
    for (index, spec) in (0..).zip(&world.conversations) {
        for member in world.members(index) {
            let user = world.users[*member as usize].id;
            shared.note("join", || json!({"conv": spec.id, "user": user}));
        }
    }
    for (a, b) in &world.friends {
        let (a, b) = (world.users[*a as usize].id, world.users[*b as usize].id);
        shared.note("friend", || json!({"user": a, "other": b}));
    }
}

/// Everything from the first connection to the verdict.
async fn load(
    shared: &Arc<Shared>,
    placements: Vec<Placement>,
    options: &RunOptions,
    (watcher, pacer): (&Watcher, &Pacer),
    started_us: u64,
) -> RunResult {
    let started_at_ms = clock::unix_ms();
    let stack_cpu = || options.stack_threads.map_or(Duration::ZERO, machine::threads_cpu);
    let (cpu_before, stack_before) = (machine::process_cpu(), stack_cpu());
    let processes_before = own_usage(options).await;
    shared.recorder.begin(started_us, &shared.scenario.phases);
    start_devices(shared, placements);
    let was_interrupted = pacing::run_phases(shared, pacer, options, watcher, started_us).await;
    let duration = Duration::from_micros(clock::now_us() - started_us);
    let (cpu, stack) = (machine::process_cpu().saturating_sub(cpu_before), stack_cpu().saturating_sub(stack_before));
    let resident_bytes = machine::resident_bytes().unwrap_or(0);
    let processes = used_since(&processes_before, own_usage(options).await);
    watcher.phase(RunPhase::Drain);
    let told_to_stop = || told_to_stop(&options.interrupt, was_interrupted);
    tokio::select! {
        () = finish_devices(shared, was_interrupted) => {}
        () = told_to_stop() => {}
    }
    // Everything that was late has come.
    shared.ledger.on_presence(&shared.world, shared.ledger.presence.conclude());
    let states = std::mem::take(&mut *shared.ended.lock().expect("no panic while held"));
    watcher.phase(RunPhase::Audit);
    let unaudited = audit::audit(shared, &states, watcher, told_to_stop()).await;
    let was_interrupted = options.interrupt.is_stopped();
    let (histograms, lag) = (shared.recorder.overall(), shared.recorder.lag());
    let mut result = RunResult {
        duration_s: duration.as_secs_f64(),
        counts: verdict::counts(shared, &states, unaudited),
        latency: super::recorder::summaries(&histograms),
        histograms: super::recorder::named(histograms),
        violations: shared.ledger.described(),
        errors: shared.errors(),
        faults: faults(shared),
        processes,
        phases: shared.recorder.phases(),
        generator: GeneratorHealth {
            lag: lag.summary(),
            cpu_s: cpu.saturating_sub(stack).as_secs_f64(),
            stack_cpu_s: stack.as_secs_f64(),
            resident_bytes,
            ..GeneratorHealth::default()
        },
        intervals: watcher.intervals(shared),
        ..RunResult::begun(&shared.scenario, started_at_ms)
    };
    result.histograms.insert(PathName::GeneratorLag, lag);
    result.note_machine();
    result.counts.recovery_ms_max = verdict::recovery_ms_max(&result.faults, result.duration_s);
    result.tallied = shared.ledger.tallies.tallied();
    result.checks = checks(&result.counts, &result.tallied);
    verdict::decide(&shared.scenario, &mut result, was_interrupted);
    result
}

/// The same where it is this run that looks after the stack.
async fn own_usage(options: &RunOptions) -> Vec<ProcessUsage> {
    if options.part.is_some() { Vec::new() } else { usage(options.control.as_deref()).await }
}

/// What the processes of the stack have taken so far.
pub(super) async fn usage(control: Option<&dyn StackControl>) -> Vec<ProcessUsage> {
    match control {
        Some(control) => control.usage().await,
        None => Vec::new(),
    }
}

/// What was taken between two looks. A process that was started in between counts from its start.
pub(super) fn used_since(before: &[ProcessUsage], now: Vec<ProcessUsage>) -> Vec<ProcessUsage> {
    let since = |now: ProcessUsage| {
        let before = before.iter().find(|b| b.name == now.name && b.pid == now.pid);
        // A child that nobody waited for takes its time with it.
        ProcessUsage { cpu_s: (now.cpu_s - before.map_or(0.0, |b| b.cpu_s)).max(0.0), ..now }
    };
    now.into_iter().map(since).collect()
}

fn start_devices(shared: &Arc<Shared>, placements: Vec<Placement>) {
    for (client, placement) in (0..).zip(placements) {
        client::start(shared, client, placement);
    }
}

/// Brings every device online, lets it get its answers, and has it sync for the last time.
async fn finish_devices(shared: &Arc<Shared>, was_interrupted: bool) {
    let now = clock::now_us();
    // Everybody comes and goes now: who is told of whom proves nothing any more.
    shared.ledger.on_presence(&shared.world, shared.ledger.presence.close(now));
    let settle = if was_interrupted { SETTLE_INTERRUPTED } else { SETTLE };
    for mailbox in &shared.mailboxes {
        mailbox.put(Command::Online(0));
    }
    // First everything that is owed is answered, then everything is quiet, then all devices sync. What has no answer by then
    // never gets one that counts: a message that is acknowledged after somebody has synced for the last time could not be judged.
    while shared.stats.owed() > 0 && clock::now_us() < now + settle.as_micros() as u64 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(QUIET).await;
    let limit = FINISH_MAX_EACH * shared.mailboxes.len() as u32;
    let by_us = clock::now_us() + (FINAL_SYNC + limit).as_micros() as u64;
    for mailbox in &shared.mailboxes {
        mailbox.put(Command::Finish(by_us));
    }
    shared.devices.join(FINISH_MAX + limit).await;
}

/// The user's word to stop. Where the load was stopped by it, its end is waited for all the same: a second word ends the process.
async fn told_to_stop(interrupt: &Tasks, was_interrupted: bool) {
    if was_interrupted {
        std::future::pending::<()>().await;
    } else {
        interrupt.stopped().await;
    }
}

fn faults(shared: &Shared) -> Vec<FaultRecord> {
    let tracks = shared.faults.lock().expect("no panic while held").clone();
    let record = |track: FaultTrack| FaultRecord {
        what: track.what,
        at_s: track.at_s,
        disconnected: track.disconnected,
        recovered: track.recovery.count(),
        recovered_99_s: verdict::recovered_99_s(track.disconnected, &track.recovery),
        recovery: track.recovery,
        lasted_s: track.ended_us.saturating_sub(track.at_us) as f64 / 1e6,
        errors: track.errors,
        late_acks: track.late_acks,
        late_deliveries: track.late_deliveries,
        planned_s: track.planned_us as f64 / 1e6,
        calm_after_s: verdict::calm_after_s(track.at_us + track.planned_us, track.last_consequence_us),
        error: track.error,
    };
    tracks.into_iter().map(record).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_takes_less_than_nothing() {
        let usage = |pid, cpu_s| ProcessUsage { name: "postgres".to_owned(), pid, cpu_s, ..ProcessUsage::default() };
        let used = |before: ProcessUsage, now| used_since(&[before], vec![now])[0].cpu_s as i64;
        assert_eq!([used(usage(1, 9.0), usage(1, 4.0)), used(usage(1, 4.0), usage(1, 9.0))], [0, 5]);
        assert_eq!(used(usage(1, 9.0), usage(2, 4.0)), 4, "one that was started again counts from its start");
    }
}
