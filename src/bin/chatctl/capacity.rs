//! `chatctl capacity`: the highest load at which a scenario holds.

use std::path::PathBuf;
use std::time::Duration;

use chatctl::loadgen::Scenario;
use chatctl::loadgen::capacity::{self, Cause, Found, Outcome, Rules, Search, Steady, Step};
use chatctl::loadgen::result::{RunResult, Verdict};
use chatctl::loadgen::scenario::threshold::Threshold;
use chatctl::report::{self, human_count, human_us};
use chatctl::runtime::{Tasks, machine};
use serde::Serialize;

use crate::display::Ui;
use crate::exit::{self, Failure};
use crate::layout::Against;
use crate::output::{self, errln, out, outln};
use crate::preflight;
use crate::runner::{self, Setting};
use crate::up::init_logging;
use crate::writable;
use chatctl::telemetry::LatencyPath;

/// Highest rate of any trial, in messages per second: that of scenarios.
const RATE_MAX: f64 = 1e6;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Scenario file: its users and thresholds, at rates that the search chooses
    scenario: PathBuf,
    #[command(flatten)]
    against: Against,
    /// Length of each trial's steady part
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
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

/// The answer, for programs. Rates are in messages per second.
#[derive(Debug, Serialize)]
struct Answer {
    scenario: String,
    /// Thresholds of every trial that the scenario does not have itself.
    added_thresholds: Vec<String>,
    /// Highest rate that held; `None` where there is no answer.
    messages_per_s: Option<f64>,
    /// Deliveries per second at that rate.
    deliveries_per_s: Option<f64>,
    /// Trials at that rate that held.
    held: u32,
    /// All trials at that rate.
    trials: u32,
    /// Lowest rate that failed.
    fails_at: Option<f64>,
    /// Trials at that rate that failed.
    failed: u32,
    /// All trials at that rate.
    trials_at_fails_at: u32,
    /// The rate at which half of the trials fail is above this with 97.5 %; `None` where the trials do not say.
    interval_low: Option<f64>,
    /// It is below this with 97.5 %.
    interval_high: Option<f64>,
    /// Whether the search ended by its own rules, and not because it had no more trials.
    is_settled: bool,
    /// Deliveries per second and chat server.
    deliveries_per_s_and_server: Option<f64>,
    /// Deliveries per second of the stack's processor time.
    deliveries_per_cpu_s: Option<f64>,
    /// Why it does not go further.
    stopped_by: String,
    /// Guarantees that were broken on the way, with their rates.
    broken: Vec<String>,
    machine: String,
}

/// One trial.
struct Trial {
    /// In messages per second.
    rate: f64,
    result: RunResult,
    steady: Steady,
}

/// The trials of a search.
#[derive(Default)]
struct Trials {
    /// Those that held.
    held: Vec<Trial>,
    /// Why the others failed, with their rates.
    failed: Vec<(f64, Cause)>,
}

impl Trials {
    /// Why a rate failed: what most of its trials say. Without any, why the lowest that failed did.
    fn cause(&self, rate: Option<f64>) -> Option<&Cause> {
        let lowest = || self.failed.iter().map(|(rate, _)| *rate).min_by(f64::total_cmp);
        let rate = rate.or_else(lowest)?;
        let causes: Vec<&Cause> = self.failed.iter().filter(|(r, _)| (r - rate).abs() < 1e-9).map(|(_, c)| c).collect();
        let local = causes.iter().filter(|cause| cause.is_local()).count();
        let is_local = 2 * local > causes.len();
        causes.into_iter().rev().find(|cause| cause.is_local() == is_local)
    }

