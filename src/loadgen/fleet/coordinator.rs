//! The coordinator: has all workers set up, starts them at the same moment, does the faults, shows and judges the whole.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::process::Child;
use tokio::sync::{mpsc, watch};

use super::hired::{Clocks, Worker};
use super::merge::{self, View};
use super::split::split;
use super::wire::{FromWorker, Job, Reader, ToWorker, WireError, Writer};
use crate::loadgen::Scenario;
use crate::loadgen::control::StackControl;
use crate::loadgen::engine::machine_load::{Own, OwnProcesses, Sampler};
use crate::loadgen::engine::{self, RunError, Scraper, verdict};
use crate::loadgen::intervals::Intervals;
use crate::loadgen::result::{ConnectionMemory, ProcessUsage, RunResult, WorkerRecord};
use crate::runtime::{Tasks, clock, machine};
use crate::telemetry::live::{MachineLoad, ServerSnapshot};
use crate::telemetry::{LiveSnapshot, PathName, PhaseKind, RunPhase};

/// Time from the word to begin until the load begins, beside the errors of the clocks.
const START_AHEAD_US: u64 = 300_000;

/// A worker that says nothing for this long is lost: it reports every second.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Longest that a worker may take to read a word.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Values that wait to be looked at.
const EVENTS_MAX: usize = 256;

/// What a spread run needs beside its scenario.
pub struct FleetOptions {
    /// API address of the stack, as the workers reach it.
    pub target: String,
    /// Hands on the stack, when whoever starts the run started it.
    pub control: Option<Arc<dyn StackControl>>,
    /// Where each worker's history goes; none when empty.
    pub histories: Vec<PathBuf>,
    /// Gets a snapshot of the whole per second.
    pub live: watch::Sender<LiveSnapshot>,
    /// Stopped to interrupt the run; its results are made all the same.
    pub interrupt: Tasks,
    /// Names the threads of the stack when they are in this process, to tell their processor time.
    pub stack_threads: Option<&'static [&'static str]>,
    /// The workers; each gets a part.
    pub workers: Vec<Worker>,
    /// Addresses that each worker's connections come from; the system chooses where there is none.
    pub sources: Vec<Vec<IpAddr>>,
}

/// Where a worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    SettingUp,
    Ready,
    Loading,
    Over,
}

/// One worker, as the coordinator sees it.
struct Member {
    record: WorkerRecord,
    /// How far its own clock is from ours, in µs.
    own_clock_us: i64,
    state: State,
    writer: Writer,
    child: Option<Child>,
    last_words: Arc<Mutex<Vec<String>>>,
    heard_us: u64,
}

type Event = (usize, Result<FromWorker, WireError>);

/// The whole while it runs.
struct Fleet<'a> {
    scenario: &'a Scenario,
    live: &'a watch::Sender<LiveSnapshot>,
    members: Vec<Member>,
    view: View,
    /// What the workers took before they had their jobs.
    idle_bytes: u64,
    results: Vec<(usize, RunResult)>,
    /// The servers and this machine as they were last seen. Written by [`watch()`].
    seen: Arc<Mutex<Seen>>,
    intervals: Intervals,
    /// When the load begins; 0 before.
    started_us: u64,
    events: Vec<String>,
    failed: Option<RunError>,
    was_interrupted: bool,
}

