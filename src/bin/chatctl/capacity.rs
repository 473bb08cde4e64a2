//! `chatctl capacity`: the highest load at which a scenario holds.

use std::path::PathBuf;
use std::time::Duration;

use chatctl::loadgen::Scenario;
use chatctl::loadgen::capacity::{self, Cause, Found, Outcome, Rules, Search, Steady, Step};
use chatctl::loadgen::result::{RunResult, Verdict};
use chatctl::report::{human_count, human_us};
use chatctl::runtime::{Tasks, machine};
use serde::Serialize;

use crate::display::Ui;
use crate::exit::{self, Failure};
use crate::layout::Against;
use crate::output::{self, out, outln};
use crate::runner::{self, Setting};
use crate::up::init_logging;

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
    /// Trials that the answer must hold in
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    repeats: u32,
    /// First rate to try, in messages per second; the scenario's highest without it
    #[arg(long, value_name = "RATE")]
    start: Option<f64>,
    /// Highest rate to try, in messages per second
    #[arg(long, value_name = "RATE", default_value_t = 1e6)]
    max: f64,
    /// File for the answer as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The answer, for programs. Rates are in messages per second.
#[derive(Debug, Serialize)]
struct Answer {
    scenario: String,
    /// Highest rate that held; `None` where there is no answer.
    messages_per_s: Option<f64>,
    /// Deliveries per second at that rate.
    deliveries_per_s: Option<f64>,
    /// Lowest rate that failed.
    fails_at: Option<f64>,
    /// Trials at the highest rate, all of which held.
    trials: u32,
    /// Deliveries per second and chat server.
    deliveries_per_s_and_server: Option<f64>,
    /// Deliveries per second of the stack's processor time.
    deliveries_per_cpu_s: Option<f64>,
    /// Why it does not go further.
    stopped_by: String,
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
    /// Why the lowest rate that failed did.
    failed: Option<(f64, Cause)>,
}

pub(crate) fn run(args: Args) -> Result<u8, Failure> {
    let scenario = Scenario::read(&args.scenario).map_err(Failure::usage)?;
    let start = args.start.unwrap_or_else(|| capacity::peak_rate(&scenario));
    if !(start > 0.0 && start.is_finite() && args.max >= start) {
        let problem = "the first rate must be above 0 and at most --max: give --start, or a rate in the scenario";
        return Err(Failure::usage(format!("--start {start}: {problem}")));
    }
    if !(0.5..=100.0).contains(&args.precision) {
        return Err(Failure::usage(format!("--precision {}: valid are 0.5 to 100 percent", args.precision)));
    }
    if args.trial < Duration::from_secs(2) {
        return Err(Failure::usage("--trial: at least 2s, or percentiles say nothing"));
    }
    init_logging();
    let interrupt = Tasks::new();
    let runtime = runner::runtime()?;
    runtime.block_on(async {
        runner::watch_signals(&interrupt)?;
        search(&args, &scenario, start, &interrupt).await
    })
}

