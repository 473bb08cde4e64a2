//! One run from a scenario to its result: what the machine holds, the stack, the generators, the display.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chatctl::loadgen::control::StackControl;
use chatctl::loadgen::fleet::{self, FleetOptions, Secret, Worker};
use chatctl::loadgen::result::{RunResult, Verdict};
use chatctl::loadgen::{HISTORY_INCOMPLETE, RunError, RunOptions, Scenario};
use chatctl::report;
use chatctl::runtime::limits::Machine;
use chatctl::runtime::{Tasks, TemporaryFolder, machine};
use chatctl::telemetry::LiveSnapshot;
use tokio::sync::watch;

use crate::display::{self, Recorded, Ui};
use crate::exit::{self, Failure};
use crate::layout::{self, Against, Plan};
use crate::output::outln;
use crate::own_stack::OwnStack;
use crate::preflight;

/// How one run is done, beside its scenario.
pub(crate) struct Setting<'a> {
    pub(crate) against: &'a Against,
    pub(crate) ui: Ui,
    /// Where every event goes.
    pub(crate) history: Option<PathBuf>,
    /// Folder of the run's files.
    pub(crate) out: Option<&'a Path>,
    /// Where the generator's own figures can be scraped.
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) interrupt: &'a Tasks,
}

/// What came of a run.
pub(crate) struct Outcome {
    pub(crate) result: RunResult,
    /// One snapshot per second.
    pub(crate) series: Vec<LiveSnapshot>,
    /// Where the logs of the stack's processes are, if they are kept.
    pub(crate) logs: Option<PathBuf>,
    /// What could not be written while it ran.
    pub(crate) problems: Vec<String>,
}

/// Names of threads that belong to the stack: its servers and the embedded engines.
const STACK_THREADS: &[&str] = &["srv-", "engine-", "sqlx-", "fjall"];

/// The runtime of a generator.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    runtime_of(machine::cores().min(4))
}

/// The same with a number of threads.
pub(crate) fn runtime_of(threads: usize) -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("gen")
        .enable_all()
        .build()
        .map_err(Failure::environment)
}

pub(crate) use crate::signals::watch as watch_signals;

/// Runs a scenario.
pub(crate) async fn run(scenario: &Scenario, setting: &Setting<'_>) -> Result<Outcome, Failure> {
    let machine = Machine::read();
    let mut scenario = scenario.clone();
    if scenario.scale_to_fit {
        for line in layout::scale_to_fit(&mut scenario, &machine, setting.against.has_own_stack()) {
            setting.note(&line);
        }
    }
    let plan = layout::plan(&scenario, &machine, setting.against, |line| setting.note(line))?;
    // The logs of processes stay where the run's files go, or as long as somebody may want to read them.
    let temporary = match setting.out {
        None => Some(TemporaryFolder::create().map_err(Failure::environment)?),
        Some(_) => None,
    };
    let folder = match (&temporary, setting.out) {
        (Some(temporary), _) => temporary.path().to_owned(),
        (None, out) => out.map(|out| out.join("stack")).unwrap_or_default(),
    };
    let ran = run_shown(&scenario, setting, plan, &folder).await;
    let logs = Some(folder.join("logs")).filter(|logs| logs.exists());
    let are_wanted = match &ran {
        Ok((result, _)) => {
            !matches!(result.verdict, Verdict::Pass | Verdict::Interrupted) || exit::of(result) == exit::LEDGER
        }
        Err(failure) => failure.code != exit::INTERRUPTED,
    };
    let logs = logs.filter(|_| are_wanted);
    if let Some(temporary) = temporary.filter(|_| logs.is_some()) {
        temporary.keep();
    }
    let (mut result, recorded) = ran.map_err(|failure| failure.with_logs(logs.as_deref()))?;
    let Recorded { series, problem } = recorded;
    let mut problems: Vec<String> = problem.into_iter().collect();
    problems.extend(result.reasons.iter().filter(|reason| reason.starts_with(HISTORY_INCOMPLETE)).cloned());
    result.reconnects_per_s_max = series.iter().map(|second| second.rates.reconnects).fold(0.0, f64::max);
    Ok(Outcome { result: report::cleaned(result), series, logs, problems })
}

impl Setting<'_> {
    /// Says something before the run begins, where lines are shown.
    fn note(&self, line: &str) {
        if matches!(self.ui, Ui::Plain) {
            outln!("{line}");
        }
    }
}

