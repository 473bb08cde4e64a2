//! One run from a scenario to its result: what the machine holds, the stack, the generators, the display.

use std::io::{IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chatctl::loadgen::control::StackControl;
use chatctl::loadgen::fleet::{self, FleetOptions, Secret, Worker};
use chatctl::loadgen::result::RunResult;
use chatctl::loadgen::scenario::EngineChoice;
use chatctl::loadgen::{RunError, RunOptions, Scenario};
use chatctl::report;
use chatctl::runtime::limits::{self, Limit, Machine, Need, State};
use chatctl::runtime::{Tasks, machine};
use chatctl::telemetry::LiveSnapshot;
use chatctl::tui;
use tokio::sync::watch;

use crate::doctor;
use crate::exit::{self, Failure};
use crate::own_stack::OwnStack;

/// How a run is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Ui {
    /// A live screen on a terminal, lines elsewhere and in CI
    Auto,
    /// The live screen
    Tui,
    /// One line per second
    Plain,
    /// Only the summary
    None,
}

/// What runs against.
#[derive(clap::Args)]
pub(crate) struct Against {
    /// API address of a running stack; without it a stack is started for the run
    #[arg(long, value_name = "URL", env = "CHATCTL_TARGET")]
    pub(crate) target: Option<String>,
    #[command(flatten)]
    pub(crate) at: crate::control::At,
    /// Generators: a number of processes of this machine, or the addresses of `chatctl worker --listen` as a:port,b:port; without
    /// it as many processes as the connections need
    #[arg(long, value_name = "N|ADDRESSES")]
    workers: Option<String>,
    /// Addresses of this machine that connections come from, as 10.0.0.5,10.0.0.6 or 10.0.0.5-10.0.0.9; on loopback they are chosen
    #[arg(long, value_name = "LIST", value_parser = parse_addresses)]
    source_addresses: Option<Sources>,
    /// File with the secret shared with workers on other machines
    #[arg(long, value_name = "FILE", env = "CHATCTL_WORKER_SECRET_FILE")]
    secret_file: Option<PathBuf>,
    /// Runs even where a limit of this machine is short
    #[arg(long)]
    force: bool,
}

/// A list of addresses.
#[derive(Debug, Clone)]
pub(crate) struct Sources(Vec<IpAddr>);

/// Most addresses of one list.
const SOURCES_MAX: u32 = 65_536;

fn parse_addresses(text: &str) -> Result<Sources, String> {
    let address = |part: &str| part.trim().parse::<IpAddr>().map_err(|e| format!("{part:?} is no address: {e}"));
    let mut all = Vec::new();
    for part in text.split(',') {
        match part.split_once('-') {
            None => all.push(address(part)?),
            Some((from, to)) => match (address(from)?, address(to)?) {
                (IpAddr::V4(from), IpAddr::V4(to)) if from <= to && u32::from(to) - u32::from(from) < SOURCES_MAX => {
                    all.extend((u32::from(from)..=u32::from(to)).map(|n| IpAddr::V4(Ipv4Addr::from(n))));
                }
                _ => {
                    return Err(format!(
                        "{part:?}: a range goes from a lower IPv4 address to a higher one, at most 65536"
                    ));
                }
            },
        }
    }
    Ok(Sources(all))
}

/// Who simulates the users.
enum Generators {
    /// This process, or as many processes as the connections need.
    Auto,
    /// Processes of this machine.
    Here(usize),
    /// Workers that listen.
    There(Vec<String>),
}

impl Against {
    fn generators(&self) -> Result<Generators, Failure> {
        let Some(text) = &self.workers else { return Ok(Generators::Auto) };
        if let Ok(count) = text.parse::<usize>() {
            if !(1..=1_000).contains(&count) {
                return Err(Failure::usage(format!("--workers {count}: valid are 1 to 1000, or addresses")));
            }
            return Ok(Generators::Here(count));
        }
        let addresses: Vec<String> = text.split(',').map(|a| a.trim().to_owned()).collect();
        if let Some(wrong) =
            addresses.iter().find(|a| a.rsplit_once(':').is_none_or(|(_, p)| p.parse::<u16>().is_err()))
        {
            return Err(Failure::usage(format!(
                "--workers {wrong:?}: write a number, or addresses as host:port,host:port"
            )));
        }
        Ok(Generators::There(addresses))
    }

    /// Whether a stack is started for the run.
    fn has_own_stack(&self) -> bool {
        self.target.is_none()
    }
}

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
}

