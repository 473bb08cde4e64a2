//! `chatctl status | logs | scale | drain | restart | fault | down`: steers the stack of processes that `chatctl up` started.

use std::io::{BufRead, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use chatctl::backends::registry::Role;
use chatctl::protocol::Fault;
use chatctl::runtime::process;
use chatctl::stack::processes::control::{Client, ControlError, Request};
use chatctl::stack::processes::{Phase, Status};

use crate::cli::{Output, StackLocation};
use crate::exit::{self, Failure};
use crate::output::{self, out, outln};
use crate::process::block_on;
use crate::table::Table;

#[derive(clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    at: StackLocation,
    /// How to show it
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(clap::Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    at: StackLocation,
    /// Servers, such as chat-1; all without
    servers: Vec<String>,
    /// Last lines of each log
    #[arg(long, short = 'n', value_name = "N", default_value_t = 100)]
    lines: usize,
    /// Goes on with what is written from now on
    #[arg(long, short)]
    follow: bool,
}

/// How many servers of a role, as `chat=5`.
#[derive(Debug, Clone)]
struct Count {
    role: Role,
    count: usize,
}

impl FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (role, count) = text.split_once('=').ok_or_else(|| format!("{text:?}: write ROLE=N, such as chat=5"))?;
        let count = count.parse().map_err(|_| format!("{count:?} is no number: write ROLE=N, such as chat=5"))?;
        Ok(Self { role: role.parse()?, count })
    }
}

#[derive(clap::Args)]
pub(crate) struct ScaleArgs {
    #[command(flatten)]
    at: StackLocation,
    /// How many servers of which role, such as chat=5
    #[arg(required = true, value_name = "ROLE=N")]
    counts: Vec<Count>,
}

#[derive(clap::Args)]
pub(crate) struct DrainArgs {
    #[command(flatten)]
    at: StackLocation,
    /// Servers whose clients are to leave; then they end for good
    #[arg(required = true)]
    servers: Vec<String>,
}

#[derive(clap::Args)]
pub(crate) struct RestartArgs {
    #[command(flatten)]
    at: StackLocation,
    /// Servers to restart, one after the other; all without
    servers: Vec<String>,
}

#[derive(clap::Args)]
pub(crate) struct FaultArgs {
    #[command(flatten)]
    at: StackLocation,
    /// What to do, such as: kill chat-2, pause redis 10s, stop kafka 20s, cut chat-1 from redis 15s; in quotes where
    /// it has a minus: "skew chat-2 -60s 20s"
    #[arg(required = true)]
    fault: Vec<String>,
}

#[derive(clap::Args)]
pub(crate) struct DownArgs {
    #[command(flatten)]
    at: StackLocation,
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        Self::environment(error)
    }
}

fn say(note: String) {
    outln!("{note}");
}

pub(crate) fn run_status(args: StatusArgs) -> Result<u8, Failure> {
    let status: Status =
        block_on(async { Ok(Client::connect(&args.at.stack).await?.ask(&Request::Status, say).await?) })?;
    match args.output {
        Output::Table => out!("{}", render(&status)),
        Output::Json => outln!("{}", serde_json::to_string_pretty(&status).map_err(Failure::environment)?),
    }
    Ok(exit::PASS)
}

fn render(status: &Status) -> String {
    let mut servers =
        Table::new(["SERVER", "PHASE", "FOR", "RESTARTS", "CONNECTIONS", "PID", "CPU", "MEMORY", "ADDRESS"]);
    for s in &status.servers {
        let phase = match (&s.last_exit, s.phase) {
            (Some(how), Phase::Down) => format!("down ({how})"),
            (_, phase) => phase.word().to_owned(),
        };
        let address =
            s.address.map(|a| a.to_string()).into_iter().chain(s.websocket_address.map(|a| format!("ws {a}")));
        servers.row([
            s.name.to_string(),
            phase,
            seconds(s.phase_s),
            s.restarts.to_string(),
            s.connections.map_or_else(|| "-".to_owned(), |n| n.to_string()),
            s.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            format!("{:.1} s", s.cpu_s),
            chatctl::report::human_bytes(s.resident_bytes),
            address.collect::<Vec<_>>().join(", "),
        ]);
    }
    let mut engines = Table::new(["ENGINE", "STATE", "VERSION", "PORTS", "PID", "CPU", "MEMORY", "ADDRESS"]);
    for e in &status.engines {
        let is_local = e.pid.is_some();
        let if_local = |text: String| if is_local { text } else { "-".to_owned() };
        engines.row([
            e.kind.clone(),
            e.state.clone(),
            e.version.clone(),
            e.ports.join(", "),
            e.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            if_local(format!("{:.1} s", e.cpu_s)),
            if_local(chatctl::report::human_bytes(e.resident_bytes)),
            e.address.clone(),
        ]);
    }
    let url = status.api_url.as_deref().unwrap_or("no API server is up");
    let (pid, folder) = (status.supervisor_pid, status.folder.display());
    format!("{servers}\n{engines}\n{url}   supervisor {pid}   logs in {folder}/logs\n")
}

