//! What the processors of the generator's machine do, second by second: how much of it is the run's own, and how much others'.

use std::sync::Arc;
use std::time::Duration;

use crate::loadgen::control::StackControl;
use crate::runtime::machine::{self, CpuTimes};
use crate::runtime::{clock, net, process};
use crate::telemetry::live::MachineLoad;

/// Time between two looks at which processes the stack has.
const LOOK_US: u64 = 5_000_000;

/// So long after a process of the stack went, each look is at which there are: what is started again is known at once.
const LOOK_CLOSELY_US: u64 = 60_000_000;

/// Steps in which the kernel tells when a process was started, and some.
const START_SLACK_S: f64 = 0.05;

/// Whose processor time is the run's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::loadgen) struct Own {
    /// Processes beside this one: of the stack, and generators, with all that they started.
    pub(in crate::loadgen) pids: Vec<u32>,
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

/// A process of the run beside this one.
#[derive(Debug, Clone, Copy)]
struct Other {
    pid: u32,
    started_s: f64,
    cpu: Duration,
}

impl Sampler {
    /// What happened since the last call; `None` at the first, and where the machine does not tell.
    pub(in crate::loadgen) fn sample(&mut self, own: &Own) -> Option<MachineLoad> {
        let now = Sample {
            at_us: clock::now_us(),
            boot_s: clock::since_boot_s(),
            times: machine::cpu_times()?,
            process: machine::process_cpu(),
            pressure: machine::cpu_pressure(),
            others: own.pids.iter().filter_map(|pid| other(*pid)).collect(),
        };
        let load = self.before.as_ref().map(|before| load_between(before, &now, own.is_complete));
        self.before = Some(now);
        load
    }
}

fn other(pid: u32) -> Option<Other> {
    let (started_s, cpu) = machine::start_and_cpu_of(pid)?;
    Some(Other { pid, started_s, cpu })
}

/// What the processes of the run beside this one took between two samples; `None` where one ended, or was there before
/// and is known only now: how much of it is of this time is not known then.
fn taken_by_others(before: &Sample, now: &Sample) -> Option<Duration> {
    let find = |among: &[Other], of: &Other| {
        among
            .iter()
            .find(|other| other.pid == of.pid && (other.started_s - of.started_s).abs() < START_SLACK_S)
            .copied()
    };
    if before.others.iter().any(|old| find(&now.others, old).is_none_or(|other| other.cpu < old.cpu)) {
        return None;
    }
    let taken = now.others.iter().map(|other| match find(&before.others, other) {
        Some(old) => Some(other.cpu.saturating_sub(old.cpu)),
        None if other.started_s >= before.boot_s - START_SLACK_S => Some(other.cpu),
        None => None,
    });
    taken.sum()
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
    own: Own,
    /// The processes that everything else of the stack was started by, as of the last look.
    heads: Vec<u32>,
    looked_us: Option<u64>,
    /// When a process of the stack was last found gone.
    gone_us: Option<u64>,
}

impl OwnProcesses {
    /// `is_in_process`: whether the stack is. `target`: its address.
    pub(in crate::loadgen) async fn of(
        target: &str,
        control: Option<Arc<dyn StackControl>>,
        is_in_process: bool,
    ) -> Self {
        let authority = target.split_once("://").map_or(target, |(_, rest)| rest);
        let is_elsewhere = is_in_process || !net::is_of_this_machine(authority.trim_end_matches('/')).await;
        Self { control, is_elsewhere, own: Own::default(), heads: Vec::new(), looked_us: None, gone_us: None }
    }

    /// The processes now, with those that somebody else tells. Whose they are is asked now and then, and each time for
    /// a while after one has gone: faults end processes, and others take their places. What they started is looked up
    /// each time.
    pub(in crate::loadgen) async fn look(&mut self, more: &[u32]) -> &Own {
        let now_us = clock::now_us();
        if self.heads.iter().any(|pid| !process::is_running(*pid)) {
            self.gone_us = Some(now_us);
        }
        let looks_closely = self.gone_us.is_some_and(|gone_us| now_us < gone_us + LOOK_CLOSELY_US);
        if looks_closely || self.looked_us.is_none_or(|looked_us| now_us >= looked_us + LOOK_US) {
            self.looked_us = Some(now_us);
            let used = super::usage(self.control.as_deref()).await;
            self.own.is_complete = self.is_elsewhere || !used.is_empty();
            self.heads = used.iter().map(|process| process.pid).collect();
        }
        self.own.pids = self.heads.iter().chain(more).flat_map(|pid| process::family(*pid)).collect();
        self.own.pids.sort_unstable();
        self.own.pids.dedup();
        &self.own
    }
}

#[cfg(test)]
#[path = "machine_load_tests.rs"]
mod tests;