async fn search(args: &Args, scenario: &Scenario, start: f64, interrupt: &Tasks) -> Result<u8, Failure> {
    let rules = Rules { start, max: args.max, precision: args.precision / 100.0, repeats: args.repeats };
    let mut search = Search::new(rules);
    let mut trials = Trials::default();
    outln!("capacity   {}: trials of {:?}, thresholds and ledger must hold", scenario.name, args.trial);
    for number in 1.. {
        match search.next() {
            Step::Try(rate) => {
                out!("trial {number:<4} {:>9} messages/s ", human_count(rate.round() as u64));
                output::interrupt_unread(interrupt);
                let trial = try_rate(args, scenario, rate, interrupt).await.inspect_err(|_| outln!(""))?;
                outln!("{}", line(&trial));
                if trial.result.verdict == Verdict::Interrupted {
                    return Err(Failure { code: exit::INTERRUPTED, message: "interrupted: no answer".to_owned() });
                }
                match capacity::cause(&trial.result, machine::cores(), trial.steady.busy_cores) {
                    None => {
                        search.note(rate, Outcome::Holds);
                        trials.held.push(trial);
                    }
                    Some(cause) => {
                        search.note(rate, Outcome::Fails);
                        if trials.failed.as_ref().is_none_or(|(lowest, _)| rate < *lowest) {
                            trials.failed = Some((rate, cause));
                        }
                    }
                }
            }
            Step::Found(found) => return answer(args, scenario, &trials, Some(found), None),
            Step::HoldsToTheEnd(found) => {
                let why = format!("nothing failed up to --max {}", args.max);
                return answer(args, scenario, &trials, Some(found), Some(why));
            }
            Step::NothingHolds { lowest } => {
                let why = format!("even {lowest:.1} messages/s fail");
                return answer(args, scenario, &trials, None, Some(why));
            }
        }
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
fn line(trial: &Trial) -> String {
    let result = &trial.result;
    let p99 = result.latency.get("delivery").map_or("-".to_owned(), |s| human_us(s.p99_us));
    let why = result.reasons.first().map(|reason| format!("  {reason}")).unwrap_or_default();
    format!(
        "{:>9} deliveries/s  p99 {p99:>8}  generator late p99 {:>8}  {}{why}",
        human_count(trial.steady.deliveries_per_s.round() as u64),
        human_us(result.generator.lag.p99_us),
        result.verdict.word()
    )
}

fn answer(
    args: &Args,
    scenario: &Scenario,
    trials: &Trials,
    found: Option<Found>,
    why: Option<String>,
) -> Result<u8, Failure> {
    let cause = trials.failed.as_ref().map(|(_, cause)| cause);
    let is_generator = matches!(cause, Some(Cause::Generator(_)));
    let stopped_by = match (&why, cause) {
        (Some(why), Some(cause)) => format!("{why}; {}", cause.text()),
        (Some(why), None) => why.clone(),
        (None, Some(cause)) => cause.text().to_owned(),
        (None, None) => "nothing".to_owned(),
    };
    outln!("");
    let mut out = Answer {
        scenario: scenario.name.clone(),
        messages_per_s: None,
        deliveries_per_s: None,
        fails_at: None,
        trials: 0,
        deliveries_per_s_and_server: None,
        deliveries_per_cpu_s: None,
        stopped_by: stopped_by.clone(),
        machine: machine::describe(),
    };
    if let Some(found) = found {
        let best: Vec<&Trial> = trials.held.iter().filter(|t| (t.rate - found.rate).abs() < 1e-9).collect();
        let sum = |figure: fn(&Trial) -> f64| best.iter().map(|trial| figure(trial)).sum::<f64>();
        let deliveries = sum(|t| t.steady.deliveries_per_s) / best.len().max(1) as f64;
        let stack_s = sum(|t| t.result.stack_cpu_s());
        let delivered = sum(|t| t.result.counts.delivered as f64);
        let servers = scenario.stack.chat_servers.max(1) as f64;
        let own_stack = args.against.target.is_none();
        (out.trials, out.fails_at) = (found.trials, (found.fails_at > found.rate).then_some(found.fails_at));
        (out.messages_per_s, out.deliveries_per_s) = (Some(found.rate), Some(deliveries));
        out.deliveries_per_s_and_server = own_stack.then_some(deliveries / servers);
        out.deliveries_per_cpu_s = (stack_s > 0.0).then_some(delivered / stack_s);
    }
    print_answer(&out, found, is_generator);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&out).map_err(Failure::environment)? + "\n";
        std::fs::write(path, text).map_err(|e| Failure::environment(format!("{}: {e}", path.display())))?;
    }
    Ok(match (found, is_generator) {
        (_, true) => exit::INVALID,
        (None, false) => exit::THRESHOLD,
        (Some(_), false) => exit::PASS,
    })
}

fn print_answer(out: &Answer, found: Option<Found>, is_generator: bool) {
    let whole = |n: f64| human_count(n.round() as u64);
    match (found, is_generator) {
        (Some(found), true) => outln!(
            "no answer  the generator was the limit: the stack holds at least {} messages/s, and nothing is known of more.\n\
             \x20          Give it more processors: --workers with other machines, or a stack elsewhere with --target",
            whole(found.rate)
        ),
        (None, true) => outln!("no answer  the generator was the limit at every rate: nothing is known of the stack"),
        (None, false) => outln!("capacity   none: the scenario does not hold at any rate"),
        (Some(found), false) => {
            outln!(
                "capacity   {} messages/s, {} deliveries/s; between {} (held in {} of {} trials) and {}",
                whole(found.rate),
                whole(out.deliveries_per_s.unwrap_or(0.0)),
                whole(found.rate),
                found.trials,
                found.trials,
                out.fails_at.map_or("any".to_owned(), |rate| format!("{} (failed)", whole(rate)))
            );
            outln!(
                "confidence with 95 %, less than {:.0} % of further trials at this rate fail",
                found.fails_less_often_than() * 100.0
            );
            if let Some(each) = out.deliveries_per_s_and_server {
                outln!("per server {} deliveries/s", whole(each));
            }
            if let Some(each) = out.deliveries_per_cpu_s {
                outln!("per core   {} deliveries per second of the stack's processor time", whole(each));
            }
        }
    }
    outln!("stopped by {}", out.stopped_by);
    outln!("machine    {}", out.machine);
}