/// Names of threads that belong to the stack: its servers and the embedded engines.
const STACK_THREADS: &[&str] = &["srv-", "engine-", "sqlx-", "fjall"];

/// Connections past which the machine's limits are shown before the run.
const MANY: u64 = 5_000;

/// Share of a chat server's connections that are planned for, since placement spreads them within 10 %.
const PLANNED_PERCENT: u64 = 88;

/// Most chat servers that are planned without being asked for.
const CHAT_SERVERS_MAX: u64 = 400;

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

/// The screen only where somebody can see it.
pub(crate) fn choose_ui(asked: Ui) -> Ui {
    let is_seen = std::io::stdout().is_terminal() && std::env::var_os("CI").is_none();
    match asked {
        Ui::Auto if is_seen => Ui::Tui,
        Ui::Auto => Ui::Plain,
        other => other,
    }
}

/// The first signal interrupts the run, the second ends the process.
pub(crate) fn watch_signals(interrupt: &Tasks) -> Result<(), Failure> {
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

/// Runs a scenario.
pub(crate) async fn run(scenario: &Scenario, setting: &Setting<'_>) -> Result<Outcome, Failure> {
    let machine = Machine::read();
    let mut scenario = scenario.clone();
    if scenario.scale_to_fit {
        for line in scale_to_fit(&mut scenario, &machine, setting.against.has_own_stack()) {
            setting.note(&line);
        }
    }
    let plan = plan(&scenario, &machine, setting)?;
    // The logs of processes stay where the run's files go, or as long as somebody may want to read them.
    let temporary = std::env::temp_dir().join(format!("chatctl-{}-{}", std::process::id(), scenario.name));
    let folder = setting.out.map_or(temporary.clone(), |out| out.join("stack"));
    let ran = run_shown(&scenario, setting, plan, &folder).await;
    let is_pass = matches!(&ran, Ok((result, _)) if result.verdict == chatctl::loadgen::result::Verdict::Pass);
    if setting.out.is_none() && is_pass {
        // Not there, when the stack was in this process.
        let _ = std::fs::remove_dir_all(&temporary);
    }
    let (result, series) = ran?;
    let logs = folder.join("logs");
    Ok(Outcome { result, series, logs: (!is_pass && logs.exists()).then_some(logs) })
}

impl Setting<'_> {
    /// Says something before the run begins, where lines are shown.
    fn note(&self, line: &str) {
        if matches!(self.ui, Ui::Plain) {
            println!("{line}");
        }
    }
}

/// What a scenario wants of the machine.
fn need(scenario: &Scenario, has_servers: bool) -> Need {
    Need {
        connections: scenario.connections_max(),
        servers: scenario.stack.chat_servers.max(1) as u64,
        has_servers,
        heartbeat: scenario.heartbeat,
        connect_over: scenario.connect_over,
    }
}

/// Lowers users and raises servers to what fits; returns what was changed, in words.
fn scale_to_fit(scenario: &mut Scenario, machine: &Machine, has_own_stack: bool) -> Vec<String> {
    let mut notes = Vec::new();
    let devices_each = u64::from(scenario.population.devices_per_user.max);
    let per_process = machine.connections_per_process();
    let is_embedded = scenario.stack.engines == EngineChoice::Embedded;
    let mut most = machine.connections_in_memory(has_own_stack);
    for allows in machine.limits(need(scenario, has_own_stack)).iter().filter_map(|l| l.allows) {
        most = most.min(allows);
    }
    if has_own_stack && is_embedded {
        // All servers are in one process.
        most = most.min(per_process);
    } else if has_own_stack {
        most = most.min(per_process * PLANNED_PERCENT / 100 * CHAT_SERVERS_MAX);
    }
    // In whole thousands, so that two runs on a machine are the same.
    let most = if most > 10_000 { most / 1_000 * 1_000 } else { most };
    if scenario.connections_max() > most {
        let users = (most / devices_each) as u32;
        notes.push(format!(
            "fits       {} of {} users fit on this machine (`chatctl doctor --connections {} --heartbeat {}s --connect-over {}s` says why)",
            report::human_count(users.into()),
            report::human_count(scenario.population.users.into()),
            scenario.connections_max(),
            scenario.heartbeat.as_secs(),
            scenario.connect_over.as_secs()
        ));
        scenario.population.users = users;
    }
    if has_own_stack && !is_embedded {
        let needed = scenario.connections_max().div_ceil((per_process * PLANNED_PERCENT / 100).max(1)) as usize;
        if needed > scenario.stack.chat_servers {
            notes.push(format!(
                "servers    {needed} chat servers, since one process may hold {per_process} connections"
            ));
            scenario.stack.chat_servers = needed;
        }
    }
    notes
}

