//! Runs of one scenario, each in a process of its own, repeated where they say nothing.

use std::path::Path;
use std::time::Duration;

use crate::loadgen::result::RunResult;
use crate::report::compare::Defect;
use crate::run::child_run::{ChildRun, Ended, interrupted};
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
            if self.interrupt.is_stopped() {
                return Err(interrupted());
            }
            self.observer.progress(Progress::RunBegins(label));
            let run = ChildRun { program, scenario: self.scenario, out, args: &args, load: self.load };
            let result = match run.run(self.interrupt).await {
                Ok(Ended::WithResult(result)) => *result,
                // Only what a new build does decides without a result: a base that can't be read is no base.
                Ok(Ended::WithoutResult(_, error)) if label.is_base() => {
                    self.observer.progress(Progress::RunFailed(&error));
                    last = (Defect::NotRun, error.to_string());
                    continue;
                }
                Ok(Ended::WithoutResult(defect, error)) => {
                    self.observer.progress(Progress::RunFailed(&error));
                    return Ok(Err((defect, error.to_string())));
                }
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::loadgen::result::{SCHEMA_VERSION, Verdict};
    use crate::report::json;

    /// Counts the runs that begin and those that have a result.
    #[derive(Default)]
    struct Counting(Mutex<(u32, u32)>);

    impl ProgressObserver for Counting {
        fn progress(&self, progress: Progress<'_>) {
            let mut counts = self.0.lock().expect("no panic");
            match progress {
                Progress::RunBegins(_) => counts.0 += 1,
                Progress::RunEnds(_) => counts.1 += 1,
                Progress::RunFailed(_) => {}
                other => panic!("{other:?} is not of a run with a verdict"),
            }
        }
    }

    /// What comes of a program whose runs have this verdict, and how many began and ended.
    async fn ran(verdict: Verdict) -> (Result<Ran, Error>, (u32, u32)) {
        ran_by("cp ready.json out/result.json", verdict).await
    }

    /// The same of a script that has the result beside it.
    async fn ran_by(script: &str, verdict: Verdict) -> (Result<Ran, Error>, (u32, u32)) {
        let folder = tempfile::tempdir().expect("a folder");
        let program = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/child.sh"));
        let (scenario, out) = (folder.path().join("scenario"), folder.path().join("out"));
        std::fs::create_dir(&out).expect("a folder");
        let result = RunResult { schema: SCHEMA_VERSION, verdict, ..RunResult::default() };
        std::fs::write(folder.path().join("ready.json"), json::render(&result)).expect("writes");
        std::fs::write(&scenario, format!("cd {} && {script}", folder.path().display())).expect("writes");
        let (interrupt, observer) = (Tasks::new(), Counting::default());
        let (load, target) = (Duration::ZERO, None);
        let runs = Runs { scenario: &scenario, load, target, interrupt: &interrupt, observer: &observer };
        let ran = runs.one(program, &out, RunLabel::WarmUp(None)).await;
        let counts = *observer.0.lock().expect("no panic");
        (ran, counts)
    }

    #[tokio::test]
    async fn a_run_that_says_something_is_not_repeated() {
        for verdict in [Verdict::Pass, Verdict::ThresholdFailed] {
            let (ran, counts) = ran(verdict).await;
            assert!(matches!(ran, Ok(Ok(result)) if result.verdict == verdict));
            assert_eq!(counts, (1, 1));
        }
    }

    #[tokio::test]
    async fn a_broken_guarantee_without_a_result_is_not_repeated() {
        for (code, wanted) in [(4, Defect::Violated), (1, Defect::Failed)] {
            // Were it repeated, the second run would be a pass.
            let script =
                format!("if [ -e seen ]; then cp ready.json out/result.json; else touch seen; exit {code}; fi");
            let (ran, counts) = ran_by(&script, Verdict::Pass).await;
            assert!(matches!(&ran, Ok(Err((defect, _))) if *defect == wanted), "{ran:?}");
            assert_eq!(counts, (1, 0));
        }
    }

    #[tokio::test]
    async fn a_run_that_says_nothing_is_repeated_twice() {
        let (ran, counts) = ran(Verdict::Invalid).await;
        assert!(matches!(ran, Ok(Err((Defect::Invalid, why))) if why.starts_with("3 times: ")));
        assert_eq!(counts, (3, 3));
    }

    #[tokio::test]
    async fn a_run_that_was_interrupted_ends_the_others() {
        let (ran, counts) = ran(Verdict::Interrupted).await;
        assert!(ran.is_err_and(|error| error.kind == ErrorKind::Interrupted));
        assert_eq!(counts, (1, 1));
    }
}