/// Starts what is needed, runs the load beside its display, stops what was started.
async fn run_shown(
    scenario: &Scenario,
    setting: &Setting<'_>,
    plan: Plan,
    folder: &Path,
) -> Result<(RunResult, Recorded), Failure> {
    let against = setting.against;
    // Before the stack: who can't be reached, and a port that is taken, are found out at once.
    let tasks = Tasks::new();
    let workers = workers(&plan, against, &tasks).await?;
    let (live, shown) = watch::channel(LiveSnapshot::default());
    if let Some(address) = setting.metrics {
        crate::metrics::serve(address, shown.clone(), &tasks)?;
    }
    let aimed_at = preflight::target(against.target.as_deref())?;
    let stack = if let Some(target) = &aimed_at {
        OwnStack::find(target, &against.at.stack).await
    } else {
        Some(start_stack(scenario, setting, folder).await?)
    };
    let target = match (&aimed_at, &stack) {
        (Some(target), _) => Some(target.to_string()),
        (None, Some(stack)) => stack.api_url().await,
        (None, None) => None,
    };
    let target = target.ok_or_else(|| Failure::usage("stack.api_servers is 0: a load needs an API server"))?;
    let control = stack.clone().map(|stack| Arc::new(stack) as Arc<dyn StackControl>);
    let stack_threads = matches!(stack, Some(OwnStack::InProcess(_))).then_some(STACK_THREADS);
    let recorded = display::record(shown.clone(), setting.out.map(Path::to_owned));
    let generate = async {
        if workers.is_empty() {
            let options = RunOptions {
                target,
                control,
                history: setting.history.clone(),
                live,
                interrupt: setting.interrupt.clone(),
                stack_threads,
                sources: plan.sources.into_iter().next().unwrap_or_default(),
                part: None,
            };
            return chatctl::loadgen::run(scenario, options).await;
        }
        let histories = match &setting.history {
            Some(path) => (1..=workers.len()).map(|n| path.with_extension(format!("{n}.jsonl"))).collect(),
            None => Vec::new(),
        };
        let options = FleetOptions {
            target,
            control,
            histories,
            live,
            interrupt: setting.interrupt.clone(),
            stack_threads,
            workers,
            sources: plan.sources,
        };
        fleet::run(scenario, options).await
    };
    // Display and record end with the run, which drops the sender of snapshots.
    let shows = display::show(setting.ui, shown, setting.interrupt.clone());
    let (result, (), recorded) = tokio::join!(generate, shows, recorded);
    tasks.stop();
    if let Some(stack) = stack {
        stack.stop().await;
    }
    let result = result.map_err(|error| match error {
        RunError::Usage(message) => Failure::usage(message),
        RunError::Environment(message) if setting.interrupt.is_stopped() => {
            Failure { code: exit::INTERRUPTED, message }
        }
        RunError::Environment(message) => Failure::environment(message),
    })?;
    Ok((result, recorded))
}

/// Starts or reaches the workers of a plan.
async fn workers(plan: &Plan, against: &Against, tasks: &Tasks) -> Result<Vec<Worker>, Failure> {
    let mut workers = Vec::new();
    if plan.processes > 0 {
        let program = std::env::current_exe().map_err(Failure::environment)?;
        // More threads than processors would only wake each other.
        let threads = machine::cores().div_ceil(plan.processes);
        for _ in 0..plan.processes {
            workers.push(Worker::start(&program, threads, tasks).await.map_err(Failure::environment)?);
        }
    }
    if !plan.addresses.is_empty() {
        let secret: Secret = crate::worker::secret(against.secret_file.as_deref())?;
        for address in &plan.addresses {
            let worker = Worker::connect(address, &secret).await.map_err(Failure::environment)?;
            if !worker.is_here()
                && preflight::target(against.target.as_deref())?.is_none_or(|target| target.is_loopback())
            {
                return Err(Failure::usage(format!(
                    "worker {address} is on another machine and can't reach a stack on loopback: give --target with an address \
                     that it can reach"
                )));
            }
            workers.push(worker);
        }
    }
    Ok(workers)
}

/// Starts the stack that a scenario asks for, unless it is interrupted.
async fn start_stack(scenario: &Scenario, setting: &Setting<'_>, folder: &Path) -> Result<OwnStack, Failure> {
    let is_plain = setting.ui == Ui::Plain;
    let note = move |note| {
        if is_plain {
            outln!("{note}");
        }
    };
    tokio::select! {
        stack = OwnStack::start(scenario, folder, note) => stack,
        () = setting.interrupt.stopped() => {
            Err(Failure { code: exit::INTERRUPTED, message: "interrupted while the stack started".to_owned() })
        }
    }
}