/// Runs a scenario over several workers.
///
/// # Errors
/// Only where there is nothing to report: the target does not answer, a worker can't set up its part.
pub async fn run(scenario: &Scenario, options: FleetOptions) -> Result<RunResult, RunError> {
    let parts = split(scenario, options.workers.len()).map_err(RunError::Usage)?;
    let api = tokio::select! {
        api = engine::reach(scenario, &options.target, options.control.as_deref()) => api?,
        () = options.interrupt.stopped() => return Err(RunError::Environment("interrupted before the setup".to_owned())),
    };
    let count = options.workers.len() as u32;
    let idle_bytes = options.workers.iter().map(|worker| worker.idle_bytes).sum();
    let workers_here = workers_here(&options.workers);
    let (heard, mut events) = mpsc::channel::<Event>(EVENTS_MAX);
    let tasks = Tasks::new();
    let mut members = Vec::new();
    for (index, (worker, part)) in options.workers.into_iter().zip(parts).enumerate() {
        let job = Job {
            scenario: part,
            target: options.target.clone(),
            part: (index as u32, count),
            sources: options.sources.get(index).cloned().unwrap_or_default(),
            history: options.histories.get(index).cloned(),
        };
        let Worker { name, reader, mut writer, child, last_words, clocks, .. } = worker;
        let job = ToWorker::Job(Box::new(job));
        writer.send(&job).await.map_err(|e| RunError::Environment(format!("worker {name}: {e}")))?;
        tasks.spawn_until_stopped("fleet.hear", hear(index, reader, heard.clone()));
        let Clocks { own_us: own_clock_us, wall_us: clock_offset_us, error_us: clock_error_us } = clocks;
        let record = WorkerRecord { name, clock_offset_us, clock_error_us, ..WorkerRecord::default() };
        let heard_us = clock::now_us();
        members.push(Member { record, own_clock_us, state: State::SettingUp, writer, child, last_words, heard_us });
    }
    drop(heard);
    let mut fleet = Fleet {
        scenario,
        live: &options.live,
        view: View::new(members.len()),
        members,
        idle_bytes,
        results: Vec::new(),
        seen: Arc::default(),
        intervals: Intervals::default(),
        started_us: 0,
        events: Vec::new(),
        failed: None,
        was_interrupted: false,
    };
    let own = workers_here.map(|workers| {
        let (target, control, own) = (options.target.clone(), options.control.clone(), Arc::<Mutex<Own>>::default());
        let (is_in_process, found) = (options.stack_threads.is_some(), Arc::clone(&own));
        tasks.spawn_until_stopped("fleet.processes", async move {
            OwnProcesses::of(&target, control, is_in_process, workers, found).await.follow().await;
        });
        own
    });
    tasks.spawn_until_stopped("fleet.watch", watch(Scraper::new(api), own, Arc::clone(&fleet.seen)));
    let around = Around {
        control: options.control.clone(),
        stack_threads: options.stack_threads,
        interrupt: options.interrupt.clone(),
        tasks: tasks.clone(),
    };
    let result = fleet.conduct(&mut events, around).await;
    tasks.stop();
    let mut result = result?;
    result.target = options.target;
    options.live.send_modify(|snapshot| {
        snapshot.phase = RunPhase::Done;
        result.verdict.word().clone_into(&mut snapshot.verdict);
    });
    Ok(result)
}

/// What is seen beside the workers' reports.
#[derive(Default)]
struct Seen {
    servers: BTreeMap<String, ServerSnapshot>,
    /// `None` where no worker is on this machine.
    machine: Option<MachineLoad>,
}

/// The processes of workers of this machine; `None` where there is no such worker, or one whose process is not known.
fn workers_here(workers: &[Worker]) -> Option<Vec<u32>> {
    let here = workers.iter().filter(|worker| worker.is_here);
    let pids: Vec<u32> = here.map(|worker| worker.child.as_ref().and_then(Child::id)).collect::<Option<_>>()?;
    (!pids.is_empty()).then_some(pids)
}

