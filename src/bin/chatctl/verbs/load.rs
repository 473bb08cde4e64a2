//! `chatctl load`: runs a scenario, shows it, ends with a verdict.

use std::net::SocketAddr;
use std::path::PathBuf;

use chatctl::loadgen::Scenario;
use chatctl::loadgen::result::{Counts, RunResult};
use chatctl::report::{self, summary};
use chatctl::run::{self, FinishedRun, RunFiles, RunSettings, preflight, runner};
use chatctl::runtime::Tasks;
use chatctl::telemetry::{LatencyPath, Percentile};

use crate::cli::{LayoutArgs, Ui};
use crate::display::Display;
use crate::exit::{self, Failure};
use crate::output::{errln, outln};
use crate::process::init_logging;
use crate::signals;
use crate::table::Table;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Scenario files, such as scenarios/quickstart.yaml; several run one after the other
    #[arg(required = true, value_name = "SCENARIO")]
    scenarios: Vec<PathBuf>,
    #[command(flatten)]
    layout: LayoutArgs,
    /// Folder for report.html, result.json, CSV and .hlog files; with several scenarios, a folder in it for each
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// File for every event as lines of JSON; with several scenarios, a folder with a file for each
    #[arg(long, value_name = "PATH")]
    history: Option<PathBuf>,
    /// Overrides the scenario's seed
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How to show the run
    #[arg(long, value_enum, default_value_t = Ui::Auto)]
    ui: Ui,
    /// Serves the generator's own figures for Prometheus at http://IP:PORT/metrics while it runs
    #[arg(long, value_name = "IP:PORT")]
    metrics: Option<SocketAddr>,
    /// Checks the scenario and ends
    #[arg(long)]
    check: bool,
}

/// A run that came to its end.
struct Done {
    result: RunResult,
    code: u8,
}

/// What came of one of several scenarios.
enum Outcome {
    /// It came to a verdict.
    Done(Box<Done>),
    /// It has no result.
    Failed(Failure),
    /// The command was interrupted before it.
    NotRun,
}

impl Outcome {
    fn code(&self) -> u8 {
        match self {
            Self::Done(done) => done.code,
            Self::Failed(failure) => failure.code,
            Self::NotRun => exit::INTERRUPTED,
        }
    }

    /// The result, or the word that stands in its place.
    fn result(&self) -> Result<&RunResult, &'static str> {
        match self {
            Self::Done(done) => Ok(&done.result),
            Self::Failed(_) => Err("ERROR"),
            Self::NotRun => Err("NOT RUN"),
        }
    }
}

pub(crate) fn run(args: Args) -> Result<u8, Failure> {
    let layout = args.layout.layout()?;
    let runtime = runner::runtime()?;
    let are_several = args.scenarios.len() > 1;
    let files = RunFiles { out: args.out.clone(), history: args.history.clone(), are_several };
    let scenarios = runtime.block_on(preflight::read(&args.scenarios, args.seed, &layout, &files))?;
    if args.check {
        for (path, scenario) in args.scenarios.iter().zip(&scenarios) {
            outln!("{}: valid, {:.0} s", path.display(), scenario.duration().as_secs_f64());
        }
        return Ok(exit::PASS);
    }
    let display = Display::choose(args.ui)?;
    files.probe(&scenarios)?;
    files.remove_old(&scenarios)?;
    if display != Display::Screen {
        init_logging();
    }
    let interrupt = Tasks::new();
    runtime.block_on(async { signals::watch(&interrupt) })?;
    let run = |scenario: &Scenario| {
        let out = files.folder(scenario);
        let settings = RunSettings {
            layout: &layout,
            observer: display.observer(&interrupt),
            history: files.history(scenario),
            out: out.as_deref(),
            metrics: args.metrics,
            interrupt: &interrupt,
        };
        runtime.block_on(run_one(scenario, &settings))
    };
    if let [scenario] = &scenarios[..] {
        return run(scenario).map(|done| done.code);
    }
    let outcomes = run_all(&scenarios, || interrupt.is_stopped(), run);
    outln!("\n{}\n{}", overview(&outcomes), costs(&outcomes));
    Ok(exit::gravest(outcomes.iter().map(|(_, outcome)| outcome.code())))
}

/// Runs scenarios one after the other. Interrupted, the rest is not run: also when the interruption came too late to be seen by
/// the one that was under way.
fn run_all(
    scenarios: &[Scenario],
    is_interrupted: impl Fn() -> bool,
    run: impl Fn(&Scenario) -> Result<Done, Failure>,
) -> Vec<(String, Outcome)> {
    let one = |scenario: &Scenario| {
        if is_interrupted() {
            return Outcome::NotRun;
        }
        match run(scenario) {
            Ok(done) => Outcome::Done(Box::new(done)),
            Err(failure) => {
                errln!("chatctl: {}: {}", scenario.name, failure.message);
                Outcome::Failed(failure)
            }
        }
    };
    scenarios.iter().map(|scenario| (scenario.name.clone(), one(scenario))).collect()
}

