//! How a set of runs is shown: a line per run on standard output.

use chatctl::loadgen::capacity::Cause;
use chatctl::loadgen::result::Verdict;
use chatctl::report::{compare, counted, human_count, human_us};
use chatctl::run::capacity::Trial;
use chatctl::run::{Progress, ProgressObserver, RunLabel};
use chatctl::runtime::Tasks;
use chatctl::telemetry::{LatencyPath, Percentile, printable, printable_lines};

use crate::output::{self, out, outln};

/// Lines on standard output, whose end interrupts the runs.
pub(crate) struct ProgressLines<'a> {
    pub(crate) interrupt: &'a Tasks,
}

impl ProgressObserver for ProgressLines<'_> {
    fn progress(&self, progress: Progress<'_>) {
        match progress {
            Progress::BaselineFound { folder, runs, version } => {
                let version = printable(version);
                outln!("baseline   {} of version {version} in {}", counted(runs.into(), "run"), folder.display());
            }
            Progress::BaselineBegins { folder, runs } => {
                outln!("baseline   made from this build in {}: {}", folder.display(), counted(runs.into(), "run"));
            }
            Progress::RunBegins(label) => {
                out!("{:<22} ", words(label));
                output::interrupt_unread(self.interrupt);
            }
            Progress::RunEnds(result) => {
                let figures = compare::headline(result).into_iter();
                let figures = figures.map(|(name, us)| format!("{name} {}", human_us(us.round() as u64)));
                outln!("{}  {}", result.verdict.word(), figures.collect::<Vec<_>>().join("  "));
            }
            Progress::RunFailed(error) => {
                outln!("could not be done: {}", printable_lines(&error.to_string()));
            }
            // The error begins on a line of its own.
            Progress::RunAborted | Progress::TrialFailed => outln!(""),
            Progress::GuaranteeBroken(side) => {
                outln!("           {} broke a guarantee: more runs would change nothing", side.word());
            }
            Progress::MorePairs { pairs, more } => {
                let pairs = counted(pairs.into(), "pair");
                outln!("open       something is open after {pairs}: {more} more");
            }
            Progress::TrialBegins { number, rate } => {
                out!("trial {number:<4} {:>9} messages/s ", human_count(rate.round() as u64));
                output::interrupt_unread(self.interrupt);
            }
            Progress::TrialEnds(trial, cause) => outln!("{}", line(trial, cause)),
            Progress::CalibrationBegins(scenario) => {
                outln!("calibrate  {}, {:.0} s", scenario.description, scenario.duration().as_secs_f64());
                output::interrupt_unread(self.interrupt);
            }
        }
    }
}

/// Which run it is, in words.
fn words(label: RunLabel) -> String {
    match label {
        RunLabel::WarmUp(None) => "warm-up".to_owned(),
        RunLabel::WarmUp(Some(side)) => format!("warm-up, {}", side.word()),
        RunLabel::Pair { number, pairs, side } => format!("pair {number}/{pairs}, {}", side.word()),
        RunLabel::Baseline { number, runs } => format!("baseline {number}/{runs}"),
    }
}

/// What a trial showed, in a line.
fn line(trial: &Trial, cause: Option<&Cause>) -> String {
    let result = &trial.result;
    let p99 = result.latency.get(LatencyPath::Delivery).map_or("-".to_owned(), |s| s.shown(Percentile::P99));
    let word = match (cause, result.verdict) {
        // By its own verdict it passed.
        (Some(_), Verdict::Pass) => "FAIL",
        (_, verdict) => verdict.word(),
    };
    let why = cause.map(|cause| format!("  {}", cause.text())).unwrap_or_default();
    format!(
        "{:>9} deliveries/s  p99 {p99:>8}  generator late p99 {:>8}  {word}{why}",
        human_count(trial.steady.deliveries_per_s.round() as u64),
        result.generator.lag.shown(Percentile::P99),
    )
}
