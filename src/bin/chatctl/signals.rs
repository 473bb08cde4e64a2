//! Signals of a verb that runs something: the first one interrupts, the second one ends the process.

use chatctl::run;
use chatctl::runtime::{Tasks, temporary};

use crate::exit::{self, Failure};

/// Watches until the process ends.
pub(crate) fn watch(interrupt: &Tasks) -> Result<(), Failure> {
    let end = || {
        // Not `restore`: it prints what goes wrong, and panics where nobody reads standard error any more.
        let _ = ratatui::try_restore();
        temporary::remove_all();
        std::process::exit(exit::INTERRUPTED.into());
    };
    Ok(run::signals::watch(interrupt, end)?)
}
