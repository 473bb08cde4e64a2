//! One run from a scenario to its result: what the machine holds, the stack, the generators, the record of each second.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use crate::loadgen::control::StackControl;
use crate::loadgen::fleet::{self, FleetOptions, Secret, Worker};
use crate::loadgen::result::{RunResult, Verdict};
use crate::loadgen::{self, HISTORY_INCOMPLETE, RunError, RunOptions, Scenario, Target};
use crate::report;
use crate::run::layout::{self, GeneratorPlan};
use crate::run::own_stack::OwnStack;
use crate::run::series_recorder::{self, Recorded};
use crate::run::{Error, ErrorKind, Layout, Notice, Observer, metrics, secret};
use crate::runtime::limits::Machine;
use crate::runtime::{Tasks, TemporaryFolder, machine};
use crate::telemetry::LiveSnapshot;

/// How one run is done, beside its scenario.
pub struct RunSettings<'a> {
    /// Where its target and its generators are.
    pub layout: &'a Layout,
    /// Who is told what happens.
    pub observer: Arc<dyn Observer>,
    /// File for every event as lines of JSON.
    pub history: Option<PathBuf>,
    /// Folder of the run's files.
    pub out: Option<&'a Path>,
    /// Where the generator's own figures can be scraped.
    pub metrics: Option<SocketAddr>,
    /// Stopped, the load ends and its results are made of what there is.
    pub interrupt: &'a Tasks,
}

/// What came of a run.
pub struct FinishedRun {
    /// Its result, free of control characters that servers sent.
    pub result: RunResult,
    /// One snapshot per second.
    pub series: Vec<LiveSnapshot>,
    /// Where the logs of the stack's processes are, if they are kept.
    pub logs: Option<PathBuf>,
    /// What could not be written while it ran.
    pub problems: Vec<String>,
}

/// Names of threads that belong to the stack: its servers and the embedded engines.
const STACK_THREADS: &[&str] = &["srv-", "engine-", "sqlx-", "fjall"];

/// The runtime of a generator, with four threads at most.
///
/// # Errors
/// When the system gives no threads.
pub fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    runtime_of(machine::cores().min(4))
}

/// The same with a number of threads.
///
/// # Errors
/// When the system gives no threads.
pub fn runtime_of(threads: usize) -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("gen")
        .enable_all()
        .build()
        .map_err(Error::environment)
}

/// Runs a scenario: starts its stack if need be, runs the load, stops what was started.
///
/// # Errors
/// When the run has no result: the machine does not hold it, something could not be started or reached, or it was interrupted
/// before the load began. A run whose thresholds or guarantees failed is no error.
pub async fn run(scenario: &Scenario, settings: &RunSettings<'_>) -> Result<FinishedRun, Error> {
    let machine = Machine::read();
    let notify = |notice| settings.observer.notice(notice);
    let scenario = layout::fitted(scenario, &machine, settings.layout.has_own_stack(), notify)?;
    let plan = layout::plan(&scenario, &machine, settings.layout, notify)?;
    // The logs of processes stay where the run's files go, or as long as somebody may want to read them.
    let temporary = match settings.out {
        None => Some(TemporaryFolder::create().map_err(Error::environment)?),
        Some(_) => None,
    };
    let folder = match (&temporary, settings.out) {
        (Some(temporary), _) => temporary.path().to_owned(),
        (None, out) => out.map(|out| out.join("stack")).unwrap_or_default(),
    };
    let ran = run_shown(&scenario, settings, plan, &folder).await;
    let logs = Some(folder.join("logs")).filter(|logs| logs.exists());
    let are_wanted = match &ran {
        Ok((result, _)) => {
            !matches!(result.verdict, Verdict::Pass | Verdict::Interrupted) || !result.counts.violations().is_empty()
        }
        Err(error) => error.kind != ErrorKind::Interrupted,
    };
    let logs = logs.filter(|_| are_wanted);
    if let Some(temporary) = temporary.filter(|_| logs.is_some()) {
        temporary.keep();
    }
    let (mut result, recorded) = ran.map_err(|error| error.with_logs(logs.as_deref()))?;
    let Recorded { series, problem } = recorded;
    let mut problems: Vec<String> = problem.into_iter().collect();
    problems.extend(result.reasons.iter().filter(|reason| reason.starts_with(HISTORY_INCOMPLETE)).cloned());
    result.has_own_stack = Some(settings.layout.has_own_stack());
    result.reconnects_per_s_max = series.iter().map(|second| second.rates.reconnects).fold(0.0, f64::max);
    Ok(FinishedRun { result: report::cleaned(result), series, logs, problems })
}

