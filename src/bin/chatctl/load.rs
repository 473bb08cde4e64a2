//! `chatctl load`: runs a scenario, shows it, ends with a verdict.

use std::collections::HashSet;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chatctl::loadgen::control::StackControl;
use chatctl::loadgen::result::{RunResult, Verdict};
use chatctl::loadgen::scenario::EngineChoice;
use chatctl::loadgen::{RunError, RunOptions, Scenario};
use chatctl::report::{self, summary};
use chatctl::runtime::{Tasks, machine};
use chatctl::telemetry::LiveSnapshot;
use chatctl::tui;
use tokio::sync::watch;

use crate::control::At;
use crate::exit::{self, Failure};
use crate::own_stack::OwnStack;
use crate::table::Table;
use crate::up::init_logging;

/// How the run is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Ui {
    /// A live screen on a terminal, lines elsewhere and in CI
    Auto,
    /// The live screen
    Tui,
    /// One line per second
    Plain,
    /// Only the summary
    None,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Scenario files, such as scenarios/quickstart.yaml; several run one after the other
    #[arg(required = true, value_name = "SCENARIO")]
    scenarios: Vec<PathBuf>,
    /// API address of a running stack; without it a stack is started for the run
    #[arg(long, value_name = "URL", env = "CHATCTL_TARGET")]
    target: Option<String>,
    #[command(flatten)]
    at: At,
    /// Folder for result.json, summary.txt and .hlog files; with several scenarios, a folder in it for each
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
    /// Checks the scenario and ends
    #[arg(long)]
    check: bool,
}

/// Names of threads that belong to the stack: its servers and the embedded engines.
const STACK_THREADS: &[&str] = &["srv-", "engine-", "sqlx-", "fjall"];

pub(crate) fn run(args: Args) -> Result<u8, Failure> {
    let scenarios = args.scenarios.iter().map(|path| read(path, &args)).collect::<Result<Vec<_>, _>>()?;
    if args.check {
        for (path, scenario) in args.scenarios.iter().zip(&scenarios) {
            println!("{}: valid, {:.0} s", path.display(), scenario.duration().as_secs_f64());
        }
        return Ok(exit::PASS);
    }
    let mut names = HashSet::new();
    if let Some(twice) = scenarios.iter().find(|scenario| !names.insert(&scenario.name))
        && (args.out.is_some() || args.history.is_some())
    {
        let text = format!("two scenarios are named {:?}: their files would write over each other", twice.name);
        return Err(Failure::usage(text));
    }
    let ui = choose_ui(args.ui);
    if ui != Ui::Tui {
        init_logging();
    }
    let histories = args.history.as_ref().filter(|_| scenarios.len() > 1);
    for (flag, folder) in [("--out", args.out.as_ref()), ("--history", histories)] {
        let Some(folder) = folder else { continue };
        // Found out before the load rather than after it.
        std::fs::create_dir_all(folder).map_err(|e| Failure::usage(format!("{flag} {}: {e}", folder.display())))?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(machine::cores().min(4))
        .thread_name("gen")
        .enable_all()
        .build()
        .map_err(Failure::environment)?;
    let interrupt = Tasks::new();
    runtime.block_on(async { watch_signals(&interrupt) })?;
    if let [scenario] = &scenarios[..] {
        let out = args.out.clone();
        return runtime.block_on(run_one(scenario, &args, ui, out.as_deref(), &interrupt)).map(|result| code(&result));
    }
    let mut outcomes = Vec::new();
    for scenario in &scenarios {
        let out = args.out.as_ref().map(|folder| folder.join(&scenario.name));
        let outcome = runtime.block_on(run_one(scenario, &args, ui, out.as_deref(), &interrupt));
        if let Err(failure) = &outcome {
            eprintln!("chatctl: {}: {}", scenario.name, failure.message);
        }
        outcomes.push((scenario.name.clone(), outcome));
        if interrupt.is_stopped() {
            break;
        }
    }
    println!("\n{}", overview(&outcomes));
    Ok(gravest(outcomes.iter().map(|(_, outcome)| outcome.as_ref().map_or_else(|f| f.code, code))))
}

fn read(path: &Path, args: &Args) -> Result<Scenario, Failure> {
    let mut scenario = Scenario::read(path).map_err(Failure::usage)?;
    scenario.seed = args.seed.unwrap_or(scenario.seed);
    Ok(scenario)
}

/// Where a scenario's events go.
fn history(scenario: &Scenario, args: &Args) -> Option<PathBuf> {
    let path = args.history.as_ref()?;
    Some(if args.scenarios.len() > 1 { path.join(format!("{}.jsonl", scenario.name)) } else { path.clone() })
}

/// Runs a scenario and prints what came of it.
async fn run_one(
    scenario: &Scenario,
    args: &Args,
    ui: Ui,
    out: Option<&Path>,
    interrupt: &Tasks,
) -> Result<RunResult, Failure> {
    check_open_files(scenario, args.target.is_some() || scenario.stack.engines == EngineChoice::Real)?;
    // The logs of processes stay where the run's files go, or as long as somebody may want to read them.
    let temporary = std::env::temp_dir().join(format!("chatctl-{}-{}", std::process::id(), scenario.name));
    let folder = out.map_or(temporary.clone(), |out| out.join("stack"));
    let result = run_shown(scenario, args, ui, &folder, interrupt).await;
    let is_pass = matches!(&result, Ok(result) if result.verdict == Verdict::Pass);
    if out.is_none() && is_pass {
        // Not there, when the stack was in this process.
        let _ = std::fs::remove_dir_all(&temporary);
    }
    let result = result?;
    finish(out, &result)?;
    if !is_pass && folder.join("logs").exists() {
        println!("logs of the servers in {}", folder.join("logs").display());
    }
    Ok(result)
}

/// One line for each of several scenarios.
fn overview(outcomes: &[(String, Result<RunResult, Failure>)]) -> Table<9> {
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
        let Ok(result) = outcome else {
            let dash = || "-".to_owned();
            table.row([name.clone(), "ERROR".to_owned(), dash(), dash(), dash(), dash(), dash(), dash(), dash()]);
            continue;
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
            (c.leaked + c.altered + c.presence_wrong).to_string(),
            recovered,
        ]);
    }
    table
}