/// How the generators of a run are laid out.
struct Plan {
    /// Generators in processes of their own on this machine; 0: in this process.
    processes: usize,
    /// Workers that listen.
    addresses: Vec<String>,
    /// Addresses that each generator's connections come from.
    sources: Vec<Vec<IpAddr>>,
}

/// Holds the run against the machine; says before it begins what can't fit.
fn plan(scenario: &Scenario, machine: &Machine, setting: &Setting<'_>) -> Result<Plan, Failure> {
    let against = setting.against;
    let own_stack = against.has_own_stack();
    let is_in_process = own_stack && scenario.stack.engines == EngineChoice::Embedded;
    let devices = scenario.connections_max();
    let files = machine::raise_open_files();
    let (processes, addresses) = match against.generators()? {
        Generators::Here(count) => (count, Vec::new()),
        Generators::There(addresses) => (0, addresses),
        Generators::Auto => {
            // Both ends in this process, where the stack is in it.
            let ends = if is_in_process { 2 } else { 1 };
            let fits = devices * ends + limits::FILES_RESERVED <= files;
            (if fits { 0 } else { machine.workers_for(devices) as usize }, Vec::new())
        }
    };
    let is_elsewhere = !addresses.is_empty();
    let mut limits = if is_elsewhere { Vec::new() } else { machine.limits(need(scenario, own_stack)) };
    limits.extend(own_stack.then(|| server_files(scenario, machine, processes + addresses.len() > 0, files)));
    if devices > MANY && !is_elsewhere {
        setting.note(&doctor::table(&limits, devices));
    }
    let short: Vec<&Limit> = limits.iter().filter(|l| l.state == State::Short).collect();
    if !short.is_empty() && !against.force {
        let rows = short.iter().map(|l| {
            let allows = l.allows.map_or(String::new(), |n| format!(", enough for {}", report::human_count(n)));
            format!("\n  {}: {}{allows}; {}", l.what, l.now, l.fix)
        });
        return Err(Failure::environment(format!(
            "{} connections do not fit on this machine:{}\nlower population.users, change the setting, or run anyway with --force",
            report::human_count(devices),
            rows.collect::<String>()
        )));
    }
    let generators = processes.max(addresses.len()).max(1) as u64;
    let each = devices.div_ceil(generators);
    let sources = match &against.source_addresses {
        Some(Sources(all)) if is_elsewhere => {
            return Err(Failure::usage(format!(
                "--source-addresses with {} addresses: they are for generators of this machine",
                all.len()
            )));
        }
        Some(Sources(all)) => shared_out(all, generators as usize),
        // A stack of this machine is on loopback, where every address is ours.
        None if own_stack && devices > MANY => {
            let count = limits::sources_for(each, machine);
            (0..generators).map(|worker| limits::loopback_sources(worker, count)).collect()
        }
        None => vec![Vec::new(); generators as usize],
    };
    Ok(Plan { processes, addresses, sources })
}

/// Each generator's part of the addresses; all of them where there are too few.
fn shared_out(all: &[IpAddr], generators: usize) -> Vec<Vec<IpAddr>> {
    if all.len() < generators {
        return vec![all.to_vec(); generators];
    }
    (0..generators).map(|n| all.iter().skip(n).step_by(generators).copied().collect()).collect()
}

/// Whether the servers of an own stack may open as many files as they get connections.
fn server_files(scenario: &Scenario, machine: &Machine, has_workers: bool, files: u64) -> Limit {
    let devices = scenario.connections_max();
    let per_process = machine.connections_per_process();
    let (allows, fix) = if scenario.stack.engines == EngineChoice::Embedded {
        let both = files.saturating_sub(limits::FILES_RESERVED) / 2;
        let allows = if has_workers { per_process } else { both };
        (
            allows,
            "embedded engines belong to one process: set stack.engines to real, or raise the limit (ulimit -Hn)"
                .to_owned(),
        )
    } else {
        let each = per_process * PLANNED_PERCENT / 100;
        let needed = devices.div_ceil(each.max(1));
        (
            each * scenario.stack.chat_servers as u64,
            format!("set stack.chat_servers to {needed}, or scale_to_fit to true"),
        )
    };
    Limit {
        what: "files of the chat servers",
        now: format!("{} servers", scenario.stack.chat_servers),
        allows: Some(allows),
        state: if devices > allows { State::Short } else { State::Enough },
        fix,
    }
}

