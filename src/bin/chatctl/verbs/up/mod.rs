//! `chatctl up` and `chatctl serve`: a stack in this process until ctrl-c.

mod processes;

use std::net::IpAddr;
use std::path::PathBuf;

use chatctl::backends::registry::Role;
use chatctl::run::Error;
use chatctl::run::signals::Signals;
use chatctl::runtime::{clock, machine};
use chatctl::stack::profile::Profile;
use chatctl::stack::{Config, Stack};

use crate::cli::{StackLocation, read_config};
use crate::exit::{self, Failure};
use crate::output::{errln, outln};
use crate::process::init_logging;

/// Settings of `up` and `serve` alike; flags override the file.
#[derive(clap::Args)]
pub(crate) struct Common {
    /// Data folder of the embedded engines; without it a temporary one is made and removed at the end
    #[arg(long, value_name = "DIR", env = "CHATCTL_DATA")]
    data: Option<PathBuf>,
    /// YAML file with settings (see docs/configuration.md)
    #[arg(long, value_name = "FILE", env = "CHATCTL_CONFIG")]
    config: Option<PathBuf>,
    /// Address to listen on
    #[arg(long, value_name = "IP", env = "CHATCTL_HOST")]
    host: Option<IpAddr>,
    /// Address that clients and other servers are told; without it --host, or where that is 0.0.0.0 this machine's own
    #[arg(long, value_name = "IP", env = "CHATCTL_ADVERTISE")]
    advertise: Option<IpAddr>,
    /// Port of the first API server (0: any free one)
    #[arg(long, value_name = "PORT", env = "CHATCTL_API_PORT")]
    api_port: Option<u16>,
    /// Port of the first chat server (0: any free one)
    #[arg(long, value_name = "PORT", env = "CHATCTL_CHAT_PORT")]
    chat_port: Option<u16>,
    /// Serve /echo on the chat servers, for WebSocket conformance suites
    #[arg(long)]
    echo: bool,
}

#[derive(clap::Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    common: Common,
    /// Which stack, where no --config says it: embedded (every server in this process, on embedded engines), or engines (every
    /// server a process, on the engines of `scripts/engines start`)
    #[arg(long, value_name = "NAME", env = "CHATCTL_PROFILE", conflicts_with = "config")]
    profile: Option<Profile>,
    /// Each server a process of its own, kept alive; needs real engines for every port
    #[arg(long)]
    processes: bool,
    /// Starts in the background and returns when the stack serves (with --processes or --profile engines)
    #[arg(long, short)]
    detach: bool,
    #[command(flatten)]
    at: StackLocation,
    /// Number of chat servers
    #[arg(long, value_name = "N", env = "CHATCTL_CHAT_SERVERS")]
    chat_servers: Option<usize>,
    /// Number of presence servers
    #[arg(long, value_name = "N", env = "CHATCTL_PRESENCE_SERVERS")]
    presence_servers: Option<usize>,
    /// Number of API servers
    #[arg(long, value_name = "N", env = "CHATCTL_API_SERVERS")]
    api_servers: Option<usize>,
    /// Number of gateways
    #[arg(long, value_name = "N", env = "CHATCTL_GATEWAYS")]
    gateways: Option<usize>,
}

#[derive(clap::Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    common: Common,
    /// Roles to run: chat, presence, api, push, gateway
    #[arg(long, value_delimiter = ',', required = true)]
    role: Vec<Role>,
    /// Number of the server, or of the first of each role: 4 makes chat-4
    #[arg(long, value_name = "N")]
    number: Option<usize>,
    /// Tells where it serves as a line of JSON, and stops when standard input ends: for a supervisor
    #[arg(long, hide = true)]
    supervised: bool,
}

/// Ports of `up`, so that a developer finds the stack where it was yesterday.
const API_PORT: u16 = 7100;
const CHAT_PORT: u16 = 7201;

impl Common {
    /// The settings of the file, or `otherwise`, with what the flags say.
    fn config(&self, otherwise: Config) -> Result<Config, Failure> {
        let mut config = match &self.config {
            None => otherwise,
            Some(path) => read_config(path)?,
        };
        config.data = self.data.clone().or(config.data);
        config.host = self.host.unwrap_or(config.host);
        config.advertise = self.advertise.or(config.advertise);
        config.api_port = self.api_port.unwrap_or(config.api_port);
        config.chat_port = self.chat_port.unwrap_or(config.chat_port);
        config.chat.echo |= self.echo;
        Ok(config)
    }
}