fn code(result: &RunResult) -> u8 {
    match result.verdict {
        Verdict::Pass => exit::PASS,
        Verdict::ThresholdFailed => exit::THRESHOLD,
        Verdict::LedgerViolated => exit::LEDGER,
        Verdict::Invalid => exit::INVALID,
        Verdict::Interrupted => exit::INTERRUPTED,
    }
}

/// The exit code of several runs.
fn gravest(codes: impl Iterator<Item = u8>) -> u8 {
    const ORDER: [u8; 7] =
        [exit::LEDGER, exit::INTERRUPTED, exit::USAGE, exit::ENVIRONMENT, exit::INVALID, exit::THRESHOLD, exit::PASS];
    codes.min_by_key(|code| ORDER.iter().position(|c| c == code)).unwrap_or(exit::PASS)
}

/// The screen only where somebody can see it.
fn choose_ui(asked: Ui) -> Ui {
    let is_seen = std::io::stdout().is_terminal() && std::env::var_os("CI").is_none();
    match asked {
        Ui::Auto if is_seen => Ui::Tui,
        Ui::Auto => Ui::Plain,
        other => other,
    }
}

/// Says before the run when its sockets can't fit.
fn check_open_files(scenario: &Scenario, is_elsewhere: bool) -> Result<(), Failure> {
    let limit = machine::raise_open_files();
    let p = &scenario.population;
    let devices = u64::from(p.users) * u64::from(p.devices_per_user.max);
    // Both ends in one process, HTTP connections, files of the engines.
    let needed = devices * if is_elsewhere { 1 } else { 2 } + 600;
    if needed > limit {
        return Err(Failure::environment(format!(
            "{devices} devices need about {needed} open files, this process may have {limit}: \
             lower population.users, or raise the limit (ulimit -Hn)"
        )));
    }
    Ok(())
}

