//! What the processors of the generator's machine do, second by second: how much of it is the run's own, and how much others'.

use std::sync::Arc;
use std::time::Duration;

use crate::loadgen::control::StackControl;
use crate::runtime::machine::{self, CpuTimes};
use crate::runtime::{clock, net};
use crate::telemetry::live::MachineLoad;

/// Time between two looks at which processes the stack has.
const LOOK_US: u64 = 5_000_000;

/// Whose processor time is the run's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::loadgen) struct Own {
    /// Processes beside this one: of the stack, and generators.
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
    times: CpuTimes,
    process: Duration,
    pressure: Option<Duration>,
    /// By process.
    others: Vec<(u32, Duration)>,
}

impl Sampler {
    /// What happened since the last call; `None` at the first, and where the machine does not tell.
    pub(in crate::loadgen) fn sample(&mut self, own: &Own) -> Option<MachineLoad> {
        let now = Sample {
            at_us: clock::now_us(),
            times: machine::cpu_times()?,
            process: machine::process_cpu(),
            pressure: machine::cpu_pressure(),
            others: own.pids.iter().filter_map(|pid| Some((*pid, machine::cpu_of(*pid)?))).collect(),
        };
        let load = self.before.as_ref().map(|before| load_between(before, &now, own.is_complete));
        self.before = Some(now);
        load
    }
}

fn load_between(before: &Sample, now: &Sample, is_complete: bool) -> MachineLoad {
    let seconds = now.at_us.saturating_sub(before.at_us).max(1) as f64 / 1e6;
    let cores = |now: Duration, before: Duration| now.saturating_sub(before).as_secs_f64() / seconds;
    let programs = cores(now.times.programs, before.times.programs);
    // One that was not there before counts from the next interval on.
    let of_others = now.others.iter().filter_map(|(pid, cpu)| {
        let (_, old) = before.others.iter().find(|(old, _)| old == pid)?;
        Some(cores(*cpu, *old))
    });
    let own = cores(now.process, before.process) + of_others.sum::<f64>();
    MachineLoad {
        cores: now.times.cores as f64,
        used_cores: programs + cores(now.times.interrupts, before.times.interrupts),
        foreign_cores: is_complete.then_some((programs - own).max(0.0)),
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
    looked_us: Option<u64>,
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
        Self { control, is_elsewhere, own: Own::default(), looked_us: None }
    }

    /// The processes now, with those that somebody else tells.
    pub(in crate::loadgen) async fn look(&mut self, more: &[u32]) -> &Own {
        let now_us = clock::now_us();
        if self.looked_us.is_none_or(|looked_us| now_us >= looked_us + LOOK_US) {
            self.looked_us = Some(now_us);
            let used = super::usage(self.control.as_deref()).await;
            self.own.is_complete = self.is_elsewhere || !used.is_empty();
            self.own.pids = used.iter().map(|process| process.pid).chain(more.iter().copied()).collect();
        }
        &self.own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at_s: u64, programs_s: f64, process_s: f64, other_s: Option<f64>) -> Sample {
        let time = Duration::from_secs_f64;
        let times =
            CpuTimes { programs: time(programs_s), interrupts: time(0.1), steal: time(at_s as f64 / 10.0), cores: 2 };
        let others = other_s.map(|s| (7, time(s))).into_iter().collect();
        Sample {
            at_us: at_s * 1_000_000,
            times,
            process: time(process_s),
            pressure: Some(time(programs_s / 4.0)),
            others,
        }
    }

    #[test]
    fn foreign_is_what_programs_used_and_neither_we_nor_the_stack_did() {
        let (before, now) = (sample(10, 100.0, 5.0, Some(1.0)), sample(12, 104.0, 5.5, Some(1.5)));
        let load = load_between(&before, &now, true);
        assert_eq!((load.cores, load.used_cores, load.steal_cores), (2.0, 2.0, 0.1));
        assert_eq!((load.foreign_cores, load.pressure), (Some(1.5), Some(0.5)));
        assert_eq!(load_between(&before, &now, false).foreign_cores, None, "whose it is can't be said");
    }

    #[test]
    fn a_process_that_came_in_between_is_not_booked_with_its_past() {
        let load = load_between(&sample(10, 100.0, 5.0, None), &sample(11, 101.0, 5.0, Some(90.0)), true);
        assert_eq!(load.foreign_cores, Some(1.0));
    }
}