/// Runs a scenario and prints what came of it. What can't be written then does not hide the verdict.
async fn run_one(scenario: &Scenario, settings: &RunSettings<'_>) -> Result<Done, Failure> {
    let FinishedRun { result, series, logs, mut problems } = run::run(scenario, settings).await?;
    outln!("\n{}", summary::render(&result, summary::Style::of_output()).trim_end());
    if let Some(folder) = settings.out {
        problems.extend(report::write_all(folder, &result, &series).err().map(|e| e.to_string()));
        if problems.is_empty() {
            outln!("\nwritten to {}", folder.display());
        }
    }
    if let Some(logs) = logs {
        outln!("logs of the servers in {}", logs.display());
    }
    for problem in &problems {
        errln!("chatctl: not everything was written: {problem}");
    }
    Ok(Done { code: exit::with_problems(exit::of(&result), !problems.is_empty()), result })
}

/// One line for each of several scenarios.
fn overview(outcomes: &[(String, Outcome)]) -> Table<9> {
    let mut table = Table::new([
        "SCENARIO",
        "VERDICT",
        "ACKED",
        "LOST",
        "DUPLICATED",
        "OUT OF ORDER",
        "ID REUSE",
        "OTHER",
        "RECOVERED AFTER",
    ]);
    for (name, outcome) in outcomes {
        let result = match outcome.result() {
            Ok(result) => result,
            Err(word) => {
                let dash = || "-".to_owned();
                table.row([name.clone(), word.to_owned(), dash(), dash(), dash(), dash(), dash(), dash(), dash()]);
                continue;
            }
        };
        let c = &result.counts;
        let seconds = || format!("{:.2} s", c.recovery_ms_max as f64 / 1e3);
        let recovered = if result.faults.is_empty() { "-".to_owned() } else { seconds() };
        table.row([
            name.clone(),
            result.verdict.word().to_owned(),
            report::human_count(c.acked),
            c.lost.to_string(),
            c.duplicated.to_string(),
            c.out_of_order.to_string(),
            c.id_reuse.to_string(),
            other_violations(c).to_string(),
            recovered,
        ]);
    }
    table
}

/// Broken guarantees that have no column of their own.
fn other_violations(counts: &Counts) -> u64 {
    let shown = [counts.lost, counts.duplicated, counts.out_of_order, counts.id_reuse];
    counts.violations().values().sum::<u64>() - shown.iter().sum::<u64>()
}

/// What each of several scenarios took, side by side.
fn costs(outcomes: &[(String, Outcome)]) -> Table<9> {
    let mut table = Table::new([
        "SCENARIO",
        "ACK P50",
        "P99",
        "DELIVERY P50",
        "P99",
        "HTTP REQUESTS",
        "BYTES OUT",
        "BYTES IN",
        "STACK CPU",
    ]);
    for (name, outcome) in outcomes {
        let Ok(result) = outcome.result() else { continue };
        let c = &result.counts;
        let quantiles = |path: LatencyPath| {
            let seen = result.latency.get(path).copied().unwrap_or_default();
            (seen.shown(Percentile::P50), seen.shown(Percentile::P99))
        };
        let ((ack_p50, ack_p99), (delivery_p50, delivery_p99)) =
            (quantiles(LatencyPath::Ack), quantiles(LatencyPath::Delivery));
        let cpu_s = result.stack_cpu_s();
        table.row([
            name.clone(),
            ack_p50,
            ack_p99,
            delivery_p50,
            delivery_p99,
            report::human_count(c.poll_requests),
            report::human_bytes(c.bytes_out),
            report::human_bytes(c.bytes_in),
            if cpu_s > 0.0 { format!("{cpu_s:.2} s") } else { "-".to_owned() },
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn every_broken_guarantee_is_in_some_column() {
        let each = Counts { lost: 1, duplicated: 1, out_of_order: 1, id_reuse: 1, ..Counts::default() };
        assert_eq!(other_violations(&each), 0);
        let others = Counts {
            id_went_back: 1,
            leaked: 2,
            altered: 4,
            false_refusal: 8,
            ack_wrong: 16,
            forged: 32,
            presence_wrong: 64,
            presence_missed: 128,
            presence_leaked: 256,
            false_acceptance: 512,
            ..each
        };
        assert_eq!(other_violations(&others), 1_023);
    }

    #[test]
    fn scenarios_after_an_interruption_are_listed_as_not_run() {
        let named = |name: &str| {
            let text = format!(
                "{{name: {name}, population: {{users: 6, direct_per_user: 2}}, behaviors: {{one-to-one: 1}}, \
                 phases: [{{phase: steady, duration: 1s, rate: 20}}]}}"
            );
            Scenario::parse(&text, "t").expect("valid")
        };
        let scenarios = ["a", "b", "c"].map(named);
        let is_stopped = Cell::new(false);
        let run = |_: &Scenario| {
            // While its stack stops, when its verdict is known already.
            is_stopped.set(true);
            Ok(Done { result: RunResult::default(), code: exit::PASS })
        };
        let outcomes = run_all(&scenarios, || is_stopped.get(), run);
        let codes: Vec<u8> = outcomes.iter().map(|(_, outcome)| outcome.code()).collect();
        assert_eq!(codes, [exit::PASS, exit::INTERRUPTED, exit::INTERRUPTED]);
        assert_eq!(exit::gravest(codes.into_iter()), exit::INTERRUPTED);
        assert_eq!(overview(&outcomes).to_string().matches("NOT RUN").count(), 2);
    }
}
