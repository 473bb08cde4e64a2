//! Exit codes. A number is never reused.

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
/// Stopped by ctrl-c, or when nobody reads its lines any more; results are written all the same.
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
