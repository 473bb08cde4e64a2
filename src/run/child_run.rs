//! One run of a scenario by a program, in a process of its own: nothing of another run is left in its memory.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use chatctl::loadgen::result::RunResult;
use chatctl::report;
use chatctl::runtime::{Tasks, process};

use crate::exit::{self, Failure};

/// Longest that a run may take beyond its scenario: setup, drain, audit.
const RUN_EXTRA: Duration = Duration::from_mins(10);

/// Exit codes of a run that came to a verdict.
const HAS_RESULT: [u8; 5] = [exit::PASS, exit::THRESHOLD, exit::LEDGER, exit::INVALID, exit::INTERRUPTED];

/// What a run is told beside its scenario.
pub(crate) struct ChildRun<'a> {
    pub(crate) program: &'a Path,
    pub(crate) scenario: &'a Path,
    /// Folder that gets its results.
    pub(crate) out: &'a Path,
    /// More arguments of `chatctl load`.
    pub(crate) args: &'a [&'a str],
    /// Planned time of its load.
    pub(crate) load: Duration,
}

impl ChildRun<'_> {
    /// Runs it. Stopped by `interrupt` it is waited for: it puts its stack away.
    ///
    /// # Errors
    /// When it can't be started, does not end, has no result, or was interrupted.
    pub(crate) async fn run(&self, interrupt: &Tasks) -> Result<RunResult, Failure> {
        let result = self.out.join("result.json");
        match std::fs::remove_file(&result) {
            // What an earlier run left there must not be taken for this one's.
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::environment(format!("{}: {e}", result.display())));
            }
            _ => {}
        }
        let mut command = tokio::process::Command::new(self.program);
        command.arg("load").arg(self.scenario).arg("--out").arg(self.out).args(["--ui", "none"]).args(self.args);
        command.env_remove("CHATCTL_TARGET");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let named = |e: &dyn std::fmt::Display| Failure::environment(format!("{}: {e}", self.program.display()));
        let child = command.spawn().map_err(|e| named(&e))?;
        let pid = child.id();
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
        if interrupt.is_stopped() {
            return Err(interrupted());
        }
        let output = ended.map_err(|_| named(&format!("no end after {longest:?}")))?.map_err(|e| named(&e))?;
        let code = output.status.code().map(|code| code as u8);
        if !code.is_some_and(|code| HAS_RESULT.contains(&code)) {
            let words = String::from_utf8_lossy(&output.stderr);
            let failure = named(&format!("{}: {}", output.status, words.trim()));
            // What is wrong with the command line is so the next time too.
            return Err(Failure {
                code: if code == Some(exit::USAGE) { exit::USAGE } else { failure.code },
                ..failure
            });
        }
        report::read(self.out).map_err(Failure::environment)
    }
}

/// The end of a command whose user stopped it while programs ran.
pub(crate) fn interrupted() -> Failure {
    Failure { code: exit::INTERRUPTED, message: "interrupted between the runs".to_owned() }
}
