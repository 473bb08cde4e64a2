//! One run of a scenario by a program, in a process of its own: nothing of another run is left in its memory.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use crate::loadgen::result::RunResult;
use crate::report;
use crate::report::compare::Defect;
use crate::run::{Error, ErrorKind, exit_code};
use crate::runtime::{Tasks, process};

/// Longest that a run may take beyond its scenario: setup, drain, audit.
const RUN_EXTRA: Duration = Duration::from_mins(10);

/// Exit codes of a run that came to a verdict.
const HAS_RESULT: [u8; 5] =
    [exit_code::PASS, exit_code::THRESHOLD, exit_code::LEDGER, exit_code::INVALID, exit_code::INTERRUPTED];

/// How a run ended that came to a verdict.
#[derive(Debug)]
pub(super) enum Ended {
    /// With its result.
    WithResult(Box<RunResult>),
    /// Its exit code says what is wrong with it, and its result can't be read, as on a disk that is full. Another run might hide
    /// it.
    WithoutResult(Defect, Error),
}

/// What a run is told beside its scenario.
pub(super) struct ChildRun<'a> {
    /// The `chatctl` that does it.
    pub(super) program: &'a Path,
    /// Its scenario's file.
    pub(super) scenario: &'a Path,
    /// Folder that gets its results.
    pub(super) out: &'a Path,
    /// More arguments of `chatctl load`.
    pub(super) args: &'a [&'a str],
    /// Planned time of its load.
    pub(super) load: Duration,
}

impl ChildRun<'_> {
    /// Runs it. Stopped by `interrupt` it is waited for: it puts its stack away, and a guarantee that it found broken
    /// counts.
    ///
    /// # Errors
    /// When it can't be started, does not end, was interrupted without a broken guarantee, or has no result and no verdict
    /// against it either.
    pub(super) async fn run(&self, interrupt: &Tasks) -> Result<Ended, Error> {
        let result = self.out.join(report::RESULT_FILE);
        match std::fs::remove_file(&result) {
            // What an earlier run left there must not be taken for this one's.
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::environment(e).at(result.display()));
            }
            _ => {}
        }
        let ended = self.output(interrupt).await;
        let code = ended.as_ref().ok().and_then(|output| output.status.code()).map(|code| code as u8);
        // A broken guarantee outranks that somebody stopped the run.
        if interrupt.is_stopped() && code != Some(exit_code::LEDGER) {
            return Err(interrupted());
        }
        let output = ended?;
        if !code.is_some_and(|code| HAS_RESULT.contains(&code)) {
            let words = String::from_utf8_lossy(&output.stderr);
            let mut error = self.named(&format!("{}: {}", output.status, words.trim()));
            // What is wrong with the command line is so the next time too.
            if code == Some(exit_code::USAGE) {
                error.kind = ErrorKind::Usage;
            }
            return Err(error);
        }
        let unread = match report::read(self.out) {
            Ok(result) => return Ok(Ended::WithResult(Box::new(result))),
            Err(error) => {
                let code = code.unwrap_or_default();
                Error::environment(format!("it ended with exit code {code}, and its result can't be read: {error}"))
            }
        };
        match code {
            Some(exit_code::LEDGER) => Ok(Ended::WithoutResult(Defect::Violated, unread)),
            Some(exit_code::THRESHOLD) => Ok(Ended::WithoutResult(Defect::Failed, unread)),
            _ => Err(unread),
        }
    }

    /// Starts it and waits for its end; stopped by `interrupt` it is told to end.
    async fn output(&self, interrupt: &Tasks) -> Result<Output, Error> {
        let mut command = tokio::process::Command::new(self.program);
        command.arg("load").arg(self.scenario).arg("--out").arg(self.out).args(["--ui", "none"]).args(self.args);
        command.env_remove("CHATCTL_TARGET");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        // A terminal's ctrl-c is for this process, which tells the run: twice told it would end without its result.
        command.process_group(0);
        let child = command.spawn().map_err(|e| self.named(&e))?;
        let pid = child.id();
        let _apart = pid.map(process::Apart::new);
        let longest = self.load + RUN_EXTRA;
        let running = tokio::time::timeout(longest, child.wait_with_output());
        tokio::pin!(running);
        let ended = tokio::select! {
            ended = &mut running => ended,
            () = interrupt.stopped() => {
                if let Some(pid) = pid {
                    // It may have ended in this moment.
                    let _ = process::tell(pid, process::Tell::End);
                }
                running.await
            }
        };
        ended.map_err(|_| self.named(&format!("no end after {longest:?}")))?.map_err(|e| self.named(&e))
    }

    fn named(&self, error: &dyn std::fmt::Display) -> Error {
        Error::environment(error).at(self.program.display())
    }
}

