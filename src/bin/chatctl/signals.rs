//! Signals of a verb that runs something: the first one interrupts, the second one ends the process.

use chatctl::run;
use chatctl::runtime::{Tasks, process, temporary};
use chatctl::tui;

use crate::exit::{self, Failure};

/// Watches until the process ends.
pub(crate) fn watch(interrupt: &Tasks) -> Result<(), Failure> {
    let end = || {
        tui::restore();
        // Runs in processes of their own were told once. Told again they end at once, too.
        process::end_all_apart();
        temporary::remove_all();
        std::process::exit(exit::INTERRUPTED.into());
    };
    Ok(run::signals::watch(interrupt, end)?)
}
