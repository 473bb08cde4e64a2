//! Runs of one scenario, each in a process of its own, repeated where they say nothing.

use std::path::Path;
use std::time::Duration;

use crate::loadgen::result::RunResult;
use crate::report::compare::Defect;
use crate::run::child_run::{ChildRun, interrupted};
use crate::run::observer::{Progress, ProgressObserver, RunLabel};
use crate::run::{Error, ErrorKind};
use crate::runtime::Tasks;

/// A run that says nothing, or can't be done, is repeated this often.
const REPEATS_MAX: u32 = 2;

/// Time before a run that could not be done is repeated.
const REPEAT_AFTER: Duration = Duration::from_secs(1);

/// Runs of one scenario by several programs.
pub(super) struct Runs<'a> {
    /// File of the scenario.
    pub(super) scenario: &'a Path,
    /// Planned time of its load.
    pub(super) load: Duration,
    /// API address of a running stack.
    pub(super) target: Option<&'a str>,
    pub(super) interrupt: &'a Tasks,
    pub(super) observer: &'a dyn ProgressObserver,
}

/// A result, or why there is none that says something.
pub(super) type Ran = Result<RunResult, (Defect, String)>;

impl Runs<'_> {
    /// One run by a program, repeated where it says nothing or can't be done.
    pub(super) async fn one(&self, program: &Path, out: &Path, label: RunLabel) -> Result<Ran, Error> {
        let args = self.target.map_or_else(Vec::new, |target| vec!["--target", target]);
        let mut last = (Defect::NotRun, String::new());
        for attempt in 0..=REPEATS_MAX {
            if attempt > 0 && last.0 == Defect::NotRun {
                tokio::select! {
                    () = tokio::time::sleep(REPEAT_AFTER) => {}
                    () = self.interrupt.stopped() => {}
                }
            }
            self.observer.progress(Progress::RunBegins(label));
            let run = ChildRun { program, scenario: self.scenario, out, args: &args, load: self.load };
            let result = match run.run(self.interrupt).await {
                Ok(result) => result,
                Err(error) if error.kind == ErrorKind::Environment => {
                    self.observer.progress(Progress::RunFailed(&error));
                    last = (Defect::NotRun, error.to_string());
                    continue;
                }
                Err(error) => {
                    self.observer.progress(Progress::RunAborted);
                    return Err(error);
                }
            };
            self.observer.progress(Progress::RunEnds(&result));
            match Defect::of(&result) {
                Some(Defect::Invalid) => last = (Defect::Invalid, result.reasons.join("; ")),
                Some(Defect::Interrupted) => return Err(interrupted()),
                Some(Defect::Violated | Defect::Failed | Defect::NotRun) | None => return Ok(Ok(result)),
            }
        }
        Ok(Err((last.0, format!("{} times: {}", REPEATS_MAX + 1, last.1))))
    }
}
