//! `chatctl check`: a scenario by the baseline's build and by this one, in turn.

use std::path::PathBuf;

use chatctl::loadgen::Scenario;
use chatctl::report::compare::Comparison;
use chatctl::run::check::{Check, CheckSettings, check_scenario};
use chatctl::run::runner;
use chatctl::runtime::Tasks;

use crate::exit::Failure;
use crate::progress::ProgressLines;
use crate::reporting::Reporting;
use crate::signals;

#[derive(clap::Args)]
pub(crate) struct CheckArgs {
    /// Scenario file; short ones, such as scenarios/gate.yaml, are best
    scenario: PathBuf,
    /// Folder of the baseline; made from this build where there is none, and then nothing is compared
    #[arg(long, value_name = "DIR")]
    baseline: PathBuf,
    /// Pairs of runs, of the baseline's build and of this one in turn. Fewer than 10 tell only what doubles from chance, and of
    /// fewer than 5 nothing is ever shown to be the same
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=200))]
    runs: u32,
    /// Pairs up to which they are doubled where something is left open; four times --runs without it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=800))]
    runs_max: Option<u32>,
    /// API address of a running stack: its runs are compared with those of the baseline, not in turn
    #[arg(long, value_name = "URL", env = "CHATCTL_TARGET")]
    target: Option<String>,
    /// Fail where there is no baseline, instead of making one (exit 3)
    #[arg(long, conflicts_with = "update_baseline")]
    require_baseline: bool,
    /// Make the baseline anew from this build; nothing is compared
    #[arg(long)]
    update_baseline: bool,
    #[command(flatten)]
    reporting: Reporting,
}

pub(crate) fn run(args: CheckArgs) -> Result<u8, Failure> {
    args.reporting.probe()?;
    let refuse = |name: &str, failure| args.reporting.refuse(name, failure);
    let file = args.scenario.display().to_string();
    let scenario = Scenario::read(&args.scenario).map_err(|error| refuse(&file, Failure::usage(error)))?;
    let comparison = compared(&args, &scenario).map_err(|failure| refuse(&scenario.name, failure))?;
    args.reporting.report(&comparison)
}

/// Runs the check.
fn compared(args: &CheckArgs, scenario: &Scenario) -> Result<Comparison, Failure> {
    if let Some(max) = args.runs_max.filter(|max| *max < args.runs) {
        let runs = args.runs;
        return Err(Failure::usage(format!("--runs-max {max} is below --runs {runs}: leave it out, or raise it")));
    }
    check_scenario(&args.scenario, scenario, args.target.as_deref())?;
    let interrupt = Tasks::new();
    let observer = ProgressLines { interrupt: &interrupt };
    let runtime = runner::runtime()?;
    runtime.block_on(async {
        signals::watch(&interrupt)?;
        let check = Check::open(CheckSettings {
            file: &args.scenario,
            scenario,
            baseline: &args.baseline,
            runs: args.runs,
            runs_max: args.runs_max,
            target: args.target.as_deref(),
            is_baseline_required: args.require_baseline,
            is_made_anew: args.update_baseline,
            rules: args.reporting.rules(),
            interrupt: &interrupt,
            observer: &observer,
        });
        Ok(check?.run().await?)
    })
}
