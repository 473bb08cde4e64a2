//! `chatctl compare`: the results of two builds compared.

use std::path::PathBuf;

use chatctl::report::compare::{self, Comparison, Defect, Problem, Side, Sides};
use chatctl::run::results::{FoundRuns, read_all};

use crate::exit::Failure;
use crate::reporting::Reporting;

#[derive(clap::Args)]
pub(crate) struct CompareArgs {
    /// The known build: a result.json, the folder of a run, or a folder of such folders
    base: PathBuf,
    /// The new build: the same
    new: PathBuf,
    /// Compare although the scenarios differ
    #[arg(long)]
    different_scenarios: bool,
    #[command(flatten)]
    reporting: Reporting,
}

pub(crate) fn run_compare(args: CompareArgs) -> Result<u8, Failure> {
    args.reporting.probe()?;
    let read = |path| read_all(path).map_err(|error| args.reporting.refuse("", error.into()));
    let (base, new) = (read(&args.base)?, read(&args.new)?);
    let difference = compare::same_scenario(&base.results, &new.results).err();
    if let (Some(difference), false) = (&difference, args.different_scenarios) {
        let name = new.results.first().map(|r| r.scenario.clone()).unwrap_or_default();
        let failure = Failure::usage(format!("{difference}; --different-scenarios compares them all the same"));
        return Err(args.reporting.refuse(&name, failure));
    }
    let sides = Sides { base: &base.results, new: &new.results, are_interleaved: false };
    let mut comparison = compare::compare(&sides, args.reporting.rules());
    comparison.notes.extend(difference);
    add_unfinished(&mut comparison, Side::Base, base);
    add_unfinished(&mut comparison, Side::New, new);
    args.reporting.report(&comparison)
}

/// Runs without a result are problems of their side: a build that crashes in every second run is not the same as one that does
/// not.
fn add_unfinished(comparison: &mut Comparison, side: Side, found: FoundRuns) {
    for (n, text) in found.without_result.into_iter().enumerate() {
        let run = Some(found.results.len() + n + 1);
        comparison.add_problem(Problem { side, run, defect: Defect::NotRun, reasons: vec![text] });
    }
}
