//! `chatctl compare`: the results of two builds compared.

use std::path::PathBuf;

use chatctl::report::compare::{self, Sides};
use chatctl::run::results::read_all;

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
    let (base, new) = (read_all(&args.base)?, read_all(&args.new)?);
    let difference = compare::same_scenario(&base, &new).err();
    if let (Some(difference), false) = (&difference, args.different_scenarios) {
        let name = new.first().map(|r| r.scenario.clone()).unwrap_or_default();
        let failure = Failure::usage(format!("{difference}; --different-scenarios compares them all the same"));
        return Err(args.reporting.refuse(&name, failure));
    }
    let sides = Sides { base: &base, new: &new, are_interleaved: false };
    let mut comparison = compare::compare(&sides, args.reporting.rules());
    comparison.notes.extend(difference);
    args.reporting.report(&comparison)
}