/// Starts what is needed, runs the load beside its display, stops what was started.
async fn run_shown(
    scenario: &Scenario,
    settings: &RunSettings<'_>,
    plan: GeneratorPlan,
    folder: &Path,
) -> Result<(RunResult, Recorded), Error> {
    let layout = settings.layout;
    // Before the stack: who can't be reached, and a port that is taken, are found out at once.
    let tasks = Tasks::new();
    let workers = workers(&plan, layout, &tasks).await?;
    let (live, shown) = watch::channel(LiveSnapshot::default());
    if let Some(address) = settings.metrics {
        metrics::serve(address, shown.clone(), &tasks)?;
    }
    let stack = if let Some(target) = &layout.target {
        OwnStack::find(target, &layout.stack_folder).await
    } else {
        Some(start_stack(scenario, settings, folder).await?)
    };
    let target = match (&layout.target, &stack) {
        (Some(target), _) => Some(target.to_string()),
        (None, Some(stack)) => stack.api_url().await,
        (None, None) => None,
    };
    let target = target.ok_or_else(|| Error::usage("stack.api_servers is 0: a load needs an API server"))?;
    let control = stack.clone().map(|stack| Arc::new(stack) as Arc<dyn StackControl>);
    let stack_threads = matches!(stack, Some(OwnStack::InProcess(_))).then_some(STACK_THREADS);
    let recorded = series_recorder::record(shown.clone(), settings.out.map(Path::to_owned));
    let generate = async {
        if workers.is_empty() {
            let options = RunOptions {
                target,
                control,
                history: settings.history.clone(),
                live,
                interrupt: settings.interrupt.clone(),
                stack_threads,
                sources: plan.sources.into_iter().next().unwrap_or_default(),
                part: None,
            };
            return loadgen::run(scenario, options).await;
        }
        let histories = match &settings.history {
            Some(path) => (1..=workers.len()).map(|n| path.with_extension(format!("{n}.jsonl"))).collect(),
            None => Vec::new(),
        };
        let options = FleetOptions {
            target,
            control,
            histories,
            live,
            interrupt: settings.interrupt.clone(),
            stack_threads,
            workers,
            sources: plan.sources,
        };
        fleet::run(scenario, options).await
    };
    // Observer and record end with the run, which drops the sender of snapshots.
    let shows = settings.observer.live(shown);
    let (result, (), recorded) = tokio::join!(generate, shows, recorded);
    tasks.stop();
    if let Some(stack) = stack {
        stack.stop().await;
    }
    let result = result.map_err(|error| match error {
        RunError::Environment(problem) if settings.interrupt.is_stopped() => Error::interrupted(problem),
        error => Error::from(error),
    })?;
    Ok((result, recorded))
}

/// Starts or reaches the workers of a plan.
async fn workers(plan: &GeneratorPlan, layout: &Layout, tasks: &Tasks) -> Result<Vec<Worker>, Error> {
    let mut workers = Vec::new();
    if plan.processes > 0 {
        let program = std::env::current_exe().map_err(Error::environment)?;
        // More threads than processors would only wake each other.
        let threads = machine::cores().div_ceil(plan.processes);
        for _ in 0..plan.processes {
            workers.push(Worker::start(&program, threads, tasks).await.map_err(Error::environment)?);
        }
    }
    if !plan.addresses.is_empty() {
        let secret: Secret = secret::read(layout.secret_file.as_deref())?;
        for address in &plan.addresses {
            let worker = Worker::connect(address, &secret).await.map_err(Error::environment)?;
            if !worker.is_here() && layout.target.as_ref().is_none_or(Target::is_loopback) {
                return Err(Error::usage(format!(
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
async fn start_stack(scenario: &Scenario, settings: &RunSettings<'_>, folder: &Path) -> Result<OwnStack, Error> {
    let observer = Arc::clone(&settings.observer);
    let note = move |line| observer.notice(Notice::Stack(line));
    tokio::select! {
        stack = OwnStack::start(scenario, folder, note) => stack,
        () = settings.interrupt.stopped() => {
            Err(Error::interrupted("interrupted while the stack started"))
        }
    }
}