/// Starts what is needed, runs the load beside its display, stops what was started.
async fn run_shown(
    scenario: &Scenario,
    args: &Args,
    ui: Ui,
    folder: &Path,
    interrupt: &Tasks,
) -> Result<RunResult, Failure> {
    let stack = if let Some(target) = &args.target {
        OwnStack::find(target, &args.at.stack).await
    } else {
        Some(start_stack(scenario, ui, folder, interrupt).await?)
    };
    let target = match (&args.target, &stack) {
        (Some(target), _) => Some(target.clone()),
        (None, Some(stack)) => stack.api_url().await,
        (None, None) => None,
    };
    let target = target.ok_or_else(|| Failure::usage("stack.api_servers is 0: a load needs an API server"))?;
    let (live, shown) = watch::channel(LiveSnapshot::default());
    let options = RunOptions {
        target,
        control: stack.clone().map(|stack| Arc::new(stack) as Arc<dyn StackControl>),
        history: history(scenario, args),
        live,
        interrupt: interrupt.clone(),
        stack_threads: matches!(stack, Some(OwnStack::InProcess(_))).then_some(STACK_THREADS),
    };
    // The display ends with the run, which drops the sender of snapshots.
    let (result, ()) = tokio::join!(chatctl::loadgen::run(scenario, options), show(ui, shown, interrupt.clone()));
    if let Some(stack) = stack {
        stack.stop().await;
    }
    result.map_err(|error| match error {
        RunError::Usage(message) => Failure::usage(message),
        RunError::Environment(message) => Failure::environment(message),
    })
}

/// Starts the stack that a scenario asks for, unless it is interrupted.
async fn start_stack(scenario: &Scenario, ui: Ui, folder: &Path, interrupt: &Tasks) -> Result<OwnStack, Failure> {
    let note = move |note| {
        if ui == Ui::Plain {
            println!("{note}");
        }
    };
    tokio::select! {
        stack = OwnStack::start(scenario, folder, note) => stack,
        () = interrupt.stopped() => {
            Err(Failure { code: exit::INTERRUPTED, message: "interrupted while the stack started".to_owned() })
        }
    }
}

/// The first signal interrupts the run, the second ends the process.
fn watch_signals(interrupt: &Tasks) -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let mut signals = signal(kind).map_err(Failure::environment)?;
        let interrupt = interrupt.clone();
        Tasks::new().spawn("load.signals", async move {
            while signals.recv().await.is_some() {
                if interrupt.is_stopped() {
                    ratatui::restore();
                    std::process::exit(exit::INTERRUPTED.into());
                }
                interrupt.stop();
            }
        });
    }
    Ok(())
}

/// Shows the run beside it. The returned future ends when the display has.
async fn show(ui: Ui, shown: watch::Receiver<LiveSnapshot>, interrupt: Tasks) {
    match ui {
        Ui::Tui => {
            let use_colour = std::env::var_os("NO_COLOR").is_none();
            let screen = tokio::task::spawn_blocking(move || {
                let ended = tui::show(shown, use_colour);
                if !matches!(ended, Ok(tui::Ended::RunOver)) {
                    interrupt.stop();
                }
                ended
            });
            if let Ok(Err(error)) = screen.await {
                eprintln!("chatctl: the terminal can't be used: {error}; try --ui plain");
            }
        }
        Ui::Plain => print_lines(shown).await,
        Ui::Auto | Ui::None => {}
    }
}

async fn print_lines(mut shown: watch::Receiver<LiveSnapshot>) {
    let mut last = String::new();
    while shown.changed().await.is_ok() {
        let line = report::line::render(&shown.borrow_and_update());
        if shown.borrow().phase == "done" {
            return;
        }
        if line != last {
            println!("{line}");
            // A reader that went away must not end the run.
            let _ = std::io::stdout().flush();
            last = line;
        }
        tokio::time::sleep(Duration::from_millis(900)).await;
    }
}

fn finish(out: Option<&Path>, result: &RunResult) -> Result<(), Failure> {
    let use_colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let style = if use_colour { summary::Style::Colour } else { summary::Style::Plain };
    println!("\n{}", summary::render(result, style).trim_end());
    if let Some(folder) = out {
        report::write_all(folder, result).map_err(Failure::environment)?;
        println!("\nwritten to {}", folder.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gravest_code_of_several_runs_is_the_one_that_counts() {
        let of = |codes: &[u8]| gravest(codes.iter().copied());
        assert_eq!(of(&[0, 1, 5]), exit::INVALID);
        assert_eq!(of(&[1, 4, 3]), exit::LEDGER);
        assert_eq!(of(&[0, 0]), exit::PASS);
    }
}