/// The settings of a profile, with ports where a developer finds the stack again.
fn profile_config(profile: Profile) -> Config {
    match profile {
        Profile::Embedded => Config { api_port: API_PORT, chat_port: CHAT_PORT, ..profile.config() },
        Profile::Engines => profile.config(),
    }
}

pub(crate) fn run_up(args: UpArgs) -> Result<u8, Failure> {
    let mut config = args.common.config(profile_config(args.profile.unwrap_or_default()))?;
    config.chat_servers = args.chat_servers.unwrap_or(config.chat_servers);
    config.presence_servers = args.presence_servers.unwrap_or(config.presence_servers);
    config.api_servers = args.api_servers.unwrap_or(config.api_servers);
    config.gateways = args.gateways.unwrap_or(config.gateways);
    config.processes.enabled |= args.processes;
    config.check_whole().map_err(Failure::usage)?;
    if config.processes.enabled {
        let why = if args.profile == Some(Profile::Engines) { Error::of_local_engines } else { Error::from };
        return processes::run(config, &args.at.stack, args.detach, why);
    }
    if args.detach {
        return Err(Failure::usage("--detach goes with --processes or --profile engines"));
    }
    run(config, false)
}

pub(crate) fn run_serve(args: ServeArgs) -> Result<u8, Failure> {
    let config = args.common.config(profile_config(Profile::Embedded))?.with_roles(&args.role);
    let first_number = args.number.unwrap_or(config.first_number);
    run(Config { first_number, ..config }, args.supervised)
}

fn run(config: Config, is_supervised: bool) -> Result<u8, Failure> {
    init_logging();
    let _ = machine::raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::environment)?;
    runtime.block_on(async {
        let mut stops = Stops::new()?;
        let stack = Stack::start_as_process(config).await?;
        if is_supervised {
            outln!("{}", serde_json::to_string(&stack.nodes()).map_err(Failure::environment)?);
            stops.end_with_standard_input();
        } else {
            print_addresses(&stack);
        }
        stops.next().await;
        // A supervisor that goes away now changes nothing.
        stops.orphaned = None;
        if !is_supervised {
            errln!("stopping: clients are told to move; once more to stop at once");
        }
        tokio::select! {
            () = stack.stop() => Ok(exit::PASS),
            () = stops.next() => Ok(exit::INTERRUPTED),
        }
    })
}

/// SIGINT, SIGTERM, SIGHUP, and the end of whoever supervises.
pub(crate) struct Stops {
    signals: Signals,
    orphaned: Option<tokio::sync::oneshot::Receiver<()>>,
}

impl Stops {
    pub(crate) fn new() -> Result<Self, Failure> {
        Ok(Self { signals: Signals::open()?, orphaned: None })
    }

    /// Counts the end of standard input as a stop, and sets the clock as its lines say. A thread of its own reads, since such a read can't be given up.
    fn end_with_standard_input(&mut self) {
        let (orphaned, when_orphaned) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            // An error is an end as well.
            for line in std::io::stdin().lines().map_while(Result::ok) {
                if let Some(by_ms) = line.strip_prefix(clock::SKEW_PREFIX).and_then(|by_ms| by_ms.parse().ok()) {
                    clock::skew(by_ms);
                }
            }
            // Nobody waits when the process is stopping already.
            let _ = orphaned.send(());
        });
        self.orphaned = Some(when_orphaned);
    }

    pub(crate) async fn next(&mut self) {
        let orphaned = async {
            match &mut self.orphaned {
                Some(orphaned) => {
                    let _ = orphaned.await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.signals.next() => {}
            () = orphaned => self.orphaned = None,
        }
    }
}

fn print_addresses(stack: &Stack) {
    for node in stack.nodes() {
        let address = match (node.role, node.address) {
            (Role::Api, Some(address)) => format!("http://{address}"),
            (Role::Gateway, Some(address)) => {
                let websockets = node.websocket_address.map(|a| format!(", ws://{a}{}", chatctl::protocol::CHAT_PATH));
                format!("http://{address}{}", websockets.unwrap_or_default())
            }
            (Role::Chat, Some(address)) => format!("ws://{address}{}", chatctl::protocol::CHAT_PATH),
            (_, Some(address)) => format!("peers on {address}"),
            (_, None) => "-".to_owned(),
        };
        outln!("{:<12} {address}", node.name);
    }
    outln!("{:<12} {}", "data", stack.data().display());
    outln!("ready; ctrl-c stops");
}
