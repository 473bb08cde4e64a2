//! The live snapshot: made once per interval from counters, histograms and the stack's own `/metrics`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch::Sender;

use super::RunOptions;
use super::machine_load::{Own, OwnProcesses, Sampler};
use crate::loadgen::api::Api;
use crate::loadgen::intervals::Intervals;
use crate::loadgen::recorder::{IntervalLatencies, lag_of, named, summaries};
use crate::loadgen::result::Verdict;
use crate::loadgen::run::Shared;
use crate::loadgen::stats::get;
use crate::runtime::{Tasks, clock, machine};
use crate::telemetry::live::{MachineLoad, ServerSnapshot, Totals, heat_of};
use crate::telemetry::prometheus::{self, Scraped};
use crate::telemetry::{ByPath, Counter, Gauge, Latency, LatencyPath, LatencySummary, LiveSnapshot, RunPhase};

/// Time between two snapshots.
const INTERVAL: Duration = Duration::from_secs(1);

/// Makes snapshots in a task of the run.
pub(super) struct Watcher {
    live: Sender<LiveSnapshot>,
    state: Arc<Mutex<State>>,
    kept: Arc<Mutex<Kept>>,
}

/// Where the run is. Written by the engine, read by the task.
#[derive(Default)]
struct State {
    phase: RunPhase,
    started_us: u64,
    progress: Option<(f64, String)>,
}

/// What was measured so far. Written by the task, taken by the engine at the end.
#[derive(Default)]
struct Kept {
    intervals: Intervals,
    /// What was measured before the load, such as logins: part of its first interval.
    before_load: BTreeMap<LatencyPath, Latency>,
}

impl Watcher {
    pub(super) fn start(shared: Arc<Shared>, options: &RunOptions) -> Self {
        let live = options.live.clone();
        let (stack_threads, is_part) = (options.stack_threads, options.part.is_some());
        let (target, control) = (options.target.clone(), options.control.clone());
        let state: Arc<Mutex<State>> = Arc::default();
        let kept: Arc<Mutex<Kept>> = Arc::default();
        let (task_live, task_state, task_kept) = (live.clone(), Arc::clone(&state), Arc::clone(&kept));
        let tasks = shared.tasks.clone();
        let own: Arc<Mutex<Own>> = Arc::default();
        // Who looks after the whole does it for all parts.
        if !is_part {
            let own = Arc::clone(&own);
            tasks.spawn_until_stopped("load.processes", async move {
                OwnProcesses::of(&target, control, stack_threads.is_some(), Vec::new(), own).await.follow().await;
            });
        }
        tasks.spawn_until_stopped("load.watch", async move {
            let mut before = Before::default();
            let mut scraper = Scraper::new(shared.api.clone());
            loop {
                tokio::time::sleep(INTERVAL).await;
                let servers = if is_part { BTreeMap::new() } else { scraper.scrape().await };
                let own = own.lock().expect("no panic while held").clone();
                let (shared, state, kept) = (Arc::clone(&shared), Arc::clone(&task_state), Arc::clone(&task_kept));
                // It takes milliseconds, in which no device may wait for a thread of the runtime.
                let made = Tasks::block(move || {
                    let kept = (!is_part).then_some(&*kept);
                    let snapshot = snapshot(&shared, &state, kept, servers, &own, &mut before, stack_threads);
                    (snapshot, before)
                });
                let Some((snapshot, after)) = made.await else { return };
                before = after;
                task_live.send_replace(snapshot);
            }
        });
        Self { live, state, kept }
    }

    /// Everything measured, by interval, once nothing more comes.
    pub(super) fn intervals(&self, shared: &Shared) -> Intervals {
        let started_us = self.state.lock().expect("no panic while held").started_us;
        let mut kept = self.kept.lock().expect("no panic while held");
        let now_us = clock::now_us();
        let rest = shared.recorder.take_interval(now_us);
        kept.note((started_us, now_us), None, &rest);
        std::mem::take(&mut kept.intervals)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().expect("no panic while held"));
    }

    /// The load begins.
    pub(super) fn begin(&self, started_us: u64) {
        self.change(|state| state.started_us = started_us);
    }

    pub(super) fn phase(&self, phase: RunPhase) {
        self.change(|state| {
            state.phase = phase;
            state.progress = None;
        });
    }

    pub(super) fn progress(&self, share: f64, text: String) {
        self.change(|state| state.progress = Some((share, text)));
    }

    /// The run is over.
    pub(super) fn finish(&self, verdict: Verdict) {
        self.live.send_modify(|snapshot| {
            snapshot.phase = RunPhase::Done;
            verdict.word().clone_into(&mut snapshot.verdict);
        });
    }
}

