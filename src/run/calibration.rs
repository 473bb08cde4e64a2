//! The constants of a plan, measured on this machine.

use std::path::Path;
use std::time::Duration;

use crate::loadgen::Scenario;
use crate::loadgen::result::{ConnectionMemory, RunResult, Verdict};
use crate::report::compare::Defect;
use crate::run::Error;
use crate::run::child_run::{ChildRun, Ended};
use crate::run::observer::{Progress, ProgressObserver};
use crate::runtime::{Tasks, TemporaryFolder, machine};
use crate::stack::plan::{Constants, Figure};

/// Runs of each scenario, for the error.
const CALIBRATION_RUNS: usize = 2;

/// Smallest error that is told of a measured constant, as a share: machines differ, even of one make.
const ERROR_MIN: f64 = 0.1;

const IDLE: &str = include_str!("../../scenarios/calibrate/idle.yaml");
const FANOUT: &str = include_str!("../../scenarios/calibrate/fanout.yaml");
const DIRECT: &str = include_str!("../../scenarios/calibrate/direct.yaml");

/// Where runs are measured. Each is a process of its own, since a stack that comes after another finds memory that is there
/// already, and so is its generator.
struct Bench<'a> {
    folder: &'a Path,
    interrupt: &'a Tasks,
    observer: &'a dyn ProgressObserver,
}

impl Bench<'_> {
    async fn run(&self, text: &str, change: impl FnOnce(&mut Scenario)) -> Result<RunResult, Error> {
        let mut scenario = Scenario::parse(text, "scenarios/calibrate").map_err(Error::usage)?;
        change(&mut scenario);
        self.observer.progress(Progress::CalibrationBegins(&scenario));
        let file = self.folder.join("scenario.yaml");
        let text = serde_json::to_string(&scenario).map_err(Error::environment)?;
        std::fs::write(&file, text).map_err(|e| Error::environment(e).at(file.display()))?;
        let program = std::env::current_exe().map_err(Error::environment)?;
        let run = ChildRun {
            program: &program,
            scenario: &file,
            out: &self.folder.join("out"),
            args: &["--workers", "1"],
            load: scenario.duration(),
        };
        passed(run.run(self.interrupt).await?).map_err(|error| error.at(scenario.name))
    }
}

/// The result of a run that passed. Any other is an error, above all one that broke a guarantee.
fn passed(ended: Ended) -> Result<RunResult, Error> {
    let result = match ended {
        Ended::WithResult(result) => *result,
        Ended::WithoutResult(Defect::Violated, unread) => return Err(Error::violated(unread)),
        Ended::WithoutResult(_, unread) => return Err(unread),
    };
    let problem = || format!("{}: {}", result.verdict.word(), result.reasons.join("; "));
    match result.verdict {
        Verdict::Pass => Ok(result),
        Verdict::LedgerViolated => Err(Error::violated(problem())),
        Verdict::ThresholdFailed | Verdict::Invalid | Verdict::Interrupted => Err(Error::inconclusive(problem())),
    }
}

/// As many users again, who come in the same rhythm.
fn double(scenario: &mut Scenario) {
    scenario.population.users *= 2;
    scenario.description = scenario.description.replace("6000", "12000");
    for time in [&mut scenario.connect_over, &mut scenario.phases[0].duration] {
        *time *= 2;
    }
}

/// A beat per second.
fn hurry(scenario: &mut Scenario) {
    scenario.heartbeat = Duration::from_secs(1);
    scenario.description = scenario.description.replace("every 5 s", "every second");
}

/// What each of the connections takes that the second run has more, so that what a process takes anyway is not in it.
fn bytes_each(few: &RunResult, many: &RunResult, bytes: impl Fn(&ConnectionMemory) -> u64) -> Option<f64> {
    let (few, many) = (few.memory?, many.memory?);
    let more = many.connections.checked_sub(few.connections).filter(|more| *more > 0)?;
    Some((bytes(&many) as f64 - bytes(&few) as f64) / more as f64)
}

/// The rates at which things were measured: heartbeats per second and chat server of the slow and of the quick run, and
/// frames per second and connection of the fan-out.
fn measured_rates() -> Result<[f64; 3], Error> {
    let parse = |text| Scenario::parse(text, "scenarios/calibrate").map_err(Error::usage);
    let beats = |s: &Scenario| f64::from(s.population.users) / s.stack.chat_servers as f64 / s.heartbeat.as_secs_f64();
    let (slow, fanout) = (parse(IDLE)?, parse(FANOUT)?);
    let mut quick = slow.clone();
    hurry(&mut quick);
    // Each message of the last phase goes to all members but its sender, and each user is a member.
    let members = fanout.population.groups.first().map_or(0, |group| group.members.max);
    let messages = fanout.phases.last().map_or(0.0, |phase| phase.rate);
    let frames = messages * f64::from(members.saturating_sub(1)) / f64::from(fanout.population.users);
    Ok([beats(&slow), beats(&quick), frames])
}

