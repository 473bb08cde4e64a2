//! `chatctl capacity`: the highest load at which a scenario holds.

use std::path::PathBuf;
use std::time::Duration;

use chatctl::loadgen::Scenario;
use chatctl::loadgen::capacity::{self, Rules, TRIALS_MAX};
use chatctl::loadgen::scenario::threshold::Threshold;
use chatctl::report::{self, counted, human_count};
use chatctl::run::capacity::{Answer, CapacitySettings, search};
use chatctl::run::{preflight, runner, writable};
use chatctl::runtime::Tasks;
use chatctl::telemetry::printable_lines;

use crate::cli::LayoutArgs;
use crate::exit::{self, Failure};
use crate::output::{errln, outln};
use crate::process::init_logging;
use crate::progress::ProgressLines;
use crate::signals;

/// Highest rate of any trial, in messages per second: that of scenarios.
const RATE_MAX: f64 = 1e6;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Scenario file: its users and thresholds, at rates that the search chooses
    scenario: PathBuf,
    #[command(flatten)]
    layout: LayoutArgs,
    /// Length of each trial's steady part
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = crate::cli::duration)]
    trial: Duration,
    /// How close the answer is to be to the lowest load that fails, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
    precision: f64,
    /// By how many more trials the answer must hold than it fails
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    repeats: u32,
    /// First rate to try, in messages per second; the scenario's highest without it
    #[arg(long, value_name = "RATE")]
    start: Option<f64>,
    /// Highest rate to try, in messages per second
    #[arg(long, value_name = "RATE", default_value_t = 1e6)]
    max: f64,
    /// Threshold of every trial beside the scenario's own, such as "`delivery_ms.p99` < 200"; repeatable. Where none limits a
    /// latency: `ack_ms.p95` < 500 and `delivery_ms.p95` < 500
    #[arg(long, value_name = "THRESHOLD")]
    threshold: Vec<Threshold>,
    /// File for the answer as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn run(args: Args) -> Result<u8, Failure> {
    let mut scenario = Scenario::read(&args.scenario).map_err(Failure::usage)?;
    let added = capacity::add_thresholds(&mut scenario, &args.threshold);
    let start = args.start.unwrap_or_else(|| capacity::peak_rate(&scenario));
    if !(0.0..=RATE_MAX).contains(&args.max) {
        return Err(Failure::usage(format!("--max {}: valid are rates up to {RATE_MAX}", args.max)));
    }
    if !(start > 0.0 && args.max >= start) {
        let problem = "the first rate must be above 0 and at most --max: give --start, or a rate in the scenario";
        return Err(Failure::usage(format!("--start {start}: {problem}")));
    }
    if !(0.5..=100.0).contains(&args.precision) {
        return Err(Failure::usage(format!("--precision {}: valid are 0.5 to 100 percent", args.precision)));
    }
    if !(capacity::TRIAL_MIN..=Duration::from_hours(24)).contains(&args.trial) {
        let problem = "valid are 6s to 1day; in less, it does not show whether the stack keeps up";
        return Err(Failure::usage(format!("--trial {}: {problem}", humantime::format_duration(args.trial))));
    }
    if let Some(path) = &args.json {
        writable::probe_file("--json", path)?;
        // What an earlier search found is not the answer of one that fails.
        report::remove_old_file(path).map_err(|e| Failure::environment(format!("--json {}: {e}", path.display())))?;
    }
    init_logging();
    let layout = args.layout.layout()?;
    let interrupt = Tasks::new();
    let runtime = runner::runtime()?;
    let answer = runtime.block_on(async {
        // Faults are left out of the trials.
        let first = capacity::trial(&scenario, start, args.trial);
        if let Some((path, problem)) = first.problems().into_iter().next() {
            let place = Scenario::place(&args.scenario, &path);
            let trial = "of a trial, --start is the rate and --trial the duration";
            return Err(Failure::usage(format!("{place}: {path}: {problem} ({trial})")));
        }
        preflight::check(&args.scenario, &first, &layout).await?;
        signals::watch(&interrupt)?;
        print_heading(&args, &scenario, &added);
        let settings = CapacitySettings {
            scenario: &scenario,
            added_thresholds: added,
            layout: &layout,
            rules: Rules { start, max: args.max, precision: args.precision / 100.0, repeats: args.repeats },
            trial: args.trial,
            interrupt: &interrupt,
            observer: &ProgressLines { interrupt: &interrupt },
        };
        Ok::<_, Failure>(search(&settings).await?)
    })?;
    print_answer(&answer);
    let code = code(&answer);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&answer).map_err(Failure::environment)? + "\n";
        if let Err(error) = report::write_whole(path, text.as_bytes()) {
            errln!("chatctl: {}: {error}", path.display());
            return Ok(exit::with_problems(code, true));
        }
    }
    Ok(code)
}