/// Starts what is needed, runs the load beside its display, stops what was started.
async fn run_shown(
    scenario: &Scenario,
    setting: &Setting<'_>,
    plan: Plan,
    folder: &Path,
) -> Result<(RunResult, Vec<LiveSnapshot>), Failure> {
    let against = setting.against;
    // Before the stack: who can't be reached is found out at once.
    let tasks = Tasks::new();
    let workers = workers(&plan, against, &tasks).await?;
    let stack = if let Some(target) = &against.target {
        OwnStack::find(target, &against.at.stack).await
    } else {
        Some(start_stack(scenario, setting, folder).await?)
    };
    let target = match (&against.target, &stack) {
        (Some(target), _) => Some(target.clone()),
        (None, Some(stack)) => stack.api_url().await,
        (None, None) => None,
    };
    let target = target.ok_or_else(|| Failure::usage("stack.api_servers is 0: a load needs an API server"))?;
    let (live, shown) = watch::channel(LiveSnapshot::default());
    if let Some(address) = setting.metrics {
        crate::metrics::serve(address, shown.clone(), &tasks)?;
    }
    let control = stack.clone().map(|stack| Arc::new(stack) as Arc<dyn StackControl>);
    let stack_threads = matches!(stack, Some(OwnStack::InProcess(_))).then_some(STACK_THREADS);
    let series = Arc::new(Mutex::new(Vec::new()));
    let recorded = record(shown.clone(), setting.out.map(Path::to_owned), Arc::clone(&series));
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
    let (result, (), written) = tokio::join!(generate, show(setting.ui, shown, setting.interrupt.clone()), recorded);
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
    written.map_err(Failure::environment)?;
    let series = std::mem::take(&mut *series.lock().expect("no panic while held"));
    Ok((result, series))
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
            let is_loopback =
                |target: &str| ["//127.", "//localhost", "//[::1]"].iter().any(|here| target.contains(here));
            if !worker.is_here() && against.target.as_deref().is_none_or(is_loopback) {
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

/// Keeps every snapshot, and writes it down as it comes where there is a folder.
async fn record(
    mut shown: watch::Receiver<LiveSnapshot>,
    out: Option<PathBuf>,
    series: Arc<Mutex<Vec<LiveSnapshot>>>,
) -> std::io::Result<()> {
    let mut writer = out.as_deref().map(report::series::Writer::create).transpose()?;
    let mut last_s = 0.0;
    while shown.changed().await.is_ok() {
        let mut snapshot = shown.borrow_and_update().clone();
        // The setup's many snapshots are for the eye only.
        if snapshot.elapsed_s <= last_s {
            continue;
        }
        last_s = snapshot.elapsed_s;
        snapshot.histograms.clear();
        if let Some(writer) = &mut writer {
            writer.append(&snapshot)?;
        }
        series.lock().expect("no panic while held").push(snapshot);
    }
    Ok(())
}

/// Starts the stack that a scenario asks for, unless it is interrupted.
async fn start_stack(scenario: &Scenario, setting: &Setting<'_>, folder: &Path) -> Result<OwnStack, Failure> {
    let is_plain = setting.ui == Ui::Plain;
    let note = move |note| {
        if is_plain {
            println!("{note}");
        }
    };
    tokio::select! {
        stack = OwnStack::start(scenario, folder, note) => stack,
        () = setting.interrupt.stopped() => {
            Err(Failure { code: exit::INTERRUPTED, message: "interrupted while the stack started".to_owned() })
        }
    }
}

/// Shows the run beside it. The returned future ends when the display has.
pub(crate) async fn show(ui: Ui, shown: watch::Receiver<LiveSnapshot>, interrupt: Tasks) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_lists_and_ranges() {
        let parsed = |text| parse_addresses(text).map(|s| s.0.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(
            parsed("10.0.0.254-10.0.1.1,::1").expect("valid"),
            ["10.0.0.254", "10.0.0.255", "10.0.1.0", "10.0.1.1", "::1"]
        );
        for wrong in ["", "10.0.0", "10.0.0.2-10.0.0.1", "0.0.0.0-255.255.255.255", "::1-::2"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_are_shared_out_without_overlap_where_there_are_enough() {
        let all = parse_addresses("127.0.0.1-127.0.0.5").expect("valid").0;
        let parts = shared_out(&all, 2);
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [3, 2]);
        assert!(parts[0].iter().all(|a| !parts[1].contains(a)));
        assert_eq!(shared_out(&all[..1], 3), vec![all[..1].to_vec(); 3]);
    }
}