/// Reads the servers' figures and this machine's once per second. In a task: a stack that answers slowly must not keep the
/// coordinator from hearing its workers.
async fn watch(mut scraper: Scraper, own: Option<Arc<Mutex<Own>>>, seen: Arc<Mutex<Seen>>) {
    let mut sampler = Sampler::default();
    loop {
        let servers = scraper.scrape().await;
        let mut machine = None;
        if let Some(own) = own.clone() {
            let sampled = Tasks::block(move || {
                let own = own.lock().expect("no panic while held").clone();
                (sampler.sample(&own), sampler)
            });
            let Some((load, after)) = sampled.await else { return };
            (machine, sampler) = (load, after);
        }
        *seen.lock().expect("no panic while held") = Seen { servers, machine };
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// What is around a fleet.
struct Around {
    control: Option<Arc<dyn StackControl>>,
    stack_threads: Option<&'static [&'static str]>,
    interrupt: Tasks,
    tasks: Tasks,
}

/// Role of a stack that has all its servers in one process.
const STACK_ROLE: &str = "all";

/// What stack, workers and kernel have taken up to a moment.
#[derive(Default)]
struct Taken {
    processes: Vec<ProcessUsage>,
    connections: u64,
    /// Since before the workers had their jobs.
    client_bytes: u64,
    kernel_bytes: u64,
}

/// What the connections made between two moments took; `None` where there are none.
fn memory(before: &Taken, after: &Taken) -> Option<ConnectionMemory> {
    let servers = |taken: &Taken| {
        let holds_connections = |p: &&ProcessUsage| p.role == "chat" || p.role == STACK_ROLE;
        taken.processes.iter().filter(holds_connections).map(|p| p.resident_bytes).sum::<u64>()
    };
    (after.connections > 0).then(|| ConnectionMemory {
        connections: after.connections,
        server_bytes: servers(after).saturating_sub(servers(before)),
        client_bytes: after.client_bytes,
        kernel_bytes: after.kernel_bytes.saturating_sub(before.kernel_bytes),
    })
}

/// Passes on what a worker says, until it ends.
async fn hear(index: usize, mut reader: Reader, heard: mpsc::Sender<Event>) {
    loop {
        let said = reader.next().await;
        let is_last = matches!(said, Err(_) | Ok(FromWorker::Done { .. } | FromWorker::Failed { .. }));
        if heard.send((index, said)).await.is_err() || is_last {
            return;
        }
    }
}

impl Fleet<'_> {
    /// Inputs: what workers say; a tick per second; faults that are over; the end of the load; the user's ctrl-c.
    async fn conduct(&mut self, events: &mut mpsc::Receiver<Event>, around: Around) -> Result<RunResult, RunError> {
        let (fault_over, mut faults_over) = mpsc::channel(16);
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut before = Taken::default();
        let mut after = None;
        let mut started_at_ms = 0;
        let load_s = self.scenario.duration();
        while self.members.iter().any(|m| m.state != State::Over) {
            let is_loading = self.started_us > 0 && after.is_none();
            let ends_us = self.started_us + load_s.as_micros() as u64;
            tokio::select! {
                Some((index, said)) = events.recv() => self.on_event(index, said).await,
                _ = tick.tick() => self.on_tick().await,
                Some((what, error)) = faults_over.recv() => {
                    self.tell_all(&ToWorker::FaultOver { what, error }).await;
                }
                () = clock::sleep_until_us(ends_us), if is_loading => {
                    after = Some(self.taken(&around).await);
                }
                () = around.interrupt.stopped(), if !self.was_interrupted => {
                    self.was_interrupted = true;
                    self.tell_all(&ToWorker::Interrupt).await;
                }
            }
            if self.started_us == 0 && self.members.iter().all(|m| m.state == State::Ready) {
                before = self.taken(&around).await;
                started_at_ms = clock::unix_ms();
                self.start().await;
                if let Some(control) = &around.control {
                    let faults =
                        do_faults(self.scenario.clone(), Arc::clone(control), self.started_us, fault_over.clone());
                    around.tasks.spawn("fleet.faults", faults);
                }
            }
        }
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        let after = match after {
            Some(after) => after,
            None => self.taken(&around).await,
        };
        let (mut result, incomplete) = self.merged(started_at_ms);
        result.memory = memory(&before, &after);
        result.processes = engine::used_since(&before.processes, after.processes);
        verdict::decide(self.scenario, &mut result, self.was_interrupted);
        result.reasons.extend(incomplete);
        Ok(result)
    }

    /// What stack, workers and kernel have taken so far.
    async fn taken(&self, around: &Around) -> Taken {
        let mut processes = engine::usage(around.control.as_deref()).await;
        processes.extend(around.stack_threads.map(|threads| ProcessUsage {
            // In this process, which does little else.
            name: "stack".to_owned(),
            role: STACK_ROLE.to_owned(),
            pid: std::process::id(),
            cpu_s: machine::threads_cpu(threads).as_secs_f64(),
            resident_bytes: machine::resident_bytes().unwrap_or(0),
        }));
        let (connections, resident_bytes) = self.view.connections_and_memory();
        let client_bytes = resident_bytes.saturating_sub(self.idle_bytes);
        Taken { processes, connections, client_bytes, kernel_bytes: machine::kernel_bytes().unwrap_or(0) }
    }

    async fn on_event(&mut self, index: usize, said: Result<FromWorker, WireError>) {
        let member = &mut self.members[index];
        member.heard_us = clock::now_us();
        match said {
            Ok(FromWorker::Ready) => member.state = State::Ready,
            Ok(FromWorker::Snapshot { snapshot, histograms, unmeasured }) => {
                self.view.take(index, *snapshot, histograms, &unmeasured);
            }
            Ok(FromWorker::Done { result, tallied }) => {
                member.state = State::Over;
                self.results.push((index, RunResult { tallied, ..*result }));
            }
            Ok(FromWorker::Failed { usage, message }) => {
                member.state = State::Over;
                if self.was_interrupted || self.members.iter().any(|m| m.record.lost.is_some()) {
                    return;
                }
                let message = format!("worker {}: {message}", self.members[index].record.name);
                let error = if usage { RunError::Usage(message) } else { RunError::Environment(message) };
                self.failed.get_or_insert(error);
                self.give_up().await;
            }
            Ok(FromWorker::Pong { .. }) => {}
            Err(error) => self.lose(index, &error.to_string()).await,
        }
    }

    /// A worker is gone: the others stop, for what they measure from here on says nothing about the whole.
    async fn lose(&mut self, index: usize, why: &str) {
        let started_us = self.started_us;
        let member = &mut self.members[index];
        if member.state == State::Over {
            return;
        }
        member.state = State::Over;
        let mut why = why.to_owned();
        if let Some(child) = &mut member.child
            && let Ok(Ok(status)) = tokio::time::timeout(Duration::from_secs(1), child.wait()).await
        {
            why = format!("it ended with {status}");
        }
        for line in member.last_words.lock().expect("no panic while held").iter() {
            why.push_str(&format!("; {line}"));
        }
        let when = match clock::now_us().checked_sub(started_us) {
            Some(us) if started_us > 0 => format!("{:.1} s into the load", us as f64 / 1e6),
            _ => "during the setup".to_owned(),
        };
        member.record.lost = Some(format!("lost {when}: {why}"));
        self.events.push(format!("worker {} was lost {when}: {why}", member.record.name));
        self.give_up().await;
    }

    async fn give_up(&mut self) {
        self.tell_all(&ToWorker::Interrupt).await;
    }

    async fn tell_all(&mut self, word: &ToWorker) {
        for member in self.members.iter_mut().filter(|m| m.state != State::Over) {
            // One that can't be told is found out by its silence, or its end.
            let _ = tokio::time::timeout(SEND_TIMEOUT, member.writer.send(word)).await;
        }
    }

    /// Has all begin at the same moment, each by its own clock.
    async fn start(&mut self) {
        let error_us = self.members.iter().map(|m| m.record.clock_error_us).max().unwrap_or(0);
        self.started_us = clock::now_us() + START_AHEAD_US + 2 * error_us;
        for member in &mut self.members {
            let at_us = (self.started_us as i64 + member.own_clock_us).max(0) as u64;
            member.state = State::Loading;
            let _ = tokio::time::timeout(SEND_TIMEOUT, member.writer.send(&ToWorker::Start { at_us })).await;
        }
    }

    async fn on_tick(&mut self) {
        let now_us = clock::now_us();
        let silent = |m: &Member| now_us.saturating_sub(m.heard_us) > SILENCE_MAX.as_micros() as u64;
        let silent: Vec<usize> = (0..self.members.len())
            .filter(|n| self.members[*n].state != State::Over && silent(&self.members[*n]))
            .collect();
        for index in silent {
            self.lose(index, &format!("it said nothing for {SILENCE_MAX:?}")).await;
        }
        let (servers, machine) = {
            let seen = self.seen.lock().expect("no panic while held");
            (seen.servers.clone(), seen.machine)
        };
        let mut snapshot = self.view.snapshot(servers);
        snapshot.machine = machine;
        snapshot.scenario.clone_from(&self.scenario.name);
        snapshot.planned_s = self.scenario.duration().as_secs_f64();
        let ready = self.members.iter().filter(|m| m.state == State::Ready).count();
        let elapsed_us = if self.started_us > 0 { now_us.saturating_sub(self.started_us) } else { 0 };
        snapshot.elapsed_s = elapsed_us as f64 / 1e6;
        if self.started_us == 0 {
            snapshot.phase = RunPhase::Setup;
            let workers = self.members.len();
            snapshot.progress_text = format!("{ready}/{workers} workers ready; {}", snapshot.progress_text);
        } else if let Some(phase) = self.phase_at(elapsed_us) {
            snapshot.phase = RunPhase::Load(phase);
            snapshot.progress = (snapshot.elapsed_s / snapshot.planned_s).min(1.0);
            snapshot.progress_text = format!("{:.0}/{:.0} s", snapshot.elapsed_s, snapshot.planned_s);
        } else if !snapshot.phase.is_closing() {
            // The load's time is over, and a worker's last word is from before that.
            snapshot.phase = RunPhase::Drain;
        }
        // Only the whole is ever done.
        if snapshot.phase == RunPhase::Done {
            snapshot.phase = RunPhase::Audit;
        }
        let is_over = snapshot.phase.is_closing();
        if self.started_us > 0 {
            self.intervals.push(snapshot.elapsed_s, machine.filter(|_| !is_over), &snapshot.histograms);
        }
        snapshot.events.extend(self.events.iter().cloned());
        self.live.send_replace(snapshot);
    }

    /// The phase of the scenario at a time from the start of the load.
    fn phase_at(&self, elapsed_us: u64) -> Option<PhaseKind> {
        let mut ends_us = 0;
        self.scenario.phases.iter().find_map(|phase| {
            ends_us += phase.duration.as_micros() as u64;
            (elapsed_us < ends_us).then_some(phase.phase)
        })
    }

    /// The whole, and which histories are incomplete.
    fn merged(&mut self, started_at_ms: u64) -> (RunResult, Vec<String>) {
        let mut sum = RunResult::begun(self.scenario, started_at_ms);
        let mut incomplete = Vec::new();
        for (index, mut result) in self.results.drain(..) {
            let reasons = std::mem::take(&mut result.reasons);
            incomplete.extend(reasons.into_iter().filter(|reason| reason.starts_with(engine::HISTORY_INCOMPLETE)));
            merge::add_result(&mut sum, result, &mut self.members[index].record);
        }
        merge::summarize(&mut sum);
        sum.intervals = std::mem::take(&mut self.intervals);
        let ended_s = clock::now_us().saturating_sub(self.started_us) as f64 / 1e6;
        let of_paths = sum.histograms.iter().filter(|(path, _)| **path != PathName::GeneratorLag);
        let of_paths = of_paths.map(|(path, latency)| (path, latency.clone()));
        sum.intervals.complete(ended_s, &of_paths.collect());
        sum.note_machine();
        sum.workers = self.members.iter().map(|m| m.record.clone()).collect();
        (sum, incomplete)
    }
}

/// Does the scenario's faults at their times and tells when each is over.
async fn do_faults(
    scenario: Scenario,
    control: Arc<dyn StackControl>,
    started_us: u64,
    over: mpsc::Sender<(String, Option<String>)>,
) {
    let under_way = Tasks::new();
    let mut faults = scenario.faults;
    faults.sort_by_key(|fault| fault.at);
    for fault in faults {
        clock::sleep_until_us(started_us + fault.at.as_micros() as u64).await;
        let (control, over) = (Arc::clone(&control), over.clone());
        under_way.spawn("fleet.fault", async move {
            let done = control.do_fault(&fault.action).await;
            // The fleet may be gone, and with it whom it would interest.
            let _ = over.send((fault.action.to_string(), done.err())).await;
        });
    }
}