/// The exit code of an answer.
fn code(answer: &Answer) -> u8 {
    match (answer.messages_per_s, answer.is_local) {
        _ if !answer.broken.is_empty() => exit::LEDGER,
        (_, true) => exit::INVALID,
        (None, false) => exit::THRESHOLD,
        (Some(_), false) => exit::PASS,
    }
}

fn print_heading(args: &Args, scenario: &Scenario, added: &[String]) {
    outln!(
        "capacity   {}: trials of {:?}; thresholds and ledger must hold, and 99 % of what is offered",
        scenario.name,
        args.trial
    );
    if args.threshold.is_empty() && !added.is_empty() {
        outln!("thresholds the scenario limits no latency: {} must hold too", added.join(" and "));
    } else if !added.is_empty() {
        outln!("thresholds {} must hold too", added.join(" and "));
    }
}

fn print_answer(out: &Answer) {
    outln!("");
    let whole = |n: f64| human_count(n.round() as u64);
    let rate = whole(out.messages_per_s.unwrap_or(0.0));
    match (out.messages_per_s.is_some(), out.is_local) {
        _ if out.is_cut_short => outln!("no answer  the search could not go on"),
        (true, true) => outln!(
            "no answer  the generator or its machine was the limit: the stack holds at least {rate} messages/s, and nothing is known \
             of more.\n\
             \x20          Give it more processors: --workers with other machines, or a stack elsewhere with --target"
        ),
        (false, true) => {
            outln!(
                "no answer  the generator or its machine was the limit at every rate: nothing is known of the stack"
            );
        }
        (false, false) => outln!("capacity   none: the scenario holds at no rate that was tried"),
        (true, false) => {
            outln!(
                "capacity   {rate} messages/s, {} deliveries/s; held in {} of {}{}",
                whole(out.deliveries_per_s.unwrap_or(0.0)),
                out.held,
                counted(out.trials.into(), "trial"),
                out.fails_at.map_or(String::new(), |rate| format!(
                    "; {} failed in {} of {}",
                    whole(rate),
                    out.failed,
                    out.trials_at_fails_at
                ))
            );
            outln!("confidence {}", confidence(out));
            if let Some(each) = out.deliveries_per_s_and_server {
                outln!("per server {} deliveries/s", whole(each));
            }
            if let Some(each) = out.deliveries_per_cpu_s {
                outln!("per core   {} deliveries per second of the stack's own processor time", whole(each));
            }
        }
    }
    if !out.is_settled {
        outln!(
            "open       the search ended with its last of {TRIALS_MAX} trials, before its own end: trials contradict each other, or \
             --repeats asks for many"
        );
    }
    for broken in &out.broken {
        outln!("broken     a guarantee, {broken}");
    }
    outln!("stopped by {}", printable_lines(&out.stopped_by));
    outln!("machine    {}", out.machine);
}

/// What the trials say of the limit, in words.
fn confidence(out: &Answer) -> String {
    let whole = |n: f64| human_count(n.round() as u64);
    let what = "the rate at which half of the trials fail";
    match (out.interval_low, out.interval_high) {
        (Some(low), Some(high)) => format!("95 %: {what} lies between {} and {}", whole(low), whole(high)),
        (Some(low), None) => {
            format!("97.5 %: {what} lies above {}; how far is not known from these trials", whole(low))
        }
        (None, Some(high)) => {
            format!("97.5 %: {what} lies below {}; how far is not known from these trials", whole(high))
        }
        (None, None) => format!("the trials are too few to bound {what} with 95 %: give more --repeats"),
    }
}