impl Kept {
    /// Keeps what was recorded up to now. `started_us`: when the load began; 0 before.
    fn note(&mut self, (started_us, now_us): (u64, u64), machine: Option<MachineLoad>, interval: &IntervalLatencies) {
        if started_us == 0 {
            for (path, latency) in &interval.measured {
                self.before_load.entry(*path).or_default().merge(latency);
            }
            return;
        }
        let mut measured = std::mem::take(&mut self.before_load);
        for (path, latency) in &interval.measured {
            measured.entry(*path).or_default().merge(latency);
        }
        let elapsed_s = now_us.saturating_sub(started_us) as f64 / 1e6;
        self.intervals.push(elapsed_s, machine, &named(measured));
    }
}

/// What the last snapshot saw, for rates.
#[derive(Default)]
struct Before {
    at_us: u64,
    totals: Totals,
    cpu: Duration,
    stack_cpu: Duration,
    lag_us_max: u64,
    sampler: Sampler,
}

/// Reads the figures of all servers, and makes rates of them.
pub(in crate::loadgen) struct Scraper {
    api: Api,
    before: BTreeMap<String, Scraped>,
    shown: BTreeMap<String, ServerSnapshot>,
    at_us: u64,
}

/// Servers that are read each second; with more, all of them are read less often.
const SERVERS_PER_SECOND: usize = 12;

impl Scraper {
    pub(in crate::loadgen) fn new(api: Api) -> Self {
        Self { api, before: BTreeMap::new(), shown: BTreeMap::new(), at_us: 0 }
    }

    /// The servers now; rates are since the last call.
    pub(in crate::loadgen) async fn scrape(&mut self) -> BTreeMap<String, ServerSnapshot> {
        let now_us = clock::now_us();
        // What fifty servers have to say costs them and us more than it is worth every second.
        let every_us = (self.before.len() / SERVERS_PER_SECOND) as u64 * 1_000_000;
        if now_us - self.at_us < every_us {
            return self.shown.clone();
        }
        let text = self.api.metrics().await;
        let scraped = text.map(|text| prometheus::parse(&text)).unwrap_or_default();
        let seconds = (now_us - self.at_us) as f64 / 1e6;
        let servers = snapshots(&scraped, &self.before, seconds);
        self.before.extend(scraped);
        self.at_us = now_us;
        self.shown.clone_from(&servers);
        servers
    }
}

fn snapshots(
    scraped: &BTreeMap<String, Scraped>,
    before: &BTreeMap<String, Scraped>,
    seconds: f64,
) -> BTreeMap<String, ServerSnapshot> {
    let mut servers = BTreeMap::new();
    for (name, now) in scraped {
        let old = before.get(name).cloned().unwrap_or_default();
        let rate = |counter| ((now.counter(counter) - old.counter(counter)) / seconds).max(0.0);
        let server = ServerSnapshot {
            role: now.role.clone(),
            connections: now.gauge(Gauge::Connections) as u64,
            deliveries_per_s: rate(Counter::Deliveries),
            acked_per_s: rate(Counter::SendsAcked),
            lag_records: now.gauge(Gauge::LagRecords) as u64,
            lag_s: now.gauge(Gauge::LagMs) / 1_000.0,
            gone: false,
        };
        servers.insert(name.clone(), server);
    }
    // A server that was there and is not any more stays on the screen, as gone.
    for (name, old) in before {
        let gone = || ServerSnapshot { role: old.role.clone(), gone: true, ..ServerSnapshot::default() };
        servers.entry(name.clone()).or_insert_with(gone);
    }
    servers
}

