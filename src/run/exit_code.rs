//! Exit codes of the command: what a run in a process of its own says to the one that started it. A number is never reused.

/// All is well.
pub const PASS: u8 = 0;
/// A threshold failed.
pub const THRESHOLD: u8 = 1;
/// The command line or the scenario is wrong.
pub const USAGE: u8 = 2;
/// Something outside is missing or broken: an address, an engine, a folder.
pub const ENVIRONMENT: u8 = 3;
/// A guarantee was broken: something was lost, repeated, reordered or leaked.
pub const LEDGER: u8 = 4;
/// The run is inconclusive: the generator or its machine was the limit. compare, check: of the new build, or the baseline is unsound.
pub const INVALID: u8 = 5;
/// A build is worse than the one before.
pub const WORSE: u8 = 6;
/// The runs are too few or too noisy to tell.
pub const NOT_ENOUGH_DATA: u8 = 7;
/// Stopped by ctrl-c, SIGTERM or SIGHUP, or when nobody reads its lines any more; results are written all the same.
pub const INTERRUPTED: u8 = 130;