    /// Broken guarantees, in words.
    fn broken(&self) -> Vec<String> {
        let broken = self.failed.iter().filter(|(_, cause)| matches!(cause, Cause::Ledger(_)));
        broken.map(|(rate, cause)| format!("at {rate:.1} messages/s: {}", cause.text())).collect()
    }
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
    if !(Duration::from_secs(2)..=Duration::from_hours(24)).contains(&args.trial) {
        return Err(Failure::usage("--trial: valid are 2s to 1day; of less, percentiles say nothing"));
    }
    args.json.as_deref().map_or(Ok(()), |path| writable::probe_file("--json", path))?;
    init_logging();
    let interrupt = Tasks::new();
    let runtime = runner::runtime()?;
    runtime.block_on(async {
        // Faults are left out of the trials.
        let first = capacity::trial(&scenario, start, args.trial);
        preflight::check(&args.scenario, &first, &args.against).await?;
        runner::watch_signals(&interrupt)?;
        search(&args, &scenario, start, added, &interrupt).await
    })
}

async fn search(
    args: &Args,
    scenario: &Scenario,
    start: f64,
    added: Vec<String>,
    interrupt: &Tasks,
) -> Result<u8, Failure> {
    let rules = Rules { start, max: args.max, precision: args.precision / 100.0, repeats: args.repeats };
    let mut search = Search::new(rules);
    let mut trials = Trials::default();
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
    for number in 1.. {
        let (found, why) = match search.next() {
            Step::Try(rate) => {
                out!("trial {number:<4} {:>9} messages/s ", human_count(rate.round() as u64));
                output::interrupt_unread(interrupt);
                let trial = try_rate(args, scenario, rate, interrupt).await.inspect_err(|_| outln!(""))?;
                if trial.result.verdict == Verdict::Interrupted {
                    outln!("{}", line(&trial, None));
                    return Err(Failure { code: exit::INTERRUPTED, message: "interrupted: no answer".to_owned() });
                }
                let cores = capacity::Cores(machine::cores());
                let cause = capacity::cause(&trial.result, rate, cores, &trial.steady);
                outln!("{}", line(&trial, cause.as_ref()));
                search.note(rate, cause.as_ref().map_or(Outcome::Holds, Cause::outcome));
                match cause {
                    None => trials.held.push(trial),
                    Some(cause) => trials.failed.push((rate, cause)),
                }
                continue;
            }
            Step::Found(found) => (Some(found), None),
            Step::HoldsToTheEnd(found) => (Some(found), Some(format!("nothing failed up to --max {}", args.max))),
            Step::NothingHolds { lowest } => (None, Some(format!("even {lowest:.1} messages/s fail"))),
        };
        return answer(args, scenario, &trials, found, why, added);
    }
    unreachable!("the search ends")
}

/// Runs a trial.
async fn try_rate(args: &Args, scenario: &Scenario, rate: f64, interrupt: &Tasks) -> Result<Trial, Failure> {
    let scenario = capacity::trial(scenario, rate, args.trial);
    let against = &args.against;
    let setting = Setting { against, ui: Ui::None, history: None, out: None, metrics: None, interrupt };
    let outcome = runner::run(&scenario, &setting).await?;
    Ok(Trial { rate, steady: Steady::of(&outcome.series), result: outcome.result })
}

/// What a trial showed, in a line.
fn line(trial: &Trial, cause: Option<&Cause>) -> String {
    let result = &trial.result;
    let p99 = result.latency.get(LatencyPath::Delivery).map_or("-".to_owned(), |s| human_us(s.p99_us));
    let word = match (cause, result.verdict) {
        // By its own verdict it passed.
        (Some(_), Verdict::Pass) => "FAIL",
        (_, verdict) => verdict.word(),
    };
    let why = cause.map(|cause| format!("  {}", cause.text())).unwrap_or_default();
    format!(
        "{:>9} deliveries/s  p99 {p99:>8}  generator late p99 {:>8}  {word}{why}",
        human_count(trial.steady.deliveries_per_s.round() as u64),
        human_us(result.generator.lag.p99_us),
    )
}

