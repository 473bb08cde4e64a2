//! What the processors of the generator's machine do, second by second: how much of it is the run's own, and how much others'.
//!
//! Two loops, none of which holds up the other or the load: [`OwnProcesses::follow`] asks which processes the stack has, which
//! may take it seconds; [`Sampler::sample`] reads the machine, in a thread for work that takes long.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::loadgen::control::StackControl;
use crate::runtime::machine::{self, CpuTimes};
use crate::runtime::{Tasks, clock, net, process};
use crate::telemetry::live::MachineLoad;

/// Time between two looks at which processes the stack has.
const LOOK_US: u64 = 5_000_000;

/// So long after a process of the stack went, each look is at which there are: what is started again is known at once.
const LOOK_CLOSELY_US: u64 = 60_000_000;

/// Time between two looks at whether they are still there.
const CHECK: Duration = Duration::from_secs(1);

/// Steps in which the kernel tells when a process was started, and some.
const START_SLACK_S: f64 = 0.05;

/// What the four times of a process can lack together, each told in the kernel's ticks.
const TICKS_SLACK: Duration = Duration::from_millis(40);

/// Whose processor time is the run's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::loadgen) struct Own {
    /// Processes beside this one: of the stack, and generators. What they started is the run's own, too.
    pub(in crate::loadgen) heads: Vec<u32>,
    /// False where something of the run may be on this machine whose processes are not known.
    pub(in crate::loadgen) is_complete: bool,
}

/// Reads the machine once per interval.
#[derive(Default)]
pub(in crate::loadgen) struct Sampler {
    before: Option<Sample>,
}

/// Processor times at one moment.
struct Sample {
    at_us: u64,
    /// The same on the clock that processes are started by.
    boot_s: f64,
    times: CpuTimes,
    process: Duration,
    pressure: Option<Duration>,
    others: Vec<Other>,
}

/// A process of the run. Of this one only what its ended children took: its own time is known more precisely.
#[derive(Debug, Clone, Copy)]
struct Other {
    pid: u32,
    parent: u32,
    started_s: f64,
    cpu: Duration,
    ended_children_cpu: Duration,
}

impl Other {
    /// Processor time that would be nobody's if it ended and its parent did not take it over.
    const fn total(&self) -> Duration {
        self.cpu.saturating_add(self.ended_children_cpu)
    }

    fn is(&self, other: &Self) -> bool {
        self.pid == other.pid && (self.started_s - other.started_s).abs() < START_SLACK_S
    }
}

impl Sampler {
    /// What happened since the last call; `None` at the first, and where the machine does not tell. Blocks: it reads a file
    /// or two of each process.
    pub(in crate::loadgen) fn sample(&mut self, own: &Own) -> Option<MachineLoad> {
        let now = Sample {
            at_us: clock::now_us(),
            boot_s: clock::since_boot_s(),
            times: machine::cpu_times()?,
            process: machine::process_cpu(),
            pressure: machine::cpu_pressure(),
            others: others(&own.heads),
        };
        // What is started in place of a process that is gone is not known before the next look.
        let are_there = own.heads.iter().all(|pid| now.others.iter().any(|other| other.pid == *pid));
        let is_complete = own.is_complete && are_there;
        let load = self.before.as_ref().map(|before| load_between(before, &now, is_complete));
        self.before = Some(now);
        load
    }
}

/// This process, the heads, and what they started: parents first, so that a child that ends meanwhile is in no two of them.
fn others(heads: &[u32]) -> Vec<Other> {
    let own_pid = std::process::id();
    let mut seen = BTreeSet::new();
    let pids = std::iter::once(own_pid).chain(heads.iter().flat_map(|pid| process::family(*pid)));
    let read = pids.filter(|pid| seen.insert(*pid)).filter_map(|pid| {
        let process::Stat { parent, started_s, cpu, ended_children_cpu, .. } = process::stat(pid)?;
        let cpu = if pid == own_pid { Duration::ZERO } else { cpu };
        Some(Other { pid, parent, started_s, cpu, ended_children_cpu })
    });
    read.collect()
}

/// What the processes of the run beside this one took between two samples; `None` where it can't be told: of one that was
/// there before and is known only now, and of one that ended and whose time no process of the run has taken over.
fn taken_by_others(before: &Sample, now: &Sample) -> Option<Duration> {
    let find = |among: &[Other], of: &Other| among.iter().find(|other| other.is(of)).copied();
    let (mut was, mut is) = (Duration::ZERO, Duration::ZERO);
    for other in &now.others {
        match find(&before.others, other) {
            Some(old) if other.cpu < old.cpu => return None,
            Some(old) => was += old.total(),
            None if other.started_s >= before.boot_s - START_SLACK_S => {}
            None => return None,
        }
        is += other.total();
    }
    // What ended is in the time of the ended children of whoever waited for it.
    let mut left: BTreeMap<u32, Duration> = BTreeMap::new();
    for ended in before.others.iter().filter(|old| find(&now.others, old).is_none()) {
        was += ended.total();
        *left.entry(heir(before, now, ended)?.pid).or_default() += ended.total();
    }
    for (pid, left) in left {
        let of = |sample: &Sample| sample.others.iter().find(|other| other.pid == pid).map(|o| o.ended_children_cpu);
        if of(now)? + TICKS_SLACK < of(before)? + left {
            return None;
        }
    }
    Some(is.saturating_sub(was))
}

