//! Everything that `load` refuses before it starts anything, and `--check` with it.

use std::path::{Path, PathBuf};

use crate::loadgen::control::StackControl;
use crate::loadgen::{self, RunError, Scenario, Target, fleet};
use crate::run::own_stack::OwnStack;
use crate::run::{Error, Layout, RunFiles, layout};
use crate::runtime::limits::Machine;
use crate::runtime::machine::raise_open_files;
use crate::stack::StackError;

/// Reads scenarios and checks each of them, and that their files would not write over each other: what `load --check` does,
/// and `load` before it starts anything. `seed` overrides that of the scenarios.
///
/// # Errors
/// Names the file, the line and the field that is wrong, or the name that two scenarios have.
pub async fn read(
    files: &[PathBuf],
    seed: Option<u64>,
    layout: &Layout,
    written: &RunFiles,
) -> Result<Vec<Scenario>, Error> {
    let read = |file: &PathBuf| -> Result<Scenario, Error> {
        let scenario = Scenario::read(file).map_err(Error::usage)?;
        Ok(Scenario { seed: seed.unwrap_or(scenario.seed), ..scenario })
    };
    let scenarios = files.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    for (file, scenario) in files.iter().zip(&scenarios) {
        check(file, scenario, layout).await?;
    }
    written.check_names(&scenarios)?;
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
    let machine = Machine::read();
    let fitted = layout::fitted(scenario, &machine, layout.has_own_stack(), |_| ());
    let scenario = &fitted.map_err(|misfit| placed(&misfit.path, misfit.problem))?;
    parts(file, scenario, layout.parts(scenario, &machine, raise_open_files()))?;
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

/// Refuses a scenario that can't be cut into the parts that it would be run in.
fn parts(file: &Path, scenario: &Scenario, parts: usize) -> Result<(), Error> {
    if parts > 1 {
        fleet::split(scenario, parts).map_err(|problem| refused(file, "population", &problem))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{ErrorKind, Generators};

    const CHANNEL: &str = "{name: t, population: {users: 60000, groups: [{count: 1, members: {min: 50000, max: 50000}}]}, \
                           behaviors: {group-talker: 1}, phases: [{phase: steady, duration: 1s, rate: 20}]}";

    #[test]
    fn a_group_that_fits_in_no_process_is_refused_however_the_processes_were_chosen() {
        let scenario = Scenario::parse(CHANNEL, "t").expect("valid");
        let files = 20_900;
        let small = Machine { files_per_process: files, ..Machine::read() };
        let refused = |generators, files| {
            let layout = Layout { generators, ..Layout::default() };
            parts(Path::new("t"), &scenario, layout.parts(&scenario, &small, files))
        };
        for generators in [Generators::Auto, Generators::Local(3)] {
            let error = refused(generators, files).expect_err("a group is larger than a part");
            assert_eq!(error.kind, ErrorKind::Usage);
            assert!(error.to_string().contains("does not fit into one of 3 workers"), "{error}");
        }
        assert!(refused(Generators::Auto, 200_000).is_ok(), "one process holds it");
        assert!(refused(Generators::Local(1), files).is_ok());
    }
}