fn answer(
    args: &Args,
    scenario: &Scenario,
    trials: &Trials,
    found: Option<Found>,
    why: Option<String>,
    added_thresholds: Vec<String>,
) -> Result<u8, Failure> {
    let fails_at = found.and_then(|found| (found.fails_at > found.rate).then_some(found.fails_at));
    let cause = if found.is_some() && fails_at.is_none() { None } else { trials.cause(fails_at) };
    let is_local = cause.is_some_and(Cause::is_local);
    let stopped_by = match (&why, cause) {
        (Some(why), Some(cause)) => format!("{why}; {}", cause.text()),
        (Some(why), None) => why.clone(),
        (None, Some(cause)) => cause.text().to_owned(),
        (None, None) => "the number of trials".to_owned(),
    };
    outln!("");
    let mut out = Answer {
        scenario: scenario.name.clone(),
        added_thresholds,
        messages_per_s: None,
        deliveries_per_s: None,
        held: 0,
        trials: 0,
        fails_at,
        failed: 0,
        trials_at_fails_at: 0,
        interval_low: None,
        interval_high: None,
        is_settled: found.is_none_or(|found| found.is_settled),
        deliveries_per_s_and_server: None,
        deliveries_per_cpu_s: None,
        stopped_by,
        broken: trials.broken(),
        machine: machine::describe(),
    };
    if let Some(found) = found {
        fill(&mut out, args, scenario, trials, found);
    }
    print_answer(&out, found.is_some(), is_local);
    let code = match (found, is_local) {
        _ if !out.broken.is_empty() => exit::LEDGER,
        (_, true) => exit::INVALID,
        (None, false) => exit::THRESHOLD,
        (Some(_), false) => exit::PASS,
    };
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&out).map_err(Failure::environment)? + "\n";
        if let Err(error) = report::write_whole(path, text.as_bytes()) {
            errln!("chatctl: {}: {error}", path.display());
            return Ok(exit::with_problems(code, true));
        }
    }
    Ok(code)
}

/// Fills in what was found.
fn fill(out: &mut Answer, args: &Args, scenario: &Scenario, trials: &Trials, found: Found) {
    let best: Vec<&Trial> = trials.held.iter().filter(|t| (t.rate - found.rate).abs() < 1e-9).collect();
    let sum = |figure: fn(&Trial) -> f64| best.iter().map(|trial| figure(trial)).sum::<f64>();
    let deliveries = sum(|t| t.steady.deliveries_per_s) / best.len().max(1) as f64;
    let stack_s = sum(|t| t.result.stack_cpu_s());
    let delivered = sum(|t| t.result.counts.delivered as f64);
    let servers = scenario.stack.chat_servers.max(1) as f64;
    let own_stack = args.against.target.is_none();
    (out.held, out.trials) = found.held;
    (out.failed, out.trials_at_fails_at) = found.failed;
    out.interval_low = (found.interval.0 > 0.0).then_some(found.interval.0);
    out.interval_high = found.interval.1.is_finite().then_some(found.interval.1);
    (out.messages_per_s, out.deliveries_per_s) = (Some(found.rate), Some(deliveries));
    out.deliveries_per_s_and_server = own_stack.then_some(deliveries / servers);
    out.deliveries_per_cpu_s = (stack_s > 0.0).then_some(delivered / stack_s);
}

fn print_answer(out: &Answer, is_found: bool, is_local: bool) {
    let whole = |n: f64| human_count(n.round() as u64);
    let rate = whole(out.messages_per_s.unwrap_or(0.0));
    match (is_found, is_local) {
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
        (false, false) => outln!("capacity   none: the scenario does not hold at any rate"),
        (true, false) => {
            outln!(
                "capacity   {rate} messages/s, {} deliveries/s; held in {} of {} trials{}",
                whole(out.deliveries_per_s.unwrap_or(0.0)),
                out.held,
                out.trials,
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
            "open       the search ended with its last trial, before its own end: too many trials contradict each other"
        );
    }
    for broken in &out.broken {
        outln!("broken     a guarantee, {broken}");
    }
    outln!("stopped by {}", out.stopped_by);
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