fn seconds(s: f64) -> String {
    let whole = s as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3_600 => format!("{} min", whole / 60),
        _ => format!("{:.1} h", s / 3_600.0),
    }
}

pub(crate) fn run_scale(args: ScaleArgs) -> Result<u8, Failure> {
    block_on(async {
        let mut client = Client::connect(&args.at.stack).await?;
        for Count { role, count } in args.counts {
            client.ask::<()>(&Request::Scale { role, count }, say).await?;
            say(format!("{role}: {count}"));
        }
        Ok(exit::PASS)
    })
}

pub(crate) fn run_drain(args: DrainArgs) -> Result<u8, Failure> {
    block_on(async {
        let mut client = Client::connect(&args.at.stack).await?;
        for server in args.servers {
            client.ask::<()>(&Request::DoFault(Fault::Drain(server.clone())), say).await?;
            say(format!("{server}: its clients have left, it has ended"));
        }
        Ok(exit::PASS)
    })
}

pub(crate) fn run_restart(args: RestartArgs) -> Result<u8, Failure> {
    block_on(async {
        Client::connect(&args.at.stack).await?.ask::<()>(&Request::Restart(args.servers), say).await?;
        Ok(exit::PASS)
    })
}

pub(crate) fn run_fault(args: FaultArgs) -> Result<u8, Failure> {
    let fault: Fault = args.fault.join(" ").parse().map_err(Failure::usage)?;
    block_on(async {
        let mut client = Client::connect(&args.at.stack).await?;
        client.ask::<()>(&Request::DoFault(fault.clone()), say).await?;
        say(format!("{fault}: done"));
        Ok(exit::PASS)
    })
}

pub(crate) fn run_down(args: DownArgs) -> Result<u8, Failure> {
    block_on(async {
        let mut client = Client::connect(&args.at.stack).await?;
        let supervisor: u32 = client.ask(&Request::Down, say).await?;
        while process::is_running(supervisor) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        say("down".to_owned());
        Ok(exit::PASS)
    })
}

/// A log that is read on.
struct Log {
    name: String,
    path: PathBuf,
    position: u64,
}

pub(crate) fn run_logs(args: LogsArgs) -> Result<u8, Failure> {
    let folder = args.at.stack.join("logs");
    let mut logs = find_logs(&folder, &args.servers)?;
    let width = logs.iter().map(|log| log.name.len()).max().unwrap_or(0);
    for log in &mut logs {
        let text =
            std::fs::read(&log.path).map_err(|e| Failure::environment(format!("{}: {e}", log.path.display())))?;
        log.position = text.len() as u64;
        let lines: Vec<_> = text.lines().map_while(Result::ok).collect();
        for line in &lines[lines.len().saturating_sub(args.lines)..] {
            outln!("{:<width$} | {line}", log.name);
        }
    }
    if args.follow {
        follow(&mut logs, width);
    }
    Ok(exit::PASS)
}

/// Prints what is written from now on, until nobody reads it any more.
fn follow(logs: &mut [Log], width: usize) {
    while output::is_read() {
        std::thread::sleep(Duration::from_millis(200));
        for log in &mut *logs {
            print_news(log, width);
        }
    }
}

fn find_logs(folder: &Path, wanted: &[String]) -> Result<Vec<Log>, Failure> {
    let entries = std::fs::read_dir(folder).map_err(|e| {
        let fix = "start a stack with `chatctl up --profile engines`, or name its folder with --stack";
        Failure::environment(format!("no logs in {}: {e}; {fix}", folder.display()))
    })?;
    let mut logs: Vec<Log> = entries
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|e| e == "log"))
        .filter_map(|entry| Some((entry.path().file_stem()?.to_str()?.to_owned(), entry.path())))
        .map(|(name, path)| Log { name, path, position: 0 })
        .collect();
    logs.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(unknown) = wanted.iter().find(|name| logs.iter().all(|log| log.name != **name)) {
        let there = logs.iter().map(|log| log.name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(Failure::usage(format!("there is no log of {unknown}: there are {there}")));
    }
    logs.retain(|log| wanted.is_empty() || wanted.contains(&log.name));
    Ok(logs)
}

/// Prints the whole lines that came since the last look. A log that was put aside starts from its beginning.
fn print_news(log: &mut Log, width: usize) {
    let Ok(mut file) = std::fs::File::open(&log.path) else { return };
    let length = file.metadata().map_or(0, |m| m.len());
    if length < log.position {
        log.position = 0;
    }
    let mut text = Vec::new();
    if file.seek(SeekFrom::Start(log.position)).is_err() || file.read_to_end(&mut text).is_err() {
        return;
    }
    let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    log.position += whole as u64;
    for line in String::from_utf8_lossy(&text[..whole]).lines() {
        outln!("{:<width$} | {line}", log.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_and_others_refused_with_an_example() {
        let count: Count = "chat=5".parse().expect("valid");
        assert_eq!((count.role, count.count), (Role::Chat, 5));
        for text in ["chat", "chat=x", "chef=1"] {
            let error = text.parse::<Count>().expect_err("refused");
            assert!(error.contains("chat"), "{error}");
        }
    }
}
