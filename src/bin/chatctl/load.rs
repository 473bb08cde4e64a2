//! `chatctl load`: runs a scenario, shows it, ends with a verdict.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chatctl::loadgen::control::StackControl;
use chatctl::loadgen::result::{RunResult, Verdict};
use chatctl::loadgen::{RunError, RunOptions, Scenario};
use chatctl::report::{self, summary};
use chatctl::runtime::{Tasks, machine};
use chatctl::server::auth::PasswordCost;
use chatctl::stack::{Config, Stack};
use chatctl::telemetry::LiveSnapshot;
use chatctl::tui;
use tokio::sync::{Mutex, watch};

use crate::exit::{self, Failure};
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
    /// Scenario file, such as scenarios/quickstart.yaml
    scenario: PathBuf,
    /// API address of a running stack; without it a stack is started for the run
    #[arg(long, value_name = "URL", env = "CHATCTL_TARGET")]
    target: Option<String>,
    /// Folder for result.json, summary.txt and .hlog files
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// File for every event as lines of JSON
    #[arg(long, value_name = "FILE")]
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

/// Cost of password hashes in a stack that lives for one run: its accounts are worth nothing, and a thousand logins at
/// the real cost would take longer than the load.
const THROWAWAY_PASSWORD_COST: PasswordCost = PasswordCost { memory_kib: 64, passes: 1 };

/// Names of threads that belong to the stack: its servers and the embedded engines.
const STACK_THREADS: &[&str] = &["srv-", "engine-", "sqlx-", "fjall"];

pub(crate) fn run(args: Args) -> Result<u8, Failure> {
    let mut scenario = Scenario::read(&args.scenario).map_err(Failure::usage)?;
    scenario.seed = args.seed.unwrap_or(scenario.seed);
    if args.check {
        println!("{}: valid, {:.0} s", args.scenario.display(), scenario.duration().as_secs_f64());
        return Ok(exit::PASS);
    }
    let ui = choose_ui(args.ui);
    if ui != Ui::Tui {
        init_logging();
    }
    check_open_files(&scenario, args.target.is_some())?;
    if let Some(folder) = &args.out {
        // Found out before the load rather than after it.
        std::fs::create_dir_all(folder).map_err(|e| Failure::usage(format!("--out {}: {e}", folder.display())))?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(machine::cores().min(4))
        .thread_name("gen")
        .enable_all()
        .build()
        .map_err(Failure::environment)?;
    let result = runtime.block_on(run_shown(&scenario, &args, ui))?;
    finish(&args, &result)
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
async fn run_shown(scenario: &Scenario, args: &Args, ui: Ui) -> Result<RunResult, Failure> {
    let interrupt = Tasks::new();
    watch_signals(&interrupt)?;
    let stack = match &args.target {
        Some(_) => None,
        None => Some(Arc::new(Mutex::new(Some(start_stack(scenario).await?)))),
    };
    let target = match (&args.target, &stack) {
        (Some(target), _) => target.clone(),
        (None, Some(stack)) => {
            let url = stack.lock().await.as_ref().and_then(Stack::api_url);
            url.ok_or_else(|| Failure::usage("stack.api_servers is 0: a load needs an API server"))?
        }
        (None, None) => unreachable!("a stack is started when there is no target"),
    };
    let (live, shown) = watch::channel(LiveSnapshot::default());
    let options = RunOptions {
        target,
        control: stack.clone().map(|stack| Arc::new(Hands(stack)) as Arc<dyn StackControl>),
        history: args.history.clone(),
        live,
        interrupt: interrupt.clone(),
        stack_threads: stack.is_some().then_some(STACK_THREADS),
    };
    // The display ends with the run, which drops the sender of snapshots.
    let (result, ()) = tokio::join!(chatctl::loadgen::run(scenario, options), show(ui, shown, interrupt));
    if let Some(stack) = stack.and_then(|stack| stack.try_lock().ok().and_then(|mut s| s.take())) {
        stack.stop().await;
    }
    result.map_err(|error| match error {
        RunError::Usage(message) => Failure::usage(message),
        RunError::Environment(message) => Failure::environment(message),
    })
}

async fn start_stack(scenario: &Scenario) -> Result<Stack, Failure> {
    let spec = &scenario.stack;
    let mut config = Config {
        chat_servers: spec.chat_servers,
        presence_servers: spec.presence_servers,
        api_servers: spec.api_servers,
        partitions: spec.partitions,
        drain_timeout: Duration::from_secs(2),
        ..Config::default()
    };
    config.api.password_cost = THROWAWAY_PASSWORD_COST;
    Ok(Stack::start(config).await?)
}

/// Hands on the stack of this run.
struct Hands(Arc<Mutex<Option<Stack>>>);

#[async_trait]
impl StackControl for Hands {
    async fn kill(&self, server: &str) -> Result<(), String> {
        match self.0.lock().await.as_mut() {
            Some(stack) => stack.kill(server).map_err(|e| e.to_string()),
            None => Err("the stack is gone".to_owned()),
        }
    }

    async fn drain(&self, server: &str) -> Result<(), String> {
        match self.0.lock().await.as_mut() {
            Some(stack) => stack.drain(server).await.map_err(|e| e.to_string()),
            None => Err("the stack is gone".to_owned()),
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

fn finish(args: &Args, result: &RunResult) -> Result<u8, Failure> {
    let use_colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let style = if use_colour { summary::Style::Colour } else { summary::Style::Plain };
    println!("\n{}", summary::render(result, style).trim_end());
    if let Some(folder) = &args.out {
        report::write_all(folder, result).map_err(Failure::environment)?;
        println!("\nwritten to {}", folder.display());
    }
    Ok(match result.verdict {
        Verdict::Pass => exit::PASS,
        Verdict::ThresholdFailed => exit::THRESHOLD,
        Verdict::LedgerViolated => exit::LEDGER,
        Verdict::Invalid => exit::INVALID,
        Verdict::Interrupted => exit::INTERRUPTED,
    })
}
