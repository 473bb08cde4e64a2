//! Exit codes. A number is never reused.

use std::path::Path;

use chatctl::loadgen::result::{RunResult, Verdict};

/// All is well.
pub(crate) const PASS: u8 = 0;
/// A threshold failed.
pub(crate) const THRESHOLD: u8 = 1;
/// The command line or the scenario is wrong.
pub(crate) const USAGE: u8 = 2;
/// Something outside is missing or broken: an address, an engine, a folder.
pub(crate) const ENVIRONMENT: u8 = 3;
/// A guarantee was broken: something was lost, repeated, reordered or leaked.
pub(crate) const LEDGER: u8 = 4;
/// The run is inconclusive: the generator or its machine was the limit. compare, check: of the new build, or the baseline is unsound.
pub(crate) const INVALID: u8 = 5;
/// A build is worse than the one before.
pub(crate) const WORSE: u8 = 6;
/// The runs are too few or too noisy to tell.
pub(crate) const NOT_ENOUGH_DATA: u8 = 7;
/// Stopped by ctrl-c, SIGTERM or SIGHUP, or when nobody reads its lines any more; results are written all the same.
pub(crate) const INTERRUPTED: u8 = 130;

/// Shown under `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0    pass
  1    a threshold failed (compare, check: in a run of the new build); capacity: no rate holds
  2    wrong usage or a bad scenario
  3    environment: something outside is missing or broken; check: a run could not be done, or no baseline (--require-baseline)
  4    the ledger found a violation: lost, duplicated, out of order, leaked (compare, check: in a run of the new build)
  5    the run is invalid: the generator was late (capacity: the limit); compare, check: so are runs, or the baseline is unsound
  6    compare, check: the new build is worse by more than a limit
  7    compare, check: not enough data: an interval reaches past its limit
  130  interrupted, or nobody reads standard output any more; results are written all the same";

/// The exit code of a run. A broken guarantee outranks everything, also that the run was interrupted.
pub(crate) fn of(result: &RunResult) -> u8 {
    if !result.counts.violations().is_empty() {
        return LEDGER;
    }
    match result.verdict {
        Verdict::Pass => PASS,
        Verdict::ThresholdFailed => THRESHOLD,
        Verdict::LedgerViolated => LEDGER,
        Verdict::Invalid => INVALID,
        Verdict::Interrupted => INTERRUPTED,
    }
}

/// The exit code of a run whose files were not all written: the verdict's, unless that was a pass.
pub(crate) const fn with_problems(code: u8, has_problems: bool) -> u8 {
    if code == PASS && has_problems { ENVIRONMENT } else { code }
}

/// The exit code of several runs.
pub(crate) fn gravest(codes: impl Iterator<Item = u8>) -> u8 {
    const ORDER: [u8; 7] = [LEDGER, INTERRUPTED, USAGE, ENVIRONMENT, INVALID, THRESHOLD, PASS];
    codes.min_by_key(|code| ORDER.iter().position(|c| c == code)).unwrap_or(PASS)
}

/// An error message with its exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn usage(message: impl ToString) -> Self {
        Self { code: USAGE, message: message.to_string() }
    }

    pub(crate) fn environment(message: impl ToString) -> Self {
        Self { code: ENVIRONMENT, message: message.to_string() }
    }

    /// The same with the place of the logs that may say more.
    pub(crate) fn with_logs(mut self, logs: Option<&Path>) -> Self {
        if let Some(logs) = logs {
            self.message.push_str(&format!("\n(logs of the servers in {})", logs.display()));
        }
        self
    }

    /// The same for a stack on the engines of this machine: says how they are brought up.
    pub(crate) fn of_local_engines(error: chatctl::stack::StackError) -> Self {
        let is_about_engines = matches!(error, chatctl::stack::StackError::Backend(_));
        let mut failure = Self::from(error);
        if is_about_engines {
            failure.message.push_str(
                "\n(`scripts/engines install` and `scripts/engines start` bring up the engines of this machine)",
            );
        }
        failure
    }
}

impl From<chatctl::stack::StackError> for Failure {
    fn from(error: chatctl::stack::StackError) -> Self {
        match error {
            chatctl::stack::StackError::Config(_) => Self::usage(error),
            _ => Self::environment(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use chatctl::loadgen::result::Counts;

    use super::*;

    #[test]
    fn a_broken_guarantee_outranks_an_interruption() {
        let result =
            |verdict, lost| RunResult { verdict, counts: Counts { lost, ..Counts::default() }, ..RunResult::default() };
        assert_eq!(of(&result(Verdict::Interrupted, 0)), INTERRUPTED);
        assert_eq!(of(&result(Verdict::Interrupted, 1)), LEDGER);
        assert_eq!(of(&result(Verdict::Invalid, 1)), LEDGER);
        assert_eq!(of(&result(Verdict::Pass, 0)), PASS);
    }

    #[test]
    fn files_that_were_not_written_change_a_pass_and_nothing_else() {
        let codes = [PASS, THRESHOLD, LEDGER, INVALID, INTERRUPTED].map(|code| with_problems(code, true));
        assert_eq!(codes, [ENVIRONMENT, THRESHOLD, LEDGER, INVALID, INTERRUPTED]);
        assert_eq!(with_problems(PASS, false), PASS);
    }

    #[test]
    fn the_gravest_code_of_several_runs_is_the_one_that_counts() {
        let of = |codes: &[u8]| gravest(codes.iter().copied());
        assert_eq!(of(&[0, 1, 5]), INVALID);
        assert_eq!(of(&[1, 4, 3]), LEDGER);
        assert_eq!(of(&[0, 0]), PASS);
    }
}
