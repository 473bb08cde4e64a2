//! `chatctl doctor`: what this machine allows, and what would change it.

use std::time::Duration;

use chatctl::runtime::limits::{Limit, Machine, Need, Ports, State};
use chatctl::stack::profile::Profile;

use crate::cli::Output;
use crate::exit::{self, Failure};
use crate::output::outln;
use crate::table::limits_table;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Connections to be held at the same time
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    connections: u64,
    /// Listening chat servers that they go to
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    servers: u64,
    /// Time between two heartbeats of a connection
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = crate::cli::duration)]
    heartbeat: Duration,
    /// Time over which all of them connect
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = crate::cli::duration)]
    connect_over: Duration,
    /// The servers are on other machines: only the generator is here
    #[arg(long)]
    generator_only: bool,
    /// How to show it
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

pub(crate) fn run(args: Args) -> Result<u8, Failure> {
    let machine = Machine::read();
    let (has_servers, heartbeat, connect_over) = (!args.generator_only, args.heartbeat, args.connect_over);
    let need = Need { connections: args.connections, servers: args.servers, has_servers, heartbeat, connect_over };
    let mut limits = machine.limits(need);
    limits.push(listeners(&machine.ports));
    match args.output {
        Output::Table => outln!("{}", limits_table(&limits, args.connections)),
        Output::Json => {
            let text = serde_json::to_string_pretty(&limits).map_err(Failure::environment)?;
            outln!("{text}");
        }
    }
    let is_short = limits.iter().any(|limit| limit.state == State::Short);
    Ok(if is_short { exit::ENVIRONMENT } else { exit::PASS })
}

/// Whether the ports of servers and engines are safe from outgoing connections.
fn listeners(ports: &Ports) -> Limit {
    let config = Profile::Engines.config();
    let servers = [config.gateway_port, config.gateway_chat_port, config.api_port, config.chat_port];
    let listeners: Vec<u16> = servers.into_iter().filter(|port| *port > 0).chain(config.engines.tcp_ports()).collect();
    let endangered = ports.endangered(&listeners);
    let list = |ports: &[u16]| ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    Limit {
        what: "ports of listeners",
        now: format!("{} of profile engines", listeners.len()),
        allows: None,
        state: if endangered.is_empty() { State::Enough } else { State::Tight },
        fix: if endangered.is_empty() {
            "outside the ephemeral range, or reserved".to_owned()
        } else {
            format!("sysctl -w net.ipv4.ip_local_reserved_ports={}", list(&endangered))
        },
    }
}