/// Measures the constants of a plan on this machine; takes about four minutes.
///
/// # Errors
/// When a run could not be done, did not pass, or was interrupted.
pub async fn measure(interrupt: &Tasks, observer: &dyn ProgressObserver) -> Result<Constants, Error> {
    let folder = TemporaryFolder::create().map_err(Error::environment)?;
    let bench = Bench { folder: folder.path(), interrupt, observer };
    let mut constants = Constants::default();
    let (mut server, mut kernel, mut beat, mut delivery, mut direct) = (vec![], vec![], vec![], vec![], vec![]);
    for _ in 0..CALIBRATION_RUNS {
        let slow = bench.run(IDLE, |_| {}).await?;
        let many = bench.run(IDLE, double).await?;
        let quick = bench.run(IDLE, hurry).await?;
        server.extend(bytes_each(&slow, &many, |m| m.server_bytes));
        // Of both ends; they are alike.
        kernel.extend(bytes_each(&slow, &many, |m| m.kernel_bytes).map(|bytes| bytes / 2.0));
        let beats = |r: &RunResult| r.counts.beats as f64;
        // In µs: seconds for a million.
        beat.push((quick.stack_cpu_s() - slow.stack_cpu_s()).max(0.0) * 1e6 / (beats(&quick) - beats(&slow)).max(1.0));
        let fanout = bench.run(FANOUT, |_| {}).await?;
        delivery.push(fanout.stack_cpu_s() * 1e6 / fanout.counts.delivered.max(1) as f64);
        let talk = bench.run(DIRECT, |_| {}).await?;
        direct.push(talk.stack_cpu_s() * 1e6 / talk.counts.acked.max(1) as f64);
    }
    let source = format!("measured by chatctl plan --calibrate on {}", machine::describe());
    let figure = |values: &[f64], old: &Figure| {
        let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
        let spread = values.iter().map(|v| (v - mean).abs()).fold(0.0, f64::max);
        if mean > 0.0 {
            Figure::new((mean * 10.0).round() / 10.0, (spread / mean).max(ERROR_MIN), &source)
        } else {
            old.clone()
        }
    };
    constants.server_bytes_per_connection = figure(&server, &constants.server_bytes_per_connection);
    constants.kernel_bytes_per_connection = figure(&kernel, &constants.kernel_bytes_per_connection);
    let nothing = Figure::new(0.0, 0.0, &source);
    let [slow, quick, frames] = measured_rates()?;
    constants.set_beats(slow, quick, &figure(&beat, &nothing));
    constants.set_deliveries(frames, &figure(&delivery, &nothing));
    constants.cpu_s_per_million_messages = figure(&direct, &constants.cpu_s_per_million_messages);
    Ok(constants)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::ErrorKind;

    #[test]
    fn calibration_scenarios_are_valid() {
        for text in [IDLE, FANOUT, DIRECT] {
            let scenario = Scenario::parse(text, "calibrate").expect("valid");
            let written = serde_json::to_string(&scenario).expect("plain data");
            assert_eq!(Scenario::parse(&written, "calibrate").expect("reads what was written"), scenario);
        }
    }

    #[test]
    fn measurements_are_taken_over_at_the_rates_of_their_scenarios() {
        let [slow, quick, frames] = measured_rates().expect("valid scenarios");
        assert!((slow - 600.0).abs() < 1e-9 && (quick - 3_000.0).abs() < 1e-9, "{slow} {quick}");
        assert!((frames - 198.0).abs() < 1e-9, "{frames}");
    }

    #[test]
    fn a_run_that_broke_a_guarantee_says_so_with_and_without_its_result() {
        let with = |verdict| Ended::WithResult(Box::new(RunResult { verdict, ..RunResult::default() }));
        let without = |defect| Ended::WithoutResult(defect, Error::environment("it can't be read"));
        assert!(passed(with(Verdict::Pass)).is_ok());
        for (ended, kind) in [
            (with(Verdict::LedgerViolated), ErrorKind::Violated),
            (without(Defect::Violated), ErrorKind::Violated),
            (with(Verdict::Invalid), ErrorKind::Inconclusive),
            (without(Defect::Failed), ErrorKind::Environment),
        ] {
            assert_eq!(passed(ended).expect_err("did not pass").kind, kind);
        }
    }

    #[test]
    fn the_memory_of_a_connection_is_that_of_the_ones_more() {
        let run = |connections, server_bytes| RunResult {
            memory: Some(ConnectionMemory { connections, server_bytes, ..ConnectionMemory::default() }),
            ..RunResult::default()
        };
        let each = |few: &RunResult, many: &RunResult| bytes_each(few, many, |m| m.server_bytes);
        assert_eq!(each(&run(100, 50_000), &run(300, 450_000)), Some(2_000.0));
        assert_eq!(each(&run(100, 50_000), &run(100, 50_000)), None);
        assert_eq!(each(&RunResult::default(), &run(100, 50_000)), None);
    }
}
