//! The live snapshot: made once per interval from counters, histograms and the stack's own `/metrics`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch::Sender;

use super::RunOptions;
use super::machine_load::{Own, OwnProcesses, Sampler};
use crate::loadgen::api::Api;
use crate::loadgen::intervals::Intervals;
use crate::loadgen::recorder::{IntervalLatencies, Path, lag_of, named, summaries};
use crate::loadgen::result::Verdict;
use crate::loadgen::run::Shared;
use crate::loadgen::stats::get;
use crate::runtime::{Tasks, clock, machine};
use crate::telemetry::live::{CLOSING_PHASES, MachineLoad, ServerSnapshot, Totals, heat_of};
use crate::telemetry::prometheus::{self, Scraped};
use crate::telemetry::{Counter, Gauge, Latency, LatencySummary, LiveSnapshot};

/// Time between two snapshots.
const INTERVAL: Duration = Duration::from_secs(1);

/// Makes snapshots in a task of the run.
pub(super) struct Watcher {
    live: Sender<LiveSnapshot>,
    state: Arc<Mutex<State>>,
}

/// Where the run is. Written by the engine, read by the task.
#[derive(Default)]
struct State {
    phase: String,
    started_us: u64,
    progress: Option<(f64, String)>,
    /// Written by the task.
    intervals: Intervals,
    /// What was measured before the load, such as logins: part of its first interval.
    before_load: BTreeMap<Path, Latency>,
}

impl Watcher {
    pub(super) fn start(shared: Arc<Shared>, options: &RunOptions) -> Self {
        let live = options.live.clone();
        let (stack_threads, is_part) = (options.stack_threads, options.part.is_some());
        let (target, control) = (options.target.clone(), options.control.clone());
        let state: Arc<Mutex<State>> = Arc::default();
        let (task_live, task_state) = (live.clone(), Arc::clone(&state));
        let tasks = shared.tasks.clone();
        tasks.spawn_until_stopped("load.watch", async move {
            let mut before = Before::default();
            let mut scraper = Scraper::new(shared.api.clone());
            let mut processes = OwnProcesses::of(&target, control, stack_threads.is_some()).await;
            loop {
                tokio::time::sleep(INTERVAL).await;
                // Who looks after the whole does it for all parts.
                let servers = if is_part { BTreeMap::new() } else { scraper.scrape().await };
                let own = if is_part { Own::default() } else { processes.look(&[]).await.clone() };
                let (shared, state) = (Arc::clone(&shared), Arc::clone(&task_state));
                // It takes milliseconds, in which no device may wait for a thread of the runtime.
                let made = Tasks::block(move || {
                    let snapshot = snapshot(&shared, &state, servers, &own, &mut before, stack_threads, is_part);
                    (snapshot, before)
                });
                let Some((snapshot, after)) = made.await else { return };
                before = after;
                task_live.send_replace(snapshot);
            }
        });
        Self { live, state }
    }

    /// Everything measured, by interval, once nothing more comes.
    pub(super) fn intervals(&self, shared: &Shared) -> Intervals {
        let mut state = self.state.lock().expect("no panic while held");
        let now_us = clock::now_us();
        let rest = shared.recorder.take_interval(now_us);
        state.note_interval(now_us, None, &rest);
        std::mem::take(&mut state.intervals)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().expect("no panic while held"));
    }

    /// The load begins.
    pub(super) fn begin(&self, started_us: u64) {
        self.change(|state| state.started_us = started_us);
    }

    pub(super) fn phase(&self, name: &str) {
        self.change(|state| {
            name.clone_into(&mut state.phase);
            state.progress = None;
        });
    }

    pub(super) fn progress(&self, share: f64, text: String) {
        self.change(|state| state.progress = Some((share, text)));
    }

    /// The run is over.
    pub(super) fn finish(&self, verdict: Verdict) {
        self.live.send_modify(|snapshot| {
            "done".clone_into(&mut snapshot.phase);
            verdict.word().clone_into(&mut snapshot.verdict);
        });
    }
}

impl State {
    /// Keeps what was recorded up to now.
    fn note_interval(&mut self, now_us: u64, machine: Option<MachineLoad>, interval: &IntervalLatencies) {
        if self.started_us == 0 {
            for (path, latency) in &interval.measured {
                self.before_load.entry(*path).or_default().merge(latency);
            }
            return;
        }
        let mut measured = std::mem::take(&mut self.before_load);
        for (path, latency) in &interval.measured {
            measured.entry(*path).or_default().merge(latency);
        }
        let elapsed_s = now_us.saturating_sub(self.started_us) as f64 / 1e6;
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

fn snapshot(
    shared: &Shared,
    state: &Mutex<State>,
    servers: BTreeMap<String, ServerSnapshot>,
    own: &Own,
    before: &mut Before,
    stack_threads: Option<&'static [&'static str]>,
    is_part: bool,
) -> LiveSnapshot {
    let now = clock::now_us();
    let seconds = (now - before.at_us).max(1) as f64 / 1e6;
    let totals = totals(shared);
    let rate = |now: f64, old: f64| (now - old).max(0.0) / seconds;
    let old = before.totals;
    let rates = Totals {
        intended: rate(totals.intended, old.intended),
        acked: rate(totals.acked, old.acked),
        delivered: rate(totals.delivered, old.delivered),
        repeated_on_wire: rate(totals.repeated_on_wire, old.repeated_on_wire),
        reconnects: rate(totals.reconnects, old.reconnects),
    };
    let (cpu, stack_cpu) = (machine::process_cpu(), stack_threads.map_or(Duration::ZERO, machine::threads_cpu));
    let generator_cpu = cpu.saturating_sub(before.cpu).saturating_sub(stack_cpu.saturating_sub(before.stack_cpu));
    let machine = before.sampler.sample(own);
    let mut state = state.lock().expect("no panic while held");
    let recorded = shared.recorder.take_interval(now);
    let interval = recorded.all();
    let mut lag = lag_of(&interval);
    let is_over = CLOSING_PHASES.contains(&state.phase.as_str());
    if is_over {
        // Everybody leaves at once: what is late then is not counted, and not shown.
        lag = LatencySummary::default();
    }
    if !is_part {
        state.note_interval(now, machine.filter(|_| !is_over), &recorded);
    }
    before.lag_us_max = before.lag_us_max.max(lag.max_us);
    let planned_s = shared.scenario.duration().as_secs_f64();
    let elapsed_s = if state.started_us == 0 { 0.0 } else { (now - state.started_us) as f64 / 1e6 };
    let by_time = || ((elapsed_s / planned_s).min(1.0), format!("{elapsed_s:.0}/{planned_s:.0} s"));
    let (progress, progress_text) = state.progress.clone().unwrap_or_else(by_time);
    let snapshot = LiveSnapshot {
        scenario: shared.scenario.name.clone(),
        phase: state.phase.clone(),
        progress,
        progress_text,
        elapsed_s,
        planned_s,
        connections_wanted: get(&shared.stats.wanted),
        connections: get(&shared.stats.connections),
        totals,
        rates,
        interval: summaries(&interval),
        heat: interval.get(&Path::Delivery).map(heat_of).unwrap_or_default(),
        is_measured: recorded.is_measured,
        histograms: named(recorded.measured),
        unmeasured: named(recorded.unmeasured),
        // Whoever looks after the whole adds up the intervals of all parts.
        overall: if is_part { BTreeMap::new() } else { summaries(&shared.recorder.overall()) },
        servers,
        violations: shared.ledger.violations(),
        errors: shared.stats.errors(),
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
