//! Everything that `load` refuses before it starts anything, and `--check` with it.

use std::path::Path;

use chatctl::loadgen::control::StackControl;
use chatctl::loadgen::{self, RunError, Scenario, Target, fleet};
use chatctl::stack::StackError;

use crate::exit::Failure;
use crate::layout::Against;
use crate::own_stack::OwnStack;

/// Refuses a scenario that can't be run against what it is aimed at. Nothing is started or written.
pub(crate) async fn check(file: &Path, scenario: &Scenario, against: &Against) -> Result<(), Failure> {
    let placed = |path: &str, problem: String| refused(file, path, &problem);
    let target = target(against.target.as_deref())?;
    let parts = against.parts()?;
    if parts > 1 {
        fleet::split(scenario, parts).map_err(|problem| placed("population", problem))?;
    }
    population(file, scenario)?;
    let stack = if let Some(target) = &target {
        OwnStack::find(target, &against.at.stack).await
    } else {
        let config = OwnStack::config(scenario);
        config.check().map_err(|problem| placed("stack", StackError::Config(problem).to_string()))?;
        Some(OwnStack::Planned(Box::new(config)))
    };
    let control = stack.as_ref().map(|stack| stack as &dyn StackControl);
    for (n, fault) in scenario.faults.iter().enumerate() {
        loadgen::check_fault(&fault.action, control).await.map_err(|error| match error {
            RunError::Usage(problem) => placed(&format!("faults[{n}].do"), problem),
            RunError::Environment(problem) => Failure::environment(problem),
        })?;
    }
    Ok(())
}

/// Refuses a population in which nobody can send what the phases ask for.
pub(crate) fn population(file: &Path, scenario: &Scenario) -> Result<(), Failure> {
    loadgen::check_talkers(scenario).map_err(|problem| refused(file, "behaviors", &problem))
}

/// The address that a run is aimed at, when it is not at a stack of its own.
pub(crate) fn target(text: Option<&str>) -> Result<Option<Target>, Failure> {
    text.map(Target::parse).transpose().map_err(|problem| Failure::usage(format!("--target: {problem}")))
}

fn refused(file: &Path, path: &str, problem: &str) -> Failure {
    Failure::usage(format!("{}: {path}: {problem}", Scenario::place(file, path)))
}
