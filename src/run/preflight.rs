//! Everything that `load` refuses before it starts anything, and `--check` with it.

use std::path::{Path, PathBuf};

use crate::loadgen::control::StackControl;
use crate::loadgen::{self, RunError, Scenario, Target, fleet};
use crate::run::own_stack::OwnStack;
use crate::run::{Error, Layout, layout};
use crate::runtime::limits::Machine;
use crate::stack::StackError;

/// Reads scenarios and checks each of them: what `load --check` does, and `load` before it starts anything. `seed` overrides that
/// of the scenarios.
///
/// # Errors
/// Names the file, the line and the field that is wrong.
pub async fn read(files: &[PathBuf], seed: Option<u64>, layout: &Layout) -> Result<Vec<Scenario>, Error> {
    let read = |file: &PathBuf| -> Result<Scenario, Error> {
        let scenario = Scenario::read(file).map_err(Error::usage)?;
        Ok(Scenario { seed: seed.unwrap_or(scenario.seed), ..scenario })
    };
    let scenarios = files.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    for (file, scenario) in files.iter().zip(&scenarios) {
        check(file, scenario, layout).await?;
    }
    Ok(scenarios)
}

/// Refuses a scenario that can't be run against what it is aimed at. Nothing is started or written. `file` is where the scenario
/// was read from.
///
/// # Errors
/// Names the file, the line and the field that is wrong, or the settings of the layout that exclude each other.
pub async fn check(file: &Path, scenario: &Scenario, layout: &Layout) -> Result<(), Error> {
    let placed = |path: &str, problem: String| refused(file, path, &problem);
    layout.check()?;
    let fitted = layout::fitted(scenario, &Machine::read(), layout.has_own_stack(), |_| ());
    let scenario = &fitted.map_err(|misfit| placed(&misfit.path, misfit.problem))?;
    let parts = layout.parts();
    if parts > 1 {
        fleet::split(scenario, parts).map_err(|problem| placed("population", problem))?;
    }
    population(file, scenario)?;
    let stack = if let Some(target) = &layout.target {
        OwnStack::find(target, &layout.stack_folder).await
    } else {
        let config = OwnStack::config(scenario);
        config.check().map_err(|problem| placed("stack", StackError::Config(problem).to_string()))?;
        Some(OwnStack::Planned(Box::new(config)))
    };
    let control = stack.as_ref().map(|stack| stack as &dyn StackControl);
    for (n, fault) in scenario.faults.iter().enumerate() {
        loadgen::check_fault(&fault.action, control).await.map_err(|error| match error {
            RunError::Usage(problem) => placed(&format!("faults[{n}].do"), problem),
            RunError::Environment(problem) => Error::environment(problem),
        })?;
    }
    Ok(())
}

/// Refuses a population in which nobody can send what the phases ask for.
///
/// # Errors
/// Names the file and the line.
pub fn population(file: &Path, scenario: &Scenario) -> Result<(), Error> {
    loadgen::check_talkers(scenario).map_err(|problem| refused(file, "behaviors", &problem))
}

/// The address that a run is aimed at, when it is not at a stack of its own.
///
/// # Errors
/// Says what is wrong with the address.
pub fn target(text: Option<&str>) -> Result<Option<Target>, Error> {
    text.map(Target::parse).transpose().map_err(|problem| Error::usage(problem).at("--target"))
}

fn refused(file: &Path, path: &str, problem: &str) -> Error {
    Error::usage(problem).at(format!("{}: {path}", Scenario::place(file, path)))
}