/// The end of a command whose user stopped it while programs ran.
pub(super) fn interrupted() -> Error {
    Error::interrupted("interrupted between the runs")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::json;

    /// Runs a shell script in the place of `chatctl load`; its folder for results is `out`.
    async fn run(script: &str, interrupt: &Tasks) -> Result<Ended, Error> {
        let folder = tempfile::tempdir().expect("a folder");
        run_in(folder.path(), script, interrupt).await
    }

    /// The same in a folder, which is the script's.
    async fn run_in(folder: &Path, script: &str, interrupt: &Tasks) -> Result<Ended, Error> {
        let program = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/child.sh"));
        let (scenario, out) = (folder.join("scenario"), folder.join("out"));
        std::fs::create_dir(&out).expect("a folder");
        std::fs::write(out.join(report::RESULT_FILE), "of an earlier run").expect("writes");
        let result = RunResult { schema: crate::loadgen::result::SCHEMA_VERSION, ..RunResult::default() };
        std::fs::write(folder.join("ready.json"), json::render(&result)).expect("writes");
        std::fs::write(&scenario, format!("cd {}\n{script}\n", folder.display())).expect("writes");
        let run = ChildRun { program, scenario: &scenario, out: &out, args: &[], load: Duration::ZERO };
        run.run(interrupt).await
    }

    #[tokio::test]
    async fn a_run_with_a_verdict_has_its_own_result() {
        let tasks = Tasks::new();
        for code in HAS_RESULT {
            let ran = run(&format!("cp ready.json out/result.json; exit {code}"), &tasks).await;
            assert!(matches!(ran, Ok(Ended::WithResult(_))), "{code}: {ran:?}");
        }
        let error = run("exit 0", &tasks).await.expect_err("the result of an earlier run is not taken");
        assert_eq!(error.kind, ErrorKind::Environment);
    }

    #[tokio::test]
    async fn a_verdict_against_a_run_is_known_without_its_result() {
        let tasks = Tasks::new();
        for (code, defect) in [(exit_code::LEDGER, Defect::Violated), (exit_code::THRESHOLD, Defect::Failed)] {
            let ran = run(&format!("exit {code}"), &tasks).await;
            assert!(matches!(&ran, Ok(Ended::WithoutResult(known, _)) if *known == defect), "{code}: {ran:?}");
        }
        assert!(run(&format!("exit {}", exit_code::INVALID), &tasks).await.is_err(), "it is repeated");
    }

    #[tokio::test]
    async fn a_run_without_a_verdict_says_whether_another_may_have_one() {
        let tasks = Tasks::new();
        for (code, kind) in [(2, ErrorKind::Usage), (3, ErrorKind::Environment), (101, ErrorKind::Environment)] {
            let error = run(&format!("echo wrong >&2; exit {code}"), &tasks).await.expect_err("no result");
            assert_eq!(error.kind, kind, "{code}");
            assert!(error.to_string().ends_with("wrong"), "{error}");
        }
    }

    #[tokio::test]
    async fn an_interrupted_run_is_told_to_end() {
        let tasks = Tasks::new();
        tasks.stop();
        let error = run("exec sleep 60", &tasks).await.expect_err("interrupted");
        assert_eq!(error.kind, ErrorKind::Interrupted);
    }

    /// Runs a script that ends so when it is told to, once it can be; it is told by the interrupt.
    async fn interrupted_run(end: &str) -> Result<Ended, Error> {
        let (folder, tasks) = (tempfile::tempdir().expect("a folder"), Tasks::new());
        let script = format!("trap '{end}' TERM; touch begun; while :; do sleep 0.01; done");
        let stop = async {
            while !folder.path().join("begun").exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            tasks.stop();
        };
        tokio::join!(run_in(folder.path(), &script, &tasks), stop).0
    }

    #[tokio::test]
    async fn a_broken_guarantee_outranks_an_interruption() {
        let with_result = interrupted_run("cp ready.json out/result.json; exit 4").await;
        assert!(matches!(with_result, Ok(Ended::WithResult(_))), "{with_result:?}");
        let without = interrupted_run("exit 4").await;
        assert!(matches!(without, Ok(Ended::WithoutResult(Defect::Violated, _))), "{without:?}");
        for code in [0, 1, 3, 5, 130] {
            let ran = interrupted_run(&format!("cp ready.json out/result.json; exit {code}")).await;
            assert!(ran.is_err_and(|error| error.kind == ErrorKind::Interrupted), "{code}");
        }
    }

    #[tokio::test]
    async fn a_run_is_in_a_group_of_its_own() {
        // The fifth field is the group. Source: `proc_pid_stat(5)`.
        let script = "set -- $(cat /proc/$$/stat); [ \"$5\" = $$ ] && exit 4; exit 1";
        let ran = run(script, &Tasks::new()).await;
        assert!(
            matches!(ran, Ok(Ended::WithoutResult(Defect::Violated, _))),
            "a terminal's ctrl-c would end it: {ran:?}"
        );
    }
}