fn totals(shared: &Shared) -> Totals {
    let stats = &shared.stats;
    Totals {
        intended: get(&stats.intended) as f64,
        acked: get(&stats.acked) as f64,
        delivered: get(&stats.delivered) as f64,
        repeated_on_wire: get(&stats.repeated_on_wire) as f64,
        reconnects: get(&stats.reconnects) as f64,
    }
}

/// What went on since the last snapshot, per second.
fn rates(now: Totals, old: Totals, seconds: f64) -> Totals {
    let rate = |now: f64, old: f64| (now - old).max(0.0) / seconds;
    Totals {
        intended: rate(now.intended, old.intended),
        acked: rate(now.acked, old.acked),
        delivered: rate(now.delivered, old.delivered),
        repeated_on_wire: rate(now.repeated_on_wire, old.repeated_on_wire),
        reconnects: rate(now.reconnects, old.reconnects),
    }
}

/// Makes a snapshot. `kept` is `None` where this run is a part of another, which keeps what all measure.
fn snapshot(
    shared: &Shared,
    state: &Mutex<State>,
    kept: Option<&Mutex<Kept>>,
    servers: BTreeMap<String, ServerSnapshot>,
    own: &Own,
    before: &mut Before,
    stack_threads: Option<&'static [&'static str]>,
) -> LiveSnapshot {
    let (phase, started_us, progress) = {
        let state = state.lock().expect("no panic while held");
        (state.phase, state.started_us, state.progress.clone())
    };
    let mut kept = kept.map(|kept| kept.lock().expect("no panic while held"));
    let now = clock::now_us();
    let seconds = (now - before.at_us).max(1) as f64 / 1e6;
    let totals = totals(shared);
    let (cpu, stack_cpu) = (machine::process_cpu(), stack_threads.map_or(Duration::ZERO, machine::threads_cpu));
    let generator_cpu = cpu.saturating_sub(before.cpu).saturating_sub(stack_cpu.saturating_sub(before.stack_cpu));
    let machine = before.sampler.sample(own);
    let recorded = shared.recorder.take_interval(now);
    let interval = recorded.all();
    let is_over = phase.is_closing();
    // Everybody leaves at once at the end: what is late then is not counted, and not shown.
    let lag = if is_over { LatencySummary::default() } else { lag_of(&interval) };
    if let Some(kept) = &mut kept {
        kept.note((started_us, now), machine.filter(|_| !is_over), &recorded);
    }
    before.lag_us_max = before.lag_us_max.max(lag.max_us);
    let planned_s = shared.scenario.duration().as_secs_f64();
    let elapsed_s = if started_us == 0 { 0.0 } else { (now - started_us) as f64 / 1e6 };
    let by_time = || ((elapsed_s / planned_s).min(1.0), format!("{elapsed_s:.0}/{planned_s:.0} s"));
    let (progress, progress_text) = progress.unwrap_or_else(by_time);
    let snapshot = LiveSnapshot {
        scenario: shared.scenario.name.clone(),
        phase,
        progress,
        progress_text,
        elapsed_s,
        planned_s,
        connections_wanted: get(&shared.stats.wanted),
        connections: get(&shared.stats.connections),
        totals,
        rates: rates(totals, before.totals, seconds),
        interval: summaries(&interval),
        heat: interval.get(&LatencyPath::Delivery).map(heat_of).unwrap_or_default(),
        is_measured: recorded.is_measured,
        histograms: named(recorded.measured),
        unmeasured: named(recorded.unmeasured),
        // Whoever looks after the whole adds up the intervals of all parts.
        overall: if kept.is_some() { summaries(&shared.recorder.overall()) } else { ByPath::new() },
        servers,
        violations: shared.ledger.violations(),
        errors: shared.errors(),
        generator_lag_us_p50: lag.p50_us,
        generator_lag_us_p99: lag.p99_us,
        generator_lag_us_max: before.lag_us_max,
        generator_cores: generator_cpu.as_secs_f64() / seconds,
        machine_cores: machine.map_or(0.0, |machine| machine.used_cores),
        machine,
        resident_bytes: machine::resident_bytes().unwrap_or(0),
        verdict: "running".to_owned(),
        events: shared.events.lock().expect("no panic while held").clone(),
    };
    before.at_us = now;
    before.totals = totals;
    (before.cpu, before.stack_cpu) = (cpu, stack_cpu);
    snapshot
}
