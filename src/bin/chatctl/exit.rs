//! Exit codes of runs, errors and several runs.

use chatctl::loadgen::result::{RunResult, Verdict};
use chatctl::run::ErrorKind;
pub(crate) use chatctl::run::exit_code::{
    ENVIRONMENT, INTERRUPTED, INVALID, LEDGER, NOT_ENOUGH_DATA, PASS, THRESHOLD, USAGE, WORSE,
};

/// Shown under `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0    pass
  1    a threshold failed (compare, check: in a run of the new build);
       capacity: no rate holds
  2    wrong usage or a bad scenario
  3    environment: an address, a port, an engine, a file or the machine is
       missing, in use or not enough; a result could not be written;
       check: a run could not be done, or no baseline (--require-baseline);
       compare: a run left no result
  4    the ledger found a violation: lost, duplicated, out of order, leaked
       (compare, check: in a run of the new build)
  5    the run is invalid: the generator was late (capacity: the limit);
       compare, check: so are runs, or the baseline is unsound
  6    compare, check: the new build is worse by more than a limit
  7    not enough data (compare, check: an interval reaches past its limit,
       or too few runs; capacity: too few samples for a threshold)
  130  interrupted, or nobody reads standard output any more; results are
       written all the same";

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
}

impl From<chatctl::run::Error> for Failure {
    fn from(error: chatctl::run::Error) -> Self {
        let code = match error.kind {
            ErrorKind::Usage => USAGE,
            ErrorKind::Environment => ENVIRONMENT,
            ErrorKind::Interrupted => INTERRUPTED,
            ErrorKind::Inconclusive => INVALID,
            ErrorKind::Violated => LEDGER,
            ErrorKind::NotEnoughData => NOT_ENOUGH_DATA,
        };
        Self { code, message: error.to_string() }
    }
}

impl From<chatctl::stack::StackError> for Failure {
    fn from(error: chatctl::stack::StackError) -> Self {
        chatctl::run::Error::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use chatctl::loadgen::result::Counts;

    use super::*;

    #[test]
    fn the_help_keeps_its_indentation_on_a_terminal_of_80_columns() {
        assert!(HELP.lines().all(|line| line.chars().count() < 80), "{HELP}");
    }

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