/// The nearest of those who started a process that has not ended itself.
fn heir(before: &Sample, now: &Sample, ended: &Other) -> Option<Other> {
    let mut ended = *ended;
    // No process started one that started it.
    for _ in 0..before.others.len() {
        let parent = before.others.iter().find(|other| other.pid == ended.parent)?;
        if now.others.iter().any(|other| other.is(parent)) {
            return Some(*parent);
        }
        ended = *parent;
    }
    None
}

fn load_between(before: &Sample, now: &Sample, is_complete: bool) -> MachineLoad {
    let seconds = now.at_us.saturating_sub(before.at_us).max(1) as f64 / 1e6;
    let cores = |now: Duration, before: Duration| now.saturating_sub(before).as_secs_f64() / seconds;
    let programs = cores(now.times.programs, before.times.programs);
    let of_others = taken_by_others(before, now).filter(|_| is_complete);
    let of_others = of_others.map(|taken| taken.as_secs_f64() / seconds);
    let foreign = |of_others: f64| (programs - cores(now.process, before.process) - of_others).max(0.0);
    MachineLoad {
        cores: now.times.cores as f64,
        used_cores: programs + cores(now.times.interrupts, before.times.interrupts),
        foreign_cores: of_others.map(foreign),
        steal_cores: cores(now.times.steal, before.times.steal),
        pressure: now.pressure.zip(before.pressure).map(|(now, before)| cores(now, before).min(1.0)),
    }
}

/// Finds out whose processor time is the run's own, now and then anew: servers are started and end.
pub(in crate::loadgen) struct OwnProcesses {
    control: Option<Arc<dyn StackControl>>,
    /// Whether the stack is in this process, or on other machines, where nobody looks after it here.
    is_elsewhere: bool,
    /// Processes that somebody else tells.
    more: Vec<u32>,
    /// Written after each look, read by whoever samples.
    own: Arc<Mutex<Own>>,
    /// The processes that everything else of the stack was started by, as of the last look.
    heads: Vec<u32>,
    looked_us: Option<u64>,
    /// When a process of the stack was last found gone.
    gone_us: Option<u64>,
}

impl OwnProcesses {
    /// `is_in_process`: whether the stack is. `target`: its address. `more`: processes of the run that are none of the stack.
    /// What is found is left in `own`, where nothing is known before the first look.
    pub(in crate::loadgen) async fn of(
        target: &str,
        control: Option<Arc<dyn StackControl>>,
        is_in_process: bool,
        more: Vec<u32>,
        own: Arc<Mutex<Own>>,
    ) -> Self {
        let authority = target.split_once("://").map_or(target, |(_, rest)| rest);
        let is_elsewhere = is_in_process || !net::is_of_this_machine(authority.trim_end_matches('/')).await;
        Self { control, is_elsewhere, more, own, heads: Vec::new(), looked_us: None, gone_us: None }
    }

    /// Looks for as long as the run lasts. In a task of its own: a stack in trouble may take seconds for its answer.
    pub(in crate::loadgen) async fn follow(mut self) {
        loop {
            self.look().await;
            tokio::time::sleep(CHECK).await;
        }
    }

    /// Whose they are is asked now and then, and each time for a while after one has gone: faults end processes, and others
    /// take their places.
    async fn look(&mut self) {
        let now_us = clock::now_us();
        let (heads, more) = (running(&self.heads).await, running(&self.more).await);
        if heads.len() < self.heads.len() || more.len() < self.more.len() {
            self.gone_us = Some(now_us);
        }
        self.more = more;
        let looks_closely = self.gone_us.is_some_and(|gone_us| now_us < gone_us + LOOK_CLOSELY_US);
        if !looks_closely && self.looked_us.is_some_and(|looked_us| now_us < looked_us + LOOK_US) {
            return;
        }
        self.looked_us = Some(now_us);
        let used = super::usage(self.control.as_deref()).await;
        let heads: Vec<u32> = used.iter().map(|process| process.pid).collect();
        // An engine that is down is told by the number that it had.
        self.heads = running(&heads).await;
        *self.own.lock().expect("no panic while held") = Own {
            heads: self.heads.iter().chain(&self.more).copied().collect(),
            is_complete: self.is_elsewhere || !used.is_empty(),
        };
    }
}

/// Those of some processes that have not ended.
async fn running(pids: &[u32]) -> Vec<u32> {
    let pids = pids.to_vec();
    Tasks::block(move || pids.into_iter().filter(|pid| process::is_running(*pid)).collect()).await.unwrap_or_default()
}

#[cfg(test)]
#[path = "machine_load_tests.rs"]
mod tests;
