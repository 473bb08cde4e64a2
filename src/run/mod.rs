//! One run from scenario to verdict, and sets of runs. Prints nothing: what happens goes to an observer.
//!
//! | file | what |
//! |---|---|
//! | `error` | why there is no result: what, where, the fix |
//! | `exit_code` | what a run in a process of its own says to the one that started it |
//! | `runner` | one run: stack, workers, load, record, result |
//! | `check` | a scenario by a baseline's build and by this one, in turn |
//! | `capacity` | the trials of a search for the highest load that holds |
//! | `calibration` | the constants of a plan, measured |
//! | `results` | results of finished runs, read for a comparison |
//! | `series_recorder` | the seconds of a run, kept and written down |
//! | `preflight` | everything that is refused before anything is started |
//! | `layout` | where target and generators are, and whether the machine holds the run |
//! | `own_stack` | the stack that is started for a run, and what can be done to it |
//! | `secret` | the secret shared with workers |
//! | `child_run` | one run in a process of its own |
//! | `observer` | what a run tells the one who started it |
//! | `metrics` | the generator's own figures for Prometheus |
//! | `signals` | what interrupts a run |
//! | `files` | where the files of runs go |
//! | `writable` | whether the files of a run can be written |

pub mod calibration;
pub mod capacity;
pub mod check;
mod child_run;
mod error;
pub mod exit_code;
mod files;
mod layout;
mod metrics;
mod observer;
mod own_stack;
pub mod preflight;
pub mod results;
pub mod runner;
pub mod secret;
mod series_recorder;
pub mod signals;
pub mod writable;

pub use error::{Error, ErrorKind};
pub use files::RunFiles;
pub use layout::{Generators, Layout, SourceAddresses};
pub use observer::{Notice, Observer, Progress, ProgressObserver, RunLabel, Silent};
pub use runner::{FinishedRun, RunSettings, run};
