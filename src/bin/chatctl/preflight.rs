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
    let placed = |path: &str, problem: String| {
        let place = Scenario::place(file, path);
        Failure::usage(format!("{place}: {path}: {problem}"))
    };
    let target = against.target()?;
    let parts = against.parts()?;
    if parts > 1 {
        fleet::split(scenario, parts).map_err(|problem| placed("population", problem))?;
    }
    loadgen::check_talkers(scenario).map_err(|problem| placed("behaviors", problem))?;
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

impl Against {
    /// The address that the run is aimed at, when it is not at a stack of its own.
    pub(crate) fn target(&self) -> Result<Option<Target>, Failure> {
        let parsed = self.target.as_deref().map(Target::parse).transpose();
        parsed.map_err(|problem| Failure::usage(format!("--target: {problem}")))
    }
}
